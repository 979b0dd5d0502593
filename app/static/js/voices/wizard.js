// The wizard for a new voice. Steps for a recording or a file: sample, trim, words, check, consent, try. For YouTube the
// server stores the voice when it fetches the video, so consent comes first; Cancel deletes that voice again.

import { call, getJson, limitOf, voices, wordsFor } from "../api.js";
import { player } from "../player.js";
import { Track } from "../takes.js";
import { alarm, button, confirm, h, icon, language as pageLanguage, newId, t } from "../ui.js";
import { cut, forPlayer, read, wavOf } from "./sound.js";
import { check, consent } from "./steps/check.js";
import { fetching } from "./steps/fetch.js";
import { sample } from "./steps/sample.js";
import { trying } from "./steps/try.js";
import { trim, words } from "./steps/words.js";

const STEPS = ["sample", "trim", "words", "check", "consent", "try"];
const WHOLE_STEPS = ["sample", "words", "check", "consent", "try"]; // for a file that this browser can't decode
const YOUTUBE_STEPS = ["sample", "consent", "fetch", "words", "check", "try"];

/**
 * Creates the wizard. Returns { element, focus(), leave(), unsaved(), keys(event), close() }.
 * models: the models of the server. saved(voice, { sentence, spoken }) is called when the voice is saved: the
 * sentence that was tried, and its track or null. cancelled() is called by Cancel.
 */
export function wizard({ models, saved, cancelled }) {
  const w = {
    step: "sample", source: "record", language: pageLanguage, visits: 0,
    sound: null, file: null, from: "", made: "", span: null, whole: false,
    words: "", wordsOf: "", consent: "", statement: null,
    url: "", start: "", duration: "30", transcript: "",
    check: null, checkKey: "", voice: null, voiceKey: "", spoken: null, name: "", description: "", sentence: t("try.sentence"), saved: false,
  };
  let part = {}; // the step shown: { content, valid(), keys(event), close(), shown() }
  let working = new AbortController();

  const list = h("ol.steps");
  const heading = h("h2", { tabindex: -1 });
  const body = h("div.step.stack");
  const fault = h("p.bad", { id: "wizard-fault", hidden: true });
  const back = button(t("wizard.back"), () => go(-1));
  const next = h("button.primary", {}, t("wizard.next"));
  const form = h("form.stack", { novalidate: true, onsubmit: (event) => { event.preventDefault(); forward(); } },
    heading, body, h("div.wizard-foot", {}, fault, h("div.row", {}, button(t("cancel"), cancelled, { look: "quiet" }), h("span.grow"), back, next)));
  for (const kind of ["input", "change"]) form.addEventListener(kind, () => fault.hidden || showFault(""));
  const element = h("section.wizard.card", { "aria-label": t("voices.new") }, list, form);

  const steps = () => (w.source === "youtube" ? YOUTUBE_STEPS : w.whole ? WHOLE_STEPS : STEPS);
  const dirty = () => !w.saved && Boolean(w.sound || w.file || w.url || w.voice);

  // ---- steps

  function showSteps() {
    const all = steps();
    const at = all.indexOf(w.step);
    list.setAttribute("aria-label", t("wizard.steps"));
    list.replaceChildren(...all.map((step, n) => h("li", { "aria-current": n === at ? "step" : null, "data-done": n < at },
      h("span.n", { "aria-hidden": "true" }, n < at ? icon("check") : String(n + 1)),
      h("span", {}, t(`wizard.${step}`)),
      n < at && h("span.unseen", {}, t("wizard.done")))));
  }

  function show(step, { focus = true } = {}) {
    part.close?.();
    working.abort();
    working = new AbortController();
    w.step = step;
    w.visits++;
    showFault("");
    showSteps();
    heading.textContent = t(`wizard.${step}.title`);
    back.hidden = step === "sample" || step === "fetch";
    next.hidden = step === "fetch";
    next.textContent = t(step === "try" ? "try.save" : "wizard.next");
    part = { sample, trim, words, check, consent, fetch: fetching, try: trying }[step](shared);
    body.replaceChildren(...part.content.filter(Boolean));
    part.shown?.();
    element.dataset.step = step;
    if (focus) heading.focus({ preventScroll: true });
    element.scrollIntoView({ block: "nearest" });
  }

  function go(by) {
    const all = steps();
    let at = all.indexOf(w.step) + by;
    if (all[at] === "fetch" && (by < 0 || w.voice && w.voiceKey === youtubeKey())) at += by;
    show(all[at]);
  }

  /** Shows a message about a field and gives the field the focus. An empty text removes the message. */
  function showFault(text, control) {
    for (const old of form.querySelectorAll("[aria-describedby~=wizard-fault]")) {
      old.removeAttribute("aria-invalid");
      old.setAttribute("aria-describedby", old.getAttribute("aria-describedby").replace(/ ?wizard-fault/, ""));
    }
    fault.textContent = text;
    fault.hidden = !text;
    if (!text) return;
    alarm(text);
    if (!control) return;
    if (control.matches("input, textarea")) control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-describedby", `${control.getAttribute("aria-describedby") ?? ""} wizard-fault`.trim());
    control.focus();
  }

  async function forward() {
    const own = w.visits;
    showFault("");
    const [text, control] = (await part.valid?.()) ?? [];
    if (own !== w.visits) return;
    if (text) return showFault(text, control);
    if (w.step === "try") return save();
    go(1);
  }

  // ---- requests

  const stretch = () => (w.whole ? w.file : wavOf(w.span ? cut(w.sound, w.span.from_s, w.span.to_s) : w.sound));

  /** Identifies the input of a check. The last check stays valid while this does not change. */
  const keyOf = () => JSON.stringify([w.made, w.span, w.words.trim(), w.language]);

  function asForm() {
    const form = new FormData();
    form.append("audio_file", stretch(), w.whole ? w.file.name : "sample.wav");
    if (w.words.trim()) form.append("transcript", w.words.trim());
    form.append("language", w.language);
    return form;
  }

  async function ask(signal) {
    const key = keyOf();
    if (w.check && w.checkKey === key) return w.check;
    const found = await (await call("/v1/voice-cloning/check", { method: "POST", body: asForm(), signal })).json();
    if (!w.words.trim() && found.transcript) {
      w.words = found.transcript;
      w.wordsOf = "recogniser";
    }
    w.check = found;
    w.checkKey = keyOf();
    return found;
  }

  /** Sets a new recording. Results of the old one are dropped. */
  function setRecording({ sound, file = null, whole = false, source, words = "" }) {
    Object.assign(w, { sound, file, whole, source, from: source, span: null, made: newId(), words, wordsOf: words ? "script" : "", check: null, spoken: null });
    showFault("");
    if (!w.name && file) w.name = file.name.replace(/\.[^.]*$/, "").slice(0, limitOf("voice_name_chars"));
    showSteps();
  }

  const change = (fields) => getJson(`/v1/voice-cloning/voices/${w.voice.id}`, { json: fields, method: "PATCH" });

  let sampleTrack = null;
  let sampleKey = "";
  /** A track of the sample, for listening and comparing. Null when this browser cannot decode the file. */
  async function sampleOf() {
    const key = w.source === "youtube" ? w.voice?.id : JSON.stringify([w.made, w.span]);
    if (sampleKey !== key) {
      sampleTrack = null;
      let sound = w.sound && !w.whole ? (w.span ? cut(w.sound, w.span.from_s, w.span.to_s) : w.sound) : null;
      if (w.source === "youtube") sound = await read(await (await call(`/v1/voice-cloning/voices/${w.voice.id}/reference`)).blob());
      if (sound) sampleTrack = Track.of(await forPlayer(sound), { about: { text: t("try.sample") } });
      sampleKey = key;
    }
    return sampleTrack;
  }

  async function playSample() {
    player.prepare();
    const track = await sampleOf();
    if (!track) return showFault(t("words.unheard"));
    if (player.track === track && player.playing) player.pause();
    else player.load(track);
  }

  /** The consent for the API: a text, or the id of a recorded statement. */
  async function agreed() {
    if (!w.statement) return t(`consent.${w.consent}`);
    if (!w.statement.id) {
      const form = new FormData();
      form.append("name", t(`consent.${w.consent}`));
      form.append("language", w.language);
      form.append("recording", wavOf(w.statement), "consent.wav");
      w.statement.id = (await (await call("/v1/audio/voice_consents", { method: "POST", body: form })).json()).id;
    }
    return w.statement.id;
  }

  const youtubeKey = () => JSON.stringify([w.url.trim(), w.start, w.duration, w.transcript.trim(), w.language, w.consent]);

  async function drop() {
    const dropped = w.voice;
    w.voice = null;
    w.voiceKey = "";
    if (dropped) await call(`/v1/voice-cloning/voices/${dropped.id}`, { method: "DELETE" }).catch(() => {});
  }

  // ---- save

  async function save() {
    next.disabled = true;
    try {
      let voice;
      if (w.source === "youtube") {
        voice = await change({ name: w.name.trim(), description: w.description.trim() });
      } else {
        ({ voice } = await clone());
        await drop();
      }
      w.saved = true;
      await voices(true).catch(() => {});
      saved(voice, { sentence: w.sentence.trim(), spoken: w.spoken });
    } catch (error) {
      next.disabled = false;
      showFault(wordsFor(error), error.param === "name" ? document.getElementById("voice-name") : next);
    }
  }

  async function clone(again = true) {
    const form = new FormData();
    form.append("name", w.name.trim());
    form.append("description", w.description.trim());
    form.append("transcript", w.words.trim());
    form.append("consent", await agreed());
    form.append("language", w.language);
    form.append("draft_id", w.check.draft_id);
    try {
      return await (await call("/v1/voice-cloning/clone", { method: "POST", body: form })).json();
    } catch (error) {
      if (error.param !== "draft_id" || !again) throw error;
      w.check = null; // the draft has expired: the server keeps drafts for half an hour
      await ask();
      return clone(false);
    }
  }

  // What the steps share: the data of the voice, the way to other steps, and the requests.
  const shared = {
    w, models, next, show, showFault, setRecording, ask, asForm, change, sampleOf, playSample, agreed, youtubeKey, drop,
    signal: () => working.signal, // is aborted when the step is left
  };
  show("sample", { focus: false });
  return {
    element,
    focus: () => heading.focus({ preventScroll: true }),
    keys: (event) => part.keys?.(event) ?? false,
    unsaved: dirty,
    async leave() {
      if (dirty() && !(await confirm(t("wizard.leave"), t(w.voice ? "wizard.leave_youtube" : "wizard.leave_text"), t("wizard.discard"), t("wizard.keep")))) return false;
      if (!w.saved) await drop();
      return true;
    },
    close() {
      working.abort();
      part.close?.();
      if (sampleTrack) player.unload(sampleTrack);
      if (w.spoken && !w.saved) player.unload(w.spoken);
    },
  };
}
