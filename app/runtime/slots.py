"""The rows of an engine and the jobs in these rows. This module does not use torch and starts no threads."""

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


# While any row has a slack (`Slot.slack_s`) below SHORT_S, the scheduler pauses all rows with a slack of at least
# AHEAD_S.
SHORT_S = 1.0
AHEAD_S = 3.0
# The slack of a row without a playback clock. This value is between SHORT_S and AHEAD_S, so that the row does not pause
# and does not make other rows pause.
NOT_PLAYED_S = 2.0


class Phase(Enum):
    """The state of a row: FREE -> PREFILL -> SPEAK <-> PAUSED -> FREE. A row is PAUSED if its audio queue is full."""

    FREE = auto()
    PREFILL = auto()
    SPEAK = auto()
    PAUSED = auto()


@dataclass(eq=False, slots=True)
class Job:
    """One utterance in the engine, from `Scheduler.submit` to the end of its audio."""

    utterance: Utterance
    audio_queue: AudioQueue
    submitted_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    @property
    def background(self) -> bool:
        """Whether the job runs only while no foreground job needs the job's row."""
        return self.utterance.scheduling.background


@dataclass(slots=True)
class Slot:
    """One row: the job in the row, the phase, and the number of frames that the row has generated for the job."""

    row: int
    job: Job | None = None
    phase: Phase = Phase.FREE
    frames: int = 0

    @property
    def background(self) -> bool:
        """Whether the row has a background job, which a foreground job may preempt."""
        return self.job is not None and self.job.background

    def slack_s(self, now_s: float) -> float:
        """Return the seconds until the listener needs more audio from this row.

        -inf: the listener waits for the first audio of an answer. inf: the row is free, has a background job, or
        generates a later utterance than the one that the server sends now. NOT_PLAYED_S: the request has no playback
        clock. If the listener has had gaps, later utterances get NOT_PLAYED_S instead of inf, so that their rows do not
        pause.
        """
        if self.job is None or self.background:
            return math.inf
        scheduling, audio_queue = self.job.utterance.scheduling, self.job.audio_queue
        if scheduling.index == 0 and not audio_queue.has_audio:
            return -math.inf
        playback = scheduling.playback
        if playback is None:
            return NOT_PLAYED_S
        if scheduling.index > playback.current_index:
            return NOT_PLAYED_S if playback.underrun else math.inf
        return playback.buffered_s(now_s) + audio_queue.waiting_s


class Slots:
    """A fixed number of rows. `take` returns the lowest free row, so that the rows in use fit into a small batch."""

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
        """The rows that have a job."""
        return [slot for slot in self._slots if slot.phase is not Phase.FREE]

    def take(self, job: Job) -> Slot | None:
        """Put the job into the lowest free row, and return this row as a Slot. Return None if no row is free."""
        for slot in self._slots:
            if slot.phase is Phase.FREE:
                slot.job, slot.phase, slot.frames = job, Phase.PREFILL, 0
                return slot
        return None

    def move(self, source: int, target: int) -> None:
        """Move the job of row `source` to the free row `target`."""
        old, new = self._slots[source], self._slots[target]
        if new.phase is not Phase.FREE:
            raise ValueError(f"row {target} is not free")
        new.job, new.phase, new.frames = old.job, old.phase, old.frames
        self.free(source)

    def free(self, row: int) -> None:
        """Remove the job from the row."""
        slot = self._slots[row]
        slot.job, slot.phase, slot.frames = None, Phase.FREE, 0
