"""The state of all jobs, in an SQLite database that several processes of one machine may share.

The database is in WAL mode, so a reader never waits for a writer. Each change is one transaction: after `kill -9` at
any moment, the database has either the state before a change or the state after it. SQLite keeps the index of its
write-ahead log in shared memory, so all processes must run on one machine and the folder must be on a local disk.

Only one process at a time speaks a job. This process is the holder of the job, and renews its lease every few seconds.
If the holder dies or hangs, the lease expires after LEASE_S seconds. Then another process may claim the job, and all
further writes of the old holder fail with `LostJob`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from app.errors import Conflict, InvalidValue, NotFound, NotStored
from app.jobs.state import (
    About,
    ChapterState,
    Job,
    JobStatus,
    NewJob,
    Options,
    PlannedSentence,
    Problem,
    Progress,
    SentenceState,
    SpokenTake,
    request_from_json,
    request_to_json,
    sentence_seed,
    storable,
)
from app.types import TimedWord

P = ParamSpec("P")
T = TypeVar("T")

FILE = "jobs.sqlite"
LEASE_S = 6.0  # seconds after which a lease expires if it is not renewed
BUSY_S = 10.0  # the longest wait for a transaction of another process
MAX_NAME_CHARS = 200
MAX_LABELS = 20

_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    idempotency_key TEXT,
    digest TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    about TEXT NOT NULL,
    request TEXT NOT NULL,
    extras TEXT NOT NULL,
    options TEXT NOT NULL,
    seed INTEGER NOT NULL,
    engine TEXT,
    problem TEXT,
    result TEXT,
    result_facts TEXT,
    rate REAL,
    revision INTEGER NOT NULL DEFAULT 0,
    holder TEXT,
    beat_at REAL,
    name TEXT NOT NULL,
    labels TEXT NOT NULL DEFAULT '[]',
    archived INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE chapters (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    title TEXT NOT NULL,
    voice TEXT,
    characters INTEGER NOT NULL,
    planned INTEGER NOT NULL DEFAULT 0,
    text TEXT NOT NULL,
    PRIMARY KEY (job, number)
);
CREATE TABLE sentences (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    chapter INTEGER NOT NULL,
    text TEXT NOT NULL,
    voice TEXT NOT NULL,
    language TEXT,
    characters INTEGER NOT NULL,
    pause_s REAL NOT NULL,
    starts_paragraph INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    take INTEGER NOT NULL DEFAULT 0,
    seed INTEGER NOT NULL,
    samples INTEGER,
    seconds REAL,
    verified TEXT,
    words TEXT,
    problem TEXT,
    changed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, number)
);
CREATE INDEX sentences_progress ON sentences (job, chapter, status, characters, seconds, pause_s);
CREATE INDEX sentences_pending ON sentences (job, number) WHERE status = 'pending';
CREATE INDEX sentences_changed ON sentences (job, changed);
"""


class LostJob(Exception):
    """This process no longer holds the job: it was paused, cancelled or deleted, or another process has claimed it."""


class JobStore:
    """All jobs that are stored in a folder. All methods block; `call` runs a method in the thread of the store."""

    def __init__(self, folder: Path) -> None:
        """folder: the folder of the database and of the jobs' files. The first method call creates the folder."""
        self.folder = folder
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        # One thread is enough, because an SQLite connection executes one statement at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")

    async def call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a method of this store in its thread.

        Raises the errors of the method, and NotStored if the database can't be read or written.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, partial(_translated, method, *args, **kwargs)
        )

    def close(self) -> None:
        """Close the database. The store can't be used afterwards."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def job_folder(self, job_id: str) -> Path:
        """Return the folder with the files of a job."""
        return self.folder / job_id

    # ---- jobs

    def create(self, new: NewJob, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Store a job. Return its state, and whether the job is new.

        If `new.owner` has already created a job with this `idempotency_key`, return that job. Raises Conflict if that
        job was created by a different request.
        """
        with contextlib.ExitStack() as undo, self._transaction() as db:
            if (first := self.repeated(new, idempotency_key)) is not None:
                return first, False
            job_id = f"job_{secrets.token_hex(12)}"
            folder = self.job_folder(job_id)
            folder.mkdir(mode=0o700)
            undo.push(lambda error, *_: shutil.rmtree(folder, ignore_errors=True) if error else None)
            if new.cover is not None:
                (folder / "cover").write_bytes(new.cover)
            now = time.time()
            db.execute(
                "INSERT INTO jobs (id, owner, idempotency_key, digest, status, created_at, updated_at, about, request, "
                "extras, options, seed, name) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job_id,
                    new.owner,
                    idempotency_key,
                    new.request_digest,
                    "paused" if new.paused else "queued",
                    now,
                    now,
                    _about_to_json(new.about),
                    request_to_json(new.request),
                    json.dumps(sorted(new.extras)),
                    json.dumps(asdict(new.options)),
                    new.seed,
                    new.name,
                ),
            )
            db.executemany(
                "INSERT INTO chapters (job, number, title, voice, characters, text) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (job_id, number, storable(chapter.title), chapter.voice, len(chapter.text), storable(chapter.text))
                    for number, chapter in enumerate(new.chapters)
                ),
            )
            return self._job(db, job_id), True

    def repeated(self, new: NewJob, idempotency_key: str | None) -> Job | None:
        """Return the job that `new.owner` has already created with this `idempotency_key`; None = there is none.

        Raises Conflict if that job was created by a different request.
        """
        found = self._db.execute(
            "SELECT id, digest FROM jobs WHERE owner = ? AND idempotency_key = ?", (new.owner, idempotency_key)
        ).fetchone()
        if found is None:
            return None
        if found["digest"] != new.request_digest:
            raise Conflict(
                "This Idempotency-Key was already used for a job with a different body. Send a new key, or the "
                "earlier body.",
                code="idempotency_key_in_use",
            )
        return self._job(self._db, found["id"])

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """Return a job. owner: the owner that the job must have; None = any owner. Raises NotFound."""
        return self._job(self._db, job_id, owner)

    def newest(
        self, owner: str | None = None, *, after: str | None = None, limit: int = 20, archived: bool | None = None
    ) -> tuple[list[Job], bool]:
        """Return the newest jobs, the newest first, and whether there are more.

        after: the id of a job; only jobs that are older than this job are returned. archived: True = only archived
        jobs, False = only jobs that are not archived, None = both. Raises NotFound if the job `after` does not exist.
        """
        conditions = ["1"]
        values: list[str | int] = []
        if owner is not None:
            conditions.append("owner = ?")
            values.append(owner)
        if archived is not None:
            conditions.append("archived = ?")
            values.append(int(archived))
        if after is not None:
            self._job(self._db, after, owner)
            conditions.append("number < (SELECT number FROM jobs WHERE id = ?)")
            values.append(after)
        rows = self._db.execute(
            f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?",  # noqa: S608 # nosec B608
            (*values, limit + 1),
        ).fetchall()
        return [self._state(self._db, row) for row in rows[:limit]], len(rows) > limit

    def count(self, owner: str | None = None, *, archived: bool | None = None) -> int:
        """Return the number of jobs. The parameters are those of `newest`."""
        row = self._db.execute(
            "SELECT count(*) AS jobs FROM jobs WHERE owner = coalesce(?, owner) AND archived = coalesce(?, archived)",
            (owner, archived),
        ).fetchone()
        return int(row["jobs"])

    def counts(self, owner: str | None = None) -> tuple[dict[str, int], float]:
        """Return the number of jobs with each status, and the seconds of speech of all these jobs. owner: see `get`."""
        rows = self._db.execute(
            "SELECT status, count(*) AS jobs FROM jobs WHERE owner = coalesce(?, owner) GROUP BY status", (owner,)
        )
        seconds = self._db.execute(
            "SELECT coalesce(sum(seconds), 0) AS seconds FROM sentences JOIN jobs ON jobs.id = job "
            "WHERE sentences.status = 'done' AND owner = coalesce(?, owner)",
            (owner,),
        ).fetchone()
        return {row["status"]: row["jobs"] for row in rows}, seconds["seconds"]

    def chapters(self, job_id: str) -> Sequence[ChapterState]:
        """Return the chapters of a job, in order."""
        rows = self._db.execute(
            "SELECT chapters.number, title, chapters.voice, chapters.characters, planned, count(sentences.number) AS "
            "sentences, coalesce(sum(status = 'done'), 0) AS done, coalesce(sum(status = 'failed'), 0) AS failed, "
            "coalesce(sum(CASE WHEN status = 'done' THEN seconds + pause_s END), 0) AS seconds FROM chapters "
            "LEFT JOIN sentences ON sentences.job = chapters.job AND sentences.chapter = chapters.number "
            "WHERE chapters.job = ? GROUP BY chapters.number ORDER BY chapters.number",
            (job_id,),
        )
        return [
            ChapterState(
                row["number"],
                row["title"],
                row["voice"],
                row["characters"],
                bool(row["planned"]),
                row["sentences"],
                row["done"],
                row["failed"],
                row["seconds"],
            )
            for row in rows
        ]

    def next_to_plan(self, job_id: str) -> tuple[int, str, str | None] | None:
        """Return the number, the text and the voice of the first chapter that is not split into sentences yet.

        Returns None if all chapters are split.
        """
        row = self._db.execute(
            "SELECT number, text, voice FROM chapters WHERE job = ? AND planned = 0 ORDER BY number LIMIT 1", (job_id,)
        ).fetchone()
        return None if row is None else (row["number"], row["text"], row["voice"])

    def chapter_text(self, job_id: str, number: int) -> str:
        """Return the text of a chapter."""
        row = self._db.execute("SELECT text FROM chapters WHERE job = ? AND number = ?", (job_id, number)).fetchone()
        return str(row["text"])

    def sentences(
        self,
        job_id: str,
        *,
        chapter: int | None = None,
        after: int = -1,
        changed_after: int | None = None,
        limit: int = 1_000,
    ) -> tuple[list[SentenceState], bool]:
        """Return sentences of a job in order, and whether there are more.

        chapter: only sentences of this chapter. after: only sentences with a larger index. changed_after: only
        sentences that have changed after this revision of the job.
        """
        conditions = ["job = ?", "number > ?"]
        values: list[str | int] = [job_id, after]
        if chapter is not None:
            conditions.append("chapter = ?")
            values.append(chapter)
        if changed_after is not None:
            conditions.append("changed > ?")
            values.append(changed_after)
        rows = self._db.execute(
            f"SELECT * FROM sentences WHERE {' AND '.join(conditions)} ORDER BY number LIMIT ?",  # noqa: S608 # nosec B608
            (*values, limit + 1),
        ).fetchall()
        return [_sentence(row) for row in rows[:limit]], len(rows) > limit

    def sentence(self, job_id: str, index: int) -> SentenceState:
        """Return a sentence of a job. Raises NotFound."""
        return _sentence(self._sentence_row(self._db, job_id, index))

    # ---- changes by callers

    def set_status(
        self, job_id: str, status: JobStatus, *, of: Collection[JobStatus], kept: Collection[JobStatus] = ()
    ) -> Job:
        """Change the status of a job to `status`, if its current status is in `of`.

        Nothing changes if the current status is in `kept`, or is already `status`. Raises NotFound, and Conflict for
        any other current status.
        """
        with self._transaction() as db:
            job = self._job(db, job_id)
            if job.status == status or job.status in kept:
                return job
            if job.status not in of:
                raise Conflict(
                    f"The job is {job.status}, so it can't become {status}. Only a job that is "
                    f"{' or '.join(of)} can become {status}.",
                    code="wrong_job_status",
                )
            self._change(db, job_id, status=status, problem=None)
            return self._job(db, job_id)

    def retry(self, job_id: str) -> Job:
        """Queue a job that has failed or was cancelled, or that has failed sentences.

        Each failed sentence gets a new seed. Raises NotFound, and Conflict if there is nothing to retry.
        """
        with self._transaction() as db:
            job = self._job(db, job_id)
            if job.status not in ("failed", "cancelled") and not job.progress.sentences_failed:
                raise Conflict(
                    f"The job is {job.status}, so there is nothing to retry. Retry a job that has failed or was "
                    "cancelled.",
                    code="wrong_job_status",
                )
            revision = self._change(db, job_id, status="queued", problem=None)
            failed = db.execute(
                "SELECT number, take FROM sentences WHERE job = ? AND status = 'failed'", (job_id,)
            ).fetchall()
            db.executemany(
                "UPDATE sentences SET status = 'pending', problem = NULL, take = take + 1, seed = ?, changed = ? "
                "WHERE job = ? AND number = ?",
                (
                    (sentence_seed(job.seed, row["number"], row["take"] + 1), revision, job_id, row["number"])
                    for row in failed
                ),
            )
            return self._job(db, job_id)

    def redo(
        self, job_id: str, index: int, *, seed: int | None = None, text: str | None = None, voice: str | None = None
    ) -> SentenceState:
        """Mark a sentence to be spoken again.

        seed, text, voice: the new values. Without a seed, a new seed is chosen. Without a text or a voice, the sentence
        keeps its own.

        A job that was completed or has failed is queued again. Raises NotFound, and Conflict if the job was cancelled.
        """
        with self._transaction() as db:
            job = self._job(db, job_id)
            if job.status == "cancelled":
                raise Conflict(
                    "The job was cancelled. Send `retry` first, then redo the sentence.", code="wrong_job_status"
                )
            row = self._sentence_row(db, job_id, index)
            changes: dict[str, Any] = {} if job.status in ("running", "paused") else {"status": "queued"}
            if job.status != "paused":
                changes["problem"] = None
            revision = self._change(db, job_id, **changes)
            take = row["take"] + 1
            spoken = storable(text or row["text"])
            db.execute(
                "UPDATE sentences SET status = 'pending', problem = NULL, take = ?, seed = ?, text = ?, "
                "characters = ?, voice = ?, language = ?, samples = NULL, seconds = NULL, words = NULL, "
                "verified = NULL, changed = ? WHERE job = ? AND number = ?",
                (
                    take,
                    sentence_seed(job.seed, index, take) if seed is None else seed,
                    spoken,
                    len(spoken),
                    voice or row["voice"],
                    row["language"] if text is None else None,
                    revision,
                    job_id,
                    index,
                ),
            )
            return _sentence(self._sentence_row(db, job_id, index))

    def update(
        self,
        job_id: str,
        *,
        about: About | None = None,
        voices: dict[int, str] | None = None,
        name: str | None = None,
        labels: Sequence[str] | None = None,
        archived: bool | None = None,
    ) -> Job:
        """Change fields of a job, or the voices of chapters. A field that is None does not change.

        Sentences that are already spoken keep their sound. If the description of a completed job changes, the job is
        queued again, because the result contains the description.

        voices: index of a chapter -> voice id. Raises NotFound, and InvalidValue if a chapter does not exist.
        """
        with self._transaction() as db:
            job = self._job(db, job_id)
            changes: dict[str, Any] = {}
            if about is not None:
                if job.status == "completed" and about != job.about:
                    changes["status"] = "queued"
                changes["about"] = _about_to_json(about)
            if name is not None:
                changes["name"] = name
            if labels is not None:
                changes["labels"] = json.dumps(list(labels))
            if archived is not None:
                changes["archived"] = int(archived)
            revision = self._change(db, job_id, **changes)
            for chapter, voice in (voices or {}).items():
                changed = db.execute(
                    "UPDATE chapters SET voice = ? WHERE job = ? AND number = ?", (voice, job_id, chapter)
                )
                if not changed.rowcount:
                    raise InvalidValue(f"The job has no chapter {chapter}.", param="chapters")
                # The larger `take` makes `done` reject a sentence that is being spoken with the old voice. So the
                # sentence is spoken again.
                db.execute(
                    "UPDATE sentences SET voice = ?, take = take + 1, changed = ? WHERE job = ? AND chapter = ? AND "
                    "status != 'done'",
                    (voice, revision, job_id, chapter),
                )
            return self._job(db, job_id)

    def delete(self, job_id: str) -> None:
        """Delete a job with its sentences. The caller deletes its folder. Raises NotFound."""
        with self._transaction() as db:
            self._job(db, job_id)
            db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def orphans(self) -> list[str]:
        """Return the names of the job folders that belong to no job.

        Such a folder remains if the creation of a job failed or its deletion was interrupted.
        """
        found = [path.name for path in self.folder.glob("job_*")]
        # If a job is being created, this transaction waits until the job is in the database.
        with self._transaction() as db:
            known = {row["id"] for row in db.execute("SELECT id FROM jobs")}
        return [name for name in found if name not in known]

    def ended_before(self, unix_s: float) -> Sequence[str]:
        """Return the ids of the jobs that have ended and have not changed since `unix_s` (Unix time in seconds)."""
        rows = self._db.execute(
            "SELECT id FROM jobs WHERE status IN ('completed', 'failed', 'cancelled') AND updated_at < ?", (unix_s,)
        )
        return [row["id"] for row in rows]

    # ---- changes by the holder of a job

    def claim(self, holder: str, *, but: Collection[str] = ()) -> Job | None:
        """Claim the oldest job that has no holder or whose lease has expired, and return the job; None = there is none.

        holder: the id of the new holder. but: ids of jobs that must not be claimed.
        """
        with self._transaction() as db:
            now = time.time()
            rows = db.execute(
                "SELECT id FROM jobs WHERE status IN ('queued', 'running') AND (holder IS NULL OR "
                "abs(? - beat_at) > ?) ORDER BY number",
                (now, LEASE_S),
            )
            job_id = next((row["id"] for row in rows if row["id"] not in but), None)
            if job_id is None:
                return None
            self._change(db, job_id, status="running", holder=holder, beat_at=now, rate=None, problem=None)
            return self._job(db, job_id)

    def beat(self, holder: str) -> set[str]:
        """Renew the leases of a holder. Return the ids of the running jobs that this holder still has."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET beat_at = ? WHERE holder = ? AND status = 'running'", (time.time(), holder))
            # After a job was paused or cancelled, it has no holder.
            db.execute("UPDATE jobs SET holder = NULL WHERE holder = ? AND status != 'running'", (holder,))
            return {row["id"] for row in db.execute("SELECT id FROM jobs WHERE holder = ?", (holder,))}

    def release(self, job_id: str, holder: str, status: JobStatus = "queued", problem: Problem | None = None) -> None:
        """End the lease of a job and set its status. Does nothing if the holder has lost the job."""
        with self._transaction() as db, contextlib.suppress(LostJob):
            self._check_holder(db, job_id, holder)
            self._change(db, job_id, status=status, holder=None, problem=_to_json(problem))

    def begin_with(self, job_id: str, holder: str, engine: str) -> None:
        """Record that this engine speaks the first sentence of the job. Raises LostJob."""
        with self._transaction() as db:
            self._check_holder(db, job_id, holder)
            self._change(db, job_id, engine=engine)

    def add_sentences(
        self, job_id: str, holder: str, chapter: int, sentences: Iterable[PlannedSentence], *, voice: str | None
    ) -> None:
        """Store the sentences of the next chapter. voice: the voice of the chapter when its sentences were planned.

        Does nothing if the voice of the chapter has changed since then. Raises LostJob.
        """
        with self._transaction() as db:
            self._check_holder(db, job_id, holder)
            row = db.execute("SELECT voice FROM chapters WHERE job = ? AND number = ?", (job_id, chapter)).fetchone()
            if row["voice"] != voice:
                return
            job = db.execute("SELECT seed FROM jobs WHERE id = ?", (job_id,)).fetchone()
            revision = self._change(db, job_id)
            last = db.execute("SELECT max(number) AS number FROM sentences WHERE job = ?", (job_id,)).fetchone()
            first = 0 if last["number"] is None else last["number"] + 1
            db.executemany(
                "INSERT INTO sentences (job, number, chapter, text, voice, language, characters, pause_s, "
                "starts_paragraph, seed, changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        job_id,
                        number,
                        chapter,
                        each.text,
                        each.voice,
                        each.language,
                        len(each.text),
                        each.pause_s,
                        int(each.starts_paragraph),
                        sentence_seed(job["seed"], number, 0),
                        revision,
                    )
                    for number, each in enumerate(sentences, first)
                ),
            )
            db.execute("UPDATE chapters SET planned = 1 WHERE job = ? AND number = ?", (job_id, chapter))

    def pending(self, job_id: str, count: int, *, but: Collection[int] = ()) -> Sequence[SentenceState]:
        """Return the first `count` sentences that are not spoken yet, in the order of the job.

        but: indexes of sentences that are left out.
        """
        rows = self._db.execute(
            "SELECT * FROM sentences WHERE job = ? AND status = 'pending' ORDER BY number LIMIT ?",
            (job_id, count + len(but)),
        )
        return [_sentence(row) for row in rows if row["number"] not in but][:count]

    def done(self, job_id: str, holder: str, sentence: SentenceState, take: SpokenTake, rate: float | None) -> bool:
        """Record that a sentence is spoken. Returns False if the sentence was changed while it was spoken.

        rate: how many characters the job speaks in one second; None = not known yet. Raises LostJob.
        """
        with self._transaction() as db:
            self._check_holder(db, job_id, holder)
            revision = self._change(db, job_id, rate=rate)
            words = [[word.word, word.start_s, word.end_s, word.start_char, word.end_char] for word in take.words]
            changed = db.execute(
                "UPDATE sentences SET status = 'done', problem = NULL, samples = ?, seconds = ?, verified = ?, "
                "words = ?, changed = ? WHERE job = ? AND number = ? AND take = ? AND status = 'pending'",
                (
                    take.samples,
                    take.samples / take.rate_hz,
                    take.verified,
                    json.dumps(words, separators=(",", ":")) if words else None,
                    revision,
                    job_id,
                    sentence.index,
                    sentence.take,
                ),
            )
            return bool(changed.rowcount)

    def failed(self, job_id: str, holder: str, sentence: SentenceState, problem: Problem) -> None:
        """Record that a sentence could not be spoken. Raises LostJob."""
        with self._transaction() as db:
            self._check_holder(db, job_id, holder)
            revision = self._change(db, job_id)
            db.execute(
                "UPDATE sentences SET status = 'failed', problem = ?, changed = ? WHERE job = ? AND number = ? AND "
                "take = ? AND status = 'pending'",
                (_to_json(problem), revision, job_id, sentence.index, sentence.take),
            )

    def speak_again(self, job_id: str, holder: str, indexes: Iterable[int]) -> None:
        """Mark sentences as not spoken, because their sound is lost. Raises LostJob."""
        with self._transaction() as db:
            self._check_holder(db, job_id, holder)
            revision = self._change(db, job_id)
            db.executemany(
                "UPDATE sentences SET status = 'pending', samples = NULL, seconds = NULL, changed = ? WHERE job = ? "
                "AND number = ?",
                ((revision, job_id, index) for index in indexes),
            )

    def complete(self, job_id: str, holder: str, result: str, facts: dict[str, Any], *, revision: int) -> bool:
        """Record the result of a job, and set its status to `completed`.

        Returns False, and changes nothing, if the job has changed after `revision`. Raises LostJob.
        """
        with self._transaction() as db:
            self._check_holder(db, job_id, holder)
            if self._job(db, job_id).revision != revision:
                return False
            self._change(
                db,
                job_id,
                status="completed",
                holder=None,
                problem=None,
                result=result,
                result_facts=json.dumps(facts),
            )
            return True

    # ---- internal methods

    @property
    def _db(self) -> sqlite3.Connection:
        """The connection, which is opened at the first use. Raises OSError, sqlite3.Error."""
        if self._connection is None:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.folder / FILE, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute("PRAGMA user_version = 1")
            connection.execute("COMMIT")
            self._connection = connection
        return self._connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the statements of the `with` block as one transaction.

        Transactions of other threads wait for the end of the block.
        """
        with self._lock:
            db = self._db
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # on a full disk, SQLite may have rolled back already
                    db.execute("ROLLBACK")
                raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _job(self, db: sqlite3.Connection, job_id: str, owner: str | None = None) -> Job:
        row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None or (owner is not None and row["owner"] != owner):
            raise NotFound(f"The job {job_id[:80]!r} does not exist.", param="id")
        return self._state(db, row)

    def _state(self, db: sqlite3.Connection, row: sqlite3.Row) -> Job:
        done = db.execute(
            "SELECT count(*) AS total, coalesce(sum(status = 'done'), 0) AS done, coalesce(sum(status = 'failed'), 0) "
            "AS failed, coalesce(sum(CASE WHEN status = 'done' THEN seconds END), 0) AS seconds, "
            "coalesce(sum(CASE WHEN status != 'pending' THEN characters END), 0) AS characters_done, "
            "coalesce(sum(characters), 0) AS characters FROM sentences WHERE job = ?",
            (row["id"],),
        ).fetchone()
        written = db.execute(
            "SELECT count(*) AS chapters, coalesce(sum(characters), 0) AS characters, coalesce(sum(CASE WHEN "
            "planned = 0 THEN characters END), 0) AS unplanned, coalesce(min(planned), 1) AS planned "
            "FROM chapters WHERE job = ?",
            (row["id"],),
        ).fetchone()
        eta_s = None
        if row["status"] == "running" and row["rate"]:
            eta_s = (done["characters"] + written["unplanned"] - done["characters_done"]) / row["rate"]
        progress = Progress(
            done["done"], done["total"], done["failed"], done["seconds"], bool(written["planned"]), eta_s
        )
        return Job(
            row["id"],
            row["owner"],
            row["status"],
            row["created_at"],
            row["updated_at"],
            About(**json.loads(row["about"])),
            request_from_json(row["request"]),
            frozenset(json.loads(row["extras"])),
            _options(row["options"]),
            row["seed"],
            progress,
            written["chapters"],
            written["characters"],
            row["revision"],
            _problem(row["problem"]),
            row["engine"],
            row["result"],
            json.loads(row["result_facts"] or "{}"),
            row["name"],
            tuple(json.loads(row["labels"])),
            bool(row["archived"]),
        )

    def _change(self, db: sqlite3.Connection, job_id: str, **values: Any) -> int:
        """Set columns of a job in the database, and return its new revision.

        If the new status is not `running`, the job has no holder after the change.
        """
        if values.get("status", "running") != "running":
            values.setdefault("holder", None)
        names = "".join(f", {name} = ?" for name in values)
        db.execute(
            f"UPDATE jobs SET revision = revision + 1, updated_at = ?{names} WHERE id = ?",  # noqa: S608 # nosec B608
            (time.time(), *values.values(), job_id),
        )
        return int(db.execute("SELECT revision FROM jobs WHERE id = ?", (job_id,)).fetchone()["revision"])

    @staticmethod
    def _check_holder(db: sqlite3.Connection, job_id: str, holder: str) -> None:
        row = db.execute("SELECT holder, status FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None or row["holder"] != holder or row["status"] != "running":
            raise LostJob(job_id)

    @staticmethod
    def _sentence_row(db: sqlite3.Connection, job_id: str, index: int) -> sqlite3.Row:
        row = db.execute("SELECT * FROM sentences WHERE job = ? AND number = ?", (job_id, index)).fetchone()
        if row is None:
            raise NotFound(f"The job {job_id!r} has no sentence {index}.", param="index")
        found: sqlite3.Row = row
        return found


def _translated(method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a method of the store. Raises NotStored for an error of SQLite or of the disk."""
    try:
        return method(*args, **kwargs)
    except (sqlite3.Error, OSError) as error:
        raise NotStored(
            f"The state of the jobs can't be read or written: {error}. The server's disk may be full or read-only."
        ) from error


def _sentence(row: sqlite3.Row) -> SentenceState:
    words = tuple(TimedWord(*word) for word in json.loads(row["words"] or "[]"))
    return SentenceState(
        row["number"],
        row["chapter"],
        row["text"],
        row["voice"],
        row["language"],
        row["pause_s"],
        bool(row["starts_paragraph"]),
        row["status"],
        row["take"],
        row["seed"],
        row["samples"],
        row["seconds"],
        row["verified"],
        words,
        _problem(row["problem"]),
        row["changed"],
    )


def _options(text: str) -> Options:
    values = json.loads(text)
    return Options(**{**values, "captions": tuple(values["captions"])})


def _problem(text: str | None) -> Problem | None:
    return None if text is None else Problem(**json.loads(text))


def _about_to_json(about: About) -> str:
    values = asdict(about).items()
    return json.dumps({name: storable(value) if isinstance(value, str) else value for name, value in values})


def _to_json(problem: Problem | None) -> str | None:
    return None if problem is None else json.dumps(asdict(problem))
