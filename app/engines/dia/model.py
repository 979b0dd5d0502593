"""Dia's model: an encoder reads the bytes of the text, and a decoder computes nine codes in each step.

The model has weights and no other state. For classifier-free guidance, a step of a row reads two tokens: a conditional
token, which attends to the text, and an unconditional token. In the reference implementations, the unconditional token
attends to a text of zero bytes. All bytes of this text are equal. So the encoder's output is the same vector h0 at each
position, and h0 does not depend on the length of the text. Therefore the cross-attention of an unconditional token in
layer l is the constant b_l = O_l V_l h0, where V_l and O_l are the value and output weights. `load` computes these
constants once, in float32, and stores them in `unconditional`. So unconditional tokens need no encoder and no
cross-attention. A LoRA adapter may change these constants, so each adapter slot has its own constants. Source:
nari-labs/dia, dia/layers.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.engines.dia import checkpoint
from app.engines.dia.adapters import CONDITIONAL, TEXT, changes_text
from app.engines.dia.config import DiaConfig
from app.nn.attention import PrefillAttention, bidirectional_attention
from app.nn.kernels.sets import Kernels
from app.nn.kv_cache import CrossKVCache, KVCache
from app.nn.linear import Linear, as_linear
from app.nn.low_rank import LowRankAdapters
from app.nn.transformer import Block, CrossInput, Stack, StackConfig, StageEntry, StaticCross
from app.weights.tensors import Checkpoint


@dataclass(frozen=True, slots=True)
class DiaCache:
    """The KV caches of `rows` rows.

    In the cache `audio`, row 2 r has the conditional tokens of row r, and row 2 r + 1 has the unconditional tokens of
    row r.
    """

    audio: KVCache
    text: CrossKVCache
    rows: int

    @property
    def nbytes(self) -> int:
        return self.audio.nbytes + self.text.nbytes


class DiaModel(nn.Module):
    """The weights and the computation of Dia. The weights have undefined values before `load`."""

    def __init__(self, config: DiaConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        c = config
        self.config = config
        self.device, self.dtype = device, dtype

        def table(rows: int, width: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, width, device=device, dtype=dtype), requires_grad=False)

        self.text_table = table(c.text_vocab, c.encoder.width)
        self.audio_table = table(c.channels * c.audio_vocab, c.decoder.width)
        self.encoder = Stack(c.encoder, max_positions=c.max_text, device=device, dtype=dtype)
        # With RoPE in cross-attention, a text may need more positions than the audio.
        positions = max(c.max_positions, c.max_text)
        self.decoder = Stack(c.decoder, max_positions=positions, device=device, dtype=dtype)
        self.head: nn.Module = Linear(
            c.decoder.width, c.channels * c.audio_vocab, bias=False, device=device, dtype=dtype
        )
        self.unconditional = table(c.decoder.layers, c.decoder.width)
        self.base: Checkpoint | None = None  # the checkpoint from which the weights were loaded; set by `load_model`
        self.adapters: LowRankAdapters | None = None  # LoRA adapters of single rows; None = rows can't use adapters
        # (slots, layers, D): for each adapter slot, the constants that replace `unconditional`; None = no CUDA graph
        # uses adapters.
        self.constants: Tensor | None = None
        self._constants: dict[int, Tensor] = {}  # slot -> (layers, D), only for adapters that change `unconditional`
        self.offsets: Tensor
        # This code avoids a multiplication of tensors. To multiply tensors on the device "meta", PyTorch would import
        # torch._dynamo, and the import takes 2 s of CPU time.
        self.register_buffer(
            "offsets", torch.arange(0, c.channels * c.audio_vocab, c.audio_vocab, device=device), persistent=False
        )

    def cache(self, rows: int, *, batched: bool | None = None, scratch: int = 0) -> DiaCache:
        """Create the KV caches. batched: see KVCache.

        scratch: number of extra positions after the last position. A CUDA graph writes the keys of inactive rows there.
        """
        c, place = self.config, {"device": self.device, "dtype": self.dtype, "batched": batched}
        audio = KVCache(c.decoder, rows=2 * rows, positions=c.max_positions + scratch, **place)  # type: ignore[arg-type]
        text = CrossKVCache(c.decoder, rows=rows, positions=c.max_text, **place)  # type: ignore[arg-type]
        return DiaCache(audio, text, rows)

    def embed(self, codes: Tensor) -> Tensor:  # codes (n, C) int64 -> embeddings (n, D)
        return functional.embedding(codes + self.offsets, self.audio_table).to(self.dtype).sum(dim=1)

    def encode_text(self, text: Tensor, cache: DiaCache, row: int, adapter: int = 0) -> Iterator[None]:
        """Run the encoder on the text (S,) int64 of a row, and write the keys and values of the text into the cache.

        1 <= S <= max_text. Yields after each layer of the encoder and the decoder. adapter: the slot of the row's
        adapter.
        """
        self._select((adapter,), TEXT)
        x = functional.embedding(text, self.text_table).to(self.dtype)
        for y in self.encoder.layer_outputs(
            x, slice(0, len(text)), bidirectional_attention(self.config.encoder.kv_heads, self.config.encoder.scale)
        ):
            x = y
            yield
            self._select((adapter,), TEXT)  # since `yield`, the caller may have selected the adapter of another row
        x = self.encoder.final_norm(x)
        [entry] = self.decoder.entries
        assert isinstance(entry, StageEntry)  # noqa: S101 - the type of all entries
        cos, sin = entry.cos[: len(text)], entry.sin[: len(text)]
        cache.text.begin_row(row, len(text))
        for layer, block in enumerate(self.decoder.blocks):
            assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
            cache.text.write(layer, row, *block.cross_kv_heads(x, cos, sin))
            yield
            self._select((adapter,), TEXT)

    def read(self, codes: Tensor, cache: DiaCache, row: int, start: int, adapter: int = 0) -> None:
        """Run the decoder on codes (T, C) of a row at positions start..start+T-1, and write the keys and values.

        The caller must call `encode_text` for the row's text first. adapter: the slot of the row's adapter.
        """
        count = len(codes)
        self._select((adapter,))
        self._select((adapter,), CONDITIONAL)
        conditional, unconditional = (cache.audio.prefill_attention(r, start, count) for r in (2 * row, 2 * row + 1))
        positions = torch.arange(start, start + count, device=self.device).repeat(2)
        cross = CrossInput(count, cache.text.prefill_attention(row), self.constants_of(adapter))
        self.decoder(self.embed(codes).repeat(2, 1), positions, _side_by_side(conditional, unconditional, count), cross)

    def advance(
        self,
        codes: Tensor,
        cache: DiaCache,
        rows: Sequence[int],
        positions: Sequence[int],
        adapters: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder on codes (n, C) of n rows. The rows may be at different positions.

        Returns the conditional logits and the unconditional logits, each (n, C, V) float32. adapters: the slot of each
        row's adapter; () = no adapters.
        """
        c, count = self.config, len(rows)
        self._select([*adapters, *adapters])
        self._select(adapters, CONDITIONAL)
        constants: Tensor = self.unconditional
        if any(adapters):
            constants = torch.stack([self.constants_of(adapter) for adapter in adapters], dim=1)  # (layers, n, D)
        both = [*(2 * row for row in rows), *(2 * row + 1 for row in rows)]
        at = torch.tensor([*positions, *positions], device=self.device)
        attend = cache.audio.decode_attention(both, [*positions, *positions])
        cross = CrossInput(count, cache.text.decode_attention(rows), constants)
        h = self.decoder(self.embed(codes).repeat(2, 1), at, attend, cross)
        logits = self.head(h).float().view(2, count, c.channels, c.audio_vocab)
        return logits[0], logits[1]

    def decode_static(
        self,
        x: Tensor,
        cache: DiaCache,
        *,
        written: Tensor,
        turned: Tensor,
        text_ends: Tensor,
        audio_length: int,
        text_length: int,
        kernels: Kernels,
        adapters: Tensor | None = None,
    ) -> Tensor:
        """Compute `advance` for the first n rows, with fixed shapes, so that a CUDA graph can capture it.

        Returns logits (n, 2, C, V) float32: first the conditional logits of a row, then its unconditional logits.

        x (2 n, D): for each row, the embedding of its conditional and of its unconditional token. written (2 n,): the
        positions at which the keys of the tokens are written. turned (2 n,): the positions of the tokens for RoPE.
        text_ends (n,): the index of the last byte of each row's text. Self-attention reads the first `audio_length`
        positions, and cross-attention the first `text_length` positions. adapters (n,) int64: the slot of each row's
        adapter; None = no adapters.
        """
        c, count = self.config, len(text_ends)
        if self.adapters is not None:
            both = None if adapters is None else adapters.repeat_interleave(2)
            self.adapters.selection.select_index(both)
            self.adapters.selections[CONDITIONAL].select_index(adapters)
        text_attention = cache.text.static_decode_attention(text_ends, text_length, kernels)

        def constant(layer: int) -> Tensor:
            if adapters is not None and self.constants is not None:
                return self.constants[:, layer].index_select(0, adapters)
            return self.unconditional[layer]

        cross = StaticCross(text_attention, 2, constant)
        decode_attention = cache.audio.static_decode_attention(written, audio_length, kernels)
        logits = self.decoder.decode_static(x, turned, decode_attention, kernels, cross, self.head)
        return logits.view(count, 2, c.channels, c.audio_vocab)

    def _select(self, adapters: Sequence[int], group: str = "") -> None:
        """Select the adapters that the next products in a group of layers use. adapters: see `advance`."""
        if self.adapters is not None:
            self.adapters.select(adapters, group)

    def constants_of(self, adapter: int) -> Tensor:
        """Return the cross-attention (layers, D) of the unconditional tokens of a row with an adapter.

        adapter: the slot of the adapter; 0 = no adapter.
        """
        return self._constants.get(adapter, self.unconditional)

    def prepare_adapter(self, adapter: int) -> None:
        """Compute the cross-attention of the unconditional tokens of rows with a new adapter.

        adapter: the slot into which the adapter was put. Call this in the engine's thread.
        """
        assert self.adapters is not None  # noqa: S101 - the slot has an adapter
        self._constants.pop(adapter, None)
        if changes_text(self.adapters.places_of(adapter)):
            self._constants[adapter] = self._unconditional_with(adapter)
        if self.constants is not None:
            self.constants[adapter] = self.constants_of(adapter)

    def reserve_constants(self, slots: int) -> None:
        """Create `constants` for this number of adapter slots. Slot 0 means no adapter."""
        self.constants = self.unconditional.detach().expand(slots, -1, -1).clone()

    def _unconditional_with(self, adapter: int) -> Tensor:
        """Compute the constants (layers, D) that replace `unconditional` for rows with an adapter.

        For this, the encoder and the cross-attention read one zero byte. adapter: the slot of the adapter.
        """
        c = self.config
        self._select((adapter,), TEXT)
        self._select((adapter,), CONDITIONAL)
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        x = functional.embedding(zero, self.text_table).to(self.dtype)
        attend = bidirectional_attention(c.encoder.kv_heads, c.encoder.scale)
        for y in self.encoder.layer_outputs(x, slice(0, 1), attend):
            x = y
        x = self.encoder.final_norm(x)
        cross = c.decoder.cross
        assert cross is not None  # noqa: S101 - Dia's decoder has cross-attention
        found = torch.empty_like(self.unconditional)
        for layer, block in enumerate(self.decoder.blocks):
            assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
            value = block.cross_kv(x).view(2, cross.kv_heads, cross.head_dim)[1]
            heads = value.repeat_interleave(cross.heads // cross.kv_heads, dim=0)
            found[layer] = block.cross_out(heads.reshape(1, -1))[0]
        return found

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy the tensors of a checkpoint into the model. The tensors must come from `checkpoint.weights_of`."""
        weights.copy_to(self.text_table, checkpoint.TEXT_TABLE)
        weights.copy_to(self.audio_table, checkpoint.AUDIO_TABLE)
        weights.copy_to(as_linear(self.head).weight, checkpoint.HEAD)
        _load_stack(self.encoder, weights, checkpoint.ENCODER)
        _load_stack(self.decoder, weights, checkpoint.DECODER)
        self.compute_unconditional()

    @torch.no_grad()
    def compute_unconditional(self) -> None:
        """Compute `unconditional`, the cross-attention (layers, D) of unconditional tokens, from the weights."""
        c = self.config
        h = self.text_table[:1].float()  # a text of one zero byte, so attention returns the value of this byte
        for block in self.encoder.blocks:
            assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
            h = h + _linear(block.out, _own_value(block, _norm(h, block.attention_norm, c.encoder.eps)))
            gate, up = _linear(block.gate_up, _norm(h, block.mlp_norm, c.encoder.eps)).chunk(2, dim=-1)
            h = h + _linear(block.down, functional.silu(gate) * up)
        h = _norm(h, self.encoder.norm, c.encoder.eps)
        cross = c.decoder.cross
        assert cross is not None  # noqa: S101 - Dia's decoder has cross-attention
        for layer, block in enumerate(self.decoder.blocks):
            assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
            value = _linear(block.cross_kv, h).view(2, cross.kv_heads, cross.head_dim)[1]
            heads = value.repeat_interleave(cross.heads // cross.kv_heads, dim=0)
            self.unconditional[layer] = _linear(block.cross_out, heads.reshape(1, -1))[0]


def _side_by_side(first: PrefillAttention, second: PrefillAttention, count: int) -> PrefillAttention:
    """Return an attention function that calls `first` for the first `count` tokens, and `second` for later tokens."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat(
            (first(layer, q[:count], k[:count], v[:count]), second(layer, q[count:], k[count:], v[count:]))
        )

    return attend


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight.float(), eps)


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    return functional.linear(x, as_linear(module).weight.float())


def _own_value(block: Block, normed: Tensor) -> Tensor:
    """Return the self-attention (1, H * d) of a sequence that is one token long: this is the token's value."""
    c = block.config
    heads = _linear(block.qkv, normed).view(c.heads + 2 * c.kv_heads, c.head_dim)
    return heads[c.heads + c.kv_heads :].repeat_interleave(c.heads // c.kv_heads, dim=0).reshape(1, -1)


def _load_stack(stack: Stack, weights: Checkpoint, prefix: str) -> None:
    """Copy the tensors of the encoder or the decoder into `stack`. prefix: the beginning of the tensors' names."""
    c: StackConfig = stack.config
    weights.copy_to(stack.norm, f"{prefix}norm.weight")
    for layer, block in enumerate(stack.blocks):
        assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
        at = f"{prefix}layers.{layer}."
        weights.copy_to(block.attention_norm, f"{at}pre_sa_norm.weight")
        mlp_norm = "post_sa_norm" if c.cross is None else "pre_mlp_norm"
        weights.copy_to(block.mlp_norm, f"{at}{mlp_norm}.weight")
        joined = [
            (block.qkv, [f"self_attention.{part}_proj" for part in "qkv"]),
            (block.out, ["self_attention.o_proj"]),
            (block.gate_up, ["mlp.gate_up_proj"]),
            (block.down, ["mlp.down_proj"]),
        ]
        if c.cross is not None:
            weights.copy_to(block.cross_norm, f"{at}pre_ca_norm.weight")
            joined += [
                (block.cross_q, ["cross_attention.q_proj"]),
                (block.cross_kv, ["cross_attention.k_proj", "cross_attention.v_proj"]),
                (block.cross_out, ["cross_attention.o_proj"]),
            ]
        for module, names in joined:
            linear = as_linear(module)
            start = 0
            for name in names:
                outputs = weights.tensors[f"{at}{name}.weight"].shape[0]
                weights.copy_to(linear.weight[start : start + outputs], f"{at}{name}.weight")
                start += outputs
