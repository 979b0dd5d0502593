"""Linear layers: plain, packed for bfloat16 on a CPU, int8 with PyTorch's kernel on an x86 CPU, and fp8 on a GPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(FP8).max
_FP8_MIN_EXPONENT = -15  # with this scale, the smallest fp8 number is the smallest number of float16


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Weight:
    """A weight in fp8 (e4m3: 3 bits of mantissa), with a scale for each output.

    values (outputs, inputs) float8_e4m3fn. scales (outputs,) float32: powers of two, so that a value times its scale is
    a number of bfloat16 and of float16, without a further rounding.
    """

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Fp8Weight:
        """Round a weight (outputs, inputs) to fp8. The largest value of each output fits into the range of fp8."""
        wide = weight.float()
        largest = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        scales = torch.exp2((largest / _FP8_MAX).log2().ceil().clamp_min(_FP8_MIN_EXPONENT))
        return cls((wide / scales[:, None]).to(FP8), scales)

    def rounded(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (outputs, inputs) with the same values in another dtype."""
        return (self.values.float() * self.scales[:, None]).to(dtype)


class Linear(nn.Module):
    """A linear layer: y = x W^T + b. The weight has undefined values until a checkpoint is loaded.

    fp8: the same weight in fp8, for kernels that read it; None = the weight is not rounded to fp8.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=dtype), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(outputs, device=device, dtype=dtype), requires_grad=False) if bias else None
        )
        self.fp8: Fp8Weight | None = None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def round_to_fp8(self) -> None:
        """Round the weight to fp8. `weight` keeps the rounded values, so all kernels compute the same products."""
        self.fp8 = Fp8Weight.of(self.weight.data)
        self.weight.data = self.fp8.rounded(self.weight.dtype)


_MIN_TOKENS = 3  # a batch with fewer tokens than this is padded to this number of tokens


class PackedLinear(nn.Module):
    """A bfloat16 Linear on a CPU that stores the weight in the blocked order of oneDNN.

    For one token, a PackedLinear is 1.6 times as fast as a Linear. The result of a token has the same bits in a batch
    of any size. A batch of one or two tokens is padded to three tokens, for two reasons. For one token, oneDNN uses
    another kernel than for several tokens, and the two kernels give different bits. Three tokens take less time than
    one or two tokens: 3.2 ms instead of 3.9 or 4.6 ms, for a weight of 2048 x 16384 on a Zen 5.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.weight_bytes = 2 * linear.weight.numel()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data, 1)
        self._bias = linear.bias.data if linear.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        if count < _MIN_TOKENS:
            x = functional.pad(x, (0, 0, 0, _MIN_TOKENS - count))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self._packed, self._bias, "none", [], "")
        return y[:count]

    @staticmethod
    def supports(linear: Linear) -> bool:
        """Whether `linear` can be packed: the weight is bfloat16, and oneDNN supports bfloat16 on this CPU."""
        return (
            linear.weight.device.type == "cpu"
            and linear.weight.dtype == torch.bfloat16
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )


class QuantizedLinear(nn.Module):
    """The base class of linear layers with quantized weights. They also compute the RMSNorm that precedes the layer."""

    weight_bytes: int  # the size of the weights and their scales in bytes

    def __init__(self, norm: Tensor | None, eps: float) -> None:
        """norm (inputs,): the weight of the RMSNorm before the layer; None = there is no norm."""
        super().__init__()
        self._norm_floor = torch.full((1, 1), math.sqrt(len(norm) * eps)) if norm is not None else None

    def lengths(self, x: Tensor) -> Tensor:
        """Return the length of each token: x (M, D) -> (M, 1).

        The length is sqrt(D * (mean(x^2) + eps)): sqrt(D) times the number by which RMSNorm divides the token.
        """
        assert self._norm_floor is not None  # noqa: S101 - only a layer with a norm has lengths
        found: Tensor = torch.linalg.vector_norm(x.float(), dim=1, keepdim=True)
        return found.hypot_(self._norm_floor)


class Int8Linear(QuantizedLinear):
    """A Linear with int8 weights and 8-bit activations, on an x86 CPU. It returns float32.

    If `norm` is given, an Int8Linear computes linear(rms_norm(x)), with the norm's weight `norm` and `eps`. Each output
    has a scale for its weights, and each token has a scale for its activations.

    The kernel accepts only one activation scale for the whole batch. Therefore this class divides the values of each
    token by the token's largest magnitude, and passes a constant scale to the kernel. So the result of a token does not
    depend on other tokens. Sums are exact integers. On a CPU without the VNNI instructions, activations have 7 bits,
    because 8-bit activations would overflow the kernel's 16-bit sums.
    """

    def __init__(self, linear: Linear, norm: Tensor | None = None, eps: float = 0.0) -> None:
        super().__init__(norm, eps)
        if linear.weight.shape[1] % 8:
            # The kernel rounds groups of 8 activations. An incomplete last group would be rounded differently.
            raise ValueError(f"an int8 linear needs a multiple of 8 inputs, but this one has {linear.weight.shape[1]}")
        weight = linear.weight.data.float()
        self.weight_bytes = weight.numel() + 4 * len(weight)
        scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        rounded = torch.round(weight / scales[:, None]).to(torch.int8)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        limit = 127 if torch.cpu._is_vnni_supported() else 63
        self._scale, self._zero_point = 1 / limit, limit + 1
        with warnings.catch_warnings():
            # Ignore the warning that torch will remove quantized tensors. The kernel itself stays in torch, and the
            # package that the warning recommends is slower here.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(rounded, scales.double(), zeros, 0)
            bias = linear.bias.data.float() if linear.bias is not None else None
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self._bias = bias
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        # x / sqrt(mean(x^2) + eps) * norm = x * (norm * sqrt(D)) / hypot(|x|, sqrt(D * eps))
        self._norm = norm.data.float() * math.sqrt(len(norm)) if norm is not None else None

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the layer: x (M, inputs) -> (M, outputs).

        lengths: the result of the method `lengths` for x; None = this method computes the lengths itself.
        """
        x32 = x.float()
        scaled = x32 if self._norm is None else x32 * self._norm
        largest = scaled.abs().amax(dim=1, keepdim=True)
        # For a token of zeros, this division gives 0 / 0 = NaN. The kernel converts NaN to an integer, and then `mul_`
        # multiplies the output by 0.
        y: Tensor = self._multiply(scaled / largest, self._scale, self._zero_point, self._packed)
        if self._norm_floor is not None:
            # RMSNorm divides all values of a token by the length of the token. The product is linear, so it is enough
            # to divide the scale of the token by this length. This takes less time than a division of all values.
            largest.div_(self.lengths(x32) if lengths is None else lengths)
        y.mul_(largest)
        return y if self._bias is None else y.add_(self._bias)

    @staticmethod
    def supported() -> bool:
        """Whether PyTorch has the int8 kernel on this machine. The kernel is a part of the library FBGEMM."""
        return torch.backends.quantized.engine in ("x86", "fbgemm")


def as_linear(module: nn.Module) -> Linear:
    """Return `module` if it is a Linear. Raises TypeError if the module is packed or quantized."""
    if not isinstance(module, Linear):
        raise TypeError(f"{type(module).__name__} is not a Linear: load the weights before packing or quantizing")
    return module


def replace_linears(module: nn.Module, make: Callable[[Linear], nn.Module | None]) -> None:
    """Replace each Linear inside `module` by the result of `make(linear)`, unless the result is None."""
    for name, child in module.named_children():
        if isinstance(child, Linear):
            replacement = make(child)
            if replacement is not None:
                setattr(module, name, replacement)
        else:
            replace_linears(child, make)
