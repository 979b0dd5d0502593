"""`POST /audio/encode` converts audio that the client already has, so the client can save speech in another format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, File, Form, UploadFile
from starlette.responses import StreamingResponse

from app.api.errors import problems
from app.api.requests import FormatName
from app.api.responses import encoded_response
from app.api.streaming import STREAM_HEADERS
from app.audio.formats import AUDIO_FORMATS

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.audio.reencode import FileEncoder

ENCODE_PATH = "/audio/encode"


def router(files: FileEncoder, gate: Gate) -> APIRouter:
    """Create the route that encodes audio."""
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    @routes.post(
        ENCODE_PATH,
        operation_id="encode_audio",
        response_class=StreamingResponse,
        responses={200: encoded_response(), **problems(400, 408, 413, 429)},
    )
    async def encode(
        file: Annotated[UploadFile, File(description="A WAV file of 16-bit mono samples, or raw samples.")],
        response_format: Annotated[str, FormatName, Form(description="The format of the answer.")] = "mp3",
        input_format: Annotated[
            Literal["wav", "pcm"],
            Form(description="`pcm`: `file` has raw 16-bit little-endian mono samples at 24 kHz."),
        ] = "wav",
        sample_rate: Annotated[int, Form(description="The sample rate of the answer in Hz.")] = 24_000,
    ) -> StreamingResponse:
        """Encode audio that was already spoken, with the same encoder as `/audio/speech`.

        The audio gets no watermark, because the server has already marked its own speech. If the comment of a WAV file
        says that the file contains synthetic speech, the comment of the answer says the same.
        """
        blocks = files.encode(await file.read(), response_format, sample_rate, raw=input_format == "pcm")
        media_type = AUDIO_FORMATS[response_format].media_type
        return StreamingResponse(blocks, media_type=media_type, headers=dict(STREAM_HEADERS))

    return routes
