"""A mapping that keeps the most recently used entries: the one LRU behind every cache in memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
V = TypeVar("V")


class LRU(Generic[K, V]):
    """Holds entries up to `limit` in all and evicts the least recently used. Not safe for several threads."""

    def __init__(
        self,
        limit: int,
        *,
        size: Callable[[V], int] = lambda _: 1,
        on_evict: Callable[[K], None] = lambda _: None,
    ) -> None:
        """size: what an entry counts towards the limit. on_evict: called after an entry was evicted for its size."""
        self._limit = limit
        self._size = size
        self._on_evict = on_evict
        self._entries: OrderedDict[K, V] = OrderedDict()  # least recently used first
        self._total = 0

    @property
    def total(self) -> int:
        """The size of all entries."""
        return self._total

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The entry, now the most recently used."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Add or replace the entry, now the most recently used; evict until all fit."""
        self.pop(key)
        self._entries[key] = value
        self._total += self._size(value)
        while self._total > self._limit:
            oldest = next(iter(self._entries))
            self.pop(oldest)
            self._on_evict(oldest)

    def pop(self, key: K) -> V | None:
        """Remove the entry without calling on_evict."""
        value = self._entries.pop(key, None)
        if value is not None:
            self._total -= self._size(value)
        return value
