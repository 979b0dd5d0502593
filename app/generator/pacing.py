"""Decides which answer may encode audio next, and measures how much unplayed audio each listener has.

An answer that has sent no audio yet encodes first. If a listener has enough audio, the answer to this listener waits
briefly for answers without audio. The event loop processes the further chunks of all answers one by one, so that it has
time for other work between two of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.audio.threads import spare_cores

if TYPE_CHECKING:
    from app.types import Samples

# The limits for three steps of an answer: encode in a thread, take the next chunk from the engine, and encode on the
# event loop. If the listener has less unplayed audio than the limit of a step, the answer begins this step at once.
# Encoding on the event loop is quick, so its limit is low.
THREAD_AHEAD_S = 0.5
CHUNK_AHEAD_S = 0.25
ON_LOOP_AHEAD_S = 0.05
# The longest wait before one chunk is encoded. Even with this wait, an answer with chunks of 1 s is sent at 4 times
# real time.
MAX_YIELD_S = 0.25
# The longest time that answers wait for the first audio of another answer. After this time, the engine is the cause of
# the delay, not the encoding.
MAX_PENDING_S = 1.0
# If a listener has no audio left, this counts as an underrun only if the answer has waited longer than UNDERRUN_WAIT_S
# for the engine. The cause of a shorter wait is the event loop.
UNDERRUN_WAIT_S = 0.001


class PendingFirstAudio:
    """An answer that has no audio yet. Other answers wait for its first audio, at most MAX_PENDING_S."""

    def __init__(self, on_done: Callable[[PendingFirstAudio], None]) -> None:
        self._on_done = on_done
        self._timer = asyncio.get_running_loop().call_later(MAX_PENDING_S, self.done)

    def done(self) -> None:
        """Record that the first audio was sent, or that the answer has ended. Further calls do nothing."""
        self._timer.cancel()
        self._on_done(self)


class EncodeOrder:
    """Lets an answer without audio encode before answers whose listeners have enough audio."""

    def __init__(self) -> None:
        self._pending: dict[PendingFirstAudio, int] = {}  # answer -> its number, in the order of the answers
        # Steps that wait for first audio, in order: (number of the last answer that the step waits for, future).
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        # one core stays free for the event loop, which encodes the first audio of answers
        self._threads = asyncio.Semaphore(spare_cores())
        # chunks that wait for an iteration: (time at which the listener has no audio left, number, future)
        self._chunks: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._chunk_taken = False

    def begin(self) -> PendingFirstAudio:
        """Register an answer that waits for its first audio. The caller must call `done`."""
        pending = PendingFirstAudio(self._done)
        self._pending[pending] = next(self._numbers)
        return pending

    def _done(self, pending: PendingFirstAudio) -> None:
        """Remove an answer that no longer waits for its first audio."""
        self._pending.pop(pending, None)
        oldest = next(iter(self._pending.values()), math.inf)
        while self._waiting and self._waiting[0][0] < oldest:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    @contextlib.asynccontextmanager
    async def thread(self, ahead_s: float) -> AsyncGenerator[None]:
        """Wait until audio may be encoded in a thread. ahead_s: the listener's unplayed audio in seconds."""
        await self._yield_to_first_audio(min(ahead_s - THREAD_AHEAD_S, MAX_YIELD_S))
        async with self._threads:
            yield

    async def one_by_one(self, ahead_s: float) -> None:
        """Wait until a chunk of an answer that has audio may be processed: one in each iteration of the event loop.

        The listener with the least audio is first. Between two chunks, the event loop can begin other answers, and
        cancel answers. ahead_s: as for `thread`.
        """
        loop = asyncio.get_running_loop()
        if self._chunk_taken:
            turn: asyncio.Future[None] = loop.create_future()
            heapq.heappush(self._chunks, (loop.time() + ahead_s, next(self._numbers), turn))
            await turn
        else:
            self._chunk_taken = True
            loop.call_soon(self._next_iteration)

    def _next_iteration(self) -> None:
        """Let the chunk of the listener with the least audio be processed."""
        while self._chunks:
            turn = heapq.heappop(self._chunks)[2]
            if not turn.done():
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next_iteration)
                return
        self._chunk_taken = False

    async def next_chunk(self, ahead_s: float) -> None:
        """Wait until an answer may take its next chunk from the engine. ahead_s: as for `thread`.

        The work for a chunk, such as trimming and loudness, takes several milliseconds on the event loop.
        """
        await self._yield_to_first_audio(min(ahead_s - CHUNK_AHEAD_S, MAX_YIELD_S))

    async def on_loop(self, ahead_s: float) -> None:
        """Wait until audio may be encoded on the event loop. ahead_s: the listener's unplayed audio in seconds."""
        await self._yield_to_first_audio(min(ahead_s - ON_LOOP_AHEAD_S, MAX_YIELD_S))

    async def _yield_to_first_audio(self, timeout_s: float) -> None:
        """Wait until each answer that has begun by now has sent its first audio, at most `timeout_s` seconds.

        Answers that begin later do not extend the wait. Otherwise, while many short requests arrive, each answer would
        wait for `timeout_s`.
        """
        if timeout_s > 0 and self._pending:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((next(reversed(self._pending.values())), waiter))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await waiter


@dataclass(slots=True)
class ListenerClock:
    """Simulates a listener who plays an answer as soon as its first audio arrives."""

    plays: bool = True  # False = no listener waits, so all other answers encode first
    waited_s: float = 0.0  # seconds that the answer waited for the engine
    underruns: int = 0  # how many times the listener had no audio left to play
    _began_s: float | None = None
    _audio_s: float = field(default=0.0)

    async def timed(self, audio: AsyncGenerator[Samples]) -> Samples | None:
        """Return the next samples of `audio`, and measure how long the answer waits for them; None at the end."""
        before_s = time.monotonic()
        samples = await anext(audio, None)
        now_s = time.monotonic()
        self.waited_s += now_s - before_s
        if samples is not None:
            dry = self._began_s is not None and now_s > self._began_s + self._audio_s
            if dry and now_s - before_s > UNDERRUN_WAIT_S:
                self.underruns += 1
                self._began_s = now_s - self._audio_s  # playback resumes now
        return samples

    @property
    def ahead_s(self) -> float:
        """Seconds of audio that the listener has received and not played yet."""
        if not self.plays:
            return math.inf
        return 0.0 if self._began_s is None else self._began_s + self._audio_s - time.monotonic()

    def encoded(self, audio_s: float) -> None:
        """Record that `audio_s` seconds of the answer are encoded so far.

        The listener starts to play when `audio_s` is above 0 for the first time.
        """
        if self._began_s is None and audio_s > 0:
            self._began_s = time.monotonic()
        self._audio_s = audio_s
