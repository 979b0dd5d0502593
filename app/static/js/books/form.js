// The form for a new book.

import { call, errorBox, modelSelect, modelToUse, serverVoice } from "../api.js";
import { announce, button, debounce, field, h, icon, store, t } from "../ui.js";
import { PATH, formatName } from "./state.js";

let draft = { text: "", file: null }; // a file can't be stored, so it is only kept until a reload

/** Creates the form. page: see books.js. */
export function bookForm({ limits, listed, go, pickVoice, models }) {
  const kept = { voice: "", model: "", format: "", captions: [], ...store.get("books", {}) };
  const keep = () => store.set("books", kept);
  const types = limits?.file_types ?? [];
  const input = h("input", { type: "file", accept: types.join(","), hidden: true, onchange: () => input.files[0] && take(input.files[0]) });
  const chosen = h("div.stack");
  const drop = h("div", { class: "book-drop",
    ondragover: (event) => { event.preventDefault(); drop.dataset.over = ""; },
    ondragleave: () => delete drop.dataset.over,
    ondrop: (event) => {
      event.preventDefault();
      delete drop.dataset.over;
      if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
    } }, chosen, input);
  const text = h("textarea", { id: "book-text", rows: 6, value: draft.text || store.get("books.text", ""), spellcheck: "true", oninput: () => { draft.text = text.value; keepText(); } });
  const keepText = debounce(() => store.set("books.text", text.value), 400);
  const textField = field(t("books.or_text"), text);
  const title = h("input", { id: "book-title", autocomplete: "off", placeholder: t("books.from_file") });
  const author = h("input", { id: "book-author", autocomplete: "off", placeholder: t("books.from_file") });
  const wrong = h("div");
  const voiceBox = h("div.field");
  const modelBox = h("div.field");
  const format = h("select", { id: "book-format", onchange: () => { kept.format = format.value; keep(); } },
    (limits?.response_formats ?? []).map((each) => h("option", { value: each, selected: each === kept.format }, formatName(each))));
  const captions = (limits?.captions ?? []).map((each) => h("input", { type: "checkbox", value: each, checked: kept.captions.includes(each), onchange: () => {
    kept.captions = captions.filter((box) => box.checked).map((box) => box.value);
    keep();
  } }));

  function showFile() {
    const { file } = draft;
    const choose = button(t(file ? "books.other_file" : "choose_file"), () => input.click());
    choose.prepend(icon("import"));
    textField.hidden = Boolean(file);
    chosen.replaceChildren(
      h("strong", {}, file ? file.name : t("books.drop")),
      h("span.hint", {}, file ? t("books.kb", { n: Math.ceil(file.size / 1000) }) : types.join(" ")),
      h("div.row.wrap", {}, choose, file && button(t("books.remove_file"), () => { draft.file = null; input.value = ""; showFile(); chosen.querySelector("button").focus(); }, { look: "quiet" })));
  }

  function take(file) {
    draft.file = file;
    wrong.replaceChildren();
    showFile();
    announce(t("books.chosen", { name: file.name }));
  }

  listed.then(() => {
    const voice = kept.voice || store.get("voice", serverVoice());
    voiceBox.replaceChildren(h("label", { for: "book-voice" }, t("speak.voice")), pickVoice(voice, { id: "book-voice", onchange: (event) => { kept.voice = event.target.value; keep(); } }));
    modelBox.replaceChildren(h("label", { for: "book-model" }, t("speak.model")), modelSelect(models(), modelToUse(models(), kept.model), { id: "book-model", onchange: (event) => { kept.model = event.target.value; keep(); } }));
  });

  let sending = false;
  async function make(paused) {
    if (sending) return;
    const { file } = draft;
    if (!file && !text.value.trim()) {
      wrong.replaceChildren(h("p.error.headline", {}, t("books.nothing")));
      announce(t("books.nothing"));
      return text.focus();
    }
    sending = true;
    wrong.replaceChildren();
    announce(t("books.sending"));
    const body = new FormData();
    const named = title.value.trim() || text.value.trim().split(/\s+/).slice(0, 6).join(" ");
    body.append("file", file ?? new File([text.value], "book.txt"));
    const fields = { title: file ? title.value.trim() : named, author: author.value.trim(), voice: voiceBox.querySelector(".pick")?.value, model: modelBox.querySelector("select")?.value, response_format: format.value, captions: kept.captions.join(","), paused: String(paused) };
    for (const [name, value] of Object.entries(fields)) if (value) body.append(name, value);
    try {
      const job = await (await call(PATH, { method: "POST", body })).json();
      draft = { text: "", file: null };
      keepText.cancel();
      store.set("books.text", "");
      go(`/books#${job.id}`);
    } catch (error) {
      wrong.replaceChildren(errorBox(error, [], t("books.not_made")));
      wrong.scrollIntoView({ block: "nearest" });
    } finally {
      sending = false;
    }
  }

  showFile();
  return h("form.book-form", { "aria-labelledby": "book-new", onsubmit: (event) => { event.preventDefault(); make(false); } },
    h("div.stack", {}, h("h2", { id: "book-new" }, t("books.new")), drop, textField),
    h("div.card.stack", {},
      field(t("books.title"), title),
      field(t("books.author"), author),
      voiceBox, modelBox,
      field(t("books.format"), format),
      h("fieldset", {}, h("legend", {}, t("save.captions")), captions.map((box) => h("label.check", {}, box, box.value.toUpperCase()))),
      wrong,
      h("div.row.wrap", {}, h("button.primary", {}, t("books.make")), button(t("books.look"), () => make(true)))));
}
