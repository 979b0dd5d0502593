"""Functions for the rows of any runner: noise, whether rows are computed one by one, and the warm-up utterance."""

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
    """The values that determine the noise of one row."""

    @property
    def seed(self) -> int: ...

    @property
    def draws(self) -> int:
        """The number of steps in which the row has drawn codes. The noise of a step depends on this number."""


def step_noise(rows: Sequence[DrawState], *, codebooks: int, codes: int, device: torch.device) -> Tensor:
    """Return the noise for one step of n rows: (n, codebooks, codes) float32."""
    seeds = torch.tensor([to_int64(row.seed) for row in rows], device=device)
    draws = torch.tensor([row.draws for row in rows], device=device)
    return exponential_noise(seeds, draws, codebooks, codes)


def reference_noise_of(seed: int, *, enabled: bool) -> ReferenceNoise | None:
    """If `enabled`, return the noise that reference implementations draw for this seed; otherwise None."""
    return ReferenceNoise(to_int64(seed)) if enabled else None


def must_step_one_by_one(device: torch.device, dtype: torch.dtype, *, quantized: bool) -> bool:
    """Return whether each row must be computed alone, so that its codes do not depend on other rows in the batch.

    In float32 on a CPU, the results of a row differ in the last bits between a product of eight rows and a product of
    one row. Sometimes this difference changes a code. Users choose float32 for exact results, so the server accepts
    that single products are slower: for 4 rows, batched products would be 1.5 times as fast. With packed bfloat16
    weights and int8 weights, the result of a row does not depend on other rows.
    """
    return device.type == "cpu" and not quantized and dtype == torch.float32


def begin_warm_up(runner: Runner, text: str, max_seconds: float) -> None:
    """Admit an utterance into row 0 and prefill the row. The caller must then step the row and release it."""
    line = SpokenLine(text, 0, Voice("warm-up", "warm-up", "none"))
    runner.admit(0, Utterance((line,), Sampling(), 0, max_seconds))
    while not runner.prefill(0):
        pass
