// Saves a track as a file of audio or captions.

import { ApiError, call, health, limitOf } from "./api.js";
import { RATE, wav } from "./player.js";
import { button, dialog, download, h, notify, t } from "./ui.js";

const FIRST_FORMAT = "wav"; // the page writes it without the server
const CAPTIONS = ["srt", "vtt"];

/** Saves a track as a file. The page writes WAV and PCM; the server makes other formats. */
export async function save(track, format) {
  const name = nameOf(track);
  if (format === "wav") return download(wav(track.samples(), RATE, comment(track)), `${name}.wav`);
  if (format === "pcm") return download(new Blob([track.samples()], { type: "audio/pcm" }), `${name}.pcm`);
  const { body, kind } = track.about;
  const path = CAPTIONS.includes(format) ? "captions" : kind === "dialogue" ? "dialogue" : "speech";
  const asked = path === "captions" ? { captions: format, response_format: "wav" } : { response_format: format };
  try {
    const answer = await call(`/v1/audio/${path}`, { json: { ...body, seed: Number(track.seed), ...asked, ...(path === "captions" ? {} : { provenance: true }) } });
    download(await answer.blob(), `${name}.${format}`);
  } catch (error) {
    notify(error instanceof ApiError ? `${error.headline} ${error.message}` : String(error));
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

function nameOf(track) {
  const words = (track.about?.text ?? "").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return [...words.slice(0, 5), track.about?.voice].filter(Boolean).join("-").slice(0, 60) || "speech";
}

export function saveMenu(track) {
  const formats = [...new Set([FIRST_FORMAT, ...(limitOf("response_formats") ?? [])])];
  return dialog(t("save.title"), (close) => {
    const choice = (format, look) => button(format.toUpperCase(), () => { close(); save(track, format); }, { look, data: { format } });
    return h("div", { class: "stack" },
      h("div", { class: "row wrap" }, formats.map((format, n) => choice(format, n ? "" : "primary"))),
      h("p", { class: "hint" }, t("save.hint")),
      h("h3", {}, t("save.captions")),
      h("div", { class: "row wrap" }, CAPTIONS.map((format) => choice(format, ""))),
    );
  });
}
