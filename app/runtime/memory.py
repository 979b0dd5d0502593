"""Memory use of the devices that an engine runs on. Imports torch for GPUs only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_MACHINE = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a GPU all that is taken, by whomever; of the machine ("cpu") what this process takes."""

    device: str
    used_bytes: int
    total_bytes: int


def memory_of(devices: str) -> tuple[Memory, ...]:
    """devices: names with commas between, as EngineInfo has them. Those that can't be asked are left out."""
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
    """A row of /proc, or 0 where there is none: not every system has it."""
    try:
        lines = path.read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(row)), 0)
