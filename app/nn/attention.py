"""Attention functions without a cache, and the types of the functions that a cache returns.

Letters in shapes: M tokens, B rows, H query heads that share G key heads, R = H / G, d head size, L key positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Attention of new tokens, whose keys and values it also writes to its cache:
# (layer, q (M, H, d), k (M, G, d), v (M, G, d)) -> (M, H * d). q and k are already rotated by RoPE.
PrefillAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# Attention of one new token per row, from the output of the qkv product, RoPE included:
# (layer, heads (M, H + 2 G, d), cos, sin) -> (M, H * d).
DecodeAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# Attention of queries to keys and values that are already in the cache: (layer, q (M, H, d)) -> (M, H * d).
CachedAttention = Callable[[int, Tensor], Tensor]


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """Grouped-query attention: q (..., G, R, d) over k, v (..., G, L, d), where R queries share a key head.

    hidden (..., R, L) bool marks the positions that a query does not attend to. Scores and softmax are float32.
    """
    scores = _products(q, k) * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """q (..., M, d), k (..., L, d) -> the products q k^T (..., M, L) in float32, for inputs of any precision.

    In bfloat16 the products would lose 16 of 24 bits before the softmax. A CUDA device keeps the float32 sums of a
    bfloat16 product; elsewhere the inputs are converted.
    """
    if q.is_cuda and q.dtype == k.dtype != torch.float32 and q.shape[:-2] == k.shape[:-2]:
        flat = torch.bmm(q.flatten(0, -3), k.flatten(0, -3).transpose(1, 2), out_dtype=torch.float32)
        return flat.view(*q.shape[:-1], k.shape[-2])
    return torch.matmul(q.float(), k.float().transpose(-1, -2))


def bidirectional_attention(kv_heads: int, scale: float | None) -> PrefillAttention:
    """Attention of an encoder: all tokens of one sequence attend to each other. Keeps no cache.

    scale: None = head_dim ** -0.5.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, heads, size = q.shape
        share = heads // kv_heads
        keys, values = (part.transpose(0, 1).repeat_interleave(share, 0)[None] for part in (k, v))
        attended = functional.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, scale=scale)
        return attended[0].transpose(0, 1).reshape(count, heads * size)

    return attend
