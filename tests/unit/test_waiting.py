"""`within` limits the time of a call, and starts a timer only if the call waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from app.api.waiting import within


async def _value() -> str:
    return "value"


async def test_call_that_does_not_wait_starts_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: float) -> None:
        raise AssertionError("a timer was started")

    monkeypatch.setattr(asyncio, "timeout", refuse)
    assert await within(1.0, _value()) == "value"


async def test_value_after_several_waits_is_returned() -> None:
    async def work() -> int:
        total = 0
        for number in range(3):
            await asyncio.sleep(0)
            total += await asyncio.sleep(0.001, number)
        return total

    assert await within(10.0, work()) == 3


async def test_future_is_awaited() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.001, future.set_result, "later")
    assert await within(10.0, future) == "later"


async def test_slow_call_is_cancelled() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(TimeoutError):
        await within(0.01, work())
    assert ended == ["cancelled"]


async def test_cleanup_of_slow_call_may_wait() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.001)
            ended.append("clean")

    with pytest.raises(TimeoutError):
        await within(0.01, work())
    assert ended == ["clean"]


@pytest.mark.parametrize("waits", [False, True])
async def test_error_of_call_is_raised(waits: bool) -> None:
    async def work() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await within(10.0, work())


async def test_cancellation_of_task_reaches_call() -> None:
    ended: list[str] = []

    async def work() -> None:
        with contextlib.suppress(ValueError):
            try:
                await asyncio.sleep(30)
            finally:
                ended.append("ended")

    task = asyncio.create_task(within(30.0, work()))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["ended"]


async def test_call_is_closed_with_its_caller() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("closed")

    coroutine = within(30.0, work())
    coroutine.send(None)  # the call waits now
    coroutine.close()
    assert ended == ["closed"]


async def test_timeout_works_inside_async_generator() -> None:
    async def numbers() -> AsyncGenerator[int]:
        yield await within(10.0, asyncio.sleep(0.001, 1))
        yield await within(10.0, asyncio.sleep(0, 2))

    assert [number async for number in numbers()] == [1, 2]
