"""The OpenAI Agents SDK's voice model."""

from __future__ import annotations

from agents.voice import OpenAIVoiceModelProvider, TTSModelSettings
from openai import AsyncOpenAI
from talk import Job, Result, serve, sound


async def speak(job: Job) -> Result:
    async with AsyncOpenAI(base_url=job["base_url"], api_key=job["api_key"], max_retries=0) as client:
        model = OpenAIVoiceModelProvider(openai_client=client).get_tts_model(job.get("model"))
        pieces = [piece async for piece in model.run(job["text"], TTSModelSettings(**job["settings"]))]
    return sound(b"".join(pieces), pieces=len(pieces), model=model.model_name)


serve({"speak": speak})
