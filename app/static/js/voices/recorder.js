// The microphone as samples, with the browser's own treatment of speech switched off.

import { ROOT } from "../ui.js";

/** Whether this page may ask for a microphone at all: browsers forbid it on plain http, except to this machine itself. */
export const possible = () => Boolean(isSecureContext && navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);

/** Tells "piece" (detail: samples) while it is open, "lost" when the device went away. */
export class Recorder extends EventTarget {
  #context = null;
  #stream = null;
  #pieces = null; // null: only listening
  #length = 0;

  /** Asks the person. Raises the browser's NotAllowedError, NotFoundError, NotReadableError. */
  async open(deviceId = "") {
    const asked = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
    if (deviceId) asked.deviceId = { exact: deviceId };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: asked });
    const context = new AudioContext();
    try {
      await context.audioWorklet.addModule(`${ROOT}/static/js/voices/capture.js`);
      await context.resume();
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      context.close();
      throw error;
    }
    this.#stream = stream;
    this.#context = context;
    const node = new AudioWorkletNode(context, "studio-capture", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => {
      if (this.#pieces) {
        this.#pieces.push(data);
        this.#length += data.length;
      }
      this.dispatchEvent(new CustomEvent("piece", { detail: data }));
    };
    context.createMediaStreamSource(stream).connect(node);
    stream.getAudioTracks()[0].addEventListener("ended", () => this.dispatchEvent(new Event("lost")));
  }

  get isOpen() {
    return this.#context !== null;
  }

  get rate() {
    return this.#context?.sampleRate ?? 48_000;
  }

  get seconds() {
    return this.#length / this.rate;
  }

  get device() {
    return this.#stream?.getAudioTracks()[0].getSettings().deviceId ?? "";
  }

  /** [{ id, name }], once the person has agreed. */
  async devices() {
    const all = await navigator.mediaDevices.enumerateDevices();
    return all.filter((each) => each.kind === "audioinput" && each.deviceId).map((each) => ({ id: each.deviceId, name: each.label || each.deviceId.slice(0, 8) }));
  }

  begin() {
    this.#pieces = [];
    this.#length = 0;
  }

  /** What was recorded since `begin`: { samples, rate }. */
  end() {
    const samples = new Float32Array(this.#length);
    let at = 0;
    for (const piece of this.#pieces ?? []) {
      samples.set(piece, at);
      at += piece.length;
    }
    this.#pieces = null;
    return { samples, rate: this.rate };
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
    this.#stream = this.#context = this.#pieces = null;
  }
}
