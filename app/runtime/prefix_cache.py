"""Keys and values of voice prompts, kept so that a voice is read once and then only copied. Knows no model.

The key is a digest of all that the keys and values depend on: the model, and each segment's speaker, text and codes.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

Prefix = tuple[Tensor, ...]  # k, v (layers, G, P, d); of each part, where the layers are split over devices


class PrefixCache:
    """The most recently used prefixes, up to `limit_bytes`. Used from the engine's thread only."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._kept: OrderedDict[bytes, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Prefix | None:
        prefix = self._kept.get(key)
        if prefix is not None:
            self._kept.move_to_end(key)
        return prefix

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Keep it; the least recently used go. One that is larger than the whole limit is not kept."""
        size = _bytes(prefix)
        if key in self._kept or size > self._limit_bytes:
            return
        self._kept[key] = prefix
        self._bytes += size
        while self._bytes > self._limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _bytes(oldest)


def _bytes(prefix: Prefix) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in prefix)
