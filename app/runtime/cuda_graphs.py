"""Captures work of fixed shape as CUDA graphs and replays it. Without a CUDA device, it calls the function directly.

Captured work reads and writes static tensors and needs no data from the host. So thousands of small kernels need only
one launch. Does not depend on any model.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BucketKey = TypeVar("BucketKey")
Body = Callable[[], None]

WARM_UPS = 2  # calls before the capture: libraries initialise in the first


def at_least(count: int, sizes: Sequence[int]) -> int:
    """Return the smallest of `sizes` (ascending) that is at least `count`. Raises ValueError if none is."""
    for size in sizes:
        if size >= count:
            return size
    raise ValueError(f"{count} is more than {sizes[-1]}")


def doublings(first: int, last: int) -> tuple[int, ...]:
    """Return first, 2 * first, 4 * first ... as far as they are below `last`, and then `last`."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return (*sizes, last)


@dataclass(frozen=True, slots=True)
class CaptureCost:
    """The cost of a capture: number of graphs, seconds, and bytes of device memory."""

    graphs: int
    seconds: float
    bytes: int


class GraphCapture:
    """Captures CUDA graphs on one device.

    All graphs share one memory pool, because no two of them run at a time. Blocks of the pool belong to a stream, so
    all graphs are captured on the same stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if self._on_cuda else None  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Reset the cost and start a new memory pool. The caller must have deleted all captured graphs."""
        self._pool: Any = torch.cuda.graph_pool_handle() if self._on_cuda else None
        self.graphs = 0
        self._seconds = 0.0
        self._bytes = 0

    @property
    def cost(self) -> CaptureCost:
        return CaptureCost(self.graphs, round(self._seconds, 3), self._bytes)

    def capture(self, body: Body) -> Body:
        """Return a function that replays the body.

        On a CUDA device the capture also runs the body, so the caller must reset the tensors that the body changes.
        Raises torch.OutOfMemoryError after it has freed all memory of this capture.
        """
        replay = self._captured(body) if self._on_cuda else body
        self.graphs += 1
        return replay

    def _captured(self, body: Body) -> Body:
        """Call `_capture`, record its cost, and free its memory if it runs out of memory."""
        began, free = time.monotonic(), torch.cuda.mem_get_info(self._device)[0]
        try:
            return self._capture(body)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            # Raised without `from error`, which would keep the body's tensors alive.
            out_of_memory = torch.OutOfMemoryError(str(error))
            _release_tensors(error)
        finally:
            self._seconds += time.monotonic() - began
            self._bytes += max(0, free - torch.cuda.mem_get_info(self._device)[0])
        gc.collect()
        torch.cuda.empty_cache()
        raise out_of_memory

    def _capture(self, body: Body) -> Body:
        current = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    body()
            current.wait_stream(self._stream)
            torch.cuda.synchronize(self._device)
            # Other threads may use the device during the capture, for example to encode a voice. "thread_local"
            # captures only the work of this thread.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                body()
        finally:
            if torch.cuda.current_stream(self._device) != current:  # a failed capture does not restore the stream
                torch.cuda.set_stream(current)
        return graph.replay

    def seconds(self, replay: Callable[[], None], times: int = 20) -> float:
        """Measure a replay: mean seconds of `times` runs."""
        replay()
        self._wait()
        began = time.perf_counter()
        for _ in range(times):
            replay()
        self._wait()
        return (time.perf_counter() - began) / times

    def _wait(self) -> None:
        if self._on_cuda:
            torch.cuda.synchronize(self._device)


class GraphBuckets(Generic[BucketKey]):
    """CUDA graphs of one function: a graph for each number of rows (1, 2, 4 ...) and each key."""

    def __init__(self, rows: int, keys: Sequence[BucketKey]) -> None:
        """rows: the largest number of rows. keys: all keys, the largest first."""
        self._keys = tuple(keys)
        self._sizes = doublings(1, rows)
        self._captured: dict[tuple[int, BucketKey], Body] = {}

    @property
    def rows(self) -> int:
        """The largest number of rows that one graph covers."""
        return self._sizes[-1]

    def capture(self, capture: GraphCapture, body: Callable[[int, BucketKey], Body]) -> None:
        """Capture all graphs, the largest first, so that the shared memory is laid out once for the largest.

        body: returns the function to capture for a number of rows and a key. If memory is too short for a number of
        rows, the next smaller number becomes the largest. Raises torch.OutOfMemoryError if one row does not fit.
        """
        for size in reversed(self._sizes):
            try:
                for key in self._keys:
                    self._captured[size, key] = capture.capture(body(size, key))
            except torch.OutOfMemoryError:
                self._captured.clear()
                capture.forget()
                if size == 1:
                    raise
                self._sizes = tuple(smaller for smaller in self._sizes if smaller < size)
                log.warning(
                    "too little memory for CUDA graphs of %d rows: the engine uses at most %d rows", size, self.rows
                )

    def of(self, rows: int, key: BucketKey) -> Body:
        """Return the smallest graph that covers `rows` rows, for this key."""
        return self._captured[at_least(rows, self._sizes), key]


Choice = TypeVar("Choice")


def fastest(
    choices: Mapping[str, Choice], body: Callable[[Choice], Body], device: torch.device
) -> tuple[Choice, dict[str, float]]:
    """Return the choice whose captured body is fastest, and the seconds of each. A single choice is not timed."""
    if len(choices) == 1:
        return next(iter(choices.values())), {}
    seconds = {}
    for name, choice in choices.items():
        trial = GraphCapture(device)
        seconds[name] = trial.seconds(trial.capture(body(choice)))
    best = min(seconds, key=seconds.__getitem__)
    log.info(
        "the engine uses the kernels %s, the fastest of %s",
        best,
        ", ".join(f"{name} ({s * 1e3:.2f} ms)" for name, s in seconds.items()),
    )
    return choices[best], seconds


def _release_tensors(error: BaseException | None) -> None:
    """Free the tensors that are local variables in the tracebacks of an error and its causes."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is out of memory. A failed capture may wrap the original error."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


Setup = tuple[tuple[str, str | int | float | bool | None], ...]


def setup_facts(capture: GraphCapture | None, rows: int, kernels: str) -> Setup:
    """Return the values of /health that describe the engine's CUDA graphs. capture None = not used."""
    if capture is None:
        return (("recorded", False),)
    cost = capture.cost
    return (
        ("recorded", True),
        ("recorded_rows", rows),
        ("graphs", cost.graphs),
        ("recording_s", cost.seconds),
        ("recording_bytes", cost.bytes),
        ("kernels", kernels),
    )


class PinnedDoubleBuffer:
    """Copies device tensors to two pinned host buffers alternately. The host reads one while a copy fills the other."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._on_cuda = tensors[0].device.type == "cuda"
        self._buffers = [
            [torch.empty(t.shape, dtype=t.dtype, pin_memory=self._on_cuda) for t in tensors] for _ in range(2)
        ]
        self._next = 0

    def copy(self) -> Callable[[], list[Tensor]]:
        """Queue a copy of the tensors behind all queued work.

        Returns a function that waits for the copy and returns the host tensors. They stay valid during the next call
        of `copy` and become invalid at the one after it.
        """
        buffers = self._buffers[self._next]
        self._next = 1 - self._next
        for host, tensor in zip(buffers, self._tensors, strict=True):
            host.copy_(tensor, non_blocking=self._on_cuda)
        if not self._on_cuda:
            return lambda: buffers
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._tensors[0].device))

        def wait() -> list[Tensor]:
            done.synchronize()
            return buffers

        return wait


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device without waiting for queued work."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def side_stream(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return a context manager's factory for a side CUDA stream that overlaps with queued engine work.

    On other devices the context manager does nothing. Work on the side stream must not share tensors with the engine's
    other work.
    """
    if device.type != "cuda":
        return nullcontext
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return lambda: torch.cuda.stream(stream)
