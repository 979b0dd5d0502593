"""Compute the time of each character of a text from the times of its words.

All characters of a word take equal time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.text.captions import words_of

if TYPE_CHECKING:
    from app.types import TimedSentence

TimedCharacter = tuple[str, float, float]  # a character with its start and end in seconds


@dataclass(slots=True)
class CharacterTimes:
    """Computes the times of the characters of one text, in order.

    Characters between two words share the time between these words.
    """

    chars: int = 0  # number of characters that have times so far
    end_s: float = 0.0  # end time of the last character with a time, in seconds

    def add(self, text: str, sentences: Sequence[TimedSentence]) -> list[TimedCharacter]:
        """Return characters of `text` with their times.

        The result begins after the last character that already has a time, and ends with the last word of `sentences`.
        """
        found: list[TimedCharacter] = []
        for sentence in sentences:
            for word in words_of(sentence):
                if word.end_char <= self.chars:
                    continue
                start = max(word.start_char, self.chars)
                start_s = max(word.start_s, self.end_s)
                found += _shared(text[self.chars : start], self.end_s, start_s)
                found += _shared(text[start : word.end_char], start_s, max(word.end_s, start_s))
                self.chars, self.end_s = word.end_char, max(word.end_s, start_s)
        return found

    def add_spaces(self, text: str) -> list[TimedCharacter]:
        """Return the white space after the last character with a time. Its characters take no time."""
        rest = text[self.chars :]
        spaces = rest[: len(rest) - len(rest.lstrip())]
        self.chars += len(spaces)
        return [(char, self.end_s, self.end_s) for char in spaces]

    def finish(self, text: str, end_s: float) -> list[TimedCharacter]:
        """Return the characters that have no times yet. They share the time up to `end_s`, the end of the audio."""
        found = list(_shared(text[self.chars :], self.end_s, max(end_s, self.end_s)))
        self.chars, self.end_s = len(text), max(end_s, self.end_s)
        return found


def _shared(text: str, start_s: float, end_s: float) -> Iterator[TimedCharacter]:
    """Yield the characters of a text with equal parts of the time from `start_s` to `end_s`."""
    step_s = (end_s - start_s) / max(1, len(text))
    for at, char in enumerate(text):
        yield char, start_s + at * step_s, start_s + (at + 1) * step_s
