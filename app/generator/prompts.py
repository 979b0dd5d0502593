"""A voice's recording in the running engine's codes: made once, kept beside the voice, asked for by many at once.

Knows the store and the Engine protocol; no HTTP, no engine by name.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import soxr

from app.errors import VoiceNotReady, VoiceNotSupported
from app.lru import LRU
from app.types import Reference, VoicePrompt

if TYPE_CHECKING:
    from app.engines.protocol import Engine
    from app.types import EngineInfo, Voice
    from app.voices.store import VoiceStore

log = logging.getLogger(__name__)

KEPT = 256  # prompts in memory: up to 50 kB each
_Key = tuple[str, str, str]  # voice digest, codec, codec's fingerprint


class Prompts:
    """Used from one event loop."""

    def __init__(self, voices: VoiceStore) -> None:
        self._voices = voices
        self._kept: LRU[_Key, VoicePrompt] = LRU(KEPT)
        self._making: dict[_Key, asyncio.Task[VoicePrompt]] = {}

    async def of(self, voice: Voice, engine: Engine) -> VoicePrompt | None:
        """What shows the engine this voice; None where there is no recording, or the engine has no ear for one.

        Raises what the store and `enroll` do: UnknownVoice, DamagedVoice, BadReference.
        """
        info = engine.info
        if not voice.recorded or not info.can_clone:
            return None
        key = (voice.digest, info.prompts.codec, info.prompts.codec_fingerprint)
        prompt = self._kept.get(key)
        if prompt is None:
            task = self._making.get(key)
            if task is None:
                task = asyncio.create_task(self._make(voice, engine), name=f"enroll {voice.id}")
                self._making[key] = task
                task.add_done_callback(lambda done: self._made(key, done))
            prompt = await asyncio.shield(task)  # a cancelled request does not stop it for the others
            self._kept.put(key, prompt)
        return prompt

    def _made(self, key: _Key, done: asyncio.Task[VoicePrompt]) -> None:
        self._making.pop(key, None)
        if not done.cancelled() and (error := done.exception()) is not None:  # also where nobody waits any more
            log.info("no prompt was made: %s", error)

    async def _make(self, voice: Voice, engine: Engine) -> VoicePrompt:
        info = engine.info
        reference = await asyncio.to_thread(self._voices.reference, voice)
        codes = await asyncio.to_thread(self._voices.codes, voice, info.prompts.codec, info.prompts.codec_fingerprint)
        if codes is None:
            heard = await asyncio.to_thread(at_rate, reference, info.rate_hz)
            codes = (await engine.encode_reference(heard)).codes
            await asyncio.to_thread(
                self._voices.keep_codes, voice, info.prompts.codec, info.prompts.codec_fingerprint, codes
            )
            log.info("%s is enrolled: %d frames of %s", voice.id, codes.shape[1], info.prompts.codec)
        return VoicePrompt(voice.digest, info.prompts.codec, codes, reference.transcript)


def at_rate(reference: Reference, rate_hz: int) -> Reference:
    """The recording as an engine of that rate hears it."""
    if reference.rate_hz == rate_hz:
        return reference
    samples = soxr.resample(reference.samples, reference.rate_hz, rate_hz, quality="HQ")
    return Reference(samples, rate_hz, reference.transcript)


def check_speakable(voice: Voice, info: EngineInfo, *, stands_in: bool) -> None:
    """A cloned voice needs an engine that learns from recordings. Raises VoiceNotSupported, VoiceNotReady."""
    if voice.kind != "cloned" or info.can_clone:
        return
    told = f"The voice {voice.name!r} is a recording, and the {info.id} engine can't learn from recordings."
    if stands_in:
        raise VoiceNotReady(
            f"{told} It stands in for an engine that can; GET /health says why that one does not run.",
            param="voice",
            retry_after_s=30,
        )
    raise VoiceNotSupported(f"{told} Use a standard voice, or run an engine that can.", param="voice")
