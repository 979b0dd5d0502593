"""How a code is drawn from logits: temperature, top-k, top-p per row, and noise that belongs to a request, not a row.

A draw is argmax(p / q) with q exponential: the same law as a multinomial draw. The noise q of token t is a hash of
(seed, frame, codebook, t), so a request draws the same in any row and with any other rows in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from app.types import Sampling

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MAX_UNIFORM = 1 - 2.0**-24  # the largest float32 below 1
_MIN_NOISE = torch.finfo(torch.float32).tiny


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def int64_of(seed: int) -> int:
    """Any integer as the int64 with the same low 64 bits."""
    return _signed(seed)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), wrapping in int64: every input bit reaches every output
    bit."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def exponential_noise(seeds: Tensor, frames: Tensor, codebooks: int, codes: int, *, first: int = 0) -> Tensor:
    """Exponential(1) noise for one frame of each row: seeds, frames (n,) int64 -> (n, codebooks, codes) float32, of the
    codebooks from `first` on. Every value is above 0."""
    row = _mix(_mix(seeds * _signed(_GOLDEN) + 1) + frames * _signed(_GOLDEN))  # (n,)
    begin = first * codes + 1
    count = torch.arange(begin, begin + codebooks * codes, device=seeds.device, dtype=torch.int64)
    bits = _shift(_mix(row[:, None] + count[None, :] * _signed(_GOLDEN)), 40)  # (n, K * C), 24 bits each
    # Without the limit, bits that are all ones round to 1.0, and -log(1) is -0.0.
    uniform = ((bits.to(torch.float32) + 0.5) * 2.0**-24).clamp_(max=_MAX_UNIFORM)
    return -torch.log(uniform).view(-1, codebooks, codes)


def _race(kept: Tensor, noise: Tensor) -> Tensor:
    """Draw a code from each row of scores (..., V) by the exponential race: argmax(p / noise).

    A removed code has the score -inf, so p = 0. It loses even with noise 0: 0 / 0 is NaN, which wins an argmax.
    """
    return (torch.softmax(kept, dim=-1) / noise.clamp(min=_MIN_NOISE)).argmax(dim=-1)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One row's sampling: temperature 0 = greedy, top_k 0 = no limit, top_p 1 = no limit."""

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0

    def overridden_by(self, sampling: Sampling) -> SamplingParams:
        """These parameters, with the values that the request sets instead."""
        return SamplingParams(
            temperature=self.temperature if sampling.temperature is None else sampling.temperature,
            top_k=self.top_k if sampling.top_k is None else sampling.top_k,
            top_p=self.top_p if sampling.top_p is None else sampling.top_p,
        )


class Sampler:
    """The knobs of n rows as tensors, made once for a step."""

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        self._all_greedy = all(k.temperature <= 0 for k in params)
        self._any_greedy = any(k.temperature <= 0 for k in params)
        self._limits = [k.top_k for k in params]
        self._any_top_p = any(k.top_p < 1 for k in params)
        self._temperature = torch.tensor([k.temperature if k.temperature > 0 else 1.0 for k in params], device=device)
        self._greedy = torch.tensor([k.temperature <= 0 for k in params], device=device)
        self._top_p = torch.tensor([k.top_p for k in params], device=device, dtype=torch.float32)

    def pick(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """logits (n, C) float32, noise (n, C) exponential (None where all rows are greedy) -> codes (n,) int64."""
        best = logits.argmax(dim=-1) if self._any_greedy else None
        if self._all_greedy and best is not None:
            return best
        if noise is None:
            raise ValueError("a row that samples needs noise")
        kept = self._cut(logits / self._temperature[:, None])
        drawn = _race(kept, noise)
        return drawn if best is None else torch.where(self._greedy, best, drawn)

    def _cut(self, scores: Tensor) -> Tensor:
        size = scores.shape[-1]
        limits = [k if 0 < k < size else size for k in self._limits]
        deepest = max((k for k in limits if k < size), default=0)
        if deepest:
            # Ties with the k-th score stay, as in both reference implementations.
            tops = scores.topk(deepest, dim=-1).values
            if min(limits) == deepest:
                floor = tops[:, -1:]
            else:
                at = torch.tensor([min(k, deepest) - 1 for k in limits], device=scores.device)
                floor = tops.gather(1, at[:, None])
                free = torch.tensor([k >= size for k in limits], device=scores.device)
                floor = floor.masked_fill(free[:, None], -torch.inf)
            scores = scores.masked_fill(scores < floor, -torch.inf)
        if self._any_top_p:
            ordered, order = scores.sort(dim=-1)
            mass = ordered.softmax(dim=-1).cumsum(dim=-1)
            drop = mass <= (1 - self._top_p)[:, None]
            drop &= (self._top_p < 1)[:, None]
            drop[:, -1] = False
            scores = scores.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
        return scores


TOP_K_FAST = 64  # up to so many, the k-th largest is found without sorting all


def draw(
    scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, noise: Tensor, *, fast_path: bool = False
) -> Tensor:
    """As Sampler.pick, with the knobs (n,) on the device: of fixed shape, and nothing is asked of the host.

    scores, noise (n, C, V) float32 -> codes (n, C) int64. few: no row has a top_p below 1, nor a top_k above TOP_K_FAST
    other than "all"; saves the sort. Where scores are equal at the edge of top-k or top-p all of them stay.
    """
    size = scores.shape[-1]
    greedy = temperature <= 0
    best = scores.argmax(dim=-1)
    scores = scores / temperature.masked_fill(greedy, 1.0)[:, None, None]
    limited = (top_k > 0) & (top_k < size)
    if fast_path:
        most = min(TOP_K_FAST, size)
        # A row that is computed along and does not go on may want any number.
        at = (torch.where(limited, top_k.clamp(max=most), most) - 1)[:, None, None].expand(-1, scores.shape[1], 1)
        floor = scores.topk(most, dim=-1).values.gather(-1, at)
        floor = floor.masked_fill(~limited[:, None, None], -torch.inf)
    else:
        rising = scores.sort(dim=-1).values
        at = (size - torch.where(limited, top_k, size))[:, None, None].expand(-1, scores.shape[1], 1)
        floor = rising.gather(-1, at)
        mass = rising.masked_fill(rising < floor, -torch.inf).softmax(dim=-1).cumsum(dim=-1)
        dropped = (mass <= (1 - top_p)[:, None, None]).sum(dim=-1, keepdim=True).clamp(max=size - 1)
        edge = rising.gather(-1, dropped).masked_fill((top_p >= 1)[:, None, None], -torch.inf)
        floor = torch.maximum(floor, edge)
    kept = scores.masked_fill(scores < floor, -torch.inf)
    drawn = _race(kept, noise)
    return torch.where(greedy[:, None], best, drawn)


def fast_path(params: Sequence[SamplingParams], size: int) -> bool:
    """Whether `draw` may take its fast path: for rows with these parameters over `size` codes."""
    return all(k.top_p >= 1 and (k.top_k <= TOP_K_FAST or k.top_k >= size) for k in params)


class ReferenceNoise:
    """The noise that PyTorch's own multinomial would draw from a generator with this seed: for comparing with other
    implementations at batch 1, on a CPU."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, codes: int) -> Tensor:
        """The next (1, codes) of exponential noise; `codes` is the whole vocabulary, masked codes too.

        PyTorch returns 0 with a chance of 2^-53 per value.
        """
        return torch.empty(1, codes).exponential_(1, generator=self._generator)
