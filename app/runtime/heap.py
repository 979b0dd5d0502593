"""Gives free memory back to the operating system after a peak of load.

glibc keeps freed memory in the middle of its heaps. After 600 requests at the same time, the process keeps hundreds of
megabytes that no object needs. `malloc_trim` gives this memory back to the system. `malloc_trim` takes locks that other
threads may need, so this module calls it only while no request runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
from collections.abc import Callable, Iterator

from app.runtime import memory

log = logging.getLogger(__name__)

_M_MMAP_THRESHOLD = -3  # from malloc.h
_SEPARATE_BYTES = 1 << 20
_LARGEST_THRESHOLD_BYTES = 32 << 20
INTERVAL_S = 5.0  # seconds between two checks
# Free memory is given back only if the process is at least this number of bytes larger than its smallest size.
GROWTH_BYTES = 32 << 20


async def trim_when_idle(is_idle: Callable[[], bool]) -> None:
    """Give free memory back to the system while no request runs, if the process has grown.

    Runs until the task is cancelled.
    """
    trim = _malloc_trim()
    if trim is None:
        return
    smallest_bytes = memory.resident_bytes()
    # Memory of the process after the last call of `trim`. 0 = there was no call yet, or requests have run or the
    # process has grown since the last call.
    trimmed_bytes = 0
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
        log.debug("gave %.0f MB of free memory back to the system", (before_bytes - trimmed_bytes) / 1e6)


def trim() -> None:
    """Give the free memory of this process back to the system, and the free memory of its GPUs to the driver.

    Call this function only while no request runs.
    """
    release = _malloc_trim()
    if release is not None:
        release(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def separate_large_blocks() -> Iterator[None]:
    """Inside the context, let glibc allocate each block of 1 MiB or more as a mapping of its own.

    Such a block goes back to the system when it is freed. Otherwise the weights of a model and the buffers for reading
    them would lie between small blocks in the heaps of several threads. After an unload, these heaps would keep the
    freed memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _SEPARATE_BYTES)
    try:
        yield
    finally:
        # By default, glibc raises the threshold by itself, up to _LARGEST_THRESHOLD_BYTES. After a program has set the
        # threshold, glibc no longer changes it. So set the threshold to the largest value. The steps of a model
        # allocate and free blocks of a few MiB, and a new mapping for each block would cost page faults.
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD_BYTES)


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's function `malloc_trim`; None on a system without this function, such as musl or macOS."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    return trim
