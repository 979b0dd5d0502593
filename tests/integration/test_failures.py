"""Engine failures: before the first audio they cause a JSON error, after it a broken response body."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import openai
import pytest
from openai import Stream
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from app.engines.registry import EngineSpec
from tests.support.live import serving_engine, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@contextmanager
def broken(folder: Path) -> Iterator[str]:
    spec = EngineSpec("broken", "broken-1", "tests.support.broken_engine:build")
    with serving_engine(spec, folder) as url:
        yield url


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with broken(tmp_path_factory.mktemp("broken")) as served:
        yield served


@pytest.fixture
def unused(tmp_path: Path) -> Iterator[str]:
    """A server that has counted no failure yet."""
    with broken(tmp_path) as served:
        yield served


@pytest.mark.parametrize("word", ["break", "crash"])
@pytest.mark.parametrize("audio_format", ["mp3", "wav"])
def test_failure_after_the_first_audio_breaks_the_body(url: str, audio_format: str, word: str) -> None:
    body = {"input": f"Please {word}.", "response_format": audio_format}
    for _ in range(2):  # the second request shows that no error was cached
        received: list[bytes] = []
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                received.extend(answer.iter_raw())
        assert b"".join(received)
    assert httpx.post(f"{url}/v1/audio/speech", json={"input": "Well."}).status_code == 200
    assert "tts_failed_total" in httpx.get(f"{url}/metrics").text


@pytest.mark.parametrize("word", ["break", "crash"])
def test_error_event_raises_in_the_official_client(url: str, word: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        stream = client.post(
            "/audio/speech",
            body={"input": f"Please {word}.", "stream_format": "sse"},
            cast_to=object,
            stream=True,
            stream_cls=Stream[object],
        )
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert "engine broke" in str(caught.value) or "server failed" in str(caught.value)


@pytest.mark.parametrize(
    ("word", "code"), [("break", "engine_error"), ("crash", "error"), ("silence", "nothing_spoken")]
)
@pytest.mark.parametrize("path", ["stream-input", "multi-stream-input"])
def test_error_is_the_last_message_of_an_elevenlabs_socket(url: str, path: str, word: str, code: str) -> None:
    address = f"{url.replace('http', 'ws', 1)}/v1/text-to-speech/alloy/{path}"
    messages = []
    with connect(address) as socket:
        socket.send(json.dumps({"text": f"Please {word}.", "context_id": "a", "flush": True}))
        with pytest.raises(ConnectionClosed) as closed:
            messages.extend(json.loads(message) for message in iter(lambda: socket.recv(timeout=30), None))
    last = messages[-1]
    assert not any(message.get("isFinal") for message in messages)
    assert (last["error"], last["code"]) == (code, 1011)
    assert last.get("contextId") == ("a" if path.startswith("multi") else None)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, last["message"])


def test_silent_output_is_a_500_error(url: str) -> None:
    answer = httpx.post(f"{url}/v1/audio/speech", json={"input": "Only silence."})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "nothing_spoken"


def test_out_of_memory_forbids_client_retries(unused: str) -> None:
    with (
        openai.OpenAI(base_url=f"{unused}/v1", api_key="any", max_retries=2) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.audio.speech.create(model="tts-1", voice="alloy", input="Out of memory.")
    assert caught.value.code == "out_of_memory"
    assert caught.value.response.headers["x-should-retry"] == "false"

    def counted() -> list[str]:
        lines = httpx.get(f"{unused}/metrics").text.splitlines()
        return [line for line in lines if 'status="500"' in line and "_total" in line]

    wait_until(counted)  # the request is counted after its response was sent
    assert any(line.endswith(" 1.0") for line in counted())
