"""Finished answers on disk, by content: the same request gives the same bytes without an engine.

One file an answer: the bytes as they were sent, then a JSON trailer (usage, length, checksum) and a fixed footer.
Written to a temporary name while it streams and renamed when whole, so a crash leaves nothing that could be served.
Knows no HTTP and no audio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import struct
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

_MAGIC = b"TTSA"
_FOOTER = struct.Struct("<4sI")  # magic, length of the trailer
_ABANDONED_S = 3600  # a temporary file this old is nobody's any more
MAX_ENTRY_BYTES = 64 << 20  # a hit is held in memory while it is sent


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer as it was first sent, with what was told of it then."""

    data: bytes
    facts: dict[str, float]


class AnswerCache:
    """The least recently used answers go when `budget_bytes` is passed. Used from one event loop; 0 = keeps nothing."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._total_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._total_bytes

    def scan(self) -> None:
        """Take stock of what an earlier run left, and remove what it left half-written."""
        if not self._budget_bytes:
            return
        found: list[tuple[float, str, int]] = []
        for path in self._folder.glob("??/*"):
            try:
                stat = path.stat()
                if path.suffix == ".tmp":
                    if time.time() - stat.st_mtime > _ABANDONED_S:
                        path.unlink(missing_ok=True)
                    continue
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime, path.name, stat.st_size))
        for _, name, size in sorted(found):
            self._keep(name, size)

    async def find(self, digest: str) -> CachedAnswer | None:
        """The whole answer, checked, or None. One that does not add up is removed."""
        if not self._budget_bytes:
            return None
        path = self._path(digest)
        try:
            answer, size = await asyncio.to_thread(_read, path)
        except FileNotFoundError:
            self._forget(digest)
            return None
        except OSError as error:
            log.warning("the answer cache can't be read: %s", error)
            return None
        if answer is None:
            log.warning("a damaged answer was removed from the cache", extra={"digest": digest})
            _remove(path)
            self._forget(digest)
            return None
        self._keep(digest, size)
        return answer

    def begin(self, digest: str) -> Entry:
        """A place to write an answer as it is sent; where it can't be kept, writing to it does nothing."""
        path = self._path(digest)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        file: BinaryIO | None = None
        if self._budget_bytes:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = temporary.open("wb")
            except OSError as error:
                log.warning("the answer cache can't be written: %s", error)
        return Entry(self, digest, temporary, file)

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def _keep(self, digest: str, size: int) -> None:
        self._forget(digest)
        self._sizes[digest] = size
        self._total_bytes += size
        while self._total_bytes > self._budget_bytes:
            oldest = next(iter(self._sizes))
            self._forget(oldest)
            _remove(self._path(oldest))

    def _forget(self, digest: str) -> None:
        self._total_bytes -= self._sizes.pop(digest, 0)


class Entry:
    """An answer being written. `commit` keeps it; `abandon` (always called at the end) removes what was not kept."""

    def __init__(self, cache: AnswerCache, digest: str, path: Path, file: BinaryIO | None) -> None:
        self._cache = cache
        self._digest = digest
        self._path = path
        self._file = file
        self._size = 0
        self._checksum = 0

    def write(self, data: bytes) -> None:
        """Never raises: an answer that can't be kept is still spoken."""
        if self._file is None:
            return
        self._size += len(data)
        self._checksum = zlib.crc32(data, self._checksum)
        if self._size > min(MAX_ENTRY_BYTES, self._cache._budget_bytes // 2):
            self.abandon()
            return
        try:
            self._file.write(data)
        except OSError as error:
            log.warning("the answer is not cached: %s", error)
            self.abandon()

    def commit(self, facts: dict[str, float]) -> None:
        if self._file is None:
            return
        trailer = json.dumps({"size": self._size, "crc32": self._checksum, "facts": facts}).encode()
        try:
            self._file.write(trailer + _FOOTER.pack(_MAGIC, len(trailer)))
            self._file.close()
            self._path.replace(self._cache._path(self._digest))
        except OSError as error:
            log.warning("the answer is not cached: %s", error)
            self.abandon()
            return
        self._file = None
        self._cache._keep(self._digest, self._size + len(trailer) + _FOOTER.size)

    def abandon(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:
            log.debug("closing an abandoned cache entry: %s", error)
        _remove(self._path)


def _remove(path: Path) -> None:
    """A file that can't be removed must not fail the request that came across it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the answer cache can't be cleaned: %s", error)


def _read(path: Path) -> tuple[CachedAnswer | None, int]:
    content = path.read_bytes()
    answer = _unpack(content)
    if answer is not None:
        with contextlib.suppress(OSError):  # a read-only folder still serves
            os.utime(path)  # the order of use survives a restart
    return answer, len(content)


def _unpack(content: bytes) -> CachedAnswer | None:
    if len(content) < _FOOTER.size:
        return None
    magic, trailer_length = _FOOTER.unpack(content[-_FOOTER.size :])
    end = len(content) - _FOOTER.size - trailer_length
    if magic != _MAGIC or end < 0:
        return None
    try:
        trailer = json.loads(content[end : -_FOOTER.size])
        data = content[:end]
        if trailer["size"] != len(data) or trailer["crc32"] != zlib.crc32(data):
            return None
        return CachedAnswer(data, dict(trailer["facts"]))
    except (ValueError, KeyError, TypeError):
        return None
