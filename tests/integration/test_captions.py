"""`POST /v1/audio/captions`, `POST /dev/captioned_speech` and `say --captions` over a real server."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai.types.audio import TranscriptionVerbose

from app.audio.decode import decode as decode_upload
from app.audio.provenance import parse as parse_comment
from tests.support.commands import run_command
from tests.support.ears import decode
from tests.support.live import environment
from tests.unit.test_captions import bare, parsed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

TEXT = (
    "Tea costs $12.50 today. The old clock in the hall, which had not been repaired for years, struck seven when the "
    "guests came in & sat down. Why? Nobody knew."
)
TURNS = [
    {"speaker": "Ann", "voice": "nova", "text": "Have you seen my umbrella? I left it here."},
    {"speaker": "Bob", "voice": "onyx", "text": "You left it on the bus."},
    {"speaker": "Ann", "voice": "nova", "text": "Oh no!"},
]


def captions(http: httpx.Client, prefix: str = "/v1", **body: Any) -> httpx.Response:
    answer = http.post(f"{prefix}/audio/captions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("srt", "application/x-subrip; charset=utf-8"),
        ("vtt", "text/vtt; charset=utf-8"),
        ("lrc", "text/x-lrc; charset=utf-8"),
        ("json", "application/json"),
    ],
)
def test_captions_have_the_text_of_the_caller(http: httpx.Client, prefix: str, kind: str, media_type: str) -> None:
    answer = captions(http, prefix, input=TEXT, captions=kind, cache=False)
    assert answer.headers["content-type"] == media_type
    assert answer.headers["content-disposition"] == f'inline; filename="speech.{kind}"'
    assert answer.headers["x-cache"] == "off"
    assert answer.headers["x-tts-engine"] == "espeak"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert "x-tts-ignored" not in answer.headers
    if kind == "json":
        assert answer.json()["text"] == TEXT
        return
    shown = "".join(text for _, _, text in parsed(answer.text, kind))
    assert bare(shown.replace("&amp;", "&")) == bare(TEXT)


def test_captions_are_in_time_with_the_speech(http: httpx.Client) -> None:
    body = {"input": TEXT, "response_format": "mp3", "voice": "echo"}
    events = parsed(captions(http, **body).text, "srt")
    speech = http.post("/v1/audio/speech", json=body)
    assert speech.headers["x-cache"] == "hit"
    audio = decode(speech.content, "mp3")
    length = len(audio.samples) / audio.rate_hz
    assert all(start < end <= length + 0.001 for start, end, _ in events)
    assert events[-1][1] > length - 1.0
    for start, _, _ in events:  # a caption starts with its first word, not with the silence before the word
        near = audio.samples[max(0, round((start - 0.08) * audio.rate_hz)) : round((start + 0.25) * audio.rate_hz)]
        assert abs(near).max() > 0.05


def test_captions_of_cached_speech_use_the_cache(http: httpx.Client) -> None:
    body = {"input": "A sentence that is spoken first, and captioned later.", "seed": 5}
    first = http.post("/v1/audio/speech", json=body)
    answer = captions(http, **body)
    again = captions(http, **body, captions="vtt")
    assert first.headers["x-cache"] == "miss"
    assert again.headers["x-cache"] == "hit"
    assert answer.headers["x-tts-seed"] == first.headers["x-tts-seed"] == "5"
    assert "00:00:00" in again.text


def test_srt_is_the_default(http: httpx.Client) -> None:
    assert captions(http, input="Hello.").text.startswith("1\r\n00:00:00,")


@pytest.mark.parametrize(
    ("kind", "mark"),
    [("vtt", r"<00:00:0\d\.\d{3}>costs"), ("lrc", r"^\[00:00\.\d\d\]<00:00\.\d\d>Tea <00:00\.\d\d>costs")],
)
def test_captions_mark_words_if_requested(http: httpx.Client, kind: str, mark: str) -> None:
    assert re.search(mark, captions(http, input=TEXT, captions=kind, highlight="word").text)
    assert "<" not in captions(http, input=TEXT, captions=kind).text
    assert "<" not in captions(http, input=TEXT, captions=kind, highlight="none").text


def test_json_has_the_words_as_openai_sends_them(http: httpx.Client) -> None:
    found = TranscriptionVerbose.model_validate(captions(http, input=TEXT, captions="JSON").json())
    words = found.words or []
    assert [word.word for word in words] == TEXT.split()
    assert all(0 <= word.start < word.end <= float(found.duration) for word in words)
    assert all(before.end <= after.start + 0.001 for before, after in pairwise(words))
    assert " ".join(segment.text for segment in found.segments or []) == TEXT
    assert found.language == "en"


def test_dialogue_names_its_speakers(http: httpx.Client) -> None:
    srt = captions(http, turns=TURNS).text
    names = re.findall(r"^(Ann|Bob): ", srt, re.MULTILINE)
    assert names == ["Ann", "Bob", "Ann"]
    vtt = captions(http, turns=TURNS, captions="vtt").text
    assert re.findall(r"<v (\w+)>", vtt)[:3] == ["Ann", "Ann", "Bob"]
    segments = captions(http, turns=TURNS, captions="json").json()["segments"]
    assert [segment["speaker"] for segment in segments] == ["Ann", "Ann", "Bob / Ann"]  # short turns share a caption


@pytest.mark.parametrize(
    ("speakers", "names"),
    [
        (({}, {"voice": "onyx"}), ["Alloy", "Onyx"]),
        (({"speaker": 0}, {"speaker": 1}), ["Speaker 0", "Speaker 1"]),
        (({"speaker": "0"}, {"speaker": "1"}), ["Speaker 0", "Speaker 1"]),
        (({"speaker": "A\nB"}, {"speaker": "<C> & D"}), ["A B", "<C> & D"]),
    ],
)
def test_speakers_without_names_have_a_name(
    http: httpx.Client, speakers: tuple[dict[str, Any], ...], names: list[str]
) -> None:
    texts = ["Have you seen my old umbrella?", "You have left it on the bus."]
    turns = [{"text": text, **speaker} for text, speaker in zip(texts, speakers, strict=True)]
    srt = captions(http, turns=turns).text
    assert [f"{name}: {text}" for name, text in zip(names, texts, strict=True)] == [
        line for line in srt.split("\r\n") if ": " in line
    ]


def test_conversation_has_captions(http: httpx.Client) -> None:
    assert "It was lovely, thank you." in captions(http, text="It was lovely, thank you.", speaker_id=1).text


def test_audio_and_captions_are_sent_together_on_request(http: httpx.Client) -> None:
    body = {"input": TEXT, "response_format": "wav", "captions": "vtt"}
    answer = captions(http, **body, return_audio=True)
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: " + answer.headers["content-type"].encode() + b"\r\n\r\n" + answer.content
    )
    parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    assert list(parts) == ["audio", "captions"]
    assert parts["audio"].get_content_type() == "audio/wav"
    assert parts["audio"].get_filename() == "speech.wav"
    speech = http.post("/v1/audio/speech", json={"input": TEXT, "response_format": "wav"})
    audio = parts["audio"].get_payload(decode=True)
    assert audio.endswith(speech.content[44:])
    made = parse_comment(decode_upload(audio, 24_000, max_seconds=30).comment)
    assert made is not None
    assert (made.model, made.voices, made.trained) == ("espeak", ("alloy",), False)
    assert parts["captions"].get_filename() == "speech.vtt"
    assert parts["captions"].get_payload(decode=True) == captions(http, **body).content
    assert answer.headers["x-tts-engine"] == "espeak"


@pytest.mark.parametrize("text", ["---", "(laughs)", "[pause:1s]"])
def test_silent_text_has_no_captions(http: httpx.Client, text: str) -> None:
    assert captions(http, input=text).text == ""
    assert captions(http, input=text, captions="vtt").text == "WEBVTT\n"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "Hello.", "captions": "ass"}, "captions"),
        ({"input": "Hello.", "highlight": "sentence"}, "highlight"),
        ({"input": "Hello.", "return_audio": "maybe"}, "return_audio"),
        ({"input": " "}, "input"),
        ({}, "input"),
        ({"input": "Hello.", "voice": "nobody"}, "voice"),
        ({"input": "Hello.", "speed": 9}, "speed"),
        ({"turns": []}, "turns"),
        ({"turns": [{"text": " "}]}, "turns.0.text"),
        ({"text": "Hello.", "context": [{"speaker": 0, "text": "Hi.", "audio": "!"}]}, "context.0.audio"),
    ],
)
def test_invalid_request_names_its_field(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/audio/captions", json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param
    assert "(" not in answer.json()["error"]["message"].partition("`:")[0]


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        ({"stream_format": "sse"}, "stream_format"),
        ({"progress": True}, "progress"),
        ({"timestamps": True}, "timestamps"),
        ({"provenance": True}, "provenance"),
        ({"provenance": True, "return_audio": True}, None),
        ({"highlight": "word"}, "highlight"),
        ({"highlight": "word", "captions": "json"}, "highlight"),
        ({"highlight": "word", "captions": "vtt"}, None),
        ({"emotion": "sad"}, "emotion"),
        ({"captions": None, "highlight": None, "return_audio": None}, None),
    ],
)
def test_captions_name_fields_without_effect(http: httpx.Client, body: dict[str, Any], ignored: str | None) -> None:
    assert captions(http, input="Hello.", **body).headers.get("x-tts-ignored") == ignored


def test_body_must_be_an_object(http: httpx.Client) -> None:
    answer = http.post("/v1/audio/captions", json=["Hello."])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_type"


# ---- Kokoro-FastAPI


def captioned(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """Read captioned speech line by line, as the example client of Kokoro-FastAPI does."""
    with http.stream("POST", "/dev/captioned_speech", json={"model": "kokoro", **body}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.iter_lines() if line]


@pytest.mark.parametrize(
    ("audio_format", "media_type"), [("mp3", "audio/mpeg"), ("wav", "audio/wav"), ("pcm", "audio/pcm")]
)
def test_kokoro_client_reads_chunks_with_words(http: httpx.Client, audio_format: str, media_type: str) -> None:
    chunks = captioned(http, input=TEXT, voice="af_bella", speed=1.0, response_format=audio_format, stream=True)
    assert all(chunk.keys() == {"audio", "audio_format", "timestamps"} for chunk in chunks)
    assert all(chunk["audio_format"] == media_type for chunk in chunks)
    words = [word for chunk in chunks for word in chunk["timestamps"]]
    assert [word["word"] for word in words] == TEXT.split()
    assert all(word.keys() == {"word", "start_time", "end_time"} for word in words)
    assert all(word["start_time"] < word["end_time"] for word in words)
    assert all(chunk["audio"] for chunk in chunks)
    audio = b"".join(base64.b64decode(chunk["audio"]) for chunk in chunks)
    speech = http.post("/v1/audio/speech", json={"input": TEXT, "voice": "af_bella", "response_format": audio_format})
    whole, chunked = decode(speech.content, audio_format), decode(audio, audio_format)
    assert (whole.samples == chunked.samples).all()


def test_kokoro_client_reads_one_object_without_a_stream(http: httpx.Client) -> None:
    body = {"model": "kokoro", "input": TEXT, "voice": "af_heart", "response_format": "wav", "stream": False}
    answer = http.post("/dev/captioned_speech", json=body)
    found = answer.json()
    assert found.keys() == {"audio", "audio_format", "timestamps"}
    audio = decode(base64.b64decode(found["audio"]), "wav")
    assert [word["word"] for word in found["timestamps"]] == TEXT.split()
    assert 0 < found["timestamps"][-1]["end_time"] <= len(audio.samples) / audio.rate_hz + 0.001
    assert answer.headers["x-tts-engine"] == "espeak"


@pytest.mark.parametrize("stream", [True, False])
def test_kokoro_client_can_request_no_word_times(http: httpx.Client, stream: bool) -> None:
    chunks = captioned(http, input="Hello there.", stream=stream, return_timestamps=False)
    assert {json.dumps(chunk["timestamps"]) for chunk in chunks} == {"null"}


def test_all_fields_of_kokoro_are_accepted(http: httpx.Client) -> None:
    body = {
        "model": "kokoro",
        "input": "It costs 5 euros.",
        "voice": "af_bella+af_sky",
        "response_format": "mp3",
        "speed": 1.25,
        "stream": False,
        "return_timestamps": True,
        "return_download_link": False,
        "lang_code": "b",
        "volume_multiplier": 1.0,
        "normalization_options": {"normalize": True, "unit_normalization": False, "url_normalization": True},
    }
    answer = http.post("/dev/captioned_speech", json=body)
    assert answer.status_code == 200, answer.text
    assert [word["word"] for word in answer.json()["timestamps"]] == ["It", "costs", "5", "euros."]
    assert answer.headers["x-tts-ignored"] == "return_download_link, volume_multiplier"


def test_kokoro_options_have_an_effect(http: httpx.Client) -> None:
    def audio(**body: Any) -> str:
        text = {"input": "The train stops at 10 in the old town.", "stream": False, "response_format": "pcm"}
        return http.post("/dev/captioned_speech", json={**text, **body}).json()["audio"]  # type: ignore[no-any-return]

    plain = audio()
    assert audio(lang_code="f") == audio(lang_code="fr") == audio(language="fr") != plain
    assert audio(normalization_options={"normalize": True}) == plain
    assert audio(normalization_options={"normalize": False}) == audio(normalize=False)


def test_invalid_captioned_speech_is_an_error(http: httpx.Client) -> None:
    for body, param in [
        ({"input": ""}, "input"),
        ({"input": "x", "stream": "maybe"}, "stream"),
        ({"input": "x", "lang_code": "?"}, "lang_code"),
    ]:
        answer = http.post("/dev/captioned_speech", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


# ---- the command line


@pytest.mark.parametrize("suffix", ["srt", "vtt", "lrc", "json"])
def test_say_writes_captions(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out.{suffix}"
    arguments = ("say", TEXT, "-o", "out.wav", "--captions", target.name)
    result = run_command(arguments, tmp_path, environment(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.wav").read_bytes()[:4] == b"RIFF"
    content = target.read_text(encoding="utf-8")
    if suffix == "json":
        assert json.loads(content)["text"] == TEXT
    else:
        shown = "".join(text for _, _, text in parsed(content, suffix))
        assert bare(shown.replace("&amp;", "&")) == bare(TEXT)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "out.txt"], "srt, vtt, lrc, json"),
        (["--captions", "out"], "srt, vtt, lrc, json"),
        (["--captions", "out.srt", "--voice", "none"], "--captions"),
        (["--captions", "missing/out.srt"], "missing/out.srt can't be written"),
    ],
)
def test_say_refuses_wrong_caption_files(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run_command(("say", "Hello.", "-o", "out.wav", *arguments), tmp_path, environment(tmp_path))
    assert result.returncode != 0
    assert message in " ".join(result.stderr.decode().split())
