"""CUDA graph buckets and capture, on a CPU that captures nothing."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from app.engines.shared.references import encode_samples
from app.runtime.cuda_graphs import (
    BACKGROUND,
    FRAMES,
    GraphBuckets,
    GraphCapture,
    PinnedDoubleBuffer,
    SplitCapture,
    _release_tensors,
    at_least,
    doublings,
    fastest,
    side_stream,
    use_frame_stream,
)

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


class Failing(GraphCapture):
    """Runs out of memory in the captures with these numbers, counted from 1."""

    def __init__(self, *failing: int) -> None:
        super().__init__(CPU)
        self._failing = failing
        self.asked = 0

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        self.asked += 1
        if self.asked in self._failing:
            raise torch.OutOfMemoryError
        return super().capture(body)


def calls(rows: int, capture: GraphCapture) -> tuple[GraphBuckets[str], list[tuple[int, str]]]:
    """Capture graphs under two keys; return them and the list of their calls."""
    called: list[tuple[int, str]] = []

    def body(count: int, key: str) -> Callable[[], None]:
        return lambda: called.append((count, key))

    some = GraphBuckets(rows, ("long", "short"))
    some.capture(capture, body)
    return some, called


def test_smallest_graph_that_fits_the_rows_is_used() -> None:
    some, called = calls(6, Failing())
    for rows in (1, 2, 3, 4, 5, 6):
        some.of(rows, "short")()
    assert called == [(1, "short"), (2, "short"), (4, "short"), (4, "short"), (6, "short"), (6, "short")]
    with pytest.raises(ValueError, match="7 is more than the largest size, 6"):
        some.of(7, "long")


@pytest.mark.parametrize(
    ("failing", "rows", "graphs"),
    [
        ((), 8, 8),
        ((1,), 4, 6),  # graph 1 fails: the largest graph of eight rows
        ((2,), 4, 6),  # graph 2 fails: eight rows with the other key; graph 1 is freed
        ((1, 3), 2, 4),  # graph 1 (eight rows) and graph 3 (four rows with the second key) fail
        # graph 4 (four rows) fails after eight rows were captured: only the graphs of eight rows are freed
        ((4,), 4, 6),
        ((4, 5), 2, 4),
        ((8,), 4, 6),  # graph 8 fails: the last graph of one row
    ],
)
def test_sizes_without_memory_are_not_captured(failing: tuple[int, ...], rows: int, graphs: int) -> None:
    capture = Failing(*failing)
    some, called = calls(8, capture)
    assert some.rows == rows
    assert capture.cost.graphs == graphs
    some.of(rows, "long")()
    assert called == [(rows, "long")]
    with pytest.raises(ValueError, match="more than"):
        some.of(rows + 1, "long")


def test_no_memory_for_one_row_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        calls(2, Failing(1, 2))


class Small(GraphCapture):
    """Has memory for `room` graphs at the same time."""

    def __init__(self, room: int) -> None:
        super().__init__(CPU)
        self._room = room
        self._alive: list[weakref.ref[Callable[[], None]]] = []

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        self._alive = [ref for ref in self._alive if ref() is not None]
        if len(self._alive) == self._room:
            raise torch.OutOfMemoryError
        self._alive.append(weakref.ref(body))
        return super().capture(body)


@pytest.mark.parametrize(
    ("room", "rows"), [(35, 64), (34, 32), (32, 32), (30, 32), (29, 16), (26, 16), (24, 8), (5, 1)]
)
def test_engine_keeps_as_many_rows_as_the_memory_allows(room: int, rows: int) -> None:
    """Seven sizes with five keys need 35 graphs."""
    some = GraphBuckets(64, tuple("abcde"))
    capture = Small(room)
    some.capture(capture, lambda count, key: lambda: print(count, key))
    assert some.rows == rows
    assert capture.cost.graphs == 5 * (rows.bit_length())
    for size in doublings(1, rows):
        for key in "abcde":
            assert callable(some.of(size, key))


def test_memory_for_fewer_graphs_than_one_row_needs_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        GraphBuckets(64, tuple("abcde")).capture(Small(4), lambda count, key: lambda: print(count, key))


def test_candidate_without_memory_is_not_selected() -> None:
    def large() -> None:
        raise torch.OutOfMemoryError("no room")

    best, durations = fastest({"large": large, "small": lambda: None}, lambda choice: choice, CPU)
    assert set(durations) == {"small"}
    assert best is not large
    with pytest.raises(torch.OutOfMemoryError):
        fastest({"large": large, "larger": large}, lambda choice: choice, CPU)


def test_fastest_candidate_is_selected() -> None:
    def body(seconds: float) -> Callable[[], None]:
        return lambda: time.sleep(seconds)

    best, durations = fastest({"slow": 0.02, "fast": 0.0, "slower": 0.04}, body, CPU)
    assert best == 0.0
    assert durations["slow"] >= 0.02
    assert durations["slower"] >= 0.04
    assert fastest({"only": 1.0}, body, CPU) == (1.0, {})  # a single candidate is not measured


def test_error_keeps_no_tensors_alive() -> None:
    """Otherwise a failed capture would keep its memory."""
    tensors: list[weakref.ref[torch.Tensor]] = []

    def deep() -> None:
        tensor = torch.zeros(8)
        tensors.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("no room")

    def outer() -> None:
        other = torch.zeros(8)
        tensors.append(weakref.ref(other))
        try:
            deep()
        finally:
            raise RuntimeError("the recording was cut short")

    try:
        outer()
    except RuntimeError as error:
        kept = error
    gc.collect()
    assert all(ref() is not None for ref in tensors)
    _release_tensors(kept)
    gc.collect()
    assert all(ref() is None for ref in tensors)


def test_bucket_sizes_double_up_to_the_maximum() -> None:
    assert doublings(1, 6) == (1, 2, 4, 6)
    assert doublings(256, 256) == (256,)
    assert at_least(3, (1, 2, 4)) == 4


def test_host_waits_for_results_without_using_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, bool]] = []

    class Event:
        def __init__(self, **given: bool) -> None:
            options.append(given)

        def record(self, stream: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    buffer = PinnedDoubleBuffer(torch.arange(3))
    buffer._on_cuda = True
    assert buffer.copy()()[0].tolist() == [0, 1, 2]
    assert options == [{"blocking": True}]


def test_frames_have_a_higher_priority_than_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []

    def stream(device: torch.device, priority: int) -> str:
        calls.append(("create", priority))
        return f"stream {priority}"

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    for name in ("set_device", "synchronize", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda value, name=name: calls.append((name, value)))
    card = torch.device("cuda", 1)
    use_frame_stream(card)
    # The thread that loads the model has queued work on another stream, so the engine's thread waits for the device.
    assert calls == [("set_device", card), ("synchronize", card), ("create", -1), ("set_stream", "stream -1")]
    calls.clear()
    for priority in (FRAMES, BACKGROUND):
        side_stream(card, priority)
    assert calls == [("create", -1), ("create", 0)]
    calls.clear()
    use_frame_stream(CPU)
    with side_stream(CPU, BACKGROUND)():
        pass
    assert calls == []


def test_recording_is_encoded_on_the_stream_of_recordings() -> None:
    active: list[bool] = [False]

    @contextmanager
    def stream() -> Iterator[None]:
        active[0] = True
        yield
        active[0] = False

    def encoder(samples: torch.Tensor) -> torch.Tensor:
        assert active[0]
        return torch.ones(4, 3, dtype=torch.int64)

    codes = encode_samples(np.zeros(9, np.float32), encoder, codebooks=2, device=CPU, stream=stream)
    assert codes.shape == (2, 3)
    assert not active[0]


def test_cost_is_reported_in_milliseconds() -> None:
    capture = GraphCapture(torch.device("cpu"))
    capture._seconds = 1.23456
    assert capture.cost.seconds == 1.235


def test_cost_of_a_split_model_is_the_sum_for_all_devices() -> None:
    capture = SplitCapture((torch.device("cpu"), torch.device("meta")))
    for each, seconds in zip(capture._captures.values(), (1.0004, 2.2225), strict=True):
        each.graphs, each._seconds, each._bytes = 3, seconds, 1000
    assert (capture.cost.graphs, capture.cost.seconds, capture.cost.bytes) == (6, 3.223, 2000)
