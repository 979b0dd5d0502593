"""`/audio/speech` and its streaming names: one handler, since every answer streams."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.respond import AnswerResponse
from app.api.schemas import SpeechBody
from app.types import AUDIO_FORMATS

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.engines.host import EngineHost
    from app.metrics import Metrics
    from app.studio import Answer, Studio

log: Any = structlog.get_logger(__name__)


def router(
    studio: Studio, host: EngineHost, metrics: Metrics, gate: Gate, *, max_input_chars: int, log_texts: bool
) -> APIRouter:
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    async def speech(body: SpeechBody, caller: Request) -> Response:
        """Turn text into speech. Takes everything OpenAI's endpoint takes, and more."""

        async def prepare() -> Answer:
            request = body.to_request(default_model=host.requested.model_id, max_input_chars=max_input_chars)
            request = replace(request, conversation=body.conversation(caller.state.owner))
            line = request.lines[0]
            answer = await studio.answer(request, extras=body.extras, random_seed=body.seed == "random")
            # Only now: an unknown voice is whatever the caller put there, a whole text by mistake included.
            told = {"text": line.text} if log_texts else {"characters": len(line.text)}
            log.info("speak", voice=line.voice, format=request.format, speed=request.speed, **told)
            return answer

        return AnswerResponse(prepare, metrics, sse=body.stream_format == "sse", progress=body.progress is True)

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
