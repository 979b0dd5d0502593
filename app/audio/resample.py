"""Resample a stream of audio with soxr (quality HQ).

For a tone at 0.46 of the sample rate, soxr has an SNR of 121 dB, and FFmpeg's swresample has an SNR of 20 dB. soxr
takes 0.15 ms of CPU per second of audio. The first output needs about 40 ms of input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soxr

if TYPE_CHECKING:
    from app.types import Samples


def resampled_length(samples: int, from_hz: int, to_hz: int) -> int:
    """Return the number of output samples if `samples` input samples are resampled from from_hz to to_hz."""
    return samples if from_hz == to_hz else (2 * samples * to_hz + from_hz) // (2 * from_hz)


class StreamResampler:
    """A `Stage` that resamples from from_hz to to_hz. If from_hz equals to_hz, samples pass unchanged and without
    delay.

    N input samples give exactly `resampled_length(N, from_hz, to_hz)` output samples. If the same samples are pushed in
    blocks of another size, the joined output is the same.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._stream: soxr.ResampleStream | None = None
        self._from_hz, self._to_hz = from_hz, to_hz
        self._taken_samples = 0
        self._given_samples = 0
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")

    def push(self, samples: Samples) -> Samples:
        if self._stream is None:
            return samples
        self._taken_samples += len(samples)
        ready = self._convert(self._stream, samples, last=False)
        self._given_samples += len(ready)
        return ready

    def flush(self) -> Samples:
        """End the input and return the remaining samples. The remaining samples are cut or padded to the exact length,
        because soxr's length can differ by one sample.
        """
        nothing = np.zeros(0, dtype=np.float32)
        if self._stream is None:
            return nothing
        left = resampled_length(self._taken_samples, self._from_hz, self._to_hz) - self._given_samples
        ready = self._convert(self._stream, nothing, last=True)[: max(0, left)]
        return np.pad(ready, (0, left - len(ready))) if len(ready) < left else ready

    @staticmethod
    def _convert(stream: soxr.ResampleStream, samples: Samples, *, last: bool) -> Samples:
        converted: Samples = stream.resample_chunk(np.asarray(samples, dtype=np.float32), last=last)
        return converted
