// The Books page: a new book from a file or a text, the list of books, and one book with its chapters and sentences. A
// book is a job of the API (/v1/audio/jobs), so everything here survives a reload.

import { errorBox, getJson, health, limitOf, models, speaksClones, voices } from "../api.js";
import { showBook } from "../books/book.js";
import { bookForm } from "../books/form.js";
import { PATH, badge, progressBar, progressText, titleOf } from "../books/state.js";
import { player } from "../player.js";
import { ROOT, button, h, language, loadTexts, t } from "../ui.js";
import { voiceSelect } from "./speak.js";

const LIST_EVERY_MS = 3000;

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

export async function mount(main, { go }) {
  await Promise.all(["books/", "errors/"].map(loadTexts));
  if (!document.adoptedStyleSheets.includes(sheet)) document.adoptedStyleSheets.push(sheet);
  const limits = limitOf("jobs");
  const trouble = h("div");
  const view = h("div.stack");
  const readSlot = h("div", { hidden: true });
  const showPlayed = () => player.track && import("../read.js").then(({ show: along }) => along(readSlot), () => {});
  main.append(trouble, readSlot, view);
  if (health.last && !limits) {
    view.append(h("p.empty", {}, t("books.off")));
    return {};
  }

  let voiceList = [];
  let modelList = [];
  let shown = ""; // the id of the book that is shown; "" = the list
  let leaving = new AbortController(); // is aborted when another book, or the list, is shown

  const fail = (error, headline) => trouble.replaceChildren(errorBox(error, [], headline));
  const listed = Promise.all([voices(), models()]).then(([some, engines]) => {
    voiceList = some;
    modelList = engines;
  }).catch((error) => fail(error));
  const pickVoice = (chosen, props) => voiceSelect(voiceList, chosen, props, speaksClones(modelList));

  // What the form and a book share. listed: resolves when the voices and models are known.
  const page = { view, trouble, limits, listed, go, fail, pickVoice, models: () => modelList };

  const list = h("ul.books");
  const more = button(t("books.more"), () => loadList(true));
  let jobs = [];
  let hasMore = false;

  function jobRow(job) {
    return h("li.card.book", { data: { job: job.id, status: job.status } },
      h("a", { href: `${ROOT}/books#${job.id}`, data: { route: "/books" } }, titleOf(job)),
      badge(job.status),
      job.status !== "completed" && progressBar(job),
      h("span.hint", {}, [job.author, new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(1000 * job.created_at), progressText(job)].filter(Boolean).join(" · ")));
  }

  let listShown = "";
  function fillList() {
    const content = JSON.stringify(jobs);
    more.hidden = !hasMore;
    if (content === listShown) return;
    listShown = content;
    const focused = document.activeElement?.closest?.("[data-job]")?.dataset.job;
    list.replaceChildren(...jobs.map(jobRow));
    if (!jobs.length) list.append(h("li.empty", {}, t("books.none")));
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

  function showList() {
    listShown = "";
    view.replaceChildren(bookForm(page), h("section.stack", { "aria-labelledby": "book-list" }, h("h2", { id: "book-list" }, t("books.list")), list, h("div.row", {}, more)));
    more.hidden = true;
    return loadList();
  }

  function show(id, focus) {
    leaving.abort();
    leaving = new AbortController();
    trouble.replaceChildren();
    shown = id;
    return id ? showBook(page, id, focus, leaving.signal) : showList();
  }

  player.addEventListener("change", showPlayed);
  if (!location.hash) show("", false);
  return {
    hash(id) {
      show(id, true);
      if (!id) main.querySelector("h1")?.focus();
    },
    unmount() {
      player.removeEventListener("change", showPlayed);
      clearInterval(timer);
      leaving.abort();
    },
  };
}
