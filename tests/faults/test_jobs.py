"""Jobs survive kill -9 at any moment, the death of their process, and a full disk."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from app.jobs import sounds
from app.jobs.runner import JobRunner
from app.jobs.store import JobStore
from tests.faults.test_disk import small_disk
from tests.support.jobs import begun, ended, new_job, process, result_of, sentences, speaking
from tests.support.live import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from app.jobs.state import Job, NewJob

pytestmark = pytest.mark.integration

__all__ = ["small_disk"]  # a fixture of another file


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


async def test_another_process_takes_a_job_over_when_its_holder_is_killed(tmp_path: Path) -> None:
    store, job, expected = await created(tmp_path / "jobs", new_job(sentences(30), "Then it ends here."), tmp_path)
    log = tmp_path / "log"
    with ExitStack() as stack:
        children = [stack.enter_context(process(store.folder, tmp_path / f"data-{n}", log)) for n in range(2)]
        wait_until(lambda: len(spoken(store, job)) >= 5)
        [holder] = {child for child, _ in begun(log)}
        next(child for child in children if child.pid == holder).kill()
        kept = spoken(store, job)
        wait_until(lambda: store.get(job.id).status == "completed")
    assert result_of(store, store.get(job.id)) == expected
    again = {index for child, index in begun(log) if child != holder}
    assert not again & kept
    store.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_job_that_is_killed_fifty_times_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """The process is killed at random moments. No sentence that was stored is spoken again."""
    count, kills = 300, 50
    store, job, expected = asyncio.run(created(tmp_path / "jobs", new_job(sentences(count)), tmp_path))
    log, dice = tmp_path / "log", random.Random(count)
    in_hand = 0
    for number in range(kills):
        before, old = spoken(store, job), len(begun(log))
        enough = len(before) + dice.randrange(max(1, (count - len(before)) // (kills - number)))
        with process(store.folder, tmp_path / "data", log) as child:
            wait_until(lambda old=old, enough=enough: len(begun(log)) > old and len(spoken(store, job)) >= enough)
            time.sleep(dice.random() * 0.05)  # a random moment, not a wait
            child.kill()
            child.wait()
        indexes = {index for _, index in begun(log)[old:]}
        assert not before & indexes
        in_hand += len(indexes - spoken(store, job))
        with store._transaction() as db:  # otherwise each round waits for the end of the lease
            db.execute("UPDATE jobs SET beat_at = 0")
    with process(store.folder, tmp_path / "data", log):
        wait_until(lambda: store.get(job.id).status == "completed")
    assert result_of(store, store.get(job.id)) == expected
    indexes = {index for _, index in begun(log)}
    assert len(indexes) == count
    assert len(begun(log)) - count <= in_hand  # only sentences in hand were begun twice
    store.close()


async def test_full_disk_pauses_a_job_and_nothing_is_lost(small_disk: Path, tmp_path: Path) -> None:
    text = "It was late in the year, and the old boat came home over the cold and dark sea. " * 3
    store, job, expected = await created(small_disk / "jobs", new_job(text), tmp_path)
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(free - 600_000))  # room for about two sentences
    async with speaking(tmp_path / "data") as generator, JobRunner(store, generator) as runner:
        paused = await ended(runner, job.id)
        assert paused.status == "paused"
        assert paused.problem is not None
        assert paused.problem.code == "storage_error"
        assert "No space left on device" in paused.problem.message
        kept = spoken(store, job)
        assert 0 < len(kept) < 3
        folder = store.job_folder(job.id)
        times = {n: sounds.sound_path(folder, store.sentence(job.id, n)).stat().st_mtime_ns for n in kept}
        ballast.unlink()
        store.set_status(job.id, "queued", of=("paused",))
        runner.wake()
        completed = await ended(runner, job.id)
        assert result_of(store, completed) == expected
        for n, at in times.items():
            assert sounds.sound_path(folder, store.sentence(job.id, n)).stat().st_mtime_ns == at
