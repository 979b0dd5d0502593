"""Modules that compute with the native kernels: linear layers with 8-bit or 4-bit weights, attention, whole stacks.

All values are float32 on the CPU. Letters in shapes: n tokens, H query heads, G key heads, d head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.nn.linear import Linear, QuantizedLinear
from app.runtime.pages import mark_for_huge_pages

if TYPE_CHECKING:
    from app.nn.native.library import Library

VECTOR = 16  # number of values that the kernels compute at the same time
BLOCK_OUTPUTS, BLOCK_INPUTS = 16, 32  # shape of a block of weights; each output has one float16 scale in a block
_PACKED_AT_ONCE = 1 << 24  # the number of weights that are converted to float32 at the same time


class _Linear(ctypes.Structure):
    """The Python form of the struct Linear in kernels.cpp."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("bits", ctypes.c_int32),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class _Layer(ctypes.Structure):
    """The Python form of the struct Layer in kernels.cpp."""

    _fields_ = (("qkv", _Linear), ("out", _Linear), ("gate_up", _Linear), ("down", _Linear))


class _Attention(ctypes.Structure):
    """The Python form of the struct Attention in kernels.cpp."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("layer_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("group_stride", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("angle_stride", ctypes.c_int64),
        ("heads", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class _LowRank(ctypes.Structure):
    """The Python form of the struct LowRank in kernels.cpp."""

    _fields_ = (
        ("down_table", ctypes.c_void_p),
        ("up_table", ctypes.c_void_p),
        ("down", ctypes.c_void_p),
        ("token", ctypes.c_void_p),
        ("up", ctypes.c_void_p),
        ("chosen", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("down_count", ctypes.c_int64),
        ("up_count", ctypes.c_int64),
        ("blocks", ctypes.c_int64),
        ("norm_floor", ctypes.c_float),
    )


class NativeLinear(QuantizedLinear):
    """A Linear with 8-bit or 4-bit weights and 8-bit activations. It returns float32.

    32 weights of an output share a scale, and 32 activations of a token share a scale. So a large activation makes
    only the 31 activations less exact that share its scale. If `norm` is given, computes linear(rms_norm(x)). The
    result of a token does not depend on other tokens, on the number of threads, or on the instruction set.
    """

    def __init__(
        self, library: Library, linear: Linear, *, bits: int = 8, norm: Tensor | None = None, eps: float = 0.0
    ) -> None:
        """Quantize the weights of `linear`. bits: 8 or 4. Raises ValueError for an unsupported number of inputs."""
        super().__init__(norm, eps)
        outputs, inputs = linear.weight.shape
        if inputs % BLOCK_INPUTS:
            raise ValueError(f"a native linear needs a multiple of {BLOCK_INPUTS} inputs, but this one has {inputs}")
        self.library, self.outputs = library, outputs
        rows, blocks = -(-outputs // BLOCK_OUTPUTS), inputs // BLOCK_INPUTS
        row_bytes = blocks * BLOCK_OUTPUTS * BLOCK_INPUTS * bits // 8
        self._weights = _zeros(rows * row_bytes)
        self._scales = _zeros(rows * blocks * BLOCK_OUTPUTS * 2)
        at_once = max(1, _PACKED_AT_ONCE // inputs // BLOCK_OUTPUTS)
        for first in range(0, rows, at_once):
            part = linear.weight.data[first * BLOCK_OUTPUTS : (first + at_once) * BLOCK_OUTPUTS].float().contiguous()
            library.pack(
                library.pool,
                part.data_ptr(),
                len(part),
                inputs,
                bits,
                self._weights.data_ptr() + first * row_bytes,
                self._scales.data_ptr() + first * blocks * BLOCK_OUTPUTS * 2,
            )
        self.weight_bytes = self._weights.nbytes + self._scales.nbytes
        self._bias = linear.bias.data.float().contiguous() if linear.bias is not None else None
        self._norm = norm.data.float().contiguous() if norm is not None else None
        self.struct = _Linear(
            self._weights.data_ptr(),
            self._scales.data_ptr(),
            self._bias.data_ptr() if self._bias is not None else None,
            self._norm.data_ptr() if self._norm is not None else None,
            eps,
            bits,
            inputs,
            outputs,
        )
        self._address = ctypes.addressof(self.struct)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the layer: x (n, inputs) -> (n, outputs). `lengths` is ignored: the kernel computes the norm."""
        del lengths
        x32 = x.float().contiguous()
        y = torch.empty(len(x32), self.outputs)
        self.library.linear(self.library.pool, self._address, x32.data_ptr(), len(x32), y.data_ptr())
        return y


def _zeros(size_bytes: int) -> Tensor:
    """Return a tensor of zeros (size_bytes,) uint8, in memory for which the system may use huge pages."""
    memory = torch.empty(size_bytes, dtype=torch.uint8)
    mark_for_huge_pages(memory.data_ptr(), size_bytes)
    return memory.zero_()


def native_gate(library: Library, gate_up: Tensor) -> Tensor:
    """Compute SwiGLU: gate_up (n, 2 F) float32 -> silu(gate) * up (n, F). The first F columns are the gate."""
    count, width = len(gate_up), gate_up.shape[1] // 2
    y = torch.empty(count, width)
    library.gate(library.pool, gate_up.contiguous().data_ptr(), count, width, y.data_ptr())
    return y


class NativeLowRank:
    """Computes the low-rank products of one linear layer: the layer's input times A and B of each token's adapter."""

    def __init__(
        self,
        library: Library,
        tables: tuple[Tensor, Tensor],
        indices: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor],
        norm_floor: float | None,
    ) -> None:
        """Set the matrices.

        tables: A (lines, inputs) and B (lines, width), bfloat16. indices: down, token, up, small and starts of
        `_Indices` in low_rank.py. norm_floor: number of inputs * eps of the RMSNorm before the layer; None = no norm.
        """
        self._library, self._held = library, (tables, indices)
        addresses = [None if part is None else part.data_ptr() for part in (*tables, *indices)]
        down, _, up, _, starts = indices
        self._struct = _LowRank(
            *addresses, tables[0].shape[1], tables[1].shape[1], len(down), len(up), len(starts),
            -1.0 if norm_floor is None else norm_floor,
        )  # fmt: skip
        self._address = ctypes.addressof(self._struct)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the products to y (n, outputs) float32, and return y.

        x (n, inputs): the input of the layer, before the norm.
        """
        x = x.float().contiguous()
        self._library.add_low_rank(self._library.pool, self._address, x.data_ptr(), y.data_ptr())
        return y


class NativeAttention:
    """Causal self-attention of new tokens, on a KV cache. It also applies RoPE and writes the cache.

    k, v (layers, rows, G, S, d) float32. rows, positions: the row and the position of each of the n new tokens. A token
    attends to its own position and to all earlier positions of its row.
    """

    def __init__(
        self, library: Library, k: Tensor, v: Tensor, *, scale: float, rows: Sequence[int], positions: Sequence[int]
    ) -> None:
        self._library = library
        self._held = (k, v, torch.tensor(rows, dtype=torch.int64), torch.tensor(positions, dtype=torch.int64))
        groups, _, size = k.shape[2:]
        layer, row, group = k.stride()[:3]
        at_rows, at_positions = self._held[2].data_ptr(), self._held[3].data_ptr()
        self.struct = _Attention(
            k.data_ptr(), v.data_ptr(), layer, row, group, at_rows, at_positions, 0, 0, 0, 0, groups, size, scale
        )

    def set_angles(self, heads: int, cos: Tensor, sin: Tensor) -> None:
        """Set the number of query heads, and the angles of the new tokens.

        cos, sin: from `rotary`, (n, 1, d), or (1, 1, d) if all tokens have the same angles.
        """
        struct = self.struct
        struct.heads, struct.cos, struct.sin = heads, cos.data_ptr(), sin.data_ptr()
        struct.angle_stride = struct.size if len(cos) > 1 else 0

    def __call__(self, layer: int, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Compute attention of one layer: heads (n, H + 2 G, d) -> (n, H d).

        heads: the queries, keys and values of the new tokens, without RoPE.
        """
        count, width, size = heads.shape
        queries = width - 2 * self.struct.groups
        self.set_angles(queries, cos, sin)
        y = torch.empty(count, queries * size)
        self._library.attend(
            self._library.pool, ctypes.addressof(self.struct), layer, heads.data_ptr(), count, y.data_ptr()
        )
        return y


class StagedNativeAttention(NativeAttention):
    """Native attention of a Stack with several stages. Each stage has its own KV cache."""

    def __init__(self, stages: Sequence[NativeAttention], layers: Sequence[tuple[int, int]]) -> None:
        """layers: for each layer, the index of its stage and the index of the layer inside the stage."""
        self._stages, self._layers = stages, layers

    def __call__(self, layer: int, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        stage, inner_layer = self._layers[layer]
        return self._stages[stage](inner_layer, heads, cos, sin)


class NativeStack:
    """Computes all layers of a Stack in one call of the library.

    The result has the same bits as a computation with a separate call for each operation.
    """

    def __init__(
        self, library: Library, layers: Sequence[tuple[NativeLinear, ...]], norm: Tensor, eps: float, heads: int
    ) -> None:
        """layers: qkv, out, gate_up and down of each layer. norm (D,): the weight of the final norm."""
        self._library, self._heads, self._eps = library, heads, eps
        self._held = layers
        self._norm = norm.data.float().contiguous()
        self._layers = (_Layer * len(layers))(*(_Layer(*(linear.struct for linear in layer)) for layer in layers))

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: NativeAttention) -> Tensor:
        """Compute the layers and the final norm: x (n, D) -> (n, D)."""
        x = x.float().clone(memory_format=torch.contiguous_format)
        attend.set_angles(self._heads, cos, sin)
        y = torch.empty_like(x)
        self._library.stack(
            self._library.pool,
            ctypes.addressof(self._layers),
            len(self._layers),
            ctypes.addressof(attend.struct),
            self._norm.data_ptr(),
            self._eps,
            x.data_ptr(),
            len(x),
            y.data_ptr(),
        )
        return y
