"""`/audio/speech/long`: jobs with the paths and the fields of chatterbox-tts-api."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import FileResponse, Response

from app.api.errors import problems
from app.api.job_requests import job_body_schema
from app.api.job_responses import RESULT_MEDIA_TYPES, Count, JobSentence, file_response
from app.api.requests import ReportedBody
from app.api.responses import IGNORED_HEADER, ResponseModel, Schema
from app.api.routes.jobs import SSE_COMMENT, JobId, Jobs, result_file
from app.api.streaming import SSE_HEADERS, Stream, StreamingAnswer
from app.jobs.state import ENDED
from app.jobs.store import MAX_LABELS, MAX_NAME_CHARS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.jobs.state import Job

LONG_PATH = "/audio/speech/long"
HISTORY_PATH = "/audio/speech/long-history"
LongStatus = Literal["pending", "chunking", "processing", "paused", "completed", "failed", "cancelled"]
MAX_CHUNKS = 100_000


def _status(job: Job) -> LongStatus:
    if job.status == "queued":
        return "pending"
    if job.status == "running":
        return "processing" if job.progress.planned else "chunking"
    return job.status


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()


class LongProgress(ResponseModel):
    total_chunks: Annotated[int, Field(ge=0, description="The sentences of the job.")]
    completed_chunks: Count
    failed_chunks: Count
    current_chunk: Count
    overall_progress: Annotated[float, Field(ge=0, le=100, description="Percent.")]
    estimated_remaining_seconds: Annotated[float | None, Field(ge=0)]

    @classmethod
    def of(cls, job: Job) -> Self:
        progress = job.progress
        done = progress.sentences_done + progress.sentences_failed
        # Until the job is planned, the number of its sentences grows, so its progress is shown as 0.
        share = done / progress.sentences_total if progress.planned and progress.sentences_total else 0.0
        return cls(
            total_chunks=progress.sentences_total,
            completed_chunks=progress.sentences_done,
            failed_chunks=progress.sentences_failed,
            current_chunk=min(done + 1, progress.sentences_total),
            overall_progress=100.0 if job.status == "completed" else round(99 * share, 1),
            estimated_remaining_seconds=progress.eta_s,
        )


class LongCreated(ResponseModel):
    """A job that was created."""

    job_id: str
    status: LongStatus
    estimated_processing_time_seconds: Annotated[float | None, Field(description="Always null: not known yet.")]
    total_chunks: Count
    message: str
    status_url: str
    sse_url: str


class LongJob(ResponseModel):
    """The state of a job."""

    job_id: str
    status: LongStatus
    progress: LongProgress
    metadata: Annotated[dict[str, Any], Field(description="voice, model, response_format, title, display_name, tags.")]
    created_at: str
    updated_at: str
    download_url: Annotated[str | None, Field(description="null until the job is completed.")]
    can_pause: bool
    can_resume: bool
    error: str | None

    @classmethod
    def of(cls, job: Job, path: str) -> Self:
        """Return the state of a job. path: the URL path of the collection of jobs, as the caller has requested it."""
        return cls(
            job_id=job.id,
            status=_status(job),
            progress=LongProgress.of(job),
            metadata={
                "voice": job.request.lines[0].voice,
                "model": job.request.model,
                "response_format": job.options.response_format,
                "title": job.about.title,
                "display_name": job.name,
                "tags": list(job.labels),
                "is_archived": job.archived,
                "text_length": job.characters,
            },
            created_at=_time(job.created_at),
            updated_at=_time(job.updated_at),
            download_url=f"{path}/{job.id}/download" if job.status == "completed" else None,
            can_pause=job.status in ("queued", "running"),
            can_resume=job.status == "paused",
            error=None if job.problem is None else job.problem.message,
        )


class LongDetails(LongJob):
    """The state of a job with its sentences."""

    chunks: list[JobSentence]


class LongHistory(ResponseModel):
    jobs: list[LongJob]
    total: Annotated[int, Field(ge=0, description="The number of all jobs, also beyond `limit`.")]


class LongStats(ResponseModel):
    total_jobs: Count
    by_status: dict[str, int]
    total_audio_seconds: Annotated[float, Field(ge=0)]


class LongDeleted(ResponseModel):
    job_id: str
    status: Literal["cancelled", "deleted"]


class LongChangeBody(ReportedBody):
    """The body of `PATCH /v1/audio/speech/long/{job_id}`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"display_name": "Chapter 1", "tags": ["draft"]}]})

    display_name: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = None
    tags: Annotated[list[Annotated[str, Field(max_length=MAX_NAME_CHARS)]], Field(max_length=MAX_LABELS)] | None = None
    is_archived: bool | None = None


def _sse_response() -> Schema:
    field = {"type": "string"}
    item = {"type": "object", "properties": {"event": field, "data": field}, "required": ["event", "data"]}
    return {
        "description": "Events `progress` (status, progress, current_chunk, total_chunks, "
        "estimated_remaining_seconds), and at the end `completed` or `error`.",
        "content": {"text/event-stream": {"itemSchema": item}},
    }


def router(jobs: Jobs) -> APIRouter:
    """Create the routes of chatterbox-tts-api for long texts."""
    routes = APIRouter(tags=["jobs"], route_class=jobs.gate.route("speak"))
    _add_routes(routes, jobs)
    _add_changes(routes, jobs)
    return routes


def _collection(request: Request) -> str:
    """Return the URL path of the collection of jobs. It contains the path prefix of a proxy, if there is one."""
    return request.url.path.partition(LONG_PATH)[0] + LONG_PATH


def _add_routes(routes: APIRouter, jobs: Jobs) -> None:
    store = jobs.runner.store

    @routes.post(
        LONG_PATH,
        operation_id="create_long_speech",
        openapi_extra=job_body_schema(),
        responses={200: IGNORED_HEADER, **problems(400, 404, 408, 413, 429, 507)},
    )
    async def create_long_speech(request: Request, response: Response) -> LongCreated:
        """Create a job as chatterbox-tts-api does. Accepts the body of `POST /v1/audio/jobs`."""
        job, ignored = await jobs.create(request, None)
        if ignored:
            response.headers["X-TTS-Ignored"] = ", ".join(ignored)
        path = f"{_collection(request)}/{job.id}"
        return LongCreated(
            job_id=job.id,
            status=_status(job),
            estimated_processing_time_seconds=None,
            total_chunks=job.progress.sentences_total,
            message="The job was created.",
            status_url=path,
            sse_url=f"{path}/sse",
        )

    @routes.get(HISTORY_PATH, operation_id="list_long_speech", responses=problems(400, 507))
    async def history(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        include_archived: Annotated[bool, Query(description="Also list archived jobs.")] = False,
    ) -> LongHistory:
        """List the caller's jobs, the newest first."""
        archived = None if include_archived else False
        found, _ = await store.call(store.newest, jobs.owner(request), limit=limit, archived=archived)
        total = await store.call(store.count, jobs.owner(request), archived=archived)
        return LongHistory(jobs=[LongJob.of(job, _collection(request)) for job in found], total=total)

    @routes.get(HISTORY_PATH + "/stats", operation_id="long_speech_stats", responses=problems(400, 507))
    async def stats(request: Request) -> LongStats:
        """Count the caller's jobs."""
        counts, seconds = await store.call(store.counts, jobs.owner(request))
        return LongStats(total_jobs=sum(counts.values()), by_status=dict(counts), total_audio_seconds=seconds)

    @routes.get(LONG_PATH + "/{job_id}", operation_id="get_long_speech", responses=problems(400, 404, 507))
    async def get_long_speech(job_id: JobId, request: Request) -> LongJob:
        """Get the state of a job."""
        return LongJob.of(await jobs.find(job_id, request), _collection(request))

    @routes.get(LONG_PATH + "/{job_id}/details", operation_id="long_speech_details", responses=problems(400, 404, 507))
    async def details(job_id: JobId, request: Request) -> LongDetails:
        """Get the state of a job with all its sentences."""
        job = await jobs.find(job_id, request)
        found, _ = await store.call(store.sentences, job.id, limit=MAX_CHUNKS)
        state = LongJob.of(job, _collection(request)).model_dump()
        return LongDetails(**state, chunks=[JobSentence.of(each) for each in found])

    @routes.get(
        LONG_PATH + "/{job_id}/download",
        operation_id="download_long_speech",
        response_class=FileResponse,
        responses={**file_response(*RESULT_MEDIA_TYPES), **problems(400, 404, 409, 416, 507)},
    )
    async def download(job_id: JobId, request: Request) -> FileResponse:
        """Get the result of a completed job as a file."""
        return result_file(jobs, await jobs.find(job_id, request))

    @routes.get(
        LONG_PATH + "/{job_id}/sse",
        operation_id="long_speech_events",
        response_class=Response,
        responses={200: _sse_response(), **problems(400, 404, 507)},
    )
    async def sse(job_id: JobId, request: Request) -> Response:
        """Follow a job as server-sent events."""
        await jobs.find(job_id, request)

        @asynccontextmanager
        async def open_stream() -> AsyncIterator[Stream]:
            yield Stream(SSE_HEADERS, _events(jobs, job_id, request))

        return StreamingAnswer(open_stream, jobs.speaking.metrics, sse=True)


async def _events(jobs: Jobs, job_id: str, request: Request) -> AsyncGenerator[bytes]:
    """Yield a `progress` event after each change of the percentage or the status, and `completed` or `error` last."""
    sent = None
    async with contextlib.aclosing(jobs.follow(job_id, request)) as states:
        async for job in states:
            if job is None:
                yield SSE_COMMENT
                continue
            state = LongJob.of(job, _collection(request))
            progress = state.progress
            news = LongEvent(
                status=state.status,
                progress=progress.overall_progress,
                current_chunk=progress.current_chunk,
                total_chunks=progress.total_chunks,
                estimated_remaining_seconds=progress.estimated_remaining_seconds,
            )
            if (news.status, round(news.progress)) != sent:
                sent = news.status, round(news.progress)
                yield b"event: progress\ndata: " + news.model_dump_json().encode() + b"\n\n"
            else:
                yield SSE_COMMENT
            if job.status in ENDED:
                name = b"completed" if job.status == "completed" else b"error"
                yield b"event: " + name + b"\ndata: " + state.model_dump_json().encode() + b"\n\n"


class LongEvent(ResponseModel):
    """The data of an event `progress`."""

    status: LongStatus
    progress: float
    current_chunk: int
    total_chunks: int
    estimated_remaining_seconds: float | None


def _add_changes(routes: APIRouter, jobs: Jobs) -> None:
    store = jobs.runner.store

    @routes.put(LONG_PATH + "/{job_id}/pause", operation_id="pause_long_speech", responses=problems(400, 404, 409, 507))
    async def pause(job_id: JobId, request: Request) -> LongJob:
        """Pause a job."""
        return LongJob.of(await jobs.pause(job_id, request), _collection(request))

    @routes.put(
        LONG_PATH + "/{job_id}/resume", operation_id="resume_long_speech", responses=problems(400, 404, 409, 507)
    )
    async def resume(job_id: JobId, request: Request) -> LongJob:
        """Continue a paused job."""
        return LongJob.of(await jobs.resume(job_id, request), _collection(request))

    @routes.post(
        LONG_PATH + "/{job_id}/retry", operation_id="retry_long_speech", responses=problems(400, 404, 409, 507)
    )
    async def retry(job_id: JobId, request: Request) -> LongJob:
        """Continue a job that has failed or was cancelled. Its spoken sentences stay."""
        return LongJob.of(await jobs.retry(job_id, request), _collection(request))

    @routes.patch(
        LONG_PATH + "/{job_id}", operation_id="change_long_speech", responses=problems(400, 404, 408, 413, 507)
    )
    async def change(job_id: JobId, body: LongChangeBody, request: Request, response: Response) -> LongJob:
        """Change the name and the tags of a job, or archive the job. The history omits archived jobs by default."""
        job = await jobs.find(job_id, request)
        body.name_ignored(response)
        changed = await store.call(
            store.update, job.id, name=body.display_name, labels=body.tags, archived=body.is_archived
        )
        return LongJob.of(changed, _collection(request))

    @routes.delete(LONG_PATH + "/{job_id}", operation_id="delete_long_speech", responses=problems(400, 404, 409, 507))
    async def delete(
        job_id: JobId, request: Request, action: Annotated[Literal["cancel", "delete"], Query()] = "delete"
    ) -> LongDeleted:
        """Delete a job with its speech. With `action=cancel`, only cancel the job."""
        if action == "cancel":
            return LongDeleted(job_id=(await jobs.cancel(job_id, request)).id, status="cancelled")
        job = await jobs.find(job_id, request)
        await jobs.runner.remove(job.id)
        return LongDeleted(job_id=job.id, status="deleted")
