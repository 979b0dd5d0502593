"""Chooses the device, dtype, number of rows and number of CPU threads for any model."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.errors import EngineUnavailable, TooLittleMemory
from app.runtime.cuda_graphs import doublings
from app.runtime.memory import machine_free_bytes

log = logging.getLogger(__name__)

_DEVICES = "Use cpu, cuda, cuda:N or mps."
# CUDA release -> the oldest Linux driver that supports the release (docs.nvidia.com, "CUDA Compatibility", minor
# version compatibility).
_DRIVERS = {11: "450", 12: "525", 13: "580"}
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_UNTESTED = "This server was never tested on such a device. If speech is wrong or fails, set TTS_DEVICE=cpu."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_AMPERE = (8, 0)  # the first compute capability with bfloat16


def choose_device(name: str = "auto") -> torch.device:
    """Return the device with this name. "auto" = the first CUDA device, or the CPU on a machine without CUDA devices.

    Raises EngineUnavailable if the device does not exist or PyTorch can't use it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _usable(torch.device("cuda", 0))
        if _DRIVER_FILE.exists():
            log.warning("the model runs on the CPU, although an NVIDIA driver is loaded. %s %s", *_why_no_cuda())
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
                    f"There is no {name}: this machine has the CUDA devices cuda:0 to cuda:{count - 1}.",
                    remedy=_DEVICES,
                )
            return _usable(torch.device("cuda", index))
        case "mps":
            if not torch.backends.mps.is_available():
                built = torch.backends.mps.is_built()
                reason = "this Mac or its macOS is too old" if built else "this PyTorch was built without MPS"
                raise EngineUnavailable(f"PyTorch finds no MPS device: {reason}.", remedy="Use auto or cpu.")
            return _untested(torch.device("mps", 0))
    raise EngineUnavailable(f"Models can't run on the device {name!r}.", remedy=_DEVICES)


def choose_devices(names: Sequence[str]) -> tuple[torch.device, ...]:
    """Return the devices with these names; a name may appear twice.

    ("auto",) = all CUDA devices, or the CPU on a machine without CUDA devices.

    Raises EngineUnavailable if a device does not exist or PyTorch can't use it.
    """
    if tuple(names) == ("auto",):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [f"cuda:{index}" for index in range(count)]
        return tuple(choose_device(name) for name in names) or (choose_device("auto"),)
    if "auto" in names:
        raise EngineUnavailable(
            "TTS_DEVICES contains 'auto' together with device names.",
            remedy="Name every device, or set TTS_DEVICES=auto to use all GPUs.",
        )
    return tuple(choose_device(name) for name in names)


def device_notes(device: torch.device) -> tuple[tuple[str, str], ...]:
    """Return an entry for /health that warns about the device; () = there is no warning.

    The entry warns that a GPU of this machine is not used, or that the server was never tested on this kind of device.
    """
    if device.type == "cpu" and _DRIVER_FILE.exists() and not torch.cuda.is_available():
        return (("device_reason", " ".join(_why_no_cuda())),)
    if device.type == "cuda" and torch.version.hip:
        return (("device_reason", f"This PyTorch is built for AMD GPUs (ROCm {torch.version.hip}). {_UNTESTED}"),)
    if device.type == "mps":
        return (("device_reason", f"The model runs on an Apple GPU (MPS). {_UNTESTED}"),)
    return ()


def share_threads(engines: int) -> None:
    """Let torch use an equal share of the CPU's threads. engines: how many engines run on the CPU at the same time."""
    torch.set_num_threads(max(1, cpu_threads() // engines))


def _why_no_cuda() -> tuple[str, str]:
    """Return the reason why PyTorch finds no CUDA device, and the remedy.

    Possible reasons: PyTorch was built without CUDA, no driver is loaded, the driver is too old, no GPU is visible.
    """
    built = torch.version.cuda
    if torch.version.hip:
        return (
            f"This PyTorch is built for AMD GPUs (ROCm {torch.version.hip}), and it finds no GPU.",
            "Check `rocminfo` and HIP_VISIBLE_DEVICES, install the build with CUDA for an NVIDIA GPU, or use cpu.",
        )
    if built is None:
        return (
            "There is no CUDA device that PyTorch can use: this PyTorch was built without CUDA.",
            "Install the build with CUDA (pip install torch, or the default image), or use auto or cpu.",
        )
    needed = f"PyTorch {torch.__version__} is built with CUDA {built} and needs NVIDIA driver {_driver_for(built)}"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        message = str(error)
    else:
        message = ""
    found = driver_version()
    if "too old" in message:
        reason = f"The NVIDIA driver{f' {found}' if found else ''} is too old for this PyTorch."
        return reason, f"{needed}: update the driver, or use cpu."
    if found is None:
        return (
            "There is no CUDA device that PyTorch can use: no NVIDIA driver is loaded.",
            f"{needed}; a container also needs the NVIDIA Container Toolkit and a GPU reservation. Or use auto or cpu.",
        )
    return (
        f"There is no CUDA device that PyTorch can use, though driver {found} is loaded"
        + (f": {message.splitlines()[0]}" if message else "."),
        f"{needed}. Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or use auto or cpu.",
    )


def _driver_for(cuda: str) -> str:
    """Return the NVIDIA driver that a CUDA release needs, as a text, for example "12.8" -> "525 or newer"."""
    oldest = _DRIVERS.get(int(cuda.partition(".")[0]))
    return f"{oldest} or newer" if oldest else f"of CUDA {cuda} or newer"


def driver_version() -> str | None:
    """Return the version of the NVIDIA kernel module, or None if the module is not loaded."""
    try:
        found = re.search(r"\b\d{3,}(?:\.\d+)+", _DRIVER_FILE.read_text("ascii", "replace"))
    except OSError:
        return None
    return found[0] if found else "of unknown version"


def _usable(device: torch.device) -> torch.device:
    """Return `device`, a CUDA device. Raises EngineUnavailable if this build of PyTorch has no code for the device."""
    if torch.version.hip:
        return _untested(device)
    built = [name.removeprefix("sm_") for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    if not built:
        return device
    numbers = [int(re.sub(r"\D", "", name)) for name in built]
    major, minor = torch.cuda.get_device_capability(device)
    # Code for compute capability x.y runs on every GPU with compute capability x.z where z >= y. PyTorch also contains
    # intermediate code (PTX) for the newest compute capability that it supports, and the driver compiles this code for
    # later GPUs.
    fits = any(number // 10 == major and number % 10 <= minor for number in numbers)
    if not fits and major * 10 + minor < max(numbers):
        raise EngineUnavailable(
            f"PyTorch {torch.__version__} does not support {torch.cuda.get_device_name(device)} ({device}, compute "
            f"capability {major}.{minor}). It was built for: {', '.join(built)}.",
            remedy="Use another GPU, or cpu.",
        )
    return device


def _untested(device: torch.device) -> torch.device:
    """Return `device`, and log a warning that the server was never tested on this kind of device."""
    for _, reason in device_notes(device):
        log.warning("%s: %s", device, reason)
    return device


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return machine_free_bytes() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# GPU memory that stays free for intermediate tensors, CUDA graphs and libraries. Mimi needs 1.06 GB to encode 60 s of
# audio, and DAC needs 1.09 GB to decode 64 rows. For an engine with one row, only LEAST_SCRATCH_BYTES
# stay free, so that the engine can start on a small GPU. If a request then has too little memory to encode a recording,
# only this request fails.
SCRATCH_BYTES, LEAST_SCRATCH_BYTES = 5 << 28, 1 << 30


def usable_bytes(device: torch.device, fraction: float, scratch: int = SCRATCH_BYTES) -> int:
    """Return how many bytes an engine may use for weights and caches.

    On a CUDA device: `fraction` of the free memory, minus `scratch` bytes. On other devices: all free memory.
    """
    free = free_bytes(device)
    return int(free * fraction) - scratch if device.type == "cuda" else free


# An estimate of the GPU memory that the CUDA context of the process takes.
CONTEXT_BYTES = 600 << 20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How an engine divides the memory of its GPUs. The server uses this plan; `app.cli plan` prints it."""

    free_bytes: int  # free memory of all devices together, before the model is loaded
    usable_bytes: int  # memory that weights and rows may use
    fixed_bytes: int  # weights, and all other data whose size does not depend on the number of rows
    row_bytes: int  # keys, values and codec state of one row
    rows: int  # number of rows; 0 = the model does not fit
    saved_bytes: int = 0  # how many bytes a cache of the model has to give up, so that one row fits

    @property
    def used_bytes(self) -> int:
        """The number of bytes that weights and rows use."""
        return self.fixed_bytes + self.rows * self.row_bytes

    @property
    def buckets(self) -> tuple[int, ...]:
        """The numbers of rows for which CUDA graphs are captured."""
        return doublings(1, self.rows) if self.rows else ()

    @property
    def facts(self) -> tuple[tuple[str, int], ...]:
        """The values for /health about this plan."""
        return (
            ("planned_rows", self.rows),
            ("free_bytes", self.free_bytes),
            ("usable_bytes", self.usable_bytes),
            ("model_bytes", self.fixed_bytes),
            ("row_bytes", self.row_bytes),
        )


def plan_memory(
    free: Sequence[int],
    fraction: float,
    bytes_of: Callable[[int], int],
    *,
    most: int,
    spare_bytes: int = 0,
    other_bytes: int = 0,
) -> MemoryPlan:
    """Return a memory plan. The number of rows is a power of two up to `most`; 0 = the model does not fit.

    free: the free memory of each GPU in bytes. fraction: the share of this memory that the model may use. bytes_of: a
    function that returns the bytes that the model needs for a number of rows. spare_bytes: by how much the model can
    reduce its memory if there is only one row. other_bytes: the free memory of the model's devices that are not GPUs.

    On each GPU, SCRATCH_BYTES stay free, or LEAST_SCRATCH_BYTES if there is only one row.
    """
    fixed, one = bytes_of(0), bytes_of(1)
    room, most_room = (
        sum(int(each * fraction) - scratch for each in free) + other_bytes
        for scratch in (SCRATCH_BYTES, LEAST_SCRATCH_BYTES)
    )
    rows = saved = 0
    if room >= one:
        rows = 1
        while 2 * rows <= min(most, (room - fixed) // (one - fixed)):
            rows *= 2
    elif most_room >= one - spare_bytes:
        rows, room, saved = 1, most_room, min(spare_bytes, max(0, one - most_room))
    return MemoryPlan(sum(free) + other_bytes, max(0, room), fixed - saved, one - fixed, rows, saved)


def plan_rows(
    devices: Sequence[torch.device],
    fraction: float,
    bytes_of: Callable[[int], int],
    *,
    most: int,
    spare_bytes: int = 0,
) -> MemoryPlan:
    """Return a memory plan with at least one row for the devices that share the model. See plan_memory.

    Raises TooLittleMemory if one row does not fit.
    """
    devices = tuple(dict.fromkeys(devices))
    cards = [free_bytes(device) for device in devices if device.type == "cuda"]
    others = sum(free_bytes(device) for device in devices if device.type != "cuda")
    plan = plan_memory(cards, fraction, bytes_of, most=most, spare_bytes=spare_bytes, other_bytes=others)
    if not plan.rows:
        needed = plan.fixed_bytes + plan.row_bytes - spare_bytes + LEAST_SCRATCH_BYTES * len(devices)
        verb = "has" if len(devices) == 1 else "together have"
        raise TooLittleMemory(
            f"{' and '.join(map(str, devices))} {verb} {plan.free_bytes / 1e9:.1f} GB free. The model needs "
            f"{needed / 1e9:.1f} GB and may use {fraction:.0%} of the free memory.",
            remedy="Free memory on the device, raise TTS_GPU_MEMORY_FRACTION, set TTS_MAX_ROWS=1, or choose another "
            "device.",
        )
    return plan


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype with this name. Raises EngineUnavailable for an unknown name.

    "auto" = bfloat16 if the device has instructions for bfloat16. Otherwise float16 on a CUDA device and float32 on a
    CPU. A 16-bit dtype halves the memory traffic, and the memory traffic determines the time of a frame. bfloat16 is
    better than float16, because values above 65504 overflow in float16.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= _AMPERE else torch.float16
        if device.type == "cpu" and not cpu_has_bfloat16():
            return torch.float32
        if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
            return torch.float32  # PyTorch supports bfloat16 only from macOS 14 on
        return torch.bfloat16
    try:
        return DTYPES[name]
    except KeyError:
        raise EngineUnavailable(f"Unknown dtype {name!r}.", remedy=f"Use auto, {' or '.join(DTYPES)}.") from None


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 instructions: AVX512-BF16, AMX or Arm BF16.

    On a CPU without these instructions, bfloat16 is slower than float32.
    """
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]


def set_math_backends(*, tf32: bool) -> None:
    """Choose the libraries and the precision of this process's computations on a GPU.

    tf32: whether matrix products and convolutions of float32 use TensorFloat-32. PyTorch has one switch for matrix
    products and one for convolutions. Its default is TensorFloat-32 for convolutions only.

    This function turns off cuDNN for attention: cuDNN builds a plan for each new shape and thread, which takes 0.1 to
    0.5 s for each new length of a prompt.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False  # float16 products are summed in float32
    torch.backends.cuda.enable_cudnn_sdp(False)


def using(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which `device` is the current CUDA device of this thread.

    Pinned memory and the capture of CUDA graphs use the current device. Without this context, a process with
    TTS_DEVICE=cuda:1 would also take memory of GPU 0, and would fail if GPU 0 is full.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def cpu_threads() -> int:
    """Return OMP_NUM_THREADS if it is set, else the number of cores that this process may use.

    The process may use the cores of its CPU affinity, and at most the CPU quota of its container (cgroup 2).
    """
    configured = os.environ.get("OMP_NUM_THREADS", "")
    if configured.isdecimal() and int(configured):
        return int(configured)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, math.floor(int(quota) / int(period))))
