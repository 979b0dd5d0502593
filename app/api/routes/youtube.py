"""`/voice-cloning/clone-from-youtube`: a voice of a stretch of a video, with progress as server-sent events if asked.

The response owns its work: when the caller leaves, the fetching is cancelled and what it has fetched is gone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.responses import JSONResponse, Response

from app.api.errors import body_of, response_to, unexpected
from app.api.routes.voice_cloning import DESCRIPTION, NAME, WORDS, agreed, told
from app.api.streaming import SSE_END, SSE_MEDIA_TYPE, STREAM_HEADERS, begin, disconnected, event, send_body
from app.errors import SpeechError
from app.voices.cloning import Sample
from app.voices.youtube import DEFAULT_SECTION_S, MAX_SECTION_S, MIN_SECTION_S, Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from app.api.auth import Gate
    from app.metrics import Metrics
    from app.voices.cloning import Cloner
    from app.voices.consents import ConsentStore
    from app.voices.store import VoiceStore
    from app.voices.voice_file import StoredVoice
    from app.voices.youtube import YouTube

log: Any = structlog.get_logger(__name__)

_HEADERS = (("content-type", SSE_MEDIA_TYPE), *STREAM_HEADERS)
PATHS = ("/voice-cloning/clone-from-youtube", "/audio/speech/voice-cloning/youtube")


def _seconds(value: object) -> object:
    """1:02:03 and 2:03 as seconds; numbers as they are."""
    if not isinstance(value, str):
        return value
    parts = value.strip().split(":")
    if not 1 <= len(parts) <= 3 or not all(part.replace(".", "", 1).isdecimal() for part in parts):
        raise PydanticCustomError("time_parsing", "must be seconds, or a time such as 1:23 or 1:02:03")
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + float(part)
    return seconds


def _time_schema(as_text: str, **bounds: float) -> WithJsonSchema:
    clock = {"type": "string", "pattern": as_text, "examples": ["1:23"]}
    return WithJsonSchema({"anyOf": [{"type": "number", **bounds}, clock]})


Time = Annotated[float, BeforeValidator(_seconds)]


class YouTubeBody(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    youtube_url: Annotated[
        str, Field(max_length=2_000, validation_alias=AliasChoices("youtube_url", "url"), description="Of one video.")
    ]
    voice_name: Annotated[
        str,
        Field(
            validation_alias=AliasChoices("voice_name", "name"),
            description="Free text, up to 100 characters; a taken one gets a number.",
            json_schema_extra=NAME,
        ),
    ]
    start_time: Annotated[
        Annotated[Time, Field(ge=0, allow_inf_nan=False), _time_schema(r"^[0-9]{1,2}(:[0-5][0-9]){1,2}$", minimum=0)]
        | None,
        Field(description="Where the stretch begins: seconds, or 1:23."),
    ] = None
    duration: Annotated[
        Annotated[
            Time,
            Field(ge=MIN_SECTION_S, le=MAX_SECTION_S, allow_inf_nan=False),
            _time_schema(  # 0:01 to 10:00
                r"^(0?[1-9]:[0-5][0-9]|0?0:(0[1-9]|[1-5][0-9])|10:00)$", minimum=MIN_SECTION_S, maximum=MAX_SECTION_S
            ),
        ]
        | None,
        Field(
            description=f"Seconds to look through for the best ones. Left out: {DEFAULT_SECTION_S:g}.",
        ),
    ] = None
    description: Annotated[str, WithJsonSchema({"type": "string", **DESCRIPTION})] | None = None
    transcript: Annotated[str | None, Field(description="Exactly what is said in the stretch.")] = None
    consent: Annotated[
        str | None, Field(description="The speaker's agreement in words, or a consent's id.", json_schema_extra=WORDS)
    ] = None
    language: Annotated[str | None, Field(max_length=35, description="BCP 47. Left out: en.")] = None
    denoise: bool | None = None


def router(
    youtube: YouTube, metrics: Metrics, gate: Gate, *, voices: VoiceStore, cloner: Cloner, consents: ConsentStore
) -> APIRouter:
    routes = APIRouter(tags=["voices"], route_class=gate.route("clone"))

    async def from_youtube(
        body: YouTubeBody,
        request: Request,
        stream: Annotated[bool, Query(description="Send progress as server-sent events, as `Accept` may ask.")] = False,
    ) -> Response:
        """Make a voice of a stretch of a YouTube video in which one person speaks.

        With `stream=true` or `Accept: text/event-stream` the events are `{"type": "progress", "stage", "bytes",
        "total"}`, then `{"type": "done", ...}` with what the plain answer has, or an error in the usual envelope.
        """

        async def work(tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
            def progress(step: Progress) -> None:
                tell(
                    {
                        "type": "progress",
                        "stage": step.stage,
                        "bytes": step.fetched_bytes,
                        "total": step.total_bytes,
                    }
                )

            voices.check(body.voice_name, description=body.description or "", consent=body.consent or "")
            consent = await agreed(consents, body.consent)
            duration_s = DEFAULT_SECTION_S if body.duration is None else body.duration
            fetched = await youtube.fetch(body.youtube_url, body.start_time or 0.0, duration_s, progress)
            tell({"type": "progress", "stage": "cloning", "bytes": len(fetched.wav), "total": len(fetched.wav)})
            language = body.language or "en"
            made = await cloner.prepare(
                [Sample(fetched.wav, body.transcript or "")],
                language=language,
                denoise=bool(body.denoise),
                what="youtube_url",
            )

            def keep() -> StoredVoice:
                return voices.add(
                    body.voice_name,
                    made.reference,
                    description=body.description or fetched.title[:200],
                    language=language,
                    sample_count=made.sample_count,
                    quality=made.report.as_json(),
                    consent=consent,
                    origin="youtube",
                )

            stored = await asyncio.to_thread(keep)
            log.info("cloned from youtube", voice=stored.id, seconds=round(stored.seconds, 2))
            return told("The voice was cloned", body.voice_name, stored)

        wanted = stream or "text/event-stream" in request.headers.get("accept", "")
        return WorkResponse(work, metrics, sse=wanted)

    for path in PATHS:
        name = "clone_from_youtube" if path == PATHS[0] else "clone_from_youtube_alias"
        routes.add_api_route(
            path,
            from_youtube,
            methods=["POST"],
            operation_id=name,
            name=name,
        )
    return routes


class WorkResponse(Response):
    """Long work that tells how far it is. It runs, and is cancelled, inside this response.

    With sse the headers wait for the first thing told: what is wrong with the request is then a plain error.
    """

    def __init__(
        self,
        work: Callable[[Callable[[dict[str, Any]], None]], Awaitable[dict[str, Any]]],
        metrics: Metrics,
        *,
        sse: bool,
    ) -> None:
        self._work = work
        self._metrics = metrics
        self._sse = sse
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        working = asyncio.create_task(self._run(scope, receive, send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self._metrics.cancelled()
                log.info("the caller left")
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        if not working.cancelled():
            working.result()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        steps: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def work() -> dict[str, Any]:
            try:
                return await self._work(steps.put_nowait)
            finally:
                steps.put_nowait(None)

        task = asyncio.create_task(work())
        begun = False
        try:
            while (step := await steps.get()) is not None:
                if self._sse:
                    if not begun:
                        begun = True
                        await begin(send, _HEADERS)
                    await send_body(send, event(step), more=True)
            done = await task
        except SpeechError as error:
            if not begun:
                await response_to(error)(scope, receive, send)
                return
            await send_body(send, event(body_of(error)), more=True)
        except Exception:
            log.exception("the request failed")
            if not begun:
                await unexpected()(scope, receive, send)
                return
            await send_body(send, event(body_of(SpeechError("The server failed; its log says why."))), more=True)
        else:
            if not self._sse:
                await JSONResponse(done)(scope, receive, send)
                return
            if not begun:
                await begin(send, _HEADERS)
            await send_body(send, event({"type": "done", **done}), more=True)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await send_body(send, SSE_END, more=False)
