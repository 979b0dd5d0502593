"""The Runner protocol: what a model gives the batch loop, and all that the loop asks of a model.

A model with rows that live for ever (static shapes) fulfils this; the loop decides who is in which row and who
advances. Every call comes from the loop's one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Codes, Samples, Utterance


@dataclass(frozen=True, slots=True)
class StepResult:
    """One frame for each of the n rows that were stepped.

    codes (n, K) int16; ended (n,) bool: the row had said everything before this step, its codes are no sound.
    silent (n,) bool, None = no row: the row goes on but made no frame this time (it reads its next line).
    Codes of faults.BROKEN: the row's numbers are not finite any more, it can't go on.
    rows: whose these are, where the runner is a step ahead of what it tells; None = the rows that were asked for.
    """

    codes: Codes
    ended: NDArray[np.bool_]
    silent: NDArray[np.bool_] | None = None
    rows: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row's part of a StepResult. codes (K,) int16, or one number for all."""

    row: int
    codes: Codes | int = 0
    ended: bool = False
    silent: bool = False


def to_result(rows: Sequence[RowResult], codebooks: int) -> StepResult:
    """The result of a step whose rows are known one by one."""
    codes = np.zeros((len(rows), codebooks), np.int16)
    for i, told in enumerate(rows):
        codes[i] = told.codes
    ended, silent = (np.array([getattr(told, name) for told in rows], np.bool_) for name in ("ended", "silent"))
    return StepResult(codes, ended, silent, [told.row for told in rows])


class Runner(Protocol):
    """A model in batch form. Rows are numbered 0..max_rows-1; a row belongs to one utterance from admit to release."""

    @property
    def max_rows(self) -> int: ...

    @property
    def rate_hz(self) -> int: ...

    def admit(self, row: int, utterance: Utterance) -> None:
        """Take the row for this utterance. Cheap: the work is in prefill. Raises SpeechError: this utterance only."""

    def prefill(self, row: int) -> bool:
        """Do one bounded piece of reading the prompt; True once the row can step."""

    def step(self, rows: Sequence[int]) -> StepResult:
        """Advance these rows, and no others, by one frame. May tell what an earlier call made, while the device works
        at this one; of rows that have not been released since."""

    def decode(self, rows: Sequence[int], codes: Codes) -> Sequence[Samples]:
        """Turn one frame of codes (n, K) into samples, one array (N,) float32 per row; empty where the row's frames are
        decoded together, at a later one's turn."""

    def drain(self, row: int) -> Samples:
        """What of the row's sound no further frame will bring soon, (N,) float32: asked of a row that was stepped and
        made no frame."""

    def release(self, row: int) -> None:
        """Forget the row's utterance, ended or not."""
