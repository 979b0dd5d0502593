"""POST /v1/audio/dialogue: every turn is complete, in order and in its voice, all in one file."""

from __future__ import annotations

import base64
import itertools
import json
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from app.generator.planning import TURN_GAP_S
from tests.integration.test_recognised import pitch_hz
from tests.support.ears import SENTENCES, DecodedAudio, decode
from tests.support.live import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.ears import Recogniser

pytestmark = pytest.mark.integration

PATH = "/v1/audio/dialogue"
LOW, HIGH = "onyx", "nova"  # pitches of about 80 Hz and 190 Hz


def turns_of(sentences: list[str], voices: list[str]) -> list[dict[str, Any]]:
    return [
        {"speaker": voices.index(voice), "voice": voice, "text": f"{sentence.capitalize()}."}
        for sentence, voice in zip(sentences, voices, strict=True)
    ]


def turns_in(audio: DecodedAudio, count: int) -> list[DecodedAudio]:
    """Cut the audio in its longest silences, which are between the turns of a dialogue."""
    window = audio.rate_hz // 100
    whole = audio.samples[: len(audio.samples) // window * window].reshape(-1, window)
    quiet = np.sqrt(np.mean(np.square(whole), axis=1)) < 10 ** (-45 / 20)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(int)))
    silences = sorted(zip(edges[::2], edges[1::2], strict=True), key=lambda span: span[0] - span[1])
    inner = [span for span in silences if span[0] > 0 and span[1] < len(quiet)][: count - 1]
    cuts = [0, *sorted((int(start) + int(end)) // 2 * window for start, end in inner), len(audio.samples)]
    return [DecodedAudio(audio.samples[start:end], audio.rate_hz) for start, end in itertools.pairwise(cuts)]


def test_every_turn_is_spoken_in_order_by_its_voice(http: httpx.Client, recogniser: Recogniser) -> None:
    sentences = [SENTENCES[index] for index in (3, 10, 0, 19, 5)]
    voices = [LOW, HIGH, LOW, HIGH, LOW]
    body = {"turns": turns_of(sentences, voices), "response_format": "wav"}
    answer = http.post(PATH, json=body)
    assert answer.status_code == 200
    audio = decode(answer.content, "wav")
    assert audio.streams == 1
    assert recogniser.recognise(audio, several=True) == " ".join(sentences)
    parts = turns_in(audio, len(sentences))
    assert [recogniser.recognise(part) for part in parts] == sentences
    pitches = [pitch_hz(part.samples, part.rate_hz) for part in parts]
    low, high = pitches[::2], pitches[1::2]
    assert max(low) * 1.4 < min(high)
    assert max(low) / min(low) < 1.2
    assert max(high) / min(high) < 1.2


def test_gap_between_turns_has_the_planned_length(http: httpx.Client) -> None:
    body = {"turns": turns_of(list(SENTENCES[:4]), [LOW, HIGH, LOW, HIGH]), "response_format": "pcm"}
    audio = decode(http.post(PATH, json=body).content, "pcm")
    assert TURN_GAP_S <= audio.longest_silence_s() < TURN_GAP_S + 0.3


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format_gives_one_file(http: httpx.Client, recogniser: Recogniser, audio_format: str) -> None:
    sentences = [SENTENCES[7], SENTENCES[12]]
    body = {"turns": turns_of(sentences, [HIGH, LOW]), "response_format": audio_format}
    audio = decode(http.post("/api" + PATH, json=body).content, audio_format)
    assert audio.streams == 1
    assert [recogniser.recognise(part) for part in turns_in(audio, 2)] == sentences


def test_event_stream_and_cached_answer_have_the_same_audio(http: httpx.Client) -> None:
    texts = [f"Only this test says it. {sentence}" for sentence in SENTENCES[1:3]]
    body = {"turns": turns_of(texts, [HIGH, LOW]), "response_format": "mp3"}
    first, second = (http.post(PATH, json=body) for _ in range(2))
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert first.content == second.content
    events = http.post(PATH, json={**body, "stream_format": "sse"})
    parsed = [json.loads(line[6:]) for line in events.text.split("\n\n") if line.startswith("data: {")]
    data = b"".join(base64.b64decode(event["audio"]) for event in parsed if event["type"] == "speech.audio.delta")
    assert data == first.content
    usage = parsed[-1]["usage"]
    assert usage["input_tokens"] == pytest.approx(sum(len(turn["text"]) for turn in body["turns"]) / 4, abs=1)
    for changes in (
        {"turns": body["turns"][::-1]},
        {"turns": [{**turn, "voice": HIGH} for turn in body["turns"]]},
        {"turns": [{**turn, "speaker": 0} for turn in body["turns"]], "voice": "sage"},
    ):
        assert http.post(PATH, json={**body, **changes}).status_code == 200
    assert http.post(PATH, json={**body, "turns": body["turns"][::-1]}).headers["x-cache"] == "hit"
    assert http.post(PATH, json={**body, "turns": body["turns"][:1]}).headers["x-cache"] == "miss"


def test_fields_of_speech_work_for_a_dialogue(http: httpx.Client) -> None:
    body = {"turns": turns_of([SENTENCES[1], SENTENCES[2]], [HIGH, LOW]), "response_format": "wav"}
    usual = decode(http.post(PATH, json=body).content, "wav")
    slow = decode(http.post(PATH, json={**body, "speed": 0.5}).content, "wav")
    assert slow.seconds == pytest.approx(2 * usual.seconds, rel=0.03)
    low = decode(http.post(PATH, json={**body, "sample_rate": 8_000}).content, "wav")
    assert low.rate_hz == 8_000
    cut = decode(http.post(PATH, json={**body, "max_audio_length_ms": 1_000}).content, "wav")
    assert cut.seconds == pytest.approx(1.0, abs=0.01)
    assert http.post(PATH, json={**body, "temperature": 0.5}).json()["error"]["param"] == "temperature"


def test_pauses_inside_turns_are_spoken(http: httpx.Client) -> None:
    def seconds(*texts: str) -> float:
        body = {"turns": [{"text": text} for text in texts], "response_format": "pcm"}
        return decode(http.post(PATH, json=body).content, "pcm").seconds

    plain = seconds("One.", "Two.")
    assert seconds("One. [pause:1s]", "Two.") == pytest.approx(plain + 1.0, abs=0.05)
    assert seconds("One.", "[pause:1s]", "Two.") == pytest.approx(plain + 1.0, abs=0.05)
    assert seconds("[pause:1s]", "One.", "Two.") == pytest.approx(plain + 1.0, abs=0.05)


def test_two_hundred_turns_are_accepted(http: httpx.Client) -> None:
    voices = ["alloy", "echo", "nova", "onyx"]
    turns = [{"speaker": f"speaker {index % 4}", "voice": voices[index % 4], "text": "Yes."} for index in range(200)]
    answer = http.post(PATH, json={"turns": turns, "response_format": "pcm"})
    assert answer.status_code == 200
    assert 200 * (0.2 + TURN_GAP_S) < decode(answer.content, "pcm").seconds < 200 * 1.2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "turns"),
        ({"turns": []}, "turns"),
        ({"turns": None}, "turns"),
        ({"turns": "Hello."}, "turns"),
        ({"turns": ["Hello."]}, "turns.0"),
        ({"turns": [{"text": "Hi."}] * 201}, "turns"),
        ({"turns": [{"text": "Hi."}, {"voice": "nova"}]}, "turns.1.text"),
        ({"turns": [{"text": "Hi."}, {"text": "  "}]}, "turns.1.text"),
        ({"turns": [{"text": "Hi."}, {"text": 5}]}, "turns.1.text"),
        ({"turns": [{"text": "Hi."}, {"text": "Hi.", "speaker": 1.5}]}, "turns.1.speaker"),
        ({"turns": [{"text": "Hi."}, {"text": "Hi.", "speaker": True}]}, "turns.1.speaker"),
        ({"turns": [{"text": "Hi."}, {"text": "Hi.", "speaker": ""}]}, "turns.1.speaker"),
        ({"turns": [{"text": "Hi."}, {"text": "Hi.", "voice": 5}]}, "turns.1.voice"),
        ({"turns": [{"text": "Hi."}, {"text": "Hi.", "voice": "nobody"}]}, "turns.1.voice"),
        ({"turns": [{"text": "Hi."}, {"text": "Hi.", "voice": "none"}]}, "turns.1.voice"),
        ({"turns": [{"text": "Hi."}], "voice": "nobody"}, "voice"),
        ({"turns": [{"text": "a" * 750_000}, {"text": "a" * 250_001}]}, "turns"),
        ({"turns": [{"text": "Hi."}], "response_format": "oga"}, "response_format"),
    ],
)
def test_invalid_bodies_are_errors(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post(PATH, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]
    assert http.post(PATH, json={"turns": [{"text": "Still here."}]}).status_code == 200


def test_dialogue_and_conversation_need_a_key_if_keys_are_set(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_API_KEYS="key-for-dialogues") as url, httpx.Client(base_url=url) as http:
        for path, body in ((PATH, {"turns": [{"text": "Hi."}]}), ("/v1/audio/conversation", {"text": "Hi."})):
            assert http.post(path, json=body).status_code == 401
            assert http.post(path, json=body, headers={"Authorization": "Bearer key-for-dialogues"}).status_code == 200


def test_speaker_tags_in_the_text_select_the_voices(http: httpx.Client, recogniser: Recogniser) -> None:
    first, second = SENTENCES[3].capitalize(), SENTENCES[10].capitalize()
    body = {"voice": f"{LOW}+{HIGH}", "input": f"[S1] {first}. [S2] {second}.", "response_format": "wav"}
    audio = decode(http.post("/v1/audio/speech", json=body).content, "wav")
    parts = turns_in(audio, 2)
    assert [recogniser.recognise(part) for part in parts] == [SENTENCES[3], SENTENCES[10]]
    low, high = (pitch_hz(part.samples, part.rate_hz) for part in parts)
    assert low * 1.4 < high
