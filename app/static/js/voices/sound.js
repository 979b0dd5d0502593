// Recordings: reading files, levels, phrases, WAV. A recording is { samples (N,) float32, rate }, mono, at its own rate.

import { limitOf } from "../api.js";
import { RATE } from "../takes.js";
import { wav } from "../wav.js";

const FRAME_S = 0.02;
const MAX_READ_BYTES = 200 * 2 ** 20; // larger files are not decoded here

/** The lengths in seconds of a recording that the server uses whole. */
export const lengthRange = () => limitOf("sample_s") ?? { minimum: 0, maximum: Infinity };

/** The lengths in seconds that the server recommends for a recording. */
export const goodLength = () => {
  const { minimum = 0, maximum = Infinity } = limitOf("best_sample_s") ?? {};
  return { from: minimum, to: maximum };
};
const TAIL_S = 0.4; // of silence after the last word
const LEAD_S = 0.15;
const BORDER_S = 0.3; // a pause this long is the end of a phrase

/** Decodes a file to { samples, rate }. Throws when the browser cannot decode it. */
export async function read(file) {
  if (file.size > MAX_READ_BYTES) throw new Error("too large to be read here");
  const bytes = await file.arrayBuffer();
  const decoder = new OfflineAudioContext(1, 1, rateOf(bytes));
  const buffer = await decoder.decodeAudioData(bytes);
  const samples = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const part = buffer.getChannelData(channel);
    for (let at = 0; at < samples.length; at++) samples[at] += part[at] / buffer.numberOfChannels;
  }
  return { samples, rate: buffer.sampleRate };
}

/** The rate of a WAV file, so that nothing is resampled before it is measured; 44.1 kHz for other files. */
function rateOf(bytes) {
  const view = new DataView(bytes);
  if (bytes.byteLength < 32 || view.getUint32(0) !== 0x52494646 || view.getUint32(12) !== 0x666d7420) return 44_100;
  const rate = view.getUint32(24, true);
  return rate >= 8000 && rate <= 96_000 ? rate : 44_100;
}

/** The recording as int16 samples at the rate of the player. */
export async function forPlayer({ samples, rate }) {
  let resampled = samples;
  if (rate !== RATE && samples.length) {
    const context = new OfflineAudioContext(1, Math.max(1, Math.round((samples.length * RATE) / rate)), RATE);
    const buffer = context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    source.start();
    resampled = (await context.startRendering()).getChannelData(0);
  }
  return Int16Array.from(resampled, toInt);
}

const toInt = (value) => Math.max(-32_768, Math.min(32_767, Math.round(value * 32_768)));

export const cut = ({ samples, rate }, from_s, to_s) => ({ samples: samples.slice(Math.round(from_s * rate), Math.round(to_s * rate)), rate });

/** The recording as a WAV file: mono, 16 bit, at its own rate. */
export const wavOf = ({ samples, rate }) => wav(Int16Array.from(samples, toInt), rate);

/** The level of each 20 ms in dBFS, at least -100. */
export function levels({ samples, rate }) {
  const size = Math.max(1, Math.round(FRAME_S * rate));
  return Float32Array.from({ length: Math.ceil(samples.length / size) }, (_, frame) => {
    let sum = 0;
    const end = Math.min(samples.length, (frame + 1) * size);
    for (let at = frame * size; at < end; at++) sum += samples[at] * samples[at];
    return Math.max(-100, 10 * Math.log10(sum / (end - frame * size) + 1e-10));
  });
}

const rank = (values, share) => Float32Array.from(values).sort()[Math.min(values.length - 1, Math.floor(share * values.length))] ?? -100;

/** The phrases as [[from_s, to_s], ...]. A pause of BORDER_S or more separates two phrases. */
export function phrases(level) {
  const floor = rank(level, 0.1);
  const top = rank(level, 0.95);
  if (top < -60) return [];
  const least = Math.max(floor + 0.3 * (top - floor), top - 35);
  const found = [];
  for (let frame = 0; frame < level.length; frame++) {
    if (level[frame] < least) continue;
    const last = found.at(-1);
    const from_s = frame * FRAME_S;
    if (last && from_s - last[1] < BORDER_S) last[1] = from_s + FRAME_S;
    else found.push([from_s, from_s + FRAME_S]);
  }
  return found.filter(([from_s, to_s]) => to_s - from_s > 0.1);
}

/** The best part of a recording: whole phrases of the best length, little noise and short pauses, then a short silence. */
export function cleanest(sound) {
  const total_s = sound.samples.length / sound.rate;
  const range = lengthRange();
  const good = goodLength();
  const level = levels(sound);
  const parts = phrases(level);
  if (!parts.length) return { from_s: 0, to_s: Math.min(total_s, range.maximum) };
  let best = null;
  for (let first = 0; first < parts.length; first++) {
    let spoken_s = 0;
    for (let last = first; last < parts.length; last++) {
      spoken_s += parts[last][1] - parts[last][0];
      const length_s = parts[last][1] - parts[first][0];
      if (length_s > good.to && last > first) break;
      const frames = level.subarray(Math.floor(parts[first][0] / FRAME_S), Math.ceil(parts[last][1] / FRAME_S));
      const contrast = Math.min(50, rank(frames, 0.8) - rank(frames, 0.05)) / 50;
      const short_s = Math.max(0, good.from - length_s);
      const score = spoken_s / length_s + 0.5 * contrast + Math.min(length_s, 12) / 24 - short_s;
      if (!best || score > best.score) best = { score, first, last };
    }
  }
  const before = best.first ? parts[best.first - 1][1] : 0;
  const after = parts[best.last + 1]?.[0] ?? total_s;
  const [start_s, end_s] = [parts[best.first][0], parts[best.last][1]];
  let from_s = Math.max(start_s - LEAD_S, best.first ? (before + start_s) / 2 : 0, 0);
  let to_s = Math.min(end_s + TAIL_S, best.last + 1 < parts.length ? (end_s + after) / 2 : total_s);
  if (to_s - from_s > range.maximum) to_s = from_s + range.maximum;
  if (to_s - from_s < range.minimum) {
    to_s = Math.min(total_s, from_s + range.minimum);
    from_s = Math.max(0, to_s - range.minimum);
  }
  return { from_s, to_s };
}

/** The time of the lowest level within `around_s` of `at_s`. */
export function quietNear(level, at_s, around_s) {
  const first = Math.max(0, Math.ceil((at_s - around_s) / FRAME_S));
  const last = Math.min(level.length - 1, Math.floor((at_s + around_s) / FRAME_S) - 1);
  let best = -1;
  for (let frame = first; frame <= last; frame++) {
    const nearer = best >= 0 && Math.abs((frame + 0.5) * FRAME_S - at_s) < Math.abs((best + 0.5) * FRAME_S - at_s);
    if (best < 0 || level[frame] < level[best] - 1 || (level[frame] <= level[best] && nearer)) best = frame;
  }
  return best < 0 ? at_s : (best + 0.5) * FRAME_S;
}

/** [lowest, highest] sample between two times. */
export function extremes({ samples, rate }, from_s, to_s) {
  let low = 0;
  let high = 0;
  const end = Math.min(samples.length, to_s * rate);
  for (let at = Math.max(0, Math.floor(from_s * rate)); at < end; at++) {
    if (samples[at] < low) low = samples[at];
    if (samples[at] > high) high = samples[at];
  }
  return [low, high];
}
