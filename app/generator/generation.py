"""Single flight: equal requests at the same time share one generation. Each answer encodes the audio to its own format.

A `Generation` is one task that speaks, and any number of listeners. It continues when the request that started it
disconnects, as long as one listener is left, and it is cancelled when the last listener leaves. The generation waits
for the fastest listener only (`sound.py`).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.audio.threads import in_thread

if TYPE_CHECKING:
    from app.generator.checking import Result
    from app.generator.job import SpeechJob
    from app.generator.sound import Listener, Recording

READ_BACK_BYTES = 64 << 10  # bytes of samples that a listener reads from a file in one step


@dataclass(frozen=True, slots=True)
class Usage:
    """The number of text tokens (an estimate) and of audio tokens (codec frames) of an answer."""

    input_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Generation:
    """The speech of one job, for one or more answers. Use it from one event loop."""

    def __init__(self, job: SpeechJob, recording: Recording) -> None:
        self.job = job
        self.recording = recording
        self.usage: Usage | None = None  # set when the audio has ended
        self.verified: Result = "unchecked"  # set at the end
        self.stored_checksum: int | None = None  # checksum of the samples, if they are in the cache
        self._task: asyncio.Task[None] | None = None
        self._listeners = 0
        self._on_left: Callable[[], None] = _do_nothing

    @property
    def joinable(self) -> bool:
        """Whether one more answer may listen: the first sample can still be read, and no rule of the output guard was
        broken.
        """
        return self.recording.has_start and not self.job.broken_rules

    def start(self, work: Callable[[], Awaitable[None]], on_end: Callable[[], None]) -> None:
        """Run `work`, which adds samples to the recording.

        on_end: called when the generation has ended or is about to be cancelled.
        """

        async def run() -> None:
            try:
                await work()
            finally:
                on_end()
                self.recording.end()

        self._on_left = on_end
        self._task = asyncio.create_task(run(), name="generation")

    def listen(self) -> _Listening:
        """Return an async context manager that adds a listener. Its value is a stream of the 16-bit samples of the
        speech, from the first sample on.

        Reading the stream can raise the errors of the generation.
        """
        return _Listening(self)

    def join(self) -> tuple[Listener, AsyncGenerator[bytes]]:
        """Add a listener. Returns the listener, for `leave`, and its stream, see `listen`."""
        listener = self.recording.join()
        self._listeners += 1
        return listener, self._samples(listener)

    async def leave(self, listener: Listener) -> None:
        """Remove a listener. If it was the last one, cancel the generation."""
        self._listeners -= 1
        if self._listeners:
            self.recording.leave(listener)
        else:
            await self._end()

    async def finished(self) -> None:
        """Wait until the checks have ended and the answer is stored. Raises the error of the generation.

        Each caller gets its own copy of the error, because handlers add fields and tracebacks to it.
        """
        if self._task is None:
            return
        if not self._task.done():
            await asyncio.wait({self._task})
        if self._task.cancelled():
            raise asyncio.CancelledError
        if (error := self._task.exception()) is not None:
            raise _copy_of(error)

    async def _samples(self, listener: Listener) -> AsyncGenerator[bytes]:
        recording = self.recording
        if self.job.held:
            await self.finished()
        while True:
            await recording.following(listener)
            data = recording.recent(listener)
            if data is None:
                data = await in_thread(recording.read_back, listener.position, READ_BACK_BYTES)
                recording.advance(listener, len(data))
            if data:
                yield data
            elif recording.ended:
                break
        if self.usage is None:  # the audio is incomplete: an error occurred or all listeners left
            await self.finished()

    async def _end(self) -> None:
        """Cancel the generation, which has no listener any more, and wait for its end."""
        self._on_left()
        try:
            if self._task is not None and not self._task.done():
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
        finally:
            self.recording.close()
            # These objects refer to the generation. Without these references, the memory of the generation is freed
            # immediately.
            self._on_left, self._task = _do_nothing, None


class _Listening:
    """A listener of a generation for the time of an `async with` block. See `Generation.listen`."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def __aenter__(self) -> AsyncGenerator[bytes]:
        self._listener, self._samples = self._generation.join()
        return self._samples

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._samples.aclose()
        finally:
            await self._generation.leave(self._listener)


class Generations:
    """The generations that run now, by key. Use it from one event loop."""

    def __init__(self) -> None:
        self._running: dict[str, Generation] = {}

    def find(self, key: str | None) -> Generation | None:
        """Return the running generation with this key that a further answer may join; None if there is none. key: None
        = the answer never shares a generation.
        """
        generation = None if key is None else self._running.get(key)
        return generation if generation is not None and generation.joinable else None

    def start(self, key: str | None, generation: Generation, work: Callable[[], Awaitable[None]]) -> None:
        """Start a generation. `find` returns it to later answers with the same key. key: None = it is never shared."""

        def ended() -> None:
            if key is not None and self._running.get(key) is generation:
                del self._running[key]

        if key is not None:
            self._running[key] = generation
        generation.start(work, ended)


def _do_nothing() -> None:
    pass


def _copy_of(error: BaseException) -> BaseException:
    """Return a copy of an error that another task has raised. The cause of the copy is the original error."""
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001 - the constructor of a plug-in's error may need other arguments
        return error
    copied.__cause__ = error
    return copied
