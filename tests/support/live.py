"""A real server on a real socket: in this process (for coverage), or as `python -m app.main`."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from app import wiring
from app.main import connections
from app.settings import Settings
from app.wiring import create_app
from tests.support.ears import SENTENCES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.engines.registry import EngineSpec

ROOT = Path(__file__).resolve().parents[2]

LONG = " ".join(f"{sentence.capitalize()}." for sentence in SENTENCES) * 15  # about 15 minutes of speech


def settings(data_dir: Path, **variables: Any) -> Settings:
    """Return the settings of a test server: offline voice, no preset voice creation, no environment and no `.env`
    file."""
    values = {"TTS_ENGINE": "espeak", "HOST": "127.0.0.1", "PORT": 0, "TTS_DATA_DIR": data_dir, "TTS_CASTING": "off"}
    # Most tests compare the unmarked samples of an engine.
    values |= {"TTS_ASR_DOWNLOAD": False, "TTS_WATERMARK": "cloned"}
    values |= variables
    return Settings(_env_file=None, **values)  # type: ignore[call-arg]


@contextmanager
def serving(data_dir: Path, *, wait: bool = True, **variables: Any) -> Iterator[str]:
    """Run a server in a thread of this process until the end of the block; yield its base URL."""
    chosen = settings(data_dir, **variables)
    config = uvicorn.Config(
        create_app(chosen), host="127.0.0.1", port=0, timeout_graceful_shutdown=2, **connections(chosen)
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="live-server")
    thread.start()
    url = f"{chosen.scheme}://127.0.0.1:{listener.getsockname()[1]}"
    trusted = trust(chosen.tls_cert) if chosen.tls_cert else True
    try:
        wait_until(lambda: server.started)
        if wait:
            with httpx.Client(verify=trusted) as http:
                wait_until(lambda: http.get(f"{url}/ready").status_code == 200, slower=True)
        yield url
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def serving_engine(spec: EngineSpec, data_dir: Path, **variables: Any) -> Iterator[str]:
    """Run a server that has only this engine; yield its base URL. Other servers keep the built-in engines."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wiring.registry, "specs", lambda: {spec.name: spec})
            chosen = {"TTS_ENGINE": spec.name, "TTS_FALLBACK_ENGINE": "", **variables}
            url = stack.enter_context(serving(data_dir, **chosen))
        yield url


def request_speech(raw: socket.socket, url: str, body: dict[str, Any], key: str = "any") -> None:
    """Connect a socket, and send a request for speech through it. The test can close the socket at any moment."""
    where = urlsplit(url)
    content = json.dumps(body).encode()
    raw.connect((where.hostname, where.port))
    raw.sendall(
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s" % (key.encode(), len(content), content)
    )


@contextmanager
def stuck_reader(url: str, text: str = LONG, key: str = "any") -> Iterator[socket.socket]:
    """Open a connection that requests long speech, reads only its beginning, and has small socket buffers."""
    body = {"input": text, "response_format": "pcm", "cache": False}
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        request_speech(raw, url, body, key)
        assert raw.recv(1024).startswith(b"HTTP/1.1 200")
        yield raw


def create_certificate(folder: Path, name: str = "server", *, names: str = "DNS:localhost,IP:127.0.0.1") -> TlsPair:
    """Create a self-signed certificate in the files `{name}.pem` and `{name}-key.pem`. names: its alternative names."""
    pair = TlsPair(folder / f"{name}.pem", folder / f"{name}-key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"]
    subprocess.run([*command, "-out", pair.cert, "-keyout", pair.key], check=True, capture_output=True)
    return pair


class TlsPair(NamedTuple):
    """The paths of a certificate and its key."""

    cert: Path
    key: Path

    @property
    def variables(self) -> dict[str, str]:
        """Return the settings that make a server use this pair."""
        return {"TTS_TLS_CERT": str(self.cert), "TTS_TLS_KEY": str(self.key)}


def trust(*certs: Path) -> ssl.SSLContext:
    """Return the TLS context of a client that trusts only these certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for cert in certs:
        context.load_verify_locations(cert)
    return context


def wait_until(ready: Any, timeout_s: float = 60.0, *, slower: bool = False) -> None:
    """Wait until ready() is true. The limit is long, because the machine may be busy with other work.

    slower: the longer the wait, the longer the pauses, up to 0.1 s. A request every 10 ms would take half of the CPU
    time that a server needs to start. Only for states that last.
    """
    start_s = time.monotonic()
    while not ready():
        waited_s = time.monotonic() - start_s
        if waited_s > timeout_s:
            raise TimeoutError("waited in vain")
        time.sleep(min(0.1, max(0.01, waited_s / 10)) if slower else 0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def environment(data_dir: Path, **variables: str) -> dict[str, str]:
    """Return the environment of this process without variables of the server and without a hub cache, plus
    `variables`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TTS_", "HF_"))}
    return {
        **clean,
        "PYTHONPATH": str(ROOT),
        "TTS_DATA_DIR": str(data_dir),
        "TTS_ENGINE": "espeak",
        "TTS_ASR_DOWNLOAD": "0",
        "TTS_WATERMARK": "cloned",  # most tests compare the unmarked samples of an engine
        "HF_HOME": str(Path(data_dir) / "hub_home"),
        **variables,
    }


class Process:
    """Runs `python -m app.main` (or another module) in its own folder and environment."""

    def __init__(self, data_dir: Path, *arguments: str, **variables: str) -> None:
        port = free_port()
        cert = variables.get("TTS_TLS_CERT")
        self.url = f"{'https' if cert else 'http'}://127.0.0.1:{port}"
        self._trusted = trust(Path(cert)) if cert and Path(cert).is_file() else True
        self.log = data_dir / "console.log"
        data_dir.mkdir(parents=True, exist_ok=True)
        self._console = self.log.open("wb")
        command = [sys.executable, "-m", *(arguments or ("app.main",))]
        self.started_s = time.monotonic()
        self.child = subprocess.Popen(
            command,
            cwd=data_dir,
            env=environment(data_dir, HOST="127.0.0.1", **{"PORT": str(port), **variables}),
            stdout=self._console,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGKILL)
        self.child.wait(20)
        self._console.close()

    def answers(self, path: str = "/ready", status: int = 200) -> bool:
        try:
            return httpx.get(self.url + path, timeout=5, verify=self._trusted).status_code == status
        except httpx.TransportError:
            return False

    def wait(self, path: str = "/ready", status: int = 200, timeout_s: float = 60.0) -> float:
        """Wait until `path` has `status`; return the seconds since the start."""
        wait_until(lambda: self.answers(path, status), timeout_s, slower=True)
        return time.monotonic() - self.started_s

    def console(self) -> str:
        return self.log.read_text(errors="replace")


def recognisers() -> list[int]:
    """Return the process ids of the running recognisers of this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"app.audio.alignment" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found
