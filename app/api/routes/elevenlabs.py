"""The routes of ElevenLabs: speech and dialogues over HTTP, and speech over WebSockets. See docs/live.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, WebSocket
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.auth import key_in
from app.api.captioned import captioned_speech_stream
from app.api.elevenlabs import (
    DEFAULT_FORMAT,
    FIELD_NAMES,
    OutputFormat,
    SocketOptions,
    StreamInput,
    TimedChunks,
    check_connection,
    in_law,
    model_of,
    speech_body,
    speech_fields,
)
from app.api.live_contexts import check_voice, checked, client_names
from app.api.requests import MAX_DIALOGUE_TURNS, DialogueBody
from app.api.sockets import accepted
from app.api.streaming import StreamingAnswer, speech_stream

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from app.api.auth import Gate
    from app.api.requests import SpokenBody
    from app.api.speaking import Speaking
    from app.api.streaming import Stream
    from app.generator.speech import Answer
    from app.keys import Key
    from app.voices.store import VoiceStore


class _Options(BaseModel):
    """The fields that the body of speech and the body of a dialogue have in common."""

    model_config = ConfigDict(extra="ignore")

    model_id: str | None = None
    language_code: str | None = None
    seed: int | None = None
    apply_text_normalization: str | None = None


class TextToSpeechBody(_Options):
    """The body of `POST /v1/text-to-speech/{voice_id}`."""

    text: str
    voice_settings: dict[str, Any] | None = None


class DialogueInput(BaseModel):
    """One turn of a dialogue."""

    text: str
    voice_id: str


class TextToDialogueBody(_Options):
    """The body of `POST /v1/text-to-dialogue`."""

    inputs: Annotated[list[DialogueInput], Field(min_length=1, max_length=MAX_DIALOGUE_TURNS)]


def router(speaking: Speaking, voices: VoiceStore, gate: Gate, *, send_timeout_s: float) -> APIRouter:
    """Create ElevenLabs' routes for speech, over HTTP and over WebSockets."""
    routes = APIRouter(route_class=gate.route("speak"), include_in_schema=False)

    def answer_of(body: SpokenBody, output: OutputFormat, owner: str) -> Any:
        """Return a function that starts to generate the speech for a request body, and returns the answer."""

        async def prepare() -> Answer:
            with client_names(FIELD_NAMES):
                return in_law(await speaking.answer(body, owner), output.law)

        return prepare

    def speech(body: SpokenBody, output: OutputFormat, caller: Request) -> Response:
        """Return the response that sends the speech for a request body."""
        prepare = answer_of(body, output, caller.state.owner)
        name = f"speech.{output.response_format if output.law is None else output.law}"

        def open_stream() -> AbstractAsyncContextManager[Stream]:
            return speech_stream(prepare, speaking.metrics, name, sse=False, progress=False)

        return StreamingAnswer(open_stream, speaking.metrics, sse=False)

    @routes.post("/text-to-speech/{voice_id}")
    @routes.post("/text-to-speech/{voice_id}/stream")
    async def text_to_speech(
        voice_id: str, body: TextToSpeechBody, caller: Request, output_format: str = DEFAULT_FORMAT
    ) -> Response:
        """Turn a text into speech."""
        output = OutputFormat.of(output_format)
        with client_names(FIELD_NAMES):
            spoken = speech_body(body.text, voice_id, output, body.model_dump(), model_of(body.model_id, speaking))
        return speech(spoken, output, caller)

    @routes.post("/text-to-dialogue")
    @routes.post("/text-to-dialogue/stream")
    async def text_to_dialogue(
        body: TextToDialogueBody, caller: Request, output_format: str = DEFAULT_FORMAT
    ) -> Response:
        """Turn texts with different voices into one dialogue."""
        output = OutputFormat.of(output_format)
        turns = [{"text": turn.text, "voice": turn.voice_id} for turn in body.inputs]
        with client_names(FIELD_NAMES):
            options = speech_fields(output, body.model_dump(), model_of(body.model_id, speaking))
            return speech(checked(DialogueBody, {"turns": turns, **options}), output, caller)

    def timed(voice_id: str, body: TextToSpeechBody, caller: Request, output_format: str, *, lines: bool) -> Response:
        output = OutputFormat.of(output_format)
        with client_names(FIELD_NAMES):
            spoken = speech_body(body.text, voice_id, output, body.model_dump(), model_of(body.model_id, speaking))
        spoken.timestamps = True
        prepare = answer_of(spoken, output, caller.state.owner)

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
        found: list[SocketOptions] = []

        def check() -> Key | None:
            key: Key | None = check_connection(gate, key_in(connection.headers))
            with client_names(FIELD_NAMES):
                found.append(SocketOptions.of(connection.query_params))
                if key is not None or not gate.needed:  # the error lists voices, so only a caller with a key may see it
                    check_voice(voices, voice_id)
            return key

        async with accepted(connection, check, speaking.metrics, send_timeout_s=send_timeout_s) as socket:
            if socket is not None:
                await StreamInput(socket, speaking, gate, voices, voice_id, found[0], several).run()

    @routes.websocket("/text-to-speech/{voice_id}/stream-input")
    async def one_context(connection: WebSocket, voice_id: str) -> None:
        """Speak one text that arrives in parts."""
        await stream_input(connection, voice_id, several=False)

    @routes.websocket("/text-to-speech/{voice_id}/multi-stream-input")
    async def several_contexts(connection: WebSocket, voice_id: str) -> None:
        """Speak several texts that arrive in parts."""
        await stream_input(connection, voice_id, several=True)

    return routes
