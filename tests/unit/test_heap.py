"""Memory that was freed after a peak returns to the operating system, but only while the server is idle."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys

import pytest

from app.runtime import heap, memory

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # a large process keeps its memory elsewhere

BLOCK_BYTES = 64 << 10  # glibc gets larger blocks from the system one by one, and returns them immediately
BLOCKS = 2_000


async def until_trimmed(limit_bytes: int) -> bool:
    for _ in range(200):
        if memory.resident_bytes() < limit_bytes:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_free_memory_is_returned_when_the_server_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    if heap._malloc_trim() is None or not memory.resident_bytes():
        pytest.skip("this system has no malloc_trim or does not report memory")
    monkeypatch.setattr(heap, "INTERVAL_S", 0.01)
    idle = False
    trimming = asyncio.create_task(heap.trim_when_idle(lambda: idle))
    await asyncio.sleep(0)  # the task reads the memory use before the peak
    blocks = [bytearray(BLOCK_BYTES) for _ in range(BLOCKS)]
    kept = blocks[::50]  # a few remaining blocks prevent that the heap shrinks by itself
    del blocks
    peak_bytes = memory.resident_bytes()
    assert not await asyncio.wait_for(_trimmed_while_busy(peak_bytes), 30)
    idle = True
    assert await until_trimmed(peak_bytes - BLOCKS * BLOCK_BYTES // 2)
    assert len(kept) == BLOCKS // 50
    trimming.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await trimming


async def _trimmed_while_busy(peak_bytes: int) -> bool:
    """Let the task run many times. Returns whether the memory fell."""
    for _ in range(20):
        await asyncio.sleep(0.01)
    return memory.resident_bytes() < peak_bytes - BLOCKS * BLOCK_BYTES // 2


async def test_memory_that_was_in_use_at_the_last_call_is_returned_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process need not grow again after a call that freed nothing."""
    if heap._malloc_trim() is None or not memory.resident_bytes():
        pytest.skip("this system has no malloc_trim or does not report memory")
    monkeypatch.setattr(heap, "INTERVAL_S", 0.01)
    idle = True
    calls = []
    real = heap._malloc_trim()
    assert real is not None
    monkeypatch.setattr(heap, "_malloc_trim", lambda: lambda pad: (calls.append(pad), real(pad))[1])
    trimming = asyncio.create_task(heap.trim_when_idle(lambda: idle))
    await asyncio.sleep(0)
    blocks = [bytearray(BLOCK_BYTES) for _ in range(BLOCKS)]
    peak_bytes = memory.resident_bytes()
    while not calls:  # noqa: ASYNC110 - a call, although all blocks are in use
        await asyncio.sleep(0.01)
    idle = False
    kept = blocks[::50]
    del blocks
    await asyncio.sleep(0.1)
    idle = True
    assert await until_trimmed(peak_bytes - BLOCKS * BLOCK_BYTES // 2)
    assert len(kept) == BLOCKS // 50
    trimming.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await trimming


_LEFT = """
import torch
from app.runtime import heap, memory
import contextlib

def left_mib():
    before_bytes = memory.resident_bytes()
    blocks = [(torch.ones(3 << 18), torch.ones(20_000)) for _ in range(40)]  # 3 MiB and 80 kB each
    small = [part for _, part in blocks]
    del blocks
    return (memory.resident_bytes() - before_bytes) >> 20

torch.ones(7 << 20)  # glibc then keeps blocks of up to 28 MiB in its heap
with heap.separate_large_blocks():
    first = left_mib()
print(first, left_mib())
"""


@pytest.mark.skipif(heap._malloc_trim() is None, reason="only glibc has mallopt")
def test_large_blocks_return_to_the_system_beside_small_ones() -> None:
    """The memory that stays after large blocks between small ones were freed, with and without the context."""
    done = subprocess.run([sys.executable, "-c", _LEFT], capture_output=True, text=True, check=True)
    separate, together = (int(number) for number in done.stdout.split())
    assert separate < 30
    assert together > 60
