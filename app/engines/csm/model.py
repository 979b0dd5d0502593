"""CSM's model: a backbone reads text and frames, and a depth decoder computes the codes of each frame.

Keeps no state except the weights. One frame (codes c0..c[K-1]) of a row whose next input is x, with the projection P,
the audio table E and V rows per codebook in E:
  h  = backbone(x)             the output at the last position, after the final norm
  c0 = pick(head h)
  The depth decoder begins with an empty KV cache. Position 0 reads P h, and position i+1 reads P E[c_i + i V]. The
  output at position i (1..K-1) goes through head i-1 and gives c_i. c[K-1] is never read.
  x' = sum over k of E[c_k + k V]     the row's next input
The table P E is computed once at load, which saves 31 matrix products a frame. Logits cover only the codec's codebook:
codes beyond it have no audio, so they can't be picked. Numbers: SesameAILabs/csm models.py, the published config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.engines.csm import checkpoint
from app.engines.csm.config import CsmConfig
from app.nn.kernels.choice import Kernels
from app.nn.kv_cache import DepthKVCache, KVCache, SplitKVCache
from app.nn.linear import Linear, as_linear
from app.nn.transformer import Block, Stack, StackConfig, Stage
from app.weights.tensors import Checkpoint


class Pick(Protocol):
    """Chooses a code from logits."""

    def __call__(self, codebook: int, logits: Tensor) -> Tensor:
        """logits (n, C) float32 of one codebook -> codes (n,) int64."""


def is_last(frame: Tensor, eos_code: int) -> bool:
    """True for the last frame (K,) of a line: all codes except the last one are EOS.

    This is the rule of transformers' generate. Sesame's own generator also requires the last code to be EOS, so it
    continues after a frame 0..0,x. Here such a frame is audible, and then the line ends.
    """
    return bool((frame[:-1] == eos_code).all())


def is_silent_end(frame: Tensor, eos_code: int) -> bool:
    """True for a frame (K,) of EOS codes only: it is not decoded."""
    return bool((frame == eos_code).all())


class CsmModel(nn.Module):
    """The weights and the computation. The weights are undefined until `load`.

    `stages` place the backbone's layers on several devices. Everything else is on `device`. Depth decoder and heads run
    31 times a frame, so a frame moves only one small tensor (n, D) across each boundary, and one back.
    """

    def __init__(
        self, config: CsmConfig, *, device: torch.device, dtype: torch.dtype, stages: Sequence[Stage] = ()
    ) -> None:
        super().__init__()
        if stages and stages[0].device != device:
            raise ValueError(f"the first of the stages {list(stages)} is not on {device}, as the rest of the model is")
        c = config
        self.config = config
        self.device, self.dtype = device, dtype
        self.text_table = _table(c.text_vocab, c.backbone.width, device, dtype)
        self.audio_table = _table(c.codebooks * c.audio_vocab, c.backbone.width, device, dtype)
        self.depth_table = _table((c.codebooks - 1) * c.depth_vocab, c.depth.width, device, dtype)
        self.backbone = Stack(c.backbone, max_positions=c.max_positions, device=device, dtype=dtype, stages=stages)
        self.depth = Stack(c.depth, max_positions=c.codebooks + 1, device=device, dtype=dtype)
        self.projection: nn.Module = Linear(c.backbone.width, c.depth.width, bias=False, device=device, dtype=dtype)
        self.head: nn.Module = Linear(c.backbone.width, c.codebook_size, bias=False, device=device, dtype=dtype)
        self.heads = nn.ModuleList(
            [
                Linear(c.depth.width, c.codebook_size, bias=False, device=device, dtype=dtype)
                for _ in range(c.codebooks - 1)
            ]
        )
        self.offsets: Tensor
        self.register_buffer("offsets", torch.arange(c.codebooks, device=device) * c.audio_vocab, persistent=False)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices of the model: `device` first, then the devices of the other stages."""
        stages = self.backbone.stages
        return (self.device, *(stage.device for stage in stages[1:]))

    def kv_cache(self, rows: int, *, batched: bool | None = None, scratch: int = 0) -> KVCache | SplitKVCache:
        """scratch: extra positions behind the last, for the writes of inactive rows in a CUDA graph."""
        c, stages = self.config, self.backbone.stages
        if len(stages) > 1:
            return SplitKVCache(c.backbone, stages, rows=rows, positions=c.max_positions, dtype=self.dtype)
        return KVCache(
            c.backbone,
            rows=rows,
            positions=c.max_positions + scratch,
            device=self.device,
            dtype=self.dtype,
            batched=batched,
        )

    def depth_kv_cache(self, rows: int) -> DepthKVCache:
        c = self.config
        # 32 positions take little memory, and on a CPU small float32 products start ten times as fast as bfloat16 ones.
        dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        return DepthKVCache(c.depth, rows=rows, positions=c.codebooks, device=self.device, dtype=dtype)

    def embed_text(self, ids: Tensor) -> Tensor:  # (S,) int64 -> (S, D)
        return functional.embedding(ids, self.text_table).to(self.dtype)

    def embed_frames(self, codes: Tensor) -> Tensor:  # (T, K) int64 -> (T, D)
        return functional.embedding(codes + self.offsets, self.audio_table).to(self.dtype).sum(dim=1)

    def read(self, x: Tensor, cache: KVCache | SplitKVCache, row: int, start: int) -> Tensor:
        """Read x (S, D) into the row at positions start..start+S-1; -> (S, D), normed."""
        count = x.shape[0]
        return self.backbone(x, slice(start, start + count), cache.prefill_attention(row, start, count))  # type: ignore[no-any-return]

    def advance(self, x: Tensor, cache: KVCache | SplitKVCache, rows: list[int], positions: list[int]) -> Tensor:
        """One token x (n, D) for each of n rows, at its own position; -> (n, D), normed."""
        at = torch.tensor(positions, device=self.device)
        return self.backbone(x, at, cache.decode_attention(rows, positions))  # type: ignore[no-any-return]

    def frame(self, h: Tensor, cache: DepthKVCache, pick: Pick) -> Tensor:
        """Backbone outputs h (n, D) -> one frame of codes (n, K) int64."""
        count, c = h.shape[0], self.config
        code = pick(0, self.head(h).float())
        codes = [code]
        first = functional.embedding(code, self.depth_table).to(self.dtype)
        x = torch.stack((self.projection(h), first), dim=1).view(2 * count, c.depth.width)  # (row, position) in order
        positions = torch.arange(2, device=self.device).repeat(count)
        y = self.depth(x, positions, cache.attention(count, 0, 2)).view(count, 2, c.depth.width)[:, 1]
        for i in range(1, c.codebooks):
            code = pick(i, self.heads[i - 1](y).float())
            codes.append(code)
            if i + 1 < c.codebooks:
                x = functional.embedding(code + i * c.depth_vocab, self.depth_table).to(self.dtype)
                y = self.depth(x, slice(i + 1, i + 2), cache.attention(count, i + 1, 1))
        return torch.stack(codes, dim=1)

    def depth_decode(self, h: Tensor, cache: DepthKVCache, pick: Pick, kernels: Kernels) -> Tensor:
        """As `frame`, with fixed shapes and one token per row and call, so that a CUDA graph can capture it."""
        count, c = h.shape[0], self.config
        code = pick(0, self.head(h).float())
        codes = [code]
        self.depth.decode_static(
            self.projection(h), slice(0, 1), cache.static_decode_attention(count, 0, kernels), kernels
        )
        for i in range(1, c.codebooks):
            x = functional.embedding(code + (i - 1) * c.depth_vocab, self.depth_table).to(self.dtype)
            y = self.depth.decode_static(x, slice(i, i + 1), cache.static_decode_attention(count, i, kernels), kernels)
            code = pick(i, self.heads[i - 1](y).float())
            codes.append(code)
        return torch.stack(codes, dim=1)

    def widen(self) -> None:
        """Compute in float32 from now on. Norms become float32; tables keep their dtype, rows are converted on use."""
        self.dtype = torch.float32
        for name, tensor in list(self.named_parameters()):
            if tensor.ndim == 1:
                self.get_parameter(name).data = tensor.data.float()

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy the tensors of a checked checkpoint into the model, one by one. Names: see checkpoint.py."""
        c = self.config
        weights.copy_to(self.text_table, checkpoint.TEXT_TABLE)
        weights.copy_to(self.audio_table, checkpoint.AUDIO_TABLE)
        weights.copy_to(as_linear(self.projection).weight, checkpoint.PROJECTION)
        as_linear(self.head).weight.copy_(weights.read(checkpoint.HEAD)[: c.codebook_size])
        for i, block in weights.blocks(checkpoint.HEADS, rows=1):
            as_linear(self.heads[i]).weight.copy_(block[0, :, : c.codebook_size].t())
        load_stack(self.backbone, weights, checkpoint.BACKBONE)
        load_stack(self.depth, weights, checkpoint.DEPTH)
        # The table P E is computed in float32 from the stored tensors and rounded once.
        projection = weights.read(checkpoint.PROJECTION).to(self.device, torch.float32)
        used = len(self.depth_table)  # the last codebook's code is never read
        for start, block in weights.blocks(checkpoint.DEPTH_TABLE):
            rows = block[: max(0, used - start)]
            if len(rows):
                products = functional.linear(rows.to(self.device, torch.float32), projection)
                self.depth_table[start : start + len(rows)].copy_(products)


def _table(rows: int, width: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, width, device=device, dtype=dtype), requires_grad=False)


def load_stack(stack: Stack, weights: Checkpoint, prefix: str) -> None:
    """Fill a Stack from q/k/v/o and gate/up/down tensors below `prefix`."""
    c: StackConfig = stack.config
    weights.copy_to(stack.norm, f"{prefix}norm.weight")
    for layer, block in enumerate(stack.blocks):
        assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
        at = f"{prefix}layers.{layer}."
        weights.copy_to(block.attention_norm, f"{at}input_layernorm.weight")
        weights.copy_to(block.mlp_norm, f"{at}post_attention_layernorm.weight")
        query, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for module, parts in (
            (block.qkv, (("self_attn.q_proj", query), ("self_attn.k_proj", shared), ("self_attn.v_proj", shared))),
            (block.out, (("self_attn.o_proj", c.width),)),
            (block.gate_up, (("mlp.gate_proj", c.ffn), ("mlp.up_proj", c.ffn))),
            (block.down, (("mlp.down_proj", c.width),)),
        ):
            linear = as_linear(module)
            start = 0
            for name, outputs in parts:
                weights.copy_to(linear.weight[start : start + outputs], f"{at}{name}.weight")
                if linear.bias is not None:
                    weights.copy_to(linear.bias[start : start + outputs], f"{at}{name}.bias")
                start += outputs
