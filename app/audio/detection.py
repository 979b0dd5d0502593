"""Find out whether an audio file says that its speech is synthetic: by watermark, metadata or a C2PA signature.

This module does not depend on HTTP, engines or voices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

from app.audio import watermark
from app.audio.decode import TIME_LIMIT_S
from app.audio.provenance import Provenance, parse
from app.audio.sandbox import decode_short
from app.audio.signing import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.audio.threads import ThreadLimit
    from app.types import Samples

MAX_DETECT_S = 300.0  # detection uses only the first MAX_DETECT_S seconds of a file; this takes about 3 s
# Audio that is played faster or slower, so that its pitch changes too, is searched at these speeds. The network finds
# the mark if the tried speed is at most 1 % wrong. docs/provenance.md has the measurements.
SPEEDS = tuple(round(1 + sign * step / 100, 2) for step in (2, 4, 6, 8, 10) for sign in (1, -1))
SPEEDS_S = 15.0  # only the loudest SPEEDS_S seconds are searched at SPEEDS; each speed takes 0.3 s
# The lowest score that counts as marked at one of the SPEEDS. It is higher than `watermark.FOUND`, because a search at
# ten speeds finds a mark by chance more often than a search at one speed.
FOUND_AT_SPEED = 0.9


@dataclass(frozen=True, slots=True)
class Detection:
    """What one file says about its speech: whether a watermark, metadata or a manifest shows that it is synthetic."""

    # Whether the file has the watermark; None = not known, because the extra `watermark` is not installed.
    watermarked: bool | None
    score: float | None  # from 0 (no watermark) to 1; None = not examined
    speed: float | None  # the speed at which the marked audio is played; 1.0 = normal; None = no watermark
    seconds: float  # length of the audio that was examined, from the start of the file
    metadata: Provenance | None  # what the comment of the file says
    c2pa: dict[str, Any] | None  # see `read_manifest`


class WatermarkDetector:
    """Examines files. Use it from one event loop.

    The server marks only speech, but the detector network also finds the mark in steady tones. So a file without speech
    is always reported as not watermarked.
    """

    def __init__(self, threads: ThreadLimit, contains_speech: Callable[[Samples, int], bool]) -> None:
        """threads: limits how many detections run in parallel. contains_speech: a function that returns whether mono
        samples (N,) at a rate in Hz contain speech.
        """
        self._threads = threads
        self._contains_speech = contains_speech

    async def detect(self, recording: bytes) -> Detection:
        """Decode a file in the sandbox and search its first MAX_DETECT_S seconds for the watermark. Read its metadata
        and its C2PA manifest.

        Raises BadReference if the file can't be decoded, and WatermarkMissing if the extra `watermark` is not
        installed and neither the metadata nor the manifest says that the speech is synthetic.
        """
        return await self._threads.run(self._detect, recording)

    def _detect(self, recording: bytes) -> Detection:
        decoded = decode_short(
            recording, watermark.DETECT_RATE_HZ, max_seconds=MAX_DETECT_S, what="file", time_limit_s=TIME_LIMIT_S
        )
        metadata, manifest = parse(decoded.comment), read_manifest(recording)
        try:
            watermark.load()
        except watermark.WatermarkMissing:
            if metadata is None and manifest is None:
                raise
            return Detection(None, None, None, decoded.seconds, metadata, manifest)
        score, speed = 0.0, None
        if self._contains_speech(decoded.samples, watermark.DETECT_RATE_HZ):
            score, speed = search(decoded.samples)
        return Detection(speed is not None, score, speed, decoded.seconds, metadata, manifest)


def search(samples: Samples) -> tuple[float, float | None]:
    """Search speech (N,) at DETECT_RATE_HZ for the watermark, at normal speed and then at SPEEDS.

    Returns the score from 0 to 1, and the speed at which the marked audio is played: 1.0 = normal, None = not marked.
    Takes 10 ms for each second of audio, and up to 3 s more if no mark is found at normal speed. Raises
    WatermarkMissing if the extra `watermark` is not installed.
    """
    score = watermark.detect(samples)
    if score >= watermark.FOUND:
        return score, 1.0
    part = _loudest(samples, round(SPEEDS_S * watermark.DETECT_RATE_HZ))
    for speed in SPEEDS:
        # Audio that was made faster by the factor `speed` is made slower, so it has its original pitch again.
        found = watermark.detect(soxr.resample(part, watermark.DETECT_RATE_HZ, watermark.DETECT_RATE_HZ * speed))
        if found >= FOUND_AT_SPEED:
            return found, speed
    return score, None


def _loudest(samples: Samples, count: int) -> Samples:
    """Return the `count` neighbouring samples with the highest energy."""
    if len(samples) <= count:
        return samples
    energy = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
    start = int(np.argmax(energy[count:] - energy[:-count]))
    return samples[start : start + count]
