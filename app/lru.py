"""LRU: a mapping of limited size that evicts the least recently used entries. All caches in memory use it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
V = TypeVar("V")


class LRU(Generic[K, V]):
    """Keeps entries up to a total size of `limit`, and evicts the least recently used entries. Not thread-safe."""

    def __init__(
        self,
        limit: int,
        *,
        size: Callable[[V], int] = lambda _: 1,
        on_evict: Callable[[K], None] = lambda _: None,
    ) -> None:
        """Create an empty LRU. size: returns the size of a value. on_evict: gets the key of each evicted entry."""
        self._limit = limit
        self._size = size
        self._on_evict = on_evict
        self._entries: OrderedDict[K, V] = OrderedDict()  # least recently used first
        self._total = 0

    @property
    def total(self) -> int:
        """The total size of all entries."""
        return self._total

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """Return the value of an entry, and mark the entry as most recently used; None if no entry has this key."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Add or replace an entry, and evict old entries until the total size is within the limit."""
        self.pop(key)
        self._entries[key] = value
        self._total += self._size(value)
        while self._total > self._limit:
            oldest = next(iter(self._entries))
            self.pop(oldest)
            self._on_evict(oldest)

    def pop(self, key: K) -> V | None:
        """Remove an entry and return its value; None if no entry has this key. Does not call `on_evict`."""
        value = self._entries.pop(key, None)
        if value is not None:
            self._total -= self._size(value)
        return value
