"""Pause tags become silences of the right length, words stay, and no text causes an error."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text import script
from app.text.script import MAX_SILENCE_S, Pause
from app.text.spans import SpannedText
from tests.support.growth import LINEAR, order

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Words:
    """The text of `script.Words`, without its spans."""

    text: str


def parse(text: str) -> list[Words | Pause]:
    parts = script.parse(SpannedText(text))
    return [part if isinstance(part, Pause) else Words(part.text.text) for part in parts]


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
def test_pause_tag_sets_the_length_of_the_silence(tag: str, seconds: float) -> None:
    assert parse(f"before {tag} after") == [Words("before"), Pause(seconds), Words("after")]


@pytest.mark.parametrize(
    "tag",
    ["[pause:abc]", "[pause:-1s]", "[pause:1h]", "[pause:1s2]", "[pause:0s]", "[pause: for effect]", "</break>",
     '<break strength="none"/>', '<break time="soon"/>', "[pause:1e9s]"],
)  # fmt: skip
def test_malformed_or_empty_pause_tag_is_removed_and_not_read_aloud(tag: str) -> None:
    assert parse(f"before {tag} after") == [Words("before after")]


@pytest.mark.parametrize(
    "text", ["[pauses]", "a pause: 1s", "[S1] hi (laughs)", "<breakfast>", "[pause", "pause]", "[paused:1s]"]
)
def test_other_text_in_brackets_stays(text: str) -> None:
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
def test_words_and_pauses_keep_their_order(text: str, parts: list[Words | Pause]) -> None:
    assert parse(text) == parts


def test_total_of_consecutive_pauses_is_limited() -> None:
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
def test_no_two_pauses_are_adjacent(text: str) -> None:
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
def test_time_of_long_texts_grows_linearly(piece: str) -> None:
    small, large = ((piece * size)[:size] for size in (50_000, 200_000))
    assert order(lambda: parse(small), lambda: parse(large), 4, LINEAR) <= LINEAR
