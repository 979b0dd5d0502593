"""CSM's model: a backbone reads text and frames, and a depth decoder computes the codes of each frame.

The model has weights and no other state. For each row, the model computes one frame, the codes c[0]..c[K-1], from the
input x. P is the projection, E is the audio table, and V is the number of rows in E for each codebook:
  h    = backbone(x)                   the output at the last position, after the final norm
  c[0] = pick(head(h))
  The depth decoder begins with an empty KV cache. It reads P h at position 0, and P E[c[i] + i V] at position i+1. For
  i = 1..K-1: head i-1 computes logits from the output at position i, and c[i] is picked from these logits. The depth
  decoder does not read c[K-1].
  x'   = sum over k of E[c[k] + k V]   the next input of the row
`load` computes the table P E once, which saves 31 matrix products a frame. The heads compute logits only for the
codec's codes, because the codec can't decode other codes. Sources: models.py of SesameAILabs/csm, the published
config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.engines.csm import checkpoint
from app.engines.csm.config import CsmConfig
from app.nn.kernels.depth import DepthWeights, DrawParameters
from app.nn.kernels.sets import Kernels
from app.nn.kv_cache import DepthKVCache, KVCache, SplitKVCache
from app.nn.linear import Linear, as_linear
from app.nn.low_rank import AdaptedLinear, LowRankAdapters
from app.nn.native.library import Library
from app.nn.transformer import Block, Stack, StackConfig, Stage, StageEntry, plain_weight
from app.weights.tensors import Checkpoint


class Pick(Protocol):
    """Chooses a code from logits."""

    def __call__(self, codebook: int, logits: Tensor) -> Tensor:
        """Return codes (n,) int64 for the logits (n, C) float32 of one codebook."""


class StaticPick(Protocol):
    """Chooses a code from logits in a step that a CUDA graph can capture."""

    def __call__(self, codebook: int, logits: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return codes (n,) int64 for the logits (n, C) float32 of one codebook, and their embeddings (n, D).

        table (V, D): the embeddings of the codes. None = the embeddings are not needed. The caller looks them up if the
        second result is None.
        """


def is_last(frame: Tensor, eos_code: int) -> bool:
    """Whether a frame (K,) ends the current line: all codes except the last code are EOS.

    `generate` of transformers uses the same rule. Sesame's generator also requires that the last code is EOS. If only
    the last code is not EOS, Sesame's generator continues, but this server plays the frame and ends the line.
    """
    return bool((frame[:-1] == eos_code).all())


def is_silent_end(frame: Tensor, eos_code: int) -> bool:
    """Whether all codes of a frame (K,) are EOS. The server does not decode such a frame."""
    return bool((frame == eos_code).all())


class CsmModel(nn.Module):
    """The weights and the computation of CSM. The weights have undefined values before `load`.

    stages: the device of each part of the backbone's layers. All other modules are on `device`. For each frame, the
    backbone runs once on all devices, and the depth decoder runs 31 times on `device`. So each frame copies only one
    small tensor (n, D) from each device to the next device, and one tensor back to `device`.
    """

    def __init__(
        self, config: CsmConfig, *, device: torch.device, dtype: torch.dtype, stages: Sequence[Stage] = ()
    ) -> None:
        super().__init__()
        if stages and stages[0].device != device:
            raise ValueError(f"the first of the stages {list(stages)} must be on the device of the model, {device}")
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
        # This code avoids a multiplication of tensors. To multiply tensors on the device "meta", PyTorch would import
        # torch._dynamo, and the import takes 2 s of CPU time.
        self.register_buffer(
            "offsets", torch.arange(0, c.codebooks * c.audio_vocab, c.audio_vocab, device=device), persistent=False
        )
        self.tied = False  # whether backbone and depth decoder share one audio table; set by `load_model`
        self.base: Checkpoint | None = None  # the checkpoint from which the weights were loaded; set by `load_model`
        self.library: Library | None = None  # the native kernels; None = PyTorch computes the model
        self._depth_weights: DepthWeights | None = None  # the last result of `depth_weights`
        self._depth_places: list[int] = []  # the addresses of these weights
        self.adapters: LowRankAdapters | None = None  # LoRA adapters of single rows; None = rows can't use adapters

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices of the model: `device`, then the devices of the later stages."""
        stages = self.backbone.stages
        return (self.device, *(stage.device for stage in stages[1:]))

    def kv_cache(self, rows: int, *, batched: bool | None = None, scratch: int = 0) -> KVCache | SplitKVCache:
        """Create a KV cache for the backbone.

        batched: see KVCache. scratch: number of extra positions after the last position. A CUDA graph writes the keys
        of inactive rows there.
        """
        c, stages = self.config, self.backbone.stages
        positions = c.max_positions + scratch
        if len(stages) > 1:
            return SplitKVCache(
                c.backbone,
                stages,
                rows=rows,
                positions=positions,
                dtype=self.dtype,
                batched=batched,
                library=self.library,
            )
        return KVCache(
            c.backbone,
            rows=rows,
            positions=positions,
            device=self.device,
            dtype=self.dtype,
            batched=batched,
            library=self.library,
        )

    def depth_kv_cache(self, rows: int) -> DepthKVCache:
        c = self.config
        # The cache has 32 positions, so float32 takes little memory. On a CPU, a small float32 product starts ten times
        # as fast as a bfloat16 product.
        dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        return DepthKVCache(
            c.depth, rows=rows, positions=c.codebooks, device=self.device, dtype=dtype, library=self.library
        )

    def embed_text(self, ids: Tensor) -> Tensor:  # (S,) int64 -> (S, D)
        return functional.embedding(ids, self.text_table).to(self.dtype)

    def embed_frames(self, codes: Tensor) -> Tensor:  # codes (T, K) int64 -> embeddings (T, D)
        return functional.embedding(codes + self.offsets, self.audio_table).to(self.dtype).sum(dim=1)

    def read(self, x: Tensor, cache: KVCache | SplitKVCache, row: int, start: int, adapter: int = 0) -> Tensor:
        """Run the backbone on the inputs x (S, D) of one row, at positions start..start+S-1.

        Writes the keys and values of the inputs into the cache. Returns the outputs (S, D) after the final norm.
        adapter: the slot of the row's adapter.
        """
        self._select((adapter,))
        count = x.shape[0]
        return self.backbone(x, slice(start, start + count), cache.prefill_attention(row, start, count))  # type: ignore[no-any-return]

    def advance(
        self,
        x: Tensor,
        cache: KVCache | SplitKVCache,
        rows: list[int],
        positions: list[int],
        adapters: Sequence[int] = (),
    ) -> Tensor:
        """Run the backbone on one input of each of n rows: x (n, D). The rows may be at different positions.

        Writes the keys and values into the cache. Returns the outputs (n, D) after the final norm. adapters: the slot
        of each row's adapter; () = no adapters.
        """
        self._select(adapters)
        at = torch.tensor(positions, device=self.device)
        return self.backbone(x, at, cache.decode_attention(rows, positions))  # type: ignore[no-any-return]

    def _select(self, adapters: Sequence[int]) -> None:
        """Select the adapters for the next products. adapters: the slot of each row's adapter; () = no adapters."""
        if self.adapters is not None:
            self.adapters.select(adapters)

    def _depth_input(self, code: Tensor, codebook: int) -> Tensor:
        """Return the depth decoder's input P E[code] (n, d) for the codes (n,) of a codebook.

        `depth_table` contains the products P E. If an adapter changes the projection P, this method adds the product of
        the adapter's change and E[code].
        """
        size = self.config.depth_vocab
        x = functional.embedding(code, self.depth_table[codebook * size : (codebook + 1) * size]).to(self.dtype)
        if isinstance(self.projection, AdaptedLinear) and self.adapters is not None and self.adapters.selection.active:
            table_row = code + codebook * self.config.audio_vocab
            return self.projection.add(functional.embedding(table_row, self.audio_table).to(self.dtype), x)
        return x

    def frame(self, h: Tensor, cache: DepthKVCache, pick: Pick, adapters: Sequence[int] = ()) -> Tensor:
        """Compute one frame of codes (n, K) int64 from the backbone's outputs h (n, D). Overwrites the cache.

        adapters: the slot of each row's adapter; () = no adapters.
        """
        self._select(adapters)
        count, c = h.shape[0], self.config
        code = pick(0, self.head(h).float())
        codes = [code]
        first = self._depth_input(code, 0)
        x = torch.stack((self.projection(h), first), dim=1).view(2 * count, c.depth.width)  # order: row, position
        positions = torch.arange(2, device=self.device).repeat(count)
        y = self.depth(x, positions, cache.attention(count, 0, 2)).view(count, 2, c.depth.width)[:, 1]
        for i in range(1, c.codebooks):
            code = pick(i, self.heads[i - 1](y).float())
            codes.append(code)
            if i + 1 < c.codebooks:
                x = self._depth_input(code, i)
                y = self.depth(x, slice(i + 1, i + 2), cache.attention(count, i + 1, 1))
        return torch.stack(codes, dim=1)

    def _depth_rows(self, codebook: int) -> Tensor | None:
        """Return the table of P E for a codebook; None = the depth decoder's inputs are not just rows of this table."""
        selected = self.adapters is not None and self.adapters.selection.active
        if self.depth_table.dtype != self.dtype or (isinstance(self.projection, AdaptedLinear) and selected):
            return None
        size = self.config.depth_vocab
        return self.depth_table[codebook * size : (codebook + 1) * size]

    def depth_decode(self, h: Tensor, cache: DepthKVCache, pick: StaticPick, kernels: Kernels) -> Tensor:
        """Compute the same frame as `frame`, in a form that a CUDA graph can capture.

        All tensors have fixed shapes, and each call of the depth decoder reads one token of each row.
        """
        count, c = h.shape[0], self.config
        logits = self.head(h).float()
        # only the keys and values of position 0 are needed
        attend = cache.static_decode_attention(count, 0, kernels)
        self.depth.decode_static(self.projection(h), slice(0, 1), attend, kernels, only_keys=True)
        codes = []
        for i in range(1, c.codebooks):
            code, x = pick(i - 1, logits, self._depth_rows(i - 1))
            codes.append(code)
            attend = cache.static_decode_attention(count, i, kernels)
            x = self._depth_input(code, i - 1) if x is None else x
            logits = self.depth.decode_static(x, slice(i, i + 1), attend, kernels, head=self.heads[i - 1])
        codes.append(pick(c.codebooks - 1, logits, None)[0])
        return torch.stack(codes, dim=1)

    def depth_frame(  # noqa: PLR0917 - the arguments of `depth_decode`, and those of the kernel
        self,
        h: Tensor,
        cache: DepthKVCache,
        pick: StaticPick,
        weights: DepthWeights,
        draws: DrawParameters,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor]:
        """Compute the same frame as `depth_decode` with `kernels.depth_frame`. A CUDA graph can capture this method.

        Only the code of codebook 0 is picked with `pick`. weights: the result of `depth_weights`. Returns the codes
        (n, K) int64, and the logits (n, C) float32 of the last codebook.
        """
        count = len(h)
        code, _ = pick(0, self.head(h).float(), None)
        return kernels.depth_frame(weights, cache.k[:, :count], cache.v[:, :count], self.projection(h), code, draws)

    def depth_weights(self) -> DepthWeights | None:
        """Return the weights of the depth decoder for `depth_frame`.

        None = a linear layer or the projection has a bias or a selected adapter, or a layer has a quantized weight.
        """
        layers = self.depth.plain_weights()
        heads = [weight for head in self.heads if isinstance(weight := plain_weight(head), Tensor)]
        if layers is None or len(heads) < len(self.heads) or plain_weight(self.projection) is None:
            return None
        tensors = [*(tensor for layer in layers for tensor in layer.tensors), self.depth.norm, *heads]
        places = [tensor.data_ptr() for tensor in tensors]
        if self._depth_weights is None or self._depth_places != places:
            # Creating the table of addresses copies from the host, which a capture can't do. So it is kept; the calls
            # before the capture have created it.
            c = self.config.depth
            entry = self.depth.entries[0]
            assert isinstance(entry, StageEntry)  # noqa: S101 - a Stack contains nothing else
            self._depth_weights = DepthWeights(
                layers,
                self.depth.norm,
                heads,
                self.depth_table,
                entry.cos,
                entry.sin,
                groups=c.kv_heads,
                scale=c.score_scale,
                eps=c.eps,
                activation=c.activation,
            )
            self._depth_places = places
        return self._depth_weights

    def widen(self) -> None:
        """Make the model compute in float32.

        Converts the weights of norms to float32. Tables keep their dtype; each lookup converts the result to float32.
        """
        self.dtype = torch.float32
        for name, tensor in list(self.named_parameters()):
            if tensor.ndim == 1:
                self.get_parameter(name).data = tensor.data.float()

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy the tensors of a checkpoint into the model. The tensors must come from `checkpoint.language_model`."""
        c = self.config
        weights.copy_to(self.text_table, checkpoint.TEXT_TABLE)
        weights.copy_to(self.audio_table, checkpoint.AUDIO_TABLE)
        weights.copy_to(as_linear(self.projection).weight, checkpoint.PROJECTION)
        as_linear(self.head).weight.copy_(weights.read(checkpoint.HEAD)[: c.codebook_size])
        for i, block in weights.blocks(checkpoint.HEADS, rows=1):
            as_linear(self.heads[i]).weight.copy_(block[0, :, : c.codebook_size].t())
        load_stack(self.backbone, weights, checkpoint.BACKBONE)
        load_stack(self.depth, weights, checkpoint.DEPTH)
        # Compute the table P E (the projection times the audio table) in float32 from the stored tensors. So each value
        # is rounded only once, from float32 to the dtype of the model.
        projection = weights.read(checkpoint.PROJECTION).to(self.device, torch.float32)
        # the depth decoder never reads the last codebook's code, so the table has no rows for it
        used = len(self.depth_table)
        for start, block in weights.blocks(checkpoint.DEPTH_TABLE):
            rows = block[: max(0, used - start)]
            if len(rows):
                products = functional.linear(rows.to(self.device, torch.float32), projection)
                self.depth_table[start : start + len(rows)].copy_(products)


def _table(rows: int, width: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, width, device=device, dtype=dtype), requires_grad=False)


def load_stack(stack: Stack, weights: Checkpoint, prefix: str) -> None:
    """Copy the tensors of one transformer into `stack`. prefix: the beginning of the tensors' names."""
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
