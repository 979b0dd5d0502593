"""Starts a server for a benchmark: `python -m app.main` in a new process with a new data folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. url: the base URL with /v1. The properties measure the process of the server."""

    url: str
    pid: int
    log: Path

    @property
    def cpu_s(self) -> float:
        """CPU seconds that all threads of the server have used since its start."""
        return time.clock_gettime((~self.pid << 3) | 2)  # the number of the CPU clock of this process in Linux

    @property
    def rss_bytes(self) -> int:
        return self._status("VmRSS") * 1024

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - only the number of names is needed

    @property
    def waited_s(self) -> float:
        """Seconds that the current threads of the server have waited for a CPU core."""
        tasks = Path(f"/proc/{self.pid}/task")
        waited_ns = 0
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):  # the thread has ended in the meantime
                waited_ns += int((task / "schedstat").read_text().split()[1])
        return waited_ns / 1e9

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise LookupError(name)


@contextlib.contextmanager
def tiny_csm() -> Iterator[dict[str, str]]:
    """Write a tiny CSM with random weights, and yield the environment variables of a server that speaks with it.

    The event loop stops while the files are written, so call this function before other tasks run.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "csm"
        command = [sys.executable, "-m", "bench.fabricate", "csm", "--size", "tiny", str(model)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        # The server uses one thread for matrix products, because they are so small that two threads are slower than
        # one. The second core is left to the event loop.
        yield {
            "TTS_ENGINE": "csm", "CSM_MODEL": str(model), "TTS_FALLBACK_ENGINE": "", "TTS_CASTING": "off",
            "TTS_DTYPE": "bfloat16", "OMP_NUM_THREADS": "1",
        }  # fmt: skip


@contextlib.asynccontextmanager
async def own_server(**variables: str) -> AsyncIterator[Server]:
    """Run a server with the offline voice inside `async with`. variables: additional environment variables.

    SIGTERM cancels the current task, so that the server is stopped, too.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        environment = os.environ | {
            "TTS_ENGINE": "espeak",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "TTS_DATA_DIR": data,
            "LOG_LEVEL": "WARNING",
            "PYTHONPATH": str(ROOT),
        }
        log = Path(data) / "console.log"
        command = [sys.executable, "-m", "app.main"]
        with log.open("wb") as console:
            child = subprocess.Popen(  # noqa: ASYNC220 - no other task runs yet
                command, env=environment | variables, cwd=data, stderr=console
            )
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await until_ready(f"http://127.0.0.1:{port}", child)
            yield Server(f"http://127.0.0.1:{port}/v1", child.pid, log)
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


async def until_ready(url: str, child: subprocess.Popen[bytes] | None = None, timeout_s: float = 120.0) -> None:
    """Wait until the server is ready.

    Raises TimeoutError if it is not ready after `timeout_s`, and ChildProcessError if its process ends first.
    """
    deadline_s = time.monotonic() + timeout_s
    async with httpx.AsyncClient() as http:
        while time.monotonic() < deadline_s:
            if child is not None and child.poll() is not None:
                raise ChildProcessError(f"the server ended with status {child.returncode} before it was ready")
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(f"{url}/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    raise TimeoutError(f"{url} was not ready within {timeout_s:.0f} s")
