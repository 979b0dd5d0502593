"""Captures functions with fixed tensor shapes as CUDA graphs and replays them.

A captured function reads and writes static tensors and needs no data from the host. So the host starts thousands of
small kernels with one launch. On devices without CUDA, a replay calls the function. This module does not depend on any
model.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from app.runtime.faults import is_out_of_memory

if TYPE_CHECKING:
    from app.runtime.kernel_times import KernelTimes

log = logging.getLogger(__name__)

BucketKey = TypeVar("BucketKey")
Body = Callable[[], None]

# How often a function is called before its capture. CUDA libraries initialise in the first call.
WARM_UPS = 2


def at_least(count: int, sizes: Sequence[int]) -> int:
    """Return the first of `sizes` (ascending) that is at least `count`. Raises ValueError if there is none."""
    for size in sizes:
        if size >= count:
            return size
    raise ValueError(f"{count} is more than the largest size, {sizes[-1]}")


def doublings(first: int, last: int) -> tuple[int, ...]:
    """Return first, 2 * first, 4 * first and so on, as long as the value is below `last`, and then `last`."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return (*sizes, last)


@dataclass(frozen=True, slots=True)
class CaptureCost:
    """The cost of all captures: the number of graphs, the time in seconds, and the bytes of device memory."""

    graphs: int
    seconds: float
    bytes: int


class GraphCapture:
    """Captures CUDA graphs on one device.

    Only one graph runs at a time, so all graphs share one memory pool. Only the stream that has allocated a block of
    the pool can reuse the block, so all graphs are captured on the same stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # the times of kernels that an earlier start has measured; None = every start measures them
        self.kernel_times: KernelTimes | None = None
        self._on_cuda = device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if self._on_cuda else None  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Set the counted graphs, seconds and bytes to 0, and use a new memory pool for the next captures.

        The caller must delete all captured graphs before this call.
        """
        self._pool: Any = torch.cuda.graph_pool_handle() if self._on_cuda else None
        self.graphs = 0
        self._seconds = 0.0
        self._bytes = 0

    @property
    def cost(self) -> CaptureCost:
        return CaptureCost(self.graphs, round(self._seconds, 3), self._bytes)

    def capture(self, body: Body) -> Body:
        """Capture the function `body` as a CUDA graph, and return a function that replays the graph.

        On a CUDA device, the capture also calls `body`, so the caller must reset the tensors that `body` changes. On
        other devices, returns `body`. If the memory is too small, frees the memory of this capture and raises
        torch.OutOfMemoryError.
        """
        replay = self._captured(body) if self._on_cuda else body
        self.graphs += 1
        return replay

    def _captured(self, body: Body) -> Body:
        """Call `_capture`, and add the time and the memory of the capture to the cost."""
        began, free = time.monotonic(), torch.cuda.mem_get_info(self._device)[0]
        try:
            with torch.cuda.device(self._device):
                return self._capture(body)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Do not raise this error with `from error`, because the traceback of `error` would keep the body's tensors
            # alive.
            out_of_memory = torch.OutOfMemoryError(str(error))
            _release_tensors(error)
        finally:
            self._seconds += time.monotonic() - began
            self._bytes += max(0, free - torch.cuda.mem_get_info(self._device)[0])
        self._free_unused()
        raise out_of_memory

    def drop(self, captured: list[Body]) -> None:
        """Remove all graphs from the list `captured`, and free their memory.

        The caller must have no other references to these graphs.
        """
        count = len(captured)
        captured.clear()
        self.free_dropped(count)

    def free_dropped(self, count: int) -> None:
        """Free the memory of `count` graphs to which the caller has deleted all references."""
        self.graphs -= count
        if self._on_cuda:
            before = torch.cuda.mem_get_info(self._device)[0]
            self._free_unused()
            self._bytes = max(0, self._bytes - max(0, torch.cuda.mem_get_info(self._device)[0] - before))

    def fresh(self) -> GraphCapture:
        """Return a new object that captures on the devices of this object and contains no graphs."""
        return GraphCapture(self._device)

    def _free_unused(self) -> None:
        gc.collect()
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()

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
            # If a capture fails, torch does not make the earlier stream current again.
            if torch.cuda.current_stream(self._device) != current:
                torch.cuda.set_stream(current)
        return graph.replay

    def seconds(self, replay: Callable[[], None], times: int = 20) -> float:
        """Return the mean time of a call of `replay` in seconds, measured over `times` calls."""
        replay()
        self.wait()
        began = time.perf_counter()
        for _ in range(times):
            replay()
        self.wait()
        return (time.perf_counter() - began) / times

    def wait(self) -> None:
        """Wait for all queued work of the device."""
        if self._on_cuda:
            torch.cuda.synchronize(self._device)


@dataclass(frozen=True, slots=True)
class SplitBody:
    """A step that runs on several devices: a sequence of functions, each with the device on which it runs.

    device: None = the function is not captured, for example a copy from one device to the next.
    """

    sections: tuple[tuple[Body, torch.device | None], ...]

    def __call__(self) -> None:
        for body, _ in self.sections:
            body()


class SplitCapture(GraphCapture):
    """Captures the steps of a model on several devices: one CUDA graph for each section of a SplitBody.

    A replay queues the graphs and the copies between the devices. The devices wait for each other, but the host does
    not wait.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._captures = {device: GraphCapture(device) for device in dict.fromkeys(devices)}
        super().__init__(devices[0])

    def forget(self) -> None:
        super().forget()
        for capture in self._captures.values():
            capture.forget()

    @property
    def cost(self) -> CaptureCost:
        captures = self._captures.values()
        seconds, size = sum(each._seconds for each in captures), sum(each._bytes for each in captures)
        return CaptureCost(sum(each.graphs for each in captures), round(seconds, 3), size)

    def capture(self, body: Body) -> Body:
        assert isinstance(body, SplitBody)  # noqa: S101 - StepGraph creates the bodies
        before = {device: capture.graphs for device, capture in self._captures.items()}
        replays: list[tuple[Body, torch.device | None]] = []
        try:
            for section, device in body.sections:
                replay = section if device is None else self._captures[device].capture(section)
                replays.append((replay, device))
        except torch.OutOfMemoryError:
            replays.clear()
            for device, capture in self._captures.items():
                capture.graphs = before[device]
            raise
        return SplitBody(tuple(replays))

    def drop(self, captured: list[Body]) -> None:
        found = [each for each in captured if isinstance(each, SplitBody)]
        counts = Counter(device for each in found for _, device in each.sections if device is not None)
        found.clear()
        captured.clear()
        for device, count in counts.items():
            self._captures[device].free_dropped(count)

    def fresh(self) -> GraphCapture:
        return SplitCapture(tuple(self._captures))

    def wait(self) -> None:
        for capture in self._captures.values():
            capture.wait()


class GraphBuckets(Generic[BucketKey]):
    """CUDA graphs of one function: one graph for each pair of a number of rows (1, 2, 4 ...) and a bucket key.

    A bucket key selects a variant of the function, for example the number of positions that attention reads.
    """

    def __init__(self, rows: int, keys: Sequence[BucketKey]) -> None:
        """Create the buckets without graphs. rows: the largest number of rows. keys: all keys, the largest first."""
        self._keys = tuple(keys)
        self._key_for: Callable[[int, BucketKey], BucketKey] = lambda _, key: key
        self._sizes = doublings(1, rows)
        self._captured: dict[tuple[int, BucketKey], Body] = {}

    @property
    def rows(self) -> int:
        """The largest number of rows that one graph covers."""
        return self._sizes[-1]

    def capture(
        self,
        capture: GraphCapture,
        body: Callable[[int, BucketKey], Body],
        key_for: Callable[[int, BucketKey], BucketKey] = lambda _, key: key,
    ) -> None:
        """Capture all graphs. Captures the largest graph first, so that smaller graphs reuse the memory of this graph.

        body: returns the function to capture for a number of rows and a key. key_for: for a number of rows and a key,
        returns the key whose graph is used. A key that `key_for` never returns has no graph.

        If the memory is too small for all graphs, the graphs for the largest number of rows are deleted, and the next
        smaller number becomes the largest. Raises torch.OutOfMemoryError if the graphs for one row do not fit.
        """
        self._key_for = key_for
        for size in reversed(self._sizes):
            for key in dict.fromkeys(key_for(size, key) for key in self._keys):
                while size <= self.rows and (size, key) not in self._captured:
                    try:
                        self._captured[size, key] = capture.capture(body(size, key))
                    except torch.OutOfMemoryError:
                        if self.rows == 1:
                            self._captured.clear()
                            raise
                        self._drop_largest(capture)

    def _drop_largest(self, capture: GraphCapture) -> None:
        """Delete the graphs with the largest number of rows. After that, `rows` is the next smaller number."""
        largest = self.rows
        capture.drop([self._captured.pop(bucket) for bucket in list(self._captured) if bucket[0] == largest])
        if not self._captured:
            capture.forget()  # the memory of a pool is freed only when the pool has no graphs
        self._sizes = self._sizes[:-1]
        log.warning(
            "too little memory for CUDA graphs of %d rows, so the engine uses at most %d rows", largest, self.rows
        )

    def of(self, rows: int, key: BucketKey) -> Body:
        """Return the replay function of the smallest graph for this key that has at least `rows` rows."""
        size = at_least(rows, self._sizes)
        return self._captured[size, self._key_for(size, key)]


Choice = TypeVar("Choice")


def fastest(
    choices: Mapping[str, Choice],
    body: Callable[[Choice], Body],
    device: torch.device,
    new_capture: Callable[[], GraphCapture] | None = None,
) -> tuple[Choice, dict[str, float]]:
    """Return the choice whose captured function is fastest, and a mapping: name of a choice -> seconds for a replay.

    body: returns the function to capture for a choice. new_capture: creates the GraphCapture for a measurement; None =
    a GraphCapture on `device`. If there is only one choice, nothing is measured. Choices for which the memory is too
    small are ignored. Raises torch.OutOfMemoryError if the memory is too small for all choices.
    """
    if len(choices) == 1:
        return next(iter(choices.values())), {}
    seconds = {}
    for name, choice in choices.items():
        trial = new_capture() if new_capture is not None else GraphCapture(device)
        try:
            seconds[name] = trial.seconds(trial.capture(body(choice)))
        except torch.OutOfMemoryError:
            log.warning("there is too little memory to measure the kernels %s, so these kernels are not used", name)
    if not seconds:
        raise torch.OutOfMemoryError("There is too little memory to capture the step of one row.")
    return choices[fastest_of(seconds, "measured now")], seconds


def fastest_of(seconds: Mapping[str, float], source: str) -> str:
    """Return the name with the smallest time, and log all times. source: says in the log where the times are from."""
    best = min(seconds, key=seconds.__getitem__)
    times = ", ".join(f"{name} ({second * 1e3:.2f} ms)" for name, second in seconds.items())
    log.info("the engine uses the kernels %s, the fastest of %s, %s", best, times, source)
    return best


def _release_tensors(error: BaseException | None) -> None:
    """Clear the tracebacks of an error and its causes. Otherwise the tracebacks would keep local tensors alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


Setup = tuple[tuple[str, str | int | float | bool | None], ...]


def setup_facts(capture: GraphCapture | None, rows: int, kernels: Setup, notes: Setup) -> Setup:
    """Return the entries of /health about the engine's CUDA graphs.

    capture: None = the engine uses no CUDA graphs. rows: the largest number of rows in one graph. kernels: entries
    about the kernels in use. notes: any other entries. If two entries have the same name, their texts are joined.
    """
    if capture is None:
        return (("recorded", False), *notes)
    cost = capture.cost
    facts: dict[str, str | int | float | bool | None] = {
        "recorded": True,
        "recorded_rows": rows,
        "graphs": cost.graphs,
        "recording_s": cost.seconds,
        "recording_bytes": cost.bytes,
    }
    for name, value in (*kernels, *notes):
        facts[name] = f"{facts[name]} {value}" if name in facts else value
    return tuple(facts.items())


class PinnedDoubleBuffer:
    """Copies device tensors to two pinned host buffers, alternately.

    The host can read one buffer while a copy fills the other buffer.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._on_cuda = tensors[0].device.type == "cuda"
        self._buffers = [
            [torch.empty(t.shape, dtype=t.dtype, pin_memory=self._on_cuda) for t in tensors] for _ in range(2)
        ]
        self._next = 0

    def copy(self) -> Callable[[], list[Tensor]]:
        """Queue a copy of the tensors to the host, after all queued work of the device.

        Returns a function that waits for the copy and returns the host tensors. The second call of `copy` after this
        call overwrites these host tensors.
        """
        buffers = self._buffers[self._next]
        self._next = 1 - self._next
        for host, tensor in zip(buffers, self._tensors, strict=True):
            host.copy_(tensor, non_blocking=self._on_cuda)
        if not self._on_cuda:
            return lambda: buffers
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # the wait uses no CPU
        done.record(torch.cuda.current_stream(self._tensors[0].device))

        def wait() -> list[Tensor]:
            done.synchronize()
            return buffers

        return wait


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device, and return the copy. Does not wait for queued work of the device."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


# Priorities of CUDA streams; a smaller number is a higher priority. The GPU runs the work of streams with FRAMES first.
FRAMES, BACKGROUND = -1, 0


def side_stream(device: torch.device, priority: int) -> Callable[[], AbstractContextManager[Any]]:
    """Create a side CUDA stream, and return a function that returns a context manager for this stream.

    Work that is started inside the context runs on the side stream, at the same time as the engine's queued work. So
    this work and the queued work must not use the same tensors. On devices without CUDA, the context manager does
    nothing. priority: FRAMES for work that a frame waits for, BACKGROUND for work that no frame waits for.
    """
    if device.type != "cuda":
        return nullcontext
    stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
    return lambda: torch.cuda.stream(stream)


def use_frame_stream(device: torch.device) -> None:
    """Wait for all queued work of the device, and then use a new stream with the priority FRAMES in this thread.

    With this priority, the encoding of a recording in another thread does not delay the frames. On devices without
    CUDA, this function does nothing.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # see device.using
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=FRAMES))  # type: ignore[no-untyped-call]
