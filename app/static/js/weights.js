// The banner that is shown while the requested model does not run, and the panel that downloads its weights.

import { ApiError, call, canSpeak, details, errorBox, getJson, health, models, serverVoice } from "./api.js";
import { player } from "./player.js";
import { preview } from "./speech.js";
import { announce, button, copy, dialog, field as labelled, h, language, loadTexts, number, t } from "./ui.js";

const EVERY_MS = 1000;
const NAMES = { shell: "Shell", env: ".env", compose: "compose.yaml" };
const gb = (bytes) => number(bytes / 1e9, bytes < 1e8 ? 3 : 1);

export function duration(value_s) {
  if (value_s < 120) return t("server.seconds", { s: Math.round(value_s) });
  if (value_s < 7200) return t("server.minutes", { n: Math.round(value_s / 60) });
  return t("server.hours", { n: Math.round(value_s / 3600) });
}

/** Returns a progress bar with bytes, speed and time left, and a function that shows new values. */
function progress() {
  const bar = h("progress", { "aria-label": t("weights.running") });
  const text = h("p");
  return [[bar, text], ({ done_bytes, total_bytes, rate, eta_s }) => {
    if (total_bytes) [bar.max, bar.value] = [total_bytes, done_bytes];
    text.textContent = [total_bytes ? t("weights.of", { done: gb(done_bytes), of: gb(total_bytes) }) : t("weights.size", { n: gb(done_bytes) }), rate > 0 && t("weights.rate", { n: number(rate / 1e6, 1) }), eta_s && t("weights.eta", { time: duration(eta_s) })].filter(Boolean).join(" · ");
  }];
}

// ---- the banner

let shown = "";
let tick = () => {};

/** Shows in `slot` why the requested model does not speak, or hides the slot. */
export async function banner(slot) {
  const { last } = health;
  const list = last && last.status !== "ok" ? await models().catch(() => []) : [];
  await loadTexts("weights/").catch(() => {});
  const wanted = list[0];
  const key = JSON.stringify([language, last?.status, last?.reason, last?.model, wanted?.status, Boolean(last?.download)]);
  if (key !== shown) {
    shown = key;
    slot.hidden = !last || last.status === "ok";
    if (slot.hidden) return slot.replaceChildren();
    const starts = last.status === "starting";
    const [bar, update] = progress();
    tick = update;
    const name = wanted?.id ?? last.requested_engine;
    slot.replaceChildren(h("div.banner", {},
      h("p.headline", {}, t(starts ? "banner.starting" : last.model ? "banner.stand_in" : "banner.none", { wanted: name, engine: last.model ?? "" })),
      last.download ? bar : details([last.reason, last.remedy].filter(Boolean).join(" – ")),
      !starts && wanted && h("div.row", {}, button(t(last.download ? "weights.show" : wanted.status === "missing_weights" ? "banner.get" : "banner.remedy"), () => open(name), { look: "primary" }))));
  }
  if (last?.download) tick({ ...last.download, rate: last.download.rate_bytes_s });
}

// ---- the panel

/** Opens the panel for the weights of a model. A download goes on when the panel is closed. */
export async function open(model) {
  await Promise.all(["weights/", "errors/"].map(loadTexts)).catch(() => {});
  let timer = 0;
  const path = `/v1/models/${model}/weights`;
  await dialog(t("banner.get"), (close) => {
    const body = h("div.stack", {}, h("p.hint", {}, h("progress", { "aria-label": t("banner.get") })));
    let phase = "";
    let update = () => {};

    async function act(run) {
      clearTimeout(timer);
      try {
        show(await run());
      } catch (error) {
        const slot = body.querySelector(".said");
        const box = errorBox(error, slot ? [] : [button(t("again"), look)]);
        if (slot) slot.replaceChildren(box);
        else body.replaceChildren(box, ...(health.last?.remedy ? commands({ shell: health.last.remedy }, true) : []));
      }
    }
    const look = () => act(() => getJson(path));
    const start = (order) => act(async () => (await call(path, { json: order })).json());
    const cancel = () => act(async () => (await call(`${path}/cancel`, { method: "POST" })).json());

    function show(now) {
      const { state, status, download } = now;
      const next = state === "complete" ? (status === "ready" ? "ready" : canSpeak(now) || status === "loading" ? "loading" : "broken") : state === "downloading" ? state : "choice";
      if (["downloading", "loading"].includes(next) && body.isConnected) timer = setTimeout(look, EVERY_MS);
      if (next !== phase || next === "choice") {
        const began = phase !== "";
        phase = next;
        const held = body.contains(document.activeElement);
        body.replaceChildren(...VIEWS[next](now).flat().filter(Boolean));
        if (held) body.querySelector("button, input")?.focus();
        if (began) announce(body.querySelector("p").textContent);
        if (began || next === "ready") health.look();
      }
      if (download) update({ ...download, rate: download.bytes_per_s });
    }

    const VIEWS = {
      downloading({ download }) {
        const [bar, tell] = progress();
        update = tell;
        return [h("p", {}, t("weights.running"), " ", h("b", {}, download.repository)), bar, h("p.hint", {}, t("weights.close")), h("div.row", {}, button(t("weights.stop"), cancel)), h("div.said")];
      },
      loading: () => [h("p", {}, t("weights.loading", { model })), h("progress", { "aria-label": t("weights.loading", { model }) })],
      ready: () => [h("p", {}, t("weights.ready", { model })), h("div.row", {}, button(t("lexicon.hear"), () => {
        player.prepare();
        close();
        preview({ id: serverVoice(), name: serverVoice() }, { model });
      }, { look: "primary" }))],
      broken: (now) => [h("p", {}, t("error.failed", { engine: model })), details(now.detail), h("div.row", {}, button(t("again"), () => start({}))), h("div.said"), commands(now.commands)],
      choice,
    };

    function choice({ sources, files, free_bytes, token, download, hub, commands: lines, detail }) {
      const error = download?.error ?? hub;
      const open = sources.find((each) => !each.needs_token);
      const gated = sources.find((each) => each.needs_token);
      const size = ({ bytes, done_bytes }) => (bytes ? ` (${done_bytes ? t("weights.of", { done: gb(done_bytes), of: gb(bytes) }) : t("weights.size", { n: gb(bytes) })})` : "");
      const field = h("input", { type: "password", autocomplete: "off", id: "hub-token", required: true });
      const save = h("input", { type: "checkbox" });
      const remove = () => act(async () => {
        await call("/v1/hub-token", { method: "DELETE" });
        return getJson(path);
      });
      return [
        h("p", {}, t("weights.lacks", { model, size: size({ bytes: files.total_bytes }), free: gb(free_bytes) })),
        error && h("div.error", {}, h("p", {}, new ApiError({ status: 503, ...error }).headline), details(error.message)),
        !sources.length && details(detail),
        open && h("div.row", {}, button(t(open.done_bytes ? "weights.resume" : open.gated ? "weights.original" : "weights.copy") + size(open), () => start({ source: open.repository }), { look: "primary", autofocus: true })),
        open && h("p.hint", {}, open.repository),
        token.from === "file" && h("div.row", {}, button(t("weights.forget"), remove, { look: "quiet" })),
        h("div.said"),
        gated && h("details.fold", { open: !open }, h("summary", {}, t("weights.original") + size(gated)), h("form.stack", { onsubmit: (event) => {
          event.preventDefault();
          start({ source: gated.repository, token: field.value.trim(), save_token: save.checked });
          field.value = "";
        } },
          h("p", {}, t("weights.licence"), " ", h("a", { href: gated.licence_url, target: "_blank", rel: "noreferrer" }, gated.licence_url)),
          labelled(t("weights.token"), field),
          h("label.check", {}, save, t("weights.save")),
          h("div.row", {}, h("button", {}, t("weights.original"))))),
        commands(lines, !sources.length),
      ];
    }

    /** Lines for a restart, each with a button that copies just them. */
    function commands(lines, open = false) {
      return [h("details.fold", { open }, h("summary", {}, t("weights.lines")), Object.entries(lines).filter(([, text]) => text).map(([key, text]) => {
        const name = NAMES[key];
        const pre = h("pre", { tabindex: 0, lang: "en" }, text);
        return [h("p.hint", {}, name), h("div.code.short", {}, pre, button(t("weights.copy_of", { name }), () => copy(pre), { name: "copy", look: "quiet" }))];
      }))];
    }

    look();
    return body;
  });
  clearTimeout(timer);
  health.look();
}
