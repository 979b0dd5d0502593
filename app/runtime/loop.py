"""The engine's thread: plan, admit, prefill, step, sound, settle, for ever. Knows a Runner and a Scheduler only.

A failure while one utterance is read fails that utterance; a failure of a step fails the rows that were in it. Either
way the thread goes on with the others.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from app.errors import EngineError, SpeechError

if TYPE_CHECKING:
    from app.runtime.runner import Runner
    from app.runtime.scheduler import Scheduler

log = logging.getLogger(__name__)

IDLE_CHECK_S = 1.0
STALLED_S = 120.0  # a turn takes milliseconds, a first one with kernels to compile perhaps a minute

_NOT_FINITE = (
    "The model's numbers went out of range while speaking this. Try again; where it happens often, TTS_DTYPE=bfloat16 "
    "or float32 has more room."
)


class Loop:
    """Drives one Runner from one thread. `start` and `stop` come from outside, everything else from the thread."""

    def __init__(self, runner: Runner, scheduler: Scheduler, name: str) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._stopping = threading.Event()
        self._failed = False
        self._turned_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    @property
    def alive(self) -> bool:
        """False once the thread is gone, or hangs inside the model. False before anyone hears of the failure."""
        return self._thread.is_alive() and not self._failed and time.monotonic() - self._turned_s < STALLED_S

    def start(self) -> None:
        self._turned_s = time.monotonic()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after its present turn; jobs that are left are failed by the scheduler's `close`."""
        self._stopping.set()
        self._scheduler.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turned_s = time.monotonic()
                if not self.turn():
                    self._scheduler.check()
                    self._scheduler.wait(IDLE_CHECK_S)
        except BaseException as error:
            self._failed = True
            log.critical("the engine thread died", exc_info=error)
            self._scheduler.close(EngineError("The engine has failed. Restart the server; its log says why."))
            raise

    def turn(self) -> bool:
        """One turn of the loop; False when there was nothing to do."""
        plan = self._scheduler.plan()
        if plan.idle:
            return False
        for row in plan.release:
            self._runner.release(row)
        refused = set()
        for row, job in plan.admit:
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
        quiet = np.logical_or.reduce([part for part in (result.ended, result.silent, result.wrong) if part is not None])
        speaking = [i for i, nothing in enumerate(quiet) if not nothing]
        if speaking:
            live = [rows[i] for i in speaking]
            codes = result.codes[speaking]  # (n, K)
            for i, (row, samples) in enumerate(zip(live, self._runner.sound(live, codes), strict=True)):
                self._scheduler.job(row).outbox.put(samples, codes[i][:, None] if codes.shape[1] else None)
        self._end(rows, tuple(rows[i] for i, over in enumerate(result.ended) if over), None)
        if result.wrong is not None and result.wrong.any():
            lost = tuple(rows[i] for i in np.flatnonzero(result.wrong))
            log.error("numbers in row(s) %s are not finite any more", lost)
            self._fail(lost, EngineError(_NOT_FINITE))

    def _fail(self, rows: tuple[int, ...], error: Exception) -> None:
        if not isinstance(error, SpeechError):
            log.error("the engine failed in row(s) %s", rows, exc_info=error)
            error = EngineError("The engine failed while speaking this. Try again; the server's log says why.")
        self._end((), rows, error)

    def _end(self, stepped: tuple[int, ...], ended: tuple[int, ...], error: Exception | None) -> None:
        """Readers are told last: whoever hears the end finds the row free."""
        jobs = [self._scheduler.job(row) for row in ended]
        for row in ended:
            self._runner.release(row)
        self._scheduler.settle(stepped, ended)
        for job in jobs:
            job.outbox.finish(error)
