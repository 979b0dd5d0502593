"""`POST /audio/watermark/detect` checks whether an audio file has the watermark of generated speech."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, File, UploadFile

from app.api.errors import problems
from app.api.responses import Detection

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.audio.detection import WatermarkDetector

DETECT_PATH = "/audio/watermark/detect"


def router(detector: WatermarkDetector, gate: Gate) -> APIRouter:
    """Create the route that detects watermarks."""
    routes = APIRouter(tags=["watermark"], route_class=gate.route("speak"))

    @routes.post(DETECT_PATH, operation_id="detect_watermark", responses=problems(400, 408, 413, 429))
    async def detect(
        file: Annotated[UploadFile, File(description="An audio file in any common format.")],
    ) -> Detection:
        """Check an audio file for the inaudible watermark of generated speech (TTS_WATERMARK)."""
        found = await detector.detect(await file.read())
        return Detection(watermarked=found.watermarked, score=round(found.score, 4), seconds=round(found.seconds, 3))

    return routes
