// The API client of the pages: requests with the API key, errors for people, streamed speech, the state of the server.

import { ROOT, alarm, button, dialog, h, hasText, loadTexts, quoted, t } from "./ui.js";

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
  health.look();
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
    return h("form.stack", { onsubmit: (event) => {
      event.preventDefault();
      keep(field.value.trim(), remember.checked);
      close(true);
    } },
      wrong && h("p.bad", { id: "key-wrong" }, wrong),
      h("label", { for: "key-field" }, t("key.label")),
      field,
      h("label.check", {}, remember, t("key.remember")),
      h("p.hint", {}, t("key.hint")),
      h("div.row.end", {},
        button(t("key.forget"), () => { keep("", false); close(false); }, { look: "quiet" }),
        h("button.primary", {}, t("key.use")),
      ),
    );
  }).finally(() => (keyDialog = null));
  return keyDialog;
}

// ---- errors

// Codes and statuses -> the error with the same words in i18n/errors. A code without its own words has those of its
// first parts: "youtube_failed" has the words of "youtube".
const SAME = {
  401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded", 503: "engine_not_ready", 507: "storage",
  cross_origin: "host_not_allowed", unfetchable: "youtube", method_not_allowed: "not_supported", audio_input_not_supported: "not_supported",
  wrong_job_status: "conflict", job_not_completed: "conflict", sentence_not_spoken: "conflict", idempotency_key_in_use: "conflict",
  conversation_already_has_active_response: "conflict", response_cancel_not_active: "conflict", download_running: "conflict", range_not_satisfiable: "invalid", no_download: "conflict", book_too_large: "request_too_large",
  youtube_playlist: "youtube_url_invalid", youtube_too_large: "youtube_too_long", youtube_outside_video: "youtube_too_long",
};

/** An error of the API. `headline` is in the language of the page, `message` is the English text of the API. */
export class ApiError extends Error {
  constructor({ status = 0, code = null, param = null, message = "", requestId = "", retryAfter_s = 0 }) {
    super(message);
    Object.assign(this, { status, code, param, requestId, retryAfter_s });
  }

  get headline() {
    if (this.status === 0) return t("error.offline");
    const key = `errors.${this.#words}`;
    return hasText(key) ? t(key, { param: this.param?.split(".").pop() ?? "" }).replace(/ ?\(\)/, "") : this.message;
  }

  get aboutVoice() {
    return this.#words === "voice";
  }

  /** Only the message of the API says what is wrong. */
  get vague() {
    return this.#words === "invalid";
  }

  get #words() {
    let name = SAME[this.code] ?? this.code ?? "";
    while (name && !hasText(`errors.${name}`)) name = name.replace(/_?[^_]*$/, "");
    if ((!name || name === "invalid") && /voice$/.test(this.param ?? "")) return "voice";
    return name || SAME[this.status] || (this.status < 500 ? "invalid" : "engine");
  }
}

/** Creates an error of the API after its words are loaded. */
export async function apiError(details) {
  await loadTexts("errors/").catch(() => {}); // without words, people read the message of the API
  return new ApiError(details);
}

async function errorOf(answer) {
  let details = {};
  try {
    details = (await answer.json()).error ?? {};
  } catch {
    // No JSON error: a proxy in front of the server answered.
  }
  return apiError({
    status: answer.status,
    code: details.code ?? null,
    param: details.param ?? null,
    message: details.message ?? `${answer.status} ${answer.statusText}`.trim(),
    requestId: answer.headers.get("x-request-id") ?? "",
    retryAfter_s: Number(answer.headers.get("retry-after")) || 0,
  });
}

/** The words for an error of any kind in the language of the page. */
export const wordsFor = (error) => error.headline ?? String(error.message ?? error);

/** What the API says in English, and the id of the request, in a fold; null if both are empty. */
export const details = (message, requestId = "", open = false) => (message || requestId) && h("details.fold", { open }, h("summary", {}, t("error.details")),
  message && h("p", {}, quoted(message)),
  requestId && h("p.hint", {}, t("error.id"), " ", h("code", {}, requestId)));

/** A box with an error: what happened, buttons (`actions`), and in a fold the API's message and the request id. */
export function errorBox(error, actions = [], title = "") {
  const words = wordsFor(error);
  if (error.code === "missing_scope") actions = [...actions, button(t("key.other"), () => askKey(words), { look: "quiet" })];
  alarm(`${title} ${words}`);
  return h("div.error", {},
    h("p.headline", {}, title || words),
    title && title !== words && h("p", {}, words),
    actions.length > 0 && h("div.row", {}, actions),
    error instanceof ApiError && details(error.message, error.requestId, error.vague),
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
    if (error.status !== 401 || !(await askKey(error.headline))) throw error;
  }
}

export const getJson = async (path, options) => (await call(path, options)).json();

const DONE = "[DONE]";

/** Parses a stream of server-sent events. Yields objects, and DONE. */
export async function* events(answer) {
  const reader = answer.body.getReader(); // a TextDecoderStream would lose its queue when the connection breaks
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const data = /^data: (.*)/m.exec(rest.slice(0, end))?.[1];
        rest = rest.slice(end + 2);
        if (data) yield data === DONE ? DONE : JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Streams speech. Calls `on.head(headers)` once, `on.audio(bytes)` for each chunk, `on.progress(event)` and `on.words(event)`.
 * Resolves to the usage. Throws ApiError when the stream breaks off, with the server's message if there is one.
 */
export async function speakStream(path, body, on, signal) {
  const answer = await call(path, { json: { ...body, response_format: "pcm", stream_format: "sse", progress: true, timestamps: true }, signal });
  on.head(answer.headers);
  const requestId = answer.headers.get("x-request-id") ?? "";
  let usage = null;
  let ended = false;
  try {
    for await (const event of events(answer)) {
      if (event === DONE) ended = true;
      else if (event.type === "speech.audio.delta") on.audio(fromBase64(event.audio));
      else if (event.type === "speech.progress") on.progress(event);
      else if (event.type === "speech.audio.words") on.words(event);
      else if (event.type === "speech.audio.done") usage = event.usage;
      else if (event.error) throw await apiError({ status: 500, ...event.error, requestId });
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError({ requestId });
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

const names = new Map(); // of the voices

/** The names of voices; ids that are not listed stay. ids: with ", " between them. */
export const nameOf = (ids) => ids?.split(", ").map((id) => names.get(id) ?? id).join(", ");

export const voices = listOf("/v1/audio/voices", (answer) => answer.voices.map((voice) => {
  names.set(voice.id, voice.name);
  const [key, { description }] = [`preset.${voice.id}`, voice];
  return voice.type === "preset" ? Object.defineProperty(voice, "description", { get: () => (hasText(key) ? t(key) : description) }) : voice;
}));
export const models = listOf("/v1/models", (answer) => answer.data);

/** Whether a request for this model is spoken now. An unloaded model is loaded by its first request. */
export const canSpeak = (model) => model.status === "ready" || model.status === "unloaded";

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

/** Whether the running model speaks cloned voices. True while no model is ready. */
export const speaksClones = (list) => !list.some((model) => model.clones === false) || list.some((model) => model.clones);

/** The last answer of /health. Dispatches "look" after each request and "changed" when the engine or the key changed. */
export const health = Object.assign(new EventTarget(), {
  last: null,
  at: 0,
  reachable: true,
  async look() {
    try {
      const answer = await fetch(`${ROOT}/health`, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
      const state = await answer.json();
      const shown = ({ status, engine, models: list, key: caller }) => JSON.stringify([status, engine, list, caller]);
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

/** Whether the key has a scope. True without a key. */
export const may = (scope) => health.last?.key?.scopes.includes(scope) ?? true;

/** Says that the key can't change voices; "" if it can. */
export const noChanges = () => (may("clone") ? "" : h("div.banner", {}, h("p", {}, t("key.lacks_clone", health.last.key)), h("div.row", {}, button(t("key.other"), () => askKey()))));

/** A limit of requests, named as in /health. Undefined until /health has answered: the server then checks alone. */
export const limitOf = (name) => health.last?.limits?.[name];

/** The id of the server's default voice. Empty until /health has answered. */
export const serverVoice = () => health.last?.default_voice ?? "";

/** The attributes of a field for a number of a speech request. An exclusive minimum becomes the next step above it. */
export function rangeOf(field, step) {
  const { minimum, exclusiveMinimum, maximum } = limitOf("fields")?.[field] ?? {};
  return { min: minimum ?? (exclusiveMinimum === undefined ? undefined : exclusiveMinimum + step), max: maximum, step };
}
