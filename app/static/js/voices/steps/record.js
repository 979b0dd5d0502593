// The microphone: the sample, and the spoken consent.

import { errorBox } from "../../api.js";
import { player } from "../../player.js";
import { Track } from "../../takes.js";
import { announce, button, clock, h, icon, number, t } from "../../ui.js";
import { meter } from "../meter.js";
import { Recorder, possible } from "../recorder.js";
import { script } from "../scripts.js";
import { forPlayer, lengthRange } from "../sound.js";

const STATEMENT_S = 1; // nobody can say the statement of consent in less

/** Why the microphone did not open, in words. */
const refusal = (error) => {
  const why = { NotAllowedError: "record.denied", NotFoundError: "record.none", NotReadableError: "record.used" }[error.name];
  return why ? t(why) : String(error.message);
};

/** Creates the panel that records the sample. */
export function recordPanel({ w, setRecording }) {
  const range = lengthRange();
  const recorder = new Recorder();
  let state = "closed"; // closed, listening, counting, recording
  let shownScript = 0;
  let counting = 0;
  let toUpload = () => {};
  const level = meter();
  level.element.hidden = true;
  const words = h("blockquote.script");
  const another = button(t("record.another"), () => { shownScript++; showScript(); }, { look: "quiet" });
  const text = h("div.stack", {}, h("p.hint", {}, t("record.read")), words, h("div.row", {}, another));
  const trouble = h("div");
  const devices = h("select", { "aria-label": t("record.device"), hidden: true, onchange: async () => {
    recorder.close();
    state = "closed";
    await open(devices.value);
  } });
  const label = h("span", {}, t("sample.record"));
  const start = h("button", { type: "button", class: "record", onclick: () => press() }, icon("record"), label);
  const mic = button(t("record.check"), () => (state === "closed" ? open() : stopListening()));
  const time = h("span.time", { hidden: true });
  const count = h("div.count-down", { "aria-hidden": "true", hidden: true });
  const bar = h("progress", { max: range.maximum, value: 0, hidden: true, "aria-label": t("record.time") });
  const result = h("div.row.wrap", { hidden: true });
  const element = h("div.stack");

  function showScript() {
    const found = script(w.language, shownScript);
    text.hidden = !found;
    words.lang = w.language;
    words.textContent = found ?? "";
  }

  function showResult() {
    const mine = w.from === "record" && w.sound;
    result.hidden = !mine || state === "recording";
    if (!mine) return;
    result.replaceChildren(h("span.badge.ok", {}, t("record.done", { s: number(w.sound.samples.length / w.sound.rate, 1) })), button(t("record.play"), () => playRecording(w.sound, t("record.own"))));
  }

  function look() {
    const live = state === "recording" || state === "counting";
    label.textContent = t(state === "recording" ? "stop" : state === "counting" ? "cancel" : w.from === "record" ? "record.again" : "sample.record");
    start.classList.toggle("live", live);
    mic.hidden = another.hidden = live;
    mic.textContent = t(state === "listening" ? "record.check_end" : "record.check");
    level.element.hidden = state === "closed";
    time.hidden = bar.hidden = state !== "recording";
    count.hidden = state !== "counting";
    devices.disabled = live;
    element.dataset.recorder = state;
    showResult();
    if (live) level.element.scrollIntoView({ block: "nearest" });
  }

  async function open(device = "") {
    trouble.replaceChildren();
    try {
      await recorder.open(device);
    } catch (error) {
      const box = errorBox(new Error(refusal(error)), [button(t("record.upload"), () => toUpload())]);
      trouble.replaceChildren(box);
      return false;
    }
    if (!element.isConnected) {
      recorder.close();
      return false;
    }
    state = "listening";
    level.reset();
    const all = await recorder.devices();
    devices.hidden = all.length < 2;
    devices.replaceChildren(...all.map((each) => h("option", { value: each.id, selected: each.id === recorder.device }, each.name)));
    look();
    return true;
  }

  function stopListening() {
    recorder.close();
    state = "closed";
    look();
  }

  async function press() {
    if (state === "recording") return finish();
    if (state === "counting") {
      clearTimeout(counting);
      state = "listening";
      return look();
    }
    player.pause();
    if (state === "closed" && !(await open())) return;
    state = "counting";
    look();
    const step = (left) => {
      if (state !== "counting") return;
      if (left === 0) return begin();
      count.textContent = left;
      announce(String(left));
      counting = setTimeout(step, 1000, left - 1);
    };
    step(3);
  }

  function begin() {
    state = "recording";
    level.reset();
    recorder.begin();
    announce(t("record.now"));
    look();
  }

  function finish() {
    const sound = recorder.end();
    recorder.close();
    state = "closed";
    if (sound.samples.length) setRecording({ sound, source: "record", words: text.hidden ? "" : words.textContent });
    announce(t("record.done", { s: number(sound.samples.length / sound.rate, 1) }));
    look();
  }

  recorder.addEventListener("chunk", ({ detail }) => {
    level.add(detail, recorder.rate);
    if (state !== "recording") return;
    time.textContent = `${clock(recorder.seconds)} / ${clock(range.maximum)}`;
    bar.value = recorder.seconds;
    if (recorder.seconds >= range.maximum) finish();
  });
  recorder.addEventListener("lost", () => (state === "recording" ? finish() : stopListening()));

  if (possible()) {
    element.append(text, h("div.row.wrap", {}, start, mic, time, devices), count, bar, level.element, trouble, result);
    look();
  } else {
    element.append(h("div.banner", {}, h("p.headline", {}, t("record.insecure")), h("p", {}, t("record.insecure_why")), h("div.row", {}, button(t("record.upload"), () => toUpload()))));
  }
  showScript();
  return {
    element, control: possible() ? start : element.querySelector("button"), missing: t("sample.record_missing"),
    script: showScript,
    instead: (run) => (toUpload = run),
    close() {
      clearTimeout(counting);
      if (state === "recording") finish();
      else if (state !== "closed") stopListening();
    },
  };
}

/** Creates the recorder of the spoken consent. */
export function statement({ w }) {
  const range = lengthRange();
  const recorder = new Recorder();
  const trouble = h("div");
  const result = h("div.row.wrap");
  const complain = (words) => trouble.replaceChildren(errorBox(new Error(words)));
  const level = meter();
  const time = h("span.time");
  level.element.hidden = time.hidden = true;
  const press = button(t("sample.record"), async () => {
    if (recorder.isOpen) return finish();
    trouble.replaceChildren();
    try {
      await recorder.open();
    } catch (error) {
      return complain(refusal(error));
    }
    recorder.begin();
    press.textContent = t("stop");
    level.element.hidden = time.hidden = false;
  });
  function finish() {
    const sound = recorder.end();
    recorder.close();
    level.element.hidden = time.hidden = true;
    press.textContent = t("record.again");
    if (sound.samples.length < STATEMENT_S * sound.rate) complain(t("consent.short"));
    else w.statement = sound;
    showResult();
  }
  function showResult() {
    result.replaceChildren(...(w.statement ? [
      h("span.badge.ok", {}, t("record.done", { s: number(w.statement.samples.length / w.statement.rate, 1) })),
      button(t("record.play"), () => playRecording(w.statement, t("consent.spoken"))),
      button(t("consent.remove"), () => { w.statement = null; showResult(); }, { look: "quiet" })] : []));
  }
  recorder.addEventListener("chunk", ({ detail }) => {
    level.add(detail, recorder.rate);
    time.textContent = clock(recorder.seconds);
    if (recorder.seconds >= range.maximum) finish();
  });
  recorder.addEventListener("lost", finish);
  showResult();
  return { element: h("div.stack", {}, h("p.hint", {}, t("consent.read")), h("blockquote.script", {}, t("consent.statement")), h("div.row.wrap", {}, press, time, result), level.element, trouble), close: () => recorder.isOpen && finish() };
}

/** Plays a recording in the dock. */
export async function playRecording(sound, text) {
  await player.prepare();
  player.load(Track.of(await forPlayer(sound), { about: { text } }));
}
