// What to do when the running engine cannot speak with recordings.

import { health, speaksClones } from "../api.js";
import { ROOT, button, copy, h, quoted, t } from "../ui.js";

/** Creates a box with the reason and the remedy; null if the engine speaks cloned voices. models: as /v1/models lists them. */
export function cloneHelp(models) {
  if (speaksClones(models)) return null;
  const { last } = health;
  const remedy = last?.remedy && h("pre", { tabindex: 0, lang: "en" }, last.remedy);
  return h("div", { class: "banner", data: { help: "clones" } },
    h("p", { class: "headline" }, t("try.lacks")),
    h("p", {}, t("wizard.lacks_why")),
    last?.reason && h("p", {}, quoted(last.reason)),
    remedy && h("details", { class: "fold" }, h("summary", {}, t("banner.remedy")), remedy, h("div", { class: "row" }, button(t("copy"), () => copy(remedy), { look: "quiet" }))),
    h("div", { class: "row" }, h("a", { class: "button", href: `${ROOT}/server`, data: { route: "/server" } }, t("wizard.lacks_go"))));
}
