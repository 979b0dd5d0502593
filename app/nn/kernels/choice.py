"""Defines the sets of kernels, and chooses the sets that a device can run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from app.errors import EngineUnavailable
from app.nn.kernels import torch_kernels

KernelSet = Literal["auto", "torch", "triton"]

log = logging.getLogger(__name__)


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
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """One set of kernels. torch_kernels.py describes each kernel."""

    name: Literal["torch", "triton", "compiled"]
    decode_attention: Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
    step_attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, torch_kernels.Activation], Tensor]
    sample: Sample


TORCH = Kernels(
    "torch",
    torch_kernels.decode_attention,
    torch_kernels.step_attention,
    torch_kernels.add_rms_norm,
    torch_kernels.gate,
    torch_kernels.sample,
)


def candidates(name: KernelSet, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> list[Kernels]:
    """Return the kernel sets that can run a model of `dtype` on a device. If there are several, the caller times them.

    name: "auto" = the torch kernels; on a CUDA device, also the Triton kernels if Triton is installed and they give the
    same results. compiled: True = ignore `name` and return only the torch kernels after torch.compile. Raises
    EngineUnavailable if `name` is "triton" and Triton is not available.
    """
    if compiled:
        return [compiled_kernels()]
    if name == "triton" and device.type != "cuda":
        raise EngineUnavailable(
            f"Triton's kernels need a CUDA device, but the model runs on {device.type}.",
            remedy="Set TTS_KERNELS=torch.",
        )
    if name == "torch" or device.type != "cuda":
        return [TORCH]
    if name == "triton":
        return [fused_kernels()]
    try:
        fused = fused_kernels()
        with torch.cuda.device(device):  # Triton launches on the current device
            mismatch = differs(fused, device, dtype)
        if mismatch:
            log.warning("Triton's kernels are not used: %s gives other results than torch's on %s", mismatch, device)
            return [TORCH]
    except Exception as error:  # noqa: BLE001 - after any error of Triton, the torch kernels can run
        log.warning("Triton's kernels are not used, because they failed: %s", error)
        return [TORCH]
    return [TORCH, fused]


def differs(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> str:
    """Compare kernels with the torch kernels on this device. Return the name of the first kernel that differs.

    Returns "" if no kernel differs. Takes about a second.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, kind)

    def close(ours: Tensor, theirs: Tensor) -> bool:
        tolerance = 1e-4 if dtype == torch.float32 else 3e-2
        return torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)

    rows, groups, size, positions, length = 3, 2, 64, 600, 512
    at = torch.tensor([0, 63, 511], device=device)
    angles = random(rows, 1, size, kind=torch.float32)
    cache = random(2, rows, groups, positions, size)
    heads, results = random(rows, 8 + 2 * groups, size), []
    for each in (TORCH, kernels):
        k, v = cache.clone()
        attended = each.step_attention(heads, angles.cos(), angles.sin(), k, v, at, length, size**-0.5)
        results.append(torch.cat((attended.flatten(), k.flatten(), v.flatten())))
    if not close(*results):
        return "step_attention"
    q = random(rows, 8, size)
    if not close(*(each.decode_attention(q, cache[0], cache[1], at, length, size**-0.5) for each in (TORCH, kernels))):
        return "decode_attention"
    x, residual, weight = random(rows, 256), random(rows, 256), random(256)
    if not close(*(torch.cat(each.add_rms_norm(x, residual, weight, 1e-5)) for each in (TORCH, kernels))):
        return "add_rms_norm"
    both = random(rows, 256)
    if not close(*(each.gate(both, "silu") for each in (TORCH, kernels))):
        return "gate"
    logits = random(64, 2051, kind=torch.float32) * 3
    number = torch.arange(64, device=device)
    temperature, top_p = torch.linspace(0, 2, 64, device=device), torch.linspace(0.5, 1.0, 64, device=device)
    drawn = [
        each.sample(logits, temperature, number * 3, top_p, number, number, 3, 32, number - 1)
        for each in (TORCH, kernels)
    ]
    # Some draws may differ, because logarithms round differently and two codes can have nearly equal scores.
    return "" if (drawn[0] == drawn[1]).float().mean() > 0.95 else "sample"


def compiled_kernels() -> Kernels:
    """Return the torch kernels after torch.compile. Needs a C++ compiler on a CPU, and Triton on a CUDA device."""

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
    """Return the Triton kernels. If TRITON_INTERPRET=1 is set, they run on a CPU too.

    Raises EngineUnavailable if Triton can't be imported.
    """
    try:
        from app.nn.kernels import triton_launch  # noqa: PLC0415 - imports Triton
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
    )
