// The step Sample: a recording, a file, or a video.

import { details, errorBox, health, limitOf } from "../../api.js";
import { LANGUAGES as PAGE_LANGUAGES, announce, button, field, h, icon, language as pageLanguage, languageName, seconds, t, tabs } from "../../ui.js";
import { cloneHelp } from "../clone_help.js";
import { playRecording, recordPanel } from "./record.js";
import { goodLength, lengthRange, levels, read } from "../sound.js";

const SILENT_DB = -55; // a recording without a louder moment has no voice in it
const ACCEPT = "audio/*,video/*,.wav,.mp3,.m4a,.ogg,.opus,.flac,.webm,.mp4";

/** Creates the step. wizard: see wizard.js, as for all steps. */
export function sample(wizard) {
  const { w, next, showFault, ask } = wizard;
  const languages = wizard.models.flatMap((model) => model.languages ?? []);
  const range = lengthRange();
  const tags = [...new Set([w.language, ...Object.keys(PAGE_LANGUAGES), ...languages.map((tag) => tag.split("-")[0])])];
  const named = tags.map((tag) => [tag, languageName(tag)]).sort(([, one], [, other]) => one.localeCompare(other, pageLanguage));
  const choose = () => {
    tag.hidden = spoken.value !== "";
    w.language = spoken.value || tag.value.trim() || w.language;
    recorded.script();
  };
  const spoken = h("select", { id: "wizard-language", onchange: choose },
    named.map(([code, name]) => h("option", { value: code, selected: code === w.language }, name)), h("option", { value: "" }, t("sample.language_other")));
  const tag = h("input", { "aria-label": t("language"), placeholder: t("language"), autocomplete: "off", hidden: true, onchange: choose });
  const wrong = h("div");
  if (w.refused) wrong.replaceChildren(errorBox(w.refused, [], t(w.source === "youtube" ? "fetch.failed" : "check.refused")));
  w.refused = null;
  const recorded = recordPanel(wizard);
  const uploaded = uploadPanel(wizard);
  const fetched = youtubePanel(wizard);
  const [tablist, ...panels] = tabs(t("wizard.sample"), [["record", t("sample.record"), recorded.element], ["upload", t("sample.upload"), uploaded.element], ["youtube", t("sample.youtube"), fetched.element]], w.source);
  recorded.instead(() => tablist.querySelector("[data-tab=upload]").click());
  const chosen = () => tablist.querySelector("[aria-selected=true]").dataset.tab;
  tablist.addEventListener("click", () => {
    showFault("");
    wrong.replaceChildren();
    if (chosen() !== "record") recorded.close();
  });
  return {
    content: [cloneHelp(wizard.models), wrong, h("div.field.narrow", {}, h("label", { for: "wizard-language" }, t("sample.language")), spoken, tag), h("div", {}, tablist, ...panels)],
    close: recorded.close,
    async valid() {
      wrong.replaceChildren();
      if (!spoken.value && !tag.value.trim()) return [t("sample.language_missing"), tag];
      const kind = chosen();
      if (kind === "youtube") {
        const found = fetched.valid();
        if (!found) w.source = "youtube";
        return found;
      }
      const { control, missing } = { record: recorded, upload: uploaded }[kind];
      if (w.from !== kind) return [missing, control];
      w.source = kind;
      if (w.sound && w.sound.samples.length / w.sound.rate < range.minimum) return [t("sample.short", { s: range.minimum, ...goodLength() }), control];
      if (w.sound && Math.max(...levels(w.sound)) < SILENT_DB) return [t(kind === "record" ? "sample.silent" : "sample.silent_file"), control];
      if (!w.whole) return null;
      // This browser cannot read the file. Whether the server can is known only after a check.
      next.disabled = true;
      wrong.replaceChildren(h("p.hint", {}, h("progress", { "aria-label": t("check.running") }), " ", t("check.running")));
      try {
        await ask(wizard.signal());
        wrong.replaceChildren();
      } catch (error) {
        if (error.name === "AbortError" || error.param === "transcript") return null;
        wrong.replaceChildren(errorBox(error, [], t("check.refused")));
        return [t("sample.other"), control];
      } finally {
        next.disabled = false;
      }
      return null;
    },
  };
}

function uploadPanel(wizard) {
  const { w, showFault, setRecording } = wizard;
  const result = h("div.stack");
  const file = h("input", { type: "file", accept: ACCEPT, hidden: true, onchange: () => file.files[0] && open(file.files[0]) });
  const choose = button(t("choose_file"), () => file.click());
  const zone = h("div.drop", {}, icon("import"), h("p", {}, t("upload.drop")), choose, h("p.hint", {}, t("upload.hint")), file);
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.dataset.over = "";
  });
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => delete zone.dataset.over);
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });

  async function open(chosen) {
    showFault("");
    result.replaceChildren(h("p.hint", {}, t("upload.reading")));
    const visit = w.visits;
    let sound = null;
    try {
      sound = await read(chosen);
    } catch {
      // This browser cannot decode it. The server will.
    }
    if (visit !== w.visits) return;
    setRecording({ sound, file: chosen, whole: sound === null, source: "upload" });
    showFile();
    result.scrollIntoView({ block: "center" });
    announce([chosen.name, sound ? seconds(sound.samples.length / sound.rate) : t("upload.unread")].join(", "));
  }

  function showFile() {
    if (w.from !== "upload") return;
    const row = h("div.row.wrap", {},
      h("strong.quoted", {}, w.file.name),
      w.sound && h("span.badge.ok", {}, seconds(w.sound.samples.length / w.sound.rate)),
      w.sound && button(t("record.play"), () => playRecording(w.sound, w.file.name)));
    result.replaceChildren(row, ...(w.whole ? [h("p.hint", {}, t("upload.unread"))] : []));
  }
  showFile();
  return { element: h("div.stack", {}, zone, result), control: choose, missing: t("sample.upload_missing") };
}

function youtubePanel({ w }) {
  const off = health.last?.youtube && !health.last.youtube.on;
  const input = (name, props) => h("input", { id: `youtube-${name}`, autocomplete: "off", value: w[name], ...props, oninput: (event) => (w[name] = event.target.value) });
  const url = input("url", { type: "url", inputmode: "url", placeholder: "youtube.com/watch?v=…" });
  const start = input("start", { placeholder: "0:00" });
  const duration = input("duration", { inputmode: "decimal" });
  const transcript = h("textarea", { id: "youtube-transcript", rows: 3, value: w.transcript, oninput: () => (w.transcript = transcript.value) });
  const hint = (key) => h("span.hint", {}, t(key));
  const element = h("div.stack", {},
    off && h("div.banner", {}, h("p.headline", {}, t("youtube.off")), details(health.last.youtube.reason)),
    field(t("youtube.url"), url),
    h("div.pair", {}, field(t("youtube.start"), start, hint("youtube.start_hint")), field(t("youtube.duration"), duration, hint("youtube.duration_hint"))),
    field(t("youtube.transcript"), transcript, hint("youtube.transcript_hint")));
  return {
    element,
    valid() {
      if (w.url.trim() && !/^\w+:/.test(w.url.trim())) w.url = url.value = `https://${w.url.trim()}`;
      if (!/^https?:\/\/\S+\.\S+/.test(w.url.trim())) return [t("youtube.url_missing"), url];
      if (w.start.trim() && !/^[\d:.]+$/.test(w.start.trim())) return [t("youtube.start_wrong"), start];
      const { minimum = 0, maximum = Infinity } = limitOf("youtube_s") ?? {};
      if (!(Number(w.duration) >= minimum && Number(w.duration) <= maximum)) return [t("youtube.duration_wrong", { from: minimum, to: maximum }), duration];
      return null;
    },
  };
}
