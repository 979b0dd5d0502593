"""Times of words over HTTP: JSON, server-sent events, all formats and routes, and texts without words."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import av
import httpx
import numpy as np
import pytest

from app.audio.formats import AUDIO_FORMATS
from tests.support.live import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

SPEECH = "/v1/audio/speech"
TEXT = "Take **this** ticket, it costs $12.50. Keep it!"
SPOKEN = ["Take", "**this**", "ticket,", "it", "costs", "$12.50.", "Keep", "it!"]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(tmp_path_factory.mktemp("data")) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def timed(http: httpx.Client, route: str = SPEECH, **body: Any) -> dict[str, Any]:
    answer = http.post(route, json={"timestamps": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def events(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    text = http.post(SPEECH, json={"timestamps": True, "stream_format": "sse", **body}).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_json_has_the_audio_and_the_times(http: httpx.Client) -> None:
    answer = timed(http, input=TEXT, response_format="pcm")
    plain = http.post(SPEECH, json={"input": TEXT, "response_format": "pcm"}).content
    assert base64.b64decode(answer["audio"]) == plain
    assert list(answer) == ["audio", "audio_format", "sample_rate", "duration", "words", "sentences"]
    assert (answer["audio_format"], answer["sample_rate"]) == ("pcm", 24_000)
    assert answer["duration"] == pytest.approx(len(plain) / 48_000, abs=0.001)
    assert [word["word"] for word in answer["words"]] == SPOKEN
    assert list(answer["words"][0]) == ["word", "start", "end", "start_char", "end_char"]
    assert [sentence["text"] for sentence in answer["sentences"]] == TEXT.replace("! ", "!|").replace(". ", ".|").split(
        "|"
    )
    last = 0.0
    for word in answer["words"]:
        assert TEXT[word["start_char"] : word["end_char"]] == word["word"]
        assert last <= word["start"] <= word["end"] <= answer["duration"]
        last = word["end"]


def test_events_have_all_times_before_the_end(http: httpx.Client) -> None:
    found = events(http, input=TEXT, response_format="pcm")
    assert found[-1]["type"] == "speech.audio.done"
    assert found[-1]["duration"] > 0
    words = [word for event in found if event["type"] == "speech.audio.words" for word in event["words"]]
    assert words == timed(http, input=TEXT, response_format="pcm")["words"]
    plain = http.post(SPEECH, json={"input": TEXT, "response_format": "pcm"}).content
    assert b"".join(base64.b64decode(event["audio"]) for event in found if "audio" in event) == plain


def test_ordinary_requests_have_no_times(http: httpx.Client) -> None:
    assert http.post(SPEECH, json={"input": TEXT, "timestamps": False}).headers["content-type"] == "audio/mpeg"
    text = http.post(SPEECH, json={"input": TEXT, "stream_format": "sse"}).text
    assert "speech.audio.words" not in text
    assert "duration" not in text


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_times_are_positions_in_the_decoded_file(http: httpx.Client, audio_format: str, rate: int) -> None:
    text = "[pause 1s] Take it."
    answer = timed(http, input=text, response_format=audio_format, sample_rate=rate)
    samples, decoded_rate = decoded(base64.b64decode(answer["audio"]), audio_format, rate)
    loud = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max())
    [start, *_] = [word["start"] for word in answer["words"]]
    reference = timed(http, input=text, response_format="wav", sample_rate=48_000)
    plain, plain_rate = decoded(base64.b64decode(reference["audio"]), "wav", 48_000)
    plain_loud = np.flatnonzero(np.abs(plain) > 0.1 * np.abs(plain).max())
    into_word = plain_loud[0] / plain_rate - reference["words"][0]["start"]
    assert loud[0] / decoded_rate == pytest.approx(start + into_word, abs=0.015)


def decoded(data: bytes, audio_format: str, rate: int) -> tuple[np.ndarray, int]:
    """Decode the file with FFmpeg; return samples (N,) float32 and the sample rate."""
    if audio_format == "pcm":
        return np.frombuffer(data, np.int16).astype(np.float32) / 32_768, rate
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(audio=0))
    parts = [frame.to_ndarray().reshape(-1).astype(np.float64) for frame in frames]
    return np.concatenate(parts).astype(np.float32), frames[0].sample_rate


def test_times_of_a_dialogue_name_the_turns(http: httpx.Client) -> None:
    turns = [{"text": "Hi! How are you?"}, {"text": "Good, thanks.", "voice": "fable"}]
    answer = timed(http, "/v1/audio/dialogue", turns=turns)
    assert [sentence["turn"] for sentence in answer["sentences"]] == [0, 0, 1]
    for word in answer["words"]:
        assert turns[word["turn"]]["text"][word["start_char"] : word["end_char"]] == word["word"]


def test_conversation_has_times(http: httpx.Client) -> None:
    assert [word["word"] for word in timed(http, "/v1/audio/conversation", text="Good morning.")["words"]] == [
        "Good",
        "morning.",
    ]


NO_WORDS = ["---", "(laughs)", "<b></b>", "[pause 1s]", "``` ```", "[laughs] [sighs]"]


@pytest.mark.parametrize("text", NO_WORDS)
def test_text_without_words_has_a_reason(http: httpx.Client, text: str) -> None:
    answer = timed(http, input=text)
    assert answer["words"] == []
    assert answer["sentences"] == []
    assert answer["reason"]
    assert events(http, input=text)[-1]["reason"]


@pytest.mark.parametrize("text", ["?!", "a" * 9_000, "blah" * 2_250, "x.y" * 150, "日本語のテキストです。", "สวัสดี"])
def test_unusual_texts_have_sentences(http: httpx.Client, text: str) -> None:
    answer = timed(http, input=text)
    assert answer["sentences"]
    assert answer["sentences"][0]["start"] < answer["sentences"][-1]["end"] <= answer["duration"]


@pytest.mark.parametrize("language", ["de", "fr", "ja", "zh", "ar", "hi"])
def test_each_language_has_words(http: httpx.Client, language: str) -> None:
    assert timed(http, input="one two", language=language)["words"]


def test_second_request_has_the_same_times(http: httpx.Client) -> None:
    first, second = (timed(http, input="Say it twice, please.") for _ in range(2))
    assert first == second
