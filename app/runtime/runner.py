"""The Runner protocol: a model in batch form, as the batch loop uses it.

A model has a fixed number of rows (static shapes). The loop assigns utterances to rows and decides which rows advance.
All calls come from the loop's thread.
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
    """One frame for each of n rows."""

    codes: Codes  # (n, K) int16; faults.BROKEN = the row's numbers are NaN or infinite, so the row fails
    ended: NDArray[np.bool_]  # (n,): the row had finished before this step; its codes are ignored
    silent: NDArray[np.bool_] | None = (
        None  # (n,): the row continues but has no frame in this step; None: no row is silent
    )
    rows: Sequence[int] | None = (
        None  # the rows of these results, if they are from an earlier step; None = as requested
    )


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row's part of a StepResult. codes (K,) int16, or one number for all."""

    row: int
    codes: Codes | int = 0
    ended: bool = False
    silent: bool = False


def to_result(rows: Sequence[RowResult], codebooks: int) -> StepResult:
    """Join the results of single rows into a StepResult."""
    codes = np.zeros((len(rows), codebooks), np.int16)
    for i, row in enumerate(rows):
        codes[i] = row.codes
    ended, silent = (np.array([getattr(row, name) for row in rows], np.bool_) for name in ("ended", "silent"))
    return StepResult(codes, ended, silent, [row.row for row in rows])


class Runner(Protocol):
    """A model in batch form. Rows are numbered 0..max_rows-1; a row belongs to one utterance from admit to release."""

    @property
    def max_rows(self) -> int: ...

    @property
    def rate_hz(self) -> int: ...

    def admit(self, row: int, utterance: Utterance) -> None:
        """Assign the row to this utterance. Cheap. A SpeechError fails this utterance only."""

    def prefill(self, row: int) -> bool:
        """Read one bounded piece of the prompt (chunked prefill). True once the row can step."""

    def step(self, rows: Sequence[int]) -> StepResult:
        """Advance exactly these rows by one frame. May return the results of an earlier call while the device computes
        this one, for rows that were not released since."""

    def decode(self, rows: Sequence[int], codes: Codes) -> Sequence[Samples]:
        """Turn one frame of codes (n, K) into samples, one array (N,) float32 per row. An array is empty if the row's
        frame is decoded together with a later one."""

    def drain(self, row: int) -> Samples:
        """Return the samples (N,) float32 that the decoder still holds, for a row whose step had no frame."""

    def release(self, row: int) -> None:
        """Forget the row's utterance, whether it ended or was cancelled."""
