"""Huge pages keep the values in memory and are also used after untouched pages."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
from pathlib import Path

import pytest
import torch

from app.runtime.pages import use_huge_pages

pytestmark = pytest.mark.unit

PAGE_BYTES = 2 << 20
LINUX = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_huge_pages_keep_the_values() -> None:
    numbers = torch.arange(4 << 20, dtype=torch.int64)  # 32 MiB
    use_huge_pages()
    use_huge_pages()
    assert torch.equal(numbers, torch.arange(4 << 20, dtype=torch.int64))


def test_system_without_a_page_map_keeps_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runtime.pages._PAGEMAP", tmp_path / "missing")
    use_huge_pages()


def large_bytes(address: int) -> int:
    """Return how many bytes of the mapping around the address are on huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


@pytest.mark.skipif(not MODE.exists() or "[never]" in MODE.read_text(), reason="the system gives no large pages")
@pytest.mark.skipif(LINUX < (6, 1), reason="what is in memory already is put on large pages since Linux 6.1")
def test_memory_after_untouched_pages_is_on_huge_pages() -> None:
    memory = mmap.mmap(-1, 16 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    behind = 8 * PAGE_BYTES
    for at in range(behind, len(memory), mmap.PAGESIZE):  # the earlier pages are not changed
        memory[at] = at // mmap.PAGESIZE % 251
    use_huge_pages()
    assert large_bytes(address + behind) >= 7 * PAGE_BYTES
    assert all(memory[at] == at // mmap.PAGESIZE % 251 for at in range(behind, len(memory), mmap.PAGESIZE))


def test_sparse_memory_does_not_grow() -> None:
    """A huge page for the first page of a stack would keep 2 MiB for each thread."""
    memory = mmap.mmap(-1, 16 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for at in range(0, len(memory), PAGE_BYTES):
        memory[at] = 1
    use_huge_pages()
    assert large_bytes(address + 8 * PAGE_BYTES) == 0
