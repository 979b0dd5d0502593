// Writes WAV files. Loaded when it is needed.

import { RATE } from "./takes.js";

/** A WAV file of int16 samples: mono, at `rate` Hz. comment: text of an even length for LIST/INFO; "" = none. */
export function wav(samples, rate = RATE, comment = "") {
  const size = (count) => String.fromCharCode(count & 255, count >> 8, 0, 0);
  const info = comment && "LIST" + size(12 + comment.length) + "INFOICMT" + size(comment.length) + comment;
  const head = new DataView(new ArrayBuffer(44 + info.length));
  const put = (at, text) => [...text].forEach((letter, n) => head.setUint8(at + n, letter.charCodeAt(0)));
  put(0, "RIFF");
  head.setUint32(4, 36 + info.length + 2 * samples.length, true);
  put(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 1, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  put(36, info + "data");
  head.setUint32(40 + info.length, 2 * samples.length, true);
  return new Blob([head, samples], { type: "audio/wav" });
}
