"""The normaliser writes English text as a person reads it aloud, never raises, and takes linear time."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.text import cleaning, markup, number_words, rules, script
from app.text.normalizer import Grammar, Normalizer
from app.text.spans import SpannedText
from tests.support.growth import LINEAR, calls, order

pytestmark = pytest.mark.unit


TABLE = Path(__file__).with_name("normalizer_readings.txt")
NORMALIZER = Normalizer()


def unescaped(line: str) -> str:
    escapes = {"n": "\n", "\\": "\\"}
    return re.sub(
        r"\\(?:u([0-9a-f]{4})|(.))", lambda match: chr(int(match[1], 16)) if match[1] else escapes[match[2]], line
    )


def judged_pairs() -> list[tuple[str, str, str]]:
    """Return (group, written, spoken) for every pair of lines in the table."""
    rows, group, written = [], "", ""
    for line in TABLE.read_text(encoding="utf-8").split("\n"):
        if line.startswith("== "):
            group = line[3:]
        elif line.startswith("    "):
            rows.append((group, unescaped(written), unescaped(line[4:])))
        elif group and line:
            written = line
    return rows


JUDGED = judged_pairs()


@pytest.mark.parametrize(
    ("written", "spoken"),
    [pytest.param(written, spoken, id=f"{group}: {written[:60]}") for group, written, spoken in JUDGED],
)
def test_each_text_of_the_table_is_read_as_expected(written: str, spoken: str) -> None:
    assert NORMALIZER.normalize(written) == spoken


def test_table_of_texts_is_large_and_every_digit_becomes_a_word() -> None:
    assert len(JUDGED) >= 180
    unread = [spoken for _, _, spoken in JUDGED if re.search(r"[0-9]", spoken) and "[S" not in spoken]
    assert unread == []


@pytest.mark.parametrize(
    "tag",
    ["[S1]", "[S2]", "[s1]", "(laughs)", "(clears throat)", "[pause:0.5s]", "[pause]", "[PAUSE: 500 ms]", "[sighs]"],
)
def test_tags_are_not_changed(tag: str) -> None:
    assert NORMALIZER.normalize(f"{tag} It's 5 km away {tag} and **then** {tag}") == (
        f"{tag} It's five kilometers away {tag} and then {tag}"
    )


def test_adjacent_tags_and_markdown_are_handled() -> None:
    assert NORMALIZER.normalize("[S1](laughs) Hi.\n\n[S2] - 3 things") == "[S1](laughs) Hi.\n\n[S2], three things"


def test_many_different_tags_are_kept() -> None:
    text = " ".join(f"[pause:{number}ms]" for number in range(7000))
    assert NORMALIZER.normalize(text).startswith("[pause:0ms] [pause:1ms]")


# Any characters. Hypothesis excludes lone surrogates by default; these arguments include them.
ANYTHING = st.text(st.characters(codec=None, categories=None), max_size=300)
SYMBOLS = st.text(st.sampled_from("0123456789aIVx.,:;-–/$€%#@&*_`~^<>()[]{}|\\\"'!?+= \n°²½½¢😀"), max_size=120)


# Pieces of real texts in random order, with other characters between them.
FRAGMENTS = sorted({piece for _, written, _ in JUDGED for piece in re.findall(r"\S+|\s", written)})
TORN = st.lists(
    st.sampled_from(FRAGMENTS) | st.sampled_from(["", " ", "-", "/", ".", "\n"]) | st.characters(), max_size=40
).map("".join)


@settings(max_examples=600, deadline=None)
@given(ANYTHING | SYMBOLS | TORN)
@example("http://፩")
@example("5²፩")
@example("\ud800")
@example("\udc00\ud800 5")
@example("&#" + "9" * 5000 + ";")
@example("²³¹")
@example("Ⅷ")
@example("[a](b)")
@example("```\n```x")
@example("![](image.png)")
@example("[1]")
@example("ㅤ")
@example("\x1b0")
@example("\U0001f08d")  # spoken as "domino tile vertical 06 00"
def test_any_text_gives_the_same_words_each_time_and_is_never_empty(text: str) -> None:
    spoken = NORMALIZER.normalize(text)
    assert spoken == NORMALIZER.normalize(text)
    spoken.encode("utf-8")
    # Tags, citations and control codes of terminals are not spoken; each of them contains one of these characters.
    # Four letters of Hangul are invisible.
    has_ink = any(char.isalnum() and char not in "\u115f\u1160\u3164\uffa0" for char in text)
    if has_ink and not re.search(r"[<>▁\x1b]|cite", text):
        assert spoken.strip()


@settings(max_examples=200, deadline=None)
@given(SYMBOLS | TORN)
def test_no_ascii_digit_is_left(text: str) -> None:
    without_tags = re.sub(r"\[[sS][0-9]{1,2}\]|\[pause[^\]]*\]", "", NORMALIZER.normalize(text))
    assert not re.search(r"[0-9]", without_tags)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["A", "x", "Go", "RTX", "rc", "K", "F", "m", "1", "12", "98", "007", "2024", "13700"]),
        min_size=2,
        max_size=5,
    ),
    st.lists(st.sampled_from([".", "-", ":", ""]), min_size=4, max_size=4),
)
@example(["98", "6F"], [".", "", "", ""])
@example(["31", "98s"], [":", "", "", ""])
def test_no_dot_or_colon_stays_next_to_the_words_of_a_number(parts: list[str], joints: list[str]) -> None:
    token = parts[0] + "".join(joint + part for joint, part in zip(joints, parts[1:], strict=False))
    spoken = NORMALIZER.normalize(f"see {token} now")
    number = "|".join(number_words.WORDS)
    assert not re.search(rf"(?:{number})[.:][a-z]|[A-Za-z][.:](?:{number})\b", spoken), spoken


WORDS = (
    "the quick brown fox we'll don't it's jumps over lazy dogs and Paris London Alice Bob said hello there my friend "
    "with some small children who may march in august by the sea while nobody watches NASA FBI"
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS.split(" ")), min_size=1, max_size=30),
    st.sampled_from([" ", "  ", " \n"]),
    st.sampled_from([".", "!", "?", "", ","]),
)
def test_plain_prose_is_not_changed(words: list[str], gap: str, end: str) -> None:
    text = gap.join(words).replace("\nPa", "Pa") + end
    lower = text if "\n" not in gap else re.sub(r"\n(\w)", lambda match: "\n" + match[1].lower(), text)
    assert NORMALIZER.normalize(lower).split() == lower.split()


def test_typographic_quotes_become_plain_and_contractions_stay() -> None:
    assert NORMALIZER.normalize("“We’ll see,” she said, “won’t we?”") == '"We\'ll see," she said, "won\'t we?"'


@pytest.mark.parametrize(
    "text",
    ["We met by the sea.", "He can't; she won't! Why?", "Dr. Smith and Mrs. Jones", "The 4th costs $5, the 49ers 3x."],
)
def test_ordinary_text_does_not_load_the_grammar(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grammar, "_loaded", lambda self: pytest.fail("loaded the grammar"))
    Normalizer().normalize(text)


def test_grammar_names_rare_units() -> None:
    assert NORMALIZER.normalize("1ZB and 9 rad/s") == "One zettabyte and nine radians per second"


@pytest.mark.parametrize("symbol", ["[x", "\\", '"', "}"])
def test_symbol_that_the_grammar_cannot_parse_is_not_read_as_a_unit(symbol: str) -> None:
    assert Grammar().name_unit(symbol, True) is None


def test_threads_get_the_same_words() -> None:
    normalizer = Normalizer()
    texts = [written for _, written, _ in JUDGED[:120]] + ["1ZB and 9 rad/s"] * 20
    expected = [NORMALIZER.normalize(text) for text in texts]
    together = threading.Barrier(4)

    def work() -> list[str]:
        together.wait()
        return [normalizer.normalize(text) for text in texts]

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            assert future.result() == expected


HOSTILE = (
    "1", "a-", "[[[[", '"', "((((", "@.@.", "1,1,1,", "a.", "1.", "1-", "1/", "1 ", "1:", "$", "$1", "<", "<a ",
    "<a b=", "&", "&#", "`", "*", "_", "#", "|", "- ", "1. ", "> ", '\n', ' \n', "~", '\\', "/a", "@a", "#a",
    "a@b.", "http://a/", "+1 ", "1'", "St. ", "II ", '\ud83d', "½ cup ",
    "a1_", "1x", "10:10-", "p.m. ", "a=", "->", "—",
    "...", "?!", ", ", "[a](", "<!--", "<script", "1%-", "1k", "1 km ", "CA 12345 ", "😀a", "[S1]", "[pause",
    "1,000,", "0.1", "1234 Ab ", "^1", "√", "`a", '```\n', '\\frac{1}{', 'C:\\a', '1"', '|a|b|\n', '|-|\n', "1 x ",
    "1.1", "a.py", "a/a.py", "(", " ", 'a\u0301',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("piece", HOSTILE, ids=ascii)
def test_time_of_hostile_texts_grows_linearly(piece: str) -> None:
    NORMALIZER.warm()
    small, large = ((piece * size)[:size] for size in (5_000, 20_000))
    assert order(lambda: NORMALIZER.normalize(small), lambda: NORMALIZER.normalize(large), 4, LINEAR) <= LINEAR


def test_number_of_ten_thousand_digits_is_shortened() -> None:
    spoken = NORMALIZER.normalize("7" * 10_000)
    assert spoken == "seven seven seven seven seven seven seven seven, and so on, ten thousand digits in all"


def test_typical_sentence_takes_few_steps() -> None:
    """The test counts calls of Python and C functions, which are the same on every machine."""
    sentence = "Revenue rose 12.5% to $1.2 billion on March 3, 2024, above the 5-6% that Dr. Smith's analysts expected."
    NORMALIZER.normalize(sentence)
    assert calls(lambda: NORMALIZER.normalize(sentence)) < 1_000


def test_skipped_rules_would_not_change_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a paragraph lacks the characters that a rule needs, the result is the same with and without the rule."""
    texts = [written for _, written, _ in JUDGED]
    selected = [NORMALIZER.normalize(text) for text in texts]
    monkeypatch.setattr(rules, "_present", lambda text: frozenset(rules._NEEDED))
    assert [NORMALIZER.normalize(text) for text in texts] == selected


def test_most_rules_are_skipped_for_prose() -> None:
    selected, _ = rules._select(rules._present("We met, he said. Dr. Lee smiled."))
    assert len(selected) < len(rules._RULES) / 5


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "zero"), (13, "thirteen"), (20, "twenty"), (99, "ninety nine"), (100, "one hundred"), (-7, "minus seven"),
        (1_000_001, "one million one"), (10**12, "one trillion"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)  # fmt: skip
def test_cardinals_are_spelled_out(value: int, words: str) -> None:
    assert number_words.cardinal(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(1, "first"), (5, "fifth"), (12, "twelfth"), (20, "twentieth"), (21, "twenty first"), (100, "one hundredth")],
)
def test_ordinals_are_spelled_out(value: int, words: str) -> None:
    assert number_words.ordinal(value) == words


@given(st.integers(1, 89))
def test_roman_numerals_convert_both_ways(value: int) -> None:
    assert number_words.roman(number_words.to_roman(value)) == value


@pytest.mark.parametrize("letters", ["", "IIII", "VX", "IC", "ABC", "LXXXX", "i"])
def test_other_letters_are_not_a_roman_numeral(letters: str) -> None:
    assert number_words.roman(letters) is None


def test_surrogate_pair_becomes_one_character() -> None:
    assert cleaning.clean(SpannedText("a\ud83d\ude00b\ud800c")).text == "a😀bc"


def test_numbers_in_the_names_of_emoji_become_words() -> None:
    assert NORMALIZER.normalize("\U0001f08d") == "domino tile vertical zero six zero zero"


def test_capital_o_before_two_spaces_is_not_a_bullet() -> None:
    assert NORMALIZER.normalize("O  Romeo, Romeo") == "O Romeo, Romeo"
    assert NORMALIZER.normalize("o  one\no  two") == "one. two."


def test_comment_at_the_start_of_a_text_is_removed():
    def cut(text: str) -> str:
        return markup.strip_tags(SpannedText(text)).text

    assert cut("<!-- note -->Hello") == " Hello"
    assert cut("Hello <!-- note -->") == "Hello  "
    assert cut("Hello <!-- note") == "Hello <!-- note"


@pytest.mark.parametrize(
    ("denominator", "one", "many"),
    [
        (2, "one half", "three halves"),
        (3, "one third", "two thirds"),
        (4, "one quarter", "three quarters"),
        (5, "one fifth", "three fifths"),
        (6, "one sixth", "five sixths"),
        (7, "one seventh", "three sevenths"),
        (8, "one eighth", "three eighths"),
        (9, "one ninth", "four ninths"),
        (10, "one tenth", "three out of ten"),
        (12, "one twelfth", "five twelfths"),
        (16, "one sixteenth", "three sixteenths"),
    ],
)
def test_fractions_have_their_names(denominator, one, many):
    many_count = {"three": 3, "two": 2, "five": 5, "four": 4}[many.split()[0]]
    spoken = NORMALIZER.normalize(f"Add 1/{denominator} cup or {many_count}/{denominator} cups.")
    assert spoken == f"Add {one} cup or {many} cups."


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [
        ('<break strength="odd"/>', None),
        ('<break strength="none"/>', None),
        ('<break strength="strong"/>', 1.0),
        ("<break/>", 0.5),
    ],
)
def test_break_tag_with_an_unknown_strength_gives_no_pause(tag, seconds):
    pauses = [part.seconds for part in script.parse(SpannedText(f"One {tag} two")) if isinstance(part, script.Pause)]
    assert pauses == ([] if seconds is None else [seconds])
