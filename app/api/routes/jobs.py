"""`/audio/jobs`: long texts and books that are spoken in the background, and survive a restart of the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import FileResponse, Response

from app.api.errors import problems
from app.api.http_protocol import STOPPING
from app.api.job_requests import MAX_INDEX, TEST_CHARS, JobChangeBody, RedoBody, job_body_schema, read_job
from app.api.job_responses import (
    RESULT_MEDIA_TYPES,
    AudioJob,
    DeletedJob,
    JobList,
    JobSentence,
    JobSentences,
    ResultFile,
    event_of,
    file_response,
    job_captions,
    job_events,
)
from app.api.requests import id_of_voice
from app.api.responses import IGNORED_HEADER
from app.api.streaming import SSE_END, SSE_HEADERS, Stream, StreamingAnswer, event
from app.audio.formats import wav_header
from app.books.reading import read_book
from app.books.results import caption_parts, file_name
from app.errors import Conflict, EmptyText, NotFound, NotReady, SpeechError
from app.jobs.sounds import SAMPLE_BYTES, sound_path
from app.jobs.state import ENDED
from app.text.captions import MEDIA_TYPES, CaptionFormat

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.jobs.runner import JobRunner
    from app.jobs.state import Job, JobStatus, NewJob
    from app.types import SpeechRequest

JOBS_PATH = "/audio/jobs"
EVENT_CHECK_S = 1.0  # how often a job is read again, because another process may have changed the job
# After KEEP_ALIVE_S seconds without an event, a comment is sent, so that proxies keep the connection open.
KEEP_ALIVE_S, SSE_COMMENT = 15.0, b": waiting\n\n"
EVENT_SENTENCES = 200  # the largest number of sentences in one event
MAX_LISTED_SENTENCES = 5_000
MAX_KEY_CHARS = 255
MAX_ID_DIGITS = 18

JobId = Annotated[str, Path(max_length=100)]
SentenceIndex = Annotated[int, Path(ge=0, le=MAX_INDEX, description="The index of the sentence in the job.")]


@dataclass(frozen=True, slots=True)
class Jobs:
    """The services and functions that all routes of jobs use. Call them from one event loop."""

    runner: JobRunner
    speaking: Speaking
    gate: Gate
    max_chars: int

    def owner(self, request: Request) -> str | None:
        """Return the owner whose jobs the caller may see; None = the jobs of all owners."""
        admitted = getattr(request.state, "admitted", None)
        if admitted is None or "admin" in admitted.key.scopes:
            return None
        return str(request.state.owner)

    async def find(self, job_id: str, request: Request) -> Job:
        """Return a job that the caller may see. Raises NotFound."""
        store = self.runner.store
        return await store.call(store.get, job_id, self.owner(request))

    async def shown(self, job: Job) -> AudioJob:
        """Return the response with a job and its chapters."""
        store = self.runner.store
        return AudioJob.of(job, await store.call(store.chapters, job.id))

    async def create(self, request: Request, key: str | None) -> tuple[Job, tuple[str, ...]]:
        """Store the job that a request describes. Return the job, and the names of the fields that have no effect.

        Raises RequestError if the request is wrong, and NotStored if the job can't be stored.
        """
        body, file = await read_job(request)
        book = None
        if file is not None:
            name, data = file
            book = await asyncio.to_thread(read_book, data, name)
        new = await asyncio.to_thread(
            body.to_job,
            request.state.owner,
            book,
            default_model=self.speaking.manager.requested.model_id,
            max_chars=self.max_chars,
        )
        new = replace(new, request=self.speaking.with_default_voice(new.request, body))
        store = self.runner.store
        if (first := await store.call(store.repeated, new, key)) is not None:
            # The client has sent this request again. Do not check the job, because its voice may not exist any more.
            return first, body.ignored
        ignored = await self.check(new)
        job, _ = await store.call(store.create, new, key)
        self.runner.wake()
        return job, (*body.ignored, *ignored)

    async def follow(self, job_id: str, request: Request) -> AsyncGenerator[Job | None]:
        """Yield a job at once and after each change, until the job has ended or was deleted, or the server stops.

        Yields None after KEEP_ALIVE_S without a change.
        """
        store = self.runner.store
        revision, since_s = -1, 0.0
        while True:
            try:
                job = await store.call(store.get, job_id)
            except NotFound:  # the job was deleted
                return
            if job.revision != revision:
                revision, since_s = job.revision, time.monotonic()
                yield job
            elif time.monotonic() - since_s >= KEEP_ALIVE_S:
                since_s = time.monotonic()
                yield None
            if job.status in ENDED or STOPPING in request.scope["state"]:
                return
            await self.runner.changed(EVENT_CHECK_S)

    async def pause(self, job_id: str, request: Request) -> Job:
        """Pause a job. Raises NotFound, Conflict."""
        return await self._with_status(job_id, request, "paused", ["queued", "running"])

    async def resume(self, job_id: str, request: Request) -> Job:
        """Continue a paused job. Raises NotFound, Conflict."""
        return await self._with_status(job_id, request, "queued", ["paused"], kept=["running"])

    async def cancel(self, job_id: str, request: Request) -> Job:
        """Cancel a job. Raises NotFound, Conflict."""
        return await self._with_status(job_id, request, "cancelled", ["queued", "running", "paused", "failed"])

    async def retry(self, job_id: str, request: Request) -> Job:
        """Continue a job that has failed or was cancelled. Raises NotFound, Conflict."""
        job = await self.find(job_id, request)
        store = self.runner.store
        changed = await store.call(store.retry, job.id)
        self.runner.wake()
        return changed

    async def _with_status(
        self,
        job_id: str,
        request: Request,
        status: JobStatus,
        of: Collection[JobStatus],
        kept: Collection[JobStatus] = (),
    ) -> Job:
        job = await self.find(job_id, request)
        store = self.runner.store
        changed = await store.call(store.set_status, job.id, status, of=of, kept=kept)
        self.runner.wake()
        return changed

    async def check(self, new: NewJob) -> tuple[str, ...]:
        """Check that a new job has text, and that its settings and its voices can be used. Raises RequestError.

        Returns the names of the fields that the engine ignores.
        """
        texts = [chapter.text for chapter in new.chapters if chapter.text.strip()]
        if not texts:
            raise EmptyText("The text contains nothing that can be spoken. Send a text with words.", param="input")
        ignored = await self.check_voice(new.request, new.extras, texts[0], new.request.lines[0].voice, "voice")
        voices = {chapter.voice: number for number, chapter in enumerate(new.chapters) if chapter.voice is not None}
        for voice, number in voices.items():
            await self.check_voice(new.request, new.extras, texts[0], voice, f"chapters.{number}.voice")
        return ignored

    async def check_voice(
        self, request: SpeechRequest, extras: frozenset[str], text: str, voice: str, param: str
    ) -> tuple[str, ...]:
        """Check that a text can be spoken with a voice. Return the names of the fields that the engine ignores.

        param: the request field that has the voice; an error about the voice names this field. Raises RequestError.
        While the engine starts, only the model and the voice are checked.
        """
        line = replace(request.lines[0], text=text[:TEST_CHARS], voice=voice)
        try:
            return await self.speaking.generator.ignored_fields(replace(request, lines=(line,)), extras)
        except NotReady:
            return ()
        except SpeechError as error:
            if error.param == "voice":
                error.param = param
            raise


def router(jobs: Jobs) -> APIRouter:
    """Create the routes of jobs."""
    routes = APIRouter(tags=["jobs"], route_class=jobs.gate.route("speak"))
    _add_collection_routes(routes, jobs)
    _add_job_routes(routes, jobs)
    _add_status_routes(routes, jobs)
    _add_sentence_routes(routes, jobs)
    return routes


def _add_collection_routes(routes: APIRouter, jobs: Jobs) -> None:
    store = jobs.runner.store

    @routes.post(
        JOBS_PATH,
        status_code=202,
        operation_id="create_job",
        openapi_extra=job_body_schema(),
        responses={202: IGNORED_HEADER, **problems(400, 404, 408, 409, 413, 429, 507)},
    )
    async def create_job(
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str | None,
            Header(
                alias="Idempotency-Key",
                min_length=1,
                max_length=MAX_KEY_CHARS,
                description="A text that you choose. A repeated request with the same key returns the first job.",
            ),
        ] = None,
    ) -> AudioJob:
        """Speak a long text in the background. Send JSON, or a form with a book in `file`.

        Accepts the fields of `/audio/speech`. The text is split into chapters and sentences. Each sentence is
        spoken while no other request needs the engine, and is then stored. The job survives a restart of the server.
        """
        job, ignored = await jobs.create(request, idempotency_key)
        if ignored:
            response.headers["X-TTS-Ignored"] = ", ".join(ignored)
        return await jobs.shown(job)

    @routes.get(JOBS_PATH, operation_id="list_jobs", responses=problems(400, 404, 507))
    async def list_jobs(
        request: Request,
        after: Annotated[str | None, Query(description="Continue after the job with this id.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> JobList:
        """List the jobs of the caller's key, the newest first. A key with the scope `admin` sees all jobs."""
        found, more = await store.call(store.newest, jobs.owner(request), after=after, limit=limit)
        shown = [AudioJob.of(job) for job in found]
        return JobList(
            object="list",
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=more,
        )


def _add_job_routes(routes: APIRouter, jobs: Jobs) -> None:
    store = jobs.runner.store

    @routes.get(JOBS_PATH + "/{job_id}", operation_id="get_job", responses=problems(400, 404, 507))
    async def get_job(job_id: JobId, request: Request) -> AudioJob:
        """Get the state of a job and of its chapters."""
        return await jobs.shown(await jobs.find(job_id, request))

    @routes.patch(JOBS_PATH + "/{job_id}", operation_id="change_job", responses=problems(400, 404, 408, 413, 507))
    async def change_job(job_id: JobId, body: JobChangeBody, request: Request, response: Response) -> AudioJob:
        """Change the title, the author, the narrator, or the voices of chapters."""
        job = await jobs.find(job_id, request)
        voices = {each.index: each.voice for each in body.chapters or ()}
        for number, each in enumerate(body.chapters or ()):
            await jobs.check_voice(job.request, job.extras, "Yes.", each.voice, f"chapters.{number}.voice")
        changes = {name: getattr(body, name) for name in ("title", "author", "narrator")}
        about = replace(job.about, **{name: value for name, value in changes.items() if value is not None})
        body.name_ignored(response)
        changed = await store.call(store.update, job.id, about=about, voices=voices)
        jobs.runner.wake()
        return await jobs.shown(changed)

    @routes.delete(JOBS_PATH + "/{job_id}", operation_id="delete_job", responses=problems(400, 404, 507))
    async def delete_job(job_id: JobId, request: Request) -> DeletedJob:
        """Delete a job with its speech and its result. A running job is stopped."""
        job = await jobs.find(job_id, request)
        await jobs.runner.remove(job.id)
        return DeletedJob(id=job.id, object="audio.job.deleted", deleted=True)

    @routes.get(
        JOBS_PATH + "/{job_id}/events",
        operation_id="job_events",
        response_class=Response,
        responses={200: job_events(), **problems(400, 404, 507)},
    )
    async def events(
        job_id: JobId,
        request: Request,
        last_event_id: Annotated[
            str | None,
            Header(
                alias="Last-Event-ID",
                description="The id of the last event that arrived before the connection was lost. The sentences that "
                "have changed since then are sent first.",
            ),
        ] = None,
    ) -> Response:
        """Follow a job as server-sent events, until it has ended."""
        job = await jobs.find(job_id, request)
        last = last_event_id or ""
        known = int(last) if last.isascii() and last.isdecimal() and len(last) < MAX_ID_DIGITS else None
        if known is not None and known > job.revision:
            known = None  # the job has no revision with this number, so the id is not from this job
        return StreamingAnswer(lambda: _event_stream(jobs, job_id, request, known), jobs.speaking.metrics, sse=True)

    @routes.get(
        JOBS_PATH + "/{job_id}/result",
        operation_id="get_job_result",
        response_class=FileResponse,
        responses={**file_response(*RESULT_MEDIA_TYPES), **problems(400, 404, 409, 416, 507)},
    )
    async def result(job_id: JobId, request: Request) -> FileResponse:
        """Get the result of a completed job as a file. With the header `Range`, get a part of the file."""
        return result_file(jobs, await jobs.find(job_id, request))

    @routes.get(
        JOBS_PATH + "/{job_id}/captions",
        operation_id="get_job_captions",
        response_class=Response,
        responses={200: job_captions(), **problems(400, 404, 409, 507)},
    )
    async def captions(
        job_id: JobId,
        request: Request,
        kind: Annotated[CaptionFormat, Query(alias="format", description="The format of the captions.")] = "srt",
    ) -> Response:
        """Get the captions of a completed job. Each word has its time if the job was created with `captions`."""
        job = await jobs.find(job_id, request)
        if job.status != "completed":
            raise Conflict(
                f"The job is {job.status}. Its captions exist when it is completed.", code="job_not_completed"
            )
        book, sentences, _ = await jobs.runner.spoken_book(job)
        rate_hz = job.request.sample_rate_hz
        content = await asyncio.to_thread(lambda: "".join(caption_parts(book, sentences, kind, rate_hz)))
        return Response(content, media_type=MEDIA_TYPES[kind], headers=_attachment(job, f".{kind}"))


def result_file(jobs: Jobs, job: Job) -> FileResponse:
    """Return the file of a completed job. Raises Conflict, NotFound."""
    if job.status != "completed" or job.result is None:
        raise Conflict(
            f"The job is {job.status}. Its result exists when it is completed.", code="job_not_completed", param="id"
        )
    path = jobs.runner.store.job_folder(job.id) / job.result
    if not path.is_file():
        raise NotFound("The file of the result was removed from the server. Redo a sentence to create the file again.")
    return ResultFile(
        path,
        media_type=job.result_facts["media_type"],
        headers={**_attachment(job, path.suffix), "Cache-Control": "no-store"},
    )


def _attachment(job: Job, suffix: str) -> dict[str, str]:
    """Return the header that makes browsers and curl name the saved file after the title of its job.

    curl reads only `filename`, which is ASCII. Browsers prefer `filename*` (RFC 6266).
    """
    title = file_name(job.about.title or job.id)
    ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().strip(" .") or job.id
    names = f"filename=\"{ascii_title}{suffix}\"; filename*=UTF-8''{quote(title + suffix)}"
    return {"Content-Disposition": f"attachment; {names}"}


@contextlib.asynccontextmanager
async def _event_stream(jobs: Jobs, job_id: str, request: Request, known: int | None) -> AsyncIterator[Stream]:
    yield Stream(SSE_HEADERS, _events(jobs, job_id, request, known))


async def _events(jobs: Jobs, job_id: str, request: Request, known: int | None) -> AsyncGenerator[bytes]:
    """Yield the events of a job, until it has ended or the server stops.

    An event's id is a revision of the job. known: the last revision that the client has received; None = none.
    """
    store = jobs.runner.store
    sent, is_first = known, True
    async with contextlib.aclosing(jobs.follow(job_id, request)) as states:
        async for job in states:
            if job is None:
                yield SSE_COMMENT
                continue
            after, more = -1, sent is not None
            while more:
                found, more = await store.call(
                    store.sentences, job_id, after=after, changed_after=sent, limit=EVENT_SENTENCES
                )
                if found:
                    after = found[-1].index
                    shown = [JobSentence.of(each).model_dump() for each in found]
                    yield event({"type": "job.sentences", "data": shown})
            if is_first:
                yield event({"type": "job.updated", "job": (await jobs.shown(job)).model_dump()}, job.revision)
            elif job.status not in ENDED:
                yield event({"type": "job.updated", "job": AudioJob.of(job).model_dump()}, job.revision)
            sent, is_first = job.revision, False
            if job.status in ENDED:
                yield event(event_of(await jobs.shown(job)), job.revision)
    yield SSE_END


def _add_status_routes(routes: APIRouter, jobs: Jobs) -> None:
    @routes.post(JOBS_PATH + "/{job_id}/pause", operation_id="pause_job", responses=problems(400, 404, 409, 507))
    async def pause_job(job_id: JobId, request: Request) -> AudioJob:
        """Pause a job. Its spoken sentences stay."""
        return await jobs.shown(await jobs.pause(job_id, request))

    @routes.post(JOBS_PATH + "/{job_id}/resume", operation_id="resume_job", responses=problems(400, 404, 409, 507))
    async def resume_job(job_id: JobId, request: Request) -> AudioJob:
        """Continue a paused job."""
        return await jobs.shown(await jobs.resume(job_id, request))

    @routes.post(JOBS_PATH + "/{job_id}/cancel", operation_id="cancel_job", responses=problems(400, 404, 409, 507))
    async def cancel_job(job_id: JobId, request: Request) -> AudioJob:
        """Cancel a job. Its spoken sentences stay until the job is deleted, so `retry` can continue the job."""
        return await jobs.shown(await jobs.cancel(job_id, request))

    @routes.post(JOBS_PATH + "/{job_id}/retry", operation_id="retry_job", responses=problems(400, 404, 409, 507))
    async def retry_job(job_id: JobId, request: Request) -> AudioJob:
        """Continue a job that has failed or was cancelled. Sentences that have failed get another seed."""
        return await jobs.shown(await jobs.retry(job_id, request))


def _add_sentence_routes(routes: APIRouter, jobs: Jobs) -> None:
    store = jobs.runner.store

    @routes.get(JOBS_PATH + "/{job_id}/sentences", operation_id="list_job_sentences", responses=problems(400, 404, 507))
    async def list_sentences(
        job_id: JobId,
        request: Request,
        chapter: Annotated[
            int | None, Query(ge=0, le=MAX_INDEX, description="Only the sentences of this chapter.")
        ] = None,
        after: Annotated[int, Query(ge=-1, le=MAX_INDEX, description="Only sentences with a larger index.")] = -1,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED_SENTENCES)] = 1_000,
    ) -> JobSentences:
        """List the sentences of a job, in order."""
        job = await jobs.find(job_id, request)
        found, more = await store.call(store.sentences, job.id, chapter=chapter, after=after, limit=limit)
        return JobSentences(object="list", data=[JobSentence.of(each) for each in found], has_more=more)

    @routes.get(
        JOBS_PATH + "/{job_id}/sentences/{index}/audio",
        operation_id="get_job_sentence_audio",
        response_class=Response,
        responses={**file_response("audio/wav"), **problems(400, 404, 409, 507)},
    )
    async def sentence_audio(job_id: JobId, index: SentenceIndex, request: Request) -> Response:
        """Listen to a sentence that is already spoken."""
        job = await jobs.find(job_id, request)
        sentence = await store.call(store.sentence, job.id, index)
        if sentence.status != "done":
            raise Conflict("The sentence is not spoken yet. Try again later.", code="sentence_not_spoken")
        path = sound_path(store.job_folder(job.id), sentence)
        try:
            samples = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise NotFound("The sound of the sentence was removed from the server. Redo the sentence.") from error
        header = wav_header(job.request.sample_rate_hz, len(samples) // SAMPLE_BYTES)
        return Response(header + samples, media_type="audio/wav", headers={"Cache-Control": "no-store"})

    @routes.post(
        JOBS_PATH + "/{job_id}/sentences/{index}/redo",
        operation_id="redo_job_sentence",
        responses=problems(400, 404, 408, 409, 413, 507),
    )
    async def redo_sentence(
        job_id: JobId, index: SentenceIndex, request: Request, response: Response, body: RedoBody | None = None
    ) -> JobSentence:
        """Speak a sentence anew: with another seed, or with a seed, a text or a voice that you send.

        A completed job is queued again, and its result is made anew.
        """
        body = body or RedoBody()
        job = await jobs.find(job_id, request)
        voice = id_of_voice(body.voice)
        sentence = await store.call(store.sentence, job.id, index)
        await jobs.check_voice(job.request, job.extras, body.text or sentence.text, voice or sentence.voice, "voice")
        redone = await store.call(store.redo, job.id, index, seed=body.seed, text=body.text, voice=voice)
        body.name_ignored(response)
        jobs.runner.wake()
        return JobSentence.of(redone)
