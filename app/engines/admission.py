"""Limits how many answers are generated at the same time, so that a flood of requests does not fill the memory.

An answer that is generated needs memory for the audio of its utterances, its filters and its encoder (0.2 to 7 MB). An
engine may be much faster than the encoders, so its rows alone do not limit the number of these answers. An answer that
waits for its admission needs only its request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from app.errors import Busy

if TYPE_CHECKING:
    from app.types import Load

ANSWERS_PER_ROW = 2  # an engine generates one answer in a row while the server encodes another one
LEAST_ANSWERS = 16


class Admission:
    """Admits answers in the order of their requests. Use it from one event loop."""

    def __init__(self) -> None:
        self._admitted = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """The number of answers that wait."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def place(self, load: Load) -> AsyncGenerator[None]:
        """Wait until the number of generated answers is below the limit. Inside the context, this answer counts.

        load: the load of the engine. Raises Busy if too many requests wait, here and in the engine: as many as the
        engine has free rows and places in its queue.
        """
        await self._enter(load)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, load: Load) -> None:
        if not self._waiting and self._admitted < max(LEAST_ANSWERS, ANSWERS_PER_ROW * load.max_rows):
            self._admitted += 1
            return
        free = max(0, load.max_rows - load.active_rows)
        if len(self._waiting) + load.queued >= free + load.max_queue:
            raise Busy(
                f"The server is speaking for {self._admitted} requests, and {len(self._waiting) + load.queued} are "
                "waiting. Try again in a moment.",
                retry_after_s=1,
            )
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append(admitted)
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.cancelled():
                with contextlib.suppress(ValueError):  # `_leave` has removed the future
                    self._waiting.remove(admitted)
            else:  # the answer was admitted before its task was cancelled
                self._leave()
            raise

    def _leave(self) -> None:
        """Free a place, and admit the answer that has waited longest."""
        self._admitted -= 1
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():
                self._admitted += 1
                admitted.set_result(None)
                return
