"""Measure features of a voice in a recording: pitch, brightness, level, shares of speech and pauses.

The pitch is measured with YIN (de Cheveigné and Kawahara, JASA 2002), computed by FFT over frames of 50 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import soxr

from app.audio import pcm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

_RATE_HZ = 16_000  # recordings are resampled to this rate, so that brightness always covers 0 to 8 kHz
_FRAME, _HOP = 800, 160  # samples
_LOWEST_HZ, _HIGHEST_HZ = 55.0, 420.0
_PERIODIC = 0.2  # YIN's threshold: a frame is voiced if its normalised difference falls below this
_SPLIT_HZ, _LOW_HZ = 2_000.0, 80.0
_QUIET_DB = 35.0  # a frame is a pause if it is this much below the loudest tenth of the frames


@dataclass(frozen=True, slots=True)
class VoiceFeatures:
    """Features of one recording. A share is a number from 0 to 1."""

    seconds: float
    pitch_hz: float  # median; 0 = no voiced frame
    pitch_spread: float  # median deviation from pitch_hz in semitones
    brightness_db: float  # energy above 2 kHz over the energy below
    level_dbfs: float  # of the speech
    voiced: float  # share of the speech that has a pitch
    speech: float  # share of the recording that is speech; the rest is pauses
    longest_pause_s: float
    clipped: float  # share of the samples


def measure(samples: Samples, rate_hz: int) -> VoiceFeatures:
    """Measure mono samples (N,) float32."""
    seconds = len(samples) / rate_hz
    clipped = float(np.mean(np.abs(samples) >= 0.999)) if len(samples) else 0.0
    at_rate = samples if rate_hz == _RATE_HZ else soxr.resample(samples, rate_hz, _RATE_HZ)
    if len(at_rate) < 4 * _FRAME:
        return VoiceFeatures(seconds, 0.0, 0.0, 0.0, -120.0, 0.0, 0.0, seconds, clipped)
    frames = np.lib.stride_tricks.sliding_window_view(at_rate, _FRAME)[::_HOP].astype(np.float64)  # (F, _FRAME)
    power = np.mean(np.square(frames), axis=1) + 1e-12
    levels = 10 * np.log10(power)
    loud = levels > max(np.quantile(levels, 0.9) - _QUIET_DB, -60.0)
    if not loud.any():
        return VoiceFeatures(seconds, 0.0, 0.0, 0.0, -120.0, 0.0, 0.0, seconds, clipped)
    spoken = frames[loud]
    pitches = _pitches(spoken)
    voiced = pitches[pitches > 0]
    spectrum = np.mean(np.square(np.abs(np.fft.rfft(spoken * np.hanning(_FRAME)))), axis=0)
    hertz = np.fft.rfftfreq(_FRAME, 1 / _RATE_HZ)
    high = spectrum[hertz >= _SPLIT_HZ].sum() + 1e-12
    low = spectrum[(hertz >= _LOW_HZ) & (hertz < _SPLIT_HZ)].sum() + 1e-12
    median = float(np.median(voiced)) if len(voiced) else 0.0
    spread = float(np.median(np.abs(12 * np.log2(voiced / median)))) if median else 0.0
    return VoiceFeatures(
        seconds=seconds,
        pitch_hz=median,
        pitch_spread=spread,
        brightness_db=float(10 * np.log10(high / low)),
        level_dbfs=pcm.rms_dbfs(np.sqrt(power[loud])),
        voiced=len(voiced) / len(spoken),
        speech=float(np.mean(loud)),
        longest_pause_s=_longest_run(~loud) * _HOP / _RATE_HZ,
        clipped=clipped,
    )


def _pitches(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pitch of each frame (F, N) in Hz -> (F,); 0 for a frame without a pitch."""
    shortest, longest = int(_RATE_HZ / _HIGHEST_HZ), int(_RATE_HZ / _LOWEST_HZ) + 1
    window = frames.shape[1] - longest
    size = 1 << (frames.shape[1] + window - 1).bit_length()
    head = np.fft.rfft(frames[:, :window], size)
    product = np.fft.irfft(np.fft.rfft(frames, size) * head.conj(), size)[:, : longest + 1]
    squares = np.concatenate((np.zeros((len(frames), 1)), np.cumsum(np.square(frames), axis=1)), axis=1)
    lags = np.arange(longest + 1)
    energy = squares[:, lags + window] - squares[:, lags]
    difference = np.maximum(energy[:, :1] + energy - 2 * product, 0.0)  # (F, L): eq. 6
    mean = np.cumsum(difference[:, 1:], axis=1) / lags[1:]
    normalised = difference[:, 1:] / np.maximum(mean, 1e-12)  # eq. 8, from lag 1
    normalised = normalised[:, shortest - 1 :]
    under = normalised < _PERIODIC
    first = np.argmax(under, axis=1)
    pitches = np.zeros(len(frames))
    for row in np.flatnonzero(under.any(axis=1)):
        at = first[row]
        while at + 1 < normalised.shape[1] and normalised[row, at + 1] < normalised[row, at]:
            at += 1
        pitches[row] = _RATE_HZ / (at + shortest)
    return pitches


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Length of the longest run of True in flags (N,)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0
