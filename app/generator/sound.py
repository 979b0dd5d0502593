"""The audio of an answer that is being generated, for any number of listeners who read it at different speeds.

`Recording` keeps the last samples in memory. Earlier samples are read from the file of the cache entry. If there is no
such file (because the disk is full, or the answer is very long), samples stay in memory until the slowest listener has
read them. The generation waits while more than MAX_BEHIND_BYTES of samples are in memory.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import deque
from typing import TYPE_CHECKING

from app.errors import NotStored, SpeechError
from app.generator.cache import SAMPLE_BYTES

if TYPE_CHECKING:
    from app.generator.cache import Entry

WINDOW_BYTES = 128 << 10  # the newest samples (about 3 s) that stay in memory, although the file also contains them
MAX_BEHIND_BYTES = 4 << 20  # limit of samples (about 90 s) that are only in memory
HELD_IN_MEMORY_BYTES = 4 << 20  # if an answer that is held back is longer, it is kept in a temporary file


class Listener:
    """The position of one listener in a recording."""

    def __init__(self) -> None:
        self.position = 0  # in bytes


class Recording:
    """The samples (16 bit) of one generation. Used from one event loop; only `read_back` is called in a thread."""

    def __init__(self, entry: Entry, rate_hz: int, *, hold: bool) -> None:
        """entry: the cache entry, which gets all samples. hold: True = no listener reads before the end.

        With `hold`, all samples are also written to a temporary file, because the entry may store nothing.
        """
        self.rate_hz = rate_hz
        self._entry = entry
        self._held = (
            tempfile.SpooledTemporaryFile(HELD_IN_MEMORY_BYTES) if hold else None  # noqa: SIM115 - `close` closes it
        )
        # One read of the temporary file at a time, because all threads share the position in the file.
        self._reading = threading.Lock()
        self._window: deque[bytes] = deque()  # the last samples
        self._window_start = 0  # in bytes
        self._end = 0  # in bytes
        self._listeners: set[Listener] = set()
        self._waiters: list[asyncio.Future[None]] = []  # get a result at the next change
        self.ended = False

    @property
    def samples(self) -> int:
        """The number of samples so far."""
        return self._end // SAMPLE_BYTES

    @property
    def has_start(self) -> bool:
        """Whether a new listener can read from the first sample on."""
        return self._window_start <= self._entry.size

    def join(self) -> Listener:
        """Add a listener at the first sample."""
        listener = Listener()
        self._listeners.add(listener)
        self._notify()
        return listener

    def leave(self, listener: Listener) -> None:
        """Remove a listener."""
        self._listeners.discard(listener)
        self._trim()
        self._notify()

    def append(self, data: bytes) -> None:
        """Add samples. Raises NotStored if the temporary file of an answer that is held back can't be written."""
        if not data:
            return
        self._entry.write(data)
        self._end += len(data)
        if self._held is None:
            self._window.append(data)
            self._trim()
        else:
            self._window_start = self._end
            try:
                self._held.write(data)
            except OSError as error:
                raise NotStored(
                    "The answer can't be held back until it is checked, because its temporary file can't be "
                    f"written ({error.strerror or error}). Free some space in the temporary folder, or turn the "
                    "check off (`verify`, `best_of`, TTS_VERIFY)."
                ) from error
        self._notify()

    def end(self) -> None:
        """Mark the end of the samples."""
        self.ended = True
        self._notify()

    async def wanted(self) -> None:
        """Wait until the fastest listener has read all samples so far. If more than MAX_BEHIND_BYTES of samples are in
        memory, wait also for the slower listeners.
        """
        if self._held is not None:
            return
        while self._end and not (
            any(listener.position >= self._end for listener in self._listeners)
            and self._end - self._window_start <= MAX_BEHIND_BYTES
        ):
            await self._change()

    async def following(self, listener: Listener) -> None:
        """Wait until there are samples that the listener has not read, or until no more samples follow."""
        while not self.ended and (self._held is not None or listener.position >= self._end):
            await self._change()

    def recent(self, listener: Listener) -> bytes | None:
        """Return all samples from the listener's position on, and move the position to their end.

        Returns None if the samples at this position are no longer in memory. Then call `read_back`.
        """
        if listener.position < self._window_start:
            return None
        skip = listener.position - self._window_start
        parts = []
        for part in self._window:
            if skip < len(part):
                parts.append(part[skip:] if skip > 0 else part)
            skip -= len(part)
        listener.position = self._end
        self._trim()
        self._notify()
        return b"".join(parts)

    def read_back(self, position: int, count: int) -> bytes:
        """Read at most `count` bytes of the samples from a file, from `position` on. Raises SpeechError."""
        try:
            if self._held is not None:
                with self._reading:
                    self._held.seek(position)
                    return self._held.read(count)
            return self._entry.read(position, min(count, self._window_start - position))
        except OSError as error:
            raise SpeechError(f"The audio of this answer can't be read from the disk ({error.strerror}).") from error

    def advance(self, listener: Listener, count: int) -> None:
        """Record that the listener has read `count` more bytes."""
        listener.position += count
        self._trim()
        self._notify()

    def close(self) -> None:
        """Free the memory and close the files."""
        self._window.clear()
        self._entry.close()
        if self._held is not None:
            self._held.close()

    def _trim(self) -> None:
        """Remove old samples from memory: samples that a file also contains, or that all listeners have read."""
        slowest = min((listener.position for listener in self._listeners), default=0)
        while self._window and self._window_start < self._end:
            after = self._window_start + len(self._window[0])
            in_file = after <= self._entry.size and self._end - after >= WINDOW_BYTES
            if not (in_file or (after > self._entry.size and after <= slowest)):
                return
            self._window.popleft()
            self._window_start = after

    async def _change(self) -> None:
        """Wait for the next change."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _notify(self) -> None:
        """Wake all tasks that wait for a change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():  # its task may be cancelled
                waiter.set_result(None)
