"""Reads the memory use of the devices on which an engine runs. This module imports torch only for a GPU."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MACHINE = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one device in bytes. On a GPU, `used_bytes` includes all processes; on "cpu", only this process."""

    device: str
    used_bytes: int
    total_bytes: int


def memory_of(devices: str) -> tuple[Memory, ...]:
    """Return the memory of each device that reports its memory.

    devices: device names separated by commas, as in EngineInfo.
    """
    found = (_of(name) for name in dict.fromkeys(name.strip() for name in devices.split(",")))
    return tuple(memory for memory in found if memory is not None)


def resident_bytes() -> int:
    """Return the memory of this process in bytes; 0 if the system does not report it."""
    return _kilobytes(_STATUS, "VmRSS:") << 10


def held_bytes() -> dict[str, int]:
    """Return the memory that this process holds: `cpu` = resident memory, `cuda` = allocated on all GPUs, in bytes."""
    torch = sys.modules.get("torch")
    on_gpus = 0
    if torch is not None and torch.cuda.is_initialized():
        on_gpus = sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))
    return {"cpu": resident_bytes(), "cuda": on_gpus}


def machine_free_bytes() -> int:
    """Return the free main memory of the machine in bytes; 0 if the system does not report it."""
    return _kilobytes(_MACHINE, "MemAvailable:") << 10


def available_bytes() -> int | None:
    """Return how many bytes of main memory this process can still allocate; None if the system does not report it.

    Considers the memory of the machine and the limit of the container (cgroup v2).
    """
    free = machine_free_bytes()
    if not free:
        return None
    try:
        limit = (_CGROUP / "memory.max").read_text("ascii").strip()
        if limit.isdigit():
            used = int((_CGROUP / "memory.current").read_text("ascii"))
            # The kernel counts cached files as used memory, but gives their memory to a process that needs it. So count
            # them as free.
            counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines())
            free = min(free, int(limit) - used + int(counts.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    return max(0, free)


def _of(name: str) -> Memory | None:
    if name.startswith("cuda"):
        import torch  # noqa: PLC0415 - an engine on a GPU has already imported torch

        free_bytes, total_bytes = torch.cuda.mem_get_info(name)
        return Memory(name, total_bytes - free_bytes, total_bytes)
    if name != "cpu":
        return None
    used_bytes, total_bytes = resident_bytes(), _kilobytes(_MACHINE, "MemTotal:") << 10
    return Memory(name, used_bytes, total_bytes) if used_bytes and total_bytes else None


def _kilobytes(path: Path, row: str) -> int:
    """Read a number of kilobytes from a line of a /proc file. Returns 0 if the file or the line does not exist."""
    try:
        lines = path.read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(row)), 0)
