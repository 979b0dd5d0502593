"""The helper process of `sandbox.py`. For each job, the helper forks a child process that decodes one upload.

The helper never reads an upload. The server sends a job to the helper as one byte with four file descriptors: a socket,
the upload, the output file, the error output. The child reads the job from the socket as a JSON line. When the child
ends, the helper sends the exit status of the child over the socket. If the server closes the socket first, the helper
kills the child. When the server ends, the helper and all children end.

A child can't open a file or a socket and can't start a process. If the server runs as root, the child changes to an
unprivileged user. If the kernel allows it, the child has an empty network namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
import wave
from typing import Any, NoReturn

import numpy as np

from app.audio.decode import decode
from app.errors import BadReference

HEADER_BYTES = 4_096  # size of the header of the output file: JSON, padded with spaces. The float32 samples follow
STATUS = struct.Struct("!i")  # format in which the status from os.waitpid is sent over the socket
_NOBODY = 65_534
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # the values of these two flags in linux/sched.h


def main() -> None:
    """Serve jobs from a socket until the server closes the socket. sys.argv[1]: the descriptor of the socket."""
    jobs = socket.socket(fileno=int(sys.argv[1]))
    # Ignore Ctrl+C: the server still waits until all received uploads are decoded.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _leave_the_network()
    _warm()
    _serve(jobs)


def _serve(jobs: socket.socket) -> None:
    """Handle new jobs, children that end, and sockets that the server closes. Returns when `jobs` is closed."""
    children: dict[int, socket.socket] = {}  # process id -> socket to the server
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(jobs, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for number, event in poll.poll():
            if number == wake:
                os.read(wake, 4096)
            elif number == jobs.fileno():
                if not _begin(jobs, children, poll):
                    _end_all(children)
                    return
            elif event & (select.POLLHUP | select.POLLERR):  # the server has stopped waiting for this child
                for process, line in children.items():
                    if line.fileno() == number:
                        os.kill(process, signal.SIGKILL)  # the process id is not reused before `waitpid`
                        poll.unregister(number)
        _report_ended(children, poll)


def _begin(jobs: socket.socket, children: dict[int, socket.socket], poll: select.poll) -> bool:
    """Receive one job and fork a child process for it. Returns False if the server has closed the connection."""
    byte, files, _, _ = socket.recv_fds(jobs, 1, 4)
    if not byte or len(files) != 4:
        return False
    process = os.fork()
    if process == 0:
        _child(files)
    line = socket.socket(fileno=files[0])
    for number in files[1:]:
        os.close(number)
    children[process] = line
    poll.register(line, 0)
    return True


def _report_ended(children: dict[int, socket.socket], poll: select.poll) -> None:
    """Send the server the exit status of each child that has ended."""
    while children:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        line = children.pop(process)
        with contextlib.suppress(KeyError, ValueError):  # a killed child's socket is not registered any more
            poll.unregister(line)
        with contextlib.suppress(OSError):
            line.sendall(STATUS.pack(status))
        line.close()


def _end_all(children: dict[int, socket.socket]) -> None:
    """Kill all children and wait until they have ended."""
    for process in children:
        os.kill(process, signal.SIGKILL)
    for process in children:
        os.waitpid(process, 0)


# ---- in the child


def _child(files: list[int]) -> NoReturn:
    """Run one job in the forked child, then end the child."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        job = _read_job(files[0])
        for to, number in enumerate(files[1:]):
            os.dup2(number, to)
        os.closerange(3, 65_536)
        _limit(job)
        _decode(job)
        status = 0
    except BaseException:  # noqa: BLE001 - the child must end here after any error
        with contextlib.suppress(BaseException):
            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    os._exit(status)


def _read_job(number: int) -> dict[str, Any]:
    with os.fdopen(os.dup(number), "rb") as line:
        job: dict[str, Any] = json.loads(line.readline())
    return job


def _limit(job: dict[str, Any]) -> None:
    """Drop privileges and set the resource limits of this child."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a container may forbid the change of the user
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    for kind, most in (
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_CPU, job["cpu_s"]),
        (resource.RLIMIT_FSIZE, job["output_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),  # open files stay open, but no new file or socket can be opened
    ):
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _input(job: dict[str, Any]) -> bytes:
    """Read the upload. Raises BadReference if the upload is too large."""
    most = job["input_bytes"]
    size = os.fstat(0).st_size
    if size > most:
        raise BadReference(f"`{job['what']}` is larger than {most} bytes. Send a smaller file.")
    parts: list[bytes] = []
    read = 0
    while part := os.pread(0, 1 << 20, read):
        parts.append(part)
        read += len(part)
    return b"".join(parts)


def _decode(job: dict[str, Any]) -> None:
    """Decode the upload and write the result: a header, then the samples.

    The header contains facts about the audio. If the upload can't be decoded, the header contains the error.
    """
    header: dict[str, Any]
    samples = np.zeros(0, np.float32)
    try:
        decoded = decode(
            _input(job),
            job["rate_hz"],
            max_seconds=job["max_seconds"],
            what=job["what"],
            time_limit_s=job["time_limit_s"],
            formats=job["formats"],
            start_s=job["start_s"],
        )
        samples = np.ascontiguousarray(decoded.samples)
        header = {
            "samples": len(samples),
            "rate_hz": decoded.rate_hz,
            "truncated": decoded.truncated,
            "source_hz": decoded.source_hz,
            "channels": decoded.channels,
            "clipped": decoded.clipped,
            "comment": decoded.comment if len(json.dumps(decoded.comment)) < HEADER_BYTES // 2 else "",
        }
    except BadReference as error:
        header = {"error": error.message[: HEADER_BYTES // 8]}
    _write(json.dumps(header).encode().ljust(HEADER_BYTES))
    _write(samples.tobytes())


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


# ---- what the helper does before its first job


def _leave_the_network() -> None:
    """Enter an empty network namespace if the kernel allows it.

    The namespace is a second protection. The resource limits already prevent children from opening sockets.
    """
    with contextlib.suppress(AttributeError, OSError):
        unshare = ctypes.CDLL(None).unshare
        if unshare(_CLONE_NEWNET) != 0:
            unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _warm() -> None:
    """Decode a short file, so that all modules and libraries are loaded before a child needs them.

    A child can't load a library, because a child can't open files.
    """
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((2, 2, 44_100, 0, "NONE", ""))
        writer.writeframes(bytes(4 * 8_820))
    decode(file.getvalue(), 24_000, max_seconds=1.0)
    with contextlib.suppress(BadReference):
        decode(b"not audio", 24_000, max_seconds=1.0)


if __name__ == "__main__":
    main()
