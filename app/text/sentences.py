"""Split a text into sentences of a limited length, which are spoken one after another.

The library sentencex finds the ends of sentences. sentencex handles "Dr.", "U.S." and initials in about 300 languages,
and splits 20 MB of text per second. This module joins sentences that are too short, and cuts sentences that are too
long for an engine. The text does not change except for white space.
"""

from __future__ import annotations

import re
from itertools import pairwise

import sentencex

from app.text.spans import SpannedText, join

# A sentence with fewer than MIN_WORDS words sounds unnatural alone, so it is joined to the next or the previous one.
MIN_WORDS = 3
_SURROGATE = re.compile("[\ud800-\udfff]")
_LIST_LABEL = re.compile(r"(?:.*\s)?[\"'(\[]?(?:[0-9]{1,3}|[A-Za-z]|[ivxIVX]{1,5})[.)]", re.DOTALL)
_ABBREVIATION = re.compile(
    r"(?:^|.*[\s(\"'])(?:Mr|Mrs|Ms|Dr|Prof|St|Vol|No|Nos|pp?|Fig|Figs|Ch|Sec|Eq|approx|ca|cf|vs|e\.g|i\.e|a\.m|p\.m|Jan|Feb|Mar|Apr|"
    r"Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.",
    re.DOTALL,
)
_CJK_STOPS = frozenset("。！？，、；：」』）")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# Patterns for the places where a long sentence may be cut, in order of preference. The cut is after the match.
_CUTS = (
    re.compile(r"[.!?…][\"')\]]{0,2}(?=\s)|[。！？]"),
    re.compile(r"[;:—–][\"')\]]{0,2}(?=\s)|—|[；：]"),
    re.compile(r",[\"')\]]{0,2}(?=\s)|[，、]|\s-(?=\s)"),
    re.compile(r"\S(?=\s)"),
)


def split(text: SpannedText, max_chars: int, language: str = "en", *, is_start: bool = True) -> list[SpannedText]:
    """Split `text` into sentences or parts of sentences of at most `max_chars` characters.

    No part is blank, so a blank text gives an empty list. A part never contains words of two paragraphs. The first part
    may be short, so that its audio is ready early. The time grows linearly with the length of the text.

    language: BCP 47 tag. is_start: False = other text is spoken before this text, so the first part is not short.
    Raises ValueError if max_chars is below 1.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, not {max_chars}")
    pieces: list[SpannedText] = []
    for paragraph in _paragraphs(text):
        joined = _join_short(_sentences(paragraph, language), max_chars, is_start=is_start and not pieces)
        for sentence in joined:
            pieces.extend(_cut(sentence, max_chars))
    return pieces


def _paragraphs(text: SpannedText) -> list[SpannedText]:
    """Split a text at blank lines into paragraphs. Each paragraph becomes one line with single spaces."""
    paragraphs: list[SpannedText] = []
    start = place = 0
    for line in [*text.text.splitlines(keepends=True), ""]:
        if not line.strip():
            if paragraph := text[start:place].single_spaced():
                paragraphs.append(paragraph)
            start = place + len(line)
        place += len(line)
    return paragraphs


def _sentences(paragraph: SpannedText, language: str) -> list[SpannedText]:
    """Split a paragraph into sentences with sentencex.

    sentencex also splits after "1." and after abbreviations such as "Vol."; the parts around such a split are joined.
    """
    without_surrogates = _SURROGATE.sub("\ufffd", paragraph.text)
    code = language if language.isascii() and language else "en"
    starts: list[int] = []
    join_next = False  # whether the next part from sentencex belongs to the same sentence
    for boundary in sentencex.get_sentence_boundaries(code, without_surrogates):
        start, end = boundary["start_index"], boundary["end_index"]
        if without_surrogates[start:end].isspace():
            continue
        if not join_next:
            starts.append(start)
        continues = without_surrogates[end : end + 1].isdigit() or without_surrogates[end : end + 1].islower()
        last_word = without_surrogates[max(start, end - 12) : end].rstrip()
        join_next = (end - start <= 12 and _LIST_LABEL.fullmatch(last_word) is not None) or (
            continues and _ABBREVIATION.fullmatch(last_word) is not None
        )
    return [paragraph[start:end].strip() for start, end in pairwise([*starts, len(paragraph)])]


def word_count(piece: str) -> int:
    """Return the number of words of a sentence."""
    return len(piece.split()) + max(0, len(_CJK.findall(piece)) - 1)


def _append(before: SpannedText, after: SpannedText) -> SpannedText:
    """Join two texts with a space between them. No space is added after Chinese or Japanese punctuation."""
    return join((before, after), "" if before.text[-1] in _CJK_STOPS else " ")


def _join_short(sentences: list[SpannedText], max_chars: int, *, is_start: bool) -> list[SpannedText]:
    """Join each sentence of fewer than MIN_WORDS words to the next or the previous sentence.

    Two sentences are not joined if the result would have more than max_chars characters. is_start: True = the first
    sentence is the start of the whole text, and may stay short.
    """
    joined: list[SpannedText] = []
    waiting: SpannedText | None = None  # short sentences that wait until they can be joined to the next sentence
    for index, sentence in enumerate(sentences):
        piece = _append(waiting, sentence) if waiting else sentence
        if waiting and len(piece) > max_chars:
            joined.append(waiting)
            piece = sentence
        waiting = None
        is_last = index == len(sentences) - 1
        is_first = is_start and not joined
        if word_count(piece.text) >= MIN_WORDS or (is_first and not is_last):
            joined.append(piece)
        elif joined and (is_last or (len(joined) > 1 or not is_start)) and len(joined[-1]) + len(piece) < max_chars:
            joined[-1] = _append(joined[-1], piece)
        elif is_last:
            joined.append(piece)
        else:
            waiting = piece
    return joined


def _cut(sentence: SpannedText, max_chars: int) -> list[SpannedText]:
    """Cut a sentence into parts of at most `max_chars` characters.

    A cut is made after a clause if possible, else after a word, else inside a word.
    """
    pieces: list[SpannedText] = []
    start, end = 0, len(sentence)
    while end - start > max_chars:
        cut = _best_cut(sentence.text, start, end, max_chars)
        pieces.append(sentence[start:cut].strip())
        start = cut
        while start < end and sentence.text[start].isspace():
            start += 1
    pieces.append(sentence[start:end].strip())
    return [piece for piece in pieces if piece]


def _best_cut(sentence: str, start: int, end: int, max_chars: int) -> int:
    """Return the index at which the part that begins at `start` must end.

    If two parts are enough for the text from `start` to `end`, the index is near the middle of that text.
    """
    latest = start + max_chars
    target = (start + end) // 2 if end - start <= 2 * max_chars else latest
    window = sentence[start : latest + 1]
    for pattern in _CUTS:
        ends = [start + match.end() for match in pattern.finditer(window)]
        usable = [cut for cut in ends if start + max_chars // 4 < cut <= latest]
        if usable:
            return min(usable, key=lambda cut: abs(cut - target))
    spaces = [start + match.end() for match in _CUTS[-1].finditer(window) if start + match.end() <= latest]
    return spaces[-1] if spaces else latest
