"""A captured step launches at most the numbers of kernels in docs/benchmarks.md. Every launch more takes time."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch

from app.nn.kernels.sets import Kernels
from bench.launches import META, counted_kernels, csm_step, dia_step, launches

pytestmark = pytest.mark.unit


def totals(counts: dict[str, Counter[str]]) -> dict[str, int]:
    return {name: count.total() for name, count in counts.items()}


def test_frame_of_the_full_size_csm() -> None:
    frame, codec = csm_step("full", 1)
    found = totals(launches(frame))
    assert found["triton"] <= 1419
    assert found["triton-linear"] <= 927
    assert found["persistent"] <= 229
    parts = totals(launches(codec))
    assert parts["torch"] <= 218
    assert parts["triton-linear"] <= 120


@pytest.mark.parametrize("release", ["0626", "v0.1"])
def test_step_of_the_full_size_dia(release: str) -> None:
    found = totals(launches(dia_step("full", 1, release)))
    assert found["triton"] <= 260
    assert found["triton-linear"] <= 168


def test_views_and_allocations_are_no_launches_and_triton_is_left_as_it_was() -> None:
    x = torch.empty(4, 8, device=META)
    before = sys.modules.get("triton")

    def step(kernels: Kernels) -> None:
        y = torch.empty_like(x)
        y.view(8, 4)[2:].t().copy_(x.view(4, 8).reshape(8, 4)[2:].t().to(x.dtype))
        kernels.gate(x + 1, "silu")

    fused = Counter({"copy_": 1, "add": 1, "triton gated": 1})
    assert launches(step) == {
        "torch": Counter(copy_=1, add=1, silu=1, mul=1),
        "triton": fused,
        "triton-linear": fused,
        "persistent": fused,
    }
    assert sys.modules.get("triton") is before


def test_counts_are_added_to_the_given_counter() -> None:
    counts: Counter[str] = Counter()
    x = torch.empty(2, 64, device=META)
    with counted_kernels(counts) as sets:
        for kernels in sets():
            kernels.add_rms_norm(x, x, x[0], 1e-5)
    assert counts == {"triton add_norm": 3}  # of all sets of Triton
