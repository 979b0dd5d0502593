// A list of problems with files on the disk of the server.

import { h, quoted, t } from "../ui.js";

/** A box of problems that opens on a press; null without problems. problems: path -> reason. */
export function problemList(title, problems) {
  const all = Object.entries(problems);
  if (!all.length) return null;
  return h("details.fold", {}, h("summary", {}, t(title, { n: all.length })), h("ul", {}, all.map(([path, reason]) => h("li.hint", {}, h("code", {}, path), " ", quoted(reason)))));
}
