"""`/audio/speech` and its streaming names: one handler, since every answer streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.requests import SpeechBody
from app.audio.formats import AUDIO_FORMATS

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking


def router(speaking: Speaking, gate: Gate) -> APIRouter:
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    async def speech(body: SpeechBody, caller: Request) -> Response:
        """Turn text into speech. Takes everything OpenAI's endpoint takes, and more."""
        return speaking.respond(body, caller)

    for path, name in (
        ("/audio/speech", "create_speech"),
        ("/audio/speech/streaming", "create_speech_streaming"),
        ("/audio/speech/stream", "create_speech_stream"),
    ):
        routes.add_api_route(path, speech, methods=["POST"], name=name, operation_id=name)
    return routes


def lists() -> APIRouter:
    """What a request may ask for; open to all."""
    routes = APIRouter(tags=["speech"])

    @routes.get("/audio/speech/response-formats")
    async def response_formats() -> dict[str, list[str]]:
        return {"response_formats": list(AUDIO_FORMATS)}

    @routes.get("/audio/speech/stream-formats")
    async def stream_formats() -> dict[str, list[str]]:
        return {"stream_formats": ["audio", "sse"]}

    return routes
