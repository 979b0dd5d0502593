"""Splitting a text loses nothing, keeps names and numbers whole, and respects the limit."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.text import sentences
from app.text.spans import SpannedText
from tests.support.growth import LINEAR, order

pytestmark = pytest.mark.unit


def split(text: str, max_chars: int, language: str = "en") -> list[str]:
    return [piece.text for piece in sentences.split(SpannedText(text), max_chars, language)]


ANYTHING = st.text(st.characters(codec=None, categories=None), max_size=400)
PROSE = st.lists(
    st.sampled_from(
        ["Yes.", "No!", "Dr.", "1.", "we", "went", "home,", "then;", "slept —", "at 5 p.m.", "\n\n", "\n", "(", "x"]
    ),
    max_size=60,
).map(" ".join)


def bare(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=300, deadline=None)
@given(ANYTHING | PROSE, st.integers(1, 120), st.sampled_from(["en", "zh", "de", "", "no-such-language", "é"]))
@example("\ud800. A b c.", 3, "en")
@example("a\x1cb\x85c", 2, "en")
def test_pieces_contain_the_same_characters_within_the_limit(text: str, max_chars: int, language: str) -> None:
    pieces = split(text, max_chars, language)
    assert bare("".join(pieces)) == bare(text)
    for piece in pieces:
        assert piece.strip()
        assert piece == piece.strip()
        assert len(piece) <= max_chars


@pytest.mark.parametrize(
    "sentence",
    [
        "Dr. Smith saw Mrs. Jones at St. Mary's.",
        "The value is 3.5 or so.",
        "The U.S. Army came to help.",
        "Use fruit, e.g. this apple, please.",
        "It starts at 5 a.m. tomorrow morning.",
        "J. R. R. Tolkien wrote long books.",
        "See Vol. 2, pp. 10-15 for more.",
        "1. Preheat the oven to hot.",
        "It was Jan. 5 when we met.",
        "Look at Fig. 3 again, please.",
        'He said "Stop." and she did.',
        "Wait... what do you mean?",
    ],
)
def test_abbreviation_does_not_end_a_sentence(sentence: str) -> None:
    before, after = "This is the first one.", "And this is the last one."
    assert split(f"{before} {sentence} {after}", 400) == [before, sentence, after]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" \n\n \t", []),
        ("Hello", ["Hello"]),
        ("How are you? I am fine! Thanks for asking.", ["How are you?", "I am fine!", "Thanks for asking."]),
        ("Hello! How are you today?", ["Hello!", "How are you today?"]),
        ("Yes. No. Maybe so.", ["Yes.", "No. Maybe so."]),
        ("Hello. Bye.", ["Hello. Bye."]),
        ("I see it. He left us. Ok.", ["I see it.", "He left us. Ok."]),
        ("I saw him there. Right. Then he ran away.", ["I saw him there.", "Right. Then he ran away."]),
        ("A title\n\nThe text starts here.", ["A title", "The text starts here."]),
        ("A title\r\n\r\nThe text starts here.", ["A title", "The text starts here."]),
        ("one line\nof the same text", ["one line of the same text"]),
        ("你好。你叫什么名字？今天天气很好！", ["你好。", "你叫什么名字？", "今天天气很好！"]),
        ("He moved to the U.S. Then he came back.", ["He moved to the U.S.", "Then he came back."]),
        ("i went home. it was late. ok.", ["i went home.", "it was late. ok."]),
        ("It holds approx. five large apples.", ["It holds approx. five large apples."]),
        ("First: mix it well. 2. Bake it now.", ["First: mix it well.", "2. Bake it now."]),
    ],
    ids=ascii,
)
def test_sentences_are_split_and_short_ones_joined(text: str, pieces: list[str]) -> None:
    assert split(text, 400) == pieces


def test_short_pieces_join_only_within_the_limit() -> None:
    assert split("I saw him there. Right. Then he ran away from us.", 26) == [
        "I saw him there.",
        "Right.",
        "Then he ran away from us.",
    ]


def test_long_sentence_is_cut_at_clauses() -> None:
    text = "This is a long sentence, with some commas; and a semicolon that goes on and on, until it is too long."
    assert split(text, 60) == [
        "This is a long sentence, with some commas;",
        "and a semicolon that goes on and on, until it is too long.",
    ]


def test_long_clause_is_cut_at_spaces_into_even_pieces() -> None:
    pieces = split("word " * 30, 100)
    assert len(pieces) == 2
    assert abs(len(pieces[0]) - len(pieces[1])) <= 5


def test_numbers_are_not_cut_at_their_commas() -> None:
    assert split("He counted 1,000,000 and 2,000,000 and 3,000,000 grains", 30) == [
        "He counted 1,000,000 and",
        "2,000,000 and 3,000,000 grains",
    ]


def test_word_longer_than_the_limit_is_cut() -> None:
    pieces = split("x" * 20_000, 300)
    assert [len(piece) for piece in pieces[:-1]] == [300] * 66
    assert "".join(pieces) == "x" * 20_000


def test_paragraphs_are_never_joined() -> None:
    assert split("Yes.\n\nNo.\n\nMaybe.", 400) == ["Yes.", "No.", "Maybe."]


@pytest.mark.parametrize("max_chars", [0, -1])
def test_limit_below_one_is_refused(max_chars: int) -> None:
    with pytest.raises(ValueError, match="max_chars"):
        split("text", max_chars)


@pytest.mark.parametrize(
    "piece",
    ["Hello there. ", "a", "1. ", "a b ", "。", "\n\n", "a, ", "Dr. ", " ", "(", '"', "No! ", "a;", "\ud800"],
    ids=ascii,
)
def test_time_of_long_texts_grows_linearly(piece: str) -> None:
    small, large = ((piece * size)[:size] for size in (50_000, 200_000))
    assert order(lambda: split(small, 300), lambda: split(large, 300), 4, LINEAR) <= LINEAR


def test_order_is_kept_through_joining_and_cutting() -> None:
    text = " ".join(f"Sentence number {index} ends here." if index % 3 else f"No {index}." for index in range(200))
    assert re.findall(r"\d+", " ".join(split(text, 50))) == [str(index) for index in range(200)]
