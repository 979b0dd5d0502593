// The steps Trim and Words.

import { call, getJson, errorBox, wordsFor } from "../../api.js";
import { announce, button, h, number, t } from "../../ui.js";
import { sameWords } from "../same_words.js";
import { goodLength } from "../sound.js";

const SAME_SHARE = 0.7; // of the words of the script that must be heard

export function trim(wizard) {
  const { w } = wizard;
  const slot = h("div.stack", {}, h("p.hint", {}, t("trim.loading")));
  let made = null;
  let left = false;
  const visit = w.visits;
  Promise.all([import("../trim.js")]).then(async ([module]) => {
    made = await module.trim(w.sound, w.span, (span) => (w.span = span));
    if (left || visit !== w.visits) return made.close();
    slot.replaceChildren(made.element);
    made.shown();
  }).catch((error) => slot.replaceChildren(errorBox(error)));
  return {
    content: [h("p", {}, t("trim.why", goodLength())), slot],
    keys: (event) => made?.keys(event) ?? false,
    close() {
      left = true;
      made?.close();
    },
  };
}

export function words(wizard) {
  const { w, show, ask, asForm, change } = wizard;
  const text = h("textarea", { id: "wizard-words", rows: 5, lang: w.language, spellcheck: "true", value: w.words, "aria-describedby": "words-hint", oninput: () => {
    w.words = text.value;
    w.wordsOf = "typed";
    from();
  } });
  const origin = h("span.badge");
  const trouble = h("div");
  const from = () => {
    origin.hidden = !w.wordsOf || w.wordsOf === "typed";
    origin.textContent = w.wordsOf ? t(`words.of.${w.wordsOf}`) : "";
  };
  const listen = h("p.hint", { hidden: true }, h("progress", { "aria-label": t("words.listening") }), " ", t("words.listening"));
  from();

  /** Shows the progress of the recogniser's download until `ended` is true. */
  async function follow(ended, signal) {
    while (!ended() && !signal.aborted) {
      const { recogniser } = await getJson("/health").catch(() => ({}));
      if (!ended() && recogniser?.state === "downloading" && recogniser.total_bytes) {
        listen.lastChild.textContent = t("words.downloading", { done: number(recogniser.done_bytes / 1e6, 0), of: number(recogniser.total_bytes / 1e6, 0) });
      }
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  async function recognise(signal) {
    listen.hidden = false;
    let ended = false;
    follow(() => ended, signal);
    try {
      const found = await ask(signal);
      if (!text.value.trim()) text.value = w.words;
      else w.words = text.value;
      from();
      const missing = found.quality.checks.find((each) => each.id === "transcript_missing");
      if (missing && !text.value.trim()) trouble.replaceChildren(h("p.hint", {}, t("words.type")));
    } catch (error) {
      if (error.name === "AbortError") return;
      trouble.replaceChildren(error.param === "transcript" ? h("p.hint", {}, t("words.type")) : errorBox(error, [], t("check.refused")));
    } finally {
      ended = true;
      listen.hidden = true;
    }
  }
  /** Compares the text that was read with what the server hears. Without a recogniser nothing is shown. */
  async function listenTo(script, signal) {
    const form = asForm();
    form.delete("transcript");
    let heard = "";
    listen.hidden = false;
    try {
      const found = await (await call("/v1/voice-cloning/check", { method: "POST", body: form, signal })).json();
      heard = found.transcript ?? "";
    } catch {
      return; // the Check step shows errors of the recording
    } finally {
      listen.hidden = true;
    }
    w.compared = w.made + JSON.stringify(w.span);
    if (signal.aborted || !heard || w.words.trim() !== script.trim() || sameWords(script, heard) >= SAME_SHARE) return;
    const use = button(t("words.use_heard"), () => {
      text.value = w.words = heard;
      w.wordsOf = "recogniser";
      from();
      trouble.replaceChildren();
      text.focus();
    });
    trouble.replaceChildren(h("div.banner", { data: { differs: "" } }, h("p.headline", {}, t("words.differs")), h("p", {}, t("words.heard")), h("blockquote.script", { lang: w.language }, heard), h("div.row.wrap", {}, use, button(t("record.again"), () => show("sample"), { look: "quiet" }))));
    announce(t("words.differs"));
  }

  return {
    content: [
      h("p", {}, t("words.why")),
      h("div.field", {}, h("div.head", {}, h("label", { for: "wizard-words" }, t("words.label")), origin), text, h("span.hint", { id: "words-hint" }, t("words.hint"))),
      h("div.row", {}, button(t("try.hear_sample"), wizard.playSample)),
      listen, trouble,
    ],
    shown() {
      if (w.source === "youtube") return;
      if (!w.words.trim()) recognise(wizard.signal());
      else if (w.wordsOf === "script" && w.compared !== w.made + JSON.stringify(w.span)) listenTo(w.words, wizard.signal());
    },
    async valid() {
      if (!text.value.trim()) return [t("words.missing"), text];
      w.words = text.value;
      if (w.source !== "youtube" || w.words.trim() === w.voice.transcript) return null;
      try {
        w.voice = await change({ transcript: w.words.trim() });
      } catch (error) {
        return [wordsFor(error), text];
      }
      return null;
    },
  };
}
