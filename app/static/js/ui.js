// The toolkit of the pages: elements, storage, languages, numbers, announcements, dialogs. Text is never inserted as HTML.

export const ROOT = document.documentElement.dataset.root ?? "";
export const LANGUAGES = { en: "English", de: "Deutsch", fr: "Français" };
const SVG = "http://www.w3.org/2000/svg";

// ---- elements

/**
 * Creates an element. tag: its name with its classes, as "p.hint". props: on* = listener, data = dataset, true = attribute
 * without a value, false/null = no attribute.
 */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const ICONS = {
  play: "M4 2.5v11l9-5.5z",
  pause: "M4.5 3v10M11.5 3v10",
  stop: "M3.5 3.5h9v9h-9z",
  save: "M8 2v8M4.5 7 8 10.5 11.5 7M2.5 13.5h11",
  star: "M8 1.8l1.9 4 4.3.5-3.2 3 .9 4.4L8 11.5l-3.9 2.2.9-4.4-3.2-3 4.3-.5z",
  delete: "M2.5 4h11M6 4V2.5h4V4M4 4l.7 9.5h6.6L12 4M6.5 6.5v5M9.5 6.5v5",
  again: "M13 8a5 5 0 1 1-1.6-3.7M13 2v3h-3",
  copy: "M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z",
  share: "M12.5 3.5 3.5 8l9 4.5M12 3h1v1h-1zM3 7.5h1v1H3zM12 12h1v1h-1z",
  up: "M8 13V3M3.5 7.5 8 3l4.5 4.5",
  down: "M8 3v10M3.5 8.5 8 13l4.5-4.5",
  close: "M3.5 3.5l9 9M12.5 3.5l-9 9",
  add: "M8 2.5v11M2.5 8h11",
  back: "M9.5 3 4.5 8l5 5",
  check: "M3 8.5 6.5 12 13 4.5",
  import: "M8 10.5V2M4.5 5.5 8 2l3.5 3.5M2.5 13.5h11",
  record: "M8 3.5a4.5 4.5 0 1 1 0 9 4.5 4.5 0 0 1 0-9z",
  volume: "M2 6v4h3l4 3V3L5 6zM11.5 5.5a3.5 3.5 0 0 1 0 5",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("i", `i-${name}`);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Creates a button. With `name` it shows that icon, and the label becomes its accessible name and its tooltip. */
export function button(label, onclick, { name, look = "", ...props } = {}) {
  if (!name) return h("button", { type: "button", class: look, onclick, ...props }, label);
  return h("button", { type: "button", class: `icon ${look}`, "aria-label": label, title: label, onclick, ...props }, icon(name));
}

/** A form control below its label. more: what follows it, such as a hint. */
export const field = (label, control, ...more) => h("div.field", {}, h("label", { for: control.id }, label), control, ...more);

export function debounce(run, wait_ms) {
  let timer = 0;
  const later = (...values) => {
    later.cancel();
    timer = setTimeout(run, wait_ms, ...values);
  };
  return Object.assign(later, { cancel: () => clearTimeout(timer) });
}

/** A random id; crypto.randomUUID is missing on plain http. */
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

// ---- storage between visits. When the browser blocks it, values are kept until the page is reloaded.

const memory = new Map();

export const store = {
  get(name, otherwise) {
    try {
      const kept = localStorage.getItem(`studio.${name}`);
      if (kept === null) return memory.get(name) ?? otherwise;
      return typeof otherwise === "string" ? kept : JSON.parse(kept);
    } catch {
      return memory.get(name) ?? otherwise;
    }
  },
  set(name, value) {
    memory.set(name, value);
    try {
      localStorage.setItem(`studio.${name}`, typeof value === "string" ? value : JSON.stringify(value));
    } catch {
      // Storage is full or blocked: `memory` has the value.
    }
  },
};

// ---- languages

let words = {};
const folders = [""]; // the folders below i18n whose texts are loaded: "" = the texts that all pages share
export let language = "en";
let numbers = new Map();
let languageNames;

/** The texts of a file: { nav: { speak: "Speak" } } becomes { "nav.speak": "Speak" }; the key "" names its group. */
async function textsOf(folder, name) {
  const groups = await (await fetch(`${ROOT}/static/i18n/${folder}${name}.json`)).json();
  const flat = ([group, texts]) => (typeof texts === "string" ? [[group, texts]] : Object.entries(texts).map(([key, text]) => [key ? `${group}.${key}` : group, text]));
  return Object.fromEntries(Object.entries(groups).flatMap(flat));
}

/** Loads texts that only some pages use. folder: such as "voices/". */
export async function loadTexts(folder) {
  if (folders.includes(folder)) return;
  Object.assign(words, await textsOf(folder, language));
  folders.push(folder);
}

export const hasText = (key) => key in words;

/** Loads styles that only some pages use. name: such as "voices". Resolves when they apply. */
export function loadStyles(name) {
  const href = `${ROOT}/static/${name}.css`;
  if (document.querySelector(`link[href="${href}"]`)) return null;
  return new Promise((resolve) => {
    document.head.append(h("link", { rel: "stylesheet", href, onload: resolve, onerror: resolve }));
  });
}

export async function loadLanguage(name) {
  const preferred = name ?? (store.get("language", "") || navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag in LANGUAGES) || "en");
  const chosen = preferred in LANGUAGES ? preferred : "en";
  words = Object.assign({}, ...await Promise.all(folders.map((folder) => textsOf(folder, chosen))));
  language = chosen;
  numbers = new Map();
  languageNames = undefined;
  document.documentElement.lang = chosen;
  document.documentElement.dir = words["dir"] ?? "ltr";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
}

/** The text of a key with its {slots} filled. `n` selects key.one or key.other. Numbers are formatted for the language. */
export function t(key, slots = {}) {
  let found = words[key];
  if (typeof slots.n === "number") found = words[`${key}.${new Intl.PluralRules(language).select(slots.n)}`] ?? words[`${key}.other`] ?? found;
  if (found === undefined) return key;
  return found.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = slots[name];
    return value === undefined ? whole : typeof value === "number" ? number(value) : String(value);
  });
}

/** A text in another language; in English if the pages do not have that language. tag: such as "de-AT". */
export async function textIn(tag, key) {
  const name = LANGUAGES[tag?.slice(0, 2)] ? tag.slice(0, 2) : "en";
  return name === language ? t(key) : (await textsOf("", name))[key];
}

export function number(value, digits = Number.isInteger(value) ? 0 : 1) {
  if (!numbers.has(digits)) numbers.set(digits, new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  return numbers.get(digits).format(value);
}

export const seconds = (value) => `${number(value, value < 1 ? 2 : 1)} s`;

export function clock(value) {
  const whole = Math.floor(value);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** A language tag's name in the page's language; the tag itself where the browser knows no name. */
export function languageName(tag) {
  try {
    languageNames ??= new Intl.DisplayNames([language], { type: "language" });
    return languageNames.of(tag);
  } catch {
    return tag;
  }
}

/** A text of the API. It is English in every language of the page. */
export const quoted = (text) => h("span", { lang: "en", class: "quoted" }, text);

// ---- announcements

export const announce = (text) => (document.getElementById("status").textContent = text);
export const alarm = (text) => (document.getElementById("alert").textContent = text);

let toast = null;

/** Shows a message with one button for 8 s. The time stops while it has the pointer or the focus. */
export function notify(text, action, act) {
  toast?.remove();
  const remove = () => own.remove();
  const later = () => (timer = setTimeout(remove, 8000));
  const stay = () => clearTimeout(timer);
  let timer = 0;
  const own = h("section.toast", { "aria-label": t("notice"), onpointerenter: stay, onpointerleave: later, onfocusin: stay, onfocusout: later },
    h("span", {}, text),
    action && button(action, () => { remove(); act(); }, { look: "quiet" }),
  );
  toast = own;
  document.body.append(own);
  announce(text);
  later();
}

// ---- dialogs: native, so the browser handles Esc and keeps the focus inside

/** Opens a dialog with the children that `build(close)` returns. Resolves to the argument of `close`, or undefined. */
export function dialog(title, build, { look = "" } = {}) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    let result;
    const id = `dialog-${newId()}`;
    const close = (value) => { result = value; box.close(); };
    const box = h("dialog", { class: look, "aria-labelledby": id },
      h("div.dialog-head", {},
        h("h2", { id }, title),
        button(t("close"), () => close(), { name: "close", look: "quiet" }),
      ),
      build(close),
    );
    box.addEventListener("close", () => {
      box.remove();
      if (before?.isConnected) before.focus();
      resolve(result);
    });
    box.addEventListener("pointerdown", (event) => { if (event.target === box) close(); });
    document.body.append(box);
    box.showModal();
    (box.querySelector("[autofocus]") ?? box.querySelector("input, select, button:not(.icon)"))?.focus();
  });
}

/** Asks for a confirmation; `cancel` has the focus. Resolves to true when `action` was pressed. */
export const confirm = (title, text, action, cancel = t("cancel")) => dialog(title, (close) => [
  h("p", {}, text),
  h("div.row.end", {},
    button(cancel, () => close(false), { autofocus: true }),
    button(action, () => close(true), { look: "danger" }),
  ),
]);

/** Copies the text of an element. On plain http browsers forbid that: the selected text waits for Ctrl+C. */
export async function copy(element) {
  const range = document.createRange();
  range.selectNodeContents(element);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  try {
    await navigator.clipboard.writeText(element.textContent);
    notify(t("copied"));
  } catch {
    notify(t("selected"));
  }
}

/** Offers a file for download. */
export function download(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Creates ARIA tabs: arrow keys move between them. entries: [id, label, panel]. Returns the tab list and the panels. */
export function tabs(label, entries, chosen = entries[0][0]) {
  const show = (id, focus) => {
    for (const [each, , panel] of entries) {
      const tab = list.querySelector(`[data-tab="${each}"]`);
      tab.setAttribute("aria-selected", String(each === id));
      tab.tabIndex = each === id ? 0 : -1;
      panel.hidden = each !== id;
      if (each === id && focus) tab.focus();
    }
  };
  const group = newId();
  const list = h("div", { role: "tablist", "aria-label": label, class: "tabs", onkeydown: (event) => {
    const ids = entries.map(([id]) => id);
    const at = ids.indexOf(event.target.dataset.tab);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: ids.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    show(ids[(to + ids.length) % ids.length], true);
  } }, entries.map(([id, text]) => h("button", { type: "button", role: "tab", id: `${group}-${id}`, "aria-controls": `${group}-${id}-panel`, data: { tab: id }, onclick: () => show(id) }, text)));
  for (const [id, , panel] of entries) {
    panel.id = `${group}-${id}-panel`;
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", `${group}-${id}`);
  }
  show(chosen);
  return [list, ...entries.map(([, , panel]) => panel)];
}

/** Creates a place for a request as code, which is loaded when it is seen. Returns [element, refresh(path, body)]. */
export function snippetSlot() {
  const slot = h("div.code-slot");
  let request = null;
  let show = null;
  new IntersectionObserver(async (entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    const { snippetTabs } = await import("./pages/snippets.js");
    const [tabs, refresh] = snippetTabs();
    slot.replaceChildren(...tabs);
    show = refresh;
    if (request) show(...request);
  }).observe(slot);
  return [slot, (...shown) => { request = shown; show?.(...shown); }];
}
