// The voices of this server, each with a preview.

import { errorBox, voices } from "../api.js";
import { preview, speech } from "../speech.js";
import { button, h, t } from "../ui.js";

export async function mount(main) {
  const list = h("div", { class: "voices" });
  const trouble = h("div");
  main.append(trouble, list);
  try {
    for (const voice of await voices(true)) {
      list.append(h("article", { class: "card voice" },
        button(t("voice.preview_of", { name: voice.name }), () => preview(voice), { name: "play", look: "round" }),
        h("div", { class: "grow" }, h("h3", {}, voice.name), h("p", { class: "hint" }, voice.description || t(`voice.kind.${voice.type}`))),
      ));
    }
  } catch (error) {
    trouble.append(errorBox(error));
  }
  const told = () => {
    if (speech.source === "preview" && speech.error) trouble.replaceChildren(errorBox(speech.error));
    else trouble.replaceChildren();
  };
  speech.addEventListener("change", told);
  return { unmount: () => speech.removeEventListener("change", told) };
}
