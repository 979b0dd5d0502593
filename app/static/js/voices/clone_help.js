// What to do when the running engine cannot speak with recordings.

import { speaksClones } from "../api.js";
import { ROOT, h, t } from "../ui.js";

/** A box with a link to the Server page; null if the engine speaks cloned voices. models: of /v1/models. */
export function cloneHelp(models) {
  if (speaksClones(models)) return null;
  return h("div.banner", { data: { help: "clones" } },
    h("p.headline", {}, t("try.lacks")),
    h("p", {}, t("wizard.lacks_why")),
    h("div.row", {}, h("a.button", { href: `${ROOT}/server`, data: { route: "/server" } }, t("wizard.lacks_go"))));
}
