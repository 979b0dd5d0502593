"""Defines the sets of kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from app.errors import EngineUnavailable
from app.nn.kernels import torch_kernels, torch_state
from app.nn.kernels.depth import (
    MAX_DEPTH_ROWS,
    DepthFrame,
    depth_frame,
)
from app.nn.kernels.torch_state import DelayedResults, DelayedRows, FrameRows
from app.nn.linear import Fp8Weight

LINEAR_OPERATIONS = ("norm_linear", "add_linear")
CODEC_OPERATIONS = ("window_attention", "add_layer_norm", "conv_windows", "overlap_add")
# the operations of the set "triton-pdl" whose kernels start early
EARLY_OPERATIONS = ("step_attention", "decode_attention", "sample", "guided_sample", *LINEAR_OPERATIONS)
OPERATIONS = (
    "step_attention",
    "decode_attention",
    "add_rms_norm",
    "gate",
    "sample",
    "guided_sample",
    "delayed_inputs",
    "delayed_outputs",
    "frame_inputs",
    "frame_outputs",
    "frame_embeddings",
    *CODEC_OPERATIONS,
    *LINEAR_OPERATIONS,
)

_WITH_LINEAR = ("triton-linear", "triton-pdl", "persistent")  # the sets whose kernels compute matrix products


class Sample(Protocol):
    """The type of the kernel that draws codes. `torch_kernels.sample` describes the parameters."""

    def __call__(
        self,
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
    ) -> Tensor: ...


class GuidedSample(Protocol):
    """The type of the kernel that draws codes with guidance. See `torch_kernels.guided_sample`."""

    def __call__(
        self,
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
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class NormLinear(Protocol):
    """The type of the kernel for an RMSNorm and a linear layer. See `torch_kernels.norm_linear`."""

    def __call__(
        self,
        x: Tensor,
        update: Tensor | None,
        norm: Tensor,
        eps: float,
        weight: Tensor | Fp8Weight,
        activation: torch_kernels.Activation | None = None,
        *,
        wide: bool = False,
    ) -> tuple[Tensor, Tensor]: ...


class AddLinear(Protocol):
    """The type of the kernel for a linear layer and a sum. See `torch_kernels.add_linear`."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor | Fp8Weight,
        residual: Tensor,
        *,
        every: int = 1,
        constant: Tensor | None = None,
        whole: bool = False,
    ) -> tuple[Tensor, Tensor | None]: ...


class ConvWindows(Protocol):
    """The type of the kernel for the windows of a convolution. See `torch_kernels.conv_windows`."""

    def __call__(self, x: Tensor, past: Tensor, new: Tensor, kernel: int, dilation: int, *, elu: bool) -> Tensor: ...


class DecodeAttention(Protocol):
    """The type of the kernel for attention to a cache. See `torch_kernels.decode_attention`."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        length: int,
        scale: float,
        turn: tuple[Tensor, Tensor] | None = None,
        /,
    ) -> Tensor: ...


WindowAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
AddLayerNorm = Callable[[Tensor, "Tensor | None", Tensor, Tensor, float], tuple[Tensor, Tensor]]
DelayedInputs = Callable[[DelayedRows, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor, Tensor, Tensor]]
DelayedOutputs = Callable[[DelayedRows, Tensor, Tensor, Tensor, DelayedResults], None]


@dataclass(frozen=True, slots=True)
class Kernels:
    """One set of kernels. torch_kernels.py and torch_state.py describe each kernel.

    The set "triton-linear" is the set "triton" for steps in which `norm_linear` and `add_linear` also compute the
    matrix products. The kernels of the set "triton-pdl" are the same, but those of EARLY_OPERATIONS start before the
    kernel before them has ended. The set "persistent" is the set "triton-linear" for frames in which `depth_frame`
    computes all steps of the depth decoder.
    """

    name: Literal["torch", "triton", "triton-linear", "triton-pdl", "persistent", "compiled"]
    decode_attention: DecodeAttention
    step_attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, torch_kernels.Activation], Tensor]
    sample: Sample
    guided_sample: GuidedSample = torch_kernels.guided_sample
    delayed_inputs: DelayedInputs = torch_state.delayed_inputs
    delayed_outputs: DelayedOutputs = torch_state.delayed_outputs
    frame_inputs: Callable[[FrameRows, int], tuple[Tensor, Tensor, Tensor]] = torch_state.frame_inputs
    frame_outputs: Callable[[FrameRows, Tensor, Tensor, Tensor], Tensor] = torch_state.frame_outputs
    frame_embeddings: Callable[[FrameRows, Tensor, Tensor], None] = torch_state.frame_embeddings
    window_attention: WindowAttention = torch_kernels.window_attention
    add_layer_norm: AddLayerNorm = torch_kernels.add_layer_norm
    conv_windows: ConvWindows = torch_kernels.conv_windows
    overlap_add: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = torch_kernels.overlap_add
    norm_linear: NormLinear = torch_kernels.norm_linear
    add_linear: AddLinear = torch_kernels.add_linear
    depth_frame: DepthFrame = depth_frame
    # In a set of Triton kernels: the operations for which the torch kernel is used instead.
    from_torch: tuple[str, ...] = ()

    @property
    def sorts(self) -> bool:
        """Whether `sample` may sort all codes of a row.

        False = `sample` never sorts. True = `sample` sorts the codes if the sampling parameters do not allow the fast
        path of sampling.py.
        """
        return not self.fused or "sample" in self.from_torch

    @property
    def fused(self) -> bool:
        """Whether this is one of the sets of Triton kernels."""
        return self.name not in {"torch", "compiled"}

    @property
    def computes_codec(self) -> bool:
        """Whether the codec uses CODEC_OPERATIONS. With torch's kernels these would not save launches."""
        return self.fused and not set(CODEC_OPERATIONS) & set(self.from_torch)

    def computes_linear(self, tokens: int) -> bool:
        """Whether a step with this number of tokens uses `norm_linear` and `add_linear`."""
        return self.name in _WITH_LINEAR and tokens <= torch_kernels.MAX_TOKENS

    def computes_depth(self, rows: int) -> bool:
        """Whether a frame of this number of rows uses `depth_frame`."""
        return self.name == "persistent" and rows <= MAX_DEPTH_ROWS

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that steps with this set use."""
        found = tuple(each for each in OPERATIONS if self.name in _WITH_LINEAR or each not in LINEAR_OPERATIONS)
        return (*found, "depth_frame") if self.computes_depth(1) else found


TORCH = Kernels(
    "torch",
    torch_kernels.decode_attention,
    torch_kernels.step_attention,
    torch_kernels.add_rms_norm,
    torch_kernels.gate,
    torch_kernels.sample,
)


def early_kernels(fused: Kernels) -> Kernels:
    """Return the set "triton-pdl" for the set "triton"."""
    names = [name for name in EARLY_OPERATIONS if name not in fused.from_torch]
    starts: dict[str, Any] = {name: partial(getattr(fused, name), early=True) for name in names}
    return replace(fused, name="triton-pdl", **starts)


def compiled_kernels() -> Kernels:
    """Return the torch kernels, compiled by torch.compile. Needs a C++ compiler on a CPU, and Triton on CUDA."""

    def compiled(kernel: Any) -> Any:
        return torch.compile(kernel, dynamic=True)

    return Kernels(
        "compiled",
        decode_attention=compiled(torch_kernels.decode_attention),
        step_attention=compiled(torch_kernels.step_attention),
        add_rms_norm=compiled(torch_kernels.add_rms_norm),
        gate=compiled(torch_kernels.gate),
        sample=compiled(torch_kernels.sample),
    )


def fused_kernels() -> Kernels:
    """Return the Triton kernels. If TRITON_INTERPRET=1 is set, the Triton kernels can run on a CPU.

    Raises EngineUnavailable if Triton can't be imported.
    """
    try:
        from app.nn.kernels import persistent_launch, triton_launch, triton_state  # noqa: PLC0415 - import Triton
    except ImportError as error:
        raise EngineUnavailable(
            f"Triton can't be imported: {error}.",
            remedy="Install the CUDA build of torch, which includes Triton, or set TTS_KERNELS=torch.",
        ) from error
    return Kernels(
        "triton",
        triton_launch.decode_attention,
        triton_launch.step_attention,
        triton_launch.add_rms_norm,
        triton_launch.gate,
        triton_launch.sample,
        triton_launch.guided_sample,
        triton_state.delayed_inputs,
        triton_state.delayed_outputs,
        triton_state.frame_inputs,
        triton_state.frame_outputs,
        triton_state.frame_embeddings,
        triton_launch.window_attention,
        triton_launch.add_layer_norm,
        triton_launch.conv_windows,
        triton_launch.overlap_add,
        triton_launch.norm_linear,
        triton_launch.add_linear,
        persistent_launch.depth_frame,
    )
