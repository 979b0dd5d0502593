"""Blocking work in threads, for callers on an event loop. Does not depend on audio."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def spare_cores() -> int:
    """The number of CPU cores without one for the event loop; at least 1."""
    return max(1, (os.cpu_count() or 1) - 1)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread as asyncio.to_thread does, but wait for the thread even if the caller is cancelled.

    So the caller can free the files and buffers that the thread uses, and a thread of a cancelled request still counts
    for `ThreadLimit`. Raises what `work` raises.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


class ThreadLimit:
    """Runs blocking work in threads, at most `limit` at a time; further calls wait. Used from one event loop."""

    def __init__(self, limit: int | None = None) -> None:
        """limit: None = one thread for each spare core."""
        self._free = asyncio.Semaphore(limit or spare_cores())

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Wait for a free thread and run `work` in it, as `in_thread` does."""
        async with self._free:
            return await in_thread(work, *args, **kwargs)
