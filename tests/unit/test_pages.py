"""Large pages change where numbers lie, not what they are."""

from __future__ import annotations

import pytest
import torch

from app.runtime.pages import use_large_pages

pytestmark = pytest.mark.unit


def test_numbers_stay() -> None:
    numbers = torch.arange(4 << 20, dtype=torch.int64)  # 32 MiB
    use_large_pages()
    use_large_pages()
    assert torch.equal(numbers, torch.arange(4 << 20, dtype=torch.int64))
