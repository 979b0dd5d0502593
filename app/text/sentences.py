"""A text in pieces that are good to speak one after another. Knows where sentences end, nothing of what they mean.

sentencex finds the ends (20 MB/s, knows "Dr.", "U.S.", initials in some 300 languages); the rules here join what it
cuts too finely and cut what is too long for an engine. No character but white space is ever lost, added or moved.
"""

from __future__ import annotations

import re
from itertools import pairwise

import sentencex

# Two words are over before a voice has found its melody: such a piece joins a neighbour.
_MIN_WORDS = 3
_SURROGATE = re.compile("[\ud800-\udfff]")
_LABEL = re.compile(r"(?:.*\s)?[\"'(\[]?(?:[0-9]{1,3}|[A-Za-z]|[ivxIVX]{1,5})[.)]", re.DOTALL)
_SHORT_FORM = re.compile(
    r"(?:^|.*[\s(\"'])(?:Mr|Mrs|Ms|Dr|Prof|St|Vol|No|Nos|pp?|Fig|Figs|Ch|Sec|Eq|approx|ca|cf|vs|e\.g|i\.e|a\.m|p\.m|Jan|Feb|Mar|Apr|"
    r"Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.",
    re.DOTALL,
)
_CJK_STOPS = frozenset("。！？，、；：」』）")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# Where a long sentence may be cut, best first; the mark stays with what is before it.
_CUTS = (
    re.compile(r"[.!?…][\"')\]]{0,2}(?=\s)|[。！？]"),
    re.compile(r"[;:—–][\"')\]]{0,2}(?=\s)|—|[；：]"),
    re.compile(r",[\"')\]]{0,2}(?=\s)|[，、]|\s-(?=\s)"),
    re.compile(r"\S(?=\s)"),
)


def split(text: str, max_chars: int, language: str = "en") -> list[str]:
    """`text` in order as pieces of at most `max_chars` characters, none blank; a blank text has none.

    Paragraphs (an empty line between) are never joined. The first piece may be short, because a listener waits for it.
    Linear in the length of the text. Raises ValueError when max_chars is below 1.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, not {max_chars}")
    pieces: list[str] = []
    for paragraph in _paragraphs(text):
        joined = _join_short(_sentences(paragraph, language), max_chars, is_start=not pieces)
        for sentence in joined:
            pieces.extend(_cut(sentence, max_chars))
    return pieces


def _paragraphs(text: str) -> list[str]:
    """Runs of lines that are not blank, each on one line with single spaces."""
    paragraphs: list[str] = []
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if words := line.split():
            lines.extend(words)
        elif lines:
            paragraphs.append(" ".join(lines))
            lines = []
    return paragraphs


def _sentences(paragraph: str, language: str) -> list[str]:
    """As sentencex cuts, less the cuts after "1." and, where the sentence goes on, after "Vol." and the like."""
    readable = _SURROGATE.sub("\ufffd", paragraph)
    code = language if language.isascii() and language else "en"
    starts: list[int] = []
    glue = False  # the next piece belongs to this one
    for boundary in sentencex.get_sentence_boundaries(code, readable):
        start, end = boundary["start_index"], boundary["end_index"]
        if readable[start:end].isspace():
            continue
        if not glue:
            starts.append(start)
        goes_on = readable[end : end + 1].isdigit() or readable[end : end + 1].islower()
        tail = readable[max(start, end - 12) : end].rstrip()
        glue = (end - start <= 12 and _LABEL.fullmatch(tail) is not None) or (
            goes_on and _SHORT_FORM.fullmatch(tail) is not None
        )
    return [paragraph[start:end].strip() for start, end in pairwise([*starts, len(paragraph)])]


def _word_count(piece: str) -> int:
    return len(piece.split()) + max(0, len(_CJK.findall(piece)) - 1)


def _with(before: str, after: str) -> str:
    """Two pieces as one, with a space where the script writes one."""
    return f"{before}{'' if before[-1] in _CJK_STOPS else ' '}{after}"


def _join_short(sentences: list[str], max_chars: int, *, is_start: bool) -> list[str]:
    """Pieces of fewer than three words joined to a neighbour where there is room, the very first one left alone."""
    joined: list[str] = []
    waiting = ""  # short pieces that go with what follows
    for index, sentence in enumerate(sentences):
        piece = _with(waiting, sentence) if waiting else sentence
        if waiting and len(piece) > max_chars:
            joined.append(waiting)
            piece = sentence
        waiting = ""
        is_last = index == len(sentences) - 1
        is_first = is_start and not joined
        if _word_count(piece) >= _MIN_WORDS or (is_first and not is_last):
            joined.append(piece)
        elif joined and (is_last or (len(joined) > 1 or not is_start)) and len(joined[-1]) + len(piece) < max_chars:
            joined[-1] = _with(joined[-1], piece)
        elif is_last:
            joined.append(piece)
        else:
            waiting = piece
    return joined


def _cut(sentence: str, max_chars: int) -> list[str]:
    """`sentence` in pieces of at most `max_chars`: after a clause, else after a word, else anywhere."""
    pieces: list[str] = []
    start, end = 0, len(sentence)
    while end - start > max_chars:
        at = _best_cut(sentence, start, end, max_chars)
        pieces.append(sentence[start:at].strip())
        start = at
        while start < end and sentence[start].isspace():
            start += 1
    pieces.append(sentence[start:end].strip())
    return [piece for piece in pieces if piece]


def _best_cut(sentence: str, start: int, end: int, max_chars: int) -> int:
    """Where to end the piece that begins at `start`: near the middle of what is left when two pieces will do."""
    latest = start + max_chars
    wanted = (start + end) // 2 if end - start <= 2 * max_chars else latest
    window = sentence[start : latest + 1]
    for pattern in _CUTS:
        ends = [start + found.end() for found in pattern.finditer(window)]
        usable = [at for at in ends if start + max_chars // 4 < at <= latest]
        if usable:
            return min(usable, key=lambda at: abs(at - wanted))
    spaces = [start + found.end() for found in _CUTS[-1].finditer(window) if start + found.end() <= latest]
    return spaces[-1] if spaces else latest
