// Plays a track while the rest is still arriving, in an AudioWorklet. Without one, as on plain http from another machine, it
// schedules AudioBufferSourceNodes.

import { RATE } from "./takes.js";
import { ROOT, store } from "./ui.js";

const START_S = 0.12; // buffered before playback starts; each underrun doubles it, up to 1 s
const FADE_S = 0.01;
const AGAIN_S = 0.7; // later than this in a sentence, a step back goes to its start

class WorkletSink {
  #node;
  #sent = new Map(); // track id -> number of samples that the audio thread has
  #kept = [];

  static async open(context, out, receive) {
    await context.audioWorklet.addModule(`${ROOT}/static/js/worklet.js`);
    const sink = new WorkletSink();
    sink.#node = new AudioWorkletNode(context, "studio-player", { numberOfInputs: 0, outputChannelCount: [1] });
    sink.#node.port.onmessage = ({ data }) => receive(data);
    sink.#node.connect(out);
    return sink;
  }

  grew(track) {
    if (!this.#sent.has(track.id)) return;
    const sent = this.#sent.get(track.id);
    if (track.length > sent) {
      const samples = track.samples(sent).slice();
      this.#node.port.postMessage({ type: "append", id: track.id, samples }, [samples.buffer]);
      this.#sent.set(track.id, track.length);
    }
    if (track.ended) this.#node.port.postMessage({ type: "end", id: track.id });
  }

  play(track, at, gain, threshold_s, start) {
    if (!this.#sent.has(track.id)) {
      this.#sent.set(track.id, 0);
      this.#kept.push(track.id);
      if (this.#kept.length > 3) this.#drop(this.#kept.shift()); // the current track and an A/B pair
    } else {
      this.#kept.push(this.#kept.splice(this.#kept.indexOf(track.id), 1)[0]);
    }
    this.grew(track);
    this.#node.port.postMessage({ type: "play", id: track.id, at, gain, threshold_s, start });
  }

  halt(fade_s) {
    this.#node.port.postMessage({ type: "halt", fade_s });
  }

  #drop(id) {
    this.#sent.delete(id);
    this.#node.port.postMessage({ type: "drop", id });
  }
}

class NodeSink {
  #track = null;
  #queued = 0; // scheduled samples of the track
  #next = 0; // start time of the next samples, on the clock of the context
  #waiting = true;
  #threshold_s = START_S;
  #gain = null;
  #timer = 0;
  #starts_at = null;
  #start = 0;

  constructor(context, out, receive) {
    Object.assign(this, { context, out, receive: (message) => receive({ ...message, start: this.#start }) });
  }

  grew(track) {
    if (track === this.#track) this.#schedule();
  }

  play(track, at, gain, threshold_s, start) {
    this.#start = start;
    this.#leave(FADE_S);
    const now = this.context.currentTime;
    this.#gain = this.context.createGain();
    this.#gain.connect(this.out);
    this.#gain.gain.setValueAtTime(at === 0 ? gain : 0, now);
    if (at !== 0) this.#gain.gain.linearRampToValueAtTime(gain, now + FADE_S);
    this.#track = track;
    this.#queued = at;
    this.#waiting = true;
    this.#threshold_s = threshold_s;
    this.#starts_at = null;
    this.#timer = setInterval(() => this.#schedule(), 30);
    this.#schedule();
  }

  halt(fade_s) {
    this.#leave(fade_s);
  }

  #leave(fade_s) {
    clearInterval(this.#timer);
    this.#track = null;
    if (!this.#gain) return;
    const [gain, now] = [this.#gain, this.context.currentTime];
    gain.gain.cancelScheduledValues(now);
    gain.gain.setValueAtTime(gain.gain.value, now);
    gain.gain.linearRampToValueAtTime(0, now + fade_s);
    setTimeout(() => gain.disconnect(), 1000 * fade_s + 100);
    this.#gain = null;
  }

  #schedule() {
    const track = this.#track;
    if (!track || this.context.state !== "running") return;
    const now = this.context.currentTime;
    const ahead_s = (track.length - this.#queued) / RATE;
    if (this.#waiting) {
      if (!track.ended && ahead_s < this.#threshold_s) return;
      this.#waiting = false;
      this.#next = now + 0.01;
      this.#starts_at ??= this.#next;
    } else if (this.#next <= now && this.#queued === track.length) {
      if (track.ended) {
        this.#leave(0.001);
        this.receive({ type: "ended", id: track.id, at: track.length });
      } else {
        this.#waiting = true;
        this.#threshold_s = Math.min(2 * Math.max(this.#threshold_s, 0.06), 1);
        this.receive({ type: "underrun", id: track.id });
      }
      return;
    }
    this.#next = Math.max(this.#next, now);
    while (this.#next < now + 1.5 && this.#queued < track.length) {
      const samples = track.samples(this.#queued, Math.min(track.length, this.#queued + RATE / 2));
      const buffer = this.context.createBuffer(1, samples.length, RATE);
      buffer.copyToChannel(Float32Array.from(samples, (value) => value / 32_768), 0);
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.#gain);
      source.start(this.#next);
      this.#next += samples.length / RATE;
      this.#queued += samples.length;
    }
    if (this.#starts_at !== null && now >= this.#starts_at) {
      this.#starts_at = Infinity;
      this.receive({ type: "started", id: track.id });
    }
    this.receive({ type: "at", id: track.id, at: Math.max(0, Math.round(this.#queued - Math.max(0, this.#next - now) * RATE)) });
  }
}

/** Dispatches "change" (track, playing or position) and "started" (the first sample of a track is played). */
class Player extends EventTarget {
  track = null;
  playing = false;
  underruns = 0;
  pair = null; // A/B: { tracks: [a, b], gains, on: 0 | 1 }
  #at = 0; // samples
  #starts = 0; // number of calls of #start; a message of the audio thread names the call to which it belongs
  #context = null;
  #out = null;
  #sink = null;
  #opening = null;
  #watched = new WeakSet();
  #volume = store.get("volume", 1);

  /** Prepares the audio. Call it in the handler of a click or key: browsers refuse to play otherwise. */
  prepare() {
    this.#opening ??= this.#open();
    if (this.#context.state === "suspended") this.#context.resume().catch(() => {});
    return this.#opening;
  }

  async #open() {
    this.#context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    this.#out = this.#context.createGain();
    this.#out.gain.value = this.#volume;
    this.#out.connect(this.#context.destination);
    const receive = (message) => this.#receive(message);
    try {
      this.#sink = await WorkletSink.open(this.#context, this.#out, receive);
    } catch {
      this.#sink = new NodeSink(this.#context, this.#out, receive); // no AudioWorklet, or its file did not load
    }
  }

  /** "worklet" or "nodes"; empty before the audio is prepared. */
  get kind() {
    return this.#sink === null ? "" : this.#sink instanceof WorkletSink ? "worklet" : "nodes";
  }

  get at_s() {
    return this.#at / RATE;
  }

  get volume() {
    return this.#volume;
  }

  set volume(value) {
    this.#volume = value;
    store.set("volume", value);
    if (this.#out) this.#out.gain.setTargetAtTime(value, this.#context.currentTime, 0.01);
  }

  /** Loads a track. The track before it stops. */
  async load(track, { play = true, at_s = 0, pair = null } = {}) {
    if (this.track && this.track !== track) this.#sink?.halt(FADE_S);
    this.track = track;
    this.pair = pair;
    this.underruns = 0;
    this.#at = Math.min(Math.round(at_s * RATE), track.length);
    this.playing = play;
    if (!this.#watched.has(track)) {
      this.#watched.add(track);
      for (const kind of ["grow", "end"]) track.addEventListener(kind, () => this.#sink?.grew(track));
    }
    this.#changed();
    await this.prepare();
    if (this.track === track && this.playing) this.#start();
  }

  #gain() {
    return this.pair ? this.pair.gains[this.pair.on] : 1;
  }

  #start() {
    this.#sink.play(this.track, this.#at, this.#gain(), this.track.ended ? 0 : START_S, ++this.#starts);
  }

  async play() {
    if (!this.track) return;
    this.playing = true;
    if (this.track.ended && this.#at >= this.track.length) this.#at = 0;
    this.#changed();
    await this.prepare();
    if (this.playing) this.#start();
  }

  /** Pauses playback only: the server continues to produce audio. */
  pause() {
    this.playing = false;
    this.#sink?.halt(FADE_S);
    this.#changed();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  stop() {
    this.playing = false;
    this.#sink?.halt(0.02);
    this.#changed();
  }

  /** Moves the position, within the audio that has arrived. */
  seek(at_s) {
    if (!this.track) return;
    this.#at = Math.round(Math.max(0, Math.min(at_s, this.track.seconds)) * RATE);
    if (this.playing && this.#sink) this.#start();
    this.#changed();
  }

  /** Moves to the start of the next sentence (1), or of this sentence or the one before it (-1). */
  step(by) {
    const { starts } = this.track ?? { starts: [] };
    const to = by > 0 ? starts.find((start) => start > this.at_s + 0.05) : starts.findLast((start) => start < this.at_s - AGAIN_S) ?? 0;
    if (to !== undefined) this.seek(to);
  }

  /** Loads two finished tracks for an A/B comparison, at one level. */
  compare(a, b, { at_s = 0, on = 0 } = {}) {
    const levels = [a.level, b.level];
    const quiet = Math.min(...levels.filter((level) => level > 0), 1);
    const gains = levels.map((level) => (level > 0 ? Math.min(1, quiet / level) : 1));
    return this.load([a, b][on], { pair: { tracks: [a, b], gains, on }, at_s });
  }

  /** Switches to the other track of the pair, at the same position. */
  swap() {
    if (!this.pair) return;
    this.pair.on = 1 - this.pair.on;
    this.track = this.pair.tracks[this.pair.on];
    this.#at = Math.min(this.#at, this.track.length);
    if (this.playing && this.#sink) this.#start();
    this.#changed();
  }

  unload(track) {
    if (this.track !== track && !this.pair?.tracks.includes(track)) return;
    this.stop();
    this.track = this.pair = null;
    this.#changed();
  }

  #receive({ type, id, at, start }) {
    if (id !== this.track?.id || start !== this.#starts) return; // sent before a seek, so its position is old
    if (type === "started") this.dispatchEvent(new Event("started"));
    if (!this.playing) return;
    if (type === "at") this.#at = at;
    if (type === "underrun") this.underruns++;
    if (type === "ended") {
      this.#at = at;
      this.playing = false;
    }
    this.#changed(type);
  }

  #changed(why = "set") {
    this.dispatchEvent(Object.assign(new Event("change"), { why }));
  }
}

export const player = new Player();
