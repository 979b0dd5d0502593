"""Jobs survive kill -9 at any moment, the death of their process, and a full disk."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from app.audio.signing import SIGNED_FORMATS, FileSigner, read_manifest
from app.errors import NotFound, NotStored
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


@pytest.mark.slow
async def test_another_process_takes_a_job_over_in_the_middle_of_a_sentence(tmp_path: Path) -> None:
    new = new_job(sentences(12), "Then it ends here.", response_format="epub")
    store, job, expected = await created(tmp_path / "jobs", new, tmp_path)
    log = tmp_path / "log"
    with process(store.folder, tmp_path / "data-0", log, dies_at=6) as holder:
        wait_until(lambda: begun(log))
        with process(store.folder, tmp_path / "data-1", log):
            wait_until(lambda: holder.poll() is not None)
            kept = spoken(store, job)
            assert list(store.job_folder(job.id).glob("sentences/*.part"))
            wait_until(lambda: store.get(job.id).status == "completed")
    assert result_of(store, store.get(job.id)) == expected
    again = {index for child, index in begun(log) if child != holder.pid}
    assert again == set(range(13)) - kept
    assert not list(store.job_folder(job.id).glob("sentences/*.part"))
    store.close()


@pytest.mark.slow
def test_job_that_is_killed_again_and_again_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """`python -m bench.jobs --kills 50` does the same with 300 sentences."""
    killed_at_random(tmp_path, count=60, kills=6, response_format="zip")


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
        assert "Free space on the disk" in paused.problem.message
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


async def test_job_is_deleted_from_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """The deletion needs space for the journal of the database, which the files of the job have."""
    store = JobStore(small_disk / "jobs")
    job, _ = store.create(new_job("One. " * 2_000))
    folder = store.job_folder(job.id)
    (folder / "sentences").mkdir()
    sounds_of_job = folder / "sentences" / "000000-0.pcm"
    sounds_of_job.write_bytes(bytes(300_000))
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(4096)):
            pass
    with pytest.raises(NotStored):
        await store.call(store.delete, job.id)
    async with speaking(tmp_path / "data") as generator:
        runner = JobRunner(store, generator)
        await runner.remove(job.id)
    assert not folder.exists()
    with pytest.raises(NotFound):
        store.get(job.id)


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


async def test_results_of_jobs_are_signed_and_verified_by_the_reader_of_c2pa(tmp_path: Path) -> None:
    c2pa = pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")
    pair = create_pair(tmp_path / "certificate")
    store = JobStore(tmp_path / "jobs")
    signer = FileSigner(pair.cert, pair.key)
    kinds = ("wav", "mp3", "m4b", "flac")
    jobs = [store.create(new_job("One line.", response_format=kind))[0] for kind in kinds]
    async with speaking(tmp_path / "data") as generator, JobRunner(store, generator, signer=signer) as runner:
        for kind, job in zip(kinds, jobs, strict=True):
            completed = await ended(runner, job.id)
            assert completed.status == "completed", completed.problem
            path = store.job_folder(job.id) / f"result.{kind}"
            if kind == "flac":  # has only the comment
                assert read_manifest(path.read_bytes()) is None
                continue
            with path.open("rb") as file, c2pa.Reader(SIGNED_FORMATS[kind], file) as reader:
                assert reader.get_validation_state() == "Valid"
                assert "c2pa.created" in reader.json()
