"""BatchedEngine: an Engine that runs any Runner in one thread. Each utterance has its own audio queue."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from app.audio import pcm
from app.engines.shared.generation_config import with_defaults
from app.errors import NotSupported
from app.runtime.audio_queue import AudioQueue
from app.runtime.loop import Loop
from app.runtime.runner import MovesRows
from app.runtime.scheduler import Scheduler
from app.runtime.slots import Job
from app.types import VoicePrompt

if TYPE_CHECKING:
    from app.engines.adapters import RowAdapters
    from app.runtime.runner import Runner
    from app.types import AudioChunk, Codes, EngineInfo, Load, Reference, Utterance

# A function that encodes a recording to codes (K, T) int16, in any thread. Raises BadReference.
Encode = Callable[["Reference"], "Codes"]


class BatchedEngine:
    """An Engine that runs a Runner in its own thread, with continuous batching."""

    def __init__(
        self,
        info: EngineInfo,
        runner: Runner,
        *,
        max_queue: int,
        audio_queue_s: float,
        encode: Encode | None = None,
        initialize_thread: Callable[[], object] = lambda: None,
    ) -> None:
        """Create the engine without starting its thread.

        max_queue: the largest number of new answers that wait for a free row. audio_queue_s: how many seconds of its
        audio may wait to be read before a row pauses. encode: encodes a recording with the codec `info.prompts.codec`;
        None = the engine can't clone voices. initialize_thread: called once in the engine's thread, before the first
        call of the runner.
        """
        self._encode = encode
        self._info = info
        self._runner = runner
        sizes = runner.bucket_sizes if isinstance(runner, MovesRows) else ()
        self._scheduler = Scheduler(runner.max_rows, max_queue, bucket_sizes=sizes)
        self._loop = Loop(runner, self._scheduler, info.id, initialize_thread)
        self._audio_queue_s = audio_queue_s

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def adapters(self) -> RowAdapters | None:
        """The LoRA adapters of the runner; None = the runner can't use adapters."""
        return getattr(self._runner, "adapters", None)

    @property
    def load(self) -> Load:
        return self._scheduler.load()

    @property
    def healthy(self) -> bool:
        return self._loop.alive

    @property
    def restarts(self) -> int:
        """How often the engine's loop has failed and restarted."""
        return self._loop.restarts

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        sampling = with_defaults(utterance.sampling, self._info.defaults)
        if sampling is not utterance.sampling:
            utterance = replace(utterance, sampling=sampling)
        scheduling = utterance.scheduling
        playback = scheduling.playback

        def time_left_s() -> float:
            """Return for how many seconds the listener can continue to play the audio that was already sent.

            Returns 0 if the server does not send this utterance now.
            """
            if playback is None or playback.current_index != scheduling.index:
                return 0.0
            return playback.time_left_s(time.monotonic())

        audio_queue = AudioQueue(
            self._runner.rate_hz, self._audio_queue_s, on_space=self._scheduler.wake, time_left_s=time_left_s
        )
        job = Job(utterance, audio_queue)
        self._scheduler.submit(job)
        try:
            while (chunk := await audio_queue.get()) is not None:
                yield chunk
        finally:
            self._scheduler.cancel(job)

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        if self._encode is None:
            raise NotSupported(f"The {self._info.name} engine can't clone a voice from a recording.")
        codes = await asyncio.to_thread(self._encode, reference)
        digest = hashlib.sha256(pcm.to_bytes(reference.samples) + reference.transcript.encode("utf-8", "replace"))
        return VoicePrompt(digest.hexdigest(), self._info.prompts.codec, codes, reference.transcript)

    async def __aenter__(self) -> Self:
        self._loop.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._loop.stop)
