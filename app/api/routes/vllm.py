"""`/audio/speech/stream`: the WebSocket of vLLM-Omni for text that arrives in parts (`api/vllm.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, WebSocket

from app.api.auth import key_in
from app.api.sockets import accepted
from app.api.vllm import SpeechStream

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.keys import Key


def router(speaking: Speaking, gate: Gate, *, send_timeout_s: float) -> APIRouter:
    """Create the route of the WebSocket."""
    routes = APIRouter(include_in_schema=False)

    @routes.websocket("/audio/speech/stream")
    async def speech_stream(connection: WebSocket) -> None:
        """Speak texts that arrive in parts."""

        def check() -> Key | None:
            key = gate.connect(key_in(connection.headers))
            gate.check_scope(key, "speak")
            return key

        async with accepted(connection, check, speaking.metrics, send_timeout_s=send_timeout_s) as socket:
            if socket is not None:
                await SpeechStream(socket, speaking, gate).run()

    return routes
