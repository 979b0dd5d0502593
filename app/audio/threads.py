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
    """The cores that remain when one is left to the event loop; at least 1."""
    return max(1, (os.cpu_count() or 1) - 1)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like asyncio.to_thread, but a cancelled caller waits for the thread.

    So the files, encoders and buffers of the thread can be freed when this returns, and cancelled requests leave no
    threads behind that no limit counts.
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
        async with self._free:
            return await in_thread(work, *args, **kwargs)
