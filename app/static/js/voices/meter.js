// The level meter: RMS as a bar from -60 to 0 dBFS, the peak as a mark, a lamp that stays on after clipping.

import { announce, button, h, number, t } from "../ui.js";

const LOWEST_DB = -60;
const QUIET_DB = -36;
const LOUD_PEAK_DB = -3;
const CLIPPED = 0.999;
const CLIP_RUN = 3; // samples in a row
const PEAK_HOLD_MS = 1500;
const WINDOW_S = 0.3;
const JUDGED_MS = 1500; // the loudest level of this time counts, as people pause between words
const ANNOUNCE_MS = 3000;

const dB = (value) => Math.max(LOWEST_DB, 20 * Math.log10(value + 1e-9));
const place = (db) => `${(100 * (db - LOWEST_DB)) / -LOWEST_DB}%`;

/**
 * A level meter: { element, add(samples, rate), reset(), clipped, verdict: "quiet" | "good" | "loud" }.
 * add() draws at most 30 times a second, or 5 times with reduced motion.
 */
export function meter() {
  const bar = h("div.meter-bar");
  const tick = h("div.meter-peak");
  const scale = h("div.meter-scale", { role: "meter", "aria-label": t("meter"), "aria-valuemin": LOWEST_DB, "aria-valuemax": 0, "aria-valuenow": LOWEST_DB }, bar, tick);
  const word = h("span.meter-word");
  const lamp = button(t("meter.clipped"), () => reset(), { look: "lamp", hidden: true, title: t("meter.reset") });
  const element = h("div.meter", {}, scale, h("div.row", {}, word, lamp));
  const draw_ms = matchMedia("(prefers-reduced-motion: reduce)").matches ? 200 : 33;

  let recent = []; // { sum, count, peak } of each chunk in the window
  let run = 0;
  let peak_db = LOWEST_DB;
  let peak_ms = 0;
  let drawn_ms = 0;
  let announced_ms = 0;
  let judged = []; // [ms, rms in dB]
  let verdict = "";

  function reset() {
    lamp.hidden = true;
    run = 0;
    self.clipped = false;
  }

  function add(samples, rate) {
    let sum = 0;
    let peak = 0;
    for (const sample of samples) {
      const high = Math.abs(sample);
      sum += sample * sample;
      if (high > peak) peak = high;
      run = high >= CLIPPED ? run + 1 : 0;
      if (run >= CLIP_RUN) self.clipped = true;
    }
    recent.push({ sum, count: samples.length });
    while (recent.length > 1 && recent.reduce((all, chunk) => all + chunk.count, 0) > WINDOW_S * rate) recent.shift();
    const now = performance.now();
    if (dB(peak) >= peak_db || now - peak_ms > PEAK_HOLD_MS) {
      peak_db = dB(peak);
      peak_ms = now;
    }
    if (now - drawn_ms < draw_ms) return;
    drawn_ms = now;
    const rms_db = dB(Math.sqrt(recent.reduce((all, chunk) => all + chunk.sum, 0) / recent.reduce((all, chunk) => all + chunk.count, 0)));
    judged = [...judged.filter(([ms]) => now - ms < JUDGED_MS), [now, rms_db]];
    const loudest_db = Math.max(...judged.map(([, db]) => db));
    verdict = self.clipped || peak_db > LOUD_PEAK_DB ? "loud" : loudest_db < QUIET_DB ? "quiet" : "good";
    bar.style.inlineSize = place(rms_db);
    tick.style.insetInlineStart = place(peak_db);
    lamp.hidden = !self.clipped;
    element.dataset.level = verdict;
    const text = t(`meter.${verdict}`);
    scale.setAttribute("aria-valuenow", Math.round(rms_db));
    scale.setAttribute("aria-valuetext", `${number(rms_db, 0)} dB, ${text}`);
    if (word.textContent !== text) {
      word.textContent = text;
      if (now - announced_ms > ANNOUNCE_MS) {
        announced_ms = now;
        announce(text);
      }
    }
  }

  const self = { element, add, reset, clipped: false, get verdict() { return verdict; } };
  return self;
}
