"""The scheduler of continuous batching: a bounded queue in front of a fixed set of rows. Plain Python, no model.

Each row has a slack: the seconds that its listener can play without more audio (`Slot.slack_s`). While any row has a
slack below SHORT_S, only rows with a slack below AHEAD_S are prefilled and stepped. This shortens the time to first
audio. On a CPU, a step with fewer rows takes less time. On a GPU, an iteration without a step leaves the device to the
new prompt. Foreground rows are never preempted: such a row becomes free when its utterance ends or is cancelled.

The event loop calls `submit` and `cancel`, and the engine's thread calls the other methods. One lock guards all. The
engine's loop gets a `Plan`, executes it, and reports the results with `commit`.
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
    """The work of one iteration, in this order: rows to release, to admit, to prefill by one chunk, and to step."""

    release: tuple[int, ...] = ()
    admit: tuple[tuple[int, Job], ...] = ()
    prefill: tuple[int, ...] = ()
    step: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.release or self.admit or self.prefill or self.step)


class Scheduler:
    """Owns the queue and the rows. A full queue raises Busy immediately (backpressure)."""

    def __init__(self, max_rows: int, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots = Slots(max_rows)
        self._queue: deque[Job] = deque()  # first utterances of answers; bounded
        self._continuations: deque[Job] = deque()  # later utterances of answers that have started
        self._background: deque[Job] = deque()  # jobs that run only while no foreground job does
        self._max_queue = max_queue
        self._changed = threading.Condition()
        self._dirty = False
        self._closed: Exception | None = None

    # ---- event loop side

    def submit(self, job: Job) -> None:
        """Add a job to the queue. Raises Busy if rows and queue are full, or the error of `close`.

        Later utterances of an answer are never refused and run before new answers. A background job is not refused
        either; it ends with Busy if a foreground job needs its row.
        """
        with self._changed:
            if self._closed is not None:
                raise self._closed
            if job.background:
                self._background.append(job)
            elif job.utterance.scheduling.continuation:
                self._continuations.append(job)
            else:
                free = len(self._slots) - self._speaking - len(self._continuations)  # continuations take rows first
                if len(self._queue) >= max(0, free) + self._max_queue:
                    raise Busy(
                        f"The server is speaking for {len(self._slots)} requests and {self._max_queue} are waiting. "
                        "Try again in a moment.",
                        retry_after_s=1,
                    )
                self._queue.append(job)
            self._wake()

    def cancel(self, job: Job) -> None:
        """Cancel a job: remove it from the queue immediately, or from its row in the next iteration."""
        with self._changed:
            job.cancelled = True
            for queue in (self._queue, self._continuations, self._background):
                with contextlib.suppress(ValueError):  # the job is in a row or has ended
                    queue.remove(job)
            self._wake()

    def wake(self) -> None:
        """Make the engine's thread plan again, because an audio queue has space again."""
        with self._changed:
            self._wake()

    def load(self) -> Load:
        """Return the number of rows in use and of queued jobs, with their limits."""
        with self._changed:
            return Load(self._speaking, len(self._slots), len(self._queue), self._max_queue)

    @property
    def _speaking(self) -> int:
        """The number of rows with a foreground job."""
        return sum(not slot.background for slot in self._slots.live)

    def close(self, error: Exception | None = None) -> None:
        """End all queued and active jobs with `error`, and raise it for new jobs. None = EngineStopped."""
        with self._changed:
            self._closed = error or EngineStopped("The engine has stopped. Restart the server.")
            waiting = (*self._queue, *self._continuations, *self._background)
            for job in [*waiting, *(slot.job for slot in self._slots.live if slot.job)]:
                job.cancelled = True
                job.audio_queue.finish(self._closed)
            self._queue.clear()
            self._continuations.clear()
            self._background.clear()
            self._wake()

    # ---- engine thread side

    def plan(self) -> Plan:
        """Plan the next iteration, and assign free rows to queued jobs."""
        with self._changed:
            self._dirty = False
            release = [slot.row for slot in self._slots.live if slot.job is not None and slot.job.cancelled]
            for row in release:
                self._slots.free(row)
            release += self._preempt()
            admit: list[tuple[int, Job]] = []
            for queue in (self._continuations, self._queue):
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
            # One chunk of one prompt in each iteration (chunked prefill), so that new answers do not stall other rows.
            # Answers that are being played come first, then the job that has waited longest.
            waiting.sort(key=_urgency)
            return Plan(tuple(release), tuple(admit), tuple(slot.row for slot in waiting[:1]), tuple(step))

    def _preempt(self) -> list[int]:
        """End background jobs whose rows waiting foreground jobs need, and return the rows."""
        needed = len(self._queue) + len(self._continuations) - (len(self._slots) - len(self._slots.live))
        rows = [slot.row for slot in self._slots.live if slot.background][: max(0, needed)]
        for row in rows:
            job = self._slots[row].job
            self._slots.free(row)
            if job is not None:
                job.cancelled = True
                job.audio_queue.finish(Busy("Preempted by a foreground request. Try again.", retry_after_s=1))
        return rows

    def prefilled(self, row: int) -> None:
        """Mark that the row has read its whole prompt and can step."""
        with self._changed:
            self._slots[row].phase = Phase.SPEAK

    def job(self, row: int) -> Job:
        """Return the row's job. Raises LookupError if the row is free."""
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
        """Free all rows and return their jobs. The caller must finish the jobs' audio queues."""
        with self._changed:
            jobs = [slot.job for slot in self._slots.live if slot.job is not None]
            for slot in self._slots:
                slot.job, slot.phase, slot.frames = None, Phase.FREE, 0
            self._wake()
            return jobs

    def wait(self, timeout_s: float) -> None:
        """Wait until a job or an audio queue changes, or until timeout_s has passed."""
        with self._changed:
            if not self._dirty:
                self._changed.wait(timeout_s)

    def check(self) -> None:
        """Check that rows and queues are consistent. Raises AssertionError if they are not.

        Tests call it after each iteration, and the loop calls it when idle.
        """
        with self._changed:
            job_ids: set[int] = set()
            for slot in self._slots:
                if (slot.phase is Phase.FREE) != (slot.job is None):
                    raise AssertionError(f"row {slot.row} is {slot.phase.name} with job {slot.job}")
                if slot.job is not None and id(slot.job) in job_ids:
                    raise AssertionError(f"the job of row {slot.row} is in two rows")
                job_ids.add(id(slot.job))
            if any(id(job) in job_ids for job in [*self._queue, *self._continuations, *self._background]):
                raise AssertionError("a queued job is also in a row")

    def _wake(self) -> None:
        self._dirty = True
        self._changed.notify_all()


def _urgency(slot: Slot) -> tuple[int, float]:
    """Sort key for prefill: answers that are being played, new answers, utterances that play later. Oldest first."""
    job = slot.job
    if job is None:
        return 2, 0.0
    scheduling = job.utterance.scheduling
    playback = scheduling.playback
    if playback is not None and scheduling.index > playback.current_index + 1:
        return 2, job.submitted_s
    return int(not scheduling.continuation), job.submitted_s
