// The Live page: speaks a text while it is written, and marks the heard words. A textarea can't show marks, so an element
// behind it has the same text with the marks.

import { errorBox, health, models, serverVoice, speaksClones, voices } from "../api.js";
import { LiveSpeech, streamAnswer } from "../live.js";
import { speech } from "../speech.js";
import { announce, button, field as labelled, h, loadTexts, store, t } from "../ui.js";
import { voiceSelect } from "./speak.js";

let keptText = ""; // when the person opens another page or chooses another language
const HOLD_MS = 500; // a word without a space after it is sent after this time

const STYLE = `
.live { grid-template-areas: none; grid-template-rows: none; align-items: start; }
.live-field { display: grid; background: var(--surface); border: 1px solid var(--edge); border-radius: var(--r-l); }
.live-field:focus-within { outline: 2px solid var(--accent); outline-offset: 2px; }
.live-field > * { grid-area: 1 / 1; min-width: 0; min-height: 200px; border: none; padding: var(--sp-3) var(--sp-4); font: inherit; font-size: 1.0625rem; line-height: 1.8; white-space: pre-wrap; overflow-wrap: break-word; }
.live-field textarea { background: none; resize: none; overflow: hidden; outline: none; width: 100%; }
.live-marks { color: transparent; pointer-events: none; user-select: none; }
[data-mark] { text-decoration: underline 2px; text-underline-offset: 5px; text-decoration-skip-ink: none; border-radius: 3px; }
[data-mark=heard] { text-decoration-color: var(--ok); }
[data-mark=now] { text-decoration: none; background: color-mix(in oklab, var(--accent) 26%, var(--surface)); box-shadow: 0 0 0 2px color-mix(in oklab, var(--accent) 26%, var(--surface)); }
[data-mark=unheard] { text-decoration-style: dotted; text-decoration-color: var(--muted); }
.live-main { display: flex; flex-direction: column; gap: var(--sp-3); }
.live .act { grid-area: auto; align-self: stretch; flex-wrap: nowrap; }
.live .act button { flex: 0 1 auto; padding-inline: var(--sp-2); }
.live .legend { gap: var(--sp-1) var(--sp-4); font-size: 0.875rem; }
.live fieldset { border: none; margin: 0; padding: 0; gap: var(--sp-1) var(--sp-5); }
.live legend { padding: 0; font-weight: 600; font-size: 0.875rem; }
.live form textarea { width: 100%; field-sizing: content; }
@media (max-width: 900px) { html:has(.live .act) { --act: 79px; } }
@media (forced-colors: active) { [data-mark=now] { forced-color-adjust: none; background: Highlight; } [data-mark] { text-decoration-color: CanvasText; } }
`;
const sheet = new CSSStyleSheet();
sheet.replaceSync(STYLE);

const wordsIn = (text) => text.match(/\S+/g)?.length ?? 0;

// The other servers that the Content-Security-Policy of this page allows.
const ORIGINS = document.documentElement.dataset.llm.split(" ").filter(Boolean);

export async function mount(main) {
  await Promise.all(["live/", "errors/"].map(loadTexts));
  if (!document.adoptedStyleSheets.includes(sheet)) document.adoptedStyleSheets.push(sheet);
  const live = new LiveSpeech(halt);
  const kept = { mode: "type", url: "", model: "", ...store.get("live", {}) };
  const chosen = store.get("speak", {}); // voice and language are those of the Speak page
  let voice = chosen.voice || store.get("voice", serverVoice());
  let language = chosen.language ?? "";
  let voiceList = [];
  let modelList = [];
  let sent = 0; // the end of the text that was sent
  let before = ""; // the text before the last change
  let holding = 0;
  let asking = null; // stops the language model
  let announced = "idle";
  let shownError = null;

  // ---- the text with its marks
  const field = h("textarea", { id: "live-text", spellcheck: "true", "aria-describedby": "live-hint live-progress", oninput: (event) => event.isComposing || typed() });
  field.addEventListener("compositionend", () => typed());
  const behind = h("div.live-marks", { "aria-hidden": "true" });
  const label = h("label", { for: "live-text" });
  const progress = h("span.count", { id: "live-progress" });
  const hint = h("p.hint", { id: "live-hint" }, t("live.hint"));
  const legend = h("div.row.wrap.legend", {}, ["heard", "now", "unheard"].map((mark) => h("span", { data: { mark } }, t(`live.${mark}`))));

  function typed() {
    const text = field.value;
    let from = 0;
    while (from < before.length && before[from] === text[from]) from++;
    let same = 0;
    while (same < Math.min(before.length, text.length) - from && before.at(-1 - same) === text.at(-1 - same)) same++;
    if (from < sent) sent = live.edit(before, { from, to: before.length - same, grown: text.length - before.length, sent });
    before = text;
    clearTimeout(holding);
    const whole = text.slice(sent).search(/\s\S*$/);
    if (whole >= 0) push(sent + whole + 1);
    holding = setTimeout(() => push(text.length), HOLD_MS);
    draw();
  }

  /** Sends the text up to a place. */
  function push(end) {
    const text = field.value.slice(sent, end);
    if (!text.trim() && !live.busy) return;
    if (speech.busy) speech.stop();
    const from = sent;
    sent = end;
    live.settings = { voice, ...(language && !languageField.disabled ? { language } : {}) };
    live.append(text, from);
  }

  let drawn = "";
  function draw() {
    const marks = live.marks();
    const key = JSON.stringify([field.value, marks]);
    if (key !== drawn) {
      drawn = key;
      const pieces = [];
      let at = 0;
      for (const [start, to, mark] of marks) {
        const from = start + (mark === "now" ? field.value.slice(start, to).search(/\S|$/) : 0);
        pieces.push(field.value.slice(at, from), h("span", { data: { mark } }, field.value.slice(Math.max(at, from), to)));
        at = Math.max(at, to);
      }
      behind.replaceChildren(...pieces, `${field.value.slice(at)}\u200b`);
    }
    const heard = marks.filter(([, , mark]) => mark === "heard").reduce((sum, [from, to]) => sum + wordsIn(field.value.slice(from, to)), 0);
    const n = wordsIn(field.value);
    progress.textContent = n ? t("live.progress", { heard, n }) : "";
    return { heard, n };
  }

  const voiceSlot = h("div.row");
  const languageField = h("input", { id: "live-language", value: language, placeholder: t("language.voice"), autocomplete: "off", onchange: () => {
    language = languageField.value.trim();
    keep();
  } });
  const keep = () => {
    store.set("speak", { ...store.get("speak", {}), voice, language });
    store.set("live", { ...kept, url: url.value.trim(), model: model.value.trim() });
  };

  // ---- the language model
  const input = (id, props) => h("input", { id, autocomplete: "off", onchange: () => keep(), ...props });
  const url = input("live-url", { type: "url", value: kept.url, placeholder: `${ORIGINS[0] ?? "http://localhost:11434"}/v1`, required: true, "aria-describedby": "live-url-hint" });
  const model = input("live-model", { value: kept.model });
  const key = h("input", { id: "live-key", type: "password", autocomplete: "off" });
  const question = h("textarea", { id: "live-question", rows: 2, onkeydown: (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  } });
  const form = h("form.stack", { novalidate: true, onsubmit: (event) => {
    event.preventDefault();
    ask();
  } },
    labelled(t("live.url"), url, h("span.hint", { id: "live-url-hint" }, t("live.url_hint", { origins: ORIGINS.join(", ") }))),
    h("div.pair", {}, labelled(t("live.model_name"), model), labelled(t("live.key"), key)),
    labelled(t("live.question"), question),
    h("div.row", {}, h("button.primary", {}, t("live.ask"))),
  );
  const off = h("div.banner", {},
    h("p.headline", {}, t("live.off")),
    h("p", {}, t("live.off_how")),
    h("pre", { tabindex: 0, lang: "en" }, "TTS_STUDIO_LLM_ORIGINS=http://localhost:11434"),
  );
  const source = h("div", {}, ORIGINS.length ? form : off);

  async function ask() {
    trouble.replaceChildren();
    const fail = (text, control) => {
      control?.focus();
      trouble.replaceChildren(errorBox(new Error(text)));
    };
    const origin = URL.canParse(url.value) ? new URL(url.value).origin : "";
    if (origin !== location.origin && !ORIGINS.includes(origin)) return fail(t("live.foreign", { origins: ORIGINS.join(", ") }), url);
    if (!question.value.trim()) return fail(t("error.empty"), question);
    reset();
    const abort = (asking = new AbortController());
    try {
      await streamAnswer({ url: url.value.trim(), model: model.value.trim(), key: key.value.trim(), question: question.value }, (part) => {
        if (asking !== abort) return;
        field.value = before += part;
        push(before.length);
        draw();
      }, abort.signal);
      live.commit();
    } catch (error) {
      live.commit();
      if (error.name !== "AbortError" && asking === abort) fail(error.message);
    }
    if (asking === abort) asking = null;
    show();
  }

  const stop = h("button", { type: "button", class: "go", onclick: halt }, t("stop"), h("kbd", { "aria-hidden": "true" }, "Esc"));
  const again = button(t("live.again"), () => {
    asking?.abort();
    live.clear();
    sent = 0;
    push(field.value.length);
    live.commit();
    show();
  });
  const clear = button(t("live.clear"), () => {
    reset();
    (kept.mode === "type" ? field : question).focus();
  }, { look: "quiet" });

  function quit() {
    asking?.abort();
    asking = null;
    clearTimeout(holding);
  }

  function reset() {
    quit();
    live.clear();
    field.value = before = "";
    sent = 0;
    draw();
  }

  async function halt() {
    if (!live.busy && !asking) return;
    quit();
    sent = field.value.length; // text that is typed later is spoken, this text is not
    announced = "idle";
    await live.stop();
    const { heard, n } = draw();
    announce(`${t("status.stopped")}. ${t("live.progress", { heard, n })}`);
  }

  const mode = (name) => h("label.check", {}, h("input", { type: "radio", name: "live-mode", checked: kept.mode === name, onchange: () => {
    kept.mode = name;
    reset();
    keep();
    show();
  } }), t(`live.${name}`));
  const trouble = h("div");
  const section = h("section.speak.live", { "aria-label": t("nav.live"), data: { state: "idle" } },
    h("div.live-main", {},
      h("fieldset.row.wrap", {}, h("legend", {}, t("live.modes")), mode("type"), mode("llm")),
      source,
      h("div.head", {}, label, progress),
      h("div.live-field", {}, behind, field),
      legend,
      h("div.act", {}, stop, again, clear),
      trouble,
    ),
    h("div.card.stack", {},
      h("label", { for: "live-voice" }, t("speak.voice")), voiceSlot,
      labelled(t("language"), languageField),
      hint,
    ),
  );
  main.append(section);

  function show() {
    const state = live.state;
    section.dataset.state = state;
    const typing = kept.mode === "type";
    source.hidden = typing;
    field.readOnly = !typing;
    label.textContent = t(typing ? "speak.text" : "live.answer");
    field.placeholder = typing ? t("live.placeholder") : "";
    hint.hidden = !typing;
    stop.classList.toggle("stop", live.busy || asking !== null);
    const { heard, n } = draw();
    if (state !== announced && state !== "waiting") {
      if (state === "speaking") announce(t("status.speaking"));
      else if (state === "idle") announce(t("live.progress", { heard, n }));
      announced = state;
    }
    if (live.error !== shownError) {
      shownError = live.error;
      trouble.replaceChildren(...(shownError ? [errorBox(shownError, [button(t("again"), () => again.click())])] : []));
    }
  }

  function fill() {
    const select = voiceSelect(voiceList, voice, { id: "live-voice", onchange: (event) => {
      voice = event.target.value;
      live.commit(); // text that is typed now has the new voice
      if (!event.target.isConnected) fill();
      keep();
    } }, speaksClones(modelList));
    select.classList.add("grow");
    voiceSlot.replaceChildren(select);
    const parameters = modelList.find((each) => each.status === "ready")?.parameters;
    languageField.disabled = Boolean(parameters && !parameters.includes("language"));
  }

  async function lists() {
    const [someVoices, someModels] = await Promise.allSettled([voices(), models()]);
    voiceList = someVoices.value ?? [];
    modelList = someModels.value ?? [];
    voice ||= serverVoice();
    fill();
  }

  const escape = (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]") || (!live.busy && !asking)) return;
    event.preventDefault();
    halt();
  };
  const listeners = [[live, "change", show], [health, "changed", lists], [document, "keydown", escape]];
  for (const [target, kind, act] of listeners) target.addEventListener(kind, act);
  field.value = before = keptText;
  sent = keptText.length;
  show();
  lists();
  return {
    unmount() {
      quit();
      keptText = field.value;
      for (const [target, kind, act] of listeners) target.removeEventListener(kind, act);
      live.close();
    },
  };
}
