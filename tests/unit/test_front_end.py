"""Each spoken word keeps its span of the caller's characters through every stage of the text front end."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.generator.job import spoken_language
from app.generator.planning import LONG_TEXT_CHARS, read_text
from app.text.nonverbal import NON_VERBAL_SOUNDS
from app.text.normalizer import Normalizer
from app.text.punctuation import has_words
from app.text.spans import SpannedText
from app.types import SpokenWord, TextPacking
from tests.support.growth import LINEAR, order
from tests.unit.test_machine_text import CALLS, REASONING, TOKENS
from tests.unit.test_text_normalizer import ANYTHING, JUDGED, SYMBOLS, TORN, unescaped

pytestmark = pytest.mark.unit

NORMALIZER = Normalizer()
DOCUMENT = Path(__file__).parents[2] / "docs" / "text.md"
PACKINGS = (TextPacking(), TextPacking(max_chars=40, sounds=NON_VERBAL_SOUNDS, utf8_bytes=True))


def sentences(text: str, packing: TextPacking = PACKINGS[0], language: str = "en") -> list[SpannedText]:
    return read_text(text, NORMALIZER, packing, lambda _: language)


def words(text: str, packing: TextPacking = PACKINGS[0], language: str = "en") -> list[SpokenWord]:
    return [word for sentence in sentences(text, packing, language) for word in sentence.words()]


def check_spans(text: str) -> None:
    """Check the spans: each word has a span in the text, in order; a sentence goes from its first to its last word."""
    for packing in PACKINGS:
        for language in ("en", "de"):
            pieces = sentences(text, packing, language)
            found = [word for piece in pieces for word in piece.words()]
            assert [word.word for word in found] == " ".join(piece.text for piece in pieces).split()
            for word in found:
                assert 0 <= word.start_char <= word.end_char <= len(text), word
            for before, after in pairwise(found):
                assert before.start_char <= after.start_char, (before, after)
                assert before.end_char <= after.end_char, (before, after)
            for piece in pieces:
                inside = list(piece.words())
                assert piece.span == (inside[0].start_char, inside[-1].end_char)


@pytest.mark.parametrize("written", [written for _, written, _ in JUDGED], ids=lambda text: ascii(text[:40]))
def test_every_text_of_the_table_has_spans(written: str) -> None:
    check_spans(written)
    for word in words(written):
        assert word.start_char < word.end_char, word


@pytest.mark.parametrize("text", [*REASONING, *TOKENS, *CALLS], ids=lambda text: ascii(text[:40]))
def test_words_after_machine_text_have_exact_spans(text: str) -> None:
    assert [text[word.start_char : word.end_char] for word in words(text)][:1] == ["Hello"] or "▁" in text


PROSE = (
    "we went home over the hills with our small dogs, and nobody saw us; the lamp was lit and Alice said that it was "
    "late. Why did they leave? Because they wanted to! It rained all night: the river rose."
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(PROSE.split(" ")), min_size=1, max_size=60),
    st.sampled_from([" ", "  ", "\n", "\n\n", " [pause:0.2s] ", " [S2] ", " [S1]"]),
    st.sampled_from(["", "**", "<b>", "_"]),
)
def test_words_of_plain_prose_have_exact_spans(parts: list[str], gap: str, mark: str) -> None:
    """A word may get a full stop at the end of a paragraph, or a comma at the end of a line of a poem."""
    text = "".join(f"{mark if index % 3 == 0 else ''}{part}{gap if index % 5 == 4 else ' '}" for index, part in
                   enumerate(parts))  # fmt: skip
    for packing in PACKINGS:
        for word in words(text, packing):
            assert re.sub(r"[*_]|</?b>", "", text[word.start_char : word.end_char]).rstrip(".,") == word.word.rstrip(
                ".,"
            )


@settings(max_examples=300, deadline=None)
@given(ANYTHING | SYMBOLS | TORN)
@example("\u0301" * 50)
@example("a\u0338\u0301\u0301\u0301\u0301")
@example("[S1][pause][S2](laughs)")
@example("&lt;think&gt;$x$<t:1:R>")
def test_any_text_has_spans_in_order(text: str) -> None:
    check_spans(text)


@pytest.mark.parametrize(
    ("text", "aligned"),
    [
        ("It costs $12.50.", [("It", "It"), ("costs", "costs"), ("twelve", "$12.50"), ("dollars", "$12.50"),
                              ("and", "$12.50"), ("fifty", "$12.50"), ("cents.", "$12.50.")]),
        ("[S1] Hi there you. [pause:1s] [S2] **Oh** *sighs*.",
         [("Hi", "Hi"), ("there", "there"), ("you.", "you."), ("Oh.", "Oh** *sighs*.")]),
        ("<think>Hm.</think>See [the page](https://a.b) now",
         [("See", "See"), ("the", "the"), ("page", "page"), ("now", "now")]),
        ("- One item\n- Two items", [("One", "One"), ("item.", "item"), ("Two", "Two"), ("items.", "items")]),
        ("Dr. Smith &amp; I", [("Doctor", "Dr."), ("Smith", "Smith"), ("and", "&amp;"), ("I", "I")]),
        ("cafe\u0301 at 5 p.m.", [("café", "cafe\u0301"), ("at", "at"), ("five", "5 p.m."), ("PM.", "5 p.m.")]),
        ("| a | b |\n|---|---|\n| c | d |", [("a,", "a"), ("b.", "b"), ("c,", "c"), ("d.", "d")]),
        ("?", [("question", "?"), ("mark", "?")]),
    ],
)  # fmt: skip
def test_words_name_the_characters_that_they_come_from(text: str, aligned: list[tuple[str, str]]) -> None:
    found = [(word.word, text[word.start_char : word.end_char]) for word in words(text)]
    assert [word for word, _ in found] == [word for word, _ in aligned]
    assert [place.strip(" |[]*") for _, place in found] == [place for _, place in aligned]


# ---- characters


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        (nfd("résumé and cafés"), "résumé and cafés"),
        ("He said नमस्ते and left.", "He said नमस्ते and left."),
        ("H̷e̵l̴l̶o̷", "Hello"),
        ("Z̸̢̛͎̲͉̫̗̱̋̃͜͝a̷l̵g̶o̸ text", "Zalgo text"),
        (nfd("Việt Nam"), "Việt Nam"),
        (nfd("한국어"), "한국어"),
        ("שָׁלוֹם world", "שָׁלוֹם world"),
        ("كِتَابٌ book", "كِتَابٌ book"),
        ("กำลัง Thai", "กำลัง Thai"),
        ("x =\u0338 y", "x not equal to y"),
        ("\u0301 stray", "stray"),
        (nfd("naïve Ångström"), "naïve Ångström"),
        ("t\u20dde\u20ddst", "test"),
        (nfd("ᾅδης"), "ᾅδης"),
        ("বাংলা and தமிழ்", "বাংলা and தமிழ்"),
    ],
    ids=ascii,
)
def test_accents_stay_with_their_letter_and_decoration_is_removed(text: str, spoken: str) -> None:
    assert NORMALIZER.normalize(text) == spoken
    assert unicodedata.normalize("NFC", NORMALIZER.normalize(text, english=False)).startswith(spoken[:1])


# ---- markup


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("==marked== and ++inserted++", "marked and inserted"),
        ("C++ and D++ and x++", "C plus plus and D plus plus and x plus plus"),
        ("if a == b", "if a equals b"),
        ("> [!NOTE]\n> Be careful", "Note. Be careful"),
        ("> [!warning]- The title\n> text here", "Warning. The title. text here"),
        ("!!! tip\n    text here", "Tip. text here"),
        ("::: info\ntext here\n:::", "Info. text here"),
        ("[[Page|alias]] and [[Other page]] and [[Page#Part|the part]]", "alias and Other page and the part"),
        ("![[image.png]] text", "text"),
        ("---\ntitle: A page\ntags:\n  - a\n---\n\nText here", "Text here"),
        ('+++\ntitle = "A page"\n+++\nText here', "Text here"),
        ("---\nText here\n---", "Text here"),
        ("Text\n```mermaid\ngraph TD\nA-->B\n```\nEnd", "Text\n\nEnd"),
        ('Text\n```json\n{"a": [1, 2]}\n```\nEnd', "Text\n\nEnd"),
        (">=5 items", "greater than or equal to five items"),
        (">= 5 items", "greater than or equal to five items"),
        ("<= 3 left", "less than or equal to three left"),
        ("> quoted text", "quoted text"),
        ("Thanks <@123456789>!", "Thanks!"),
        ("Go to <#42> and ask <@&7> <:smile:123> <a:wave:5>", "Go to and ask"),
        ("It is ||a secret||.", "It is a secret."),
        ("At <t:1618953630:R>", "At April twentieth, twenty twenty one at twenty one twenty"),
        ("[kokoro](/kˈOkəɹO/) is said", "kokoro is said"),
        ("Done :tada: now", "Done now"),
        ("See <https://a.b/c|the page>", "See the page"),
        ("# A title {#anchor}", "A title."),
        ("<answer>Paris</answer>", "Paris"),
        ("Paris</answer>", "Paris"),
        ("<plan>Go</plan>Yes", "Go Yes"),
        ("{{< figure >}} text", "text"),
        ("H~2~O and x^2^", "H two O and x squared"),
        ("A fact.[1](https://a.b) [[2]](https://c.d) Next", "A fact. Next"),
        ("According to [1], yes", "According to one, yes"),
        ("A fact [1][2]. More[3, 4].", "A fact. More."),
        ("[a (b)](https://a.b/c_(d)) e", "a (b) e"),
        ("%%hidden%% text {% tag %} here", "text here"),
        ("-# small text", "small text"),
        ("at 10:30:45 :x", "at ten thirty and forty five seconds :x"),
        ("1. First\n2. Second", "One. First. Two. Second."),
        ("<details open><summary>More</summary>Text</details>", "More\n\nText"),
    ],
    ids=ascii,
)
def test_dialects_of_markdown_are_understood(text: str, spoken: str) -> None:
    assert NORMALIZER.normalize(text) == spoken


@pytest.mark.parametrize(
    "text",
    ["---", "***", "* * *", "___", "...", "…", '"', "“", "'", "<br>", "<br/>", "<p></p>", "&nbsp;", "&#160;", "**", "`",
     "```", "|---|", ">", "- ", "\u200b", "\ufeff", "\u200d", "(laughs)", "[pause:0.2s]", "[S2]", "</answer>", "()",
     "[ ]", "#", "===", "~~~", ":", ",", ";", "–", "<@12345>", "<!-- note -->", "<|eot_id|>", "【4†source】"],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("language", ["en", "de", "ja"])
def test_layout_characters_are_not_spoken(text: str, language: str) -> None:
    assert sentences(text, language=language) == []


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("?", "question mark"), ("!", "exclamation mark"), ("→", "to"), ("€", "euros"), ("😀", "grinning face"),
        ("🇫🇷", "flag of France"), ("🇯🇵🇧🇷", "flag of Japan, flag of Brazil"), ("🏴󠁧󠁢󠁳󠁣󠁴󠁿", "flag of Scotland"),
        ("🏳️‍🌈", "rainbow flag"), ("🏴‍☠️", "pirate flag"), ("%", "percent"), ("&", "and"), ("@", "at"),
    ],
)  # fmt: skip
def test_symbols_that_people_type_are_spoken_by_name(text: str, spoken: str) -> None:
    assert [sentence.text for sentence in sentences(text)] == [spoken]
    assert has_words(spoken)


# ---- what people send


def field_readings() -> dict[str, dict[str, str]]:
    """Return the expected readings of each kind of text: kind -> {text: spoken text}."""
    found: dict[str, dict[str, str]] = {}
    kind, written = "", ""
    for line in Path(__file__).with_name("field_readings.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith("== "):
            kind = line[3:]
            found[kind] = {}
        elif kind and line.startswith("    "):
            found[kind][written] = unescaped(line[4:]).replace("(silence)", "")
        elif kind and line:
            written = unescaped(line)
    return found


def reading(text: str) -> str:
    """Return the spoken text for a text without a stated language, with " | " between sentences."""
    found = read_text(text, NORMALIZER, PACKINGS[0], lambda part: spoken_language(None, part, "en"))
    return " | ".join(sentence.text for sentence in found)


FIELD = field_readings()


@pytest.mark.parametrize("kind", FIELD)
def test_texts_of_each_kind_are_read_as_expected(kind: str) -> None:
    assert {text: reading(text) for text in FIELD[kind]} == FIELD[kind]
    for text in FIELD[kind]:
        check_spans(text)


def test_readings_in_the_documentation_are_correct() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|\n]+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 40
    documented = {written.replace("⏎", "\n"): spoken.strip() for written, spoken in rows}
    assert {text: reading(text).replace(" | ", " / ") or "(silence)" for text in documented} == documented


def test_difficult_texts_are_read_as_expected() -> None:
    readings = {
        "It costs $1e6, or $1.5e6.": "It costs one million dollars, or one million five hundred thousand dollars.",
        "That is $1.5k/mo.": "That is one point five thousand dollars per month.",
        "That is 100 USD/month.": "That is one hundred U S dollars per month.",
        "Call (555)1234567 now.": "Call five five five, one two three, four five six seven now.",
        '[TOOL_CALLS][{"name": "x", "arguments": {"a": "]"}}] It is done.': "It is done.",
        '[TOOL_CALLS]find[ARGS]{"a": 1}[TOOL_CALLS]get[ARGS]{"b": 2} Both are done.': "Both are done.",
        '[TOOL_CALLS][{"a": 1}] Done in [2] rooms.': "Done in two rooms.",
        "Done. [TOOL_CALLS][{": "Done.",
        '<|python_tag|>{"a": 1}; {"b": 2} It is done.': "It is done.",
        '<|python_tag|>{"a": 1} or so<|eom_id|> It is done.': "It is done.",
        '[TOOL_CALLS][{"a": 1}] The mark `[TOOL_CALLS]` begins a call.': "The mark TOOL CALLS begins a call.",
        "a ^note^ here": "a note here",
        "There are 5_000 items and 1_250_000 rows.": (
            "There are five thousand items and one million two hundred fifty thousand rows."
        ),
        "The terms aₙ₊₁ and xₙ₋₁.": "The terms a n plus one and x n minus one.",
        'Hello.\ndata: {"id": 1}\n\ndata: [DONE]': "Hello.",
        "Hi \u3164there\u2800.": "Hi there.",
    }
    assert {text: " ".join(sentence.text for sentence in sentences(text)) for text in readings} == readings
    assert not sentences("\u3164 \u2800")


# ---- long texts

PROSE = "The old harbour was quiet. " * 1_200


def plain_words(text: str) -> set[str]:
    return set(re.findall(r"\w+", " ".join(word.word for word in words(text)).lower()))


@pytest.mark.parametrize(
    "piece",
    ["🇫🇷 ", "🎉 ", "<b>🎉</b>\n\n", "https://a.b/c ", "```python\nx = 1\n```\n\n", "--- ", "**🎉** "],
    ids=ascii,
)
def test_part_without_words_is_not_spoken_by_name_in_a_long_text(piece: str) -> None:
    """The words that a long text gives do not depend on where its windows end."""
    layout = piece * (24_000 // len(piece))
    alone = plain_words(f"{piece}harbour.") | plain_words(PROSE)
    for text in ("\n\n".join(parts) for parts in ((layout, PROSE), (PROSE, layout), (PROSE, layout, PROSE))):
        assert plain_words(text) <= alone


@pytest.mark.parametrize(
    ("piece", "spoken"),
    [("🇫🇷", "flag of France"), ("🎉 ", "party popper"), ("\n\n🎉", "party popper"), ("?!", "question")],
)
def test_long_text_without_words_is_spoken_by_name_once(piece: str, spoken: str) -> None:
    short, long = (sentences(piece * (size // len(piece))) for size in (2_000, 60_000))
    assert spoken in short[0].text
    assert [sentence.text for sentence in long] == [sentence.text for sentence in short]


# ---- bad input


@pytest.mark.parametrize(
    "text",
    [
        "\u0301" * 1_000_000,
        "a" + "\u0301\u0323" * 500_000,
        "{" * 10_000 + "}" * 10_000,
        "[" * 10_000 + "](" * 10_000,
        "```\n" * 10_001,
        "Привет hello " * 10_000,
        "<think>" * 20_000,
        "(" * 50_000,
        "<" * 50_000,
        "🇫" * 20_001,
        "\ud83d" * 20_000,
        "$" * 20_001,
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_huge_and_unclosed_input_is_processed_in_limited_time(text: str) -> None:
    NORMALIZER.normalize(text)
    NORMALIZER.normalize(text, english=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    ["\u0301", "a\u0301\u0323", "{", "}", "<think>", "```\n", "Я", "aЯ中", "==a", "++a", "||a", "[[a", "[!a]", "<@1",
     "<t:1", ":a", "{{<", "{%", "---\n", "a: b\n", "|a|\n", "![", "](", "](a", "[a](b", "[a](b(", "<a b=", "<a b='",
     "data:a/b,", "https://a.b/", "a" * 41, "🇫🇷", "&amp;", "-----BEGIN A-----", "[1]", "(laughs)", "^a^", "~1~"],
    ids=ascii,
)  # fmt: skip
def test_time_of_all_stages_grows_linearly(piece: str) -> None:
    """Both texts are planned as one. Longer texts are cut into windows first, see test_windows.py."""
    NORMALIZER.warm()
    small, large = (piece * (size // len(piece)) + "x" for size in (4_900, 19_600))
    assert len(large) <= LONG_TEXT_CHARS
    assert order(lambda: sentences(small), lambda: sentences(large), 4, LINEAR) <= LINEAR
