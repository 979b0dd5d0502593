"""The batch runtime with a scripted runner: rows, queues, delivery of audio, and failures."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.batched import BatchedEngine
from app.errors import BadReference, Busy, EngineError, EngineStopped, NotSupported, OutOfMemory
from app.runtime.audio_queue import AudioQueue
from app.runtime.loop import Loop
from app.runtime.playback import Playback
from app.runtime.scheduler import COMPACT_AFTER, Scheduler
from app.runtime.slots import Job
from app.types import AudioChunk, Load, Reference, Utterance
from tests.support.scripted_runner import FRAME_S, FRAME_SAMPLES, RATE_HZ, Part, ScriptedRunner, frames_in, info

pytestmark = pytest.mark.unit


@dataclass
class Desk:
    """A Loop that the test iterates by hand, with its runner and scheduler."""

    runner: ScriptedRunner
    scheduler: Scheduler
    loop: Loop

    @classmethod
    def of(cls, rows: int, queue: int, sizes: tuple[int, ...] = ()) -> Desk:
        runner, scheduler = ScriptedRunner(rows), Scheduler(rows, queue, bucket_sizes=sizes)
        return cls(runner, scheduler, Loop(runner, scheduler, "test"))

    def submit(
        self, part: Part, *, follows: bool = False, background: bool = False, audio_queue_s: float = 60.0
    ) -> Job:
        audio_queue = AudioQueue(RATE_HZ, audio_queue_s, on_space=self.scheduler.wake)
        job = Job(self.runner.utterance(part, follows=follows, background=background), audio_queue)
        self.scheduler.submit(job)
        return job

    def turn(self, times: int = 1) -> bool:
        busy = False
        for _ in range(times):
            busy = self.loop.iterate()
            self.scheduler.check()
            assert self.runner.violations == []
        return busy

    def finish(self) -> None:
        """Iterate until nothing is left to do."""
        for _ in range(10_000):
            if not self.turn():
                return
        raise AssertionError("the loop never comes to rest")


async def collect_frames(job: Job) -> list[tuple[int, int]]:
    """Return (utterance, frame) for every frame from the job's audio queue."""
    frames = []
    position = 0
    while (chunk := await asyncio.wait_for(job.audio_queue.get(), 60)) is not None:
        assert chunk.start == position
        position += len(chunk.samples)
        got = frames_in(chunk.samples)
        assert chunk.codes is not None
        assert [(number, frame) for number, frame, _ in chunk.codes.T.tolist()] == got
        frames += got
    return frames


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Played:
    """An answer with a listener: submits utterances and records the audio that was sent."""

    desk: Desk
    clock: Clock
    playback: Playback

    def submit(self, frames: int, *, number: int = 0, pieces: int = 1) -> Job:
        utterance = self.desk.runner.utterance(Part(frames=frames, pieces=pieces), follows=number > 0)
        scheduling = dataclasses.replace(utterance.scheduling, index=number, playback=self.playback)
        utterance = dataclasses.replace(utterance, scheduling=scheduling)
        job = Job(utterance, AudioQueue(RATE_HZ, 60.0, on_space=self.desk.scheduler.wake), submitted_s=self.clock())
        self.desk.scheduler.submit(job)
        return job

    def hand(self, seconds: float, *, present: int = 0) -> None:
        self.playback.current_index = present
        self.playback.add(seconds, self.clock())


def stage(rows: int) -> tuple[Desk, Clock, Callable[[], Played]]:
    """Return a desk, its clock and a function that creates an answer with a listener."""
    runner, clock = ScriptedRunner(rows), Clock()
    scheduler = Scheduler(rows, 9, clock=clock)
    desk = Desk(runner, scheduler, Loop(runner, scheduler, "test"))
    return desk, clock, lambda: Played(desk, clock, Playback())


# ---- Scheduler


async def test_lowest_free_row_is_assigned_in_arrival_order():
    desk = Desk.of(3, 3)
    jobs = [desk.submit(Part(frames=frames)) for frames in (9, 1, 9, 9, 9)]
    assert [row for row, _ in desk.scheduler.plan().admit] == [0, 1, 2]
    desk = Desk.of(3, 3)
    jobs = [desk.submit(Part(frames=frames)) for frames in (9, 1, 9, 9, 9)]
    desk.turn(5)  # row 1 has generated its only frame
    assert desk.runner.rows == {0: 0, 1: 3, 2: 2}
    desk.scheduler.cancel(jobs[2])
    desk.scheduler.cancel(jobs[0])
    desk.turn()
    assert desk.runner.rows == {0: 4, 1: 3}  # the request takes the lower of two free rows


SIZES = (1, 2, 4, 8, 16, 32, 64)


def moves(desk: Desk) -> list[object]:
    return desk.runner.named("move_row")


async def test_last_answer_in_a_high_row_moves_to_the_lowest_free_row():
    """60 short answers end, and the answer in row 60 continues. Its later steps use the CUDA graph for one row."""
    desk = Desk.of(64, 64, SIZES)
    short = [desk.submit(Part(frames=1)) for _ in range(60)]
    long = desk.submit(Part(frames=400))
    desk.turn(61 + COMPACT_AFTER + 3)
    assert moves(desk) == [(60, 0)]
    assert desk.runner.named("step")[-1] == (0,)
    desk.finish()
    assert await collect_frames(long) == desk.runner.expected(long.utterance)
    for job in short:
        assert await collect_frames(job) == desk.runner.expected(job.utterance)
    assert moves(desk) == [(60, 0)]


@pytest.mark.parametrize(
    ("survivors", "expected"),
    [
        ((7,), [(7, 0)]),
        ((6, 7), [(7, 0), (6, 1)]),
        ((0, 2), [(2, 1)]),
        ((1, 5), [(5, 0)]),
        ((3, 4, 5), [(5, 0), (4, 1)]),
        ((0, 1, 3), []),  # three and four rows use the same bucket, so no row moves
        ((2, 3, 4, 6), [(6, 0), (4, 1)]),
        ((0, 1, 2, 3, 7), []),
        ((0,), []),
    ],
)
async def test_only_moves_that_lower_the_bucket_are_made(survivors: tuple[int, ...], expected: list[object]) -> None:
    desk = Desk.of(8, 8, SIZES[:4])
    jobs = [desk.submit(Part(frames=200 if row in survivors else 8)) for row in range(8)]
    desk.turn(120)
    assert moves(desk) == expected
    desk.finish()
    for job in jobs:
        assert await collect_frames(job) == desk.runner.expected(job.utterance)


async def test_paused_row_is_moved_and_a_row_in_prefill_is_not():
    desk = Desk.of(4, 4, SIZES[:3])
    desk.submit(Part(frames=1))
    desk.submit(Part(frames=1))
    slow = desk.submit(Part(frames=50), audio_queue_s=3 * FRAME_S)
    desk.turn(12 + COMPACT_AFTER)
    assert moves(desk) == [(2, 0)]
    frames = asyncio.create_task(collect_frames(slow))
    while not frames.done():
        desk.turn()
        await asyncio.sleep(0)
    assert frames.result() == desk.runner.expected(slow.utterance)

    desk = Desk.of(4, 4, SIZES[:3])
    desk.submit(Part(frames=1))
    reading = desk.submit(Part(frames=60, pieces=40))
    desk.turn(30)
    assert moves(desk) == []
    desk.turn(20)
    assert moves(desk) == [(1, 0)]
    desk.finish()
    assert await collect_frames(reading) == desk.runner.expected(reading.utterance)


async def test_no_row_is_moved_while_a_job_waits_or_soon_after_a_row_became_free():
    desk = Desk.of(2, 9, SIZES[:2])
    long = desk.submit(Part(frames=300))
    longer = desk.submit(Part(frames=300))
    desk.turn(3)
    desk.scheduler.cancel(long)
    for _ in range(6):  # each new answer takes the free row before the last row is moved
        desk.turn(COMPACT_AFTER)
        short = desk.submit(Part(frames=2))
        desk.turn(4)
        assert await collect_frames(short) == desk.runner.expected(short.utterance)
        assert moves(desk) == []
    desk.turn(2 * COMPACT_AFTER)
    assert moves(desk) == [(1, 0)]
    desk.finish()
    assert await collect_frames(longer) == desk.runner.expected(longer.utterance)


async def test_failed_move_fails_only_its_utterance():
    desk = Desk.of(4, 4, SIZES[:3])
    desk.submit(Part(frames=1))
    other = desk.submit(Part(frames=30))
    desk.submit(Part(frames=1))
    broken = desk.submit(Part(frames=90, fails="move"))
    desk.turn(20 + COMPACT_AFTER)
    assert moves(desk)[0] == (3, 0)
    with pytest.raises(EngineError):
        await collect_frames(broken)
    assert desk.runner.violations == []
    desk.finish()
    assert await collect_frames(other) == desk.runner.expected(other.utterance)
    later = desk.submit(Part(frames=2))
    desk.finish()
    assert await collect_frames(later) == desk.runner.expected(later.utterance)


async def test_later_utterances_get_rows_first_in_arrival_order():
    desk = Desk.of(1, 1)
    desk.submit(Part(frames=1))
    desk.turn()
    desk.submit(Part(frames=1))
    desk.submit(Part(frames=1), follows=True)
    desk.submit(Part(frames=1), follows=True)
    desk.finish()
    assert [number for number, _ in desk.runner.said] == [0, 2, 3, 1]


async def test_job_is_refused_only_if_rows_and_queue_are_full():
    desk = Desk.of(2, 3)
    jobs = [desk.submit(Part(frames=3)) for _ in range(5)]
    with pytest.raises(Busy) as error:
        desk.submit(Part(frames=3))
    assert error.value.retry_after_s >= 1
    desk.submit(Part(frames=3), follows=True)  # a follow-up is accepted even if the queue is full
    desk.turn()
    with pytest.raises(Busy):
        desk.submit(Part(frames=3))
    assert desk.scheduler.load() == Load(active_rows=2, max_rows=2, queued=4, max_queue=3)
    desk.scheduler.cancel(jobs[4])
    with pytest.raises(Busy):  # the follow-up still occupies the third place
        desk.submit(Part(frames=3))
    desk.scheduler.cancel(jobs[3])
    desk.submit(Part(frames=3))


async def test_row_of_a_continued_answer_is_not_free_between_its_utterances():
    """Otherwise a new request would wait for the rest of that answer although no queue exists."""
    desk = Desk.of(1, 0)
    desk.submit(Part(frames=1))
    desk.finish()
    following = desk.submit(Part(frames=1), follows=True)
    assert desk.scheduler.load().active_rows == 0
    with pytest.raises(Busy):
        desk.submit(Part(frames=1))
    desk.finish()
    assert await collect_frames(following) == desk.runner.expected(following.utterance)
    desk.submit(Part(frames=1))


async def test_without_a_queue_only_the_rows_are_used():
    desk = Desk.of(2, 0)
    desk.submit(Part(frames=1))
    desk.submit(Part(frames=1))
    with pytest.raises(Busy):
        desk.submit(Part(frames=1))
    desk.finish()
    desk.submit(Part(frames=1))


async def test_background_work_runs_only_without_foreground_work():
    desk = Desk.of(2, 1)
    behind = desk.submit(Part(frames=6, pieces=2), background=True)
    desk.turn(4)
    assert desk.runner.said == [(0, 0), (0, 1)]
    assert desk.scheduler.load().active_rows == 0
    desk.submit(Part(frames=3))
    desk.turn(4)
    assert desk.runner.said[2:] == [(1, 0), (1, 1), (1, 2)]
    desk.finish()
    assert await collect_frames(behind) == [(0, frame) for frame in range(6)]


async def test_background_work_uses_free_rows_while_listeners_have_much_audio():
    desk, clock, answer = stage(rows=3)
    talk = answer()
    talk.submit(frames=900)
    desk.submit(Part(frames=900, pieces=2), background=True)
    desk.turn(3)
    assert set(desk.runner.named("step")) == {(0,)}  # the listener has no audio yet
    talk.hand(10.0)
    desk.turn(4)
    assert desk.runner.named("prefill") == [0, 1, 1]
    assert desk.runner.named("step")[-1] == (0, 1)
    clock.now_s += 8.0  # the listener has 2 s of audio left, plus the generated audio that is not sent yet
    talk.hand(0.1)
    desk.turn(1)
    assert desk.runner.named("step")[-1] == (0,)
    talk.hand(10.0)
    new = answer()
    new.submit(frames=900)
    desk.turn(3)
    assert desk.runner.named("step")[-1] == (2,)  # the first audio of another listener
    new.hand(10.0)
    desk.turn(1)
    assert desk.runner.named("step")[-1] == (0, 1, 2)


async def test_background_work_is_preempted_by_foreground_work():
    desk = Desk.of(1, 0)
    behind = desk.submit(Part(frames=6), background=True)
    desk.turn(3)
    desk.submit(Part(frames=2))  # the job is accepted although the only row is in use
    again = desk.submit(Part(frames=2), background=True)
    desk.finish()
    assert desk.runner.said == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    with pytest.raises(Busy):
        await collect_frames(behind)
    assert await collect_frames(again) == [(2, 0), (2, 1)]


async def test_background_work_runs_while_a_slow_reader_is_full():
    desk = Desk.of(2, 0)
    desk.submit(Part(frames=6), audio_queue_s=2 * FRAME_S)
    desk.submit(Part(frames=2), background=True)
    desk.finish()
    assert [number for number, _ in desk.runner.said] == [0, 0, 1, 1]


async def test_row_with_much_unplayed_audio_yields_to_first_audio():
    desk, clock, answer = stage(rows=2)
    far = answer()
    far.submit(frames=500)
    desk.turn(2)
    far.hand(10.0)
    desk.submit(Part(frames=3, pieces=4))
    steps = len(desk.runner.named("step"))
    desk.turn(4)  # all four iterations prefill the new request
    assert len(desk.runner.named("step")) == steps
    desk.turn()
    assert desk.runner.named("step")[-1] == (1,)  # the first frame of the new request is computed alone
    desk.turn()
    # the audio of the new request is not being played, so it has no priority now
    assert desk.runner.named("step")[-1] == (0, 1)
    clock.now_s += 7.5  # the listener has 2.5 s of audio left, plus the generated audio that is not sent yet
    desk.submit(Part(frames=3))
    desk.turn()
    assert desk.runner.named("step")[-1] == (0, 1)


async def test_row_with_much_unplayed_audio_yields_to_rows_with_little_audio_left():
    desk, clock, answer = stage(rows=3)
    answers = [answer() for _ in range(3)]
    for each in answers:
        each.submit(frames=1000)
    desk.turn(4)  # prefills the prompts and computes the first frames
    for each, seconds in zip(answers, (10.0, 2.0, 0.5), strict=True):
        each.hand(seconds)
    desk.turn()
    assert desk.runner.named("step")[-1] == (1, 2)
    answers[2].hand(1.0)
    desk.turn()
    assert desk.runner.named("step")[-1] == (0, 1, 2)  # all rows have enough audio, so all rows run
    clock.now_s += 1.5
    desk.turn()
    assert desk.runner.named("step")[-1] == (1, 2)
    clock.now_s += 6.0  # the first row itself has less than 3 s of audio now
    desk.turn()
    assert desk.runner.named("step")[-1] == (0, 1, 2)


async def test_rows_do_not_yield_to_queued_requests():
    """A row becomes free only when its request ends."""
    desk, _, answer = stage(rows=1)
    far = answer()
    far.submit(frames=5)
    desk.turn(2)
    far.hand(10.0)
    desk.submit(Part(frames=1))
    desk.finish()
    assert desk.runner.said == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


async def test_playing_utterance_has_priority_over_later_ones_of_its_answer():
    desk, clock, answer = stage(rows=3)
    talk = answer()
    talk.submit(frames=900)
    desk.turn(2)
    talk.hand(0.5)
    talk.submit(frames=900, number=1)
    talk.submit(frames=900, number=2)
    desk.turn(3)
    assert set(desk.runner.named("step")) == {(0,)}
    assert desk.runner.named("prefill") == [0]
    talk.hand(1.5)  # the listener has enough audio for now
    desk.turn(3)
    assert desk.runner.named("prefill") == [0, 1, 2]
    assert desk.runner.named("step")[-1] == (0, 1, 2)
    clock.now_s += 1.5
    desk.turn()
    assert desk.runner.named("step")[-1] == (0,)
    talk.hand(0.0, present=1)  # the first audio has been sent, so the listener waits for the second
    desk.turn()
    assert desk.runner.named("step")[-1] == (0, 1)


async def test_answer_after_an_underrun_runs_its_utterances_in_parallel():
    desk, clock, answer = stage(rows=2)
    talk = answer()
    talk.submit(frames=900)
    desk.turn(2)
    talk.hand(0.1)
    talk.submit(frames=900, number=1)
    clock.now_s += 1.0  # the audio of the answer ended 0.9 s ago
    talk.hand(0.1)
    assert talk.playback.underrun
    desk.turn(2)
    assert desk.runner.named("step")[-1] == (0, 1)


async def test_new_requests_are_prefilled_before_later_utterances():
    desk, clock, answer = stage(rows=4)
    talk = answer()
    talk.submit(frames=900)
    desk.turn(2)
    talk.hand(2.0)
    talk.submit(frames=9, number=2)
    talk.submit(frames=9, number=1)
    clock.now_s += 0.1
    desk.submit(Part(frames=9))
    desk.turn(2)
    assert desk.runner.rows == {0: 0, 1: 1, 2: 2, 3: 3}
    assert desk.runner.named("prefill") == [0, 3]  # the request that waits for its first audio is prefilled first
    desk.turn(2)
    assert desk.runner.named("prefill") == [0, 3, 2, 1]


def test_playback_restarts_after_an_underrun():
    playback = Playback(tempo=2.0)
    assert playback.buffered_s(5.0) == 0
    playback.add(0.0, 5.0)  # no audio has arrived yet, so the playback has not started
    playback.add(1.0, 10.0)
    assert playback.buffered_s(10.25) == 0.5
    assert playback.buffered_s(11.0) == -1.0
    playback.add(1.0, 11.0)
    assert playback.underrun_s == 0.5
    assert playback.buffered_s(11.0) == 1.0


async def test_cancelled_job_leaves_the_queue_immediately():
    """A step may last 100 ms. New requests in that time must not be refused."""
    desk = Desk.of(1, 1)
    desk.submit(Part(frames=3))
    waiting = desk.submit(Part(frames=3))
    desk.scheduler.cancel(waiting)
    # the cancelled job still counts, since no plan has moved it to the free row yet
    assert desk.scheduler.load().queued == 1
    desk.submit(Part(frames=3))
    desk.finish()
    assert [number for number, _ in desk.runner.said].count(1) == 0


async def test_cancelled_job_leaves_its_row_at_the_next_iteration():
    desk = Desk.of(1, 0)
    job = desk.submit(Part(frames=1000))
    desk.turn(3)
    desk.scheduler.cancel(job)
    desk.turn()
    assert desk.runner.rows == {}
    assert desk.scheduler.load().active_rows == 0
    assert desk.runner.named("release") == [0]
    desk.scheduler.cancel(job)  # cancelling a finished job has no effect
    assert not desk.turn()


async def test_close_fails_all_jobs_and_refuses_new_ones():
    desk = Desk.of(1, 5)
    jobs = [desk.submit(Part(frames=3)) for _ in range(3)]
    desk.turn(2)
    desk.scheduler.close()
    assert desk.scheduler.load().queued == 0
    for number, job in enumerate(jobs):
        with pytest.raises(EngineStopped):
            await collect_frames(job)
        assert job.cancelled, number
    with pytest.raises(EngineStopped):
        desk.submit(Part(frames=3))
    with pytest.raises(EngineStopped):
        desk.submit(Part(frames=3), follows=True)
    desk.finish()
    assert desk.runner.rows == {}


async def test_close_raises_the_provided_error():
    desk = Desk.of(1, 1)
    job = desk.submit(Part(frames=3))
    desk.scheduler.close(OutOfMemory("no room"))
    with pytest.raises(OutOfMemory):
        await collect_frames(job)
    with pytest.raises(OutOfMemory):
        desk.submit(Part(frames=3))


async def test_wait_returns_immediately_if_an_event_occurred_after_the_plan():
    """The lock is free between plan() and wait(). An event in that time must end the wait."""
    desk = Desk.of(1, 1)
    job = desk.submit(Part(frames=3), audio_queue_s=FRAME_S)
    for event in (lambda: desk.scheduler.cancel(job), desk.scheduler.wake, lambda: desk.submit(Part(1)), None):
        desk.scheduler.plan()
        if event is not None:
            event()
        limit_s = 60.0 if event is not None else 0.2
        began_s = time.monotonic()
        desk.scheduler.wait(limit_s)
        slept_s = time.monotonic() - began_s
        assert slept_s < limit_s / 2 if event is not None else slept_s >= 0.19


async def test_check_detects_inconsistent_slots_and_queue():
    desk = Desk.of(2, 2)
    job = desk.submit(Part(frames=3))
    desk.turn()
    slots = desk.scheduler._slots
    slots[1].job = job
    with pytest.raises(AssertionError, match="row 1 is FREE"):
        desk.scheduler.check()
    slots[1].phase = slots[0].phase
    with pytest.raises(AssertionError, match="two rows"):
        desk.scheduler.check()
    slots.free(1)
    desk.scheduler._queue.append(job)
    with pytest.raises(AssertionError, match="queued"):
        desk.scheduler.check()


async def test_free_row_has_no_job():
    desk = Desk.of(1, 1)
    with pytest.raises(LookupError):
        desk.scheduler.job(0)


# ---- AudioQueue


def samples(count: int, value: float = 0.0) -> np.ndarray:
    return np.full(count, value, np.float32)


async def test_audio_is_joined_in_order_up_to_a_second():
    audio_queue = AudioQueue(RATE_HZ, 60, on_space=lambda: None)
    for number in range(15):
        audio_queue.put(samples(20, number), np.full((2, 1), number, np.int16))
    audio_queue.finish()
    chunks = [await audio_queue.get() for _ in range(5)]
    # the first chunk is returned without waiting for the next frame
    assert [len(chunk.samples) for chunk in chunks if chunk] == [20, 100, 100, 80]
    assert [chunk.start for chunk in chunks if chunk] == [0, 20, 120, 220]
    widths = [chunk.codes.shape for chunk in chunks if chunk and chunk.codes is not None]
    assert widths == [(2, 1), (2, 5), (2, 5), (2, 4)]
    assert np.concatenate([chunk.samples for chunk in chunks if chunk]).tolist() == [n // 20 for n in range(300)]
    assert chunks[4] is None
    assert await audio_queue.get() is None  # each later call returns None too


async def test_chunk_longer_than_a_second_is_returned_whole():
    audio_queue = AudioQueue(RATE_HZ, 60, on_space=lambda: None)
    audio_queue.put(samples(250, 1))
    audio_queue.put(samples(60, 2))
    audio_queue.put(samples(60, 3))
    assert [len((await audio_queue.get()).samples) for _ in range(3)] == [250, 60, 60]


async def test_audio_without_codes_gives_chunks_without_codes():
    audio_queue = AudioQueue(RATE_HZ, 60, on_space=lambda: None)
    audio_queue.put(samples(3))
    audio_queue.put(samples(3))
    assert (await audio_queue.get()).codes is None


async def test_full_queue_reports_when_it_has_space_again():
    room = []
    audio_queue = AudioQueue(RATE_HZ, 2.0, on_space=lambda: room.append(audio_queue.full))
    for _ in range(3):
        audio_queue.put(samples(60))
    assert not audio_queue.full  # 1.8 s
    audio_queue.put(samples(60))
    audio_queue.put(samples(60))  # `put` accepts each frame, also if the queue is full
    assert audio_queue.full
    await audio_queue.get()
    assert audio_queue.full  # 3.0 - 0.6
    assert room == []
    await audio_queue.get()
    assert room == [False]
    await audio_queue.get()
    assert room == [False]  # the queue was not full before this read, so it does not call on_space


async def test_error_is_raised_after_the_audio_and_only_the_first_end_counts():
    audio_queue = AudioQueue(RATE_HZ, 60, on_space=lambda: None)
    audio_queue.put(samples(5))
    audio_queue.finish(EngineError("first"))
    audio_queue.finish()
    audio_queue.finish(EngineError("second"))
    assert len((await audio_queue.get()).samples) == 5
    for _ in range(2):
        with pytest.raises(EngineError, match="first"):
            await audio_queue.get()


async def test_cancelled_get_loses_no_audio():
    audio_queue = AudioQueue(RATE_HZ, 60, on_space=lambda: None)
    waiting = asyncio.create_task(audio_queue.get())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    audio_queue.put(samples(7))
    chunk = await asyncio.wait_for(audio_queue.get(), 1)
    assert (len(chunk.samples), chunk.start) == (7, 0)


async def test_waiting_reader_is_woken_from_another_thread():
    audio_queue = AudioQueue(RATE_HZ, 60, on_space=lambda: None)

    def speak() -> None:
        for number in range(200):
            audio_queue.put(samples(1, number))
            if number % 20 == 0:
                time.sleep(0.001)
        audio_queue.finish()

    thread = threading.Thread(target=speak)
    thread.start()
    got: list[float] = []
    while (chunk := await asyncio.wait_for(audio_queue.get(), 60)) is not None:
        got += chunk.samples.tolist()
    thread.join()
    assert got == list(range(200))


def test_audio_for_a_closed_event_loop_is_dropped():
    async def make() -> AudioQueue:
        return AudioQueue(RATE_HZ, 60, on_space=lambda: None)

    audio_queue = asyncio.run(make())
    audio_queue.put(samples(1))
    audio_queue.finish()


async def test_on_space_callback_is_called_without_the_lock():
    """The scheduler's `close` calls `finish` under its own lock and `on_space` takes that lock. If `get` held the
    lock of the queue meanwhile, a reader and a closing engine would deadlock."""
    finished = []

    def on_space() -> None:
        thread = threading.Thread(target=audio_queue.finish, daemon=True)
        thread.start()
        thread.join(60)
        finished.append(not thread.is_alive())

    audio_queue = AudioQueue(RATE_HZ, 1.0, on_space=on_space)
    audio_queue.put(samples(100))
    await audio_queue.get()
    assert finished == [True]


# ---- Loop, iterated by hand


async def test_every_job_gets_exactly_its_own_audio():
    desk = Desk.of(4, 20)
    jobs = [
        desk.submit(Part(frames=frames, pieces=pieces)) for frames, pieces in ((5, 1), (0, 2), (9, 3), (1, 1), (7, 2))
    ]
    desk.turn(4)
    jobs += [desk.submit(Part(frames=3)) for _ in range(6)]  # these jobs join while other jobs run
    desk.finish()
    for job in jobs:
        assert await collect_frames(job) == desk.runner.expected(job.utterance)
    assert desk.runner.rows == {}
    assert desk.scheduler.load().active_rows == 0


async def test_reader_with_enough_buffered_audio_gets_larger_chunks():
    left_s = 0.0
    audio_queue = AudioQueue(RATE_HZ, 10.0, on_space=lambda: None, time_left_s=lambda: left_s)
    frame = np.ones(FRAME_SAMPLES, np.float32)

    async def soon(chunk: asyncio.Task[AudioChunk | None]) -> bool:
        for _ in range(5):
            await asyncio.sleep(0)
        return chunk.done()

    audio_queue.put(frame)
    assert (await audio_queue.get()) is not None  # the first frame is returned without a wait
    left_s = 0.2  # the listener has too little audio left for a wait
    audio_queue.put(frame)
    assert (await audio_queue.get()) is not None
    left_s = 100.0
    chunk = asyncio.create_task(audio_queue.get())
    for _ in range(9):
        audio_queue.put(frame)
        assert not await soon(chunk)
    audio_queue.put(frame)  # 0.4 s
    assert await soon(chunk)
    assert len((await chunk).samples) == 10 * FRAME_SAMPLES
    audio_queue.put(frame)
    chunk = asyncio.create_task(audio_queue.get())
    assert not await soon(chunk)
    audio_queue.finish()  # after `finish`, the queue waits for no more frames
    assert len((await chunk).samples) == FRAME_SAMPLES
    assert await audio_queue.get() is None


async def test_reader_gets_available_audio_before_an_underrun():
    audio_queue = AudioQueue(RATE_HZ, 10.0, on_space=lambda: None, time_left_s=lambda: 0.27)
    frame = np.ones(FRAME_SAMPLES, np.float32)
    audio_queue.put(frame)
    await audio_queue.get()
    audio_queue.put(frame[:1])  # no further frame arrives, because the engine has stalled
    chunk = await asyncio.wait_for(audio_queue.get(), 60)
    assert chunk is not None
    assert len(chunk.samples) == 1
    chunk_task = asyncio.create_task(audio_queue.get())
    await asyncio.sleep(0.02)  # the wait is over: the next frame is returned immediately, however short it is
    audio_queue.put(frame[:1])
    chunk = await asyncio.wait_for(chunk_task, 60)
    assert chunk is not None
    assert len(chunk.samples) == 1


async def test_full_audio_queue_pauses_only_its_own_row():
    desk = Desk.of(2, 0)
    slow = desk.submit(Part(frames=40), audio_queue_s=10 * FRAME_S)
    quick = desk.submit(Part(frames=40))
    desk.finish()
    assert await collect_frames(quick) == desk.runner.expected(quick.utterance)
    assert len(_spoken_by(desk, slow)) == 10
    assert not desk.turn()  # the loop runs no step while the audio queue of the slow reader is full
    assert desk.scheduler.load().active_rows == 1
    frames: list[tuple[int, int]] = []
    while (chunk := await slow.audio_queue.get()) is not None:
        frames += frames_in(chunk.samples)
        desk.finish()
    assert frames == desk.runner.expected(slow.utterance)


def _spoken_by(desk: Desk, job: Job) -> list[tuple[int, int]]:
    return [frame for frame in desk.runner.said if frame[0] == job.utterance.seed]


@pytest.mark.parametrize("call", ["admit", "prefill", "step", "decode"])
@pytest.mark.parametrize("typed", [False, True])
async def test_failure_reaches_only_the_affected_jobs(call, typed):
    """A failed prefill affects one job, a failed step affects all its rows. Later jobs work in both cases."""
    desk = Desk.of(4, 9)
    neighbour = desk.submit(Part(frames=6))
    desk.turn(3)
    failing = desk.submit(
        Part(
            frames=6,
            pieces=2,
            fails=call,
            at=1 if call in ("prefill", "step") else 0,
            error=BadReference("told as it is") if typed else None,
        )
    )
    desk.finish()
    later = desk.submit(Part(frames=6))
    desk.finish()
    with pytest.raises(BadReference if typed else EngineError) as error:
        await collect_frames(failing)
    assert "scripted" not in str(error.value)  # internal details stay hidden
    if call in ("admit", "prefill"):
        assert await collect_frames(neighbour) == desk.runner.expected(neighbour.utterance)
    else:
        with pytest.raises(BadReference if typed else EngineError):
            await collect_frames(neighbour)
    assert await collect_frames(later) == desk.runner.expected(later.utterance)
    assert desk.runner.rows == {}


async def test_audio_before_a_failure_is_still_delivered():
    desk = Desk.of(1, 0)
    job = desk.submit(Part(frames=6, fails="step", at=4))
    desk.finish()
    received = [frame for _ in range(2) for frame in frames_in((await job.audio_queue.get()).samples)]
    assert received == desk.runner.expected(job.utterance)[:4]
    with pytest.raises(EngineError):
        await job.audio_queue.get()


@pytest.mark.parametrize("frames", [1, 3, 4, 8])
async def test_frames_decoded_together_are_all_delivered(frames):
    """This includes the last frames, after which no further frame arrives."""
    desk = Desk.of(2, 0)
    job = desk.submit(Part(frames=frames, together=4))
    beside = desk.submit(Part(frames=7, together=3))
    desk.finish()
    assert await collect_frames(job) == desk.runner.expected(job.utterance)
    assert await collect_frames(beside) == desk.runner.expected(beside.utterance)


async def test_nan_in_the_last_frames_is_an_error():
    desk = Desk.of(1, 0)
    job = desk.submit(Part(frames=3, together=4, fails="nan sound", at=2))
    desk.finish()
    with pytest.raises(EngineError):
        await collect_frames(job)
    assert desk.runner.rows == {}


async def test_row_is_free_when_the_end_is_reported(monkeypatch):
    """Otherwise a client with sequential requests is sometimes refused if no queue exists."""
    desk = Desk.of(1, 0)
    job = desk.submit(Part(frames=1))
    loads = []
    finish = job.audio_queue.finish
    monkeypatch.setattr(
        job.audio_queue, "finish", lambda error=None: (loads.append(desk.scheduler.load()), finish(error))
    )
    desk.finish()
    assert [load.active_rows for load in loads] == [0]


async def test_long_prompt_does_not_stop_speaking_rows():
    desk = Desk.of(3, 0)
    speaking = desk.submit(Part(frames=50))
    desk.turn(2)
    desk.submit(Part(frames=1, pieces=10))
    desk.submit(Part(frames=1, pieces=10))
    desk.runner.calls.clear()
    desk.turn(20)
    assert len(_spoken_by(desk, speaking)) >= 20
    turns = " ".join(name for name, _ in desk.runner.calls if name in ("prefill", "step"))
    assert "prefill prefill" not in turns  # at most one chunk of a prompt is read between two steps
    assert desk.runner.named("prefill") == [1] * 10 + [2] * 10  # the request that came first is read first


async def test_job_may_be_cancelled_during_its_iteration():
    desk = Desk.of(2, 0)
    other = desk.submit(Part(frames=9))
    for frames in (1, 9):  # the job ends in this iteration (1 frame) or continues (9 frames)
        job = desk.submit(Part(frames=frames))
        desk.turn(2)
        desk.runner.before_step = lambda job=job: desk.scheduler.cancel(job)
        desk.turn()
        desk.runner.before_step = lambda: None
        desk.turn()
        assert list(desk.runner.rows) == [0]
    desk.finish()
    assert await collect_frames(other) == desk.runner.expected(other.utterance)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.integers(0, 12),
            st.integers(1, 3),
            st.booleans(),
            st.sampled_from(
                [("", 0)] * 8
                + [("admit", 0), ("prefill", 0), ("prefill", 1), ("step", 0), ("step", 3), ("decode", 0), ("decode", 2)]
            ),
            st.sampled_from([False, False, True]),
            st.integers(1, 3),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("read"), st.integers(0, 30)),
        st.tuples(st.just("turn"), st.integers(1, 6)),
    ),
    min_size=8,
    max_size=50,
)


@settings(max_examples=200, deadline=None)
@given(
    operations=OPERATIONS,
    rows=st.integers(1, 4),
    queue=st.integers(0, 3),
    outbox_frames=st.integers(1, 5),
    compacting=st.booleans(),
)
def test_jobs_stay_separate_in_any_sequence_of_operations(operations, rows, queue, outbox_frames, compacting):
    asyncio.run(_whatever_happens(operations, rows, queue, outbox_frames, compacting))


async def _whatever_happens(operations, rows, queue, outbox_frames, compacting):
    desk = Desk.of(rows, queue, tuple(range(1, rows + 1)) if compacting else ())
    jobs: list[Job] = []
    frames: dict[int, list[tuple[int, int]]] = {}
    ends: dict[int, str] = {}

    async def read(job: Job) -> bool:
        """Read one available chunk; return False if none is available."""
        number = job.utterance.seed
        if number in ends or job.cancelled:
            return False
        task = asyncio.create_task(job.audio_queue.get())
        await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return False
        try:
            chunk = task.result()
        except EngineError:
            ends[number] = "failed"
            return True
        if chunk is None:
            ends[number] = "ended"
        else:
            assert chunk.start == FRAME_SAMPLES * len(frames[number])
            frames[number] += frames_in(chunk.samples)
        return True

    for operation, *arguments in operations:
        if operation == "submit":
            count, pieces, follows, failure, behind, together = arguments
            load = desk.scheduler.load()
            free = load.max_rows - load.active_rows - len(desk.scheduler._continuations)
            room = max(0, free) + load.max_queue - load.queued
            try:
                job = desk.submit(
                    Part(count, pieces, *failure, together=together),
                    follows=follows,
                    background=behind,
                    audio_queue_s=outbox_frames * FRAME_S,
                )
            except Busy:
                assert not follows
                assert not behind
                assert room <= 0
                continue
            assert follows or behind or room > 0
            jobs.append(job)
            frames[job.utterance.seed] = []
        elif operation == "turn":
            desk.turn(arguments[0])
        elif jobs:
            job = jobs[arguments[0] % len(jobs)]
            if operation == "cancel":
                desk.scheduler.cancel(job)
            else:
                await read(job)
        desk.scheduler.check()
    for _ in range(1000):
        busy = desk.turn()
        for job in jobs:
            busy = await read(job) or busy
        if not busy:
            break
    else:
        raise AssertionError("the loop never comes to rest")

    assert desk.runner.rows == {}
    assert desk.scheduler.load() == Load(0, rows, 0, queue)
    for job in jobs:
        expected = desk.runner.expected(job.utterance)
        got = frames[job.utterance.seed]
        assert got == expected[: len(got)]
        if not job.cancelled:
            assert job.utterance.seed in ends
            assert ends[job.utterance.seed] == "failed" or got == expected


# ---- Loop, in its thread


@contextlib.asynccontextmanager
async def running(
    rows: int = 2, queue: int = 4, *, audio_queue_s: float = 60.0
) -> AsyncIterator[tuple[BatchedEngine, ScriptedRunner]]:
    runner = ScriptedRunner(rows)
    async with BatchedEngine(info(), runner, max_queue=queue, audio_queue_s=audio_queue_s) as engine:
        yield engine, runner
    assert runner.violations == []
    assert not engine.healthy


async def spoken(engine: BatchedEngine, utterance: Utterance) -> list[tuple[int, int]]:
    frames = []
    async with contextlib.aclosing(engine.speak(utterance)) as stream:
        async for chunk in stream:
            frames += frames_in(chunk.samples)
    return frames


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def test_concurrent_streams_get_only_their_own_audio():
    async with running(rows=8, queue=100, audio_queue_s=5 * FRAME_S) as (engine, runner):
        utterances = [runner.utterance(Part(frames=(7 * n) % 60, pieces=1 + n % 3)) for n in range(60)]
        for utterance, frames in zip(
            utterances, await asyncio.gather(*(spoken(engine, utterance) for utterance in utterances)), strict=True
        ):
            assert frames == runner.expected(utterance)
        assert engine.load == Load(0, 8, 0, 100)


async def test_closing_the_stream_frees_the_row():
    async with running(rows=1, queue=0, audio_queue_s=1.0) as (engine, runner):
        stream = engine.speak(runner.utterance(Part(frames=10**6)))
        first = await anext(stream)
        assert isinstance(first, AudioChunk)
        assert engine.load.active_rows == 1
        await stream.aclose()
        await until(lambda: engine.load.active_rows == 0)
        after = runner.utterance(Part(frames=3))
        assert await spoken(engine, after) == runner.expected(after)


async def test_unread_stream_submits_no_work():
    async with running(rows=1, queue=0) as (engine, runner):
        stream = engine.speak(runner.utterance(Part(frames=3)))
        await stream.aclose()
        assert runner.calls == []


async def test_full_engine_refuses_before_the_first_audio():
    async with running(rows=1, queue=1, audio_queue_s=0.2) as (engine, runner):
        sounding = engine.speak(runner.utterance(Part(frames=1000)))
        await anext(sounding)
        waiting = asyncio.create_task(spoken(engine, runner.utterance(Part(frames=1))))
        await until(lambda: engine.load.queued == 1)
        refused = engine.speak(runner.utterance(Part(frames=1)))
        with pytest.raises(Busy):
            await anext(refused)
        follower = asyncio.create_task(spoken(engine, runner.utterance(Part(frames=1), follows=True)))
        await asyncio.sleep(0.05)
        assert engine.load.queued == 1  # a follow-up occupies no place in the queue
        await sounding.aclose()
        assert await follower == [(3, 0)]
        assert await waiting == [(1, 0)]
        assert [number for number, _ in runner.said if number] == [3, 1]


async def test_sequential_requests_are_never_refused():
    async with running(rows=1, queue=0) as (engine, runner):
        for _ in range(200):
            utterance = runner.utterance(Part(frames=1))
            assert await spoken(engine, utterance) == runner.expected(utterance)


class Death(BaseException):
    """An exception that the loop does not catch."""


DEATH = Part(frames=9, fails="step", at=2, error=Death())


async def test_failed_loop_restarts_once():
    async with running(rows=2, queue=5) as (engine, runner):
        parts = [Part(frames=9), DEATH, Part(frames=9), Part(frames=9)]
        utterances = [runner.utterance(part) for part in parts]
        jobs = [asyncio.create_task(spoken(engine, utterance)) for utterance in utterances]
        for job in jobs[:2]:  # active jobs
            with pytest.raises(EngineStopped, match="has restarted"):
                await asyncio.wait_for(job, 60)
        for job, utterance in zip(jobs[2:], utterances[2:], strict=True):  # queued jobs
            assert await asyncio.wait_for(job, 60) == runner.expected(utterance)
        assert engine.healthy
        assert engine.restarts == 1
        assert (engine.load.active_rows, engine.load.queued) == (0, 0)
        assert runner.rows == {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_engine_is_unhealthy_if_its_loop_cannot_be_cleaned_up():
    async with running(rows=1, queue=5) as (engine, runner):
        jobs = [
            asyncio.create_task(spoken(engine, runner.utterance(part)))
            for part in (Part(frames=0, fails="release", error=Death()), Part(frames=0, fails="release", error=Death()))
        ]
        for job in jobs:
            with pytest.raises(EngineError):
                await asyncio.wait_for(job, 60)
        await until(lambda: not engine.healthy)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_dead_thread_fails_all_waiting_requests():
    async with running(rows=1, queue=5) as (engine, runner):
        jobs = [asyncio.create_task(spoken(engine, runner.utterance(part))) for part in (DEATH, DEATH, Part(frames=9))]
        for job in jobs:
            with pytest.raises(EngineError):
                await asyncio.wait_for(job, 60)
        await until(lambda: not engine.healthy)
        with pytest.raises(EngineError):
            await spoken(engine, runner.utterance(Part(frames=1)))


async def test_stopping_the_engine_ends_the_thread_and_all_streams():
    runner = ScriptedRunner(1)
    engine = BatchedEngine(info(), runner, max_queue=3, audio_queue_s=0.2)
    assert not engine.healthy
    async with engine:
        assert engine.healthy
        stream = engine.speak(runner.utterance(Part(frames=1000)))
        await anext(stream)
        waiting = asyncio.create_task(spoken(engine, runner.utterance(Part(frames=1))))
        await until(lambda: engine.load.queued == 1)
    assert not engine.healthy
    assert "engine-scripted" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(EngineStopped):
        async for _ in stream:
            pass
    with pytest.raises(EngineStopped):
        await waiting
    with pytest.raises(EngineStopped):
        await spoken(engine, runner.utterance(Part(frames=1)))


async def test_readers_and_a_closing_engine_do_not_deadlock():
    """Full audio queues are read while the engine stops (see `test_on_space_callback_is_called_without_the_lock`)."""
    for _ in range(10):
        async with running(rows=8, queue=8, audio_queue_s=FRAME_S) as (engine, runner):
            jobs = [asyncio.create_task(spoken(engine, runner.utterance(Part(frames=10**6)))) for _ in range(8)]
            await asyncio.sleep(0.01)
        results = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 60)
        assert {type(result) for result in results} == {EngineStopped}


async def test_engine_without_voice_cloning_refuses_references():
    async with running() as (engine, _):
        with pytest.raises(NotSupported):
            await engine.encode_reference(Reference(samples(10), RATE_HZ, "hello"))


async def test_frames_without_codes_have_none():
    runner = ScriptedRunner(2, codebooks=0)
    async with BatchedEngine(info(), runner, max_queue=0, audio_queue_s=60) as engine:
        async for chunk in engine.speak(runner.utterance(Part(frames=5))):
            assert chunk.codes is None
    assert runner.violations == []


async def test_codes_wait_for_their_audio() -> None:
    """A codec with lookahead gives codes before samples. The codes are returned with the next samples."""
    audio_queue = AudioQueue(1000, 1.0, on_space=lambda: None)
    nothing, sound = np.zeros(0, np.float32), np.ones(10, np.float32)
    for number in range(3):
        audio_queue.put(nothing, np.full((2, 1), number, np.int16))
    audio_queue.put(sound, np.full((2, 1), 3, np.int16))
    audio_queue.put(nothing, np.full((2, 1), 4, np.int16))
    audio_queue.finish()
    first, last = await audio_queue.get(), await audio_queue.get()
    assert first is not None
    assert last is not None
    assert first.codes is not None
    assert last.codes is not None
    assert first.codes[0].tolist() == [0, 1, 2, 3]
    assert len(first.samples) == 10
    assert (last.codes[0].tolist(), len(last.samples), last.start) == ([4], 0, 10)
    assert await audio_queue.get() is None


async def test_new_audio_queue_is_empty() -> None:
    queue = AudioQueue(100, 1.0, on_space=lambda: None)
    assert (queue.waiting_s, queue.has_audio, queue.full) == (0.0, False, False)
    queue.put(np.zeros(100, np.float32))
    assert (queue.waiting_s, queue.has_audio, queue.full) == (1.0, True, True)
