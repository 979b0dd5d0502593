"""The server as a process: its start, its shutdown, errors for bad settings, and reloads."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.ears import SENTENCES, Recogniser, decode
from tests.support.live import ROOT, Process, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_server_starts_in_seconds_and_finishes_streams_on_sigterm(tmp_path: Path, recogniser: Recogniser) -> None:
    picked = [SENTENCES[index % len(SENTENCES)] for index in range(60)]
    body = {
        "input": " ".join(f"{sentence.capitalize()}." for sentence in picked),
        "response_format": "wav",
        "cache": False,
    }
    with Process(tmp_path) as process:
        process.wait("/ready")
        received = []
        with httpx.stream("POST", f"{process.url}/v1/audio/speech", json=body, timeout=120) as answer:
            pieces = answer.iter_raw()
            received.append(next(pieces))
            process.child.terminate()
            time.sleep(0.3)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{process.url}/health")
            received += pieces
        assert process.child.wait(60) in (0, -signal.SIGTERM)
    decoded = decode(b"".join(received), "wav")
    assert decoded.seconds > 100
    ending = type(decoded)(decoded.samples[-int(2.6 * decoded.rate_hz) :], decoded.rate_hz)
    assert recogniser.recognise(ending, several=True).endswith(picked[-1][-10:])
    assert "Traceback" not in process.console()


def test_end_of_shutdown_grace_sends_errors_to_open_requests(tmp_path: Path) -> None:
    body = {"input": "A sentence that takes a while to say. " * 400, "response_format": "pcm", "cache": False}
    queued: list[httpx.Response] = []
    with Process(tmp_path, TTS_SHUTDOWN_GRACE_S="1", TTS_MAX_ROWS="1", TTS_OUTBOX_S="0.5") as process:
        process.wait()
        speech = f"{process.url}/v1/audio/speech"
        with httpx.stream("POST", speech, json={**body, "stream_format": "sse"}, timeout=120) as answer:
            pieces = answer.iter_raw(1024)
            next(pieces)
            waiting = threading.Thread(
                target=lambda: queued.append(httpx.post(speech, json={"input": "My turn?"}, timeout=120))
            )
            waiting.start()
            wait_until(lambda: httpx.get(f"{process.url}/health").json()["queue"]["waiting"] == 1)
            process.child.terminate()
            waiting.join(60)
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
        process.child.wait(60)
    assert queued[0].status_code == 503
    assert queued[0].json()["error"]["code"] == "engine_stopped"
    assert "Traceback" not in process.console()


def test_invalid_input_is_not_logged_as_a_crash_and_texts_are_not_logged(tmp_path: Path) -> None:
    with Process(tmp_path, TTS_API_KEYS="a-very-secret-key") as process:
        process.wait()
        auth = {"Authorization": "Bearer a-very-secret-key"}
        for body in (b"{", b"[]", b'{"input": 1}', b'{"input": "x", "speed": 9}', b'{"input": "x", "voice": "y"}'):
            headers = {**auth, "Content-Type": "application/json"}
            assert httpx.post(f"{process.url}/v1/audio/speech", content=body, headers=headers).status_code == 400
        swapped = {"input": "alloy", "voice": "Nobody may read this in the log."}
        assert httpx.post(f"{process.url}/v1/audio/speech", json=swapped, headers=auth).status_code == 400
        spoken = {"input": "Nobody may read this in the log."}
        assert httpx.post(f"{process.url}/v1/audio/speech?key=a-very-secret-key", json=spoken, headers=auth).is_success
        process.child.terminate()
        process.child.wait(60)
    log = (tmp_path / "logs" / "server.log").read_text()
    records = [json.loads(line) for line in log.splitlines()]
    requests = [record for record in records if record.get("path") == "/v1/audio/speech"]
    assert {(record["status"], record["whole"]) for record in requests} == {(400, True), (200, True)}
    for output in (log, process.console()):
        assert "Traceback" not in output
        assert "a-very-secret-key" not in output
        assert "Nobody may read" not in output


def test_texts_are_logged_if_the_setting_is_on(tmp_path: Path) -> None:
    with Process(tmp_path, TTS_LOG_TEXTS="true") as process:
        process.wait()
        httpx.post(f"{process.url}/v1/audio/speech", json={"input": "Write this down."})
        wait_until(lambda: "Write this down." in (tmp_path / "logs" / "server.log").read_text())


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"TTS_ENGINE": "nonsense"}, "nonsense"),
        ({"PORT": "high"}, "PORT"),
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
        ({"TTS_DATA_DIR": "/dev/null/data"}, "TTS_DATA_DIR"),
    ],
)
def test_invalid_settings_end_the_process_with_an_error(tmp_path: Path, variables: dict[str, str], word: str) -> None:
    with Process(tmp_path, **variables) as process:
        assert process.child.wait(60) == 2
    assert word in process.console()
    assert "Traceback" not in process.console()


@pytest.mark.slow
def test_dev_mode_restarts_when_the_code_changes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    with Process(tmp_path, DEV_MODE="true", PYTHONPATH=str(tmp_path)) as process:
        process.wait("/version")
        root = tmp_path / "app" / "__init__.py"
        root.write_text(root.read_text().replace("__version__ = ", '__version__ = "9.9.9" or '))
        wait_until(lambda: process.answers("/version"))
        wait_until(lambda: version(process) == "9.9.9")
        process.child.terminate()
        process.child.wait(20)


def version(process: Process) -> str:
    try:
        return str(httpx.get(f"{process.url}/version").json()["version"])
    except httpx.TransportError:
        return ""


def test_occupied_port_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with Process(tmp_path, PORT=str(taken.getsockname()[1])) as process:
            assert process.child.wait(60) != 0
        assert "address already in use" in process.console().lower()


def test_sigkill_during_a_request_leaves_no_partial_cache_entry(tmp_path: Path) -> None:
    body = {"input": "A sentence that dies in the cache. " * 80, "response_format": "wav"}
    with Process(tmp_path) as process:
        process.wait()

        def ask() -> None:
            with (
                contextlib.suppress(httpx.TransportError),
                httpx.stream("POST", f"{process.url}/v1/audio/speech", json=body, timeout=120) as answer,
            ):
                for _ in answer.iter_raw(1024):
                    time.sleep(0.001)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: list((tmp_path / "audio_cache").glob("??/*.tmp")))
        process.child.kill()
        asking.join(60)
    with Process(tmp_path) as again:
        again.wait()
        answer = httpx.post(f"{again.url}/v1/audio/speech", json=body, timeout=120)
        assert answer.headers["x-cache"] == "miss"
        assert decode(answer.content, "wav").seconds > 100


def test_the_offline_voice_needs_no_torch(tmp_path: Path) -> None:
    """An app with the offline voice can be created in a process that can't import torch."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from tests.support.live import serving\n"
        "import httpx\n"
        f"with serving(Path({str(tmp_path)!r})) as url:\n"
        "    assert httpx.post(url + '/v1/audio/speech', json={'input': 'No torch here.'}).status_code == 200\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
