"""Encoded answers in memory: a repeated request in the same format is not encoded again.

The key of an entry contains the checksum of the samples, so an entry never belongs to other audio. The samples are in
the answer cache (`cache.py`). This module does not depend on HTTP or audio.
"""

from __future__ import annotations

from app.lru import LRU

BUDGET_BYTES = 32 << 20
MAX_ANSWER_BYTES = 2 << 20  # of a longer answer, only the length is remembered, so it is encoded again for each request
# The most bytes that are collected from all answers that are being encoded. Above this limit, an encoded answer is sent
# but not collected for reuse.
COLLECTED_BYTES = 16 << 20
SIZES = 10_000  # how many sizes of encoded answers are remembered

EncodedKey = tuple[str, int, str, int]  # cache key, checksum of the samples, format, sample rate in Hz


class EncodedAnswers:
    """The most recently used encoded answers, and the sizes of many more answers. Use it from one event loop."""

    def __init__(self) -> None:
        self._bodies: LRU[EncodedKey, bytes] = LRU(BUDGET_BYTES, size=len)
        self._sizes: LRU[EncodedKey, int] = LRU(SIZES)
        self._collected_bytes = 0

    def find(self, key: EncodedKey) -> bytes | None:
        """Return a complete answer; None if it is not in memory."""
        return self._bodies.get(key)

    def size_of(self, key: EncodedKey) -> int | None:
        """Return the size of an answer in bytes; None if it is not known."""
        return self._sizes.get(key)

    def put(self, key: EncodedKey, size: int, body: bytes | None) -> None:
        """Remember a complete answer. body: its bytes; None = remember only its size."""
        self._sizes.put(key, size)
        if body is not None:
            self._bodies.put(key, body)

    def collect(self, *, keep: bool) -> Collector:
        """Return a collector for a new answer. keep: False = the collector only counts the bytes."""
        return Collector(self, keep=keep)

    def reserve(self, count: int) -> bool:
        """Add `count` to the number of bytes that all collectors hold. Returns False if this number exceeds
        COLLECTED_BYTES.
        """
        self._collected_bytes += count
        return self._collected_bytes <= COLLECTED_BYTES


class Collector:
    """Collects the bytes of one answer while they are sent. The caller must call `close`."""

    def __init__(self, answers: EncodedAnswers, *, keep: bool) -> None:
        self._answers = answers
        self._parts: list[bytes] | None = [] if keep else None
        self.size = 0  # in bytes

    def add(self, data: bytes) -> bytes:
        """Add the next bytes, and return them."""
        self.size += len(data)
        if self._parts is not None:
            self._parts.append(data)
            if not self._answers.reserve(len(data)) or self.size > MAX_ANSWER_BYTES:
                self.close()
        return data

    @property
    def body(self) -> bytes | None:
        """All bytes so far; None if they were not kept."""
        return None if self._parts is None else b"".join(self._parts)

    def close(self) -> None:
        """Free the collected bytes, and subtract them from the total of all collectors."""
        if self._parts is not None:
            self._answers.reserve(-sum(map(len, self._parts)))
            self._parts = None
