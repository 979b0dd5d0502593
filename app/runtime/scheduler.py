"""The scheduler of continuous batching: a bounded queue of utterances, and a fixed number of rows for utterances.

The slack of a row is the number of seconds that the row's listener can play without more audio (`Slot.slack_s`). If any
row has a slack below SHORT_S, only rows with a slack below AHEAD_S are prefilled and stepped. Rows with a slack of at
least AHEAD_S pause, which shortens the time to first audio. On a CPU, a step with fewer rows takes less time. On a GPU,
if no row is stepped, the whole device works on the new prompt.

The time of a step depends on the smallest bucket that contains the highest active row (`MovesRows.bucket_sizes`). If
all jobs would have fit into a smaller bucket in COMPACT_AFTER consecutive plans, the next plan moves the job in the
highest row to the lowest free row. No job moves while any job waits for a row. A move copies the state of one row. Each
plan moves at most one row.

A background job runs only while each listener has at least AHEAD_S seconds of audio that is not played yet. If a
foreground job needs the row, the background job is preempted. A foreground job keeps its row until its utterance ends
or is cancelled.

The event loop calls `submit`, `cancel`, `wake` and `load`. The engine's thread calls all other methods. One lock
protects all state. The engine's loop gets a `Plan`, executes the plan, and reports the results with `commit`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.errors import Busy, EngineStopped
from app.runtime.slots import AHEAD_S, SHORT_S, Job, Phase, Slot, Slots
from app.types import Load

# A job is moved after this number of consecutive plans in which all jobs would have fit into a smaller bucket.
COMPACT_AFTER = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows that one iteration of the loop releases, moves, admits, prefills by one chunk, and steps."""

    release: tuple[int, ...] = ()
    move: tuple[tuple[int, int], ...] = ()  # (source row, target row) of each move
    admit: tuple[tuple[int, Job], ...] = ()
    prefill: tuple[int, ...] = ()
    step: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        """Whether the plan contains no work."""
        return not (self.release or self.move or self.admit or self.prefill or self.step)


class Scheduler:
    """Owns the queues and the rows. If the queue is full, `submit` raises Busy immediately (backpressure)."""

    def __init__(
        self,
        max_rows: int,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
        bucket_sizes: Sequence[int] = (),
    ) -> None:
        """Create the rows, which are all free. bucket_sizes: see MovesRows; () = a job never moves to another row."""
        self._clock = clock
        self._bucket_sizes = tuple(bucket_sizes)
        self._plans_too_large = 0  # number of consecutive plans in which all jobs would have fit into a smaller bucket
        self._slots = Slots(max_rows)
        # The first utterance of each answer that waits for a row; the length is limited to `max_queue`.
        self._queue: deque[Job] = deque()
        self._continuations: deque[Job] = deque()  # later utterances of answers that have started; they wait for a row
        self._background: deque[Job] = deque()  # jobs that run only while no listener needs audio soon
        self._max_queue = max_queue
        self._changed = threading.Condition()
        self._dirty = False
        self._closed: Exception | None = None

    # ---- methods that the event loop calls

    def submit(self, job: Job) -> None:
        """Add a job to a queue.

        Raises Busy if all rows and the queue are full. After `close`, raises the error with which `close` ended the
        jobs.

        Only the first utterance of an answer can be refused. The later utterances of an answer run before new answers.
        A background job ends with Busy if a foreground job needs its row.
        """
        with self._changed:
            if self._closed is not None:
                raise self._closed
            if job.background:
                self._background.append(job)
            elif job.utterance.scheduling.continuation:
                self._continuations.append(job)
            else:
                # Later utterances of started answers take free rows before new answers.
                free = len(self._slots) - self._speaking - len(self._continuations)
                if len(self._queue) >= max(0, free) + self._max_queue:
                    raise Busy(
                        f"The server is speaking for {len(self._slots)} requests and {self._max_queue} are waiting. "
                        "Try again in a moment.",
                        retry_after_s=1,
                    )
                self._queue.append(job)
            self._wake()

    def cancel(self, job: Job) -> None:
        """Cancel a job. A queued job is removed immediately; a job in a row is removed by the next call of `plan`."""
        with self._changed:
            job.cancelled = True
            waits = False
            for queue in (self._queue, self._continuations, self._background):
                # Do not catch the error of `remove` instead: its message contains the job as a text, which takes 2 ms.
                if job in queue:
                    queue.remove(job)
                    waits = True
            # If the job has ended, nothing changes for the engine's thread. Waking a thread takes about 0.1 ms of CPU.
            if waits or any(slot.job is job for slot in self._slots.live):
                self._wake()

    def wake(self) -> None:
        """Make the engine's thread plan again. An audio queue calls this method when it has space again."""
        with self._changed:
            self._wake()

    def load(self) -> Load:
        """Return how many rows have a foreground job, how many new answers are queued, and the limit of each number."""
        with self._changed:
            return Load(self._speaking, len(self._slots), len(self._queue), self._max_queue)

    @property
    def _speaking(self) -> int:
        """The number of rows with a foreground job."""
        return sum(not slot.background for slot in self._slots.live)

    def close(self, error: Exception | None = None) -> None:
        """End all queued and running jobs with an error. From then on, `submit` raises the same error.

        error: None = an EngineStopped.
        """
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

    # ---- methods that the engine's thread calls

    def plan(self) -> Plan:
        """Assign free rows to queued jobs, and return the plan of the next iteration."""
        with self._changed:
            self._dirty = False
            release = [slot.row for slot in self._slots.live if slot.job is not None and slot.job.cancelled]
            for row in release:
                self._slots.free(row)
            release += self._preempt()
            move = self._compact()
            admit: list[tuple[int, Job]] = []
            for queue in (self._continuations, self._queue):
                while queue and (slot := self._slots.take(queue[0])) is not None:
                    admit.append((slot.row, queue.popleft()))
            step: list[int] = []
            for slot in self._slots:
                if slot.phase in (Phase.SPEAK, Phase.PAUSED):
                    assert slot.job is not None  # noqa: S101 - every row that is not FREE has a job
                    slot.phase = Phase.PAUSED if slot.job.audio_queue.full else Phase.SPEAK
                    if slot.phase is Phase.SPEAK:
                        step.append(slot.row)
            now_s = self._clock()
            active = [slot for slot in self._slots if slot.phase in (Phase.SPEAK, Phase.PREFILL)]
            slack_s = {slot.row: slot.slack_s(now_s) for slot in active}
            least_s = min((slack_s[slot.row] for slot in active if not slot.background), default=math.inf)
            if least_s >= AHEAD_S and self._background:
                slot = self._slots.take(self._background[0])
                if slot is not None:
                    admit.append((slot.row, self._background.popleft()))
                    slack_s[slot.row] = math.inf
            waiting = [slot for slot in self._slots if slot.phase is Phase.PREFILL]
            if least_s < AHEAD_S:  # a listener needs audio soon, so background jobs pause
                step = [row for row in step if not self._slots[row].background]
                waiting = [slot for slot in waiting if not slot.background]
            if least_s < SHORT_S:
                step = [row for row in step if slack_s[row] < AHEAD_S]
                waiting = [slot for slot in waiting if slack_s[slot.row] < AHEAD_S]
            # Each iteration prefills only one chunk of one prompt (chunked prefill), so that a long prompt does not
            # delay the steps of speaking rows. `_urgency` decides which prompt is first.
            waiting.sort(key=_urgency)
            return Plan(tuple(release), move, tuple(admit), tuple(slot.row for slot in waiting[:1]), tuple(step))

    def _compact(self) -> tuple[tuple[int, int], ...]:
        """Move the job in the highest row to the lowest free row, if all jobs would fit into a smaller bucket."""
        live = self._slots.live
        if not live or not self._bucket_sizes or self._queue or self._continuations:
            self._plans_too_large = 0
            return ()
        enough = next((size for size in self._bucket_sizes if size >= len(live)), len(self._slots))
        source = live[-1]
        if source.row < enough:
            self._plans_too_large = 0
            return ()
        self._plans_too_large += 1
        if self._plans_too_large <= COMPACT_AFTER or source.phase is Phase.PREFILL:
            return ()
        target = next(slot.row for slot in self._slots if slot.phase is Phase.FREE)
        self._slots.move(source.row, target)
        return ((source.row, target),)

    def _preempt(self) -> list[int]:
        """If foreground jobs need more rows than are free, end background jobs. Return the rows of the ended jobs."""
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
        """Record that the row's prompt is completely prefilled, so that the next plans step the row."""
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
        """Free all rows, and return the jobs that were in the rows. The caller must finish the jobs' audio queues."""
        with self._changed:
            jobs = [slot.job for slot in self._slots.live if slot.job is not None]
            for slot in self._slots:
                slot.job, slot.phase, slot.frames = None, Phase.FREE, 0
            self._wake()
            return jobs

    def wait(self, timeout_s: float) -> None:
        """Wait until there may be new work, but at most `timeout_s` seconds.

        New work may exist after a job was added or cancelled, and after an audio queue got space.
        """
        with self._changed:
            if not self._dirty:
                self._changed.wait(timeout_s)

    def check(self) -> None:
        """Check that rows and queues are consistent. Raises AssertionError if rows and queues contradict each other.

        Tests call this after each iteration, and the engine's loop calls it when a plan contains no work.
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
    """Return the sort key of a row that waits for prefill: a class, and the time at which the job was submitted.

    Class 0: an utterance that the listener plays now or next and that is not the first of its answer. Class 1: the
    first utterance of an answer. Class 2: an utterance that the listener plays later. Class 3: a background job.
    """
    job = slot.job
    if job is None:
        return 3, 0.0
    if job.background:
        return 3, job.submitted_s
    scheduling = job.utterance.scheduling
    playback = scheduling.playback
    if playback is not None and scheduling.index > playback.current_index + 1:
        return 2, job.submitted_s
    return int(not scheduling.continuation), job.submitted_s
