"""G.711, the audio format of telephones: one byte for each sample, by the mu-law or the A-law of ITU-T G.711."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Law = Literal["ulaw", "alaw"]

_BIAS, _CLIP = 33, 8_158  # constants of the mu-law encoding


def encode(data: bytes, law: Law) -> bytes:
    """Convert 16-bit little-endian samples to one byte each."""
    return bytes(_table(law)[np.frombuffer(data, "<u2")].tobytes())


@lru_cache
def _table(law: Law) -> NDArray[np.uint8]:
    """Return a table (65536,) uint8 with the byte of each 16-bit sample.

    The index is the sample as an unsigned number.
    """
    samples = np.arange(65_536, dtype=np.int32)
    samples[samples >= 32_768] -= 65_536
    return (_ulaw if law == "ulaw" else _alaw)(samples).astype(np.uint8)


def _ulaw(samples: NDArray[np.int32]) -> NDArray[np.int32]:
    sign = np.where(samples < 0, 0x80, 0)
    magnitude = np.minimum(np.abs(samples >> 2), _CLIP) + _BIAS  # 14 bits
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 5  # 0 to 7
    mantissa = (magnitude >> (exponent + 1)) & 0x0F
    return np.asarray(~(sign | (exponent << 4) | mantissa) & 0xFF, np.int32)


def _alaw(samples: NDArray[np.int32]) -> NDArray[np.int32]:
    sign = np.where(samples < 0, 0, 0x80)
    magnitude = np.where(samples < 0, ~samples, samples) >> 3  # 12 bits
    exponent = np.maximum(np.floor(np.log2(np.maximum(magnitude, 1))).astype(np.int32) - 4, 0)
    mantissa = (magnitude >> np.maximum(exponent, 1)) & 0x0F
    return np.asarray((sign | (exponent << 4) | mantissa) ^ 0x55, np.int32)
