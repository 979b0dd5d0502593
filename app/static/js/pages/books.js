// The Books page: a new book from a file or a text, the list of books, and one book with its chapters and sentences. A
// book is a job of the API (/v1/audio/jobs), so everything here survives a reload.

import { ApiError, call, details, errorBox, getJson, hasKey, health, limitOf, models, serverVoice, speaksClones, voices } from "../api.js";
import { Track, player } from "../player.js";
import { ROOT, announce, button, clock, confirm, debounce, dialog, download, h, icon, language, loadTexts, notify, number, store, t } from "../ui.js";
import { forPlayer, read } from "../voices/sound.js";
import { modelSelect, modelToUse, voiceSelect } from "./speak.js";

const PATH = "/v1/audio/jobs";
const LIST_EVERY_MS = 3000;
const RETRY_MS = 2000; // between two tries to follow a book
const FIRST_EVENT_MS = 5000; // a proxy that holds events back longer makes the page ask instead
const REFRESH_MS = 700; // at most so often are the chapters read while sentences arrive
const SHOWN = 100; // sentences of a chapter at first
const LOOKS = { completed: "ok", done: "ok", failed: "bad", cancelled: "warn", paused: "warn" };
const ENDED = ["completed", "failed", "cancelled"];

const STYLE = `
.book-form { display: grid; gap: var(--sp-4) var(--sp-5); grid-template-columns: minmax(0, 1fr) 320px; align-items: start; }
.book-drop { border: 2px dashed var(--edge); border-radius: var(--r-l); padding: var(--sp-4); display: grid; gap: var(--sp-2); justify-items: center; text-align: center; }
.book-drop[data-over] { border-color: var(--accent); background: var(--sunken); }
.book-drop strong { overflow-wrap: anywhere; }
.book-form textarea { width: 100%; min-height: 160px; }
.book-form fieldset { border: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: var(--sp-1) var(--sp-4); }
.book-form legend { padding: 0; font-weight: 600; font-size: 0.875rem; }
.book-form .primary { min-height: 48px; flex: 1; }
.books, .chapters { display: grid; grid-template-columns: minmax(0, 1fr); gap: var(--sp-2); }
.book { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: var(--sp-2) var(--sp-3); align-items: center; }
.book a { font-weight: 600; overflow-wrap: anywhere; min-height: 24px; }
.book progress, .book-card progress { grid-column: 1 / -1; width: 100%; height: 10px; }
.book .hint { grid-column: 1 / -1; }
.book-card h2 { overflow-wrap: anywhere; }
.book-card h2:focus { outline: none; }
.chapter { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: var(--sp-2) var(--sp-3); align-items: center; }
.chapter h3 { overflow-wrap: anywhere; }
.chapter .tools { grid-column: 1 / -1; }
.chapter .tools select, .chapter .tools .pick { flex: 1 1 160px; min-width: 0; max-width: 300px; }
.sentences { grid-column: 1 / -1; display: grid; grid-template-columns: minmax(0, 1fr); border-block-start: 1px solid var(--line); }
.sentence { display: grid; grid-template-columns: auto minmax(0, 1fr) auto; gap: var(--sp-1) var(--sp-2); align-items: start; padding-block: var(--sp-1); border-block-end: 1px solid var(--line); }
.sentence p { overflow-wrap: anywhere; }
.sentence > div, .sentence > .badge { align-self: center; }
.sentence .waits { color: var(--muted); }
@media (max-width: 900px) { .book-form { grid-template-columns: minmax(0, 1fr); } }
`;
const sheet = new CSSStyleSheet();
sheet.replaceSync(STYLE);

let draft = { text: "", file: null }; // a file can't be stored, so it is only kept until a reload

/** The remaining time in words. */
function left(value_s) {
  if (value_s < 90) return t("books.left_s", { s: Math.max(1, Math.round(value_s)) });
  if (value_s < 5400) return t("books.left_min", { m: Math.round(value_s / 60) });
  return t("books.left_h", { h: number(value_s / 3600, 1) });
}

/** The length of audio as 1:02:03 or 2:03. */
const length = (value_s) => (value_s < 3600 ? clock(value_s) : `${Math.floor(value_s / 3600)}:${clock(value_s % 3600).padStart(5, "0")}`);

/** The name of a file format, with what it is good for. */
function formatName(format) {
  const about = t(`books.format.${format}`);
  return about.startsWith("books.") ? format.toUpperCase() : `${format.toUpperCase()}: ${about}`;
}

const badge = (status) => h("span", { class: `badge ${LOOKS[status] ?? ""}` }, t(`books.status.${status}`));
const titleOf = (job) => job.title || t("books.untitled");
const active = (job) => job.status === "queued" || job.status === "running";

/** What a person can read about the progress of a book. */
function progressText(job) {
  const { progress, result } = job;
  if (result) return t("books.made", { length: length(result.seconds) });
  const parts = [t(progress.planned ? "books.spoken" : "books.spoken_so_far", { n: progress.sentences_total, done: progress.sentences_done })];
  if (progress.sentences_failed) parts.push(t("books.failed_sentences", { n: progress.sentences_failed }));
  if (active(job) && progress.eta_s !== null) parts.push(left(progress.eta_s));
  return parts.join(" · ");
}

function progressBar(job) {
  const { sentences_done, sentences_total } = job.progress;
  return h("progress", { max: Math.max(1, sentences_total), value: job.status === "completed" ? Math.max(1, sentences_total) : sentences_done, "aria-label": t("books.progress_of", { title: titleOf(job) }) });
}

/** Saves a file of the API. Without a key the browser loads it itself, so that a long book needs no memory here. */
async function saveFile(path, name) {
  if (!hasKey()) {
    const link = h("a", { href: ROOT + path, download: "", hidden: true });
    document.body.append(link);
    link.click();
    return link.remove();
  }
  const answer = await call(path);
  const given = /filename\*=UTF-8''([^;]+)/.exec(answer.headers.get("content-disposition") ?? "");
  download(await answer.blob(), given ? decodeURIComponent(given[1]) : name);
}

const wordsOf = (problem) => new ApiError({ status: 500, ...problem }).headline;

export async function mount(main, { go }) {
  await Promise.all(["books/", "errors/"].map(loadTexts));
  if (!document.adoptedStyleSheets.includes(sheet)) document.adoptedStyleSheets.push(sheet);
  const limits = limitOf("jobs");
  const trouble = h("div");
  const view = h("div", { class: "stack" });
  const readSlot = h("div", { hidden: true });
  const showPlayed = () => player.track && import("../read.js").then(({ show: along }) => along(readSlot), () => {});
  main.append(trouble, readSlot, view);
  if (health.last && !limits) {
    view.append(h("p", { class: "empty" }, t("books.off")));
    return {};
  }

  let voiceList = [];
  let modelList = [];
  let shown = ""; // the id of the book that is shown; "" = the list
  let closed = false;
  let stopFollowing = () => {};
  let stopListening = () => {};

  const fail = (error, headline) => trouble.replaceChildren(errorBox(error, [], headline));
  const listed = Promise.all([voices(), models()]).then(([some, engines]) => {
    voiceList = some;
    modelList = engines;
  }).catch((error) => fail(error));
  const pickVoice = (chosen, props) => voiceSelect(voiceList, chosen, props, speaksClones(modelList));

  // ---- the list and the form for a new book

  const kept = { voice: "", model: "", format: "", captions: [], ...store.get("books", {}) };
  const keep = () => store.set("books", kept);
  const list = h("ul", { class: "books" });
  const more = button(t("books.more"), () => loadList(true));
  let jobs = [];
  let hasMore = false;

  function jobRow(job) {
    return h("li", { class: "card book", data: { job: job.id, status: job.status } },
      h("a", { href: `${ROOT}/books#${job.id}`, data: { route: "/books" } }, titleOf(job)),
      badge(job.status),
      job.status !== "completed" && progressBar(job),
      h("span", { class: "hint" }, [job.author, new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(1000 * job.created_at), progressText(job)].filter(Boolean).join(" · ")));
  }

  let listShown = "";
  function fillList() {
    const content = JSON.stringify(jobs);
    more.hidden = !hasMore;
    if (content === listShown) return;
    listShown = content;
    const focused = document.activeElement?.closest?.("[data-job]")?.dataset.job;
    list.replaceChildren(...jobs.map(jobRow));
    if (!jobs.length) list.append(h("li", { class: "empty" }, t("books.none")));
    if (focused) list.querySelector(`[data-job="${CSS.escape(focused)}"] a`)?.focus();
  }

  async function loadList(further = false) {
    try {
      const after = further && jobs.length ? `?after=${encodeURIComponent(jobs.at(-1).id)}` : "";
      const answer = await getJson(PATH + after);
      const old = new Map(jobs.map((job) => [job.id, job]));
      if (further) jobs = [...jobs, ...answer.data.filter((job) => !old.has(job.id))];
      else jobs = [...answer.data, ...(answer.has_more ? jobs.filter((job) => job.created_at < answer.data.at(-1).created_at) : [])];
      if (further || jobs.length === answer.data.length) hasMore = answer.has_more;
      fillList();
    } catch (error) {
      if (!jobs.length) trouble.replaceChildren(errorBox(error, [button(t("again"), () => { trouble.replaceChildren(); loadList(); })]));
    }
  }
  const timer = setInterval(() => shown || document.visibilityState !== "visible" || loadList(), LIST_EVERY_MS);

  function form() {
    const types = limits?.file_types ?? [];
    const input = h("input", { type: "file", accept: types.join(","), hidden: true, onchange: () => input.files[0] && take(input.files[0]) });
    const chosen = h("div", { class: "stack" });
    const drop = h("div", { class: "book-drop",
      ondragover: (event) => { event.preventDefault(); drop.dataset.over = ""; },
      ondragleave: () => delete drop.dataset.over,
      ondrop: (event) => {
        event.preventDefault();
        delete drop.dataset.over;
        if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
      } }, chosen, input);
    const text = h("textarea", { id: "book-text", rows: 6, value: draft.text || store.get("books.text", ""), spellcheck: "true", oninput: () => { draft.text = text.value; keepText(); } });
    const keepText = debounce(() => store.set("books.text", text.value), 400);
    const textField = h("div", { class: "field" }, h("label", { for: "book-text" }, t("books.or_text")), text);
    const title = h("input", { id: "book-title", autocomplete: "off", placeholder: t("books.from_file") });
    const author = h("input", { id: "book-author", autocomplete: "off", placeholder: t("books.from_file") });
    const wrong = h("div");
    const voiceBox = h("div", { class: "field" });
    const modelBox = h("div", { class: "field" });
    const format = h("select", { id: "book-format", onchange: () => { kept.format = format.value; keep(); } },
      (limits?.response_formats ?? []).map((each) => h("option", { value: each, selected: each === kept.format }, formatName(each))));
    const captions = (limits?.captions ?? []).map((each) => h("input", { type: "checkbox", value: each, checked: kept.captions.includes(each), onchange: () => {
      kept.captions = captions.filter((box) => box.checked).map((box) => box.value);
      keep();
    } }));

    function showFile() {
      const { file } = draft;
      const choose = button(t(file ? "books.other_file" : "books.choose_file"), () => input.click());
      choose.prepend(icon("import"));
      textField.hidden = Boolean(file);
      chosen.replaceChildren(
        h("strong", {}, file ? file.name : t("books.drop")),
        h("span", { class: "hint" }, file ? t("books.kb", { n: Math.ceil(file.size / 1000) }) : types.join(" ")),
        h("div", { class: "row wrap" }, choose, file && button(t("books.remove_file"), () => { draft.file = null; input.value = ""; showFile(); chosen.querySelector("button").focus(); }, { look: "quiet" })));
    }

    function take(file) {
      draft.file = file;
      wrong.replaceChildren();
      showFile();
      announce(t("books.chosen", { name: file.name }));
    }

    listed.then(() => {
      const voice = kept.voice || store.get("voice", serverVoice());
      voiceBox.replaceChildren(h("label", { for: "book-voice" }, t("speak.voice")), pickVoice(voice, { id: "book-voice", onchange: (event) => { kept.voice = event.target.value; keep(); } }));
      modelBox.replaceChildren(h("label", { for: "book-model" }, t("speak.model")), modelSelect(modelList, modelToUse(modelList, kept.model), { id: "book-model", onchange: (event) => { kept.model = event.target.value; keep(); } }));
    });

    let sending = false;
    async function make(paused) {
      if (sending) return;
      const { file } = draft;
      if (!file && !text.value.trim()) {
        wrong.replaceChildren(h("p", { class: "error headline" }, t("books.nothing")));
        announce(t("books.nothing"));
        return text.focus();
      }
      sending = true;
      wrong.replaceChildren();
      announce(t("books.sending"));
      const body = new FormData();
      const named = title.value.trim() || text.value.trim().split(/\s+/).slice(0, 6).join(" ");
      body.append("file", file ?? new File([text.value], "book.txt"));
      const fields = { title: file ? title.value.trim() : named, author: author.value.trim(), voice: voiceBox.querySelector(".pick")?.value, model: modelBox.querySelector("select")?.value, response_format: format.value, captions: kept.captions.join(","), paused: String(paused) };
      for (const [name, value] of Object.entries(fields)) if (value) body.append(name, value);
      try {
        const job = await (await call(PATH, { method: "POST", body })).json();
        draft = { text: "", file: null };
        store.set("books.text", "");
        go(`/books#${job.id}`);
      } catch (error) {
        wrong.replaceChildren(errorBox(error, [], t("books.not_made")));
        wrong.scrollIntoView({ block: "nearest" });
      } finally {
        sending = false;
      }
    }

    showFile();
    return h("form", { class: "book-form", "aria-labelledby": "book-new", onsubmit: (event) => { event.preventDefault(); make(false); } },
      h("div", { class: "stack" }, h("h2", { id: "book-new" }, t("books.new")), drop, textField),
      h("div", { class: "card stack" },
        h("div", { class: "field" }, h("label", { for: "book-title" }, t("books.title")), title),
        h("div", { class: "field" }, h("label", { for: "book-author" }, t("books.author")), author),
        voiceBox, modelBox,
        h("div", { class: "field" }, h("label", { for: "book-format" }, t("books.format")), format),
        h("fieldset", {}, h("legend", {}, t("save.captions")), captions.map((box) => h("label", { class: "check" }, box, box.value.toUpperCase()))),
        wrong,
        h("div", { class: "row wrap" }, h("button", { class: "primary" }, t("books.make")), button(t("books.look"), () => make(true)))));
  }

  function showList() {
    listShown = "";
    view.replaceChildren(form(), h("section", { class: "stack", "aria-labelledby": "book-list" }, h("h2", { id: "book-list" }, t("books.list")), list, h("div", { class: "row" }, more)));
    more.hidden = true;
    return loadList();
  }

  // ---- one book

  /** Shows a book and follows its state. focus: whether its title gets the focus. */
  async function showBook(id, focus) {
    let job;
    view.replaceChildren(h("p", { class: "hint", "aria-busy": "true" }, t("books.loading")));
    try {
      [job] = await Promise.all([getJson(`${PATH}/${encodeURIComponent(id)}`), listed]);
    } catch (error) {
      if (shown === id) {
        view.replaceChildren(backLink());
        fail(error);
      }
      return;
    }
    if (shown !== id || closed) return;
    const own = `${PATH}/${encodeURIComponent(id)}`;
    const waiting = new Set(); // called when a sentence or the book has changed
    let actsShown = ""; // the status whose buttons are shown
    let refreshing = 0;
    let asked = null; // the last request for the state
    const heading = h("h2", { tabindex: -1, id: "book-name" });
    const about = h("p", { class: "hint" });
    const state = h("div", { class: "row wrap" });
    const bar = h("div");
    const why = h("div");
    const acts = h("div", { class: "row wrap" });
    const files = h("div", { class: "row wrap" });
    const chapterList = h("ol", { class: "chapters" });
    const chapters = job.chapters.map(chapterRow);
    chapterList.append(...chapters.map((each) => each.element));
    view.replaceChildren(
      backLink(),
      h("article", { class: "card stack book-card", "aria-labelledby": "book-name", data: { shown: id } }, h("div", { class: "head" }, heading, state), about, bar, why, files, acts),
      h("section", { class: "stack", "aria-labelledby": "book-chapters" }, h("h2", { id: "book-chapters" }, t("books.chapters")), chapterList));
    fill(job);
    if (focus) heading.focus();
    stopFollowing = follow();
    if (chapters.length === 1) chapters[0].open();

    // the state of the book

    function fill(next) {
      const before = job;
      job = { ...next, chapters: next.chapters ?? job.chapters };
      heading.textContent = titleOf(job);
      about.textContent = [job.author, t("books.voice_is", { voice: nameOf(job.voice) }), job.response_format.toUpperCase()].filter(Boolean).join(" · ");
      state.replaceChildren(badge(job.status));
      bar.replaceChildren(progressBar(job), h("p", { class: "hint" }, progressText(job)));
      why.replaceChildren(...(job.error ? [h("div", { class: job.status === "failed" ? "error" : "banner" }, h("p", { class: "headline" }, t(`books.why.${job.status === "failed" ? "failed" : "paused"}`)), h("p", {}, wordsOf(job.error)), details(job.error.message))] : []));
      for (const [n, chapter] of job.chapters.entries()) chapters[n]?.fill(chapter);
      if (job.status !== actsShown) {
        actsShown = job.status;
        const held = acts.contains(document.activeElement) || files.contains(document.activeElement);
        const order = (name, look = "") => button(t(`books.${name}`), () => act(name), { look, data: { act: name } });
        const untouched = job.status === "paused" && !job.progress.sentences_done;
        acts.replaceChildren(...[
          active(job) && order("pause"),
          job.status === "paused" && (untouched ? button(t("books.start"), () => act("resume"), { look: "primary", data: { act: "resume" } }) : order("resume", "primary")),
          (job.status === "failed" || job.status === "cancelled") && order("retry", "primary"),
          (active(job) || job.status === "paused") && order("cancel"),
          button(t("books.delete"), remove, { look: "danger", data: { act: "delete" } }),
        ].filter(Boolean));
        const save = (label, path, look, name) => {
          const element = button(label, () => saveFile(path, name).catch((error) => fail(error)), { look });
          element.prepend(icon("save"));
          return element;
        };
        files.replaceChildren(...(job.status === "completed" ? [
          save(t("books.download"), `${own}/result`, "primary", titleOf(job)),
          ...(limits?.captions ?? []).map((kind) => {
            const element = save(kind.toUpperCase(), `${own}/captions?format=${kind}`, "quiet", `${titleOf(job)}.${kind}`);
            element.setAttribute("aria-label", t("books.captions_as", { format: kind.toUpperCase() }));
            return element;
          }),
        ] : []));
        if (held) (files.querySelector("button") ?? acts.querySelector("button"))?.focus();
        if (before.status !== job.status) announce(`${titleOf(job)}: ${t(`books.status.${job.status}`)}`);
      }
      for (const wake of waiting) wake();
    }

    const refresh = async () => {
      if (shown !== id || closed) return;
      asked = getJson(own);
      fill(await asked);
    };
    const refreshSoon = () => { refreshing ||= setTimeout(() => { refreshing = 0; refresh().catch(() => {}); }, REFRESH_MS); };

    const changed = (sentence) => chapters[sentence.chapter]?.changed(sentence);

    async function act(name) {
      trouble.replaceChildren();
      try {
        fill(await getJson(`${own}/${name}`, { method: "POST" }));
        if (!ENDED.includes(job.status)) stopFollowing = follow();
      } catch (error) {
        fail(error);
        refresh().catch(() => {});
      }
    }

    async function remove() {
      if (!(await confirm(t("books.delete_title", { title: titleOf(job) }), t("books.delete_text"), t("books.delete")))) return;
      stopFollowing();
      stopListening();
      clearTimeout(refreshing);
      refreshing = 0;
      await asked?.catch(() => {}); // the book is deleted all the same
      try {
        await call(own, { method: "DELETE" });
        notify(t("books.deleted", { title: titleOf(job) }));
        go("/books");
      } catch (error) {
        fail(error);
        if (!ENDED.includes(job.status)) stopFollowing = follow();
      }
    }

    const reloadRows = () => Promise.all(chapters.map((chapter) => chapter.reload().catch(() => {})));

    /** Follows the book by events. When they do not arrive, the page asks for the state instead. */
    function follow() {
      stopFollowing();
      let ended = ENDED.includes(job.status);
      let abort = new AbortController();
      const stop = () => { ended = true; abort.abort(); };
      (async () => {
        while (!ended) {
          abort = new AbortController();
          const late = setTimeout(() => abort.abort(), FIRST_EVENT_MS);
          try {
            const answer = await call(`${own}/events`, { signal: abort.signal });
            const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
            let rest = "";
            let first = true;
            for (;;) {
              const { done, value } = await reader.read();
              if (done) break;
              clearTimeout(late);
              rest += value;
              const parts = rest.split("\n\n");
              rest = parts.pop();
              for (const part of parts) {
                const data = /^data: (\{.*)/m.exec(part);
                if (ended || !data) continue;
                const event = JSON.parse(data[1]);
                if (event.job) fill(event.job);
                if (first) reloadRows(); // events only have what changes from now on
                first = false;
                for (const sentence of event.data ?? []) changed(sentence);
                if (event.data) refreshSoon();
                if (event.job && ENDED.includes(event.job.status)) ended = true;
              }
            }
          } catch (error) {
            if (error.status === 404) { ended = true; fail(error); }
          } finally {
            clearTimeout(late);
          }
          if (ended) return;
          await refresh().catch(() => {});
          await reloadRows();
          if (ENDED.includes(job.status)) return;
          await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
        }
      })();
      return stop;
    }

    // chapters

    function chapterRow(chapter) {
      const { index } = chapter;
      const name = chapter.title || t("books.chapter", { n: index + 1 });
      const status = h("span");
      const facts = h("span", { class: "hint" });
      const rows = h("ol", { class: "sentences", id: `sentences-${index}`, hidden: true, "aria-label": t("books.sentences_of", { name }) });
      const further = button(t("books.more_sentences"), () => loadRows());
      const toggle = button(t("books.sentences"), () => (rows.hidden ? open() : close()), { "aria-expanded": "false", "aria-controls": rows.id });
      const listen = button(t("books.listen"), () => listenTo(chapter), { "aria-label": t("books.listen_to", { name }) });
      listen.prepend(icon("play"));
      toggle.setAttribute("aria-label", t("books.sentences_of", { name }));
      const voice = pickVoice(chapter.voice ?? job.voice, { "aria-label": t("books.voice_of", { name }), onchange: async () => {
        try {
          fill(await getJson(own, { method: "PATCH", json: { chapters: [{ index, voice: voice.value }] } }));
          announce(t("books.voice_set", { name, voice: nameOf(voice.value) }));
        } catch (error) {
          fail(error);
        }
      } });
      const element = h("li", { class: "card chapter", data: { chapter: index } },
        h("div", {}, h("h3", {}, name), facts), status,
        h("div", { class: "row wrap tools" }, listen, toggle, voice), rows);
      const elements = new Map(); // index of a sentence -> its row

      async function loadRows() {
        const after = Math.max(-1, ...elements.keys());
        const answer = await getJson(`${own}/sentences?chapter=${index}&after=${after}&limit=${SHOWN}`).catch((error) => fail(error));
        if (!answer) return;
        const first = answer.data.find((sentence) => !elements.has(sentence.index));
        for (const sentence of answer.data) changed(sentence, true);
        further.remove();
        if (answer.has_more) rows.append(h("li", {}, further));
        if (!elements.size && !rows.firstChild) rows.append(h("li", { class: "hint" }, t("books.not_planned")));
        if (after >= 0 && first) elements.get(first.index).querySelector("button")?.focus();
      }

      function changed(sentence, add = false) {
        const old = elements.get(sentence.index);
        if (!old && !add) {
          if (!rows.hidden && elements.size < SHOWN && !further.isConnected) return changed(sentence, true);
          return;
        }
        const row = sentenceRow(sentence);
        const focused = old?.contains(document.activeElement) ? document.activeElement.dataset.act : "";
        elements.set(sentence.index, row);
        if (old) old.replaceWith(row);
        else {
          if (elements.size === 1) rows.replaceChildren();
          rows.append(row);
        }
        if (focused) row.querySelector(`[data-act="${focused}"]`)?.focus();
      }

      async function reload() {
        if (rows.hidden) return;
        const answer = await getJson(`${own}/sentences?chapter=${index}&limit=${Math.max(SHOWN, elements.size)}`);
        for (const sentence of answer.data) changed(sentence, true);
      }

      function open() {
        rows.hidden = false;
        toggle.setAttribute("aria-expanded", "true");
        return elements.size ? reload().catch(() => {}) : loadRows();
      }

      function close() {
        rows.hidden = true;
        toggle.setAttribute("aria-expanded", "false");
      }

      function fillRow(next) {
        chapter = next;
        status.replaceChildren(badge(next.status));
        facts.textContent = next.sentences_total
          ? [t("books.spoken", { n: next.sentences_total, done: next.sentences_done }), next.seconds ? length(next.seconds) : ""].filter(Boolean).join(" · ")
          : t("books.characters", { n: next.characters });
        listen.disabled = !next.sentences_done;
        if (next.voice && document.activeElement !== voice) voice.value = next.voice;
        voice.disabled = next.status === "done";
      }
      return { element, fill: fillRow, open, reload, changed };
    }

    // sentences

    function sentenceRow(sentence) {
      const done = sentence.status === "done";
      const place = number(sentence.index + 1);
      return h("li", { class: "sentence", data: { sentence: sentence.index, status: sentence.status, take: sentence.take } },
        done ? button(t("books.play_sentence", { n: place }), () => playSentence(sentence), { name: "play", look: "quiet", data: { act: "play" } }) : h("span", { class: "badge" }, t(`books.status.${sentence.status}`)),
        h("div", {}, h("p", { class: done ? "" : "waits" }, sentence.text), sentence.error && h("p", { class: "bad", title: sentence.error.message }, wordsOf(sentence.error))),
        button(t("books.redo_sentence", { n: place }), () => redo(sentence), { name: "again", look: "quiet", data: { act: "redo" } }));
    }

    const soundOf = async (index) => forPlayer(await read(await (await call(`${own}/sentences/${index}/audio`)).blob()));

    async function playSentence(sentence) {
      player.prepare();
      stopListening();
      try {
        player.load(Track.of(await soundOf(sentence.index), { about: { text: sentence.text, voice: nameOf(sentence.voice), model: job.model, body: { voice: sentence.voice } }, parts: [{ sentence: 0, text: sentence.text, start_s: 0 }] }));
      } catch (error) {
        fail(error);
      }
    }

    /** Plays a chapter from its start. Sentences that are not spoken yet are played as soon as they are. */
    async function listenTo(chapter) {
      player.prepare();
      stopListening();
      let stopped = false;
      const text = `${titleOf(job)}: ${chapter.title || t("books.chapter", { n: chapter.index + 1 })}`;
      const track = Object.assign(new Track(), { about: { text, voice: nameOf(chapter.voice ?? job.voice), model: job.model, body: { voice: chapter.voice ?? job.voice } } });
      stopListening = () => (stopped = true);
      player.load(track);
      try {
        let after = -1;
        while (!stopped && !closed && player.track === track) {
          const { data } = await getJson(`${own}/sentences?chapter=${chapter.index}&after=${after}&limit=${SHOWN}`);
          const next = data.findIndex((sentence) => sentence.status === "pending");
          for (const sentence of data.slice(0, next < 0 ? data.length : next)) {
            if (stopped || player.track !== track) return;
            after = sentence.index;
            if (sentence.status !== "done") continue;
            track.parts.push({ sentence: track.parts.length, text: sentence.text, start_s: track.seconds });
            track.append(await soundOf(sentence.index));
            track.append(new Int16Array(Math.round(sentence.pause_s * 24_000)));
          }
          if (next < 0 && (data.length === 0 || job.chapters[chapter.index].status === "done")) {
            if (data.length < SHOWN) break;
          } else if (next >= 0 || data.length === 0) {
            if (!active(job)) break;
            await new Promise((resolve) => {
              const wake = () => { waiting.delete(wake); resolve(); };
              waiting.add(wake);
              setTimeout(wake, LIST_EVERY_MS);
            });
          }
        }
      } catch (error) {
        fail(error);
      } finally {
        track.end();
      }
    }

    async function redo(sentence) {
      await dialog(t("books.redo_title"), (close) => {
        const text = h("textarea", { id: "redo-text", rows: 4, value: sentence.text, autofocus: true });
        const voice = pickVoice(sentence.voice, { id: "redo-voice" });
        const wrong = h("div");
        return h("form", { class: "stack", onsubmit: async (event) => {
          event.preventDefault();
          const body = {};
          if (text.value.trim() && text.value !== sentence.text) body.text = text.value;
          if (voice.value !== sentence.voice) body.voice = voice.value;
          try {
            changed(await getJson(`${own}/sentences/${sentence.index}/redo`, { json: body }));
          } catch (error) {
            wrong.replaceChildren(errorBox(error));
            return text.focus();
          }
          close();
          announce(t("books.redone"));
          await refresh().catch(() => {});
          stopFollowing = follow();
        } },
        h("div", { class: "field" }, h("label", { for: "redo-text" }, t("speak.text")), text),
        h("div", { class: "field" }, h("label", { for: "redo-voice" }, t("speak.voice")), voice),
        h("p", { class: "hint" }, t("books.redo_hint")),
        wrong,
        h("div", { class: "row end" }, button(t("cancel"), () => close()), h("button", { class: "primary" }, t("books.redo"))));
      });
      view.querySelector(`[data-sentence="${sentence.index}"] [data-act=redo]`)?.focus(); // the row was made anew
    }
  }

  const nameOf = (id) => voiceList.find((voice) => voice.id === id)?.name ?? id;
  const backLink = () => h("div", {}, h("a", { class: "button quiet", href: `${ROOT}/books`, data: { route: "/books" } }, icon("back"), t("books.back")));

  function show(id, focus) {
    stopFollowing();
    stopListening();
    trouble.replaceChildren();
    shown = id;
    return id ? showBook(id, focus) : showList();
  }

  player.addEventListener("change", showPlayed);
  if (!location.hash) show("", false);
  return {
    hash(id) {
      show(id, true);
      if (!id) main.querySelector("h1")?.focus();
    },
    unmount() {
      closed = true;
      player.removeEventListener("change", showPlayed);
      clearInterval(timer);
      stopFollowing();
      stopListening();
    },
  };
}
