// openai-node's Realtime clients: the class for the package `ws`, and the class for a browser's WebSocket.
import OpenAI from "openai";
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { WebSocket } from "ws";
import { serve, sound } from "./talk.mjs";

const message = (text) => ({ type: "message", role: "user", content: [{ type: "input_text", text }] });

async function opened(job) {
  const client = new OpenAI({ baseURL: job.base_url, apiKey: job.api_key, dangerouslyAllowBrowser: job.browser });
  if (!job.browser) return new OpenAIRealtimeWS({ model: job.model }, client);
  globalThis.WebSocket = WebSocket; // as in a browser: no headers, so the key is a subprotocol
  return new OpenAIRealtimeWebSocket({ model: job.model }, client);
}

await serve({
  async speak(job) {
    const connection = await opened(job);
    const types = [];
    const pieces = [];
    const done = await new Promise((resolve, reject) => {
      connection.on("error", reject);
      connection.on("event", (event) => types.push(event.type));
      connection.on("session.created", () => {
        connection.send({ type: "session.update", session: { type: "realtime", ...job.session } });
        connection.send({
          type: "response.create",
          response: { conversation: "none", input: [message(job.text)], metadata: { number: "7" } },
        });
      });
      connection.on("response.output_audio.delta", (event) => pieces.push(Buffer.from(event.delta, "base64")));
      connection.on("response.done", (event) => resolve(event.response));
    });
    connection.close();
    return sound(Buffer.concat(pieces), { types, status: done.status, metadata: done.metadata });
  },
  async cancel(job) {
    const connection = await opened(job);
    const types = [];
    const done = await new Promise((resolve, reject) => {
      connection.on("error", reject);
      connection.on("event", (event) => types.push(event.type));
      connection.on("session.created", () =>
        connection.send({ type: "response.create", response: { conversation: "none", input: [message(job.text)] } }),
      );
      connection.once("response.output_audio.delta", () => connection.send({ type: "response.cancel" }));
      connection.on("response.done", (event) => resolve(event.response));
    });
    connection.close();
    return { types, status: done.status, details: done.status_details };
  },
});
