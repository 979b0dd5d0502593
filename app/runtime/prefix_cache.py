"""The prefix cache keeps the keys and values of voice prompts, so that a voice prompt is prefilled only once.

The key of an entry is a digest of the model and of the prompt: the speaker, text and codes of each prompt segment. An
engine may also keep the state of a row at the end of an utterance, so that a later utterance can continue from this
state.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from app.lru import LRU

# The keys and values of a prompt: k, v (layers, heads, positions, head_dim). If the model's layers are on several
# devices, the tuple has k and v for each device. The state of a row also contains other tensors.
Prefix = tuple[Tensor, ...]


class PrefixCache:
    """Keeps the most recently used prefixes, up to `limit_bytes` in total. Only the engine's thread may use a cache."""

    def __init__(self, limit_bytes: int, on_evict: Callable[[bytes], None] = lambda _: None) -> None:
        """on_evict: called with the key of each prefix that is removed because the cache is full."""
        self._limit_bytes = limit_bytes
        self._prefixes: LRU[bytes, Prefix] = LRU(limit_bytes, size=_bytes, on_evict=on_evict)

    def __len__(self) -> int:
        return len(self._prefixes)

    def get(self, key: bytes) -> Prefix | None:
        """Return the prefix with this digest, or None if the cache does not contain the prefix."""
        return self._prefixes.get(key)

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Add a prefix. If the cache is full, remove the least recently used prefixes.

        Does not add a prefix that is larger than `limit_bytes`.
        """
        if key not in self._prefixes and _bytes(prefix) <= self._limit_bytes:
            self._prefixes.put(key, prefix)

    def pop(self, key: bytes) -> None:
        """Remove a prefix, if the cache contains it."""
        self._prefixes.pop(key)


def _bytes(prefix: Prefix) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in prefix)
