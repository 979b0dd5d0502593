"""An engine that clones voices and speaks text with eSpeak NG. Each seed gives another voice.

Preset voice creation needs speech, which CSM and Dia with random weights do not produce.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Self

import numpy as np

from app.engines.espeak import TIMBRES, Library
from app.errors import Busy, EngineError
from app.generator.preset_voices import SENTENCE
from app.types import AudioChunk, EngineInfo, Load, PromptLimits, TextPacking, VoicePrompt
from app.voices.voice_features import measure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.types import Reference, Utterance

RATE_HZ = 22_050
FRAME = 441
_TIMBRES = list(TIMBRES.values())

spoken: list[Utterance] = []
trouble: list[str] = []  # failures of the next utterances: "busy", "noise", "silence", "error", "slow"
released = threading.Event()  # background utterances that are "slow" wait for it
trouble_with_prompt: list[str] = []  # failures of the next utterances that have a prompt: "other voice", "other words"


@functools.cache
def pitches() -> list[float]:
    """Return the pitch of each timbre in Hz."""
    library = Library()
    spoken_by = (library.synthesize(SENTENCE, f"{each.accent}+{each.variant}", each.pitch) for each in _TIMBRES)
    return [measure(samples, RATE_HZ).pitch_hz for samples in spoken_by]


class ReadingEngine:
    info = EngineInfo(
        id="reading",
        name="Reading",
        fingerprint="1",
        rate_hz=RATE_HZ,
        frame_s=FRAME / RATE_HZ,
        text=TextPacking(max_speakers=10, utf8_bytes=True),
        prompts=PromptLimits(codec="mimi", codec_fingerprint="1"),
    )
    load = Load(0, 4, 0, 0)
    healthy = True

    def __init__(self) -> None:
        self._library = Library()

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        spoken.append(utterance)
        kind = trouble.pop(0) if trouble else ""
        if kind == "busy":
            raise Busy("Somebody else needed the row.", retry_after_s=1)
        timbre = _TIMBRES[utterance.seed % len(_TIMBRES)]
        text = " ".join(line.text for line in utterance.lines)
        prompt = utterance.lines[0].prompt
        if prompt is not None:  # a cloned voice
            timbre = _TIMBRES[int(prompt.codes[0, 0])]
            fault = trouble_with_prompt.pop(0) if trouble_with_prompt else ""
            if fault == "other voice":
                timbre = TIMBRES["shimmer" if timbre.pitch < 50 else "onyx"]
            if fault == "other words":
                text = text[::-1]
        samples = self._library.synthesize(text, f"{timbre.accent}+{timbre.variant}", timbre.pitch)
        if kind == "noise":
            samples = np.random.default_rng(0).normal(0, 0.1, len(samples)).astype(np.float32)
        for start in range(0, len(samples), 10 * FRAME):
            if kind == "slow" and utterance.scheduling.background:
                await asyncio.to_thread(released.wait, 60)
            if kind == "silence":
                return
            if kind == "error" and start:
                raise EngineError("The engine failed.")
            part = samples[start : start + 10 * FRAME]
            codes = (np.arange(len(part) // FRAME, dtype=np.int16) + start // FRAME)[None].astype(np.int16)
            yield AudioChunk(part, RATE_HZ, start, codes)
            await asyncio.sleep(0)

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        """Return a code: the number of the timbre whose pitch is nearest."""
        pitch = measure(reference.samples, reference.rate_hz).pitch_hz
        nearest = int(np.argmin([abs(pitch - each) for each in pitches()]))
        return VoicePrompt("", "mimi", np.array([[nearest]], np.int16), reference.transcript)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def build(_: Settings, __: BuildContext) -> ReadingEngine:
    return ReadingEngine()
