"""Run blocking work in threads, for callers on an event loop. This module does not depend on audio."""

from __future__ import annotations

import asyncio
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def spare_cores() -> int:
    """Return the number of CPU cores minus one core for the event loop; at least 1."""
    return max(1, (os.cpu_count() or 1) - 1)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread and return its result. Raises the errors of `work`.

    If the caller is cancelled, this function still waits until the thread has ended. So the caller can safely free the
    files and buffers that the thread has used. `ThreadLimit` also counts the threads of cancelled requests.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


async def in_own_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a new thread, which ends with the work. Returns the result, and raises the errors of `work`.

    PyTorch and glibc keep buffers for each thread that has computed with large tensors. The threads of
    `asyncio.to_thread` never end, so each of them would keep such buffers.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix=work.__name__.strip("_"))
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, functools.partial(work, *args, **kwargs))
    finally:
        executor.shutdown(wait=False)


class ThreadLimit:
    """Runs blocking work in threads, at most `limit` at a time; further calls wait. Use it from one event loop."""

    def __init__(self, limit: int | None = None) -> None:
        """limit: None = one thread for each spare core."""
        self._free = asyncio.Semaphore(limit or spare_cores())

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Wait until fewer than `limit` threads run, then run `work` with `in_thread` and return its result."""
        async with self._free:
            return await in_thread(work, *args, **kwargs)
