"""`/audio/conversation` and `/audio/dialogue`: speech in the light of what was said before, and by several voices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.requests import ConversationBody, DialogueBody
from app.types import conversation_key

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking

CONVERSATION_PATH = "/audio/conversation"


def router(speaking: Speaking, gate: Gate) -> APIRouter:
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    @routes.post(CONVERSATION_PATH, name="create_conversation", operation_id="create_conversation")
    async def conversation(body: ConversationBody, caller: Request) -> Response:
        """Speak the next turn of a conversation as its earlier turns, with their recordings, suggest.

        Without `voice` the recordings show how `speaker_id` sounds. Takes all that `/audio/speech` takes.
        """
        return speaking.respond(body, caller)

    @routes.post("/audio/dialogue", name="create_dialogue", operation_id="create_dialogue")
    async def dialogue(body: DialogueBody, caller: Request) -> Response:
        """Speak several turns, each by its voice, as one file without a seam. Takes all that `/audio/speech` takes."""
        return speaking.respond(body, caller)

    @routes.delete("/audio/conversations/{conversation_id}", name="forget_conversation")
    async def forget(conversation_id: str, caller: Request) -> dict[str, object]:
        """Forget what was said under this `conversation_id`."""
        known = await speaking.generator.forget(conversation_key(caller.state.owner, conversation_id))
        return {"id": conversation_id, "object": "audio.conversation", "deleted": known}

    return routes
