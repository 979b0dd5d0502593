"""Helpers for the rows of any runner: noise for a step, batching on the CPU, the warm-up utterance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from app.runtime.sampling import ReferenceNoise, exponential_noise, to_int64
from app.types import Sampling, SpokenLine, Utterance, Voice

if TYPE_CHECKING:
    from app.runtime.runner import Runner


class DrawState(Protocol):
    """What the noise of one row depends on."""

    @property
    def seed(self) -> int: ...

    @property
    def draws(self) -> int:
        """Steps drawn so far: the noise counter."""


def step_noise(rows: Sequence[DrawState], *, codebooks: int, codes: int, device: torch.device) -> Tensor:
    """Noise for one step of n rows -> (n, codebooks, codes) float32."""
    seeds = torch.tensor([to_int64(row.seed) for row in rows], device=device)
    draws = torch.tensor([row.draws for row in rows], device=device)
    return exponential_noise(seeds, draws, codebooks, codes)


def reference_noise_of(seed: int, *, enabled: bool) -> ReferenceNoise | None:
    """The noise that reference implementations draw for this seed; None if it is not enabled."""
    return ReferenceNoise(to_int64(seed)) if enabled else None


def must_step_one_by_one(device: torch.device, dtype: torch.dtype, *, quantized: bool) -> bool:
    """Whether each row needs its own matrix product, so that its codes do not depend on the other rows in the batch.

    On a CPU, a float32 product of eight rows differs from a product of one row in the last bits, and sometimes this
    changes a code. The purpose of float32 is exact results, and small products gain little from batching (1.5 times at
    4 rows). In packed bfloat16 and int8 products, rows do not depend on each other.
    """
    return device.type == "cpu" and not quantized and dtype == torch.float32


def begin_warm_up(runner: Runner, text: str, max_seconds: float) -> None:
    """Admit an utterance into row 0 and prefill it. The caller steps the row and releases it."""
    line = SpokenLine(text, 0, Voice("warm-up", "warm-up", "none"))
    runner.admit(0, Utterance((line,), Sampling(), 0, max_seconds))
    while not runner.prefill(0):
        pass
