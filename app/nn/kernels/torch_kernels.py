"""The kernels in torch: what every device without Triton runs, and what fused.py is tested against.

All of them can be captured in a CUDA graph: no shape, branch or copy to the host depends on what a tensor holds.
Shapes: B rows, H query heads that share G key heads in order (head h is of group h // (H / G)), d head size, S
positions of a static cache, V codes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from app.nn.attention import grouped_attention
from app.nn.rope import apply_rotary
from app.runtime.sampling import draw, exponential_noise

Activation = Literal["silu", "gelu"]


def decode_attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, length: int, scale: float) -> Tensor:
    """One query token of each row over what its row has kept.

    q (B, H, d); k, v (B, G, S, d) views of a cache, d contiguous; positions (B,) int64 on the device: row b sees cache
    positions 0..positions[b], which are below `length`; what comes of a row that stands further back is nothing to rely
    on. Of the cache positions 0..length-1 are read, so they must hold numbers. -> (B, H * d) in q's dtype; scores,
    softmax in float32.
    """
    rows, heads, size = q.shape
    groups = k.shape[1]
    keys, values = k[:, :, :length], v[:, :, :length]
    queries = q.to(k.dtype).reshape(rows, groups, heads // groups, size)  # (B, G, R, d)
    hidden = torch.arange(length, device=q.device) > positions[:, None]  # (B, L)
    seen = grouped_attention(queries, keys, values, hidden[:, None, None], scale)
    return seen.reshape(rows, heads * size).to(q.dtype)


def step_attention(
    heads: Tensor, cos: Tensor, sin: Tensor, k: Tensor, v: Tensor, positions: Tensor, length: int, scale: float
) -> Tensor:
    """All that lies between a layer's qkv product and its output product, for one new token of each row.

    heads (B, H + 2 G, d): the token's queries, keys and values as the product gives them. Queries and keys are turned
    as by `apply_rotary`; keys and values are written into the cache k, v (B, G, S, d) at positions (B,); then as
    `decode_attention`. -> (B, H * d) in heads' dtype.
    """
    groups = k.shape[1]
    count = heads.shape[1] - 2 * groups
    turned = apply_rotary(heads[:, : count + groups], cos, sin)
    rows = torch.arange(len(heads), device=heads.device)
    k[rows, :, positions] = turned[:, count:].to(k.dtype)
    v[rows, :, positions] = heads[:, count + groups :].to(v.dtype)
    return decode_attention(turned[:, :count], k, v, positions, length, scale)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual (M, D), weight (D,), of one dtype -> (normed, summed): the sum, and its RMSNorm."""
    summed = x + residual
    return functional.rms_norm(summed, (summed.shape[-1],), weight, eps), summed


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """gate_up (M, 2 F): the gate's half, then the other -> activation(gate) * up (M, F); rounded after both."""
    first, up = gate_up.chunk(2, dim=-1)
    return (functional.silu(first) if activation == "silu" else functional.gelu(first)) * up


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    frames: Tensor,
    codebook: int,
    codebooks: int,
    banned: Tensor,
    *,
    fast_path: bool = False,
) -> Tensor:
    """A code for each row, as `Sampler.pick` of runtime/sampling.py draws it, with knobs on the device.

    logits (n, V) float32, of `codebook` out of `codebooks`; or (n, C, V), of C codebooks from `codebook` on.
    temperature (n,) float32, 0 = greedy; top_k (n,) int64, 0 = off; top_p (n,) float32, 1 = off; seeds, frames (n,)
    int64 name the noise. banned: a code that may not be drawn, -1 = none; int64 of the shape of what is returned.
    few: as `draw` may be told. -> codes (n,) or (n, C) int64. Where scores are equal at the edge of top-k or top-p all
    of them stay.
    Raises ValueError for a codebook that is not there.
    """
    channels = logits.shape[1] if logits.dim() == 3 else 1
    if not 0 <= codebook <= codebooks - channels:
        raise ValueError(f"codebooks {codebook}..{codebook + channels - 1} of {codebooks}")
    count, size = logits.shape[0], logits.shape[-1]
    codes = torch.arange(size, device=logits.device)
    scores = logits.reshape(count, channels, size).masked_fill(codes == banned.reshape(count, channels, 1), -math.inf)
    noise = exponential_noise(seeds, frames, channels, size, first=codebook)
    return draw(scores, temperature, top_k, top_p, noise, fast_path=fast_path).view(logits.shape[:-1])
