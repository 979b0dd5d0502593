// How varied the speech is, relative to the temperature that the model itself uses.

import { h, t } from "../ui.js";

const STYLES = { usual: 1, steady: 0.75, lively: 1.1 };

/** Fills `slot` with styles; hides it if the model has no temperature. now, set(): a temperature; "" = that of the model. */
export function showStyles(slot, model, now, set) {
  const usual = model?.parameters?.includes("temperature") && model.defaults?.temperature;
  slot.hidden = !usual;
  const values = Object.entries(STYLES).map(([name, by]) => [name, by === 1 ? "" : Math.round(usual * by * 20) / 20]);
  if (!values.some(([, value]) => value === now)) values.push(["own", now]);
  slot.replaceChildren(h("label", { for: "set-style" }, t("style")), h("select", { id: "set-style", onchange: (event) => set(event.target.value) },
    values.map(([name, value]) => h("option", { value, selected: value === now }, t(`style.${name}`)))));
}
