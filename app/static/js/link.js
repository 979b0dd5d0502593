// Takes to share: as a link, or as a file with the request. Both fill in a page; nothing is spoken by itself.
// Browsers send the part after # of a link to no server.

import { ROOT, button, copy, dialog, download, h, loadTexts, notify, store, t } from "./ui.js";

const LONGEST = 8000; // characters; programs that send links cut longer ones
const NUMBERS = ["speed", "seed", "temperature", "top_k", "top_p", "cfg_scale"];
const STORED = { draft: "", speak: {}, dialogue: {} };

/** Puts a request into what the pages keep. With a seed, settings that it lacks are the default. */
function fill({ turns, input, text = input, voice, model, language, ...rest }) {
  if (Array.isArray(turns)) {
    store.set("dialogue", { model, lines: turns.map((turn) => ({ name: `${turn.speaker ?? ""}`, voice: turn.voice, text: `${turn.text}` })) });
    return "/dialogue";
  }
  const numbers = NUMBERS.filter((name) => rest[name] && Number.isFinite(Number(rest[name]))).map((name) => [name, Number(rest[name])]);
  const { speed, seed, ...sampling } = Object.fromEntries(numbers);
  const kept = store.get("speak", {});
  const own = seed === undefined ? {} : { speed: 1, language: "", sampling: {} };
  const given = { voice, model, language, speed, seed, lock: seed !== undefined || undefined };
  store.set("speak", { ...kept, ...own, ...Object.fromEntries(Object.entries(given).filter(([, value]) => value)), sampling: { ...(own.sampling ?? kept.sampling), ...sampling } });
  if (typeof text === "string") store.set("draft", text);
  return "/";
}

/** Fills in a request. show(change, path): changes what is stored, and draws the page with this path. */
export async function open(request, show) {
  await loadTexts("menu/");
  const before = Object.entries(STORED).map(([name, none]) => [name, store.get(name, none)]);
  let path = "/";
  await show(() => (path = fill(request)), () => path);
  notify(t("link.filled"), t("undo"), () => show(() => before.forEach(([name, value]) => store.set(name, value)), () => path));
}

/** Asks for a file with a request, and fills it in. */
export function openFile(show) {
  const file = h("input", { type: "file", accept: ".json,application/json", onchange: async () => {
    try {
      const request = JSON.parse(await file.files[0].text());
      if (typeof request.input !== "string" && !Array.isArray(request.turns)) throw new TypeError("no request");
      await open(request, show);
    } catch {
      notify(t("link.wrong"));
    }
  } });
  loadTexts("menu/");
  file.click();
}

/** Shows the link to a take, and offers its request as a file. */
export async function share({ body, text, voice, model, kind }) {
  await loadTexts("menu/");
  const { input, ...settings } = { speed: 1, ...body, voice, model };
  const link = `${location.origin}${ROOT}/#${new URLSearchParams(Object.entries({ text: input ?? text, ...settings }).filter(([, value]) => value))}`;
  const shown = h("pre", { tabindex: 0 }, link);
  const fits = kind === "speech" && link.length <= LONGEST;
  return dialog(t("take.share"), (close) => h("div.stack", {},
    fits && h("p", {}, t("link.hint")),
    fits && h("div.code.short", {}, shown, button(t("copy"), () => copy(shown), { name: "copy", look: "quiet" })),
    h("p", {}, t("link.file_hint")),
    h("div.row", {}, button(t("link.file"), () => {
      download(new Blob([JSON.stringify(body, null, 2)]), "request.json");
      close();
    })),
  ));
}
