"""The routes of ElevenLabs: text to speech over HTTP and WebSockets, and the list of voices. See docs/live.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, WebSocket
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from app.api.auth import key_in
from app.api.captioned import captioned_speech_stream
from app.api.elevenlabs import (
    DEFAULT_FORMAT,
    OutputFormat,
    StreamInput,
    TimedChunks,
    check_connection,
    in_law,
    route_with_details,
    speech_body,
)
from app.api.routes.voices import listed
from app.api.sockets import accepted
from app.api.streaming import StreamingAnswer, speech_stream
from app.voices.presets import standard_voices_of

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.api.streaming import Stream
    from app.generator.speech import Answer
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
    """Create the routes that speak."""
    routes = APIRouter(route_class=route_with_details(gate.route("speak")), include_in_schema=False)

    def answer_of(voice_id: str, body: TextToSpeechBody, output: OutputFormat, owner: str, *, times: bool) -> Any:
        """Return a function that starts the speech."""
        spoken = speech_body(body.text, voice_id, output, body.model_dump())
        spoken.timestamps = times

        async def prepare() -> Answer:
            return in_law(await speaking.answer(spoken, owner), output.law)

        return prepare

    @routes.post("/text-to-speech/{voice_id}")
    @routes.post("/text-to-speech/{voice_id}/stream")
    async def text_to_speech(
        voice_id: str, body: TextToSpeechBody, caller: Request, output_format: str = DEFAULT_FORMAT
    ) -> Response:
        """Turn a text into speech."""
        output = OutputFormat.of(output_format)
        prepare = answer_of(voice_id, body, output, caller.state.owner, times=False)
        name = f"speech.{output.response_format if output.law is None else output.law}"

        def open_stream() -> AbstractAsyncContextManager[Stream]:
            return speech_stream(prepare, speaking.metrics, name, sse=False, progress=False)

        return StreamingAnswer(open_stream, speaking.metrics, sse=False)

    def timed(voice_id: str, body: TextToSpeechBody, caller: Request, output_format: str, *, lines: bool) -> Response:
        output = OutputFormat.of(output_format)
        prepare = answer_of(voice_id, body, output, caller.state.owner, times=True)

        def open_stream() -> AbstractAsyncContextManager[Stream]:
            return captioned_speech_stream(
                prepare,
                speaking.metrics,
                output.response_format,
                lines=lines,
                timestamps=True,
                chunk=TimedChunks(body.text),
            )

        return StreamingAnswer(open_stream, speaking.metrics, sse=False)

    @routes.post("/text-to-speech/{voice_id}/with-timestamps")
    async def with_timestamps(
        voice_id: str, body: TextToSpeechBody, caller: Request, output_format: str = DEFAULT_FORMAT
    ) -> Response:
        """Turn a text into speech with the times of its characters."""
        return timed(voice_id, body, caller, output_format, lines=False)

    @routes.post("/text-to-speech/{voice_id}/stream/with-timestamps")
    async def stream_with_timestamps(
        voice_id: str, body: TextToSpeechBody, caller: Request, output_format: str = DEFAULT_FORMAT
    ) -> Response:
        """Turn a text into lines of JSON with audio and the times of characters."""
        return timed(voice_id, body, caller, output_format, lines=True)

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
    """Create the route that lists voices in ElevenLabs' format."""
    routes = APIRouter(route_class=route_with_details(gate.route(None)), include_in_schema=False)

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
