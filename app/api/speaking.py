"""Turns the validated body of a request into speech. All routes that produce speech use this module.

A route passes the body and, if the URL contains a voice id, this id. This module decodes the recordings of earlier
turns, starts the answer, collects the names of ignored fields, writes the log line and creates the response.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from app.api.requests import ConversationBody, DialogueBody
from app.api.streaming import StreamingAnswer, TimedAudio, speech_stream
from app.errors import SpeechError
from app.voices.presets import UNNAMED_VOICE, speaker_voice

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from fastapi import Request

    from app.api.requests import SpokenBody
    from app.api.streaming import Stream
    from app.engines.model_manager import ModelManager
    from app.generator.speech import Answer, SpeechGenerator
    from app.metrics import Metrics
    from app.types import SpeechRequest

log: Any = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Speaking:
    """Prepares and answers speech requests. Use it from one event loop."""

    generator: SpeechGenerator
    manager: ModelManager
    metrics: Metrics
    max_input_chars: int
    log_texts: bool

    async def prepare(self, body: SpokenBody, owner: str, *, voice: str | None = None) -> SpeechRequest:
        """Convert a body to a request that does not depend on the engine, and decode its recordings.

        owner: the digest of the caller's API key, which owns the conversation; "" without keys. voice: the id of
        the voice to use; None = the voice in the body. Raises RequestError, NotReady.
        """
        request = body.to_request(default_model=self.manager.requested.model_id, max_input_chars=self.max_input_chars)
        if owner or body.conversation_id is not None:
            request = replace(request, conversation=body.conversation(owner), caller=owner)
        if voice is not None:
            request = replace(request, lines=tuple(replace(line, voice=voice) for line in request.lines))
        request = self.with_default_voice(request, body)
        if isinstance(body, ConversationBody) and body.context:
            turns = await asyncio.to_thread(body.decode_context)
            request = replace(request, context=await self.generator.decode_context(request.model, turns))
        return request

    def with_default_voice(self, request: SpeechRequest, body: SpokenBody) -> SpeechRequest:
        """Give the lines without a voice the default voice of the model, and return the changed request.

        body: the body from which `request` was created. If the default voice is a speaker of the model, such as
        `speaker:0`, the `speaker_id` of the body replaces the number.
        """
        if all(line.voice != UNNAMED_VOICE for line in request.lines):
            return request
        default = self.manager.default_voice(request.model)
        if speaker_voice(default) is not None and "speaker_id" in body.extras:
            default = f"speaker:{body.speaker_id}"
        lines = (replace(x, voice=default) if x.voice == UNNAMED_VOICE else x for x in request.lines)
        return replace(request, lines=tuple(lines))

    async def answer(self, body: SpokenBody, owner: str, *, voice: str | None = None) -> Answer:
        """Get the answer from the cache, or start to generate it.

        The parameters are those of `prepare`. Raises the errors of `prepare` and of `SpeechGenerator.answer`.
        """
        return await self.start(await self.prepare(body, owner, voice=voice), body)

    async def start(self, request: SpeechRequest, body: SpokenBody) -> Answer:
        """Get the answer to a request from the cache, or start to generate it.

        request: the result of `prepare`. Raises the errors of `SpeechGenerator.answer`.
        """
        try:
            answer = await self.generator.answer(request, extras=body.extras, random_seed=body.seed == "random")
        except SpeechError as error:
            if error.param == "voice":
                error.param = body.VOICE_FIELD
            raise
        answer.ignored += body.ignored
        self.log(request)
        return answer

    def respond(self, body: SpokenBody, caller: Request, *, voice: str | None = None) -> StreamingAnswer:
        """Return the streaming response to a body: audio, or server-sent events if the body requests them."""
        owner: str = caller.state.owner

        def open_stream() -> AbstractAsyncContextManager[Stream]:
            answer = partial(self.answer, body, owner, voice=voice)
            audio_format = body.response_format or body.DEFAULT_FORMAT
            timed = TimedAudio(audio_format, body.sample_rate or 24_000, several_turns=isinstance(body, DialogueBody))
            return speech_stream(
                answer,
                self.metrics,
                f"speech.{audio_format}",
                sse=body.sse,
                progress=body.progress is True,
                timed=timed if body.timestamps is True else None,
            )

        return StreamingAnswer(open_stream, self.metrics, sse=body.sse)

    def log(self, request: SpeechRequest) -> None:
        """Log the request. Call this only if all voices exist: an unknown voice id may be a private text."""
        texts = [line.text for line in request.lines]
        log.info(
            "speak",
            voices=list(dict.fromkeys(line.voice for line in request.lines)),
            lines=len(texts),
            context_turns=len(request.context),
            format=request.format,
            speed=request.speed,
            **({"texts": texts} if self.log_texts else {"characters": sum(map(len, texts))}),
        )
