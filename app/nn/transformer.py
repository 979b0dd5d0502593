"""A pre-norm transformer like Llama. This module does not depend on any model.

A block gets tokens x (M, D) and an attention function from the caller. So the same block can prefill a prompt (M tokens
of one row), decode a batch (one token of each of M rows), and be part of a depth decoder or an encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.nn.attention import CachedAttention, DecodeAttention, PrefillAttention, TurnedAttention
from app.nn.kernels.depth import LayerWeights
from app.nn.kernels.sets import Kernels
from app.nn.kernels.torch_kernels import gate
from app.nn.linear import Fp8Weight, Linear, QuantizedLinear, as_linear
from app.nn.low_rank import AdaptedLinear, applies_norm
from app.nn.native.modules import NativeAttention, NativeLinear, NativeStack, native_gate
from app.nn.rope import Rope, apply_rotary, rotary

if TYPE_CHECKING:
    from app.nn.native.library import Library

# Quantizes a linear layer: (linear, weight of the RMSNorm before the layer or None, eps) -> the quantized layer.
QuantizeLinear = Callable[[Linear, Tensor | None, float], QuantizedLinear]


@dataclass(frozen=True, slots=True)
class CrossConfig:
    """The dimensions of cross-attention."""

    width: int  # width of the vectors from which keys and values are computed
    heads: int
    kv_heads: int
    head_dim: int
    rotated: bool = False  # True = RoPE is applied to queries and keys


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The dimensions of a transformer like Llama. scale: factor of all attention scores; None = head_dim ** -0.5."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    rope: Rope
    attention_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu"] = "silu"
    scale: float | None = None
    cross: CrossConfig | None = None

    @property
    def score_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale


@dataclass(frozen=True, slots=True)
class CrossInput:
    """The inputs of the cross-attention in one call of a Stack.

    The first `conditional` tokens attend to a sequence, for example a text. All later tokens are unconditional: in each
    layer, the cross-attention of these tokens returns a constant.
    """

    conditional: int
    attend: CachedAttention
    # (layers, D): what the cross-attention of each layer returns for an unconditional token. None = there are no
    # unconditional tokens.
    unconditional: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StaticCross:
    """The inputs of the cross-attention in `Stack.decode_static`.

    The tokens 0, `every`, 2 * `every` ... are conditional: they attend to the sequences of `attend`. All other tokens
    are unconditional, see CrossInput. constant: (layer) -> (D,) or (conditional tokens, D), what the cross-attention of
    the layer returns for the unconditional tokens, or for those after each conditional token.
    """

    attend: TurnedAttention
    every: int
    constant: Callable[[int], Tensor]


class Block(nn.Module):
    """One transformer layer: RMSNorm, self-attention, RMSNorm, gated MLP.

    If `config.cross` is set, an RMSNorm and cross-attention follow the self-attention. `qkv`, `gate_up` and `cross_kv`
    each join several weight matrices, so that one product computes several outputs.
    """

    def __init__(self, config: StackConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        c = config
        self.config = c
        self.library: Library | None = None  # the native kernels; None = PyTorch computes attention and gate

        def linear(inputs: int, outputs: int, bias: bool) -> nn.Module:
            return Linear(inputs, outputs, bias=bias, device=device, dtype=dtype)

        self.attention_norm = nn.Parameter(torch.empty(c.width, device=device, dtype=dtype), requires_grad=False)
        self.mlp_norm = nn.Parameter(torch.empty(c.width, device=device, dtype=dtype), requires_grad=False)
        self.qkv = linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, c.attention_bias)
        self.out = linear(c.heads * c.head_dim, c.width, c.attention_bias)
        self.gate_up = linear(c.width, 2 * c.ffn, c.mlp_bias)
        self.down = linear(c.ffn, c.width, c.mlp_bias)
        if (cross := c.cross) is not None:
            self.cross_norm = nn.Parameter(torch.empty(c.width, device=device, dtype=dtype), requires_grad=False)
            self.cross_q = linear(c.width, cross.heads * cross.head_dim, False)
            self.cross_kv = linear(cross.width, 2 * cross.kv_heads * cross.head_dim, False)
            self.cross_out = linear(cross.heads * cross.head_dim, c.width, False)

    def forward(
        self,
        x: Tensor,
        layer: int,
        position: tuple[Tensor, Tensor],
        attend: PrefillAttention | NativeAttention,
        cross: CrossInput | None = None,
    ) -> Tensor:
        """Compute the layer: x (M, D) -> (M, D). position: cos and sin of the tokens' positions, from `rotary`."""
        c = self.config
        cos, sin = position
        tokens = x.shape[0]
        heads = self._norm_linear(x, self.attention_norm, self.qkv).view(tokens, c.heads + 2 * c.kv_heads, c.head_dim)
        if isinstance(attend, NativeAttention):
            attended = attend(layer, heads, cos, sin)
        else:
            rotated = apply_rotary(heads[:, : c.heads + c.kv_heads], cos, sin)
            k, v = rotated[:, c.heads :], heads[:, c.heads + c.kv_heads :]
            attended = attend(layer, rotated[:, : c.heads], k, v)
        x = x + self.out(attended)
        if cross is not None:
            x = x + self._cross_attention(x, layer, position, cross)
        gate_up = self._norm_linear(x, self.mlp_norm, self.gate_up)
        mlp = self.down(native_gate(self.library, gate_up) if self.library else gate(gate_up, c.activation))
        return x + mlp.to(x.dtype)  # type: ignore[no-any-return]

    def quantize(self, make: QuantizeLinear, *, attention: bool = True) -> None:
        """Quantize the weights of the MLP. attention: whether the weights of self-attention are quantized, too."""
        eps = self.config.eps
        if attention:
            self.qkv = make(as_linear(self.qkv), self.attention_norm, eps)
            self.out = make(as_linear(self.out), None, eps)
        self.gate_up = make(as_linear(self.gate_up), self.mlp_norm, eps)
        self.down = make(as_linear(self.down), None, eps)

    def round_to_fp8(self) -> None:
        """Round the weights of self-attention and of the MLP to fp8."""
        for linear in (self.qkv, self.out, self.gate_up, self.down):
            as_linear(linear).round_to_fp8()

    def _norm_linear(self, x: Tensor, norm: Tensor, linear: nn.Module) -> Tensor:
        """Return linear(rms_norm(x)). If the linear layer also computes the norm, pass x to it unchanged."""
        if not applies_norm(linear):
            x = functional.rms_norm(x, (self.config.width,), norm, self.config.eps)
        return linear(x)  # type: ignore[no-any-return]

    def qkv_heads(self, normed: Tensor) -> Tensor:
        """Return the queries, keys and values (M, H + 2 G, d) of tokens (M, D), without RoPE.

        normed: the tokens after RMSNorm.
        """
        c = self.config
        return self.qkv(normed).view(len(normed), c.heads + 2 * c.kv_heads, c.head_dim)  # type: ignore[no-any-return]

    def _cross_attention(self, x: Tensor, layer: int, position: tuple[Tensor, Tensor], cross: CrossInput) -> Tensor:
        c, shape = self.config, self.config.cross
        assert shape is not None  # noqa: S101 - only a stack with cross-attention receives a CrossInput
        count, conditional = x.shape[0], cross.conditional
        if not conditional and cross.unconditional is not None:
            return cross.unconditional[layer].expand(count, -1)
        normed = functional.rms_norm(x[:conditional], (c.width,), self.cross_norm, c.eps)
        q = self.cross_q(normed).view(conditional, shape.heads, shape.head_dim)
        if shape.rotated:
            q = apply_rotary(q, position[0][:conditional], position[1][:conditional])
        attended: Tensor = self.cross_out(cross.attend(layer, q))
        if cross.unconditional is None:
            return attended
        return torch.cat((attended, cross.unconditional[layer].expand(count - conditional, -1)))

    def cross_attend(self, layer: int, q: Tensor, cos: Tensor, sin: Tensor, attend: TurnedAttention) -> Tensor:
        """Compute cross-attention of queries (M, H * d), with RoPE if the config requires it."""
        cross = self.config.cross
        assert cross is not None  # noqa: S101 - only a stack with cross-attention calls this
        return attend(layer, q.view(len(q), cross.heads, cross.head_dim), (cos, sin) if cross.rotated else None)

    def cross_kv_heads(self, other: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of cross-attention, each (S, G, d).

        other (S, D'): the sequence to which the tokens attend. cos, sin: of the positions in this sequence.
        """
        cross = self.config.cross
        assert cross is not None  # noqa: S101 - only a stack with cross-attention calls this
        heads = self.cross_kv(other).view(len(other), 2 * cross.kv_heads, cross.head_dim)
        k, v = heads[:, : cross.kv_heads], heads[:, cross.kv_heads :]
        return (apply_rotary(k, cos, sin) if cross.rotated else k), v


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive layers that are on one device, as in pipeline parallelism."""

    device: torch.device
    layers: int


class StageEntry(nn.Module):
    """Copies x to the device of a stage. Returns the copy, and cos and sin of the tokens' positions."""

    def __init__(self, device: torch.device, cos: Tensor, sin: Tensor) -> None:
        super().__init__()
        self.device = device
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos.to(device), persistent=False)  # (S, 1, d) float32
        self.register_buffer("sin", sin.to(device), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        at = positions.to(self.device) if isinstance(positions, Tensor) else positions
        return x.to(self.device), self.cos[at], self.sin[at]


class Stack(nn.Module):
    """A transformer of Blocks and a final norm. A Stack has no state: the keys and values are in a KV cache.

    stages: the device of each group of consecutive blocks. Inputs, final norm and results are on `device`.
    """

    def __init__(
        self,
        config: StackConfig,
        *,
        max_positions: int,
        device: torch.device,
        dtype: torch.dtype,
        stages: Sequence[Stage] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.stages = tuple(stages) or (Stage(device, config.layers),)
        if sum(stage.layers for stage in self.stages) != config.layers:
            raise ValueError(f"the stages {self.stages} do not have {config.layers} layers in total")
        devices = [stage.device for stage in self.stages for _ in range(stage.layers)]
        self.blocks = nn.ModuleList([Block(config, device=each, dtype=dtype) for each in devices])
        self.norm = nn.Parameter(torch.empty(config.width, device=device, dtype=dtype), requires_grad=False)
        cos, sin = rotary(config.rope.frequencies(config.head_dim), torch.arange(max_positions))
        self.entries = nn.ModuleList([StageEntry(stage.device, cos, sin) for stage in self.stages])
        self._native: NativeStack | None = None  # computes all blocks in one call
        self._entry_before: dict[int, nn.Module] = {}  # index of a stage's first layer -> the entry of the stage
        first = 0
        for stage, entry in zip(self.stages, self.entries, strict=True):
            if stage.layers:
                self._entry_before[first] = entry
            first += stage.layers

    def use_native(self, library: Library) -> None:
        """From now on, compute attention and gates with the native kernels. All linear layers must be NativeLinear."""
        layers = []
        for block in self.blocks:
            assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
            block.library = library
            linears = (block.qkv, block.out, block.gate_up, block.down)
            layers.append(tuple(linear for linear in linears if isinstance(linear, NativeLinear)))
        if len(self.stages) == 1:
            self._native = NativeStack(library, layers, self.norm, self.config.eps, self.config.heads)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | slice,
        attend: PrefillAttention | NativeAttention,
        cross: CrossInput | None = None,
    ) -> Tensor:
        """Compute all blocks and the final norm: x (M, D) at positions (M,) -> (M, D)."""
        if self._native is not None and isinstance(attend, NativeAttention) and not self._adapted():
            x, cos, sin = self.entries[0](x, positions)
            return self._native(x, cos, sin, attend)
        device = x.device
        for y in self.layer_outputs(x, positions, attend, cross):
            x = y
        return self.final_norm(x.to(device))

    def _adapted(self) -> bool:
        """Whether adapters are selected for a linear layer of a block."""
        linears = (linear for block in self.blocks for linear in block.children())
        return any(isinstance(linear, AdaptedLinear) and linear.active for linear in linears)

    def layer_outputs(
        self,
        x: Tensor,
        positions: Tensor | slice,
        attend: PrefillAttention | NativeAttention,
        cross: CrossInput | None = None,
    ) -> Iterator[Tensor]:
        """Yield x after each layer, so that the caller can pause after any layer.

        The caller must pass the output of the last layer to `final_norm`.
        """
        cos, sin = x, x  # placeholders: the first stage's entry replaces both values
        for layer, block in enumerate(self.blocks):
            entry = self._entry_before.get(layer)
            if entry is not None:
                x, cos, sin = entry(x, positions)
            x = block(x, layer, (cos, sin), attend, cross)
            yield x

    def decode_static(  # noqa: PLR0917 - `head` is the end of the same step
        self,
        x: Tensor,
        positions: Tensor | slice,
        attend: DecodeAttention,
        kernels: Kernels,
        cross: StaticCross | None = None,
        head: nn.Module | None = None,
        *,
        only_keys: bool = False,
    ) -> Tensor:
        """Compute `forward` for one token of each row: x (M, D) -> (M, D). A CUDA graph can capture this method.

        All blocks must be on one device. head: a linear layer to which the result is passed; then the result is that of
        the linear layer, (M, outputs) in float32. only_keys: True = compute only what the cache needs, so the result is
        undefined.
        """
        [_] = self.stages
        if kernels.computes_linear(len(x)):
            weights = [_plain_weights(block) for block in self.blocks]
            head_weight = None if head is None else plain_weight(head)
            if all(weights) and (head is None or head_weight is not None):
                found = [each for each in weights if each is not None]
                return self._decode_linear(x, positions, attend, kernels, cross, found, head_weight, only_keys)
        normed = self.decode_stage(0, x, positions, attend, kernels, cross, only_keys=only_keys)
        return normed if head is None else head(normed).float()

    def decode_stage(  # noqa: PLR0917 - `index`, and then the arguments of decode_static
        self,
        index: int,
        x: Tensor,
        positions: Tensor | slice,
        attend: DecodeAttention,
        kernels: Kernels,
        cross: StaticCross | None = None,
        *,
        only_keys: bool = False,
    ) -> Tensor:
        """Compute the blocks of one stage for one token of each row: x (M, D) -> (M, D), on the stage's device.

        A CUDA graph can capture this method. attend: the attention function, called with the index of the layer inside
        the stage. If the Stack has one stage, this method applies the final norm. Otherwise the caller passes the last
        stage's result to `final_norm`.
        """
        c = self.config
        x, cos, sin = self.entries[index](x, positions)
        first = sum(stage.layers for stage in self.stages[:index])
        inner = list(self.blocks)[first : first + self.stages[index].layers]
        blocks = [block for block in inner if isinstance(block, Block)]
        if not blocks:
            return x
        whole = len(self.stages) == 1
        next_norms = [*(block.attention_norm for block in blocks[1:]), self.norm if whole else None]
        normed = functional.rms_norm(x, (c.width,), blocks[0].attention_norm, c.eps)
        for layer, (block, next_norm) in enumerate(zip(blocks, next_norms, strict=True)):
            attended = attend(layer, block.qkv_heads(normed), cos, sin)
            if only_keys and layer + 1 == len(blocks):
                return x
            update = block.out(attended)
            if cross is not None:
                normed, x = kernels.add_rms_norm(update, x, block.cross_norm, c.eps)
                q, every = block.cross_q(normed[:: cross.every]), cross.every
                attended = block.cross_out(block.cross_attend(layer, q, cos[::every], sin[::every], cross.attend))
                constants = [cross.constant(layer).expand(len(q), -1)] * (cross.every - 1)
                update = torch.stack((attended, *constants), dim=1).view(x.shape)
            normed, x = kernels.add_rms_norm(update, x, block.mlp_norm, c.eps)
            update = block.down(kernels.gate(block.gate_up(normed), c.activation))
            if next_norm is None:
                return update + x  # type: ignore[no-any-return]
            normed, x = kernels.add_rms_norm(update, x, next_norm, c.eps)
        return normed

    def _decode_linear(  # noqa: PLR0917 - the arguments of decode_static, and then the weights
        self,
        x: Tensor,
        positions: Tensor | slice,
        attend: DecodeAttention,
        kernels: Kernels,
        cross: StaticCross | None,
        weights: Sequence[_Weights],
        head: Tensor | Fp8Weight | None,
        only_keys: bool,
    ) -> Tensor:
        """Compute `decode_static` with kernels that also compute the matrix products: five launches for each layer.

        A kernel that divides its sums into parts returns an update that is not yet added to x. The next kernel adds it.
        """
        c = self.config
        x, cos, sin = self.entries[0](x, positions)
        update: Tensor | None = None
        for layer, (block, weight) in enumerate(zip(self.blocks, weights, strict=True)):
            assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
            heads, x = kernels.norm_linear(x, update, block.attention_norm, c.eps, weight.qkv)
            attended = attend(layer, heads.view(len(x), c.heads + 2 * c.kv_heads, c.head_dim), cos, sin)
            if only_keys and layer + 1 == len(self.blocks):
                return x
            x, update = kernels.add_linear(attended, weight.out, x)
            if cross is not None and weight.cross_q is not None and weight.cross_out is not None:
                every = cross.every
                q, x = kernels.norm_linear(x, update, block.cross_norm, c.eps, weight.cross_q)
                attended = block.cross_attend(layer, q[::every], cos[::every], sin[::every], cross.attend)
                x, update = kernels.add_linear(
                    attended, weight.cross_out, x, every=every, constant=cross.constant(layer)
                )
            hidden, x = kernels.norm_linear(x, update, block.mlp_norm, c.eps, weight.gate_up, c.activation)
            last = layer + 1 == len(self.blocks) and head is None
            x, update = kernels.add_linear(hidden, weight.down, x, whole=last)
        if head is None:
            return self.final_norm(x)
        return kernels.norm_linear(x, update, self.norm, c.eps, head, wide=True)[0]

    def plain_weights(self) -> list[LayerWeights] | None:
        """Return the weights of the blocks, which must have no cross-attention.

        None = a linear layer has more than a weight (a bias or a selected adapter), or its weight is quantized.
        """
        found = []
        for block in self.blocks:
            weight = _plain_weights(block)
            if weight is None:
                return None
            assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
            qkv, out, gate_up, down = weight.qkv, weight.out, weight.gate_up, weight.down
            if not (
                isinstance(qkv, Tensor)
                and isinstance(out, Tensor)
                and isinstance(gate_up, Tensor)
                and isinstance(down, Tensor)
            ):
                return None
            found.append(LayerWeights(block.attention_norm, qkv, out, block.mlp_norm, gate_up, down))
        return found

    def final_norm(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (self.config.width,), self.norm, self.config.eps)


@dataclass(frozen=True, slots=True)
class _Weights:
    """The weights of a block whose linear layers have no bias and no selected adapters."""

    qkv: Tensor | Fp8Weight
    out: Tensor | Fp8Weight
    gate_up: Tensor | Fp8Weight
    down: Tensor | Fp8Weight
    cross_q: Tensor | Fp8Weight | None = None
    cross_out: Tensor | Fp8Weight | None = None


def _plain_weights(block: nn.Module) -> _Weights | None:
    """Return the weights of a block; None = a linear layer has more than a weight, or its weight is quantized."""
    assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
    linears = [block.qkv, block.out, block.gate_up, block.down]
    if block.config.cross is not None:
        linears += [block.cross_q, block.cross_out]
    weights = [weight for linear in linears if (weight := plain_weight(linear)) is not None]
    return _Weights(*weights) if len(weights) == len(linears) else None


def plain_weight(linear: nn.Module) -> Tensor | Fp8Weight | None:
    """Return the weight of a linear layer; None = the layer has a bias, a selected adapter or an integer weight."""
    if isinstance(linear, AdaptedLinear):
        if linear.active:
            return None
        linear = linear.inner
    if not isinstance(linear, Linear) or linear.bias is not None:
        return None
    return linear.weight if linear.fp8 is None else linear.fp8
