"""pipecat's TTS services for OpenAI's and ElevenLabs' APIs, each in a pipeline."""

from __future__ import annotations

import asyncio
from typing import Any

import pipecat
from pipecat.frames.frames import (
    ErrorFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.pipeline.worker import PipelineParams
from pipecat.services.elevenlabs.tts import ElevenLabsTTSService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.tests.utils import SleepFrame, run_test
from talk import Job, Result, serve, sound


async def speak(job: Job) -> Result:
    service = OpenAITTSService(
        api_key=job["api_key"], base_url=job["base_url"], settings=OpenAITTSService.Settings(**job["settings"])
    )
    return await run(service, [TTSSpeakFrame(text) for text in job["texts"]])


async def live(job: Job) -> Result:
    """Send a text in parts, as a language model writes it. `interrupt`: the user then begins to talk."""
    service = ElevenLabsTTSService(
        api_key=job["api_key"],
        url=job["base_url"].removesuffix("/v1").replace("http", "ws", 1),
        settings=ElevenLabsTTSService.Settings(**job["settings"]),
    )
    frames = []
    for answer in job["answers"]:
        frames += [LLMFullResponseStartFrame(), *(LLMTextFrame(part) for part in answer), LLMFullResponseEndFrame()]
        frames += [SleepFrame(job["pause_s"])]
        if job.get("interrupt"):
            frames += [InterruptionFrame(), SleepFrame(0.5)]
    return await run(service, frames)


async def run(service: OpenAITTSService | ElevenLabsTTSService, frames: list[Any]) -> Result:
    """Send frames to a service and describe what comes out of it."""
    down, up = await asyncio.wait_for(
        run_test(
            service,
            frames_to_send=frames,
            pipeline_params=PipelineParams(audio_out_sample_rate=24_000),
            start_timeout=20,
        ),
        60,
    )
    audio = [frame for frame in down if isinstance(frame, TTSAudioRawFrame)]
    return sound(
        b"".join(frame.audio for frame in audio),
        rates=sorted({frame.sample_rate for frame in audio}),
        channels=sorted({frame.num_channels for frame in audio}),
        started=sum(isinstance(frame, TTSStartedFrame) for frame in down),
        stopped=sum(isinstance(frame, TTSStoppedFrame) for frame in down),
        words=[[frame.text, frame.pts] for frame in down if isinstance(frame, TTSTextFrame)],
        errors=[frame.error for frame in [*down, *up] if isinstance(frame, ErrorFrame)],
        version=pipecat.version(),
    )


serve({"speak": speak, "live": live})
