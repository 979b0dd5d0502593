"""The prefix cache stores the KV cache of voice prompts, so that a prompt is prefilled only once.

An entry is found by a digest of the model and of each prompt segment's speaker, text and codes.
"""

from __future__ import annotations

from torch import Tensor

from app.lru import LRU

Prefix = tuple[Tensor, ...]  # k, v (layers, G, P, d); if the layers are split over devices, k and v of each part


class PrefixCache:
    """Keeps the most recently used prefixes, up to `limit_bytes` in total. Only the engine's thread uses it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._prefixes: LRU[bytes, Prefix] = LRU(limit_bytes, size=_bytes)

    def __len__(self) -> int:
        return len(self._prefixes)

    def get(self, key: bytes) -> Prefix | None:
        """Return the prefix with this digest, or None if it is not in the cache."""
        return self._prefixes.get(key)

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Add a prefix and remove the least recently used ones. A prefix larger than the limit is not added."""
        if key not in self._prefixes and _bytes(prefix) <= self._limit_bytes:
            self._prefixes.put(key, prefix)


def _bytes(prefix: Prefix) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in prefix)
