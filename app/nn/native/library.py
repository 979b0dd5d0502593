"""Compiles kernels.cpp for the instruction sets of this CPU, and loads the library with ctypes.

A compiled library is stored as a file in a folder. The file name contains a digest of the source and of the compiler's
options. So a file is never used with another version of the source or on another kind of CPU.
`python -m app.nn.native.library FOLDER` compiles the library for all instruction sets of this architecture. The
build of the container images does the same, because the images contain no compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import secrets
import shutil
import subprocess  # nosec B404
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
PREBUILT = Path(__file__).with_name("prebuilt")
_COMPILE_TIMEOUT_S = 120
# Without -ffp-contract=off, products and sums would be rounded differently on each instruction set.
_OPTIONS = (
    "-std=c++20", "-O3", "-shared", "-fPIC", "-pthread",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip


class NativeUnavailable(Exception):
    """The native kernels can't be used here. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """An instruction set for which the source can be compiled.

    features: the features that the CPU must have, with their names in /proc/cpuinfo.
    """

    name: str
    options: tuple[str, ...]
    features: frozenset[str]

    @property
    def file_name(self) -> str:
        hashed = hashlib.sha256(SOURCE.read_bytes() + " ".join((*_OPTIONS, *self.options)).encode())
        return f"tts-kernels-{hashed.hexdigest()[:16]}-{self.name}.so"


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_X86 = (
    InstructionSet(
        "avx512vnni",
        (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"),
        frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}),
    ),
    InstructionSet("avxvnni", (*_AVX2, "-mavxvnni"), frozenset({"avx2", "fma", "f16c", "avx_vnni"})),
    InstructionSet("avx2", _AVX2, frozenset({"avx2", "fma", "f16c"})),
)
_ARM = (InstructionSet("dotprod", ("-march=armv8.2-a+dotprod",), frozenset({"asimddp"})),)


def instruction_sets(machine: str = platform.machine()) -> Sequence[InstructionSet]:
    """Return the instruction sets that the source supports on this architecture, the fastest first."""
    return {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}.get(machine, ())


def cpu_features() -> frozenset[str]:
    """Return the features of this CPU, from /proc/cpuinfo. On an Apple CPU: only the dot product instructions."""
    if sys.platform == "darwin":
        return frozenset({"asimddp"}) if platform.machine() == "arm64" else frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    listed = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(listed.partition(":")[2].split())


def choose(sets: Sequence[InstructionSet], features: frozenset[str]) -> InstructionSet:
    """Return the first of `sets` that a CPU with these features has. Raises NativeUnavailable if there is none."""
    for each in sets:
        if each.features <= features:
            return each
    if not sets:
        raise NativeUnavailable(f"there are no native kernels for {platform.machine()}")
    raise NativeUnavailable(f"the CPU has no {sets[-1].name} instructions")


def find_compiler() -> str:
    """Return the command of a C++ compiler; "" = this machine has none."""
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++") or ""


def compile_library(wanted: InstructionSet, folder: Path) -> Path:
    """Compile the source, and return the path of the library in `folder`. Raises NativeUnavailable if this fails.

    Several processes may compile at the same time: each one writes its own file and renames it.
    """
    compiler = find_compiler()
    if not compiler:
        raise NativeUnavailable("this machine has no C++ compiler (install g++, or set CXX)")
    target = folder / wanted.file_name
    partial = folder / f".{wanted.name}.{secrets.token_hex(4)}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        command = [*compiler.split(), *_OPTIONS, *wanted.options, str(SOURCE), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)  # noqa: S603 # nosec B603
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise NativeUnavailable(f"the compiler {compiler} failed: {errors[0] if errors else done.returncode}")
        partial.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"the kernels could not be compiled: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # the disk of the folder may be read-only
            partial.unlink(missing_ok=True)
    log.info("compiled the native kernels: %s", target)
    return target


class Library:
    """The loaded library, with the threads of one model. `name` is the name of the instruction set."""

    def __init__(self, path: Path, name: str, threads: int) -> None:
        """Load the library. Raises NativeUnavailable if the file is not a library for this machine."""
        self.name = name
        try:
            handle = ctypes.CDLL(str(path))
            address, count = ctypes.c_void_p, ctypes.c_int64
            handle.tts_pool.argtypes, handle.tts_pool.restype = (ctypes.c_int,), address
            handle.tts_free_pool.argtypes, handle.tts_free_pool.restype = (address,), None
            for function, arguments in (
                ("tts_pack", (address, address, count, count, ctypes.c_int, address, address)),
                ("tts_linear", (address, address, address, count, address)),
                ("tts_gate", (address, address, count, count, address)),
                ("tts_attend", (address, address, count, address, count, address)),
                ("tts_add_low_rank", (address, address, address, address)),
                ("tts_stack", (address, address, count, address, address, ctypes.c_float, address, count, address)),
            ):
                getattr(handle, function).argtypes, getattr(handle, function).restype = arguments, None
        except (OSError, AttributeError) as error:
            raise NativeUnavailable(f"{path} can't be loaded: {error}") from error
        self._free = handle.tts_free_pool
        self.pool: int | None = handle.tts_pool(threads)
        self.pack, self.linear, self.gate = handle.tts_pack, handle.tts_linear, handle.tts_gate
        self.attend, self.stack = handle.tts_attend, handle.tts_stack
        self.add_low_rank = handle.tts_add_low_rank

    def __del__(self) -> None:
        if getattr(self, "pool", None) is not None:
            self._free(self.pool)


def load(folder: Path, threads: int) -> Library:
    """Load the kernels for this CPU. If there is no compiled library, compile the kernels into `folder` first.

    threads: how many threads a product uses, including the caller's thread. Raises NativeUnavailable if the kernels
    can't be compiled or loaded, or if the CPU has none of the instruction sets.
    """
    wanted = choose(instruction_sets(), cpu_features())
    for path in (PREBUILT / wanted.file_name, folder / wanted.file_name):
        if path.is_file():
            try:
                return Library(path, wanted.name, threads)
            except NativeUnavailable as error:
                log.warning("%s; the kernels are compiled again", error)
    return Library(compile_library(wanted, folder), wanted.name, threads)


if __name__ == "__main__":
    for each in instruction_sets():
        compile_library(each, Path(sys.argv[1]))
