"""Check a generated take (one version of the speech of a text) for gross faults.

The check compares the audio with the text: `judge` uses an alignment of the words and the samples. A take is bad if

- `cut_off`: the recording ends inside the text,
- `missing_words`: several words of the text are not spoken,
- `not_words`: there is more than about a second of babble, noise or other speech,
- `wrong_words`: the words hardly fit the audio,
- `length`: the text is spoken faster than people speak, or the take is far from its expected length.

The limits were set with recordings of 36 people, at the original tempo and 20 % slower and faster: docs/listening.md
has the figures. A take with one wrong word passes the check. The score of a verdict also depends on single words. The
score only ranks the takes of one text, and no take is rejected because of its score.
"""

from __future__ import annotations

import string
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from app.audio.alignment import Alignment, is_available

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.audio.alignment import Aligner
    from app.types import Samples

Status = Literal["ok", "bad", "unchecked"]
Reason = Literal[
    "", "cut_off", "missing_words", "not_words", "wrong_words", "length", "language", "not_installed", "no_answer"
]

# Limits of the check. The comments compare each limit with 63 human recordings at three tempos.
MAX_CUT_OFF = 16.0  # nats; human recordings: at most 12.3; recordings with a cut inside the last word: mostly over 28
# A take is bad if more than MAX_MISSING words are missing and they are more than MAX_MISSING_SHARE of all its words.
# In 97 % of human recordings no word is missing. If half of the text is missing, the share is at least 16 %.
MAX_MISSING, MAX_MISSING_SHARE = 1, 0.08
MAX_NOT_WORDS_S = 1.15  # 97 % of human recordings: at most 0.8; recordings with three seconds of babble: at least 1.4
MIN_SCORE = -3.0  # mean score of all words; human recordings: at least -2.4
MAX_PHONEMES_PER_S = 26.0  # human recordings: at most 18.5
MAX_LENGTH_RATIO = 2.0  # a take may be at most MAX_LENGTH_RATIO times longer or shorter than expected
_DOUBTFUL_SCORE = -6.0  # a word with a lower score is doubtful; 5 % of human recordings have a doubtful word

# Two lists: common words of English, and common words of other languages in Latin letters. A word of English that also
# exists in another language is in neither list.
_ENGLISH_WORDS = frozenset(
    "the and of to is you that it was for are with his they be this have from had by but not what all were we when "
    "your can there which she he do how their if my our will would has who its about out up them then him her been "
    "more i i'm it's don't that's hello yes thank thanks please where why".split()
)
_FOREIGN_WORDS = frozenset(
    "der das und ist nicht ein eine einen einer ich sie wir ihr mit auf für von zu dem den im auch sich wie aber oder "
    "guten sind haben hat wird werden bei nach über wenn noch heute le la les des est une je vous nous et pas que qui "
    "dans avec il elle ce cette mais ou où bonjour au aux du sont était el los las del por para está es una como pero "
    "más muy esta este hola gracias di che è sono della delle nel gli ma anche questo questa ciao non het een ik niet "
    "dat op zijn voor deze maar og jeg det som til på av är jag och att inte nie się na jest że os da não uma em com "
    "você mas isso muito obrigado".split()
)
_PUNCTUATION = string.punctuation + "“”„«»…–—¿¡"

_FRAME_S = 0.01
# The audio without words is summed in windows of _WINDOW_S seconds, because babble is continuous and hesitations are
# short.
_WINDOW_S = 3.0
_LOUD_DB = 22.0  # audio is silence if it is at least _LOUD_DB below loud speech
_ABOVE_FLOOR_DB = 10.0  # audio is also silence if it is less than _ABOVE_FLOOR_DB above the noise floor
_INAUDIBLE_DB = 30.0

# Weights of the score that ranks takes. In 97 to 100 % of the tested pairs, the complete take had a better score than
# the faulty take.
_GOOD_WORD = -0.5
_WORST_WORD = -10.0
_NOT_WORDS_WEIGHT = 4.0  # cost of a second of audio without words
_CUT_OFF_FROM, _CUT_OFF_WEIGHT = 5.0, 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the check of one take."""

    status: Status
    reason: Reason = ""  # why the take is bad or unchecked; empty = it is good
    score: float = -np.inf  # ranks takes of one text; 0 is the best possible score
    doubtful: tuple[int, ...] = ()  # indices of words of the text that may be missing or wrong
    alignment: Alignment | None = None


def judge(
    alignment: Alignment | None,
    samples: Samples,
    rate_hz: int,
    *,
    expected_s: float | None = None,
    allowed_s: float = 0.0,
) -> Verdict:
    """Check the samples (N,) of a take with the alignment of its words.

    alignment: None = the take could not be aligned, so it is unchecked. expected_s: the time that the voice should take
    for the text. allowed_s: seconds of audio without words that the text asks for, for example laughter.
    """
    if alignment is None:
        return Verdict("unchecked", "no_answer")
    apart = _not_words(alignment, samples, rate_hz)
    reason = _reason(alignment, apart, expected_s, allowed_s)
    doubtful = tuple(at for at, word in enumerate(alignment.words) if word.missing or word.score < _DOUBTFUL_SCORE)
    score = _ranking_score(alignment, max(0.0, float(apart.sum()) * _FRAME_S - allowed_s))
    return Verdict("bad" if reason else "ok", reason, score, doubtful, alignment)


def _reason(alignment: Alignment, apart: NDArray[np.bool_], expected_s: float | None, allowed_s: float) -> Reason:
    if alignment.cut_off > MAX_CUT_OFF:
        return "cut_off"
    missing = len(alignment.missing)
    if missing > MAX_MISSING and missing > MAX_MISSING_SHARE * len(alignment.words):
        return "missing_words"
    if _most_in_window(apart) > MAX_NOT_WORDS_S + allowed_s:
        return "not_words"
    if alignment.score < MIN_SCORE:
        return "wrong_words"
    spoken_s = sum(word.end_s - word.start_s for word in alignment.words)
    if alignment.phonemes > MAX_PHONEMES_PER_S * spoken_s:
        return "length"
    ratio = alignment.seconds / expected_s if expected_s else 1.0
    return "" if 1 / MAX_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO else "length"


def _not_words(alignment: Alignment, samples: Samples, rate_hz: int) -> NDArray[np.bool_]:
    """Return for each frame (T,) whether the frame is audible and belongs to no word. Such a frame is "other" audio, or
    is in a pause and too loud for silence.
    """
    size = max(1, round(_FRAME_S * rate_hz))
    count = len(samples) // size
    power = np.square(samples[: count * size].astype(np.float64)).reshape(count, size).mean(axis=1)
    level = 10 * np.log10(power + 1e-10)
    if not count:
        return np.zeros(0, bool)
    loud, floor = np.percentile(level, (90, 5))
    pause = np.ones(count, bool)
    for word in alignment.words:
        pause[_frames(word.start_s, word.end_s)] = False
    apart: NDArray[np.bool_] = pause & (level > max(loud - _LOUD_DB, floor + _ABOVE_FLOOR_DB))
    for start_s, end_s in alignment.other:
        part = _frames(start_s, end_s)
        apart[part] = level[part] > loud - _INAUDIBLE_DB
    return apart


def _frames(start_s: float, end_s: float) -> slice:
    return slice(round(start_s / _FRAME_S), round(end_s / _FRAME_S))


def _most_in_window(apart: NDArray[np.bool_]) -> float:
    """Return the largest number of seconds without words in any window of _WINDOW_S seconds. apart (T,): the result of
    `_not_words`.
    """
    sums = np.concatenate(([0], np.cumsum(apart)))
    width = min(len(apart), round(_WINDOW_S / _FRAME_S))
    return float((sums[width:] - sums[: len(sums) - width]).max()) * _FRAME_S


def _ranking_score(alignment: Alignment, not_words_s: float) -> float:
    """Return the score that ranks takes: minus the cost of all faults, divided by the number of words."""
    words = np.array([word.score for word in alignment.words])
    misfit = float(np.maximum(0.0, _GOOD_WORD - np.maximum(words, _WORST_WORD)).sum())
    misfit += _NOT_WORDS_WEIGHT * not_words_s + _CUT_OFF_WEIGHT * max(0.0, alignment.cut_off - _CUT_OFF_FROM)
    return -misfit / len(words)


def best_take(verdicts: Sequence[Verdict]) -> int:
    """Return the index of the best of several takes of one text. A take that is not bad is better than a bad take. If
    both takes are bad or neither is bad, the take with the higher score is better. If the scores are equal, too, the
    earlier take is better.
    """
    return max(range(len(verdicts)), key=lambda at: (verdicts[at].status != "bad", verdicts[at].score))


def is_english_tag(language: str) -> bool:
    """Return whether a BCP 47 tag names English."""
    return language.lower().replace("_", "-").split("-")[0] == "en"


def is_english(text: str, language: str | None = None) -> bool:
    """Return whether a text can be checked: `language` is English or None, and most letters and common words of the
    text are English.
    """
    if language is not None and not is_english_tag(language):
        return False
    letters = [letter for letter in unicodedata.normalize("NFKD", text) if letter.isalpha()]
    if not letters or sum(letter.isascii() for letter in letters) < 0.9 * len(letters):
        return False
    words = [word.strip(_PUNCTUATION) for word in text.lower().replace("’", "'").split()]
    return sum(word in _FOREIGN_WORDS for word in words) <= sum(word in _ENGLISH_WORDS for word in words)


class Verifier:
    """Checks takes with an aligner. Thread-safe. `check` blocks, so call it in a thread."""

    def __init__(self, aligner: Aligner) -> None:
        self._aligner = aligner

    def check(
        self,
        samples: Samples,
        rate_hz: int,
        text: str,
        *,
        language: str | None = None,
        expected_s: float | None = None,
        allowed_s: float = 0.0,
        deadline_s: float | None = None,
    ) -> Verdict:
        """Check the samples (N,) of a take. text: the words as they are spoken. For the other parameters, see `judge`
        and `Aligner.align`.
        """
        if not is_english(text, language):
            return Verdict("unchecked", "language")
        if not is_available():
            return Verdict("unchecked", "not_installed")
        alignment = self._aligner.align(samples, rate_hz, text.split(), deadline_s=deadline_s)
        return judge(alignment, samples, rate_hz, expected_s=expected_s, allowed_s=allowed_s)
