"""Turn the times of an answer into captions: SubRip (SRT), WebVTT, LRC and JSON.

A caption shows the caller's own characters. White space becomes one space or a line break. The limits are the usual
limits of subtitles for television. A caption has at most two lines of 42 characters, and is shown for 0.83 to 7 s. If
possible, a caption contains one sentence, and the gap between two captions is at least 80 ms. A wide character
(Chinese, Japanese, Korean) counts as two characters.

A caption starts at the time of its first word. If it would be shown for less than 0.83 s, it starts earlier, in the
silence before its first word. If there is no silence, the caption is shown for less than 0.83 s.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import TYPE_CHECKING, Any, Literal

from app.text.caption_breaks import CLOSERS, JOINED, SENTENCE_ENDS, BreakRules, char_width, split_long
from app.text.word_spans import word_spans
from app.types import TimedWord

if TYPE_CHECKING:
    from app.types import TimedSentence, Timestamps

log = logging.getLogger(__name__)

CaptionFormat = Literal["srt", "vtt", "lrc", "json"]
Highlight = Literal["none", "word"]

MEDIA_TYPES: dict[CaptionFormat, str] = {
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "lrc": "text/x-lrc; charset=utf-8",
    "json": "application/json",
}

LINE_WIDTH = 42  # the largest number of characters in one line
LEAST_MS, MOST_MS = 833, 7_000  # the shortest and the longest time that a caption is shown
GAP_MS = 80  # the shortest time between two captions
CLOSED_GAP_MS = 200  # a gap that is shorter than this is reduced to GAP_MS
# Words such as "-" have no letter or digit and are not spoken. More than _MOST_MARKS such words in a row are not shown.
_MOST_MARKS = 3
READING_SPEED = 20  # the number of characters that most people can read in one second

# Costs of a division into captions. The division with the lowest total cost is used.
_PER_CAPTION = 30.0
_SECOND_LINE = 6.0
_TWO_SENTENCES = 100.0  # cost of two sentences in one caption
_TWO_BLOCKS = 150.0
_TWO_LINES = 40.0  # cost of a caption in which a sentence goes on after a line break of the caller's text
_TOO_SHORT = 300.0
_TOO_SHORT_PER_S = 1000.0
_SILENCE_PER_S = 60.0  # cost of each second of a silence inside a caption, after its first _SILENCE_S seconds
_SILENCE_S = 0.7
_UNEVEN_LINES = 0.4  # cost of each character by which the widths of two lines differ
_UNEVEN_CAPTIONS = 30.0
_LINE_BREAK = 0.5  # cost of a line break as a share of `break_cost`; a new caption costs the whole `break_cost`


@dataclass(frozen=True, slots=True)
class CaptionWord:
    """A word of a caption, or a part of a long word. A line never breaks inside a `CaptionWord`."""

    text: str
    start_ms: int
    end_ms: int
    width: int
    space: str  # the text between the previous word and this word: " " or ""
    sentence: int
    # index of the block; a sentence begins a new block if the previous one ends a line of the caller's text or a turn
    block: int
    turn: int
    break_cost: float = 0.0  # cost of a line break or a new caption before this word
    starts_line: bool = False  # whether the caller's text has a line break before this word, inside a sentence

    @property
    def seconds(self) -> float:
        return (self.end_ms - self.start_ms) / 1000


@dataclass(frozen=True, slots=True)
class CaptionLine:
    """One line of a caption."""

    words: tuple[CaptionWord, ...]
    speaker: str = ""  # "" = no name is shown
    # Whether a turn starts with this line. SRT and LRC write the name of the speaker only before such a line.
    starts_turn: bool = False

    @property
    def text(self) -> str:
        return "".join(word.space + word.text for word in self.words)[len(self.words[0].space) :]


@dataclass(frozen=True, slots=True)
class Caption:
    """One or two lines that are shown at the same time. Two captions never overlap."""

    start_ms: int
    end_ms: int
    lines: tuple[CaptionLine, ...]

    @property
    def words(self) -> tuple[CaptionWord, ...]:
        return tuple(word for line in self.lines for word in line.words)

    @property
    def text(self) -> str:
        """The text of all lines, without line breaks."""
        words = self.words
        return "".join(word.space + word.text for word in words)[len(words[0].space) :]


def caption_file(
    times: Timestamps,
    kind: CaptionFormat,
    *,
    texts: Sequence[str] = (),
    speakers: Sequence[str] = (),
    language: str = "en",
    highlight: Highlight = "none",
) -> str:
    """Return the captions of an answer as the text of a file.

    texts: the caller's text of each turn; the punctuation around each sentence is taken from it.
    speakers: the name of the speaker of each turn; empty = no names. language: BCP 47 tag, for the line breaks.
    """
    captions = build_captions(
        times, texts=texts, speakers=speakers, language=language, names_in_text=kind in ("srt", "lrc")
    )
    fast = sum(1 for each in captions if _characters_per_s(each) > READING_SPEED)
    if fast:
        log.warning(
            "%d of %d captions have more than %d characters per second, which is too fast for many readers",
            fast,
            len(captions),
            READING_SPEED,
        )
    if kind == "srt":
        return to_srt(captions)
    if kind == "vtt":
        return to_vtt(captions, highlight)
    if kind == "lrc":
        return to_lrc(captions, highlight)
    return json.dumps(to_verbose_json(captions, times, language), ensure_ascii=False)


def build_captions(
    times: Timestamps,
    *,
    texts: Sequence[str] = (),
    speakers: Sequence[str] = (),
    language: str = "en",
    names_in_text: bool = False,
) -> list[Caption]:
    """Divide the sentences of an answer into captions.

    names_in_text: True = the lines contain the names of the speakers, as in SRT, and need space for the names.
    """
    duration_ms = int(times.duration_s * 1000)
    words = _words(times, texts, language, duration_ms)
    if not words:
        return []
    names = tuple(" ".join(name.split()) for name in speakers)
    ranges = _Division(words, names if names_in_text else (), duration_ms).best()
    return _timed([tuple(_lines(words, lines, names)) for lines in ranges], duration_ms)


# ---- words


def _words(times: Timestamps, texts: Sequence[str], language: str, duration_ms: int) -> list[CaptionWord]:
    """Return the words of all sentences in the audio, with times that never decrease."""
    rules = BreakRules(language)
    words: list[CaptionWord] = []
    clock_ms = number = block = 0
    last: _Heard | None = None
    for heard in _heard(times, texts, duration_ms):
        ranges = _without_mark_runs(_word_ranges(heard.text, heard.start), heard)
        spoken = _times_of(heard.sentence, [(start, end) for start, end, _ in ranges])
        gap = " " if last is None else last.gap(heard)
        continues = gap == " " and last is not None and last.is_cut and last.sentence.turn == heard.sentence.turn
        number += not continues
        block += gap == "\n"
        is_first = True
        for (start, end, inner), (start_s, end_s) in zip(ranges, spoken, strict=True):
            clock_ms = min(max(clock_ms, round(start_s * 1000)), duration_ms)
            shown = _HIDDEN.sub("", heard.text[start - heard.start : end - heard.start])
            if not shown:
                continue
            before = words[-1].text if words else ""
            space = (" " if gap else "") if is_first else inner.replace("\n", " ")
            costs_nothing = not words or (is_first and not continues)
            words.append(
                CaptionWord(
                    text=shown,
                    start_ms=clock_ms,
                    end_ms=min(max(clock_ms, round(end_s * 1000)), duration_ms),
                    width=char_width(shown),
                    space=space if words else "",
                    sentence=number,
                    block=block,
                    turn=heard.sentence.turn,
                    break_cost=0.0 if costs_nothing or inner == "\n" else rules.cost(before, shown, joined=not space),
                    starts_line=inner == "\n",
                )
            )
            is_first = False
        last = heard
    return words


_HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f\x80-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]"
)  # characters that must not be displayed


@dataclass(frozen=True, slots=True)
class _Heard:
    """A sentence in the audio, with the punctuation directly before and after it."""

    sentence: TimedSentence
    text: str
    start: int  # the index of `text` in the caller's text
    whole: str  # the caller's text; "" = not known

    @property
    def is_cut(self) -> bool:
        """Whether the text is only a part of a long sentence that continues in the next `_Heard`."""
        return bool(self.whole) and self.text.rstrip(CLOSERS)[-1:] not in SENTENCE_ENDS

    def gap(self, following: _Heard) -> str:
        """Return what is between this sentence and the next sentence: nothing, a space, or a line break."""
        if self.sentence.turn != following.sentence.turn:
            return "\n"
        end = self.start + len(self.text)
        if following.start == end:
            return ""
        between = self.whole[end : following.start] or " "
        return " " if between.isspace() and "\n" not in between else "\n"


def _heard(times: Timestamps, texts: Sequence[str], duration_ms: int) -> Iterator[_Heard]:
    """Yield each sentence that starts before the end of the audio."""
    ends: dict[int, int] = {}  # turn -> the index at which its latest sentence ends
    sentences = [each for each in times.sentences if each.start_s * 1000 < duration_ms]
    for place, sentence in enumerate(sentences):
        text, start, whole = sentence.text, sentence.start_char, ""
        if sentence.turn < len(texts) and texts[sentence.turn][start : sentence.end_char] == text:
            whole = texts[sentence.turn]
            following = sentences[place + 1] if place + 1 < len(sentences) else None
            most = following.start_char if following is not None and following.turn == sentence.turn else len(whole)
            start = _begin(whole, start, ends.get(sentence.turn, 0))
            end = ends[sentence.turn] = _end(whole, sentence.end_char, most)
            text = whole[start:end]
        if text.strip():
            yield _Heard(sentence, text, start, whole)


def _begin(text: str, start: int, least: int) -> int:
    """Return the index at which the punctuation directly before a sentence begins; never less than `least`."""
    while start > least and _is_mark(text[start - 1]) and text[start - 1] not in "]>}":
        start -= 1
    return start


def _end(text: str, end: int, most: int) -> int:
    """Return the index at which the punctuation directly after a sentence ends; never more than `most`."""
    while end < most and _is_mark(text[end]) and text[end] not in "[<{":
        end += 1
    return end


def _is_mark(char: str) -> bool:
    return not char.isspace() and not char.isalnum()


def _without_mark_runs(ranges: list[tuple[int, int, str]], heard: _Heard) -> list[tuple[int, int, str]]:
    """Return the words without long runs of marks that are not spoken, such as a row of dashes with spaces."""
    words: list[list[tuple[int, int, str]]] = []  # a word that may be broken has several ranges
    for each in ranges:
        if not words or each[2]:
            words.append([])
        words[-1].append(each)
    ends = [(word[0][0], word[-1][1]) for word in words]
    silent = [not any(map(str.isalnum, heard.text[at - heard.start : end - heard.start])) for at, end in ends]
    if sum(silent) <= _MOST_MARKS:
        return ranges
    spoken = {char for word in heard.sentence.words for char in range(word.start_char, word.end_char)}
    silent = [quiet and spoken.isdisjoint(range(*each)) for quiet, each in zip(silent, ends, strict=True)]
    kept: list[tuple[int, int, str]] = []
    for quiet, group in groupby(zip(silent, words, strict=True), key=lambda each: each[0]):
        run = [word for _, word in group]
        if not quiet or len(run) <= _MOST_MARKS:
            kept += chain.from_iterable(run)
    return kept or ranges


_WORD = re.compile(rf"\S+(?:[{JOINED}]+\S+)*")  # a word may contain spaces at which a line must not break
_PART = re.compile(r"\S+")


def _word_ranges(text: str, offset: int) -> list[tuple[int, int, str]]:
    """Return for each word of a text its start, its end, and the white space before it. A long word is divided.

    offset: the index of `text` in the caller's text; it is added to all indices.
    """
    ranges: list[tuple[int, int, str]] = []
    for match in _WORD.finditer(text):
        too_wide = char_width(match[0]) > LINE_WIDTH
        for word in _PART.finditer(text, *match.span()) if too_wide else (match,):
            between = text[ranges[-1][1] - offset : word.start()] if ranges else ""
            space = "\n" if "\n" in between else between[:1] and " "
            for start, end in split_long(word[0], LINE_WIDTH):
                ranges.append((offset + word.start() + start, offset + word.start() + end, space))
                space = ""
    return ranges


def _times_of(sentence: TimedSentence, ranges: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Return the start and the end in seconds of each range of characters of a sentence.

    A range without a spoken word gets the time between its neighbours. Several such ranges share this time in
    proportion to their lengths. A part of a word gets a proportional part of the time of the word.
    """
    known: list[tuple[float, float] | None] = []
    words = sorted(sentence.words, key=lambda word: word.start_char)
    place = 0
    for start, end in ranges:
        while place < len(words) and words[place].end_char <= start:
            place += 1
        last = place
        while last < len(words) and words[last].start_char < end:
            last += 1
        known.append((_at(words[place], start), _at(words[last - 1], end)) if last > place else None)
    times: list[tuple[float, float]] = []
    clock = sentence.start_s
    place = 0
    while place < len(known):
        span = known[place]
        if span is not None:
            times.append(span)
            clock = max(clock, span[1])
            place += 1
            continue
        until = place
        while until < len(known) and known[until] is None:
            until += 1
        following = known[until] if until < len(known) else None
        end_s = max(clock, sentence.end_s if following is None else following[0])
        sizes = [end - start for start, end in ranges[place:until]]
        per_char = (end_s - clock) / sum(sizes)
        for size in sizes:
            times.append((clock, clock + size * per_char))
            clock += size * per_char
        place = until
    return times


def words_of(sentence: TimedSentence) -> tuple[TimedWord, ...]:
    """Return the words of a sentence with their times.

    If the times are not known, each word gets a part of the sentence's time in proportion to the length of the word.
    """
    if sentence.words:
        return sentence.words
    places = [(sentence.start_char + start, sentence.start_char + end) for start, end in word_spans(sentence.text)]
    return tuple(
        TimedWord(
            sentence.text[start - sentence.start_char : end - sentence.start_char], *span, start, end, sentence.turn
        )
        for (start, end), span in zip(places, _times_of(sentence, places), strict=True)
    )


def _at(word: TimedWord, char: int) -> float:
    """Return the time at which a character of a word is spoken."""
    share = (char - word.start_char) / max(1, word.end_char - word.start_char)
    return word.start_s + min(max(share, 0.0), 1.0) * (word.end_s - word.start_s)


# ---- division into captions and lines

_Range = tuple[int, int]  # index of the first word of a line, and index of the word after its last word


class _Division:
    """Finds the division of words into captions with the lowest cost."""

    def __init__(self, words: Sequence[CaptionWord], names: Sequence[str], duration_ms: int) -> None:
        """names: the names of the speakers that are written in the lines; empty = no names."""
        self._words = words
        self._duration_ms = duration_ms
        self._sums = [0]  # for each word: the total width of all words and spaces before it
        self._joins = [0.0]  # for each word: the total cost of all words before it, if they are in one caption
        self._blocks = [0]  # for each word: how many times the block changes before it
        self._name_widths = [0] * len(words)
        last_turn = -1
        for place, word in enumerate(words):
            self._sums.append(self._sums[-1] + len(word.space) + word.width)
            before = words[place - 1] if place else None
            changes = before is not None and before.block != word.block
            self._blocks.append(self._blocks[-1] + changes)
            join = 0.0
            if before is not None:
                silence_s = (word.start_ms - before.end_ms) / 1000 - _SILENCE_S
                join = _SILENCE_PER_S * max(0.0, silence_s)
                if before.sentence != word.sentence:
                    join += _TWO_BLOCKS if changes else _TWO_SENTENCES
                elif word.starts_line:
                    join += _TWO_LINES
            self._joins.append(self._joins[-1] + join)
            if word.turn != last_turn and word.turn < len(names) and names[word.turn]:
                self._name_widths[place] = char_width(names[word.turn]) + 2
            last_turn = word.turn

    def best(self) -> list[tuple[_Range, ...]]:
        """Return the lines of each caption, as ranges of words, for the division with the lowest cost."""
        count = len(self._words)
        costs = [0.0] + [float("inf")] * count
        choices: list[tuple[int, tuple[_Range, ...]]] = [(0, ())] * (count + 1)
        for end in range(1, count + 1):
            for start in range(end - 1, -1, -1):
                if start < end - 1 and not self._may_fit(start, end):
                    break
                before = costs[start] + self._cost(start, end)
                if before >= costs[end]:
                    continue
                lines_cost, lines = self._wrap(start, end)
                if before + lines_cost < costs[end]:
                    costs[end] = before + lines_cost
                    choices[end] = (start, lines)
        captions: list[tuple[_Range, ...]] = []
        end = count
        while end:
            start, lines = choices[end]
            captions.append(lines)
            end = start
        return captions[::-1]

    def _width(self, start: int, end: int) -> int:
        return self._sums[end] - self._sums[start] - len(self._words[start].space) + self._name_widths[start]

    def _may_fit(self, start: int, end: int) -> bool:
        """Return whether one caption may contain the words from `start` to `end` (exclusive).

        Together, the words must not be too wide, must not last too long, and must not belong to more than two blocks.
        """
        words = self._words
        return (
            self._sums[end] - self._sums[start] <= 2 * LINE_WIDTH + 1
            and words[end - 1].end_ms - words[start].start_ms <= MOST_MS - (CLOSED_GAP_MS - GAP_MS)
            and self._blocks[end] - self._blocks[start + 1] <= 1
        )

    def _cost(self, start: int, end: int) -> float:
        """Return the cost of a caption, without the cost of its line break."""
        words = self._words
        cost = _PER_CAPTION + self._joins[end] - self._joins[start + 1]
        if end < len(words):
            cost += words[end].break_cost
        cost += _UNEVEN_CAPTIONS * ((self._sums[end] - self._sums[start]) / (2 * LINE_WIDTH)) ** 2
        latest = words[end].start_ms - GAP_MS if end < len(words) else self._duration_ms
        missing_ms = LEAST_MS - (latest - words[start].start_ms)
        if missing_ms > 0:
            cost += _TOO_SHORT + _TOO_SHORT_PER_S * missing_ms / 1000
        return cost

    def _wrap(self, start: int, end: int) -> tuple[float, tuple[_Range, ...]]:
        """Return the cost of the best line break, and the lines. The cost is infinite if two lines are not enough."""
        words = self._words
        changes = self._blocks[end] - self._blocks[start + 1]
        if not changes and (end == start + 1 or self._width(start, end) <= LINE_WIDTH):
            return 0.0, ((start, end),)
        best = float("inf")
        lines: tuple[_Range, ...] = ()
        for at in range(start + 1, end):
            if changes and words[at].block == words[at - 1].block:
                continue
            first, second = self._width(start, at), self._width(at, end)
            if (first > LINE_WIDTH and at > start + 1) or (second > LINE_WIDTH and end > at + 1):
                continue
            cost = 0.0 if changes else _LINE_BREAK * words[at].break_cost + _UNEVEN_LINES * abs(first - second)
            if cost + _SECOND_LINE < best:
                best, lines = cost + _SECOND_LINE, ((start, at), (at, end))
        return best, lines


def _lines(words: Sequence[CaptionWord], lines: Iterable[_Range], names: Sequence[str]) -> Iterator[CaptionLine]:
    """Yield the lines of one caption, with the names of their speakers."""
    for start, end in lines:
        turn = words[start].turn
        name = names[turn] if turn < len(names) else ""
        yield CaptionLine(tuple(words[start:end]), name, start == 0 or words[start - 1].turn != turn)


# ---- the times of captions


def _timed(captions: Sequence[tuple[CaptionLine, ...]], duration_ms: int) -> list[Caption]:
    """Give each caption its start and its end. A caption that would start after the end of the audio is left out."""
    starts: list[int] = []
    for lines in captions:
        start = lines[0].words[0].start_ms
        starts.append(max(start, starts[-1] + 1) if starts else start)
    limit = duration_ms
    for place in range(len(starts) - 1, -1, -1):  # each caption gets at least one millisecond
        limit -= 1
        starts[place] = max(0, min(starts[place], limit))
        limit = starts[place]
    ends: list[int] = []
    for place, lines in enumerate(captions):
        start = starts[place]
        latest = _latest_end(start, starts[place + 1]) if place + 1 < len(starts) else duration_ms
        spoken_end = lines[-1].words[-1].end_ms
        readable = start + sum(len(line.text) for line in lines) * 1000 // READING_SPEED
        wanted = max(spoken_end, start + LEAST_MS, min(readable, spoken_end + LEAST_MS))
        ends.append(max(start + 1, min(wanted, latest, start + MOST_MS)))
    for place in range(len(starts)):  # a caption that is too short starts earlier if silence precedes it
        missing = LEAST_MS - (ends[place] - starts[place])
        earliest = ends[place - 1] + GAP_MS if place else 0
        if missing > 0 and earliest < starts[place]:
            starts[place] = max(earliest, starts[place] - missing)
    for place in range(len(starts) - 1):
        if GAP_MS < starts[place + 1] - ends[place] < CLOSED_GAP_MS:
            ends[place] = min(starts[place + 1] - GAP_MS, max(ends[place], starts[place] + MOST_MS))
    return [
        Caption(start, end, lines)
        for start, end, lines in zip(starts, ends, captions, strict=True)
        if start < end <= duration_ms
    ]


def _latest_end(start: int, following: int) -> int:
    """Return the latest end of a caption that starts at `start`, if the next caption starts at `following`.

    The gap between the two captions is GAP_MS, or half of the time between their starts if that half is shorter.
    """
    return max(following - GAP_MS, start + (following - start + 1) // 2)


def _characters_per_s(caption: Caption) -> float:
    return len(caption.text) * 1000 / (caption.end_ms - caption.start_ms)


# ---- files


def _clock(ms: int, separator: str) -> str:
    """Return a time as HH:MM:SS, followed by the separator and the milliseconds."""
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{separator}{ms % 1000:03}"


# If a line of text matches _SRT_TIMES, programs that read SRT mistake it for the times of a new caption.
_NUMBER = r" ?[+-]?\d{1,20} ?"
_SRT_TIMES = re.compile(rf"(\A{_NUMBER}:{_NUMBER}:{_NUMBER}(?:[,.:]{_NUMBER})?--)(?=>)")
_WORD_JOINER = "\u2060"  # an invisible character without width


def to_srt(captions: Sequence[Caption], first: int = 1) -> str:
    """Return the captions as a SubRip file. The lines end with CR LF. first: the number of the first caption."""
    blocks: list[str] = []
    for number, caption in enumerate(captions, first):
        lines = [_SRT_TIMES.sub(rf"\1{_WORD_JOINER}", _named(line)) for line in caption.lines]
        times = f"{_clock(caption.start_ms, ',')} --> {_clock(caption.end_ms, ',')}"
        blocks.append("\r\n".join([str(number), times, *lines, "", ""]))
    return "".join(blocks)


def _named(line: CaptionLine) -> str:
    """Return the text of a line. If a turn starts with the line, the result begins with the name of the speaker."""
    return f"{line.speaker}: {line.text}" if line.speaker and line.starts_turn else line.text


def _escaped(text: str) -> str:
    """Escape a text for WebVTT. The result contains no "-->", which is the mark of a line with times."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_vtt(captions: Sequence[Caption], highlight: Highlight = "none") -> str:
    """Return the captions as a WebVTT file.

    highlight: "word" = the time of each word is written before the word, so that players can highlight the spoken word.
    """
    blocks = ["WEBVTT\n"]
    for caption in captions:
        last_ms = caption.start_ms
        lines: list[str] = []
        speaker = ""
        for line in caption.lines:
            parts: list[str] = []
            for place, word in enumerate(line.words):
                parts.append(word.space if place else "")
                if highlight == "word" and last_ms < word.start_ms < caption.end_ms:
                    parts.append(f"<{_clock(word.start_ms, '.')}>")
                    last_ms = word.start_ms
                parts.append(_escaped(word.text))
            tag = f"<v {_escaped(line.speaker)}>" if line.speaker and line.speaker != speaker else ""
            speaker = line.speaker
            lines.append(tag + "".join(parts))
        times = f"{_clock(caption.start_ms, '.')} --> {_clock(caption.end_ms, '.')}"
        blocks.append("\n".join([times, *_closed_voices(lines), ""]))
    return "\n".join(blocks)


def _closed_voices(lines: list[str]) -> list[str]:
    """Return the lines of a caption. If two lines both begin with a voice tag, each of them gets the end tag "</v>".

    A single voice tag needs no end tag.
    """
    if len(lines) == 2 and lines[0].startswith("<v ") and lines[1].startswith("<v "):
        return [f"{line}</v>" for line in lines]
    return lines


_LRC_TIME = re.compile(r"([\[<])(?=\d+:\d)")


def to_lrc(captions: Sequence[Caption], highlight: Highlight = "none") -> str:
    """Return the captions as an LRC file. A caption that contains the words of two turns becomes two lines.

    highlight: "word" = the time of each word is written before the word (enhanced LRC).
    """
    lines: list[str] = []
    for caption in captions:
        for start, end in _voices(caption):
            group = caption.lines[start:end]
            words = [word for line in group for word in line.words]
            first_ms = caption.start_ms if start == 0 else words[0].start_ms
            name = f"{group[0].speaker}: " if group[0].speaker and group[0].starts_turn else ""
            parts = [_LRC_TIME.sub(rf"\1{_WORD_JOINER}", name)]
            for place, word in enumerate(words):
                parts.append(word.space if place else "")
                if highlight == "word":
                    parts.append(f"<{_lrc_clock(max(first_ms, word.start_ms))}>")
                parts.append(_LRC_TIME.sub(rf"\1{_WORD_JOINER}", word.text))
            content = "".join(parts)
            # Without the joiner, a bracket at the start of the text would look like the start of another time.
            joiner = _WORD_JOINER if content.startswith("[") else ""
            lines.append(f"[{_lrc_clock(first_ms)}]{joiner}{content}\n")
    return "".join(lines)


def _voices(caption: Caption) -> Iterator[_Range]:
    """Yield, for each turn in a caption, the range of the lines that belong to the turn."""
    start = 0
    for place, (before, line) in enumerate(pairwise(caption.lines), 1):
        if before.words[0].turn != line.words[0].turn:
            yield start, place
            start = place
    yield start, len(caption.lines)


def _lrc_clock(ms: int) -> str:
    """Return a time as MM:SS and hundredths of a second."""
    return f"{ms // 60_000:02}:{ms // 1000 % 60:02}.{ms % 1000 // 10:02}"


def to_verbose_json(captions: Sequence[Caption], times: Timestamps, language: str) -> dict[str, Any]:
    """Return the captions in the form of OpenAI's `verbose_json` for transcriptions. Each caption is a segment."""
    segments = []
    for number, caption in enumerate(captions):
        segment: dict[str, Any] = {
            "id": number,
            "seek": 0,
            "start": caption.start_ms / 1000,
            "end": caption.end_ms / 1000,
            "text": caption.text,
            # Only a speech recogniser can fill these fields, but clients expect them.
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": 0.0,
            "compression_ratio": 1.0,
            "no_speech_prob": 0.0,
        }
        if speaker := " / ".join(dict.fromkeys(line.speaker for line in caption.lines if line.speaker)):
            segment["speaker"] = speaker
        segments.append(segment)
    words = [word for caption in captions for word in caption.words]
    return {
        "task": "transcribe",
        "language": language,
        "duration": round(times.duration_s, 3),
        "text": "".join(word.space + word.text for word in words),
        "words": [
            {"word": word.word, "start": round(word.start_s, 3), "end": round(word.end_s, 3)} for word in times.words
        ],
        "segments": segments,
    }
