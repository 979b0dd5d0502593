"""The order in which answers encode audio, and how far an answer is ahead of its listener.

Answers without audio encode first; answers whose listeners have enough audio wait for them briefly.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.audio.threads import spare_cores

if TYPE_CHECKING:
    from app.types import Samples

THREAD_AHEAD_S = 0.5  # a listener with more audio than this waits before its audio is encoded in a thread
ON_LOOP_AHEAD_S = 0.05  # the same before audio is encoded on the event loop, which is quick
MAX_YIELD_S = 0.25  # the longest wait before up to 1 s of audio is encoded: answers still run 4 times real time
# If the first audio takes longer, the answer waits for a row or for the model: other answers stop waiting for it.
MAX_PENDING_S = 0.25
UNDERRUN_WAIT_S = 0.001  # a shorter wait comes from the event loop, not from the engine


class PendingFirstAudio:
    """An answer without audio yet. Other answers wait for it, for MAX_PENDING_S at most."""

    def __init__(self, on_done: Callable[[PendingFirstAudio], None]) -> None:
        self._on_done = on_done
        self._timer = asyncio.get_running_loop().call_later(MAX_PENDING_S, self.done)

    def done(self) -> None:
        """The first audio was sent, or the answer has ended. May be called more than once."""
        self._timer.cancel()
        self._on_done(self)


class EncodeOrder:
    """Lets answers without audio encode before answers that are ahead of their listeners."""

    def __init__(self) -> None:
        self._pending: set[PendingFirstAudio] = set()
        self._none_pending = asyncio.Event()
        self._none_pending.set()
        self._threads = asyncio.Semaphore(spare_cores())  # the event loop, where first audio is encoded, keeps a core

    def begin(self) -> PendingFirstAudio:
        """Register an answer that waits for its first audio. The caller calls `done`."""
        self._none_pending.clear()
        pending = PendingFirstAudio(self._done)
        self._pending.add(pending)
        return pending

    def _done(self, pending: PendingFirstAudio) -> None:
        self._pending.discard(pending)
        if not self._pending:
            self._none_pending.set()

    @contextlib.asynccontextmanager
    async def thread(self, ahead_s: float) -> AsyncGenerator[None]:
        """Permission to encode in a thread. ahead_s: how much audio the listener still has."""
        await self._yield_to_first_audio(min(ahead_s - THREAD_AHEAD_S, MAX_YIELD_S))
        async with self._threads:
            yield

    async def on_loop(self, ahead_s: float) -> None:
        """Wait until audio may be encoded on the event loop. ahead_s: as for `thread`."""
        await self._yield_to_first_audio(min(ahead_s - ON_LOOP_AHEAD_S, MAX_YIELD_S))

    async def _yield_to_first_audio(self, timeout_s: float) -> None:
        if timeout_s > 0 and not self._none_pending.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._none_pending.wait()


@dataclass(slots=True)
class ListenerClock:
    """Follows a listener who plays an answer at normal speed from its first audio on."""

    waited_s: float = 0.0  # for the engine
    underruns: int = 0  # how often the listener has run out of audio
    _began_s: float | None = None
    _audio_s: float = field(default=0.0)

    async def timed(self, audio: AsyncGenerator[Samples]) -> AsyncGenerator[Samples]:
        """Pass the samples on and measure the waits for them."""
        while True:
            before_s = time.monotonic()
            samples = await anext(audio, None)
            now_s = time.monotonic()
            self.waited_s += now_s - before_s
            if samples is None:
                return
            dry = self._began_s is not None and now_s > self._began_s + self._audio_s
            if dry and now_s - before_s > UNDERRUN_WAIT_S:
                self.underruns += 1
                self._began_s = now_s - self._audio_s  # the listener starts again from here
            yield samples

    @property
    def ahead_s(self) -> float:
        """How much audio the listener has left."""
        return 0.0 if self._began_s is None else self._began_s + self._audio_s - time.monotonic()

    def encoded(self, audio_s: float) -> None:
        """Record that audio_s seconds of the answer are encoded.

        The listener starts with the first audio that leaves the tempo filter.
        """
        if self._began_s is None and audio_s > 0:
            self._began_s = time.monotonic()
        self._audio_s = audio_s
