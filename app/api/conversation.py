"""`/audio/conversation` and `/audio/dialogue`: speech in the light of what was said before, and by several voices."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.respond import AnswerResponse
from app.api.schemas import ConversationBody, DialogueBody
from app.types import conversation_key

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.engines.host import EngineHost
    from app.metrics import Metrics
    from app.studio import Answer, Studio

log: Any = structlog.get_logger(__name__)

CONVERSATION_PATH = "/audio/conversation"


def router(
    studio: Studio, host: EngineHost, metrics: Metrics, gate: Gate, *, max_input_chars: int, log_texts: bool
) -> APIRouter:
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    @routes.post(CONVERSATION_PATH, name="create_conversation", operation_id="create_conversation")
    async def conversation(body: ConversationBody, caller: Request) -> Response:
        """Speak the next turn of a conversation as its earlier turns, with their recordings, suggest.

        Without `voice` the recordings show how `speaker_id` sounds. Takes all that `/audio/speech` takes.
        """

        async def prepare() -> Answer:
            request = body.to_request(default_model=host.requested.model_id, max_input_chars=max_input_chars)
            request = replace(request, conversation=body.conversation(caller.state.owner))
            line = request.lines[0]
            told = {"text": line.text} if log_texts else {"characters": len(line.text)}
            turns = len(body.context or ())
            log.info("converse", voice=line.voice, speaker=line.speaker, turns=turns, format=request.format, **told)
            if turns:
                said = await asyncio.to_thread(body.said)
                request = replace(request, context=await studio.hear(said))
            return await studio.answer(request, extras=body.extras, random_seed=body.seed == "random")

        return AnswerResponse(prepare, metrics, sse=body.stream_format == "sse", progress=body.progress is True)

    @routes.post("/audio/dialogue", name="create_dialogue", operation_id="create_dialogue")
    async def dialogue(body: DialogueBody, caller: Request) -> Response:
        """Speak several turns, each by its voice, as one file without a seam. Takes all that `/audio/speech` takes."""

        async def prepare() -> Answer:
            request = body.to_request(default_model=host.requested.model_id, max_input_chars=max_input_chars)
            request = replace(request, conversation=body.conversation(caller.state.owner))
            texts = [line.text for line in request.lines]
            told = {"texts": texts} if log_texts else {"characters": sum(map(len, texts))}
            voices = list(dict.fromkeys(line.voice for line in request.lines))
            log.info("dialogue", voices=voices, turns=len(texts), format=request.format, **told)
            return await studio.answer(request, extras=body.extras, random_seed=body.seed == "random")

        return AnswerResponse(prepare, metrics, sse=body.stream_format == "sse", progress=body.progress is True)

    @routes.delete("/audio/conversations/{conversation_id}", name="forget_conversation")
    async def forget(conversation_id: str, caller: Request) -> dict[str, object]:
        """Forget what was said under this `conversation_id`."""
        known = await studio.forget(conversation_key(caller.state.owner, conversation_id))
        return {"id": conversation_id, "object": "audio.conversation", "deleted": known}

    return routes
