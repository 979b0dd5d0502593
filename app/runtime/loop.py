"""The engine's thread: plan, admit, prefill, step, decode and commit, until it is stopped.

A failure in admit or prefill fails one utterance. A failure in a step fails the rows of that step. A row with NaN or
infinite numbers fails alone. The thread continues with the other rows. If the loop itself fails, all active jobs fail,
the rows are cleared and the loop restarts, RESTARTS times at most. After that the engine is dead.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from app.errors import EngineError, EngineStopped, SpeechError
from app.runtime import faults

if TYPE_CHECKING:
    from app.runtime.runner import Runner
    from app.runtime.scheduler import Scheduler

log = logging.getLogger(__name__)

IDLE_CHECK_S = 1.0
RESTARTS = 1
STALLED_S = 120.0  # a turn takes milliseconds, a first one with kernels to compile perhaps a minute


class Loop:
    """Drives one Runner from one thread. `start` and `stop` come from outside, everything else from the thread."""

    def __init__(self, runner: Runner, scheduler: Scheduler, name: str) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._stopping = threading.Event()
        self._failed = False
        self._restarts = 0
        self._held: set[int] = set()  # rows that the runner has been given and has not been asked to forget
        self._turned_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    @property
    def alive(self) -> bool:
        """False once the thread is gone, or hangs inside the model. False before anyone hears of the failure."""
        return self._thread.is_alive() and not self._failed and time.monotonic() - self._turned_s < STALLED_S

    @property
    def restarts(self) -> int:
        """How often the loop has failed and gone on."""
        return self._restarts

    def start(self) -> None:
        self._turned_s = time.monotonic()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after the current iteration (graceful shutdown) and fail the remaining jobs."""
        self._stopping.set()
        self._scheduler.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._turns()
                except BaseException as error:
                    if self._restarts >= RESTARTS:
                        raise
                    self._restarts += 1
                    log.critical("the engine's loop failed; it starts again", exc_info=error)
                    self._clear()
                else:
                    return
        except BaseException as error:
            self._failed = True
            log.critical("the engine thread died", exc_info=error)
            self._scheduler.close(EngineError("The engine has failed. Restart the server; its log says why."))
            raise

    def _turns(self) -> None:
        while not self._stopping.is_set():
            self._turned_s = time.monotonic()
            if not self.turn():
                self._scheduler.check()
                self._scheduler.wait(IDLE_CHECK_S)

    def _clear(self) -> None:
        """Free all rows and fail their jobs. Queued jobs keep their places."""
        jobs = self._scheduler.clear()
        for row in sorted(self._held):
            self._release(row)
        for job in jobs:
            job.audio_queue.finish(
                EngineStopped("The engine failed while speaking this and was started again. Try again.")
            )

    def turn(self) -> bool:
        """One iteration of the loop; False when there was nothing to do."""
        plan = self._scheduler.plan()
        if plan.idle:
            return False
        for row in plan.release:
            self._release(row)
        refused = set()
        for row, job in plan.admit:
            self._held.add(row)
            try:
                self._runner.admit(row, job.utterance)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this utterance's alone
                self._fail((row,), error)
                refused.add(row)
        for row in plan.prefill:
            if row in refused:
                continue
            try:
                if self._runner.prefill(row):
                    self._scheduler.prefilled(row)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail((row,), error)
        if plan.step:
            try:
                self._step(plan.step)
            except Exception as error:  # noqa: BLE001 - the rows of this step are lost, the engine is not
                self._fail(plan.step, error)
        return True

    def _step(self, rows: tuple[int, ...]) -> None:
        result = self._runner.step(rows)
        rows = rows if result.rows is None else tuple(result.rows)
        quiet = result.ended if result.silent is None else result.ended | result.silent
        speaking = [i for i, nothing in enumerate(quiet) if not nothing]
        lost = {rows[i] for i in faults.broken(result.codes)}
        speaking = [i for i in speaking if rows[i] not in lost]
        if speaking:
            live = [rows[i] for i in speaking]
            codes = result.codes[speaking]  # (n, K)
            for i, (row, samples) in enumerate(zip(live, self._runner.decode(live, codes), strict=True)):
                if not faults.audible(samples):
                    lost.add(row)
                    continue
                self._scheduler.job(row).audio_queue.put(samples, codes[i][:, None] if codes.shape[1] else None)
        for row in (rows[i] for i, nothing in enumerate(quiet) if nothing):
            if not faults.audible(samples := self._runner.drain(row)):
                lost.add(row)
            else:
                self._scheduler.job(row).audio_queue.put(samples)
        if lost:
            self._fail(tuple(sorted(lost)), faults.not_a_number())
        over = tuple(row for row, ended in zip(rows, result.ended, strict=True) if ended and row not in lost)
        self._end(tuple(row for row in rows if row not in lost), over, None)

    def _release(self, row: int) -> None:
        self._held.discard(row)
        self._runner.release(row)

    def _fail(self, rows: tuple[int, ...], error: Exception) -> None:
        if not isinstance(error, SpeechError):
            log.error("the engine failed in row(s) %s", rows, exc_info=error)
        self._end((), rows, faults.typed(error))

    def _end(self, stepped: tuple[int, ...], ended: tuple[int, ...], error: Exception | None) -> None:
        """Free the rows first, then finish the audio queues: a reader that sees the end finds its row free."""
        jobs = [self._scheduler.job(row) for row in ended]
        for row in ended:
            self._release(row)
        self._scheduler.commit(stepped, ended)
        for job in jobs:
            job.audio_queue.finish(error)
