"""The torch kernels. Devices without Triton use these kernels, and tests compare the Triton kernels with these kernels.

A CUDA graph can capture these kernels, because no shape, branch or copy to the host depends on the values of a tensor.
Letters in shapes: B rows, H query heads, G key heads (query head h uses key head h // (H / G)), d head size, S
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
    """Compute attention: one token of each row attends to the cache of this row.

    q (B, H, d). k, v (B, G, S, d): views of a cache with contiguous d. positions (B,) int64 on the device: row b
    attends to cache positions 0..positions[b]. Returns (B, H * d) in the dtype of q. Scores and softmax are float32.

    All cache positions below `length` are read, so they must contain finite values. If the position of a row is not
    below `length`, the result of the row is undefined.
    """
    rows, heads, size = q.shape
    groups = k.shape[1]
    keys, values = k[:, :, :length], v[:, :, :length]
    queries = q.to(k.dtype).reshape(rows, groups, heads // groups, size)  # (B, G, R, d)
    hidden = torch.arange(length, device=q.device) > positions[:, None]  # (B, L)
    attended = grouped_attention(queries, keys, values, hidden[:, None, None], scale)
    return attended.reshape(rows, heads * size).to(q.dtype)


def step_attention(
    heads: Tensor, cos: Tensor, sin: Tensor, k: Tensor, v: Tensor, positions: Tensor, length: int, scale: float
) -> Tensor:
    """Apply RoPE, write to the cache, and compute self-attention for one new token of each row.

    heads (B, H + 2 G, d): the queries, keys and values of each token. Applies RoPE to queries and keys, writes keys and
    values into the cache k, v (B, G, S, d) at positions (B,), and computes `decode_attention`. Returns (B, H * d) in
    the dtype of `heads`.
    """
    groups = k.shape[1]
    count = heads.shape[1] - 2 * groups
    rotated = apply_rotary(heads[:, : count + groups], cos, sin)
    rows = torch.arange(len(heads), device=heads.device)
    k[rows, :, positions] = rotated[:, count:].to(k.dtype)
    v[rows, :, positions] = heads[:, count + groups :].to(v.dtype)
    return decode_attention(rotated[:, :count], k, v, positions, length, scale)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return rms_norm(x + residual) and x + residual. x, residual (M, D) and the weight (D,) have the same dtype."""
    summed = x + residual
    return functional.rms_norm(summed, (summed.shape[-1],), weight, eps), summed


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """Compute a gated activation (SwiGLU or GEGLU): gate_up (M, 2 F) -> activation(gate) * up (M, F).

    The first F columns of gate_up are the gate. The result is rounded after the activation and after the product.
    """
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
    """Draw a code for each row, as `Sampler.pick` of runtime/sampling.py does, with parameters on the device.

    logits: (n, V) float32 of the codebook with index `codebook`, or (n, C, V) of C codebooks from `codebook` on.
    codebooks: the number of all codebooks. temperature (n,) float32, 0 = greedy. top_k (n,) int64, 0 = off. top_p (n,)
    float32, 1 = off. seeds, frames (n,) int64: determine the noise. banned int64, with the shape of the result: a code
    that can't be drawn, -1 = none. fast_path: see `draw`. Returns codes (n,) or (n, C) int64. If several codes have the
    same score at the limit of top-k or top-p, all these codes stay. Raises ValueError for a codebook that does not
    exist.
    """
    channels = logits.shape[1] if logits.dim() == 3 else 1
    if not 0 <= codebook <= codebooks - channels:
        raise ValueError(f"codebooks {codebook}..{codebook + channels - 1} do not exist: there are {codebooks}")
    count, size = logits.shape[0], logits.shape[-1]
    codes = torch.arange(size, device=logits.device)
    scores = logits.reshape(count, channels, size).masked_fill(codes == banned.reshape(count, channels, 1), -math.inf)
    noise = exponential_noise(seeds, frames, channels, size, first=codebook)
    return draw(scores, temperature, top_k, top_p, noise, fast_path=fast_path).view(logits.shape[:-1])
