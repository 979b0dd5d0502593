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

from app.nn.attention import grouped_attention, masked_attention, ring_mask
from app.nn.linear import Fp8Weight
from app.nn.rope import apply_rotary
from app.runtime.sampling import TOP_K_FAST, draw, exponential_noise

Activation = Literal["silu", "gelu"]
MAX_TOKENS = 16  # the largest number of tokens in `norm_linear` and `add_linear`


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    length: int,
    scale: float,
    turn: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute attention: one token of each row attends to the cache of this row.

    q (B, H, d). k, v (B, G, S, d): views of a cache with contiguous d. positions (B,) int64 on the device: row b
    attends to cache positions 0..positions[b]. turn: the cosines and sines (B, 1, d) for RoPE of the queries; None = no
    RoPE. Returns (B, H * d) in the dtype of q. Scores and softmax are float32.

    All cache positions below `length` are read, so they must contain finite values. If the position of a row is not
    below `length`, the result of the row is undefined.
    """
    rows, heads, size = q.shape
    groups = k.shape[1]
    if turn is not None:
        q = apply_rotary(q, *turn)
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


def window_attention(
    heads: Tensor, cos: Tensor, sin: Tensor, k: Tensor, v: Tensor, done: Tensor, window: int
) -> Tensor:
    """Apply RoPE, write to a ring buffer, and compute sliding-window attention of T new tokens of each row.

    heads (B * T, H + 2 G, d) float32: the queries, keys and values of the tokens, in the order (row, token). cos, sin
    (B * T, 1, d): from `rotary`. k, v (B, G, R, d) float32: the ring buffers; the key of position p is in entry p
    modulo R, and R is at least window + T. done (B,) int64: the position of the first new token of each row. A token
    attends to `window` positions up to its own position. Returns (B * T, H * d).
    """
    rows, groups, ring, size = k.shape
    tokens, count = len(heads) // rows, heads.shape[1] - 2 * groups
    at = done[:, None] + torch.arange(tokens, device=heads.device)
    index, places = torch.arange(rows, device=heads.device)[:, None], at % ring
    rotated = apply_rotary(heads[:, : count + groups], cos, sin)
    k.transpose(1, 2)[index, places] = rotated[:, count:].view(rows, tokens, groups, size)
    v.transpose(1, 2)[index, places] = heads[:, count + groups :].view(rows, tokens, groups, size)
    return masked_attention(rotated[:, :count].view(rows, tokens, count, size), k, v, ring_mask(at, ring, ring, window))


def add_layer_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return layer_norm(x + update) and x + update. x, update (M, D); None = nothing is added. weight, bias (D,)."""
    summed = x if update is None else x + update
    return functional.layer_norm(summed, (summed.shape[-1],), weight, bias, eps), summed


def conv_windows(x: Tensor, past: Tensor, new: Tensor, kernel: int, dilation: int, *, elu: bool) -> Tensor:
    """Return the windows of a causal convolution with stride 1 over the inputs `past` and x, and store the next `past`.

    x (B, T, C) float32: the new inputs; elu: True = ELU is applied to them first. past (B, R, C): the R = (kernel - 1)
    * dilation inputs before x, after ELU. new (B, R, C): gets the last R inputs. Returns (B, T, kernel * C).
    """
    whole = torch.cat((past, functional.elu(x) if elu else x), dim=1)
    new.copy_(whole[:, -past.shape[1] :])
    rows, length, channels = whole.shape
    strides = length * channels, channels, dilation * channels, 1
    return whole.as_strided((rows, x.shape[1], kernel, channels), strides).reshape(rows, x.shape[1], -1)


def overlap_add(spread: Tensor, overlap: Tensor, new: Tensor, bias: Tensor | None) -> Tensor:
    """Return the outputs of a causal transposed convolution with kernel 2 * s and stride s, and store the next overlap.

    spread (B, T, 2, s, C) float32, with any strides: what each input adds to two successive blocks of s outputs.
    overlap (B, s, C): what the input before adds to the first block. new (B, s, C): gets what the last input adds to
    the block after the last one. Returns (B, T * s, C).
    """
    before = torch.cat((overlap[:, None], spread[:, :-1, 1]), dim=1)
    new.copy_(spread[:, -1, 1])
    out = (spread[:, :, 0] + before).flatten(1, 2)
    return out if bias is None else out + bias


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """Compute a gated activation (SwiGLU or GEGLU): gate_up (M, 2 F) -> activation(gate) * up (M, F).

    The first F columns of gate_up are the gate. The result is rounded after the activation and after the product.
    """
    first, up = gate_up.chunk(2, dim=-1)
    return (functional.silu(first) if activation == "silu" else functional.gelu(first)) * up


def norm_linear(
    x: Tensor,
    update: Tensor | None,
    norm: Tensor,
    eps: float,
    weight: Tensor | Fp8Weight,
    activation: Activation | None = None,
    *,
    wide: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return linear(rms_norm(x + update)) and x + update.

    x (M, D), M <= MAX_TOKENS. update (parts, M, D) float32: the sum of its parts is added to x; None = nothing is
    added. norm (D,) and the weight (N, D) have the dtype of x, or the weight is in fp8. If `activation` is set, `gate`
    computes the result from the N products. The result is (M, N), with `activation` (M, N / 2). It is rounded to the
    dtype of x; wide: True = it is then converted to float32.
    """
    if update is not None:
        x = x + update.sum(dim=0).to(x.dtype)
    y = functional.linear(functional.rms_norm(x, (x.shape[-1],), norm, eps), _plain(weight, x.dtype))
    if activation is not None:
        y = gate(y, activation)
    return (y.float() if wide else y), x


def add_linear(
    x: Tensor,
    weight: Tensor | Fp8Weight,
    residual: Tensor,
    *,
    every: int = 1,
    constant: Tensor | None = None,
    whole: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return linear(x) + residual as two tensors: (M, N), and an update for `norm_linear` or None.

    x (M / every, D) and the weight (N, D), which may be in fp8. residual (M, N), M <= MAX_TOKENS. Row t of x belongs to
    token `every` * t. For all other tokens, `constant` (N,) or (M / every, N) replaces the product: its row t belongs
    to the tokens from `every` * t + 1 on. whole: True = there is no update.
    """
    del whole  # there is never an update: only kernels that divide their sums into parts return one
    y = functional.linear(x, _plain(weight, x.dtype))
    if every > 1:
        assert constant is not None  # noqa: S101 - there are tokens without a product
        fixed = constant.expand(len(x), -1)
        y = torch.stack((y, *[fixed] * (every - 1)), dim=1).view(residual.shape)
    return y + residual, None


def _plain(weight: Tensor | Fp8Weight, dtype: torch.dtype) -> Tensor:
    return weight.rounded(dtype) if isinstance(weight, Fp8Weight) else weight


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
    table: Tensor | None = None,
    embedded: Tensor | None = None,
) -> Tensor:
    """Draw a code for each row, as `Sampler.pick` of runtime/sampling.py does, with parameters on the device.

    logits: (n, V) float32 of the codebook with index `codebook`, or (n, C, V) of C codebooks from `codebook` on.
    codebooks: the number of all codebooks. temperature (n,) float32, 0 = greedy. top_k (n,) int64, 0 = off. top_p (n,)
    float32, 1 = off. seeds, frames (n,) int64: determine the noise. banned int64, with the shape of the result: a code
    that can't be drawn, -1 = none. fast_path: see `draw`. Returns codes (n,) or (n, C) int64. If several codes have the
    same score at the limit of top-k or top-p, all these codes stay. table (V, D): the embeddings of the codes; if it is
    given, `embedded` (n, D) of the same dtype gets the embeddings of the drawn codes. Raises ValueError for a codebook
    that does not exist.
    """
    channels = logits.shape[1] if logits.dim() == 3 else 1
    if not 0 <= codebook <= codebooks - channels:
        raise ValueError(f"codebooks {codebook}..{codebook + channels - 1} do not exist: there are {codebooks}")
    count, size = logits.shape[0], logits.shape[-1]
    codes = torch.arange(size, device=logits.device)
    scores = logits.reshape(count, channels, size).masked_fill(codes == banned.reshape(count, channels, 1), -math.inf)
    noise = exponential_noise(seeds, frames, channels, size, first=codebook)
    drawn = draw(scores, temperature, top_k, top_p, noise, fast_path=fast_path).view(logits.shape[:-1])
    if table is not None and embedded is not None:
        embedded.copy_(functional.embedding(drawn, table))
    return drawn


def guided_sample(
    logits: Tensor,
    scales: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    frames: Tensor,
    suppressed: Tensor,
    end: int,
    end_factor: float | None,
    *,
    fast_path: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a code for each row and channel with classifier-free guidance, from the scores of `guided_scores`.

    logits (n, 2, C, V) float32: conditional, then unconditional. suppressed (n,) int64: above 0 = the code `end` can't
    be drawn. fast_path: True = no top_k is above TOP_K_FAST. All other parameters are those of `sample` and
    `guided_scores`. Returns the codes (n, C) int64; (n,) bool, whether `end` is the best code of channel 0 if it is not
    suppressed; and (n, C) bool, whether all logits of the channel are finite. The codes of other channels, and whether
    `end` is the best code of such a channel, are undefined.
    """
    conditional, unconditional = logits.unbind(1)
    finite = logits.isfinite().all(dim=-1).all(dim=1)
    most = TOP_K_FAST if fast_path else None
    one = guided_scores(conditional[:, :1], unconditional[:, :1], scales, top_k, most, None, end, end_factor)
    scores = guided_scores(conditional, unconditional, scales, top_k, most, suppressed > 0, end, end_factor)
    # without `end_factor`, `guided_scores` has already applied top_k
    limits = torch.zeros_like(top_k) if end_factor is None else top_k
    noise = exponential_noise(seeds, frames, *scores.shape[1:])
    return draw(scores, temperature, limits, top_p, noise), one[:, 0, end].isfinite(), finite


def guided_scores(
    conditional: Tensor,
    unconditional: Tensor,
    scales: Tensor,
    top_k: Tensor,
    most: int | None,
    suppressed: Tensor | None,
    end: int,
    end_factor: float | None,
) -> Tensor:
    """Return the scores (n, C, V) from which codes are drawn. The score of a code that can't be drawn is -inf.

    conditional, unconditional: logits (n, C, V) float32. scales (n,) float32: 0 = no guidance. top_k (n,) int64: 0 = no
    limit. most: a number that is not below the top_k of any row; None = no such number is known. suppressed (n,) bool:
    rows in which the code `end` is suppressed. Only channel 0 has the code `end`; no channel has the codes after it.
    `end` is a candidate only if it is the best code of channel 0. end_factor: None = the candidates are the codes with
    the k largest guided logits, each with its conditional logit, and if `end` is a candidate, it is the only one. A
    number = all codes are candidates with their guided logits, and the logit of `end` is multiplied by this number.
    """
    guided = conditional + scales[:, None, None] * (conditional - unconditional)
    if suppressed is not None:
        guided[:, 0, end].masked_fill_(suppressed, -torch.inf)
    if end_factor is None:
        kept = _top(guided, top_k, most)
        logits = conditional.masked_fill(~kept, -torch.inf)
        if suppressed is not None:
            logits[:, 0, end].masked_fill_(suppressed, -torch.inf)
    else:
        logits = guided
        logits[:, 0, end] *= end_factor
    logits[:, 1:, end:] = -torch.inf
    logits[:, 0, end + 1 :] = -torch.inf
    ending = logits[:, 0].argmax(dim=-1) == end
    logits[:, 0, end].masked_fill_(~ending, -torch.inf)
    if end_factor is None:
        logits[:, 0, :end].masked_fill_(ending[:, None], -torch.inf)
    return logits


def _top(scores: Tensor, top_k: Tensor, most: int | None) -> Tensor:
    """Return (n, C, V) bool: whether a score is among the k largest of its channel. top_k (n,): k of each row, 0 = all.

    If several codes have the k-th largest score, which occurs in bfloat16, the result includes all these codes. So the
    result does not depend on the top_k of other rows.
    """
    size = scores.shape[-1]
    most = size if most is None else max(1, min(most, size))
    limited = ((top_k > 0) & (top_k < size))[:, None, None]
    best = scores.topk(most, dim=-1).values
    # The top_k of a row without an utterance may have any value, so top_k is limited here.
    at = torch.where(limited, top_k[:, None, None].clamp(max=most), most) - 1  # (n, 1, 1)
    floor = best.gather(-1, at.expand(-1, scores.shape[1], -1)).masked_fill(~limited, -torch.inf)
    return scores >= floor
