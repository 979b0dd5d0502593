"""Decoding in a process of its own, which can be killed: `decode` under limits that the operating system keeps.

FFmpeg's demuxers and decoders are written in C and read what strangers send. Here they run without this process's
secrets, with limits on memory, processor time and file size that they can't lift, and a clock outside that kills them.
It costs about a quarter of a second to start, which is why a conversation's turns are decoded in a thread instead.

Blocks, so call it in a thread.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess  # nosec B404
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from app.audio.decode import MORE_FORMATS, Decoded, decode
from app.errors import BadReference

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_HEADER_BYTES = 4_096  # of the answer: JSON, filled up with spaces
_LOG_CHARS = 500


Source = Path | bytes | IO[bytes]  # an open file is read from its start, and left open


@dataclass(frozen=True, slots=True)
class Limits:
    """memory: address space of the process. cpu_s: of its processor. wall_s: until it is killed. input: of the file."""

    input_bytes: int = 64 << 20
    memory_bytes: int = 1 << 30
    cpu_s: int = 30
    wall_s: float = 40.0


def decode_apart(
    source: Source,
    rate_hz: int,
    *,
    max_seconds: float,
    what: str = "audio",
    limits: Limits | None = None,
    start_s: float = 0.0,
) -> Decoded:
    """As `decode`, with more kinds of containers (films too). Raises BadReference, also for what breaks a limit."""
    limits = limits or Limits()
    order = {
        "rate_hz": rate_hz,
        "max_seconds": max_seconds,
        "what": what,
        "start_s": start_s,
        "input_bytes": limits.input_bytes,
        "memory_bytes": limits.memory_bytes,
        "cpu_s": limits.cpu_s,
        "output_bytes": _HEADER_BYTES + 4 * round((max_seconds + 1) * rate_hz),
    }
    # The child's standard input and output are files: it can read no more than there is, and its own file size limit
    # bounds what it can write.
    with tempfile.TemporaryFile() as heard, tempfile.TemporaryFile() as complaints, _opened(source) as file:
        command = [sys.executable, "-m", "app.audio.apart", json.dumps(order)]
        child = subprocess.Popen(  # noqa: S603 - our own module, nothing of the upload in its arguments # nosec B603
            command, stdin=file, stdout=heard, stderr=complaints, cwd=_ROOT, env=_environment()
        )
        try:
            status = child.wait(limits.wall_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if status is None:
            raise BadReference(f"`{what}` takes too long to decode. Send a plainer file.", param=what)
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


def _answer(heard: IO[bytes], what: str) -> Decoded:
    told = json.loads(heard.read(_HEADER_BYTES))
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


def _limit(order: dict[str, Any]) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, order["memory_bytes"]),
        (resource.RLIMIT_CPU, order["cpu_s"]),
        (resource.RLIMIT_FSIZE, order["output_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _input(order: dict[str, Any]) -> bytes:
    """Raises BadReference."""
    data = sys.stdin.buffer.read(order["input_bytes"] + 1)
    if len(data) > order["input_bytes"]:
        raise BadReference(f"`{order['what']}` is larger than {order['input_bytes']} bytes.")
    return data


def _child(order: dict[str, Any]) -> None:
    _limit(order)
    told: dict[str, Any]
    samples = np.zeros(0, np.float32)
    try:
        data = _input(order)
        decoded = decode(
            data,
            order["rate_hz"],
            max_seconds=order["max_seconds"],
            what=order["what"],
            time_limit_s=order["cpu_s"],
            formats=MORE_FORMATS,
            start_s=order["start_s"],
        )
        samples = np.ascontiguousarray(decoded.samples)
        told = {
            "samples": len(samples),
            "rate_hz": decoded.rate_hz,
            "truncated": decoded.truncated,
            "source_hz": decoded.source_hz,
            "channels": decoded.channels,
            "clipped": decoded.clipped,
        }
    except BadReference as error:
        told = {"error": error.message[: _HEADER_BYTES // 8]}
    sys.stdout.buffer.write(json.dumps(told).encode().ljust(_HEADER_BYTES))
    sys.stdout.buffer.write(samples.tobytes())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
