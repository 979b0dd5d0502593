"""pipecat's OpenAI TTS service in a pipeline of its own."""

from __future__ import annotations

import asyncio

import pipecat
from pipecat.frames.frames import (
    ErrorFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.worker import PipelineParams
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.tests.utils import run_test
from talk import Job, Result, serve, sound


async def speak(job: Job) -> Result:
    service = OpenAITTSService(
        api_key=job["api_key"], base_url=job["base_url"], settings=OpenAITTSService.Settings(**job["settings"])
    )
    down, up = await asyncio.wait_for(
        run_test(
            service,
            frames_to_send=[TTSSpeakFrame(text) for text in job["texts"]],
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
        errors=[frame.error for frame in [*down, *up] if isinstance(frame, ErrorFrame)],
        version=pipecat.version(),
    )


serve({"speak": speak})
