"""LiteLLM as a library: `speech`, `aspeech`, and its router's retries."""

from __future__ import annotations

import asyncio

import litellm
from talk import Job, Result, serve, sound


async def speak(job: Job) -> Result:
    answer = await asyncio.to_thread(
        litellm.speech,
        **job["request"],
        api_base=job["base_url"],
        api_key=job["api_key"],
        max_retries=job.get("retries", 0),
    )
    return sound(answer.content, type=answer.response.headers["content-type"])


async def aspeak(job: Job) -> Result:
    answer = await litellm.aspeech(
        **job["request"], api_base=job["base_url"], api_key=job["api_key"], max_retries=job.get("retries", 0)
    )
    return sound(answer.content, type=answer.response.headers["content-type"])


async def routed(job: Job) -> Result:
    """Speak through a Router with several servers. It tries the next server after a failure."""
    router = litellm.Router(
        model_list=[
            {
                "model_name": "speech",
                "litellm_params": {"model": "openai/tts-1", "api_base": url, "api_key": job["api_key"]},
            }
            for url in job["base_urls"]
        ],
        num_retries=3,
        retry_after=1,
    )
    answer = await router.aspeech(model="speech", **job["request"])
    return sound(answer.content)


serve({"speak": speak, "aspeak": aspeak, "routed": routed})
