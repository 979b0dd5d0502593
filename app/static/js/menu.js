// The menu of the header and the list of keys. Loaded when it is opened.

import { askKey } from "./api.js";
import { LANGUAGES, ROOT, button, dialog, h, store, t } from "./ui.js";

/** Opens the menu. setLanguage, setTheme: apply a choice. */
export function menu(setLanguage, setTheme) {
  return dialog(t("menu.title"), (close) => {
    const choice = (id, label, options, chosen, set) => [
      h("label", { for: id }, label),
      h("select", { id, onchange: (event) => set(event.target.value) }, options.map(([value, text]) => h("option", { value, selected: value === chosen }, text))),
    ];
    return h("div", { class: "stack" },
      choice("menu-language", t("menu.language"), Object.entries(LANGUAGES), document.documentElement.lang, async (value) => { close(); await setLanguage(value); }),
      choice("menu-theme", t("menu.theme"), ["auto", "light", "dark"].map((name) => [name, t(`theme.${name}`)]), store.get("theme", "auto"), setTheme),
      h("label", { class: "check" }, h("input", { type: "checkbox", checked: store.get("shortcuts", true), onchange: (event) => store.set("shortcuts", event.target.checked) }), t("menu.shortcuts")),
      h("div", { class: "row wrap" },
        button(t("key.title"), () => { close(); askKey(); }),
        button(t("menu.keys"), () => { close(); keyList(); }),
        h("a", { class: "button", href: `${ROOT}/docs` }, t("menu.docs")),
      ),
    );
  }, { look: "side" });
}

export const keyList = () => dialog(t("menu.keys"), () => h("dl", { class: "keys" },
  [["Ctrl+Enter", "keys.speak"], ["Esc", "keys.stop"], ["Space", "keys.pause"], ["X", "keys.swap"], ["← →", "keys.seek"], ["Shift+← →", "keys.sentence"], ["/", "keys.text"], ["?", "keys.list"]].map(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, t(what))]),
));
