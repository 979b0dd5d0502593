"""Huge pages for the memory that a process has already filled, such as weights.

A token reads every weight once, 1 GB and more, and with pages of 4 KiB a core spends a part of that time on finding
them: with pages of 2 MiB the 8-bit depth decoder of CSM takes 0.18 s a frame instead of 0.22 s on a Zen 5. Most
systems give them only to who asks.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1
_PAGE_BYTES = 2 << 20


def use_large_pages() -> None:
    """Put what this process holds now on large pages, as far as the system lets it; what comes later is not touched.

    Takes up to some seconds for 2 GB, once. Where it can't be done nothing happens: it is only about speed.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))  # or what loading has freed would be filled up again
    for line in maps.read_text().splitlines():
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        if access != "rw-p" or inode != "0" or name not in ([], ["[heap]"]):
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        start, end = -(-start // _PAGE_BYTES) * _PAGE_BYTES, end // _PAGE_BYTES * _PAGE_BYTES
        if start >= end or libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE):
            continue
        # One by one: asked for all at once the system stops at the first hole, and leaves what lies behind it.
        for page in range(start, end, _PAGE_BYTES):
            libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE_BYTES), _MADV_COLLAPSE)
