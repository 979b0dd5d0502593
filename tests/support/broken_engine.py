"""An engine that fails if its text contains certain words."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

import numpy as np

from app.errors import EngineError, OutOfMemory
from app.types import AudioChunk, EngineInfo, Load

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.types import Utterance


class BrokenEngine:
    """Generates noise in frames of 80 ms. Words in the text select the failure: an engine error or a crash."""

    info = EngineInfo(id="broken", name="Broken", fingerprint="1", rate_hz=24_000, frame_s=0.08)
    load = Load(0, 1, 0, 0)
    healthy = True

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        text = utterance.lines[0].text.lower()
        noise = np.random.default_rng(0).normal(0, 0.1, 1920).astype(np.float32)
        if "memory" in text:
            raise OutOfMemory("The engine has no memory left for this request.")
        if "silence" in text:
            yield AudioChunk(np.zeros(1920, np.float32), 24_000, 0)
            return
        for index in range(25):
            if index == 20 and "break" in text:
                raise EngineError("The engine broke in the middle.")
            if index == 20 and "crash" in text:
                raise ZeroDivisionError
            yield AudioChunk(noise, 24_000, index * 1920)
            await asyncio.sleep(0.001)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def build(_: Settings, __: BuildContext) -> BrokenEngine:
    return BrokenEngine()
