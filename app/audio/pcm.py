"""Operations on samples: conversion between float32 and 16-bit bytes, silence, levels.

This module depends on numpy only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

# 2**15 is also the factor of FFmpeg and libsndfile. 16-bit samples do not change if they are converted to float and
# back.
_FULL_SCALE = 32768.0


def clip(samples: Samples) -> Samples:
    """Clip samples (N,) to [-1, 1]. NaN becomes 0, because FFmpeg's AAC encoder fails at the first NaN.

    The result is always a new array.
    """
    clipped: Samples = samples.clip(-1.0, 1.0)
    if math.isnan(clipped.max(initial=0.0)):  # the maximum is NaN if any sample is NaN
        np.nan_to_num(clipped, copy=False, nan=0.0)
    return clipped.astype(np.float32, copy=False)


def to_int16(samples: Samples) -> NDArray[np.int16]:
    """Convert samples (N,) float32 to int16, rounded to nearest. Values outside [-1, 1) are clipped."""
    scaled = clip(samples)
    scaled *= np.float32(_FULL_SCALE)
    np.rint(scaled, out=scaled)
    return np.minimum(scaled, np.float32(_FULL_SCALE - 1), out=scaled).astype(np.int16)


def to_bytes(samples: Samples) -> bytes:
    """Convert samples (N,) float32 to 2 N bytes: signed 16-bit integers, little-endian."""
    return to_int16(samples).astype("<i2", copy=False).tobytes()


def from_bytes(data: bytes) -> Samples:
    """Convert 2 N bytes (signed 16-bit integers, little-endian) to samples (N,) float32 in [-1, 1).

    Raises ValueError for an odd number of bytes.
    """
    samples: Samples = np.multiply(np.frombuffer(data, dtype="<i2"), np.float32(1 / _FULL_SCALE), dtype=np.float32)
    return samples


def silence(seconds: float, rate_hz: int) -> Samples:
    """Return silence: round(seconds * rate_hz) samples with the value 0."""
    return np.zeros(round(seconds * rate_hz), dtype=np.float32)


def rms_dbfs(samples: Samples) -> float:
    """Return the RMS level of samples (N,) in dBFS: 0 for a full-scale square wave, -3.01 for a sine.

    The level of silence is -inf.
    """
    if not len(samples):
        return -np.inf
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    return 20.0 * float(np.log10(level)) if level > 0 else -np.inf


def amplitude(dbfs: float) -> float:
    """Convert a level or a gain in dB to a linear factor: 10 ** (dB / 20)."""
    return float(10.0 ** (dbfs / 20.0))
