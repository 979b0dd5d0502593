"""Chooses how to quantize the linear layers of a model.

On a CPU: 8 or 4 bits, with native kernels or PyTorch's int8 kernel. On a GPU: fp8, with Triton's kernels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from app.errors import EngineUnavailable
from app.nn.linear import Int8Linear, Linear, QuantizedLinear
from app.nn.native.library import Library, NativeUnavailable, load
from app.nn.native.modules import BLOCK_INPUTS, VECTOR, NativeLinear
from app.nn.transformer import Block

if TYPE_CHECKING:
    from torch import Tensor

    from app.nn.transformer import Stack, StackConfig
    from app.runtime.cuda_graphs import Setup

log = logging.getLogger(__name__)

Quantize = Literal["none", "int8", "int4", "fp8"]
FP8_CAPABILITY = (8, 9)  # from this compute capability on, GPUs can convert fp8
_BITS = {"int8": 8, "int4": 4, "fp8": 8}


@dataclass(frozen=True, slots=True)
class Quantized:
    """How the weights of a model are quantized.

    name: a part of the fingerprint, because generated codes depend on the weights and the kernels. library: the native
    kernels; None = other kernels. facts: values for /health.
    """

    name: str
    library: Library | None = None
    facts: Setup = ()


@dataclass(frozen=True, slots=True)
class Quantization(Quantized):
    """Quantizes linear layers for a CPU. Without native kernels, PyTorch's int8 kernel is used."""

    bits: int = 8

    def quantize(self, linear: Linear, norm: Tensor | None = None, eps: float = 0.0) -> QuantizedLinear:
        """Return `linear` with quantized weights. norm: the weight of the RMSNorm before the layer, or None."""
        if self.library is None:
            return Int8Linear(linear, norm, eps)
        return NativeLinear(self.library, linear, bits=self.bits, norm=norm, eps=eps)

    def quantize_output(self, linear: Linear) -> QuantizedLinear:
        """Return `linear` with 8-bit weights, even if `bits` is 4.

        Use this for layers that compute logits or join two stacks, because the errors of these layers matter most.
        """
        return Int8Linear(linear) if self.library is None else NativeLinear(self.library, linear)

    def quantize_stack(self, stack: Stack, *, attention: bool) -> None:
        """Quantize the MLPs of all blocks. attention: whether self-attention is quantized, too."""
        for block in stack.blocks:
            assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
            block.quantize(self.quantize, attention=attention)
        if attention and self.library is not None:
            stack.use_native(self.library)


def choose_quantization(
    quantize: Quantize,
    devices: Iterable[torch.device],
    stacks: Iterable[StackConfig],
    folder: Path | None = None,
    *,
    native: bool = True,
) -> Quantization | None:
    """Return how to quantize these stacks on a CPU; None if `quantize` is "none" or "fp8".

    Compiles native kernels if `folder` has none.

    folder: where compiled kernels are stored; None = the cache folder of the user. native: whether the native kernels
    may be used. Without native kernels, int8 uses PyTorch's kernel. If the native kernels may be used but do not work,
    logs a warning. Raises EngineUnavailable.
    """
    if quantize in {"none", "fp8"}:
        return None
    if any(device.type != "cpu" for device in devices):
        raise EngineUnavailable(
            f"{quantize} weights are for the CPU only.", remedy="Set TTS_QUANTIZE=none, or fp8 for CSM on a GPU."
        )
    bits = _BITS[quantize]
    try:
        _check(stacks, native=native)
        library = load(folder or _user_folder(), torch.get_num_threads())
    except NativeUnavailable as error:
        if quantize != "int8":
            raise EngineUnavailable(
                f"{quantize} weights need the native kernels: {error}.", remedy="Set TTS_QUANTIZE=int8 or none."
            ) from error
        if not Int8Linear.supported():
            raise EngineUnavailable(
                f"int8 weights need the native kernels: {error}.", remedy="Set TTS_QUANTIZE=none."
            ) from error
        if native:
            log.warning(
                "int8 weights are slower and less exact without the native kernels, which are not used here: %s", error
            )
        return Quantization("int8", None, (("kernels", "torch"), ("kernels_reason", str(error))))
    return Quantization(f"{quantize} blocks", library, (("kernels", f"native {library.name}"),), bits)


def check_fp8(device: torch.device, dtype: torch.dtype, *, kernels: bool) -> None:
    """Raise EngineUnavailable if a model of this dtype on this device can't use fp8 weights.

    kernels: whether Triton's kernels may be used.
    """
    fault = ""
    if device.type != "cuda":
        fault = f"need an NVIDIA GPU, but the model runs on {device.type}"
    elif torch.version.hip is not None or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        fault = "need an NVIDIA GPU of compute capability 8.9 or higher"
    elif dtype == torch.float32:
        fault = "need TTS_DTYPE=bfloat16 or float16"
    elif not kernels:
        fault = "need Triton's kernels, and TTS_KERNELS=torch, TTS_COMPILE=1 or TTS_CUDA_GRAPHS=0 turns them off"
    if fault:
        raise EngineUnavailable(f"fp8 weights {fault}.", remedy="Set TTS_QUANTIZE=none.")


def round_to_fp8(stack: Stack) -> None:
    """Round the linear layers of all blocks to fp8, except cross-attention. The weights stay on their device."""
    for block in stack.blocks:
        assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
        block.round_to_fp8()


def quantized_bytes(weight: Tensor, quantize: Quantize) -> int:
    """Return an upper limit of the size in bytes of a weight (O, D) after quantization.

    Native kernels store one float16 scale for each 32 weights. PyTorch's int8 kernel stores 20 bytes for each output,
    and fp8 needs 4 bytes for each output.
    """
    scales = weight.numel() // BLOCK_INPUTS * 2
    return weight.numel() * _BITS[quantize] // 8 + max(scales, 20 * len(weight))


def _check(stacks: Iterable[StackConfig], *, native: bool) -> None:
    if not native:
        raise NativeUnavailable("TTS_KERNELS=torch turns the native kernels off")
    for stack in stacks:
        inputs = (stack.width, stack.ffn, stack.heads * stack.head_dim)
        if any(size % BLOCK_INPUTS for size in inputs) or stack.head_dim % VECTOR or stack.activation != "silu":
            raise NativeUnavailable("the native kernels do not support the shape of this model")


def _user_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tts-kernels"
