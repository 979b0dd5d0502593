// openai-node: whole answers, streams, server-sent events, models.
import OpenAI from "openai";
import { serve, sound } from "./talk.mjs";

const client = (job) =>
  new OpenAI({ baseURL: job.base_url, apiKey: job.api_key, maxRetries: job.retries ?? 0 });

await serve({
  async speak(job) {
    const answer = await client(job).audio.speech.create(job.request);
    return sound(await answer.arrayBuffer(), {
      type: answer.headers.get("content-type"),
      request_id: answer.headers.get("x-request-id"),
    });
  },
  async stream(job) {
    const answer = await client(job).audio.speech.create(job.request);
    const pieces = [];
    for await (const piece of answer.body) pieces.push(Buffer.from(piece));
    return sound(Buffer.concat(pieces), { pieces: pieces.length });
  },
  async events(job) {
    const stream = await client(job).post("/audio/speech", {
      body: { ...job.request, stream_format: "sse" },
      stream: true,
    });
    const pieces = [];
    let done = null;
    for await (const event of stream) {
      if (event.type === "speech.audio.delta") pieces.push(Buffer.from(event.audio, "base64"));
      else done = event;
    }
    return sound(Buffer.concat(pieces), { done });
  },
  async interrupt(job) {
    const answer = await client(job).audio.speech.create(job.request);
    const reader = answer.body.getReader();
    const { value } = await reader.read();
    await reader.cancel();
    return { read: value.length };
  },
  async models(job) {
    const models = [];
    for await (const model of client(job).models.list()) models.push(model.id);
    return { models };
  },
});
