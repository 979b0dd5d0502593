"""Speaker tags split a text into lines, in order and without losing a word."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text import script
from app.text.script import SPEAKER_TAG
from app.text.spans import SpannedText

pytestmark = pytest.mark.unit


def split_speakers(text: str) -> list[tuple[int, str]]:
    return [(speaker, words.text) for speaker, words in script.split_speakers(SpannedText(text))]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("No tags at all.", [(0, "No tags at all.")]),
        ("[S1] Hello. [S2] Hi there!", [(0, "Hello."), (1, "Hi there!")]),
        ("[s1]Hello.[ S2 ]Hi.[S1]Bye.", [(0, "Hello."), (1, "Hi."), (0, "Bye.")]),
        ("Before the first. [S2] Then me.", [(0, "Before the first."), (1, "Then me.")]),
        ("[S1] One. [S1] Two. [S2] [S1] Three.", [(0, "One. Two. Three.")]),
        ("[S2] Only the second.", [(1, "Only the second.")]),
        ("[S4] A crowd. [S9] Indeed.", [(3, "A crowd."), (8, "Indeed.")]),
        ("[S0] and [S10] and [Sx] are no tags.", [(0, "[S0] and [S10] and [Sx] are no tags.")]),
        ("[S1] [S2]  ", []),
        ("", []),
    ],
)
def test_text_is_split_into_lines_by_speaker(text: str, lines: list[tuple[int, str]]) -> None:
    assert split_speakers(text) == lines


@given(st.lists(st.sampled_from(["[S1]", "[s2]", "[S3]", "word", "two words", " ", "\n", "[pause]", "[S", "]", "é"])))
def test_no_word_is_lost_and_consecutive_lines_have_different_speakers(pieces: list[str]) -> None:
    lines = split_speakers(" ".join(pieces))
    assert " ".join(text for _, text in lines).split() == SPEAKER_TAG.sub(" ", " ".join(pieces)).split()
    assert all(before[0] != after[0] for before, after in pairwise(lines))
