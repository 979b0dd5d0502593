// What the Books page says about a book: its state, its progress, and names of formats.

import { clock, h, number, t } from "../ui.js";

export const PATH = "/v1/audio/jobs";
const LOOKS = { completed: "ok", done: "ok", failed: "bad", cancelled: "warn", paused: "warn" };

/** The remaining time in words. */
function left(value_s) {
  if (value_s < 90) return t("books.left_s", { s: Math.max(1, Math.round(value_s)) });
  if (value_s < 5400) return t("books.left_min", { m: Math.round(value_s / 60) });
  return t("books.left_h", { h: number(value_s / 3600, 1) });
}

/** The length of audio as 1:02:03 or 2:03. */
export const length = (value_s) => (value_s < 3600 ? clock(value_s) : `${Math.floor(value_s / 3600)}:${clock(value_s % 3600).padStart(5, "0")}`);

/** The name of a file format, with what it is good for. */
export function formatName(format) {
  const about = t(`books.format.${format}`);
  return about.startsWith("books.") ? format.toUpperCase() : `${format.toUpperCase()}: ${about}`;
}

export const badge = (status) => h("span", { class: `badge ${LOOKS[status] ?? ""}` }, t(`books.status.${status}`));
export const titleOf = (job) => job.title || t("books.untitled");
export const active = (job) => job.status === "queued" || job.status === "running";

/** What a person can read about the progress of a book. */
export function progressText(job) {
  const { progress, result } = job;
  if (result) return t("books.made", { length: length(result.seconds) });
  const parts = [t(progress.planned ? "books.spoken" : "books.spoken_so_far", { n: progress.sentences_total, done: progress.sentences_done })];
  if (progress.sentences_failed) parts.push(t("books.failed_sentences", { n: progress.sentences_failed }));
  if (active(job) && progress.eta_s !== null) parts.push(left(progress.eta_s));
  return parts.join(" · ");
}

export function progressBar(job) {
  const { sentences_done, sentences_total } = job.progress;
  return h("progress", { max: Math.max(1, sentences_total), value: job.status === "completed" ? Math.max(1, sentences_total) : sentences_done, "aria-label": t("books.progress_of", { title: titleOf(job) }) });
}
