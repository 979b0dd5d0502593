// Shows the quality checks of a recording.

import { h, number, quoted, t } from "../ui.js";
import { goodLength } from "./sound.js";

// How the value of a check is shown, by check id. For other checks the server's message is shown.
const UNITS = {
  speech_seconds: (value) => `${number(value, 1)} s`,
  snr_db: (value) => `${number(value, 0)} dB`,
  clipping_percent: (value) => `${number(value, value < 1 ? 2 : 0)} %`,
  bandwidth_hz: (value) => `${number(value / 1000, 1)} kHz`,
  loudness_lufs: (value) => `${number(value, 0)} LUFS`,
  music: (_, level) => t(level === "good" ? "quality.music.none" : "quality.music.some"),
  speakers: (_, level) => t(level === "good" ? "quality.speakers.none" : "quality.speakers.some"),
  transcript_letters_per_s: (value) => t("quality.pace", { n: Math.round(value) }),
  transcript_missing: () => t("quality.transcript_missing.none"),
  transcript_words_percent: (value) => `${number(value, 0)} %`,
};
const LOOK = { good: "ok", warning: "warn", bad: "bad" };

export const levelBadge = (level) => h("span", { class: `badge ${LOOK[level] ?? ""}`, data: { level } }, t(`quality.${level}`));

/** Creates a list of the checks, with the bad ones first. */
export function qualityList({ checks = [] }) {
  const order = ["bad", "warning", "good"];
  const sorted = [...checks].sort((a, b) => order.indexOf(a.level) - order.indexOf(b.level));
  return h("ul.checks", {}, sorted.map((check) => {
    const known = check.id in UNITS;
    const value = known && (check.value !== null || ["music", "transcript_missing"].includes(check.id)) ? UNITS[check.id](check.value, check.level) : "";
    return h("li", { data: { check: check.id, level: check.level } },
      levelBadge(check.level),
      h("span.what", {}, known ? t(`quality.${check.id}`) : quoted(check.id)),
      value && h("strong", {}, value),
      known && check.level !== "good" && h("p", {}, t(`quality.${check.id}.fix`, goodLength())),
      !known && h("p", {}, quoted(check.message)),
    );
  }));
}
