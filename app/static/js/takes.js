// Takes: their audio, and the store of the takes that this browser keeps in IndexedDB, or in memory when the browser blocks
// IndexedDB. Facts and audio are stored apart, so that a list does not load hundreds of megabytes.

import { newId } from "./ui.js";

export const RATE = 24_000;
const PEAK_SAMPLES = RATE / 100; // one pair of extremes for 10 ms
const MAX_TAKES = 200;
const MAX_BYTES = 200 * 2 ** 20;

/** Audio that may still grow: int16 at 24 kHz, and its extremes for drawing. Dispatches "grow" and "end". */
export class Track extends EventTarget {
  id = newId();
  length = 0;
  ended = false;
  peak = 0;
  parts = []; // the server's progress events: { sentence, turn, text, start_s }
  timed = []; // the server's events with the times of words
  cut = false; // whether the text goes on after the audio
  stopper = null; // returns what stops its speech, or false
  #samples = new Int16Array(RATE * 8);
  #peaks = new Int16Array(800 * 2);
  #odd = null; // the first byte of a sample whose second byte has not arrived

  /** A finished track of samples. */
  static of(samples, facts = {}) {
    const track = Object.assign(new Track(), facts);
    track.append(samples);
    track.end();
    return track;
  }

  get seconds() {
    return this.length / RATE;
  }

  /** Appends little-endian PCM bytes. A chunk may end in the middle of a sample. */
  appendBytes(bytes) {
    let whole = bytes;
    if (this.#odd !== null || bytes.length % 2) {
      const joined = new Uint8Array(bytes.length + (this.#odd === null ? 0 : 1));
      if (this.#odd !== null) joined[0] = this.#odd;
      joined.set(bytes, this.#odd === null ? 0 : 1);
      this.#odd = joined.length % 2 ? joined.at(-1) : null;
      whole = joined.subarray(0, joined.length & ~1);
    }
    const view = new DataView(whole.buffer, whole.byteOffset, whole.length);
    const samples = new Int16Array(whole.length / 2);
    for (let at = 0; at < samples.length; at++) samples[at] = view.getInt16(2 * at, true);
    this.append(samples);
  }

  append(samples) {
    const length = this.length + samples.length;
    if (length > this.#samples.length) {
      const larger = new Int16Array(Math.max(length, 2 * this.#samples.length));
      larger.set(this.#samples.subarray(0, this.length));
      this.#samples = larger;
      const peaks = new Int16Array(2 * Math.ceil(larger.length / PEAK_SAMPLES));
      peaks.set(this.#peaks.subarray(0, Math.min(this.#peaks.length, peaks.length)));
      this.#peaks = peaks;
    }
    this.#samples.set(samples, this.length);
    for (let at = this.length; at < length; at++) {
      const bin = 2 * Math.floor(at / PEAK_SAMPLES);
      const value = this.#samples[at];
      if (value < this.#peaks[bin]) this.#peaks[bin] = value;
      if (value > this.#peaks[bin + 1]) this.#peaks[bin + 1] = value;
      this.peak = Math.max(this.peak, Math.abs(value) / 32_768);
    }
    this.length = length;
    if (samples.length) this.dispatchEvent(new Event("grow"));
  }

  end() {
    this.ended = true;
    this.dispatchEvent(new Event("end"));
  }

  /** A finished track of the first seconds of this one. */
  until(end_s) {
    const before = ({ start }) => start < end_s;
    const timed = this.timed.map((event) => ({ ...event, words: event.words?.filter(before), sentences: event.sentences?.filter(before) }));
    const parts = this.parts.filter((part) => part.start_s < end_s);
    return Track.of(this.samples(0, Math.round(end_s * RATE)).slice(), { about: this.about, seed: this.seed, parts, timed, cut: true });
  }

  /** The starts of the sentences, in seconds. */
  get starts() {
    const timed = this.timed.flatMap((event) => event.sentences ?? []).map((sentence) => sentence.start);
    return timed.length ? timed : this.parts.map((part) => part.start_s);
  }

  samples(from = 0, to = this.length) {
    return this.#samples.subarray(from, to);
  }

  /** [lowest, highest] between two seconds, in -1 to 1. */
  extremes(from_s, to_s) {
    const last = Math.ceil(this.length / PEAK_SAMPLES);
    let low = 0;
    let high = 0;
    for (let bin = Math.floor(from_s * 100); bin < Math.min(last, Math.max(Math.floor(from_s * 100) + 1, to_s * 100)); bin++) {
      low = Math.min(low, this.#peaks[2 * bin]);
      high = Math.max(high, this.#peaks[2 * bin + 1]);
    }
    return [low / 32_768, high / 32_768];
  }

  /** Root mean square without the silence; used to play two takes at one level. */
  get level() {
    let sum = 0;
    let count = 0;
    for (let at = 0; at < this.length; at++) {
      const value = this.#samples[at] / 32_768;
      if (Math.abs(value) > 0.003) {
        sum += value * value;
        count++;
      }
    }
    return count ? Math.sqrt(sum / count) : 0;
  }
}

const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function open() {
  const request = indexedDB.open("studio", 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("takes", { keyPath: "id" });
    request.result.createObjectStore("sound");
  };
  return done(request);
}

/** Dispatches "change". A take: { id, made, kind, text, body, voice, model, engine, seed, seconds, first_s, factor,
 * partial (true: it broke off; "stopped": by the person), star, shape (64 heights 0-1), parts, timed, bytes }. */
class Takes extends EventTarget {
  lasting = true; // false: IndexedDB is blocked, takes are kept in memory until the page is closed
  #database = null;
  #sounds = new Map();
  #all = null;

  async #ready() {
    if (this.#all) return;
    try {
      this.#database = await open();
      this.#all = await done(this.#database.transaction("takes").objectStore("takes").getAll());
      this.#all.sort((a, b) => b.made - a.made);
    } catch {
      this.lasting = false;
      this.#all ??= [];
    }
  }

  /** Newest first. */
  async all() {
    await (this.loading ??= this.#ready());
    return this.#all;
  }

  async #write(change) {
    if (!this.#database) return;
    try {
      const transaction = this.#database.transaction(["takes", "sound"], "readwrite");
      change(transaction.objectStore("takes"), transaction.objectStore("sound"));
      await new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onerror = transaction.onabort = () => reject(transaction.error);
      });
    } catch {
      this.lasting = false; // the disk is full: new takes are kept in memory
    }
  }

  /** Adds a take with its samples (Int16Array). When there are too many, the oldest without a star are removed. */
  async add(facts, samples) {
    const all = await this.all();
    const take = { id: newId(), made: Date.now(), star: false, ...facts, bytes: samples.byteLength };
    all.unshift(take);
    this.#sounds.set(take.id, samples);
    await this.#write((takes, sound) => {
      takes.put(take);
      sound.put(samples, take.id);
    });
    if (this.lasting) this.#sounds.delete(take.id);
    let bytes = all.reduce((sum, each) => sum + each.bytes, 0);
    for (const old of [...all].reverse()) {
      if (all.length <= MAX_TAKES && bytes <= MAX_BYTES) break;
      if (old.star || old === take) continue;
      bytes -= old.bytes;
      await this.remove(old.id);
    }
    this.#changed();
    return take;
  }

  async change(id, facts) {
    const take = (await this.all()).find((each) => each.id === id);
    if (!take) return;
    Object.assign(take, facts);
    await this.#write((takes) => takes.put(take));
    this.#changed();
  }

  /** The samples of a take, or null when they are no longer stored. */
  async sound(id) {
    await this.all();
    if (this.#sounds.has(id)) return this.#sounds.get(id);
    if (!this.#database) return null;
    return (await done(this.#database.transaction("sound").objectStore("sound").get(id))) ?? null;
  }

  /** Removes a take. Returns a function that undoes it. */
  async remove(id) {
    const all = await this.all();
    const at = all.findIndex((each) => each.id === id);
    if (at < 0) return () => {};
    const samples = await this.sound(id);
    const [take] = all.splice(at, 1);
    this.#sounds.delete(id);
    await this.#write((takes, sound) => {
      takes.delete(id);
      sound.delete(id);
    });
    this.#changed();
    return async () => {
      all.push(take);
      all.sort((a, b) => b.made - a.made);
      if (!this.#database && samples) this.#sounds.set(id, samples);
      await this.#write((takes, sound) => {
        takes.put(take);
        if (samples) sound.put(samples, id);
      });
      this.#changed();
    };
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const takes = new Takes();
