"""Chooses the sets of kernels that a device can run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from app.errors import EngineUnavailable
from app.nn.kernels.checks import depth_trial, early_fault, fault_of, fault_of_operation, in_graph, wrong_operations
from app.nn.kernels.sets import (
    LINEAR_OPERATIONS,
    OPERATIONS,
    TORCH,
    Kernels,
    compiled_kernels,
    early_kernels,
    fused_kernels,
)
from app.runtime.faults import is_device_lost

KernelSet = Literal["auto", "torch", "triton", "persistent"]
_LINEAR_CAPABILITY = (8, 0)  # the first compute capability with the matrix instructions of these kernels

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The kernel sets that can run a model. If there are several sets, the caller measures which set is fastest."""

    kernels: tuple[Kernels, ...]
    reason: str = ""  # why all or some of Triton's kernels are not used


def candidates(
    name: KernelSet,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    other_devices: Sequence[torch.device] = (),
    fp8: bool = False,
    depth: bool = False,
) -> Candidates:
    """Return the kernel sets that can run a model of `dtype` on a device.

    name: "auto" = the torch kernels, and on a CUDA device with Triton also the Triton kernels. If a Triton kernel fails
    or gives other results than torch, the torch kernel replaces this kernel. "persistent" = only the set of this name,
    or the sets of "triton" without `depth`. compiled: True = ignore `name` and return only the torch kernels, compiled
    by torch.compile. other_devices: all devices of the model except `device`. fp8: whether the model has weights in
    fp8. depth: whether the model has a depth decoder, which is on `device`. Without it, the set "persistent" would be
    the same as "triton-linear".
    Raises EngineUnavailable if `name` is "triton" or "persistent" and this set can't run.
    """
    if compiled:
        return Candidates((compiled_kernels(),), "TTS_COMPILE=1 uses torch's kernels, compiled by torch.compile.")
    if name in {"triton", "persistent"} and device.type != "cuda":
        raise EngineUnavailable(
            f"Triton's kernels need a CUDA device, but the model runs on {device.type}.",
            remedy="Set TTS_KERNELS=torch.",
        )
    if device.type != "cuda":
        return Candidates((TORCH,), f"Triton's kernels need a CUDA device, but the model runs on {device.type}.")
    if name == "torch":
        return Candidates((TORCH,), "TTS_KERNELS=torch turns Triton's kernels off.")
    devices = list(dict.fromkeys((device, *other_devices)))
    if name == "persistent" and depth:
        _require_linear(devices, dtype, fp8=fp8)
        return Candidates((replace(fused_kernels(), name="persistent"),))
    if name in {"triton", "persistent"}:
        fused = fused_kernels()
        return Candidates((fused, *_with_linear(fused, devices, dtype, fp8=fp8)))
    found = _checked_kernels(devices, dtype, fp8=fp8)
    if depth and not fp8:  # the kernel for the depth decoder reads no weights in fp8
        found = _with_depth(found, device, dtype)
    if found.reason:
        log.warning("%s Speech does not change, but a step may take longer.", found.reason)
    return found


def _with_linear(
    fused: Kernels, devices: Sequence[torch.device], dtype: torch.dtype, *, fp8: bool
) -> tuple[Kernels, ...]:
    """Return the sets "triton-linear" and "triton-pdl", except a set that would be slow or wrong on one of the devices.

    The products of the kernels need the matrix instructions for 16-bit numbers of compute capability 8.0, and an early
    start needs compute capability 9.0.
    """
    if dtype == torch.float32 or set(fused.from_torch) & set(LINEAR_OPERATIONS):
        return ()
    capability = min(torch.cuda.get_device_capability(device) for device in devices)
    if capability < _LINEAR_CAPABILITY:
        return ()
    linear, early = replace(fused, name="triton-linear"), early_kernels(fused)
    if capability < (9, 0):
        return (linear,)
    if fault := early_fault(early, devices, dtype, fp8=fp8):
        log.warning("Triton's kernels do not start early (programmatic dependent launch): %s.", fault)
        return (linear,)
    return linear, early


def _require_linear(devices: Sequence[torch.device], dtype: torch.dtype, *, fp8: bool) -> None:
    """Raise EngineUnavailable if the model has no weights of 16 bits, or if products of them can't run on a device."""
    if dtype == torch.float32 or fp8:
        raise EngineUnavailable(
            "TTS_KERNELS=persistent needs weights in float16 or bfloat16, but the model has them in "
            f"{'fp8' if fp8 else 'float32'}.",
            remedy="Set TTS_KERNELS=auto, or TTS_QUANTIZE=none and TTS_DTYPE=bfloat16 or float16.",
        )
    for device in devices:
        found = torch.cuda.get_device_capability(device)
        if found < _LINEAR_CAPABILITY:
            raise EngineUnavailable(
                f"TTS_KERNELS=persistent needs compute capability 8.0, but {device} has {found[0]}.{found[1]}.",
                remedy="Set TTS_KERNELS=auto.",
            )


def _with_depth(found: Candidates, device: torch.device, dtype: torch.dtype) -> Candidates:
    """Add the set "persistent", if "triton-linear" is a candidate and a graph with `depth_frame` is right."""
    linear = next((each for each in found.kernels if each.name == "triton-linear"), None)
    if linear is None:
        return found
    with torch.cuda.device(device):  # Triton launches kernels on the current device
        run = in_graph(depth_trial(device, dtype), device)
        fault = fault_of_operation("depth_frame", run, linear, dtype)
    if fault:
        reason = f"The kernels persistent are not used: depth_frame {fault} on {device}."
        return Candidates(found.kernels, f"{found.reason} {reason}".strip())
    return Candidates((*found.kernels, replace(linear, name="persistent")), found.reason)


def _checked_kernels(devices: Sequence[torch.device], dtype: torch.dtype, *, fp8: bool) -> Candidates:
    """Return the torch kernels and the Triton kernels.

    If a Triton kernel fails or gives other results than torch on one of the devices, the torch kernel replaces it.
    """
    wrong: dict[str, str] = {}
    try:
        fused = fused_kernels()
        for device in devices:
            with torch.cuda.device(device):  # Triton launches kernels on the current device
                for operation, fault in wrong_operations(fused, device, dtype, fp8=fp8):
                    wrong.setdefault(operation, f"{operation} {fault} on {device}")
    except Exception as error:
        if is_device_lost(error):
            raise
        return Candidates((TORCH,), f"Triton's kernels are not used: {fault_of(error)}.")
    if not wrong:
        return Candidates((TORCH, fused, *_with_linear(fused, devices, dtype, fp8=fp8)))
    reason = f"Triton's kernels are not used for every operation: {'; '.join(wrong.values())}."
    if set(wrong) == set(OPERATIONS):
        return Candidates((TORCH,), reason.replace("every operation", "any operation"))
    mixed = replace(fused, from_torch=tuple(wrong), **{operation: getattr(TORCH, operation) for operation in wrong})
    return Candidates((TORCH, mixed, *_with_linear(mixed, devices, dtype, fp8=fp8)), reason)
