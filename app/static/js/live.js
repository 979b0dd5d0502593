// Live speech: sends text to the Realtime socket, plays the audio, and knows which text was heard. Places are places in the
// text of the page, in UTF-16 units.

import { ApiError, apiKey, call, fromBase64, hasKey, health } from "./api.js";
import { player } from "./player.js";
import { RATE, Track } from "./takes.js";
import { ROOT, t } from "./ui.js";

const COMMIT_MS = 2500; // a text that does not grow for this time is complete
const REPORT_MS = 1000;
const IGNORED = "stop"; // the event id of messages whose errors have no effect: the response had already ended
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/; // what the name of a subprotocol may contain

/** The text of one response of the server, and its audio. */
class Part {
  id = ""; // of the response, once the server has created it
  item = "";
  track = new Track();
  chunks = []; // { to, at }: the audio of the text up to `to` begins at this sample
  at_s = 0; // the position of the player
  begun = false; // whether the player has loaded it
  starved = false; // whether the player waits for further audio
  played = false;
  stopped = false;
  failed = false; // the server has created no response
  heard = null; // the end of the heard text; null = it follows the player

  constructor(from) {
    this.from = this.to = from;
  }

  /** The ends of the heard text and of the text that is being spoken. */
  get progress() {
    if (this.heard !== null) return [this.heard, this.heard];
    if (this.played) return [this.to, this.to];
    const at = this.at_s * RATE;
    if (!this.begun || !this.track.length) return [this.from, this.from];
    const now = this.chunks.findLastIndex((chunk) => chunk.at <= at);
    if (now < 0) return [this.from, this.from];
    if (now === this.chunks.length - 1 && at >= this.track.length) return [this.chunks[now].to, this.chunks[now].to];
    return [this.chunks[now - 1]?.to ?? this.from, this.chunks[now].to];
  }

  /** An estimate of the end of the heard text inside of a chunk. */
  get estimate() {
    const [from, to] = this.progress;
    const now = this.chunks.findIndex((chunk) => chunk.to === to);
    if (from === to || now < 0) return from;
    const end = this.chunks[now + 1]?.at ?? this.track.length;
    return from + Math.floor(((to - from) * Math.max(0, this.at_s * RATE - this.chunks[now].at)) / Math.max(1, end - this.chunks[now].at));
  }
}

/** Dispatches "change". settings: voice and language of the next text. */
export class LiveSpeech extends EventTarget {
  settings = {};
  parts = [];
  error = null;
  #open = null; // the part that takes further text
  #socket = null;
  #waiting = []; // messages until the socket is open
  #timer = 0;

  /** halt: what Stop in the player does. */
  constructor(halt) {
    super();
    this.halt = halt;
    player.addEventListener("change", this.#followPlayer);
  }

  get busy() {
    return this.parts.some((part) => !part.played && !part.stopped);
  }

  /** idle | waiting | speaking | error */
  get state() {
    if (this.error) return "error";
    if (!this.busy) return "idle";
    return player.playing && this.parts.some(({ track, progress: [heard, now] }) => track === player.track && now > heard) ? "speaking" : "waiting";
  }

  /** Speaks text that stands at a place of the page's text. */
  append(text, at) {
    if (!text) return;
    this.error = null;
    if (!this.#open) {
      const part = (this.#open = new Part(at));
      this.parts.push(part);
      part.track.addEventListener("grow", () => this.#grew(part));
      part.track.stopper = () => this.busy && this.halt;
      part.track.about = { kind: "speech", voice: this.settings.voice, text: "", body: { ...this.settings, input: "" }, source: "live", preview: true };
      const { voice, language } = this.settings;
      const output = voice ? { audio: { output: { voice } } } : {};
      this.#send({ type: "session.update", session: { type: "realtime", ...output, ...(language ? { language } : {}) } });
      player.prepare(); // inside the handler of the key: browsers only allow it there
    }
    this.#open.to = at + text.length;
    this.#open.track.about.body.input = this.#open.track.about.text += text;
    this.#send({ type: "input_text_buffer.append", text });
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.commit(), COMMIT_MS);
    this.#changed();
  }

  /** The text is complete. Text after it is a new response. */
  commit() {
    clearTimeout(this.#timer);
    if (!this.#open) return;
    this.#open = null;
    this.#send({ type: "input_text_buffer.commit" });
  }

  /** Silences the voice immediately. Resolves when the server has said which words were heard, or after 1 s. */
  stop() {
    clearTimeout(this.#timer);
    const reports = [];
    for (const part of this.parts) {
      if (part.played || part.stopped) continue;
      const end_ms = Math.floor(1000 * Math.min(part.at_s, part.track.seconds));
      part.heard = part.estimate;
      part.stopped = true;
      if (player.track === part.track) player.stop();
      if (part === this.#open) this.#send({ type: "input_text_buffer.clear" });
      else if (!part.track.ended && part.id) this.#send({ type: "response.cancel", event_id: IGNORED, response_id: part.id });
      part.track.end();
      if (end_ms && part.item) {
        this.#send({ type: "conversation.item.truncate", event_id: IGNORED, item_id: part.item, content_index: 0, audio_end_ms: end_ms });
        this.#send({ type: "conversation.item.retrieve", event_id: IGNORED, item_id: part.item });
        reports.push(new Promise((resolve) => (part.reported = resolve)));
      }
    }
    this.#open = null;
    this.#changed();
    return Promise.race([Promise.all(reports), new Promise((resolve) => setTimeout(resolve, REPORT_MS))]);
  }

  /** Forgets the text and its marks. */
  clear() {
    this.stop();
    this.parts = [];
    this.error = null;
    this.#changed();
  }

  /**
   * The part of `text` from `from` to `to` was replaced, and grew by `grown`. If it was not heard, the speech stops and it
   * is sent again. sent: the end of the text that was sent. Returns its new end.
   */
  edit(text, { from, to, grown, sent }) {
    const current = this.parts.findIndex((part) => !part.played && !part.stopped && part.to > from);
    const moved = (place) => (place <= from ? place : place >= to ? place + grown : from);
    if (current >= 0 && from >= this.parts[current].progress[0]) {
      const part = this.parts[current];
      let again = Math.min(from, part.estimate);
      while (again > part.from && /\S/.test(text[again - 1])) again--; // the start of a word
      this.stop();
      this.parts.length = current + 1;
      Object.assign(part, { heard: again, to: again, item: "" });
      return again;
    }
    for (const part of this.parts) {
      part.from = moved(part.from);
      part.to = moved(part.to);
      if (part.heard !== null) part.heard = moved(part.heard);
      for (const chunk of part.chunks) chunk.to = moved(chunk.to);
    }
    return moved(sent);
  }

  /** The marks in the text, in order: [from, to, mark]. mark: heard | now | unheard. */
  marks() {
    return this.parts.flatMap((part) => {
      const [heard, now] = part.progress;
      return [[part.from, heard, "heard"], [heard, now, "now"], [now, part.to, "unheard"]].filter(([from, to]) => to > from);
    });
  }

  /** Stops, and closes the connection. */
  close() {
    this.stop();
    player.removeEventListener("change", this.#followPlayer);
    this.#socket?.close();
    this.#socket = null;
  }

  // ---- the connection

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) return this.#socket.send(JSON.stringify(message));
    this.#waiting.push(message);
    if (!this.#socket) this.#connect();
  }

  async #connect() {
    const pending = (this.#socket = { close() { this.closed = true; } });
    try {
      const protocols = ["realtime"];
      if (hasKey() || health.last?.key_needed) {
        // A refused WebSocket does not say why, so this request checks the key and asks for another one.
        const secret = await (await call("/v1/realtime/client_secrets", { json: {} })).json();
        protocols.push(`openai-insecure-api-key.${TOKEN.test(apiKey()) ? apiKey() : secret.value}`);
      }
      if (pending.closed) return;
      const socket = (this.#socket = new WebSocket(location.origin.replace(/^http/, "ws") + ROOT + "/v1/realtime", protocols));
      socket.onopen = () => this.#waiting.splice(0).forEach((message) => socket.send(JSON.stringify(message)));
      socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(JSON.parse(data));
      socket.onclose = ({ reason }) => socket === this.#socket && this.#lost(new ApiError({ status: reason ? 400 : 0, code: "session_expired", message: reason }));
    } catch (error) {
      if (!pending.closed) this.#lost(error instanceof ApiError ? error : new ApiError({ message: String(error.message ?? error) }));
    }
  }

  /** The connection has ended. Audio that has arrived is still played. */
  #lost(error) {
    this.#socket = null;
    this.#waiting = [];
    this.#open = null;
    const unfinished = this.parts.filter((part) => !part.track.ended);
    for (const part of this.parts) part.failed ||= !part.id;
    for (const part of unfinished) {
      part.track.end();
      if (!part.track.length) [part.stopped, part.heard] = [true, part.from];
    }
    if (unfinished.length) this.error = error;
    this.#changed();
  }

  #receive(event) {
    const part = this.parts.find((each) => each.id && each.id === (event.response_id ?? event.response?.id));
    switch (event.type) {
      case "response.created": {
        const created = this.parts.find((each) => !each.id && !each.failed);
        if (created) created.id = event.response.id;
        break;
      }
      case "response.output_item.added":
        if (part) part.item = event.item.id;
        break;
      case "response.output_audio_transcript.delta":
        if (part && !part.stopped) part.chunks.push({ to: (part.chunks.at(-1)?.to ?? part.from) + event.delta.length, at: part.track.length });
        break;
      case "response.output_audio.delta":
        if (part && !part.stopped) part.track.appendBytes(fromBase64(event.delta));
        break;
      case "response.done":
        if (part && !part.stopped) {
          if (event.response.status === "failed") this.#fail(event.response.status_details.error);
          part.track.end();
          if (!part.track.length) part.played = true;
          this.#playNext();
        }
        break;
      case "conversation.item.retrieved": {
        const stopped = this.parts.find((each) => each.item === event.item.id);
        if (!stopped) break;
        stopped.heard = Math.min(stopped.to, stopped.from + event.item.content.map((content) => content.transcript).join("").length);
        stopped.reported?.();
        break;
      }
      case "error":
        if (event.error.event_id !== IGNORED) this.#fail(event.error);
        break;
      default:
        return;
    }
    this.#changed();
  }

  #fail({ type, code, param, message }) {
    this.error = new ApiError({ status: { invalid_request_error: 400, rate_limit_error: 429 }[type] ?? 500, code, param, message });
    for (const part of this.parts) {
      if (part.id || part.failed) continue;
      part.track.end(); // the server has created no response for this text
      [part.failed, part.stopped, part.heard] = [true, true, part.from];
      if (part === this.#open) this.#open = null;
    }
  }

  // ---- playback: one part after another

  #grew(part) {
    if (player.track === part.track) {
      // After a pause of the writer, the player would wait for more and more audio.
      if (player.playing && part.starved) player.play();
      part.starved = false;
    } else this.#playNext();
  }

  #playNext() {
    const current = this.parts.find((part) => part.track === player.track);
    if (current && !current.played && !current.stopped) return;
    const next = this.parts.find((part) => !part.played && !part.stopped && part.track.length);
    if (next) player.load(next.track);
  }

  #followPlayer = ({ why }) => {
    const current = this.parts.find((part) => part.track === player.track);
    if (!current) {
      if (this.parts.some((part) => part.begun && !part.played && !part.stopped)) this.stop(); // something else is played
      return;
    }
    current.begun = true;
    if (!current.stopped) current.at_s = player.at_s;
    if (why === "underrun") current.starved = true;
    if (why === "ended") {
      current.played = true;
      this.#playNext();
      player.dispatchEvent(new Event("change")); // hides Stop
    }
    this.#changed();
  };

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** Streams the answer of a language model (OpenAI's chat completions) to `on`. */
export async function streamAnswer({ url, model, key, question }, on, signal) {
  let answer;
  try {
    answer = await fetch(`${url.replace(/\/+$/, "")}/chat/completions`, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) },
      body: JSON.stringify({ ...(model ? { model } : {}), stream: true, messages: [{ role: "user", content: question }] }),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(t("live.unreachable"));
  }
  if (!answer.ok) {
    const details = await answer.json().catch(() => ({}));
    throw new Error(`${t("live.refused", { status: String(answer.status) })} ${details.error?.message ?? ""}`);
  }
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += decoder.decode(value, { stream: !done });
    const lines = rest.split(/\r?\n/);
    rest = done ? "" : lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:") || line.slice(5).trim() === "[DONE]") continue;
      const event = JSON.parse(line.slice(5));
      if (event.error) throw new Error(event.error.message ?? String(event.error));
      on(event.choices?.[0]?.delta?.content ?? "");
    }
    if (done) return;
  }
}
