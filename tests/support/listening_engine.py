"""An engine that supports context and records the utterances and recordings that it gets."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Self

import numpy as np

from app.errors import BadReference
from app.types import AudioChunk, Capabilities, EngineInfo, Load, PromptLimits, TextPacking, VoicePrompt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.types import Reference, Utterance

RATE_HZ = 16_000  # differs from the default sample rates of the server
FRAME_SAMPLES = 1280
MAX_CONTEXT_S = 65.0

encoded: list[Reference] = []
spoken: list[Utterance] = []


class ListeningEngine:
    """Its codes (2, T) are the loudness of each frame, in thousandths, and the number of the frame."""

    info = EngineInfo(
        id="listening",
        name="Listening",
        fingerprint="1",
        rate_hz=RATE_HZ,
        frame_s=FRAME_SAMPLES / RATE_HZ,
        capabilities=Capabilities(context=True, temperature=True),
        prompts=PromptLimits(max_context_s=MAX_CONTEXT_S),
    )
    load = Load(0, 1, 0, 0)
    healthy = True

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        spoken.append(utterance)
        noise = np.random.default_rng(len(utterance.context)).normal(0, 0.1, 5 * FRAME_SAMPLES)
        for start in range(0, len(noise), FRAME_SAMPLES):
            yield AudioChunk(noise[start : start + FRAME_SAMPLES].astype(np.float32), RATE_HZ, start)
            await asyncio.sleep(0)

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        encoded.append(reference)
        if reference.seconds < 0.5:
            raise BadReference(f"The recording is {reference.seconds:.1f} s long; it must be 0.5 s.")
        return VoicePrompt("", "mimi", codes_of(reference.samples), reference.transcript)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def codes_of(samples: np.ndarray) -> np.ndarray:
    """Return the codes (2, T) int16 of samples (N,)."""
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    loudness = np.rint(1000 * np.sqrt(np.mean(np.square(frames), axis=1)))
    return np.stack([loudness, np.arange(len(frames))]).astype(np.int16)


def build(_: Settings, __: BuildContext) -> ListeningEngine:
    return ListeningEngine()


def unavailable(_: Settings, __: BuildContext) -> ListeningEngine:
    from app.errors import EngineUnavailable

    raise EngineUnavailable("The weights are missing.", remedy="Download them.")


class AbleEngine(ListeningEngine):
    """An engine with every engine parameter, which accepts several sentences and speakers in one utterance.

    Each seed gives different audio.
    """

    info = dataclasses.replace(
        ListeningEngine.info,
        id="able",
        capabilities=Capabilities(
            temperature=True, top_k=True, top_p=True, cfg_scale=True, language=True, context=True, parallel=True
        ),
        text=TextPacking(continues=True, max_speakers=4),
    )

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        spoken.append(utterance)
        frames = 10 * len(utterance.lines)
        noise = np.random.default_rng(utterance.seed).normal(0, 0.03, frames * FRAME_SAMPLES).astype(np.float32)
        for start in range(0, len(noise), FRAME_SAMPLES):
            part = noise[start : start + FRAME_SAMPLES]
            yield AudioChunk(part, RATE_HZ, start, codes_of(part))
            await asyncio.sleep(0)


def build_able(_: Settings, __: BuildContext) -> AbleEngine:
    return AbleEngine()
