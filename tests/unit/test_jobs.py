"""Durable jobs: the state in SQLite, the plan of a chapter, and the speech of a job with the offline voice."""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from app.errors import Conflict, EngineError, InvalidValue, NotFound
from app.jobs import runner as runner_module
from app.jobs import sounds
from app.jobs import store as store_module
from app.jobs.planning import CHAPTER_GAP_S, LINE_GAP_S, PARAGRAPH_GAP_S, plan_chapter
from app.jobs.runner import JobRunner
from app.jobs.state import (
    About,
    NewChapter,
    PlannedSentence,
    Problem,
    SpokenTake,
    request_from_json,
    request_to_json,
    sentence_seed,
)
from app.jobs.store import JobStore, LostJob
from app.types import LexiconEntry, Line, Sampling, SpeechRequest
from tests.support.jobs import ended, new_job, result_of, sentences, speaking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.generator.speech import SpeechGenerator
    from app.jobs.state import Job

pytestmark = pytest.mark.unit

TAKE = SpokenTake(24_000, 24_000, "ok")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    made = JobStore(tmp_path / "jobs")
    yield made
    made.close()


def planned(store: JobStore, count: int = 3, holder: str = "a") -> Job:
    """Create a job with one chapter and this many sentences, held by `holder`."""
    store.create(new_job(sentences(count)))
    job = store.claim(holder)
    assert job is not None
    parts = [PlannedSentence(f"Line {n}.", "alloy", None, 0.5, starts_paragraph=n == 0) for n in range(count)]
    store.add_sentences(job.id, holder, 0, parts, voice=None)
    return store.get(job.id)


# ---- the state


def test_request_is_restored_from_its_json() -> None:
    request = SpeechRequest(
        "csm-1b",
        (Line("", "nova", 3),),
        speed=1.5,
        sample_rate_hz=44_100,
        sampling=Sampling(0.5, 10, 0.9, 2.0),
        seed=5,
        instructions="Whisper.",
        language="de",
        normalize=False,
        enhance=False,
        use_cache=False,
        verify=True,
        best_of=2,
        lexicon=(LexiconEntry("Leicester", "Lester", case_sensitive=True, ipa="x"),),
        timestamps=True,
    )
    assert request_from_json(request_to_json(request)) == request


def test_seed_of_a_sentence_depends_on_job_index_and_take() -> None:
    seeds = {sentence_seed(seed, index, take) for seed in (1, 2) for index in range(50) for take in range(3)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sentence_seed(1, 2, 0) == sentence_seed(1, 2, 0)


def test_repeated_key_returns_the_first_job_and_another_body_is_a_conflict(store: JobStore) -> None:
    new = new_job("One.")
    job, is_new = store.create(new, "key")
    assert is_new
    assert store.create(new, "key") == (job, False)
    assert store.create(replace(new, owner="other"), "key")[1]  # keys of two owners are independent
    assert store.create(new)[1]
    for other in (new_job("Two."), replace(new, about=About("Another")), replace(new, cover=b"x")):
        with pytest.raises(Conflict):
            store.create(other, "key")


def test_job_that_can_not_be_stored_leaves_no_files(store: JobStore) -> None:
    with pytest.raises(OverflowError):
        store.create(replace(new_job("One."), seed=2**70))
    assert not [path for path in store.folder.iterdir() if path.is_dir()]


def test_jobs_of_another_owner_do_not_exist(store: JobStore) -> None:
    mine, _ = store.create(new_job("One.", owner="me"))
    store.create(new_job("Two.", owner="you"))
    assert store.get(mine.id, "me").id == mine.id
    with pytest.raises(NotFound):
        store.get(mine.id, "you")
    assert [job.id for job in store.newest("me")[0]] == [mine.id]
    assert len(store.newest()[0]) == 2


def test_list_has_pages(store: JobStore) -> None:
    ids = [store.create(new_job("One."))[0].id for _ in range(5)][::-1]
    first, more = store.newest(limit=2)
    assert ([job.id for job in first], more) == (ids[:2], True)
    rest, more = store.newest(after=ids[1], limit=3)
    assert ([job.id for job in rest], more) == (ids[2:], False)


def test_job_has_one_holder_until_its_lease_ends(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job = planned(store)
    assert store.claim("b") is None
    now = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now + store_module.LEASE_S - 1)
    assert store.beat("a") == {job.id}
    monkeypatch.setattr(store_module.time, "time", lambda: now + 2 * store_module.LEASE_S - 2)
    assert store.claim("b") is None  # the lease was renewed
    monkeypatch.setattr(store_module.time, "time", lambda: now + 3 * store_module.LEASE_S)
    taken = store.claim("b")
    assert taken is not None
    [first, *_] = store.pending(job.id, 10)
    with pytest.raises(LostJob):
        store.done(job.id, "a", first, TAKE, None)
    assert store.beat("a") == set()
    assert store.done(job.id, "b", first, TAKE, None)


def test_job_of_a_dead_process_is_claimed_within_ten_seconds() -> None:
    assert store_module.LEASE_S + runner_module.BEAT_S < 10
    assert store_module.LEASE_S > 2 * runner_module.BEAT_S  # one late renewal does not end a lease


def test_lease_from_the_future_is_free(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the machine was set back."""
    planned(store)
    monkeypatch.setattr(store_module.time, "time", lambda: 1_000.0)
    assert store.claim("b") is not None


@pytest.mark.parametrize("status", ["paused", "cancelled"])
def test_holder_loses_a_job_that_is_stopped(store: JobStore, status: str) -> None:
    job = planned(store)
    [first, *_] = store.pending(job.id, 10)
    assert store.set_status(job.id, status, of=("running",)).status == status  # type: ignore[arg-type]
    with pytest.raises(LostJob):
        store.done(job.id, "a", first, TAKE, None)
    assert store.beat("a") == set()
    store.release(job.id, "a", "failed", Problem("x", "y"))
    assert store.get(job.id).status == status
    assert store.claim("b") is None


def test_status_changes_only_as_allowed(store: JobStore) -> None:
    job, _ = store.create(new_job("One."))
    with pytest.raises(Conflict) as caught:
        store.retry(job.id)
    assert caught.value.code == "wrong_job_status"
    assert store.set_status(job.id, "paused", of=("queued",)).status == "paused"
    assert store.set_status(job.id, "paused", of=("queued",)).status == "paused"  # nothing to do
    assert store.set_status(job.id, "queued", of=("paused",)).status == "queued"
    store.set_status(job.id, "cancelled", of=("queued",))
    with pytest.raises(Conflict):
        store.set_status(job.id, "paused", of=("queued", "running"))
    assert store.retry(job.id).status == "queued"


def test_redo_changes_one_sentence_and_queues_a_completed_job(store: JobStore) -> None:
    job = planned(store)
    for sentence in store.pending(job.id, 10):
        assert store.done(job.id, "a", sentence, TAKE, 10.0)
    assert store.complete(job.id, "a", "result.wav", {}, revision=store.get(job.id).revision)
    before = store.sentences(job.id)[0]
    again = store.redo(job.id, 1, text="Another text.", voice="nova")
    assert (again.status, again.take, again.text, again.voice) == ("pending", 1, "Another text.", "nova")
    assert again.seed != before[1].seed
    assert store.redo(job.id, 1, seed=42).seed == 42
    assert [store.sentence(job.id, index) for index in (0, 2)] == [before[0], before[2]]
    assert store.get(job.id).status == "queued"
    with pytest.raises(NotFound):
        store.redo(job.id, 3)


def test_characters_that_no_file_can_store_become_spaces(store: JobStore) -> None:
    odd, clean = "a\x00b\x08c\ud800d\ufffee\tf\ng\U0001f600", "a b c d e\tf\ng\U0001f600"
    new = new_job(odd)
    store.create(replace(new, about=About(odd, odd, odd), chapters=(NewChapter(odd, odd),)))
    job = store.claim("a")
    assert job is not None
    assert (job.about, store.chapters(job.id)[0].title) == (About(clean, clean, clean), clean)
    assert store.chapter_text(job.id, 0) == clean
    store.add_sentences(job.id, "a", 0, [PlannedSentence(clean, "alloy", None, 0.5, True)], voice=None)
    assert store.redo(job.id, 0, text=odd).text == clean
    assert store.update(job.id, about=About(title=odd)).about.title == clean


def test_result_is_made_again_when_the_description_changes(store: JobStore) -> None:
    job = planned(store, 0)
    assert store.complete(job.id, "a", "result.mp3", {}, revision=store.get(job.id).revision)
    assert store.update(job.id, about=job.about, name="a name").status == "completed"
    assert store.update(job.id, about=About("Another title")).status == "queued"


def test_speech_of_a_sentence_that_was_changed_meanwhile_is_dropped(store: JobStore) -> None:
    job = planned(store)
    [first, *_] = store.pending(job.id, 10)
    store.redo(job.id, 0, text="New.")
    assert not store.done(job.id, "a", first, TAKE, None)
    assert store.sentence(job.id, 0).status == "pending"


def test_job_that_changed_while_its_result_was_written_is_not_completed(store: JobStore) -> None:
    job = planned(store)
    store.redo(job.id, 0)
    assert not store.complete(job.id, "a", "result.wav", {}, revision=job.revision)
    assert store.get(job.id).status == "running"


def test_retry_gives_failed_sentences_another_seed(store: JobStore) -> None:
    job = planned(store)
    [first, second, _] = store.pending(job.id, 10)
    store.done(job.id, "a", first, TAKE, None)
    store.failed(job.id, "a", second, Problem("engine_error", "No."))
    store.release(job.id, "a", "failed", Problem("sentences_failed", "One."))
    assert [chapter.status for chapter in store.chapters(job.id)] == ["running"]
    assert store.retry(job.id).progress.sentences_failed == 0
    again = store.sentence(job.id, 1)
    assert (again.status, again.problem) == ("pending", None)
    assert again.seed != second.seed
    assert store.sentence(job.id, 0).status == "done"


def test_progress_counts_sentences_seconds_and_time_left(store: JobStore) -> None:
    job = planned(store, 4)
    [first, *_] = store.pending(job.id, 10)
    store.done(job.id, "a", first, TAKE, rate=7.0)
    progress = store.get(job.id).progress
    assert (progress.sentences_done, progress.sentences_total, progress.seconds_done) == (1, 4, 1.0)
    assert progress.planned
    assert progress.eta_s == pytest.approx(3 * len("Line 0.") / 7.0)
    store.set_status(job.id, "paused", of=("running",))
    assert store.get(job.id).progress.eta_s is None


def test_voice_of_a_chapter_acts_on_sentences_that_are_not_spoken(store: JobStore) -> None:
    job = planned(store)
    [first, second, _] = store.pending(job.id, 10)
    store.done(job.id, "a", first, TAKE, None)
    store.update(job.id, voices={0: "onyx"})
    assert [each.voice for each in store.sentences(job.id)[0]] == ["alloy", "onyx", "onyx"]
    assert not store.done(job.id, "a", second, TAKE, None)  # it was spoken with the old voice
    with pytest.raises(InvalidValue):
        store.update(job.id, voices={5: "onyx"})


def test_chapters_are_planned_in_order_with_one_sequence_of_sentences(store: JobStore) -> None:
    store.create(new_job("One.", "", "Three."))
    job = store.claim("a")
    assert job is not None
    for number, text, count in ((0, "One.", 2), (1, "", 0), (2, "Three.", 1)):
        assert store.next_to_plan(job.id) == (number, text, None)
        parts = [PlannedSentence(text, "alloy", None, 0.5, True)] * count
        store.add_sentences(job.id, "a", number, parts, voice=None)
    assert store.next_to_plan(job.id) is None
    assert [(each.index, each.chapter) for each in store.sentences(job.id)[0]] == [(0, 0), (1, 0), (2, 2)]


async def test_folders_without_a_job_are_removed(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    job, _ = store.create(new_job("One.", paused=True))
    lost = store.job_folder("job_lost")
    (lost / "sentences").mkdir(parents=True)
    async with speaking(tmp_path) as generator, JobRunner(store, generator) as runner:
        while lost.exists():
            await runner.changed(0.05)
        assert store.job_folder(job.id).is_dir()


def test_deleted_job_is_gone_with_its_sentences(store: JobStore) -> None:
    job = planned(store)
    store.delete(job.id)
    with pytest.raises(NotFound):
        store.get(job.id)
    assert store.sentences(job.id) == ([], False)
    with pytest.raises(LostJob):
        store.add_sentences(job.id, "a", 0, [], voice=None)


# ---- the speech


def text_of(plan: list[PlannedSentence]) -> list[str]:
    return [sentence.text for sentence in plan]


async def test_chapter_becomes_its_own_sentences_with_pauses(tmp_path: Path) -> None:
    text = (
        'The "old" boat cost $12.50.\nIt was quite old. [S2] It is gone now!\n\n'
        "A new day began. [pause 2s] The sun rose.\n\n***\n\nThe end."
    )
    request = SpeechRequest("espeak", (Line(text, "alloy"),))
    async with speaking(tmp_path) as generator:
        plan = await plan_chapter(generator, request)
        assert await plan_chapter(generator, replace(request, lines=(Line("* * *", "alloy"),))) == []
        spans = "One million: " + "9" * 700 + "."  # one word that is spoken as several sentences
        [one] = await plan_chapter(generator, replace(request, lines=(Line(spans, "alloy"),)))
    assert one.text == spans
    assert text_of(plan) == [
        'The "old" boat cost $12.50.',
        "It was quite old.",
        "It is gone now!",
        "A new day began.",
        "The sun rose.",
        "The end.",
    ]
    assert [sentence.voice for sentence in plan[:3]] == ["alloy", "alloy", "echo"]
    gaps = {sentence.text: sentence.pause_s for sentence in plan}
    assert gaps['The "old" boat cost $12.50.'] == LINE_GAP_S
    assert gaps["It is gone now!"] == PARAGRAPH_GAP_S
    assert gaps["A new day began."] == pytest.approx(2.1)
    assert gaps["The end."] == CHAPTER_GAP_S
    assert [sentence.starts_paragraph for sentence in plan] == [True, False, False, True, False, True]


async def test_job_is_spoken_again_with_the_same_bytes_after_pause_crash_and_lost_files(tmp_path: Path) -> None:
    async with speaking(tmp_path / "data") as generator:
        plain = JobStore(tmp_path / "plain")
        job, _ = plain.create(new_job(sentences(8), "Then it ends."))
        plain.close()
        shutil.copytree(tmp_path / "plain", tmp_path / "disturbed")
        plain = JobStore(tmp_path / "plain")
        async with JobRunner(plain, generator) as runner:
            completed = await ended(runner, job.id)
            assert completed.status == "completed"
            expected = result_of(plain, completed)
            assert completed.progress.sentences_done == 9

        store = JobStore(tmp_path / "disturbed")
        async with JobRunner(store, generator) as runner:
            while (await store.call(store.get, job.id)).progress.sentences_done < 3:
                await runner.changed(1.0)
            await store.call(store.set_status, job.id, "paused", of=("running",))
            runner.wake()
        store = JobStore(tmp_path / "disturbed")
        assert store.get(job.id).status == "paused"
        spoken = [each for each in store.sentences(job.id)[0] if each.status == "done"]
        lost = sounds.sound_path(store.job_folder(job.id), spoken[0])
        lost.unlink()
        kept = sounds.sound_path(store.job_folder(job.id), spoken[1])
        kept_at = kept.stat().st_mtime_ns
        (kept.parent / "000000-0.pcm.x.part").write_bytes(b"half")
        (store.job_folder(job.id) / ".signing-x").write_bytes(b"half")
        store.set_status(job.id, "queued", of=("paused",))
        async with JobRunner(store, generator) as runner:
            completed = await ended(runner, job.id)
            assert completed.status == "completed"
            assert result_of(store, completed) == expected
        assert kept.stat().st_mtime_ns == kept_at  # what was spoken was not spoken again
        assert not list(kept.parent.glob("*.part"))
        assert not list(store.job_folder(job.id).glob(".*"))


async def test_redone_sentence_is_the_only_change_of_the_result(tmp_path: Path) -> None:
    async with speaking(tmp_path / "data") as generator:
        store = JobStore(tmp_path / "jobs")
        async with JobRunner(store, generator) as runner:
            job, _ = store.create(new_job("It was late in the year. The boat was very old. They slept all the night."))
            runner.wake()
            before = result_of(store, await ended(runner, job.id))
            middle = store.sentence(job.id, 1)
            store.redo(job.id, 1, text="The ship was very old.")
            runner.wake()
            while store.get(job.id).status != "completed":
                await runner.changed(1.0)
            after = result_of(store, await ended(runner, job.id))
            folder = store.job_folder(job.id)
            assert not sounds.sound_path(folder, middle).exists()
            [first, new, last] = [sounds.sound_path(folder, each).read_bytes() for each in store.sentences(job.id)[0]]
            assert before != after
            for part in (first, new, last):
                assert part in after
            assert new not in before


def test_older_take_that_another_process_removes_first_is_no_error(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = planned(store)
    folder, first = store.job_folder(job.id), store.sentence(job.id, 0)
    sounds.prepare(folder)
    sounds.keep(folder, first, b"first", "a")
    older = sounds.sound_path(folder, first)
    unlink = type(older).unlink

    def second_unlink(path: Path, missing_ok: bool = False) -> None:
        unlink(path)  # the other process
        unlink(path, missing_ok)

    monkeypatch.setattr("pathlib.Path.unlink", second_unlink)
    sounds.remove_older_takes(folder, replace(first, take=1))
    assert not older.exists()


class FailingGenerator:
    """The generator, but a sentence with the word `broken` fails."""

    def __init__(self, generator: SpeechGenerator) -> None:
        self._generator = generator
        self.use, self.plan, self.quiet_s = generator.use, generator.plan, generator.quiet_s

    async def answer(self, request: SpeechRequest, **options: object) -> object:
        if "broken" in request.lines[0].text:
            raise EngineError("The engine failed.")
        return await self._generator.answer(request, **options)  # type: ignore[arg-type]


async def test_failed_sentence_fails_the_job_and_nothing_else(tmp_path: Path) -> None:
    async with speaking(tmp_path / "data") as generator:
        store = JobStore(tmp_path / "jobs")
        async with JobRunner(store, FailingGenerator(generator)) as runner:  # type: ignore[arg-type]
            job, _ = store.create(
                new_job("It was late in the year. This one is broken here. They slept all the night.")
            )
            runner.wake()
            failed = await ended(runner, job.id)
            assert failed.status == "failed"
            assert failed.problem is not None
            assert failed.problem.code == "sentences_failed"
            states = store.sentences(job.id)[0]
            assert [each.status for each in states] == ["done", "failed", "done"]
            assert states[1].problem == Problem("engine_error", "The engine failed.")
            store.redo(job.id, 1, text="This is whole.")
            runner.wake()
            while store.get(job.id).status not in ("completed", "failed"):
                await runner.changed(1.0)
            assert store.get(job.id).status == "completed"


async def test_job_begun_with_another_engine_is_paused(tmp_path: Path) -> None:
    async with speaking(tmp_path / "data") as generator:
        store = JobStore(tmp_path / "jobs")
        job, _ = store.create(new_job("It was late."))
        store.claim("before")
        store.begin_with(job.id, "before", "csm")
        store.release(job.id, "before")
        async with JobRunner(store, generator) as runner:
            paused = await ended(runner, job.id)
            assert paused.status == "paused"
            assert paused.problem is not None
            assert "csm" in paused.problem.message


async def test_job_with_an_unknown_voice_or_without_words_fails_with_its_reason(tmp_path: Path) -> None:
    async with speaking(tmp_path / "data") as generator:
        store = JobStore(tmp_path / "jobs")
        async with JobRunner(store, generator) as runner:
            chapter = NewChapter("One", "It was late.", voice="gone")
            unknown, _ = store.create(new_job("", chapters=(chapter,)))
            silent, _ = store.create(new_job("* * *"))
            runner.wake()
            codes = [(await ended(runner, each.id)).problem for each in (unknown, silent)]
            assert [problem and problem.code for problem in codes] == ["voice_not_found", "empty_input"]
            store.update(unknown.id, voices={0: "alloy"})
            store.retry(unknown.id)
            assert (await ended(runner, unknown.id)).status == "completed"


def test_transactions_of_two_threads_wait_for_each_other(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    with ThreadPoolExecutor(1) as other:
        with store._transaction():
            made = other.submit(store.create, new_job("It was late."))
            time.sleep(0.1)
        job, _ = made.result()
    assert store.get(job.id).status == "queued"
    store.close()


async def test_several_jobs_share_the_rows(tmp_path: Path) -> None:
    """A short job does not wait for the end of a long one."""
    async with speaking(tmp_path / "data") as generator:
        store = JobStore(tmp_path / "jobs")
        async with JobRunner(store, generator) as runner:
            long, _ = store.create(new_job(sentences(30)))
            short, _ = store.create(new_job("It was late."))
            runner.wake()
            assert (await ended(runner, short.id)).status == "completed"
            assert store.get(long.id).status == "running"


async def test_job_on_a_cpu_waits_while_requests_are_answered(tmp_path: Path) -> None:
    async with speaking(tmp_path / "data") as generator:
        store = JobStore(tmp_path / "jobs")
        job, _ = store.create(new_job(sentences(4)))
        request = SpeechRequest("espeak", (Line(sentences(60), "alloy"),), format="pcm", use_cache=False)
        assert generator.quiet_s() == math.inf
        answer = await generator.answer(request)
        await anext(answer.stream)
        assert generator.quiet_s() == 0.0
        async with JobRunner(store, generator) as runner:
            while not store.get(job.id).progress.planned:
                await runner.changed(1.0)
            for _ in range(3):
                await anext(answer.stream)
            assert store.get(job.id).progress.sentences_done == 0
            await answer.stream.aclose()
            assert 0.0 < generator.quiet_s() < math.inf
            assert (await ended(runner, job.id)).status == "completed"


async def test_job_goes_on_in_the_next_process_after_a_shutdown(tmp_path: Path) -> None:
    async with speaking(tmp_path / "data") as generator:
        store = JobStore(tmp_path / "jobs")
        async with JobRunner(store, generator) as runner:
            job, _ = store.create(new_job(sentences(30)))
            runner.wake()
            while not store.get(job.id).progress.sentences_done:
                await runner.changed(1.0)
        store = JobStore(tmp_path / "jobs")
        left = store.get(job.id)
        assert left.status == "queued"  # given back, so that another process need not wait for the end of the lease
        async with JobRunner(store, generator) as runner:
            assert (await ended(runner, job.id)).status == "completed"
        await asyncio.sleep(0)


async def test_renewed_lease_does_not_interrupt_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    beat = JobStore.beat

    def counted(of: JobStore, holder: str) -> set[str]:
        held.append(beat(of, holder))
        return held[-1]

    async with speaking(tmp_path / "data") as generator:
        store = JobStore(tmp_path / "jobs")
        job, _ = store.create(new_job(sentences(30)))
        async with JobRunner(store, generator) as runner:
            while (task := runner._tasks.get(job.id)) is None:
                await runner.changed(0.05)
            monkeypatch.setattr(JobStore, "beat", counted)
            while len(held) < 2:  # the second renewal begins after the runner has compared its jobs with the first
                runner.wake()
                await runner.changed(0.05)
            assert held[0] == {job.id}
            assert task.cancelling() == 0
