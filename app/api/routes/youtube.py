"""`/voice-cloning/clone-from-youtube` creates a voice from a section of a YouTube video.

The route can report its progress as server-sent events. When the client disconnects, the download is cancelled and the
downloaded files are deleted.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request
from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from app.api.errors import problems
from app.api.requests import ReportedBody
from app.api.responses import CLONING_EVENTS, Cloned
from app.api.streaming import StreamingAnswer, work_stream
from app.api.voice_creation import (
    CONSENT_HELP,
    CONSENT_SCHEMA,
    DESCRIPTION_SCHEMA,
    LANGUAGE_HELP,
    NAME_HELP,
    NAME_SCHEMA,
    voice_language,
)
from app.voices.cloning import Sample
from app.voices.youtube import DEFAULT_SECTION_S, MAX_SECTION_S, MIN_SECTION_S, Progress

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.streaming import Report
    from app.api.voice_creation import VoiceCreation
    from app.metrics import Metrics
    from app.voices.transcribe import FetchProgress
    from app.voices.youtube import YouTube

log: Any = structlog.get_logger(__name__)

PATHS = ("/voice-cloning/clone-from-youtube", "/audio/speech/voice-cloning/youtube")


def _seconds(value: object) -> object:
    """Convert times such as 1:02:03 and 2:03 to seconds. Numbers are returned unchanged."""
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
    """Return the JSON schema of a time: a number with these bounds, or a text that matches the pattern `as_text`."""
    clock = {"type": "string", "pattern": as_text, "examples": ["1:23"]}
    return WithJsonSchema({"anyOf": [{"type": "number", **bounds}, clock]})


Time = Annotated[float, BeforeValidator(_seconds)]


class YouTubeBody(ReportedBody):
    """The body of a request that creates a voice from a YouTube video."""

    model_config = ConfigDict(extra="ignore", strict=True)

    youtube_url: Annotated[
        str,
        Field(
            max_length=2_000, validation_alias=AliasChoices("youtube_url", "url"), description="The URL of one video."
        ),
    ]
    voice_name: Annotated[
        str,
        Field(
            validation_alias=AliasChoices("voice_name", "name"),
            description=NAME_HELP,
            json_schema_extra=NAME_SCHEMA,
        ),
    ]
    start_time: Annotated[
        Annotated[Time, Field(ge=0, allow_inf_nan=False), _time_schema(r"^[0-9]{1,2}(:[0-5][0-9]){1,2}$", minimum=0)]
        | None,
        Field(description="The start of the section: seconds, or a time such as 1:23."),
    ] = None
    duration: Annotated[
        Annotated[
            Time,
            Field(ge=MIN_SECTION_S, le=MAX_SECTION_S, allow_inf_nan=False),
            _time_schema(  # times from 0:01 to 10:00
                r"^(0?[1-9]:[0-5][0-9]|0?0:(0[1-9]|[1-5][0-9])|10:00)$", minimum=MIN_SECTION_S, maximum=MAX_SECTION_S
            ),
        ]
        | None,
        Field(
            description=f"The length of the section in seconds. The best part is used. Default: {DEFAULT_SECTION_S:g}.",
        ),
    ] = None
    description: Annotated[str, WithJsonSchema({"type": "string", **DESCRIPTION_SCHEMA})] | None = None
    transcript: Annotated[str | None, Field(description="The exact words of the section.")] = None
    consent: Annotated[str | None, Field(description=CONSENT_HELP, json_schema_extra=CONSENT_SCHEMA)] = None
    language: Annotated[
        Annotated[str, Field(max_length=35)] | None,
        BeforeValidator(voice_language),
        Field(description=f"{LANGUAGE_HELP} Default: en."),
    ] = None
    denoise: bool | None = None


def router(youtube: YouTube, creation: VoiceCreation, metrics: Metrics, gate: Gate) -> APIRouter:
    """Create the route for cloning from YouTube. The route has two paths."""
    routes = APIRouter(tags=["voices"], route_class=gate.route("clone"))

    async def from_youtube(
        body: YouTubeBody,
        request: Request,
        stream: Annotated[bool, Query(description="Send the progress as server-sent events.")] = False,
    ) -> Response:
        """Create a voice from a section of a YouTube video in which one person speaks.

        With `stream=true` or `Accept: text/event-stream` the events are `{"type": "progress", "stage", "bytes",
        "total"}`, and then `{"type": "done", ...}` with the fields of the JSON response, or an error.
        """
        sse = stream or "text/event-stream" in request.headers.get("accept", "")
        work = partial(_clone, body, youtube, creation)
        return StreamingAnswer(lambda: work_stream(work, body.ignored_headers, sse=sse), metrics, sse=sse)

    for path in PATHS:
        name = "clone_from_youtube" if path == PATHS[0] else "clone_from_youtube_alias"
        routes.add_api_route(
            path,
            from_youtube,
            methods=["POST"],
            operation_id=name,
            name=name,
            response_model=Cloned,
            response_description="The new voice as JSON, or server-sent events.",
            responses={200: {"content": {"text/event-stream": CLONING_EVENTS}}, **problems(400, 408, 413, 429, 507)},
        )
    return routes


async def _clone(body: YouTubeBody, youtube: YouTube, creation: VoiceCreation, report: Report) -> Cloned:
    """Download the section and create the voice. report: a function that gets each progress event."""

    def progress(step: Progress) -> None:
        report({"type": "progress", "stage": step.stage, "bytes": step.fetched_bytes, "total": step.total_bytes})

    creation.voices.check(body.voice_name, description=body.description or "", consent=body.consent or "")
    consent = await creation.consent(body.consent)
    if not (body.transcript or "").strip():
        # Download the speech recogniser before the video, so that a failure is known before a large download.
        loop = asyncio.get_running_loop()

        def recogniser_progress(step: FetchProgress) -> None:
            event = {"stage": "recogniser", "bytes": step.done_bytes, "total": step.total_bytes}
            loop.call_soon_threadsafe(report, {"type": "progress", **event})

        await creation.cloner.run(lambda: creation.cloner.prepare_recogniser(recogniser_progress))
    duration_s = DEFAULT_SECTION_S if body.duration is None else body.duration
    fetched = await youtube.fetch(body.youtube_url, body.start_time or 0.0, duration_s, progress)
    report({"type": "progress", "stage": "cloning", "bytes": len(fetched.wav), "total": len(fetched.wav)})
    language = body.language or "en"
    prepared = await creation.cloner.prepare(
        [Sample(fetched.wav, body.transcript or "")],
        language=language,
        denoise=bool(body.denoise),
        what="youtube_url",
    )
    stored = await creation.store(
        body.voice_name,
        prepared,
        description=body.description or fetched.title[:200],
        language=language,
        consent=consent,
        origin="youtube",
    )
    log.info("a voice was cloned from a YouTube video", voice=stored.id, seconds=round(stored.seconds, 2))
    return Cloned.of("The voice was cloned", body.voice_name, stored)
