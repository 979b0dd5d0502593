"""Limits the time of a call that usually ends without waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


async def within(timeout_s: float, work: Awaitable[T]) -> T:
    """Await `work` for at most `timeout_s` seconds. Raises TimeoutError, and the errors of `work`.

    Unlike `asyncio.timeout`, this function starts a timer only if `work` has to wait. Most messages are sent without
    waiting, and a timer takes about as much CPU time as the message.
    """
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as ended:
        return cast("T", ended.value)
    async with asyncio.timeout(timeout_s):
        return await _Rest(steps, waits_for)


class _Rest(Generic[T]):
    """The rest of a call that has begun and waits, as an object that can be awaited."""

    def __init__(self, steps: Generator[Any, Any, T], waits_for: object) -> None:
        """steps: the generator of the call. waits_for: the last value of `steps`, for the event loop."""
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        steps, waits_for = self._steps, self._waits_for
        while True:
            try:
                try:
                    value = yield waits_for
                except GeneratorExit:
                    steps.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - the call handles it, for example its own cancellation
                    waits_for = steps.throw(error)
                else:
                    waits_for = steps.send(value)
            except StopIteration as ended:
                return cast("T", ended.value)
