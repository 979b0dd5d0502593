"""Audio on its way from the engine's thread to the event loop: bounded in seconds, never blocking the engine.

Backpressure: a full queue does not block `put`. The scheduler leaves its row out of the next plan, so a slow reader
pauses only its own row.
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
    from app.types import Codes, Samples

MAX_GET_S = 1.0  # one get() joins what has gathered up to here: fewer, larger encodes when the engine is far ahead
# A reader whose listener has more than KEEP_S left waits, for at most half of what is beyond that, until MOST_S have
# gathered: a part costs the event loop about as much by itself as 0.2 s of sound.
KEEP_S, MOST_S = 0.25, 0.4


class AudioQueue:
    """One utterance's sound in flight. `put`, `finish`: engine thread. `get`: one task on the loop that made it."""

    def __init__(
        self,
        rate_hz: int,
        capacity_s: float,
        on_room: Callable[[], None],
        left_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """on_room: called when a full outbox is so no more. left_s: how long the listener can do without more sound."""
        self._left_s = left_s
        self._rate_hz = rate_hz
        self._capacity_samples = int(capacity_s * rate_hz)
        self._on_room = on_room
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._lock = threading.Lock()
        self._parts: deque[tuple[Samples, Codes | None]] = deque()
        self._soundless: list[Codes] = []  # codes that are not sound yet
        self._waiting_samples = 0
        self._taken_samples = 0
        self._wanted_samples = 1  # so many are worth waking the reader for
        self._finished = False
        self._error: Exception | None = None

    @property
    def full(self) -> bool:
        return self._waiting_samples >= self._capacity_samples

    @property
    def sounded(self) -> bool:
        """Whether there has been any sound yet."""
        return self._waiting_samples > 0 or self._taken_samples > 0

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that the reader has not taken yet."""
        return self._waiting_samples / self._rate_hz

    def put(self, samples: Samples, codes: Codes | None = None) -> None:
        """Add samples (N,) and the codes (K, T) they came from. Never blocks, whatever is waiting.

        Codes without samples, of a codec that looks ahead or waits for more, go along with the next samples.
        """
        with self._lock:
            if not len(samples):
                if codes is not None:
                    self._soundless.append(codes)
                return
            if self._soundless:
                codes = np.concatenate(self._soundless if codes is None else [*self._soundless, codes], axis=1)
                self._soundless.clear()
            self._parts.append((samples, codes))
            self._waiting_samples += len(samples)
            if self._waiting_samples < self._wanted_samples:
                return
        self._notify()

    def finish(self, error: Exception | None = None) -> None:
        """Nothing more will come; an error is raised by `get` after what is already here. The first call counts."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
            self._error = error
            if self._soundless and error is None:
                self._parts.append((np.zeros(0, np.float32), np.concatenate(self._soundless, axis=1)))
                self._soundless.clear()
        self._notify()

    async def get(self) -> AudioChunk | None:
        """The next stretch of sound, None at the end. Raises what `finish` was given.

        The first is a single part, so that the first bytes wait for no more than they need; later ones are joined.
        """
        spare_s = (self._left_s() - KEEP_S) / 2 if self._taken_samples else 0.0
        self._wanted_samples = max(1, min(int(min(spare_s, MOST_S) * self._rate_hz), self._capacity_samples // 2))
        while True:
            self._ready.clear()
            with self._lock:
                was_full = self.full
                enough = self._finished or self._waiting_samples >= self._wanted_samples
                chunk = self._take() if self._parts and enough else None
                finished = self._finished
                has_room = was_full and not self.full
            if has_room:  # without our lock: the scheduler calls `finish` while it holds its own lock
                self._on_room()
            if chunk is not None:
                return chunk
            if finished:
                if self._error is not None:
                    raise self._error
                return None
            if self._wanted_samples > 1:
                try:
                    async with asyncio.timeout(spare_s):
                        await self._ready.wait()
                except TimeoutError:
                    self._wanted_samples = 1
            else:
                await self._ready.wait()

    def _take(self) -> AudioChunk:
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
        return AudioChunk(samples, self._rate_hz, start, codes)

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the event loop has closed, and its readers with it
            if not self._loop.is_closed():
                raise
