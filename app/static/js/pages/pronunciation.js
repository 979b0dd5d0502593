// The Pronunciation page: the dictionary of the server or of one voice as a table. Entries can be heard, added, removed,
// imported from a tsv file and exported to one.

import { call, errorBox, nameOf, noChanges, serverVoice, voices } from "../api.js";
import { speech, whenListed } from "../speech.js";
import { announce, button, download, field as labelled, h, icon, loadTexts, notify, quoted, store, t } from "../ui.js";

const PATH = "/v1/audio/lexicon";
const SHOWN = 200; // rows; the search finds the others

/** Parses the format of lexicon.tsv. Returns the entries, and the numbers of the lines that can't be read. */
export function readTsv(text) {
  const entries = [];
  const wrong = [];
  text.replace(/^\ufeff/, "").split(/\r\n|\n|\r/).forEach((line, at) => {
    if (!line.trim() || line.trimStart().startsWith("#")) return;
    const [word, say, flags = ""] = line.split("\t");
    const found = /^(.*?)(?:(?:^| )ipa=(.*))?$/.exec(flags.trim());
    const names = found[1].trim().split(/ +/).filter(Boolean);
    if (say === undefined || names.some((name) => name !== "case" && name !== "ipa")) return wrong.push(at + 1);
    const entry = { word: word.trim().replace(/^\\/, ""), say: say.trim(), case_sensitive: names.includes("case"), ipa: found[2] ?? null };
    entries.push(names.includes("ipa") ? { ...entry, say: "", ipa: entry.say } : entry);
  });
  return { entries, wrong };
}

/** Returns entries in the format of lexicon.tsv. */
export function writeTsv(entries) {
  return entries.map(({ word, say, case_sensitive: cased, ipa }) => {
    const flags = [cased && "case", ipa && (say ? `ipa=${ipa}` : "ipa")].filter(Boolean).join(" ");
    return `${[/^[#\\]/.test(word) ? `\\${word}` : word, say || ipa, ...(flags ? [flags] : [])].join("\t")}\n`;
  }).join("");
}

const keyOf = (entry) => (entry.case_sensitive ? `=${entry.word}` : entry.word.toLowerCase());

/** Returns `before` with the entries `more`. An entry with the same word is replaced. */
function merged(before, more) {
  const all = new Map(before.map((entry) => [keyOf(entry), entry]));
  for (const entry of more) all.set(keyOf(entry), entry);
  return [...all.values()];
}

export async function mount(main) {
  await loadTexts("lexicon/");
  let entries = [];
  let etag = null; // of the entries that are shown; null = none were read
  let last = Promise.resolve(); // the last request that reads or changes entries
  let voiceList = [];
  let voice = ""; // "" = the dictionary of the server
  let closed = false;

  const path = () => (voice ? `${PATH}?voice=${encodeURIComponent(voice)}` : PATH);
  const [lacking, trouble] = [h("div"), h("div")];
  const problems = h("div");
  const choice = h("div.row.wrap");
  const search = h("input", { type: "search", class: "grow", placeholder: t("lexicon.search"), "aria-label": t("lexicon.search"), oninput: () => draw() });
  const rows = h("tbody");
  const more = h("p.hint", { role: "status" });
  const empty = h("p.empty", { hidden: true }, t("lexicon.empty"));
  const field = (id, key, props = {}) => {
    const input = h("input", { id, autocomplete: "off", ...props });
    return [labelled(t(key), input), input];
  };
  const [wordField, word] = field("lexicon-word", "lexicon.word", { required: true });
  const [sayField, say] = field("lexicon-say", "lexicon.say");
  const [ipaField, ipa] = field("lexicon-ipa", "lexicon.ipa");
  const cased = h("input", { type: "checkbox" });
  const hearing = whenListed(() => last);
  const form = h("form.card.stack", { "aria-label": t("lexicon.add"), onsubmit: (event) => {
    event.preventDefault();
    add();
  } },
    h("div.pair", {}, wordField, sayField),
    h("div.pair", {}, ipaField, h("label.check", {}, cased, t("lexicon.case"))),
    h("div.row.wrap", {}, h("button.primary", {}, t("lexicon.add")), button(t("lexicon.hear"), () => written().word && hear(written()))),
  );
  const file = h("input", { type: "file", accept: ".tsv,.txt,text/tab-separated-values,text/plain", hidden: true, "aria-label": t("lexicon.import"), onchange: () => file.files[0] && bring(file.files[0]) });
  const importing = button(t("lexicon.import"), () => file.click());
  importing.prepend(icon("import"));
  const table = h("table.engines", { "aria-label": t("lexicon.title") },
    h("thead", {}, h("tr", {}, ["lexicon.word", "lexicon.say", "lexicon.options"].map((key) => h("th", { scope: "col" }, t(key))), h("th", { scope: "col" }, h("span.unseen", {}, t("lexicon.actions"))))), rows);
  main.append(
    h("p.hint", {}, t("lexicon.hint")),
    lacking, trouble, choice, form,
    h("section.card.stack", { "aria-label": t("lexicon.entries") },
      h("div.row", {}, search),
      h("div.row.wrap", {}, importing, button(t("lexicon.export"), () => download(new Blob([writeTsv(entries)], { type: "text/tab-separated-values" }), "lexicon.tsv")), file),
      table, empty, more, problems),
  );

  const written = () => ({ word: word.value.trim(), say: say.value.trim(), case_sensitive: cased.checked, ipa: ipa.value.trim() || null });

  function draw() {
    const wanted = search.value.trim().toLowerCase();
    const found = entries.filter((entry) => !wanted || `${entry.word} ${entry.say}`.toLowerCase().includes(wanted));
    rows.replaceChildren(...found.slice(0, SHOWN).map((entry) => h("tr", {},
      h("th", { scope: "row", class: "quoted" }, entry.word),
      h("td.quoted", {}, entry.say),
      h("td", {}, entry.case_sensitive && h("span.badge", {}, t("lexicon.case")), entry.ipa && h("span.badge", { lang: "und-fonipa" }, `/${entry.ipa}/`)),
      h("td", {}, h("div.row.end", {},
        button(t("lexicon.hear_word", { word: entry.word }), () => hear(entry), { name: "play", look: "quiet" }),
        button(t("lexicon.remove", { word: entry.word }), () => remove(entry), { name: "delete", look: "quiet" }))),
    )));
    empty.hidden = entries.length > 0;
    table.hidden = entries.length === 0;
    more.textContent = found.length > SHOWN ? t("lexicon.more", { n: found.length - SHOWN }) : "";
  }

  async function use(answer) {
    const found = await answer.json();
    entries = found.entries;
    etag = (answer.headers.get("etag") ?? "").replace(/^W\//, ""); // a proxy that compresses makes the tag weak
    problems.replaceChildren(...(found.problems.length ? [h("div.banner", {}, h("p.headline", {}, t("lexicon.problems")), found.problems.map((text) => h("p", {}, quoted(text))))] : []));
    trouble.replaceChildren();
    lacking.replaceChildren(noChanges());
    if (!closed) draw();
  }

  // One request after the other, so that each change has the entries of the last one.
  const load = () => (last = last.then(read));

  async function read() {
    try {
      voiceList = await voices();
      await use(await call(path()));
    } catch (error) {
      trouble.replaceChildren(errorBox(error, [button(t("again"), load)]));
    }
  }

  /**
   * Stores what `change` makes of the entries. Returns false after an error. If another person has changed the
   * dictionary meanwhile, shows the new entries and a button that calls `repeat`.
   */
  function save(change, repeat, own = voice) {
    return (last = last.then(() => put(change, repeat, own)));
  }

  async function put(change, repeat, own) {
    if (own !== voice) [select.value, voice, etag] = [own, own, null]; // another dictionary was chosen meanwhile
    if (etag === null) await read();
    if (etag === null) return false;
    try {
      await use(await call(path(), { method: "PUT", headers: etag ? { "If-Match": etag } : {}, json: { entries: change(entries) } }));
      return true;
    } catch (error) {
      const conflict = error.status === 412;
      if (conflict) await read();
      trouble.replaceChildren(errorBox(error, conflict ? [button(t("lexicon.repeat"), repeat)] : [], conflict ? t("lexicon.conflict") : undefined));
      return false;
    }
  }

  async function add() {
    const entry = written();
    if (!(await save((now) => merged(now, [entry]), add))) return;
    announce(t("lexicon.saved", { word: entry.word }));
    if (keyOf(written()) !== keyOf(entry)) return; // the next entry is being written already
    for (const input of [word, say, ipa]) input.value = "";
    cased.checked = false;
    word.focus();
  }

  async function remove(entry) {
    const own = voice;
    let removed = [];
    const without = (now) => {
      removed = now.filter((each) => keyOf(each) === keyOf(entry));
      return now.filter((each) => keyOf(each) !== keyOf(entry));
    };
    if (!(await save(without, () => remove(entry)))) return;
    const restore = () => save((now) => merged(now, removed), restore, own);
    notify(t("lexicon.removed", { word: entry.word }), t("undo"), restore);
    search.focus();
  }

  async function bring(chosen) {
    const { entries: read, wrong } = readTsv(await chosen.text());
    file.value = "";
    if (read.length && !(await save((now) => merged(now, read), () => bring(chosen)))) return;
    const skipped = wrong.length ? ` ${t("lexicon.skipped", { lines: wrong.slice(0, 5).join(", ") })}` : "";
    notify(t("lexicon.imported", { n: read.length }) + skipped);
  }

  /** Speaks a word as the entry says, whether the entry is stored or not. */
  function hear(entry) {
    const id = voice || store.get("voice", serverVoice());
    hearing(() => speech.start({
      source: "preview",
      path: "/v1/audio/speech",
      body: { input: entry.word, lexicon: [entry], ...(id ? { voice: id } : {}) },
      facts: { kind: "speech", text: entry.word, voice: nameOf(id), model: "" },
      preview: true,
    }));
  }

  const changed = () => speech.showError(trouble, "preview");

  await load();
  const select = h("select", { id: "lexicon-voice", onchange: (event) => {
    voice = event.target.value;
    etag = null;
    load();
  } }, h("option", { value: "" }, t("voices.list")), voiceList.map((each) => h("option", { value: each.id }, each.name)));
  choice.append(h("label", { for: "lexicon-voice" }, t("lexicon.dictionary")), select);
  speech.addEventListener("change", changed);
  return {
    unmount() {
      closed = true;
      speech.removeEventListener("change", changed);
    },
    unsaved: () => Boolean(word.value.trim() && (say.value.trim() || ipa.value.trim())),
  };
}
