"""elevenlabs-python: whole texts, streams, and text in parts over its WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from elevenlabs import VoiceSettings
from elevenlabs.client import ElevenLabs
from talk import Job, Result, serve, sound


def client(job: Job) -> ElevenLabs:
    return ElevenLabs(base_url=job["base_url"].removesuffix("/v1"), api_key=job["api_key"])


def collected(pieces: Iterator[bytes]) -> Result:
    received = list(pieces)
    return sound(b"".join(received), pieces=len(received))


async def convert(job: Job) -> Result:
    return await asyncio.to_thread(lambda: collected(client(job).text_to_speech.convert(**job["request"])))


async def stream(job: Job) -> Result:
    return await asyncio.to_thread(lambda: collected(client(job).text_to_speech.stream(**job["request"])))


async def realtime(job: Job) -> Result:
    request = dict(job["request"])
    text = iter(request.pop("text"))
    settings = VoiceSettings(**request.pop("voice_settings", {}))
    speech = client(job).text_to_speech
    return await asyncio.to_thread(
        lambda: collected(speech.convert_realtime(text=text, voice_settings=settings, **request))
    )


async def lists(job: Job) -> Result:
    sdk = client(job)
    voices = await asyncio.to_thread(sdk.voices.get_all)
    found = await asyncio.to_thread(sdk.voices.search)
    models = await asyncio.to_thread(sdk.models.list)
    return {
        "voices": [voice.voice_id for voice in voices.voices],
        "found": [voice.voice_id for voice in found.voices],
        "models": [model.model_id for model in models],
    }


serve({"convert": convert, "stream": stream, "realtime": realtime, "lists": lists})
