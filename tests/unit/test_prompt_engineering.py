"""Pause tags become silences of the right length, words are kept, and nothing a caller writes is an error."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.script import MAX_SILENCE_S, Pause, Words, parse

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [
        ("[pause]", 0.5),
        ("[pause:]", 0.5),
        ("[pause:0.5s]", 0.5),
        ("[pause:500ms]", 0.5),
        ("[pause: 1 s]", 1.0),
        ("[pause 1s]", 1.0),
        ("[PAUSE:2S]", 2.0),
        ("[Pause: .25 s]", 0.25),
        ("[ pause : 1s ]", 1.0),
        ("[pause:3]", 3.0),
        ("[pause:2 seconds]", 2.0),
        ("[pause:20s]", 10.0),
        ("[pause:999999999999s]", 10.0),
        ('<break time="500ms"/>', 0.5),
        ("<break time='1.5s' />", 1.5),
        ('<BREAK TIME="2s">', 2.0),
        ("<break/>", 0.5),
        ("<break>", 0.5),
        ('<break strength="strong"/>', 1.0),
        ('<break strength="x-weak" time="250ms"/>', 0.25),
        ('<break time="60s"/>', 10.0),
    ],
)
def test_a_tag_is_a_pause(tag: str, seconds: float) -> None:
    assert parse(f"before {tag} after") == [Words("before"), Pause(seconds), Words("after")]


@pytest.mark.parametrize(
    "tag",
    ["[pause:abc]", "[pause:-1s]", "[pause:1h]", "[pause:1s2]", "[pause:0s]", "[pause: for effect]", "</break>",
     '<break strength="none"/>', '<break time="soon"/>', "[pause:1e9s]"],
)  # fmt: skip
def test_a_malformed_or_empty_pause_is_dropped_not_read_aloud(tag: str) -> None:
    assert parse(f"before {tag} after") == [Words("before after")]


@pytest.mark.parametrize(
    "text", ["[pauses]", "a pause: 1s", "[S1] hi (laughs)", "<breakfast>", "[pause", "pause]", "[paused:1s]"]
)
def test_what_is_no_pause_tag_stays(text: str) -> None:
    assert parse(text) == [Words(text)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("  \n", []),
        ("Hi.", [Words("Hi.")]),
        ("[pause]", [Pause(0.5)]),
        ("[pause:6s] [pause:6s]Go", [Pause(12.0), Words("Go")]),
        ('a[pause:1s]\n<break time="1s"/>[pause:oops]b', [Words("a"), Pause(2.0), Words("b")]),
        ("[pause]a[pause]", [Pause(0.5), Words("a"), Pause(0.5)]),
        ("one\n\ntwo [pause] three", [Words("one\n\ntwo"), Pause(0.5), Words("three")]),
    ],
)
def test_parts(text: str, parts: list[Words | Pause]) -> None:
    assert parse(text) == parts


def test_silence_in_a_row_is_bounded() -> None:
    assert parse("[pause:10s]" * 1000) == [Pause(MAX_SILENCE_S)]


PIECES = st.lists(
    st.sampled_from(
        [
            "[pause]",
            "[pause:1s]",
            "[pause:x]",
            '<break time="1s"/>',
            "word",
            " ",
            "\n",
            "[",
            "]",
            "pause",
            "<break",
            ">",
        ]
    )
).map("".join)


@settings(max_examples=300, deadline=None)
@given(PIECES | st.text(st.characters(codec=None, categories=None)))
def test_any_text_has_parts_that_alternate(text: str) -> None:
    parts = parse(text)
    for part, after in pairwise(parts):
        assert isinstance(part, Words) or isinstance(after, Words)
    for part in parts:
        if isinstance(part, Words):
            assert part.text == part.text.strip() != ""
        else:
            assert 0 < part.seconds <= MAX_SILENCE_S
    if "pause" not in text.lower() and "<" not in text:
        assert [part.text for part in parts if isinstance(part, Words)] == ([text.strip()] if text.strip() else [])


@pytest.mark.parametrize("piece", ["[pause", "[pause]", "[pause:", "[pause:1", "<break", "<break ", "[", "[pause:1s]a"])
def test_two_hundred_thousand_characters_in_linear_time(piece: str) -> None:
    text = (piece * 200_000)[:200_000]
    began_s = time.process_time()
    parse(text)
    assert time.process_time() - began_s < 2.0
