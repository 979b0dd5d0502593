"""Rotary position embeddings (RoPE; Su et al. 2021) in the half-split order of Llama."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """The parameters of RoPE.

    kind "default": the frequencies of the original paper. kind "linear": every frequency is divided by `factor`. kind
    "llama3": low frequencies are divided by `factor`, high frequencies do not change, and frequencies between two
    limits are interpolated. `low_freq_factor`, `high_freq_factor` and `original_positions` define the two limits.
    """

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def frequencies(self, head_dim: int) -> Tensor:
        """Return the angle in radians by which each pair of values rotates from one position to the next.

        The result is (head_dim / 2,) float32.

        The formula for the kind "llama3" was published with Llama 3.1.
        """
        base = 1.0 / (self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
        if self.kind == "default":
            return base
        if self.kind == "linear":
            return base / self.factor
        wavelength = 2 * math.pi / base
        longest = self.original_positions / self.low_freq_factor
        shortest = self.original_positions / self.high_freq_factor
        share = (self.original_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blend = (1 - share) * base / self.factor + share * base
        scaled = torch.where(wavelength > longest, base / self.factor, base)
        return torch.where((wavelength >= shortest) & (wavelength <= longest), blend, scaled)


def read_rope(raw: Mapping[str, Any], default_theta: float) -> Rope:
    """Read the parameters of RoPE from a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling`.

    Raises ValueError for an unsupported kind.
    """
    values: dict[str, Any] = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(values.get("rope_theta") or raw.get("rope_theta") or default_theta)
    kind = values.get("rope_type") or values.get("type") or "default"
    if float(values.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is not supported")
    match kind:
        case "default":
            return Rope(theta)
        case "linear":
            return Rope(theta, "linear", float(values["factor"]))
        case "llama3":
            return Rope(
                theta,
                "llama3",
                float(values["factor"]),
                float(values["low_freq_factor"]),
                float(values["high_freq_factor"]),
                int(values.get("original_max_position_embeddings") or raw.get("max_position_embeddings") or 8192),
            )
    raise ValueError(f"unknown rope_type {kind!r}")


def rotary(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines for positions (M,), each (M, 1, d) float32, for `apply_rotary`.

    The sines of the first d/2 elements are negated, so that `apply_rotary` needs no negation.
    """
    angles = positions[:, None].to(torch.float32) * frequencies  # (M, d/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None]


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (M, H, d), where elements i and i + d/2 form a pair. cos, sin (M, 1, d): from `rotary`.

    Computes in float32, and converts the result to the dtype of x.
    """
    x32 = x.float()
    swapped = x32.roll(x.shape[-1] // 2, -1)  # `roll` takes half the time of a negation and a concatenation
    return (x32 * cos).add_(swapped.mul_(sin)).to(x.dtype)
