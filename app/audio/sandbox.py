"""Decoding in a process of its own, which can be killed: `decode` under limits that the operating system keeps.

FFmpeg's demuxers and decoders are written in C and read what strangers send. Here they run without this process's
secrets, network and files, with limits on memory, processor time and file size that they can't lift, and a clock
outside that kills them. What happens there happens to one upload.

A helper process (`decoder_process.py`) starts with the first upload (0.3 s, 45 MB) and forks itself for each one: that
adds some 10 ms to a decoding in a thread. It never reads an upload itself, so each of its children starts clean.

Blocks, so call it in a thread.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import socket
import subprocess  # nosec B404
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from app.audio.decode import MORE_FORMATS, TIME_LIMIT_S, Decoded
from app.audio.decoder_process import HEADER_BYTES, STATUS
from app.errors import BadReference, NotReady

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_LOG_CHARS = 500


Source = Path | bytes | IO[bytes]  # an open file is read from its start, and left open


@dataclass(frozen=True, slots=True)
class Limits:
    """memory: address space of the process. cpu_s: of its processor. wall_s: until it is killed. input: of the file."""

    input_bytes: int = 64 << 20
    memory_bytes: int = 1 << 30
    cpu_s: int = 30
    wall_s: float = 40.0


def decode_in_sandbox(
    source: Source,
    rate_hz: int,
    *,
    max_seconds: float,
    what: str = "audio",
    limits: Limits | None = None,
    start_s: float = 0.0,
    time_limit_s: float | None = None,
    formats: str = MORE_FORMATS,
) -> Decoded:
    """As `decode`, with more kinds of containers (films too). Raises BadReference, also for what breaks a limit;
    NotReady where the helper process can't be had."""
    limits = limits or Limits()
    order = {
        "rate_hz": rate_hz,
        "max_seconds": max_seconds,
        "what": what,
        "start_s": start_s,
        "formats": formats,
        "time_limit_s": limits.cpu_s if time_limit_s is None else time_limit_s,
        "input_bytes": limits.input_bytes,
        "memory_bytes": limits.memory_bytes,
        "cpu_s": limits.cpu_s,
        "output_bytes": HEADER_BYTES + 4 * round((max_seconds + 1) * rate_hz),
    }
    # Input and output are files: the child can read no more than there is, and its own file size limit bounds what it
    # can write.
    with tempfile.TemporaryFile() as heard, tempfile.TemporaryFile() as complaints, _opened(source) as file:
        try:
            status = _helper().work(order, (file.fileno(), heard.fileno(), complaints.fileno()), limits.wall_s)
        except TimeoutError:
            raise BadReference(f"`{what}` takes too long to decode. Send a plainer file.", param=what) from None
        if status != 0:
            complaints.seek(0)
            words = complaints.read()[-_LOG_CHARS:].decode("utf-8", "replace").strip()
            log.warning("decoding an upload ended with status %d: %s", status, words)
            raise BadReference(
                f"`{what}` could not be decoded within this server's limits of memory and time. Send a plainer file.",
                param=what,
            )
        heard.seek(0)
        return _answer(heard, what)


def decode_turn(data: bytes, rate_hz: int, *, max_seconds: float, what: str, time_limit_s: float) -> Decoded:
    """`decode` of a short recording, apart. Raises BadReference, NotReady."""
    limits = Limits(cpu_s=round(TIME_LIMIT_S), wall_s=time_limit_s + 2.0)
    return decode_in_sandbox(
        data, rate_hz, max_seconds=max_seconds, what=what, limits=limits, time_limit_s=time_limit_s
    )


class _Helper:
    """Owns the helper process: starts it when it is first needed, and anew when it has gone. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def work(self, order: dict[str, object], files: tuple[int, int, int], wall_s: float) -> int:
        """The exit status of the child that did it; negative = the signal that ended it. Raises TimeoutError (it is
        killed), NotReady."""
        for _ in range(2):  # the helper may have been killed since the last time
            try:
                return self._once(order, files, wall_s)
            except TimeoutError:
                raise
            except OSError as error:
                log.warning("the decoder's helper process is gone (%s)", error)
        raise NotReady("The process that decodes recordings can't be had. Try again.", retry_after_s=1)

    def _once(self, order: dict[str, object], files: tuple[int, int, int], wall_s: float) -> int:
        here, there = socket.socketpair()
        # Closing our end has the helper kill the child, if it still runs.
        with here:
            with there:
                here.sendall(json.dumps(order).encode() + b"\n")
                with self._lock:
                    socket.send_fds(self._running(), [b"o"], [there.fileno(), *files])
            here.settimeout(wall_s)
            told = b""
            while len(told) < STATUS.size:
                part = here.recv(STATUS.size - len(told))
                if not part:
                    raise ConnectionResetError("it ended")
                told += part
        (status,) = STATUS.unpack(told)
        return int(os.waitstatus_to_exitcode(status))

    def _running(self) -> socket.socket:
        if self._process is not None and self._process.poll() is None and self._orders is not None:
            return self._orders
        self._end()
        orders, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(  # noqa: S603 - our own module # nosec B603
                [sys.executable, "-m", "app.audio.decoder_process", str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
                cwd=_ROOT,
                env=_environment(),
            )
        self._orders = orders
        return orders

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._orders is not None:
            self._orders.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._orders = self._process = None


@functools.cache
def _helper() -> _Helper:
    """One for the whole process: it has no state but being there."""
    helper = _Helper()
    atexit.register(helper.close)
    return helper


def _answer(heard: IO[bytes], what: str) -> Decoded:
    told = json.loads(heard.read(HEADER_BYTES))
    if "error" in told:
        raise BadReference(told["error"], param=what)
    samples = np.frombuffer(heard.read(), np.float32)
    if len(samples) != told.pop("samples"):
        raise BadReference(f"`{what}` could not be decoded. Send a plainer file.", param=what)
    return Decoded(samples=samples, **told)


def _opened(source: Source) -> IO[bytes]:
    if isinstance(source, Path):
        return source.open("rb")
    if not isinstance(source, bytes):
        source.flush()
        own = os.dup(source.fileno())  # of an upload that is still in memory this makes a file
        os.lseek(own, 0, os.SEEK_SET)
        return os.fdopen(own, "rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(source)
    file.seek(0)
    return file


def _environment() -> dict[str, str]:
    """No tokens and keys; one thread, since a thread's stack counts against the memory."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
