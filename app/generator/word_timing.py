"""Finds the times of the words of one utterance in its audio.

There are three ways to find these times, from the best to the worst:

1. The engine reports when it speaks each word.
2. The aligner finds English words with its acoustic model (the `words` extra).
3. The offline voice reads the same text, and dynamic time warping finds its words in the audio.

If none of these ways is possible, only the sentences have times. The caller derives them from the lengths of the
sentences.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.audio import pcm
from app.audio.alignment import is_available
from app.audio.stretch import StreamStretcher
from app.audio.verification import is_english
from app.generator.job import spoken_language
from app.text.nonverbal import blank_sounds

if TYPE_CHECKING:
    from app.audio.alignment import Aligner, Alignment
    from app.generator.timeline import TimelineLine, TimelineUtterance
    from app.types import Samples

log = logging.getLogger(__name__)

Span = tuple[float, float]  # start and end in seconds
# A function that speaks a text in a language. It returns samples (N,), their rate in Hz, and for each word the
# index of its first sample and of its first character in the text. It returns None if it can't speak the text.
Reader = Callable[[str, str], "tuple[Samples, int, list[tuple[int, int | None]]] | None"]

DEADLINE_S = 10.0  # time limit of one alignment, in addition to the length of the audio
BROKEN_S = 60.0  # if a call of the aligner reaches its deadline, the aligner is not called for BROKEN_S
LONG_S, WINDOW_S = 45.0, 30.0  # audio longer than LONG_S is aligned in windows, because a long graph takes more time
WINDOW_END_S = 4.0  # words that end in the last WINDOW_END_S of a window are aligned again with the next window
UNITS_PER_S = 10_000  # found times are rounded to 0.1 ms, so that they do not change when they are stored
TEXT_AHEAD = 1.4  # a window gets TEXT_AHEAD times as much text as is spoken in WINDOW_S at the mean tempo
# If a larger share of the words is missing, the audio is considered to be speech of another text.
MAX_MISSING_SHARE = 0.5
_SILENCE_DB = 35.0  # audio is silence if it is at least _SILENCE_DB below loud speech
_WINDOW_S = 0.01
NO_EXTRA = "The words have no times, because neither the `words` extra nor the offline voice is installed."
NOT_FOUND = "The words of some sentences have no times, because they can't be found in the audio."


@dataclass(frozen=True, slots=True)
class Found:
    """The times of the words of one utterance, in seconds after its start at speed 1."""

    # For each line, the time of each word (None = the word has no time). An empty list: no times were found.
    words: list[list[Span | None]]
    reason: str = ""  # why the words have no times


@dataclass(frozen=True, slots=True)
class _Part:
    """One spoken word. A word in digits, such as 42, can have several spoken words."""

    line: int
    word: int
    text: str
    ipa: tuple[str, ...] = ()
    ends_line: bool = False


class WordTimer:
    """Finds the times of words, one utterance at a time, in its own thread. Used from one event loop."""

    def __init__(
        self,
        aligner: Aligner | None = None,
        reader: Reader | None = None,
        normalize: Callable[[str], str] | None = None,
    ) -> None:
        """aligner: aligns English speech, and does the warping. reader: speaks texts for the warping.

        normalize: writes English numbers and symbols as words.
        """
        self._aligner = aligner
        self._reader = reader
        self._normalize = normalize or (lambda text: text)
        # False = ignore the times that the engine reports, so that benchmarks can measure the aligner and the warping.
        self.use_marks = True
        self.use_aligner = True  # False = only warp
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="timestamps")
        self._broken_until_s = 0.0

    def close(self) -> None:
        """End the thread after its current work."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def find(
        self, utterance: TimelineUtterance, sound: bytes, rate_hz: int, speed: float, language: str | None
    ) -> Found:
        """Find the words of an utterance. sound: its 16-bit samples, after the change of speed.

        language: the language of the request; None = not set. If the work fails, the error is logged and not raised.
        """
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._find, utterance, sound, rate_hz, speed, language
            )
        except Exception:
            log.exception("the times of the words of an utterance can't be found; only its sentences have times")
            return Found([], "The server failed to find the times of words. The log of the server has the reason.")
        return Found(
            [[None if span is None else _rounded(span) for span in line] for line in found.words], found.reason
        )

    def _find(
        self, utterance: TimelineUtterance, sound: bytes, rate_hz: int, speed: float, language: str | None
    ) -> Found:
        samples = pcm.from_bytes(sound)
        if not len(samples):
            return Found([])
        if utterance.marks and self.use_marks:
            return Found(_marked_words(utterance, _slower(samples, rate_hz, speed), rate_hz))
        parts = [part for number, line in enumerate(utterance.lines) for part in self._parts_of(line, number)]
        if not parts:
            return Found([[None] * len(line.words) for line in utterance.lines])
        if utterance.end is None:  # the audio was cut off, so it has only the first words
            samples = np.concatenate((samples, np.zeros(round(0.2 / speed * rate_hz), np.float32)))
        text = " ".join(line.text for line in utterance.lines)
        spoken = spoken_language(language, text, utterance.lines[0].voice_language)
        spans = None
        if self.use_aligner and is_available() and is_english(text, spoken):
            # Slow speech is aligned at its slow speed. Changing its speed back to 1 before the alignment would make the
            # times less exact.
            slow = min(speed, 1.0)
            aligned = self._aligned(parts, _slower(samples, rate_hz, speed / slow), rate_hz, cut=utterance.end is None)
            spans = aligned and [None if span is None else (span[0] * slow, span[1] * slow) for span in aligned]
        if spans is None and utterance.end is not None:
            spans = self._warped(utterance, parts, _slower(samples, rate_hz, speed), rate_hz, spoken)
        if spans is None:
            return Found([], NOT_FOUND if self._aligner and (is_available() or self._reader) else NO_EXTRA)
        words: list[list[Span | None]] = [[None] * len(line.words) for line in utterance.lines]
        for part, span in zip(parts, spans, strict=True):
            if span is None:
                continue
            before = words[part.line][part.word]
            words[part.line][part.word] = span if before is None else (before[0], max(before[1], span[1]))
        return Found(words)

    def _parts_of(self, line: TimelineLine, number: int) -> list[_Part]:
        """Return the words of a line that have a sound, as they are spoken."""
        blank = blank_sounds(line.text)
        spoken = []
        for at, (first, last) in enumerate(line.places):
            text = blank[first:last]
            if not count_letters(text):
                continue
            ipa = tuple(each for start, end, each in line.ipa if first <= start and end <= last)
            names = self._normalize(text).split() if any(map(str.isdecimal, text)) else [text]
            spoken += [_Part(number, at, name, ipa if len(names) == 1 else ()) for name in names if count_letters(name)]
        if spoken:
            spoken[-1] = _Part(spoken[-1].line, spoken[-1].word, spoken[-1].text, spoken[-1].ipa, ends_line=True)
        return spoken

    # ---- alignment

    def _aligned(
        self, parts: Sequence[_Part], samples: Samples, rate_hz: int, *, cut: bool
    ) -> list[Span | None] | None:
        """Find the time of each part with the aligner; None if this fails.

        cut: True = the audio may end before the last part.
        """
        spans: list[Span | None] = []
        missing = 0
        start = 0  # start of the window, in samples
        letters_per_s = sum(len(part.text) for part in parts) / (len(samples) / rate_hz)
        while len(spans) < len(parts):
            rest = parts[len(spans) :]
            left_s = (len(samples) - start) / rate_hz
            whole = left_s <= LONG_S
            window = samples[start:] if whole else samples[start : start + round(WINDOW_S * rate_hz)]
            chosen = rest if whole else _first_letters(rest, letters_per_s * WINDOW_S * TEXT_AHEAD)
            alignment = self._align(window, rate_hz, chosen, part=cut or not whole)
            if alignment is None:
                return None
            count = len(chosen) if whole else _cut_place(alignment, chosen)
            if not count:
                return None
            for word in alignment.words[:count]:
                missing += word.missing
                spans.append((start / rate_hz + word.start_s, start / rate_hz + word.end_s))
            if whole:
                break
            end_s = alignment.words[count - 1].end_s
            following_s = alignment.words[count].start_s if count < len(alignment.words) else end_s
            start += round((end_s + max(end_s, following_s)) / 2 * rate_hz)
        if cut:
            last = max((at for at, span in enumerate(spans) if span and span[1] > span[0]), default=-1)
            spans = [span if at <= last else None for at, span in enumerate(spans)]
        elif missing > MAX_MISSING_SHARE * len(parts):
            return None
        return spans + [None] * (len(parts) - len(spans))

    def _align(self, samples: Samples, rate_hz: int, parts: Sequence[_Part], *, part: bool) -> Alignment | None:
        if self._aligner is None or time.monotonic() < self._broken_until_s:
            return None
        began_s = time.monotonic()
        deadline_s = DEADLINE_S + len(samples) / rate_hz
        found = self._aligner.align(
            samples,
            rate_hz,
            [each.text for each in parts],
            ipa=[each.ipa for each in parts],
            part=part,
            deadline_s=deadline_s,
        )
        self._note_time(began_s, deadline_s)
        return found

    def _note_time(self, began_s: float, deadline_s: float) -> None:
        """If a call of the aligner has reached its deadline, do not call the aligner for BROKEN_S."""
        now_s = time.monotonic()
        if now_s - began_s >= deadline_s:
            self._broken_until_s = now_s + BROKEN_S
            log.warning("the alignment process gives no answer; for %.0f s, only sentences have times", BROKEN_S)

    # ---- warping

    def _warped(
        self, utterance: TimelineUtterance, parts: Sequence[_Part], samples: Samples, rate_hz: int, language: str
    ) -> list[Span | None] | None:
        """Find the time of each part by warping. The offline voice speaks the same text for the warping. Returns None
        if the warping fails.
        """
        if self._reader is None or self._aligner is None or time.monotonic() < self._broken_until_s:
            return None
        read: list[Samples] = []
        times: list[list[Span | None]] = []
        sample = reference_hz = 0
        for line in utterance.lines:
            reading = self._reader(blank_sounds(line.text), language)
            if reading is None:
                return None
            sound, reference_hz, places = reading
            loud = _loud_windows(sound, reference_hz)
            in_s = [(place / reference_hz, char) for place, char in places]
            begin_s = sample / reference_hz
            times.append(
                [
                    None if span is None else (begin_s + span[0], begin_s + span[1])
                    for span in _line_words(line, in_s, len(sound) / reference_hz, loud)
                ]
            )
            read.append(sound)
            sample += len(sound)
        words = dict.fromkeys((part.line, part.word) for part in parts)
        spans = [times[line][word] for line, word in words]
        moments = sorted({moment for span in spans if span is not None for moment in span})
        began_s, deadline_s = time.monotonic(), DEADLINE_S + len(samples) / rate_hz
        found = self._aligner.warp(samples, rate_hz, np.concatenate(read), reference_hz, moments, deadline_s=deadline_s)
        self._note_time(began_s, deadline_s)
        if found is None:
            return None
        place_of = dict(zip(moments, found, strict=True))
        placed = {
            key: None if span is None else (place_of[span[0]], place_of[span[1]])
            for key, span in zip(words, spans, strict=True)
        }
        return [placed[part.line, part.word] for part in parts]


def _rounded(span: Span | None) -> Span | None:
    if span is None:
        return None
    return round(span[0] * UNITS_PER_S) / UNITS_PER_S, round(span[1] * UNITS_PER_S) / UNITS_PER_S


def _first_letters(parts: Sequence[_Part], letters: float) -> Sequence[_Part]:
    """Return the first parts that have at most `letters` letters together, but at least one part."""
    sizes = list(itertools.accumulate(len(part.text) for part in parts))
    return parts[: max(1, bisect_right(sizes, letters))]


def _cut_place(alignment: Alignment, parts: Sequence[_Part]) -> int:
    """Return how many of the first words of a window are kept: up to the end of a line, or to a long pause."""
    last_s = alignment.seconds - WINDOW_END_S
    words = alignment.words
    kept = [at for at, word in enumerate(words) if not word.missing and word.start_s < word.end_s <= last_s]
    late = [at for at in kept if words[at].end_s >= WINDOW_S / 3]
    if ends := [at for at in late if parts[at].ends_line]:
        return ends[-1] + 1
    if late:
        return 1 + max(late, key=lambda at: words[at + 1].start_s - words[at].end_s if at + 1 < len(words) else 0.0)
    return kept[-1] + 1 if kept else 0


def _slower(samples: Samples, rate_hz: int, factor: float) -> Samples:
    """Return samples (N,) at a speed that is divided by `factor`. A factor below 1 gives faster speech."""
    stretcher = StreamStretcher(rate_hz, 1 / factor)
    return np.concatenate((stretcher.push(samples), stretcher.flush()))


# ---- the marks of an engine


def _marked_words(utterance: TimelineUtterance, samples: Samples, rate_hz: int) -> list[list[Span | None]]:
    """Return the times of the words of each line from the marks of the engine."""
    loud = _loud_windows(samples, rate_hz)
    marks = utterance.marks
    firsts = [next((mark.sample for mark in marks if mark.line == at), None) for at in range(len(utterance.lines))]
    found = []
    for at, line in enumerate(utterance.lines):
        following = next((first for first in firsts[at + 1 :] if first is not None), len(samples))
        events = [(mark.sample, mark.char) for mark in marks if mark.line == at]
        places = [(sample / rate_hz, char) for sample, char in events]
        found.append(_line_words(line, places, following / rate_hz, loud))
    return found


def _line_words(
    line: TimelineLine, places: Sequence[tuple[float, int | None]], end_s: float, loud: np.ndarray
) -> list[Span | None]:
    """Return the times of the words of one line.

    places: for the start of each word, in order, a pair: the time in seconds, and the index of the word's first
    character (None = a pause begins at this time). A word without a pair was spoken together with the previous word.
    Words that were spoken together share their time in proportion to their numbers of letters.
    """
    text, tokens = line.text, line.places
    starts = [start for start, _ in tokens]
    times: list[Span | None] = [None] * len(tokens)
    # For each group of words that were spoken together: the index of its first word, and its start and end in seconds.
    groups: list[tuple[int, float, float]] = []
    for number, (start_s, char) in enumerate(places):
        if char is None:
            continue
        word = max(0, bisect_right(starts, char) - 1)
        if groups and word <= groups[-1][0]:
            continue
        following = next(
            (
                (place_s, place)
                for place_s, place in places[number + 1 :]
                if place is None or bisect_right(starts, place) - 1 > word
            ),
            (end_s, None),
        )
        stop_s = max(start_s, following[0])
        groups.append((word, start_s, _end_of_sound(start_s, stop_s, loud) if following[1] is None else stop_s))
    for number, (first, start_s, stop_s) in enumerate(groups):
        last = groups[number + 1][0] if number + 1 < len(groups) else len(tokens)
        shared = [at for at in range(first if number else 0, last) if count_letters(text[slice(*tokens[at])])]
        weights = [count_letters(text[slice(*tokens[at])]) for at in shared]
        for at, span in zip(shared, share_time(start_s, stop_s, weights), strict=True):
            times[at] = span
    return times


def share_time(start_s: float, end_s: float, weights: Sequence[int]) -> list[Span]:
    """Divide the time from `start_s` to `end_s` in proportion to the weights. Returns one span for each weight."""
    total = sum(weights) or 1
    places = [start_s + (end_s - start_s) * done / total for done in itertools.accumulate(weights, initial=0)]
    return list(itertools.pairwise(places))


def count_letters(text: str) -> int:
    """Return the number of letters and digits of a text."""
    return sum(char.isalnum() for char in text)


def _loud_windows(samples: Samples, rate_hz: int) -> np.ndarray:
    """Return (T,) whether each window of 10 ms is louder than silence."""
    size = max(1, round(_WINDOW_S * rate_hz))
    count = -(-len(samples) // size)
    padded = np.pad(samples, (0, count * size - len(samples)))
    level = 10 * np.log10(np.square(padded.reshape(count, size)).mean(axis=1) + 1e-10)
    return level > np.percentile(level, 95) - _SILENCE_DB if count else np.zeros(0, bool)


def _end_of_sound(start_s: float, end_s: float, loud: np.ndarray) -> float:
    """Return the end of the last sound between two times; `end_s` if all is silent."""
    first, last = int(start_s / _WINDOW_S), -(-end_s // _WINDOW_S)
    sounding = np.flatnonzero(loud[first : int(last)])
    return min(end_s, (first + int(sounding[-1]) + 1) * _WINDOW_S) if len(sounding) else end_s
