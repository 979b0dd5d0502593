"""Moves memory to huge pages after the process has filled it, for example with weights.

A model reads all its weights, 1 GB or more, for each token. With pages of 4 KiB, a core spends a part of its time on
address translation. On a Zen 5, the int8 depth decoder of CSM takes 0.22 s for a frame with pages of 4 KiB, and 0.18 s
with huge pages of 2 MiB. Most systems use huge pages only for memory that a program marks with the system call madvise.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # from linux/mman.h; MADV_COLLAPSE exists since Linux 6.1
_PAGEMAP = Path("/proc/self/pagemap")
_PAGE_BYTES = 2 << 20


def mark_for_huge_pages(address: int, size_bytes: int) -> None:
    """Let the system use huge pages for memory that this process has allocated and not filled yet."""
    libc = ctypes.CDLL(None)
    start = -(-address // _PAGE_BYTES) * _PAGE_BYTES
    end = (address + size_bytes) // _PAGE_BYTES * _PAGE_BYTES
    if start < end and hasattr(libc, "madvise"):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)


def use_huge_pages() -> None:
    """Move the memory that this process uses at the time of the call to huge pages. Later allocations are not moved.

    A range of 2 MiB keeps its small pages if less than half of it is in use. Otherwise the stacks of threads and the
    heaps of small objects would grow, and they would keep this memory after an unload. Takes a few seconds for 2 GB. On
    a system without huge pages, or without /proc/self/pagemap (some sandboxes of containers), does nothing.
    """
    maps = Path("/proc/self/maps")
    if not (maps.exists() and os.access(_PAGEMAP, os.R_OK)):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        # First give freed memory back to the system. Otherwise freed memory would get huge pages, too.
        libc.malloc_trim(ctypes.c_size_t(0))
    for line in maps.read_text().splitlines():
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        if access != "rw-p" or inode != "0" or name not in ([], ["[heap]"]):
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        start, end = -(-start // _PAGE_BYTES) * _PAGE_BYTES, end // _PAGE_BYTES * _PAGE_BYTES
        # Each call moves one page, because a call for the whole span stops at the first gap without memory.
        for page in _half_used(start, end):
            if libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE_BYTES), _MADV_COLLAPSE):
                # The move fails if no huge page is free or Linux is older than 6.1. Then mark the memory, and the
                # system moves it later.
                libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE_BYTES), _MADV_HUGEPAGE)


def _half_used(start: int, end: int) -> Iterator[int]:
    """Divide the memory from `start` to `end` into ranges of 2 MiB. Yield the address of each range in use.

    A range is in use if at least half of its small pages are in memory.
    """
    if start >= end:
        return
    small = os.sysconf("SC_PAGE_SIZE")
    with _PAGEMAP.open("rb", buffering=0) as file:
        file.seek(start // small * 8)
        # The file has 8 bytes for each small page. The highest bit of the last byte says whether the page is in memory.
        present = file.read((end - start) // small * 8)[7::8]
    each = _PAGE_BYTES // small
    for number, page in enumerate(range(start, end, _PAGE_BYTES)):
        used = sum(byte >> 7 for byte in present[number * each : (number + 1) * each])
        if 2 * used >= each:
            yield page
