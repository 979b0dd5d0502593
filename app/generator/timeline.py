"""The timeline of an answer: which text is spoken in which part of its audio.

A generation adds each utterance when the last sample of the utterance was generated. The timeline is stored with the
audio in the cache, so that the times of words can be found later. In memory, the timeline is kept as JSON texts,
because a long answer has many words.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.types import SpokenWord, WordMark

if TYPE_CHECKING:
    from app.types import SpokenLine

MAX_STORED_CHARS = 700_000  # a longer timeline is not stored; an answer in the cache has at most 93 minutes of audio


@dataclass(frozen=True, slots=True)
class TimelineLine:
    """A spoken text. See `SpokenLine` for the fields."""

    text: str
    words: tuple[SpokenWord, ...]
    start_char: int
    end_char: int  # exclusive
    turn: int
    voice_language: str
    ipa: tuple[tuple[int, int, str], ...]

    @property
    def places(self) -> list[tuple[int, int]]:
        """The start and the end of each word in `text`. The end is exclusive."""
        places = []
        end = 0
        for word in self.words:
            start = self.text.index(word.word, end)
            end = start + len(word.word)
            places.append((start, end))
        return places


@dataclass(frozen=True, slots=True)
class TimelineUtterance:
    """The lines of one utterance, and the place of their audio in the answer. Places are in samples at speed 1."""

    start: int
    end: int | None  # None = the utterance was cut off at the end of the answer
    lines: tuple[TimelineLine, ...]
    marks: tuple[WordMark, ...]  # the places of words as the engine reported them, in samples after `start`


@dataclass(frozen=True, slots=True)
class Timeline:
    """The utterances of an answer so far, in order."""

    _packed: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index: int) -> TimelineUtterance:
        return _unpacked(self._packed[index])

    def add(self, lines: Sequence[SpokenLine], start: int, end: int | None, marks: Sequence[WordMark]) -> None:
        """Add an utterance that has ended. end: None = the utterance was cut off at the end of the answer."""
        self._packed.append(_packed(lines, start, end, marks))

    @property
    def size(self) -> int:
        """The number of characters of all utterances as JSON texts."""
        return sum(map(len, self._packed))

    def to_text(self) -> str | None:
        """Return the timeline in a short form for `from_text`; None if it is too long to be stored."""
        data = zlib.compress(f"[{','.join(self._packed)}]".encode(), 6)
        return base64.b64encode(data).decode() if 4 * len(data) <= 3 * MAX_STORED_CHARS else None

    @classmethod
    def from_text(cls, text: str) -> Timeline:
        """Read the result of `to_text`. Raises ValueError."""
        try:
            items = json.loads(zlib.decompress(base64.b64decode(text)))
            timeline = cls([json.dumps(item, separators=(",", ":")) for item in items])
            for at in range(len(timeline)):
                _ = [line.places for line in timeline[at].lines]
        except (zlib.error, TypeError, IndexError, AttributeError) as error:
            raise ValueError("the timeline of a cached answer is damaged") from error
        return timeline


def _packed(lines: Sequence[SpokenLine], start: int, end: int | None, marks: Sequence[WordMark]) -> str:
    """Write an utterance as JSON. Each position is written as its difference from the expected position, so most
    numbers are small.
    """
    rows = []
    for line in lines:
        spans: list[int] = []
        place = line.start_char
        for word in line.words:
            spans += (word.start_char - place, word.end_char - word.start_char - len(word.word))
            place = word.end_char
        words = None if line.text.split() == [word.word for word in line.words] else [each.word for each in line.words]
        rows.append((line.text, words, spans, line.start_char, line.end_char, line.turn, line.voice.language, line.ipa))
    places = []
    sample = 0
    for mark in marks:
        places += [mark.sample - sample, mark.line, -1 if mark.char is None else mark.char]
        sample = mark.sample
    return json.dumps((start, end, rows, places), separators=(",", ":"))


def _unpacked(text: str) -> TimelineUtterance:
    start, end, rows, places = json.loads(text)
    lines = []
    for line_text, words, spans, start_char, end_char, turn, language, ipa in rows:
        place = start_char
        spoken = []
        for number, word in enumerate(line_text.split() if words is None else words):
            word_start = place + spans[2 * number]
            place = word_start + len(word) + spans[2 * number + 1]
            spoken.append(SpokenWord(word, word_start, place))
        pronunciations = tuple((first, last, symbols) for first, last, symbols in ipa)
        lines.append(TimelineLine(line_text, tuple(spoken), start_char, end_char, turn, language, pronunciations))
    marks = []
    sample = 0
    for at in range(0, len(places), 3):
        sample += places[at]
        marks.append(WordMark(sample, places[at + 1], None if places[at + 2] < 0 else places[at + 2]))
    return TimelineUtterance(start, end, tuple(lines), tuple(marks))
