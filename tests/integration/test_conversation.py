"""POST /v1/audio/conversation: the engine gets the earlier turns; invalid turns are errors."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from app import wiring
from app.engines.registry import BUILT_IN, EngineSpec
from app.generator import context
from tests.support import listening_engine as engine
from tests.support.ears import decode
from tests.support.live import serving, serving_engine
from tests.unit.test_decode import Kind, made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.ears import Recogniser

pytestmark = pytest.mark.integration

PATH = "/v1/audio/conversation"
WAV, OGG, M4A = Kind("wav", "pcm_s16le", 24_000), Kind("ogg", "libopus", 48_000), Kind("ipod", "aac", 44_100, "stereo")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def turn(speaker: int, text: str, seconds: float = 1.0, kind: Kind = WAV) -> dict[str, Any]:
    return {"speaker": speaker, "text": text, "audio": b64(made(kind, seconds))}


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """Start a server whose engine supports context."""
    spec = EngineSpec("listening", "listening-1", "tests.support.listening_engine:build")
    limits = {"TTS_MAX_UPLOAD_BYTES": 16_000_000, "TTS_MAX_BODY_BYTES": 1 << 20, "TTS_MAX_INPUT_CHARS": 1000}
    with serving_engine(spec, folder, **limits) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("shared")) as client:
        yield client


@pytest.fixture
def common(shared: httpx.Client) -> httpx.Client:
    """A server that has answered the requests of other tests. `engine.spoken` records what the engine gets."""
    engine.spoken.clear()
    return shared


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[httpx.Client]:
    """A new server, without cached speech and encoded turns.

    `engine.spoken` and `engine.encoded` record what the engine gets.
    """
    engine.spoken.clear()
    engine.encoded.clear()
    with served(tmp_path) as client:
        yield client


@pytest.fixture
def offline(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server) as client:
        yield client


def refusal(answer: httpx.Response, param: str | None = None, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["param"] == param
    return error


# ---- what the engine gets


def test_engine_gets_every_turn_in_order(listening: httpx.Client) -> None:
    context = [
        turn(1, "How was your day?", 1.0, WAV),
        turn(0, "It was 5 km of fun.", 2.0, OGG),
        turn(1, "And then?", 1.5, M4A),
    ]
    answer = listening.post(PATH, json={"text": "Then I came home.", "speaker_id": 0, "context": context})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    assert "x-tts-ignored" not in answer.headers
    (utterance,) = engine.spoken
    assert [(turn.speaker, turn.text) for turn in utterance.context] == [
        (1, "How was your day?"),
        (0, "It was 5 km of fun."),  # the text of context is not normalised, since it is not spoken
        (1, "And then?"),
    ]
    assert [reference.rate_hz for reference in engine.encoded] == [engine.RATE_HZ] * 3
    seconds = [reference.seconds for reference in engine.encoded]
    assert seconds == pytest.approx([1.0, 2.0, 1.5], abs=0.03)
    for context_turn, reference in zip(utterance.context, engine.encoded, strict=True):
        assert (context_turn.codes == engine.codes_of(reference.samples)).all()
        assert (
            150 < np.median(context_turn.codes[0]) < 300
        )  # this engine's codes are the loudness in thousandths: 283 for a tone of amplitude 0.4
    (line,) = utterance.lines
    assert (line.text, line.speaker, line.voice.id, line.prompt) == ("Then I came home.", 0, "none", None)


def test_speaker_and_voice_reach_the_engine(common: httpx.Client) -> None:
    body = {"text": "Then I came home. It was late.", "speaker_id": 7, "context": [turn(7, "Well.")], "voice": "nova"}
    assert common.post("/api" + PATH, json=body).status_code == 200
    lines = [line for utterance in engine.spoken for line in utterance.lines]
    assert {(line.speaker, line.voice.id) for line in lines} == {(7, "nova")}
    assert all(len(utterance.context) == 1 for utterance in engine.spoken)  # each utterance has the context


def test_request_without_context_is_plain_speech(common: httpx.Client) -> None:
    for body in ({"text": "Hello."}, {"input": "Hello.", "context": []}, {"text": "Hello.", "context": None}):
        assert common.post(PATH, json={**body, "cache": False, "speaker_id": 3}).status_code == 200
    assert [(x.lines[0].voice.id, x.lines[0].speaker, x.context) for x in engine.spoken] == [("alloy", 3, ())] * 3


def test_turns_of_earlier_requests_are_not_encoded_again(listening: httpx.Client) -> None:
    context = [turn(0, "One.", 1.0), turn(1, "Two.", 1.5)]
    listening.post(PATH, json={"text": "Three.", "context": context})
    listening.post(PATH, json={"text": "Five.", "context": [*context, turn(0, "Three.", 2.0)]})
    assert [reference.transcript for reference in engine.encoded] == ["One.", "Two.", "Three."]
    assert [turn.text for turn in engine.spoken[-1].context] == ["One.", "Two.", "Three."]
    assert (engine.spoken[0].context[1].codes == engine.spoken[1].context[1].codes).all()


def test_context_is_part_of_the_cache_key(listening: httpx.Client) -> None:
    def state(**changes: Any) -> str:
        body = {"text": "Hello.", "context": [turn(0, "One.")], **changes}
        return listening.post(PATH, json=body).headers["x-cache"]

    assert [state(), state()] == ["miss", "hit"]
    # The same samples in another file format are the same context.
    wide = b64(made(Kind("wav", "pcm_f32le", 24_000), samples=as_16_bit(made(WAV, 1.0))))
    assert state(context=[{**turn(0, "One."), "audio": wide}]) == "hit"
    for changes in (
        {"context": [turn(1, "One.")]},
        {"context": [turn(0, "Two.")]},
        {"context": [turn(0, "One.", 1.5)]},
        {"context": [turn(0, "One."), turn(0, "One.")]},
        {"context": []},
        {"speaker_id": 1},
        {"voice": "nova"},
    ):
        assert state(**changes) == "miss", changes


def as_16_bit(wav: bytes) -> np.ndarray:
    return np.frombuffer(wav[wav.index(b"data") + 8 :], "<i2").astype(np.float32) / 32768


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format_is_supported(common: httpx.Client, audio_format: str) -> None:
    body = {"text": "Hello.", "context": [turn(0, "One.")], "response_format": audio_format}
    audio = decode(common.post(PATH, json=body).content, audio_format)
    assert audio.seconds == pytest.approx(0.4, abs=0.15)


def test_event_stream_has_the_same_bytes(common: httpx.Client) -> None:
    body = {"text": "Hello.", "context": [turn(0, "One.")], "response_format": "wav", "stream_format": "sse"}
    answer = common.post(PATH, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    data = b"".join(base64.b64decode(event["audio"]) for event in events if event["type"] == "speech.audio.delta")
    whole = common.post(PATH, json={**body, "stream_format": "audio"}).content
    assert data[44:] == whole[44:]  # the header of an answer from the cache states its length
    assert events[-1]["type"] == "speech.audio.done"


def test_every_form_of_base64_is_accepted(listening: httpx.Client) -> None:
    plain = turn(0, "One.")["audio"]
    lines = "\n".join(plain[start : start + 76] for start in range(0, len(plain), 76))
    for audio in (f"data:audio/wav;base64,{plain}", lines, plain.replace("+", "-").replace("/", "_").rstrip("=")):
        body = {"text": "Hello.", "context": [{"speaker": 0, "text": "One.", "audio": audio}], "cache": False}
        assert listening.post(PATH, json=body).status_code == 200
    assert len(engine.encoded) == 1  # the engine gets the same samples each time


# ---- invalid requests


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"audio": "not base64 at all!"}, "context.1.audio"),
        ({"audio": ""}, "context.1.audio"),
        ({"audio": b64(b"no sound at all")}, "context.1.audio"),
        ({"audio": b64(b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n")}, "context.1.audio"),
        ({"audio": lambda: b64(made(WAV, 0.05))}, "context.1.audio"),
        # a length that the server accepts, but this engine refuses
        ({"audio": lambda: b64(made(WAV, 0.3))}, "context.1.audio"),
        ({"audio": lambda: b64(made(OGG, 61.0))}, "context.1.audio"),
        ({"audio": 5}, "context.1.audio"),
        ({"audio": None}, "context.1.audio"),
        ({"text": " "}, "context.1.text"),
        ({"text": "x" * 1001}, "context.1.text"),
        ({"text": None}, "context.1.text"),
        ({"speaker": -1}, "context.1.speaker"),
        ({"speaker": "Ann"}, "context.1.speaker"),
        ({"speaker": None}, "context.1.speaker"),
    ],
)
def test_error_names_the_invalid_turn(common: httpx.Client, changes: dict[str, Any], param: str) -> None:
    values = {name: value() if callable(value) else value for name, value in changes.items()}
    context = [turn(0, "One."), {**turn(1, "Two."), **values}]
    error = refusal(common.post(PATH, json={"text": "Hello.", "context": context}), param)
    assert param in error["message"]
    assert not engine.spoken


def test_turn_that_is_too_long_is_an_error(common: httpx.Client) -> None:
    def post(seconds: float) -> httpx.Response:
        return common.post(PATH, json={"text": "Hello.", "context": [turn(0, "One.", seconds, OGG)]})

    assert "longer than 60 s" in refusal(post(60.5), "context.0.audio")["message"]
    assert post(60.0).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": " \n"}, "text"),
        ({"text": "x" * 1001}, "text"),
        ({"text": "Hello.", "speaker_id": -1}, "speaker_id"),
        ({"text": "Hello.", "speaker_id": "zero"}, "speaker_id"),
        ({"text": "Hello.", "speaker_id": 1000}, "speaker_id"),
        ({"text": "Hello.", "context": "One."}, "context"),
        ({"text": "Hello.", "context": {"speaker": 0}}, "context"),
        ({"text": "Hello.", "context": ["One."]}, "context.0"),
        ({"text": "Hello.", "context": [{"speaker": 0, "text": "One.", "audio": "QQ=="}] * 33}, "context"),
        ({"text": "Hello.", "voice": "nobody"}, "voice"),
        ({"text": "Hello.", "voice": "none"}, "voice"),
        ({"text": "Hello.", "response_format": "oga"}, "response_format"),
        ({"text": "Hello.", "top_p": 0.5}, "top_p"),
    ],
)
def test_invalid_bodies_are_errors(common: httpx.Client, body: dict[str, Any], param: str) -> None:
    refusal(common.post(PATH, json=body), param)
    assert not engine.spoken


def test_context_that_is_too_long_is_rejected_before_it_is_encoded(listening: httpx.Client) -> None:
    context = [turn(index, f"Turn {index}.", 25.0, OGG) for index in range(3)]
    error = refusal(listening.post(PATH, json={"text": "Hello.", "context": context}), "context")
    assert "75 s" in error["message"]
    assert "65 s" in error["message"]
    assert not engine.encoded
    assert listening.post(PATH, json={"text": "Hello.", "context": context[1:]}).status_code == 200


def test_decoding_of_all_turns_has_a_time_limit(common: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "DECODE_LIMIT_S", 0.0)
    error = refusal(common.post(PATH, json={"text": "Hello.", "context": [turn(0, "One.")]}), "context.0.audio")
    assert "too long to decode" in error["message"]


def test_thirty_two_turns_are_accepted(common: httpx.Client) -> None:
    context = [turn(index % 2, f"Turn {index}.", 1.0 + index / 100) for index in range(32)]
    assert common.post(PATH, json={"text": "Hello.", "context": context}).status_code == 200
    assert [turn.text for turn in engine.spoken[0].context] == [f"Turn {index}." for index in range(32)]


def test_body_limit_is_the_upload_limit(common: httpx.Client) -> None:
    recording = b64(made(Kind("wav", "pcm_f32le", 48_000, "stereo"), 20.0))
    assert len(recording) > 5_000_000
    body = {"text": "Hello.", "context": [{"speaker": 0, "text": "One.", "audio": recording}]}
    for prefix in ("/v1", "/api/v1"):
        assert common.post(f"{prefix}/audio/conversation", json=body).status_code == 200
    too_large = {"text": "Hello.", "context": [{"speaker": 0, "text": "One.", "audio": "A" * 16_000_000}]}
    error = refusal(common.post(PATH, json=too_large), status=413)
    assert error["code"] == "request_too_large"
    assert "TTS_MAX_UPLOAD_BYTES" in error["message"]
    error = refusal(common.post("/v1/audio/speech", json={**body, "input": "Hello."}), status=413)
    assert "TTS_MAX_BODY_BYTES" in error["message"]


def test_endless_body_is_rejected(common: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(300):
            yield b"a" * 65_536

    answer = common.post(PATH, content=endless(), headers={"Content-Type": "application/json"})
    assert refusal(answer, status=413)["code"] == "request_too_large"


# ---- engines without context


def test_offline_voice_answers_without_context(offline: httpx.Client, recogniser: Recogniser) -> None:
    sentence = "the train leaves from platform nine"
    answer = offline.post(PATH, json={"text": sentence, "speaker_id": 1, "response_format": "wav"})
    assert answer.headers["x-tts-engine"] == "espeak"
    assert recogniser.recognise(decode(answer.content, "wav")) == sentence


def test_offline_voice_rejects_context(offline: httpx.Client) -> None:
    answer = offline.post(PATH, json={"text": "Hello.", "context": [turn(0, "One.")]})
    error = refusal(answer, "context")
    assert error["code"] == "unsupported_parameter"
    assert "espeak" in error["message"]


def test_fallback_engine_ignores_the_context_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recogniser: Recogniser
) -> None:
    sentence = "the train leaves from platform nine"
    missing = EngineSpec("listening", "listening-1", "tests.support.listening_engine:unavailable")
    specs = {"listening": missing, **{spec.name: spec for spec in BUILT_IN}}
    monkeypatch.setattr(wiring.registry, "specs", lambda: specs)
    with serving(tmp_path, TTS_ENGINE="listening") as url, httpx.Client(base_url=url) as http:
        body = {"text": sentence, "context": [turn(0, "One.")], "response_format": "wav"}
        answer = http.post(PATH, json=body)
        assert answer.status_code == 200
        assert answer.headers["x-tts-engine"] == "espeak"
        assert answer.headers["x-tts-ignored"] == "context"
        assert recogniser.recognise(decode(answer.content, "wav")) == sentence
        # The default voice speaks, as in a request without context.
        plain = http.post(PATH, json={"text": sentence, "response_format": "wav"})
        assert "x-tts-ignored" not in plain.headers
        assert plain.headers["x-cache"] == "hit"  # both requests have the same cache key
        assert plain.content[44:] == answer.content[44:]  # the header of an answer from the cache states its length
        body["context"] = [{**turn(0, "One."), "audio": "!"}]
        refusal(http.post(PATH, json=body), "context.0.audio")


# ---- OpenAPI


def test_openapi_describes_conversation_and_dialogue(offline: httpx.Client) -> None:
    document = offline.get("/openapi.json").json()
    for name in ("conversation", "dialogue"):
        operation = document["paths"][f"/v1/audio/{name}"]["post"]
        assert {"200", "400", "404", "408", "413", "429", "500", "503", "507"} == operation["responses"].keys()
        assert "audio/mpeg" in operation["responses"]["200"]["content"]
    schemas = document["components"]["schemas"]
    assert schemas["ConversationBody"]["required"] == ["text"]
    assert schemas["DialogueBody"]["required"] == ["turns"]
    speech = schemas["SpeechBody"]["properties"].keys() - {"input"}
    assert speech <= schemas["ConversationBody"]["properties"].keys()
    assert speech <= schemas["DialogueBody"]["properties"].keys()
