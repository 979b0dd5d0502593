"""One engine per device: choice of the device, the queue, and failures of a device.

The engines are real: CSM with random weights, each with its own thread and rows on the same CPU.
A device fails because its thread is ended or its model raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines import pool
from app.engines.batched import BatchedEngine
from app.engines.pool import EnginePool
from app.engines.registry import BuildContext, EngineSpec, specs
from app.errors import Busy, EngineError, EngineStopped, EngineUnavailable, OutOfMemory
from app.settings import Settings
from app.types import AnswerPart, Sampling, Scheduling, SpokenLine, Utterance, Voice, VoicePrompt
from tests.support.random_csm import fabricate_csm

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

VOICE = Voice("alloy", "Alloy", "preset")


def settings(folder: Path, tmp_path: Path, **options: Any) -> Settings:
    fixed = {
        "CSM_MODEL": str(folder),
        "TTS_DATA_DIR": str(tmp_path),
        "TTS_DTYPE": "float32",
        "TTS_DEVICES": "cpu,cpu",
        "TTS_MAX_ROWS": 2,
        "TTS_MAX_QUEUE": 2,
        "TTS_OUTBOX_S": 0.5,
    }
    return Settings(_env_file=None, **(fixed | options))


CONTEXT = BuildContext(lambda _: None, lambda: False)


@pytest.fixture
async def engine(tiny_csm: Path, tmp_path: Path) -> AsyncIterator[EnginePool]:
    made = pool.build(specs()["csm"], settings(tiny_csm, tmp_path), CONTEXT)
    assert isinstance(made, EnginePool)
    async with made:
        yield made


def say(text: str = "Hello there.", *, seconds: float = 0.4, seed: int = 1, **more: Any) -> Utterance:
    line = SpokenLine(text, 0, VOICE, more.pop("prompt", None))
    part = more.pop("part", None)
    return Utterance((line,), Sampling(), seed, seconds, part=part, scheduling=Scheduling(**more))


def prompt(name: str) -> VoicePrompt:
    return VoicePrompt(name, "mimi", np.zeros((32, 4), np.int16), "So.")


async def whole(engine: Any, utterance: Utterance) -> np.ndarray:
    async with contextlib.aclosing(engine.speak(utterance)) as stream:
        return np.concatenate([chunk.samples async for chunk in stream])


def engines(made: EnginePool) -> list[BatchedEngine]:
    return [member.engine for member in made._members]


def rows(made: EnginePool) -> list[int]:
    return [each.load.active_rows for each in engines(made)]


@contextlib.asynccontextmanager
async def held(made: EnginePool, count: int, **more: Any) -> AsyncIterator[list[Any]]:
    """Start `count` long answers whose readers take the first chunk and then stop reading."""
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for seed in range(count):
            utterance = say("word " * 60, seconds=60, seed=seed, **more)
            stream = await stack.enter_async_context(contextlib.aclosing(made.speak(utterance)))
            await anext(stream)
            streams.append(stream)
        yield streams


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - threads do not set asyncio's events
            await asyncio.sleep(0.01)


def kill(engine: BatchedEngine) -> None:
    """End the engine's thread. The loop of the engine restarts once after a failure, so every iteration fails."""

    def plan() -> None:
        raise SystemExit

    engine._scheduler.plan = plan  # type: ignore[assignment, method-assign]
    engine._scheduler.wake()
    engine._loop._thread.join(20)
    assert not engine._loop._thread.is_alive()


def fail(engine: BatchedEngine, error: Exception) -> None:
    """Make every step of this engine's model raise, as after an illegal memory access on a GPU."""

    def step(_: object) -> None:
        raise error

    engine._runner.step = step  # type: ignore[assignment, method-assign]


async def test_pool_reports_the_rows_of_all_devices(engine: EnginePool) -> None:
    assert engine.info.device == "cpu,cpu"
    assert (engine.load.max_rows, engine.load.max_queue) == (4, 2)
    assert engine.healthy
    assert sum(thread.name == "engine-csm" for thread in threading.enumerate()) == 2


async def test_all_devices_give_the_same_audio(engine: EnginePool) -> None:
    first, second = engines(engine)
    expected = await whole(first, say())
    assert np.array_equal(await whole(second, say()), expected)
    assert np.array_equal(await whole(engine, say()), expected)


async def test_least_busy_device_is_used(engine: EnginePool) -> None:
    async with held(engine, 1):
        assert rows(engine) == [1, 0]
        async with held(engine, 3):
            assert rows(engine) == [2, 2]
    await until(lambda: rows(engine) == [0, 0])


async def test_voice_returns_to_the_device_that_has_its_prompt(engine: EnginePool) -> None:
    async with held(engine, 1):  # so that the prompt of this voice is on the second device
        await whole(engine, say(prompt=prompt("a")))
    await until(lambda: rows(engine) == [0, 0])
    async with held(engine, 1, prompt=prompt("a")):
        assert rows(engine) == [0, 1]
        async with held(engine, 1, prompt=prompt("a")):  # a busy device is not chosen for its prompt
            assert rows(engine) == [1, 1]


async def test_answer_goes_on_on_the_device_that_has_its_state(engine: EnginePool) -> None:
    async with held(engine, 1):  # so that the first utterance is on the second device
        await whole(engine, say(part=AnswerPart("a", 0)))
    await until(lambda: rows(engine) == [0, 0])
    async with held(engine, 1, part=AnswerPart("a", 1)):
        assert rows(engine) == [0, 1]
    await until(lambda: rows(engine) == [0, 0])
    await whole(engine, say(part=AnswerPart("b", 0)))
    async with held(engine, 2, part=AnswerPart("b", 1)):
        assert rows(engine) == [2, 0]
        await whole(engine, say(part=AnswerPart("b", 1)))  # the device has no free row, so the other one speaks
    await until(lambda: rows(engine) == [0, 0])
    async with held(engine, 1, part=AnswerPart("b", 2)):
        assert rows(engine) == [0, 1]


async def test_full_pool_queues_requests_and_refuses_the_rest(engine: EnginePool) -> None:
    async with held(engine, 4) as streams:
        waiting = [asyncio.create_task(whole(engine, say(seed=seed))) for seed in range(2)]
        await until(lambda: engine.load.queued == 2)
        with pytest.raises(Busy):
            await whole(engine, say())
        await streams[0].aclose()
        for done in await asyncio.gather(*waiting):
            assert len(done)
    assert engine.load.queued == 0


async def test_continuation_of_an_answer_is_never_refused(engine: EnginePool) -> None:
    async with held(engine, 4) as streams:
        waiting = [asyncio.create_task(whole(engine, say(seed=seed))) for seed in range(2)]
        await until(lambda: engine.load.queued == 2)
        going_on = asyncio.create_task(whole(engine, say(continuation=True)))
        await until(lambda: engine.load.queued >= 2)
        await streams[1].aclose()
        assert len(await going_on)
        await asyncio.gather(*waiting)


async def test_cancelled_waiter_leaves_the_queue(engine: EnginePool) -> None:
    async with held(engine, 4) as streams:
        leaver = asyncio.create_task(whole(engine, say()))
        await until(lambda: engine.load.queued == 1)
        stayer = asyncio.create_task(whole(engine, say(seed=2)))
        await until(lambda: engine.load.queued == 2)
        leaver.cancel()
        await asyncio.wait([leaver])
        assert engine.load.queued == 1
        await streams[0].aclose()
        assert len(await stayer)


async def test_row_offered_to_a_cancelled_waiter_goes_to_the_next(engine: EnginePool) -> None:
    async with held(engine, 4) as streams:
        leaver = asyncio.create_task(whole(engine, say()))
        await until(lambda: engine.load.queued == 1)
        stayer = asyncio.create_task(whole(engine, say(seed=2)))
        await until(lambda: engine.load.queued == 2)
        await streams[0].aclose()  # the row is offered to the cancelled task, which has not run yet
        leaver.cancel()
        assert len(await asyncio.wait_for(stayer, 20))


async def test_concurrent_requests_are_all_spoken(engine: EnginePool) -> None:
    engine._max_queue = 100
    alone = [await whole(engines(engine)[0], say(seed=seed)) for seed in range(5)]
    many = await asyncio.gather(*(whole(engine, say(seed=seed % 5)) for seed in range(12)))
    for index, sound in enumerate(many):
        assert np.allclose(sound, alone[index % 5], atol=1e-4)  # other answers share the codec's batch
    assert rows(engine) == [0, 0]


async def test_dead_device_is_removed_and_the_other_continues(
    engine: EnginePool, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = engines(engine)
    async with held(engine, 2) as streams:
        assert rows(engine) == [1, 1]
        kill(first)
        with pytest.raises(EngineError):  # the audio of the answer has started, so no other device repeats it
            async for _ in streams[0]:
                pass
        gone, left = (each.failure for each in engine.devices)
        assert "stopped" in gone
        assert not left
        assert engine.healthy
        assert engine.load.max_rows == 2
        assert len(await whole(engine, say()))
        received_s = 0.0
        async for chunk in streams[1]:  # the answer on the other device is complete
            received_s += chunk.seconds
            if received_s > 3:
                break
    assert "1 of 2 devices continue" in caplog.text
    kill(second)
    assert not engine.healthy
    with pytest.raises(EngineStopped, match="every device"):
        await whole(engine, say())


async def test_requests_without_audio_yet_move_to_another_device(engine: EnginePool) -> None:
    first, second = engines(engine)
    expected = await whole(second, say("A text of some length."))
    reading, go_on = threading.Event(), threading.Event()
    prefill = first._runner.prefill

    def slow(row: int) -> bool:
        reading.set()
        go_on.wait(20)
        return prefill(row)

    first._runner.prefill = slow  # type: ignore[method-assign]
    speaking = [asyncio.create_task(whole(engine, say("A text of some length."))) for _ in range(2)]
    await asyncio.to_thread(reading.wait, 20)
    ended = threading.Thread(target=kill, args=(first,))
    ended.start()
    go_on.set()
    for sound in await asyncio.gather(*speaking):
        assert np.allclose(sound, expected, atol=1e-4)
    await asyncio.to_thread(ended.join)
    assert engine.devices[0].failure
    assert rows(engine)[1] == 0


async def test_queued_requests_go_to_the_remaining_devices(engine: EnginePool) -> None:
    first, _ = engines(engine)
    async with held(engine, 4) as streams:
        waiting = [asyncio.create_task(whole(engine, say(seed=seed))) for seed in range(2)]
        await until(lambda: engine.load.queued == 2)
        kill(first)
        await streams[1].aclose()
        await asyncio.wait_for(asyncio.gather(*waiting), 20)


async def test_device_that_fails_repeatedly_is_removed(engine: EnginePool) -> None:
    first, _ = engines(engine)
    fail(first, RuntimeError("a kernel of this device is broken"))
    for attempt in range(pool.MAX_FAILURES):
        assert not engine.devices[0].failure
        assert len(await whole(engine, say(seed=attempt)))
    assert "consecutive texts" in engine.devices[0].failure
    assert first.healthy  # the engine's thread still runs, but gets no requests


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_lost_device_is_removed_immediately_and_its_request_moves(engine: EnginePool) -> None:
    first, _ = engines(engine)
    fail(first, RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert len(await whole(engine, say()))
    await until(lambda: bool(engine.devices[0].failure))
    assert not first.healthy
    assert not engine.devices[1].failure


async def test_text_that_fails_on_every_device_removes_no_device(engine: EnginePool) -> None:
    for each in engines(engine):
        fail(each, RuntimeError("this text"))
    for _ in range(pool.MAX_FAILURES + 1):
        with pytest.raises(EngineError):
            await whole(engine, say())
    assert not any(each.failure for each in engine.devices)


async def test_out_of_memory_is_not_retried_on_another_device(engine: EnginePool) -> None:
    first, _ = engines(engine)
    fail(first, OutOfMemory("No room."))
    with pytest.raises(OutOfMemory):
        await whole(engine, say())


async def test_hung_device_is_abandoned(engine: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.runtime import loop

    first, second = engines(engine)
    expected = await whole(second, say())
    monkeypatch.setattr(pool, "HEALTH_CHECK_S", 0.05)
    monkeypatch.setattr(loop, "HUNG_S", 3.0)  # an idle engine's loop runs once a second
    stuck = threading.Event()
    step = first._runner.step
    first._runner.step = lambda rows: (stuck.wait(30), step(rows))[1]  # type: ignore[method-assign]
    assert np.array_equal(await whole(engine, say()), expected)
    assert "stopped" in engine.devices[0].failure
    stuck.set()


async def test_recordings_are_encoded_on_a_working_device(engine: EnginePool) -> None:
    from app.types import Reference

    first, second = engines(engine)
    reference = Reference(np.zeros(24_000, np.float32), 24_000, "Nothing.")
    expected = await second.encode_reference(reference)

    def broken(_: object) -> Any:
        raise RuntimeError("CUDA error")

    first._encode = broken
    found = await engine.encode_reference(reference)
    assert np.array_equal(found.codes, expected.codes)
    second._encode = broken
    with pytest.raises(RuntimeError):
        await engine.encode_reference(reference)


# ---- settings


def test_split_model_builds_one_engine(tiny_csm: Path, tmp_path: Path) -> None:
    made = pool.build(specs()["csm"], settings(tiny_csm, tmp_path, CSM_DEVICE_MAP="balanced"), CONTEXT)
    assert isinstance(made, BatchedEngine)
    assert made.info.device == "cpu,cpu"


@pytest.mark.parametrize("devices", ["", "cpu", "auto"])
def test_one_device_builds_one_engine(
    tiny_csm: Path, tmp_path: Path, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = pool.build(specs()["csm"], settings(tiny_csm, tmp_path, TTS_DEVICES=devices), CONTEXT)
    assert isinstance(made, BatchedEngine)
    assert made.info.device == "cpu"


def test_missing_device_is_an_error(tiny_csm: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="no CUDA device"):
        pool.build(specs()["csm"], settings(tiny_csm, tmp_path, TTS_DEVICES="cpu,cuda:0"), CONTEXT)


def test_load_error_names_the_device(tiny_csm: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"On cpu: "):
        pool.build(specs()["csm"], settings(tmp_path / "nowhere", tmp_path), CONTEXT)


def test_engine_without_device_support_builds_one_engine(tmp_path: Path) -> None:
    built = []
    spec = EngineSpec("espeak", "espeak", "app.engines.espeak:build")
    built.append(pool.build(spec, settings(tmp_path, tmp_path, TTS_DEVICES="cuda:0,cuda:1"), CONTEXT))
    assert isinstance(built[0], BatchedEngine)


def test_different_weights_are_not_pooled(tiny_csm: Path, tmp_path: Path) -> None:
    one = pool.build(specs()["csm"], settings(tiny_csm, tmp_path, TTS_DEVICES=""), CONTEXT)
    other = fabricate_csm(tmp_path / "other", seed=9)
    two = pool.build(specs()["csm"], settings(other, tmp_path, TTS_DEVICES=""), CONTEXT)
    with pytest.raises(EngineUnavailable, match="same model"):
        EnginePool([one, two], max_queue=1)


async def to_its_end(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def test_background_work_yields_its_row_to_foreground_requests(tiny_csm: Path, tmp_path: Path) -> None:
    made = pool.build(specs()["csm"], settings(tiny_csm, tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=0), CONTEXT)
    async with made, held(made, 1), held(made, 1, background=True) as [casting]:
        async with asyncio.timeout(20):
            assert len(await whole(made, say()))
        with pytest.raises(Busy):
            await to_its_end(casting)


async def test_background_work_is_preempted_when_its_device_stops(engine: EnginePool) -> None:
    async with held(engine, 1, background=True) as [casting]:
        [its] = [each for each in engines(engine) if any(slot.background for slot in each._scheduler._slots.live)]
        kill(its)
        with pytest.raises(Busy):
            await to_its_end(casting)
        async with asyncio.timeout(20):
            assert len(await whole(engine, say(background=True)))
