"""Check that a recording contains the words of its transcript, with the word aligner.

The check works only for English, and only with the `words` extra. In all other cases the result is None: not checked.
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
    """Aligns words with samples (N,). `alignment.align` works in the calling thread, `Aligner.align` in a helper
    process.

    part: True = the samples may contain only a part of the words.
    """

    def __call__(
        self, samples: np.ndarray, rate_hz: int, words: Sequence[str], /, *, part: bool = False
    ) -> Alignment | None: ...


NOT_INSTALLED = "the extra `words` is not installed"
# Lowest mean score of aligned words. With the right transcript, speech has a score of at least -1.5, or -2.05 in noise.
# With a wrong transcript, the score is mostly -2.2 or lower.
MIN_FIT = -2.1
MAX_OTHER_SHARE = 0.4  # if more than this share of the sound is not in the transcript, the words were found by chance
# `section` also searches words on each side of the expected place, because the pace of speech varies: NEAR_WORDS words,
# plus the share NEAR_SHARE of all words.
NEAR_WORDS, NEAR_SHARE = 15, 0.1
MIN_SECTION_WORDS = 0.8  # of the words from the first to the last found word, at least this share must be found
MIN_WORDS = 0.2  # at least this share of the words must be found; a right transcript nearly always exceeds it


@dataclass(frozen=True, slots=True)
class FoundWords:
    """How well a recording fits its transcript."""

    share: float  # share of the transcript's words that were found, 0 to 1
    other_s: float  # seconds of speech or noise that is not in the transcript; 0 if this audio may be hesitations

    @property
    def fits(self) -> bool:
        return self.share >= MIN_WORDS and not self.other_s


class TranscriptChecker:
    """Looks for the words of transcripts in recordings. Thread-safe; `find` blocks."""

    def __init__(self, align: Align = align, spoken: Callable[[str], str] = str) -> None:
        """align: the aligner. spoken: converts a transcript to the spoken words; for example, it writes numbers as
        words.
        """
        self._align = align
        self._spoken = spoken

    @property
    def missing(self) -> str:
        """Why no transcript is checked; "" if transcripts are checked."""
        return "" if is_available() else NOT_INSTALLED

    def section(
        self, samples: Samples, rate_hz: int, transcript: str, place: tuple[float, float], language: str = "en"
    ) -> str:
        """Return the part of a transcript that is spoken in a section of its recording; "" if it can't be found.

        samples: the samples (N,) of the section. transcript: the words of the whole recording. place: the start and the
        end of the section as shares of all speech in the recording, 0 to 1. Only words near this place are searched.
        """
        if not is_available() or not is_english(transcript, language):
            return ""
        words = transcript.split()
        margin = NEAR_WORDS + round(NEAR_SHARE * len(words))
        first = max(0, round(place[0] * len(words)) - margin)
        near = words[first : min(len(words), round(place[1] * len(words)) + margin)]
        spoken: list[str] = []
        owners: list[int] = []  # for each spoken word: the index in `near` of the word from which it comes
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
        # If too many words are missing, the words were found by chance.
        if len(set(aligned)) < MIN_SECTION_WORDS * len(part):
            return ""
        return " ".join(part)

    def find(self, samples: Samples, rate_hz: int, transcript: str, language: str = "en") -> FoundWords | None:
        """Look for the words of `transcript` in samples (N,).

        Returns None if the transcript is not English, if the `words` extra is not installed, or if the aligner gives no
        answer. A share of 0 means that the audio contains other speech, or no speech.
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
