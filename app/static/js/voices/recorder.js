// Records the microphone, without the echo and noise processing of the browser.

import { ROOT } from "../ui.js";

/** Whether this page may use a microphone. Browsers forbid it on plain http, except on localhost. */
export const possible = () => Boolean(isSecureContext && navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);

/** Dispatches "chunk" (detail: samples) while it is open, and "lost" when the device is disconnected. */
export class Recorder extends EventTarget {
  #context = null;
  #stream = null;
  #chunks = null; // null: not recording, even if the microphone is open
  #length = 0;

  /** Opens the microphone. Throws NotAllowedError, NotFoundError or NotReadableError of the browser. */
  async open(deviceId = "") {
    const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
    if (deviceId) constraints.deviceId = { exact: deviceId };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: constraints });
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
      if (this.#chunks) {
        this.#chunks.push(data);
        this.#length += data.length;
      }
      this.dispatchEvent(new CustomEvent("chunk", { detail: data }));
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

  /** The microphones as [{ id, name }]. The names need an open microphone. */
  async devices() {
    const all = await navigator.mediaDevices.enumerateDevices();
    return all.filter((each) => each.kind === "audioinput" && each.deviceId).map((each) => ({ id: each.deviceId, name: each.label || each.deviceId.slice(0, 8) }));
  }

  begin() {
    this.#chunks = [];
    this.#length = 0;
  }

  /** Ends the recording. Returns { samples, rate }. */
  end() {
    const samples = new Float32Array(this.#length);
    let at = 0;
    for (const chunk of this.#chunks ?? []) {
      samples.set(chunk, at);
      at += chunk.length;
    }
    this.#chunks = null;
    return { samples, rate: this.rate };
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
    this.#stream = this.#context = this.#chunks = null;
  }
}
