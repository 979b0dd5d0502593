"""`/audio/captions` returns captions; `/dev/captioned_speech` is Kokoro-FastAPI's route for speech and word times."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from app.api.caption_requests import AnyCaptionsBody, CaptionedSpeechBody
from app.api.captioned import Captioned, CaptionOptions, captioned_speech_stream, captions_stream
from app.api.errors import problems
from app.api.responses import captioned_speech_response, captions_response
from app.api.streaming import StreamingAnswer
from app.errors import UnknownVoice
from app.generator.job import spoken_language

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.api.streaming import Stream
    from app.generator.speech import Answer
    from app.types import SpeechRequest, Voice
    from app.voices.store import VoiceStore

CAPTIONS_PATH = "/audio/captions"
_PROBLEMS = problems(400, 404, 408, 413, 429, 500, 503, 507)


def router(speaking: Speaking, voices: VoiceStore, gate: Gate) -> APIRouter:
    """Create the route for captions."""
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    @routes.post(
        CAPTIONS_PATH,
        name="create_captions",
        operation_id="create_captions",
        response_class=Response,
        responses={200: captions_response(), **_PROBLEMS},
    )
    async def captions(body: Annotated[AnyCaptionsBody, Body()], caller: Request) -> Response:
        """Return the captions of a text, a conversation or a dialogue as a file.

        Accepts the body of `/audio/speech`, of `/audio/conversation` or of `/audio/dialogue`. The speech is generated
        and stored in the cache, so a later request for the same speech is answered from the cache.
        """

        async def prepare() -> Captioned:
            request = await speaking.prepare(body, caller.state.owner)
            request = replace(request, timestamps=True, provenance=body.return_audio is True)
            answer = await speaking.start(request, body)
            options = CaptionOptions(
                kind=body.captions or "srt",
                highlight=body.highlight or "none",
                texts=tuple(line.text for line in request.lines),
                speakers=body.speakers(request, lambda voice: _name_of(voices, voice)),
                language=_language_of(request, voices),
            )
            return Captioned(answer, options)

        def open_stream() -> AbstractAsyncContextManager[Stream]:
            audio_format = body.response_format or body.DEFAULT_FORMAT
            return captions_stream(prepare, speaking.metrics, audio_format, with_audio=body.return_audio is True)

        return StreamingAnswer(open_stream, speaking.metrics, sse=False)

    return routes


def kokoro_router(speaking: Speaking, gate: Gate) -> APIRouter:
    """Create Kokoro-FastAPI's route for speech with the time of each word."""
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    @routes.post(
        "/dev/captioned_speech",
        name="create_captioned_speech",
        operation_id="create_captioned_speech",
        response_class=Response,
        responses={200: captioned_speech_response(), **_PROBLEMS},
    )
    async def captioned_speech(body: CaptionedSpeechBody, caller: Request) -> Response:
        """Turn text into speech, and add the time of each word in the format of Kokoro-FastAPI."""

        async def prepare() -> Answer:
            return await speaking.start(await speaking.prepare(body, caller.state.owner), body)

        def open_stream() -> AbstractAsyncContextManager[Stream]:
            return captioned_speech_stream(
                prepare,
                speaking.metrics,
                body.response_format or body.DEFAULT_FORMAT,
                lines=body.stream is not False,
                timestamps=body.return_timestamps is not False,
            )

        return StreamingAnswer(open_stream, speaking.metrics, sse=False)

    return routes


def _voice_of(voices: VoiceStore, voice_id: str) -> Voice | None:
    """Return the voice with this id; None if the id stands for a speaker of the recordings in the request."""
    try:
        return voices.get(voice_id)
    except UnknownVoice:
        return None


def _name_of(voices: VoiceStore, voice_id: str) -> str:
    voice = _voice_of(voices, voice_id)
    return voice_id if voice is None else voice.name


def _language_of(request: SpeechRequest, voices: VoiceStore) -> str:
    """Return the language of the first text of a request."""
    line = request.lines[0]
    voice = _voice_of(voices, line.voice)
    return spoken_language(request.language, line.text, "en" if voice is None else voice.language)
