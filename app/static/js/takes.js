// The takes: speech that this browser keeps in IndexedDB, or in memory when the browser blocks IndexedDB.
// Facts and audio are stored apart, so that a list does not load hundreds of megabytes.

import { newId } from "./ui.js";

const MAX_TAKES = 200;
const MAX_BYTES = 200 * 2 ** 20;

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
