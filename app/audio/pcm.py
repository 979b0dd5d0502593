"""Plain samples: conversion between float32 and 16-bit little-endian bytes, silence, levels. Depends on numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

# 2**15, as in FFmpeg and libsndfile, so that bytes -> float -> bytes changes no 16-bit sample.
_FULL_SCALE = 32768.0


def clip(samples: Samples) -> Samples:
    """samples (N,) within [-1, 1]; NaN becomes 0, because FFmpeg's AAC encoder ends the stream on the first NaN."""
    if not np.isfinite(samples).all():
        samples = np.nan_to_num(samples, nan=0.0)
    return np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)


def to_int16(samples: Samples) -> NDArray[np.int16]:
    """(N,) float32 -> (N,) int16, rounded to nearest; beyond +-1 (and at +1, which int16 lacks) it clips."""
    rounded: Samples = np.rint(clip(samples) * np.float32(_FULL_SCALE))
    return np.minimum(rounded, np.float32(32767)).astype(np.int16)


def to_bytes(samples: Samples) -> bytes:
    """(N,) float32 -> 2 N bytes, signed 16 bit little-endian."""
    return to_int16(samples).astype("<i2", copy=False).tobytes()


def from_bytes(data: bytes) -> Samples:
    """2 N bytes, signed 16 bit little-endian -> (N,) float32 in [-1, 1). ValueError for an odd number of bytes."""
    return (np.frombuffer(data, dtype="<i2") / np.float32(_FULL_SCALE)).astype(np.float32, copy=False)


def silence(seconds: float, rate_hz: int) -> Samples:
    """(round(seconds * rate_hz),) zeros."""
    return np.zeros(round(seconds * rate_hz), dtype=np.float32)


def rms_dbfs(samples: Samples) -> float:
    """Root mean square in dB of full scale (a full-scale square wave is 0, a sine -3.01); -inf for silence."""
    if not len(samples):
        return -np.inf
    return _dbfs(float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))))


def amplitude(dbfs: float) -> float:
    """The linear factor of a level or a gain in dB: 10 ** (dB / 20)."""
    return float(10.0 ** (dbfs / 20.0))


def _dbfs(level: float) -> float:
    return 20.0 * float(np.log10(level)) if level > 0 else -np.inf
