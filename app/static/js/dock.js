// The player bar at the bottom of every page.

import { nameOf } from "./api.js";
import { player } from "./player.js";
import { speech } from "./speech.js";
import { button, clock, debounce, h, icon, notify, number, t } from "./ui.js";

const LEAST_SPAN_S = 10;

/**
 * Draws a waveform on a canvas. Null erases it. All positions are fractions of the width.
 * end: where the sound ends. played: the position of the player. extremes(from, to) -> [lowest, highest] sample.
 */
export function paint(canvas, shape) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const brush = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name).trim();
  brush.clearRect(0, 0, width, height);
  if (!shape) return;
  const step = Math.max(2, Math.round(3 * ratio));
  const played_x = shape.played * width;
  const scale = 0.48 / Math.max(0.2, shape.peak); // enlarges quiet speech, but not silence
  brush.fillStyle = colour("--rest");
  brush.globalAlpha = 0.5;
  brush.fillRect(0, Math.floor(height / 2), width, 1);
  brush.globalAlpha = 1;
  for (let x = 0; x < shape.end * width; x += step) {
    const [low, high] = shape.extremes(x / width, (x + step) / width);
    const [top, bottom] = [(0.5 - high * scale) * height, (0.5 - low * scale) * height];
    const past = x < played_x;
    brush.fillStyle = colour(past ? "--accent" : "--rest");
    brush.fillRect(x, top, past ? Math.max(1, 2 * ratio) : ratio, Math.max(ratio, bottom - top));
  }
  brush.fillStyle = colour("--text");
  brush.fillRect(Math.min(width - 2 * ratio, played_x), 0, 2 * ratio, height);
}

/** The waveform of a track. When a growing track fills the canvas, the time span grows by half. */
class Wave {
  #span_s = LEAST_SPAN_S;
  #track = null;
  #frame = 0;

  constructor(canvas) {
    this.canvas = canvas;
    this.marker = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get span_s() {
    return this.#span_s;
  }

  show(track, at_s) {
    if (track !== this.#track) {
      this.#track = track;
      this.#span_s = LEAST_SPAN_S;
    }
    this.at_s = at_s;
    if (track) {
      if (track.ended) this.#span_s = Math.max(track.seconds, 1);
      else while (track.seconds > this.#span_s) this.#span_s *= 1.5;
    }
    this.draw();
  }

  draw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  #paint() {
    const track = this.#track;
    paint(this.canvas, track && {
      end: track.seconds / this.#span_s,
      played: this.at_s / this.#span_s,
      peak: track.peak,
      extremes: (from, to) => track.extremes(from * this.#span_s, to * this.#span_s),
    });
  }
}

/** Saves a track as a file, or asks for the format. The code is loaded when it is needed. */
export const saveMenu = async (track, format) => {
  try {
    const { save, saveMenu: menu } = await import("./save.js");
    return await (format ? save(track, format) : menu(track));
  } catch {
    notify(t("error.offline"));
  }
};

export function mount(dock) {
  const toggle = button(t("dock.play"), () => player.toggle(), { name: "play", look: "primary round" });
  const canvas = h("canvas", { "aria-hidden": "true" });
  const wave = new Wave(canvas);
  const slider = h("div.wave", { role: "slider", tabindex: 0, "aria-label": t("dock.position"), "aria-valuemin": 0 }, canvas);
  const time = h("span.time");
  const title = h("span.what");
  const ab = h("div.ab", { role: "group", "aria-label": t("ab.title"), hidden: true });
  const volume = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: player.volume, "aria-label": t("dock.volume"), oninput: (event) => (player.volume = Number(event.target.value)) });
  const keep = button(t("save"), () => player.track && saveMenu(player.track), { look: "quiet save" });
  keep.prepend(icon("save"));
  const stopper = () => player.track?.stopper?.();
  const halt = button(t("dock.stop"), () => stopper()?.(), { name: "stop", look: "round stop", hidden: true });
  const shut = button(t("dock.close"), () => {
    stopper()?.();
    player.unload(player.track);
    document.querySelector("main h1").focus({ preventScroll: true });
  }, { name: "close", look: "quiet shut" });
  dock.replaceChildren(toggle, halt, h("div.track", {}, title, slider), time, ab, h("label.volume", {}, icon("volume"), volume), keep, shut);

  const seek = (event) => {
    const box = canvas.getBoundingClientRect();
    player.seek(((event.clientX - box.left) / box.width) * wave.span_s);
  };
  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    seek(event);
  });
  slider.addEventListener("pointermove", (event) => slider.hasPointerCapture(event.pointerId) && seek(event));
  slider.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: player.at_s - 1, ArrowDown: player.at_s - 1, ArrowRight: player.at_s + 1, ArrowUp: player.at_s + 1, PageUp: player.at_s + 10, PageDown: player.at_s - 10, Home: 0, End: player.track?.seconds }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    player.seek(to);
  });

  const abButtons = () => {
    const { pair } = player;
    ab.hidden = !pair;
    if (!pair) return ab.replaceChildren();
    const held = ab.contains(document.activeElement) ? document.activeElement.dataset.ab : null;
    ab.replaceChildren(...(pair.blind
      ? [button(t("ab.swap"), () => player.swap(), { data: { ab: "swap" }, title: t("ab.swap_key") }), button(t("ab.pick"), () => pair.pick(), { data: { ab: "pick" }, look: "primary" })]
      : ["A", "B"].map((name, n) => button(name, () => pair.on !== n && player.swap(), { "aria-pressed": String(pair.on === n), data: { ab: n } }))));
    if (held) ab.querySelector(`[data-ab="${held}"]`)?.focus();
  };

  let shownIcon = null;
  let shownPair = "";
  let watched = null; // the track whose events are listened to
  const refresh = () => {
    const { track } = player;
    dock.hidden = !track;
    const held = halt === document.activeElement && !stopper();
    halt.hidden = !stopper();
    if (held) toggle.focus();
    document.documentElement.classList.toggle("docked", Boolean(track));
    if (!track) return;
    if (track !== watched) {
      watched?.removeEventListener("grow", slow);
      watched?.removeEventListener("end", refresh);
      track.addEventListener("grow", slow);
      track.addEventListener("end", refresh);
      watched = track;
    }
    const look = player.playing ? "pause" : "play";
    if (shownIcon !== look) {
      toggle.replaceChildren(icon(look));
      toggle.setAttribute("aria-label", t(`dock.${look}`));
      toggle.title = t(`dock.${look}`);
      shownIcon = look;
    }
    const pairNow = player.pair ? `${player.pair.on}${Boolean(player.pair.blind)}${player.pair.tracks.map((each) => each.id)}` : "";
    if (pairNow !== shownPair) {
      shownPair = pairNow;
      abButtons();
    }
    const blind = player.pair?.blind;
    const at_s = player.at_s + 0.02;
    const written = track.timed.findLast((each) => each.sentences?.[0]?.start <= at_s)?.sentences.findLast((each) => each.start <= at_s);
    const part = player.at_s > 0 && (written ?? track.parts.findLast((each) => each.start_s <= at_s));
    const words = blind ? t("ab.blind") : part ? part.text : [nameOf(track.about?.voice), track.about?.text].filter(Boolean).join(" · ");
    if (title.textContent !== words) title.textContent = words;
    time.textContent = `${clock(player.at_s)} / ${clock(track.seconds)}`;
    slider.setAttribute("aria-valuemax", Math.round(track.seconds));
    slider.setAttribute("aria-valuenow", Math.round(player.at_s));
    slider.setAttribute("aria-valuetext", t("dock.at", { s: number(player.at_s, 0), of: number(track.seconds, 0) }));
    dock.dataset.underruns = player.underruns;
    dock.dataset.playing = player.playing;
    dock.dataset.sink = player.kind;
    wave.show(track, player.at_s);
  };
  const slow = debounce(refresh, 40);
  player.addEventListener("change", refresh);
  speech.addEventListener("change", refresh);
  refresh();
  return () => {
    speech.removeEventListener("change", refresh);
    player.removeEventListener("change", refresh);
    watched?.removeEventListener("grow", slow);
    watched?.removeEventListener("end", refresh);
  };
}
