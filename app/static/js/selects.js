// The controls that choose a voice or a model, as all pages show them.

import { canSpeak } from "./api.js";
import { h, t } from "./ui.js";

/** Creates a button that shows a voice and opens the gallery. It has a `value` and the event "change", as a select has. */
export function voiceSelect(list, chosen, props, clones = true) {
  const pick = h("button", { type: "button", role: "combobox", "aria-haspopup": "dialog", "aria-expanded": "false", ...props, class: "pick", value: chosen, data: { voices: list.length }, onclick: async () => {
    const { choose } = await import("./gallery.js");
    const id = await choose(list, pick.value, clones);
    if (id !== undefined && (id !== pick.value || !pick.isConnected)) {
      pick.value = id;
      show();
      pick.dispatchEvent(new Event("change"));
    }
    if (!pick.isConnected) document.getElementById(pick.id)?.focus(); // the page has drawn the button anew meanwhile
  }, onkeydown: (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    pick.click();
  } });
  const show = () => {
    const voice = list.find((each) => each.id === pick.value);
    const about = voice?.type === "cloned" && !clones ? t("voice.needs_clones") : voice?.description;
    pick.replaceChildren(h("b", {}, voice?.name ?? pick.value), about ? h("span.hint", {}, about) : "");
  };
  show();
  return pick;
}

/** Creates a select of models. A model that is not ready can be chosen, and shows its state. */
export function modelSelect(list, chosen, props) {
  const option = (model) => h("option", { value: model.id, selected: model.id === chosen, "aria-disabled": canSpeak(model) ? null : "true" },
    model.status === "ready" ? model.id : `${model.id} (${t(`model.${model.status}`)})`);
  return h("select", props, list.filter((model) => !model.alias).map(option), h("optgroup", { label: t("model.aliases") }, list.filter((model) => model.alias).map(option)));
}

/** The id of the model used last if the server lists it, else of the first ready model. */
export function modelToUse(list, kept) {
  return list.some((model) => model.id === kept) ? kept : (list.find(canSpeak) ?? list[0])?.id ?? "";
}
