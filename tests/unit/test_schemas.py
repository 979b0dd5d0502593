"""Request bodies: accepted and refused values, the resulting request, and its digest."""

from __future__ import annotations

import base64
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from app.api.requests import ENGINE_EXTRAS, ConversationBody, DialogueBody, SpeechBody, SpokenBody, VoiceId
from app.audio.formats import AUDIO_FORMATS
from app.errors import BadReference, TextTooLong, UnknownVoice
from app.types import NO_EFFECT_ON_AUDIO, Line, Reference, Sampling, SpeechRequest, Turn, UploadedTurn
from app.voices.presets import NO_VOICE, UNNAMED_VOICE

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
OPTIONAL = [name for name in SpeechBody.model_fields if name != "input"]


def body(**fields: Any) -> SpeechBody:
    return SpeechBody.model_validate({"input": "Hello.", **fields})


def request(**fields: Any) -> SpeechRequest:
    return body(**fields).to_request(default_model="csm-1b", max_input_chars=100)


PLAIN = SpeechRequest(model="csm-1b", lines=(Line("Hello.", UNNAMED_VOICE),))


def test_minimal_body_is_a_valid_request():
    assert request() == PLAIN
    assert body().extras == frozenset()


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_counts_as_a_missing_field(name):
    assert request(**{name: None}) == PLAIN
    assert body(**{name: None}).extras == frozenset()


@pytest.mark.parametrize("names", [("top_k", "topk"), ("topk", "top_k")])
def test_null_does_not_hide_an_alias(names):
    assert SpeechBody.model_validate({"input": "Hi.", names[0]: None, names[1]: 5}).extras == {"top_k"}


def test_unknown_fields_are_ignored():
    assert request(stream=True, lang_code="a", volume_multiplier={"x": [1]}) == PLAIN


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"stream": True, "lang_code": "a", "user": None}, ("lang_code", "stream")),
        ({"ключ": 1}, ("%D0%BA%D0%BB%D1%8E%D1%87",)),
        ({"a\r\nSet-Cookie: x": 1, "b, c": 2}, ("a%0D%0ASet-Cookie:%20x", "b%2C%20c")),
        ({"x" * 1000: 1}, ("x" * 64,)),
        ({"\ud800": 1}, ("%3F",)),
        ({"": 1}, ("",)),
        ({f"x{n:02}": n for n in range(50)}, (*(f"x{n:02}" for n in range(20)), "...")),
        ({"voice": "", "model": ""}, ()),
    ],
)
def test_unknown_field_names_are_encoded_for_headers(fields, ignored):
    assert body(**fields).ignored == ignored


@pytest.mark.parametrize(
    "voice", [{"name": "nova"}, {"id": "nova", "name": "Nova"}, {"voice_id": "x"}, {"id": 5}, {}, ["alloy"], 5, True]
)
def test_error_for_an_invalid_voice_is_one_sentence(voice):
    with pytest.raises(ValidationError) as error:
        body(voice=voice)
    (problem,) = error.value.errors()
    assert problem["loc"] == ("voice",)
    assert problem["msg"].count(".") == 1
    assert '{"id": "alloy"}' in problem["msg"]


def test_empty_voice_of_a_turn_is_unset():
    turns = [{"speaker": "a", "voice": "nova", "text": "Hi."}, {"speaker": "a", "voice": "", "text": "Ho."}]
    spoken = DialogueBody.model_validate({"turns": turns}).to_request(default_model="m", max_input_chars=100)
    assert [line.voice for line in spoken.lines] == ["nova", "nova"]


def test_unknown_fields_of_turns_are_listed():
    turns = [{"text": "Hi.", "emotion": "glad", "style": None}, {"text": "Ho.", "emotion": "sad", "pace": 1}]
    assert DialogueBody.model_validate({"turns": turns}).ignored == ("turns[].emotion", "turns[].pace")
    context = [{**PREVIOUS_TURN, "mood": 1}]
    assert ConversationBody.model_validate({"text": "Hi.", "context": context}).ignored == ("context[].mood",)


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"model": "tts-1"}, {"model": "tts-1"}),
        ({"model": ""}, {}),  # forms send an empty string for a field without a value
        ({"model": "  "}, {}),
        ({"voice": "nova"}, {"lines": (Line("Hello.", "nova"),)}),
        ({"voice": {"id": "voice_1"}}, {"lines": (Line("Hello.", "voice_1"),)}),
        ({"voice": ""}, {}),
        ({"voice": " "}, {}),
        ({"response_format": "opus"}, {"format": "opus"}),
        ({"response_format": "MP3"}, {}),
        ({"response_format": " Wav"}, {"format": "wav"}),
        ({"stream_format": "SSE"}, {}),
        ({"speed": "1.0"}, {}),
        ({"speed": " 2 "}, {"speed": 2.0}),
        ({"speed": ".5"}, {"speed": 0.5}),
        ({"temperature": "5e-1"}, {"sampling": Sampling(temperature=0.5)}),
        ({"top_k": "5"}, {"sampling": Sampling(top_k=5)}),
        ({"top_k": "5.0"}, {"sampling": Sampling(top_k=5)}),
        ({"top_p": "0.5"}, {"sampling": Sampling(top_p=0.5)}),
        ({"cfg_scale": "+3"}, {"sampling": Sampling(cfg_scale=3.0)}),
        ({"seed": "-7"}, {"seed": -7}),
        ({"seed": "Random"}, {"seed": None}),
        ({"max_audio_length_ms": "1000"}, {"max_audio_ms": 1000}),
        ({"sample_rate": "16000"}, {"sample_rate_hz": 16_000}),
        ({"best_of": "2"}, {"best_of": 2}),
        ({"cache": "false"}, {"use_cache": False}),
        ({"cache": "0"}, {"use_cache": False}),
        ({"normalize": "False"}, {"normalize": False}),
        ({"enhance": "no"}, {"enhance": False}),
        ({"parallel": "on"}, {"parallel": True}),
        ({"verify": "true"}, {"verify": True}),
        ({"speed": 2}, {"speed": 2.0}),
        ({"seed": 7.0}, {"seed": 7}),  # JSON Schema also treats a number without a fraction as an integer
        ({"top_k": 5.0}, {"sampling": Sampling(top_k=5)}),
        ({"sample_rate": 16_000.0}, {"sample_rate_hz": 16_000}),
        ({"speed": 0.25}, {"speed": 0.25}),
        ({"sample_rate": 8_000}, {"sample_rate_hz": 8_000}),
        ({"temperature": 0}, {"sampling": Sampling(temperature=0.0)}),
        ({"top_k": 1}, {"sampling": Sampling(top_k=1)}),
        ({"topk": 7}, {"sampling": Sampling(top_k=7)}),
        ({"top_k": 5, "topk": 7}, {"sampling": Sampling(top_k=5)}),
        ({"top_p": 1}, {"sampling": Sampling(top_p=1.0)}),
        ({"cfg_scale": 3.5}, {"sampling": Sampling(cfg_scale=3.5)}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": -(2**63)}, {"seed": -(2**63)}),
        ({"seed": "random"}, {"seed": None}),
        ({"instructions": "  Whisper. "}, {"instructions": "Whisper."}),
        ({"instructions": " "}, {"instructions": None}),
        ({"language": "pt-BR"}, {"language": "pt-BR"}),
        ({"max_audio_length_ms": 100}, {"max_audio_ms": 100}),
        ({"cache": False}, {"use_cache": False}),
        ({"cache": True}, {}),
        ({"normalize": False}, {"normalize": False}),
        ({"normalize": True}, {}),
        ({"enhance": False}, {"enhance": False}),
        ({"enhance": True}, {"enhance": True}),
        ({"parallel": True}, {"parallel": True}),
        ({"parallel": False}, {}),
        ({"verify": True}, {"verify": True}),
        ({"verify": False}, {"verify": False}),
        ({"timestamps": True}, {"timestamps": True}),
        ({"timestamps": False}, {}),
        ({"provenance": True}, {"provenance": True}),
        ({"best_of": 1}, {}),
        ({"best_of": 4.0}, {"best_of": 4}),
        ({"stream_format": "sse"}, {}),
        ({"conversation_id": "c1"}, {}),
    ],
)
def test_each_field_is_mapped_to_the_request(fields, changes):
    assert request(**fields) == dataclasses.replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("name", "low", "below", "high", "above"),
    [
        ("speed", 0.25, 0.249, 4.0, 4.001),
        ("temperature", 0.0, -0.001, 2.0, 2.001),
        ("top_k", 1, 0, 2048, 2049),
        ("top_p", 0.0001, 0.0, 1.0, 1.001),
        ("cfg_scale", 1.0, 0.999, 10.0, 10.001),
        ("seed", -(2**63), -(2**63) - 1, 2**63 - 1, 2**63),
        ("max_audio_length_ms", 100, 99, 7_200_000, 7_200_001),
        ("sample_rate", 8_000, 7_999, 48_000, 48_001),
        ("best_of", 1, 0, 4, 5),
        ("language", "en", "e", "e" * 35, "e" * 36),
        ("conversation_id", "x", "", "x" * 200, "x" * 201),
    ],
)
def test_values_outside_the_range_are_refused(name, low, below, high, above):
    for value in (low, high):
        assert getattr(body(**{name: value}), name) == value
    for value in (below, above):
        with pytest.raises(ValidationError) as error:
            body(**{name: value})
        assert error.value.errors()[0]["loc"][0] == name


WRONG: list[tuple[str, list[Any]]] = [
    ("input", [None, 5, True, ["Hello."], {"text": "Hello."}, "", "  \n\t"]),
    ("model", [5, True, ["tts-1"]]),
    ("voice", [5, True, ["alloy"], {}, {"id": 5}, {"id": ""}, {"id": None}, {"id": "a", "name": "b"}]),
    ("instructions", [5, True, ["x"]]),
    ("response_format", ["ogg3", "MP 3", "", 5, True]),
    ("stream_format", ["events", "SS E", "", True]),
    ("speed", ["1,5", "fast", "", "nan", "1" * 50, True, float("nan"), float("inf"), [1]]),
    ("temperature", ["1 0", False, float("nan"), float("-inf")]),
    ("top_k", ["x", True, 1.5, "1.5"]),
    ("top_p", ["one", True, float("nan")]),
    ("cfg_scale", ["3x", True, float("nan"), float("inf")]),
    ("seed", ["1.5", "randomly", "", True, 1.5, [1]]),
    ("max_audio_length_ms", ["1 s", True, float("inf")]),
    ("sample_rate", ["24 kHz", True, 24000.5]),
    ("language", [5, True, "en US", "en/../x", "日本酒"]),
    ("conversation_id", [5, True]),
    ("cache", ["maybe", 0, 1]),
    ("normalize", ["", 0, 1]),
    ("enhance", ["2", 0, 1]),
    ("progress", ["never", 0, 1]),
    ("timestamps", ["words", 0, 1]),
    ("provenance", ["all", 0, 1]),
    ("parallel", ["nein", 0, 1]),
    ("verify", ["auto", 0, 1]),
    ("best_of", ["2.5", True, 1.5, [2]]),
    ("speaker_id", ["Ann", True, 1.5, -1, 1000, [0]]),
    ("lexicon", ["SQL", {"SQL": "sequel"}, ["SQL"], [{"word": "SQL", "say": 5}], [{"word": "SQL", "says": "sequel"}]]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG for value in values])
def test_types_are_strict(name, value):
    with pytest.raises(ValidationError) as error:
        body(**{name: value})
    assert error.value.errors()[0]["loc"][0] == name


def test_table_of_invalid_values_covers_every_field():
    assert {name for name, _ in WRONG} == SpeechBody.model_fields.keys()


def test_extras_are_the_engine_fields_of_the_request():
    set_all = {
        "temperature": 0.0,
        "top_k": 5,
        "top_p": 0.5,
        "cfg_scale": 2.0,
        "language": "de",
        "conversation_id": "c1",
    }
    assert set_all.keys() == set(ENGINE_EXTRAS)
    for name, value in set_all.items():
        assert body(**{name: value}).extras == {name}
    assert body(topk=5).extras == {"top_k"}
    assert body(**set_all, speed=2.0, seed=1, normalize=False, instructions="x").extras == set(ENGINE_EXTRAS)


@pytest.mark.parametrize("text", ["a" * 100, "語" * 100, "\U0001f600" * 100])
def test_text_limit_counts_characters(text):
    assert request(input=text).lines[0].text == text
    with pytest.raises(TextTooLong) as error:
        request(input=text + "!")
    assert error.value.param == "input"
    assert "101" in error.value.message
    assert "100" in error.value.message


def test_text_is_passed_on_unchanged():
    text = " Two  spaces\r\n\ud83d and \x00 "
    assert request(input=text).lines == (Line(text, UNNAMED_VOICE),)


def test_voice_object_is_accepted():
    assert body(voice={"id": "x"}).voice == VoiceId(id="x")


def test_internal_name_for_no_voice_is_refused():
    for voice in ("none", {"id": "none"}):
        with pytest.raises(UnknownVoice) as error:
            request(voice=voice)
        assert error.value.param == "voice"


# ---- conversations

SOUND = b"any bytes \xff\x00"
PREVIOUS_TURN = {"speaker": 1, "text": "How are you?", "audio": base64.b64encode(SOUND).decode()}


def conversation(**fields: Any) -> ConversationBody:
    return ConversationBody.model_validate({"text": "Hello.", **fields})


def test_conversation_accepts_all_speech_fields():
    assert ConversationBody.model_fields.keys() - SpokenBody.model_fields.keys() == {"text", "context"}
    fields = {"speed": 2, "temperature": 0, "topk": 7, "seed": 3, "response_format": "wav", "stream_format": "sse"}
    converted = conversation(**fields).to_request(default_model="csm-1b", max_input_chars=100)
    line = Line("Hello.", UNNAMED_VOICE, 0)
    assert converted == dataclasses.replace(request(**fields), lines=(line,), default_speaker=0)
    assert conversation(**fields).extras == {"temperature", "top_k"}


def test_conversation_voice_depends_on_voice_and_speaker_id():
    def line(**fields: Any) -> Line:
        return conversation(**fields).to_request(default_model="csm-1b", max_input_chars=100).lines[0]

    assert line() == Line("Hello.", UNNAMED_VOICE, 0)
    assert line(context=[]) == Line("Hello.", UNNAMED_VOICE, 0)
    assert line(context=[PREVIOUS_TURN], speaker_id=5) == Line("Hello.", NO_VOICE.id, 5)
    assert line(context=[PREVIOUS_TURN], voice="nova") == Line("Hello.", "nova", 0)
    with pytest.raises(UnknownVoice):
        line(context=[PREVIOUS_TURN], voice="none")


def test_input_is_an_alias_of_text():
    assert ConversationBody.model_validate({"input": "Hello."}) == conversation()
    assert ConversationBody.model_validate({"input": "Hi.", "text": "Hello."}) == conversation()


@pytest.mark.parametrize("name", ["speaker_id", "context", "voice"])
def test_null_counts_as_a_missing_field_in_a_conversation(name):
    assert conversation(**{name: None}) == conversation()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": "x" * 13}, "text"),
        ({"context": [PREVIOUS_TURN, {**PREVIOUS_TURN, "text": "x" * 13}]}, "context.1.text"),
    ],
)
def test_each_text_of_a_conversation_is_limited(fields, param):
    with pytest.raises(TextTooLong) as error:
        conversation(**fields).to_request(default_model="csm-1b", max_input_chars=12)
    assert error.value.param == param


@pytest.mark.parametrize(
    "encoded",
    [
        PREVIOUS_TURN["audio"],
        PREVIOUS_TURN["audio"].rstrip("="),
        base64.urlsafe_b64encode(SOUND).decode(),
        "\r\n".join([PREVIOUS_TURN["audio"][:5], PREVIOUS_TURN["audio"][5:], ""]),
        f"data:audio/wav;base64,{PREVIOUS_TURN['audio']}",
        f"data:audio/webm;codecs=opus;base64,{PREVIOUS_TURN['audio']}",
        f"DATA:;BASE64,{PREVIOUS_TURN['audio']}",
    ],
)
def test_common_base64_variants_are_accepted(encoded):
    assert conversation(context=[{**PREVIOUS_TURN, "audio": encoded}]).decode_context() == [
        UploadedTurn(1, "How are you?", SOUND)
    ]


@pytest.mark.parametrize(
    "encoded", ["not base64!", "QUJ=RA==", "A", "日本語", "\ud800", "data:audio/wav,abc", "data:base64"]
)
def test_error_names_the_invalid_base64_field(encoded):
    body = conversation(context=[PREVIOUS_TURN, {**PREVIOUS_TURN, "audio": encoded}])
    with pytest.raises(BadReference) as error:
        body.decode_context()
    assert error.value.param == "context.1.audio"


# ---- dialogues


def spoken(*turns: dict[str, Any], **fields: Any) -> tuple[Line, ...]:
    body = DialogueBody.model_validate({"turns": list(turns), **fields})
    return body.to_request(default_model="csm-1b", max_input_chars=20).lines


def test_dialogue_turns_become_lines():
    assert DialogueBody.model_fields.keys() - SpokenBody.model_fields.keys() == {"turns"}
    assert spoken(
        {"speaker": "Ann", "voice": "nova", "text": "One."},
        {"speaker": 7, "voice": {"id": "echo"}, "text": "Two."},
        {"speaker": "Ann", "voice": "nova", "text": "Three."},
    ) == (Line("One.", "nova", 0), Line("Two.", "echo", 1), Line("Three.", "nova", 0))


def test_missing_voices_and_speakers_get_defaults():
    assert spoken({"text": "One."}, {"text": "Two."}) == (
        Line("One.", UNNAMED_VOICE, 0),
        Line("Two.", UNNAMED_VOICE, 0),
    )
    assert spoken({"text": "One.", "voice": "nova"}, {"text": "Two."}) == (
        Line("One.", "nova", 0),
        Line("Two.", UNNAMED_VOICE, 1),
    )
    assert spoken({"text": "One.", "speaker": 0}, {"text": "Two.", "speaker": 1}, voice="echo") == (
        Line("One.", "echo", 0),
        Line("Two.", "echo", 1),
    )
    # A speaker keeps its voice. If a line gives a speaker another voice, the engine gets a new speaker number.
    assert spoken(
        {"text": "One.", "speaker": "a", "voice": "nova"},
        {"text": "Two.", "speaker": "b"},
        {"text": "Three.", "speaker": "a"},
        {"text": "Four.", "speaker": "a", "voice": "onyx"},
    ) == (Line("One.", "nova", 0), Line("Two.", UNNAMED_VOICE, 1), Line("Three.", "nova", 0), Line("Four.", "onyx", 2))


def test_dialogue_limit_counts_all_turns():
    assert len(spoken({"text": "x" * 10}, {"text": "x" * 10})) == 2
    with pytest.raises(TextTooLong) as error:
        spoken({"text": "x" * 10}, {"text": "x" * 11})
    assert error.value.param == "turns"


# ---- the digest

QUIET = np.zeros(0, np.float32)


def turn(speaker: int, text: str, digest: str) -> Turn:
    return Turn(speaker, text, digest, Reference(QUIET, 24_000, text))


TURN = turn(0, "Hi.", "a1")

FULL = SpeechRequest(
    model="csm-1b",
    lines=(Line("Hello.", "alloy"), Line("Yes?", "nova")),
    format="wav",
    speed=1.25,
    sample_rate_hz=16_000,
    sampling=Sampling(0.5, 10, 0.9, 2.0),
    seed=7,
    instructions="Whisper.",
    language="en-GB",
    max_audio_ms=5_000,
    context=(TURN,),
)
CHANGES: dict[str, list[Any]] = {
    "lines": [
        (Line("Hello", "alloy"), Line("Yes?", "nova")),
        (Line("Hello.", "echo"), Line("Yes?", "nova")),
        (Line("Yes?", "nova"), Line("Hello.", "alloy")),
        (Line("Hello.", "alloy"),),
        (Line("Hello.Yes?", "alloy"),),
        (Line("Hello.", "alloy", 0), Line("Yes?", "nova")),
        (Line("Hello.", "alloy", 1), Line("Yes?", "nova")),
    ],
    "format": [name for name in AUDIO_FORMATS if name != "wav"],
    "speed": [1.0],
    "sample_rate_hz": [24_000],
    "sampling": [
        Sampling(0.6, 10, 0.9, 2.0),
        Sampling(0.5, 11, 0.9, 2.0),
        Sampling(0.5, 10, 0.8, 2.0),
        Sampling(0.5, 10, 0.9, 3.0),
        Sampling(None, 10, 0.9, 2.0),
        Sampling(),
    ],
    "seed": [8, None, 0],
    "instructions": [None, "Shout."],
    "language": [None, "de"],
    "max_audio_ms": [None, 5_001],
    "normalize": [False],
    "enhance": [True, False],
    "conversation": ["one", "two"],
    "parallel": [True],
    "best_of": [2, 4],
    "context": [
        (),
        (TURN, TURN),
        (turn(1, "Hi.", "a1"),),
        (turn(0, "Hi", "a1"),),
        (turn(0, "Hi.", "a2"),),
        (TURN, turn(1, "Yes.", "b")),
        (turn(1, "Yes.", "b"), TURN),
    ],
}


def test_table_of_digest_changes_covers_every_field():
    # The resolver adds the entries of `lexicon` that can act on the text, and reads `default_speaker`.
    no_effect = {"model", "use_cache", "verify", "lexicon", "default_speaker", *NO_EFFECT_ON_AUDIO}
    assert CHANGES.keys() | no_effect == {field.name for field in dataclasses.fields(SpeechRequest)}


def test_facts_about_the_caller_and_the_file_do_not_change_the_audio():
    changed = dataclasses.replace(FULL, timestamps=True, provenance=True, caller="someone", counted=True)
    assert changed.digest("context") == FULL.digest("context")
    assert changed.content_seed("context") == FULL.content_seed("context")


ENCODED = ("format", "sample_rate_hz")  # every format and sample rate is encoded from the same audio


def test_every_audio_change_changes_the_digest():
    digests = [FULL.digest("context")]
    for name, values in CHANGES.items():
        if name in ENCODED:
            continue
        digests += [dataclasses.replace(FULL, **{name: value}).digest("context") for value in values]
    digests += [FULL.digest(), FULL.digest("context", "more"), FULL.digest("contextmore"), FULL.digest("other")]
    assert len(set(digests)) == len(digests)
    assert {len(digest) for digest in digests} == {64}


def test_cache_model_name_and_format_do_not_change_the_digest():
    other = dataclasses.replace(FULL, use_cache=False, verify=True, model="another-name")
    assert other.digest("x") == FULL.digest("x")
    for name in ENCODED:
        for value in CHANGES[name]:
            assert dataclasses.replace(FULL, **{name: value}).digest("x") == FULL.digest("x")


def test_long_text_is_replaced_by_its_digest_once():
    """Two long texts, or a text that imitates a digest, never share a key."""
    texts = ["a" * 1_001, "a" * 1_002, "b" * 1_001, "\ud83d" * 1_001, "a" * 1_000]
    requests = [dataclasses.replace(FULL, lines=(Line(text, "alloy"),)) for text in texts]
    short = [request.with_short_texts() for request in requests]
    assert max(len(request.lines[0].text) for request in short) <= 1_000
    imitation = dataclasses.replace(FULL, lines=(Line(short[0].lines[0].text, "alloy"),)).with_short_texts()
    keys = {request.digest("x") for request in (*short, imitation)}
    assert len(keys) == len(texts) + 1
    assert short[0].content_seed("x") != short[1].content_seed("x")
    assert short[-1] == requests[-1]


def test_model_alias_does_not_change_the_digest():
    assert dataclasses.replace(FULL, model="tts-1").digest("x") == FULL.digest("x")


def test_default_speaker_does_not_change_the_digest():
    changed = dataclasses.replace(FULL, default_speaker=0)
    assert (changed.digest("x"), changed.content_seed("x")) == (FULL.digest("x"), FULL.content_seed("x"))


def test_seed_depends_on_the_content_and_not_on_the_output_format():
    wrapped = dataclasses.replace(
        FULL,
        format="mp3",
        speed=1.0,
        sample_rate_hz=24_000,
        max_audio_ms=None,
        seed=None,
        model="tts-1",
        verify=True,
        best_of=3,
    )
    assert wrapped.content_seed("x") == FULL.content_seed("x")
    for name in ("lines", "sampling", "language"):
        for value in CHANGES[name]:
            assert dataclasses.replace(FULL, **{name: value}).content_seed("x") != FULL.content_seed("x")
    assert FULL.content_seed("y") != FULL.content_seed("x")
    assert 0 <= FULL.content_seed("x") < 2**31


def test_lone_surrogate_has_a_digest():
    assert dataclasses.replace(FULL, lines=(Line("\ud83d", "alloy"),)).digest()


def test_digest_is_the_same_in_every_process():
    code = (
        "from tests.unit.test_schemas import FULL, PLAIN; import json;"
        "print(json.dumps([FULL.digest('a', 'b'), PLAIN.digest()]))"
    )
    for seed in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == f'["{FULL.digest("a", "b")}", "{PLAIN.digest()}"]'
