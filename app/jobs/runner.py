"""Speaks the texts of stored jobs in the background, and writes the results.

Each process that shares the store has one runner. A runner claims jobs, renews its leases, and speaks several sentences
at the same time if rows are free. All other requests have priority over jobs: see `app/runtime/scheduler.py`.

Each sentence is one request with its own seed, so its sound does not depend on when and where it is spoken. After a
crash, the complete sentences are kept, and only the sentences that were being spoken are spoken again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from app.audio.provenance import Provenance
from app.audio.signing import SIGNED_FORMATS
from app.audio.threads import in_thread
from app.books.book import Book, Chapter, SpokenSentence
from app.books.results import write_result
from app.errors import Busy, EmptyText, EngineError, EngineStopped, NotReady, NotStored, SpeechError
from app.jobs import sounds
from app.jobs.planning import plan_chapter
from app.jobs.state import Problem, SpokenTake
from app.jobs.store import LostJob

if TYPE_CHECKING:
    from pathlib import Path

    from app.audio.signing import FileSigner
    from app.generator.speech import SpeechGenerator
    from app.jobs.state import Job, JobStatus, SentenceState
    from app.jobs.store import JobStore
    from app.types import SpeechRequest

log = logging.getLogger(__name__)

BEAT_S = 2.0  # seconds between two renewals of the leases; without a renewal, a lease ends after LEASE_S
MAX_JOBS = 8  # the largest number of jobs that one process speaks at the same time; these jobs share the rows
# On a CPU, each sentence of a job slows down the requests, even if the engine has free rows. So jobs use at most
# ROWS_ON_CPU rows. A sentence waits until no request was answered for QUIET_S seconds, but at most MAX_QUIET_WAIT_S
# seconds.
ROWS_ON_CPU, MAX_ROWS = 2, 1_024
QUIET_S, MAX_QUIET_WAIT_S, QUIET_CHECK_S = 1.0, 10.0, 0.1
BUSY_WAIT_S = 0.25  # seconds from the preemption of a sentence to the next attempt to speak it
NOT_READY_WAIT_S = 5.0  # if the engine of a job is not ready, the job is claimed again after this number of seconds
PLANNING_CHECK_S = 0.25  # seconds between two searches for new sentences while chapters are split into sentences
AHEAD = 2  # how many sentences are being spoken or wait for a row, for each row that the job may use
FULL_DISK_WAIT_S = 5.0  # seconds between two attempts to write the state of a job to a full disk
REMOVE_EVERY_S = 3600.0  # seconds between two searches for jobs that are old enough to be removed
DAY_S = 86_400.0
_MAKE_SPACE = "Free space on the disk, for example by deleting another job, and resume the job."


class _EngineChanged(Exception):
    """The engine that runs now is not the engine with which the job was begun."""


class _Stopped(Exception):
    """The result is not needed any more, because the job was paused or the server stops."""


@dataclass(slots=True)
class _Session:
    """A job whose sentences this process is speaking."""

    job: Job
    folder: Path
    engine: str | None  # the engine that began the first sentence of the job; None = no sentence is begun yet
    rows: asyncio.Semaphore
    usable_rows: int
    shares_cpu: bool  # whether the engine runs on the CPU that also serves the requests
    began_s: float
    characters: int = 0  # the number of characters of the job that this process has spoken

    def add(self, characters: int) -> float:
        """Count the characters of a sentence. Return how many characters are spoken in one second."""
        self.characters += characters
        return self.characters / max(0.001, time.monotonic() - self.began_s)


@dataclass(frozen=True, slots=True)
class _Sentences:
    """The sentences of a result. If `stop` is set, the iteration raises _Stopped.

    A thread writes the result, and a thread can't be cancelled. The error _Stopped ends this thread.
    """

    sentences: list[SpokenSentence]
    stop: threading.Event

    def __iter__(self) -> Iterator[SpokenSentence]:
        for sentence in self.sentences:
            if self.stop.is_set():
                raise _Stopped
            yield sentence


class JobRunner:
    """Claims jobs and speaks their sentences inside `async with`. Use it from one event loop."""

    def __init__(
        self,
        store: JobStore,
        generator: SpeechGenerator,
        *,
        voices_pending: Callable[[Collection[str]], bool] = lambda _: False,
        keep_days: float = 0,
        signer: FileSigner | None = None,
    ) -> None:
        """voices_pending: a function that gets voices, and returns whether a recording of one of them is being created.

        keep_days: an ended job is removed when it has not changed for this number of days; 0 = never. signer: signs the
        results; None = the results are not signed.
        """
        self.store = store
        self._generator = generator
        self._voices_pending = voices_pending
        self._keep_days = keep_days
        self._signer = signer
        self._holder = secrets.token_hex(8)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._rows: dict[str, asyncio.Semaphore] = {}  # model -> semaphore of the rows that jobs may use
        self._not_before_s: dict[str, float] = {}  # id of a job -> monotonic time at which the job may be claimed again
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()  # At each change of a job, this event is set, and a new event replaces it.
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name="jobs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.store.close)

    def wake(self) -> None:
        """Look for changed jobs at once, not only after BEAT_S. Call this method after a job was created or
        changed in this process.
        """
        self._wake.set()
        self._notify()

    async def changed(self, timeout_s: float) -> None:
        """Wait until a job of this process has changed, at most `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # ---- leases

    async def _watch(self) -> None:
        """Claim jobs, renew the leases, and stop jobs that were paused or cancelled, until the task is cancelled."""
        removed_s, logged = -REMOVE_EVERY_S, ""
        while True:
            try:
                held = await self.store.call(self.store.beat, self._holder)
                for job_id, task in self._tasks.items():
                    if job_id not in held:
                        task.cancel()
                await self._claim()
                if time.monotonic() - removed_s >= REMOVE_EVERY_S:
                    removed_s = time.monotonic()
                    await self._remove_old()
            except NotStored as error:
                if error.message != logged:
                    logged = error.message
                    log.error("the stored jobs can't be read or changed now; the server tries again: %s", error.message)
            except Exception:
                log.exception("the search for jobs failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _claim(self) -> None:
        while len(self._tasks) < MAX_JOBS:
            now_s = time.monotonic()
            self._not_before_s = {job: at_s for job, at_s in self._not_before_s.items() if at_s > now_s}
            busy = {*self._not_before_s, *self._tasks}
            job = await self.store.call(self.store.claim, self._holder, but=busy)
            if job is None:
                return
            self._tasks[job.id] = task = asyncio.create_task(self._run(job), name="job")
            task.add_done_callback(partial(self._ended, job.id))

    def _ended(self, job_id: str, _: asyncio.Task[None]) -> None:
        self._tasks.pop(job_id, None)
        self.wake()

    async def _remove_old(self) -> None:
        for name in await self.store.call(self.store.orphans):
            await in_thread(sounds.remove, self.store.job_folder(name))
        if self._keep_days:
            for job_id in await self.store.call(self.store.ended_before, time.time() - self._keep_days * DAY_S):
                await self.remove(job_id)

    async def remove(self, job_id: str) -> None:
        """Delete a job with all its files. Raises NotFound, NotStored."""
        try:
            await self.store.call(self.store.delete, job_id)
        # On a full disk, delete the files of the job first. Then the database has space to record the deletion.
        except NotStored:
            await in_thread(sounds.remove, self.store.job_folder(job_id))
            await self.store.call(self.store.delete, job_id)
        self.wake()
        await in_thread(sounds.remove, self.store.job_folder(job_id))

    # ---- one job

    async def _run(self, job: Job) -> None:
        """Speak the sentences of a job, write its result, and end its lease."""
        # If this task is cancelled, the status stays "queued", so that another process may continue the job.
        status: JobStatus = "queued"
        problem: Problem | None = None
        try:
            if await self._speak_and_write(job):
                return
            left = (await self.store.call(self.store.get, job.id)).progress.sentences_failed
            status = "failed"
            problem = Problem(
                "sentences_failed",
                f"{left} sentences could not be spoken. Redo them, for example with another text, or retry the job.",
            )
        except LostJob:
            return
        except (NotReady, EngineStopped) as error:
            self._not_before_s[job.id] = time.monotonic() + NOT_READY_WAIT_S
            problem = Problem(error.code, error.message)
        except NotStored as error:
            status, problem = "paused", Problem(error.code, f"{error.message} {_MAKE_SPACE}")
        except _EngineChanged as error:
            status, problem = "paused", Problem("engine_changed", str(error))
        except SpeechError as error:
            status, problem = "failed", Problem(error.code, error.message)
        except Exception as error:
            log.exception("a job failed with an unexpected error")
            status, problem = (
                "failed",
                _internal(error),
            )
        finally:
            if status != "queued":
                log.warning(
                    "the job %s has the status %s, with the error code %s",
                    job.id,
                    status,
                    None if problem is None else problem.code,
                )
            await asyncio.shield(self._release(job.id, status, problem))

    async def _release(self, job_id: str, status: JobStatus, problem: Problem | None) -> None:
        """Store the status of a job and end its lease.

        If the disk is full, try again until the status is stored. Otherwise the job would seem to run.
        """
        while True:
            try:
                await self.store.call(self.store.release, job_id, self._holder, status, problem)
            except NotStored as error:
                log.warning("the state of the job %s can't be stored: %s", job_id, error.message)
                if status == "queued":  # do not try again: when the lease expires, a process claims the job
                    return
                await asyncio.sleep(FULL_DISK_WAIT_S)
            else:
                return

    async def _speak_and_write(self, job: Job) -> bool:
        """Speak all sentences of a job, and write its result. Returns False if sentences could not be spoken."""
        folder, store = self.store.job_folder(job.id), self.store
        try:
            await in_thread(sounds.prepare, folder)
            await self._check_sounds(job, folder)
        except OSError as error:
            raise NotStored(f"The files of the job can't be read: {error.strerror or error}.") from error
        chapters = await store.call(store.chapters, job.id)
        voices = {job.request.lines[0].voice, *(chapter.voice for chapter in chapters if chapter.voice)}
        # A voice sounds different after its recording was created. A voice must not change in the middle of a book, so
        # wait until no recording is being created.
        while self._voices_pending(voices):
            await self.changed(BEAT_S)
        while True:
            await self._speak(await self._session(job, folder))
            present = await store.call(store.get, job.id)
            if present.progress.sentences_failed:
                return False
            result, facts = await self._write(present, folder)
            if await store.call(store.complete, job.id, self._holder, result, facts, revision=present.revision):
                log.info("the job %s is completed: %d sentences", job.id, present.progress.sentences_done)
                return True

    async def _check_sounds(self, job: Job, folder: Path) -> None:
        """Mark sentences without a sound on the disk as not spoken. A sound can be lost in a power failure."""
        async for sentences in self._pages(job.id):
            if lost := await in_thread(sounds.lost, folder, sentences):
                log.warning("%d sentences of the job %s have no sound and are spoken again", len(lost), job.id)
                await self.store.call(self.store.speak_again, job.id, self._holder, lost)

    async def _pages(self, job_id: str) -> AsyncIterator[list[SentenceState]]:
        after, more = -1, True
        while more:
            page, more = await self.store.call(self.store.sentences, job_id, after=after)
            if page:
                after = page[-1].index
                yield page

    async def _speak(self, session: _Session) -> None:
        """Speak all pending sentences, and plan the chapters meanwhile. Raises the first error that ends the job."""
        store, job_id = self.store, session.job.id
        planning = asyncio.create_task(self._plan(session.job))
        speaking: dict[asyncio.Task[None], int] = {}
        try:
            while True:
                planned = planning.done()
                if planned:
                    planning.result()
                room = AHEAD * session.usable_rows - len(speaking)
                if room > 0:
                    for sentence in await store.call(store.pending, job_id, room, but=set(speaking.values())):
                        speaking[asyncio.create_task(self._sentence(session, sentence))] = sentence.index
                if planned and not speaking:
                    return
                done, _ = await asyncio.wait(
                    {*speaking, *([] if planned else [planning])},
                    return_when=asyncio.FIRST_COMPLETED,
                    timeout=BEAT_S if planned else PLANNING_CHECK_S,
                )
                for task in done - {planning}:
                    speaking.pop(task, None)
                    task.result()
        finally:
            for task in (planning, *speaking):
                task.cancel()
            await asyncio.gather(planning, *speaking, return_exceptions=True)

    async def _session(self, job: Job, folder: Path) -> _Session:
        """Return a new session, in which a job is spoken. Raises NotReady.

        All jobs with the same model together use at most half of the engine's rows, and on a CPU at most ROWS_ON_CPU
        rows. The remaining rows stay free for requests, so that a request rarely preempts the sentence of a job.
        """
        model = job.request.model
        use = await self._generator.use(model)
        shares_cpu = use.info.device == "cpu"
        usable = max(1, min(use.engine.load.max_rows // 2, ROWS_ON_CPU if shares_cpu else MAX_ROWS))
        engine = (await self.store.call(self.store.get, job.id)).engine
        rows = self._rows.setdefault(model, asyncio.Semaphore(usable))
        return _Session(job, folder, engine, rows, usable, shares_cpu, time.monotonic())

    async def _plan(self, job: Job) -> None:
        """Split the chapters that are not planned into sentences, in order."""
        store = self.store
        while True:
            chapter = await store.call(store.next_to_plan, job.id)
            if chapter is None:
                return
            number, text, voice = chapter
            request = _of_sentence(job.request, text, voice or job.request.lines[0].voice)
            sentences = await plan_chapter(self._generator, request) if text.strip() else []
            await store.call(store.add_sentences, job.id, self._holder, number, sentences, voice=voice)
            self._notify()

    async def _sentence(self, session: _Session, sentence: SentenceState) -> None:
        """Speak one sentence and store its sound. If the engine can't speak the sentence, the job still continues."""
        store, job, folder = self.store, session.job, session.folder
        async with session.rows:
            if session.shares_cpu:
                await self._wait_for_quiet()
            request = replace(
                _of_sentence(job.request, sentence.text, sentence.voice),
                caller=job.owner,
                # Sentences after the first are not counted again, so a job counts as one request.
                counted=sentence.index > 0,
                seed=sentence.seed,
                language=job.request.language or sentence.language,
            )
            try:
                samples, take = await self._take(session, request, is_first=not sentence.take)
            except (NotReady, EngineStopped):
                raise
            except EngineError as error:
                log.warning("sentence %d of the job %s can't be spoken: %s", sentence.index, job.id, error.code)
                await store.call(store.failed, job.id, self._holder, sentence, Problem(error.code, error.message))
                self._notify()
                return
            await in_thread(sounds.keep, folder, sentence, samples, self._holder)
            rate = session.add(len(sentence.text))
            if await store.call(store.done, job.id, self._holder, sentence, take, rate):
                await in_thread(sounds.remove_older_takes, folder, sentence)
            self._notify()

    async def _wait_for_quiet(self) -> None:
        """Wait until QUIET_S seconds have passed since the last answer to a request, but at most MAX_QUIET_WAIT_S."""
        until_s = time.monotonic() + MAX_QUIET_WAIT_S
        while self._generator.quiet_s() < QUIET_S and time.monotonic() < until_s:  # noqa: ASYNC110 - no event
            await asyncio.sleep(QUIET_CHECK_S)

    async def _take(self, session: _Session, request: SpeechRequest, *, is_first: bool) -> tuple[bytes, SpokenTake]:
        """Speak a request to its end. Return its 16-bit samples, and facts about the samples such as their number.

        If another request takes the row, wait and speak the request again from its start.
        """
        while True:
            samples = bytearray()
            try:
                answer = await self._generator.answer(request, extras=session.job.extras, to_file=True, background=True)
                await self._check_engine(session, answer.engine)
                if answer.voice_not_ready and is_first and request.seed is not None:
                    # A voice without a recording sounds different with each seed. If a request has no seed, the
                    # generator uses the fixed seed of the voice, so all sentences have the same seed.
                    await answer.stream.aclose()
                    request = replace(request, seed=None)
                    continue
                async with contextlib.aclosing(answer.stream) as stream:
                    async for data in stream:
                        samples += data
            except Busy:
                await asyncio.sleep(BUSY_WAIT_S)
                continue
            words = (await answer.timestamps()).words if request.timestamps else ()
            count = len(samples) // sounds.SAMPLE_BYTES
            return bytes(samples), SpokenTake(count, request.sample_rate_hz, answer.verified, words)

    async def _check_engine(self, session: _Session, engine: str) -> None:
        """Record the engine that speaks the first sentence of the job.

        Raises _EngineChanged if a later sentence is spoken by a different engine.
        """
        if session.engine is None:
            session.engine = engine
            await self.store.call(self.store.begin_with, session.job.id, self._holder, engine)
        elif session.engine != engine:
            raise _EngineChanged(
                f"The job was begun with the engine {session.engine}, and {engine} runs now. Start the server with "
                f"{session.engine}, and resume the job; or create the job again."
            )

    # ---- the result

    async def _write(self, job: Job, folder: Path) -> tuple[str, dict[str, Any]]:
        """Write the result of a job. Return the name of its file, and facts about the result such as its length.

        Raises NotStored if the result can't be written, and EmptyText if the job has no spoken sentence.
        """
        book, sentences, voices = await self.spoken_book(job)
        if not sentences:
            raise EmptyText("The book contains no text that can be spoken.")
        kind = job.options.response_format
        name = f"result.{kind}"
        use = await self._generator.use(job.request.model)
        provenance = Provenance(use.model_id, voices, int(job.created_at), trained=use.info.trained)
        stop = threading.Event()
        writing = asyncio.ensure_future(
            asyncio.to_thread(
                write_result,
                book,
                _Sentences(sentences, stop),
                response_format=kind,
                out=folder / name,
                sample_rate=job.request.sample_rate_hz,
                captions=job.options.captions,
                loudness=job.options.loudness,
                tags=provenance.tags,
            )
        )
        try:
            written = await asyncio.shield(writing)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.gather(writing, return_exceptions=True)
            raise
        except OSError as error:
            raise NotStored(f"The result can't be written: {error.strerror or error}.") from error
        if self._signer is not None and kind in SIGNED_FORMATS:
            await in_thread(self._signer.sign, folder / name, kind, provenance)
        facts = {"seconds": written.seconds, "media_type": written.media_type, "levels": asdict(written.levels)}
        return name, facts

    async def spoken_book(self, job: Job) -> tuple[Book, list[SpokenSentence], tuple[str, ...]]:
        """Return the book of a job, its spoken sentences, and the ids of its voices."""
        folder = self.store.job_folder(job.id)
        chapters = await self.store.call(self.store.chapters, job.id)
        texts = [await self.store.call(self.store.chapter_text, job.id, each.index) for each in chapters]
        about = job.about
        cover = folder / "cover"
        book = Book(
            title=about.title,
            author=about.author,
            narrator=about.narrator,
            language=about.language,
            cover=cover.read_bytes() if cover.is_file() else None,
            chapters=tuple(Chapter(each.title, text) for each, text in zip(chapters, texts, strict=True)),
        )
        voices: dict[str, None] = {}
        sentences = []
        async for page in self._pages(job.id):
            done = [each for each in page if each.status == "done"]
            voices.update(dict.fromkeys(each.voice for each in done))
            sentences += [_spoken(folder, each) for each in done]
        return book, sentences, tuple(voices)


def _spoken(folder: Path, sentence: SentenceState) -> SpokenSentence:
    """Return a sentence in the form that `write_result` needs. folder: the folder of the job."""
    return SpokenSentence(
        sentence.chapter,
        sentence.text,
        sounds.sound_path(folder, sentence),
        sentence.seconds or 0.0,
        sentence.pause_s,
        sentence.words,
        sentence.starts_paragraph,
    )


def _internal(error: Exception) -> Problem:
    return Problem(None, f"The server failed because of an internal error ({type(error).__name__}). See its log.")


def _of_sentence(request: SpeechRequest, text: str, voice: str) -> SpeechRequest:
    """Return a request that speaks this text with this voice, and has all other fields of the job's request."""
    line = replace(request.lines[0], text=text, voice=voice)
    return replace(request, lines=(line,), format="pcm", use_cache=False)
