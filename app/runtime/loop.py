"""The engine's thread. Each iteration plans the work, moves, admits, prefills and steps rows, and decodes frames.

An error in move, admit or prefill fails one utterance. An error in a step fails all utterances of that step. NaN or
infinite values in a row fail only the row's utterance. After any of these errors, the thread continues with the
remaining rows.

After any other error, all utterances that have a row fail, all rows are released, and the loop restarts. The loop
restarts at most MAX_RESTARTS times. At the next failure the thread ends, and the engine stays unhealthy until the
server restarts. If the process has lost its GPU (`faults.is_device_lost`), the thread ends immediately.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, cast

from app.errors import EngineError, EngineStopped, SpeechError
from app.runtime import faults
from app.runtime.runner import MovesRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.runtime.runner import Runner
    from app.runtime.scheduler import Scheduler

log = logging.getLogger(__name__)

IDLE_CHECK_S = 1.0
MAX_RESTARTS = 1
# If one iteration takes longer than this, `alive` is False. Most iterations take milliseconds, but the first iteration
# compiles kernels and may take a minute.
HUNG_S = 120.0


class Loop:
    """Runs one Runner in a new thread. Other threads may only call `start` and `stop` and read the properties."""

    def __init__(
        self, runner: Runner, scheduler: Scheduler, name: str, initialize: Callable[[], object] = lambda: None
    ) -> None:
        """Create the loop without starting its thread. initialize: called once, at the start of the new thread."""
        self._runner = runner
        self._scheduler = scheduler
        self._initialize = initialize
        self._stopping = threading.Event()
        self._failed = False
        self._restarts = 0
        self._admitted: set[int] = set()  # rows that the runner has admitted and not released
        self._iteration_start_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and its current iteration has taken less than HUNG_S.

        If the thread fails, `alive` becomes False before the jobs fail. So a caller whose job fails sees that the
        engine has stopped.
        """
        running = self._thread.is_alive() and not self._failed
        return running and time.monotonic() - self._iteration_start_s < HUNG_S

    @property
    def restarts(self) -> int:
        """How often the loop has failed and restarted."""
        return self._restarts

    def start(self) -> None:
        """Start the thread."""
        self._iteration_start_s = time.monotonic()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after the current iteration and fail the remaining jobs. Waits for up to timeout_s."""
        self._stopping.set()
        self._scheduler.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._initialize()
            while True:
                try:
                    self._iterate_until_stopped()
                except BaseException as error:
                    if self._restarts >= MAX_RESTARTS or faults.is_device_lost(error):
                        raise
                    self._restarts += 1
                    log.critical(
                        "the engine's loop failed: the loop restarts, and all requests in progress fail", exc_info=error
                    )
                    self._clear()
                else:
                    return
        except BaseException as error:
            self._failed = True
            log.critical(
                "the engine's thread has ended, so the engine can't speak until the server restarts", exc_info=error
            )
            self._scheduler.close(
                EngineError("The engine has failed. Restart the server. The server's log gives the cause.")
            )
            raise

    def _iterate_until_stopped(self) -> None:
        while not self._stopping.is_set():
            self._iteration_start_s = time.monotonic()
            if not self.iterate():
                self._scheduler.check()
                self._scheduler.wait(IDLE_CHECK_S)

    def _clear(self) -> None:
        """Release all rows, and fail the jobs in these rows. Queued jobs stay in the queue."""
        jobs = self._scheduler.clear()
        for row in sorted(self._admitted):
            self._release(row)
        for job in jobs:
            job.audio_queue.finish(EngineStopped("The engine failed during this request and has restarted. Try again."))

    def iterate(self) -> bool:
        """Run one iteration of the loop. Returns False if there was nothing to do."""
        plan = self._scheduler.plan()
        if plan.idle:
            return False
        for row in plan.release:
            self._release(row)
        failed = {target for source, target in plan.move if not self._move(source, target)}
        refused = set()
        for row, job in plan.admit:
            self._admitted.add(row)
            try:
                self._runner.admit(row, job.utterance)
            except Exception as error:  # noqa: BLE001 - any error fails only this utterance
                self._fail((row,), error)
                refused.add(row)
        for row in plan.prefill:
            if row in refused:
                continue
            try:
                if self._runner.prefill(row):
                    self._scheduler.prefilled(row)
            except Exception as error:  # noqa: BLE001 - any error fails only this utterance
                self._fail((row,), error)
        step = tuple(row for row in plan.step if row not in failed)
        if step:
            try:
                self._step(step)
            except Exception as error:  # noqa: BLE001 - any error fails only the rows of this step
                self._fail(step, error)
        return True

    def _move(self, source: int, target: int) -> bool:
        """Move an utterance to another row. If the move fails, fail the utterance and return False."""
        self._admitted.add(target)
        try:
            cast(MovesRows, self._runner).move_row(source, target)
        except Exception as error:  # noqa: BLE001 - any error fails only this utterance
            self._fail((target,), error)
            self._release(source)
            return False
        self._admitted.discard(source)
        return True

    def _step(self, rows: tuple[int, ...]) -> None:
        """Step the rows, put the new samples into the audio queues, and end the rows that have finished or failed."""
        result = self._runner.step(rows)
        rows = rows if result.rows is None else tuple(result.rows)
        no_frame = result.ended if result.silent is None else result.ended | result.silent
        failed = {rows[i] for i in faults.broken_rows(result.codes)}
        speaking = [i for i, without in enumerate(no_frame) if not without and rows[i] not in failed]
        for row, rule in result.rules.items():
            self._scheduler.job(row).audio_queue.report(rule)
        for row, marks in result.marks.items():
            self._scheduler.job(row).audio_queue.mark(marks)
        if speaking:
            live = [rows[i] for i in speaking]
            codes = result.codes[speaking]  # (n, K)
            for i, (row, samples) in enumerate(zip(live, self._runner.decode(live, codes), strict=True)):
                if not faults.is_finite(samples):
                    failed.add(row)
                    continue
                self._scheduler.job(row).audio_queue.put(samples, codes[i][:, None] if codes.shape[1] else None)
        for row in (rows[i] for i, without in enumerate(no_frame) if without):
            if not faults.is_finite(samples := self._runner.drain(row)):
                failed.add(row)
            else:
                self._scheduler.job(row).audio_queue.put(samples)
        if failed:
            self._fail(tuple(sorted(failed)), faults.non_finite_error())
        finished = tuple(row for row, ended in zip(rows, result.ended, strict=True) if ended and row not in failed)
        self._end(tuple(row for row in rows if row not in failed), finished, None)

    def _release(self, row: int) -> None:
        self._admitted.discard(row)
        self._runner.release(row)

    def _fail(self, rows: tuple[int, ...], error: Exception) -> None:
        """Fail the utterances in these rows. If the GPU is lost, raise the error, because then all rows fail."""
        if faults.is_device_lost(error):
            raise error
        if not isinstance(error, SpeechError):
            log.error("the requests in rows %s failed", rows, exc_info=error)
        self._end((), rows, faults.to_speech_error(error))

    def _end(self, stepped: tuple[int, ...], ended: tuple[int, ...], error: Exception | None) -> None:
        """Count one frame for each row in `stepped`, and end the jobs of the rows in `ended`.

        error: the error with which the jobs end; None = they are complete. This method releases a row first, and then
        finishes the row's audio queue. So the row is free when the reader gets the end of the audio.
        """
        jobs = [self._scheduler.job(row) for row in ended]
        for row in ended:
            self._release(row)
        self._scheduler.commit(stepped, ended)
        for job in jobs:
            job.audio_queue.finish(error)
