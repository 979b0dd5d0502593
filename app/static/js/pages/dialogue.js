// The Dialogue page: a list of lines, each with a speaker, a voice and a text. All lines are one request.

import { canSpeak, errorBox, health, limitOf, modelSelect, modelToUse, models, serverVoice, speaksClones, voices } from "../api.js";
import { player } from "../player.js";
import { drawSeed, ignoredBadges, partialBadges, speech, timeBadges, whenListed } from "../speech.js";
import { announce, button, debounce, dialog, h, newId, notify, number, snippetSlot, store, t } from "../ui.js";
import { voiceSelect } from "./speak.js";

const OTHER_VOICES = ["onyx", "nova", "echo", "shimmer", "fable"]; // first choices for further speakers: they sound different
const ACCIDENT_MS = 400;

/** Parses "Ann: Hello" or "[S1] Hello [S2] Hi" to [{ name, text }]. A line without a name continues the one before. */
export function readScript(script) {
  const found = [];
  for (const row of script.replace(/\[\s?S([1-9])\s?\]/gi, "\n\u0000$1\u0000").split("\n")) {
    const tag = /^\u0000(\d)\u0000(.*)$/s.exec(row);
    const named = /^\s*([^:\n]{1,40}?)\s*:\s+(.*)$/.exec(row);
    if (tag) found.push({ name: `S${tag[1]}`, text: tag[2].trim() });
    else if (named && !/[.!?,;]$/.test(named[1])) found.push({ name: named[1], text: named[2].trim() });
    else if (row.trim() && found.length) found.at(-1).text = `${found.at(-1).text} ${row.trim()}`.trim();
    else if (row.trim()) found.push({ name: "", text: row.trim() });
  }
  return found.filter((line) => line.text);
}

export async function mount(main) {
  const kept = store.get("dialogue", {});
  let lines = (kept.lines ?? []).map((line) => ({ ...line, id: newId() }));
  let model = kept.model ?? "";
  let voiceList = [];
  let modelList = [];
  let pressed_ms = 0;

  const keepNow = () => store.set("dialogue", { model, lines: lines.map(({ name, voice, text }) => ({ name, voice, text })) });
  const keep = debounce(keepNow, 200);
  const spoken = () => lines.filter((line) => line.text.trim());
  const names = () => [...new Set(lines.map((line) => line.name))];
  const colour = (line) => names().indexOf(line.name) % 4;
  const limit = () => modelList.find((each) => each.id === model)?.max_speakers ?? null;
  const used = () => new Set(spoken().map((line) => line.voice)).size;
  const entry = () => modelList.find((each) => each.id === model);

  const modelSlot = h("div.row");
  const count = h("span.badge");
  const voiceHint = h("p.hint", { role: "status" });
  const trouble = h("div");
  const list = h("ol.lines", { "aria-label": t("dialogue.lines") });
  const label = h("span", {}, t("dialogue.all"));
  const go = h("button", { type: "button", class: "primary go", onclick: () => (speech.active && mine() ? halt() : speakAll()) }, label, h("kbd", { "aria-hidden": "true" }, "Ctrl+Enter"));
  const badges = h("div.row.wrap");
  const empty = h("div.empty", {}, h("p", {}, t("dialogue.empty")), button(t("dialogue.sample"), () => {
    useScript([1, 2, 3, 4].map((n) => ({ name: n % 2 ? "Ann" : "Ben", text: t(`dialogue.sample.${n}`) })));
  }));
  const clearing = button(t("dialogue.clear"), () => clear(), { look: "quiet" });
  const [codeSlot, showCode] = snippetSlot();
  const section = h("section.speak-all", { "aria-label": t("nav.dialogue"), data: { state: "idle" } },
    h("div.head", {}, h("div.row.wrap", {}, modelSlot, count), h("div.row.wrap", {}, button(t("dialogue.paste"), paste), clearing)),
    voiceHint, empty, list,
    h("div.row.wrap", {}, button(t("dialogue.add"), () => add(lines.length), {})),
    h("div.act", {}, go, badges),
    h("p.hint", {}, t("dialogue.hint")),
  );
  const readSlot = h("div", { hidden: true });
  main.append(section, trouble, readSlot, h("section.stack", { "aria-label": t("snippet") }, h("h2", {}, t("snippet")), codeSlot));

  // -- lines

  const voiceFor = (name) => lines.findLast((line) => line.name === name)?.voice ?? freshVoice();
  const freshVoice = () => {
    const taken = new Set(lines.map((line) => line.voice));
    const known = new Set(voiceList.map((voice) => voice.id));
    const standard = (voice) => voice.type === "preset";
    const others = voiceList.filter((voice) => standard(voice) || (voice.type === "cloned" && speaksClones(modelList))).sort((a, b) => standard(b) - standard(a));
    const choices = [serverVoice(), ...OTHER_VOICES, ...others.map((voice) => voice.id)].filter(Boolean);
    return choices.find((voice) => !taken.has(voice) && (!known.size || known.has(voice))) ?? choices[0];
  };

  function row(line) {
    const n = lines.indexOf(line) + 1;
    const text = h("textarea", { rows: 1, value: line.text, "aria-label": `${t("speak.text")}: ${t("dialogue.line", { n })}`, oninput: () => {
      line.text = text.value;
      changed();
    }, onkeydown: (event) => keyed(event, line, text) });
    const name = h("input", { value: line.name, "aria-label": `${t("dialogue.speaker")}: ${t("dialogue.line", { n })}`, autocomplete: "off", onchange: () => {
      line.name = name.value.trim() || t("dialogue.name", { n: 1 });
      const same = lines.find((other) => other !== line && other.name === line.name);
      if (same) line.voice = same.voice;
      draw(line.id, "input");
    } });
    const voice = voiceSelect(voiceList, line.voice, { "aria-label": `${t("speak.voice")}: ${t("dialogue.line", { n })}`, onchange: (event) => {
      for (const other of lines) if (other.name === line.name) other.voice = event.target.value; // all lines of one speaker have one voice
      draw(line.id, ".pick");
    } }, speaksClones(modelList));
    return h("li.line", { data: { line: line.id, speaker: colour(line) } },
      h("div.who", {}, name, voice),
      text,
      h("div.tools", {},
        button(t("dialogue.play", { n }), () => speakOne(line), { name: "play", look: "quiet" }),
        button(t("dialogue.up", { n }), () => move(line, -1, "up"), { name: "up", look: "quiet", data: { act: "up" } }),
        button(t("dialogue.down", { n }), () => move(line, 1, "down"), { name: "down", look: "quiet", data: { act: "down" } }),
        button(t("dialogue.remove", { n }), () => remove(line), { name: "delete", look: "quiet" }),
      ),
    );
  }

  /** Draws all lines. The focus goes to the element `part` of the line `id`. */
  function draw(id, part = "textarea", at = null) {
    list.replaceChildren(...lines.map(row));
    const focus = id && list.querySelector(`[data-line="${id}"] ${part}`);
    focus?.focus();
    if (focus && at !== null) focus.setSelectionRange(at, at);
    changed();
  }

  function changed() {
    empty.hidden = lines.length > 0;
    clearing.hidden = !lines.length;
    keep();
    const most = limit();
    count.textContent = t("dialogue.limit", { voices: used(), n: most ?? used() });
    count.hidden = !lines.length || most === null || most < 2;
    const many = most !== null && most > 1 && used() > most;
    count.classList.toggle("warn", many);
    voiceHint.textContent = many ? t("dialogue.too_many", { engine: model, limit: most, voices: used() }) : "";
    showCode("/v1/audio/dialogue", { ...body(false), response_format: "mp3" });
  }

  function add(at, text = "") {
    const before = lines[at - 1];
    const others = names().filter((name) => name !== before?.name);
    const name = others.length ? others.findLast((each) => lines.slice(0, at).some((line) => line.name === each)) ?? others[0] : t("dialogue.name", { n: names().length + 1 });
    const line = { id: newId(), name, voice: voiceFor(name), text };
    lines.splice(at, 0, line);
    draw(line.id);
  }

  function move(line, by, act) {
    const from = lines.indexOf(line);
    const to = from + by;
    if (to < 0 || to >= lines.length) return;
    lines.splice(from, 1);
    lines.splice(to, 0, line);
    draw(line.id, act ? `[data-act=${act}]` : "textarea");
    announce(t("dialogue.line", { n: to + 1 }));
  }

  function remove(line) {
    const at = lines.indexOf(line);
    const old = [...lines];
    lines.splice(at, 1);
    const next = lines[at] ?? lines[at - 1];
    draw(next?.id);
    if (!next) main.querySelector("h1").focus();
    if (line.text) notify(t("take.deleted"), t("undo"), () => { lines = old; draw(line.id); });
  }

  function clear() {
    if (!lines.length) return;
    const old = lines;
    lines = [];
    draw();
    main.querySelector("h1").focus();
    notify(t("dialogue.cleared"), t("undo"), () => { lines = old; draw(old[0].id); });
  }

  function keyed(event, line, text) {
    const at = lines.indexOf(line);
    if (event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      speakAll();
    } else if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      add(at + 1);
    } else if (event.key === "Backspace" && text.value === "" && lines.length > 1) {
      event.preventDefault();
      lines.splice(at, 1);
      const before = lines[Math.max(0, at - 1)];
      draw(before.id, "textarea", before.text.length);
    } else if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      move(line, event.key === "ArrowUp" ? -1 : 1);
    }
  }

  function useScript(script) {
    lines = [];
    const nameless = t("dialogue.name", { n: 1 });
    for (const { name, text } of script) {
      const who = name || nameless;
      lines.push({ id: newId(), name: who, voice: voiceFor(who), text });
    }
    draw(lines[0]?.id);
  }

  function paste() {
    return dialog(t("dialogue.paste"), (close) => {
      const field = h("textarea", { rows: 8, id: "script", autofocus: true });
      return h("form.stack", { onsubmit: (event) => {
        event.preventDefault();
        const script = readScript(field.value);
        close();
        if (script.length) listed.then(() => useScript(script)); // the voices must be known
      } }, h("label", { for: "script" }, t("dialogue.paste_hint")), field, h("div.row.end", {}, h("button.primary", {}, t("dialogue.paste_use"))));
    });
  }

  // -- speaking

  const mine = () => speech.source === "dialogue";

  function body(seeded) {
    const request = { model: model || undefined, turns: spoken().map((line) => ({ speaker: line.name, voice: line.voice, text: line.text })) };
    if (seeded) request.seed = drawSeed();
    return request;
  }

  function refuse(message) {
    trouble.replaceChildren(errorBox(new Error(message)));
  }

  const begin = whenListed(() => listed);
  const speakAll = () => begin(startAll);
  const speakOne = (line) => begin(() => startOne(line));

  function startAll() {
    trouble.replaceChildren();
    const turns = limitOf("dialogue_turns");
    const chars = limitOf("input_chars");
    const length = spoken().reduce((sum, line) => sum + [...line.text].length, 0);
    if (!spoken().length) return refuse(t("dialogue.empty"));
    if (spoken().length > turns) return refuse(t("dialogue.too_many_lines", { limit: turns, n: spoken().length }));
    if (length > chars) return refuse(t("error.too_many", { n: length - chars }));
    if (entry() && !canSpeak(entry())) return refuse(t(`error.${entry().status}`, { engine: model }));
    pressed_ms = performance.now();
    const sent = spoken();
    const voicesUsed = [...new Set(sent.map((line) => line.voice))].join(", ");
    lineIds = sent.map((line) => line.id);
    speech.start({ source: "dialogue", path: "/v1/audio/dialogue", body: body(true), facts: { kind: "dialogue", text: sent.map((line) => `${line.name}: ${line.text}`).join("\n"), voice: voicesUsed, model } });
  }

  function startOne(line) {
    if (!line.text.trim()) return;
    trouble.replaceChildren();
    pressed_ms = performance.now();
    lineIds = [line.id];
    speech.start({ source: "dialogue", path: "/v1/audio/speech", body: { model: model || undefined, input: line.text, voice: line.voice }, facts: { kind: "speech", text: line.text, voice: line.voice, model }, preview: true });
  }

  function halt() {
    if (performance.now() - pressed_ms >= ACCIDENT_MS) speech.stop();
  }

  let lineIds = []; // line ids of the current request, by turn
  function showPlayed() {
    const { track } = player;
    if (track) import("../read.js").then(({ show }) => show(readSlot, ["dialogue"]), () => {});
    const own = track && track === speech.track && mine();
    const now = own && player.playing ? track.parts.findLast((part) => part.start_s <= player.at_s + 0.02) : null;
    const id = now ? lineIds[now.turn] : null;
    for (const item of list.children) {
      if (item.dataset.line === id) item.dataset.lit = "";
      else delete item.dataset.lit;
    }
  }

  let ticking = 0;
  function showState() {
    const active = mine() && speech.active;
    const state = mine() ? speech.state : "idle";
    section.dataset.state = state;
    label.textContent = t(active ? "stop" : "dialogue.all");
    go.lastChild.textContent = active ? "Esc" : "Ctrl+Enter";
    go.classList.toggle("stop", active);
    badges.replaceChildren(...(mine() ? [...timeBadges(speech), ...ignoredBadges(speech), ...partialBadges(speech)] : []));
    speech.showError(trouble, "dialogue", () => [button(t("again"), speakAll)]);
    clearTimeout(ticking);
    if (state === "waiting" && active) ticking = setTimeout(showState, 100);
  }

  function use(id) {
    model = id;
    fillModels();
    changed();
  }

  function fillModels() {
    modelSlot.replaceChildren(h("label", { for: "dialogue-model" }, t("speak.model")), modelSelect(modelList, model, { id: "dialogue-model", onchange: (event) => use(event.target.value) }));
  }

  async function load(anew) {
    try {
      [voiceList, modelList] = await Promise.all([voices(anew), models(anew)]);
      model = modelToUse(modelList, model);
    } catch (error) {
      trouble.replaceChildren(errorBox(error, [button(t("again"), () => { trouble.replaceChildren(); load(true); })]));
    }
    fillModels();
    draw();
  }

  const reload = () => load(true);
  const listeners = [[speech, "change", showState], [player, "change", showPlayed], [health, "changed", reload], [window, "pagehide", keepNow]];
  for (const [target, kind, listener] of listeners) target.addEventListener(kind, listener);
  const listed = load(false);
  fillModels();
  draw();
  showState();
  await listed;
  return {
    unmount() {
      keep.cancel();
      keepNow();
      clearTimeout(ticking);
      for (const [target, kind, listener] of listeners) target.removeEventListener(kind, listener);
    },
  };
}
