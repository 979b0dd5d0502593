"""Runs a Runner without threads, as the batch loop does. The test decides which utterance is in which row, and when."""

from __future__ import annotations

import numpy as np

from app.runtime.faults import broken_rows
from app.runtime.runner import MovesRows, Runner
from app.types import Utterance


class Driver:
    """An iteration reads one chunk of each prompt that is not read yet, and steps the rows whose prompts are read."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.prefilling: list[int] = []  # rows
        self.speaking: list[int] = []  # rows
        self.codes: dict[int, list[np.ndarray]] = {}  # row -> its frames (K,)
        self.chunks: dict[int, list[np.ndarray]] = {}  # row -> its samples (N,)
        self.non_finite: list[int] = []  # rows that have ended with NaN or infinite values
        self.prefill_calls = 0

    def start(self, row: int, utterance: Utterance) -> None:
        self.runner.admit(row, utterance)
        self.prefilling.append(row)
        self.codes[row], self.chunks[row] = [], []

    def stop(self, row: int) -> None:
        for rows in (self.prefilling, self.speaking):
            if row in rows:
                rows.remove(row)
        self.runner.release(row)

    def move(self, source: int, target: int) -> None:
        """Move a row whose prompt is read, as the scheduler does. The results of both rows are under `target`."""
        assert isinstance(self.runner, MovesRows)
        assert target not in self.speaking
        self.runner.move_row(source, target)
        self.speaking[self.speaking.index(source)] = target
        self.speaking.sort()
        self.codes[target], self.chunks[target] = self.codes.pop(source), self.chunks.pop(source)

    def iterate(self, paused: frozenset[int] = frozenset()) -> None:
        for row in list(self.prefilling):
            self.prefill_calls += 1
            if self.runner.prefill(row):
                self.prefilling.remove(row)
                self.speaking.append(row)
        stepped = [row for row in self.speaking if row not in paused]
        if not stepped:
            return
        result = self.runner.step(stepped)
        rows = stepped if result.rows is None else list(result.rows)
        silent = np.zeros(len(rows), np.bool_) if result.silent is None else result.silent
        non_finite = np.isin(np.arange(len(rows)), broken_rows(result.codes))
        audible = [i for i in range(len(rows)) if not (result.ended[i] or silent[i] or non_finite[i])]
        if audible:
            decoded = self.runner.decode([rows[i] for i in audible], result.codes[audible])
            for i, samples in zip(audible, decoded, strict=True):
                self.codes[rows[i]].append(result.codes[i])
                self.chunks[rows[i]].append(samples)
        for i in np.flatnonzero(result.ended | silent):
            if len(rest := self.runner.drain(rows[i])):
                self.chunks[rows[i]].append(rest)
        for i, ended in enumerate(result.ended | non_finite):
            if ended:
                self.stop(rows[i])
        self.non_finite += [rows[i] for i in np.flatnonzero(non_finite)]

    def finish(self) -> None:
        while self.prefilling or self.speaking:
            self.iterate()

    def frames(self, row: int) -> np.ndarray:
        """Return all codes of the row: (T, K)."""
        return np.stack(self.codes[row]) if self.codes[row] else np.zeros((0, 9), np.int16)

    def samples(self, row: int) -> np.ndarray:
        """Return all samples of the row: (N,)."""
        return np.concatenate(self.chunks[row])
