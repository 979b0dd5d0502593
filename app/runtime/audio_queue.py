"""The queue that carries one utterance's audio from the engine's thread to the event loop.

Backpressure: `put` never blocks, even if the queue is full. Instead, the scheduler pauses a row while the row's
queue is full. So a reader that reads slowly pauses only the row of its own utterance.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from app.types import AudioChunk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.types import Codes, Samples, WordMark

MAX_GET_S = 1.0  # the longest chunk that get() returns, in seconds of audio
# Each chunk costs the event loop a fixed time, about the time to encode 0.2 s of audio. So a few large chunks cost less
# time than many small chunks. If the listener has more than MIN_BUFFERED_S of audio left to play, get() waits until the
# queue has MIN_GET_S of audio. The longest wait is (audio left to play - MIN_BUFFERED_S) / 2.
MIN_BUFFERED_S, MIN_GET_S = 0.25, 0.4


class AudioQueue:
    """The audio of one utterance between the engine and its reader.

    The engine's thread calls `put` and `finish`. One task of the event loop that created the queue calls `get`.
    """

    def __init__(
        self,
        rate_hz: int,
        capacity_s: float,
        on_space: Callable[[], None],
        time_left_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Create an empty queue.

        rate_hz: the sample rate. capacity_s: how many seconds of audio the queue holds when it is full. on_space:
        called when a full queue has space again. time_left_s: returns the seconds until the listener has played all
        audio that the server has sent.
        """
        self._time_left_s = time_left_s
        self._rate_hz = rate_hz
        self._capacity_samples = int(capacity_s * rate_hz)
        self._on_space = on_space
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._lock = threading.Lock()
        self._parts: deque[tuple[Samples, Codes | None]] = deque()
        self._undecoded: list[Codes] = []  # codes for which the codec has not returned samples yet
        self._rules: list[str] = []  # broken rules of the output guard that the reader has not received yet
        self._marks: list[WordMark] = []  # positions of words that the reader has not received yet
        self._waiting_samples = 0
        self._taken_samples = 0
        self._min_samples = 1  # the smallest number of queued samples at which `put` wakes the reader
        self._finished = False
        self._error: Exception | None = None
        self._notified = False  # whether a call of `_ready.set` is scheduled that `get` has not used yet

    @property
    def full(self) -> bool:
        """Whether the queue holds at least `capacity_s` of audio."""
        return self._waiting_samples >= self._capacity_samples

    @property
    def has_audio(self) -> bool:
        """Whether the engine has ever put samples into the queue. The reader may have taken these samples already."""
        return self._waiting_samples > 0 or self._taken_samples > 0

    @property
    def waiting_s(self) -> float:
        """The number of seconds of audio that the reader has not taken yet."""
        return self._waiting_samples / self._rate_hz

    def put(self, samples: Samples, codes: Codes | None = None) -> None:
        """Add samples (N,) float32 and the codes (K, T) int16 from which the codec decoded them. Never blocks.

        If the codec needs later frames to decode the codes, `samples` is empty. Then the queue keeps
        the codes until samples arrive, and adds the codes to these samples.
        """
        with self._lock:
            if not len(samples):
                if codes is not None:
                    self._undecoded.append(codes)
                return
            if self._undecoded:
                codes = np.concatenate(self._undecoded if codes is None else [*self._undecoded, codes], axis=1)
                self._undecoded.clear()
            self._parts.append((samples, codes))
            self._waiting_samples += len(samples)
            if self._waiting_samples < self._min_samples:
                return
            notified, self._notified = self._notified, True
        if not notified:
            self._notify()

    def report(self, rule: str) -> None:
        """Add the name of a broken rule of the output guard to the next chunk that `get` returns."""
        with self._lock:
            self._rules.append(rule)

    def mark(self, marks: Iterable[WordMark]) -> None:
        """Add positions of words to the next chunk that `get` returns."""
        with self._lock:
            self._marks.extend(marks)

    def finish(self, error: Exception | None = None) -> None:
        """Mark the end of the audio. Only the first call has an effect.

        error: `get` returns all queued audio and then raises this error; None = the audio is complete.
        """
        with self._lock:
            if self._finished:
                return
            self._finished = True
            self._error = error
            if error is None and (self._undecoded or (self._rules and not self._parts)):
                codes = np.concatenate(self._undecoded, axis=1) if self._undecoded else None
                self._parts.append((np.zeros(0, np.float32), codes))
                self._undecoded.clear()
            notified, self._notified = self._notified, True
        if not notified:
            self._notify()

    async def get(self) -> AudioChunk | None:
        """Wait for the next chunk of audio, and return it.

        At the end of the audio, return None, or raise the error that was passed to `finish`.

        The first chunk contains the audio of one `put`, so that the time to first audio is short. A later chunk may
        join the audio of several `put` calls.
        """
        max_wait_s = (self._time_left_s() - MIN_BUFFERED_S) / 2 if self._taken_samples else 0.0
        self._min_samples = max(1, min(int(min(max_wait_s, MIN_GET_S) * self._rate_hz), self._capacity_samples // 2))
        while True:
            self._ready.clear()
            with self._lock:
                self._notified = False
                was_full = self.full
                enough = self._finished or self._waiting_samples >= self._min_samples
                chunk = self._take() if self._parts and enough else None
                finished = self._finished
                has_space = was_full and not self.full
            # Call on_space without this queue's lock, to avoid a deadlock: on_space takes the scheduler's lock, and the
            # scheduler calls `finish` (which takes this queue's lock) while it holds the scheduler's lock.
            if has_space:
                self._on_space()
            if chunk is not None:
                return chunk
            if finished:
                if self._error is not None:
                    raise self._error
                return None
            if self._min_samples > 1:
                try:
                    async with asyncio.timeout(max_wait_s):
                        await self._ready.wait()
                except TimeoutError:
                    self._min_samples = 1
            else:
                await self._ready.wait()

    def _take(self) -> AudioChunk:
        """Remove up to MAX_GET_S of audio from the queue, and return it as one chunk. The caller holds the lock."""
        limit = int(MAX_GET_S * self._rate_hz) if self._taken_samples else 0
        parts = [self._parts.popleft()]
        count = len(parts[0][0])
        while self._parts and count + len(self._parts[0][0]) <= limit:
            parts.append(self._parts.popleft())
            count += len(parts[-1][0])
        self._waiting_samples -= count
        start = self._taken_samples
        self._taken_samples += count
        samples = parts[0][0] if len(parts) == 1 else np.concatenate([part[0] for part in parts])
        columns = [part[1] for part in parts if part[1] is not None]
        codes = np.concatenate(columns, axis=1) if columns else None
        rules, self._rules = tuple(self._rules), []
        marks, self._marks = tuple(self._marks), []
        return AudioChunk(samples, self._rate_hz, start, codes, rules, marks)

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # if the event loop is closed, there is no reader
            if not self._loop.is_closed():
                raise
