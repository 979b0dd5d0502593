"""The edges and the level of one utterance: trim silence, fade, apply gain, limit the length.

A model may start late, end late or stop on a loud sample. Without trimming and fades, joined sentences would have long
pauses or click. This module does not depend on text or engines.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from app.audio import pcm
from app.audio.levels import QUIET_DBFS, UPDATE_WINDOWS, LevelTracker, PowerSmoother
from app.audio.stages import joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

_KNEE = np.float32(0.9)  # -0.9 dBFS: normal speech rarely reaches this level
_WINDOW_S = 0.01
_SMOOTHED = 8  # number of windows in the moving average of the power

_NOTHING: Samples = np.zeros(0, dtype=np.float32)
_NOTHING.flags.writeable = False


class EdgeTrimmer:
    """A `Stage` that shortens the silence before the first sound to lead_s, and the silence after the last sound to
    tail_s.

    Whether a window of 10 ms is silent depends on the level and the noise floor of the utterance (`levels.py`). If all
    audio is silent, at most lead_s of it is returned.

    Pauses inside the utterance are kept. The first tail_s of a pause is returned immediately. The later part of the
    pause is held until sound follows. So the memory grows with the length of a pause. Audio that is not silent is
    delayed by less than 10 ms.

    The first sound is a window that is louder than BEGIN_DBFS. Softer audio before the first sound is the noise of a
    room or a soft consonant, so only the last SOFT_LEAD_S of it is kept. If audio stays soft for SOFT_VOICE_S, the
    voice itself is soft, and all of this audio is kept.
    """

    BEGIN_DBFS = -38.0
    # At the end of an utterance, audio above this level is never cut as silence, because the last sound of a word may
    # be this soft.
    SOFTEST_END_DBFS = -42.0
    SOFT_LEAD_S, SOFT_VOICE_S = 0.15, 1.5

    def __init__(self, rate_hz: int, *, lead_s: float = 0.05, tail_s: float = 0.15) -> None:
        self._window_samples = max(1, round(_WINDOW_S * rate_hz))
        self._lead_samples = round(lead_s * rate_hz)
        self._tail_samples = round(tail_s * rate_hz)
        self._soft_windows = round(self.SOFT_LEAD_S / _WINDOW_S)
        self._levels = LevelTracker(_WINDOW_S)
        self._smoother = PowerSmoother(_SMOOTHED)
        self._windows = 0  # number of windows whose level was measured
        self._partial = _NOTHING  # audio that does not fill a window yet
        self._lead: list[Samples] = []  # windows before the first sound: the last silence, then soft audio
        self._soft = 0  # number of windows in `_lead`, from the first soft window on
        self._held: list[Samples] = []  # the part of a pause beyond tail_s
        self._kept_of_pause = 0  # number of samples of the current pause that were returned
        self.sounds = 0  # increases with each part of the input that has a window that is not silent
        self._before_samples = 0  # number of samples up to the first sound, including its window
        self.removed_samples = 0  # number of samples removed at the start; final when `sounds` is above 0

    def push(self, samples: Samples) -> Samples:
        samples = np.concatenate((self._partial, samples))
        whole = len(samples) - len(samples) % self._window_samples
        self._partial = samples[whole:].copy()
        return self._pass(samples[:whole].reshape(-1, self._window_samples)) if whole else _NOTHING

    def flush(self) -> Samples:
        last, self._partial = self._partial, _NOTHING
        out = self._pass(last[None]) if len(last) else _NOTHING
        if not self.sounds and self._soft:
            out = self._begin(self._soft)
        elif not self.sounds:
            out = self._last_of_lead(self._lead_samples)
        self._held, self._lead = [], []
        return out

    def _pass(self, windows: Samples) -> Samples:
        """Process windows (n, size), and return the samples that can be returned now."""
        power = np.square(windows, dtype=np.float64).sum(axis=1) / windows.shape[1] + 1e-12
        smooth = self._smoother.push(power)
        levels = np.minimum(10 * np.log10(power), smooth)
        loud = levels >= self._thresholds(smooth)
        out = []
        for at, level in enumerate(levels):
            if self.sounds:
                out.append(self._after(windows[at:], loud[at:]))
                break
            self._lead.append(windows[at].copy())
            self._before_samples += len(windows[at])
            self._soft += self._soft > 0 or level >= QUIET_DBFS
            if level >= self.BEGIN_DBFS:
                out.append(self._begin(min(self._soft, 1 + self._soft_windows)))
            elif self._soft >= self.SOFT_VOICE_S / _WINDOW_S:
                out.append(self._begin(self._soft))
            elif not self._soft:
                self._lead = [self._last_of_lead(self._lead_samples)]
        return joined(out)

    def _thresholds(self, smooth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the level in dBFS below which each window is silent. smooth: the smoothed levels of the windows."""
        thresholds = np.empty(len(smooth))
        start = 0
        while start < len(smooth):  # the threshold changes every UPDATE_WINDOWS, so the size of the input has no effect
            stop = start + UPDATE_WINDOWS - self._windows % UPDATE_WINDOWS
            block = smooth[start:stop]
            thresholds[start:stop] = min(self._levels.threshold_dbfs, self.SOFTEST_END_DBFS)
            self._levels.add(block)
            self._windows += len(block)
            start = stop
        return thresholds

    def _begin(self, soft: int) -> Samples:
        """Begin the output at the first sound: return the last `soft` windows before it, and lead_s of the audio before
        these windows.
        """
        self.sounds += 1
        size = sum(map(len, self._lead[-soft:])) + self._lead_samples
        lead, self._lead = self._last_of_lead(size), []
        self.removed_samples = self._before_samples - len(lead)
        return lead

    def _last_of_lead(self, size: int) -> Samples:
        lead = joined(self._lead)
        return lead[max(0, len(lead) - size) :]

    def _after(self, windows: Samples, loud: NDArray[np.bool_]) -> Samples:
        """Process windows (n, size) that come after the first sound."""
        if not loud.any():
            return self._pause(windows.reshape(-1))
        self.sounds += 1
        end = int(np.flatnonzero(loud)[-1]) + 1
        out = [*self._held, windows[:end].reshape(-1)]
        self._held = []
        self._kept_of_pause = 0
        return joined([*out, self._pause(windows[end:].reshape(-1))])

    def _pause(self, silent: Samples) -> Samples:
        now = min(len(silent), self._tail_samples - self._kept_of_pause)
        self._kept_of_pause += now
        if now < len(silent):
            self._held.append(silent[now:].copy())
        return silent[:now]


class Fader:
    """A `Stage` that fades an utterance in and out with raised cosines, so that the edges do not click.

    The fade-in adds no delay. The fade-out delays the audio by the length of the fade-out. A very short utterance gets
    shorter fades.
    """

    def __init__(self, rate_hz: int, *, fade_in_s: float = 0.004, fade_out_s: float = 0.010) -> None:
        self._rise = _rise(round(fade_in_s * rate_hz))
        self._fall_samples = round(fade_out_s * rate_hz)
        self._position = 0
        self._held = _NOTHING

    def push(self, samples: Samples) -> Samples:
        rise = self._rise[self._position : self._position + len(samples)]
        if len(rise):
            samples = np.concatenate((samples[: len(rise)] * rise, samples[len(rise) :]))
        self._position += len(samples)
        samples = np.concatenate((self._held, samples))
        ready = max(0, len(samples) - self._fall_samples)
        self._held = samples[ready:].copy()
        return samples[:ready]

    def flush(self) -> Samples:
        held, self._held = self._held, _NOTHING
        return held * _rise(len(held))[::-1]


class Gain:
    """A `Stage` that applies gain_db and limits the result to [-1, 1] with `soft_limit`, without delay or memory."""

    def __init__(self, gain_db: float) -> None:
        self._factor = np.float32(pcm.amplitude(gain_db))

    def push(self, samples: Samples) -> Samples:
        return soft_limit(samples * self._factor)

    def flush(self) -> Samples:
        return _NOTHING


class LengthLimit:
    """A `Stage` that fades out the audio and ends it at limit_s.

    limit_s: None = no limit. reached: whether the audio has reached the limit.
    """

    def __init__(self, rate_hz: int, limit_s: float | None) -> None:
        self._left_samples = None if limit_s is None else round(limit_s * rate_hz)
        self._fader = Fader(rate_hz, fade_in_s=0.0) if limit_s is not None else None
        self.reached = False

    def push(self, samples: Samples) -> Samples:
        if self._left_samples is None or self._fader is None:
            return samples
        samples = samples[: self._left_samples]
        self._left_samples -= len(samples)
        self.reached = self._left_samples == 0
        return self._fader.push(samples)

    def flush(self) -> Samples:
        return _NOTHING if self._fader is None else self._fader.flush()


def soft_limit(samples: Samples) -> Samples:
    """Limit samples (N,) to [-1, 1]. Samples up to 0.9 stay unchanged; a tanh curve compresses larger ones."""
    magnitude = np.abs(samples)
    over = magnitude > _KNEE
    if not over.any():
        return samples
    room = np.float32(1.0) - _KNEE
    bent = np.minimum(_KNEE + room * np.tanh((magnitude - _KNEE) / room), np.float32(1.0))
    return np.where(over, np.copysign(bent, samples), samples)


@functools.lru_cache(maxsize=64)
def _rise(length: int) -> NDArray[np.float32]:
    """Return the rising half of a raised cosine with `length` points, from just above 0 to just below 1.

    The array is cached: do not change it.
    """
    phase = (np.arange(length) + 0.5) / max(1, length)
    rise: NDArray[np.float32] = (0.5 - 0.5 * np.cos(np.pi * phase)).astype(np.float32)
    rise.flags.writeable = False
    return rise
