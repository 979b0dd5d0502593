"""Measures the level of speech and of background noise while a line is spoken.

The pauses of a recording contain the noise of the room and the microphone, and a model imitates this noise. So silence
has no fixed level. A window is silent if its level is near the noise floor of the line and far below the level of the
line's speech.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

    Levels = NDArray[np.float64]

WINDOW_S = 0.02  # duration of the window that one level describes
UPDATE_WINDOWS = 8  # the threshold is computed only once in UPDATE_WINDOWS windows, because percentiles cost time
MEMORY_S = 10.0  # the threshold depends on the levels of the last MEMORY_S only, because speakers change their level
QUIET_DBFS = -50.0  # audio below this level is always silent, even if the noise floor of the line is lower
DIGITAL_DBFS = -75.0  # audio below this level is digital silence, because every recording has more noise
_FLOOR_PERCENT, _SPEECH_PERCENT = 5, 90  # percentiles of the levels of a line: the noise floor and the loud speech
# Silence is at most 6 dB above the noise floor and at least 14 dB below loud speech.
_ABOVE_FLOOR_DB, _BELOW_SPEECH_DB = 6.0, 14.0
# In a line that is soft as a whole, audio is silent only if it is at least _SOFT_SPEECH_DB below the line's loud
# speech.
_SOFT_SPEECH_DB = 20.0


def levels_dbfs(samples: Samples, rate_hz: int, window_s: float = WINDOW_S) -> Levels:
    """Return the RMS level of each complete window of samples (N,) in dBFS: (windows,), at least -120."""
    size = max(1, round(window_s * rate_hz))
    count = len(samples) // size
    power = np.mean(np.square(samples[: count * size].reshape(count, size), dtype=np.float64), axis=1)
    return np.asarray(10 * np.log10(power + 1e-12))


def silence_threshold(levels: Levels) -> float:
    """Return the level in dBFS below which a window is silent.

    levels: (n,) levels of the windows of one recording; if there are none, the result is QUIET_DBFS. The rule was
    fitted to human recordings at -20 LUFS. The noise floors of these recordings are between -78 and -39 dBFS, so no
    fixed level separates speech from pauses.
    """
    return _threshold(*_floor_and_speech(levels)) if len(levels) else QUIET_DBFS


def _floor_and_speech(levels: Levels) -> tuple[float, float]:
    """Return the noise floor and the level of loud speech in dBFS. levels: (n,) with n > 0."""
    last = len(levels) - 1
    floor_at, speech_at = last * (_FLOOR_PERCENT / 100), last * (_SPEECH_PERCENT / 100)
    low, high = int(floor_at), int(speech_at)
    ordered = np.sort(levels).item
    return (
        _between(ordered(low), ordered(min(low + 1, last)), floor_at - low),
        _between(ordered(high), ordered(min(high + 1, last)), speech_at - high),
    )


def _between(low: float, high: float, share: float) -> float:
    """Interpolate between two values with the formula of np.percentile. For a short array, np.percentile itself would
    take several times as long.
    """
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def _threshold(floor: float, speech: float) -> float:
    return max(min(QUIET_DBFS, speech - _SOFT_SPEECH_DB), min(floor + _ABOVE_FLOOR_DB, speech - _BELOW_SPEECH_DB))


class PowerSmoother:
    """Computes the moving average of the power of windows. With the average, a short peak in the noise of a room does
    not count as speech.
    """

    def __init__(self, windows: int) -> None:
        """windows: the number of windows in the average, including the current window."""
        self._weights = np.full(windows, 1 / windows)
        self._recent = np.full(windows, 1e-12)  # power of the last windows

    def push(self, power: Levels) -> Levels:
        """Add the power (n,) of the next windows, and return their smoothed levels in dBFS (n,)."""
        joined = np.concatenate((self._recent, power))
        self._recent = joined[-len(self._recent) :]
        return np.asarray(10 * np.log10(np.correlate(joined, self._weights, "valid")[1:]))


class LevelTracker:
    """Keeps the levels of the last MEMORY_S seconds of a line, and computes the threshold of silence from them."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._levels = np.zeros(round(MEMORY_S / window_s))
        self._count = 0
        self._threshold = QUIET_DBFS
        # The highest level of loud speech so far. A maximum is used, because the level must not fall in a long pause.
        self._speech_dbfs = -np.inf
        self._judged = 0  # how many levels were known when `_threshold` was last computed

    def add(self, levels: Levels) -> None:
        """Add the levels (n,) of the next windows, which are together at most MEMORY_S seconds long."""
        size = len(self._levels)
        start = self._count % size
        fitting = min(len(levels), size - start)
        self._levels[start : start + fitting] = levels[:fitting]
        self._levels[: len(levels) - fitting] = levels[fitting:]
        self._count += len(levels)
        if self._count >= self._judged + UPDATE_WINDOWS:
            self._judged = self._count
            floor, speech = _floor_and_speech(self._levels[: min(self._count, size)])
            self._speech_dbfs = max(self._speech_dbfs, speech)
            self._threshold = _threshold(floor, self._speech_dbfs)

    @property
    def threshold_dbfs(self) -> float:
        """The level below which a window of this line is silent."""
        return self._threshold
