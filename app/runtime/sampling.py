"""Sampling: draws codes from logits with the temperature, top-k and top-p of each row.

A draw is argmax(p / q), where p are the probabilities and q is exponential noise. This draw has the same distribution
as torch.multinomial(p). The noise of a code is computed from a hash of the seed, the frame, the codebook and the code.
So a request draws the same codes in any row and in any batch.
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


def to_int64(value: int) -> int:
    """Return the int64 with the same low 64 bits as `value`, which may be any integer."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift int64 values right by `bits`, with zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Hash int64 values with the finaliser of splitmix64 (Steele, Lea, Flood 2014). Overflow wraps around."""
    x = (x ^ _shift(x, 30)) * to_int64(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * to_int64(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def exponential_noise(seeds: Tensor, frames: Tensor, codebooks: int, codes: int, *, first: int = 0) -> Tensor:
    """Compute Exponential(1) noise for one frame of each row.

    seeds, frames (n,) int64 -> (n, codebooks, codes) float32, all above 0. first: the index of the first codebook.
    """
    row = _mix(_mix(seeds * to_int64(_GOLDEN) + 1) + frames * to_int64(_GOLDEN))  # (n,)
    begin = first * codes + 1
    count = torch.arange(begin, begin + codebooks * codes, device=seeds.device, dtype=torch.int64)
    bits = _shift(_mix(row[:, None] + count[None, :] * to_int64(_GOLDEN)), 40)  # (n, K * C), 24 bits each
    # Without this limit, 24 bits that are all 1 would round to 1.0, and the noise -log(1.0) would not be above 0.
    uniform = ((bits.to(torch.float32) + 0.5) * 2.0**-24).clamp_(max=_MAX_UNIFORM)
    return -torch.log(uniform).view(-1, codebooks, codes)


def _race(kept: Tensor, noise: Tensor) -> Tensor:
    """Draw one code from scores (..., V): argmax(softmax(scores) / noise).

    A code that top-k or top-p removes has the score -inf, so its probability is 0. The noise has a lower limit above 0:
    otherwise 0 / 0 would give NaN, and argmax would choose the NaN.
    """
    return (torch.softmax(kept, dim=-1) / noise.clamp(min=_MIN_NOISE)).argmax(dim=-1)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The sampling parameters of one row. temperature 0 = greedy, top_k 0 = no limit, top_p 1 = no limit."""

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0

    def overridden_by(self, sampling: Sampling) -> SamplingParams:
        """Return a copy in which the values of `sampling` that are not None replace the values of this object."""
        return SamplingParams(
            temperature=self.temperature if sampling.temperature is None else sampling.temperature,
            top_k=self.top_k if sampling.top_k is None else sampling.top_k,
            top_p=self.top_p if sampling.top_p is None else sampling.top_p,
        )


class Sampler:
    """Draws codes for n rows with the sampling parameters of these rows. Each step creates a new Sampler."""

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        self._all_greedy = all(k.temperature <= 0 for k in params)
        self._any_greedy = any(k.temperature <= 0 for k in params)
        self._limits = [k.top_k for k in params]
        self._any_top_p = any(k.top_p < 1 for k in params)
        self._temperature = torch.tensor([k.temperature if k.temperature > 0 else 1.0 for k in params], device=device)
        self._greedy = torch.tensor([k.temperature <= 0 for k in params], device=device)
        self._top_p = torch.tensor([k.top_p for k in params], device=device, dtype=torch.float32)

    def pick(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """Draw one code for each row: logits (n, V) float32, exponential noise (n, V) -> codes (n,) int64.

        noise may be None if all rows are greedy. Otherwise None raises ValueError.
        """
        best = logits.argmax(dim=-1) if self._any_greedy else None
        if self._all_greedy and best is not None:
            return best
        if noise is None:
            raise ValueError("noise is None, but a row has a temperature above 0")
        kept = self._cut(logits / self._temperature[:, None])
        drawn = _race(kept, noise)
        return drawn if best is None else torch.where(self._greedy, best, drawn)

    def _cut(self, scores: Tensor) -> Tensor:
        """Set the scores of codes outside of top-k or top-p to -inf."""
        size = scores.shape[-1]
        limits = [k if 0 < k < size else size for k in self._limits]
        deepest = max((k for k in limits if k < size), default=0)
        if deepest:
            # If several codes have the k-th largest score, all these codes stay, as in both reference implementations.
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


TOP_K_FAST = 64  # the largest top_k for which `draw` needs no sort of all codes (fast path)


@dataclass(frozen=True, slots=True)
class DrawLimits:
    """The sampling parameters of n rows on the device, in the form that `draw_within` needs: tensors (n, 1, 1).

    The limits are the same for all codebooks of a frame, so they are computed only once for each frame.
    """

    greedy: Tensor
    temperature: Tensor  # the temperature of the row; 1 in a greedy row
    top_k: Tensor
    limited: Tensor  # whether top_k removes codes of the row
    short: Tensor  # whether top_k is 1 to TOP_K_FAST, so that `topk` finds all kept codes
    last: Tensor  # in a short row: index of the last code that top_k keeps, in the order of descending scores
    top_p: Tensor
    whole: Tensor  # whether top_p keeps all codes of the row

    @classmethod
    def of(cls, temperature: Tensor, top_k: Tensor, top_p: Tensor, size: int) -> DrawLimits:
        """Compute the limits from the parameters (n,). size: the number of codes V."""
        temperature, top_k, top_p = (values[:, None, None] for values in (temperature, top_k, top_p))
        greedy, most = temperature <= 0, min(TOP_K_FAST, size)
        limited = (top_k > 0) & (top_k < size)
        short = (top_k > 0) & (top_k <= TOP_K_FAST)
        return cls(
            greedy,
            temperature.masked_fill(greedy, 1.0),
            top_k,
            limited,
            short,
            torch.where(short, top_k.clamp(max=most), most) - 1,
            top_p,
            top_p >= 1,
        )


def draw(
    scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, noise: Tensor, *, fast_path: bool = False
) -> Tensor:
    """Draw codes like Sampler.pick, in a form that a CUDA graph can capture.

    scores, noise (n, C, V) float32 -> codes (n, C) int64. temperature, top_k, top_p: (n,) on the device. fast_path:
    True = do not sort all codes; allowed only if the function `fast_path` returns True for these rows. If several codes
    have the same score at the limit of top-k or top-p, all these codes stay.
    """
    return draw_within(DrawLimits.of(temperature, top_k, top_p, scores.shape[-1]), scores, noise, fast_path=fast_path)


def draw_within(limits: DrawLimits, scores: Tensor, noise: Tensor, *, fast_path: bool = False) -> Tensor:
    """Draw codes like `draw`, from parameters in the form of DrawLimits.

    A row draws the same codes with the fast path and without it.
    """
    best = scores.argmax(dim=-1)
    scores = scores / limits.temperature
    floor = _short_floor(limits, scores)
    if not fast_path:
        floor = torch.where(limits.short, floor, _sorted_floor(limits, scores))
    drawn = _race(scores.masked_fill(scores < floor, -torch.inf), noise)
    return torch.where(limits.greedy[:, 0], best, drawn)


def _short_floor(limits: DrawLimits, scores: Tensor) -> Tensor:
    """Return the lowest score (n, C, 1) that a short row keeps, and -inf for all rows that are not short.

    A row is short if its top_k is 1 to TOP_K_FAST. So this function need not sort all codes.

    top_p keeps a code if the total probability of all codes with a higher score is below top_p. The probabilities are
    computed from all codes that top_k keeps. If codes have the same score as the last kept code, top_k keeps these
    codes, too. So top_k can keep more than TOP_K_FAST codes.
    """
    tops, places = scores.topk(min(TOP_K_FAST, scores.shape[-1]), dim=-1)
    floor = tops.gather(-1, limits.last.expand(-1, scores.shape[1], 1))
    mass = scores.masked_fill(scores < floor, -torch.inf).softmax(dim=-1).gather(-1, places)
    kept = ((mass.cumsum(dim=-1) - mass < limits.top_p) | limits.whole).sum(dim=-1, keepdim=True)
    floor = torch.maximum(floor, tops.gather(-1, (kept - 1).clamp(min=0)))
    return floor.masked_fill(~limits.short, -torch.inf)


def _sorted_floor(limits: DrawLimits, scores: Tensor) -> Tensor:
    """Return the lowest score (n, C, 1) that each row keeps, for any sampling parameters. Sorts all codes."""
    size = scores.shape[-1]
    rising = scores.sort(dim=-1).values
    at = (size - torch.where(limits.limited, limits.top_k, size)).expand(-1, scores.shape[1], 1)
    floor = rising.gather(-1, at)
    mass = rising.masked_fill(rising < floor, -torch.inf).softmax(dim=-1).cumsum(dim=-1)
    dropped = (mass <= 1 - limits.top_p).sum(dim=-1, keepdim=True).clamp(max=size - 1)
    edge = rising.gather(-1, dropped).masked_fill(limits.whole, -torch.inf)
    return torch.maximum(floor, edge)


def fast_path(params: Sequence[SamplingParams], size: int) -> bool:
    """Return whether `draw` may use its fast path for these rows. size: the number of codes V.

    Every row must have a top_k from 1 to TOP_K_FAST, or parameters that remove no code: top_p is 1, and top_k is 0 or
    at least `size`.
    """
    return all(0 < k.top_k <= TOP_K_FAST or (k.top_p >= 1 and not 0 < k.top_k < size) for k in params)


class ReferenceNoise:
    """Draws the same noise as torch.multinomial after torch.manual_seed(seed), for one row on a CPU.

    Tests use this noise to compare codes with the codes of other implementations.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, codes: int) -> Tensor:
        """Draw exponential noise (1, codes). A value is 0 with a probability of 2^-53.

        codes: the size of the whole vocabulary, including masked codes.
        """
        return torch.empty(1, codes).exponential_(1, generator=self._generator)
