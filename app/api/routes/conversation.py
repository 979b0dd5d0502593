"""`/audio/conversation` speaks the next turn of a conversation; `/audio/dialogue` speaks with several voices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.requests import ConversationBody, DialogueBody
from app.api.responses import ForgottenConversation
from app.api.routes.speech import answers
from app.types import conversation_key

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking

CONVERSATION_PATH = "/audio/conversation"


def router(speaking: Speaking, gate: Gate) -> APIRouter:
    """Create the routes of conversations and dialogues."""
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    @routes.post(
        CONVERSATION_PATH,
        name="create_conversation",
        operation_id="create_conversation",
        response_class=Response,
        responses=answers(),
    )
    async def conversation(body: ConversationBody, caller: Request) -> Response:
        """Speak the next turn of a conversation. The intonation fits the recordings of the earlier turns.

        Without `voice`, the recordings define the voice of `speaker_id`. Accepts every field of `/audio/speech`.
        """
        return speaking.respond(body, caller)

    @routes.post(
        "/audio/dialogue",
        name="create_dialogue",
        operation_id="create_dialogue",
        response_class=Response,
        responses=answers(),
    )
    async def dialogue(body: DialogueBody, caller: Request) -> Response:
        """Speak several turns with different voices as one audio file. Accepts every field of `/audio/speech`."""
        return speaking.respond(body, caller)

    @routes.delete("/audio/conversations/{conversation_id}", name="forget_conversation")
    async def forget(conversation_id: str, caller: Request) -> ForgottenConversation:
        """Delete the turns of this conversation that the server has remembered."""
        known = await speaking.generator.forget(conversation_key(caller.state.owner, conversation_id))
        return ForgottenConversation(id=conversation_id, object="audio.conversation", deleted=known)

    return routes
