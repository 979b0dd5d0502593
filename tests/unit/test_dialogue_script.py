"""The script that Dia reads, from lines and transcripts."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.dia.prompt import text_bytes
from app.errors import TooManySpeakers
from app.text.dialogue import SOUNDS, passage_bytes, size_bytes, spoken_bytes, tidy, write

pytestmark = pytest.mark.unit


def test_a_single_speaker_gets_the_first_tag() -> None:
    script = write([(7, "Hello there.")])
    assert script.text == script.said == "[S1] Hello there."
    assert script.speakers == (7,)


def test_a_dialogue_ends_with_the_tag_of_who_spoke_before() -> None:
    assert write([(3, "Hi."), (1, "Hello!"), (3, "Well?")]).text == "[S1] Hi. [S2] Hello! [S1] Well? [S2]"
    assert write([("a", "Hi."), ("b", "Hello!")]).text == "[S1] Hi. [S2] Hello! [S1]"


def test_a_speakers_lines_in_a_row_are_one_turn() -> None:
    assert write([(0, "One."), (0, "Two."), (1, " "), (0, "Three.")]).text == "[S1] One. Two. Three."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[S1] Hi. [S2] Hello. [S1] Bye.", "[S1] Hi. [S2] Hello. [S1] Bye. [S2]"),
        ("[S2] Hi. [S2] Again. [S1] Hello.", "[S1] Hi. Again. [S2] Hello. [S1]"),
        ("Hi. [s2]Hello.", "[S1] Hi. [S2] Hello. [S1]"),
        ("[S1] Only me. [S1] And me.", "[S1] Only me. And me."),
        ("[S1] Hi. [S2] Hello. [S1]", "[S1] Hi. [S2] Hello. [S1]"),
    ],
)
def test_tags_in_a_text(text: str, expected: str) -> None:
    script = write([(0, text)])
    assert script.text == expected
    assert script.speakers == (0,)


def test_transcripts_come_first() -> None:
    """With their speakers' tags, in the order of appearance; so who has one speaks first."""
    both = write([("a", "New."), ("b", "Newer.")], {"b": "I am b.", "a": "I am a.", "c": "Nobody asks."})
    assert both.text == "[S1] I am a. [S2] I am b. [S1] New. [S2] Newer. [S1]"
    assert both.said == "[S1] New. [S2] Newer. [S1]"
    assert both.speakers == ("a", "b")
    second = write([("a", "New."), ("b", "Newer.")], {"b": "I am b."})
    assert second.text == "[S1] I am b. [S2] New. [S1] Newer. [S2]"
    assert second.speakers == ("b", "a")
    alone = write([("a", "New.")], {"a": "[S2] I am a."})
    assert alone.text == "[S1] I am a. New."
    assert alone.said == "New."
    tagged = write([("a", "[S1] New. [S2] Newer.")], {"a": "I am a."})
    assert tagged.text == "[S1] I am a. New. [S2] Newer. [S1]"


def test_two_speakers_at_most() -> None:
    with pytest.raises(TooManySpeakers):
        write([(0, "a"), (1, "b"), (2, "c")])
    with pytest.raises(TooManySpeakers):
        write([(0, "[S1] a [S2] b [S3] c")])


@pytest.mark.parametrize("sound", sorted(SOUNDS))
def test_sounds_stay(sound: str) -> None:
    assert tidy(f"Well ({sound}) then.") == f"Well ({sound}) then."
    assert tidy(f"({sound.upper()})") == f"({sound})"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He came (late) home.", "He came, late, home."),
        ("He came (late).", "He came, late."),
        ("Oh (whispers softly)", "Oh, whispers softly"),
        ("(aside) Yes.", "aside, Yes."),
        ("It is (sort of [not] really) so.", "It is sort of, not, really so."),
        ("A () b ( c", "A b c"),
        ("Why? (laughs), well", "Why? (laughs), well"),
        ("“Quoted” — it’s…\nnew", '"Quoted" - it\'s... new'),
        ("a<pad>b <p<pad>ad> c", "a b <p ad> c"),
        ("[laughs] {x}", "laughs, x"),
    ],
)
def test_tidy(text: str, expected: str) -> None:
    assert tidy(text) == expected


def test_sizes() -> None:
    lines = [(0, "Hi — é."), (1, "Hello.")]
    script = write(lines, {0: "Me."})
    assert passage_bytes(lines, {0: "Me."}) == script.size_bytes == len(text_bytes(script.text))
    assert spoken_bytes("[S1] ab [S2]") == len(" ab ")
    assert script.said_s == pytest.approx(spoken_bytes(script.said) / 15)


@given(st.lists(st.tuples(st.integers(0, 1), st.text(max_size=60)), min_size=1, max_size=6), st.text(max_size=20))
def test_whatever_comes(lines: list[tuple[int, str]], transcript: str) -> None:
    script = write(lines, {1: transcript})
    assert size_bytes(script.text) == len(text_bytes(script.text)) == script.size_bytes
    assert script.text.endswith(script.said)
    tags = re.findall(r"\[S[12]\]", script.text)
    assert tags[:1] in ([], ["[S1]"])
    assert all(a != b for a, b in itertools.pairwise(tags))
    for side_stream in re.findall(r"\(([^()]*)\)", script.text):
        assert side_stream in SOUNDS
