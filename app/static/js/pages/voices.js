// The Voices page: a list of voices, the details of one voice, and the wizard for a new voice (voices/wizard.js).

import { call, errorBox, getJson, health, may, modelToUse, models, noChanges, serverVoice, speaksClones, voices } from "../api.js";
import { searched, tint } from "../gallery.js";
import { player } from "../player.js";
import { Track } from "../takes.js";
import { preview, speech } from "../speech.js";
import { ROOT, announce, button, dialog, download, h, icon, language, languageName, loadStyles, loadTexts, notify, quoted, seconds, snippetSlot, store, t } from "../ui.js";
import { cloneHelp } from "../voices/clone_help.js";
import { PATH, edit, wordsForm } from "../voices/edit.js";
import { levelBadge, qualityList } from "../voices/quality.js";
import { problemList } from "../voices/problems.js";
import { forPlayer, read } from "../voices/sound.js";

const here = `${ROOT}/voice-cloning`;

export async function mount(main, { go }) {
  const styles = Promise.all([loadStyles("voices"), loadStyles("gallery")]);
  await loadTexts("voices/");
  let all = []; // all voices, as /v1/audio/voices lists them; cloned ones with `known`
  let modelList = [];
  let problems = {};
  let doubts = {}; // recordings that are doubtful or not used: path -> reason
  let shown = ""; // the details shown: "", the id of a voice, or "new"
  let openWizard = null;
  let justSaved = null; // { id, sentence, spoken } of the voice that the wizard saved last
  let closed = false;

  const search = h("input", { type: "search", placeholder: t("voices.search"), "aria-label": t("voices.search"), oninput: () => fill() });
  const file = h("input", { type: "file", accept: ".zip,application/zip", hidden: true, onchange: () => file.files[0] && importVoice(file.files[0]) });
  const bring = button(t("voices.import"), () => file.click());
  bring.prepend(icon("import"));
  const fresh = h("a.button.primary", { href: `${here}#new`, data: { route: "/voice-cloning" } }, icon("add"), t("voices.new"));
  const [lacking, trouble] = [h("div"), h("div")];
  const list = h("div.voice-list");
  const side = h("section.stack.voice-side", { "aria-label": t("voices.list") }, h("div.row", {}, search), list);
  const detail = h("div.voice-detail");
  const library = h("div.library", { data: { view: "list" } }, side, detail);
  const words = h("a.button", { href: `${ROOT}/pronunciation`, data: { route: "/pronunciation" } }, t("lexicon.title"));
  const tools = h("div.row.wrap.voices-tools", {}, fresh, bring, words, file);

  const kindOf = (voice) => (["cloned", "adapter"].includes(voice.type) ? voice.type : "preset");
  const find = (id) => all.find((voice) => voice.id === id);
  const isDefault = (voice) => store.get("voice", serverVoice()) === voice.id;
  const link = (voice) => `${here}#${voice.id}`;

  async function load() {
    try {
      const [some, own, engines] = await Promise.all([voices(true), getJson(PATH).catch(listed), models(), health.look()]);
      const known = new Map(own.voices.map((voice) => [voice.id, voice]));
      all = some.map((voice) => ({ ...voice, known: known.get(voice.id) ?? null }));
      problems = own.problems ?? {};
      doubts = Object.fromEntries(Object.entries(health.last?.casting?.problems ?? {}).filter(([path]) => !(path in problems)));
      modelList = engines;
      trouble.replaceChildren();
    } catch (error) {
      trouble.replaceChildren(errorBox(error, [button(t("again"), () => load().then(() => show(shown)))]));
    }
    lacking.replaceChildren(noChanges());
    tools.hidden = openWizard !== null || !may("clone");
    fill();
  }

  /** A key without the scope `clone` gets the names of voices only. */
  async function listed(error) {
    if (error.code !== "missing_scope") throw error;
    await health.look();
    return { voices: [] };
  }

  const doubtOf = (voice) => (voice.known ? doubts[`cloned_voices/${voice.id}`] : doubts[`voice_references/${voice.id}`]);
  const speakable = (voice) => !voice.known || speaksClones(modelList);

  function row(voice) {
    const { known } = voice;
    const about = known ? [seconds(known.audio_duration), known.language, ...voice.tags] : [voice.description || t(`voice.kind.${voice.type}`)];
    return h("li.voice", { data: { voice: voice.id } },
      button(t(known ? "voices.sample_of" : "voice.preview_of", { name: voice.name }), () => (known ? playSample(voice) : preview(voice)), { name: "play", look: "quiet round" }),
      tint(voice),
      h("a", { href: link(voice), data: { route: "/voice-cloning" }, "aria-current": shown === voice.id ? "true" : null },
        h("b", {}, voice.name),
        h("span.hint", {}, about.filter(Boolean).join(" · ")),
        !speakable(voice) && h("span.hint", {}, t("voice.needs_clones"))),
      (doubtOf(voice) || known?.quality?.level === "bad") && levelBadge(known?.quality?.level === "bad" ? "bad" : "warning"),
      known?.status === "needs words" && h("span.badge.warn", {}, t("voices.lacks_words")),
      isDefault(voice) && h("span.badge.ok", {}, t("voices.default")),
    );
  }

  function fill() {
    const query = search.value.trim().toLocaleLowerCase();
    const matching = all.filter((voice) => searched(voice).includes(query));
    const groups = ["cloned", "adapter", "preset"].map((kind) => [kind, matching.filter((voice) => kindOf(voice) === kind)]);
    const held = document.activeElement?.closest?.("[data-voice]")?.dataset.voice;
    const onButton = document.activeElement?.tagName === "BUTTON";
    const ownNone = may("clone") && !query && all.length > 0 && !groups[0][1].length;
    list.replaceChildren(...[
      ownNone && h("div.empty", {}, h("p", {}, t("voices.none")), h("a.button", { href: `${here}#new`, data: { route: "/voice-cloning" } }, t("voices.make"))),
      ...groups.filter(([, members]) => members.length).map(([kind, members]) => h("section", { "aria-label": t(`voice.kind.${kind}`) }, h("h2", {}, t(`voice.kind.${kind}`)), h("ul", {}, members.map(row)))),
      query && !matching.length && h("p.hint", {}, t("take.none")),
      problemList("server.doubts", doubts),
      problemList("voices.problems", problems),
    ].filter(Boolean));
    if (held) list.querySelector(`[data-voice="${CSS.escape(held)}"] ${onButton ? "button" : "a"}`)?.focus();
  }

  const samples = new Map();

  async function sampleOf(voice) {
    if (!samples.has(voice.id)) {
      const answer = await call(`${PATH}/${voice.id}/reference`);
      const sound = await read(await answer.blob());
      samples.set(voice.id, Track.of(await forPlayer(sound), { about: { voice: voice.name, text: t("voices.sample") } }));
    }
    return samples.get(voice.id);
  }

  async function playSample(voice) {
    player.prepare();
    if (player.track && player.track === samples.get(voice.id)) return player.toggle();
    try {
      player.load(await sampleOf(voice));
    } catch (error) {
      trouble.replaceChildren(errorBox(error));
    }
  }

  /** Opens the Speak page with this voice. After the wizard, its text is the sentence that was tried there. */
  async function use(voice) {
    const before = store.get("draft", "");
    const sentence = justSaved?.id === voice.id ? justSaved.sentence : "";
    store.set("speak", { ...store.get("speak", {}), voice: voice.id });
    if (sentence) store.set("draft", sentence);
    await go("/");
    if (!sentence || !before.trim() || before === sentence) return;
    notify(t("voices.text_replaced"), t("undo"), () => {
      const text = document.getElementById("text");
      text.value = before;
      text.dispatchEvent(new Event("input"));
    });
  }

  /** Compares the recording of a voice with a sentence that the voice speaks. */
  async function compare(voice) {
    player.prepare();
    trouble.replaceChildren();
    try {
      const recording = await sampleOf(voice);
      let spoken = justSaved?.id === voice.id ? justSaved.spoken : null;
      if (!spoken) {
        const text = justSaved?.sentence || t("voices.sentence", { name: voice.name });
        const started = preview(voice, { text });
        spoken = speech.track;
        await started;
        if (speech.track !== spoken || speech.state !== "done") return;
        justSaved = { sentence: "", ...(justSaved?.id === voice.id ? justSaved : {}), id: voice.id, spoken };
      }
      await player.compare(recording, spoken);
    } catch (error) {
      trouble.replaceChildren(errorBox(error));
    }
  }

  // ---- one voice

  function engines(voice) {
    const rows = modelList.filter((model) => !model.alias).map((model) => {
      const can = !voice.known || model.clones === true;
      const state = model.status !== "ready" ? ["warn", voice.known && model.clones === false ? "voices.cannot" : `model.${model.status}`] : can ? ["ok", "voices.can"] : ["bad", "voices.cannot"];
      return h("li", {}, h("b", {}, model.id), h("span", { class: `badge ${state[0]}` }, t(state[1])), model.detail && h("p.hint", {}, quoted(model.detail)));
    });
    return h("ul.engine-list", {}, rows);
  }

  function facts(voice) {
    const { known } = voice;
    const agreed = known?.consent ? known.consent.text || t("voices.consent_recorded") : t("voices.consent_none");
    const pairs = known ? [
      ["voices.language", languageName(known.language)],
      ["voices.length", seconds(known.audio_duration)],
      ["voices.made", new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(1000 * known.created_at)],
      ["voices.consent", agreed],
      ["voices.id", h("code", {}, voice.id)],
    ] : [["voices.language", languageName(voice.language)], ["voices.id", h("code", {}, voice.id)]];
    return h("dl.facts-list", {}, pairs.map(([key, value]) => [h("dt", {}, t(key)), h("dd.quoted", {}, value)]));
  }

  function card(voice) {
    const { known } = voice;
    const [code, showCode] = snippetSlot();
    showCode("/v1/audio/speech", { model: modelToUse(modelList), voice: voice.id, input: t("voices.sentence", { name: voice.name }), response_format: "mp3" });
    const standard = isDefault(voice);
    const title = h("h2", { tabindex: -1, id: "voice-title" }, voice.name);
    const playButton = button(t("voices.hear"), () => playSample(voice));
    playButton.prepend(icon("play"));
    const speakButton = button(t("voices.speak"), () => preview(voice), { look: known ? "" : "primary" });
    speakButton.prepend(icon("volume"));
    return h("article.card.stack", { "aria-labelledby": "voice-title", data: { shown: voice.id } },
      h("div.phone-only", {}, h("a.button.quiet", { href: here, data: { route: "/voice-cloning" } }, icon("back"), t("voices.list"))),
      h("div.head", {}, h("div.row", {}, tint(voice), title), known?.quality?.level && known.status !== "needs words" && levelBadge(known.quality.level)),
      voice.description && h("p.quoted", {}, voice.description),
      voice.tags?.length > 0 && h("div.row.wrap", { "aria-label": t("gallery.tags"), role: "group" }, voice.tags.map((tag) => h("span.badge", {}, tag))),
      doubtOf(voice) && h("div.banner", {}, h("p", {}, quoted(doubtOf(voice)))),
      !speakable(voice) && cloneHelp(modelList),
      h("div.row.wrap", {},
        known && speakable(voice) && button(t("voices.use"), () => use(voice), { look: "primary", data: { act: "use" } }),
        known && speakable(voice) && button(t("voices.compare"), () => compare(voice)),
        known && playButton, speakable(voice) && speakButton,
        (speakable(voice) || standard) && button(t(standard ? "voices.is_default" : "voices.make_default"), () => makeDefault(voice), { "aria-pressed": String(standard), data: { act: "default" } })),
      facts(voice),
      known && (known.status === "needs words" ? wordsForm(voice, changed) : h("div.stack", {}, h("h3", {}, t("voices.words")), h("p.script", { lang: known.language }, known.transcript))),
      h("div.stack", {}, h("h3", {}, t("voices.engines")), engines(voice)),
      known?.quality?.checks && h("details.fold", {}, h("summary", {}, t("voices.quality")), qualityList(known.quality)),
      h("details.fold", {}, h("summary", {}, t("voices.usage")), code),
      known && h("div.row.wrap.voice-foot", {},
        button(t("voices.edit"), () => edit(voice, () => changed("edit")), { data: { act: "edit" } }),
        button(t("voices.export"), () => save(voice)),
        button(t("delete"), () => remove(voice), { look: "danger" })),
    );
  }

  function makeDefault(voice) {
    const chosen = isDefault(voice) ? serverVoice() : voice.id;
    store.set("voice", chosen);
    store.set("speak", { ...store.get("speak", {}), voice: chosen });
    notify(t("voices.default_set", { name: find(chosen)?.name ?? chosen }));
    fill();
    show(shown);
    detail.querySelector("[data-act=default]")?.focus();
  }

  async function changed(act) {
    await load();
    show(shown, { focus: !act });
    if (act) detail.querySelector(`[data-act=${act}]`)?.focus();
    announce(t("voices.changed"));
  }

  async function save(voice) {
    try {
      const answer = await call(`${PATH}/${voice.id}/export`);
      const name = voice.name.toLowerCase().match(/[\p{L}\p{N}]+/gu)?.join("-").slice(0, 60);
      download(await answer.blob(), `${name || voice.id}.zip`);
    } catch (error) {
      trouble.replaceChildren(errorBox(error));
    }
  }

  async function importVoice(chosen) {
    const form = new FormData();
    form.append("file", chosen);
    file.value = "";
    try {
      const imported = await (await call("/v1/voice-cloning/import", { method: "POST", body: form })).json();
      await load();
      notify(t("try.saved", { name: imported.voice.name }));
      go(`/voice-cloning#${imported.voice.id}`);
    } catch (error) {
      trouble.replaceChildren(errorBox(error, [], t("voices.import_failed")));
    }
  }

  async function remove(voice) {
    const rows = [...list.querySelectorAll("[data-voice]")].map((each) => each.dataset.voice);
    const at = rows.indexOf(voice.id);
    const nextId = rows[at + 1] ?? rows[at - 1];
    const deleted = await dialog(t("voices.delete_title", { name: voice.name }), (close) => {
      const wrong = h("div");
      const deleteButton = button(t("delete"), async () => {
        deleteButton.disabled = true;
        try {
          await call(`${PATH}/${voice.id}`, { method: "DELETE" });
          close(true);
        } catch (error) {
          deleteButton.disabled = false;
          wrong.replaceChildren(errorBox(error, [], t("voices.delete_failed")));
        }
      }, { look: "danger" });
      return h("div.stack", {}, h("p", {}, t("voices.delete_text")), wrong, h("div.row.end", {}, button(t("cancel"), () => close(false), { autofocus: true }), deleteButton));
    });
    if (!deleted) return;
    player.unload(samples.get(voice.id));
    samples.delete(voice.id);
    if (isDefault(voice)) store.set("voice", serverVoice());
    if (store.get("speak", {}).voice === voice.id) store.set("speak", { ...store.get("speak", {}), voice: store.get("voice", serverVoice()) });
    await load();
    history.replaceState({}, "", here);
    show("");
    notify(t("voices.deleted", { name: voice.name }));
    (list.querySelector(`[data-voice="${CSS.escape(nextId ?? "")}"] a`) ?? document.querySelector("main h1"))?.focus();
  }

  // ---- which part is shown

  function show(id, { focus = false } = {}) {
    shown = id;
    const voice = find(id);
    library.dataset.view = voice ? "detail" : "list";
    library.hidden = false;
    tools.hidden = !may("clone");
    fill();
    if (voice) detail.replaceChildren(card(voice));
    else if (id && all.length) detail.replaceChildren(h("div.empty", {}, h("p", {}, t("voices.gone"))));
    else detail.replaceChildren(h("div.empty", {}, h("p", {}, t("voices.choose"))));
    if (focus) (detail.querySelector("#voice-title") ?? document.querySelector("main h1")).focus({ preventScroll: true });
    if (focus) scrollTo(0, 0);
  }

  async function make() {
    const [{ wizard }, list] = await Promise.all([import("../voices/wizard.js"), models().catch(() => [])]);
    if (closed || openWizard || location.hash !== "#new") return;
    if (!may("clone")) return show("");
    shown = "new";
    trouble.replaceChildren();
    library.hidden = tools.hidden = true;
    openWizard = wizard({
      models: list,
      async saved(voice, tried) {
        justSaved = { id: voice.id, ...tried };
        endWizard();
        await load();
        history.replaceState({}, "", link(voice));
        show(voice.id, { focus: true });
        notify(t("try.saved", { name: voice.name }));
      },
      async cancelled() {
        if (!(await openWizard.leave())) return;
        endWizard();
        history.replaceState({}, "", here);
        show("", { focus: true });
        load();
      },
    });
    main.append(openWizard.element);
    openWizard.focus();
    scrollTo(0, 0);
  }

  function endWizard() {
    openWizard?.close();
    openWizard?.element.remove();
    openWizard = null;
  }

  async function hash(text) {
    if (openWizard) {
      if (text === "new") return;
      const target = location.href;
      if (openWizard.unsaved()) history.pushState({}, "", `${here}#new`);
      if (!(await openWizard.leave())) return;
      endWizard();
      history.replaceState({}, "", target);
      await load();
    }
    if (text === "new") return make();
    show(decodeURIComponent(text), { focus: true });
  }

  const showState = () => {
    if (speech.source !== "preview" || openWizard) return;
    if (!speech.showError(trouble, "preview") && speech.busy) trouble.replaceChildren();
  };
  const showPlayed = () => {
    for (const each of list.querySelectorAll("[data-voice]")) {
      const now = player.playing && player.track !== null && player.track === samples.get(each.dataset.voice);
      const look = now ? "pause" : "play";
      const press = each.querySelector("button");
      if (!press.firstChild.classList.contains(`i-${look}`)) press.replaceChildren(icon(look));
    }
  };
  const reload = () => load().then(() => openWizard || closed || (location.hash === "#new" ? make() : show(shown)));
  health.addEventListener("changed", reload);
  speech.addEventListener("change", showState);
  player.addEventListener("change", showPlayed);
  const loading = load();
  await styles;
  main.append(lacking, tools, trouble, library);
  await loading;
  show("");
  return {
    hash,
    unsaved: () => openWizard?.unsaved() ?? false,
    keys: (event) => openWizard?.keys(event) ?? false,
    leave: () => openWizard?.leave() ?? true,
    unmount() {
      closed = true;
      endWizard();
      health.removeEventListener("changed", reload);
      speech.removeEventListener("change", showState);
      player.removeEventListener("change", showPlayed);
    },
  };
}
