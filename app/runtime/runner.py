"""The Runner protocol: a model in batch form, as the batch loop uses it.

A model has a fixed number of rows (static shapes). The loop assigns utterances to rows and decides which rows advance.
All calls come from the loop's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Codes, Samples, Utterance


@dataclass(frozen=True, slots=True)
class StepResult:
    """One frame for each of n rows."""

    codes: Codes  # (n, K) int16; faults.BROKEN = the row has NaN or infinite values and fails
    ended: NDArray[np.bool_]  # (n,): the row had finished before this step; its codes are ignored
    # (n,): the row continues, but has no frame in this step. None = every row has a frame.
    silent: NDArray[np.bool_] | None = None
    # The rows that these results belong to. None = the rows that `step` was called with.
    rows: Sequence[int] | None = None
    rules: Mapping[int, str] = field(default_factory=dict)  # row -> the guard's rule that ended a line in this step


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row's part of a StepResult. codes (K,) int16, or one code for all codebooks."""

    row: int
    codes: Codes | int = 0
    ended: bool = False
    silent: bool = False
    rule: str | None = None  # the guard's rule that ended a line in this step


def to_result(rows: Sequence[RowResult], codebooks: int) -> StepResult:
    """Join the results of single rows into a StepResult."""
    codes = np.zeros((len(rows), codebooks), np.int16)
    for i, row in enumerate(rows):
        codes[i] = row.codes
    ended, silent = (np.array([getattr(row, name) for row in rows], np.bool_) for name in ("ended", "silent"))
    rules = {row.row: row.rule for row in rows if row.rule is not None}
    return StepResult(codes, ended, silent, [row.row for row in rows], rules)


class Runner(Protocol):
    """A model in batch form. Rows are numbered 0..max_rows-1; a row belongs to one utterance from admit to release."""

    @property
    def max_rows(self) -> int:
        """The number of rows."""

    @property
    def rate_hz(self) -> int:
        """The sample rate of the audio."""

    def admit(self, row: int, utterance: Utterance) -> None:
        """Assign the row to this utterance, without heavy work. A SpeechError fails this utterance only."""

    def prefill(self, row: int) -> bool:
        """Read one chunk of the prompt (chunked prefill). Returns True once the row can step."""

    def step(self, rows: Sequence[int]) -> StepResult:
        """Advance exactly these rows by one frame.

        May return the results of an earlier call while the device computes this one. Then it leaves out rows that were
        released in between.
        """

    def decode(self, rows: Sequence[int], codes: Codes) -> Sequence[Samples]:
        """Decode one frame of codes (n, K) int16 to samples: one array (N,) float32 for each row.

        An array is empty if the decoder keeps the row's frame and decodes it together with a later one.
        """

    def drain(self, row: int) -> Samples:
        """Return samples (N,) float32 that the decoder has kept back. Called for a row that had no frame in a step."""

    def release(self, row: int) -> None:
        """Remove the row's utterance, which has ended or was cancelled."""
