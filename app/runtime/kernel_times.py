"""Stores the measured times of kernels in a file, so that later starts need not measure again.

The times are valid only on the same GPU with the same software. Therefore the file also contains the facts on which
they depend. A file with other facts, or a damaged file, is ignored and replaced.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from app.durable_file import replace_file
from app.runtime.device import driver_version

log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parents[1]
# the packages that contain the code of a step
_STEP_PACKAGES = ("engines", "nn", "runtime")


class KernelTimes:
    """The times of the kernel sets of one model. Not thread-safe."""

    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        """Read the file, if it exists. facts: everything on which the times depend."""
        self._path, self._facts = path, dict(facts)
        self._seconds: dict[str, dict[str, float]] = {}
        try:
            stored = json.loads(path.read_text("utf-8"))
            found, seconds = dict(stored["facts"]), _checked(stored["seconds"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("the kernels are timed again, because %s is damaged: %s", path, error)
            return
        if other := [name for name in {**found, **self._facts} if found.get(name) != self._facts.get(name)]:
            log.info("the kernels are timed again, because %s has times for another %s", path, ", ".join(other))
            return
        self._seconds = seconds

    def of(self, rows: int, kernels: Collection[str]) -> dict[str, float] | None:
        """Return the seconds of a step for each of these kernel sets; None = they were not all measured together."""
        found = self._seconds.get(str(rows))
        return dict(found) if found is not None and found.keys() == set(kernels) else None

    def add(self, rows: int, seconds: Mapping[str, float]) -> None:
        """Store the measured seconds of all kernel sets. If the file can't be written, only the log says so."""
        self._seconds[str(rows)] = dict(seconds)
        content = json.dumps({"facts": self._facts, "seconds": self._seconds}, indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, content.encode(), mode=0o644)
        except OSError as error:
            log.warning("the times of the kernels can't be stored in %s: %s", self._path, error)


def _checked(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return a copy. Raises ValueError, TypeError or AttributeError if the values are not times."""
    found = {str(int(rows)): {str(name): float(each) for name, each in sets.items()} for rows, sets in seconds.items()}
    if not all(0 < each < float("inf") for sets in found.values() for each in sets.values()):
        raise ValueError("it contains impossible times")
    return found


def kernel_times(folder: Path, devices: Sequence[torch.device], model: str) -> KernelTimes:
    """Return the times that are stored in a folder for a model on these CUDA devices.

    model: describes everything about the model on which the times depend.
    """
    cards = [torch.cuda.get_device_properties(device) for device in devices]
    facts = {
        "model": model,
        "card": ", ".join(card.name for card in cards),
        "compute capability": ", ".join(f"{card.major}.{card.minor}" for card in cards),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda or torch.version.hip),
        "Triton": _triton_version(),
        "driver": driver_version() or "unknown",
        "code of the server": sources_digest(),
    }
    # one file for each model: another card replaces it
    name = hashlib.sha256(model.encode()).hexdigest()[:16]
    return KernelTimes(folder / f"times-{name}.json", facts)


def _triton_version() -> str:
    try:
        import triton  # noqa: PLC0415 - only the CUDA build of torch includes it
    except ImportError:
        return "none"
    return str(triton.__version__)


@functools.cache
def sources_digest(folder: Path = _SOURCES) -> str:
    """Return a digest of the code of a step: all Python files of the packages that compute it."""
    digest = hashlib.sha256()
    for path in sorted(path for package in _STEP_PACKAGES for path in (folder / package).rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
