"""Rows and who is in them. Plain arithmetic over a fixed list: no torch, no threads of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.runtime.audio_queue import AudioQueue
    from app.types import Utterance


SHORT_S = 1.0  # a listener with less sound left than this is served first,
AHEAD_S = 3.0  # and one with more than this lets them pass
NEVER_PLAYED_S = 2.0  # neither: it is not played while it is made


class Phase(Enum):
    """FREE -> PREFILL -> SPEAK <-> PAUSED -> FREE."""

    FREE = auto()
    PREFILL = auto()
    SPEAK = auto()
    PAUSED = auto()


@dataclass(eq=False, slots=True)
class Job:
    """One utterance on its way through the engine."""

    utterance: Utterance
    audio_queue: AudioQueue
    submitted_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    @property
    def background(self) -> bool:
        return self.utterance.scheduling.background


@dataclass(slots=True)
class Slot:
    """One row: who is in it, what it is doing, how many frames it has made."""

    row: int
    job: Job | None = None
    phase: Phase = Phase.FREE
    frames: int = 0

    @property
    def background(self) -> bool:
        """Whether who is in it gives way to everybody else."""
        return self.job is not None and self.job.background

    def slack_s(self, now_s: float) -> float:
        """Seconds until somebody waits for this row's sound: -inf = they wait for the first of an answer already.

        An utterance behind the one that is being played has infinite slack until that one has been handed on. An answer
        whose listener has run dry cannot be played without gaps, so its utterances are made in parallel.
        """
        if self.job is None or self.background:
            return math.inf
        scheduling, audio_queue = self.job.utterance.scheduling, self.job.audio_queue
        if scheduling.index == 0 and not audio_queue.sounded:
            return -math.inf
        playback = scheduling.playback
        if playback is None:
            return NEVER_PLAYED_S
        if scheduling.index > playback.current_index:
            return NEVER_PLAYED_S if playback.underrun else math.inf
        return playback.buffered_s(now_s) + audio_queue.waiting_s


class Slots:
    """A fixed set of rows, given out lowest first so that a smaller batch covers the live ones."""

    def __init__(self, count: int) -> None:
        self._slots = [Slot(row) for row in range(count)]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, row: int) -> Slot:
        return self._slots[row]

    @property
    def live(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.phase is not Phase.FREE]

    def take(self, job: Job) -> Slot | None:
        """Put the job into the lowest free row, or None when all are taken."""
        for slot in self._slots:
            if slot.phase is Phase.FREE:
                slot.job, slot.phase, slot.frames = job, Phase.PREFILL, 0
                return slot
        return None

    def free(self, row: int) -> None:
        slot = self._slots[row]
        slot.job, slot.phase, slot.frames = None, Phase.FREE, 0
