"""Dia's script is formatted from lines and transcripts as Dia expects it."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.dia.script import MAX_SPEAKERS, clean_line, format_script, spoken_bytes
from app.errors import TooManySpeakers
from app.text.nonverbal import NON_VERBAL_SOUNDS

pytestmark = pytest.mark.unit


def test_single_speaker_gets_the_first_tag() -> None:
    script = format_script([(7, "Hello there.")])
    assert script.text == script.spoken_text == "[S1] Hello there."
    assert script.speakers == (7,)


def test_dialogue_ends_with_the_tag_of_the_other_speaker() -> None:
    assert format_script([(3, "Hi."), (1, "Hello!"), (3, "Well?")]).text == "[S1] Hi. [S2] Hello! [S1] Well? [S2]"
    assert format_script([("a", "Hi."), ("b", "Hello!")]).text == "[S1] Hi. [S2] Hello! [S1]"


def test_consecutive_lines_of_a_speaker_share_one_tag() -> None:
    assert format_script([(0, "One."), (0, "Two."), (1, " "), (0, "Three.")]).text == "[S1] One. Two. Three."


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
def test_tags_in_a_single_line_are_kept_in_order(text: str, expected: str) -> None:
    script = format_script([(0, text)])
    assert script.text == expected
    assert script.speakers == (0,)


def test_transcripts_are_before_the_text() -> None:
    """Transcripts have the tags of their speakers, in order of appearance. So a speaker with a transcript is [S1]."""
    both = format_script([("a", "New."), ("b", "Newer.")], {"b": "I am b.", "a": "I am a.", "c": "Not in these lines."})
    assert both.text == "[S1] I am a. [S2] I am b. [S1] New. [S2] Newer. [S1]"
    assert both.spoken_text == "[S1] New. [S2] Newer. [S1]"
    assert both.speakers == ("a", "b")
    second = format_script([("a", "New."), ("b", "Newer.")], {"b": "I am b."})
    assert second.text == "[S1] I am b. [S2] New. [S1] Newer. [S2]"
    assert second.speakers == ("b", "a")
    alone = format_script([("a", "New.")], {"a": "[S2] I am a."})
    assert alone.text == "[S1] I am a. New."
    assert alone.spoken_text == "New."
    tagged = format_script([("a", "[S1] New. [S2] Newer.")], {"a": "I am a."})
    assert tagged.text == "[S1] I am a. New. [S2] Newer. [S1]"


def test_more_than_two_speakers_are_refused() -> None:
    with pytest.raises(TooManySpeakers):
        format_script([(0, "a"), (1, "b"), (2, "c")])
    with pytest.raises(TooManySpeakers):
        format_script([(0, "[S1] a [S2] b [S3] c")])


@pytest.mark.parametrize("sound", sorted(NON_VERBAL_SOUNDS))
def test_non_verbal_sounds_stay_in_parentheses(sound: str) -> None:
    assert clean_line(f"Well ({sound}) then.") == f"Well ({sound}) then."
    assert clean_line(f"({sound.upper()})") == f"({sound})"


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
def test_parentheses_stay_only_around_non_verbal_sounds(text: str, expected: str) -> None:
    assert clean_line(text) == expected


def test_tags_take_no_time_to_speak() -> None:
    assert spoken_bytes("[S1] ab [S2]") == len(" ab ")


@given(st.lists(st.tuples(st.integers(0, 1), st.text(max_size=60)), min_size=1, max_size=6), st.text(max_size=20))
def test_any_lines_make_a_valid_script(lines: list[tuple[int, str]], transcript: str) -> None:
    script = format_script(lines, {1: transcript})
    assert len(script.speakers) <= MAX_SPEAKERS
    assert script.text.endswith(script.spoken_text)
    tags = re.findall(r"\[S[12]\]", script.text)
    assert tags[:1] in ([], ["[S1]"])
    assert all(a != b for a, b in itertools.pairwise(tags))
    for sound in re.findall(r"\(([^()]*)\)", script.text):
        assert sound in NON_VERBAL_SOUNDS
