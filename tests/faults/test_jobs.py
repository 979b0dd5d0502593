"""Jobs survive kill -9 at any moment, the death of their process, and a full disk."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from app.audio.signing import FileSigner, read_manifest
from app.jobs import sounds
from app.jobs.runner import JobRunner
from app.jobs.store import JobStore
from tests.faults.test_disk import small_disk
from tests.support.jobs import (
    begun,
    created,
    ended,
    killed_at_random,
    new_job,
    process,
    result_of,
    sentences,
    speaking,
    spoken,
)
from tests.support.live import wait_until
from tests.support.signing_certificate import create_pair

if TYPE_CHECKING:
    from pathlib import Path

    from app.jobs.state import Job


pytestmark = pytest.mark.integration

__all__ = ["small_disk"]  # a fixture of another file


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
def test_job_that_is_killed_again_and_again_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """`python -m bench.jobs --kills 50` does the same with 300 sentences."""
    killed_at_random(tmp_path, count=60, kills=6)


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
        assert any(text in paused.problem.message for text in ("No space left on device", "disk is full"))
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


@pytest.mark.parametrize("when", ["written", "signed"])
async def test_full_disk_pauses_a_job_whose_result_is_made(when: str, small_disk: Path, tmp_path: Path) -> None:
    store = JobStore(small_disk / "jobs")
    job, _ = store.create(new_job("It was late in the year, and the old boat came home over the cold and dark sea."))
    pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")
    pair = create_pair(tmp_path / "certificate")
    ballast = small_disk / "ballast"

    class FullRunner(JobRunner):
        async def _write(self, job: Job, folder: Path) -> tuple[str, dict[str, Any]]:
            if not ballast.exists():
                free = shutil.disk_usage(small_disk).free
                sound = 2 * sum(each.samples or 0 for each in store.sentences(job.id)[0])
                ballast.write_bytes(bytes(free - (sound // 2 if when == "written" else sound * 3 // 2)))
            return await super()._write(job, folder)

    signer = FileSigner(pair.cert, pair.key)
    async with speaking(tmp_path / "data") as generator, FullRunner(store, generator, signer=signer) as runner:
        paused = await ended(runner, job.id)
        assert (paused.status, paused.problem and paused.problem.code) == ("paused", "storage_error")
        assert "No space left on device" in paused.problem.message  # type: ignore[union-attr]
        assert not [path for path in store.job_folder(job.id).iterdir() if path.name.startswith(".")]
        ballast.write_bytes(b"")
        store.set_status(job.id, "queued", of=("paused",))
        runner.wake()
        completed = await ended(runner, job.id)
        found = read_manifest(result_of(store, completed))
    assert found is not None
    assert found["state"] == "valid"
