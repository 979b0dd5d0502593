// The list of all takes of this browser: play, compare, use again, star, save, delete.

import { nameOf } from "../api.js";
import { saveMenu } from "../dock.js";
import { player } from "../player.js";
import { trackOf } from "../speech.js";
import { takes } from "../takes.js";
import { button, h, icon, notify, number, seconds, t } from "../ui.js";

const SHOWN = 30; // takes at first

const marks = { A: null, B: null }; // ids of the takes to compare

function shapeSvg(shape) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 64 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("shape");
  const path = document.createElementNS(ns, "path");
  path.setAttribute("d", shape.map((high, x) => `M${x + 0.5} ${10 - Math.max(0.5, 9 * high)}V${10 + Math.max(0.5, 9 * high)}`).join(""));
  svg.append(path);
  return svg;
}

async function playTake(take) {
  const track = await trackOf(take);
  if (!track) return notify(t("take.gone"));
  if (player.track === track && !player.pair) return player.toggle();
  return player.load(track);
}

async function compare(blind) {
  const all = await takes.all();
  const chosen = [marks.A, marks.B].map((id) => all.find((take) => take.id === id));
  const tracks = await Promise.all(chosen.map((take) => take && trackOf(take)));
  if (tracks.some((track) => !track)) return notify(t("take.gone"));
  if (tracks[0] === tracks[1]) return;
  const on = blind ? crypto.getRandomValues(new Uint8Array(1))[0] & 1 : 0;
  await player.compare(tracks[0], tracks[1], { on, at_s: 0 });
  player.pair.blind = blind;
  player.pair.pick = () => {
    const { pair } = player;
    pair.blind = false;
    takes.change(chosen[pair.on].id, { star: true });
    player.dispatchEvent(new Event("change"));
    notify(t("ab.picked", { name: "AB"[pair.on] }));
  };
  player.dispatchEvent(new Event("change"));
}

async function removeTake(take, row) {
  const nextId = (row.nextElementSibling ?? row.previousElementSibling)?.dataset.take;
  const list = row.parentElement;
  if (player.track?.take === take.id) player.unload(player.track);
  for (const name of ["A", "B"]) if (marks[name] === take.id) marks[name] = null;
  const undo = await takes.remove(take.id);
  notify(t("take.deleted"), t("undo"), undo);
  const target = nextId && list.querySelector(`[data-take="${nextId}"] button`);
  (target ?? document.querySelector("main h1"))?.focus();
}

function mark(take, name) {
  marks[name] = marks[name] === take.id ? null : take.id;
  const other = name === "A" ? "B" : "A";
  if (marks[other] === marks[name]) marks[other] = null;
  takes.dispatchEvent(new Event("change"));
}

async function saveTake(take) {
  const track = await trackOf(take);
  if (track) saveMenu(track);
  else notify(t("take.gone"));
}

/** count: the number of the take among those of the same request. own: whether it is of the text on the page. */
function takeRow(take, { count, own, again }) {
  const name = t("take.name", { n: count });
  const label = `${name}: ${take.text.slice(0, 60)}`;
  const row = h("li.take", { data: { take: take.id, ...(own ? { own: "" } : {}) } },
    button(t("take.play", { name: label }), () => playTake(take), { name: "play", look: "quiet" }),
    shapeSvg(take.shape),
    h("div.facts", {},
      h("span.words", { dir: "auto" }, take.text),
      h("b", {}, name),
      h("span", {}, seconds(take.seconds)),
      take.partial && h("span", { class: take.partial === "stopped" ? "" : "bad" }, t(take.partial === "stopped" ? "status.stopped" : "take.partial")),
      h("span", {}, [nameOf(take.voice), take.model].filter(Boolean).join(" · ")),
      own && take.seed && h("span", {}, t("take.seed", { seed: String(take.seed) })),
      own && take.first_s !== null && h("span", {}, t("take.first", { s: number(take.first_s, 2) })),
      own && take.factor !== null && h("span", {}, t("take.factor", { x: number(take.factor, 1) })),
    ),
    h("div.row.tools", {},
      ["A", "B"].map((letter) => button(letter, () => mark(take, letter), { look: "mark", "aria-pressed": String(marks[letter] === take.id), "aria-label": t("take.mark", { name: letter, take: label }), data: { mark: letter } })),
      button(t("take.again"), () => again(take), { name: "again", look: "quiet" }),
      button(t(take.star ? "take.unstar" : "take.star"), () => takes.change(take.id, { star: !take.star }), { name: "star", look: take.star ? "quiet starred" : "quiet" }),
      button(t("save"), () => saveTake(take), { name: "save", look: "quiet" }),
      button(t("take.share"), async () => (await import("../link.js")).share(take), { name: "share", look: "quiet" }),
      button(t("delete"), () => removeTake(take, row), { name: "delete", look: "quiet" }),
    ),
  );
  return row;
}

/** Replaces the rows of a list. The focus stays on the same button of the same take. */
function refill(list, rows) {
  const held = list.contains(document.activeElement) && document.activeElement.closest("[data-take]");
  const buttons = held ? [...held.querySelectorAll("button")] : [];
  const at = buttons.indexOf(document.activeElement);
  list.replaceChildren(...rows);
  if (held) list.querySelector(`[data-take="${held.dataset.take}"]`)?.querySelectorAll("button")[at]?.focus();
}

/**
 * Creates the list. again(take): uses its text and settings. isOwn(take): whether it has the text of the page.
 * Returns { element, fill, unmount }.
 */
export function takeList(again, isOwn) {
  let shown = SHOWN;
  let drawn = []; // copies of rows
  const list = h("ul.takes");
  const search = h("input", { type: "search", class: "grow", placeholder: t("take.search"), "aria-label": t("take.search"), oninput: () => { shown = SHOWN; fill(); } });
  const blind = h("input", { type: "checkbox" });
  const compareNow = button(t("ab.title"), () => compare(blind.checked));
  const compareRow = h("div.row.wrap", {}, h("label.check", {}, blind, t("ab.blind_choice")), compareNow);
  const more = button(t("take.further"), () => { shown += SHOWN; fill(); });
  const hint = h("p.hint");
  const head = h("div.row.wrap.find", {}, search, compareRow);
  const element = h("div.stack", {}, head, list, h("div.row", {}, more), hint);

  async function fill() {
    const all = await takes.all();
    const query = search.value.trim().toLowerCase();
    const found = query ? all.filter((take) => `${take.text} ${nameOf(take.voice)} ${take.model}`.toLowerCase().includes(query)) : all;
    const groups = new Map();
    const counts = new Map([...all].reverse().map((take) => {
      const group = JSON.stringify([take.kind, take.text, take.voice, take.model]);
      groups.set(group, (groups.get(group) ?? 0) + 1);
      return [take.id, groups.get(group)];
    }));
    const rows = found.slice(0, shown).map((take) => takeRow(take, { count: counts.get(take.id), own: isOwn(take), again }));
    if (rows.length !== drawn.length || rows.some((row, n) => !row.isEqualNode(drawn[n]))) {
      drawn = rows.map((row) => row.cloneNode(true));
      refill(list, rows); // a pressed row that is replaced gets no click
    }
    more.hidden = found.length <= shown;
    head.hidden = all.length === 0;
    compareRow.hidden = all.length < 2;
    compareNow.disabled = !(marks.A && marks.B);
    hint.textContent = t(!takes.lasting ? "take.memory" : all.length === 0 ? "take.empty" : found.length === 0 ? "take.none" : "take.hint");
    showPlayed();
  }

  function showPlayed() {
    const playing = player.track?.take;
    for (const row of list.children) {
      const now = row.dataset.take === playing && !player.pair?.blind;
      if (now !== "now" in row.dataset) {
        if (now) row.dataset.now = "";
        else delete row.dataset.now;
      }
      const look = now && player.playing ? "pause" : "play";
      if (!row.firstChild.firstChild.classList.contains(`i-${look}`)) row.firstChild.replaceChildren(icon(look));
    }
  }

  takes.addEventListener("change", fill);
  player.addEventListener("change", showPlayed);
  return { element, fill, unmount() {
    takes.removeEventListener("change", fill);
    player.removeEventListener("change", showPlayed);
  } };
}
