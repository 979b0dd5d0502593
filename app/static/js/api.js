// The API client of the pages: requests with the API key, errors for people, streamed speech, the state of the server.

import { ROOT, alarm, button, dialog, h, quoted, t } from "./ui.js";

// ---- the API key, kept for this session or in this browser

let key = (() => {
  try {
    return sessionStorage.getItem("studio.key") ?? localStorage.getItem("studio.key") ?? "";
  } catch {
    return "";
  }
})();

export const hasKey = () => key !== "";
export const apiKey = () => key;

function keep(value, remembered) {
  key = value;
  try {
    sessionStorage.setItem("studio.key", value);
    if (remembered && value) localStorage.setItem("studio.key", value);
    else localStorage.removeItem("studio.key");
  } catch {
    // Storage is blocked: the key is kept until the page is closed.
  }
}

let keyDialog = null;

/** Asks for the key. Resolves to true when the person entered one. Several callers share one dialog. */
export function askKey(wrong = "") {
  keyDialog ??= dialog(t("key.title"), (close) => {
    const field = h("input", { type: "password", autocomplete: "off", id: "key-field", value: key, autofocus: true, "aria-describedby": wrong ? "key-wrong" : null });
    const remember = h("input", { type: "checkbox", id: "key-remember" });
    return h("form", { class: "stack", onsubmit: (event) => {
      event.preventDefault();
      keep(field.value.trim(), remember.checked);
      close(true);
    } },
      wrong && h("p", { class: "bad", id: "key-wrong" }, quoted(wrong)),
      h("label", { for: "key-field" }, t("key.label")),
      field,
      h("label", { class: "check" }, remember, t("key.remember")),
      h("p", { class: "hint" }, t("key.hint")),
      h("div", { class: "row end" },
        button(t("key.forget"), () => { keep("", false); close(false); }, { look: "quiet" }),
        h("button", { class: "primary" }, t("key.use")),
      ),
    );
  }).finally(() => (keyDialog = null));
  return keyDialog;
}

// ---- errors

/** An error of the API. `headline` is in the language of the page, `message` is the English text of the API. */
export class ApiError extends Error {
  constructor({ status = 0, code = null, param = null, message = "", requestId = "", retryAfter_s = 0 }) {
    super(message);
    Object.assign(this, { status, code, param, requestId, retryAfter_s });
  }

  get headline() {
    if (this.status === 0) return t("error.offline");
    if (this.status === 401) return t("error.key");
    if (this.code === "missing_scope") return t("error.scope");
    if (this.code === "voice_not_found" || /voice$/.test(this.param ?? "")) return t("error.voice");
    if (this.code === "string_too_long") return t("error.long");
    if (this.code === "too_many_speakers") return t("error.speakers");
    if (this.status === 413) return t("error.large");
    if (this.status === 429) return t("error.busy");
    if (this.status === 503) return t("error.not_ready");
    if (this.status >= 500) return t("error.engine");
    if (this.status === 404) return t("error.missing");
    return t("error.request");
  }
}

async function errorOf(answer) {
  let details = {};
  try {
    details = (await answer.json()).error ?? {};
  } catch {
    // No JSON error: a proxy in front of the server answered.
  }
  return new ApiError({
    status: answer.status,
    code: details.code ?? null,
    param: details.param ?? null,
    message: details.message ?? `${answer.status} ${answer.statusText}`.trim(),
    requestId: answer.headers.get("x-request-id") ?? "",
    retryAfter_s: Number(answer.headers.get("retry-after")) || 0,
  });
}

/** A box with an error: headline, the API's message, buttons (`actions`), request id. */
export function errorBox(error, actions = [], headline = error instanceof ApiError ? error.headline : String(error.message ?? error)) {
  if (error.code === "missing_scope") actions = [...actions, button(t("key.other"), () => askKey(error.message), { look: "quiet" })];
  alarm(`${headline} ${error.message ?? ""}`);
  return h("div", { class: "error" },
    h("p", { class: "headline" }, headline),
    error instanceof ApiError && error.message && h("p", {}, quoted(error.message)),
    actions.length > 0 && h("div", { class: "row" }, actions),
    error.requestId && h("p", { class: "hint" }, t("error.id"), " ", h("code", {}, error.requestId)),
  );
}

// ---- requests

/** Fetches with the API key. On a 401 it asks for a key and tries again. Throws ApiError or AbortError. */
export async function call(path, { json, ...options } = {}) {
  for (;;) {
    const headers = new Headers(options.headers);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    if (json !== undefined) headers.set("Content-Type", "application/json");
    let answer;
    try {
      answer = await fetch(ROOT + path, { method: json === undefined ? "GET" : "POST", ...options, headers, body: json === undefined ? options.body : JSON.stringify(json) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError({ message: "" });
    }
    if (answer.ok) return answer;
    const error = await errorOf(answer);
    if (error.status !== 401 || !(await askKey(error.message))) throw error;
  }
}

export const getJson = async (path, options) => (await call(path, options)).json();

/**
 * Streams speech. Calls `on.head(headers)` once, `on.audio(bytes)` for each chunk, `on.progress(event)` and `on.words(event)`.
 * Resolves to the usage. Throws ApiError when the stream breaks off, with the server's message if there is one.
 */
export async function speakStream(path, body, on, signal) {
  const answer = await call(path, { json: { ...body, response_format: "pcm", stream_format: "sse", progress: true, timestamps: true }, signal });
  on.head(answer.headers);
  const requestId = answer.headers.get("x-request-id") ?? "";
  const reader = answer.body.getReader(); // a TextDecoderStream would lose its queue when the connection breaks
  const decoder = new TextDecoder();
  let rest = "";
  let usage = null;
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      rest += decoder.decode(value, { stream: true });
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const data = rest.slice(6, end); // after "data: "
        rest = rest.slice(end + 2);
        if (data === "[DONE]") {
          ended = true;
          continue;
        }
        const event = JSON.parse(data);
        if (event.type === "speech.audio.delta") on.audio(fromBase64(event.audio));
        else if (event.type === "speech.progress") on.progress(event);
        else if (event.type === "speech.audio.words") on.words(event);
        else if (event.type === "speech.audio.done") usage = event.usage;
        else if (event.error) throw new ApiError({ status: 500, ...event.error, requestId });
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError({ requestId });
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!ended) throw new ApiError({ requestId });
  return usage;
}

export function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

// ---- lists of the server; cached until `anew` is true or the engine changes

const cached = new Map();

function listOf(path, pick) {
  return async (anew = false) => {
    if (anew || !cached.has(path)) cached.set(path, getJson(path).then(pick));
    try {
      return await cached.get(path);
    } catch (error) {
      cached.delete(path);
      throw error;
    }
  };
}

export const voices = listOf("/v1/audio/voices", (answer) => answer.voices);
export const models = listOf("/v1/models", (answer) => answer.data);

/** Whether a request for this model is spoken now. An unloaded model is loaded by its first request. */
export const canSpeak = (model) => model.status === "ready" || model.status === "unloaded";

/** Whether the running model speaks cloned voices. True while no model is ready. */
export const speaksClones = (list) => !list.some((model) => model.clones === false) || list.some((model) => model.clones);

/** The last answer of /health. Dispatches "look" after each request and "changed" when the engine changed. */
export const health = Object.assign(new EventTarget(), {
  last: null,
  at: 0,
  reachable: true,
  async look() {
    try {
      const answer = await fetch(`${ROOT}/health`);
      const state = await answer.json();
      const shown = ({ status, engine, models: list }) => JSON.stringify([status, engine, list]);
      const changed = this.last !== null && shown(state) !== shown(this.last);
      Object.assign(this, { last: state, at: Date.now(), reachable: true });
      if (changed) {
        cached.clear();
        this.dispatchEvent(new Event("changed"));
      }
    } catch {
      this.reachable = false;
    }
    this.dispatchEvent(new Event("look"));
    return this.last;
  },
});

/** A limit of requests, named as in /health. Undefined until /health has answered: the server then checks alone. */
export const limitOf = (name) => health.last?.limits?.[name];

/** The id of the server's default voice. Empty until /health has answered. */
export const serverVoice = () => health.last?.default_voice ?? "";

/** The attributes of a field for a number of a speech request. An exclusive minimum becomes the next step above it. */
export function rangeOf(field, step) {
  const { minimum, exclusiveMinimum, maximum } = limitOf("fields")?.[field] ?? {};
  return { min: minimum ?? (exclusiveMinimum === undefined ? undefined : exclusiveMinimum + step), max: maximum, step };
}
