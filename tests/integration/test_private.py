"""Logs contain no text of callers and no key. Valid and invalid requests go to every route of one server."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.keys import KeyFile
from tests.support import samples
from tests.support.live import ROOT, Process

pytestmark = pytest.mark.integration

TEXT = "Zanzibarcanary"  # one word, so the normaliser does not split it
FIXED_KEY = "Fixedkeycanary-0123456789"
WRONG_KEY = "sk-Wrongkeycanary"
PRIVATE = (TEXT.lower(), FIXED_KEY.lower(), WRONG_KEY.lower())

PLUGIN = '''
from app.engines import espeak
from app.errors import EngineError


class Canary:
    """The offline voice. It fails for marked texts, and its errors quote the text, as in careless libraries."""

    def __init__(self, inner):
        self._inner = inner
        self.info = inner.info

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def __aenter__(self):
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc):
        await self._inner.__aexit__(*exc)

    async def speak(self, utterance):
        text = utterance.lines[0].text
        if "early" in text:
            raise ValueError(f"can't speak {text!r}")
        async for chunk in self._inner.speak(utterance):
            yield chunk
            if "late" in text:
                try:
                    raise KeyError(text)
                except KeyError as error:
                    raise RuntimeError(f"broke at {text!r}") from error


def build(settings, context):
    return Canary(espeak.build(settings, context))
'''


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list[int]]:
    """Run a server with the most verbose log; return its log, its key, and the statuses of its responses."""
    folder = tmp_path_factory.mktemp("private")
    plugin = folder / "plugins"
    (plugin / "canary-1.0.dist-info").mkdir(parents=True)
    (plugin / "canary_engine.py").write_text(PLUGIN)
    (plugin / "canary-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: canary\nVersion: 1.0\n")
    (plugin / "canary-1.0.dist-info" / "entry_points.txt").write_text(
        "[tts_server.engines]\ncanary = canary_engine:build\n"
    )
    key = KeyFile(folder / "data").add("whole", ["speak", "clone", "admin"])
    variables = {
        "TTS_API_KEYS": FIXED_KEY,
        "LOG_LEVEL": "DEBUG",
        "TTS_ENGINE": "canary",
        "TTS_DATA_DIR": str(folder / "data"),
        "PYTHONPATH": f"{ROOT}:{plugin}",
        "TTS_READ_TIMEOUT_S": "2",
        "TTS_MEMORY_KEEP": "true",
        "TTS_ENGIN": "csm",  # an unknown name causes a warning
    }
    statuses: list[int] = []
    with Process(folder, **variables) as process:
        process.wait()
        ask(process.url, key, statuses)
        process.child.terminate()
        process.child.wait(20)
    files = [path for path in (folder / "data" / "logs").iterdir() if path.is_file()]
    assert files
    return process.console() + "".join(path.read_text() for path in files), key, statuses


def ask(url: str, key: str, statuses: list[int]) -> None:
    """Send the private text in all fields of every operation, then send invalid requests."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:

        def send(method: str, path: str, **content: Any) -> httpx.Response | None:
            with contextlib.suppress(httpx.RemoteProtocolError):
                answer = http.request(method, path, **content)
                statuses.append(answer.status_code)
                return answer
            statuses.append(0)  # broken off
            return None

        schema = http.get("/openapi.json").json()
        for path, operations in schema["paths"].items():
            if path == "/v1/voice-cloning/clone-from-youtube":
                continue  # this route needs a network; a test below covers its errors
            for method in operations:
                filled = path.replace("{", "").replace("}", "")
                for at in (path, filled):
                    where = at.replace("{", TEXT).replace("}", "")
                    send(method, where, params={"key": FIXED_KEY, "text": TEXT, "legacy": TEXT})
                    send(method, where, json={"input": TEXT, "text": TEXT, "voice": TEXT, "speed": TEXT, "name": TEXT})
                    form = {"name": TEXT, "transcript": TEXT, "consent": TEXT, "language": TEXT, "description": TEXT}
                    send(method, where, data=form, files={"audio_file": (f"{TEXT}.wav", TEXT.encode())})

        json_type = {"Content-Type": "application/json"}
        send("GET", "/v1/audio/speech", params={"input": TEXT})
        send("GET", f"/v1/audio/{TEXT}")
        send("GET", f"/{FIXED_KEY}/{TEXT}")
        speech_body = {"input": f"{TEXT}, said aloud.", "instructions": TEXT, "user": TEXT}
        for extra in (
            {},
            {"stream_format": "sse", "progress": True},
            {"cache": False},
            {"input": f"{TEXT} fails early."},
            {"input": f"{TEXT} fails late, as one would not like it to."},
            {"input": f"{TEXT} fails late, with events.", "stream_format": "sse"},
            {"conversation_id": TEXT},
            {"voice": TEXT},
            {"voice": {"id": TEXT}},
            {"model": TEXT},
            {"response_format": TEXT},
            {"language": TEXT},
            {"input": [TEXT]},
            {"input": f"{TEXT} \ud800"},
        ):
            send(
                "POST",
                "/v1/audio/speech",
                content=json.dumps({**speech_body, **extra}),
                headers={"Content-Type": "application/json"},
            )
        for body in (f'{{"input": "{TEXT}"', f'"{TEXT}"', f'{{"input": "{TEXT}", "{TEXT}": {{}}}}', "[" * 5000 + TEXT):
            send("POST", "/v1/audio/speech", content=body, headers=json_type)
            send("POST", "/v1/audio/speech", content=body, headers={"Content-Type": f"text/{TEXT}"})
        send("POST", "/v1/audio/dialogue", json={"turns": [{"text": TEXT, "speaker": TEXT}, {"text": f"{TEXT} early"}]})
        context = [{"speaker": 1, "text": TEXT, "audio": TEXT}]
        send("POST", "/v1/audio/conversation", json={"text": TEXT, "context": context})
        send(
            "POST",
            "/v1/voice-cloning/clone-from-youtube",
            json={"youtube_url": f"https://{TEXT}.example", "name": TEXT},
        )

        recording = samples.file(samples.speech(), "wav")
        form = {"name": "Berta", "transcript": f"{samples.TEXT} {TEXT}", "description": TEXT, "consent": TEXT}
        clone_response = send(
            "POST", "/v1/voice-cloning/clone", data=form, files={"audio_file": (f"{TEXT}.wav", recording)}
        )
        assert clone_response is not None
        assert clone_response.status_code == 200
        voice = clone_response.json()["voice"]["id"]
        send("PATCH", f"/v1/voice-cloning/voices/{voice}", json={"transcript": f"{TEXT} anew", "description": TEXT})
        send("GET", f"/v1/voice-cloning/voices/{voice}/export")
        send("POST", "/v1/audio/speech", json={"input": TEXT, "voice": voice})
        send("DELETE", f"/v1/voice-cloning/voices/{voice}")

        for credential in (WRONG_KEY, f"{WRONG_KEY}\t{TEXT}", FIXED_KEY):
            for name in ("Authorization", "api-key"):
                header = {name: f"Bearer {credential}" if name == "Authorization" else credential}
                send("POST", "/v1/audio/speech", json=speech_body, headers=header)
                send("GET", "/debug", headers=header)

    where = urlsplit(url)
    for raw in (
        f"{TEXT} / HTTP/1.1\r\n\r\n",
        f"GET /{TEXT} HTTP/9\r\nAuthorization: Bearer {FIXED_KEY}\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {FIXED_KEY}\r\nX: {'a' * 70_000}\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {FIXED_KEY}\r\nConnection: upgrade\r\nUpgrade: {TEXT}\r\n\r\n",
        f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {FIXED_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: 900\r\n\r\n{TEXT}",
    ):
        with socket.create_connection((where.hostname, where.port), timeout=60) as wire:
            wire.sendall(raw.encode())
            with contextlib.suppress(OSError):
                statuses.append(int(wire.recv(65_536).split(b" ", 2)[1]))


def test_log_covers_many_requests_and_errors(ran: tuple[str, str, list[int]]) -> None:
    """If the log had few requests and errors, the next test would prove nothing."""
    log, _, statuses = ran
    assert {0, 200, 400, 401, 404, 405, 408, 431, 500} <= set(statuses)
    assert len(statuses) > 200
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert len([record for record in records if record["event"] == "request"]) > 200
    crashed = [record["exception"] for record in records if "exception" in record]
    assert [name for name in ("ValueError", "RuntimeError", "KeyError") if name in "".join(crashed)] == [
        "ValueError",
        "RuntimeError",
        "KeyError",
    ]
    assert {record["level"] for record in records} >= {"debug", "info", "warning", "error"}
    assert {record["key"] for record in records if "key" in record} == {"whole", "env:1"}


def test_log_contains_no_text_and_no_key(ran: tuple[str, str, list[int]]) -> None:
    log, key, _ = ran
    found = [line for line in log.lower().splitlines() if any(word in line for word in (*PRIVATE, key.lower()))]
    assert not found, "\n".join(line[:300] for line in found[:5])


def test_log_contains_texts_if_the_setting_is_on(tmp_path: Path) -> None:
    """This proves that the test above searches the right logs."""
    with Process(tmp_path, TTS_LOG_TEXTS="true") as process:
        process.wait()
        assert httpx.post(f"{process.url}/v1/audio/speech", json={"input": TEXT}).status_code == 200
        process.child.terminate()
        process.child.wait(20)
    assert TEXT in process.console()
    assert TEXT in (tmp_path / "logs" / "server.log").read_text()
