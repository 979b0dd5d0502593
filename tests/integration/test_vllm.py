"""The WebSocket of vLLM-Omni over real sockets: the sequences of its users, formats, word times, and bad input."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from app.api import vllm
from app.keys import KeyFile
from tests.support.ears import decode
from tests.support.live import LONG, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

SENTENCES = ["Hello there my dear friend.", "It costs $3.50 today, as always.", "And how are you doing?"]
TEXT = " ".join(SENTENCES)
Object = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("data"), TTS_OUTBOX_S=0.5, TTS_MAX_INPUT_CHARS=200_000) as url:
        yield url


@contextlib.contextmanager
def streaming(url: str, *, path: str = "/v1/audio/speech/stream", key: str = "", **config: Any) -> Iterator[Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with connect(url.replace("http", "ws", 1) + path, additional_headers=headers, max_size=None) as socket:
        if config:
            send(socket, {"type": "session.config", **config})
        yield socket


def send(socket: ClientConnection, *messages: Object) -> None:
    for message in messages:
        socket.send(json.dumps(message))


def text(content: str) -> Object:
    return {"type": "input.text", "text": content}


DONE, CLOSE = {"type": "input.done"}, {"type": "session.close"}


def receive(socket: ClientConnection) -> Any:
    message = socket.recv(timeout=60)
    return message if isinstance(message, bytes) else json.loads(message)


def until(socket: ClientConnection, kind: str) -> list[Any]:
    messages = [receive(socket)]
    while isinstance(messages[-1], bytes) or messages[-1]["type"] != kind:
        messages.append(receive(socket))
    return messages


def until_closed(socket: ClientConnection) -> tuple[list[Any], int]:
    messages: list[Any] = []
    with pytest.raises(ConnectionClosed) as closed:
        _read_all(socket, messages)
    assert closed.value.rcvd is not None
    return messages, closed.value.rcvd.code


def _read_all(socket: ClientConnection, messages: list[Any]) -> None:
    while True:
        messages.append(receive(socket))


def audio_of(messages: list[Any]) -> bytes:
    return b"".join(message for message in messages if isinstance(message, bytes))


def kinds(messages: list[Any]) -> list[str]:
    found = ["binary" if isinstance(message, bytes) else message["type"] for message in messages]
    return [kind for at, kind in enumerate(found) if at == 0 or kind != "binary" or found[at - 1] != "binary"]


def speech(url: str, content: str = TEXT, **fields: Any) -> bytes:
    body = {"input": content, "response_format": "pcm", "cache": False, **fields}
    return httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).content


def is_free(url: str) -> bool:
    return not httpx.get(f"{url}/health").json()["rows"]["active"]


@pytest.mark.parametrize("path", ["/v1/audio/speech/stream", "/api/v1/audio/speech/stream"])
def test_text_is_one_unit_by_default(server: str, path: str) -> None:
    with streaming(server, path=path, voice="echo", response_format="wav") as socket:
        for word in TEXT.split(" "):
            send(socket, text(f"{word} "))
        send(socket, DONE)
        messages = until(socket, "session.done")
    assert kinds(messages) == ["audio.start", "binary", "audio.done", "session.done"]
    start, audio, done, session = messages
    place = {"utterance_index": 0, "sentence_index": 0}
    assert start == {"type": "audio.start", **place, "sentence_text": f"{TEXT} ", "format": "wav"}
    assert done == {"type": "audio.done", **place, "total_bytes": len(audio), "error": False}
    assert session == {"type": "session.done", "utterance_index": 0, "total_sentences": 1}
    assert decode(audio, "wav").samples.tolist() == decode(speech(server, voice="echo"), "pcm").samples.tolist()


@pytest.mark.parametrize("granularity", ["sentence", "clause"])
def test_sentences_are_spoken_before_the_text_ends(server: str, granularity: str) -> None:
    with streaming(server, response_format="wav", split_granularity=granularity) as socket:
        send(socket, text(f"{SENTENCES[0]} {SENTENCES[1][:5]}"))
        assert kinds([receive(socket) for _ in range(3)]) == ["audio.start", "binary", "audio.done"]
        send(socket, text(f"{SENTENCES[1][5:]} {SENTENCES[2]}"), DONE)
        messages = until(socket, "session.done")
    starts = [each for each in messages if not isinstance(each, bytes) and each["type"] == "audio.start"]
    assert [start["sentence_index"] for start in starts] == list(range(1, len(starts) + 1))
    assert " ".join(start["sentence_text"].strip() for start in starts) == " ".join(SENTENCES[1:])
    assert messages[-1] == {"type": "session.done", "utterance_index": 0, "total_sentences": len(starts) + 1}


@pytest.mark.parametrize(
    ("granularity", "units"),
    [
        ("none", 1),
        ("sentence", 2),
        ("clause", 4),
    ],
)
def test_each_unit_is_split_in_the_same_way(server: str, granularity: str, units: int) -> None:
    first = "When the rain has stopped at last, we go out into the garden together."
    second = "Because the grass is still very wet, we have to wear our boots again today."
    with streaming(server, response_format="pcm", split_granularity=granularity) as socket:
        send(socket, *(text(char) for char in f"{first} {second}"), DONE)
        messages = until(socket, "session.done")
    starts = [each["sentence_text"] for each in messages if isinstance(each, dict) and each["type"] == "audio.start"]
    assert " ".join(starts) == f"{first} {second}"
    assert len(starts) == units


def test_session_close_speaks_the_text_that_was_sent(server: str) -> None:
    with streaming(server, response_format="pcm") as socket:
        send(socket, text("Hello there."), CLOSE)
        messages, code = until_closed(socket)
    assert code == 1000
    assert audio_of(messages) == speech(server, "Hello there.")
    assert messages[-1] == {"type": "session.done", "utterance_index": 0, "total_sentences": 1}


def test_streamed_pcm_names_its_rate(server: str) -> None:
    with streaming(server, response_format="pcm", stream_audio=True) as socket:
        send(socket, text(TEXT), DONE)
        messages = until(socket, "session.done")
    assert kinds(messages) == ["audio.start", "binary", "audio.done", "session.done"]
    assert (messages[0]["sample_rate"], messages[0]["channels"], messages[0]["format"]) == (24_000, 1, "pcm")
    assert audio_of(messages) == speech(server)
    assert messages[-2]["total_bytes"] == len(speech(server))


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "flac", "aac", "pcm", "wav"])
def test_formats(server: str, audio_format: str) -> None:
    with streaming(server, response_format=audio_format, speed=1.5) as socket:
        send(socket, text(TEXT), DONE)
        audio = audio_of(until(socket, "session.done"))
    expected = speech(server, speed=1.5)
    assert decode(audio, audio_format).seconds == pytest.approx(decode(expected, "pcm").seconds, abs=0.1)


def test_connection_serves_several_utterances_and_settings(server: str) -> None:
    with streaming(server, response_format="pcm") as socket:
        send(socket, text("One is here."), DONE, DONE, text("Two is here."), DONE)
        first, empty, second = (until(socket, "session.done") for _ in range(3))
        assert audio_of(first) == speech(server, "One is here.")
        assert empty == [{"type": "session.done", "utterance_index": 1, "total_sentences": 0}]
        assert audio_of(second) == speech(server, "Two is here.")
        assert second[-1]["utterance_index"] == second[0]["utterance_index"] == 2
        send(socket, {"type": "session.config", "response_format": "pcm", "speaker": "echo"})
        send(socket, text("Three is here."), DONE)
        assert audio_of(until(socket, "session.done")) == speech(server, "Three is here.", voice="echo")
        send(socket, text("Four is here."), DONE, CLOSE)
        messages, code = until_closed(socket)
    assert code == 1000
    assert messages[-1]["type"] == "session.done"


def test_word_times_come_in_a_last_chunk(server: str) -> None:
    options = {"response_format": "pcm", "stream_audio": True, "word_timestamps": True}
    with streaming(server, **options, split_granularity="sentence") as socket:
        send(socket, text(TEXT), DONE)
        messages = until(socket, "session.done")
    units: list[list[Object]] = []
    for message in messages[:-1]:
        assert isinstance(message, dict)
        if message["type"] == "audio.start":
            assert message["word_timestamps"] is True
            units.append([])
        units[-1].append(message)
    for unit in units:
        sentence = unit[0]["sentence_text"]
        chunks = [message for message in unit if message["type"] == "audio.chunk"]
        assert [chunk["chunk_id"] for chunk in chunks] == list(range(len(chunks)))
        assert all(chunk["timestamps"] is None for chunk in chunks[:-1])
        assert all(a["chunk_end_ms"] == b["chunk_start_ms"] for a, b in pairwise(chunks[:-1]))
        assert b"".join(base64.b64decode(chunk["audio_b64"]) for chunk in chunks) == speech(server, sentence)
        last = chunks[-1]
        assert last["audio_b64"] == ""
        assert (last["chunk_start_ms"], last["chunk_end_ms"]) == (0, chunks[-2]["chunk_end_ms"])
        body = {"input": sentence, "response_format": "pcm", "timestamps": True}
        expected = httpx.post(f"{server}/v1/audio/speech", json=body).json()["words"]
        assert [(word["word"], word["start_ms"], word["end_ms"]) for word in last["timestamps"]] == [
            (word["word"], round(1000 * word["start"]), round(1000 * word["end"])) for word in expected
        ]
    assert " ".join(unit[0]["sentence_text"].strip() for unit in units) == TEXT


def test_text_without_words_gives_an_empty_unit(server: str) -> None:
    with streaming(server, response_format="pcm", stream_audio=True) as socket:
        send(socket, text("  \n"), DONE)
        assert until(socket, "session.done") == [
            {"type": "session.done", "utterance_index": 0, "total_sentences": 0},
        ]
        send(socket, text("<br>"), DONE)
        messages = until(socket, "session.done")
        assert not any(audio_of(messages))
        assert kinds(messages)[-2:] == ["audio.done", "session.done"]


# ---- errors


@pytest.mark.parametrize(
    "config",
    [
        {"response_format": "mp4"},
        {"response_format": 1},
        {"voice": 1},
        {"voice": "nobody"},
        {"speaker": "nobody"},
        {"voice": "nova+nobody"},
        {"speed": 9},
        {"speed": "fast"},
        {"language": "no language"},
        {"language": "xx"},
        {"temperature": 0.5},
        {"seed": "x"},
        {"model": "unknown"},
        {"model": 1},
        {"stream_audio": True},
        {"stream_audio": "yes", "response_format": "pcm"},
        {"stream_audio": True, "response_format": "mp3"},
        {"word_timestamps": True, "response_format": "pcm"},
        {"split_granularity": "word"},
        {"split_granularity": 1},
        {"ref_audio": "data:audio/wav;base64,AAAA"},
        {"speaker_embedding": [0.1]},
        {"instructions": "x" * (vllm.MAX_CONFIG_CHARS + 1)},
    ],
)
def test_bad_settings_are_an_error(server: str, config: Object) -> None:
    with streaming(server, **({"voice": None} | config)) as socket:
        messages, code = until_closed(socket)
    assert code == 1000
    assert [(message["type"], bool(message["message"])) for message in messages] == [("error", True)]
    with streaming(server, response_format="pcm") as socket:  # later, the settings before stay
        send(socket, {"type": "session.config", **config})
        assert receive(socket)["type"] == "error"
        send(socket, text("Hello."), DONE)
        assert audio_of(until(socket, "session.done")) == speech(server, "Hello.")


@pytest.mark.parametrize("first", [text("Hello."), DONE, CLOSE, {}, {"type": "x"}, {"type": None}, [], "x", 1, None])
def test_settings_must_be_the_first_message(server: str, first: Any) -> None:
    with streaming(server) as socket:
        socket.send(json.dumps(first))
        messages, _ = until_closed(socket)
    assert [message["type"] for message in messages] == ["error"]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        '{"a":' * 5000,
        b"\xff\xfe",
        b"binary",
        json.dumps({"type": "unknown"}),
        json.dumps({"type": ["input.text"]}),
        json.dumps({}),
        json.dumps({"type": "input.text", "text": 1}),
        json.dumps({"type": "input.text", "text": None}),
        json.dumps({"type": "input.text", "text": ["a"]}),
        json.dumps(text("x" * (vllm.MAX_TEXT_CHARS + 1))),
    ],
)
def test_bad_messages_are_errors_and_the_session_continues(server: str, bad: str | bytes) -> None:
    with streaming(server, response_format="pcm") as socket:
        socket.send(bad)
        assert set(receive(socket)) == {"type", "message"}
        send(socket, text("Hello."), DONE)
        assert audio_of(until(socket, "session.done")) == speech(server, "Hello.")


def test_settings_cant_change_inside_an_utterance(server: str) -> None:
    with streaming(server, response_format="pcm") as socket:
        send(socket, text("Hello "), {"type": "session.config", "voice": "echo"}, text("there."), DONE)
        assert "utterance is in progress" in receive(socket)["message"]
        assert audio_of(until(socket, "session.done")) == speech(server, "Hello there.")


def test_text_that_is_too_long_is_an_error(server: str) -> None:
    with streaming(server, response_format="pcm") as socket:
        send(socket, text("Hello there. "), text(" " * 120_000), text("a" * 120_000), DONE)
        assert "TTS_MAX_INPUT_CHARS" in receive(socket)["message"]
        assert audio_of(until(socket, "session.done"))


def test_failed_unit_is_an_error_and_the_next_one_is_spoken(server: str) -> None:
    with streaming(server, response_format="pcm") as socket:
        send(socket, text("Wait. [pause: 10s] " * 70), DONE)
        messages = until(socket, "session.done")
        assert kinds(messages) == ["audio.start", "error", "audio.done", "session.done"]
        assert messages[1]["message"].startswith("Generation failed for utterance 0, sentence 0: ")
        assert messages[2]["error"] is True
        send(socket, {"type": "session.config", "response_format": "pcm"}, text("Hello."), DONE)
        assert audio_of(until(socket, "session.done")) == speech(server, "Hello.")


def test_silent_connections_are_closed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "CONFIG_S", 0.2)
    with streaming(server) as socket:
        messages, _ = until_closed(socket)
    assert messages == [{"type": "error", "message": "Timeout waiting for session.config"}]
    monkeypatch.setattr(vllm, "CONFIG_S", 10)
    monkeypatch.setattr(vllm, "IDLE_S", 0.2)
    with streaming(server, response_format="pcm") as socket:
        messages, _ = until_closed(socket)
    assert messages == [{"type": "error", "message": "Idle timeout: no message received"}]


def test_disconnected_client_frees_its_row(server: str) -> None:
    with streaming(server, response_format="pcm", stream_audio=True) as socket:
        send(socket, text(LONG[:100_000]), DONE)
        until(socket, "audio.start")
        wait_until(lambda: not is_free(server))
    wait_until(lambda: is_free(server))


def test_client_that_reads_nothing_pauses_only_its_own_speech(server: str) -> None:
    with streaming(server, response_format="pcm", stream_audio=True) as stuck:
        send(stuck, text(LONG[:100_000]), DONE)
        until(stuck, "audio.start")
        with streaming(server, response_format="pcm") as socket:
            send(socket, text("Hello."), DONE)
            assert audio_of(until(socket, "session.done")) == speech(server, "Hello.")
    wait_until(lambda: is_free(server))


def test_random_messages_never_end_the_server(server: str) -> None:
    rng = random.Random(3)
    choices: list[Any] = [text("Hi. "), text("One. Two is. "), DONE, {"type": "session.config"}, {"type": 3}, [], "x"]
    for _ in range(15):
        messages = [json.dumps(rng.choice(choices)) for _ in range(10)]
        with streaming(server, response_format="pcm", split_granularity="sentence") as socket:
            for message in messages:
                socket.send(message)
    wait_until(lambda: is_free(server))
    assert speech(server, "Hello.")


# ---- keys


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "KEY_CHECK_S", 0.1)
    with serving(tmp_path, TTS_API_KEYS="a-first-key-0123456789") as url:
        for key, status in (("", 401), ("wrong", 401)):
            with pytest.raises(InvalidStatus) as refused, streaming(url, key=key):
                pass
            assert refused.value.response.status_code == status
        file = KeyFile(tmp_path)
        reader = file.add("cloner", ["clone"])
        limited = file.add("limited", ["speak"], per_minute=2)
        time.sleep(1.1)  # the server reads the key file once in a second
        with pytest.raises(InvalidStatus) as refused, streaming(url, key=reader):
            pass
        assert refused.value.response.status_code == 403
        with streaming(url, key=limited, response_format="pcm") as socket:
            for _ in range(2):
                send(socket, text("Hello. How are you?"), DONE)
                assert audio_of(until(socket, "session.done"))
            send(socket, text("Hello."), DONE)
            assert receive(socket)["type"] == "error"
            file.remove("limited")
            messages, code = until_closed(socket)
            assert code == 1008
            assert messages[-1]["type"] == "error"
        headers = {"Authorization": "Bearer a-first-key-0123456789"}
        metrics = httpx.get(f"{url}/metrics", headers=headers).text
        assert 'tts_key_requests_total{key="limited",status="200"} 2.0' in metrics
        assert 'tts_key_tokens_total{key="limited",kind="output"}' in metrics
