"""Submits utterances to the engine early, so that there is no gap between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from app.generator.planning import PlannedUtterance
from app.text.script import Pause

if TYPE_CHECKING:
    from app.generator.job import SpeechJob
    from app.types import AudioChunk

MAX_AHEAD = 4  # further utterances of one answer that an engine speaks in parallel


def rows_ahead(job: SpeechJob) -> int:
    """How many further utterances of an answer may be submitted: as many as there are free rows, at least 1."""
    if not (job.info.text.independent or job.request.parallel):
        return 1
    load = job.engine.load
    return max(1, min(MAX_AHEAD, load.max_rows - load.active_rows - load.queued))


class SubmittedUtterance:
    """The audio of an utterance, requested from the engine immediately and read later."""

    def __init__(self, stream: AsyncGenerator[AudioChunk]) -> None:
        self._stream = stream
        self._first: asyncio.Task[AudioChunk | None] = asyncio.create_task(self._begin())

    async def _begin(self) -> AudioChunk | None:
        return await anext(self._stream, None)

    async def chunks(self) -> AsyncGenerator[AudioChunk]:
        chunk = await self._first
        while chunk is not None:
            yield chunk
            chunk = await anext(self._stream, None)

    async def aclose(self) -> None:
        """Cancel the rest of the utterance."""
        if not self._first.done():
            self._first.cancel()
        await asyncio.gather(self._first, return_exceptions=True)
        await self._stream.aclose()


class Lookahead:
    """The planned parts in order. Some of the utterances are submitted already; `aclose` cancels these."""

    def __init__(
        self,
        planned: AsyncGenerator[PlannedUtterance | Pause],
        submit: Callable[[PlannedUtterance, int], SubmittedUtterance],
    ) -> None:
        """submit: gives the engine an utterance. Its second argument is the number in the answer, from 0."""
        self._planned = planned
        self._submit = submit
        self._parts: deque[PlannedUtterance | Pause] = deque()  # planned, not yet returned by `next`
        self._submitted: deque[SubmittedUtterance] = deque()  # the first utterances in _parts
        self._present: PlannedUtterance | None = None
        self._taken = 0

    async def next(self) -> PlannedUtterance | Pause | None:
        """Go to the next part and return it; None at the end."""
        if await self.peek() is None:
            return None
        part = self._parts.popleft()
        self._present = part if isinstance(part, PlannedUtterance) else None
        return part

    async def peek(self) -> PlannedUtterance | Pause | None:
        """The part that `next` will return."""
        return self._parts[0] if self._parts else await self._plan()

    def take(self) -> tuple[SubmittedUtterance, int]:
        """Submit the present part if necessary; returns it and its number. The caller closes it."""
        if self._present is None:
            raise LookupError("the present part is a pause")
        number = self._taken
        self._taken += 1
        return (self._submitted.popleft() if self._submitted else self._submit(self._present, number)), number

    async def submit(self, count: int) -> None:
        """Submit up to `count` utterances that come after the present one."""
        utterances = [part for part in self._parts if isinstance(part, PlannedUtterance)]
        while len(self._submitted) < count:
            if len(utterances) == len(self._submitted):
                part = await self._plan()
                if part is None:
                    return
                if isinstance(part, Pause):
                    continue
                utterances.append(part)
            index = len(self._submitted)
            self._submitted.append(self._submit(utterances[index], self._taken + index))

    async def _plan(self) -> PlannedUtterance | Pause | None:
        part = await anext(self._planned, None)
        if part is not None:
            self._parts.append(part)
        return part

    async def aclose(self) -> None:
        for utterance in self._submitted:
            await utterance.aclose()
        await self._planned.aclose()
