"""`POST /v1/audio/encode` encodes the client's audio like an answer of `/v1/audio/speech`."""

from __future__ import annotations

import struct

import httpx
import pytest

from app.audio.formats import AUDIO_FORMATS, wav_header
from app.audio.provenance import parse
from tests.support.ears import decode

pytestmark = pytest.mark.integration

RATE_HZ = 22_050  # of the offline voice: no resampling rounds the samples before they are encoded
TEXT = "The library closes at eight this evening."
SPEECH = {"model": "espeak", "voice": "onyx", "input": TEXT, "seed": 7, "sample_rate": RATE_HZ}


@pytest.fixture(scope="module")
def spoken(server: str) -> bytes:
    return httpx.post(f"{server}/v1/audio/speech", json={**SPEECH, "response_format": "pcm"}).content


def wav(pcm: bytes, comment: str = "", rate_hz: int = RATE_HZ) -> bytes:
    return wav_header(rate_hz, len(pcm) // 2, comment) + pcm


def encode(server: str, data: bytes, **fields: object) -> httpx.Response:
    return httpx.post(f"{server}/v1/audio/encode", files={"file": ("take", data)}, data=fields)


@pytest.mark.parametrize("name", AUDIO_FORMATS)
def test_encoded_take_equals_the_answer_in_that_format(server: str, spoken: bytes, name: str) -> None:
    spoken_again = httpx.post(f"{server}/v1/audio/speech", json={**SPEECH, "response_format": name}).content
    answer = encode(server, wav(spoken), response_format=name, sample_rate=RATE_HZ)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == AUDIO_FORMATS[name].media_type
    if AUDIO_FORMATS[name].always_comment:
        assert (decode(answer.content, name).samples == decode(spoken_again, name).samples).all()
    else:
        assert answer.content == spoken_again


def test_raw_samples_have_24_khz(server: str) -> None:
    raw = bytes(2 * 24_000)
    assert encode(server, raw, input_format="pcm", response_format="wav").content == wav(raw, rate_hz=24_000)


def test_comment_of_synthetic_speech_is_kept_and_another_is_not(server: str, spoken: bytes) -> None:
    kept = httpx.post(
        f"{server}/v1/audio/speech", json={**SPEECH, "response_format": "wav", "provenance": True}
    ).content
    made = encode(server, kept).content
    assert b"model=espeak" in made
    assert b"voice=onyx" in made
    comment = kept[kept.index(b"Synthetic speech") : kept.index(b"\0", kept.index(b"Synthetic speech"))].decode()
    assert parse(comment) is not None
    assert comment.encode() in made
    assert b"My holiday" not in encode(server, wav(spoken, "My holiday"), response_format="flac").content


@pytest.mark.parametrize(
    ("data", "fields", "code"),
    [
        (b"not a sound", {}, "bad_reference"),
        (wav_header(24_000, 0), {}, "bad_reference"),
        (b"", {"input_format": "pcm"}, "bad_reference"),
        (b"odd", {"input_format": "pcm"}, "bad_reference"),
        (wav(bytes(4)).replace(b"RIFF", b"RIFX", 1), {}, "bad_reference"),
        (wav(bytes(4)).replace(b"WAVE", b"AVI ", 1), {}, "bad_reference"),
        (wav(bytes(4), rate_hz=500), {}, "bad_reference"),
        (b"RIFF\0\0\0\0WAVEdata" + struct.pack("<I", 4) + bytes(4), {}, "bad_reference"),
        (wav(bytes(4)).replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 1, 2), 1), {}, "bad_reference"),
        (wav(bytes(4)), {"response_format": "tape"}, "literal_error"),
        (wav(bytes(4)), {"sample_rate": "9000"}, None),
    ],
)
def test_wrong_requests_are_refused(server: str, data: bytes, fields: dict[str, object], code: str | None) -> None:
    answer = encode(server, data, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] in ("file", *fields)
    assert code in (None, error["code"])


@pytest.mark.parametrize(
    ("data", "raw", "words"),
    [
        (wav_header(24_000, 0), False, "has no samples"),
        (b"", True, "has no samples"),
        (b"odd", True, "ends in the middle of a sample"),
    ],
)
def test_error_says_what_the_samples_lack(server: str, data: bytes, raw: bool, words: str) -> None:
    answer = encode(server, data, input_format="pcm" if raw else "wav")
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
