"""A limiter for true peaks, with 5 ms of lookahead."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from app.audio import pcm

if TYPE_CHECKING:
    from app.types import Samples

_LOOK_AHEAD_S = 0.005
_TAPS = 12
_PEAK_ERROR_DB = 0.4  # the measured true peaks of speech are too low by at most _PEAK_ERROR_DB
_SURELY_BELOW = 0.5  # between two samples, the wave of speech is less than twice as large as at these samples


class Limiter:
    """Limits the true peaks of a stream. The gain is normally 1. Around a peak, the gain falls along a raised cosine of
    5 ms.

    True peaks are measured with fourfold oversampling (BS.1770-4, annex 2). The error of the measurement is at most 0.7
    dB for a sine at half the sample rate, and 0.1 dB for speech.
    """

    def __init__(self, rate_hz: int, ceiling_dbtp: float) -> None:
        """ceiling_dbtp: the highest true peak in dBTP."""
        self._ceiling = np.float32(pcm.amplitude(ceiling_dbtp - _PEAK_ERROR_DB))
        self._half = max(1, (round(_LOOK_AHEAD_S * rate_hz) - _TAPS // 2) // 2)
        self._kernel = _kernel(self._half)
        self._reach = 2 * self._half + _TAPS // 2  # the gain of a sample depends on `_reach` samples on each side of it
        self.end = np.zeros(self._reach, np.float32)  # the silence that `flush` adds to the input
        # The last samples that were returned, which the gain needs as context, and then all samples that were not
        # returned yet.
        self._held = np.zeros(self._reach, np.float32)

    def push(self, samples: Samples) -> Samples:
        held = np.concatenate((self._held, samples))
        ready = max(0, len(held) - 2 * self._reach)
        self._held = held[ready:].copy()
        return self._limited(held, ready)

    def flush(self) -> Samples:
        return self.push(self.end)

    def _limited(self, held: Samples, ready: int) -> Samples:
        """Return the samples held[_reach : _reach + ready] with limited peaks. The samples around them are context."""
        middle = held[self._reach : self._reach + ready]
        peaks = np.abs(held)
        if not ready or peaks.max() < _SURELY_BELOW * self._ceiling:
            return middle
        side = _TAPS // 2
        # The wave between two samples can exceed the ceiling only if one of the two samples is loud.
        loud = peaks[side - 1 : len(held) - side + 1] >= _SURELY_BELOW * self._ceiling
        # Each index in `at` stands for two neighbouring samples, held[at + side - 1] and held[at + side]. At least one
        # of them is loud.
        at = np.flatnonzero(loud[:-1] | loud[1:])
        # `sliding_window_view` would return the same view, but take longer than the rest of this function.
        windows = np.ndarray((len(held) - _TAPS + 1, _TAPS), held.dtype, held, strides=2 * held.strides)
        between = np.abs(np.einsum("nt,pt->pn", windows[at], _PHASES)).max(axis=0)
        for neighbour in (side - 1, side):
            peaks[at + neighbour] = np.maximum(peaks[at + neighbour], between)
        if peaks.max() <= self._ceiling:
            return middle
        allowed = np.minimum(np.float32(1.0), self._ceiling / np.maximum(peaks, self._ceiling))
        lowest = sliding_window_view(allowed, 2 * self._half + 1).min(axis=1)
        gains = np.convolve(lowest, self._kernel, "valid")  # gains[i] belongs to held[i + 2 * half]
        first = self._reach - 2 * self._half
        return (middle * np.minimum(gains[first : first + ready], np.float32(1.0))).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _kernel(half: int) -> Samples:
    """Return a raised cosine with 2 * half + 1 points and the sum 1.

    The array is cached: do not change it.
    """
    kernel = 0.5 + 0.5 * np.cos(np.pi * np.arange(-half, half + 1) / (half + 1))
    scaled: Samples = (kernel / kernel.sum()).astype(np.float32)
    scaled.flags.writeable = False
    return scaled


def _between(share: float) -> Samples:
    """Return an interpolation filter for the point at `share` between two samples: a sinc with a Kaiser window."""
    at = np.arange(_TAPS) - (_TAPS // 2 - 1) - share
    taps = np.sinc(at) * np.i0(5.0 * np.sqrt(np.maximum(0.0, 1 - np.square(at / (_TAPS / 2))))) / np.i0(5.0)
    scaled: Samples = (taps / taps.sum()).astype(np.float32)
    return scaled


_PHASES = np.stack([_between(share) for share in (0.25, 0.5, 0.75)])  # (3, taps)
