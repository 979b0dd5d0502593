"""A helper process of the server. The server sends jobs to the helper process through a socket pair.

The process starts at its first job, and starts again if it has ended. The helper process gets only a few environment
variables, so it does not receive tokens or keys. In the helper process, numeric libraries use one thread.
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
    """Owns one helper process and the server's end of the socket pair. Call `_running` and `_end` only with `_lock`
    held.
    """

    def __init__(self, command: Sequence[str], *, end_s: float) -> None:
        """command: the program and its arguments. The number of the socket's file descriptor is added as the last
        argument. end_s: if the process still runs end_s seconds after its socket is closed, it is killed.
        """
        self._command = command
        self._end_s = end_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def close(self) -> None:
        """End the helper process. The next job starts the helper process again."""
        with self._lock:
            self._end()

    def _running(self) -> socket.socket:
        """Return the server's end of the socket pair. Starts the process if it does not run. Raises OSError if it can't
        be started.
        """
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
                env=child_environment(),
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


def root() -> Path:
    """Return the folder in which a child process finds this package."""
    return _ROOT


def child_environment() -> dict[str, str]:
    """Return the environment of a child process: without tokens and keys."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
