"""The answer cache: the audio of complete answers on disk. A repeated request gets the stored audio, so the engine does
not generate it again.

One file holds the audio of one generation: 16-bit samples at the engine's sample rate, after loudness, speed, length
limit and watermark. Every response format and sample rate is encoded from these samples, so the cache key has no
format. After the samples, the file has a JSON trailer (sample rate, length, checksum, facts) and a footer of fixed
length. The times of the words are found and stored later than the audio, so they are in a second file.

The file has a temporary name while the answer is generated, and gets its final name when the answer is complete. So a
crash leaves no partial answer. This module does not depend on HTTP or audio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.lru import LRU

log = logging.getLogger(__name__)

SAMPLE_BYTES = 2
# FLAC would need only 61 % of the bytes of raw samples. But writing it takes 1 ms of CPU time for each second of audio,
# and reading it takes about as long. Raw samples need no decoding, and a reader can start at any position while the
# answer is still being generated.
_SUFFIX = ".pcm"
_TIMES_SUFFIX = ".times"
_MAGIC = b"TTSB"
_TIMES_HEAD = struct.Struct("<4sII")  # magic, checksum of the samples, checksum of the bytes after this header
_TIMES_MAGIC = b"TTSW"
_MAX_TIMES_BYTES = 4 << 20
_FOOTER = struct.Struct("<4sI")  # magic, length of the trailer
_MAX_TRAILER_BYTES = 1 << 20
_EARLIER_FILE = re.compile(r"[0-9a-f]{64}")  # names of encoded answers that earlier versions stored
_ABANDONED_S = 3600  # a temporary file that is older than _ABANDONED_S was left by a crash
_BLOCK_BYTES = 256 << 10  # a file is checked in blocks of this size; the first block stays in memory
# larger answers are not stored: the check of their checksum would delay the first byte by more than 0.4 s
MAX_ENTRY_BYTES = 256 << 20

Facts = Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class CachedSound:
    """The audio of an answer from the cache, as 16-bit samples. The file is closed when no reference to it is left."""

    rate_hz: int
    samples: int
    checksum: int  # of the samples
    facts: dict[str, float | str]  # the seed, the usage in tokens, and the result of the check if there was one
    _start: bytes  # the first bytes of the samples
    _file: _OpenFile | None  # None = `_start` contains all samples

    def in_memory(self, end: int) -> bool:
        """Return whether all samples before the sample `end` are in memory, so that reading them does not block."""
        return self._file is None or SAMPLE_BYTES * end <= len(self._start)

    def read(self, start: int, count: int) -> bytes:
        """Return `count` samples from the sample `start` on; fewer samples if the audio ends earlier. May block the
        thread. Raises OSError.
        """
        begin, end = SAMPLE_BYTES * start, SAMPLE_BYTES * min(start + count, self.samples)
        if end <= len(self._start) or self._file is None:
            return self._start[begin:end]
        return self._file.read(begin, end - begin)


class AnswerCache:
    """Stores audio up to `budget_bytes` and removes the least recently used answers. Use it from one event loop."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        """budget_bytes: the maximum size of all stored answers; 0 = store nothing."""
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._sizes: LRU[str, int] = LRU(budget_bytes, size=lambda size: size, on_evict=self._remove)

    @property
    def enabled(self) -> bool:
        """Whether the cache stores anything."""
        return self._budget_bytes > 0

    @property
    def size_bytes(self) -> int:
        """The size of all stored answers, in bytes."""
        return self._sizes.total

    def __contains__(self, digest: str) -> bool:
        """Return whether an answer with this cache key is in the list of known answers. Does not read the disk.

        An answer joins the list when it is stored or found on the disk, and leaves the list when it is removed.
        """
        return digest in self._sizes

    def scan(self) -> None:
        """Find the answers that earlier runs of the server have stored. Remove old partial files and files of earlier
        versions.
        """
        if not self._budget_bytes:
            return
        found: list[tuple[float, str, int]] = []
        times: dict[str, int] = {}
        for path in self._folder.glob("??/*"):
            try:
                stat = path.stat()
                if path.suffix == ".tmp":
                    if time.time() - stat.st_mtime > _ABANDONED_S:
                        path.unlink(missing_ok=True)
                elif path.suffix == _SUFFIX:
                    found.append((stat.st_mtime, path.stem, stat.st_size))
                elif path.suffix == _TIMES_SUFFIX:
                    times[path.stem] = stat.st_size
                elif _EARLIER_FILE.fullmatch(path.name):
                    _remove(path)
            except FileNotFoundError:
                continue
        for _, name, size in sorted(found):
            self._sizes.put(name, size + times.pop(name, 0))
        for name in times:
            _remove(self._times_path(name))

    async def find(self, digest: str) -> CachedSound | None:
        """Return the audio with the cache key `digest`, or None. A damaged file is removed."""
        if not self._budget_bytes:
            return None
        path = self.path_of(digest)
        try:
            sound, size = await asyncio.to_thread(_read, path, self._times_path(digest))
        except FileNotFoundError:
            self._sizes.pop(digest)
            return None
        except OSError as error:
            log.warning("the answer cache can't be read; the answer is generated again: %s", error)
            return None
        if sound is None:
            log.warning("removed a damaged answer from the cache; it is generated again", extra={"digest": digest})
            self._remove(digest)
            self._sizes.pop(digest)
            return None
        self._sizes.put(digest, size)
        return sound

    async def find_times(self, digest: str, checksum: int) -> str | None:
        """Return the text that `keep_times` has stored for samples with this checksum; None if it has stored none."""
        if not self._budget_bytes:
            return None
        return await asyncio.to_thread(_read_times, self._times_path(digest), checksum)

    async def keep_times(self, digest: str, checksum: int, text: str) -> None:
        """Store a text with the times of the words of a stored answer. checksum: the checksum of its samples."""
        if digest not in self._sizes:
            return
        size = await asyncio.to_thread(_write_times, self._times_path(digest), checksum, text)
        if digest not in self._sizes:  # evicted meanwhile
            _remove(self._times_path(digest))
        elif size:
            self._sizes.put(digest, _size_or_0(self.path_of(digest)) + size)

    def begin(self, digest: str, rate_hz: int, *, keep: bool = True) -> Entry:
        """Create the entry of a new answer. The caller writes the samples to the entry. keep: False = `commit` stores
        nothing.
        """
        path = self.path_of(digest)
        temporary = _temporary(path)
        return Entry(self, digest, rate_hz, temporary, keep=keep and self._budget_bytes > 0)

    @property
    def max_entry_bytes(self) -> int:
        """The maximum size of a stored answer. A larger answer would evict most other answers."""
        return min(MAX_ENTRY_BYTES, self._budget_bytes // 2)

    def added(self, digest: str, size: int) -> None:
        """Record that a complete answer is stored at `path_of(digest)`."""
        self._sizes.put(digest, size)

    def path_of(self, digest: str) -> Path:
        """Return the path of the file of the answer with the cache key `digest`."""
        return self._folder / digest[:2] / (digest + _SUFFIX)

    def _times_path(self, digest: str) -> Path:
        return self._folder / digest[:2] / (digest + _TIMES_SUFFIX)

    def _remove(self, digest: str) -> None:
        """Remove the files of an answer."""
        _remove(self.path_of(digest))
        _remove(self._times_path(digest))


class Entry:
    """An answer that is being written to the cache. `commit` stores the answer; `abandon` removes its temporary file.

    The written samples can be read until `close`, also after `commit` and `abandon`. Except for `read`, no method
    raises an exception, because an answer that can't be stored must still be sent.
    """

    def __init__(self, cache: AnswerCache, digest: str, rate_hz: int, path: Path, *, keep: bool) -> None:
        self._cache = cache
        self._digest = digest
        self._rate_hz = rate_hz
        self._path = path
        self._keep = keep
        self._file: _OpenFile | None = None  # opened by the first write, so a rejected request creates no file
        self.checksum = _first_checksum(rate_hz)  # checksum of the samples that were written so far
        self.stored = False  # whether `commit` has stored the answer
        self.size = 0  # bytes that were written and can be read

    @property
    def kept(self) -> bool:
        """Whether `commit` would store the answer."""
        return self._keep

    def write(self, data: bytes) -> None:
        """Add samples to the answer."""
        if not self._keep:
            return
        if self.size + len(data) > self._cache.max_entry_bytes:
            self.abandon()
            return
        try:
            self._opened().append(data)
        except OSError as error:
            log.warning("the answer can't be written to the cache, so it is not stored: %s", error)
            self.abandon()
            return
        self.size += len(data)
        self.checksum = zlib.crc32(data, self.checksum)

    def read(self, start: int, count: int) -> bytes:
        """Return `count` bytes from the position `start` on. May block the thread. Raises OSError."""
        return b"" if self._file is None else self._file.read(start, min(count, self.size - start))

    def commit(self, facts: Facts) -> None:
        """Store the complete answer. facts: what `CachedSound.facts` returns later."""
        if not self._keep:
            return
        about = {"size": self.size, "crc32": self.checksum, "rate_hz": self._rate_hz, "facts": dict(facts)}
        trailer = json.dumps(about).encode()
        try:
            self._opened().append(trailer + _FOOTER.pack(_MAGIC, len(trailer)))
            self._path.replace(self._cache.path_of(self._digest))
        except OSError as error:
            log.warning("the answer can't be written to the cache, so it is not stored: %s", error)
            self.abandon()
            return
        self._keep = False
        self.stored = True
        self._cache.added(self._digest, self.size + len(trailer) + _FOOTER.size)

    def abandon(self) -> None:
        """Remove the file of an answer that was not stored. After `commit` this does nothing."""
        if self._keep and self._file is not None:
            _remove(self._path)
        self._keep = False

    def close(self) -> None:
        """If the answer was not stored, abandon it. Then close its file."""
        self.abandon()
        self._file = None

    def _opened(self) -> _OpenFile:
        """Return the open temporary file. The first call creates it. Raises OSError."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _OpenFile(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        return self._file


class _OpenFile:
    """A file that is open without a buffer.

    The file is closed when no reference to this object is left. So it is never closed while a thread reads it.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self._descriptor = -1  # set first: if os.open raises, __del__ needs this attribute
        self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def append(self, data: bytes) -> None:
        """Write all of `data` at the end. Raises OSError."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def read(self, start: int, count: int) -> bytes:
        """Read `count` bytes at `start`. Raises OSError, also if the file has fewer bytes."""
        parts = []
        while count > 0:
            part = os.pread(self._descriptor, count, start)
            if not part:
                raise OSError("The file has become shorter since it was written.")
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return b"".join(parts)


def _first_checksum(rate_hz: int) -> int:
    """Return the checksum of an answer that has no samples yet. The checksum depends on the sample rate."""
    return zlib.crc32(b"%d" % rate_hz)


def _temporary(path: Path) -> Path:
    """Return a new name in the folder of `path`. A file is written under this name, and then renamed."""
    return path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")


def _remove(path: Path) -> None:
    """Remove a file. An error is only logged, so that the request does not fail."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("a file of the answer cache can't be removed: %s", error)


def _read_times(path: Path, checksum: int) -> str | None:
    """Read and check a file with times. Returns None if the file is missing or damaged, or if it belongs to samples
    with another checksum than `checksum`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TIMES_BYTES)
    except OSError:
        return None
    try:
        magic, samples, rest = _TIMES_HEAD.unpack_from(data)
        if magic != _TIMES_MAGIC or samples != checksum or rest != zlib.crc32(data[_TIMES_HEAD.size :]):
            return None
        return zlib.decompress(data[_TIMES_HEAD.size :]).decode()
    except (struct.error, zlib.error, ValueError):
        return None


def _write_times(path: Path, checksum: int, text: str) -> int:
    """Write a file with times. Returns its size in bytes; 0 if it can't be written. An error is only logged."""
    packed = zlib.compress(text.encode(), 6)
    data = _TIMES_HEAD.pack(_TIMES_MAGIC, checksum, zlib.crc32(packed)) + packed
    if len(data) > _MAX_TIMES_BYTES:
        return 0
    temporary = _temporary(path)
    try:
        _OpenFile(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL).append(data)
        temporary.replace(path)
    except OSError as error:
        log.warning("the times of words can't be written to the cache, so they are found again: %s", error)
        _remove(temporary)
        return 0
    return len(data)


def _size_or_0(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, times_path: Path) -> tuple[CachedSound | None, int]:
    """Open and check a cache file. Returns its audio (None if the file is damaged) and its size. Raises OSError.

    times_path: the file with the times of the answer's words. Its size is part of the returned size.
    """
    file = _OpenFile(path, os.O_RDONLY)
    size = file.size
    sound = _checked(file, size)
    if sound is not None:
        with contextlib.suppress(OSError):  # ignore the error if the folder is read-only
            os.utime(path)  # after a restart, `scan` reads this time to know when the answer was last used
    return sound, size + _size_or_0(times_path)


def _checked(file: _OpenFile, size: int) -> CachedSound | None:
    """Return the audio in a file of `size` bytes; None if its length or checksum is wrong. Raises OSError."""
    if size < _FOOTER.size:
        return None
    magic, trailer_length = _FOOTER.unpack(file.read(size - _FOOTER.size, _FOOTER.size))
    end = size - _FOOTER.size - trailer_length
    if magic != _MAGIC or end < 0 or trailer_length > _MAX_TRAILER_BYTES:
        return None
    try:
        trailer = json.loads(file.read(end, trailer_length))
        facts, rate_hz = dict(trailer["facts"]), int(trailer["rate_hz"])
        if trailer["size"] != end or end % SAMPLE_BYTES or rate_hz <= 0:
            return None
        checksum, start = _first_checksum(rate_hz), b""
        for position in range(0, end, _BLOCK_BYTES):
            block = file.read(position, min(_BLOCK_BYTES, end - position))
            checksum = zlib.crc32(block, checksum)
            start = start or block
        if trailer["crc32"] != checksum:
            return None
    except (ValueError, KeyError, TypeError):
        return None
    return CachedSound(rate_hz, end // SAMPLE_BYTES, checksum, facts, start, file if end > len(start) else None)
