// Saves a track as a file of audio or captions.

import { call, health, limitOf, nameOf, wordsFor } from "./api.js";
import { RATE } from "./takes.js";
import { wav } from "./wav.js";
import { button, dialog, download, h, notify, number, t } from "./ui.js";

const FIRST_FORMAT = "wav"; // the page writes it without the server
const CAPTIONS = ["srt", "vtt"];
const LATE_MS = 400; // work that takes longer is shown

/** Saves a track as a file. The page writes WAV and PCM, the server encodes other formats. */
export async function save(track, format) {
  const name = `${fileOf(track)}.${format}`;
  if (format === "pcm") return download(new Blob([track.samples()], { type: "audio/pcm" }), name);
  if (CAPTIONS.includes(format)) return saveCaptions(track, format, name);
  const file = wav(track.samples(), RATE, comment(track));
  if (format === "wav") return download(file, name);
  const body = new FormData();
  body.append("file", file);
  body.append("response_format", format);
  return wait(t("save.busy", { format: format.toUpperCase() }), async (signal, arrived) => {
    const answer = await call("/v1/audio/encode", { method: "POST", body, signal });
    const parts = [];
    let bytes = 0;
    for (const reader = answer.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      arrived((bytes += value.length));
    }
    download(new Blob(parts, { type: answer.headers.get("content-type") }), name);
  });
}

/** The server writes the captions of a whole take; those of a stopped take end where the take ends. */
function saveCaptions(track, format, name) {
  const { body } = track.about ?? {};
  if (!track.seed || track.cut) return download(new Blob([captionsOf(track, format)], { type: format === "vtt" ? "text/vtt" : "text/plain" }), name);
  return wait(t("save.busy", { format: format.toUpperCase() }), async (signal) => {
    const answer = await call("/v1/audio/captions", { json: { ...body, seed: Number(track.seed), captions: format, response_format: "wav" }, signal });
    download(await answer.blob(), name);
  });
}

/** The sentences that a track has as captions. */
function captionsOf({ about, timed, parts, seconds }, format) {
  const sentences = timed.flatMap((event) => event.sentences ?? []);
  const list = sentences.length ? sentences : parts.length ? parts.map((part) => ({ text: part.text, start: part.start_s })) : [{ text: about?.text ?? "", start: 0 }];
  const time = (at_s) => new Date(1000 * at_s).toISOString().slice(11, 23).replace(".", format === "vtt" ? "." : ",");
  const cues = list.map(({ text, start }, n) => `${n + 1}\n${time(start)} --> ${time(list[n + 1]?.start ?? seconds)}\n${text.replace(/\s*\n\s*/g, " ")}\n`);
  return `${format === "vtt" ? "WEBVTT\n\n" : ""}${cues.join("\n")}`;
}

/** Runs work(signal, arrived). What takes longer than a moment is shown with a button that cancels it. */
async function wait(label, work) {
  const abort = new AbortController();
  const size = h("span.hint");
  const box = h("section.toast", { "aria-label": label }, h("progress", { "aria-label": label }), h("span", {}, label), size, button(t("cancel"), () => abort.abort(), { look: "quiet" }));
  const timer = setTimeout(() => document.body.append(box), LATE_MS);
  try {
    await work(abort.signal, (bytes) => (size.textContent = t("save.size", { n: number(bytes / 1e6, 1) })));
  } catch (error) {
    if (error.name !== "AbortError") notify(wordsFor(error));
  } finally {
    clearTimeout(timer);
    box.remove();
  }
}

/** Returns the comment of a file of synthetic speech, as app/audio/provenance.py defines it; "" for other audio. */
function comment({ about }) {
  if (!about?.body) return "";
  const voices = new Set(about.body.turns ? about.body.turns.map((turn) => turn.voice) : [about.body.voice]);
  const fields = {
    generator: `tts-server ${health.last?.version ?? ""}`,
    model: about.model ?? health.last?.model ?? "",
    voice: [...voices].filter(Boolean).join(", "),
    created: `${new Date().toISOString().slice(0, 19)}Z`,
  };
  const text = ["Synthetic speech", ...Object.entries(fields).map(([key, value]) => `${key}=${value.replace(/[^ -~]|;/g, " ")}`)].join("; ");
  return text.length % 2 ? `${text}\0` : `${text}\0\0`;
}

function fileOf({ about }) {
  const words = (text = "") => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return [...words(about?.text).slice(0, 5), ...words(nameOf(about?.voice))].join("-").slice(0, 60) || "speech";
}

export function saveMenu(track) {
  const formats = [...new Set([FIRST_FORMAT, ...(limitOf("response_formats") ?? [])])];
  return dialog(t("save.title"), (close) => {
    const choice = (format) => button(format.toUpperCase(), () => { close(); save(track, format); }, { data: { format } });
    return h("div.stack", {},
      h("div.row.wrap", {}, formats.map(choice)),
      h("p.hint", {}, t("save.hint")),
      h("h3", {}, t("save.captions")),
      h("div.row.wrap", {}, CAPTIONS.map(choice)),
    );
  });
}
