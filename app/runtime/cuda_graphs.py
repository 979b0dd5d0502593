"""Work of fixed shape, recorded once and replayed: a CUDA graph on a CUDA device, elsewhere the same function again.

What is recorded reads and writes tensors that stay where they are and asks the host for nothing; so thousands of small
kernels cost one launch. Knows no model.
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

WARM_UPS = 2  # calls before the recording: libraries set themselves up in the first


def at_least(wanted: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` (ascending) that holds `wanted`. Raises ValueError where none does."""
    for size in sizes:
        if size >= wanted:
            return size
    raise ValueError(f"{wanted} is more than {sizes[-1]}")


def doublings(first: int, last: int) -> tuple[int, ...]:
    """first, 2 first, 4 first ... below last, and last."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return (*sizes, last)


@dataclass(frozen=True, slots=True)
class Cost:
    """What recording took: graphs, seconds, bytes of device memory."""

    graphs: int
    seconds: float
    bytes: int


class GraphCapture:
    """Records bodies for one device. All graphs share one pool of memory, as no two of them run at a time; blocks of it
    belong to a stream, so that they are all recorded on the same."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if self._on_cuda else None  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """What was recorded is gone: count anew, and take memory for what comes from a new pool."""
        self._pool: Any = torch.cuda.graph_pool_handle() if self._on_cuda else None
        self.graphs = 0
        self._seconds = 0.0
        self._bytes = 0

    @property
    def cost(self) -> Cost:
        return Cost(self.graphs, round(self._seconds, 3), self._bytes)

    def record(self, body: Body) -> Body:
        """The body as something to be replayed. On a CUDA device it has been called by then: what it wrote is to be
        written anew.

        Raises torch.OutOfMemoryError; then nothing of it is left in the way of another recording.
        """
        replay = self._captured(body) if self._on_cuda else body
        self.graphs += 1
        return replay

    def _captured(self, body: Body) -> Body:
        """`_capture`, its cost, and what is left to do where memory lacks."""
        began, free = time.monotonic(), torch.cuda.mem_get_info(self._device)[0]
        try:
            return self._capture(body)
        except RuntimeError as error:
            if not _for_lack_of_memory(error):
                raise
            lack = torch.OutOfMemoryError(str(error))  # not from it: its frames hold what the body has made
            _let_go(error)
        finally:
            self._seconds += time.monotonic() - began
            self._bytes += max(0, free - torch.cuda.mem_get_info(self._device)[0])
        gc.collect()
        torch.cuda.empty_cache()
        raise lack

    def _capture(self, body: Body) -> Body:
        here = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    body()
            here.wait_stream(self._stream)
            torch.cuda.synchronize(self._device)
            # Other threads may use the device meanwhile (a voice is learned): only this one is being recorded.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                body()
        finally:
            if torch.cuda.current_stream(self._device) != here:  # left behind by a recording that was cut short
                torch.cuda.set_stream(here)
        return graph.replay

    def seconds(self, replay: Callable[[], None], times: int = 20) -> float:
        """How long what was recorded takes, in the mean."""
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
    """One piece of work, recorded for the first n rows, n by doublings, in each of its forms."""

    def __init__(self, rows: int, keys: Sequence[BucketKey]) -> None:
        """forms: all there are, the largest first."""
        self._keys = tuple(keys)
        self._sizes = doublings(1, rows)
        self._recorded: dict[tuple[int, BucketKey], Body] = {}

    @property
    def rows(self) -> int:
        """As many as one call covers at most."""
        return self._sizes[-1]

    def record(self, recorder: GraphCapture, body: Callable[[int, BucketKey], Body]) -> None:
        """Record all, largest first: what they compute with is then laid out for the largest once. body: what is to be
        recorded for so many rows in that form.

        Where memory does not suffice for a size, the next smaller one is the largest. Raises torch.OutOfMemoryError
        where it does not suffice for one row.
        """
        for size in reversed(self._sizes):
            try:
                for key in self._keys:
                    self._recorded[size, key] = recorder.record(body(size, key))
            except torch.OutOfMemoryError:
                self._recorded.clear()
                recorder.forget()
                if size == 1:
                    raise
                self._sizes = tuple(smaller for smaller in self._sizes if smaller < size)
                log.warning("no memory for %d rows in one graph: %d rows at most", size, self.rows)

    def of(self, rows: int, key: BucketKey) -> Body:
        """The smallest that covers so many rows, in that form."""
        return self._recorded[at_least(rows, self._sizes), key]


Choice = TypeVar("Choice")


def fastest(
    choices: Mapping[str, Choice], body: Callable[[Choice], Body], device: torch.device
) -> tuple[Choice, dict[str, float]]:
    """The choice whose body, recorded, runs in the least time, and the seconds of each; of one alone none is taken."""
    if len(choices) == 1:
        return next(iter(choices.values())), {}
    seconds = {}
    for name, choice in choices.items():
        trial = GraphCapture(device)
        seconds[name] = trial.seconds(trial.record(body(choice)))
    best = min(seconds, key=seconds.__getitem__)
    log.info("%s is taken of %s", best, ", ".join(f"{name} ({s * 1e3:.2f} ms)" for name, s in seconds.items()))
    return choices[best], seconds


def _let_go(error: BaseException | None) -> None:
    """Of the tensors that the frames of an error and of those behind it hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _for_lack_of_memory(error: BaseException | None) -> bool:
    """A recording that is cut short says so in an error of its own, with the reason behind it."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


Setup = tuple[tuple[str, str | int | float | bool | None], ...]


def setup_of(recorder: GraphCapture | None, rows: int, kernels: str) -> Setup:
    """What /health says of how an engine's steps are made."""
    if recorder is None:
        return (("recorded", False),)
    cost = recorder.cost
    return (
        ("recorded", True),
        ("recorded_rows", rows),
        ("graphs", cost.graphs),
        ("recording_s", cost.seconds),
        ("recording_bytes", cost.bytes),
        ("kernels", kernels),
    )


class PinnedDoubleBuffer:
    """A device tensor's contents for the host, two launches deep: one may be read while the next is made."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._on_cuda = tensors[0].device.type == "cuda"
        self._sides = [
            [torch.empty(t.shape, dtype=t.dtype, pin_memory=self._on_cuda) for t in tensors] for _ in range(2)
        ]
        self._turn = 0

    def copy(self) -> Callable[[], list[Tensor]]:
        """Begin to copy what the tensors hold after all work that is queued; the result waits for it and gives the
        host's tensors, which are good until the next but one `copy`."""
        side = self._sides[self._turn]
        self._turn = 1 - self._turn
        for host, tensor in zip(side, self._tensors, strict=True):
            host.copy_(tensor, non_blocking=self._on_cuda)
        if not self._on_cuda:
            return lambda: side
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._tensors[0].device))

        def wait() -> list[Tensor]:
            done.synchronize()
            return side

        return wait


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, without waiting for what the device is doing."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def side_stream(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A stream of its own on a CUDA device, for work that need not wait for what the engine has sent off; elsewhere
    nothing. The memory it uses must be its own."""
    if device.type != "cuda":
        return nullcontext
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return lambda: torch.cuda.stream(stream)
