"""Long texts are cut into windows at safe places, in linear time, and spans still refer to the caller's text."""

from __future__ import annotations

import re

import pytest

from app.generator.windows import MOST_CHARS, windows
from app.text.normalizer import Normalizer
from app.text.spans import SpannedText
from tests.support.growth import LINEAR, order

pytestmark = pytest.mark.unit

SENTENCE = "The old harbour was quiet, and all 12 boats lay at anchor until 8 p.m. on Monday. "
PARAGRAPH = SENTENCE * 5
PROSE = "\n\n".join([PARAGRAPH] * 40)


def cut(text: str) -> list[SpannedText]:
    return list(windows(SpannedText(text)))


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


TEXTS = {
    "paragraphs": PROSE,
    "one paragraph": SENTENCE * 300,
    "words": "word " * 6_000,
    "no spaces": "好" * 30_000,
    "chinese": "今天天气很好，我们去公园散步。" * 2_000,
    "lists": "- one item of a list\n- two **bold** words\n\n" * 700,
    "quotes": "> a quoted line of a letter\n" * 1_000,
    "table": "| a | b |\n|---|---|\n" + "| one | two |\n" * 2_000,
    "openings without ends": "<details> <!-- $$ \\begin{x} \\[ <script> " * 700,
    "headings": ("# Title\n" + PARAGRAPH + "\n\n") * 60,
    "windows line ends": (PARAGRAPH + "\r\n\r\n") * 60,
    "trailing space": PROSE + "\n" * 5_000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_windows_contain_the_whole_text_in_order(name: str) -> None:
    text = TEXTS[name]
    found = cut(text)
    assert bare("".join(window.text for window in found)) == bare(text)
    assert max(map(len, found)) <= MOST_CHARS
    assert len(found) > 3
    for window in found:
        start, end = window.span
        assert text[start:end] == window.text


@pytest.mark.parametrize("name", ["paragraphs", "lists", "headings"])
def test_windows_end_at_blank_lines_if_possible(name: str) -> None:
    text = TEXTS[name]
    for window in cut(text)[:-1]:
        assert re.match(r"\s*\n\s*\n", text[window.span[1] :])


def test_words_of_the_windows_are_those_of_the_whole_text() -> None:
    normalizer = Normalizer()
    whole = normalizer.normalize(PROSE)
    assert "\n\n".join(normalizer.spoken(window).text for window in cut(PROSE)) == whole


BLOCKS = {
    "think": "<think>\n{}\n</think>",
    "thinking with attributes": '<thinking level="2">\n{}\n</thinking>',
    "reasoning": "<reasoning>{}</reasoning>",
    "namespaced": "<a_model:thinking>{}</a_model:thinking>",
    "comment": "<!-- {} -->",
    "script": "<script>{}</script>",
    "style": "<STYLE>{}</STYLE>",
    "details": '<details type="reasoning">{}</details>',
    "tool call": "<tool_call>{}</tool_call>",
    "display formula": "$$\n{}\n$$",
    "bracket formula": "\\[ {} \\]",
    "environment": "\\begin{{align}}{}\\end{{align}}",
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("before", [0, 3, 9])
def test_block_is_never_cut(name: str, before: int) -> None:
    inner = "\n\n".join(["x = 1 and more of it"] * 1_500)
    block = BLOCKS[name].format(inner)
    text = (PARAGRAPH + "\n\n") * before + block + "\n\n" + PROSE
    assert sum(block in window.text for window in cut(text)) == 1
    assert len(cut(text)) > 4


@pytest.mark.parametrize("chars", [30_000, 400_000])
def test_reasoning_without_its_opening_tag_is_in_the_first_window(chars: int) -> None:
    reasoning = "hm, let me see\n\n" * (chars // 16)
    first, *rest = cut(f"{reasoning}</think>\n\n{PROSE}")
    assert "</think>" in first.text
    assert len(rest) > 3
    assert "hm" not in Normalizer().spoken(first).text


def test_reasoning_without_an_end_is_one_window() -> None:
    text = f"{PROSE}\n\n<think>\n{PROSE}"
    *_, last = cut(text)
    assert last.text.startswith("<think>") or "<think>\n" in last.text
    assert last.text.endswith(PROSE.strip())


@pytest.mark.parametrize("fence", ["```python", "~~~", "````", "```mermaid"])
def test_code_may_be_cut_and_is_still_treated_as_code(fence: str) -> None:
    """Blank lines in code do not separate paragraphs. The next window begins with the fence of the code block."""
    mark = re.match(r"[`~]+", fence)
    assert mark
    code = "value = compute(1)\n\n" * 2_000
    text = f"{PARAGRAPH}\n\n{fence}\n{code}{mark[0]}\n\n{PROSE}"
    found = cut(text)
    with_code = [window for window in found if "compute" in window.text]
    assert len(with_code) > 3
    assert all(fence in window.text for window in with_code)
    assert sum("\n" + mark[0] + "\n" in window.text + "\n" for window in found) >= 1
    assert not any("compute" in window.text for window in found if fence not in window.text)
    for window in with_code[1:]:
        start, end = window.span
        assert text[start:end].strip() == window.text.removeprefix(fence + "\n")


UNITS = ("word ", "好", "<details> ", "```\n", "a\n\n", "$$ ", "<think> ", "\n", "</think>", "\\[", "\n```", "<!-- a\n")


@pytest.mark.parametrize("unit", UNITS)
def test_time_grows_linearly(unit: str) -> None:
    small, large = (unit * (size // len(unit)) for size in (40_000, 320_000))
    assert order(lambda: cut(small), lambda: cut(large), 8, LINEAR) <= LINEAR
