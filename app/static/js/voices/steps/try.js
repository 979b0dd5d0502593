// The step Try: the voice speaks a sentence and gets its name.

import { limitOf } from "../../api.js";
import { player } from "../../player.js";
import { speech } from "../../speech.js";
import { button, field, h, icon, t } from "../../ui.js";

export function trying(wizard) {
  const { w, showFault, sampleOf, playSample } = wizard;
  const text = h("textarea", { id: "try-text", rows: 2, value: w.sentence, oninput: () => (w.sentence = text.value) });
  const label = h("span", {}, t("speak"));
  const speak = h("button", { type: "button", onclick: () => (mine() && speech.active ? speech.stop() : speakSentence()) }, icon("play"), label);
  const sampleButton = button(t("try.hear_sample"), playSample);
  const compare = button(t("try.compare"), async () => {
    const track = await sampleOf();
    if (track && w.spoken) player.compare(track, w.spoken);
  }, { hidden: true });
  const trouble = h("div");
  const name = h("input", { id: "voice-name", maxlength: limitOf("voice_name_chars"), autocomplete: "off", value: w.name, oninput: () => (w.name = name.value) });
  const described = h("input", { id: "voice-description", maxlength: limitOf("voice_description_chars"), autocomplete: "off", value: w.description, oninput: () => (w.description = described.value) });
  const id = () => (w.source === "youtube" ? w.voice.id : w.check.draft_id);
  const mine = () => speech.source === "wizard";

  async function speakSentence() {
    player.prepare();
    trouble.replaceChildren();
    if (!text.value.trim()) return showFault(t("error.empty"), text);
    showFault("");
    await speech.start({ source: "wizard", path: "/v1/voice-cloning/generate", body: { text: text.value, voice_id: id() }, facts: { kind: "speech", text: text.value, voice: w.name || t("voices.new") }, preview: true });
  }

  function showState() {
    const active = mine() && speech.active;
    label.textContent = t(active ? "stop" : "speak");
    speak.firstChild.replaceWith(icon(active ? "stop" : "play"));
    if (mine() && !speech.busy && speech.track?.length && speech.track.ended && speech.state !== "error") w.spoken = speech.track;
    compare.hidden = !w.spoken || (w.whole && w.source !== "youtube");
    const box = speech.showError(trouble, "wizard");
    if (box && speech.error.code === "voice_not_supported_by_engine") box.append(h("p", {}, t("try.save_anyway")));
  }
  speech.addEventListener("change", showState);
  showState();
  return {
    content: [
      field(t("try.text"), text),
      h("div.row.wrap", {}, speak, (!w.whole || w.source === "youtube") && sampleButton, compare),
      trouble,
      h("div.pair.names", {},
        field(t("voice.name"), name),
        field(t("voice.description"), described)),
    ],
    close() {
      speech.removeEventListener("change", showState);
      if (mine() && speech.active) speech.stop();
    },
    valid: () => (name.value.trim() ? null : [t("voice.name_missing"), name]),
  };
}
