"""Third-party clients, each in its environment from `make clients`, and the servers under test."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.ears import DecodedAudio, Recogniser, decode
from tests.support.live import ROOT, TlsPair, create_certificate, serving, stuck_reader, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
KEY = "sk-the-right-one"


class Client:
    """A driver in its own process (see drivers/talk.py). It runs one job at a time."""

    def __init__(self, command: list[str], log: Path, certificate: Path | None = None) -> None:
        """`certificate`: a self-signed certificate that the client trusts."""
        self.log = log
        self._stderr = log.open("wb")
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=driver_environment() | trusting(certificate),
            text=True,
        )

    def ask(self, do: str, url: str, *, key: str = "any", **job: Any) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({"do": do, "base_url": f"{url}/v1", "api_key": key, **job}) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, f"the driver ended: {self.log.read_text()[-2000:]}"
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(20)
        finally:
            self._child.kill()
            self._child.wait()
            self._child.stdout.close()
            self._stderr.close()


def driver_environment() -> dict[str, str]:
    """An environment without variables that lead to another server or to a real account."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "TTS_", "LITELLM_"))}
    clean = {name: value for name, value in clean.items() if not name.lower().endswith("_proxy")}
    return {**clean, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "HF_HUB_OFFLINE": "1"}


def trusting(certificate: Path | None) -> dict[str, str]:
    """The variables with which Python and Node trust a certificate."""
    return {name: str(certificate) for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS") if certificate is not None}


@contextmanager
def driver(name: str, environment: str, folder: Path, certificate: Path | None = None) -> Iterator[Client]:
    """`environment`: "voice" or "litellm" for a script of drivers/, "node" for one of node/."""
    if environment == "node":
        if shutil.which("node") is None:
            pytest.skip("node is not installed")
        there, command = HERE / "node" / "node_modules", ["node", str(HERE / "node" / f"{name}.mjs")]
    else:
        python = ROOT / ".clients" / environment / "bin" / "python"
        there, command = python, [str(python), str(HERE / "drivers" / f"{name}.py")]
    assert there.exists(), f"{there} is not there: `make clients` makes it"
    client = Client(command, folder / f"{name}.log", certificate)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that requires KEY and has one row and no queue: a second parallel request gets a 429."""
    data = tmp_path_factory.mktemp("guarded")
    with serving(data, TTS_API_KEYS=KEY, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=0, TTS_OUTBOX_S=0.5) as url:
        yield url


@pytest.fixture(scope="session")
def tls_pair(tmp_path_factory: pytest.TempPathFactory) -> TlsPair:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return create_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory, tls_pair: TlsPair) -> Iterator[str]:
    """A server that speaks https and wss, and requires KEY."""
    with serving(tmp_path_factory.mktemp("secure"), TTS_API_KEYS=KEY, **tls_pair.variables) as url:
        yield url


@contextmanager
def full(url: str, for_s: float | None = None) -> Iterator[None]:
    """Occupy the only row of the guarded server for `for_s` seconds, or until the end of the block."""
    wait_until(lambda: not httpx.get(f"{url}/health").json()["rows"]["active"])  # wait until the row is free
    with stuck_reader(url, key=KEY) as raw:
        if for_s is not None:
            threading.Timer(for_s, raw.close).start()
        yield


def decode_result(result: dict[str, Any], audio_format: str = "mp3") -> DecodedAudio:
    """Decode the audio in the result of a driver. An error in the result fails the test with its text."""
    assert "error" not in result, result["error"]
    return decode(base64.b64decode(result["audio"]), audio_format)


def recognise_result(
    result: dict[str, Any], recogniser: Recogniser, audio_format: str = "mp3", *, several: bool = False
) -> str:
    sound = decode_result(result, audio_format)
    assert sound.loudness_dbfs > -40
    return recogniser.recognise(sound, several=several)
