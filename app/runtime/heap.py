"""Returns free memory to the operating system after a peak of load.

glibc keeps memory that was freed in the middle of its heaps. After 600 requests at the same time, hundreds of megabytes
stay in the process, although no object needs them. `malloc_trim` returns them. It takes locks that other threads may
need, so it is called only while no request runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections.abc import Callable

from app.runtime import memory

log = logging.getLogger(__name__)

INTERVAL_S = 5.0  # between two checks
GROWTH_BYTES = 32 << 20  # memory is returned only if the process is larger by this than at its smallest


async def trim_when_idle(is_idle: Callable[[], bool]) -> None:
    """Return free memory when the process has grown, once after each time of work. Runs until it is cancelled."""
    trim = _malloc_trim()
    if trim is None:
        return
    smallest_bytes = memory.resident_bytes()
    trimmed_bytes = 0  # the memory after the last call; 0 = the process has worked since
    while True:
        await asyncio.sleep(INTERVAL_S)
        before_bytes = memory.resident_bytes()
        smallest_bytes = min(smallest_bytes, before_bytes)
        if not is_idle() or before_bytes > trimmed_bytes + GROWTH_BYTES:
            trimmed_bytes = 0
        if not is_idle() or trimmed_bytes or before_bytes < smallest_bytes + GROWTH_BYTES:
            continue
        await asyncio.to_thread(trim, 0)
        trimmed_bytes = memory.resident_bytes()
        log.debug("returned %.0f MB of free memory to the system", (before_bytes - trimmed_bytes) / 1e6)


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`; None on a system without it, such as musl or macOS."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    return trim
