"""Plays the batch loop over a Runner, without threads: who is in which row, and when, is the test's."""

from __future__ import annotations

import numpy as np

from app.runtime.faults import broken
from app.runtime.runner import Runner
from app.types import Utterance


class Driver:
    """A turn is a piece of prompt for each row that reads, and a step of those that speak."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.reading: list[int] = []
        self.speaking: list[int] = []
        self.codes: dict[int, list[np.ndarray]] = {}
        self.sounds: dict[int, list[np.ndarray]] = {}
        self.non_finite: list[int] = []
        self.pieces = 0

    def start(self, row: int, utterance: Utterance) -> None:
        self.runner.admit(row, utterance)
        self.reading.append(row)
        self.codes[row], self.sounds[row] = [], []

    def stop(self, row: int) -> None:
        for rows in (self.reading, self.speaking):
            if row in rows:
                rows.remove(row)
        self.runner.release(row)

    def turn(self, paused: frozenset[int] = frozenset()) -> None:
        for row in list(self.reading):
            self.pieces += 1
            if self.runner.prefill(row):
                self.reading.remove(row)
                self.speaking.append(row)
        asked = [row for row in self.speaking if row not in paused]
        if not asked:
            return
        result = self.runner.step(asked)
        rows = asked if result.rows is None else list(result.rows)
        silent = np.zeros(len(rows), np.bool_) if result.silent is None else result.silent
        non_finite = np.isin(np.arange(len(rows)), broken(result.codes))
        live = [i for i in range(len(rows)) if not (result.ended[i] or silent[i] or non_finite[i])]
        if live:
            made = self.runner.decode([rows[i] for i in live], result.codes[live])
            for i, sound in zip(live, made, strict=True):
                self.codes[rows[i]].append(result.codes[i])
                self.sounds[rows[i]].append(sound)
        for i in np.flatnonzero(result.ended | silent):
            if len(rest := self.runner.drain(rows[i])):
                self.sounds[rows[i]].append(rest)
        for i, over in enumerate(result.ended | non_finite):
            if over:
                self.stop(rows[i])
        self.non_finite += [rows[i] for i in np.flatnonzero(non_finite)]

    def finish(self) -> None:
        while self.reading or self.speaking:
            self.turn()

    def said(self, row: int) -> np.ndarray:
        return np.stack(self.codes[row]) if self.codes[row] else np.zeros((0, 9), np.int16)

    def decode(self, row: int) -> np.ndarray:
        return np.concatenate(self.sounds[row])
