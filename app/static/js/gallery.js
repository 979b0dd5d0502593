// The gallery of voices: a dialog with a card for each voice, to find, hear, compare and choose one.

import { errorBox, voices } from "./api.js";
import { player } from "./player.js";
import { preview, speech } from "./speech.js";
import { announce, button, debounce, dialog, h, icon, languageName, loadStyles, loadTexts, store, t } from "./ui.js";

const SENTENCE_CHARS = 300;
const AT_ONCE = 5; // voices that speak the sentence one after the other
const SLICE = 50; // cards made without a pause: a thousand at once would stop a telephone for seconds
const PAUSE_MS = 15;
const KINDS = {
  all: () => true,
  favourites: (voice) => favourites().includes(voice.id),
  mine: (voice) => voice.type === "cloned",
  standard: (voice) => voice.type !== "cloned",
};

/** The ids of the favourite voices of this browser. */
export const favourites = () => store.get("favourites", []);

const setFavourite = (id, on) => store.set("favourites", on ? [...favourites(), id] : favourites().filter((each) => each !== id));

/** A dot in the colour of a voice. A voice without a colour gets one that follows from its id. */
export function tint(voice) {
  const dot = h("span.tint", { "aria-hidden": "true" });
  const turn = [...voice.id].reduce((sum, letter) => (137 * sum + 53 * letter.codePointAt(0)) % 360, 7);
  dot.style.backgroundColor = voice.color || `hsl(${turn} 45% 50%)`;
  return dot;
}

/** The text of a voice in which a search looks. */
export const searched = (voice) => `${voice.name} ${voice.description ?? ""} ${voice.id} ${voice.language} ${(voice.tags ?? []).join(" ")}`.toLocaleLowerCase();

const place = { query: "", kind: "all", language: "", tag: "", top: 0 };
const tracks = new Map(); // what the voices have said here: [voice, sentence] -> track

/** Opens the gallery. clones: whether cloned voices can speak now. Resolves to the id of a voice, or to undefined. */
export async function choose(list, chosen, clones) {
  await Promise.all([loadTexts("voices/"), loadStyles("gallery")]);
  let speaking = ""; // the voice that speaks now
  let inTurn = false;
  const speakable = (voice) => clones || voice.type !== "cloned";
  const standing = h("p.hint", { role: "status" });
  const trouble = h("div");
  let failed = null; // why the list could not be loaded
  if (!list.length) list = await voices(true).catch((error) => ((failed = error), []));
  list = [...list.filter(KINDS.mine), ...list.filter(KINDS.standard)];
  const sentence = h("input", { id: "gallery-sentence", maxlength: SENTENCE_CHARS, autocomplete: "off", value: store.get("draft", "").split(/(?<=[.!?])\s/)[0].slice(0, SENTENCE_CHARS), placeholder: t("voices.sentence", { name: "…" }) });
  const rows = new Map(); // the id of a voice -> its card
  const cards = h("ul.cards", { "aria-label": t("voices.list") });

  async function hear(voice) {
    player.prepare();
    trouble.replaceChildren();
    const text = sentence.value.trim() || t("voices.sentence", { name: voice.name });
    const key = JSON.stringify([voice.id, text]);
    speaking = voice.id;
    if (tracks.has(key)) {
      if (speech.busy) speech.stop();
      await (player.track === tracks.get(key) ? player.play() : player.load(tracks.get(key)));
      return true;
    }
    const started = preview(voice, { text, source: "gallery" });
    const { track } = speech;
    track.about.heard = key;
    await started;
    if (speech.track !== track || speech.state !== "done") return false;
    tracks.set(key, track);
    return true;
  }

  function halt() {
    inTurn = false;
    if (speech.busy && speech.source === "gallery") speech.stop();
    else player.pause();
  }

  const sounds = (voice) => speaking === voice.id && player.playing;

  async function five() {
    if (inTurn) return halt();
    const shown = list.filter((voice) => speakable(voice) && fits(voice));
    const first = [...shown.filter(KINDS.favourites), ...shown.filter((voice) => !KINDS.favourites(voice))].slice(0, AT_ONCE);
    inTurn = true;
    for (const voice of first) {
      announce(voice.name);
      rows.get(voice.id)?.scrollIntoView({ block: "nearest" });
      const spoken = await hear(voice);
      const { track } = player;
      if (!inTurn || !spoken) break;
      while (inTurn && player.playing && player.track === track) await new Promise((resolve) => player.addEventListener("change", resolve, { once: true }));
      if (!inTurn) break;
    }
    inTurn = false;
    showPlayed();
  }

  const together = button(t("gallery.five"), five);

  function showPlayed() {
    for (const [id, row] of rows) {
      const look = sounds({ id }) ? "pause" : "play";
      if (row.dataset.look === look) continue;
      row.dataset.look = look;
      row.querySelector(".hear")?.replaceChildren(icon(look));
    }
    together.textContent = t(inTurn ? "stop" : "gallery.five");
  }

  const showState = () => speech.showError(trouble, "gallery");

  function card(voice, close) {
    const can = speakable(voice);
    const about = [voice.description || t(`voice.kind.${voice.type}`), languageName(voice.language), ...(voice.tags ?? [])];
    const star = button(t("gallery.favourite", { name: voice.name }), () => {
      const on = !KINDS.favourites(voice);
      setFavourite(voice.id, on);
      star.classList.toggle("starred", on);
      star.setAttribute("aria-pressed", String(on));
    }, { name: "star", look: KINDS.favourites(voice) ? "quiet starred" : "quiet", "aria-pressed": String(KINDS.favourites(voice)), tabindex: -1 });
    return h("li", { data: { voice: voice.id, look: "play" } },
      tint(voice),
      h("button", { type: "button", class: "quiet choose", tabindex: -1, "aria-current": voice.id === chosen ? "true" : null, "aria-disabled": can ? null : "true", onclick: () => can && close(voice.id) },
        h("b", {}, voice.name), h("span.hint", {}, about.filter(Boolean).join(" · ")), !can && h("span.hint", {}, t("voice.needs_clones"))),
      can && button(t("voice.preview_of", { name: voice.name }), () => (sounds(voice) ? halt() : (inTurn = false, hear(voice))), { name: "play", look: "quiet hear", tabindex: -1 }),
      star);
  }

  /** Only the buttons of one card are in the order of Tab. Arrow keys go to the other cards. */
  function enter(row, focus = true) {
    for (const each of cards.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    if (!row) return;
    for (const each of row.querySelectorAll("button")) each.tabIndex = 0;
    if (focus) row.querySelector(".choose").focus();
  }
  cards.addEventListener("focusin", (event) => enter(event.target.closest("li"), false));
  cards.addEventListener("keydown", (event) => {
    const shown = [...cards.children].filter((row) => !row.hidden);
    const at = shown.indexOf(event.target.closest("li"));
    const across = Math.max(1, shown.findIndex((row) => row.offsetTop !== shown[0].offsetTop));
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - across, ArrowDown: at + across, Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    enter(shown[Math.max(0, Math.min(shown.length - 1, to))]);
  });

  const sought = new Map(list.map((voice) => [voice.id, searched(voice)]));
  const fits = (voice) => KINDS[place.kind](voice) && (!place.language || voice.language.startsWith(place.language)) && (!place.tag || (voice.tags ?? []).includes(place.tag)) && sought.get(voice.id).includes(place.query.trim().toLocaleLowerCase());

  const reach = () => enter(rows.get(chosen)?.hidden === false ? rows.get(chosen) : [...cards.children].find((row) => !row.hidden), false);

  /** Makes the next cards. The others follow when the page has had time for other things. */
  function fill(close, count) {
    for (const voice of list.slice(rows.size, rows.size + count)) {
      const row = card(voice, close);
      row.hidden = !fits(voice);
      rows.set(voice.id, row);
      cards.append(row);
    }
    if (!cards.querySelector("[tabindex='0']")) reach();
    if (rows.size < list.length) setTimeout(() => cards.isConnected && fill(close, SLICE), PAUSE_MS);
  }

  function filter() {
    if (failed) return;
    const fitting = new Set(list.filter(fits).map(({ id }) => id));
    for (const [id, row] of rows) row.hidden = !fitting.has(id);
    standing.textContent = t(fitting.size ? "gallery.count" : "take.none", { n: fitting.size });
    reach();
  }

  const among = (name, label, values, all, named = (value) => value) => {
    if (!values.includes(place[name])) place[name] = "";
    return values.length > 1 && h("select", { "aria-label": t(label), onchange: (event) => { place[name] = event.target.value; filter(); } },
      h("option", { value: "" }, t(all)), values.map((value) => h("option", { value, selected: value === place[name] }, named(value))));
  };
  const languages = [...new Set(list.map((voice) => voice.language.split("-")[0]))].sort();
  const tags = [...new Set(list.flatMap((voice) => voice.tags ?? []))].sort();
  const search = h("input", { type: "search", value: place.query, placeholder: t("voices.search"), "aria-label": t("voices.search"), oninput: debounce(() => { place.query = search.value; filter(); }, 60) });
  const kinds = h("div.row.wrap", { role: "group", "aria-label": t("gallery.kinds") }, Object.keys(KINDS).map((kind) => button(t(`gallery.${kind}`), (event) => {
    place.kind = kind;
    for (const each of kinds.children) each.setAttribute("aria-pressed", String(each === event.currentTarget));
    filter();
  }, { "aria-pressed": String(kind === place.kind) })));

  const heard = [[player, "change", showPlayed], [speech, "change", showState]];
  for (const [target, kind, listener] of heard) target.addEventListener(kind, listener);
  const picked = dialog(t("gallery.title"), (close) => {
    if (failed) trouble.append(errorBox(failed, [button(t("again"), () => close(choose([], chosen, clones)))]));
    fill(close, place.top ? list.length : Math.max(SLICE, list.findIndex(({ id }) => id === chosen) + 1)); // the place that was left has to be there
    filter();
    const first = rows.get(chosen);
    (first && !first.hidden ? first.querySelector(".choose") : search).setAttribute("autofocus", "");
    return [
      h("div.row.wrap.gallery-tools", {}, search, kinds, among("language", "voices.language", languages, "gallery.any_language", languageName), among("tag", "gallery.tags", tags, "gallery.any_tag")),
      h("div.row.wrap.gallery-tools", {}, h("div.field.grow", {}, h("label", { for: "gallery-sentence" }, t("gallery.sentence")), sentence), together),
      trouble, standing, cards];
  }, { look: "gallery" });
  cards.scrollTop = place.top;
  rows.get(chosen)?.scrollIntoView({ block: "nearest" });
  cards.addEventListener("scroll", () => (place.top = cards.scrollTop));
  showPlayed();
  const id = await picked;
  for (const [target, kind, listener] of heard) target.removeEventListener(kind, listener);
  if (speech.source === "gallery" || player.track?.about?.heard) halt();
  return id;
}
