// The current speech request: one at a time for all pages. It continues when the person opens another page.

import { ApiError, errorBox, health, speakStream } from "./api.js";
import { player } from "./player.js";
import { Track, takes } from "./takes.js";
import { announce, h, number, seconds, t } from "./ui.js";

const WORTH_KEEPING_S = 0.5;
const TRIES = 3; // requests to a busy server
const QUEUE_EVERY_MS = 1000;

export const drawSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;

/** Returns a function that calls its argument as soon as `listed` is settled. Calls in the meantime are ignored. */
export function whenListed(listed) {
  let waiting = false;
  return async (start) => {
    player.prepare(); // before any wait: browsers only allow it inside the handler of a press
    if (waiting) return;
    waiting = true;
    await listed();
    waiting = false;
    start();
  };
}

/** The small waveform of a take in a list: 64 heights from 0 to 1. */
function shapeOf(track) {
  return Array.from({ length: 64 }, (_, n) => {
    const [low, high] = track.extremes((n / 64) * track.seconds, ((n + 1) / 64) * track.seconds);
    return Math.round((100 * Math.max(-low, high)) / Math.max(0.2, track.peak)) / 100;
  });
}

/**
 * state: idle | waiting | streaming | done | partial | error. Dispatches "change".
 * first_s: seconds from the press to the first sample played. factor: seconds of audio produced per second.
 */
class Speech extends EventTarget {
  state = "idle";
  source = ""; // the page that started it
  error = null;
  track = null;
  take = null;
  pressed_ms = 0;
  first_s = null;
  factor = null;
  again_s = null; // seconds until the next request to a busy server
  place = null; // the highest place that the request can have in the queue of the server; null while nothing is known
  ignored = "";
  engine = "";
  cached = false; // the answer came from the server's cache
  #abort = null;
  #active = false; // at the last "change"
  #told = null; // the error that was shown last

  constructor() {
    super();
    player.addEventListener("change", () => this.#active !== this.active && this.#changed());
    player.addEventListener("started", () => {
      if (player.track === this.track && this.first_s === null) {
        this.first_s = (performance.now() - this.pressed_ms) / 1000;
        if (this.take) takes.change(this.take.id, { first_s: this.first_s });
        this.#changed();
      }
    });
  }

  get busy() {
    return this.state === "waiting" || this.state === "streaming";
  }

  /** Whether the speech is made or played. */
  get active() {
    return this.busy || (player.playing && player.track === this.track);
  }

  /** Speaks. facts: fields of the take. A preview is not kept as a take. Never throws: see `state` and `error`. */
  async start({ source, path, body, facts, preview = false }) {
    if (this.busy) this.stop(); // the audio of the old request is kept as a take
    const abort = new AbortController();
    const track = new Track();
    this.#abort = abort;
    Object.assign(this, { state: "waiting", source, error: null, track, take: null, pressed_ms: performance.now(), first_s: null, factor: null, again_s: null, place: null, ignored: "", engine: "", cached: false });
    track.about = { ...facts, body, source, preview };
    track.stopper = () => this.busy && this.track === track && (() => this.stop());
    player.load(track); // inside the handler of the press: browsers refuse to play otherwise
    this.#changed();
    let failed = null;
    const watching = setInterval(() => this.#findPlace(), QUEUE_EVERY_MS);
    try {
      await this.#ask(path, body, track, abort.signal);
    } catch (error) {
      failed = error;
    }
    clearInterval(watching);
    track.end();
    if (this.#abort !== abort) return; // `stop` was called, and it has kept the take
    this.#abort = null;
    if (!failed) {
      this.factor = track.seconds / ((performance.now() - this.pressed_ms) / 1000);
      this.state = "done";
      announce(t("status.finished", { s: number(track.seconds, 1) }));
    } else {
      track.cut = true;
      this.error = failed instanceof ApiError ? failed : new ApiError({ message: String(failed.message ?? failed) });
      this.state = track.seconds >= WORTH_KEEPING_S ? "partial" : "error";
      if (this.state === "error") player.unload(track);
    }
    this.#changed();
    if (this.state !== "error") await this.#keep(track, body, facts, preview, this.state === "partial");
  }

  async #ask(path, body, track, signal) {
    const on = {
      head: (headers) => {
        this.engine = headers.get("x-tts-engine") ?? "";
        this.ignored = headers.get("x-tts-ignored") ?? "";
        this.cached = headers.get("x-cache") === "hit";
        track.seed = headers.get("x-tts-seed");
      },
      audio: (bytes) => {
        track.appendBytes(bytes);
        if (this.state === "waiting") {
          this.state = "streaming";
          announce(t("status.speaking"));
          this.#changed();
        }
      },
      progress: (event) => {
        track.parts.push(event);
        this.#changed();
      },
      words: (event) => track.timed.push(event),
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
      this.#changed();
      await new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, 1000);
        signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
      });
    }
    this.again_s = null;
    this.#changed();
  }

  /** Reads how many requests wait. Later ones wait behind this one, so its place never grows. */
  async #findPlace() {
    if (this.state !== "waiting" || this.again_s) return;
    const { queue } = (await health.look()) ?? {};
    if (queue) this.place = Math.min(this.place ?? Infinity, queue.waiting);
  }

  /** Stops playback and the request. What was heard is kept as a partial take, if it is half a second or more. */
  async stop() {
    if (!this.busy) return player.pause();
    const whole = this.track;
    const { about } = whole;
    const heard_s = player.track === whole ? player.at_s : whole.seconds;
    this.#abort.abort(new DOMException("stopped", "AbortError"));
    this.#abort = null;
    player.stop();
    whole.end();
    const kept = heard_s >= WORTH_KEEPING_S;
    const track = kept ? (this.track = whole.until(heard_s)) : whole;
    if (kept && player.track === whole) player.load(track, { play: false, at_s: heard_s });
    this.state = kept ? "partial" : "idle";
    this.again_s = null;
    announce(t("status.stopped"));
    if (!kept) player.unload(track);
    this.#changed();
    if (kept) await this.#keep(track, about.body, about, about.preview, "stopped");
  }

  async #keep(track, body, facts, preview, partial) {
    if (preview || track.length === 0) return;
    const { first_s, factor, engine } = this;
    const kept = { kind: facts.kind, text: facts.text, voice: facts.voice, model: facts.model, body, engine, seed: track.seed, seconds: track.seconds, first_s, factor, partial, shape: shapeOf(track), parts: track.parts, timed: track.timed };
    const take = await takes.add(kept, track.samples().slice());
    track.take = take.id;
    if (this.track === track) {
      this.take = take;
      if (first_s === null && this.first_s !== null) takes.change(take.id, { first_s: this.first_s });
      this.#changed();
    }
  }

  /** Shows a new error of the speech of `source` in a slot. actions(): its buttons. Returns its box, or null. */
  showError(slot, source, actions = () => []) {
    const { error } = this;
    if (this.source !== source || !error || error === this.#told) return null;
    this.#told = error;
    const box = errorBox(error, actions());
    if (this.state === "partial") box.prepend(h("p", {}, t("error.broke", { s: number(this.track.seconds, 1) })));
    slot.replaceChildren(box);
    return box;
  }

  /** Resets to idle. */
  clear() {
    if (this.busy) return;
    this.state = "idle";
    this.error = null;
    this.#changed();
  }

  #changed() {
    this.#active = this.active;
    this.dispatchEvent(new Event("change"));
  }
}

export const speech = new Speech();

/** A track of a take. Null when its audio is no longer stored. */
export async function trackOf(take) {
  if (player.track?.take === take.id) return player.track;
  const samples = await takes.sound(take.id);
  if (!samples) return null;
  return Track.of(samples, { take: take.id, seed: take.seed, parts: take.parts ?? [], timed: take.timed ?? [], cut: Boolean(take.partial), about: { kind: take.kind, text: take.text, voice: take.voice, model: take.model, body: take.body } });
}

/** A voice speaks a sample sentence. No take is kept. */
export function preview(voice, { model, text = t("voices.sentence", { name: voice.name }), source = "preview" } = {}) {
  return speech.start({
    source,
    path: "/v1/audio/speech",
    body: { input: text, voice: voice.id, ...(model ? { model } : {}) },
    facts: { kind: "speech", text, voice: voice.name, model },
    preview: true,
  });
}

// ---- badges: the progress of a request

export const badge = (key, value, look = "") => h("span", { class: `badge ${look}`, data: { badge: key } }, `${t(`badge.${key}`)} `, h("strong", {}, value));

/** Badges for the time to first audio, the speed of the engine and the wait for a busy server. */
export function timeBadges({ state, again_s, place, pressed_ms, first_s, factor }) {
  const waited_s = (performance.now() - pressed_ms) / 1000;
  return [
    again_s ? badge("busy", t("badge.again", { s: again_s }), "warn") : state === "waiting" && waited_s > 0.3 && badge("waiting", seconds(waited_s)),
    state === "waiting" && !again_s && place > 0 && badge("place", number(place)),
    first_s !== null && badge("first", `${number(first_s, 2)} s`),
    factor !== null && badge("factor", `${number(factor, 1)}×`),
  ].filter(Boolean);
}

export const ignoredBadges = ({ ignored }) => (ignored ? [badge("ignored", ignored, "warn")] : []);

export const partialBadges = ({ state, track, error }) => (state === "partial" ? [badge("partial", seconds(track.seconds), error ? "warn" : "")] : []);
