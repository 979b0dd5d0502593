"""The sandbox for uploads: run `decode` in a separate process, under limits that the operating system enforces.

FFmpeg's demuxers and decoders are written in C and read untrusted input. In the sandbox, FFmpeg has no access to the
secrets, the network or the files of the server. Memory, CPU time and file size are limited, and a timeout kills the
process. A crash affects one upload only.

At the first upload, this module starts a helper process (`decoder_process.py`), which takes 0.3 s and 45 MB. The helper
forks a child process for each upload. The fork takes about 10 ms. The helper never reads an upload, so each child
starts from a clean state.

All functions of this module block, so call them in a thread.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from app.audio.decode import MORE_FORMATS, TIME_LIMIT_S, Decoded
from app.audio.decoder_process import HEADER_BYTES, STATUS
from app.audio.helper_process import HelperProcess
from app.errors import BadReference, NotReady

log = logging.getLogger(__name__)

_LOG_CHARS = 500


Source = Path | bytes | IO[bytes]  # an open file is read from its start and stays open


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one child process."""

    input_bytes: int = 64 << 20  # maximum size of the uploaded file
    memory_bytes: int = 1 << 30  # maximum size of the child's address space
    cpu_s: int = 30
    wall_s: float = 40.0  # the child is killed after this time


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
    """Decode an audio file with `decode` in a child process.

    source: a path, the bytes, or an open file. limits: None = the defaults of `Limits`. time_limit_s: maximum time for
    decoding; None = limits.cpu_s. formats: the default allows more containers than the default of `decode`.

    Raises BadReference if `decode` raises it or if a limit is exceeded. Raises NotReady if the helper process can't be
    started.
    """
    limits = limits or Limits()
    job = {
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
    # The child receives its input and output as open files. The child can open no other file, and RLIMIT_FSIZE limits
    # the size of the output.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, _opened(source) as file:
        try:
            status = _helper().work(job, (file.fileno(), output.fileno(), errors.fileno()), limits.wall_s)
        except TimeoutError:
            raise BadReference(
                f"`{what}` takes too long to decode. Send a shorter or simpler file.", param=what
            ) from None
        if status != 0:
            errors.seek(0)
            output_text = errors.read()[-_LOG_CHARS:].decode("utf-8", "replace").strip()
            log.warning(
                "The process that decoded an upload ended with status %d, so the upload is rejected: %s",
                status,
                output_text,
            )
            raise BadReference(
                f"`{what}` could not be decoded within this server's limits of memory and time. Send a shorter file.",
                param=what,
            )
        output.seek(0)
        return _read_result(output, what)


def decode_short(data: bytes, rate_hz: int, *, max_seconds: float, what: str, time_limit_s: float) -> Decoded:
    """Decode a short recording in the sandbox, in at most time_limit_s seconds. Raises the errors of
    `decode_in_sandbox`.
    """
    limits = Limits(cpu_s=round(TIME_LIMIT_S), wall_s=time_limit_s + 2.0)
    return decode_in_sandbox(
        data, rate_hz, max_seconds=max_seconds, what=what, limits=limits, time_limit_s=time_limit_s
    )


class _Helper(HelperProcess):
    """The helper process that decodes. Thread-safe."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "app.audio.decoder_process"], end_s=2.0)

    def work(self, job: dict[str, object], files: tuple[int, int, int], wall_s: float) -> int:
        """Decode one file in a child process and return the exit status of the child: -n if signal n ended the child.

        Raises TimeoutError if the child runs longer than wall_s; then the child is killed. Raises NotReady if the
        helper process can't be started.
        """
        for _ in range(2):  # try twice: if the helper has died since the last job, the second try starts a new helper
            try:
                return self._send(job, files, wall_s)
            except TimeoutError:
                raise
            except OSError as error:
                log.warning(
                    "The helper process for decoding uploads has died (%s). A new helper process starts.", error
                )
        raise NotReady("This server can't start its process for decoding recordings. Try again.", retry_after_s=1)

    def _send(self, job: dict[str, object], files: tuple[int, int, int], wall_s: float) -> int:
        here, there = socket.socketpair()
        # If this end of the socket is closed while the child runs, the helper kills the child.
        with here:
            with there:
                here.sendall(json.dumps(job).encode() + b"\n")
                with self._lock:
                    socket.send_fds(self._running(), [b"o"], [there.fileno(), *files])
            here.settimeout(wall_s)
            reply = b""
            while len(reply) < STATUS.size:
                part = here.recv(STATUS.size - len(reply))
                if not part:
                    raise ConnectionResetError("the helper process closed the connection")
                reply += part
        (status,) = STATUS.unpack(reply)
        return int(os.waitstatus_to_exitcode(status))


@functools.cache
def _helper() -> _Helper:
    """Return the only helper process of this server. The first call creates the `_Helper`. The `_Helper` is closed when
    the server exits.
    """
    helper = _Helper()
    atexit.register(helper.close)
    return helper


def _read_result(output: IO[bytes], what: str) -> Decoded:
    """Read the result of a child process from its output file.

    Raises BadReference if the file contains an error, or fewer samples than its header states.
    """
    header = json.loads(output.read(HEADER_BYTES))
    if "error" in header:
        raise BadReference(header["error"], param=what)
    samples = np.frombuffer(output.read(), np.float32)
    if len(samples) != header.pop("samples"):
        raise BadReference(f"`{what}` could not be decoded. Send a shorter or simpler file.", param=what)
    return Decoded(samples=samples, **header)


def _opened(source: Source) -> IO[bytes]:
    """Return `source` as a file with a new file descriptor, positioned at the start of the data."""
    if isinstance(source, Path):
        return source.open("rb")
    if not isinstance(source, bytes):
        source.flush()
        own = os.dup(source.fileno())  # if the upload is still in memory, `fileno` writes it to a file
        os.lseek(own, 0, os.SEEK_SET)
        return os.fdopen(own, "rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(source)
    file.seek(0)
    return file
