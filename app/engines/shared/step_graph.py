"""Steps captured as CUDA graphs: the part that does not depend on the model.

A step is captured for the first n rows, n = 1, 2, 4 ..., and for each bucket key (for example how far back attention
looks). All numbers of the rows stay in tensors on the device, so a launch never waits for the device. The model's step
reads `integers`, `floats` and `selected`, and advances the selected rows.
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

# One step of the first n rows: (n, bucket key, kernels). It must not wait for the device.
StepBody = Callable[[int, Key, "Kernels"], None]


class StepGraph(Generic[Key]):
    """The captured steps of one model, and the numbers of each row that they read. Used by one thread only."""

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
        """keys: all bucket keys, the largest first. integers, floats: how many numbers of each kind a row has.

        kernels: the candidates; `capture` selects the fastest.
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
        """Select the fastest kernels for one row with the key `shortest`, then capture every bucket.

        If memory is short, `rows` becomes smaller. Raises torch.OutOfMemoryError if not even one row fits.
        """

        def bound(rows: int, key: Key, kernels: Kernels) -> Body:
            @torch.inference_mode()
            def call() -> None:
                body(rows, key, kernels)

            return call

        self.kernels, self.kernel_seconds = fastest(self._candidates, partial(bound, 1, shortest), self._device)
        self._buckets.capture(capture, partial(bound, kernels=self.kernels))

    def set_row(self, row: int, integers: Sequence[int], floats: Sequence[float]) -> None:
        """Upload one row's numbers, without waiting for the device."""
        self.integers[row] = upload(torch.tensor(integers, dtype=torch.int64), self._device)
        self.floats[row] = upload(torch.tensor(floats, dtype=torch.float32), self._device)

    def select(self, rows: Sequence[int]) -> None:
        """Select the rows that the next launches advance."""
        selected = torch.zeros(self.rows, dtype=torch.bool)
        selected[list(rows)] = True
        self.selected[: self.rows] = upload(selected, self._device)

    def launch(self, rows: Sequence[int], key: Key) -> None:
        """Queue one step with the smallest graph that covers these rows."""
        self._buckets.of(max(rows) + 1, key)()


class RowState(Protocol):
    """The host's state of one row. `generation` grows when results in flight become invalid."""

    generation: int


State = TypeVar("State", bound=RowState)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class InFlightStep(Generic[State, Result]):
    """A launched step: its rows with their states and generations at the launch, and how to wait for its results."""

    rows: list[tuple[int, State, int]]
    wait: Callable[[], Result]

    @classmethod
    def of(cls, rows: Mapping[int, State], wait: Callable[[], Result]) -> InFlightStep[State, Result]:
        return cls([(row, state, state.generation) for row, state in rows.items()], wait)

    def current(self, rows: Mapping[int, State]) -> Iterator[tuple[int, State]]:
        """The rows of this step that have not been released or stopped since the launch."""
        for row, state, generation in self.rows:
            if rows.get(row) is state and state.generation == generation:
                yield row, state
