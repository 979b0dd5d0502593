// The Trim step: two handles on the waveform, two fields and keys select the part of a recording that is used.

import { paint } from "../dock.js";
import { player } from "../player.js";
import { Track } from "../takes.js";
import { button, field, h, number, seconds, t } from "../ui.js";
import { cleanest, extremes, forPlayer, goodLength, lengthRange, levels, quietNear } from "./sound.js";

const SNAP_S = 0.15; // a handle snaps to the quietest moment within this distance
const STEP_S = { ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05, PageUp: 1, PageDown: -1 };
const CROWDED_S = 45; // in longer recordings the handles are too close together: a zoom button is shown

/** Seconds of "1:23.4", "83,4" or "83.4 s"; NaN when the text is not a time. */
function readTime(text) {
  const parts = text.trim().replace(/\s*s$/, "").replace(",", ".").split(":");
  if (parts.length > 3 || !parts.every((part) => /^\d+(\.\d+)?$/.test(part.trim()))) return Number.NaN;
  return parts.reduce((sum, part) => 60 * sum + Number(part), 0);
}

/** A time in seconds as text: "1:23.4", or "23.4" below a minute. */
function showTime(value) {
  const minutes = Math.floor(value / 60);
  const rest = number(value - 60 * minutes, 2);
  return minutes ? `${minutes}:${value - 60 * minutes < 10 ? "0" : ""}${rest}` : rest;
}

/**
 * Creates the Trim step. Resolves to { element, span() -> { from_s, to_s }, keys(event), close() }.
 * sound: the recording. span: the part selected at first, or null. changed(span) is called on each change.
 */
export async function trim(sound, span, changed) {
  const total_s = sound.samples.length / sound.rate;
  const level = levels(sound);
  const track = Track.of(await forPlayer(sound), { about: { text: t("voices.sample") } });
  const range = lengthRange();
  let { from_s, to_s } = span ?? cleanest(sound);
  let view = { from_s: 0, to_s: total_s };
  let playing = false;

  const screen = h("canvas.trim-screen", { "aria-hidden": "true" });
  const before = h("div.trim-shade");
  const after = h("div.trim-shade");
  const handle = (edge) => h("div", { class: `trim-handle ${edge}`, role: "slider", tabindex: 0, "aria-label": t(`trim.${edge}`), "aria-describedby": "trim-keys", data: { edge } });
  const handles = { from: handle("from"), to: handle("to") };
  const wave = h("div.trim-wave", {}, screen, before, after, handles.from, handles.to);
  const timeField = (edge) => h("input", { id: `trim-${edge}`, inputmode: "decimal", autocomplete: "off", size: 7, onchange: (event) => {
    const value = readTime(event.target.value);
    if (!Number.isNaN(value)) move(edge, value, { redraw: false });
    show(edge);
  } });
  const fields = { from: timeField("from"), to: timeField("to") };
  const length = h("output.badge", { for: "trim-from trim-to" });
  const listen = button(t("dock.play"), () => toggle());
  const zoom = button(t("trim.zoom"), () => {
    const whole = view.to_s - view.from_s >= total_s - 0.01;
    view = whole ? around() : { from_s: 0, to_s: total_s };
    zoom.setAttribute("aria-pressed", String(whole));
    draw();
    show();
  }, { "aria-pressed": "false", hidden: total_s < CROWDED_S });
  const element = h("div.stack.trim", {},
    wave,
    h("div.trim-tools", {},
      listen,
      field(t("trim.from"), fields.from),
      field(t("trim.to"), fields.to),
      length,
      h("div.row", {},
        button(t("trim.cleanest"), () => { ({ from_s, to_s } = cleanest(sound)); if (zoom.getAttribute("aria-pressed") === "true") { view = around(); draw(); } show(); }, { look: "quiet" }),
        zoom),
    ),
    h("p.hint", { id: "trim-keys" }, t("trim.keys")),
  );

  const peak = extremes(sound, 0, total_s).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  let frame = 0;
  let drawn = ""; // the view and width of the columns kept in `columns`
  let columns = new Map();

  function draw() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      const span_s = view.to_s - view.from_s;
      const at_s = player.track === track ? player.at_s : from_s;
      const shown = JSON.stringify([view, screen.clientWidth, devicePixelRatio]);
      if (shown !== drawn) columns = new Map();
      drawn = shown;
      paint(screen, {
        end: 1,
        played: Math.max(0, Math.min(1, (at_s - view.from_s) / span_s)),
        peak,
        extremes(from, to) {
          if (!columns.has(from)) columns.set(from, extremes(sound, view.from_s + from * span_s, view.from_s + to * span_s));
          return columns.get(from);
        },
      });
    });
  }
  const resized = new ResizeObserver(draw);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function around() {
    const margin_s = Math.max(2, 0.4 * (to_s - from_s));
    return { from_s: Math.max(0, from_s - margin_s), to_s: Math.min(total_s, to_s + margin_s) };
  }

  const x_of = (at_s) => Math.max(0, Math.min(100, (100 * (at_s - view.from_s)) / (view.to_s - view.from_s)));
  const s_of = (event) => {
    const box = wave.getBoundingClientRect();
    return view.from_s + ((event.clientX - box.left) / box.width) * (view.to_s - view.from_s);
  };

  /** Moves an edge. The other edge moves too when the part would become too long or too short. */
  function move(edge, to, { redraw = true } = {}) {
    const least_s = Math.min(range.minimum, total_s);
    const at = Math.max(0, Math.min(total_s, to));
    if (edge === "from") {
      from_s = Math.min(at, total_s - least_s);
      to_s = Math.min(Math.max(to_s, from_s + least_s), from_s + range.maximum);
    } else {
      to_s = Math.max(at, least_s);
      from_s = Math.max(Math.min(from_s, to_s - least_s), to_s - range.maximum);
    }
    if (from_s < view.from_s || to_s > view.to_s) {
      view = around();
      draw();
    }
    if (redraw) show();
  }

  function show(committed = "") {
    for (const [edge, value] of [["from", from_s], ["to", to_s]]) {
      handles[edge].style.insetInlineStart = `${x_of(value)}%`;
      handles[edge].setAttribute("aria-valuemin", 0);
      handles[edge].setAttribute("aria-valuemax", hundredths(total_s));
      handles[edge].setAttribute("aria-valuenow", hundredths(value));
      handles[edge].setAttribute("aria-valuetext", seconds(value));
      // A field that is being edited keeps its text.
      if (document.activeElement !== fields[edge] || edge === committed) fields[edge].value = showTime(value);
    }
    before.style.insetInlineStart = 0;
    before.style.inlineSize = `${x_of(from_s)}%`;
    after.style.insetInlineStart = `${x_of(to_s)}%`;
    after.style.inlineSize = `${100 - x_of(to_s)}%`;
    const length_s = to_s - from_s;
    const { from, to } = goodLength();
    const good = length_s >= from && length_s <= to;
    length.textContent = t(good ? "trim.length_good" : "server.seconds", { s: number(length_s, 1) });
    length.className = good ? "badge ok" : "badge warn";
    changed({ from_s, to_s });
  }

  const hundredths = (value) => Math.round(100 * value) / 100;

  // -- listening

  function toggle() {
    if (playing) return player.pause();
    const within = player.track === track && player.at_s > from_s && player.at_s < to_s - 0.05;
    player.load(track, { at_s: within ? player.at_s : from_s });
  }

  function showPlayed() {
    const mine = player.track === track;
    playing = mine && player.playing;
    listen.textContent = t(playing ? "dock.pause" : "dock.play");
    draw();
    if (playing && player.at_s >= to_s) {
      player.pause();
      player.seek(to_s);
    }
  }

  // -- the pointer

  let held = null;
  wave.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const edge = event.target.dataset?.edge;
    if (!edge) {
      player.load(track, { at_s: Math.max(0, Math.min(total_s, s_of(event))), play: playing });
      return;
    }
    held = { edge, from: event.clientX };
    wave.setPointerCapture(event.pointerId);
    handles[edge].focus();
    event.preventDefault();
  });
  wave.addEventListener("pointermove", (event) => held && move(held.edge, Math.max(view.from_s, Math.min(view.to_s, s_of(event)))));
  const drop = (event) => {
    if (!held) return;
    const { edge, from } = held;
    held = null;
    if (event.clientX !== from && !event.altKey) move(edge, quietNear(level, edge === "from" ? from_s : to_s, SNAP_S));
  };
  wave.addEventListener("pointerup", drop);
  wave.addEventListener("pointercancel", drop);

  // -- keys: some act on the focused handle; [ ] and Space act everywhere except in text fields

  function keys(event) {
    if (event.ctrlKey || event.metaKey) return false;
    const edge = event.target.dataset?.edge;
    if (edge && event.key in STEP_S) {
      const step = STEP_S[event.key] * (event.shiftKey && event.key.startsWith("Arrow") ? 10 : 1);
      move(edge, (edge === "from" ? from_s : to_s) + step);
      return true;
    }
    if (edge && (event.key === "Home" || event.key === "End")) {
      move(edge, event.key === "Home" ? 0 : total_s);
      return true;
    }
    if (event.key === "[" || event.key === "]") {
      if (player.track === track) move(event.key === "[" ? "from" : "to", player.at_s);
      return true;
    }
    if (event.key === " ") {
      toggle();
      return true;
    }
    return false;
  }
  wave.addEventListener("keydown", (event) => {
    if (!keys(event)) return;
    event.preventDefault();
    event.stopPropagation();
  });

  player.addEventListener("change", showPlayed);
  return {
    element,
    span: () => ({ from_s, to_s }),
    keys,
    shown() {
      resized.observe(screen);
      dark.addEventListener("change", draw);
      if (total_s >= CROWDED_S) zoom.click();
      show();
      showPlayed();
    },
    close() {
      player.removeEventListener("change", showPlayed);
      player.unload(track);
      resized.disconnect();
      dark.removeEventListener("change", draw);
    },
  };
}
