"""The answer cache: complete answers on disk. A repeated request gets the same bytes, and the engine does no work.

Each answer is one file: the bytes as sent, a JSON trailer (usage, length, checksum) and a fixed footer. The file has a
temporary name while the answer is streamed and is renamed when it is complete, so a crash leaves no partial answer.
This module does not depend on HTTP or audio.
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.lru import LRU

log = logging.getLogger(__name__)

_MAGIC = b"TTSA"
_FOOTER = struct.Struct("<4sI")  # magic, length of the trailer
_ABANDONED_S = 3600  # an older temporary file was left by a crash
MAX_ENTRY_BYTES = 64 << 20  # larger answers are not stored: a cached answer is read into memory completely


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer from the cache."""

    data: bytes  # the same bytes as the first time
    facts: dict[str, float | str]  # the usage in tokens, and the result of the check if the answer was checked


class AnswerCache:
    """Stores answers up to `budget_bytes` and removes the least recently used ones. Used from one event loop."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        """budget_bytes: 0 = store nothing."""
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._sizes: LRU[str, int] = LRU(
            budget_bytes, size=lambda size: size, on_evict=lambda digest: _remove(self.path_of(digest))
        )

    @property
    def size_bytes(self) -> int:
        """The size of all stored answers."""
        return self._sizes.total

    def scan(self) -> None:
        """Find the answers that earlier runs have stored, and remove old partial files."""
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
            self._sizes.put(name, size)

    async def find(self, digest: str) -> CachedAnswer | None:
        """Return the answer with the cache key `digest`, or None. A damaged file is removed."""
        if not self._budget_bytes:
            return None
        path = self.path_of(digest)
        try:
            answer, size = await asyncio.to_thread(_read, path)
        except FileNotFoundError:
            self._sizes.pop(digest)
            return None
        except OSError as error:
            log.warning("the answer cache can't be read; the answer is generated again: %s", error)
            return None
        if answer is None:
            log.warning("removed a damaged answer from the cache; it is generated again", extra={"digest": digest})
            _remove(path)
            self._sizes.pop(digest)
            return None
        self._sizes.put(digest, size)
        return answer

    def begin(self, digest: str, *, keep: bool = True) -> Entry:
        """Create the entry of a new answer. The caller writes the answer to it. keep: False = nothing is stored."""
        path = self.path_of(digest)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        return Entry(self, digest, temporary, keep=keep and self._budget_bytes > 0)

    @property
    def max_entry_bytes(self) -> int:
        """The maximum size of a stored answer. A larger answer would evict most other answers."""
        return min(MAX_ENTRY_BYTES, self._budget_bytes // 2)

    def added(self, digest: str, size: int) -> None:
        """Record that a complete answer is stored at `path_of(digest)`."""
        self._sizes.put(digest, size)

    def path_of(self, digest: str) -> Path:
        """The file of the answer with the cache key `digest`."""
        return self._folder / digest[:2] / digest


class Entry:
    """An answer that is being written to the cache. `commit` stores the answer; `abandon` removes its temporary file.

    No method raises an exception, because an answer that can't be stored must still be sent.
    """

    def __init__(self, cache: AnswerCache, digest: str, path: Path, *, keep: bool) -> None:
        self._cache = cache
        self._digest = digest
        self._path = path
        self._keep = keep
        self._file: BinaryIO | None = None  # opened by the first write, so a rejected request creates no file
        self._size = 0
        self._checksum = 0

    def write(self, data: bytes) -> None:
        """Add bytes to the answer."""
        if not self._keep:
            return
        self._size += len(data)
        self._checksum = zlib.crc32(data, self._checksum)
        if self._size > self._cache.max_entry_bytes:
            self.abandon()
            return
        try:
            self._opened().write(data)
        except OSError as error:
            log.warning("the answer can't be written to the cache, so it is not stored: %s", error)
            self.abandon()

    def commit(self, facts: Mapping[str, float | str]) -> None:
        """Store the complete answer. facts: what `CachedAnswer.facts` returns later."""
        if not self._keep:
            return
        trailer = json.dumps({"size": self._size, "crc32": self._checksum, "facts": dict(facts)}).encode()
        try:
            file = self._opened()
            file.write(trailer + _FOOTER.pack(_MAGIC, len(trailer)))
            file.close()
            self._path.replace(self._cache.path_of(self._digest))
        except OSError as error:
            log.warning("the answer can't be written to the cache, so it is not stored: %s", error)
            self.abandon()
            return
        self._keep = False
        self._file = None
        self._cache.added(self._digest, self._size + len(trailer) + _FOOTER.size)

    def abandon(self) -> None:
        """Remove the file of an answer that was not stored. After `commit` this does nothing."""
        self._keep = False
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:
            log.debug("a partial file of the answer cache could not be closed: %s", error)
        _remove(self._path)

    def _opened(self) -> BinaryIO:
        """Return the open temporary file. The first call creates it. Raises OSError."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        return self._file


def _remove(path: Path) -> None:
    """Remove a file. An error is only logged, so that the request does not fail."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("a file of the answer cache can't be removed: %s", error)


def _read(path: Path) -> tuple[CachedAnswer | None, int]:
    """Read a cache file. Returns the answer (None if the file is damaged) and the size of the file. Raises OSError."""
    content = path.read_bytes()
    answer = _unpack(content)
    if answer is not None:
        with contextlib.suppress(OSError):  # the folder may be read-only
            os.utime(path)  # the next start of the server reads from this time when the answer was last used
    return answer, len(content)


def _unpack(content: bytes) -> CachedAnswer | None:
    """The answer in the content of a file; None if its length or checksum is wrong."""
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
