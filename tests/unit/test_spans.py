"""After each change of a text, each spoken word still leads back to the caller's characters."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.spans import SpannedText, join
from tests.support.growth import LINEAR, order

pytestmark = pytest.mark.unit


def aligned(text: SpannedText, source: str) -> list[tuple[str, str]]:
    """Return (word, the caller's characters) of each word."""
    return [(each.word, source[each.start_char : each.end_char]) for each in text.words()]


@pytest.mark.parametrize(
    ("source", "pattern", "replacement", "words"),
    [
        ("It costs $5 now.", r"\$5", "five dollars", [("It", "It"), ("costs", "costs"), ("five", "$5"),
                                                      ("dollars", "$5"), ("now.", "now.")]),
        ("in C# minor", r"C#", "C sharp", [("in", "in"), ("C", "C"), ("sharp", "#"), ("minor", "minor")]),
        ("in C# minor", r"([A-G])#", r"\1 sharp", [("in", "in"), ("C", "C"), ("sharp", "#"), ("minor", "minor")]),
        ("Dr. Who", r"Dr\.", "Doctor", [("Doctor", "Dr."), ("Who", "Who")]),
        ("Python 3.11", r"Python 3\.11", "Python three point eleven",
         [("Python", "Python"), ("three", "3.11"), ("point", "3.11"), ("eleven", "3.11")]),
        ("a **b** c", r"\*\*", "", [("a", "a"), ("b", "b"), ("c", "c")]),
        ("5 m", r"5 m", "five meters", [("five", "5 m"), ("meters", "5 m")]),
        ("x in 5 in", r"5 in", "five in", [("x", "x"), ("in", "in"), ("five", "5"), ("in", "in")]),
    ],
)  # fmt: skip
def test_words_of_a_replacement_come_from_the_match(
    source: str, pattern: str, replacement: str, words: list[tuple[str, str]]
) -> None:
    assert aligned(SpannedText(source).sub(re.compile(pattern), replacement), source) == words


def test_changes_on_changed_text_lead_back_to_the_caller() -> None:
    source = "# The **$5** menu"
    text = SpannedText(source)[2:].sub(re.compile(r"\*"), "").sub(re.compile(r"\$5"), "5 dollars")
    text = text.sub(re.compile("5"), "five")
    assert aligned(text, source) == [("The", "The"), ("five", "$5"), ("dollars", "$5"), ("menu", "menu")]


def test_text_without_a_match_is_the_same_object() -> None:
    text = SpannedText("plain words")
    assert text.sub(re.compile("[0-9]+"), "number") is text
    assert text.sub(re.compile("plain"), "plain") is text
    assert text.strip() is text
    assert text.single_spaced() is text
    assert text.split("\n\n") == [text]


def test_inserted_text_has_an_empty_span_between_its_neighbours() -> None:
    text = SpannedText("ab").sub(re.compile("(?=b)"), "-")
    assert [text.span_of(index, index + 1) for index in range(3)] == [(0, 1), (1, 1), (1, 2)]


def test_parts_are_joined_with_the_text_between_them() -> None:
    source = "one \n\n two"
    parts = [part.strip() for part in SpannedText(source).split("\n\n")]
    joined = join(parts, " ")
    assert joined.text == "one two"
    assert joined.span_of(3, 4) == (3, 7)
    assert aligned(joined, source) == [("one", "one"), ("two", "two")]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b+", r"\s", r"(a)(b)", r"^", r"\b", r"[ab] ", "$", r"(?=b)", r".b"]),
        st.sampled_from(["", "a", "b a", "abc", " ", r"\g<0>", r"\g<0>x", r"x\g<0>", "\n\n"]),
    ),
    max_size=5,
)


@settings(max_examples=500, deadline=None)
@given(st.text("ab \n", max_size=30), STEPS)
def test_replaced_text_follows_the_pattern_and_spans_stay_in_order(source: str, steps: list[tuple[str, str]]) -> None:
    text, expected = SpannedText(source), source
    for pattern, replacement in steps:
        text, expected = text.sub(re.compile(pattern), replacement), re.sub(pattern, replacement, expected)
        assert text.text == expected
    rebuilt = join(part.single_spaced() for part in text.split("\n\n"))
    assert rebuilt.text == "".join(" ".join(part.split()) for part in expected.split("\n\n"))
    for each in (text, text.strip(), rebuilt):
        spans = [each.span_of(index, index + 1) for index in range(len(each))]
        assert all(0 <= start <= end <= len(source) for start, end in spans)
        assert all(before[0] <= after[0] and before[1] <= after[1] for before, after in pairwise(spans))


def test_time_of_many_changes_grows_linearly() -> None:
    pattern = re.compile("[0-9]")
    small, large = ("a 1 " * size for size in (20_000, 80_000))
    assert order(lambda: SpannedText(small).sub(pattern, "one"), lambda: SpannedText(large).sub(pattern, "one"), 4,
                 LINEAR) <= LINEAR  # fmt: skip
