// The Vercel AI SDK's speech.
import { createOpenAI } from "@ai-sdk/openai";
import { experimental_generateSpeech as generateSpeech } from "ai";
import { serve, sound } from "./talk.mjs";

await serve({
  async speak(job) {
    const provider = createOpenAI({ baseURL: job.base_url, apiKey: job.api_key });
    const { audio, warnings, responses } = await generateSpeech({
      model: provider.speech(job.model),
      maxRetries: job.retries ?? 0,
      ...job.request,
    });
    return sound(audio.uint8Array, {
      media_type: audio.mediaType,
      format: audio.format,
      warnings: warnings.map((warning) => JSON.stringify(warning)),
      request_id: responses[0].headers["x-request-id"],
    });
  },
});
