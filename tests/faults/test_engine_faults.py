"""Model failures in the batch loop: the affected request fails, requests in other rows succeed."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from app.engines.registry import EngineSpec
from tests.support.ears import decode
from tests.support.live import serving_engine, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

WHOLE_S = 3.2


@contextlib.contextmanager
def failing(folder: Path) -> Iterator[httpx.Client]:
    spec = EngineSpec("failing", "failing-1", "tests.support.faulty_engines:build")
    with serving_engine(spec, folder, TTS_ENHANCE=False) as url, httpx.Client(base_url=url, timeout=120) as http:
        yield http


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with failing(tmp_path_factory.mktemp("failing")) as client:
        yield client


def speak(http: httpx.Client, text: str, **more: object) -> httpx.Response:
    body = {"input": text, "response_format": "wav", "cache": False, **more}
    return http.post("/v1/audio/speech", json=body)


def broken_off(http: httpx.Client, text: str, **more: object) -> bytes:
    """Return the bytes received before a response breaks off. Fails if the response ends cleanly."""
    received = []
    body = {"input": text, "response_format": "wav", **more}
    with http.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(answer.iter_raw())
    return b"".join(received)


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_exception_during_a_stream_breaks_the_body_in_every_format(http: httpx.Client, audio_format: str) -> None:
    for _ in range(2):  # the second request shows that no faulty audio was cached
        assert broken_off(http, "An exception comes.", response_format=audio_format)
    assert speak(http, "All is well.", response_format=audio_format).status_code == 200


def test_exception_during_a_stream_resets_the_connection_of_an_http_1_0_client(http: httpx.Client) -> None:
    """Without chunks, a normal end of the connection would mean that the answer is complete."""
    body = json.dumps({"input": "An exception comes.", "response_format": "wav"}).encode()
    with socket.create_connection((http.base_url.host, http.base_url.port or 80), timeout=30) as raw:
        raw.sendall(b"POST /v1/audio/speech HTTP/1.0\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: raw.recv(65_536), b""))


@pytest.mark.parametrize("word", ["exception", "number", "noise"])
def test_failure_during_an_event_stream_is_sent_as_an_error_event(http: httpx.Client, word: str) -> None:
    data = broken_off(http, f"A wrong {word}.", stream_format="sse").decode()
    events = [json.loads(line.removeprefix("data: ")) for line in data.split("\n\n") if line]
    assert events[-1]["error"]["type"] == "server_error"
    assert {event.get("type") for event in events[:-1]} == {"speech.audio.delta"}
    assert "[DONE]" not in data


@pytest.mark.parametrize("word", ["exception", "number", "noise"])
def test_timestamps_of_a_stream_that_fails_have_no_end(http: httpx.Client, word: str) -> None:
    text = f"A wrong {word}."
    data = broken_off(http, text, stream_format="sse", timestamps=True, response_format="pcm").decode()
    events = [json.loads(line.removeprefix("data: ")) for line in data.split("\n\n") if line]
    assert events[-1]["error"]["type"] == "server_error"
    assert {event.get("type") for event in events[:-1]} <= {"speech.audio.delta", "speech.audio.words"}
    sent_s = sum(len(base64.b64decode(event["audio"])) for event in events if "audio" in event) / 48_000
    assert all(word["end"] <= sent_s for event in events[:-1] for word in event.get("words", ()))
    data = broken_off(http, text, timestamps=True).decode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(data)


@pytest.mark.parametrize("captions", ["srt", "vtt", "lrc", "json"])
def test_captions_of_speech_that_fails_are_an_error(http: httpx.Client, captions: str) -> None:
    for _ in range(2):  # the second shows that nothing was kept
        answer = http.post("/v1/audio/captions", json={"input": "An exception comes.", "captions": captions})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
    assert http.post("/v1/audio/captions", json={"input": "All is well.", "captions": captions}).status_code == 200


@pytest.mark.parametrize("word", ["number", "noise", "memory"])
def test_other_rows_are_complete_if_one_row_fails(http: httpx.Client, word: str) -> None:
    def one(index: int) -> float | None:
        if index == 1:
            if word == "memory":
                assert speak(http, "Much memory, and a pause.").status_code == 500
            else:
                broken_off(http, f"A wrong {word}, and a pause.")
            return None
        return decode(speak(http, f"Pause {index}.").content, "wav").seconds

    with ThreadPoolExecutor(4) as threads:
        durations_s = list(threads.map(one, range(4)))
    assert [seconds for seconds in durations_s if seconds is not None] == pytest.approx([WHOLE_S] * 3, abs=0.2)
    assert http.get("/health").json()["status"] == "ok"
    wait_until(lambda: http.get("/health").json()["rows"]["active"] == 0)


def test_out_of_memory_forbids_client_retries(http: httpx.Client) -> None:
    answer = speak(http, "Much memory.")
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "out_of_memory"
    assert speak(http, "All is well.").status_code == 200


def test_failed_batch_loop_is_restarted_once(tmp_path: Path) -> None:
    with failing(tmp_path) as http, ThreadPoolExecutor(2) as threads:
        beside = threads.submit(broken_off, http, "A long pause beside it.")
        wait_until(lambda: http.get("/health").json()["rows"]["active"] == 1)
        broken_off(http, "Then comes death, after a pause.")
        assert beside.result(10)
        # The next requests succeed. /health reports the restart.
        for _ in range(3):
            assert decode(speak(http, "All is well.").content, "wav").seconds == pytest.approx(WHOLE_S, abs=0.2)
        health = http.get("/health")
        assert health.status_code == 200
        assert health.json()["status"] == "degraded"
        assert "restarted" in health.json()["reason"]
        assert http.get("/ready").status_code == 200

        broken_off(http, "Death again.")
        answer = speak(http, "Is anybody there?")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        health = http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert "Restart the server" in health.json()["remedy"]
        assert http.get("/ready").status_code == 503
