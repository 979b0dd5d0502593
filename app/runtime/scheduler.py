"""The scheduler of continuous batching: a bounded queue in front of a fixed set of rows. Plain Python, no model.

Each row has a slack: how long its listener can play without more audio (`Slot.slack_s`). While a row has a short slack
or waits for its first audio, only rows with less slack than AHEAD_S are prefilled and stepped. This lowers the time to
first audio: a step with fewer rows is shorter on a CPU, and on a GPU an iteration without a step leaves the device to
the new prompt. Foreground rows are never preempted: a row becomes free when its utterance ends.

The event loop calls `submit` and `cancel`, the engine's thread calls the rest. One lock guards both. The engine's loop
gets a `Plan`, carries it out, and reports with `commit`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import Busy, EngineStopped
from app.runtime.slots import AHEAD_S, SHORT_S, Job, Phase, Slot, Slots
from app.types import Load


@dataclass(frozen=True, slots=True)
class Plan:
    """One iteration of the loop: rows to release, then to admit, to prefill by one piece, and to step."""

    release: tuple[int, ...] = ()
    admit: tuple[tuple[int, Job], ...] = ()
    prefill: tuple[int, ...] = ()
    step: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        return not (self.release or self.admit or self.prefill or self.step)


class Scheduler:
    """Owns the queue and the rows. A full queue is an error at once (backpressure), never a silent wait."""

    def __init__(self, max_rows: int, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots = Slots(max_rows)
        self._queue: deque[Job] = deque()  # has not begun; bounded
        self._following: deque[Job] = deque()  # goes on with an answer that sounds
        self._background: deque[Job] = deque()  # when there is nothing else to do
        self._max_queue = max_queue
        self._changed = threading.Condition()
        self._dirty = False
        self._closed: Exception | None = None

    # ---- event loop side

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Busy when rows and queue are full; a job that follows a sounding one is never refused
        and goes before all that have not begun, in the order they came. A background job ends in Busy when its row is
        wanted."""
        with self._changed:
            if self._closed is not None:
                raise self._closed
            if job.background:
                self._background.append(job)
            elif job.utterance.scheduling.continuation:
                self._following.append(job)
            else:
                free = len(self._slots) - self._speaking - len(self._following)  # who goes on takes a row first
                if len(self._queue) >= max(0, free) + self._max_queue:
                    raise Busy(
                        f"The server is speaking for {len(self._slots)} requests and {self._max_queue} are waiting. "
                        "Try again in a moment.",
                        retry_after_s=1,
                    )
                self._queue.append(job)
            self._wake()

    def cancel(self, job: Job) -> None:
        """Remove a job: from the queue at once, from its row with the next plan."""
        with self._changed:
            job.cancelled = True
            for queue in (self._queue, self._following, self._background):
                with contextlib.suppress(ValueError):  # it has begun, or is over
                    queue.remove(job)
            self._wake()

    def wake(self) -> None:
        """Plan again, because something outside changed: an audio queue has space again."""
        with self._changed:
            self._wake()

    def load(self) -> Load:
        with self._changed:
            return Load(self._speaking, len(self._slots), len(self._queue), self._max_queue)

    @property
    def _speaking(self) -> int:
        """The number of foreground rows."""
        return sum(not slot.background for slot in self._slots.live)

    def close(self, error: Exception | None = None) -> None:
        """Refuse new jobs and end all present ones with `error`."""
        with self._changed:
            self._closed = error or EngineStopped("The engine has stopped. Restart the server.")
            waiting = (*self._queue, *self._following, *self._background)
            for job in [*waiting, *(slot.job for slot in self._slots.live if slot.job)]:
                job.cancelled = True
                job.audio_queue.finish(self._closed)
            self._queue.clear()
            self._following.clear()
            self._background.clear()
            self._wake()

    # ---- engine thread side

    def plan(self) -> Plan:
        with self._changed:
            self._dirty = False
            release = [slot.row for slot in self._slots.live if slot.job is not None and slot.job.cancelled]
            for row in release:
                self._slots.free(row)
            release += self._given_up()
            admit: list[tuple[int, Job]] = []
            for queue in (self._following, self._queue):
                while queue and (slot := self._slots.take(queue[0])) is not None:
                    admit.append((slot.row, queue.popleft()))
            step: list[int] = []
            for slot in self._slots:
                if slot.phase in (Phase.SPEAK, Phase.PAUSED):
                    assert slot.job is not None  # noqa: S101 - a live row has a job; check() says the same
                    slot.phase = Phase.PAUSED if slot.job.audio_queue.full else Phase.SPEAK
                    if slot.phase is Phase.SPEAK:
                        step.append(slot.row)
            busy = any(slot.phase in (Phase.SPEAK, Phase.PREFILL) and not slot.background for slot in self._slots)
            if busy:
                step = [row for row in step if not self._slots[row].background]
            elif self._background and (slot := self._slots.take(self._background[0])) is not None:
                admit.append((slot.row, self._background.popleft()))
            waiting = [slot for slot in self._slots if slot.phase is Phase.PREFILL and not (busy and slot.background)]
            if busy:
                now_s = self._clock()
                slack_s = {slot.row: slot.slack_s(now_s) for slot in (*waiting, *(self._slots[row] for row in step))}
                if min(slack_s.values()) < SHORT_S:
                    step = [row for row in step if slack_s[row] < AHEAD_S]
                    waiting = [slot for slot in waiting if slack_s[slot.row] < AHEAD_S]
            # One piece of a prompt in each iteration (chunked prefill), so that new answers never stall the others:
            # first for answers that are being played, then for the longest waiting.
            waiting.sort(key=_urgency)
            return Plan(tuple(release), tuple(admit), tuple(slot.row for slot in waiting[:1]), tuple(step))

    def _given_up(self) -> list[int]:
        """Preempt background jobs whose rows are needed by waiting requests; return the rows."""
        wanted = len(self._queue) + len(self._following) - (len(self._slots) - len(self._slots.live))
        rows = [slot.row for slot in self._slots.live if slot.background][: max(0, wanted)]
        for row in rows:
            job = self._slots[row].job
            self._slots.free(row)
            if job is not None:
                job.cancelled = True
                job.audio_queue.finish(Busy("Preempted by a foreground request. Try again.", retry_after_s=1))
        return rows

    def prefilled(self, row: int) -> None:
        """The row has read its prompt and may step."""
        with self._changed:
            self._slots[row].phase = Phase.SPEAK

    def job(self, row: int) -> Job:
        job = self._slots[row].job
        if job is None:
            raise LookupError(f"row {row} is free")
        return job

    def commit(self, stepped: tuple[int, ...], ended: tuple[int, ...]) -> None:
        """Count the frames of the rows that were stepped and free the rows that ended."""
        with self._changed:
            for row in stepped:
                self._slots[row].frames += 1
            for row in ended:
                self._slots.free(row)

    def clear(self) -> list[Job]:
        """Free every row and return its jobs, whose audio queues the caller must finish."""
        with self._changed:
            jobs = [slot.job for slot in self._slots.live if slot.job is not None]
            for slot in self._slots:
                slot.job, slot.phase, slot.frames = None, Phase.FREE, 0
            self._wake()
            return jobs

    def wait(self, timeout_s: float) -> None:
        """Sleep until something changes."""
        with self._changed:
            if not self._dirty:
                self._changed.wait(timeout_s)

    def check(self) -> None:
        """Raise AssertionError when the books do not add up. Tests run it after each iteration, the loop when idle."""
        with self._changed:
            seen: set[int] = set()
            for slot in self._slots:
                if (slot.phase is Phase.FREE) != (slot.job is None):
                    raise AssertionError(f"row {slot.row} is {slot.phase.name} with job {slot.job}")
                if slot.job is not None and id(slot.job) in seen:
                    raise AssertionError(f"the job of row {slot.row} is in two rows")
                seen.add(id(slot.job))
            if any(id(job) in seen for job in [*self._queue, *self._following, *self._background]):
                raise AssertionError("a queued job is in a row as well")

    def _wake(self) -> None:
        self._dirty = True
        self._changed.notify_all()


def _urgency(slot: Slot) -> tuple[int, float]:
    """Sort key: answers that are being played, then new answers, then utterances that play later; each by age."""
    job = slot.job
    if job is None:
        return 2, 0.0
    scheduling = job.utterance.scheduling
    playback = scheduling.playback
    if playback is not None and scheduling.index > playback.current_index + 1:
        return 2, job.submitted_s
    return int(not scheduling.continuation), job.submitted_s
