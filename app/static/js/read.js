// Read along: the text of the track that is played, with the word that is heard. A press on a word plays from there.
// Where the times of words are missing, sentences are shown instead. A long text is shown in parts.

import { player } from "./player.js";
import "./save.js"; // loaded now, so that audio can be saved when the server has stopped
import { h, t } from "./ui.js";

const PART = 2000; // characters of a part, up to the end of a sentence
const MOST = 3000; // characters of a part without an end of a sentence
const EARLY_S = 0.02; // a word is lit this much before it is heard
const shown = new WeakMap(); // slot -> Reading

const STYLE = `
.read { max-height: 12.5rem; overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; position: relative; padding-inline: 3px; margin-inline: -3px; }
.read span { cursor: pointer; border-radius: 3px; }
.read .unmade { color: var(--muted); cursor: auto; }
.read span:hover { background: var(--sunken); }
.read [data-now] { background: var(--accent); color: var(--on-accent); box-shadow: 0 0 0 2px var(--accent); }
@media (forced-colors: active) { .read [data-now] { forced-color-adjust: none; background: Highlight; color: HighlightText; } }
`;
const sheet = new CSSStyleSheet();
sheet.replaceSync(STYLE);
document.adoptedStyleSheets.push(sheet);

/** Counts in UTF-16 units for places of the server, which counts characters. */
function unitsOf(text) {
  if (!/[\ud800-\udfff]/.test(text)) return (place) => place;
  const places = [0];
  for (const char of text) places.push(places.at(-1) + char.length);
  return (place) => places[Math.min(place, places.length - 1)];
}

/** The text of a track, and for each time of the server where it is in the text: { from, to, start }. */
class Script {
  text = "";
  entries = [];
  #events = 0;
  #turns = [];
  #parts = 0;

  constructor(track) {
    this.track = track;
    this.#begin();
  }

  #begin() {
    const { body, text } = this.track.about ?? {};
    this.text = "";
    this.entries = [];
    this.#turns = [];
    this.#parts = 0;
    this.renewed = true;
    const turns = body?.turns ?? [{ text: body?.input ?? body?.text ?? text ?? "" }];
    for (const turn of turns) {
      if (this.text) this.text += "\n";
      if (turn.speaker !== undefined) this.text += `${turn.speaker}: `;
      this.#turns.push({ base: this.text.length, units: unitsOf(turn.text) });
      this.text += turn.text;
    }
  }

  /** Takes what has arrived since the last call. */
  update() {
    const { timed, parts } = this.track;
    if (timed.length) {
      if (this.#parts) this.#begin(); // the sentences were shown until now
      for (; this.#events < timed.length; this.#events++) this.#add(timed[this.#events]);
    } else if (parts.length > this.#parts) {
      this.#useParts(parts);
    }
  }

  #add({ words = [], sentences = [] }) {
    const entry = ({ start, start_char, end_char, turn = 0 }) => {
      const { base, units } = this.#turns[turn] ?? this.#turns[0];
      return { from: base + units(start_char), to: base + units(end_char), start };
    };
    const found = words.map(entry);
    for (const sentence of sentences.map(entry)) {
      if (!found.some((word) => word.from >= sentence.from && word.to <= sentence.to)) found.push(sentence);
    }
    this.entries.push(...found.sort((a, b) => a.start - b.start || a.from - b.from));
  }

  /** Without times of words: the spoken sentences and their starts. */
  #useParts(parts) {
    if (!this.#parts) [this.text, this.entries] = ["", []];
    for (; this.#parts < parts.length; this.#parts++) {
      const part = parts[this.#parts];
      if (this.text) this.text += part.turn === parts[this.#parts - 1].turn ? " " : "\n";
      const from = this.text.length;
      this.text += part.text;
      this.entries.push({ from, to: this.text.length, start: part.start_s });
    }
  }

  /** The number of the last entry that has started; -1 before the first one. */
  at(time_s) {
    let [low, high] = [0, this.entries.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.entries[middle].start <= time_s) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
}

class Reading {
  #script = null;
  #first = 0; // the entries of the part: from #first to #end
  #end = 0;
  #spans = [];
  #lit = null;
  #where = "";
  #fresh = false; // whether the text must be scrolled into view
  #ended = false; // whether the whole track has arrived

  constructor(slot) {
    this.hint = h("span.hint");
    this.box = h("div.read", { dir: "auto", tabindex: 0, role: "region", "aria-label": t("read.title"), onclick: (event) => this.#pressed(event) });
    this.slot = slot;
    slot.classList.add("caption");
    slot.replaceChildren(this.hint, this.box);
  }

  show(sources) {
    const { track } = player;
    const source = track?.about?.source;
    const other = sources && !(source ? sources.includes(source) : track?.take);
    const hidden = !track || other || Boolean(player.pair?.blind);
    if (!hidden) {
      if (this.#script?.track !== track) {
        this.#script = new Script(track);
        this.#ended = false;
        this.#fresh = true;
      }
      if (track.ended && !this.#ended) {
        this.#ended = this.#fresh = true; // the page has changed above the text
        if (!track.cut) this.box.querySelector(".unmade")?.classList.remove("unmade");
      }
      this.#script.update();
      if (this.#script.renewed) {
        this.#script.renewed = false;
        this.#fresh = true;
        this.#first = this.#end = 0;
        this.#lit = null;
        this.#spans = [];
        this.box.replaceChildren();
      }
    }
    const { slot } = this;
    slot.hidden = hidden || !this.#script.entries.length;
    if (slot.hidden) return;
    this.#count(track);
    const now = Math.max(0, this.#script.at(player.at_s + EARLY_S));
    if (now < this.#first || now >= this.#end || (this.#end < this.#script.entries.length && this.#grows)) this.#draw(now);
    this.#light(player.playing || player.at_s < track.seconds ? this.#spans[now - this.#first] : null);
    if (!this.#fresh) return;
    this.#fresh = false;
    if (!document.activeElement.matches("input, textarea, select, :active")) slot.scrollIntoView({ block: "nearest" });
  }

  #count({ parts }) {
    const part = parts.length > 1 && (parts.findLast((each) => each.start_s <= player.at_s + EARLY_S) ?? parts[0]);
    const where = part ? (part.sentences ? t("caption.of", { count: part.sentence + 1, of: part.sentences }) : t("caption", { count: part.sentence + 1 })) : "";
    if (where !== this.#where) this.hint.textContent = this.#where = where;
  }

  get #grows() {
    const { entries } = this.#script;
    return entries[this.#end - 1].to - entries[this.#first].from < PART;
  }

  /** Draws the part of the text that contains an entry. */
  #draw(now) {
    const { text, entries } = this.#script;
    const held = now >= this.#first && now < this.#end; // the part only grows
    if (!held) this.#first = this.#startOf(now);
    const first = this.#first === 0 ? 0 : entries[this.#first].from;
    let end = this.#first;
    do end++;
    while (end < entries.length && !this.#isEnd(first, end));
    this.#end = end;
    const last = end < entries.length ? entries[end].from : Math.min(text.length, first + MOST);
    const nodes = [];
    let place = first;
    this.#spans = [];
    for (let n = this.#first; n < end; n++) {
      const { from, to } = entries[n];
      if (from > place) nodes.push(text.slice(place, from));
      const span = h("span", { data: { n } }, text.slice(Math.max(from, place), Math.max(place, to)));
      this.#spans.push(span);
      nodes.push(span);
      place = Math.max(place, to);
    }
    const made = end < entries.length || (player.track.ended && !player.track.cut);
    if (last > place) nodes.push(made ? text.slice(place, last) : h("span.unmade", { title: t("read.unmade") }, text.slice(place, last)));
    this.box.replaceChildren(...nodes);
    this.#lit = null;
    if (!held) this.box.scrollTop = 0;
  }

  /** Whether a part that begins at the character `first` ends before the entry `n`. */
  #isEnd(first, n) {
    const { text, entries } = this.#script;
    const size = entries[n].from - first;
    return size > MOST || (size > PART && /[.!?…。！？]["'”’»)]*\s*$/.test(text.slice(entries[n - 1].from, entries[n].from)));
  }

  /** The first entry of the part that contains the entry `now`. */
  #startOf(now) {
    let start = 0;
    for (let n = 1; n <= now; n++) if (this.#isEnd(start === 0 ? 0 : this.#script.entries[start].from, n)) start = n;
    return start;
  }

  #light(span) {
    if (span === this.#lit) return;
    if (this.#lit) delete this.#lit.dataset.now;
    this.#lit = span;
    if (!span) return;
    span.dataset.now = "";
    const { box } = this;
    const low = span.offsetTop + span.offsetHeight - box.clientHeight;
    if (span.offsetTop < box.scrollTop || low > box.scrollTop) box.scrollTop = span.offsetTop - box.clientHeight / 3;
  }

  #pressed(event) {
    const span = event.target.closest("[data-n]");
    if (!span) return;
    player.seek(this.#script.entries[span.dataset.n].start);
    if (!player.playing) player.play();
  }
}

/** Shows the played track in an element, after a change of the player. sources: whose speech; takes are always shown. */
export function show(slot, sources) {
  if (!shown.has(slot)) shown.set(slot, new Reading(slot));
  shown.get(slot).show(sources);
}
