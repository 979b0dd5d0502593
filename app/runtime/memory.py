"""Memory use of the devices that an engine runs on. Imports torch for GPUs only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MACHINE = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in use: on a GPU by all processes, on the machine ("cpu") by this process."""

    device: str
    used_bytes: int
    total_bytes: int


def memory_of(devices: str) -> tuple[Memory, ...]:
    """devices: names separated by commas, as in EngineInfo. Devices that do not report their memory are left out."""
    found = (_of(name) for name in dict.fromkeys(name.strip() for name in devices.split(",")))
    return tuple(memory for memory in found if memory is not None)


def _of(name: str) -> Memory | None:
    if name.startswith("cuda"):
        import torch  # noqa: PLC0415 - an engine on a GPU has loaded it

        free_bytes, total_bytes = torch.cuda.mem_get_info(name)
        return Memory(name, total_bytes - free_bytes, total_bytes)
    if name != "cpu":
        return None
    used_bytes, total_bytes = _kilobytes(_STATUS, "VmRSS:") << 10, _kilobytes(_MACHINE, "MemTotal:") << 10
    return Memory(name, used_bytes, total_bytes) if used_bytes and total_bytes else None


def _kilobytes(path: Path, row: str) -> int:
    """A row of /proc, or 0 on a system without it."""
    try:
        lines = path.read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(row)), 0)
