"""A helper process of this server, reached through a socket pair: it is started when it is needed and after it died.

It gets no tokens and keys: only a few environment variables. Numeric libraries get one thread there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess  # nosec B404
import threading
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")


class HelperProcess:
    """Owns one helper process and this server's end of the socket. Callers hold `_lock`."""

    def __init__(self, command: Sequence[str], *, end_s: float) -> None:
        """command: the program and its arguments; the number of its socket is added. end_s: how long the process may
        take to end by itself when its socket is closed, before it is killed."""
        self._command = command
        self._end_s = end_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def close(self) -> None:
        """End the process. A later use starts it again."""
        with self._lock:
            self._end()

    def _running(self) -> socket.socket:
        """Return the socket of the running process; start the process if it does not run. Raises OSError."""
        if self._process is not None and self._process.poll() is None and self._socket is not None:
            return self._socket
        self._end()
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(  # noqa: S603 - starts this package's own module # nosec B603
                [*self._command, str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(there.fileno(),),
                cwd=_ROOT,
                env=_environment(),
            )
        self._socket = here
        return here

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._end_s)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._socket = self._process = None


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
