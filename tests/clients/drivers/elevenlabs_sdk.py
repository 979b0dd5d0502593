"""elevenlabs-python: whole texts, streams, and text in parts over its WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from elevenlabs import DialogueInput, VoiceSettings
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


async def dialogue(job: Job) -> Result:
    request = {**job["request"], "inputs": [DialogueInput(**turn) for turn in job["request"]["inputs"]]}
    speech = client(job).text_to_dialogue
    call = speech.stream if job["stream"] else speech.convert
    return await asyncio.to_thread(lambda: collected(call(**request)))


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
    found, token = [], None
    while not found or token:
        page = await asyncio.to_thread(sdk.voices.search, page_size=5, sort="name", next_page_token=token)
        found += page.voices
        token = page.next_page_token
    models = await asyncio.to_thread(sdk.models.list)
    return {
        "voices": [voice.voice_id for voice in voices.voices],
        "found": [voice.voice_id for voice in found],
        "models": [model.model_id for model in models],
    }


serve({"convert": convert, "stream": stream, "dialogue": dialogue, "realtime": realtime, "lists": lists})
