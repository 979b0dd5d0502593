"""Speaks jobs of a folder: in this process, or in another one (`python -m tests.support.jobs JOBS DATA LOG`)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.jobs.runner import JobRunner
from app.jobs.state import ENDED, About, NewChapter, NewJob, Options
from app.jobs.store import JobStore
from app.types import Line, SpeechRequest
from app.wiring import core_services
from tests.support.live import ROOT, environment, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from app.generator.speech import SpeechGenerator
    from app.jobs.state import Job


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
    """A runner that writes `PID INDEX` to a file when it begins to speak a sentence."""

    log: Path

    async def _sentence(self, session, sentence):  # type: ignore[no-untyped-def]
        async with session.rows:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {sentence.index}\n")
        await super()._sentence(session, sentence)


def begun(log: Path) -> list[tuple[int, int]]:
    """Return (process, sentence) for each time that a sentence was begun, in order."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [(int(process), int(index)) for process, index in (line.split() for line in lines)]


@contextmanager
def process(jobs: Path, data: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Speak the jobs of a folder in another process, until the block ends or the process is killed."""
    command = [sys.executable, "-m", "tests.support.jobs", str(jobs), str(data), str(log)]
    child = subprocess.Popen(command, cwd=ROOT, env=environment(data))
    try:
        yield child
    finally:
        child.kill()
        child.wait(20)


async def _main(jobs: Path, data: Path, log: Path) -> None:
    async with speaking(data, TTS_MAX_ROWS=4) as generator:
        runner = LoggedRunner(JobStore(jobs), generator)
        runner.log = log
        async with runner:
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*map(Path, sys.argv[1:])))
