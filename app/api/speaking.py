"""From a validated body to speech: one preparation for every route that speaks.

A route names its body and, where the path has it, the voice. Everything else is decided here: the request, the owner of
its conversation, the seed, the recordings of earlier turns, the ignored fields, the form of the response, the log line.
This module does not depend on routes or engines.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from app.api.requests import ConversationBody
from app.api.streaming import StreamingAnswer, speech_stream
from app.errors import SpeechError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from fastapi import Request

    from app.api.requests import SpokenBody
    from app.api.streaming import Stream
    from app.engines.manager import EngineManager
    from app.generator.speech import Answer, SpeechGenerator
    from app.metrics import Metrics
    from app.types import SpeechRequest

log: Any = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Speaking:
    """Prepares and answers the requests of every route that speaks. Use it from one event loop."""

    generator: SpeechGenerator
    manager: EngineManager
    metrics: Metrics
    max_input_chars: int
    log_texts: bool

    async def prepare(self, body: SpokenBody, owner: str, *, voice: str | None = None) -> SpeechRequest:
        """The body as an engine-independent request. Its recordings are decoded.

        owner: the API key's hash that conversations belong to, "" without keys. voice: replaces the body's voice.
        Raises RequestError, NotReady.
        """
        request = body.to_request(default_model=self.manager.requested.model_id, max_input_chars=self.max_input_chars)
        request = replace(request, conversation=body.conversation(owner))
        if voice is not None:
            request = replace(request, lines=tuple(replace(line, voice=voice) for line in request.lines))
        if isinstance(body, ConversationBody) and body.context:
            said = await asyncio.to_thread(body.said)
            request = replace(request, context=await self.generator.decode_context(said))
        return request

    async def answer(self, body: SpokenBody, owner: str, *, voice: str | None = None) -> Answer:
        """Find the answer to a body in the cache, or start it.

        Parameters and errors: as `prepare` and `SpeechGenerator.answer`.
        """
        request = await self.prepare(body, owner, voice=voice)
        try:
            answer = await self.generator.answer(request, extras=body.extras, random_seed=body.seed == "random")
        except SpeechError as error:
            if error.param == "voice":
                error.param = body.VOICE
            raise
        answer.ignored += body.ignored
        self._log(request)
        return answer

    def respond(self, body: SpokenBody, caller: Request, *, voice: str | None = None) -> StreamingAnswer:
        """The streaming response to a body: plain audio, or server-sent events with or without progress."""
        owner: str = caller.state.owner

        def open_stream() -> AbstractAsyncContextManager[Stream]:
            answer = partial(self.answer, body, owner, voice=voice)
            return speech_stream(answer, self.metrics, sse=body.sse, progress=body.progress is True)

        return StreamingAnswer(open_stream, self.metrics, sse=body.sse)

    def _log(self, request: SpeechRequest) -> None:
        """Call it only after the voices were found: an unknown voice may be any text, which must stay out of logs."""
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
