"""`POST /audio/watermark/detect` searches an audio file for signs that its speech is synthetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, File, UploadFile

from app.api.errors import problems
from app.api.responses import Detection, FoundMetadata, FoundSignature

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
        """Search a file for signs that its speech is synthetic: a watermark, metadata or a C2PA signature."""
        found = await detector.detect(await file.read())
        made = found.metadata
        return Detection(
            watermarked=found.watermarked,
            score=None if found.score is None else round(found.score, 4),
            speed=found.speed,
            seconds=round(found.seconds, 3),
            metadata=None
            if made is None
            else FoundMetadata(
                generator=made.generator,
                model=made.model,
                voices=list(made.voices),
                created_at=made.created_s,
                source_type=made.source_type,
            ),
            c2pa=None if found.c2pa is None else FoundSignature(**found.c2pa),
        )

    return routes
