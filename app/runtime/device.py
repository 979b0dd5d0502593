"""Which device a model runs on, in which dtype, with how many threads. Knows no model."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from app.errors import EngineUnavailable

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """`auto` = the first CUDA device, else the CPU. Raises EngineUnavailable for a device that is not there."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineUnavailable(f"{name!r} is not a device.", remedy="Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable("There is no CUDA device that PyTorch can use.", remedy="Use auto or cpu.")
    return device


def choose_dtype(name: str) -> torch.dtype:
    """`auto` = bfloat16: half the memory traffic, which is what a frame's time is made of on every device."""
    if name == "auto":
        return torch.bfloat16
    try:
        return _DTYPES[name]
    except KeyError:
        raise EngineUnavailable(f"Unknown dtype {name!r}.", remedy=f"Use auto, {' or '.join(_DTYPES)}.") from None


def cpu_threads() -> int:
    """Cores this process may really use: its affinity, cut by a container's quota (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, math.floor(int(quota) / int(period))))
