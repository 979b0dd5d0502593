"""LiveKit Agents' TTS plug-ins for OpenAI's and ElevenLabs' APIs, with its own decoders."""

from __future__ import annotations

import asyncio
import io
import logging
import wave

import aiohttp
from livekit.agents import APIConnectOptions
from livekit.plugins import elevenlabs, openai
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


async def live(job: Job) -> Result:
    """Stream texts in parts over ElevenLabs' WebSocket, one after another over the same connection."""
    warned.clear()
    data, rates, words = b"", set(), []
    async with aiohttp.ClientSession() as session:
        tts = elevenlabs.TTS(base_url=job["base_url"], api_key=job["api_key"], http_session=session, **job["options"])
        options = APIConnectOptions(max_retry=0, timeout=20.0)
        try:
            for parts in job["answers"]:
                async with tts.stream(conn_options=options) as stream:
                    write = asyncio.create_task(push(stream, parts, job.get("delay_s", 0.02)))
                    async for event in stream:
                        data += bytes(event.frame.data)
                        rates.add(event.frame.sample_rate)
                        timed = event.frame.userdata.get("lk.timed_transcripts", [])
                        words += [[str(word), word.start_time, word.end_time] for word in timed]
                        if job.get("interrupt"):
                            break
                    write.cancel()
        finally:
            await tts.aclose()
    [rate_hz] = rates
    return sound(wav(data, rate_hz), rate_hz=rate_hz, words=words, warned=list(warned))


def wav(data: bytes, rate_hz: int) -> bytes:
    with io.BytesIO() as file:
        with wave.open(file, "wb") as writer:
            writer.setparams((1, 2, rate_hz, 0, "NONE", ""))
            writer.writeframes(data)
        return file.getvalue()


async def push(stream: elevenlabs.SynthesizeStream, parts: list[str], delay_s: float) -> None:
    for part in parts:
        stream.push_text(part)
        await asyncio.sleep(delay_s)
    stream.end_input()


async def whole(job: Job) -> Result:
    """Speak a whole text over ElevenLabs' HTTP route."""
    async with aiohttp.ClientSession() as session:
        tts = elevenlabs.TTS(base_url=job["base_url"], api_key=job["api_key"], http_session=session, **job["options"])
        voices = [voice.id for voice in await tts.list_voices()]
        data = b""
        async with tts.synthesize(job["text"], conn_options=APIConnectOptions(max_retry=0, timeout=20.0)) as stream:
            async for event in stream:
                data += bytes(event.frame.data)
        await tts.aclose()
    return sound(wav(data, tts.sample_rate), voices=voices)


serve({"speak": speak, "live": live, "whole": whole})
