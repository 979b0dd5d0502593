"""LiveKit Agents' OpenAI TTS plug-in, with its own decoders."""

from __future__ import annotations

import logging

from livekit.agents import APIConnectOptions
from livekit.plugins import openai
from talk import Job, Result, serve, sound

warned: list[str] = []


class _Ear(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warned.append(record.getMessage())


logging.getLogger().addHandler(_Ear())


async def speak(job: Job) -> Result:
    warned.clear()
    tts = openai.TTS(base_url=job["base_url"], api_key=job["api_key"], **job["options"])
    options = APIConnectOptions(max_retry=job.get("retries", 0), retry_interval=1.0, timeout=10.0)
    data, rates, channels, requests = b"", set(), set(), set()
    try:
        async with tts.synthesize(job["text"], conn_options=options) as stream:
            async for event in stream:
                data += bytes(event.frame.data)
                rates.add(event.frame.sample_rate)
                channels.add(event.frame.num_channels)
                requests.add(event.request_id)
                if job.get("interrupt"):  # as when a listener begins to talk
                    break
    finally:
        await tts.aclose()
    return sound(data, rates=sorted(rates), channels=sorted(channels), requests=sorted(requests), warned=list(warned))


serve({"speak": speak})
