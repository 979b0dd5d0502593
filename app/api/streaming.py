"""The response that owns its stream: from its first await it listens for the caller leaving, and cancels at once.

The first bytes are awaited before any header is sent, so a full queue or a dead engine is a clean 429 or 503. After the
headers an error can only break the stream: the chunked body is left without its end, so nobody takes it for whole.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import structlog
from starlette.responses import Response

from app.api.errors import body_of, response_to, status_of, unexpected
from app.api.middleware import ReaderStuck
from app.errors import EngineStopped, SpeechError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from app.generator.speech import Answer
    from app.metrics import Metrics

log: Any = structlog.get_logger(__name__)

SSE_MEDIA_TYPE = "text/event-stream; charset=utf-8"
SSE_END = b"data: [DONE]\n\n"
STREAM_HEADERS = (
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),  # nginx would gather the stream otherwise
)
LAST_WORD_S = 0.1
READ_S = 0.05  # a browser throws away what it has not read when the connection breaks
DELTA_BYTES = 4096  # raw bytes in one SSE delta, as api.openai.com sends them


class AnswerResponse(Response):
    """Speaks one answer. `prepare` finds or begins it; it runs, and is cancelled, inside this response."""

    def __init__(
        self, prepare: Callable[[], Awaitable[Answer]], metrics: Metrics, *, sse: bool, progress: bool = False
    ) -> None:
        self._prepare = prepare
        self._metrics = metrics
        self._sse = sse
        self._progress = progress
        self._started_s = time.monotonic()
        self._sent_headers = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        speaking = asyncio.create_task(self._speak(scope, receive, send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait([speaking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not speaking.done():
                self._metrics.cancelled()
                log.info("the caller left", after_s=round(time.monotonic() - self._started_s, 3))
        except asyncio.CancelledError:  # by the server only, when its grace at shutdown is over
            if not speaking.done():
                speaking.cancel()
                await self._stop(scope, receive, send)  # at once: the process ends within milliseconds
        finally:
            for task in (speaking, leaving):
                task.cancel()
            await asyncio.gather(speaking, leaving, return_exceptions=True)
        if not speaking.cancelled():
            speaking.result()

    async def _speak(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._prepare()
            async with contextlib.aclosing(answer.stream) as stream:
                first = await anext(stream, b"")
                self._metrics.first_audio(answer.engine, time.monotonic() - self._started_s, hit=answer.hit)
                await self._start(answer, send)
                body = _joined(first, stream)
                async for data in _events(body, answer, self._progress) if self._sse else body:
                    await send_body(send, data, more=True)
            await send_body(send, b"", more=False)
            if (key := scope["state"].get("key")) is not None and (usage := answer.usage) is not None:
                self._metrics.key_tokens(key, usage.input_tokens, usage.output_tokens)
        except SpeechError as error:
            if not self._sent_headers:
                if status_of(error) == 500:
                    log.error("the engine failed", error=type(error).__name__, message=error.message)
                await response_to(error)(scope, receive, send)
                return
            log.error("the answer broke off", error=type(error).__name__, message=error.message)
            await self._break(error, send)
        except ReaderStuck:
            self._metrics.cancelled()
            raise
        except Exception as error:
            log.exception("the request failed")
            if not self._sent_headers:
                await unexpected()(scope, receive, send)
                return
            await self._break(SpeechError("The server failed; its log says why."), send, type(error).__name__)

    async def _start(self, answer: Answer, send: Send) -> None:
        headers = [
            ("content-type", SSE_MEDIA_TYPE if self._sse else answer.media_type),
            *STREAM_HEADERS,
            ("x-tts-engine", answer.engine),
            ("x-tts-seed", str(answer.seed)),
            ("x-cache", "hit" if answer.hit else "miss"),
            ("openai-processing-ms", str(round((time.monotonic() - self._started_s) * 1000))),
        ]
        if answer.ignored:
            headers.append(("x-tts-ignored", ", ".join(answer.ignored)))
        if answer.voice_not_ready:
            headers.append(("x-voice-state", "uncast"))
        if answer.size_bytes is not None and not self._sse:
            headers.append(("content-length", str(answer.size_bytes)))
        self._sent_headers = True
        await begin(send, headers)

    async def _stop(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server ends before this answer does: say so where nothing was sent yet, else break off."""
        error = EngineStopped("The server is stopping. Try again when it is back.")
        if not self._sent_headers:
            await response_to(error)(scope, receive, send)
            return
        log.warning("the answer broke off", error=type(error).__name__, message=error.message)
        with contextlib.suppress(TimeoutError):  # a reader who takes nothing is not waited for
            async with asyncio.timeout(LAST_WORD_S):
                await self._break(error, send)

    async def _break(self, error: SpeechError, send: Send, kind: str = "") -> None:
        """Tell an SSE reader, and end without ending: the server then closes the connection under the body."""
        self._metrics.failed(kind or type(error).__name__)
        if self._sse:
            await send_body(send, event(body_of(error)), more=True)
            await asyncio.sleep(READ_S)


async def _joined(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for data in rest:
        yield data


async def _events(body: AsyncGenerator[bytes], answer: Answer, progress: bool) -> AsyncGenerator[bytes]:
    """The answer as OpenAI's speech.audio.* events; with `progress` an event of ours before the sound it tells of."""
    told = 0
    async for data in body:
        if progress:
            for began in answer.progress.utterances[told:]:
                told += 1
                yield event({"type": "speech.progress", **asdict(began), "start_s": round(began.start_s, 3)})
        for start in range(0, len(data), DELTA_BYTES):
            audio = base64.b64encode(data[start : start + DELTA_BYTES]).decode()
            yield event({"type": "speech.audio.delta", "audio": audio})
    usage = answer.usage
    assert usage is not None  # noqa: S101 - set by the generator before the stream ends
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    yield event({"type": "speech.audio.done", "usage": counts})
    yield SSE_END


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


async def begin(send: Send, headers: Iterable[tuple[str, str]]) -> None:
    """A 200, and its headers, whose values are latin-1."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


async def send_body(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def disconnected(receive: Receive) -> None:
    """Returns when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
