"""Choose the part of a recording that is best for cloning: 6 to 12 s of speech between two pauses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from app.voices.vad import Span, frame_levels_db, joined

if TYPE_CHECKING:
    from app.types import Samples

MIN_WINDOW_S, MAX_WINDOW_S = 6.0, 12.0
BEST_WINDOW_S = 10.0  # windows near this length have a better score
WHOLE_MAX_S = 30.0  # the longest recording that is used without cutting, if its transcript is known
BORDER_PAUSE_S = 0.3  # a pause of this length is usually the end of a sentence or a long clause
_BESIDE_S = 0.3  # audio on each side of a window that is used to measure the noise
LEAD_S, TAIL_S = 0.1, 0.2  # kept before and after the speech, so that no soft first or last sound is lost


def best_window(spans: Sequence[Span], samples: Samples, rate_hz: int) -> Span:
    """Choose the best window of speech in mono samples (N,). spans: the speech in them, at least one span.

    The window begins and ends with speech. It has at most MAX_WINDOW_S, or up to WHOLE_MAX_S if there is no pause
    earlier. The score rewards a large share of speech, long pauses at both ends, low noise, no clipping and a length
    near BEST_WINDOW_S. Speech without pauses is cut at its quietest moment.
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
    """The score of a window; higher is better. levels: of the frames of the whole recording, in dBFS."""
    inside = [part for part in parts if window.start_s <= part.start_s and part.end_s <= window.end_s]
    speech = sum(part.seconds for part in inside) / window.seconds
    before = [part.end_s for part in parts if part.end_s <= window.start_s]
    after = [part.start_s for part in parts if part.start_s >= window.end_s]
    pauses_s = [
        min(1.0, window.start_s - before[-1]) if before else 1.0,
        min(1.0, after[0] - window.end_s) if after else 1.0,
    ]
    # Loud frames over the quietest frames. Audio beside the window counts too, because the window may have no pause.
    frames = levels[max(0, round((window.start_s - _BESIDE_S) * 50)) : round((window.end_s + _BESIDE_S) * 50)]
    contrast = min(50.0, float(np.percentile(frames, 80) - np.percentile(frames, 2))) / 50
    magnitudes = np.abs(samples[round(window.start_s * rate_hz) : round(window.end_s * rate_hz)])
    clipped = float(np.mean(magnitudes >= 0.99))
    length = abs(window.seconds - BEST_WINDOW_S) / BEST_WINDOW_S
    return speech + 0.5 * sum(pauses_s) / 2 + 0.5 * contrast - 20 * clipped - 0.3 * length


def _cut(part: Span, levels: np.ndarray) -> Span:
    """Cut speech without pauses: from its start to its quietest moment between 8 and 12 s."""
    first, last = round((part.start_s + 8.0) * 50), round((part.start_s + MAX_WINDOW_S) * 50)
    around = np.convolve(levels[first:last], np.full(5, 0.2), "same")
    return Span(part.start_s, (first + int(np.argmin(around))) / 50)


def padded(window: Span, spans: Sequence[Span], total_s: float) -> Span:
    """Extend a window by LEAD_S and TAIL_S, at most to the middle of the pause before or after other speech.

    total_s: length of the recording.
    """
    before = max((span.end_s for span in spans if span.end_s <= window.start_s), default=0.0)
    after = min((span.start_s for span in spans if span.start_s >= window.end_s), default=total_s)
    start_s = max(window.start_s - LEAD_S, (before + window.start_s) / 2 if before else 0.0, 0.0)
    end_s = min(window.end_s + TAIL_S, (window.end_s + after) / 2 if after < total_s else total_s, total_s)
    return Span(start_s, end_s)
