// One book: its state, its files, its chapters and their sentences.

import { ApiError, call, details, errorBox, events, getJson, hasKey, nameOf } from "../api.js";
import { player } from "../player.js";
import { Track } from "../takes.js";
import { ROOT, announce, button, confirm, dialog, download, field, h, icon, notify, number, t } from "../ui.js";
import { forPlayer, read } from "../voices/sound.js";
import { PATH, active, badge, length, progressBar, progressText, titleOf } from "./state.js";

const RETRY_MS = 2000; // between two tries to follow a book
const WAIT_MS = 3000; // at most so long does the player wait for the next sentence
const FIRST_EVENT_MS = 5000; // a proxy that holds events back longer makes the page ask instead
const REFRESH_MS = 700; // at most so often are the chapters read while sentences arrive
const SHOWN = 100; // sentences of a chapter at first
const ENDED = ["completed", "failed", "cancelled"];

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

/** Shows a book and follows its state until the signal is aborted. page: see books.js. focus: on its title. */
export async function showBook({ view, trouble, limits, listed, go, fail, pickVoice }, id, focus, signal) {
  const backLink = () => h("div", {}, h("a.button.quiet", { href: `${ROOT}/books`, data: { route: "/books" } }, icon("back"), t("books.back")));
  let job;
  view.replaceChildren(h("p.hint", { "aria-busy": "true" }, t("books.loading")));
  try {
    [job] = await Promise.all([getJson(`${PATH}/${encodeURIComponent(id)}`), listed]);
  } catch (error) {
    if (!signal.aborted) {
      view.replaceChildren(backLink());
      fail(error);
    }
    return;
  }
  if (signal.aborted) return;
  let stopFollowing = () => {};
  let stopListening = () => {};
  signal.addEventListener("abort", () => {
    stopFollowing();
    stopListening();
  });
  const own = `${PATH}/${encodeURIComponent(id)}`;
  const waiting = new Set(); // called when a sentence or the book has changed
  let actsShown = ""; // the status whose buttons are shown
  let refreshing = 0;
  let asked = null; // the last request for the state
  const heading = h("h2", { tabindex: -1, id: "book-name" });
  const about = h("p.hint");
  const state = h("div.row.wrap");
  const bar = h("div");
  const why = h("div");
  const acts = h("div.row.wrap");
  const files = h("div.row.wrap");
  const chapterList = h("ol.chapters");
  const chapters = job.chapters.map(chapterRow);
  chapterList.append(...chapters.map((each) => each.element));
  view.replaceChildren(
    backLink(),
    h("article.card.stack.book-card", { "aria-labelledby": "book-name", data: { shown: id } }, h("div.head", {}, heading, state), about, bar, why, files, acts),
    h("section.stack", { "aria-labelledby": "book-chapters" }, h("h2", { id: "book-chapters" }, t("books.chapters")), chapterList));
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
    bar.replaceChildren(progressBar(job), h("p.hint", {}, progressText(job)));
    why.replaceChildren(...(job.error ? [h("div", { class: job.status === "failed" ? "error" : "banner" }, h("p.headline", {}, t(`books.why.${job.status === "failed" ? "failed" : "paused"}`)), h("p", {}, wordsOf(job.error)), details(job.error.message))] : []));
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
        button(t("delete"), remove, { look: "danger", data: { act: "delete" } }),
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
    if (signal.aborted) return;
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
    if (!(await confirm(t("books.delete_title", { title: titleOf(job) }), t("books.delete_text"), t("delete")))) return;
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

  function reloadRows() {
    return Promise.all(chapters.map((chapter) => chapter.reload().catch(() => {})));
  }

  /** Follows the book by events. When they do not arrive, the page asks for the state instead. */
  function follow() {
    stopFollowing();
    let ended = signal.aborted || ENDED.includes(job.status);
    if (ENDED.includes(job.status)) reloadRows(); // a redone sentence can be done already
    let abort = new AbortController();
    const stop = () => { ended = true; abort.abort(); };
    (async () => {
      while (!ended) {
        abort = new AbortController();
        const late = setTimeout(() => abort.abort(), FIRST_EVENT_MS);
        try {
          const answer = await call(`${own}/events`, { signal: abort.signal });
          let first = true;
          for await (const event of events(answer)) {
            clearTimeout(late);
            if (ended) break;
            if (event.job) fill(event.job);
            if (first) reloadRows(); // events only have what changes from now on
            first = false;
            for (const sentence of event.data ?? []) changed(sentence);
            if (event.data) refreshSoon();
            if (event.job && ENDED.includes(event.job.status)) ended = true;
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
    const facts = h("span.hint");
    const rows = h("ol.sentences", { id: `sentences-${index}`, hidden: true, "aria-label": t("books.sentences_of", { name }) });
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
    const element = h("li.card.chapter", { data: { chapter: index } },
      h("div", {}, h("h3", {}, name), facts), status,
      h("div.row.wrap.tools", {}, listen, toggle, voice), rows);
    const elements = new Map(); // index of a sentence -> its row
    const changedAt = new Map(); // index of a sentence -> number of its last change
    let changes = 0;

    /** Shows sentences, unless they have changed since they were requested. */
    async function readRows(after, limit) {
      const asked = changes;
      const answer = await getJson(`${own}/sentences?chapter=${index}&after=${after}&limit=${limit}`);
      for (const sentence of answer.data) if (!(changedAt.get(sentence.index) > asked)) place(sentence, true);
      return answer;
    }

    async function loadRows() {
      const shown = elements.size;
      const answer = await readRows(Math.max(-1, ...elements.keys()), SHOWN).catch((error) => fail(error));
      if (!answer) return;
      further.remove();
      if (answer.has_more) rows.append(h("li", {}, further));
      if (!elements.size && !rows.firstChild) rows.append(h("li.hint", {}, t("books.not_planned")));
      if (shown) [...elements.values()][shown]?.querySelector("button")?.focus();
    }

    function changed(sentence) {
      changedAt.set(sentence.index, ++changes);
      place(sentence, !rows.hidden && elements.size < SHOWN && !further.isConnected);
    }

    /** Shows a sentence. add: also if it has no row yet. */
    function place(sentence, add) {
      const old = elements.get(sentence.index);
      if (!old && !add) return;
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
      if (!rows.hidden) await readRows(-1, Math.max(SHOWN, elements.size));
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
    return h("li.sentence", { data: { sentence: sentence.index, status: sentence.status, take: sentence.take } },
      done ? button(t("books.play_sentence", { n: place }), () => playSentence(sentence), { name: "play", look: "quiet", data: { act: "play" } }) : h("span.badge", {}, t(`books.status.${sentence.status}`)),
      h("div", {}, h("p", { class: done ? "" : "waits" }, sentence.text), sentence.error && h("p.bad", { title: sentence.error.message }, wordsOf(sentence.error))),
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
      while (!stopped && player.track === track) {
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
            setTimeout(wake, WAIT_MS);
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
      return h("form.stack", { onsubmit: async (event) => {
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
      field(t("speak.text"), text),
      field(t("speak.voice"), voice),
      h("p.hint", {}, t("books.redo_hint")),
      wrong,
      h("div.row.end", {}, button(t("cancel"), () => close()), h("button.primary", {}, t("books.redo"))));
    });
    view.querySelector(`[data-sentence="${sentence.index}"] [data-act=redo]`)?.focus(); // the row was made anew
  }
}
