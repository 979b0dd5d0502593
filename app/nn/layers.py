"""What transformers are made of here: RoPE, fused linears, pre-norm blocks, static KV. Knows no model by name.

A block sees tokens only, flattened to (M, D); the call brings the attention function (`PrefillAttention`). So the same
weights read a prompt (M = S tokens of one row), step a batch (M = one token of each row) and run a depth decoder.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.nn.kernels.choice import Kernels
from app.nn.kernels.torch_kernels import gate, grouped_attention, rotate

# (layer, q (M, H, d), k (M, G, d), v (M, G, d)) -> (M, H * d); H query heads share G key heads.
PrefillAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# The same from what the product gives, (layer, heads (M, H + 2 G, d), cos, sin), one token of each row: see kernels/.
DecodeAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# What a layer adds to its tokens from another sequence: (layer, block, normed (M, D), cos, sin) -> (M, D).
CrossAttention = Callable[[int, "Block", Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions turn heads. llama3: low frequencies divided by `factor`, smoothly between two wavelengths."""

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians per position, (head_dim / 2,) float32. llama3 as published with Llama 3.1."""
        plain = 1.0 / (self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
        if self.kind == "default":
            return plain
        if self.kind == "linear":
            return plain / self.factor
        wavelength = 2 * math.pi / plain
        longest = self.original_positions / self.low_freq_factor
        shortest = self.original_positions / self.high_freq_factor
        share = (self.original_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blend = (1 - share) * plain / self.factor + share * plain
        scaled = torch.where(wavelength > longest, plain / self.factor, plain)
        return torch.where((wavelength >= shortest) & (wavelength <= longest), blend, scaled)


def read_rope(raw: Mapping[str, Any], default_theta: float) -> Rope:
    """RoPE from `rope_parameters`, or from `rope_theta` and `rope_scaling`. Raises ValueError for a kind we lack."""
    values: dict[str, Any] = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(values.get("rope_theta") or raw.get("rope_theta") or default_theta)
    kind = values.get("rope_type") or values.get("type") or "default"
    if float(values.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is not supported")
    match kind:
        case "default":
            return Rope(theta)
        case "linear":
            return Rope(theta, "linear", float(values["factor"]))
        case "llama3":
            return Rope(
                theta,
                "llama3",
                float(values["factor"]),
                float(values["low_freq_factor"]),
                float(values["high_freq_factor"]),
                int(values.get("original_max_position_embeddings") or raw.get("max_position_embeddings") or 8192),
            )
    raise ValueError(f"unknown rope_type {kind!r}")


def turns(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin for positions (M,): each (M, 1, d) float32, ready for (M, H, d). The sines of the first half are
    negative: `rotate` then has nothing to negate."""
    angles = positions[:, None].to(torch.float32) * frequencies  # (M, d/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None]


class Dense(nn.Module):
    """y = x W^T + b. Its own class so that a quantised one can take its place."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=dtype), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(outputs, device=device, dtype=dtype), requires_grad=False) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


_FEWEST_ROWS = 3  # of a product


class PackedDense(nn.Module):
    """A bfloat16 Dense on a CPU, its weight in oneDNN's blocked order: 1.6 times as fast on one token, and a token's
    result is the same bit for bit however many others are with it.

    The latter from two tokens on: for one there is another kernel. And up to six, the more there are the less time they
    take together (one 3.9, two 4.6, three 3.2 ms at 2048 x 16384 on a Zen 5). So one and two are filled up to three.
    """

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.numbers = dense.weight.numel()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(dense.weight.data, 1)
        self._bias = dense.bias.data if dense.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        if count < _FEWEST_ROWS:
            x = functional.pad(x, (0, 0, 0, _FEWEST_ROWS - count))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self._packed, self._bias, "none", [], "")
        return y[:count]

    @staticmethod
    def fits(dense: Dense) -> bool:
        return (
            dense.weight.device.type == "cpu"
            and dense.weight.dtype == torch.bfloat16
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )


class Int8Dense(nn.Module):
    """A Dense with 8-bit weights (a scale per output) and 8-bit activations (a scale per token), on an x86 CPU;
    float32 out. With `norm` and `eps`, of the RMSNorm before it, it takes tokens that are not normed yet.

    The kernel takes one scale for a whole batch. So every token is brought to -1..1 here, by its own largest number,
    and the kernel's scale is a constant: no token's result depends on another's. Exact integer sums, 7 bits wide where
    the CPU has no VNNI and 8 bits would overflow the kernel's 16-bit sums.
    """

    def __init__(self, dense: Dense, norm: Tensor | None = None, eps: float = 0.0) -> None:
        super().__init__()
        if dense.weight.shape[1] % 8:
            raise ValueError("8 numbers are rounded at a time; what is left over would be rounded otherwise")
        self.numbers = dense.weight.numel()
        weight = dense.weight.data.float()
        scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        numbers = torch.round(weight / scales[:, None]).to(torch.int8)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        limit = 127 if torch.cpu._is_vnni_supported() else 63
        self._step, self._zero = 1 / limit, limit + 1
        with warnings.catch_warnings():
            # Making such tensors is deprecated in favour of a package that is slower here; the kernel itself is not.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(numbers, scales.double(), zeros, 0)
            bias = dense.bias.data.float() if dense.bias is not None else None
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self._bias = bias
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        # x / sqrt(mean(x^2) + eps) * norm = x * (norm * sqrt(D)) / hypot(|x|, sqrt(D * eps))
        self._norm = norm.data.float() * math.sqrt(len(norm)) if norm is not None else None
        self._least = torch.full((1, 1), math.sqrt(len(norm) * eps)) if norm is not None else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide if self._norm is None else wide * self._norm
        largest = scaled.abs().amax(dim=1, keepdim=True)
        # A token of zeros is 0 / 0 here: whatever whole number that becomes, it is multiplied by 0.
        y: Tensor = self._multiply(scaled / largest, self._step, self._zero, self._packed)
        if self._least is not None:
            # The norm's division goes along with the scale: of numbers so few, a pass over them is all overhead.
            largest.div_(torch.linalg.vector_norm(wide, dim=1, keepdim=True).hypot_(self._least))
        y.mul_(largest)
        return y if self._bias is None else y.add_(self._bias)

    @staticmethod
    def fits() -> bool:
        """Whether this machine has the kernel: it is FBGEMM's."""
        return torch.backends.quantized.engine in ("x86", "fbgemm")


def as_dense(module: nn.Module) -> Dense:
    """Raises TypeError where it is one no more."""
    if not isinstance(module, Dense):
        raise TypeError(f"{type(module).__name__} is no Dense: weights are loaded, then quantised, once")
    return module


def replace_dense(module: nn.Module, make: Callable[[Dense], nn.Module | None]) -> None:
    """Put `make(dense)` in the place of every Dense below `module`; None leaves it."""
    for name, child in module.named_children():
        if isinstance(child, Dense):
            made = make(child)
            if made is not None:
                setattr(module, name, made)
        else:
            replace_dense(child, make)


@dataclass(frozen=True, slots=True)
class CrossConfig:
    """Attention of a stack's tokens to another sequence of `width`. rotated: by RoPE, in both sequences."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    rotated: bool = False


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The shape of a Llama-like transformer. scale: of all attention's scores, None = head_dim ** -0.5."""

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
class Across:
    """What tokens see of the other sequence: the first `looking` of them through `attend`, (layer, q (M, H, d)) ->
    (M, H * d); to the others each layer adds its row of `blind` (layers, D)."""

    looking: int
    attend: Callable[[int, Tensor], Tensor]
    unconditional: Tensor | None = None


class Block(nn.Module):
    """RMSNorm, attention, RMSNorm, gated MLP. q, k, v are one linear, gate and up another.

    With `cross`, norm and attention to another sequence come between the two; its k and v are one linear too.
    """

    def __init__(self, config: StackConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        c = config
        self.config = c

        def dense(inputs: int, outputs: int, bias: bool) -> nn.Module:
            return Dense(inputs, outputs, bias=bias, device=device, dtype=dtype)

        self.attention_norm = nn.Parameter(torch.empty(c.width, device=device, dtype=dtype), requires_grad=False)
        self.mlp_norm = nn.Parameter(torch.empty(c.width, device=device, dtype=dtype), requires_grad=False)
        self.qkv = dense(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, c.attention_bias)
        self.out = dense(c.heads * c.head_dim, c.width, c.attention_bias)
        self.gate_up = dense(c.width, 2 * c.ffn, c.mlp_bias)
        self.down = dense(c.ffn, c.width, c.mlp_bias)
        if (other := c.cross) is not None:
            self.cross_norm = nn.Parameter(torch.empty(c.width, device=device, dtype=dtype), requires_grad=False)
            self.cross_q = dense(c.width, other.heads * other.head_dim, False)
            self.cross_kv = dense(other.width, 2 * other.kv_heads * other.head_dim, False)
            self.cross_out = dense(other.heads * other.head_dim, c.width, False)

    def forward(
        self, x: Tensor, layer: int, turn: tuple[Tensor, Tensor], attend: PrefillAttention, across: Across | None = None
    ) -> Tensor:  # (M, D) -> (M, D)
        c = self.config
        cos, sin = turn
        tokens = x.shape[0]
        heads = self._normed(x, self.attention_norm, self.qkv).view(tokens, c.heads + 2 * c.kv_heads, c.head_dim)
        turned = rotate(heads[:, : c.heads + c.kv_heads], cos, sin)
        x = x + self.out(attend(layer, turned[:, : c.heads], turned[:, c.heads :], heads[:, c.heads + c.kv_heads :]))
        if across is not None:
            x = x + self._across(x, layer, turn, across)
        made = self.down(gate(self._normed(x, self.mlp_norm, self.gate_up), c.activation))
        return x + made.to(x.dtype)  # type: ignore[no-any-return]

    def quantize(self, *, attention: bool = True) -> None:
        """8-bit weights for the MLP, and for self-attention unless that is to stay as it is."""
        eps = self.config.eps
        if attention:
            self.qkv = Int8Dense(as_dense(self.qkv), self.attention_norm, eps)
            self.out = Int8Dense(as_dense(self.out))
        self.gate_up = Int8Dense(as_dense(self.gate_up), self.mlp_norm, eps)
        self.down = Int8Dense(as_dense(self.down))

    def _normed(self, x: Tensor, norm: Tensor, dense: nn.Module) -> Tensor:
        """dense(rms_norm(x))."""
        if not isinstance(dense, Int8Dense):
            x = functional.rms_norm(x, (self.config.width,), norm, self.config.eps)
        return dense(x)  # type: ignore[no-any-return]

    def heads(self, normed: Tensor) -> Tensor:
        """Queries, keys and values (M, H + 2 G, d) of normed tokens (M, D), not turned yet."""
        c = self.config
        return self.qkv(normed).view(len(normed), c.heads + 2 * c.kv_heads, c.head_dim)  # type: ignore[no-any-return]

    def _across(self, x: Tensor, layer: int, turn: tuple[Tensor, Tensor], across: Across) -> Tensor:
        c, other = self.config, self.config.cross
        assert other is not None  # noqa: S101 - who hands in an Across has such a stack
        count, looking = x.shape[0], across.looking
        if not looking and across.unconditional is not None:
            return across.unconditional[layer].expand(count, -1)
        normed = functional.rms_norm(x[:looking], (c.width,), self.cross_norm, c.eps)
        q = self.cross_q(normed).view(looking, other.heads, other.head_dim)
        if other.rotated:
            q = rotate(q, turn[0][:looking], turn[1][:looking])
        seen: Tensor = self.cross_out(across.attend(layer, q))
        if across.unconditional is None:
            return seen
        return torch.cat((seen, across.unconditional[layer].expand(count - looking, -1)))

    def cross_keys(self, other: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the other sequence (S, D'): each (S, G, d)."""
        cross = self.config.cross
        assert cross is not None  # noqa: S101 - as above
        heads = self.cross_kv(other).view(len(other), 2 * cross.kv_heads, cross.head_dim)
        k, v = heads[:, : cross.kv_heads], heads[:, cross.kv_heads :]
        return (rotate(k, cos, sin) if cross.rotated else k), v


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive layers that lie on one device."""

    device: torch.device
    layers: int


class Entry(nn.Module):
    """The way into a stage: x and the turns of its positions, on the stage's device."""

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
    """Blocks and a final norm. Stateless: keys and values live in the cache behind `attend`.

    `stages` lay the blocks on several devices, in order; the norm stays on `device`, where x comes from and returns to.
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
            raise ValueError(f"{self.stages} hold other than {config.layers} layers")
        places = [stage.device for stage in self.stages for _ in range(stage.layers)]
        self.blocks = nn.ModuleList([Block(config, device=place, dtype=dtype) for place in places])
        self.norm = nn.Parameter(torch.empty(config.width, device=device, dtype=dtype), requires_grad=False)
        cos, sin = turns(config.rope.frequencies(config.head_dim), torch.arange(max_positions))
        self.entries = nn.ModuleList([Entry(stage.device, cos, sin) for stage in self.stages])
        self._entry_before: dict[int, nn.Module] = {}  # by its first layer
        first = 0
        for stage, entry in zip(self.stages, self.entries, strict=True):
            if stage.layers:
                self._entry_before[first] = entry
            first += stage.layers

    def forward(
        self, x: Tensor, positions: Tensor | slice, attend: PrefillAttention, across: Across | None = None
    ) -> Tensor:
        """x (M, D) at positions (M,) -> (M, D), normed."""
        home = x.device
        for y in self.walk(x, positions, attend, across):
            x = y
        return self.finish(x.to(home))

    def walk(
        self, x: Tensor, positions: Tensor | slice, attend: PrefillAttention, across: Across | None = None
    ) -> Iterator[Tensor]:
        """x after each layer, so that who wants to can pause in between; `finish` what the last one gives."""
        cos, sin = x, x  # the first layer has an entry
        for layer, block in enumerate(self.blocks):
            entry = self._entry_before.get(layer)
            if entry is not None:
                x, cos, sin = entry(x, positions)
            x = block(x, layer, (cos, sin), attend, across)
            yield x

    def step(
        self,
        x: Tensor,
        positions: Tensor | slice,
        see: DecodeAttention,
        kernels: Kernels,
        look: CrossAttention | None = None,
    ) -> Tensor:
        """As `forward` for one token of each row, x (M, D), in fixed calls and on one device: -> (M, D), normed."""
        c = self.config
        [entry] = self.entries
        x, cos, sin = entry(x, positions)
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        after = [*(block.attention_norm for block in blocks[1:]), self.norm]
        normed = functional.rms_norm(x, (c.width,), blocks[0].attention_norm, c.eps)
        for layer, (block, following) in enumerate(zip(blocks, after, strict=True)):
            seen = block.out(see(layer, block.heads(normed), cos, sin))
            if look is not None:
                normed, x = kernels.add_rms_norm(seen, x, block.cross_norm, c.eps)
                seen = look(layer, block, normed, cos, sin)
            normed, x = kernels.add_rms_norm(seen, x, block.mlp_norm, c.eps)
            made = block.down(kernels.gate(block.gate_up(normed), c.activation))
            normed, x = kernels.add_rms_norm(made, x, following, c.eps)
        return normed

    def finish(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (self.config.width,), self.norm, self.config.eps)


class KVCache:
    """Keys and values of rows that are at unequal positions: static, (layers, rows, G, S, d) each."""

    def __init__(
        self,
        config: StackConfig,
        *,
        rows: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        together: bool | None = None,
    ) -> None:
        """together: step all rows in one product, masked, or each by itself; None = as is best for the device."""
        shape = (config.layers, rows, config.kv_heads, positions, config.head_dim)
        self._together = device.type != "cpu" if together is None else together
        # Rows that are masked together must hold numbers everywhere. One by one only what was written is read, and what
        # was never written takes no memory: 64 MiB a row that nobody has used yet.
        make = torch.zeros if self._together else torch.empty
        self.k = make(shape, device=device, dtype=dtype)
        self.v = make(shape, device=device, dtype=dtype)
        self._groups = config.kv_heads
        self._scale = config.score_scale

    @property
    def positions(self) -> int:
        return self.k.shape[3]

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def reading(self, row: int, start: int, count: int) -> PrefillAttention:
        """`count` new tokens of one row at positions start..start+count-1, causal."""
        end = start + count
        mask = torch.ones(count, end, dtype=torch.bool, device=self.k.device).tril(start)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.k[layer, row, :, start:end] = k.transpose(0, 1)
            self.v[layer, row, :, start:end] = v.transpose(0, 1)
            heads, size = q.shape[1:]
            share = heads // self._groups
            keys = self.k[layer, row, :, None, :end].expand(-1, share, -1, -1)  # (G, R, L, d)
            values = self.v[layer, row, :, None, :end].expand(-1, share, -1, -1)
            queries = q.view(count, self._groups, share, size).permute(1, 2, 0, 3)  # (G, R, S, d)
            seen = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self._scale)
            return seen.permute(2, 0, 1, 3).reshape(count, heads * size)

        return attend

    def stepping(self, rows: Sequence[int], positions: Sequence[int]) -> PrefillAttention:
        """One new token for each of these rows, at its own position."""
        device = self.k.device
        where, when = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
        longest = max(positions) + 1
        hidden = (torch.arange(longest, device=device)[None, :] > when[:, None])[:, None, None]  # (n, 1, 1, L)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.k[layer, where, :, when] = k
            self.v[layer, where, :, when] = v
            count, heads, size = q.shape
            queries = q.view(count, self._groups, heads // self._groups, size)  # (n, G, R, d)
            keys, values = self.k[layer, :, :, :longest][where], self.v[layer, :, :, :longest][where]
            return grouped_attention(queries, keys, values, hidden, self._scale).reshape(count, heads * size)

        def attend_apart(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # On a CPU each row reads its own keys where they lie: no copy, no padding, and no row depends on another.
            _, heads, size = q.shape
            queries = q.view(-1, 1, self._groups, heads // self._groups, size)  # (n, 1, G, R, d)
            seen = []
            for i, (row, at) in enumerate(zip(rows, positions, strict=True)):
                keys, values = self.k[layer, row, :, : at + 1], self.v[layer, row, :, : at + 1]  # (G, L, d)
                keys[:, at] = k[i]
                values[:, at] = v[i]
                seen.append(
                    functional.scaled_dot_product_attention(queries[i], keys[None], values[None], scale=self._scale)
                )
            return (torch.cat(seen) if len(seen) > 1 else seen[0]).reshape(-1, heads * size)

        return attend if self._together else attend_apart

    def standing(self, positions: Tensor, length: int, kernels: Kernels) -> DecodeAttention:
        """One new token for each of the first n rows, at positions (n,) on the device, and it sees what lies before it,
        below `length`.

        Of fixed shape, and nothing is asked of the host: it may be recorded. Keys are read where they lie.
        """
        count = len(positions)

        def see(layer: int, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            keys, values = self.k[layer, :count], self.v[layer, :count]
            return kernels.step_attention(heads, cos, sin, keys, values, positions, length, self._scale)

        return see

    def wipe(self, row: int) -> None:
        """Put zeros where a row's numbers went wrong: what is masked is multiplied by nothing, and nothing times NaN
        is NaN."""
        self.k[:, row] = 0
        self.v[:, row] = 0

    def cut(self, row: int, count: int) -> tuple[Tensor, ...]:
        """A copy of the row's first `count` positions: k, v (layers, G, count, d)."""
        return self.k[:, row, :, :count].clone(), self.v[:, row, :, :count].clone()

    def paste(self, row: int, prefix: tuple[Tensor, ...]) -> None:
        k, v = prefix
        count = k.shape[2]
        self.k[:, row, :, :count] = k
        self.v[:, row, :, :count] = v


class SplitKVCache:
    """A KVCache for each stage of a Stack, on the stage's device, used as one."""

    def __init__(
        self, config: StackConfig, stages: Sequence[Stage], *, rows: int, positions: int, dtype: torch.dtype
    ) -> None:
        self.parts = [
            KVCache(
                replace(config, layers=stage.layers), rows=rows, positions=positions, device=stage.device, dtype=dtype
            )
            for stage in stages
        ]
        self._places = [(part, layer) for part, stage in enumerate(stages) for layer in range(stage.layers)]

    def reading(self, row: int, start: int, count: int) -> PrefillAttention:
        return self._joined([part.reading(row, start, count) for part in self.parts])

    def stepping(self, rows: Sequence[int], positions: Sequence[int]) -> PrefillAttention:
        return self._joined([part.stepping(rows, positions) for part in self.parts])

    def wipe(self, row: int) -> None:
        for part in self.parts:
            part.wipe(row)

    def _joined(self, attends: Sequence[PrefillAttention]) -> PrefillAttention:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            part, inside = self._places[layer]
            return attends[part](inside, q, k, v)

        return attend

    def cut(self, row: int, count: int) -> tuple[Tensor, ...]:
        """As of a KVCache, k and v of each part in turn."""
        return tuple(tensor for part in self.parts for tensor in part.cut(row, count))

    def paste(self, row: int, prefix: tuple[Tensor, ...]) -> None:
        for index, part in enumerate(self.parts):
            part.paste(row, prefix[2 * index : 2 * index + 2])


class DepthKVCache:
    """Keys and values of a decoder whose rows always stand at the same position: (layers, rows, G, S, d) each."""

    def __init__(
        self, config: StackConfig, *, rows: int, positions: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, rows, config.kv_heads, positions, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self._groups = config.kv_heads
        self._scale = config.score_scale
        self._views: dict[tuple[int, int, int], list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        self._places = torch.arange(positions, device=device)[:, None].repeat(1, rows)

    def _view(self, rows: int, start: int, count: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each layer where the new keys and values go (B, G, S, d), and all that are seen (B, G, L, d).

        Kept, as every frame asks for the same again: cutting them anew costs as much as the attention itself."""
        found = self._views.get((rows, start, count))
        if found is None:
            end = start + count
            found = [
                (k[:rows, :, start:end], v[:rows, :, start:end], k[:rows, :, :end], v[:rows, :, :end])
                for k, v in zip(self.k, self.v, strict=True)
            ]
            self._views[rows, start, count] = found
        return found

    def at(self, rows: int, start: int, count: int) -> PrefillAttention:
        """`count` new tokens at start..start+count-1 for each of the first `rows` rows; tokens in order (row,
        position)."""
        views = self._view(rows, start, count)
        if count == 1:
            return self._stepping(rows, views)
        hidden = torch.ones(count, start + count, dtype=torch.bool, device=self.k.device).triu(start + 1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads, size = q.shape[1:]
            new_keys, new_values, keys, values = views[layer]
            new_keys.copy_(k.view(rows, count, self._groups, size).transpose(1, 2))
            new_values.copy_(v.view(rows, count, self._groups, size).transpose(1, 2))
            wide = q.to(keys.dtype).view(rows, count, self._groups, heads // self._groups, size)
            queries = wide.permute(0, 2, 3, 1, 4)  # (B, G, R, S, d)
            seen = grouped_attention(queries, keys[:, :, None], values[:, :, None], hidden, self._scale)
            return seen.permute(0, 3, 1, 2, 4).reshape(rows * count, heads * size).to(q.dtype)

        return attend

    def standing(self, rows: int, position: int, kernels: Kernels) -> DecodeAttention:
        """One new token at `position` for each of the first `rows` rows; it may be recorded."""
        groups = self._groups
        attend = self._stepping(rows, self._view(rows, position, 1), fused=True)
        at = self._places[position, :rows]

        def see(layer: int, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            if kernels.name == "torch":  # all rows see alike, so one fused call needs no mask
                turned = rotate(heads[:, :-groups], cos, sin)
                return attend(layer, turned[:, :-groups], turned[:, -groups:], heads[:, -groups:])
            cos, sin = cos.expand(rows, -1, -1), sin.expand(rows, -1, -1)
            keys, values = self.k[layer, :rows], self.v[layer, :rows]
            return kernels.step_attention(heads, cos, sin, keys, values, at, position + 1, self._scale)

        return see

    def _stepping(
        self, rows: int, views: list[tuple[Tensor, Tensor, Tensor, Tensor]], *, fused: bool | None = None
    ) -> PrefillAttention:
        if fused is None:
            fused = self.k.device.type == "cpu"  # half the time of two products and a softmax: it is all overhead

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads, size = q.shape[1:]
            new_keys, new_values, keys, values = views[layer]
            new_keys.copy_(k[:, :, None])
            new_values.copy_(v[:, :, None])
            queries = q.to(keys.dtype).view(rows, self._groups, heads // self._groups, size)  # (B, G, R, d)
            seen = (
                functional.scaled_dot_product_attention(queries, keys, values, scale=self._scale)
                if fused
                else grouped_attention(queries, keys, values, None, self._scale)
            )
            return seen.reshape(rows, heads * size).to(q.dtype)

        return attend


class CrossKVCache:
    """Keys and values of the other sequences that rows attend to, each of its own length S: (layers, G, S, d) each.

    Rows that are stepped together lie in one static tensor (layers, rows, G, S, d), the others each in one of its own
    size.
    """

    def __init__(
        self,
        config: StackConfig,
        *,
        rows: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        together: bool | None = None,
    ) -> None:
        """together: as of a KVCache; None = as is best for the device."""
        cross = config.cross
        if cross is None:
            raise ValueError("a stack without cross-attention has nothing to keep")
        self._together = device.type != "cpu" if together is None else together
        self._groups = cross.kv_heads
        self._scale = cross.head_dim**-0.5 if config.scale is None else config.scale
        self._shape = (config.layers, cross.kv_heads, positions, cross.head_dim)
        self._place = {"device": device, "dtype": dtype}
        layers, groups, _, size = self._shape
        static = (layers, rows, groups, positions if self._together else 0, size)
        self._k = torch.zeros(static, device=device, dtype=dtype)
        self._v = torch.zeros(static, device=device, dtype=dtype)
        self._rows = [(self._k[:, row], self._v[:, row]) for row in range(rows)]
        self._lengths = [0] * rows

    def begin(self, row: int, length: int) -> None:
        """The row's other sequence has so many tokens; `put` brings each layer's."""
        self._lengths[row] = length
        if not self._together:
            layers, groups, _, size = self._shape
            k, v = torch.empty(2, layers, groups, length, size, **self._place)  # type: ignore[call-overload]
            self._rows[row] = (k, v)

    def put(self, layer: int, row: int, k: Tensor, v: Tensor) -> None:
        """k, v (S, G, d)."""
        for kept, new in zip(self._rows[row], (k, v), strict=True):
            kept[layer, :, : len(new)] = new.transpose(0, 1)

    def end(self, row: int) -> None:
        """The row needs nothing any more."""
        self._lengths[row] = 0
        if not self._together:
            self._rows[row] = (self._k[:, row], self._v[:, row])

    def length(self, row: int) -> int:
        return self._lengths[row]

    def wipe(self, row: int) -> None:
        """As of a KVCache."""
        for kept in self._rows[row]:
            kept.zero_()

    @property
    def nbytes(self) -> int:
        """Of what all rows share."""
        return self._k.nbytes + self._v.nbytes

    def standing(self, lengths: Tensor, length: int, kernels: Kernels) -> Callable[[int, Tensor], Tensor]:
        """One token of each of the first n rows, whose sequences have lengths (n,) on the device, from 1, and of which
        the first `length` are looked at: (layer, q (n, H, d)) -> (n, H * d). It may be recorded."""
        count, last = len(lengths), lengths - 1

        def attend(layer: int, q: Tensor) -> Tensor:
            k, v = self._k[layer, :count], self._v[layer, :count]
            return kernels.decode_attention(q, k, v, last, length, self._scale)

        return attend

    def looking(self, rows: Sequence[int]) -> Callable[[int, Tensor], Tensor]:
        """One token of each of these rows: (layer, q (n, H, d)) -> (n, H * d)."""
        return self._looking_together(rows) if self._together else self._looking_apart(rows)

    def _looking_together(self, rows: Sequence[int]) -> Callable[[int, Tensor], Tensor]:
        device = self._k.device
        where = torch.tensor(rows, device=device)
        lengths = torch.tensor([self._lengths[row] for row in rows], device=device)
        longest = max(self._lengths[row] for row in rows)
        hidden = (torch.arange(longest, device=device) >= lengths[:, None])[:, None, None]  # (n, 1, 1, L)

        def attend(layer: int, q: Tensor) -> Tensor:
            count, heads, size = q.shape
            queries = q.view(count, self._groups, heads // self._groups, size)  # (n, G, R, d)
            keys, values = self._k[layer, :, :, :longest][where], self._v[layer, :, :, :longest][where]
            return grouped_attention(queries, keys, values, hidden, self._scale).reshape(count, heads * size)

        return attend

    def _looking_apart(self, rows: Sequence[int]) -> Callable[[int, Tensor], Tensor]:
        kept = [self._rows[row] for row in rows]

        def attend(layer: int, q: Tensor) -> Tensor:
            # In float32 whatever is kept: the fused call takes three times as long for one bfloat16 query of a head.
            _, heads, size = q.shape
            queries = q.float().view(-1, self._groups, heads // self._groups, size)  # (n, G, R, d)
            seen = [
                grouped_attention(query, k[layer].float(), v[layer].float(), None, self._scale)
                for query, (k, v) in zip(queries, kept, strict=True)
            ]
            return torch.stack(seen).view(-1, heads * size).to(q.dtype)

        return attend

    def reading(self, row: int) -> Callable[[int, Tensor], Tensor]:
        """Any number of tokens of one row: (layer, q (M, H, d)) -> (M, H * d)."""
        length = self._lengths[row]
        k, v = self._rows[row]

        def attend(layer: int, q: Tensor) -> Tensor:
            count, heads, size = q.shape
            share = heads // self._groups
            keys = k[layer, :, None, :length].expand(-1, share, -1, -1)  # (G, R, L, d)
            values = v[layer, :, None, :length].expand(-1, share, -1, -1)
            queries = q.view(count, self._groups, share, size).permute(1, 2, 0, 3)  # (G, R, M, d)
            seen = functional.scaled_dot_product_attention(queries, keys, values, scale=self._scale)
            return seen.permute(2, 0, 1, 3).reshape(count, heads * size)

        return attend


def all_to_all(config: StackConfig) -> PrefillAttention:
    """All tokens of one sequence see each other: an encoder's attention, without a cache."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, heads, size = q.shape
        share = heads // config.kv_heads
        keys, values = (part.transpose(0, 1).repeat_interleave(share, 0)[None] for part in (k, v))
        seen = functional.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, scale=config.scale)
        return seen[0].transpose(0, 1).reshape(count, heads * size)

    return attend
