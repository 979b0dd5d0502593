"""Which set of kernels a device runs."""

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
    """One set; what each does is said in torch_kernels.py."""

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
    """The sets that may run a model of that dtype on a device; where there are several, who records steps takes the
    fastest.

    auto: torch's, and on a CUDA device Triton's if they are there and compute the same. compiled: what torch.compile
    makes of torch's instead. Raises EngineUnavailable where Triton is asked for and can't be had, with what to do about
    it.
    """
    if compiled:
        return [compiled_kernels()]
    if name == "triton" and device.type != "cuda":
        raise EngineUnavailable(
            f"Triton's kernels run on a CUDA device, and this one is {device.type}.", remedy="Set TTS_KERNELS=torch."
        )
    if name == "torch" or device.type != "cuda":
        return [TORCH]
    if name == "triton":
        return [fused_kernels()]
    try:
        fused = fused_kernels()
        with torch.cuda.device(device):  # Triton launches on the present one
            non_finite = differs(fused, device, dtype)
        if non_finite:
            log.warning(
                "Triton's kernels are not used: %s does not compute what torch's does on %s", non_finite, device
            )
            return [TORCH]
    except Exception as error:  # noqa: BLE001 - a driver, a compiler, a cache folder: whatever it is, torch's are there
        log.warning("Triton's kernels are not used: %s", error)
        return [TORCH]
    return [TORCH, fused]


def differs(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> str:
    """The first kernel that does not compute on this device what torch's does, "" if all do; in about a second."""
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
    heads, found = random(rows, 8 + 2 * groups, size), []
    for some in (TORCH, kernels):
        k, v = cache.clone()
        seen = some.step_attention(heads, angles.cos(), angles.sin(), k, v, at, length, size**-0.5)
        found.append(torch.cat((seen.flatten(), k.flatten(), v.flatten())))
    if not close(*found):
        return "step_attention"
    q = random(rows, 8, size)
    if not close(*(some.decode_attention(q, cache[0], cache[1], at, length, size**-0.5) for some in (TORCH, kernels))):
        return "decode_attention"
    x, residual, weight = random(rows, 256), random(rows, 256), random(256)
    if not close(*(torch.cat(some.add_rms_norm(x, residual, weight, 1e-5)) for some in (TORCH, kernels))):
        return "add_rms_norm"
    both = random(rows, 256)
    if not close(*(some.gate(both, "silu") for some in (TORCH, kernels))):
        return "gate"
    logits = random(64, 2051, kind=torch.float32) * 3
    number = torch.arange(64, device=device)
    temperature, top_p = torch.linspace(0, 2, 64, device=device), torch.linspace(0.5, 1.0, 64, device=device)
    drawn = [
        some.sample(logits, temperature, number * 3, top_p, number, number, 3, 32, number - 1)
        for some in (TORCH, kernels)
    ]
    # A logarithm may be rounded in two ways, and now and then two codes are as good as each other.
    return "" if (drawn[0] == drawn[1]).float().mean() > 0.95 else "sample"


def compiled_kernels() -> Kernels:
    """What torch.compile makes of torch's, each for all shapes at once. Takes a C++ compiler on a CPU, Triton on a CUDA
    device."""

    def made(twin: Any) -> Any:
        return torch.compile(twin, dynamic=True)

    return Kernels(
        "compiled",
        decode_attention=made(torch_kernels.decode_attention),
        step_attention=made(torch_kernels.step_attention),
        add_rms_norm=made(torch_kernels.add_rms_norm),
        gate=made(torch_kernels.gate),
        sample=made(torch_kernels.sample),
    )


def fused_kernels() -> Kernels:
    """Triton's set, whatever the device: under TRITON_INTERPRET=1 it runs on a CPU too.

    Raises EngineUnavailable where Triton is not installed or does not load.
    """
    try:
        from app.nn.kernels import triton_launch  # noqa: PLC0415 - imports Triton
    except ImportError as error:
        raise EngineUnavailable(
            f"Triton can't be imported: {error}.",
            remedy="Install the CUDA build of torch, which brings it, or set TTS_KERNELS=torch.",
        ) from error
    return Kernels(
        "triton",
        triton_launch.decode_attention,
        triton_launch.step_attention,
        triton_launch.add_rms_norm,
        triton_launch.gate,
        triton_launch.sample,
    )
