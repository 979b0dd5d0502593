"""A text that arrives in parts is cut into sentences. The cuts do not depend on the division into parts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.incremental import IncrementalSplitter, Piece
from tests.support.growth import LINEAR, order

# The places to cut are marked with "|".
MARKED = (
    "I can do that.| It takes 2.5 hours.",
    "Mrs. Lee and Prof. Kim agree.| So do I.",
    "Call me at 9 a.m. on Monday.| Thanks!",
    "The train leaves at 6 p.m.| Hurry up.",
    "It starts at 8 p.m. EST tonight.| Be there.",
    "He lives in the U.S. and works in the U.K.| They moved in May.",
    "See e.g. Figure 2, i.e. the red line.| It is steep.",
    "Go to https://a.org/x.y?q=1. and log in.| Done.",
    "Mail bob.smith@x.co.uk today.| He waits.",
    'She said "No. Never." and left.| Silence.',
    '"Who is it?" he asked.| "Me!"',
    "“Stop! Wait!” she cried.| Nobody did.",
    "Hmm... maybe.| Let me think.",
    "Really?!| That is news.",
    "OK.| Next point.",
    "Apple Inc. is in Cupertino.| Google LLC. is not.",
    "She joined Acme Inc.| She left it.",
    "George R. R. Martin wrote it.| It is long.",
    "That was Plan B.| It failed.",
    "Mary and I.| We left.",
    "Read No. 7 first.| No.| It is last.",
    "See pp. 12-15, vol. 3 and ch. 4.| Then stop.",
    "It was approx. 30 km.| We walked.",
    "Born on Jan. 5 and not Feb. 6.| Yes.",
    "Open main.py and run it.| It prints 3.",
    "We support Node.js, Vue.js and .NET.| All work.",
    "Version 2.0.1 is out.| Update now.",
    "Prices fell by 3.| 4 shops closed.",
    "This is **bold.| Really.** text.| Fine.",
    "Use `a. B` here.| Then go.",
    "See [The Book. Two](https://x.org/a.b) now.| Good.",
    "Type <b>Hello.| There.</b> and send.| Done.",
    "今日は。|散歩しますか？|はい！",
    "你好！|请看这里。|谢谢。",
    "Das ist z. B. gut.| Am 3. Oktober ist frei.",
    "Der 1. Mai kommt.| Bis dann.",
    "M. Dupont est là.| Il attend.",
    "¿Qué tal?| ¡Muy bien!",
    "Steps:\n|1. Open it.\n|2. Close it.\n|\nThat is all.",
    "List\n\n|- one\n|- two\n|\nEnd.",
    "# Title\n|Text here.| More.",
    "One line\nthat goes on.| Next.",
    "Look:\n|```py\nx = 1. \ny = 2\n```\n|Done. ",
    "<think>The user is rude. Be calm.</think>|Hello there!",
    "The sum $$a. B$$ is large.| Right.",
    "It costs $5.| Buy two.",
    "Buy two.| They cost 10 $",
    "The screen is 27\" wide.| Nice.",
    "First item, second item, third item,| and then a long rest of the sentence.",
    "The short answer is yes but the long answer needs some more words| to be complete",
)  # fmt: skip


def pieces(parts: list[str], *, eager: bool = True, clauses: bool = False) -> list[Piece]:
    splitter = IncrementalSplitter(eager=eager, clauses=clauses)
    found = [piece for part in parts for piece in splitter.append(part)]
    return found + splitter.finish()


def texts(parts: list[str]) -> list[str]:
    return [piece.text for piece in pieces(parts)]


@pytest.mark.parametrize("marked", MARKED)
def test_text_is_cut_at_its_sentences(marked: str) -> None:
    expected = [bare for part in marked.split("|") if (bare := part.strip())]
    assert texts([marked.replace("|", "")]) == expected


@pytest.mark.parametrize("marked", MARKED)
def test_every_division_into_two_parts_gives_the_same_sentences(marked: str) -> None:
    text = marked.replace("|", "")
    whole = pieces([text])
    assert all(pieces([text[:at], text[at:]]) == whole for at in range(1, len(text)))
    assert pieces(list(text)) == whole


def test_each_clause_can_be_a_piece() -> None:
    text = "When the rain has stopped at last, we go out. As the grass is still very wet; we wear boots, too. Yes, sir."
    expected = [
        "When the rain has stopped at last,",
        "we go out.",
        "As the grass is still very wet;",
        "we wear boots, too.",
        "Yes, sir.",
    ]
    for parts in ([text], list(text)):
        assert [piece.text for piece in pieces(parts, eager=False, clauses=True)] == expected


_PARTS = st.sampled_from(
    [
        "Hello", " ", "\n", "\n\n", ". ", ".", "! ", "? ", "…", '"', "“", "”", "`", "```", "```py\n", "\n```\n", "[",
        "](", "](u.v) ", "<", "<b>", "<think>", "</think>", "$$", "\\(", "\\)", "*", "**", "_", "- ", "1. ", "3.5",
        " Dr. ", " No. ", " p.m. ", "U.S. ", "Inc. ", "The ", "he ", "、", "。", "今日", ", ", ": ", " – ", "| a |",
        "# ", "http://a.b/c?d ", "z. B. ", "Am 3. Okt ", "\t", "~~~", "(", ")", " more words", "J. R. ", "...", '" ',
        "3.", "14", "https://a.org/b.c?d=1. ",
        "a.b@c.org", "$x_1 + 2$", "$$a. B$$", "\\(x. Y\\)", "👩\u200d🚀 ", "e\u0301. ",
        "مرحبا. ", "كيف حالك؟ ", "שלום. ", "你好！", "これは「はい。」と", "<thinking>Hm. So</thinking>",
        "```\na. B\n```\n",
        "[a. B](c.d)", "**A. B**", "…and ", "i.e. ", "5 p.m. EST ", "«Non. » ", "\r\n", "\u00a0",
    ]
)  # fmt: skip


@given(st.lists(_PARTS, max_size=30), st.integers(0, 2**32))
@settings(max_examples=500, deadline=None)
def test_any_division_gives_the_same_sentences_and_loses_no_text(parts: list[str], seed: int) -> None:
    text = "".join(parts)
    whole = pieces([text])
    draw, divided, at = random.Random(seed), [], 0
    while at < len(text):
        length = draw.randint(1, 7)
        divided.append(text[at : at + length])
        at += length
    assert pieces(divided) == whole
    end = 0
    for piece in whole:
        assert text[piece.start_char : piece.end_char] == piece.text
        assert not text[end : piece.start_char].strip()
        end = piece.end_char
    assert not text[end:].strip()


def test_piece_is_returned_with_the_first_character_after_it() -> None:
    splitter = IncrementalSplitter()
    assert splitter.append("It is done. ") == []
    assert [piece.text for piece in splitter.append("T")] == ["It is done."]


def test_later_pieces_are_whole_sentences() -> None:
    long = "This sentence has one clause, and another clause, and it has more words than the first piece. "
    first, second = texts([long, long])[0], texts([long, long])[-1]
    assert first == "This sentence has one clause, and another clause,"
    assert second == long.strip()


def test_pending_text_can_be_taken_when_no_more_arrives() -> None:
    splitter = IncrementalSplitter(eager=False)
    splitter.append("Yes, I think th")
    assert not splitter.ends_with_sentence
    assert [piece.text for piece in splitter.take_words()] == ["Yes, I think"]
    splitter.append("at is right.")
    assert splitter.ends_with_sentence
    assert [piece.text for piece in splitter.finish()] == ["that is right."]


@pytest.mark.parametrize("text", ["See [the docs", "Use `pip", 'He said "Stop. ', "```\nx = 1. ", "<think>Hm. "])
def test_no_text_is_returned_inside_an_open_tag(text: str) -> None:
    splitter = IncrementalSplitter(eager=False)
    splitter.append(text)
    assert not splitter.ends_with_sentence
    assert splitter.take_words() == []


@pytest.mark.parametrize(
    "unit",
    [
        "A sentence, and its end. ",
        "a",
        ".",
        "\n",
        " ",
        "`",
        "[",
        "<a",
        "\\(",
        "$$",
        "- a\n",
        '" a',
        "Inc. ",
        "<think>a. ",
    ],
)
def test_time_grows_linearly(unit: str) -> None:
    def run(length: int) -> None:
        text = unit * (length // len(unit))
        pieces([text[at : at + 4] for at in range(0, len(text), 4)])

    assert order(lambda: run(5_000), lambda: run(20_000), 4.0, LINEAR) <= LINEAR
