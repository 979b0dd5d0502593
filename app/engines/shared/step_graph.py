"""Captures the steps of any model as CUDA graphs and launches them.

A graph computes one step of the first n rows, n = 1, 2, 4 ... There is one graph for each pair of n and a bucket key. A
key selects a variant of the step, for example the number of positions that attention reads. The parameters of the rows
are in tensors on the device, so a launch does not wait for the device. The model's step reads the tensors `integers`,
`floats` and `selected`, and advances the selected rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from app.runtime.cuda_graphs import GraphBuckets, fastest, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.nn.kernels.choice import Kernels
    from app.runtime.cuda_graphs import Body, GraphCapture

Key = TypeVar("Key", bound=Hashable)

# Computes one step of the first n rows: (n, bucket key, kernels) -> None. It must not wait for the device.
StepBody = Callable[[int, Key, "Kernels"], None]


class StepGraph(Generic[Key]):
    """The captured steps of one model, and the parameters of each row. Only one thread may use it."""

    def __init__(
        self,
        rows: int,
        keys: Sequence[Key],
        *,
        integers: int,
        floats: int,
        kernels: Sequence[Kernels],
        device: torch.device,
    ) -> None:
        """Create the tensors of the rows. keys: all bucket keys, the largest first.

        integers, floats: how many integers and floats the parameters of one row are. kernels: the candidate kernels;
        `capture` selects the fastest of them.
        """
        self._buckets = GraphBuckets(rows, keys)
        self._device = device
        self._candidates: dict[str, Kernels] = {candidate.name: candidate for candidate in kernels}
        self.kernels = kernels[0]
        self.kernel_seconds: dict[str, float] = {}  # duration of a one-row step, by kernels' name
        self.integers = torch.zeros(rows, integers, dtype=torch.int64, device=device)
        self.floats = torch.ones(rows, floats, device=device)
        self.selected = torch.zeros(rows, dtype=torch.bool, device=device)  # rows that the current launch advances

    @property
    def rows(self) -> int:
        """The largest number of rows that one launch covers."""
        return self._buckets.rows

    def capture(self, capture: GraphCapture, body: StepBody[Key], shortest: Key) -> None:
        """Capture the step `body` for all buckets. The graphs use the kernels that are fastest for one row.

        shortest: the key with which the kernels are timed.

        If the graphs do not fit into memory, `rows` becomes smaller. Raises torch.OutOfMemoryError if the graphs for
        one row do not fit.
        """

        def bound(rows: int, key: Key, kernels: Kernels) -> Body:
            @torch.inference_mode()
            def call() -> None:
                body(rows, key, kernels)

            return call

        self.kernels, self.kernel_seconds = fastest(self._candidates, partial(bound, 1, shortest), self._device)
        self._buckets.capture(capture, partial(bound, kernels=self.kernels))

    def set_row(self, row: int, integers: Sequence[int], floats: Sequence[float]) -> None:
        """Copy the parameters of one row to the device. Does not wait for the device."""
        self.integers[row] = upload(torch.tensor(integers, dtype=torch.int64), self._device)
        self.floats[row] = upload(torch.tensor(floats, dtype=torch.float32), self._device)

    def select(self, rows: Sequence[int]) -> None:
        """Select the rows that the next launches advance."""
        selected = torch.zeros(self.rows, dtype=torch.bool)
        selected[list(rows)] = True
        self.selected[: self.rows] = upload(selected, self._device)

    def launch(self, rows: Sequence[int], key: Key) -> None:
        """Queue one step: launch the smallest graph for this key that contains all these rows."""
        self._buckets.of(max(rows) + 1, key)()


class RowState(Protocol):
    """The state of one row on the host.

    generation: a number that increases when the results of launched steps become invalid for this row.
    """

    generation: int


State = TypeVar("State", bound=RowState)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class InFlightStep(Generic[State, Result]):
    """A step that the host has launched and whose results the host has not read yet."""

    rows: list[tuple[int, State, int]]  # each row with its state and its generation at the launch
    wait: Callable[[], Result]  # waits for the results and returns them

    @classmethod
    def of(cls, rows: Mapping[int, State], wait: Callable[[], Result]) -> InFlightStep[State, Result]:
        return cls([(row, state, state.generation) for row, state in rows.items()], wait)

    def current(self, rows: Mapping[int, State]) -> Iterator[tuple[int, State]]:
        """Yield the rows of this step whose results are valid: rows not released or stopped since the launch.

        rows: the current states of all rows.
        """
        for row, state, generation in self.rows:
            if rows.get(row) is state and state.generation == generation:
                yield row, state
