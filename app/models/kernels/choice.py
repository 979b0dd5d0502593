"""Which set of kernels a device runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from app.errors import EngineUnavailable
from app.models.kernels import twins

KernelSet = Literal["auto", "torch", "triton"]


class Sample(Protocol):
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
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """One set; what each does is said in twins.py."""

    name: Literal["torch", "triton"]
    decode_attention: Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
    step_attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, twins.Activation], Tensor]
    sample: Sample


TORCH = Kernels("torch", twins.decode_attention, twins.step_attention, twins.add_rms_norm, twins.gate, twins.sample)


def choose(name: KernelSet, device: torch.device) -> Kernels:
    """The kernels of that name for a device.

    auto is torch until bench/kernels.py and bench/step.py have shown on a GPU that Triton's are faster end to end.
    Raises EngineUnavailable where Triton is asked for and can't be had, with what to do about it.
    """
    if name != "triton":
        return TORCH
    if device.type != "cuda":
        raise EngineUnavailable(
            f"Triton's kernels run on a CUDA device, and this one is {device.type}.", remedy="Set TTS_KERNELS=torch."
        )
    return fused_kernels()


def fused_kernels() -> Kernels:
    """Triton's set, whatever the device: under TRITON_INTERPRET=1 it runs on a CPU too.

    Raises EngineUnavailable where Triton is not installed or does not load.
    """
    try:
        from app.models.kernels import fused  # noqa: PLC0415 - imports Triton
    except ImportError as error:
        raise EngineUnavailable(
            f"Triton can't be imported: {error}.",
            remedy="Install the CUDA build of torch, which brings it, or set TTS_KERNELS=torch.",
        ) from error
    return Kernels("triton", fused.decode_attention, fused.step_attention, fused.add_rms_norm, fused.gate, fused.sample)
