"""The bodies of responses about jobs, and the OpenAPI description of their events."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field
from starlette.datastructures import Headers
from starlette.responses import FileResponse

from app.api.errors import response_to
from app.api.responses import (
    BINARY,
    ResponseModel,
    Schema,
    Seconds,
    UnixTime,
    event_schema,
    events_schema,
    schema_ref,
    text_header,
)
from app.books.results import MEDIA_TYPES
from app.errors import RangeNotSatisfiable
from app.jobs.state import JobStatus, SentenceStatus
from app.text import captions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Receive, Scope, Send

    from app.jobs.state import ChapterState, Job, Problem, SentenceState

_RANGE = re.compile(r"(\d{0,18})[ \t]*-[ \t]*(\d{0,18})", re.ASCII)  # 0-99, 100- or -100
_NOT_SATISFIABLE = 416

Count = Annotated[int, Field(ge=0)]


class JobError(ResponseModel):
    """Why a job is paused or has failed, or why a sentence could not be spoken."""

    code: Annotated[str | None, Field(description="A stable name of the error, for programs.")]
    message: str

    @classmethod
    def of(cls, problem: Problem | None) -> Self | None:
        return None if problem is None else cls(code=problem.code, message=problem.message)


class JobProgress(ResponseModel):
    sentences_done: Count
    sentences_total: Annotated[int, Field(ge=0, description="Grows until `planned` is true.")]
    sentences_failed: Count
    seconds_done: Annotated[float, Field(ge=0, description="The length of the speech so far, without pauses.")]
    planned: Annotated[bool, Field(description="Whether all chapters are split into sentences.")]
    eta_s: Annotated[
        float | None, Field(ge=0, description="Seconds until the job is spoken; null = not known, or it does not run.")
    ]


class JobChapter(ResponseModel):
    index: Count
    title: str
    voice: Annotated[str | None, Field(description="The voice of the chapter; null = the voice of the job.")]
    status: Literal["pending", "running", "done", "failed"]
    characters: Count
    sentences_done: Count
    sentences_total: Count
    start_s: Annotated[
        float | None, Field(ge=0, description="Where the chapter begins in the result; null = not known yet.")
    ]
    seconds: Annotated[float, Field(ge=0, description="Its length as far as it is spoken, with pauses.")]


class JobLevels(ResponseModel):
    """The levels of the audio in a result before encoding. ACX, a publisher of audiobooks, limits these levels."""

    lufs_lowest: Annotated[float, Field(description="Integrated loudness of the softest file in LUFS.")]
    lufs_highest: float
    rms_db_lowest: Annotated[float, Field(description="RMS level of the softest file; ACX: at least -23 dB.")]
    rms_db_highest: Annotated[float, Field(description="RMS level of the loudest file; ACX: at most -18 dB.")]
    peak_db: Annotated[float, Field(description="The largest sample; ACX: at most -3 dB.")]
    noise_floor_db: Annotated[
        float, Field(description="The quietest half second of the file with the most noise; ACX: at most -60 dB.")
    ]
    meets_acx: bool


class JobResult(ResponseModel):
    """The file that the job has made. `GET /v1/audio/jobs/{id}/result` returns it."""

    media_type: str
    seconds: Seconds
    levels: Annotated[JobLevels | None, Field(description="null = not known for a result of an older version.")] = None


class AudioJob(ResponseModel):
    """A long text that is spoken in the background."""

    id: str
    object: Literal["audio.job"]
    status: Annotated[
        JobStatus, Field(description="`paused` jobs continue after `resume`, and `failed` ones after `retry`.")
    ]
    created_at: UnixTime
    updated_at: UnixTime
    title: str
    author: str
    narrator: str
    model: Annotated[str, Field(description="The model of the request.")]
    engine: Annotated[str | None, Field(description="The engine that speaks the job; null = it is not begun.")]
    voice: str
    response_format: str
    seed: int
    progress: JobProgress
    chapters: Annotated[list[JobChapter] | None, Field(description="The chapters in order; null in lists and events.")]
    result: Annotated[JobResult | None, Field(description="null = the job is not completed.")]
    error: Annotated[JobError | None, Field(description="Why the job is paused, waits or has failed.")]

    @classmethod
    def of(cls, job: Job, chapters: Sequence[ChapterState] | None = None) -> Self:
        progress = job.progress
        return cls(
            id=job.id,
            object="audio.job",
            status=job.status,
            created_at=int(job.created_at),
            updated_at=int(job.updated_at),
            title=job.about.title,
            author=job.about.author,
            narrator=job.about.narrator,
            model=job.request.model,
            engine=job.engine,
            voice=job.request.lines[0].voice,
            response_format=job.options.response_format,
            seed=job.seed,
            progress=JobProgress(
                sentences_done=progress.sentences_done,
                sentences_total=progress.sentences_total,
                sentences_failed=progress.sentences_failed,
                seconds_done=round(progress.seconds_done, 3),
                planned=progress.planned,
                eta_s=None if progress.eta_s is None else round(progress.eta_s, 1),
            ),
            chapters=None if chapters is None else _chapters(chapters),
            result=JobResult(**job.result_facts) if job.status == "completed" else None,
            error=JobError.of(job.problem),
        )


def _chapters(chapters: Sequence[ChapterState]) -> list[JobChapter]:
    starts = [0.0, *accumulate(chapter.seconds for chapter in chapters)]
    known = True  # whether all chapters before `chapter` are complete
    found = []
    for chapter, start_s in zip(chapters, starts, strict=False):
        found.append(
            JobChapter(
                index=chapter.index,
                title=chapter.title,
                voice=chapter.voice,
                status=chapter.status,
                characters=chapter.characters,
                sentences_done=chapter.sentences_done,
                sentences_total=chapter.sentences,
                start_s=round(start_s, 3) if known else None,
                seconds=round(chapter.seconds, 3),
            )
        )
        known = known and chapter.status == "done"
    return found


class JobList(ResponseModel):
    object: Literal["list"]
    data: Annotated[list[AudioJob], Field(description="The newest job first.")]
    first_id: str | None
    last_id: Annotated[str | None, Field(description="Send it as `after` to get the next page.")]
    has_more: bool


class DeletedJob(ResponseModel):
    id: str
    object: Literal["audio.job.deleted"]
    deleted: Literal[True]


class JobSentence(ResponseModel):
    index: Annotated[int, Field(ge=0, description="In the job.")]
    chapter: Count
    text: str
    voice: str
    status: Annotated[SentenceStatus, Field(description="`failed` = it could not be spoken; redo it.")]
    seconds: Annotated[float | None, Field(ge=0, description="The length of its speech; null = not spoken yet.")]
    pause_s: Annotated[float, Field(ge=0, description="The silence after the sentence.")]
    seed: int
    take: Annotated[int, Field(ge=0, description="How often the sentence was redone.")]
    verified: Annotated[str | None, Field(description="The result of the check of its speech against the text.")]
    starts_paragraph: bool
    error: JobError | None

    @classmethod
    def of(cls, sentence: SentenceState) -> Self:
        return cls(
            index=sentence.index,
            chapter=sentence.chapter,
            text=sentence.text,
            voice=sentence.voice,
            status=sentence.status,
            seconds=None if sentence.seconds is None else round(sentence.seconds, 3),
            pause_s=sentence.pause_s,
            seed=sentence.seed,
            take=sentence.take,
            verified=sentence.verified,
            starts_paragraph=sentence.starts_paragraph,
            error=JobError.of(sentence.problem),
        )


class JobSentences(ResponseModel):
    object: Literal["list"]
    data: list[JobSentence]
    has_more: Annotated[bool, Field(description="Send the last `index` as `after` to get the next page.")]


_JOB_EVENT_TYPES = ("job.updated", "job.completed", "job.failed", "job.cancelled")


def job_events() -> Schema:
    """Return the OpenAPI description of the events of a job."""
    sentences = {"type": "array", "items": schema_ref(JobSentence)}
    return {
        "description": "Server-sent events: `job.updated` at the start and after each change, `job.sentences` with the "
        "sentences that have changed, and at the end `job.completed`, `job.failed` or `job.cancelled`.",
        "content": {
            "text/event-stream": events_schema(
                *(event_schema(kind, job=schema_ref(AudioJob)) for kind in _JOB_EVENT_TYPES),
                event_schema("job.sentences", data=sentences),
            )
        },
    }


def event_of(job: AudioJob) -> dict[str, Any]:
    """Return the event with the state of a job."""
    kind = f"job.{job.status}" if job.status in ("completed", "failed", "cancelled") else "job.updated"
    return {"type": kind, "job": job.model_dump()}


def file_response(*media_types: str) -> dict[int | str, Schema]:
    """Return the OpenAPI description of a file that a client can get in parts, with the header `Range`."""
    return {
        200: {
            "content": dict.fromkeys(media_types, BINARY),
            "headers": {"Content-Disposition": text_header("The name of the file.")},
        },
        206: {
            "description": "The part of the file that the header `Range` asks for.",
            "content": dict.fromkeys(media_types, BINARY),
        },
    }


class ResultFile(FileResponse):
    """A file that a client can get in parts, with the header `Range`. Errors have OpenAI's format.

    A header `Range` that is not valid is ignored, as RFC 9110 (14.2) allows.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_range(Headers(scope=scope).get("range", "")):
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
        refused = False

        async def checked(message: Message) -> None:
            nonlocal refused
            if message.get("status") == _NOT_SATISFIABLE:
                refused = True
                size = Headers(raw=message["headers"])["content-range"].rpartition("/")[2]
                error = RangeNotSatisfiable(f"The file has {size} bytes. Send a `Range` that begins before its end.")
                error.size_bytes = int(size)
                await response_to(error)(scope, receive, send)
            elif not refused:
                await send(message)

        await super().__call__(scope, receive, checked)


def _is_range(header: str) -> bool:
    """Return whether a header `Range` is valid: its unit is bytes, and no part of it ends before it begins."""
    unit, _, parts = header.partition("=")
    found = [_RANGE.fullmatch(part.strip()) for part in parts.split(",")]
    return unit.strip().lower() == "bytes" and all(
        match is not None and any(match.groups()) and (not all(match.groups()) or int(match[1]) <= int(match[2]))
        for match in found
    )


def job_captions() -> Schema:
    """Return the OpenAPI description of the captions of a job."""
    kinds = {kind: media_type.partition(";")[0] for kind, media_type in captions.MEDIA_TYPES.items()}
    content: Schema = {
        media_type: {"schema": {"type": "string"}} for kind, media_type in kinds.items() if kind != "json"
    }
    content[kinds["json"]] = {"schema": {"type": "object"}}
    return {"content": content, "headers": {"Content-Disposition": text_header("The name of the file.")}}


RESULT_MEDIA_TYPES = tuple(sorted(set(MEDIA_TYPES.values())))
