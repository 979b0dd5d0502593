"""Choose the part of a recording that is best for cloning: 6 to 12 s of speech between two pauses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from app.audio.levels import levels_dbfs
from app.voices.vad import Span, joined, runs

if TYPE_CHECKING:
    from app.types import Samples

MIN_WINDOW_S, MAX_WINDOW_S = 6.0, 12.0
BEST_WINDOW_S = 10.0  # windows near this length get the best scores
WHOLE_MAX_S = 30.0  # the longest recording that is used without cutting, if its transcript is known
BORDER_PAUSE_S = 0.3  # a pause of this length is usually the end of a sentence or a long clause
_BESIDE_S = 0.3  # this much audio before and after a window is also used to measure the noise
# A low level of this duration inside speech is a pause. The closure of a consonant is shorter.
_DIP_S, _DIP_DB = 0.14, 25.0
LEAD_S, TAIL_S = 0.1, 0.2  # audio that is kept before and after the speech, so that no soft sound is lost


def best_window(spans: Sequence[Span], samples: Samples, rate_hz: int, most_s: float = WHOLE_MAX_S) -> Span:
    """Choose the best window of speech in mono samples (N,). spans: the parts with speech, at least one.

    Normally the window begins and ends at a pause and lasts at most MAX_WINDOW_S seconds. If the pauses are too far
    apart, the window may last up to `most_s` seconds. Speech without any pause is cut at its quietest moment. The score
    rewards a large share of speech, long pauses at both ends, low noise, no clipping and a length near BEST_WINDOW_S.
    """
    longest_s = min(MAX_WINDOW_S, most_s)
    shortest_s = min(MIN_WINDOW_S, 0.5 * longest_s)
    whole = Span(spans[0].start_s, spans[-1].end_s)
    if whole.seconds <= longest_s:
        return whole
    levels = levels_dbfs(samples, rate_hz)
    long: list[Span] = []
    for parts in (joined(spans, BORDER_PAUSE_S), list(spans), _between_dips(spans, levels)):
        windows = [Span(parts[i].start_s, parts[j].end_s) for i in range(len(parts)) for j in range(i, len(parts))]
        good = [window for window in windows if shortest_s <= window.seconds <= longest_s]
        if good:
            return max(good, key=lambda window: _score(window, parts, levels, samples, rate_hz))
        long += [window for window in windows if longest_s < window.seconds <= most_s]
    if long:
        return min(long, key=lambda window: window.seconds)
    return _cut(max(spans, key=lambda part: part.seconds), levels, longest_s)


def _between_dips(spans: Sequence[Span], levels: np.ndarray) -> list[Span]:
    """Split spans at each place where the level is low for _DIP_S or longer, because such a place is between words."""
    parts = []
    for span in spans:
        first, last = round(span.start_s * 50), round(span.end_s * 50)
        inside = levels[first:last]
        if not len(inside):
            continue
        quiet = inside < np.percentile(inside, 90) - _DIP_DB
        start_s = span.start_s
        for begin, end in runs(quiet):
            if begin > 0 and end < len(inside) and (end - begin) / 50 >= _DIP_S:
                parts.append(Span(start_s, (first + begin) / 50 + 0.02))
                start_s = (first + end) / 50 - 0.02
        parts.append(Span(start_s, span.end_s))
    return parts


def _score(window: Span, parts: Sequence[Span], levels: np.ndarray, samples: Samples, rate_hz: int) -> float:
    """Return the score of a window; higher is better. levels: the level in dBFS of each frame of the recording."""
    inside = [part for part in parts if window.start_s <= part.start_s and part.end_s <= window.end_s]
    speech = sum(part.seconds for part in inside) / window.seconds
    before = [part.end_s for part in parts if part.end_s <= window.start_s]
    after = [part.start_s for part in parts if part.start_s >= window.end_s]
    pauses_s = [
        min(1.0, window.start_s - before[-1]) if before else 1.0,
        min(1.0, after[0] - window.end_s) if after else 1.0,
    ]
    # The contrast is the level of loud frames, minus the level of the quietest frames. Audio beside the window is
    # included, because the window may have no pause.
    frames = levels[max(0, round((window.start_s - _BESIDE_S) * 50)) : round((window.end_s + _BESIDE_S) * 50)]
    contrast = min(50.0, float(np.percentile(frames, 80) - np.percentile(frames, 2))) / 50
    magnitudes = np.abs(samples[round(window.start_s * rate_hz) : round(window.end_s * rate_hz)])
    clipped = float(np.mean(magnitudes >= 0.99))
    length = abs(window.seconds - BEST_WINDOW_S) / BEST_WINDOW_S
    return speech + 0.5 * sum(pauses_s) / 2 + 0.5 * contrast - 20 * clipped - 0.3 * length


def _cut(part: Span, levels: np.ndarray, longest_s: float) -> Span:
    """Return the first part of speech without pauses. It ends at the quietest moment in the last third of longest_s."""
    first, last = round((part.start_s + longest_s * 2 / 3) * 50), round((part.start_s + longest_s) * 50)
    around = np.convolve(levels[first:last], np.full(5, 0.2), "same")
    return Span(part.start_s, (first + int(np.argmin(around))) / 50)


def padded(window: Span, spans: Sequence[Span], total_s: float) -> Span:
    """Extend a window by LEAD_S before and TAIL_S after it, but at most to the middle of the pause beside it.

    spans: the parts with speech. total_s: length of the recording.
    """
    before = max((span.end_s for span in spans if span.end_s <= window.start_s), default=0.0)
    after = min((span.start_s for span in spans if span.start_s >= window.end_s), default=total_s)
    start_s = max(window.start_s - LEAD_S, (before + window.start_s) / 2 if before else 0.0, 0.0)
    end_s = min(window.end_s + TAIL_S, (window.end_s + after) / 2 if after < total_s else total_s, total_s)
    return Span(start_s, end_s)
