"""The helper process of `sandbox.py`: forks a child for each order. The child decodes one upload under limits.

The helper never reads an upload. An order is one byte with four file descriptors: a socket with the order as a JSON
line, the upload, the output file, the error output. The child's exit status goes back over that socket. If the other
end closes first, the helper kills the child. When the server ends, the helper and its children end.

A child can't open a file or a socket (no new file descriptors) and can't start a process. If the server runs as root,
the child changes to an unprivileged user. If the kernel allows it, the child has an empty network namespace.
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

HEADER_BYTES = 4_096  # of the output: JSON, padded with spaces; then the samples as float32
STATUS = struct.Struct("!i")  # the status from os.waitpid
_NOBODY = 65_534
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # linux/sched.h


def main() -> None:
    orders = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl+C the server lets uploads finish
    _leave_the_network()
    _warm()
    _serve(orders)


def _serve(orders: socket.socket) -> None:
    children: dict[int, socket.socket] = {}  # by process id
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for number, event in poll.poll():
            if number == wake:
                os.read(wake, 4096)
            elif number == orders.fileno():
                if not _begin(orders, children, poll):
                    _end_all(children)
                    return
            elif event & (select.POLLHUP | select.POLLERR):  # the server no longer waits for this child
                for process, line in children.items():
                    if line.fileno() == number:
                        os.kill(process, signal.SIGKILL)  # not waited for yet, so the pid can't have been reused
                        poll.unregister(number)
        _report_ended(children, poll)


def _begin(orders: socket.socket, children: dict[int, socket.socket], poll: select.poll) -> bool:
    """Fork a child for one order; False if the server has closed the connection."""
    byte, files, _, _ = socket.recv_fds(orders, 1, 4)
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
    while children:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        line = children.pop(process)
        with contextlib.suppress(KeyError, ValueError):  # removed when it was killed
            poll.unregister(line)
        with contextlib.suppress(OSError):
            line.sendall(STATUS.pack(status))
        line.close()


def _end_all(children: dict[int, socket.socket]) -> None:
    for process in children:
        os.kill(process, signal.SIGKILL)
    for process in children:
        os.waitpid(process, 0)


# ---- in the child


def _child(files: list[int]) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        order = _order(files[0])
        for to, number in enumerate(files[1:]):
            os.dup2(number, to)
        os.closerange(3, 65_536)
        _limit(order)
        _answer(order)
        status = 0
    except BaseException:  # noqa: BLE001 - the child must end here after any error
        with contextlib.suppress(BaseException):
            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    os._exit(status)


def _order(number: int) -> dict[str, Any]:
    with os.fdopen(os.dup(number), "rb") as line:
        order: dict[str, Any] = json.loads(line.readline())
    return order


def _limit(order: dict[str, Any]) -> None:
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a container may forbid it
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    for kind, most in (
        (resource.RLIMIT_AS, order["memory_bytes"]),
        (resource.RLIMIT_CPU, order["cpu_s"]),
        (resource.RLIMIT_FSIZE, order["output_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),  # open descriptors stay open; no new file or socket
    ):
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _input(order: dict[str, Any]) -> bytes:
    """Raises BadReference."""
    most = order["input_bytes"]
    size = os.fstat(0).st_size
    if size > most:
        raise BadReference(f"`{order['what']}` is larger than {most} bytes.")
    parts: list[bytes] = []
    read = 0
    while part := os.pread(0, 1 << 20, read):
        parts.append(part)
        read += len(part)
    return b"".join(parts)


def _answer(order: dict[str, Any]) -> None:
    header: dict[str, Any]
    samples = np.zeros(0, np.float32)
    try:
        decoded = decode(
            _input(order),
            order["rate_hz"],
            max_seconds=order["max_seconds"],
            what=order["what"],
            time_limit_s=order["time_limit_s"],
            formats=order["formats"],
            start_s=order["start_s"],
        )
        samples = np.ascontiguousarray(decoded.samples)
        header = {
            "samples": len(samples),
            "rate_hz": decoded.rate_hz,
            "truncated": decoded.truncated,
            "source_hz": decoded.source_hz,
            "channels": decoded.channels,
            "clipped": decoded.clipped,
        }
    except BadReference as error:
        header = {"error": error.message[: HEADER_BYTES // 8]}
    _write(json.dumps(header).encode().ljust(HEADER_BYTES))
    _write(samples.tobytes())


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


# ---- before the first order


def _leave_the_network() -> None:
    """Enter an empty network namespace, as root or in a user namespace. Children can't open sockets in any case."""
    with contextlib.suppress(AttributeError, OSError):
        unshare = ctypes.CDLL(None).unshare
        if unshare(_CLONE_NEWNET) != 0:
            unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _warm() -> None:
    """Decode once, so that every module and library is loaded before children lose the right to open files."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((2, 2, 44_100, 0, "NONE", ""))
        sound.writeframes(bytes(4 * 8_820))
    decode(file.getvalue(), 24_000, max_seconds=1.0)
    with contextlib.suppress(BadReference):
        decode(b"no sound", 24_000, max_seconds=1.0)


if __name__ == "__main__":
    main()
