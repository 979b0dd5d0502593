"""The routes of ElevenLabs: text to speech over HTTP and WebSockets, and the list of voices. See docs/live.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, WebSocket
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from app.api.auth import key_in
from app.api.elevenlabs import DEFAULT_FORMAT, OutputFormat, StreamInput, check_connection, speech_body
from app.api.routes.voices import listed
from app.api.sockets import accepted
from app.errors import UnsupportedFormat
from app.voices.presets import standard_voices_of

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.keys import Key
    from app.voices.store import VoiceStore


class TextToSpeechBody(BaseModel):
    """The body of `POST /v1/text-to-speech/{voice_id}`."""

    model_config = ConfigDict(extra="ignore")

    text: str
    model_id: str | None = None
    voice_settings: dict[str, Any] | None = None
    language_code: str | None = None
    seed: int | None = None
    apply_text_normalization: str | None = None


def router(speaking: Speaking, voices: VoiceStore, gate: Gate, *, send_timeout_s: float) -> APIRouter:
    """The routes that speak."""
    routes = APIRouter(route_class=gate.route("speak"), include_in_schema=False)

    @routes.post("/text-to-speech/{voice_id}")
    @routes.post("/text-to-speech/{voice_id}/stream")
    async def text_to_speech(
        voice_id: str, body: TextToSpeechBody, caller: Request, output_format: str = DEFAULT_FORMAT
    ) -> Response:
        """Turn a text into speech."""
        output = OutputFormat.of(output_format)
        if output.law is not None:
            raise UnsupportedFormat(
                f"The format {output_format} is only available over a WebSocket. Use pcm_8000.", param="output_format"
            )
        return speaking.respond(speech_body(body.text, voice_id, output, body.model_dump()), caller)

    async def stream_input(connection: WebSocket, voice_id: str, *, several: bool) -> None:
        output = OutputFormat("mp3", 44_100)

        def check() -> Key | None:
            nonlocal output
            key: Key | None = check_connection(gate, key_in(connection.headers))
            output = OutputFormat.of(connection.query_params.get("output_format") or DEFAULT_FORMAT)
            if not standard_voices_of(voice_id):
                voices.get(voice_id)
            return key

        async with accepted(connection, check, speaking.metrics, send_timeout_s=send_timeout_s) as socket:
            if socket is not None:
                query = dict(connection.query_params)
                await StreamInput(socket, speaking, gate, voice_id, output, query, several).run()

    @routes.websocket("/text-to-speech/{voice_id}/stream-input")
    async def one_context(connection: WebSocket, voice_id: str) -> None:
        """Speak one text that arrives in parts."""
        await stream_input(connection, voice_id, several=False)

    @routes.websocket("/text-to-speech/{voice_id}/multi-stream-input")
    async def several_contexts(connection: WebSocket, voice_id: str) -> None:
        """Speak several texts that arrive in parts."""
        await stream_input(connection, voice_id, several=True)

    return routes


def voices_router(voices: VoiceStore, gate: Gate, path: str) -> APIRouter:
    """The list of voices in ElevenLabs' format."""
    routes = APIRouter(route_class=gate.route(None), include_in_schema=False)

    @routes.get(path)
    async def list_voices(caller: Request) -> dict[str, Any]:
        """List all voices."""
        shown = [
            {
                "voice_id": voice.id,
                "name": voice.name,
                "category": "cloned" if voice.kind == "cloned" else "premade",
                "description": voice.description,
                "labels": {"language": voice.language},
                "preview_url": None,
                "settings": None,
                "samples": None,
            }
            for voice in await listed(voices, gate, caller)
        ]
        return {"voices": shown, "has_more": False, "total_count": len(shown), "next_page_token": None}  # nosec B105

    return routes
