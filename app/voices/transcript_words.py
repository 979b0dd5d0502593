"""Check that a recording contains the words of its transcript, with the word aligner.

Works for English and needs the `words` extra. Without them the answer is None: not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from app.audio.alignment import Alignment, align, is_available
from app.audio.verification import is_english, judge

if TYPE_CHECKING:
    import numpy as np

    from app.types import Samples


class Align(Protocol):
    """Aligns words with samples (N,). `alignment.align` works in the calling thread, `Aligner.align` in a process.

    part: the samples may contain only a part of the words.
    """

    def __call__(
        self, samples: np.ndarray, rate_hz: int, words: Sequence[str], /, *, part: bool = False
    ) -> Alignment | None: ...


NOT_INSTALLED = "the extra `words` is not installed"
# Mean score of aligned words: people have -1.5 and more, in noise -2.05; other words and sounds mostly -2.2 and less.
MIN_FIT = -2.1
MAX_OTHER_SHARE = 0.4  # of a recording; more sound without words means that the words were found by chance
# For `section`: words on each side of the expected place that are searched too, because the pace of speech varies.
NEAR_WORDS, NEAR_SHARE = 15, 0.1
MIN_SECTION_WORDS = 0.8  # share of the words between the first and the last found word that must be found
MIN_WORDS = 0.2  # share of the words that must be found; in nearly all recordings with the right transcript it is more


@dataclass(frozen=True, slots=True)
class FoundWords:
    """How well a recording fits its transcript."""

    share: float  # of the words of the transcript that were found, 0 to 1
    other_s: float  # seconds of speech or noise that belong to no word, if they are too long for a hesitation; else 0

    @property
    def fits(self) -> bool:
        return self.share >= MIN_WORDS and not self.other_s


class TranscriptChecker:
    """Looks for the words of transcripts in recordings. Thread-safe; `find` blocks."""

    def __init__(self, align: Align = align, spoken: Callable[[str], str] = str) -> None:
        """align: the aligner. spoken: converts a transcript to the words that are spoken, such as numbers to words."""
        self._align = align
        self._spoken = spoken

    @property
    def missing(self) -> str:
        """Why nothing is checked; "" if transcripts are checked."""
        return "" if is_available() else NOT_INSTALLED

    def section(
        self, samples: Samples, rate_hz: int, transcript: str, place: tuple[float, float], language: str = "en"
    ) -> str:
        """Return the part of a transcript that is spoken in a section of its recording; "" if it can't be found.

        samples: the samples (N,) of the section. transcript: the words of the whole recording. place: the start and
        the end of the section as shares of all speech in the recording, 0 to 1. Only words near are searched.
        """
        if not is_available() or not is_english(transcript, language):
            return ""
        words = transcript.split()
        margin = NEAR_WORDS + round(NEAR_SHARE * len(words))
        first = max(0, round(place[0] * len(words)) - margin)
        near = words[first : min(len(words), round(place[1] * len(words)) + margin)]
        spoken: list[str] = []
        owners: list[int] = []  # the word of `near` from which each spoken word comes
        for at, word in enumerate(near):
            parts = self._spoken(word).split()
            spoken += parts
            owners += [at] * len(parts)
        found = self._align(samples, rate_hz, spoken, part=True) if spoken else None
        if found is None:
            return ""
        aligned = [owner for owner, word in zip(owners, found.words, strict=True) if word.end_s > word.start_s]
        if not aligned or found.score < MIN_FIT or found.other_s > MAX_OTHER_SHARE * found.seconds:
            return ""
        part = near[aligned[0] : aligned[-1] + 1]
        if len(set(aligned)) < MIN_SECTION_WORDS * len(part):  # words in between are missing: found by chance
            return ""
        return " ".join(part)

    def find(self, samples: Samples, rate_hz: int, transcript: str, language: str = "en") -> FoundWords | None:
        """Look for the words of `transcript` in samples (N,). None = not English, not installed, or no answer.

        A share of 0 means: the audio is other speech, or no speech.
        """
        if not is_available() or not is_english(transcript, language):
            return None
        verdict = judge(self._align(samples, rate_hz, self._spoken(transcript).split()), samples, rate_hz)
        found = verdict.alignment
        if found is None:
            return None
        other_s = found.other_s if verdict.reason == "not_words" else 0.0
        by_chance = other_s > MAX_OTHER_SHARE * found.seconds
        if verdict.reason not in ("", "not_words") or found.score < MIN_FIT or by_chance:
            return FoundWords(0.0, other_s)
        return FoundWords(1.0 - len(found.missing) / max(1, len(found.words)), other_s)
