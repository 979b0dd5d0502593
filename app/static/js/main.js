// The shell: routes, the header, and the keys that work on every page.

import { errorBox, health } from "./api.js";
import * as dock from "./dock.js";
import { player } from "./player.js";
import { speech } from "./speech.js";
import { ROOT, button, h, loadLanguage, store, t } from "./ui.js";

// Path -> the text of its title, and its file.
const ROUTES = {
  "/": ["nav.speak", "speak"],
  "/voice-cloning": ["nav.voices", "voices"],
  "/dialogue": ["nav.dialogue", "dialogue"],
  "/live": ["nav.live", "live"],
  "/books": ["nav.books", "books"],
  "/server": ["nav.server", "server"],
  "/pronunciation": ["lexicon.title", "pronunciation"],
};

// ---- routes. A page is a module with mount(main, { go, heading }) -> { unmount?, leave?, unsaved?, hash?, keys? }:
// leave() returns false, or a promise of false, to stay on the page. unsaved() returns true when closing the tab should
// ask first. hash(text) gets the part after #. keys(event) gets a key pressed outside of fields; true = it used the key.

let page = {};
let shown = "";
let shows = 0; // counts calls of show: only the last one takes effect

const pathNow = () => location.pathname.slice(ROOT.length) || "/";
let mounting = null; // the page that is being made

async function show({ focus = true } = {}) {
  const own = ++shows;
  const path = pathNow();
  const [title, file] = ROUTES[path] ?? ["page.gone"];
  const module = file ? await import(`./pages/${file}.js`).catch((error) => ({ mount: async () => { throw error; } })) : gone;
  if (own !== shows) return;
  page.unmount?.();
  const main = document.getElementById("main");
  document.title = `${t(title)} · ${t("shell.name")}`;
  for (const link of document.querySelectorAll("nav [data-route]")) {
    if (link.dataset.route === path) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = h("h1", { tabindex: -1 }, t(title));
  const about = path === "/" ? [h("p.hint.about", {}, t("shell.about"))] : [];
  main.replaceChildren(heading, ...about);
  main.dataset.page = path;
  shown = path;
  page = {};
  mounting = module.mount(main, { go, heading }).catch((error) => {
    console.error(error);
    if (own !== shows) return;
    shown = ""; // a press on its link opens the page again
    main.replaceChildren(heading, errorBox(new Error(t("page.failed")), [button(t("again"), retry)]));
  });
  const mounted = (await mounting) ?? {};
  if (own !== shows) return mounted.unmount?.();
  page = mounted;
  if (focus) heading.focus({ preventScroll: true });
  if (location.hash) page.hash?.(location.hash.slice(1));
}

/** Changes what the pages keep, and draws the page with the path that `at` returns. No page keeps its text later. */
async function refill(change, at) {
  await mounting;
  document.activeElement.blur();
  page.unmount?.();
  page = {};
  shown = "";
  change();
  if (at() !== pathNow() || location.search || location.hash) history.replaceState({}, "", ROOT + at());
  await show({ focus: false });
}

/** Fills in a link such as /?text=Hello&voice=nova. Returns whether it was one. */
async function openLink() {
  const fields = new URLSearchParams(location.hash.slice(1) || location.search);
  if (pathNow() !== "/" || !["text", "voice", "model"].some((name) => fields.has(name))) return false;
  await (await import("./link.js")).open(Object.fromEntries(fields), refill);
  return true;
}

/** The page of an address that does not exist. */
const gone = { async mount(main) {
  main.append(h("p", {}, t("page.gone_why")), h("div.row", {}, h("a.button", { href: `${ROOT}/`, data: { route: "/" } }, t("page.home"))));
} };

/** Opens the page again. Some browsers load a failed module again only with the document. */
async function retry() {
  await show();
  if (shown) return;
  await health.look();
  if (health.reachable) location.reload();
}

/** Opens a page of the studio, such as "/dialogue" or "/voice-cloning#new". */
export async function go(to, { push = true } = {}) {
  const [path, hash = ""] = to.split("#");
  if (path !== shown) {
    if ((await page.leave?.()) === false) return;
    if (push) history.pushState({}, "", ROOT + to);
    await show();
    scrollTo(0, 0);
  } else if (hash !== location.hash.slice(1)) {
    location.hash = hash;
  }
}

addEventListener("popstate", async () => {
  if (pathNow() === shown) return;
  if ((await page.leave?.()) === false) history.pushState({}, "", ROOT + shown);
  else await show();
});
addEventListener("hashchange", async () => (await openLink()) || page.hash?.(location.hash.slice(1)));
addEventListener("beforeunload", (event) => page.unsaved?.() && event.preventDefault());

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-route]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.dataset.route + (link.hash ?? ""));
});

// ---- the header

function pill() {
  const box = document.getElementById("pill");
  const text = document.getElementById("pill-text");
  const { last, reachable } = health;
  const level = !reachable ? "bad" : { ok: "ok", degraded: "warn", starting: "wait", unhealthy: "bad" }[last?.status] ?? "wait";
  box.dataset.level = level;
  const engine = last?.model ?? last?.requested_engine ?? "";
  const { voice, cast: n, voices: of } = last?.casting ?? {};
  text.textContent = !reachable ? t("pill.offline") : !last ? t("pill.wait") : voice ? t("pill.making", { n, of }) : t(`pill.${last.status}`, { engine });
}

/** Says on every page that the requested model does not run. */
async function showBanner() {
  const slot = document.getElementById("banner");
  if (health.last && (health.last.status !== "ok" || !slot.hidden)) await (await import("./weights.js")).banner(slot);
}

function setTheme(theme) {
  store.set("theme", theme);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  player.dispatchEvent(new Event("change"));
}

async function setLanguage(language) {
  store.set("language", language);
  await loadLanguage(language);
  await mountDock();
  pill();
  showBanner();
  await show({ focus: false });
}

const loadMenu = () => import("./menu.js");
const menu = async () => (await loadMenu()).menu(setLanguage, setTheme, refill);
const keyList = async () => (await loadMenu()).keyList();

// ---- keys

const FIELDS = "input, textarea, select, [contenteditable], [role=slider], [role=tab], dialog";

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing) return;
  if (event.key === "Escape" && (speech.busy || player.playing) && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    speech.stop();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(FIELDS) || !store.get("shortcuts", true)) return;
  if (event.key === " " && event.target.closest("button, a, summary")) return;
  const act = {
    " ": () => player.track && player.toggle(),
    x: () => player.swap(),
    X: () => player.swap(),
    ArrowLeft: () => (event.shiftKey ? player.step(-1) : player.seek(player.at_s - 1)),
    ArrowRight: () => (event.shiftKey ? player.step(1) : player.seek(player.at_s + 1)),
    "/": () => document.querySelector("main textarea, main input[type=search]")?.focus(),
    "?": keyList,
  }[event.key];
  if (page.keys?.(event)) return event.preventDefault();
  if (!act) return;
  event.preventDefault();
  act();
});

// The first press or key prepares the audio, so that the first Speak does not wait for it.
for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => player.prepare(), { once: true, capture: true });

// ---- start

let undock = () => {};

async function mountDock() {
  undock();
  undock = dock.mount(document.getElementById("dock"));
}

document.getElementById("menu-button").addEventListener("click", menu);
health.addEventListener("look", pill);
const watch = () => document.visibilityState === "visible" && health.look();
setInterval(watch, 5000);
document.addEventListener("visibilitychange", watch);
const firstLook = health.look();
await loadLanguage();
pill();
await mountDock();
await firstLook; // the pages read the limits of requests from it
health.addEventListener("look", showBanner);
await showBanner().catch(() => {});
if (!(await openLink())) await show({ focus: false });
