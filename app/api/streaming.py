"""The streaming response for audio and server-sent events. If the client disconnects, the generation is cancelled.

The headers are sent after the first bytes are generated. So the response can still have the status 429, 500 or 503 if
the queue is full, or if the engine fails before these bytes. If an error occurs after the headers, the connection is
closed without the end of the chunked body, so that clients notice that the response is incomplete.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import structlog
from starlette.responses import JSONResponse, Response

from app.api.errors import body_of, response_to, status_of, unexpected
from app.api.middleware import ReaderStuck
from app.errors import EngineStopped, SpeechError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from starlette.types import Receive, Scope, Send

    from app.generator.speech import Answer
    from app.metrics import Metrics
    from app.types import TimedSentence, TimedWord

log: Any = structlog.get_logger(__name__)

Headers = Sequence[tuple[str, str]]

SSE_MEDIA_TYPE = "text/event-stream; charset=utf-8"
SSE_END = b"data: [DONE]\n\n"
STREAM_HEADERS: Headers = (
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),  # otherwise nginx would buffer the stream
)
SSE_HEADERS: Headers = (("content-type", SSE_MEDIA_TYPE), *STREAM_HEADERS)
SHUTDOWN_SEND_S = 0.1  # the longest time to send the last event when the server stops
# The time between the error event and the end of the connection. When the connection ends, browsers drop unread data.
READ_S = 0.05
# The largest number of sentences in one event with times. An answer from the cache has the times of all its sentences
# at once.
EVENT_SENTENCES = 100
DELTA_BYTES = 4096  # audio bytes in one SSE event, as in OpenAI's API


@dataclass(frozen=True, slots=True)
class Stream:
    """The headers and the body of a response whose first bytes have been generated."""

    headers: Headers
    body: AsyncGenerator[bytes]
    completed: Callable[[dict[str, Any]], None] | None = None  # called with request.state after the last byte


@dataclass(frozen=True, slots=True)
class TimedAudio:
    """The properties of the audio in a response with the times of words."""

    audio_format: str
    sample_rate_hz: int
    several_turns: bool  # whether each word and each sentence names its turn


class StreamingAnswer(Response):
    """Opens a stream and sends it to the client. If the client disconnects, the stream is cancelled."""

    def __init__(
        self, open_stream: Callable[[], AbstractAsyncContextManager[Stream]], metrics: Metrics, *, sse: bool
    ) -> None:
        """sse: whether the stream has server-sent events. If it has, an error after the headers is sent as an event."""
        self._open_stream = open_stream
        self._metrics = metrics
        self._sse = sse
        self._started_s = time.monotonic()
        self._sent_headers = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(scope, receive, send))
        disconnect = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait([sending, disconnect], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._metrics.cancelled()
                log.info(
                    "the client disconnected, so the answer was cancelled",
                    after_s=round(time.monotonic() - self._started_s, 3),
                )
        except asyncio.CancelledError:  # the server cancels responses only at the end of its graceful shutdown
            if not sending.done():
                sending.cancel()
                # end the response before the cleanup, because the shutdown does not wait long
                await self._stop(scope, receive, send)
        finally:
            for task in (sending, disconnect):
                task.cancel()
            await asyncio.gather(sending, disconnect, return_exceptions=True)
        if not sending.cancelled():
            sending.result()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._open_stream() as stream, contextlib.aclosing(stream.body) as body:
                await self._send_headers(stream.headers, send)
                async for data in body:
                    await _send_body(send, data, more=True)
            await _send_body(send, b"", more=False)
            if stream.completed is not None:
                stream.completed(scope["state"])
        except SpeechError as error:
            if not self._sent_headers:
                if status_of(error) == 500:
                    log.error(
                        "the request failed; the response is a 500", error=type(error).__name__, message=error.message
                    )
                await response_to(error)(scope, receive, send)
                return
            log.error(
                "the request failed after the response headers; the client gets an incomplete response",
                error=type(error).__name__,
                message=error.message,
            )
            await self._break(error, send)
        except ReaderStuck:
            self._metrics.cancelled()
            raise
        except Exception as error:
            log.exception("the request failed with an unexpected error")
            if not self._sent_headers:
                await unexpected()(scope, receive, send)
                return
            await self._break(_unexpected_error(), send, type(error).__name__)

    async def _send_headers(self, headers: Headers, send: Send) -> None:
        self._sent_headers = True
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _stop(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End the response because the server stops. The response is a 503, or incomplete if the headers were sent."""
        error = EngineStopped("The server is stopping. Try again when it has restarted.")
        if not self._sent_headers:
            await response_to(error)(scope, receive, send)
            return
        log.warning(
            "the server stops; the client gets an incomplete response",
            error=type(error).__name__,
            message=error.message,
        )
        with contextlib.suppress(TimeoutError):  # a client that reads nothing must not delay the shutdown
            async with asyncio.timeout(SHUTDOWN_SEND_S):
                await self._break(error, send)

    async def _break(self, error: SpeechError, send: Send, kind: str = "") -> None:
        """Count the error in the metrics, and send it as an event if the stream has server-sent events.

        kind: the name of the error in the metrics; "" = the name of the class. This function does not send the end of
        the body, so uvicorn closes the connection.
        """
        self._metrics.failed(kind or type(error).__name__)
        if self._sse:
            await _send_body(send, event(body_of(error)), more=True)
            await asyncio.sleep(READ_S)


@contextlib.asynccontextmanager
async def speech_stream(
    prepare: Callable[[], Awaitable[Answer]],
    metrics: Metrics,
    filename: str,
    *,
    sse: bool,
    progress: bool,
    timed: TimedAudio | None = None,
) -> AsyncIterator[Stream]:
    """Open the stream of a speech answer.

    prepare: a function that starts the answer. filename: the name under which browsers save the audio. sse: send
    OpenAI's speech.audio.* events, not audio bytes. progress: with `sse`, also send speech.progress events. timed: add
    the times of words; without `sse`, the response is then JSON.
    """
    started_s = time.monotonic()
    answer = await prepare()
    async with contextlib.aclosing(answer.stream) as audio:
        first = await anext(audio, b"")
        metrics.first_audio(answer.engine, time.monotonic() - started_s, answer.cache)
        headers = [
            ("content-type", SSE_MEDIA_TYPE if sse else "application/json" if timed else answer.media_type),
            *STREAM_HEADERS,
            ("x-tts-engine", answer.engine),
            ("x-tts-seed", str(answer.seed)),
            ("x-cache", answer.cache),
            ("openai-processing-ms", str(round((time.monotonic() - started_s) * 1000))),
        ]
        if not sse and timed is None:
            headers.append(("content-disposition", f'inline; filename="{filename}"'))
        if answer.ignored:
            headers.append(("x-tts-ignored", ", ".join(answer.ignored)))
        if answer.broken_rules:
            headers.append(("x-tts-guard", ",".join(dict.fromkeys(answer.broken_rules))))
        headers.append(("x-tts-verified", answer.verified))
        if answer.voice_not_ready:
            headers.append(("x-voice-state", "uncast"))
        if answer.size_bytes is not None and not sse and timed is None:
            headers.append(("content-length", str(answer.size_bytes)))

        def completed(state: dict[str, Any]) -> None:
            if (key := state.get("key")) is not None and (usage := answer.usage) is not None:
                metrics.key_tokens(key, usage.input_tokens, usage.output_tokens)

        body = _joined(first, audio)
        if sse:
            body = _speech_events(body, answer, progress, timed)
        elif timed is not None:
            body = _timed_json(body, answer, timed)
        yield Stream(headers, body, completed)


async def _joined(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield `first`, and then the bytes of `rest`."""
    yield first
    async for data in rest:
        yield data


async def _timed_json(body: AsyncGenerator[bytes], answer: Answer, timed: TimedAudio) -> AsyncGenerator[bytes]:
    """Yield one JSON object with the audio in base64, and then the times of its words and sentences."""
    rest = b""  # bytes that are not encoded yet, because base64 encodes three bytes at a time
    yield b'{"audio":"'
    async for data in body:
        rest += data
        whole = len(rest) - len(rest) % 3
        yield base64.b64encode(rest[:whole])
        rest = rest[whole:]
    times = await answer.timestamps()
    about = {
        "audio_format": timed.audio_format,
        "sample_rate": timed.sample_rate_hz,
        "duration": times.duration_s,
        **_times_of(times.sentences, timed),
        **({"reason": times.reason} if times.reason else {}),
    }
    yield base64.b64encode(rest) + b'",' + json.dumps(about, separators=(",", ":")).encode()[1:]


def _times_of(sentences: Sequence[TimedSentence], timed: TimedAudio) -> dict[str, Any]:
    """Return the times of sentences and of their words as JSON values."""

    def place(part: TimedSentence | TimedWord) -> dict[str, Any]:
        turn = {"turn": part.turn} if timed.several_turns else {}
        return {
            "start": part.start_s,
            "end": part.end_s,
            "start_char": part.start_char,
            "end_char": part.end_char,
            **turn,
        }

    return {
        "words": [{"word": word.word, **place(word)} for sentence in sentences for word in sentence.words],
        "sentences": [{"text": sentence.text, **place(sentence)} for sentence in sentences],
    }


async def _speech_events(
    body: AsyncGenerator[bytes], answer: Answer, progress: bool, timed: TimedAudio | None
) -> AsyncGenerator[bytes]:
    """Yield the audio as OpenAI's speech.audio.* events.

    progress: send a speech.progress event before the audio of each utterance. timed: send the times of words; None =
    do not send them.
    """
    announced = sent = 0
    async for data in body:
        if progress:
            for began in answer.progress.utterances[announced:]:
                announced += 1
                yield event({"type": "speech.progress", **asdict(began), "start_s": round(began.start_s, 3)})
        for start in range(0, len(data), DELTA_BYTES):
            audio = base64.b64encode(data[start : start + DELTA_BYTES]).decode()
            yield event({"type": "speech.audio.delta", "audio": audio})
        while timed is not None and (new := answer.timed[sent : sent + EVENT_SENTENCES]):
            sent += len(new)
            yield event({"type": "speech.audio.words", **_times_of(new, timed)})
    times: dict[str, Any] = {}
    if timed is not None:
        async for new in answer.later_timed(sent):
            yield event({"type": "speech.audio.words", **_times_of(new, timed)})
        whole = await answer.timestamps()
        times = {"duration": whole.duration_s, **({"reason": whole.reason} if whole.reason else {})}
    usage = answer.usage
    assert usage is not None  # noqa: S101 - the generator sets it before the stream ends
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    guard = {"guard": list(dict.fromkeys(answer.broken_rules))} if answer.broken_rules else {}
    yield event({"type": "speech.audio.done", "usage": counts, **guard, "verified": answer.verified, **times})
    yield SSE_END


Report = Callable[[dict[str, Any]], None]  # a function that takes one progress event


@contextlib.asynccontextmanager
async def work_stream(
    work: Callable[[Report], Awaitable[BaseModel]], headers: Sequence[tuple[str, str]] = (), *, sse: bool
) -> AsyncIterator[Stream]:
    """Run `work` and open a stream of its result: JSON, or with `sse` progress events and then an event `done`.

    work: is called with a function that takes progress events. headers: are added to the headers of the response. With
    `sse`, all headers are sent after the first progress event. An invalid request fails before this event, so that its
    response has an error status.
    """
    steps: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # None in this queue means that the work has ended

    async def run() -> dict[str, Any]:
        try:
            return (await work(steps.put_nowait)).model_dump()
        finally:
            steps.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        first = await steps.get() if sse else None
        if first is not None:
            yield Stream([*SSE_HEADERS, *headers], _work_events(first, steps, task))
            return
        result = await task
        if sse:
            yield Stream([*SSE_HEADERS, *headers], once(event({"type": "done", **result}) + SSE_END))
            return
        response = JSONResponse(result)
        own = [(name.decode(), value.decode()) for name, value in response.raw_headers]
        yield Stream([*own, *headers], once(bytes(response.body)))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def once(data: bytes) -> AsyncGenerator[bytes]:
    """Yield `data`."""
    yield data


async def _work_events(
    first: dict[str, Any], steps: asyncio.Queue[dict[str, Any] | None], task: asyncio.Task[dict[str, Any]]
) -> AsyncGenerator[bytes]:
    """Yield the progress events `first` and `steps`, and then the result or the error of `task` as an event."""
    step: dict[str, Any] | None = first
    while step is not None:
        yield event(step)
        step = await steps.get()
    try:
        result = await task
    except SpeechError as error:
        yield event(body_of(error))
    except Exception:
        log.exception("the request failed with an unexpected error")
        yield event(body_of(_unexpected_error()))
    else:
        yield event({"type": "done", **result})
    yield SSE_END


def _unexpected_error() -> SpeechError:
    return SpeechError("The server failed because of an internal error. The log of the server has the reason.")


def event(content: dict[str, Any], number: int | None = None) -> bytes:
    """Return a server-sent event with this JSON data.

    number: the id of the event, which a client sends as `Last-Event-ID` when it connects again; None = no id.
    """
    head = b"" if number is None else b"id: %d\n" % number
    return head + b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


async def _send_body(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
