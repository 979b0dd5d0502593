"""Measure features of a voice in a recording: pitch, brightness, level, shares of speech and pauses.

A frame is 50 ms long, and a new frame begins every 10 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import soxr

from app.audio import pcm, pitch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

_RATE_HZ = 16_000  # recordings are resampled to this rate, so that brightness always covers 0 to 8 kHz
_FRAME, _HOP = 800, 160  # samples
_FIRST_PITCH = 2
_BANDS_HZ = (200, 500, 900, 1_500, 2_500, 4_000, 7_000)
_BAND_RANGE_DB = 30.0  # levels that are more than this many dB below the peak of their band are raised to this limit
_STEP = 5  # the change of the spectrum is measured over this number of frames (50 ms)
_SPLIT_HZ, _LOW_HZ = 2_000.0, 80.0
_QUIET_DB = 35.0  # a frame is a pause if it is this many dB below the loudest tenth of the frames


@dataclass(frozen=True, slots=True)
class VoiceFeatures:
    """Features of one recording. A share is a number from 0 to 1."""

    seconds: float
    pitch_hz: float  # median; 0 = no voiced frame
    pitch_spread: float  # median deviation from pitch_hz in semitones
    brightness_db: float  # energy above 2 kHz relative to the energy below 2 kHz
    level_dbfs: float  # level of the speech
    voiced: float  # share of the speech that has a pitch
    speech: float  # share of the recording that is speech; the remaining share is pauses
    longest_pause_s: float
    clipped: float  # share of the samples that are clipped
    movement_db: float  # mean change of the spectrum's shape in 50 ms


def measure(samples: Samples, rate_hz: int) -> VoiceFeatures:
    """Measure the features of mono samples (N,) float32."""
    seconds = len(samples) / rate_hz
    clipped = float(np.mean(np.abs(samples) >= 0.999)) if len(samples) else 0.0
    at_rate = samples if rate_hz == _RATE_HZ else soxr.resample(samples, rate_hz, _RATE_HZ)
    if len(at_rate) < 4 * _FRAME:
        return VoiceFeatures(seconds, 0.0, 0.0, 0.0, -120.0, 0.0, 0.0, seconds, clipped, 0.0)
    frames = np.lib.stride_tricks.sliding_window_view(at_rate, _FRAME)[::_HOP].astype(np.float64)  # (F, _FRAME)
    power = np.mean(np.square(frames), axis=1) + 1e-12
    levels = 10 * np.log10(power)
    loud = levels > max(np.quantile(levels, 0.9) - _QUIET_DB, -60.0)
    if not loud.any():
        return VoiceFeatures(seconds, 0.0, 0.0, 0.0, -120.0, 0.0, 0.0, seconds, clipped, 0.0)
    spoken = frames[loud]
    # The centre of the first frame is at 25 ms. The first pitch is at 5 ms and the third at 25 ms, so the third pitch
    # belongs to the first frame.
    pitches = pitch.track(at_rate, _RATE_HZ)[_FIRST_PITCH : _FIRST_PITCH + len(frames)][loud]
    voiced = pitches[pitches > 0]
    spectra = np.square(np.abs(np.fft.rfft(frames * np.hanning(_FRAME))))
    spectrum = spectra[loud].mean(axis=0)
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
        movement_db=_movement(spectra, loud),
    )


def _movement(spectra: NDArray[np.float64], loud: NDArray[np.bool_]) -> float:
    """Return how fast the shape of the spectrum changes: the mean change of six bands in dB over 50 ms.

    The change of the overall level does not count. spectra: (F, bins) power. loud: (F,) False for each frame in a
    pause. The result is at least 3 dB for speech, and near 0 for a buzz or a tone.
    """
    hertz = np.fft.rfftfreq(_FRAME, 1 / _RATE_HZ)
    bands = np.array([spectra[:, (hertz >= low) & (hertz < high)].sum(axis=1) for low, high in pairwise(_BANDS_HZ)])
    levels = 10 * np.log10(bands + 1e-9)
    levels = np.maximum(levels, np.percentile(levels[:, loud], 98, axis=1, keepdims=True) - _BAND_RANGE_DB)
    shape = levels - levels.mean(axis=0)
    change = np.abs(shape[:, _STEP:] - shape[:, :-_STEP]).mean(axis=0)
    both = loud[_STEP:] & loud[:-_STEP]
    return float(change[both].mean()) if both.any() else 0.0


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of True in flags (N,)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0
