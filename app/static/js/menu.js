// The menu of the header and the list of keys. Loaded when it is opened.

import { askKey } from "./api.js";
import { LANGUAGES, ROOT, button, dialog, h, loadTexts, store, t } from "./ui.js";

/** Opens the menu. setLanguage, setTheme: apply a choice. refill: draws a page for a request, see link.js. */
export function menu(setLanguage, setTheme, refill) {
  return dialog(t("menu.title"), (close) => {
    const choice = (id, label, options, chosen, set) => [
      h("label", { for: id }, label),
      h("select", { id, onchange: (event) => set(event.target.value) }, options.map(([value, text]) => h("option", { value, selected: value === chosen }, text))),
    ];
    return h("div.stack", {},
      choice("menu-language", t("voices.language"), Object.entries(LANGUAGES), document.documentElement.lang, async (value) => { close(); await setLanguage(value); }),
      choice("menu-theme", t("menu.theme"), ["auto", "light", "dark"].map((name) => [name, t(`theme.${name}`)]), store.get("theme", "auto"), setTheme),
      h("label.check", {}, h("input", { type: "checkbox", checked: store.get("shortcuts", true), onchange: (event) => store.set("shortcuts", event.target.checked) }), t("menu.shortcuts")),
      h("div.row.wrap", {},
        button(t("key.title"), () => { close(); askKey(); }),
        button(t("menu.keys"), () => { close(); keyList(); }),
        button(t("menu.open"), async () => { close(); (await import("./link.js")).openFile(refill); }),
        h("a.button", { href: `${ROOT}/docs` }, t("menu.docs")),
      ),
    );
  }, { look: "side" });
}

// Heading -> the keys and what they do.
const KEYS = {
  "nav.speak": { "Ctrl+Enter": "keys.speak", Esc: "keys.stop", "/": "keys.text", "?": "keys.list" },
  "dock.title": { Space: "keys.pause", "← →": "keys.seek", "Shift+← →": "keys.sentence", "Page↑ Page↓": "keys.ten", "Home End": "keys.ends", X: "keys.swap" },
  "nav.dialogue": { Enter: "keys.next", "Shift+Enter": "keys.break", "⌫": "keys.remove", "Alt+↑ ↓": "keys.move" },
  "nav.voices": { "← →": "keys.list_move", "[ ]": "keys.edges", "Shift+← →": "keys.far" },
};

export async function keyList() {
  await loadTexts("menu/");
  return dialog(t("menu.keys"), () => h("div.stack", {}, Object.entries(KEYS).map(([title, keys]) => [
    h("h3", {}, t(title)),
    h("dl.keys", {}, Object.entries(keys).map(([key, what]) => [h("dt", {}, key.split(" ").map((each) => [h("kbd", {}, each), " "])), h("dd", {}, t(what))])),
  ])));
}
