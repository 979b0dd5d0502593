from __future__ import annotations

import pytest
import torch

from app.runtime.prefix_cache import PrefixCache

pytestmark = pytest.mark.unit


def prefix(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(size), torch.zeros(size)  # 8 bytes a unit


def test_least_recently_used_prefix_is_evicted() -> None:
    cache = PrefixCache(100 * 8)
    cache.put(b"a", prefix(50))
    cache.put(b"b", prefix(40))
    assert cache.get(b"a") is not None
    cache.put(b"c", prefix(30))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.get(b"c") is not None
    cache.put(b"huge", prefix(101))
    assert cache.get(b"huge") is None
    assert len(cache) == 2
