// The step Fetch: the server fetches a video and reports its progress.

import { ApiError, apiError, call, errorBox, events, voices } from "../../api.js";
import { button, h, number, t } from "../../ui.js";

export function fetching(wizard) {
  const { w, show, showFault, drop, agreed, youtubeKey } = wizard;
  const bar = h("progress", { "aria-labelledby": "fetch-stage" });
  const stage = h("p", { id: "fetch-stage", "aria-live": "polite" }, t("fetch.looking"));
  const trouble = h("div");
  const live = h("div.stack", {}, stage, bar, h("div.row", {}, button(t("fetch.cancel"), () => show("sample"))));

  async function run(signal) {
    await drop();
    const key = youtubeKey();
    const request = { youtube_url: w.url.trim(), voice_name: w.name.trim() || t("youtube.name"), start_time: w.start.trim() || null, duration: Number(w.duration), language: w.language, transcript: w.transcript.trim() || null };
    let made = null;
    try {
      request.consent = await agreed();
      const answer = await call("/v1/voice-cloning/clone-from-youtube", { json: request, headers: { Accept: "text/event-stream" }, signal });
      for await (const event of events(answer)) {
        if (event.error) throw await apiError({ status: 400, ...event.error, requestId: answer.headers.get("x-request-id") ?? "" });
        if (event.type === "done") made = event.voice;
        else if (event.stage) progress(event);
      }
      if (!made) throw new ApiError({});
    } catch (error) {
      if (error.name === "AbortError") return;
      if (["youtube_url", "start_time", "duration"].includes(error.param)) {
        w.refused = error;
        show("sample");
        return showFault(t("youtube.other"), document.getElementById(error.param === "youtube_url" ? "youtube-url" : error.param === "duration" ? "youtube-duration" : "youtube-start"));
      }
      live.hidden = true;
      trouble.replaceChildren(errorBox(error, [button(t("again"), () => show("fetch")), button(t("fetch.change"), () => show("sample"), { look: "quiet" })], error.status >= 400 && error.status < 500 ? t("fetch.failed") : undefined));
      return;
    }
    Object.assign(w, { voice: made, voiceKey: key, words: made.transcript, wordsOf: w.transcript.trim() ? "typed" : made.transcript ? "recogniser" : "", description: made.description ?? "", spoken: null });
    voices(true).catch(() => {});
    show("words");
  }

  function progress({ stage: name, bytes, total }) {
    const text = total && name === "fetching" ? t("fetch.fetching_of", { done: number(bytes / 1e6, 1), of: number(total / 1e6, 1) }) : t(`fetch.${name}`);
    if (name === "fetching" && total) {
      bar.max = total;
      bar.value = bytes;
    } else {
      bar.removeAttribute("value");
    }
    if (stage.textContent !== text) stage.textContent = text;
  }
  return { content: [live, trouble], shown: () => run(wizard.signal()) };
}
