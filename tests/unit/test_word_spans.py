"""The words of a text: parts between white space, and single characters in scripts without spaces."""

from __future__ import annotations

import random

import pytest

from app.text.word_spans import word_spans

pytestmark = pytest.mark.unit

TEXTS = {
    "It costs $12.50, isn't it?": "It|costs|$12.50,|isn't|it?",
    "Hello 😀wor😀ld — naïve": "Hello|😀wor😀ld|—|naïve",
    "안녕하세요 여러분": "안녕하세요|여러분",
    "مرحبا بالعالم": "مرحبا|بالعالم",
    "नमस्ते दुनिया।": "नमस्ते|दुनिया।",
    "今天天气很好，我们去。": "今|天|天|气|很|好，|我|们|去。",
    "CDを買う（きょう）「はい」。": "CD|を|買|う|（きょ|う）|「は|い」。",
    "iPhone15を3.5時間": "iPhone15|を|3.5|時|間",
    "你好😀吗？ Hello 你好world": "你|好😀|吗？|Hello|你|好|world",
    "ราคา500บาท เก้าอี้": "ร|า|ค|า|500|บ|า|ท|เก้|า|อี้",
    "សួស្តី": "សួ|ស្តី",
    "人々はキャッチボール": "人|々|は|キャッ|チ|ボー|ル",
    "ｶﾞｷﾞ": "ｶﾞ|ｷﾞ",
    "「「え？」と」": "「「え？」|と」",
    "你好“CD”吧 (好)": "你|好|“CD”|吧|(好)",
    "日本語2024年（": "日|本|語|2024|年（",
    "—你—": "—你—",
    "価格:1,000円": "価|格:|1,000|円",
    "": "",
    " \n\t": "",
}


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_scripts(text: str) -> None:
    assert "|".join(text[start:end] for start, end in word_spans(text)) == TEXTS[text]


def test_words_contain_each_visible_character_once() -> None:
    draw = random.Random(3)
    letters = "今天。，（「」）“”ー々きゃっabc 83.,-_😀\u200d\u0301เก้าสัស្ត្រី\nก(["
    for _ in range(20_000):
        text = "".join(draw.choices(letters, k=draw.randint(1, 14)))
        places = [at for start, end in word_spans(text) for at in range(start, end)]
        assert places == [at for at, char in enumerate(text) if not char.isspace()], text


@pytest.mark.parametrize("part", ["（", "你（", "a（", "-（", "เ", "ー", "្", "\u0301", "你\u0301（-", "_"])
def test_long_runs_of_one_kind_have_words(part: str) -> None:
    text = "你 " + part * (300_000 // len(part)) + " b"  # a search in quadratic time would need an hour
    assert sum(end - start for start, end in word_spans(text)) == len(text) - 2
