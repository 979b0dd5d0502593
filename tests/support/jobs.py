"""Speaks jobs of a folder: in this process, or in another one (`python -m tests.support.jobs JOBS DATA LOG`)."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.jobs import sounds
from app.jobs.runner import JobRunner
from app.jobs.sounds import keep
from app.jobs.state import ENDED, About, NewChapter, NewJob, Options
from app.jobs.store import JobStore
from app.types import Line, SpeechRequest
from app.wiring import core_services
from tests.support.live import ROOT, environment, settings, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from app.generator.speech import SpeechGenerator
    from app.jobs.state import Job, SentenceState


def new_job(*texts: str, response_format: str = "wav", **fields: object) -> NewJob:
    """Return a job with one chapter for each text."""
    chapters = tuple(NewChapter(f"Chapter {number}", text) for number, text in enumerate(texts, 1))
    request = SpeechRequest("espeak", (Line("", "alloy"),), use_cache=False)
    options = Options(response_format)  # type: ignore[arg-type]
    values = {"owner": "", "about": About("A title"), "chapters": chapters, "request": request, "options": options}
    return NewJob(**{**values, "extras": frozenset(), "seed": 7, **fields})  # type: ignore[arg-type]


def sentences(count: int) -> str:
    """Return a text with this many short sentences that all differ."""
    return " ".join(f"Line {number} is short." for number in range(count))


@asynccontextmanager
async def speaking(data: Path, **variables: object) -> AsyncIterator[SpeechGenerator]:
    """Run the offline voice, and yield its generator."""
    services = core_services(settings(data, **variables))
    async with services.manager:
        await services.manager.settled()
        yield services.generator
    await services.take_checker.close()


async def ended(runner: JobRunner, job_id: str) -> Job:
    """Wait until a job has ended or is paused, and return it."""
    while True:
        job = await runner.store.call(runner.store.get, job_id)
        if job.status in (*ENDED, "paused"):
            return job
        await runner.changed(1.0)


def result_of(store: JobStore, job: Job) -> bytes:
    assert job.result is not None, job
    return (store.job_folder(job.id) / job.result).read_bytes()


class LoggedRunner(JobRunner):
    """A runner that writes `PID INDEX` to a file when it begins to speak a sentence.

    It kills its process while it writes the sound of the sentence `dies_at`.
    """

    log: Path
    dies_at: int | None = None

    async def _sentence(self, session, sentence):  # type: ignore[no-untyped-def]
        async with session.rows:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {sentence.index}\n")
        await super()._sentence(session, sentence)

    def keep_or_die(self, folder: Path, sentence: SentenceState, samples: bytes, holder: str) -> None:
        """Store the sound of a sentence, or die when half of it is written."""
        if sentence.index == self.dies_at:
            path = sounds.sound_path(folder, sentence)
            path.with_name(f"{path.name}.{holder}.part").write_bytes(samples[: len(samples) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        keep(folder, sentence, samples, holder)


def begun(log: Path) -> list[tuple[int, int]]:
    """Return (process, sentence) for each time that a sentence was begun, in order."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [(int(process), int(index)) for process, index in (line.split() for line in lines)]


@contextmanager
def process(jobs: Path, data: Path, log: Path, dies_at: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Speak the jobs of a folder in another process, until the block ends or the process is killed.

    dies_at: the sentence in whose middle the process kills itself.
    """
    command = [sys.executable, "-m", "tests.support.jobs", str(jobs), str(data), str(log)]
    command += [] if dies_at is None else [str(dies_at)]
    child = subprocess.Popen(command, cwd=ROOT, env=environment(data))
    try:
        yield child
    finally:
        child.kill()
        child.wait(20)


async def created(folder: Path, new: NewJob, tmp_path: Path) -> tuple[JobStore, Job, bytes]:
    """Create a job -> its store, the job, and the result of a copy that is spoken without a disturbance."""
    store = JobStore(folder)
    job, _ = store.create(new)
    store.close()  # a copy while the database is open would drop the locks of this process
    shutil.copytree(folder, tmp_path / "copy")
    copy = JobStore(tmp_path / "copy")
    async with speaking(tmp_path / "data") as generator, JobRunner(copy, generator) as runner:
        expected = result_of(copy, await ended(runner, job.id))
    return JobStore(folder), job, expected


def spoken(store: JobStore, job: Job) -> set[int]:
    """Return the sentences that are spoken and stored."""
    return {each.index for each in store.sentences(job.id, limit=10_000)[0] if each.status == "done"}


def killed_at_random(tmp_path: Path, *, count: int, kills: int, response_format: str = "wav") -> None:
    """Kill the process of a job at random moments. No stored sentence is spoken again, and the result is the same."""
    store, job, expected = asyncio.run(
        created(tmp_path / "jobs", new_job(sentences(count), response_format=response_format), tmp_path)
    )
    log, dice = tmp_path / "log", random.Random(count)
    in_hand = 0
    for number in range(kills):
        before, old = spoken(store, job), len(begun(log))
        enough = len(before) + dice.randrange(max(1, (count - len(before)) // (kills - number)))
        with process(store.folder, tmp_path / "data", log) as child:
            wait_until(lambda old=old, enough=enough: len(begun(log)) > old and len(spoken(store, job)) >= enough, 300)
            time.sleep(dice.random() * 0.05)  # a random moment, not a wait
            child.kill()
            child.wait()
        indexes = {index for _, index in begun(log)[old:]}
        assert not before & indexes
        in_hand += len(indexes - spoken(store, job))
        with store._transaction() as db:  # otherwise each round waits for the end of the lease
            db.execute("UPDATE jobs SET beat_at = 0")
    with process(store.folder, tmp_path / "data", log):
        wait_until(lambda: store.get(job.id).status == "completed", 300)
    assert result_of(store, store.get(job.id)) == expected
    indexes = {index for _, index in begun(log)}
    assert len(indexes) == count
    assert len(begun(log)) - count <= in_hand  # only sentences in hand were begun twice
    store.close()


async def _main(jobs: Path, data: Path, log: Path, dies_at: int | None = None) -> None:
    async with speaking(data, TTS_MAX_ROWS=4) as generator:
        runner = LoggedRunner(JobStore(jobs), generator)
        runner.log, runner.dies_at = log, dies_at
        sounds.keep = runner.keep_or_die
        async with runner:
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:])))
