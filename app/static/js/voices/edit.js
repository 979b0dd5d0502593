// Changes a stored voice: its name, description, words, tags and colour.

import { errorBox, getJson, limitOf } from "../api.js";
import { button, dialog, field, h, t } from "../ui.js";

export const PATH = "/v1/voice-cloning/voices";

/** A box for the missing words of a recording. changed() is called after it saves them. */
export function wordsForm(voice, changed) {
  const words = h("textarea", { id: "missing-words", rows: 4, lang: voice.known.language, spellcheck: "true", "aria-describedby": "missing-words-hint" });
  const wrong = h("div");
  return h("form.banner.stack", { data: { needs: "words" }, onsubmit: async (event) => {
    event.preventDefault();
    if (!words.value.trim()) return words.focus();
    try {
      await getJson(`${PATH}/${voice.id}`, { json: { transcript: words.value }, method: "PATCH" });
    } catch (error) {
      wrong.replaceChildren(errorBox(error, [], t("voices.edit_failed")));
      return words.focus();
    }
    await changed();
  } },
  h("p.headline", {}, t("voices.needs_words")),
  h("p", { id: "missing-words-hint" }, t("voices.needs_words_why")),
  field(t("voices.words"), words),
  wrong,
  h("div.row.end", {}, h("button.primary", {}, t("save"))));
}

/** Opens a dialog that changes a voice. changed() is called after it saves. */
export function edit(voice, changed) {
  const { known } = voice;
  return dialog(t("voices.edit_title"), (close) => {
    const name = h("input", { id: "edit-name", value: voice.name, maxlength: limitOf("voice_name_chars"), autocomplete: "off", autofocus: true });
    const description = h("input", { id: "edit-description", value: known.description, maxlength: limitOf("voice_description_chars"), autocomplete: "off" });
    const words = h("textarea", { id: "edit-words", rows: 5, value: known.transcript, lang: known.language });
    const tags = h("input", { id: "edit-tags", value: known.tags.join(", "), autocomplete: "off", "aria-describedby": "edit-tags-hint" });
    let chosen = known.color;
    const color = h("input", { id: "edit-color", type: "color", value: known.color || "#808080", oninput: () => showColor(color.value) });
    const none = button(t("voices.no_color"), () => showColor(""), { look: "quiet" });
    const showColor = (value) => {
      chosen = value;
      none.setAttribute("aria-pressed", String(!value));
    };
    showColor(known.color);
    const wrong = h("div");
    return h("form.stack", { onsubmit: async (event) => {
      event.preventDefault();
      const changes = {};
      if (tags.value !== known.tags.join(", ")) changes.tags = tags.value.split(",");
      if (chosen !== known.color) changes.color = chosen;
      if (name.value.trim() !== voice.name) changes.name = name.value;
      if (description.value !== known.description) changes.description = description.value;
      if (words.value.trim() !== known.transcript) changes.transcript = words.value;
      try {
        if (Object.keys(changes).length) await getJson(`${PATH}/${voice.id}`, { json: changes, method: "PATCH" });
      } catch (error) {
        wrong.replaceChildren(errorBox(error, [], t("voices.edit_failed")));
        ({ transcript: words, description, color }[error.param] ?? (error.param?.startsWith("tags") ? tags : name)).focus();
        return;
      }
      close();
      await changed();
    } },
    field(t("voice.name"), name),
    field(t("voice.description"), description),
    field(t("voices.words"), words, h("span.hint", {}, t("words.hint"))),
    h("div.pair.names", {},
      field(t("gallery.tags"), tags, h("span.hint", { id: "edit-tags-hint" }, t("voices.tags_hint"))),
      h("div.field", {}, h("label", { for: "edit-color" }, t("voices.color")), h("div.row", {}, color, none))),
    wrong,
    h("div.row.end", {}, button(t("cancel"), () => close()), h("button.primary", {}, t("save"))));
  });
}
