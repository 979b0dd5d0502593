"""Find a change of the speaker in a recording by a change of the timbre. Even speakers with the same pitch differ in
timbre.

The timbre of a frame is its mel cepstrum without the level. The voiced frames before and after each possible change are
compared with Hotelling's two-sample T-squared statistic (H. Hotelling, "The generalization of Student's ratio", 1931).
The statistic is the squared distance between the mean timbres of the two sides, in units of the spread within the
sides, times a weight for the number of frames.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import soxr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

# 1 of 70 recordings with one speaker exceeds the limit. If two people of the same sex speak one after the other, 3 of 4
# recordings exceed the limit. If the two people take turns several times, 1 of 3 recordings exceeds the limit.
LIMIT = 1_000.0
_RATE_HZ = 16_000
_WINDOW, _HOP, _FFT = 400, 160, 512  # samples
_FIRST_PITCH = 2  # index of the pitch at 25 ms, which is used for the first window (0 to 25 ms)
_FILTERS, _LOW_HZ, _HIGH_HZ = 26, 100.0, 3_800.0  # mel filters, in the frequency range of telephones
_CEPSTRA = 19
_LOUD_DB = 25.0  # a frame more than this many dB below the loudest frames is a pause
_SIDE = 300  # the largest number of voiced frames that are compared on each side of a change
_MIN_SIDE = 75  # the smallest number of voiced frames on each side; a mean of fewer frames depends on the words
_STEP = 10  # frames between two possible changes
_RIDGE = 0.02  # share of the mean variance that is added to each variance


@cache
def _tables() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mel filters (bins, _FILTERS), and the cosines (_FILTERS, _CEPSTRA) without the constant term."""
    low, high = (1127.0 * np.log1p(hz / 700.0) for hz in (_LOW_HZ, _HIGH_HZ))
    edges = 700.0 * np.expm1(np.linspace(low, high, _FILTERS + 2) / 1127.0)
    hz = np.fft.rfftfreq(_FFT, 1 / _RATE_HZ)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    index = np.arange(1, _CEPSTRA + 1)
    cosines = np.cos(np.pi * index * (np.arange(_FILTERS)[:, None] + 0.5) / _FILTERS)
    return np.maximum(np.minimum(rising, falling), 0.0), cosines


def timbre_change(samples: Samples, rate_hz: int, pitches: NDArray[np.float64]) -> float:
    """Return the largest T-squared value of all possible changes of timbre in mono samples (N,); 0 if there is too
    little voiced speech.

    A value above LIMIT means that several people probably speak. pitches: the result of `pitch.track`.
    """
    at_rate = samples if rate_hz == _RATE_HZ else soxr.resample(samples, rate_hz, _RATE_HZ)
    if len(at_rate) < _WINDOW:
        return 0.0
    timbres = _voiced_timbres(at_rate, pitches[_FIRST_PITCH:])
    changes = range(_MIN_SIDE, len(timbres) - _MIN_SIDE + 1, _STEP)
    return max((_t_squared(timbres[max(0, at - _SIDE) : at], timbres[at : at + _SIDE]) for at in changes), default=0.0)


def _voiced_timbres(samples: Samples, pitches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cepstra (voiced frames, _CEPSTRA) of samples (N,) at _RATE_HZ. pitches: the pitch of each frame."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
    count = min(len(frames), len(pitches))
    power = np.mean(np.square(frames[:count], dtype=np.float64), axis=1) + 1e-12
    levels_db = 10 * np.log10(power)
    voiced = (pitches[:count] > 0) & (levels_db > np.quantile(levels_db, 0.95) - _LOUD_DB)
    filters, cosines = _tables()
    spectra = np.square(np.abs(np.fft.rfft(frames[:count][voiced] * np.hamming(_WINDOW), _FFT)))
    bands = (spectra / power[voiced, None]) @ filters
    return np.asarray(np.log(bands + 1e-4) @ cosines)


def _t_squared(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return Hotelling's T-squared of two groups of vectors (n, dimensions), with a regularised covariance."""
    total = len(before) + len(after)
    spread = (np.cov(before.T, bias=True) * len(before) + np.cov(after.T, bias=True) * len(after)) / total
    spread += np.eye(len(spread)) * (_RIDGE * np.trace(spread) / len(spread))
    distance = before.mean(axis=0) - after.mean(axis=0)
    return float(distance @ np.linalg.solve(spread, distance)) * len(before) * len(after) / total
