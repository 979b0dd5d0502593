// The part of the player in the audio thread: plays PCM as it arrives, and fades at start, stop and change.
// It keeps all samples of a track, so that seeking, A/B comparison and a busy page never interrupt playback.

const BLOCK = 24_000; // samples in one block of the memory of a track
const FADE_S = 0.01;
const REPORT_EVERY = 8; // blocks of 128 samples: 43 ms at 24 kHz

class Tape {
  blocks = [];
  length = 0;
  ended = false;

  append(samples) {
    let from = 0;
    while (from < samples.length) {
      const inside = this.length % BLOCK;
      if (inside === 0) this.blocks.push(new Int16Array(BLOCK));
      const piece = samples.subarray(from, from + BLOCK - inside);
      this.blocks.at(-1).set(piece, inside);
      this.length += piece.length;
      from += piece.length;
    }
  }

  sample(at) {
    return at < this.length ? this.blocks[Math.floor(at / BLOCK)][at % BLOCK] / 32_768 : 0;
  }
}

class StudioPlayer extends AudioWorkletProcessor {
  tapes = new Map();
  now = null; // { id, start, at, gain, level, aim, step }
  leaving = []; // fading out
  waiting = false; // until `threshold` samples are buffered
  threshold = 0;
  reports = 0; // audio blocks since the last report

  constructor() {
    super();
    this.port.onmessage = ({ data }) => this.do(data);
  }

  do({ type, id, samples, at, gain, threshold_s, start, fade_s = FADE_S }) {
    switch (type) {
      case "append":
        if (!this.tapes.has(id)) this.tapes.set(id, new Tape());
        if (samples) this.tapes.get(id).append(samples);
        break;
      case "end":
        if (!this.tapes.has(id)) this.tapes.set(id, new Tape());
        this.tapes.get(id).ended = true;
        break;
      case "drop":
        this.tapes.delete(id);
        if (this.now?.id === id) this.now = null;
        this.leaving = this.leaving.filter((voice) => voice.id !== id);
        break;
      case "play":
        this.leave(FADE_S);
        // At the start of a track no fade is needed: the server fades it in.
        this.now = { id, start, at, gain, level: at === 0 ? 1 : 0, aim: 1, step: 1 / (FADE_S * sampleRate), fresh: true };
        this.threshold = threshold_s * sampleRate;
        this.waiting = true;
        break;
      case "halt":
        this.leave(fade_s);
        break;
    }
  }

  leave(fade_s) {
    if (this.now && !this.waiting) this.leaving.push({ ...this.now, aim: 0, step: 1 / (fade_s * sampleRate) });
    this.now = null;
  }

  process(_, [[out]]) {
    const now = this.now;
    const tape = now && this.tapes.get(now.id);
    if (tape) {
      const ahead = tape.length - now.at;
      if (this.waiting && (tape.ended || ahead >= this.threshold)) this.waiting = false;
      if (!this.waiting) {
        if (now.fresh && tape.length > now.at) {
          now.fresh = false;
          this.port.postMessage({ type: "started", id: now.id, start: now.start });
        }
        this.mix(out, now, tape);
        if (now.at >= tape.length) {
          if (tape.ended) {
            this.now = null;
            this.port.postMessage({ type: "ended", id: now.id, start: now.start, at: tape.length });
          } else if (ahead < out.length) {
            this.waiting = true;
            this.threshold = Math.min(2 * Math.max(this.threshold, 0.06 * sampleRate), sampleRate);
            this.port.postMessage({ type: "underrun", id: now.id, start: now.start });
          }
        }
      }
    }
    for (const voice of this.leaving) {
      const old = this.tapes.get(voice.id);
      if (old) this.mix(out, voice, old);
      else voice.level = 0;
    }
    if (this.leaving.length) this.leaving = this.leaving.filter((voice) => voice.level > 0);
    if (this.now && ++this.reports % REPORT_EVERY === 0) this.port.postMessage({ type: "at", id: this.now.id, start: this.now.start, at: this.now.at });
    return true;
  }

  mix(out, voice, tape) {
    const end = Math.min(out.length, tape.length - voice.at);
    for (let n = 0; n < end; n++) {
      if (voice.level !== voice.aim) {
        voice.level = voice.aim > voice.level ? Math.min(voice.aim, voice.level + voice.step) : Math.max(voice.aim, voice.level - voice.step);
      }
      out[n] += tape.sample(voice.at + n) * voice.gain * voice.level;
    }
    if (end <= 0 && voice.aim === 0) voice.level = 0;
    voice.at += Math.max(0, end);
  }
}

registerProcessor("studio-player", StudioPlayer);
