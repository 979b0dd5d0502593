"""Submits the next utterances to the engine while the current utterance is spoken, so that no gap is heard."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from app.generator.planning import PlannedUtterance
from app.text.script import Pause

if TYPE_CHECKING:
    from app.generator.job import SpeechJob
    from app.types import AnswerPart, AudioChunk

MAX_AHEAD = 4  # the maximum number of utterances that are submitted in advance


def rows_ahead(job: SpeechJob) -> int:
    """Return how many utterances to submit in advance: normally 1. If utterances may run in parallel, the result is up
    to the number of free rows. If each utterance continues the previous one, the result is 0.
    """
    if job.goes_on:
        return 0
    if not (job.info.text.independent or job.request.parallel):
        return 1
    load = job.engine.load
    return max(1, min(MAX_AHEAD, load.max_rows - load.active_rows - load.queued))


class SubmittedUtterance:
    """An utterance for the engine. The generation begins at `start`, or at the first call of `next`."""

    def __init__(self, stream: AsyncGenerator[AudioChunk], part: AnswerPart | None = None) -> None:
        self._stream = stream
        self.part = part
        self._first: asyncio.Task[AudioChunk | None] | None = None

    def start(self) -> None:
        """Start the generation now, before the first chunk is read."""
        self._first = asyncio.create_task(self._read())

    async def next(self) -> AudioChunk | None:
        """Wait for the next chunk of the audio, and return it; None at the end."""
        if self._first is None:
            return await self._read()
        chunk = await self._first
        self._first = None
        return chunk

    async def _read(self) -> AudioChunk | None:
        return await anext(self._stream, None)

    async def aclose(self) -> None:
        """Cancel the generation of the utterance."""
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._stream.aclose()


class Lookahead:
    """Iterates over the utterances and pauses of an answer, and submits utterances in advance. `aclose` cancels these
    utterances.
    """

    def __init__(
        self,
        planned: AsyncGenerator[PlannedUtterance | Pause],
        submit: Callable[[PlannedUtterance, int], SubmittedUtterance],
        *,
        waits: bool = False,
    ) -> None:
        """submit: sends an utterance to the engine. The second argument of `submit` is the index of the utterance in
        the answer, from 0. waits: True = the text of the next part may arrive late, so `submit` does not wait for it.
        """
        self._planned = planned
        self._submit = submit
        self._parts: deque[PlannedUtterance | Pause] = deque()  # planned parts that `next` has not returned yet
        self._submitted: deque[SubmittedUtterance] = deque()  # the first utterances of `_parts`, already submitted
        self._present: PlannedUtterance | None = None
        self._taken = 0
        self._waits = waits
        self._planning: asyncio.Task[PlannedUtterance | Pause | None] | None = None  # plans the next part

    async def planned_within(self, timeout_s: float) -> bool:
        """Wait until `peek` can return without waiting. Returns False if this takes more than `timeout_s` seconds."""
        if self._parts:
            return True
        self._planning = self._planning or asyncio.create_task(self._next_planned())
        await asyncio.wait({self._planning}, timeout=timeout_s)
        return self._planning.done()

    async def next(self) -> PlannedUtterance | Pause | None:
        """Advance to the next utterance or pause and return it; None at the end."""
        if await self.peek() is None:
            return None
        part = self._parts.popleft()
        self._present = part if isinstance(part, PlannedUtterance) else None
        return part

    async def peek(self) -> PlannedUtterance | Pause | None:
        """Return the utterance or pause that `next` will return; None at the end."""
        return self._parts[0] if self._parts else await self._plan()

    def take(self) -> tuple[SubmittedUtterance, int]:
        """Return the submitted form of the utterance that `next` returned last, and its index in the answer.

        If the utterance was not submitted in advance, submit it now. The caller must close the submitted utterance.
        """
        if self._present is None:
            raise LookupError("take() needs an utterance, but next() has returned a pause")
        number = self._taken
        self._taken += 1
        return (self._submitted.popleft() if self._submitted else self._submit(self._present, number)), number

    async def submit(self, count: int) -> None:
        """Submit utterances until `count` utterances after the current one are submitted, or no more are planned."""
        utterances = [part for part in self._parts if isinstance(part, PlannedUtterance)]
        while len(self._submitted) < count:
            if len(utterances) == len(self._submitted):
                if self._waits and not await self.planned_within(0):
                    return
                part = await self._plan()
                if part is None:
                    return
                if isinstance(part, Pause):
                    continue
                utterances.append(part)
            index = len(self._submitted)
            utterance = self._submit(utterances[index], self._taken + index)
            utterance.start()
            self._submitted.append(utterance)

    async def _plan(self) -> PlannedUtterance | Pause | None:
        """Plan the next utterance or pause, store it in `_parts`, and return it; None at the end."""
        if self._planning is None:
            part = await self._next_planned()
        else:
            part = await self._planning
            self._planning = None
        if part is not None:
            self._parts.append(part)
        return part

    async def _next_planned(self) -> PlannedUtterance | Pause | None:
        return await anext(self._planned, None)

    async def aclose(self) -> None:
        """Cancel all submitted utterances."""
        for utterance in self._submitted:
            await utterance.aclose()
        if self._planning is not None:
            self._planning.cancel()
            await asyncio.gather(self._planning, return_exceptions=True)
        await self._planned.aclose()
