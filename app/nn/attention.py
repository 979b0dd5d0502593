"""Attention functions that use no cache, and the types of the attention functions that a KV cache returns.

Letters in shapes: M tokens, B rows, H query heads, G key heads, R = H / G query heads for each key head, d head size, L
key positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Attention of new tokens: (layer, q (M, H, d), k (M, G, d), v (M, G, d)) -> (M, H * d). The function also writes k and
# v into the cache. The caller has applied RoPE to q and k.
PrefillAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# Attention of one new token of each row: (layer, heads (M, H + 2 G, d), cos, sin) -> (M, H * d). `heads` contains the
# queries, keys and values of the tokens. The function applies RoPE and writes the keys and values into the cache.
DecodeAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# Attention of queries to keys and values that are already in the cache: (layer, q (M, H, d)) -> (M, H * d).
CachedAttention = Callable[[int, Tensor], Tensor]
# The same with RoPE of the queries: (layer, q (M, H, d), cosines and sines (M, 1, d) or None) -> (M, H * d). None = no
# RoPE.
TurnedAttention = Callable[[int, Tensor, "tuple[Tensor, Tensor] | None"], Tensor]


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """Compute grouped-query attention: q (..., G, R, d), k, v (..., G, L, d) -> (..., G, R, d).

    hidden (..., R, L) bool: True = the query does not attend to this position. Scores and softmax are float32.
    """
    scores = _products(q, k) * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Compute masked attention: q (B, T, H, d), k, v (B, G, L, d), mask (B, 1, T, L) bool -> (B * T, H * d)."""
    _, _, heads, size = q.shape
    share = heads // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    attended = functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask)
    return attended.transpose(1, 2).reshape(-1, heads * size)


def ring_mask(positions: Tensor, used: int, ring: int, window: int) -> Tensor:
    """Return whether tokens attend to the entries of a ring buffer: (B, 1, T, used) bool.

    positions (B, T) int64: the consecutive positions of the tokens, whose keys are in the buffer. The key of position p
    is in entry p modulo `ring`. used: the number of entries that attention reads. A token attends to the `window`
    positions up to its own position.
    """
    last, at = positions[:, -1:], positions[..., None]
    # for each entry, the position of its key; negative = no key yet
    cached = last - (last - torch.arange(used, device=positions.device)) % ring  # (B, L)
    cached = cached[:, None, :]
    return ((cached >= 0) & (cached <= at) & (cached > at - window))[:, None]


def _products(q: Tensor, k: Tensor) -> Tensor:
    """Return the products q k^T (..., M, L) in float32. q (..., M, d) and k (..., L, d) may have any dtype.

    A product in bfloat16 would be rounded to the 8 significant bits of bfloat16 before the softmax. A CUDA device can
    return the result of a bfloat16 product in float32. On other devices, q and k are converted to float32.
    """
    # `bmm` accepts `out_dtype`, the dtype of its result, only on CUDA.
    wide_sums = q.is_cuda and torch.version.hip is None
    if wide_sums and q.dtype == k.dtype != torch.float32 and q.shape[:-2] == k.shape[:-2]:
        flat = torch.bmm(q.flatten(0, -3), k.flatten(0, -3).transpose(1, 2), out_dtype=torch.float32)
        return flat.view(*q.shape[:-1], k.shape[-2])
    return torch.matmul(q.float(), k.float().transpose(-1, -2))


def bidirectional_attention(kv_heads: int, scale: float | None) -> PrefillAttention:
    """Return an attention function that uses no cache. Each token of a sequence attends to all tokens.

    scale: factor of the attention scores; None = head_dim ** -0.5.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, heads, size = q.shape
        share = heads // kv_heads
        keys, values = (part.transpose(0, 1).repeat_interleave(share, 0)[None] for part in (k, v))
        attended = functional.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, scale=scale)
        return attended[0].transpose(0, 1).reshape(count, heads * size)

    return attend
