"""Which device a model runs on, in which dtype, with how many threads. Knows no model."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from app.errors import EngineUnavailable

log = logging.getLogger(__name__)

_DEVICES = "Use cpu, cuda, cuda:N or mps."
# The oldest Linux driver that runs a CUDA release (docs.nvidia.com, "CUDA Compatibility", minor version compatibility).
_DRIVERS = {11: "450", 12: "525", 13: "580"}
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_AMPERE = (8, 0)  # the first compute capability with bfloat16


def choose_device(name: str = "auto") -> torch.device:
    """`auto` = the first CUDA device, else the CPU. Raises EngineUnavailable for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return _usable(torch.device("cuda", 0))
        if _DRIVER_FILE.exists():
            log.warning("there is an NVIDIA driver, but the CPU is used: %s %s", *_why_no_cuda())
        return torch.device("cpu")
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
                reason, remedy = _why_no_cuda()
                raise EngineUnavailable(reason, remedy=remedy)
            if index >= count:
                raise EngineUnavailable(
                    f"There is no {name}: the CUDA devices here are cuda:0 to cuda:{count - 1}.", remedy=_DEVICES
                )
            return _usable(torch.device("cuda", index))
        case "mps":
            if not torch.backends.mps.is_available():
                raise EngineUnavailable("There is no MPS device that PyTorch can use.", remedy="Use auto or cpu.")
            return torch.device("mps", 0)
    raise EngineUnavailable(f"{name!r} is not a device that models run on here.", remedy=_DEVICES)


def choose_devices(names: Sequence[str]) -> tuple[torch.device, ...]:
    """The devices of a list; one may stand in it twice. `auto` alone = every CUDA device, else what `auto` is for one.

    Raises EngineUnavailable for any that is not there.
    """
    if tuple(names) == ("auto",):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [f"cuda:{index}" for index in range(count)]
        return tuple(choose_device(name) for name in names) or (choose_device("auto"),)
    if "auto" in names:
        raise EngineUnavailable(
            "TTS_DEVICES names devices and 'auto'.", remedy="Name every device, or write auto alone for all GPUs."
        )
    return tuple(choose_device(name) for name in names)


def share_threads(engines: int) -> None:
    """Cut this process's threads for engines that run on the CPU side by side."""
    torch.set_num_threads(max(1, cpu_threads() // engines))


def _why_no_cuda() -> tuple[str, str]:
    """(reason, remedy) for PyTorch finding no CUDA device: CPU build, no driver, driver too old, no GPU let in."""
    built = torch.version.cuda
    if built is None:
        return (
            "There is no CUDA device that PyTorch can use: this PyTorch was built without CUDA.",
            "Install the build with CUDA (pip install torch, or the default image), or use auto or cpu.",
        )
    needed = f"PyTorch {torch.__version__} is built with CUDA {built} and needs NVIDIA driver {_driver_for(built)}"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        said = str(error)
    else:
        said = ""
    found = _driver_version()
    if "too old" in said:
        what = f"The NVIDIA driver{f' {found}' if found else ''} is too old for this PyTorch."
        return what, f"{needed}: update the driver, or use cpu."
    if found is None:
        return (
            "There is no CUDA device that PyTorch can use: no NVIDIA driver is loaded.",
            f"{needed}; a container also needs the NVIDIA Container Toolkit and a GPU reservation. Or use auto or cpu.",
        )
    return (
        f"There is no CUDA device that PyTorch can use, though driver {found} is loaded"
        + (f": {said.splitlines()[0]}" if said else "."),
        f"{needed}. Look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or use auto or cpu.",
    )


def _driver_for(cuda: str) -> str:
    oldest = _DRIVERS.get(int(cuda.partition(".")[0]))
    return f"{oldest} or newer" if oldest else f"of CUDA {cuda} or newer"


def _driver_version() -> str | None:
    """The version of the NVIDIA kernel module, None without one."""
    try:
        found = re.search(r"\b\d{3,}(?:\.\d+)+", _DRIVER_FILE.read_text("ascii", "replace"))
    except OSError:
        return None
    return found[0] if found else "of unknown version"


def _usable(device: torch.device) -> torch.device:
    """Raises EngineUnavailable for a GPU that this PyTorch has no code for."""
    built = [name.removeprefix("sm_") for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    if not built:
        return device
    numbers = [int(re.sub(r"\D", "", name)) for name in built]
    major, minor = torch.cuda.get_device_capability(device)
    # Code for x.y runs on every x.z with z >= y; PTX of the newest is translated for later ones.
    fits = any(number // 10 == major and number % 10 <= minor for number in numbers)
    if not fits and major * 10 + minor < max(numbers):
        raise EngineUnavailable(
            f"{torch.cuda.get_device_name(device)} ({device}, compute capability {major}.{minor}) is not among the "
            f"GPUs that PyTorch {torch.__version__} was built for: {', '.join(built)}.",
            remedy="Use another GPU, or cpu.",
        )
    return device


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


SCRATCH_BYTES = 1 << 30  # of a GPU for what a step computes with, recorded steps and the libraries' own


def usable_bytes(device: torch.device, fraction: float) -> int:
    """What an engine may take of the memory there: of a GPU's `fraction`, less what steps compute with."""
    free = free_bytes(device)
    return int(free * fraction) - SCRATCH_BYTES if device.type == "cuda" else free


def rows_that_fit(
    devices: Sequence[torch.device], fraction: float, bytes_of: Callable[[int], int], *, most: int
) -> int:
    """For how many rows `fraction` of the GPUs' free memory suffices: 1 to `most`, a power of two.

    devices: what a model lies on, which takes bytes_of(n) there with n rows. Raises EngineUnavailable where they do not
    suffice for one.
    """
    devices = tuple(dict.fromkeys(devices))
    fixed, one = bytes_of(0), bytes_of(1)
    room = sum(usable_bytes(device, fraction) for device in devices)
    if room < one:
        free, scratch = sum(map(free_bytes, devices)), SCRATCH_BYTES * len(devices)
        verb = "has" if len(devices) == 1 else "together have"
        raise EngineUnavailable(
            f"{' and '.join(map(str, devices))} {verb} {free / 1e9:.1f} GB free, and the model needs "
            f"{(one + scratch) / 1e9:.1f} GB in {fraction:.0%} of it.",
            remedy="Free memory there, raise TTS_GPU_MEMORY_FRACTION, set TTS_MAX_ROWS=1, or use another device.",
        )
    rows = 1
    while 2 * rows <= min(most, (room - fixed) // (one - fixed)):
        rows *= 2
    return rows


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` = half the width where the device computes in it: a frame's time is made of memory traffic everywhere.

    bfloat16 before float16, whose range ends at 65504; without either a CPU computes in float32. Raises
    EngineUnavailable for a format that is none.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= _AMPERE else torch.float16
        if device.type == "cpu" and not cpu_has_bfloat16():
            return torch.float32
        return torch.bfloat16
    try:
        return _DTYPES[name]
    except KeyError:
        raise EngineUnavailable(f"Unknown dtype {name!r}.", remedy=f"Use auto, {' or '.join(_DTYPES)}.") from None


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX512-BF16, AMX, Arm's BF16); others convert, and lose by it."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]


def allow_tf32(allowed: bool) -> None:
    """Float32 products of this process on a GPU in TensorFloat-32, or exact."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def cpu_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores this process may really use: its affinity, cut by a container's
    quota (cgroup 2)."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, math.floor(int(quota) / int(period))))
