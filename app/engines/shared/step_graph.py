"""Captures the steps of any model as CUDA graphs and launches them.

A graph computes one step of the first n rows, n = 1, 2, 4 ... There is one graph for each pair of n and a bucket key. A
bucket key selects a variant of the step, for example the number of positions that attention reads. The parameters of
the rows are in tensors on the device, so a launch does not wait for the device. The model's step reads the tensors
`integers`, `floats` and `selected`, and advances the selected rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from app.runtime.cuda_graphs import GraphBuckets, SplitBody, doublings, fastest, fastest_of, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.nn.kernels.sets import Kernels
    from app.runtime.cuda_graphs import Body, GraphCapture, Setup

Key = TypeVar("Key", bound=Hashable)

TIMED_ROWS = (1, 8, 32)  # the server times the kernels for these numbers of rows
# If some of the kernels compute linear layers, their time depends more on the rows. So the server times them for every
# number of rows up to this number for which there is a graph.
ALL_ROWS_UP_TO = 32

# Computes one step of the first n rows: (n, bucket key, kernels) -> None. It must not wait for the device.
StepBody = Callable[[int, Key, "Kernels"], None]
# The parts of a step that runs on several devices. Each part has a device; see SplitBody.
StepSections = Sequence[tuple[StepBody[Key], "torch.device | None"]]


class StepGraph(Generic[Key]):
    """The captured steps of one model, and the parameters of each row. Not thread-safe."""

    def __init__(
        self,
        rows: int,
        keys: Sequence[Key],
        *,
        integers: int,
        floats: int,
        kernels: Sequence[Kernels],
        device: torch.device,
        tokens: int = 1,
    ) -> None:
        """Create the tensors with the parameters of the rows. keys: all bucket keys, the largest first.

        integers, floats: the number of integer and float parameters of one row. kernels: the candidate kernels;
        `capture` selects the fastest of them. tokens: the number of tokens of one row in a step.
        """
        self._tokens = tokens
        self._buckets = GraphBuckets(rows, keys)
        self._device = device
        self._candidates: dict[str, Kernels] = {candidate.name: candidate for candidate in kernels}
        # n -> the kernels of graphs with n or more rows. A graph uses the entry with the largest n that is not above
        # its number of rows.
        self.kernels: dict[int, Kernels] = {1: kernels[0]}
        # Number of rows -> name of the kernels -> seconds of a step.
        self.kernel_seconds: dict[int, dict[str, float]] = {}
        # (rows, parameters). The values of one parameter are contiguous, as the kernels need them.
        self.integers = torch.zeros(integers, rows, dtype=torch.int64, device=device).t()
        self.floats = torch.ones(floats, rows, device=device).t()
        # whether the current launch advances the row
        self.selected = torch.zeros(rows, dtype=torch.bool, device=device)

    @property
    def rows(self) -> int:
        """The largest number of rows that one launch covers."""
        return self._buckets.rows

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of rows for which graphs exist."""
        return doublings(1, self.rows)

    def capture(
        self,
        capture: GraphCapture,
        body: StepBody[Key] | StepSections[Key],
        shortest: Key,
        key_for: Callable[[Kernels, Key], Key] = lambda _, key: key,
    ) -> None:
        """Capture the step `body` for all numbers of rows and all keys.

        For each number of rows, the graphs use the kernels that are fastest for this number.

        shortest: the kernels are timed with this key, once for each number of rows in TIMED_ROWS. key_for: a function
        that returns the key whose graph is launched for a given key. So several keys can share a graph if the kernels
        allow it.

        If the graphs do not fit into memory, `rows` becomes smaller. Raises torch.OutOfMemoryError if the graphs for
        one row do not fit.
        """

        def call(part: StepBody[Key], rows: int, key: Key, kernels: Kernels) -> None:
            with torch.inference_mode():
                part(rows, key, kernels)

        def bound(rows: int, key: Key, kernels: Kernels) -> Body:
            if callable(body):
                return partial(call, body, rows, key, kernels)
            return SplitBody(tuple((partial(call, part, rows, key, kernels), device) for part, device in body))

        for timed in self._timed_rows():
            try:
                best, seconds = self._fastest(capture, timed, partial(bound, timed, shortest))
            except torch.OutOfMemoryError:
                if timed == 1:
                    raise
                # not enough memory to time this number of rows, so its graphs use the kernels of the next smaller
                # number
                break
            self.kernels[timed], self.kernel_seconds[timed] = best, seconds
        self._buckets.capture(
            capture,
            lambda rows, key: bound(rows, key, self.kernels_of(rows)),
            lambda rows, key: key_for(self.kernels_of(rows), key),
        )

    def _fastest(
        self, capture: GraphCapture, rows: int, body: Callable[[Kernels], Body]
    ) -> tuple[Kernels, dict[str, float]]:
        """Return the fastest kernels for this number of rows, and the seconds of a step with each set of kernels.

        Uses the times of an earlier start, if that start has measured the same kernels. body: returns the step with the
        given kernels.
        """
        usable = {name: each for name, each in self._candidates.items() if self._has_form(each, rows)}
        if capture.kernel_times is None or len(usable) == 1:
            return fastest(usable, body, self._device, capture.fresh)
        # A set in which torch replaces some kernels has another time than the whole set.
        labels = {" ".join((name, *each.from_torch)): name for name, each in usable.items()}
        known = capture.kernel_times.of(rows, labels)
        if known is not None:
            seconds = {labels[label]: second for label, second in known.items()}
            return usable[fastest_of(seconds, f"measured at an earlier start for {rows} rows")], seconds
        best, seconds = fastest(usable, body, self._device, capture.fresh)
        if seconds.keys() == usable.keys():
            capture.kernel_times.add(rows, {label: seconds[name] for label, name in labels.items()})
        return best, seconds

    def _timed_rows(self) -> Sequence[int]:
        """Return the numbers of rows for which `capture` times the kernels, in ascending order."""
        if len(self._candidates) == 1:
            return (1,)
        if any(kernels.computes_linear(self._tokens) for kernels in self._candidates.values()):
            return [size for size in self.sizes if size <= ALL_ROWS_UP_TO]
        return [rows for rows in TIMED_ROWS if rows <= self.rows]

    def _has_form(self, kernels: Kernels, rows: int) -> bool:
        """Whether a step of this number of rows differs from a step with the other kernels."""
        linear = kernels.computes_linear(self._tokens)
        return not linear or len(self._candidates) == 1 or kernels.computes_linear(rows * self._tokens)

    def kernels_of(self, rows: int) -> Kernels:
        """Return the kernels of the graphs for this number of rows."""
        return self.kernels[max(timed for timed in self.kernels if timed <= rows)]

    @property
    def facts(self) -> Setup:
        """The values for /health: which kernels are used, and why other kernels are not used."""
        chosen: dict[str, Kernels] = {kernels.name: kernels for kernels in self.kernels.values()}
        facts: list[tuple[str, str | int | float | bool | None]] = [("kernels", self._rows_by_kernels(list(chosen)))]
        for name, kernels in chosen.items():
            if kernels.from_torch:
                own, other = (
                    ", ".join(each for each in kernels.operations if (each in kernels.from_torch) == from_torch)
                    for from_torch in (False, True)
                )
                facts.append(("kernels_by_operation", f"{name}: {own}; torch: {other}"))
        timed = [(rows, seconds) for rows, seconds in self.kernel_seconds.items() if seconds]
        if timed:
            lines = [
                f"{rows} row{'s' if rows > 1 else ''}: "
                + ", ".join(f"{name} {second * 1e3:.2f} ms" for name, second in seconds.items())
                for rows, seconds in timed
            ]
            facts.append(("kernels_timed", "; ".join(lines)))
        for name in self._candidates.keys() - chosen.keys():
            fault = "slower on this device" if any(name in seconds for _, seconds in timed) else "too large to be timed"
            facts.append(("kernels_reason", f"The kernels {name} are not used, because they are {fault}."))
        return tuple(facts)

    def _rows_by_kernels(self, names: Sequence[str]) -> str:
        """Return the name of the used kernels; for several kernels, each name with the numbers of rows that use it."""
        if len(names) == 1:
            return names[0]
        return "; ".join(
            f"{name} for {', '.join(str(size) for size in self.sizes if self.kernels_of(size).name == name)} rows"
            for name in names
        )

    def set_row(self, row: int, integers: Sequence[int], floats: Sequence[float]) -> None:
        """Copy the parameters of one row to the device. Does not wait for the device."""
        self.integers[row] = upload(torch.tensor(integers, dtype=torch.int64), self._device)
        self.floats[row] = upload(torch.tensor(floats, dtype=torch.float32), self._device)

    def move_row(self, source: int, target: int) -> None:
        """Copy the parameters of row `source` to row `target`. Does not wait for the device."""
        for values in (self.integers, self.floats):
            values[target] = values[source]

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

    generation: a number that increases when the results of steps that are already launched become invalid for this row.
    """

    generation: int


State = TypeVar("State", bound=RowState)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class InFlightStep(Generic[State, Result]):
    """A step that the host has launched and whose results the host has not read yet."""

    rows: list[tuple[int, State, int]]  # (row, state, generation of the state at the launch)
    wait: Callable[[], Result]  # waits for the results and returns them

    @classmethod
    def of(cls, rows: Mapping[int, State], wait: Callable[[], Result]) -> InFlightStep[State, Result]:
        return cls([(row, state, state.generation) for row, state in rows.items()], wait)

    def current(self, rows: Mapping[int, State]) -> Iterator[tuple[int, int, State]]:
        """Yield the rows of this step whose results are valid: rows that were not released or stopped after the launch.

        rows: the current states of all rows. Yields for each row: its number at the launch, its number now, and its
        state. Its number at the launch is its index in the results. The two numbers differ if the row was moved after
        the launch.
        """
        now = {id(state): row for row, state in rows.items()}
        for row, state, generation in self.rows:
            if id(state) in now and state.generation == generation:
                yield row, now[id(state)], state
