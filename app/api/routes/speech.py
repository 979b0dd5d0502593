"""`/audio/speech` and its aliases for streaming. They share one handler, because every answer is streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.errors import problems
from app.api.requests import SpeechBody, StreamFormat
from app.api.responses import ResponseFormats, StreamFormats, speech_response
from app.audio.formats import AUDIO_FORMATS

if TYPE_CHECKING:
    from typing import Any

    from app.api.auth import Gate
    from app.api.speaking import Speaking


def answers() -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of all speech routes."""
    return {200: speech_response(), **problems(400, 404, 408, 413, 429, 500, 503, 507)}


def router(speaking: Speaking, gate: Gate) -> APIRouter:
    """The routes that turn a text into speech."""
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
    """The routes that list the values of `response_format` and `stream_format`. They need no key."""
    routes = APIRouter(tags=["speech"], route_class=gate.route(None))

    @routes.get("/audio/speech/response-formats")
    async def response_formats() -> ResponseFormats:
        """List the values of `response_format`."""
        return ResponseFormats(response_formats=list(AUDIO_FORMATS))

    @routes.get("/audio/speech/stream-formats")
    async def stream_formats() -> StreamFormats:
        """List the values of `stream_format`."""
        return StreamFormats(stream_formats=list(get_args(StreamFormat)))

    return routes
