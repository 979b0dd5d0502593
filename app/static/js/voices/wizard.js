// The wizard for a new voice. Steps for a recording or a file: sample, trim, words, check, consent, try. For YouTube the
// server stores the voice when it fetches the video, so consent comes first; Cancel deletes that voice again.

import { ApiError, apiError, call, details, errorBox, getJson, health, limitOf, voices, wordsFor } from "../api.js";
import { player, Track } from "../player.js";
import { speech } from "../speech.js";
import { announce, alarm, button, clock, confirm, h, icon, LANGUAGES as PAGE_LANGUAGES, language as pageLanguage, languageName, newId, number, seconds, t, tabs } from "../ui.js";
import { meter } from "./meter.js";
import { qualityList } from "./quality.js";
import { Recorder, possible } from "./recorder.js";
import { script } from "./scripts.js";
import { cut, forPlayer, goodLength, lengthRange, levels, read, wavOf } from "./sound.js";
import { cloneHelp } from "./clone_help.js";
import { sameWords } from "./same_words.js";

const STEPS = ["sample", "trim", "words", "check", "consent", "try"];
const WHOLE_STEPS = ["sample", "words", "check", "consent", "try"]; // for a file that this browser can't decode
const YOUTUBE_STEPS = ["sample", "consent", "fetch", "words", "check", "try"];
const SILENT_DB = -55; // a recording without a louder moment has no voice in it
const SAME_SHARE = 0.7; // of the words of the script that must be heard
const ACCEPT = "audio/*,video/*,.wav,.mp3,.m4a,.ogg,.opus,.flac,.webm,.mp4";

/**
 * Creates the wizard. Returns { element, focus(), leave(), unsaved(), keys(event), close() }.
 * models: the models of the server. saved(voice, { sentence, spoken }) is called when the voice is saved: the
 * sentence that was tried, and its track or null. cancelled() is called by Cancel.
 */
export function wizard({ models, saved, cancelled }) {
  const languages = models.flatMap((model) => model.languages ?? []);
  const range = lengthRange();
  const w = {
    step: "sample", source: "record", language: pageLanguage, visits: 0,
    sound: null, file: null, from: "", made: "", span: null, whole: false,
    words: "", wordsOf: "", consent: "", statement: null,
    url: "", start: "", duration: "30", transcript: "",
    check: null, checkKey: "", voice: null, voiceKey: "", spoken: null, name: "", description: "", sentence: t("try.sentence"), saved: false,
  };
  let part = {}; // the step shown: { content, valid(), keys(event), close(), shown() }
  let working = new AbortController();

  const list = h("ol", { class: "steps" });
  const heading = h("h2", { tabindex: -1 });
  const body = h("div", { class: "step stack" });
  const fault = h("p", { class: "bad", id: "wizard-fault", hidden: true });
  const back = button(t("wizard.back"), () => go(-1));
  const next = h("button", { class: "primary" }, t("wizard.next"));
  const form = h("form", { class: "stack", novalidate: true, onsubmit: (event) => { event.preventDefault(); forward(); } },
    heading, body, fault, h("div", { class: "row wizard-foot" }, button(t("cancel"), cancelled, { look: "quiet" }), h("span", { class: "grow" }), back, next));
  for (const kind of ["input", "change"]) form.addEventListener(kind, () => fault.hidden || showFault(""));
  const element = h("section", { class: "wizard card", "aria-label": t("wizard.title") }, list, form);

  const steps = () => (w.source === "youtube" ? YOUTUBE_STEPS : w.whole ? WHOLE_STEPS : STEPS);
  const dirty = () => !w.saved && Boolean(w.sound || w.file || w.url || w.voice);

  // ---- steps

  function showSteps() {
    const all = steps();
    const at = all.indexOf(w.step);
    list.setAttribute("aria-label", t("wizard.steps"));
    list.replaceChildren(...all.map((step, n) => h("li", { "aria-current": n === at ? "step" : null, "data-done": n < at },
      h("span", { class: "n", "aria-hidden": "true" }, n < at ? icon("check") : String(n + 1)),
      h("span", {}, t(`wizard.${step}`)),
      n < at && h("span", { class: "unseen" }, t("wizard.done")))));
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
    part = { sample, trim, words, check, consent, fetch: fetching, try: trying }[step]() ?? {};
    body.replaceChildren(...part.content);
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

  async function playRecording(sound, text) {
    await player.prepare();
    player.load(Track.of(await forPlayer(sound), { about: { text } }));
  }

  // ---- 1 sample

  function sample() {
    const tags = [...new Set([w.language, ...Object.keys(PAGE_LANGUAGES), ...languages.map((tag) => tag.split("-")[0])])];
    const named = tags.map((tag) => [tag, languageName(tag)]).sort(([, one], [, other]) => one.localeCompare(other, pageLanguage));
    const choose = () => {
      tag.hidden = spoken.value !== "";
      w.language = spoken.value || tag.value.trim() || w.language;
      recorded.script();
    };
    const spoken = h("select", { id: "wizard-language", onchange: choose },
      named.map(([code, name]) => h("option", { value: code, selected: code === w.language }, name)), h("option", { value: "" }, t("sample.language_other")));
    const tag = h("input", { "aria-label": t("language"), placeholder: t("language"), autocomplete: "off", hidden: true, onchange: choose });
    const wrong = h("div");
    if (w.refused) wrong.replaceChildren(errorBox(w.refused, [], t(w.source === "youtube" ? "fetch.failed" : "check.refused")));
    w.refused = null;
    const recorded = recordPanel();
    const uploaded = uploadPanel();
    const fetched = youtubePanel();
    const [tablist, ...panels] = tabs(t("wizard.sample"), [["record", t("sample.record"), recorded.element], ["upload", t("sample.upload"), uploaded.element], ["youtube", t("sample.youtube"), fetched.element]], w.source);
    recorded.instead(() => tablist.querySelector("[data-tab=upload]").click());
    const chosen = () => tablist.querySelector("[aria-selected=true]").dataset.tab;
    tablist.addEventListener("click", () => {
      showFault("");
      wrong.replaceChildren();
      if (chosen() !== "record") recorded.close();
    });
    return {
      content: [cloneHelp(models), wrong, h("div", { class: "field narrow" }, h("label", { for: "wizard-language" }, t("sample.language")), spoken, tag), h("div", {}, tablist, ...panels)],
      close: recorded.close,
      async valid() {
        wrong.replaceChildren();
        if (!spoken.value && !tag.value.trim()) return [t("sample.language_missing"), tag];
        const kind = chosen();
        if (kind === "youtube") {
          const found = fetched.valid();
          if (!found) w.source = "youtube";
          return found;
        }
        const { control, missing } = { record: recorded, upload: uploaded }[kind];
        if (w.from !== kind) return [missing, control];
        w.source = kind;
        if (w.sound && w.sound.samples.length / w.sound.rate < range.minimum) return [t("sample.short", { s: range.minimum, ...goodLength() }), control];
        if (w.sound && Math.max(...levels(w.sound)) < SILENT_DB) return [t(kind === "record" ? "sample.silent" : "sample.silent_file"), control];
        if (!w.whole) return null;
        // This browser cannot read the file. Whether the server can is known only after a check.
        next.disabled = true;
        wrong.replaceChildren(h("p", { class: "hint" }, h("progress", { "aria-label": t("check.running") }), " ", t("check.running")));
        try {
          await ask(working.signal);
          wrong.replaceChildren();
        } catch (error) {
          if (error.name === "AbortError" || error.param === "transcript") return null;
          wrong.replaceChildren(errorBox(error, [], t("check.refused")));
          return [t("sample.other"), control];
        } finally {
          next.disabled = false;
        }
        return null;
      },
    };
  }

  /** Why the microphone did not open, in words. */
  const refusal = (error) => {
    const why = { NotAllowedError: "record.denied", NotFoundError: "record.none", NotReadableError: "record.used" }[error.name];
    return why ? t(why) : String(error.message);
  };

  function recordPanel() {
    const recorder = new Recorder();
    let state = "closed"; // closed, listening, counting, recording
    let shownScript = 0;
    let counting = 0;
    let toUpload = () => {};
    const level = meter();
    level.element.hidden = true;
    const words = h("blockquote", { class: "script" });
    const another = button(t("record.another"), () => { shownScript++; showScript(); }, { look: "quiet" });
    const text = h("div", { class: "stack" }, h("p", { class: "hint" }, t("record.read")), words, h("div", { class: "row" }, another));
    const trouble = h("div");
    const devices = h("select", { "aria-label": t("record.device"), hidden: true, onchange: async () => {
      recorder.close();
      state = "closed";
      await open(devices.value);
    } });
    const label = h("span", {}, t("record.start"));
    const start = h("button", { type: "button", class: "record", onclick: () => press() }, icon("record"), label);
    const mic = button(t("record.check"), () => (state === "closed" ? open() : stopListening()));
    const time = h("span", { class: "time", hidden: true });
    const count = h("div", { class: "count-down", "aria-hidden": "true", hidden: true });
    const bar = h("progress", { max: range.maximum, value: 0, hidden: true, "aria-label": t("record.time") });
    const result = h("div", { class: "row wrap", hidden: true });
    const element = h("div", { class: "stack" });

    function showScript() {
      const found = script(w.language, shownScript);
      text.hidden = !found;
      words.lang = w.language;
      words.textContent = found ?? "";
    }

    function showResult() {
      const mine = w.from === "record" && w.sound;
      result.hidden = !mine || state === "recording";
      if (!mine) return;
      result.replaceChildren(h("span", { class: "badge ok" }, t("record.done", { s: number(w.sound.samples.length / w.sound.rate, 1) })), button(t("record.play"), () => playRecording(w.sound, t("record.own"))));
    }

    function look() {
      const live = state === "recording" || state === "counting";
      label.textContent = t(state === "recording" ? "record.stop" : state === "counting" ? "cancel" : w.from === "record" ? "record.again" : "record.start");
      start.classList.toggle("live", live);
      mic.hidden = another.hidden = live;
      mic.textContent = t(state === "listening" ? "record.check_end" : "record.check");
      level.element.hidden = state === "closed";
      time.hidden = bar.hidden = state !== "recording";
      count.hidden = state !== "counting";
      devices.disabled = live;
      element.dataset.recorder = state;
      showResult();
      if (live) level.element.scrollIntoView({ block: "nearest" });
    }

    async function open(device = "") {
      trouble.replaceChildren();
      try {
        await recorder.open(device);
      } catch (error) {
        const box = errorBox(new Error(refusal(error)), [button(t("record.upload"), () => toUpload())]);
        trouble.replaceChildren(box);
        return false;
      }
      if (!element.isConnected) {
        recorder.close();
        return false;
      }
      state = "listening";
      level.reset();
      const all = await recorder.devices();
      devices.hidden = all.length < 2;
      devices.replaceChildren(...all.map((each) => h("option", { value: each.id, selected: each.id === recorder.device }, each.name)));
      look();
      return true;
    }

    function stopListening() {
      recorder.close();
      state = "closed";
      look();
    }

    async function press() {
      if (state === "recording") return finish();
      if (state === "counting") {
        clearTimeout(counting);
        state = "listening";
        return look();
      }
      player.pause();
      if (state === "closed" && !(await open())) return;
      state = "counting";
      look();
      const step = (left) => {
        if (state !== "counting") return;
        if (left === 0) return begin();
        count.textContent = left;
        announce(String(left));
        counting = setTimeout(step, 1000, left - 1);
      };
      step(3);
    }

    function begin() {
      state = "recording";
      level.reset();
      recorder.begin();
      announce(t("record.now"));
      look();
    }

    function finish() {
      const sound = recorder.end();
      recorder.close();
      state = "closed";
      if (sound.samples.length) setRecording({ sound, source: "record", words: text.hidden ? "" : words.textContent });
      announce(t("record.done", { s: number(sound.samples.length / sound.rate, 1) }));
      look();
    }

    recorder.addEventListener("chunk", ({ detail }) => {
      level.add(detail, recorder.rate);
      if (state !== "recording") return;
      time.textContent = `${clock(recorder.seconds)} / ${clock(range.maximum)}`;
      bar.value = recorder.seconds;
      if (recorder.seconds >= range.maximum) finish();
    });
    recorder.addEventListener("lost", () => (state === "recording" ? finish() : stopListening()));

    if (possible()) {
      element.append(text, h("div", { class: "row wrap" }, start, mic, time, devices), count, bar, level.element, trouble, result);
      look();
    } else {
      element.append(h("div", { class: "banner" }, h("p", { class: "headline" }, t("record.insecure")), h("p", {}, t("record.insecure_why")), h("div", { class: "row" }, button(t("record.upload"), () => toUpload()))));
    }
    showScript();
    return {
      element, control: possible() ? start : element.querySelector("button"), missing: t("sample.record_missing"),
      script: showScript,
      instead: (run) => (toUpload = run),
      close() {
        clearTimeout(counting);
        if (state === "recording") finish();
        else if (state !== "closed") stopListening();
      },
    };
  }

  function uploadPanel() {
    const result = h("div", { class: "stack" });
    const file = h("input", { type: "file", accept: ACCEPT, hidden: true, onchange: () => file.files[0] && open(file.files[0]) });
    const choose = button(t("upload.choose"), () => file.click());
    const zone = h("div", { class: "drop" }, icon("import"), h("p", {}, t("upload.drop")), choose, h("p", { class: "hint" }, t("upload.hint")), file);
    zone.addEventListener("dragover", (event) => {
      event.preventDefault();
      zone.dataset.over = "";
    });
    for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => delete zone.dataset.over);
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
    });

    async function open(chosen) {
      showFault("");
      result.replaceChildren(h("p", { class: "hint" }, t("upload.reading")));
      const visit = w.visits;
      let sound = null;
      try {
        sound = await read(chosen);
      } catch {
        // This browser cannot decode it. The server will.
      }
      if (visit !== w.visits) return;
      setRecording({ sound, file: chosen, whole: sound === null, source: "upload" });
      showFile();
      announce([chosen.name, sound ? seconds(sound.samples.length / sound.rate) : t("upload.unread")].join(", "));
    }

    function showFile() {
      if (w.from !== "upload") return;
      const row = h("div", { class: "row wrap" },
        h("strong", { class: "quoted" }, w.file.name),
        w.sound && h("span", { class: "badge ok" }, seconds(w.sound.samples.length / w.sound.rate)),
        w.sound && button(t("record.play"), () => playRecording(w.sound, w.file.name)));
      result.replaceChildren(row, ...(w.whole ? [h("p", { class: "hint" }, t("upload.unread"))] : []));
    }
    showFile();
    return { element: h("div", { class: "stack" }, zone, result), control: choose, missing: t("sample.upload_missing") };
  }

  function youtubePanel() {
    const off = health.last?.youtube && !health.last.youtube.on;
    const input = (name, props) => h("input", { id: `youtube-${name}`, autocomplete: "off", value: w[name], ...props, oninput: (event) => (w[name] = event.target.value) });
    const url = input("url", { type: "url", inputmode: "url", placeholder: "youtube.com/watch?v=…" });
    const start = input("start", { placeholder: "0:00" });
    const duration = input("duration", { inputmode: "decimal" });
    const transcript = h("textarea", { id: "youtube-transcript", rows: 3, value: w.transcript, oninput: () => (w.transcript = transcript.value) });
    const field = (control, label, hint) => h("div", { class: "field" }, h("label", { for: control.id }, t(label)), control, hint && h("span", { class: "hint" }, t(hint)));
    const element = h("div", { class: "stack" },
      off && h("div", { class: "banner" }, h("p", { class: "headline" }, t("youtube.off")), details(health.last.youtube.reason)),
      field(url, "youtube.url"),
      h("div", { class: "pair" }, field(start, "youtube.start", "youtube.start_hint"), field(duration, "youtube.duration", "youtube.duration_hint")),
      field(transcript, "youtube.transcript", "youtube.transcript_hint"));
    return {
      element,
      valid() {
        if (w.url.trim() && !/^\w+:/.test(w.url.trim())) w.url = url.value = `https://${w.url.trim()}`;
        if (!/^https?:\/\/\S+\.\S+/.test(w.url.trim())) return [t("youtube.url_missing"), url];
        if (w.start.trim() && !/^[\d:.]+$/.test(w.start.trim())) return [t("youtube.start_wrong"), start];
        const { minimum = 0, maximum = Infinity } = limitOf("youtube_s") ?? {};
        if (!(Number(w.duration) >= minimum && Number(w.duration) <= maximum)) return [t("youtube.duration_wrong", { from: minimum, to: maximum }), duration];
        return null;
      },
    };
  }

  // ---- 2 trim

  function trim() {
    const slot = h("div", { class: "stack" }, h("p", { class: "hint" }, t("trim.loading")));
    let made = null;
    let left = false;
    const visit = w.visits;
    Promise.all([import("./trim.js")]).then(async ([module]) => {
      made = await module.trim(w.sound, w.span, (span) => (w.span = span));
      if (left || visit !== w.visits) return made.close();
      slot.replaceChildren(made.element);
      made.shown();
    }).catch((error) => slot.replaceChildren(errorBox(error)));
    return {
      content: [h("p", {}, t("trim.why", goodLength())), slot],
      keys: (event) => made?.keys(event) ?? false,
      close() {
        left = true;
        made?.close();
      },
    };
  }

  // ---- 3 words

  function words() {
    const text = h("textarea", { id: "wizard-words", rows: 5, lang: w.language, spellcheck: "true", value: w.words, "aria-describedby": "words-hint", oninput: () => {
      w.words = text.value;
      w.wordsOf = "typed";
      from();
    } });
    const origin = h("span", { class: "badge" });
    const trouble = h("div");
    const from = () => {
      origin.hidden = !w.wordsOf || w.wordsOf === "typed";
      origin.textContent = w.wordsOf ? t(`words.of.${w.wordsOf}`) : "";
    };
    const listen = h("p", { class: "hint", hidden: true }, h("progress", { "aria-label": t("words.listening") }), " ", t("words.listening"));
    from();

    /** Shows the progress of the recogniser's download until `ended` is true. */
    async function follow(ended, signal) {
      while (!ended() && !signal.aborted) {
        const { recogniser } = await getJson("/health").catch(() => ({}));
        if (!ended() && recogniser?.state === "downloading" && recogniser.total_bytes) {
          listen.lastChild.textContent = t("words.downloading", { done: number(recogniser.done_bytes / 1e6, 0), of: number(recogniser.total_bytes / 1e6, 0) });
        }
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }

    async function recognise(signal) {
      listen.hidden = false;
      let ended = false;
      follow(() => ended, signal);
      try {
        const found = await ask(signal);
        if (!text.value.trim()) text.value = w.words;
        else w.words = text.value;
        from();
        const missing = found.quality.checks.find((each) => each.id === "transcript_missing");
        if (missing && !text.value.trim()) trouble.replaceChildren(h("p", { class: "hint" }, t("words.type")));
      } catch (error) {
        if (error.name === "AbortError") return;
        trouble.replaceChildren(error.param === "transcript" ? h("p", { class: "hint" }, t("words.type")) : errorBox(error, [], t("check.refused")));
      } finally {
        ended = true;
        listen.hidden = true;
      }
    }
    /** Compares the text that was read with what the server hears. Without a recogniser nothing is shown. */
    async function listenTo(script, signal) {
      const form = asForm();
      form.delete("transcript");
      let heard = "";
      listen.hidden = false;
      try {
        const found = await (await call("/v1/voice-cloning/check", { method: "POST", body: form, signal })).json();
        heard = found.transcript ?? "";
      } catch {
        return; // the Check step shows errors of the recording
      } finally {
        listen.hidden = true;
      }
      w.compared = w.made + JSON.stringify(w.span);
      if (signal.aborted || !heard || w.words.trim() !== script.trim() || sameWords(script, heard) >= SAME_SHARE) return;
      const use = button(t("words.use_heard"), () => {
        text.value = w.words = heard;
        w.wordsOf = "recogniser";
        from();
        trouble.replaceChildren();
        text.focus();
      });
      trouble.replaceChildren(h("div", { class: "banner", data: { differs: "" } }, h("p", { class: "headline" }, t("words.differs")), h("p", {}, t("words.heard")), h("blockquote", { class: "script", lang: w.language }, heard), h("div", { class: "row wrap" }, use, button(t("words.record_again"), () => show("sample"), { look: "quiet" }))));
      announce(t("words.differs"));
    }

    return {
      content: [
        h("p", {}, t("words.why")),
        h("div", { class: "field" }, h("div", { class: "head" }, h("label", { for: "wizard-words" }, t("words.label")), origin), text, h("span", { class: "hint", id: "words-hint" }, t("words.hint"))),
        h("div", { class: "row" }, button(t("words.play"), playSample)),
        listen, trouble,
      ],
      shown() {
        if (w.source === "youtube") return;
        if (!w.words.trim()) recognise(working.signal);
        else if (w.wordsOf === "script" && w.compared !== w.made + JSON.stringify(w.span)) listenTo(w.words, working.signal);
      },
      async valid() {
        if (!text.value.trim()) return [t("words.missing"), text];
        w.words = text.value;
        if (w.source !== "youtube" || w.words.trim() === w.voice.transcript) return null;
        try {
          w.voice = await change({ transcript: w.words.trim() });
        } catch (error) {
          return [wordsFor(error), text];
        }
        return null;
      },
    };
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

  // ---- 4 check

  function check() {
    const slot = h("div", { class: "stack", "aria-live": "polite" });
    let passed = false;
    async function run(signal) {
      passed = false;
      slot.replaceChildren(h("p", { class: "hint" }, h("progress", { "aria-label": t("check.running") }), " ", t("check.running")));
      let found;
      try {
        found = w.source === "youtube" ? { quality: w.voice.quality, audio_duration: w.voice.audio_duration } : await ask(signal);
      } catch (error) {
        if (error.name === "AbortError") return;
        slot.replaceChildren(errorBox(error, [button(t("check.other"), () => show("sample")), button(t("again"), () => run(working.signal), { look: "quiet" })], error.status === 400 ? t("check.refused") : undefined));
        return;
      }
      passed = true;
      const { level } = found.quality;
      slot.replaceChildren(
        h("div", { class: "verdict", data: { level } }, h("strong", {}, t(`check.${level}`))),
        h("p", { class: "hint" }, t("check.used", { s: number(found.audio_duration, 1) })),
        qualityList(found.quality));
      announce(t(`check.${level}`));
    }
    return {
      content: [slot],
      shown: () => run(working.signal),
      valid: () => (passed ? null : [t("check.not_yet"), slot.querySelector("button")]),
    };
  }

  // ---- 5 consent

  function consent() {
    const choice = (value) => h("label", { class: "check" }, h("input", { type: "radio", name: "consent", value, checked: w.consent === value, onchange: () => (w.consent = value) }), t(`consent.${value}`));
    const options = h("fieldset", { class: "stack" }, h("legend", {}, t("consent.whose")), choice("own"), choice("agreed"));
    const recorder = possible() ? statement() : null;
    return {
      content: [h("p", {}, t("consent.why")), options, recorder && h("details", { class: "fold", open: Boolean(w.statement) }, h("summary", {}, t("consent.spoken")), recorder.element)].filter(Boolean),
      close: () => recorder?.close(),
      valid: () => (w.consent ? null : [t("consent.missing"), options.querySelector("input")]),
    };
  }

  function statement() {
    const recorder = new Recorder();
    const trouble = h("div");
    const result = h("div", { class: "row wrap" });
    const level = meter();
    level.element.hidden = true;
    const press = button(t("record.start"), async () => {
      if (recorder.isOpen) return finish();
      trouble.replaceChildren();
      try {
        await recorder.open();
      } catch (error) {
        return trouble.replaceChildren(errorBox(new Error(refusal(error))));
      }
      recorder.begin();
      press.textContent = t("record.stop");
      level.element.hidden = false;
    });
    function finish() {
      const sound = recorder.end();
      recorder.close();
      level.element.hidden = true;
      press.textContent = t("record.again");
      if (sound.samples.length) w.statement = sound;
      showResult();
    }
    function showResult() {
      result.replaceChildren(...(w.statement ? [
        h("span", { class: "badge ok" }, t("record.done", { s: number(w.statement.samples.length / w.statement.rate, 1) })),
        button(t("record.play"), () => playRecording(w.statement, t("consent.spoken"))),
        button(t("consent.remove"), () => { w.statement = null; showResult(); }, { look: "quiet" })] : []));
    }
    recorder.addEventListener("chunk", ({ detail }) => {
      level.add(detail, recorder.rate);
      if (recorder.seconds >= range.maximum) finish();
    });
    showResult();
    return { element: h("div", { class: "stack" }, h("p", { class: "hint" }, t("consent.read")), h("blockquote", { class: "script" }, t("consent.statement")), h("div", { class: "row wrap" }, press, result), level.element, trouble), close: () => recorder.isOpen && finish() };
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

  // ---- YouTube: the server fetches the video and reports its progress

  const youtubeKey = () => JSON.stringify([w.url.trim(), w.start, w.duration, w.transcript.trim(), w.language, w.consent]);

  async function drop() {
    const dropped = w.voice;
    w.voice = null;
    w.voiceKey = "";
    if (dropped) await call(`/v1/voice-cloning/voices/${dropped.id}`, { method: "DELETE" }).catch(() => {});
  }

  function fetching() {
    const bar = h("progress", { "aria-labelledby": "fetch-stage" });
    const stage = h("p", { id: "fetch-stage", "aria-live": "polite" }, t("fetch.looking"));
    const trouble = h("div");
    const live = h("div", { class: "stack" }, stage, bar, h("div", { class: "row" }, button(t("fetch.cancel"), () => show("sample"))));

    async function run(signal) {
      await drop();
      const key = youtubeKey();
      const request = { youtube_url: w.url.trim(), voice_name: w.name.trim() || t("youtube.name"), start_time: w.start.trim() || null, duration: Number(w.duration), language: w.language, transcript: w.transcript.trim() || null };
      let made = null;
      try {
        request.consent = await agreed();
        const answer = await call("/v1/voice-cloning/clone-from-youtube", { json: request, headers: { Accept: "text/event-stream" }, signal });
        for await (const event of events(answer)) {
          if (event.error) throw await apiError({ status: 400, ...event.error, requestId: answer.headers.get("x-request-id") ?? "" });
          if (event.type === "done") made = event.voice;
          else progress(event);
        }
        if (!made) throw new ApiError({});
      } catch (error) {
        if (error.name === "AbortError") return;
        if (["youtube_url", "start_time", "duration"].includes(error.param)) {
          w.refused = error;
          show("sample");
          return showFault(t("youtube.other"), document.getElementById(error.param === "youtube_url" ? "youtube-url" : error.param === "duration" ? "youtube-duration" : "youtube-start"));
        }
        live.hidden = true;
        trouble.replaceChildren(errorBox(error, [button(t("again"), () => show("fetch")), button(t("fetch.change"), () => show("sample"), { look: "quiet" })], error.status >= 400 && error.status < 500 ? t("fetch.failed") : undefined));
        return;
      }
      Object.assign(w, { voice: made, voiceKey: key, words: made.transcript, wordsOf: w.transcript.trim() ? "typed" : made.transcript ? "recogniser" : "", description: made.description ?? "", spoken: null });
      voices(true).catch(() => {});
      show("words");
    }

    function progress({ stage: name, bytes, total }) {
      const text = total && name === "fetching" ? t("fetch.fetching_of", { done: number(bytes / 1e6, 1), of: number(total / 1e6, 1) }) : t(`fetch.${name}`);
      if (name === "fetching" && total) {
        bar.max = total;
        bar.value = bytes;
      } else {
        bar.removeAttribute("value");
      }
      if (stage.textContent !== text) stage.textContent = text;
    }
    return { content: [live, trouble], shown: () => run(working.signal) };
  }

  // ---- 6 try and save

  function trying() {
    const text = h("textarea", { id: "try-text", rows: 2, value: w.sentence, oninput: () => (w.sentence = text.value) });
    const label = h("span", {}, t("speak"));
    const speak = h("button", { type: "button", onclick: () => (mine() && speech.busy ? speech.stop() : speakSentence()) }, icon("play"), label);
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
      await speech.start({ source: "wizard", path: "/v1/voice-cloning/generate", body: { text: text.value, voice_id: id() }, facts: { kind: "speech", text: text.value, voice: w.name || t("try.new") }, preview: true });
    }

    let shownError = speech.error;
    function showState() {
      const busy = mine() && speech.busy;
      label.textContent = t(busy ? "stop" : "speak");
      speak.firstChild.replaceWith(icon(busy ? "stop" : "play"));
      if (mine() && !busy && speech.track?.length && speech.track.ended && speech.state !== "error") w.spoken = speech.track;
      compare.hidden = !w.spoken || (w.whole && w.source !== "youtube");
      if (!mine() || speech.error === shownError) return;
      shownError = speech.error;
      if (!shownError) return;
      const lacks = shownError.code === "voice_not_supported_by_engine";
      const box = errorBox(shownError);
      if (lacks) box.append(h("p", {}, t("try.save_anyway")));
      trouble.replaceChildren(box);
    }
    speech.addEventListener("change", showState);
    showState();
    return {
      content: [
        h("div", { class: "field" }, h("label", { for: "try-text" }, t("try.text")), text),
        h("div", { class: "row wrap" }, speak, (!w.whole || w.source === "youtube") && sampleButton, compare),
        trouble,
        h("div", { class: "pair names" },
          h("div", { class: "field" }, h("label", { for: "voice-name" }, t("voice.name")), name),
          h("div", { class: "field" }, h("label", { for: "voice-description" }, t("voice.description")), described)),
      ],
      close() {
        speech.removeEventListener("change", showState);
        if (mine()) speech.stop();
      },
      valid: () => (name.value.trim() ? null : [t("voice.name_missing"), name]),
    };
  }

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

  // ----

  show("sample", { focus: false });
  return {
    element,
    focus: () => heading.focus({ preventScroll: true }),
    keys: (event) => part.keys?.(event) ?? false,
    unsaved: dirty,
    async leave() {
      if (dirty() && !(await confirm(t("wizard.leave"), t(w.voice ? "wizard.leave_youtube" : "wizard.leave_text"), t("wizard.discard")))) return false;
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

/** Parses a stream of server-sent events to objects. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const data = rest.slice(0, end).replace(/^data: /, "");
        rest = rest.slice(end + 2);
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
