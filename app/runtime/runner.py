"""The Runner protocol: the interface between the batch loop and a model that generates several utterances together.

A model has a fixed number of rows, because CUDA graphs need static shapes. Each row generates one utterance. The loop
assigns utterances to rows and chooses the rows of each step. All calls come from the loop's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Codes, Samples, Utterance, WordMark


@dataclass(frozen=True, slots=True)
class StepResult:
    """The results of one step: one frame for each of n rows."""

    codes: Codes  # (n, K) int16; faults.BROKEN = NaN or infinite values, so the row's utterance fails
    ended: NDArray[np.bool_]  # (n,): True = the utterance is complete, and the loop ignores the row's codes
    # (n,): True = the row continues, but this step gives no frame for the row. None = every row has a frame.
    silent: NDArray[np.bool_] | None = None
    # The row numbers of the results, in the order of `codes`. None = the rows that the caller passed to `step`.
    rows: Sequence[int] | None = None
    rules: Mapping[int, str] = field(default_factory=dict)  # row -> the rule of the output guard that ended a line
    # Row -> positions of words in the audio of the row's utterance, if the model reports such positions.
    marks: Mapping[int, Sequence[WordMark]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowResult:
    """The result of one step for one row. codes: (K,) int16, or one number that is stored for all codebooks."""

    row: int
    codes: Codes | int = 0
    ended: bool = False
    silent: bool = False
    rule: str | None = None  # the rule of the output guard that ended a line in this step


def to_result(rows: Sequence[RowResult], codebooks: int) -> StepResult:
    """Join the results of single rows into a StepResult."""
    codes = np.zeros((len(rows), codebooks), np.int16)
    for i, row in enumerate(rows):
        codes[i] = row.codes
    ended, silent = (np.array([getattr(row, name) for row in rows], np.bool_) for name in ("ended", "silent"))
    rules = {row.row: row.rule for row in rows if row.rule is not None}
    return StepResult(codes, ended, silent, [row.row for row in rows], rules)


class Runner(Protocol):
    """A model that generates one utterance in each row. Rows have the numbers 0..max_rows-1.

    A row belongs to one utterance from `admit` to `release`.
    """

    @property
    def max_rows(self) -> int:
        """The number of rows."""

    @property
    def rate_hz(self) -> int:
        """The sample rate of the audio."""

    def admit(self, row: int, utterance: Utterance) -> None:
        """Assign the row to this utterance. Must return quickly. If this method raises, only this utterance fails."""

    def prefill(self, row: int) -> bool:
        """Read the next chunk of the row's prompt (chunked prefill). Returns True if the prompt is complete."""

    def step(self, rows: Sequence[int]) -> StepResult:
        """Advance exactly these rows by one frame, and return the results.

        A runner may return the results of the previous call while the device computes this call. In this case, the
        results do not contain rows that were released between the two calls.
        """

    def decode(self, rows: Sequence[int], codes: Codes) -> Sequence[Samples]:
        """Decode one frame of codes (n, K) int16 to samples: one array (N,) float32 for each row.

        If the decoder keeps a frame to decode it together with later frames, the array of this row is empty.
        """

    def drain(self, row: int) -> Samples:
        """Decode the frames that the decoder still keeps for the row, and return the samples (N,) float32.

        The loop calls this for a row that has no frame in a step.
        """

    def release(self, row: int) -> None:
        """Remove the utterance, which has ended or was cancelled, from the row."""


@runtime_checkable
class MovesRows(Protocol):
    """A runner that can move utterances to other rows. Its step takes longer, the higher the highest active row is."""

    @property
    def bucket_sizes(self) -> Sequence[int]:
        """The ascending numbers of rows for which a variant of the step exists; () = there are no variants.

        If r is the highest active row, a step runs the variant for the smallest size above r.
        """

    def move_row(self, source: int, target: int) -> None:
        """Move the utterance of row `source` to the free row `target`, between two steps.

        The loop calls this only after the prefill of the utterance. All results that arrive after the move contain the
        new row number, even if they are results of earlier steps. If this method raises, the utterance fails, and the
        loop releases both rows.
        """
