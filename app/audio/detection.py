"""Detect the watermark in an audio file. This module does not depend on HTTP, engines or voices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.audio import watermark
from app.audio.decode import TIME_LIMIT_S
from app.audio.sandbox import decode_short

if TYPE_CHECKING:
    from app.audio.threads import ThreadLimit

MAX_DETECT_S = 300.0  # detection uses at most this part from the start of a file; it takes about 3 s


@dataclass(frozen=True, slots=True)
class Detection:
    """The result of watermark detection in one file."""

    watermarked: bool  # whether the score is at least watermark.FOUND
    score: float  # from 0 (no watermark) to 1
    seconds: float  # length of the audio that was used, from the start of the file


class WatermarkDetector:
    """Detects the watermark in files. threads: limits the parallel detections. Use it from one event loop."""

    def __init__(self, threads: ThreadLimit) -> None:
        self._threads = threads

    async def detect(self, recording: bytes) -> Detection:
        """Decode a file in the sandbox and search its first MAX_DETECT_S seconds for the watermark.

        Raises BadReference for a file that can't be decoded, WatermarkMissing if the extra `watermark` is not
        installed.
        """
        return await self._threads.run(_detect, recording)


def _detect(recording: bytes) -> Detection:
    decoded = decode_short(
        recording, watermark.DETECT_RATE_HZ, max_seconds=MAX_DETECT_S, what="file", time_limit_s=TIME_LIMIT_S
    )
    score = watermark.detect(decoded.samples)
    return Detection(score >= watermark.FOUND, score, decoded.seconds)
