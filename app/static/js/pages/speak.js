// The Speak page: text, settings and one button; below them the takes and the request as code.

import { canSpeak, details, errorBox, health, limitOf, modelSelect, modelToUse, models, nameOf, rangeOf, serverVoice, speaksClones, voices } from "../api.js";
import { saveMenu } from "../dock.js";
import { player } from "../player.js";
import { badge, drawSeed, ignoredBadges, partialBadges, preview, speech, timeBadges, whenListed } from "../speech.js";
import { takes } from "../takes.js";
import { announce, button, debounce, field, h, number, snippetSlot, store, t, tabs, textIn } from "../ui.js";

const ACCIDENT_MS = 400; // a second click within this time is a double click, not Stop
const SPEED_STEP = 0.05;
const SAMPLING_STEPS = { temperature: 0.05, top_k: 1, top_p: 0.01, cfg_scale: 0.1 };
const SAMPLING = Object.keys(SAMPLING_STEPS);

/** A button that shows a voice and opens the gallery, with `value` and "change" as a select has them. */
export function voiceSelect(list, chosen, props, clones = true) {
  const pick = h("button", { type: "button", role: "combobox", "aria-haspopup": "dialog", "aria-expanded": "false", ...props, class: "pick", value: chosen, data: { voices: list.length }, onclick: async () => {
    const { choose } = await import("../gallery.js");
    const id = await choose(list, pick.value, clones);
    if (id !== undefined && (id !== pick.value || !pick.isConnected)) {
      pick.value = id;
      show();
      pick.dispatchEvent(new Event("change"));
    }
    if (!pick.isConnected) document.getElementById(pick.id)?.focus(); // the page has drawn the button anew meanwhile
  }, onkeydown: (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    pick.click();
  } });
  const show = () => {
    const voice = list.find((each) => each.id === pick.value);
    const about = voice?.type === "cloned" && !clones ? t("voice.needs_clones") : voice?.description;
    pick.replaceChildren(h("b", {}, voice?.name ?? pick.value), about ? h("span.hint", {}, about) : "");
  };
  show();
  return pick;
}

export async function mount(main, { go: open }) {
  const kept = store.get("speak", {});
  const settings = { voice: store.get("voice", serverVoice()), model: "", format: "mp3", speed: 1, language: "", seed: null, lock: false, sampling: {}, ...kept };
  let unspeakable = ""; // the chosen voice, while the model can't speak it and the server's default voice replaces it
  const keep = () => store.set("speak", { ...settings, voice: unspeakable || settings.voice });
  let voiceList = [];
  let modelList = [];
  let pressed_ms = 0;

  // -- the text
  const text = h("textarea", { id: "text", rows: 8, spellcheck: "true", value: store.get("draft", ""), placeholder: t("speak.placeholder"), "aria-describedby": "count", oninput: () => typed(), onblur: () => keepDraft() });
  const count = h("span.count", { id: "count" });
  const insert = (tag) => {
    const [from, to] = [text.selectionStart, text.selectionEnd];
    text.setRangeText(`${from && !/\s$/.test(text.value.slice(0, from)) ? " " : ""}${tag} `, from, to, "end");
    text.focus();
    typed();
  };
  const sounds = h("span.chips");
  const samples = h("div.samples", { role: "group", "aria-label": t("speak.samples") }, [1, 2, 3].map((n) => button(t(`sample.${n}.name`), async () => {
    text.value = await textIn(voiceList.find((voice) => voice.id === settings.voice)?.language, `sample.${n}`); // in the language of the voice
    text.focus();
    typed();
  })));

  // -- the settings
  const voiceSlot = h("div.row");
  const voiceHint = h("p.hint", { role: "status" });
  const modelSlot = h("div.field");
  const speedShown = h("output", { for: "speed" });
  const speed = h("input", { id: "speed", type: "range", ...rangeOf("speed", SPEED_STEP), value: settings.speed, oninput: () => {
    settings.speed = Number(speed.value);
    changed();
  } });
  const samplingField = (name) => h("input", { id: `set-${name}`, type: "number", inputmode: "decimal", ...rangeOf(name, SAMPLING_STEPS[name]), value: settings.sampling[name] ?? "", placeholder: t("sampling.default"), onchange: (event) => {
    const value = event.target.value === "" ? undefined : Number(event.target.value);
    if (value === undefined || !event.target.checkValidity()) delete settings.sampling[name];
    else settings.sampling[name] = value;
    if (!event.target.checkValidity()) event.target.reportValidity();
    changed();
  } });
  const samplingFields = Object.fromEntries(SAMPLING.map((name) => [name, samplingField(name)]));
  const styleSlot = h("div.field", { hidden: true });
  const samplingHint = h("p.hint", { id: "sampling-hint" });
  const seed = h("input", { id: "set-seed", type: "number", min: 0, step: 1, value: settings.seed ?? "", onchange: () => {
    settings.seed = seed.value === "" ? null : Math.abs(Math.trunc(Number(seed.value)));
    settings.lock = lock.checked = settings.seed !== null;
    changed();
  } });
  const lock = h("input", { type: "checkbox", checked: settings.lock, onchange: () => {
    settings.lock = lock.checked;
    if (settings.lock && settings.seed === null) seed.value = settings.seed = drawSeed();
    changed();
  } });
  const language = h("input", { id: "set-language", value: settings.language, placeholder: t("language.voice"), autocomplete: "off", onchange: () => {
    settings.language = language.value.trim();
    changed();
  } });
  const format = h("select", { id: "set-format", onchange: () => {
    settings.format = format.value;
    changed();
  } });

  // -- speak
  const label = h("span", {}, t("speak"));
  const hintKey = h("kbd", { "aria-hidden": "true" }, "Ctrl+Enter");
  const go = h("button", { type: "button", class: "primary go", onclick: () => (speech.active && mine() ? halt() : speak()) }, label, hintKey);
  const badges = h("div.row.wrap", { id: "badges" });
  const trouble = h("div");
  const readSlot = h("div", { hidden: true });
  const saveNow = button(t("save.as", { format: settings.format.toUpperCase() }), () => player.track && saveMenu(player.track, settings.format), { look: "quiet", hidden: true });
  const section = h("section.speak", { "aria-label": t("nav.speak"), data: { state: "idle" } },
    h("div.text", {},
      h("label", { for: "text" }, t("speak.text")),
      text,
      h("div.chips", {},
        h("span.hint", {}, t("speak.insert")), button("[pause]", () => insert("[pause:0.5s]"), { "aria-label": t("speak.insert_pause") }), sounds, count),
      samples,
    ),
    h("div.settings.stack.card", {},
      h("label", { for: "voice" }, t("speak.voice")), voiceSlot, voiceHint,
      modelSlot,
      h("div.field", {}, h("div.head", {}, h("label", { for: "speed" }, t("speak.speed")), speedShown), speed),
      h("details.fold", { open: store.get("sampling", false), ontoggle: (event) => { store.set("sampling", event.target.open); changed(); } },
        h("summary", {}, t("sampling")),
        h("div.stack", {},
          styleSlot,
          h("div.pair", {}, field(t("seed"), seed), field(t("format"), format)),
          h("label.check", {}, lock, t("seed.lock")),
          h("div.pair", {}, SAMPLING.map((name) => field(t(`sampling.${name}`), samplingFields[name]))),
          samplingHint,
          field(t("language"), language),
        ),
      ),
    ),
    h("div.act", {}, go, badges, saveNow),
  );

  // -- takes and code
  const isOwn = (take) => take.kind === "speech" && take.text === text.value && take.voice === settings.voice && take.model === settings.model;
  const takePanel = h("div", {}, h("p.hint", {}, t("take.empty")));
  let list = null; // loaded when there is a take
  const [codeSlot, showCode] = snippetSlot();
  const panels = tabs(t("speak.below"), [["takes", t("takes"), takePanel], ["snippet", t("snippet"), codeSlot]]);
  main.append(section, trouble, readSlot, h("section", { "aria-label": t("speak.below") }, panels));

  const mine = () => speech.source === "speak";
  const model = () => modelList.find((each) => each.id === settings.model);
  const engineParameters = () => model()?.parameters;

  /** The body of the request. seeded: includes the seed that the page has drawn. */
  function body(seeded) {
    const parameters = engineParameters();
    const request = { model: settings.model || undefined, voice: settings.voice || undefined, input: text.value };
    if (settings.speed !== 1) request.speed = settings.speed;
    for (const [name, value] of Object.entries(settings.sampling)) if (!parameters || parameters.includes(name)) request[name] = value;
    if (settings.language && (!parameters || parameters.includes("language"))) request.language = settings.language;
    if (seeded || settings.lock) request.seed = settings.seed;
    return request;
  }

  function changed() {
    keep();
    speedShown.textContent = `${number(settings.speed, 2)}×`;
    speed.setAttribute("aria-valuetext", `${number(settings.speed, 2)}×`);
    saveNow.textContent = t("save.as", { format: settings.format.toUpperCase() });
    const parameters = engineParameters();
    for (const name of SAMPLING) samplingFields[name].disabled = Boolean(parameters && !parameters.includes(name));
    language.disabled = Boolean(parameters && !parameters.includes("language"));
    const lacking = SAMPLING.filter((name) => samplingFields[name].disabled).map((name) => t(`sampling.${name}`));
    samplingHint.textContent = lacking.length ? t("sampling.lacking", { engine: settings.model, names: lacking.join(", ") }) : "";
    samplingHint.hidden = !lacking.length;
    if (samplingHint.closest("details").open) import("./styles.js").then(({ showStyles }) => showStyles(styleSlot, model(), settings.sampling.temperature ?? "", (value) => {
      samplingFields.temperature.value = value;
      samplingFields.temperature.dispatchEvent(new Event("change"));
    }), () => {});
    sounds.replaceChildren(...(model()?.sounds ?? []).map((name) => button(`(${name})`, () => insert(`(${name})`), { lang: "en" })));
    if (settings.model) showCode("/v1/audio/speech", { ...body(false), response_format: settings.format });
    list?.fill();
  }

  const keepDraft = () => store.set("draft", text.value);
  const saveDraft = debounce(keepDraft, 200);
  const settle = debounce(() => changed(), 200);

  function showCount() {
    const length = [...text.value].length;
    const limit = limitOf("input_chars");
    count.textContent = limit === undefined ? number(length) : t("speak.count", { count: length, limit });
    count.classList.toggle("bad", length > limit);
  }

  /** Shows the limits that the server states. */
  function showLimits() {
    const limit = (input, name, step) => Object.entries(rangeOf(name, step)).forEach(([key, value]) => value === undefined || input.setAttribute(key, value));
    limit(speed, "speed", SPEED_STEP);
    for (const name of SAMPLING) limit(samplingFields[name], name, SAMPLING_STEPS[name]);
    const formats = limitOf("response_formats") ?? [settings.format];
    if (formats.length !== format.options.length) format.replaceChildren(...formats.map((name) => h("option", { value: name, selected: name === settings.format }, name.toUpperCase())));
    showCount();
  }

  function typed() {
    showCount();
    samples.hidden = text.value !== "";
    saveDraft();
    settle();
  }

  // The voice and the model must be known, so that the take is listed under those that are shown.
  const begin = whenListed(() => listed);
  const speak = () => begin(start);

  function start() {
    trouble.replaceChildren();
    const excess = [...text.value].length - limitOf("input_chars");
    if (!text.value.trim()) {
      text.focus();
      trouble.replaceChildren(errorBox(new Error(t("error.empty"))));
      return;
    }
    if (excess > 0) {
      text.focus();
      trouble.replaceChildren(errorBox(new Error(t("error.too_many", { n: excess }))));
      return;
    }
    const chosen = model();
    if (chosen && !canSpeak(chosen)) {
      const other = modelList.find(canSpeak);
      const box = errorBox(new Error(t(`error.${chosen.status}`, { engine: chosen.id })), other ? [button(t("banner.use", { engine: other.id }), () => use(other.id))] : []);
      if (chosen.detail) box.append(details(chosen.detail));
      trouble.replaceChildren(box);
      return;
    }
    if (!settings.lock || settings.seed === null) seed.value = settings.seed = drawSeed();
    keep();
    keepDraft();
    pressed_ms = performance.now();
    speech.start({ source: "speak", path: "/v1/audio/speech", body: body(true), facts: { kind: "speech", text: text.value, voice: settings.voice, model: settings.model } });
  }

  function halt() {
    if (performance.now() - pressed_ms >= ACCIDENT_MS) speech.stop();
  }

  function use(id) {
    settings.model = id;
    trouble.replaceChildren();
    fillModels();
    changed();
    go.focus();
  }

  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      speak();
    }
  });

  let ticking = 0;
  function showState() {
    const active = mine() && speech.active;
    const state = mine() ? speech.state : "idle";
    section.dataset.state = state;
    label.textContent = t(active ? "stop" : "speak");
    hintKey.textContent = active ? "Esc" : "Ctrl+Enter";
    go.classList.toggle("stop", active);
    const rows = [];
    if (mine()) {
      rows.push(...timeBadges(speech));
      const parts = speech.track?.parts ?? [];
      if (state === "streaming" && parts.length) {
        const { sentence, sentences } = parts.at(-1);
        rows.push(badge("made", sentences ? t("badge.of", { count: sentence + 1, of: sentences }) : number(sentence + 1)));
      }
      if (speech.cached) rows.push(badge("cache", t("badge.hit")));
      rows.push(...ignoredBadges(speech));
      const engine = model();
      if (speech.engine && engine && speech.take && speech.take.model === settings.model && !settings.model.startsWith(speech.engine) && !engine.alias) rows.push(badge("engine", speech.engine, "warn"));
      rows.push(...partialBadges(speech));
    }
    badges.replaceChildren(...rows);
    saveNow.hidden = !(mine() && (state === "done" || state === "partial") && player.track);
    const box = speech.showError(trouble, "speak", () => [
      ...(speech.error.aboutVoice ? [button(t("error.choose_voice"), () => document.getElementById("voice").focus())] : []),
      button(t("again"), speak),
    ]);
    if (!box && mine() && speech.busy) trouble.replaceChildren();
    clearTimeout(ticking);
    if (state === "waiting" && active) ticking = setTimeout(showState, 100);
  }

  function showPlayed() {
    if (player.track) import("../read.js").then(({ show }) => show(readSlot, ["speak", "preview", "gallery"]), () => {}); // without the server the text is not shown
    saveNow.hidden ||= !player.track;
  }

  let closed = false;
  async function showTakes() {
    if (list || !(await takes.all()).length) return;
    const { takeList } = await import("./takelist.js");
    if (list || closed) return;
    list = takeList(reuse, isOwn);
    takePanel.replaceChildren(list.element);
    await list.fill();
  }

  function reuse(take) {
    if (take.kind === "dialogue") {
      store.set("dialogue", { model: take.model, lines: take.body.turns.map(({ speaker, voice, text: words }) => ({ name: speaker, voice, text: words })) });
      return open("/dialogue");
    }
    text.value = take.text;
    Object.assign(settings, { voice: take.voice, model: take.model || settings.model, speed: take.body.speed ?? 1, language: take.body.language ?? "", seed: Number(take.seed), lock: true });
    settings.sampling = Object.fromEntries(SAMPLING.map((name) => [name, take.body[name]]).filter(([, value]) => value !== undefined));
    seed.value = settings.seed;
    lock.checked = true;
    speed.value = settings.speed;
    language.value = settings.language;
    for (const name of SAMPLING) samplingFields[name].value = settings.sampling[name] ?? "";
    fillVoices();
    fillModels();
    typed();
    changed();
    text.focus();
    announce(t("take.taken"));
  }

  function fillVoices() {
    const clones = speaksClones(modelList);
    if (clones && unspeakable) [settings.voice, unspeakable] = [unspeakable, ""];
    const chosen = voiceList.find((voice) => voice.id === settings.voice);
    if (!clones && chosen?.type === "cloned") [unspeakable, settings.voice] = [chosen.id, serverVoice()];
    settings.voice ||= serverVoice();
    const select = voiceSelect(voiceList, settings.voice, { id: "voice", onchange: (event) => {
      settings.voice = event.target.value;
      unspeakable = voiceHint.textContent = "";
      if (!event.target.isConnected) fillVoices();
      changed();
    } }, clones);
    voiceHint.textContent = unspeakable && t("voice.replaced", { name: nameOf(unspeakable) });
    select.classList.add("grow");
    voiceSlot.replaceChildren(select, button(t("voice.preview"), () => preview({ id: settings.voice, name: nameOf(settings.voice) }, { model: settings.model }), { name: "play" }));
  }

  function fillModels() {
    const select = modelSelect(modelList, settings.model, { id: "model", onchange: (event) => {
      settings.model = event.target.value;
      changed();
    } });
    modelSlot.replaceChildren(h("label", { for: "model" }, t("speak.model")), select);
  }

  async function lists(anew) {
    const [someVoices, someModels] = await Promise.allSettled([voices(anew), models(anew), health.last ?? health.look()]);
    if (someVoices.status === "fulfilled") voiceList = someVoices.value;
    if (someModels.status === "fulfilled") {
      modelList = someModels.value;
      settings.model = modelToUse(modelList, settings.model);
    }
    const failed = [someVoices, someModels].find((each) => each.status === "rejected");
    if (failed) trouble.replaceChildren(errorBox(failed.reason, [button(t("again"), () => { trouble.replaceChildren(); lists(true); })]));
    fillVoices();
    fillModels();
    changed();
  }

  const listeners = [[speech, "change", showState], [player, "change", showPlayed], [takes, "change", showTakes], [health, "look", showLimits], [health, "changed", () => lists(true)], [window, "pagehide", keepDraft]];
  for (const [target, kind, listener] of listeners) target.addEventListener(kind, listener);
  const listed = lists(false);
  fillVoices();
  fillModels();
  showLimits();
  typed();
  showState();
  changed();
  await Promise.all([listed, showTakes()]);
  return {
    unmount() {
      for (const late of [saveDraft, settle]) late.cancel();
      keepDraft();
      list?.unmount();
      closed = true;
      clearTimeout(ticking);
      for (const [target, kind, listener] of listeners) target.removeEventListener(kind, listener);
    },
  };
}
