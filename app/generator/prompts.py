"""Voice prompts: the recording of a voice, encoded to codes for the running engine.

A recording is encoded once. The codes are stored in the folder of the voice and cached in memory. This module does not
depend on HTTP or on a particular engine.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import soxr

from app.errors import VoiceNeedsWords, VoiceNotReady, VoiceNotSupported
from app.lru import LRU
from app.types import Reference, VoicePrompt

if TYPE_CHECKING:
    from app.engines.protocol import Engine
    from app.types import EngineInfo, Voice
    from app.voices.store import VoiceStore

log = logging.getLogger(__name__)

CACHED_PROMPTS = 256  # the largest number of prompts in memory; each prompt takes up to 50 kB
_Key = tuple[str, str, str]  # digest of the voice, codec, fingerprint of the codec


class Prompts:
    """Encodes and caches the prompts of voices. Use it from one event loop."""

    def __init__(self, voices: VoiceStore) -> None:
        self._voices = voices
        self._cached: LRU[_Key, VoicePrompt] = LRU(CACHED_PROMPTS)
        # Prompts that are being encoded. Requests for the same prompt wait for the same task.
        self._encoding: dict[_Key, asyncio.Task[VoicePrompt]] = {}

    async def of(self, voice: Voice, engine: Engine) -> VoicePrompt | None:
        """Get the prompt of a voice; None if the voice has no recording or the engine can't clone.

        Raises UnknownVoice, DamagedVoice, BadReference.
        """
        info = engine.info
        if not voice.recorded or not info.can_clone:
            return None
        if voice.reference_id:
            voice = self._voices.get(voice.reference_id)
        key = (voice.digest, info.prompts.codec, info.prompts.codec_fingerprint)
        prompt = self._cached.get(key)
        if prompt is None:
            task = self._encoding.get(key)
            if task is None:
                task = asyncio.create_task(self._encode(voice, engine), name=f"encode {voice.id}")
                self._encoding[key] = task
                task.add_done_callback(lambda done: self._encoded(key, done))
            prompt = await asyncio.shield(task)  # a cancelled request must not cancel the task of other requests
            self._cached.put(key, prompt)
        return prompt

    def _encoded(self, key: _Key, done: asyncio.Task[VoicePrompt]) -> None:
        """Remove the finished task of a prompt from `_encoding`. If the task has failed, log its error."""
        self._encoding.pop(key, None)
        # Log the error even if no request waits for the prompt any more.
        if not done.cancelled() and (error := done.exception()) is not None:
            log.info("the recording of a voice could not be encoded, so requests with this voice fail: %s", error)

    async def _encode(self, voice: Voice, engine: Engine) -> VoicePrompt:
        """Read the stored codes of a voice. If no codes are stored, encode the recording and store the codes."""
        info = engine.info
        reference = await asyncio.to_thread(self._voices.reference, voice)
        codes = await asyncio.to_thread(self._voices.codes, voice, info.prompts.codec, info.prompts.codec_fingerprint)
        if codes is None:
            resampled = await asyncio.to_thread(at_rate, reference, info.rate_hz)
            codes = (await engine.encode_reference(resampled)).codes
            await asyncio.to_thread(
                self._voices.keep_codes, voice, info.prompts.codec, info.prompts.codec_fingerprint, codes
            )
            log.info(
                "the recording of the voice %s was encoded to %d frames of the codec %s",
                voice.id,
                codes.shape[1],
                info.prompts.codec,
            )
        return VoicePrompt(voice.digest, info.prompts.codec, codes, reference.transcript)


def at_rate(reference: Reference, rate_hz: int) -> Reference:
    """Resample a recording to `rate_hz`."""
    if reference.rate_hz == rate_hz:
        return reference
    samples = soxr.resample(reference.samples, reference.rate_hz, rate_hz, quality="HQ")
    return Reference(samples, rate_hz, reference.transcript)


def can_speak(voice: Voice, info: EngineInfo) -> bool:
    """Return whether the engine can speak with the voice. A cloned voice needs an engine that can clone, and some of
    these engines need a transcript of the recording.
    """
    if voice.kind != "cloned":
        return True
    return info.can_clone and not (voice.needs_words and info.prompts.needs_transcript)


def check_speakable(voice: Voice, info: EngineInfo, *, is_fallback: bool) -> None:
    """Check that the engine can speak with the voice. Raises VoiceNotSupported, VoiceNeedsWords, VoiceNotReady.

    is_fallback: whether the engine is the fallback for the engine that the operator has configured.
    """
    if can_speak(voice, info):
        return
    if info.can_clone:
        path = f"/v1/voice-cloning/voices/{voice.id}"
        raise VoiceNeedsWords(
            f"The voice {voice.name!r} has no transcript of its recording, and the {info.id} engine can't use the "
            f"recording without its words. Listen to the recording (GET {path}/reference), and send its exact "
            f'words: PATCH {path} with the JSON body {{"transcript": "..."}}. The page /voice-cloning has a box '
            "for the words.",
            param="voice",
        )
    problem = f"The voice {voice.name!r} is cloned from a recording, and the {info.id} engine can't clone voices."
    if is_fallback:
        raise VoiceNotReady(
            f"{problem} This engine speaks in place of the configured engine, which can't run now. Use a preset voice "
            "until the configured engine runs. GET /health gives the reason and says what the operator of the server "
            "can do.",
            param="voice",
            retry_after_s=30,
        )
    raise VoiceNotSupported(
        f"{problem} Use a preset voice. The operator of the server can choose an engine that clones (TTS_ENGINE).",
        param="voice",
    )
