"""The routes of ElevenLabs over real sockets: the sequences of its clients, formats, contexts, keys, and bad input."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from app.audio import g711
from app.generator import later_text
from app.keys import KeyFile
from tests.support.ears import decode
from tests.support.live import LONG, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

TEXT = "Hello there. It costs $3.50 today. And how are you doing?"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("data"), TTS_OUTBOX_S=0.5) as url:
        yield url


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("impatient")
    with serving(data, TTS_OUTBOX_S=0.5, TTS_READER_TIMEOUT_S=1, TTS_MAX_INPUT_CHARS=1_000_000) as url:
        yield url


@contextlib.contextmanager
def streaming(
    url: str, path: str = "stream-input", *, voice: str = "alloy", **query: str
) -> Iterator[ClientConnection]:
    headers = query.pop("headers", {"xi-api-key": "any"})
    options = "&".join(f"{name}={value}" for name, value in ({"output_format": "pcm_24000"} | query).items())
    address = f"{url.replace('http', 'ws', 1)}/v1/text-to-speech/{voice}/{path}?{options}"
    with connect(address, additional_headers=headers, max_size=None) as socket:
        yield socket


def send(socket: ClientConnection, *messages: Object) -> None:
    for message in messages:
        socket.send(json.dumps(message))


def receive(socket: ClientConnection) -> Object:
    message: Object = json.loads(socket.recv(timeout=30))
    return message


def until_final(socket: ClientConnection) -> list[Object]:
    messages = [receive(socket)]
    while messages[-1].get("isFinal") is not True:
        messages.append(receive(socket))
    return messages


def until_closed(socket: ClientConnection) -> tuple[list[Object], int]:
    """Return all messages, and the close code."""
    messages: list[Object] = []
    with pytest.raises(ConnectionClosed) as closed:
        _read_all(socket, messages)
    assert closed.value.rcvd is not None
    return messages, closed.value.rcvd.code


def _read_all(socket: ClientConnection, messages: list[Object]) -> None:
    while True:
        messages.append(receive(socket))


def audio_of(messages: list[Object]) -> bytes:
    return b"".join(base64.b64decode(message["audio"]) for message in messages if message.get("audio"))


def speech(url: str, text: str = TEXT, **fields: Any) -> bytes:
    body = {"input": text, "response_format": "pcm", "cache": False, **fields}
    return httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).content


def is_free(url: str) -> bool:
    return not httpx.get(f"{url}/health").json()["rows"]["active"]


def test_message_sequence_of_elevenlabs_python_works(server: str) -> None:
    """The client sends a message with a space, texts with try_trigger_generation, and an empty text.

    The server closes with 1000.
    """
    with streaming(server, model_id="eleven_flash_v2_5") as socket:
        first = {"voice_settings": {"stability": 0.5}, "generation_config": {"chunk_length_schedule": [50]}}
        send(socket, {"text": " ", "try_trigger_generation": True, **first})
        for word in TEXT.split(" "):
            send(socket, {"text": f"{word} ", "try_trigger_generation": True})
        send(socket, {"text": ""})
        messages, code = until_closed(socket)
    assert code == 1000
    assert messages[-1]["isFinal"] is True
    assert all(message["alignment"] == message["normalizedAlignment"] for message in messages)
    assert all(message["alignment"] is None for message in messages if message["audio"])
    assert all(message["isFinal"] is None for message in messages[:-1])
    assert audio_of(messages) == speech(server)


@pytest.mark.parametrize(
    ("name", "audio_format", "rate_hz", "law"),
    [
        ("mp3_22050_32", "mp3", 22_050, None),
        ("mp3_44100_128", "mp3", 44_100, None),
        ("mp3_24000_48", "mp3", 24_000, None),
        *((f"mp3_44100_{rate}", "mp3", 44_100, None) for rate in (32, 64, 96, 192)),
        *((f"pcm_{rate}", "pcm", rate, None) for rate in (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)),
        *((f"opus_48000_{rate}", "opus", 48_000, None) for rate in (32, 64, 96, 128, 192)),
        ("wav_44100", "wav", 44_100, None),
        ("ulaw_8000", "pcm", 8_000, "ulaw"),
        ("alaw_8000", "pcm", 8_000, "alaw"),
    ],
)
def test_output_formats(server: str, name: str, audio_format: str, rate_hz: int, law: g711.Law | None) -> None:
    with streaming(server, output_format=name) as socket:
        send(socket, {"text": "Hello there. "}, {"text": ""})
        audio = audio_of(until_closed(socket)[0])
    expected = speech(server, "Hello there.", response_format=audio_format, sample_rate=rate_hz)
    if law is not None:
        assert audio == g711.encode(expected, law)
    elif audio_format == "pcm":
        assert audio == expected
    else:
        found, wanted = decode(audio, audio_format), decode(expected, audio_format)
        assert found.seconds == pytest.approx(wanted.seconds, abs=0.01)
    for path in ("alloy", "alloy/stream"):
        answer = httpx.post(
            f"{server}/v1/text-to-speech/{path}", params={"output_format": name}, json={"text": "Hello there."}
        )
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("audio/")
        if audio_format == "pcm":
            assert answer.content == (expected if law is None else g711.encode(expected, law))
            assert int(answer.headers.get("content-length", len(answer.content))) == len(answer.content)
        else:
            assert decode(answer.content, audio_format).seconds == pytest.approx(wanted.seconds, abs=0.01)


def test_message_sequence_of_pipecat_works(server: str) -> None:
    """Each message has a context id. A turn ends with flush and close_context. Empty texts keep the socket open."""
    with streaming(server, "multi-stream-input", auto_mode="true") as socket:
        for context in ("one", "two"):
            send(socket, {"text": " ", "context_id": context, "voice_settings": {"stability": 0.5}})
            for sentence in ("Hello there. ", "It costs $3.50 today. "):
                send(socket, {"text": sentence, "context_id": context})
            send(socket, {"text": "", "context_id": context}, {"text": ""})
            send(socket, {"context_id": context, "flush": True}, {"context_id": context, "close_context": True})
            messages = until_final(socket)
            assert all(message["contextId"] == message["context_id"] == context for message in messages)
            assert audio_of(messages) == speech(server, "Hello there. It costs $3.50 today.")
        send(socket, {"close_socket": True})
        assert until_closed(socket)[1] == 1000


def test_sentences_without_spaces_between_them(server: str) -> None:
    """With auto_mode, pipecat sends each sentence in a message, without a space at its end."""
    sentences = [
        "Please call me back.",
        "I would like tea.",
        "It costs 5.",
        "3 of them are here!",
        '"Is it so?"',
        "Yes.",
    ]
    with streaming(server, auto_mode="true", sync_alignment="true") as socket:
        send(socket, {"text": " "}, *({"text": sentence} for sentence in sentences), {"text": ""})
        messages, _ = until_closed(socket)
    assert "".join("".join(each["chars"]) for each in alignments(messages)).split() == " ".join(sentences).split()
    parts = [speech(server, sentence) for sentence in sentences]
    assert len(audio_of(messages)) == pytest.approx(sum(map(len, parts)), rel=0.2)


def test_sentence_of_auto_mode_is_spoken_immediately(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_text, "SENTENCE_WAIT_S", 1000)
    with streaming(server, auto_mode="true") as socket:
        send(socket, {"text": "This is a whole sentence."})
        assert receive(socket)["audio"]
        send(socket, {"text": ""})
        assert until_closed(socket)[1] == 1000


def test_message_sequence_of_livekit_works(server: str) -> None:
    """The client flushes each sentence. An empty text with flush, and close_context, end the context."""
    with streaming(server, "multi-stream-input", sync_alignment="true", inactivity_timeout="300") as socket:
        send(socket, {"text": " ", "context_id": "c"})
        for sentence in ("Hello there. ", "It costs $3.50 today. "):
            send(socket, {"text": sentence, "context_id": "c", "flush": True})
        send(socket, {"text": "", "context_id": "c", "flush": True}, {"context_id": "c", "close_context": True})
        messages = until_final(socket)
    assert audio_of(messages) == speech(server, "Hello there. It costs $3.50 today.")


def test_first_sentence_is_sent_before_the_rest_of_the_text_arrives(server: str) -> None:
    with streaming(server) as socket:
        send(socket, {"text": "This is the first one. And"})
        assert receive(socket)["audio"]
        send(socket, {"text": " the rest."}, {"text": ""})
        assert until_closed(socket)[1] == 1000


def test_five_contexts_run_at_the_same_time_and_a_sixth_is_refused(server: str) -> None:
    with streaming(server, "multi-stream-input") as socket:
        for number in range(5):
            send(socket, {"text": f"This is the number {number} of them.", "context_id": str(number), "flush": True})
            send(socket, {"context_id": str(number), "close_context": True})
        found: dict[str, list[Object]] = {}
        while sum(messages[-1]["isFinal"] is True for messages in found.values()) < 5:
            message = receive(socket)
            found.setdefault(message["contextId"], []).append(message)
        for number in range(5):
            assert audio_of(found[str(number)]) == speech(server, f"This is the number {number} of them.")
        for number in range(6):
            send(socket, {"text": "Waiting", "context_id": f"more {number}"})
        messages, code = until_closed(socket)
    assert code == 1008
    assert "Maximum simultaneous contexts" in messages[-1]["message"]
    wait_until(lambda: is_free(server))


def test_close_context_drops_text_that_was_not_flushed(server: str) -> None:
    with streaming(server, "multi-stream-input") as socket:
        send(socket, {"text": "This is not spoken", "context_id": "a"}, {"context_id": "a", "close_context": True})
        assert [receive(socket)["isFinal"]] == [True]
        send(socket, {"text": "Hello there.", "context_id": "b", "flush": True})
        send(socket, {"text": " This is not spoken", "context_id": "b"}, {"context_id": "b", "close_context": True})
        messages = until_final(socket)
        assert audio_of(messages) == speech(server, "Hello there.")
        assert "".join(char for found in alignments(messages) for char in found["chars"]).strip() == "Hello there."


def test_closed_contexts_leave_room_for_new_ones(server: str) -> None:
    """The speech of closed contexts is still sent. A new context may have the id of a closed one."""
    with streaming(server, "multi-stream-input") as socket:
        for _ in range(3):
            for number in range(5):
                send(socket, {"text": f"This is the number {number}.", "context_id": str(number), "flush": True})
                send(socket, {"context_id": str(number), "close_context": True})
        found: list[Object] = []
        while sum(message["isFinal"] is True for message in found) < 15:
            found.append(receive(socket))
        expected = [speech(server, f"This is the number {number}.") for number in range(5)]
        for number in range(5):
            audio = audio_of([message for message in found if message["contextId"] == str(number)])
            assert len(audio) == 3 * len(expected[number])


def test_thousand_contexts_one_after_the_other(server: str) -> None:
    with streaming(server, "multi-stream-input") as socket:
        for number in range(1_000):
            ids = {"context_id": f"context {number}"}
            send(socket, {"text": " ", **ids}, {**ids, "close_context": True})
            assert receive(socket)["contextId"] == f"context {number}"
        send(socket, {"text": "Hello there.", "context_id": "last"}, {"close_socket": True})
        messages, code = until_closed(socket)
    assert code == 1000
    assert audio_of(messages) == speech(server, "Hello there.")


def test_thousand_contexts_at_once_close_only_their_connection(server: str) -> None:
    with streaming(server, "multi-stream-input") as socket:
        with contextlib.suppress(ConnectionClosed):
            for number in range(1_000):
                send(socket, {"text": f"This is {number}. And", "context_id": str(number)})
        assert until_closed(socket)[1] == 1008
    wait_until(lambda: is_free(server))
    assert audio_of(_spoken(server)) == speech(server, "Hello there.")


def _spoken(server: str) -> list[Object]:
    with streaming(server) as socket:
        send(socket, {"text": "Hello there."}, {"text": ""})
        return until_closed(socket)[0]


def test_text_after_the_end_is_ignored(server: str) -> None:
    with streaming(server) as socket:
        send(socket, {"text": "Hello there."}, {"text": ""}, {"text": "This is not spoken."}, {"text": ""})
        messages, code = until_closed(socket)
    assert code == 1000
    assert audio_of(messages) == speech(server, "Hello there.")


@pytest.mark.parametrize(
    ("path", "messages"),
    [
        (
            "text-to-speech/alloy/multi-stream-input",
            [{"text": LONG, "context_id": "a", "flush": True}, {"text": LONG, "context_id": "b"}],
        ),
        (
            "audio/speech/stream",
            [
                {"type": "session.config", "response_format": "pcm", "stream_audio": True},
                {"type": "input.text", "text": LONG[:100_000]},
                {"type": "input.done"},
            ],
        ),
        (
            "realtime",
            [{"type": "input_text_buffer.append", "text": LONG}, {"type": "input_text_buffer.commit"}],
        ),
    ],
)
def test_client_that_reads_nothing_is_stopped(impatient: str, path: str, messages: list[Object]) -> None:
    """The client stays connected and sends nothing, so only its full buffers show that it is stuck."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    raw.connect(("127.0.0.1", int(impatient.rpartition(":")[2])))
    address = f"{impatient.replace('http', 'ws', 1)}/v1/{path}"
    with connect(address, sock=raw, max_size=None, max_queue=1, close_timeout=0.1) as stuck:
        send(stuck, *messages)
        wait_until(lambda: not is_free(impatient))
        wait_until(lambda: is_free(impatient))


def test_removed_key_ends_the_connections(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One client sends a message after the removal, and the other one sends nothing."""
    folder = tmp_path_factory.mktemp("removed")
    file = KeyFile(folder)
    key = file.add("speaker", ["speak"])
    headers = {"xi-api-key": key}
    with (
        serving(folder) as url,
        streaming(url, "multi-stream-input", headers=headers) as several,
        streaming(url, headers={}) as one,
    ):
        send(several, {"text": "Hello there. ", "context_id": "a"})
        send(one, {"text": " ", "xi_api_key": key}, {"text": "Hello there. "})
        assert receive(several)["audio"]
        assert receive(one)["audio"]
        file.remove("speaker")
        path = f"{url}/v1/text-to-speech/alloy"
        wait_until(lambda: httpx.post(path, json={"text": "Hi."}, headers=headers).status_code == 401)
        with contextlib.suppress(ConnectionClosed):  # closed already if the server has checked the key just now
            send(several, {"text": "More.", "context_id": "a"})
        for socket in (several, one):
            messages, code = until_closed(socket)
            assert (messages[-1]["error"], code) == ("invalid_api_key", 1008)


def test_disconnected_client_frees_its_rows(server: str) -> None:
    with streaming(server, "multi-stream-input") as socket:
        for context in "abc":
            send(socket, {"text": LONG, "context_id": context})
        receive(socket)
    wait_until(lambda: is_free(server))


def test_empty_context_ends_without_an_error(server: str) -> None:
    with streaming(server, "multi-stream-input") as socket:
        send(socket, {"text": " ", "context_id": "e"}, {"context_id": "e", "close_context": True})
        assert receive(socket) == {
            "audio": None,
            "isFinal": True,
            "is_final": True,
            "normalizedAlignment": None,
            "alignment": None,
            "contextId": "e",
            "context_id": "e",
        }
    with streaming(server) as socket:
        send(socket, {"text": ""})
        messages, code = until_closed(socket)
    assert (messages[-1]["isFinal"], code) == (True, 1000)


def test_silent_client_is_disconnected(server: str) -> None:
    with streaming(server, inactivity_timeout="1") as socket:
        messages, code = until_closed(socket)
    assert (messages[-1]["error"], code) == ("input_timeout_exceeded", 1008)


def test_speech_is_not_silence(server: str) -> None:
    """The time without messages begins when the audio has been played."""
    with streaming(server, inactivity_timeout="1") as socket:
        send(socket, {"text": "Hello there my friend.", "flush": True})
        began_s = time.monotonic()
        messages, code = until_closed(socket)
        after_s = time.monotonic() - began_s
    assert (messages[-1]["error"], code) == ("input_timeout_exceeded", 1008)
    assert after_s > len(audio_of(messages)) / 48_000 + 1


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        "5",
        "",
        "[" * 100_000,
        '{"text": 5}',
        '{"text": ["a"]}',
        '{"text": "Hi.", "context_id": 5}',
        json.dumps({"text": "Hi.", "context_id": "a" * 300}),
        json.dumps({"text": "a" * 1_200_000, "context_id": "a"}),
        json.dumps({"text": "Many words. " * 420_000, "context_id": "a"}),
        '{"text": "Hi.", "seed": "much"}',
        '{"text": "Hi.", "voice_settings": {"speed": 90}}',
        '{"text": "Hi.", "voice_settings": 5}',
        b"\xff",
    ],
)
def test_invalid_messages_close_the_connection_with_an_error(server: str, bad: str | bytes) -> None:
    with streaming(server, "multi-stream-input") as socket:
        socket.send(bad)
        messages, code = until_closed(socket)
    assert code == 1008
    assert messages[-1]["message"]
    wait_until(lambda: is_free(server))


@pytest.mark.parametrize(
    ("voice", "query", "status"),
    [
        ("nobody", {}, 400),
        ("alloy", {"output_format": "mp3"}, 400),
        ("alloy", {"output_format": "pcm_900"}, 400),
        ("alloy", {"output_format": "wma_44100"}, 400),
        ("alloy", {"headers": {"Origin": "https://evil.example"}}, 403),
        *(("alloy", {"inactivity_timeout": value}, 400) for value in ("999", "0", "x", "-1", "1.5")),
        *(("alloy", {name: "maybe"}, 400) for name in ("sync_alignment", "auto_mode", "apply_text_normalization")),
        *(("alloy", {"seed": value}, 400) for value in ("x", "-1", "99999999999")),
        ("alloy", {"language_code": "no%20language"}, 400),
    ],
)
def test_wrong_connections_are_refused(server: str, voice: str, query: Any, status: int) -> None:
    with pytest.raises(InvalidStatus) as error, streaming(server, voice=voice, **query):
        pass
    assert error.value.response.status_code == status
    content = json.loads(error.value.response.body)
    assert content["detail"]["message"] == content["error"]["message"]
    if "headers" not in query:
        assert content["error"]["param"] == next(iter(query), "voice_id")


def test_unknown_path_of_a_socket_is_refused_with_a_reason(server: str) -> None:
    with pytest.raises(InvalidStatus) as error, streaming(server, "multi-stream-inputs"):
        pass
    assert error.value.response.status_code == 404
    assert json.loads(error.value.response.body)["detail"]["status"] == "not_found"


def test_errors_name_the_fields_of_the_client(server: str) -> None:
    path = f"{server}/v1/text-to-speech"
    for url, body, param in (
        (f"{path}/alloy", {"text": ""}, "text"),
        (f"{path}/alloy", {"text": "a" * 1_100_000}, "text"),
        (f"{path}/alloy", {"text": "[pause: 10s] Wait. " * 70}, "text"),
        (f"{path}/alloy", {"text": "Hi.", "voice_settings": {"speed": 90}}, "voice_settings.speed"),
        (f"{path}/alloy", {"text": "Hi.", "language_code": "no language"}, "language_code"),
        (f"{path}/alloy", {"text": "Hi.", "apply_text_normalization": "yes"}, "apply_text_normalization"),
        (f"{path}/nobody", {"text": "Hi."}, "voice_id"),
        (f"{server}/v1/text-to-dialogue", {"inputs": [{"text": "Hi.", "voice_id": "nobody"}]}, "voice_id"),
        (f"{server}/v1/text-to-dialogue", {"inputs": [{"text": "", "voice_id": "alloy"}]}, "inputs.0.text"),
        (f"{server}/v1/text-to-dialogue", {"inputs": [{"voice_id": "alloy"}]}, "inputs.0.text"),
        (f"{server}/v1/text-to-dialogue", {"inputs": []}, "inputs"),
        (
            f"{server}/v1/text-to-dialogue",
            {"inputs": [{"text": "Hi.", "voice_id": "alloy"}, {"text": "Hi.", "voice_id": "nobody"}]},
            "inputs.1.voice_id",
        ),
    ):
        answer = httpx.post(url, json=body)
        assert answer.status_code == 400, answer.text
        content = answer.json()
        assert content["error"]["param"] == param
        assert content["detail"]["message"] == content["error"]["message"]
        assert not re.search("`(?:input|voice|speed|language|turns)[.`]", content["error"]["message"])


def test_rest_routes(server: str) -> None:
    body = {"text": TEXT, "model_id": "eleven_multilingual_v2", "voice_settings": {"stability": 0.5, "speed": 1.1}}
    for path in ("/v1/text-to-speech/nova", "/v1/text-to-speech/nova/stream", "/api/v1/text-to-speech/nova"):
        answer = httpx.post(
            server + path, params={"output_format": "pcm_24000"}, json=body, headers={"xi-api-key": "a"}
        )
        assert answer.status_code == 200
        assert answer.content == speech(server, voice="nova", speed=1.1)
    assert httpx.post(f"{server}/v1/text-to-speech/nova", json=body).headers["content-type"] == "audio/mpeg"
    for wrong in ({"text": ""}, {"text": 5}, {}, {"text": "Hi.", "seed": "x"}):
        assert httpx.post(f"{server}/v1/text-to-speech/nova", json=wrong).status_code == 400
    assert httpx.post(f"{server}/v1/text-to-speech/nobody", json={"text": "Hi."}).status_code == 400


@pytest.mark.parametrize("path", ["/v1/text-to-dialogue", "/api/v1/text-to-dialogue/stream"])
def test_dialogue_has_the_audio_of_the_dialogue_route(server: str, path: str) -> None:
    turns = [("nova", "Have you seen my umbrella?"), ("onyx", "You left it on the bus."), ("nova", "Oh no!")]
    inputs = [{"voice_id": voice, "text": text} for voice, text in turns]
    body = {"inputs": inputs, "model_id": "eleven_v3", "settings": {"stability": 0.5}, "seed": 7}
    answer = httpx.post(server + path, params={"output_format": "pcm_24000"}, json=body)
    own = {"turns": [{"voice": voice, "text": text} for voice, text in turns], "response_format": "pcm", "seed": 7}
    assert answer.content == httpx.post(f"{server}/v1/audio/dialogue", json=own).content
    assert httpx.post(server + path, json=body).headers["content-type"] == "audio/mpeg"


# ---- the times of characters


def words_of(url: str, text: str = TEXT, **fields: Any) -> list[Object]:
    body = {"input": text, "response_format": "pcm", "timestamps": True, **fields}
    words: list[Object] = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).json()["words"]
    return words


def alignments(messages: list[Object]) -> list[Object]:
    return [message["alignment"] for message in messages if message.get("alignment")]


def times_of(alignment: Object, origin_ms: int = 0) -> list[tuple[str, int, int]]:
    """Return each character with its start and end."""
    starts, durations = alignment["charStartTimesMs"], alignment["charDurationsMs"]
    assert len(alignment["chars"]) == len(starts) == len(durations)
    return [
        (char, origin_ms + start, origin_ms + start + duration)
        for char, start, duration in zip(alignment["chars"], starts, durations, strict=True)
    ]


def check_words(times: list[tuple[str, int, int]], expected: list[Object], text: str = TEXT) -> None:
    """Check that the characters of each word have its time, and that times never go back."""
    assert "".join(char for char, _, _ in times) == text
    for word in expected:
        first, last = times[word["start_char"]], times[word["end_char"] - 1]
        assert first[1] == pytest.approx(1000 * word["start"], abs=2)
        assert last[2] == pytest.approx(1000 * word["end"], abs=2)
        steps = [end - start for _, start, end in times[word["start_char"] : word["end_char"]]]
        assert max(steps) - min(steps) <= 1
    assert all(a[2] <= b[1] + 1 and a[1] <= a[2] for a, b in pairwise(times))


@pytest.mark.parametrize("path", ["stream-input", "multi-stream-input"])
def test_times_of_characters_count_from_the_start_of_the_context_with_sync_alignment(server: str, path: str) -> None:
    with streaming(server, path, sync_alignment="true") as socket:
        send(socket, *({"text": char, "context_id": "a"} for char in TEXT))
        send(socket, {"text": "", "context_id": "a", "flush": True, "close_context": True})
        messages = until_final(socket)
    found = alignments(messages)
    assert len(found) > 1
    check_words([each for alignment in found for each in times_of(alignment)], words_of(server))
    assert [message["normalizedAlignment"] for message in messages if message.get("normalizedAlignment")] == found


def test_times_of_characters_count_from_the_message_before_without_sync_alignment(server: str) -> None:
    """pipecat adds the end of each message to its clock."""
    with streaming(server) as socket:
        send(socket, {"text": TEXT}, {"text": ""})
        messages, _ = until_closed(socket)
    found, clock_ms = [], 0
    for alignment in alignments(messages):
        times = times_of(alignment, clock_ms)
        clock_ms = times[-1][2]
        found += times
    assert len(alignments(messages)) > 1
    check_words(found, words_of(server))


@pytest.mark.parametrize("text", ["... ", "Hello ... ", "<br>", "\U0001f600", "Yes! (laughs)"])
def test_text_without_words_is_aligned_too(server: str, text: str) -> None:
    with streaming(server, sync_alignment="true") as socket:
        send(socket, {"text": text}, {"text": ""})
        messages, code = until_closed(socket)
    assert code == 1000
    audio = audio_of(messages)
    assert len(audio) == len(speech(server, text)) > 0
    times = [each for alignment in alignments(messages) for each in times_of(alignment)]
    assert "".join(char for char, _, _ in times).strip() == text.strip()
    assert times[-1][2] <= len(audio) / 48 + 2


@pytest.mark.parametrize(
    "text",
    ["Straße, naïve café!", "One.\nTwo; three\u2026 \U0001f600 four?", "  Spaces   here.  ", "Dr. Smith (see p. 5)."],
)
def test_every_character_has_a_time(server: str, text: str) -> None:
    path = f"{server}/v1/text-to-speech/alloy/with-timestamps"
    content = httpx.post(path, params={"output_format": "pcm_24000"}, json={"text": text}).json()
    assert base64.b64decode(content["audio_base64"]) == speech(server, text)
    alignment = content["alignment"]
    assert "".join(alignment["characters"]) == text
    starts, ends = alignment["character_start_times_seconds"], alignment["character_end_times_seconds"]
    assert len(starts) == len(ends) == len(text)
    assert starts == sorted(starts)
    assert all(start <= end for start, end in zip(starts, ends, strict=True))
    assert 0 < ends[-1] <= len(speech(server, text)) / 48_000 + 0.001
    assert content["normalized_alignment"] == alignment


@pytest.mark.parametrize("output", ["pcm_24000", "mp3_44100_128", "ulaw_8000"])
def test_lines_with_timestamps_have_the_audio_and_all_characters(server: str, output: str) -> None:
    path, query = f"{server}/v1/text-to-speech/alloy", {"output_format": output}
    answer = httpx.post(f"{path}/stream/with-timestamps", params=query, json={"text": TEXT}, timeout=60)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    audio = b"".join(base64.b64decode(line["audio_base64"]) for line in lines)
    assert audio == httpx.post(path, params=query, json={"text": TEXT}).content
    found = [line["alignment"] for line in lines if line["alignment"]]
    names = ("characters", "character_start_times_seconds", "character_end_times_seconds")
    chars, starts, ends = ([value for each in found for value in each[name]] for name in names)
    times = [(c, round(1000 * a), round(1000 * b)) for c, a, b in zip(chars, starts, ends, strict=True)]
    if output == "pcm_24000":
        check_words(times, words_of(server))
    assert "".join(chars) == TEXT
    whole = httpx.post(f"{path}/with-timestamps", params=query, json={"text": TEXT}, timeout=60)
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["alignment"]["characters"] == list(TEXT)


@pytest.mark.parametrize(
    ("path", "body", "query", "code"),
    [
        ("alloy", {"text": ""}, {}, "invalid_value"),
        ("alloy", {"text": 5}, {}, "string_type"),
        ("alloy/stream", {}, {}, "missing"),
        ("nobody/with-timestamps", {"text": "Hi."}, {}, None),
        ("alloy/stream/with-timestamps", {"text": "Hi.", "voice_settings": {"speed": 90}}, {}, "invalid_value"),
        ("alloy", {"text": "Hi."}, {"output_format": "wma"}, "unsupported_format"),
        ("alloy", [], {}, None),
    ],
)
def test_errors_have_the_format_of_elevenlabs(server: str, path: str, body: Any, query: Any, code: str | None) -> None:
    answer = httpx.post(f"{server}/v1/text-to-speech/{path}", params=query, json=body)
    content = answer.json()
    assert answer.status_code == 400
    assert content["detail"]["message"] == content["error"]["message"]
    assert content["detail"]["status"] == (code or content["error"]["code"] or content["error"]["type"])
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_lists_for_elevenlabs_clients(server: str) -> None:
    headers = {"xi-api-key": "any"}
    for path in ("/v1/voices", "/v2/voices"):
        listed = httpx.get(server + path, headers=headers).json()
        assert {"alloy", "nova"} <= {voice["voice_id"] for voice in listed["voices"]}
        assert all(voice["name"] and voice["category"] == "premade" for voice in listed["voices"])
        assert (listed["has_more"], listed["total_count"]) == (False, len(listed["voices"]))
    assert httpx.get(f"{server}/v1/voices/nova").json() in listed["voices"]
    assert httpx.get(f"{server}/v1/voices/nobody").json()["detail"]["status"] == "not_found"
    models = httpx.get(f"{server}/v1/models", headers=headers).json()
    assert isinstance(models, list)
    assert {"model_id", "name"} <= models[0].keys()
    both = headers | {"Authorization": "Bearer any"}
    assert httpx.get(f"{server}/v1/models", headers=both).json()["object"] == "list"


def test_voices_are_searched_and_sorted_and_come_in_pages(server: str) -> None:
    def search(**query: Any) -> Object:
        found: Object = httpx.get(f"{server}/v2/voices", params=query).json()
        return found

    def ids(**query: Any) -> list[str]:
        return [voice["voice_id"] for voice in search(**query)["voices"]]

    every = ids()
    assert ids(search="nova") == ids(search="NOVA warm") == ["nova"]
    assert ids(search="no such voice") == ids(voice_type="personal") == ids(category="cloned") == []
    assert ids(voice_type="default") == ids(category="premade") == ids(sort="created_at_unix") == every
    assert ids(sort="name", sort_direction="desc") == sorted(every, reverse=True)
    assert ids(voice_ids=["echo", "ash"]) == ["ash", "echo"]
    pages, token = [], None
    while not pages or token:
        page = search(page_size=5, sort="name", **({"next_page_token": token} if token else {}))
        assert page["total_count"] == len(every)
        assert len(page["voices"]) <= 5
        pages += [voice["voice_id"] for voice in page["voices"]]
        token = page["next_page_token"]
        assert page["has_more"] == bool(token)
    assert pages == sorted(every)
    for wrong in (
        {"page_size": 101},
        {"page_size": "x"},
        {"sort": "age"},
        {"sort_direction": "up"},
        {"voice_type": "x"},
    ):
        answer = httpx.get(f"{server}/v2/voices", params=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(wrong)))
    assert httpx.get(f"{server}/v2/voices", params={"next_page_token": "x"}).json()["detail"]["message"]


def test_keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keyed")
    key = KeyFile(folder).add("speaker", ["speak"])
    with serving(folder) as url:
        with pytest.raises(InvalidStatus) as error, streaming(url, headers={"xi-api-key": "sk-wrong"}):
            pass
        assert error.value.response.status_code == 401
        for first in ({"xi-api-key": key}, {"xi_api_key": key}, {"authorization": f"Bearer {key}"}):
            with streaming(url, headers={}) as socket:
                send(socket, {"text": " ", **first}, {"text": "Hello there. "}, {"text": ""})
                messages, code = until_closed(socket)
            assert code == 1000
            assert audio_of(messages)
        for first in ({}, {"xi_api_key": "sk-wrong"}):
            with streaming(url, headers={}) as socket:
                send(socket, {"text": "Hello there. ", **first})
                messages, code = until_closed(socket)
            assert (messages[-1]["error"], code) == ("invalid_api_key", 1008)
        with streaming(url, headers={"xi-api-key": key}) as socket:
            send(socket, {"text": "Hello there. "}, {"text": ""})
            assert until_closed(socket)[1] == 1000
        path = f"{url}/v1/text-to-speech/alloy"
        for refused in (path, f"{path}/with-timestamps"):
            answer = httpx.post(refused, json={"text": "Hi."})
            assert (answer.status_code, answer.json()["detail"]["status"]) == (401, "invalid_api_key")
        for listed in ("/v1/voices", "/v2/voices", "/v1/models", "/v1/audio/voices"):
            refused_list = httpx.get(url + listed, headers={"xi-api-key": "wrong"})
            assert (refused_list.status_code, refused_list.json()["detail"]["status"]) == (401, "invalid_api_key")
        for unknown in ("/v1/text-to-speech", "/v1/text-to-speech/a/b/c", "/v1/text-to-dialogue/x", "/v2/user"):
            answer = httpx.get(url + unknown)
            assert answer.status_code in (404, 405)
            assert answer.json()["detail"]["message"] == answer.json()["error"]["message"]
        assert httpx.get(f"{url}/v1/user", headers={"xi-api-key": key}).json()["detail"]["status"] == "not_found"
        assert "detail" not in httpx.get(f"{url}/v1/user").json()
        assert httpx.post(path, json={"text": "Hi."}, headers={"xi-api-key": key}).status_code == 200
