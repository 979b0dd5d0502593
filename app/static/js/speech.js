// One answer being spoken at a time, whichever page asked: its states, its stop, its take. Outlives the page.

import { ApiError, speakStream } from "./api.js";
import { Track, player } from "./player.js";
import { takes } from "./takes.js";
import { announce, number, t } from "./ui.js";

const WORTH_KEEPING_S = 0.5;
const TRIES = 3; // at a busy server

export const drawSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;

/** Sixty-four heights from 0 to 1: how a take looks in a list. */
export function shapeOf(track) {
  return Array.from({ length: 64 }, (_, n) => {
    const [low, high] = track.extremes((n / 64) * track.seconds, ((n + 1) / 64) * track.seconds);
    return Math.round((100 * Math.max(-low, high)) / Math.max(0.2, track.peak)) / 100;
  });
}

/**
 * state: idle | waiting | streaming | done | partial | error. Tells "change".
 * first_s: from the press to the first sample that sounded. factor: seconds of sound made per second of waiting.
 */
class Speech extends EventTarget {
  state = "idle";
  source = ""; // which page asked
  error = null;
  track = null;
  take = null;
  pressed_ms = 0;
  first_s = null;
  factor = null;
  again_s = null; // seconds until a busy server is asked again
  ignored = "";
  engine = "";
  hit = false;
  #leave = null;

  constructor() {
    super();
    player.addEventListener("sounded", () => {
      if (player.track === this.track && this.first_s === null) {
        this.first_s = (performance.now() - this.pressed_ms) / 1000;
        if (this.take) takes.change(this.take.id, { first_s: this.first_s });
        this.#tell();
      }
    });
  }

  get busy() {
    return this.state === "waiting" || this.state === "streaming";
  }

  /** Speaks. facts: what the take is to remember. A preview leaves no take. Never raises: see `state` and `error`. */
  async start({ source, path, body, facts, preview = false }) {
    if (this.busy) this.stop(); // what there was is kept while the new one is already asked for
    const leave = new AbortController();
    const track = new Track();
    this.#leave = leave;
    Object.assign(this, { state: "waiting", source, error: null, track, take: null, pressed_ms: performance.now(), first_s: null, factor: null, again_s: null, ignored: "", engine: "", hit: false });
    track.about = { ...facts, body, source, preview };
    player.load(track); // in the press itself, or the browser keeps it silent
    this.#tell();
    let failed = null;
    try {
      await this.#ask(path, body, track, leave.signal);
    } catch (error) {
      failed = error;
    }
    track.end();
    if (this.#leave !== leave) return; // stopped, and perhaps begun anew: `stop` kept what there was
    this.#leave = null;
    if (!failed) {
      this.factor = track.seconds / ((performance.now() - this.pressed_ms) / 1000);
      this.state = "done";
      announce(t("told.finished", { s: number(track.seconds, 1) }));
    } else {
      this.error = failed instanceof ApiError ? failed : new ApiError({ message: String(failed.message ?? failed) });
      this.state = track.seconds >= WORTH_KEEPING_S ? "partial" : "error";
      if (this.state === "error") player.unload(track);
    }
    this.#tell();
    if (this.state !== "error") await this.#keep(track, body, facts, preview, this.state === "partial");
  }

  async #ask(path, body, track, signal) {
    const on = {
      head: (headers) => {
        this.engine = headers.get("x-tts-engine") ?? "";
        this.ignored = headers.get("x-tts-ignored") ?? "";
        this.hit = headers.get("x-cache") === "hit";
        track.seed = headers.get("x-tts-seed");
      },
      audio: (bytes) => {
        track.appendBytes(bytes);
        if (this.state === "waiting") {
          this.state = "streaming";
          announce(t("told.speaking"));
          this.#tell();
        }
      },
      progress: (event) => {
        track.parts.push(event);
        this.#tell();
      },
    };
    for (let attempt = 1; ; attempt++) {
      try {
        return await speakStream(path, body, on, signal);
      } catch (error) {
        if (error.status !== 429 || attempt === TRIES) throw error;
        await this.#countDown(Math.max(1, error.retryAfter_s), signal);
      }
    }
  }

  async #countDown(wait_s, signal) {
    for (this.again_s = wait_s; this.again_s > 0; this.again_s--) {
      this.#tell();
      await new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, 1000);
        signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
      });
    }
    this.again_s = null;
    this.#tell();
  }

  /** Ends it here and on the server. Half a second and more is kept as a partial take. */
  async stop() {
    if (!this.busy) return;
    const { track } = this;
    const about = track.about;
    this.#leave.abort(new DOMException("stopped", "AbortError"));
    this.#leave = null;
    player.stop();
    track.end();
    const kept = track.seconds >= WORTH_KEEPING_S;
    this.state = kept ? "partial" : "idle";
    this.again_s = null;
    announce(t("told.stopped"));
    if (!kept) player.unload(track);
    this.#tell();
    if (kept) await this.#keep(track, about.body, about, about.preview, true);
  }

  async #keep(track, body, facts, preview, partial) {
    if (preview || track.length === 0) return;
    const { first_s, factor, engine } = this;
    const kept = { kind: facts.kind, text: facts.text, voice: facts.voice, model: facts.model, body, engine, seed: track.seed, seconds: track.seconds, first_s, factor, partial, shape: shapeOf(track), parts: track.parts };
    const take = await takes.add(kept, track.samples().slice());
    track.take = take.id;
    if (this.track === track) {
      this.take = take;
      if (first_s === null && this.first_s !== null) takes.change(take.id, { first_s: this.first_s });
      this.#tell();
    }
  }

  /** Back to nothing said, as after "Use another voice". */
  clear() {
    if (this.busy) return;
    this.state = "idle";
    this.error = null;
    this.#tell();
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}

export const speech = new Speech();

/** A kept take as a track to play. Null where its sound is gone. */
export async function trackOf(take) {
  if (player.track?.take === take.id) return player.track;
  const samples = await takes.sound(take.id);
  if (!samples) return null;
  return Track.of(samples, { take: take.id, seed: take.seed, parts: take.parts ?? [], about: { kind: take.kind, text: take.text, voice: take.voice, model: take.model, body: take.body } });
}

/** A voice says who it is; no take is kept. */
export function preview(voice, model) {
  return speech.start({
    source: "preview",
    path: "/v1/audio/speech",
    body: { input: t("voices.sentence", { name: voice.name }), voice: voice.id, ...(model ? { model } : {}) },
    facts: { kind: "speech", text: t("voices.sentence", { name: voice.name }), voice: voice.name, model },
    preview: true,
  });
}
