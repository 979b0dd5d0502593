"""`/audio/speech` and its aliases for streaming. All share one handler, because it streams every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.errors import problems
from app.api.requests import SpeechBody
from app.api.responses import DescribedFormat, NamedFormat, ResponseFormats, StreamFormats, speech_response
from app.audio.formats import AUDIO_FORMATS

if TYPE_CHECKING:
    from typing import Any

    from app.api.auth import Gate
    from app.api.speaking import Speaking


def answers() -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` of all speech routes."""
    return {200: speech_response(), **problems(400, 404, 408, 413, 429, 500, 503, 507)}


def router(speaking: Speaking, gate: Gate) -> APIRouter:
    """Create the routes that turn a text into speech."""
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    async def speech(body: SpeechBody, caller: Request) -> Response:
        """Turn text into speech. Accepts all fields of OpenAI's endpoint, and further fields."""
        return speaking.respond(body, caller)

    for path, name in (
        ("/audio/speech", "create_speech"),
        ("/audio/speech/streaming", "create_speech_streaming"),
        ("/audio/speech/stream", "create_speech_stream"),
    ):
        routes.add_api_route(
            path,
            speech,
            methods=["POST"],
            name=name,
            operation_id=name,
            response_class=Response,
            responses=answers(),
        )
    return routes


def formats_router(gate: Gate) -> APIRouter:
    """Create the routes that list the audio formats. These routes need no key."""
    routes = APIRouter(tags=["speech"], route_class=gate.route(None))

    @routes.get("/audio/speech/response-formats")
    async def response_formats() -> ResponseFormats:
        """List the values of `response_format`."""
        rows = AUDIO_FORMATS.items()
        return ResponseFormats(
            response_formats=[NamedFormat(name=name, content_type=row.media_type) for name, row in rows]
        )

    @routes.get("/audio/speech/stream-formats")
    async def stream_formats() -> StreamFormats:
        """List the formats in which speech is sent while it is generated."""
        formats = [
            DescribedFormat(
                format=name,
                content_type=row.media_type,
                description=f"{name.upper()} audio, sent while it is generated",
            )
            for name, row in AUDIO_FORMATS.items()
        ]
        events = DescribedFormat(
            format="sse",
            content_type="text/event-stream",
            description="Server-sent events with the audio in base64: the request field `stream_format` is sse",
        )
        return StreamFormats(stream_formats=[*formats, events])

    return routes
