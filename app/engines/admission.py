"""Limits how many answers are generated at the same time, so that a flood of requests does not fill the memory.

An answer that is being generated needs memory for audio, for filters and for an encoder (0.2 to 7 MB). An engine may be
much faster than the encoders. Then its rows are free again while many answers still wait for their encoders, so the
number of rows alone does not limit the memory. An answer that waits for its admission needs only the memory of its
request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from app.errors import Busy

if TYPE_CHECKING:
    from app.types import Load

ANSWERS_PER_ROW = 2  # for each row, one answer that the engine generates and one that the server still encodes
LEAST_ANSWERS = 16


class Admission:
    """Admits answers in the order of their requests. Use it from one event loop."""

    def __init__(self) -> None:
        self._admitted = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """The number of answers that wait for their admission."""
        return len(self._waiting)

    def place(self, load: Load) -> _Place:
        """Return an async context manager that waits until the server may generate one more answer.

        Inside the context, the answer counts as one that is being generated. load: the load of the engine. The requests
        that wait here and the requests in the engine's queue are counted together. Raises Busy if their number has
        reached the limit: the number of the engine's free rows plus the largest length of its queue.
        """
        return _Place(self, load)

    async def enter(self, load: Load) -> None:
        """Wait until one more answer may be generated. The caller must call `leave`. load, errors: see `place`."""
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
                with contextlib.suppress(ValueError):  # `leave` may have removed the future already
                    self._waiting.remove(admitted)
            else:  # the answer was admitted before its task was cancelled
                self.leave()
            raise

    def leave(self) -> None:
        """Free a place, and admit the answer that has waited longest."""
        self._admitted -= 1
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():
                self._admitted += 1
                admitted.set_result(None)
                return


class _Place:
    """The place of one answer. See `Admission.place`."""

    def __init__(self, admission: Admission, load: Load) -> None:
        self._admission = admission
        self._load = load

    async def __aenter__(self) -> None:
        await self._admission.enter(self._load)

    async def __aexit__(self, *_: object) -> None:
        self._admission.leave()
