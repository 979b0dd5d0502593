// The Server page: the engines and their states, the load of the server, and plots of its metrics.

import { call, details, errorBox, getJson, hasKey, health, may, models } from "../api.js";
import { ROOT, button, h, language, loadTexts, number, t } from "../ui.js";
import { problemList } from "../voices/problems.js";
import { duration, open } from "../weights.js";

const POINTS = 60; // five minutes: /health is read every 5 s
const USAGE_DAYS = 30;
const USAGE_EVERY_MS = 60_000;
const SVG = "http://www.w3.org/2000/svg";
const history = { rows: [], queue: [], audio: [], first: [], answers: [], memory: [] }; // kept while the person is on other pages
let before = null; // the counters before: { counters, at_s }

/** Parses the text format of Prometheus: metric name -> sum over its labels. */
export function sums(text) {
  const found = {};
  for (const [, name, value] of text.matchAll(/^([a-zA-Z_:][\w:]*)(?:\{[^\n]*\})? (\S+)/gm)) found[name] = (found[name] ?? 0) + Number(value);
  return found;
}

/** The requests of each API key in the same text, for a key with the scope `admin`: name -> [all, refused]. */
function keyCounts(text) {
  const found = {};
  for (const [, kind, name, value] of text.matchAll(/^tts_key_(requests|refused)_total\{key="([^"]*)"[^\n]*\} (\S+)/gm)) {
    const counts = (found[name] ??= [0, 0]);
    counts[kind === "requests" ? 0 : 1] += Number(value);
  }
  return found;
}

function record(state, counters, at_s) {
  const add = (name, value) => {
    history[name].push(value);
    if (history[name].length > POINTS) history[name].shift();
  };
  add("rows", state.rows?.active ?? 0);
  add("queue", state.queue?.waiting ?? 0);
  add("memory", (state.memory ?? []).reduce((sum, each) => sum + each.used_bytes, 0) / 1e9);
  if (before && counters.tts_requests_total >= before.counters.tts_requests_total) {
    const passed_s = Math.max(0.1, at_s - before.at_s);
    const more = (name) => (counters[name] ?? 0) - (before.counters[name] ?? 0);
    const answers = more("tts_first_audio_seconds_count"); // speech only: this page itself sends other requests
    add("audio", more("tts_audio_seconds_total") / passed_s);
    add("answers", (answers * 60) / passed_s);
    add("first", answers ? more("tts_first_audio_seconds_sum") / answers : null);
  }
  before = { counters, at_s };
}

const drawn = (tag, attributes) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

/** The upper end of an axis for values up to `most`: 1, 2 or 5 times a power of ten. */
function niceTop(most) {
  const ten = 10 ** Math.floor(Math.log10(most));
  return ten * [1, 2, 5, 10].find((step) => step * ten >= most * 0.9999);
}

/** A drawing of `shapes` on a ground of `width` by 40, with the ends of its axes: `top` and 0, `from` and `to`. */
function figure(look, label, shown, width, shapes, [top, from, to]) {
  const svg = drawn("svg", { viewBox: `0 0 ${width} 40`, preserveAspectRatio: "none" });
  svg.append(drawn("path", { d: `M0 39H${width}M0 2H${width}`, class: "base" }), ...shapes);
  return h("figure", { class: `plot ${look}` }, h("figcaption.hint", {}, label), h("span.now", {}, shown),
    h("div.axes.hint", { "aria-hidden": "true" }, h("span", {}, top), svg, h("span", {}, "0"), h("span", {}, from), h("span", {}, to)));
}

/** A line of the last five minutes. digits: of the numbers at the axis. limit: the upper end of the axis. */
function plot(label, values, shown, digits, limit) {
  const top = limit ?? niceTop(Math.max(...values, 10 ** -digits));
  let pen = "M";
  const d = values.map((value, n) => {
    const point = value === null ? "" : `${pen}${POINTS - values.length + n} ${39 - (value / top) * 37}`;
    pen = point ? "L" : "M";
    return point;
  }).join("");
  return figure("card", label, shown, POINTS - 1, d ? [drawn("path", { d })] : [], [values.some((value) => value !== null) || limit ? number(top, digits) : "", t("server.minutes", { n: -5 }), t("server.live")]);
}

/** A table in a box that scrolls. columns: keys of texts. rows: lists of cells; the first cell names its row. */
const table = (label, columns, rows) => h("div.scroll", { tabindex: 0, role: "region", "aria-label": label }, h("table.usage", {},
  h("thead", {}, h("tr", {}, columns.map((key) => h("th", { scope: "col" }, t(key))))),
  h("tbody", {}, rows.map(([name, ...cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells.map((cell) => h("td", {}, cell)))))));

/** Bars of the minutes of audio per day, and a table of all counts. rows: of /v1/usage. */
function usagePlot(rows) {
  if (!rows.length) return h("p", {}, t("server.usage.none"));
  const today = Date.parse(new Date().toISOString().slice(0, 10));
  const days = Array.from({ length: USAGE_DAYS }, (_, n) => new Date(today - (USAGE_DAYS - 1 - n) * 864e5).toISOString().slice(0, 10));
  const minutes = days.map((day) => rows.filter((row) => row.day === day).reduce((sum, row) => sum + row.seconds / 60, 0));
  const top = niceTop(Math.max(...minutes, 0.1));
  const bars = [...minutes.entries()].filter(([, value]) => value).map(([n, value]) => {
    const height = Math.max(0.7, (value / top) * 37);
    return drawn("rect", { x: n + 0.1, y: 39 - height, width: 0.8, height });
  });
  const total = (name) => rows.reduce((sum, row) => sum + row[name], 0);
  const ends = [0, -1].map((n) => new Date(days.at(n)).toLocaleDateString(language, { day: "numeric", month: "short", timeZone: "UTC" }));
  return h("div.stack", {},
    figure("bars", t("server.usage.label"), t("server.usage.sum", { minutes: number(total("seconds") / 60, 1), requests: number(total("requests")) }), USAGE_DAYS, bars, [number(top), ...ends]),
    h("details.fold", {}, h("summary", {}, t("server.usage.all")),
      table(t("server.usage.all"), ["server.usage.day", "key.title", "speak.model", "server.usage.requests", "server.usage.characters", "server.usage.minutes"],
        rows.toReversed().map((row) => [row.day, row.key ?? "–", row.model, number(row.requests), number(row.characters), number(row.seconds / 60, 1)]))));
}

export async function mount(main) {
  await loadTexts("server/");
  const notice = h("div");
  const trouble = h("div");
  const stateCard = h("div.card.stack");
  const rows = h("tbody");
  const plots = h("div.plots");
  const facts = h("dl.facts-list");
  const usage = h("section.stack", { "aria-label": t("server.usage"), hidden: true }, h("h2", {}, t("server.usage")));
  const counts = h("div.card");
  usage.append(counts);
  const keys = h("section.stack", { "aria-label": t("server.keys"), hidden: true }, h("h2", {}, t("server.keys")));
  const keyTable = h("div.card");
  keys.append(keyTable);
  const column = (key) => h("th", { scope: "col" }, t(key));
  main.append(
    notice,
    trouble,
    stateCard,
    h("section.stack", { "aria-label": t("voices.engines") },
      h("h2", {}, t("voices.engines")),
      h("div.card", {}, h("table.engines", {},
        h("thead", {}, h("tr", {}, ["speak.model", "server.model.status", "server.where", "server.can"].map(column))), rows))),
    h("section.stack", { "aria-label": t("server.live") }, h("h2", {}, t("server.live")), plots),
    usage,
    keys,
    h("section.card.stack", { "aria-label": t("server.links") },
      facts,
      h("div.row.wrap", {}, [["/docs", "menu.docs"], ["/metrics", "server.metrics"], ["/health", "server.health"]].map(([path, key]) => h("a.button", { href: ROOT + path }, t(key)))),
    ),
  );

  const LOOKS = { ready: "ok", loading: "", unloaded: "", missing_weights: "warn", failed: "bad" };

  /** Loads a model, or frees its memory, and shows the new state. */
  async function switchModel(id, order) {
    trouble.replaceChildren();
    try {
      await call(`/v1/models/${id}/${order}`, { method: "POST" });
    } catch (error) {
      trouble.replaceChildren(errorBox(error));
    }
    await health.look();
  }

  function row(model, state, switches) {
    const runs = model.id === state.model && model.status === "ready";
    return h("tr", {},
      h("th", { scope: "row" }, model.id),
      h("td", {}, h("span", { class: `badge ${LOOKS[model.status]}` }, t(`model.${model.status}`)), model.detail && details(model.detail),
        model.status === "missing_weights" ? h("div.row", {}, button(t("banner.get"), () => open(model.id))) : switches && h("div.row", {}, button(t(model.loaded ? "model.unload" : "model.load"), () => switchModel(model.id, model.loaded ? "unload" : "load")))),
      h("td", {}, model.bytes && h("p", {}, t("server.size", { n: number(model.bytes / 1e9, 2) })), runs ? [state.device, " ", state.dtype, state.rows && h("p.hint", {}, `${t("server.rows")} ${t("badge.of", { count: state.rows.active, of: state.rows.limit })}`)] : !model.bytes && "–"),
      h("td", {}, model.parameters?.length ? h("span", { lang: "en" }, model.parameters.join(", ")) : "–"),
    );
  }

  let shownState = "";
  let shownRows = "";
  function show(list) {
    const state = health.last;
    notice.replaceChildren();
    if (!health.reachable) {
      notice.append(h("div.error", {}, h("p.headline", {}, t("server.offline", { s: Math.round((Date.now() - health.at) / 1000) }))));
      if (!state) return;
    }
    const key = JSON.stringify([state.status, state.reason, state.casting?.problems]);
    if (key !== shownState) {
      shownState = key;
      stateCard.replaceChildren(
        h("p.headline", {}, t(`server.status.${state.status}`)),
        ...[state.reason && details(state.reason), problemList("server.doubts", state.casting?.problems ?? {})].filter(Boolean));
    }
    const engines = list?.filter((model) => !model.alias);
    const rowsKey = JSON.stringify([engines, state.model, state.rows]);
    if (engines && rowsKey !== shownRows) {
      shownRows = rowsKey;
      const bases = engines.filter((model) => !model.adapter_of);
      rows.replaceChildren(...engines.map((model) => row(model, state, bases.length > 1 && bases.includes(model) && may("admin"))));
    }
    const last = (values) => values.findLast((value) => value !== null);
    const memory = state.memory ?? [];
    const total = memory.reduce((sum, each) => sum + each.total_bytes, 0) / 1e9;
    const some = (value, digits, unit = "") => (value === undefined ? "–" : `${number(value, digits)}${unit}`);
    plots.replaceChildren(
      plot(t("server.rows"), history.rows, state.rows ? t("badge.of", { count: state.rows.active, of: state.rows.limit }) : "–", 0, state.rows?.limit),
      plot(t("server.queue"), history.queue, state.queue ? t("badge.of", { count: state.queue.waiting, of: state.queue.limit }) : "–", 0, state.queue?.limit),
      ...(memory.length ? [plot(`${t("server.memory")} (${memory.map((each) => each.device).join(", ")})`, history.memory, t("server.memory_of", { used: number(last(history.memory) ?? 0, 1), total: number(total, 1) }), 1, total)] : []),
      plot(t("server.audio"), history.audio, some(last(history.audio), 1, " s"), 1),
      plot(t("server.first"), history.first, some(last(history.first), 3, " s"), 3),
      plot(t("server.answers"), history.answers, some(last(history.answers), 1), 0),
    );
    const fact = (key, value) => [h("dt", {}, t(key)), h("dd", {}, value)];
    facts.replaceChildren(...[
      fact("server.version", state.version),
      fact("server.uptime", duration(state.uptime_s)),
      before && fact("server.cache", t("save.size", { n: number((before.counters.tts_cache_bytes ?? 0) / 1e6, 1) })),
      fact("lexicon.title", h("a", { href: `${ROOT}/pronunciation`, data: { route: "/pronunciation" } }, words === null ? "–" : `${t("server.words")} ${number(words)}`)),
      fact("key.title", state.key ? `${state.key.name} (${state.key.scopes.join(", ")})` : t(state.key_needed ? "server.key_needed" : "server.key_open")),
    ].flat().filter(Boolean));
  }

  /** Shows the API keys and their requests. Only a key with the scope `admin` gets them. */
  function showKeys(text) {
    const counted = keyCounts(text);
    const all = known.map(({ name, scopes, per_minute, concurrent }) => [name, scopes.join(", "), ...[per_minute, concurrent, ...(counted[name] ?? [0, 0])].map((count) => (count === null ? "–" : number(count)))]);
    keys.hidden = !all.length;
    const rowsOfKeys = JSON.stringify(all);
    if (rowsOfKeys === shownKeys) return;
    shownKeys = rowsOfKeys;
    keyTable.replaceChildren(table(t("server.usage.requests"), ["key.title", "server.scopes", "server.per_minute", "server.at_once", "server.usage.requests", "server.refused"], all));
  }

  let known = []; // the API keys
  let shownKeys = "";
  let words = null; // entries of the dictionary of the server
  let counted_at = -Infinity;
  let shownCounts = "";
  /** Reads the usage and the keys once a minute. They are not shown to a key without the scope `admin`. */
  async function count() {
    if (performance.now() - counted_at < USAGE_EVERY_MS || (health.last?.key_needed && !hasKey())) return;
    counted_at = performance.now();
    words = (await getJson("/v1/audio/lexicon").catch(() => null))?.entries.length ?? null;
    if (!may("admin")) return;
    if (health.last?.key) known = (await getJson("/v1/keys")).data;
    const { data } = await getJson("/v1/usage");
    usage.hidden = false;
    if (JSON.stringify(data) === shownCounts) return; // an open table stays open
    shownCounts = JSON.stringify(data);
    counts.replaceChildren(usagePlot(data));
  }

  let unmounted = false;
  let list = null;
  const refresh = async () => {
    if (health.last && !unmounted) show(list); // show the last state and models until the requests are answered
    try {
      if (health.reachable) {
        const text = await (await call("/metrics")).text();
        record(health.last, sums(text), performance.now() / 1000);
        list = await models(true);
        await count().catch(() => {});
        showKeys(text);
      }
    } catch {
      // Try again in 5 s.
    }
    if (!unmounted && (health.last || !health.reachable)) show(list);
  };
  health.addEventListener("look", refresh);
  await health.look();
  return {
    unmount() {
      unmounted = true;
      health.removeEventListener("look", refresh);
    },
  };
}
