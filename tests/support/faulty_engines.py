"""An engine on the real batch loop. Certain words in a text make the model fail; other texts give a hum."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from app.engines.batched import BatchedEngine
from app.runtime.faults import BROKEN
from app.runtime.runner import StepResult
from app.types import EngineInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.types import Codes, Samples, Utterance

RATE_HZ, FRAME_SAMPLES = 24_000, 1_920
FRAMES = 40  # of 80 ms
FAILS_AT = 20


class Death(BaseException):
    """An exception that the batch loop does not catch."""


class FailingRunner:
    """Fails if the text contains one of these words: "memory" (in admit), "exception" and "death" (in a step), "number"
    (NaN codes), "noise" (NaN samples), "pause" (each frame is slower)."""

    rate_hz = RATE_HZ

    def __init__(self, rows: int) -> None:
        self.max_rows = rows
        self._texts: dict[int, str] = {}
        self._frame_counts: dict[int, int] = {}
        self._slow = threading.Event()

    def admit(self, row: int, utterance: Utterance) -> None:
        text = " ".join(line.text for line in utterance.lines).lower()
        if "memory" in text:
            raise MemoryError
        self._texts[row], self._frame_counts[row] = text, 0

    def prefill(self, row: int) -> bool:
        return True

    def step(self, rows: Sequence[int]) -> StepResult:
        if any("pause" in self._texts[row] for row in rows):
            self._slow.wait(0.01)
        codes, ended = np.zeros((len(rows), 1), np.int16), np.zeros(len(rows), np.bool_)
        for i, row in enumerate(rows):
            text, frame = self._texts[row], self._frame_counts[row]
            if frame == FAILS_AT:
                if "exception" in text:
                    raise ZeroDivisionError("inside")
                if "death" in text:
                    raise Death
                if "number" in text:
                    codes[i] = BROKEN
            ended[i] = frame == FRAMES
            self._frame_counts[row] += 1
        return StepResult(codes, ended)

    def decode(self, rows: Sequence[int], codes: Codes) -> list[Samples]:
        time_s = np.arange(FRAME_SAMPLES) / RATE_HZ
        hum = (0.2 * np.sin(2 * np.pi * 220 * time_s)).astype(np.float32)
        broken = np.full_like(hum, np.nan)
        return [broken if "noise" in self._texts[row] and self._frame_counts[row] == FAILS_AT else hum for row in rows]

    def drain(self, row: int) -> Samples:
        return np.zeros(0, np.float32)

    def release(self, row: int) -> None:
        self._texts.pop(row, None)
        self._frame_counts.pop(row, None)


def build(settings: Settings, _: BuildContext) -> BatchedEngine:
    info = EngineInfo(id="failing", name="Failing", fingerprint="1", rate_hz=RATE_HZ, frame_s=0.08)
    return BatchedEngine(
        info, FailingRunner(settings.rows(4)), max_queue=settings.max_queue, audio_queue_s=settings.audio_queue_s
    )
