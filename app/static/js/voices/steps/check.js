// The steps Check and Consent.

import { errorBox } from "../../api.js";
import { announce, button, h, number, t } from "../../ui.js";
import { qualityList } from "../quality.js";
import { possible } from "../recorder.js";
import { statement } from "./record.js";

export function check(wizard) {
  const { w, show, ask } = wizard;
  const slot = h("div.stack", { "aria-live": "polite" });
  let passed = false;
  async function run(signal) {
    passed = false;
    slot.replaceChildren(h("p.hint", {}, h("progress", { "aria-label": t("check.running") }), " ", t("check.running")));
    let found;
    try {
      found = w.source === "youtube" ? { quality: w.voice.quality, audio_duration: w.voice.audio_duration } : await ask(signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      slot.replaceChildren(errorBox(error, [button(t("check.other"), () => show("sample")), button(t("again"), () => run(wizard.signal()), { look: "quiet" })], error.status === 400 ? t("check.refused") : undefined));
      return;
    }
    passed = true;
    const { level } = found.quality;
    slot.replaceChildren(
      h("div.verdict", { data: { level } }, h("strong", {}, t(`check.${level}`))),
      h("p.hint", {}, t("check.used", { s: number(found.audio_duration, 1) })),
      qualityList(found.quality));
    announce(t(`check.${level}`));
  }
  return {
    content: [slot],
    shown: () => run(wizard.signal()),
    valid: () => (passed ? null : [t("check.not_yet"), slot.querySelector("button")]),
  };
}

export function consent(wizard) {
  const { w } = wizard;
  const choice = (value) => h("label.check", {}, h("input", { type: "radio", name: "consent", value, checked: w.consent === value, onchange: () => (w.consent = value) }), t(`consent.${value}`));
  const options = h("fieldset.stack", {}, h("legend", {}, t("consent.whose")), choice("own"), choice("agreed"));
  const recorder = possible() ? statement(wizard) : null;
  return {
    content: [h("p", {}, t("consent.why")), options, recorder && h("details.fold", { open: Boolean(w.statement) }, h("summary", {}, t("consent.spoken")), recorder.element)],
    close: () => recorder?.close(),
    valid: () => (w.consent ? null : [t("consent.missing"), options.querySelector("input")]),
  };
}
