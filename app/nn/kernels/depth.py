"""All steps of a depth decoder in one call, in torch. persistent_launch.py has the Triton kernel for the same call.

A depth decoder is a small transformer that computes the codes of one frame, codebook after codebook. Letters in shapes:
n rows, K codebooks, D width, H query heads, G key heads, d head size, F width of the MLP, C codes that can be drawn, V
codes of a codebook in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from app.nn.kernels.torch_kernels import MAX_TOKENS, Activation, add_linear, norm_linear, sample, step_attention

MAX_DEPTH_ROWS = MAX_TOKENS  # the largest number of rows of `depth_frame`


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer. All are contiguous."""

    attention_norm: Tensor  # (D,)
    qkv: Tensor  # ((H + 2 G) d, D)
    out: Tensor  # (D, H d)
    mlp_norm: Tensor  # (D,)
    gate_up: Tensor  # (2 F, D)
    down: Tensor  # (D, F)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.attention_norm, self.qkv, self.out, self.mlp_norm, self.gate_up, self.down


class DepthWeights:
    """The weights of a depth decoder. All have one dtype and are on one device."""

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        heads: Sequence[Tensor],
        table: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        groups: int,
        scale: float,
        eps: float,
        activation: Activation,
    ) -> None:
        """Keep the weights.

        norm (D,): of the final norm. heads: K - 1 weights (C, D); weight i computes the logits of codebook i + 1. table
        ((K - 1) V, D): the inputs of the codes of the first K - 1 codebooks. cos, sin (at least K, 1, d) float32: from
        `rotary`. groups: G. scale: factor of the scores of attention. eps: of the norms.
        """
        self.layers, self.norm, self.heads, self.table = tuple(layers), norm, tuple(heads), table
        self.cos, self.sin = cos, sin
        self.groups, self.scale, self.eps = groups, scale, eps
        self.activation: Activation = activation
        # int64: the address of each weight, in the order of `tensors`
        self.addresses = torch.tensor([each.data_ptr() for each in self.tensors], device=norm.device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights of the layers, the final norm and the heads."""
        return (*(tensor for layer in self.layers for tensor in layer.tensors), self.norm, *self.heads)

    @property
    def codebooks(self) -> int:
        return len(self.heads) + 1

    @property
    def vocab(self) -> int:
        """V: the number of rows of the table for each codebook."""
        return len(self.table) // len(self.heads)


@dataclass(frozen=True, slots=True)
class DrawParameters:
    """How the codes of each row are drawn. `torch_kernels.sample` describes the parameters (n,)."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor
    frames: Tensor


class DepthFrame(Protocol):
    """The type of the kernel that computes all steps of a depth decoder. See `depth_frame`."""

    def __call__(
        self, weights: DepthWeights, k: Tensor, v: Tensor, x: Tensor, first: Tensor, draws: DrawParameters
    ) -> tuple[Tensor, Tensor]: ...


def depth_frame(
    weights: DepthWeights, k: Tensor, v: Tensor, x: Tensor, first: Tensor, draws: DrawParameters
) -> tuple[Tensor, Tensor]:
    """Compute the codes of one frame of n rows, n <= MAX_DEPTH_ROWS.

    The decoder reads x (n, D) at position 0, and the input of the code of codebook i at position i + 1. From the output
    at position i, head i - 1 computes the logits of codebook i, from which its code is drawn. k, v (layers, n, G, S,
    d), S >= K: the KV cache, which is overwritten. first (n,) int64: the codes of codebook 0. Returns the codes (n, K)
    int64, and the logits (n, C) float32 of the last codebook. They depend on the keys and values of all positions, so a
    NaN in any step makes them NaN. The values of x after the call are undefined.
    """
    rows, c = len(x), weights
    codes, logits = [first], x
    for position in range(c.codebooks):
        at = torch.full((rows,), position, device=x.device)
        cos, sin = (each[position].expand(rows, 1, -1) for each in (c.cos, c.sin))
        for layer, keys, values in zip(c.layers, k, v, strict=True):
            heads, _ = norm_linear(x, None, layer.attention_norm, c.eps, layer.qkv)
            heads = heads.view(rows, -1, k.shape[-1])
            attended = step_attention(heads, cos, sin, keys, values, at, position + 1, c.scale)
            x, _ = add_linear(attended, layer.out, x)
            hidden, _ = norm_linear(x, None, layer.mlp_norm, c.eps, layer.gate_up, c.activation)
            x, _ = add_linear(hidden, layer.down, x)
        if position > 0:
            logits, _ = norm_linear(x, None, c.norm, c.eps, c.heads[position - 1], wide=True)
            codes.append(
                sample(
                    logits,
                    draws.temperature,
                    draws.top_k,
                    draws.top_p,
                    draws.seeds,
                    draws.frames,
                    position,
                    c.codebooks,
                    torch.full_like(first, -1),
                )
            )
        if position + 1 < c.codebooks:
            x = functional.embedding(codes[-1] + position * c.vocab, c.table).to(x.dtype)
    return torch.stack(codes, dim=1), logits
