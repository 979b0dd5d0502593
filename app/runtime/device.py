"""Which device a model runs on, in which dtype, with how many threads. Knows no model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from app.errors import EngineUnavailable

_DEVICES = "Use cpu, cuda, cuda:N or mps."
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """`auto` = the first CUDA device, else the CPU. Raises EngineUnavailable for a device that is not there."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineUnavailable(f"{name!r} is not a device.", remedy=_DEVICES) from error
    match device.type:
        case "cpu":
            return torch.device("cpu")
        case "cuda":
            index, count = device.index or 0, torch.cuda.device_count() if torch.cuda.is_available() else 0
            if not count:
                raise EngineUnavailable("There is no CUDA device that PyTorch can use.", remedy="Use auto or cpu.")
            if index >= count:
                raise EngineUnavailable(
                    f"There is no {name}: the CUDA devices here are cuda:0 to cuda:{count - 1}.", remedy=_DEVICES
                )
            return torch.device("cuda", index)
        case "mps":
            if not torch.backends.mps.is_available():
                raise EngineUnavailable("There is no MPS device that PyTorch can use.", remedy="Use auto or cpu.")
            return torch.device("mps", 0)
    raise EngineUnavailable(f"{name!r} is not a device that models run on here.", remedy=_DEVICES)


def choose_devices(names: Sequence[str]) -> tuple[torch.device, ...]:
    """The devices of a list; one may stand in it twice. Raises EngineUnavailable for any that is not there."""
    if "auto" in names:
        raise EngineUnavailable("'auto' is not a device.", remedy="Name each device of TTS_DEVICES.")
    return tuple(choose_device(name) for name in names)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        [kilobytes] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return int(kilobytes) << 10
    except (OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
