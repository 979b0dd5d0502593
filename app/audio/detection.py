"""Detect the watermark in an audio file. This module does not depend on HTTP, engines or voices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.audio import watermark
from app.audio.decode import TIME_LIMIT_S
from app.audio.sandbox import decode_short

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.audio.threads import ThreadLimit
    from app.types import Samples

MAX_DETECT_S = 300.0  # detection uses only the first MAX_DETECT_S seconds of a file; this takes about 3 s


@dataclass(frozen=True, slots=True)
class Detection:
    """The result of watermark detection in one file."""

    watermarked: bool  # whether the score is at least watermark.FOUND
    score: float  # from 0 (no watermark) to 1
    seconds: float  # length of the audio that was used, from the start of the file


class WatermarkDetector:
    """Detects the watermark in files. Use it from one event loop.

    The server marks only speech, but the detector network also finds the mark in steady tones. So a file without speech
    is always reported as not watermarked.
    """

    def __init__(self, threads: ThreadLimit, contains_speech: Callable[[Samples, int], bool]) -> None:
        """threads: limits the number of parallel detections. contains_speech: returns whether mono samples (N,) at a
        rate in Hz contain speech.
        """
        self._threads = threads
        self._contains_speech = contains_speech

    async def detect(self, recording: bytes) -> Detection:
        """Decode a file in the sandbox and search its first MAX_DETECT_S seconds for the watermark.

        Raises BadReference if the file can't be decoded, and WatermarkMissing if the extra `watermark` is not
        installed.
        """
        return await self._threads.run(self._detect, recording)

    def _detect(self, recording: bytes) -> Detection:
        decoded = decode_short(
            recording, watermark.DETECT_RATE_HZ, max_seconds=MAX_DETECT_S, what="file", time_limit_s=TIME_LIMIT_S
        )
        score = watermark.detect(decoded.samples)
        if score >= watermark.FOUND and not self._contains_speech(decoded.samples, watermark.DETECT_RATE_HZ):
            score = 0.0
        return Detection(score >= watermark.FOUND, score, decoded.seconds)
