"""Rotary position embeddings (RoPE; Su et al. 2021) in the half-split order of Llama. Does not depend on any model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """Parameters of RoPE.

    kind "linear" divides every frequency by `factor`. kind "llama3" divides low frequencies by `factor`, keeps high
    frequencies, and interpolates between the two limits that the other fields define.
    """

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians per position, (head_dim / 2,) float32. The "llama3" formula is the one published with Llama 3.1."""
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
    """Read RoPE from `rope_parameters`, or from `rope_theta` and `rope_scaling`, of a config.json.

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
    """Return cos and sin for positions (M,), each (M, 1, d) float32. They broadcast to heads (M, H, d).

    The first half of the sines is negative, so that `apply_rotary` needs no negation.
    """
    angles = positions[:, None].to(torch.float32) * frequencies  # (M, d/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None]


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (M, H, d): element i forms a pair with element i + d/2. cos, sin (M, 1, d) come from `rotary`.

    Computes in float32 and returns x's dtype.
    """
    x32 = x.float()
    swapped = x32.roll(x.shape[-1] // 2, -1)  # one call takes half the time of a negation and a cat
    return (x32 * cos).add_(swapped.mul_(sin)).to(x.dtype)
