"""The comment of synthetic speech: it is written into every container and read again."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest

from app.audio.decode import decode
from app.audio.encoders import encoded_bytes, open_encoder
from app.audio.formats import AUDIO_FORMATS
from app.audio.provenance import GENERATOR, MAX_COMMENT_CHARS, Provenance, parse
from app.audio.sandbox import decode_in_sandbox

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
SOUND = (0.1 * np.sin(np.arange(RATE_HZ) / 20)).astype(np.float32)
MADE = Provenance("csm-1b", ("alloy", "voice_1"), 1_795_910_400)


def encode(audio_format: str, comment: str, samples: int | None = None) -> bytes:
    encoder = open_encoder(audio_format, RATE_HZ, samples, comment=comment)
    return encoder.encode(SOUND) + encoder.flush()


@pytest.mark.parametrize("samples", [None, len(SOUND)])
@pytest.mark.parametrize("audio_format", sorted(AUDIO_FORMATS.keys() - {"pcm"}))
def test_comment_of_each_format_is_read_again(audio_format: str, samples: int | None) -> None:
    data = encode(audio_format, MADE.comment, samples)
    found = decode(data, RATE_HZ, max_seconds=5)
    assert parse(found.comment) == MADE
    bare = decode(encode(audio_format, "", samples), RATE_HZ, max_seconds=5)
    assert bare.comment == ""
    np.testing.assert_array_equal(found.samples, bare.samples)
    size = encoded_bytes(audio_format, RATE_HZ, len(SOUND), comment=MADE.comment)
    assert size in (None, len(data))


@pytest.mark.parametrize("samples", [None, len(SOUND)])
def test_wav_with_a_comment_is_read_by_pythons_reader(samples: int | None) -> None:
    for comment in ("odd", "even"):
        with wave.open(io.BytesIO(encode("wav", comment, samples))) as reader:
            assert len(reader.readframes(2 * len(SOUND))) == 2 * len(SOUND)


def test_comment_passes_through_the_sandbox() -> None:
    assert parse(decode_in_sandbox(encode("mp3", MADE.comment), RATE_HZ, max_seconds=5).comment) == MADE


def test_comment_is_readable_and_names_no_text() -> None:
    assert MADE.comment == (
        f"Synthetic speech; source=trainedAlgorithmicMedia; generator={GENERATOR}; model=csm-1b; "
        "voice=alloy, voice_1; created=2026-11-29T00:00:00Z"
    )
    assert MADE.tags == {"comment": MADE.comment}
    rules = Provenance("espeak", ("nova",), trained=False)
    assert "source=algorithmicMedia" in rules.comment
    assert parse(rules.comment) == rules


@pytest.mark.parametrize("comment", ["", "Lavf62", "Synthetic speech is good", "synthetic speech; model=x"])
def test_other_comments_say_nothing(comment: str) -> None:
    assert parse(comment) is None


def test_hostile_values_stay_in_their_field() -> None:
    assert parse("Synthetic speech; created=never; ;=;; model") == Provenance("", (), generator="")
    found = parse(Provenance("a; voice=b\nc", ("x;y",)).comment)
    assert found is not None
    assert (found.model, found.voices) == ("a  voice=b c", ("x y",))
    assert len(Provenance("m", tuple(str(n) * 100 for n in range(90))).comment) <= MAX_COMMENT_CHARS
