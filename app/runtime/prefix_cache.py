"""The prefix cache: keys and values (KV cache) of voice prompts, so that a prompt is prefilled only once.

The key is a digest of all that the keys and values depend on: the model, and each segment's speaker, text and codes.
"""

from __future__ import annotations

from torch import Tensor

from app.lru import LRU

Prefix = tuple[Tensor, ...]  # k, v (layers, G, P, d); of each part, where the layers are split over devices


class PrefixCache:
    """The most recently used prefixes, up to `limit_bytes`. Used from the engine's thread only."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: LRU[bytes, Prefix] = LRU(limit_bytes, size=_bytes)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Prefix | None:
        return self._kept.get(key)

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Keep it; the least recently used go. One that is larger than the whole limit is not kept."""
        if key not in self._kept and _bytes(prefix) <= self._limit_bytes:
            self._kept.put(key, prefix)


def _bytes(prefix: Prefix) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in prefix)
