// The server: which engines there are and why one does not speak, how busy it is, and its numbers as they change.

import { health, models } from "../api.js";
import { ROOT, button, copy, h, number, quoted, t } from "../ui.js";

const POINTS = 60; // five minutes at one look each 5 s
const SVG = "http://www.w3.org/2000/svg";
const history = { rows: [], queue: [], audio: [], first: [], requests: [], memory: [] }; // of all visits to this page
let before = null; // the counters at the last look

/** Prometheus' text as name -> sum over its labels. */
export function sums(text) {
  const found = {};
  for (const [, name, value] of text.matchAll(/^([a-zA-Z_:][\w:]*)(?:\{[^\n]*\})? (\S+)/gm)) found[name] = (found[name] ?? 0) + Number(value);
  return found;
}

function note(seen, counters, at_s) {
  const add = (name, value) => {
    history[name].push(value);
    if (history[name].length > POINTS) history[name].shift();
  };
  add("rows", seen.rows?.active ?? 0);
  add("queue", seen.queue?.waiting ?? 0);
  add("memory", (seen.memory ?? []).reduce((sum, each) => sum + each.used_bytes, 0) / 1e9);
  if (before && counters.tts_requests_total >= before.counters.tts_requests_total) {
    const gone_s = Math.max(0.1, at_s - before.at_s);
    const more = (name) => (counters[name] ?? 0) - (before.counters[name] ?? 0);
    add("audio", more("tts_audio_seconds_total") / gone_s);
    add("requests", more("tts_requests_total") / gone_s);
    const answers = more("tts_first_audio_seconds_count");
    add("first", answers ? more("tts_first_audio_seconds_sum") / answers : null);
  }
  before = { counters, at_s };
}

function plot(label, values, shown, limit) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 40`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const top = Math.max(limit ?? 0, ...values.filter((value) => value !== null), 1e-9);
  const path = (d, look) => {
    const element = document.createElementNS(SVG, "path");
    element.setAttribute("d", d);
    if (look) element.setAttribute("class", look);
    svg.append(element);
  };
  path(`M0 39H${POINTS - 1}`, "base");
  let pen = "M";
  const drawn = values.map((value, n) => {
    if (value === null) {
      pen = "M";
      return "";
    }
    const point = `${pen}${POINTS - values.length + n} ${39 - (value / top) * 37}`;
    pen = "L";
    return point;
  }).join("");
  if (drawn) path(drawn);
  return h("figure", { class: "card plot" }, h("figcaption", { class: "hint" }, label), h("span", { class: "now" }, shown), svg);
}

function lasting(value_s) {
  if (value_s < 120) return t("server.seconds", { s: Math.round(value_s) });
  if (value_s < 7200) return t("server.minutes", { n: Math.round(value_s / 60) });
  return t("server.hours", { n: Math.round(value_s / 3600) });
}

export async function mount(main) {
  const notice = h("div");
  const state = h("div", { class: "card stack" });
  const rows = h("tbody");
  const plots = h("div", { class: "plots" });
  const facts = h("dl", { class: "facts-list" });
  const column = (key) => h("th", { scope: "col" }, t(key));
  main.append(
    notice,
    state,
    h("section", { class: "stack", "aria-label": t("server.engines") },
      h("h2", {}, t("server.engines")),
      h("div", { class: "card" }, h("table", { class: "engines" },
        h("thead", {}, h("tr", {}, ["server.engine", "server.model.status", "server.where", "server.can"].map(column))), rows))),
    h("section", { class: "stack", "aria-label": t("server.live") }, h("h2", {}, t("server.live")), plots),
    h("section", { class: "card stack", "aria-label": t("server.links") },
      facts,
      h("div", { class: "row wrap" }, [["/docs", "server.docs"], ["/metrics", "server.metrics"], ["/health", "server.health"]].map(([path, key]) => h("a", { class: "button", href: ROOT + path }, t(key)))),
    ),
  );

  const stateOf = { ready: "ok", loading: "", missing_weights: "warn", failed: "bad" };

  function row(model, seen) {
    const runs = model.id === seen.model && model.status === "ready";
    return h("tr", {},
      h("th", { scope: "row" }, model.id),
      h("td", {}, h("span", { class: `badge ${stateOf[model.status]}` }, t(`model.${model.status}`)), model.detail && h("p", {}, quoted(model.detail))),
      h("td", {}, runs ? [seen.device, " ", seen.dtype, seen.rows && h("p", { class: "hint" }, `${t("server.rows")}: ${t("server.of", { count: seen.rows.active, of: seen.rows.limit })}`)] : "–"),
      h("td", {}, model.parameters?.length ? h("span", { lang: "en" }, model.parameters.join(", ")) : "–"),
    );
  }

  let seenState = "";
  function show(list) {
    const seen = health.last;
    notice.replaceChildren();
    if (!health.reachable) {
      notice.append(h("div", { class: "error" }, h("p", { class: "headline" }, t("server.offline", { s: Math.round((Date.now() - health.at) / 1000) }))));
      if (!seen) return;
    }
    const key = JSON.stringify([seen.status, seen.reason, seen.remedy, seen.download]);
    if (key !== seenState) {
      seenState = key;
      const remedy = h("pre", { tabindex: 0, lang: "en" }, seen.remedy);
      state.replaceChildren(
        h("p", { class: "headline" }, t(`server.status.${seen.status}`)),
        ...[seen.reason && h("p", {}, quoted(seen.reason)),
          seen.download && h("progress", { max: seen.download.total_bytes, value: seen.download.done_bytes, "aria-label": t("banner.starting") }),
          seen.remedy && h("div", { class: "code" }, remedy, button(t("copy"), () => copy(remedy), { name: "copy", look: "quiet" }))].filter(Boolean));
    }
    if (list) rows.replaceChildren(...list.filter((model) => !model.alias).map((model) => row(model, seen)));
    const last = (values) => values.findLast((value) => value !== null);
    const memory = seen.memory ?? [];
    const total = memory.reduce((sum, each) => sum + each.total_bytes, 0) / 1e9;
    const some = (value, digits, unit = "") => (value === undefined ? "–" : `${number(value, digits)}${unit}`);
    plots.replaceChildren(
      plot(t("server.rows"), history.rows, seen.rows ? t("server.of", { count: seen.rows.active, of: seen.rows.limit }) : "–", seen.rows?.limit),
      plot(t("server.queue"), history.queue, seen.queue ? t("server.of", { count: seen.queue.waiting, of: seen.queue.limit }) : "–", seen.queue?.limit),
      ...(memory.length ? [plot(`${t("server.memory")} (${memory.map((each) => each.device).join(", ")})`, history.memory, t("server.memory_of", { used: number(last(history.memory) ?? 0, 1), total: number(total, 1) }), total)] : []),
      plot(t("server.audio"), history.audio, some(last(history.audio), 1, " s")),
      plot(t("server.first"), history.first, some(last(history.first), 3, " s")),
      plot(t("server.requests"), history.requests, some(last(history.requests), 1)),
    );
    const fact = (key, value) => [h("dt", {}, t(key)), h("dd", {}, value)];
    facts.replaceChildren(...[
      fact("server.version", seen.version),
      fact("server.uptime", lasting(seen.uptime_s)),
      before && fact("server.cache", `${number((before.counters.tts_cache_bytes ?? 0) / 1e6, 1)} MB`),
      fact("server.key", t(seen.key_needed ? "server.key_needed" : "server.key_open")),
    ].flat().filter(Boolean));
  }

  let gone = false;
  let list = null;
  const looked = async () => {
    if (health.last && !gone) show(list); // at once; the rest may take its time
    try {
      if (health.reachable) {
        const text = await (await fetch(`${ROOT}/metrics`)).text();
        note(health.last, sums(text), performance.now() / 1000);
        list = await models(true);
      }
    } catch {
      // The next look tells.
    }
    if (!gone && (health.last || !health.reachable)) show(list);
  };
  health.addEventListener("look", looked);
  await health.look();
  return {
    unmount() {
      gone = true;
      health.removeEventListener("look", looked);
    },
  };
}
