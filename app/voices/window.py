"""Chooses the best part of a recording for cloning: 6 to 12 s of dense, clean speech between pauses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from app.voices.vad import Span, frame_levels_db, joined

if TYPE_CHECKING:
    from app.types import Samples

MIN_WINDOW_S, MAX_WINDOW_S = 6.0, 12.0
BEST_WINDOW_S = 10.0
WHOLE_MAX_S = 30.0  # a recording whose words are given as a whole may be used whole up to this
BORDER_PAUSE_S = 0.3  # speakers pause this long between sentences and long clauses, rarely inside
_BESIDE_S = 0.3
LEAD_S, TAIL_S = 0.1, 0.2  # kept around speech, so that no first or last sound is cut


def best_window(spans: Sequence[Span], samples: Samples, rate_hz: int) -> Span:
    """The best stretch of up to MAX_WINDOW_S, or up to WHOLE_MAX_S where the speaker does not pause before.

    From the start of speech to its end, without silence around it. spans: the stretches of speech, at least one.
    Scored by how much of it is speech, how long the pauses at its ends are, how clean it is and how near its length is
    to BEST_WINDOW_S. A speaker who never pauses is cut at the quietest moment.
    """
    parts = joined(spans, BORDER_PAUSE_S)
    whole = Span(parts[0].start_s, parts[-1].end_s)
    if whole.seconds <= MAX_WINDOW_S:
        return whole
    levels = frame_levels_db(samples, rate_hz)
    windows = [Span(parts[i].start_s, parts[j].end_s) for i in range(len(parts)) for j in range(i, len(parts))]
    good = [window for window in windows if MIN_WINDOW_S <= window.seconds <= MAX_WINDOW_S]
    if good:
        return max(good, key=lambda window: _score(window, parts, levels, samples, rate_hz))
    long = [window for window in windows if MAX_WINDOW_S < window.seconds <= WHOLE_MAX_S]
    if long:
        return min(long, key=lambda window: window.seconds)
    return _cut(max(parts, key=lambda part: part.seconds), levels)


def _score(window: Span, parts: Sequence[Span], levels: np.ndarray, samples: Samples, rate_hz: int) -> float:
    inside = [part for part in parts if window.start_s <= part.start_s and part.end_s <= window.end_s]
    speech = sum(part.seconds for part in inside) / window.seconds
    before = [part.end_s for part in parts if part.end_s <= window.start_s]
    after = [part.start_s for part in parts if part.start_s >= window.end_s]
    pauses_s = [
        min(1.0, window.start_s - before[-1]) if before else 1.0,
        min(1.0, after[0] - window.end_s) if after else 1.0,
    ]
    # Its loud parts over its quietest, and those around it: a stretch without a pause has its noise beside it.
    frames = levels[max(0, round((window.start_s - _BESIDE_S) * 50)) : round((window.end_s + _BESIDE_S) * 50)]
    contrast = min(50.0, float(np.percentile(frames, 80) - np.percentile(frames, 2))) / 50
    heard = np.abs(samples[round(window.start_s * rate_hz) : round(window.end_s * rate_hz)])
    clipped = float(np.mean(heard >= 0.99))
    length = abs(window.seconds - BEST_WINDOW_S) / BEST_WINDOW_S
    return speech + 0.5 * sum(pauses_s) / 2 + 0.5 * contrast - 20 * clipped - 0.3 * length


def _cut(part: Span, levels: np.ndarray) -> Span:
    """Of speech without a pause: from its start to its quietest moment between 8 and 12 s."""
    first, last = round((part.start_s + 8.0) * 50), round((part.start_s + MAX_WINDOW_S) * 50)
    around = np.convolve(levels[first:last], np.full(5, 0.2), "same")
    return Span(part.start_s, (first + int(np.argmin(around))) / 50)


def padded(window: Span, spans: Sequence[Span], total_s: float) -> Span:
    """With LEAD_S and TAIL_S around it, but no nearer to other speech than half of the pause."""
    before = max((span.end_s for span in spans if span.end_s <= window.start_s), default=0.0)
    after = min((span.start_s for span in spans if span.start_s >= window.end_s), default=total_s)
    start_s = max(window.start_s - LEAD_S, (before + window.start_s) / 2 if before else 0.0, 0.0)
    end_s = min(window.end_s + TAIL_S, (window.end_s + after) / 2 if after < total_s else total_s, total_s)
    return Span(start_s, end_s)
