"""`POST /audio/watermark/detect`: was this sound made here?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, File, UploadFile
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.studio import Studio

DETECT_PATH = "/audio/watermark/detect"


class DetectionBody(BaseModel):
    watermarked: Annotated[bool, Field(description="Whether the file carries the mark.")]
    score: Annotated[float, Field(description="How sure that is, 0 to 1; 0.5 and more is a mark.")]
    seconds: Annotated[float, Field(description="How much of the file was looked through: at most the first 300 s.")]


def router(studio: Studio, gate: Gate) -> APIRouter:
    routes = APIRouter(tags=["watermark"], route_class=gate.route("speak"))

    @routes.post(DETECT_PATH, operation_id="detect_watermark")
    async def detect(
        file: Annotated[UploadFile, File(description="A sound file of any common format.")],
    ) -> DetectionBody:
        """Look for the inaudible mark that generated speech can carry (TTS_WATERMARK)."""
        found = await studio.detect(await file.read())
        return DetectionBody(
            watermarked=found.watermarked, score=round(found.score, 4), seconds=round(found.seconds, 3)
        )

    return routes
