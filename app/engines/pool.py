"""EnginePool: an Engine that sends each utterance to one of several engines of the same model, one on each device.

The pool chooses the least busy device. If no device has a free row, a request waits in the queue of the pool. When a
row on any device becomes free, the oldest request gets this row. If an utterance fails before its first audio, the pool
sends the utterance to another device.

The pool stops using a device if the thread of its engine has ended or hangs. The pool also stops using a device if
MAX_FAILURES consecutive utterances have failed on this device and then succeeded on another device: after an error in a
CUDA context, every request on this device fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from app.errors import Busy, EngineError, EngineStopped, EngineUnavailable, NothingSpoken, OutOfMemory
from app.lru import LRU
from app.types import DeviceState, Load

if TYPE_CHECKING:
    from pathlib import Path

    from app.engines.adapters import Prepared, RowAdapters
    from app.engines.protocol import Engine
    from app.engines.registry import BuildContext, EngineSpec
    from app.settings import Settings
    from app.types import AudioChunk, EngineInfo, Reference, Utterance, VoicePrompt

log = logging.getLogger(__name__)

MAX_FAILURES = 3
# for each device, the pool remembers this number of voices, about as many as a prefix cache can hold
CACHED_VOICES = 32
CACHED_ANSWERS = 256  # for each device, the pool remembers this number of answers whose state the device may keep
# The load of a device is the share of its rows in use. If the prefix cache of a device has the voices of a request, the
# pool subtracts CACHED_BONUS from the load of this device.
CACHED_BONUS = 0.25
# largest queue of each device's engine: so large that the engine never refuses a request of the pool
UNBOUNDED = 1 << 20
HEALTH_CHECK_S = 1.0  # seconds between two checks that the devices still work


@dataclass(eq=False, slots=True)
class _Member:
    """One device of the pool: its engine, counts of utterances and failures, and the voices in its prefix cache."""

    engine: Engine
    speaking: int = 0  # number of utterances that the device generates now, not counting background jobs
    failures: int = 0  # number of consecutive utterances that failed here and succeeded on another device
    disabled: str = ""  # why the pool has stopped using the device; empty = the pool uses the device
    voices: LRU[str, bool] = field(default_factory=lambda: LRU(CACHED_VOICES))
    # Answers whose last utterance ran on this device. The device may have kept the state for their next utterance.
    answers: LRU[str, bool] = field(default_factory=lambda: LRU(CACHED_ANSWERS))

    @property
    def device(self) -> str:
        return self.engine.info.device

    @property
    def usable(self) -> bool:
        return not self.disabled and self.engine.healthy

    @property
    def rows(self) -> int:
        return self.engine.load.max_rows

    def weight(self, voices: Sequence[str]) -> float:
        """Return the share of used rows of the device, minus CACHED_BONUS if its prefix cache has all `voices`."""
        cached = bool(voices) and all(voice in self.voices for voice in voices)
        return self.speaking / self.rows - (CACHED_BONUS if cached else 0.0)

    def remember(self, voices: Sequence[str]) -> None:
        """Record that the device's prefix cache contains these voices."""
        for voice in voices:
            self.voices.put(voice, True)


class EnginePool:
    """An Engine that distributes utterances among several engines of one model.

    All calls must come from one event loop.
    """

    def __init__(self, engines: Sequence[Engine], *, max_queue: int) -> None:
        """Create a pool of these engines. max_queue: the largest number of new answers that wait for a row.

        Raises EngineUnavailable if the engines have different weights.
        """
        infos = [engine.info for engine in engines]
        if len({info.fingerprint for info in infos}) > 1:
            raise EngineUnavailable(
                "The devices did not load the same model.",
                remedy="The weights changed during the start. Restart the server.",
            )
        self._members = [_Member(engine) for engine in engines]
        self._max_queue = max_queue
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._stack = AsyncExitStack()
        self._info = replace(
            infos[0],
            device=",".join(info.device for info in infos),
            text=replace(infos[0].text, max_chars=min(info.text.max_chars for info in infos)),
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def adapters(self) -> RowAdapters | None:
        """The LoRA adapters of all devices; None = the engines can't use adapters."""
        found = [adapters for member in self._members if (adapters := getattr(member.engine, "adapters", None))]
        return _AdaptersOfAll(found) if len(found) == len(self._members) else None

    @property
    def load(self) -> Load:
        loads = [member.engine.load for member in self._members if member.usable]
        queued = len(self._waiting) + sum(load.queued for load in loads)
        return Load(
            sum(load.active_rows for load in loads), sum(load.max_rows for load in loads), queued, self._max_queue
        )

    @property
    def healthy(self) -> bool:
        return any(member.usable for member in self._members)

    @property
    def restarts(self) -> int:
        """How often the engines of all devices together have failed and restarted."""
        return sum(getattr(member.engine, "restarts", 0) for member in self._members)

    @property
    def devices(self) -> tuple[DeviceState, ...]:
        """The state of each device. Reading this property checks whether each device works."""
        for member in self._members:
            self._check_health(member)
        return tuple(DeviceState(member.device, member.disabled, member.engine.load) for member in self._members)

    # ---- speaking

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        if utterance.scheduling.background:
            async with contextlib.aclosing(self._speak_in_background(utterance)) as background:
                async for part in background:
                    yield part
            return
        tried: list[_Member] = []
        voices = tuple(dict.fromkeys(line.prompt.voice_digest for line in utterance.lines if line.prompt is not None))
        failure: EngineError | None = None
        while True:
            member = await self._choose(utterance, voices, tried, failure)
            member.speaking += 1
            started = False
            try:
                async with contextlib.aclosing(member.engine.speak(utterance)) as stream:
                    chunk = await self._first(member, stream)
                    while chunk is not None:
                        started = True
                        yield chunk
                        chunk = await anext(stream, None)
            except EngineError as error:
                self._check_health(member)
                # If the error is OutOfMemory or NothingSpoken, the utterance would fail on another device, too.
                if started or isinstance(error, OutOfMemory | NothingSpoken):
                    raise
                log.warning(
                    "an utterance failed on %s before its first audio, so another device tries it", member.device
                )
                tried.append(member)
                failure = error
            else:
                member.remember(voices)
                if utterance.part is not None:
                    # another device may keep an older state of this answer, which is useless now
                    for other in self._members:
                        other.answers.pop(utterance.part.answer)
                    member.answers.put(utterance.part.answer, True)
                self._count_failures(member, tried)
                return
            finally:
                member.speaking -= 1
                self._wake_waiting()

    async def _speak_in_background(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        """Yield the audio of a background utterance from the least busy device.

        The utterance does not wait in the pool's queue. The pool does not count the utterance's row as in use, because
        the device's scheduler can preempt the utterance. Raises Busy if the utterance is preempted, or if its device
        stops while another device works.
        """
        usable = [member for member in self._members if member.usable]
        if not usable:
            raise EngineStopped("The engine has stopped on every device. Restart the server.")
        member = min(usable, key=lambda member: member.weight(()))
        try:
            async with contextlib.aclosing(member.engine.speak(utterance)) as stream:
                chunk = await self._first(member, stream)
                while chunk is not None:
                    yield chunk
                    chunk = await anext(stream, None)
        except EngineError as error:
            self._check_health(member)
            if not member.disabled or not self.healthy:
                raise
            raise Busy(f"{member.device} has stopped. Try again: another device works.", retry_after_s=1) from error

    async def _choose(
        self, utterance: Utterance, voices: Sequence[str], tried: Sequence[_Member], failure: EngineError | None
    ) -> _Member:
        """Return a device for the utterance. If no device has a free row, wait for one.

        tried: devices on which the utterance has failed. failure: the last error of the utterance; None = it has not
        failed. If no other device works, raises `failure`. Raises Busy if the queue is full.
        """
        waited = False
        while True:
            usable = [member for member in self._members if member.usable and member not in tried]
            if not usable:
                raise failure or EngineStopped("The engine has stopped on every device. Restart the server.")
            free = [member for member in usable if member.speaking < member.rows]
            # Later utterances of an answer do not wait, and utterances that failed on another device do not wait. The
            # first utterance of an answer takes a free row only if no older utterance waits.
            if utterance.scheduling.continuation or failure is not None or (free and (waited or not self._waiting)):
                answer = "" if utterance.part is None else utterance.part.answer
                kept = [member for member in free if answer in member.answers]
                return min(kept or free or usable, key=lambda member: member.weight(voices))
            if not waited and len(self._waiting) >= self._max_queue + self._free_rows:
                rows = sum(member.rows for member in usable)
                raise Busy(
                    f"The server is speaking for {rows} requests on {len(usable)} devices and {len(self._waiting)} are "
                    "waiting. Try again in a moment.",
                    retry_after_s=1,
                )
            ticket = asyncio.get_running_loop().create_future()
            (self._waiting.appendleft if waited else self._waiting.append)(ticket)
            waited = True
            if free:
                self._wake_waiting()
            try:
                while not ticket.done() and self.healthy:
                    await asyncio.wait([ticket], timeout=HEALTH_CHECK_S)
            except BaseException:
                if ticket.done():
                    # this request was cancelled after it got a row, so a waiting request can use the row
                    self._wake_waiting()
                raise
            finally:
                with contextlib.suppress(ValueError):  # `_wake_waiting` may have removed the ticket already
                    self._waiting.remove(ticket)

    @property
    def _free_rows(self) -> int:
        """The number of free rows on all devices that the pool uses."""
        return sum(max(0, member.rows - member.speaking) for member in self._members if member.usable)

    def _wake_waiting(self) -> None:
        """Wake one waiting utterance for each free row."""
        for _ in range(min(self._free_rows, len(self._waiting))):
            self._waiting.popleft().set_result(None)

    async def _first(self, member: _Member, stream: AsyncGenerator[AudioChunk]) -> AudioChunk | None:
        """Wait for the first chunk of an utterance's audio, and return it; None = the utterance has no audio.

        Raises EngineStopped if the engine ends or hangs.
        """
        pulling = asyncio.ensure_future(anext(stream, None))
        try:
            while not (await asyncio.wait([pulling], timeout=HEALTH_CHECK_S))[0]:
                if not member.engine.healthy:
                    raise EngineStopped(f"The engine on {member.device} has stopped.")
            return pulling.result()
        finally:
            if not pulling.done():
                pulling.cancel()
                await asyncio.wait([pulling])

    def _count_failures(self, member: _Member, tried: Sequence[_Member]) -> None:
        """Count a failure of each device in `tried`, because the same utterance has succeeded on `member`.

        After MAX_FAILURES consecutive failures, the pool stops using a device. Resets the count of `member` to 0.
        """
        member.failures = 0
        for other in tried:
            other.failures += 1
            if other.failures >= MAX_FAILURES and not other.disabled:
                self._disable(
                    other, f"The device failed at {MAX_FAILURES} consecutive texts that another device could speak."
                )

    def _check_health(self, member: _Member) -> None:
        """Stop using the device if its engine has stopped."""
        if not member.disabled and not member.engine.healthy:
            self._disable(member, "The engine of this device has stopped.")

    def _disable(self, member: _Member, reason: str) -> None:
        """Stop using a device, and log the reason."""
        member.disabled = reason
        left = sum(other.usable for other in self._members)
        log.critical(
            "the server stops using the device %s (%s); %d of %d devices continue",
            member.device,
            reason,
            left,
            len(self._members),
        )

    # ---- recordings, start and stop (methods of the Engine protocol)

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        usable = sorted((m for m in self._members if m.usable), key=lambda member: member.speaking / member.rows)
        failure: Exception = EngineStopped("The engine has stopped on every device. Restart the server.")
        for member in usable:
            try:
                return await member.engine.encode_reference(reference)
            except (EngineError, RuntimeError) as error:  # torch raises RuntimeError for device errors
                log.warning("%s failed to encode a recording, so the next device tries", member.device, exc_info=error)
                failure = error
        raise failure

    async def __aenter__(self) -> Self:
        for member in self._members:
            await self._stack.enter_async_context(member.engine)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


def build(spec: EngineSpec, settings: Settings, context: BuildContext) -> Engine:
    """Build the engine for these settings. If TTS_DEVICES names several devices, build a pool of engines.

    This function blocks, so call it in a thread. Raises EngineUnavailable. If there are several devices, the error
    names the device that failed.
    """
    builder = spec.builder()
    split = spec.splits and settings.csm_device_map is not None
    if not spec.on_devices or not settings.devices or split:
        return builder(settings, context)
    # This import is inside the function, because it imports torch, and some engines run without torch.
    from app.runtime.device import choose_devices, share_threads  # noqa: PLC0415

    devices = choose_devices(settings.devices)
    if len(devices) == 1:
        return builder(settings.model_copy(update={"devices": (), "device": str(devices[0])}), context)
    # Requests wait in the queue of the pool. So the engine of a device must accept more utterances than it has rows.
    alone = settings.model_copy(update={"devices": (), "max_queue": UNBOUNDED})
    engines = []
    for device in devices:  # one device after the other, because each load needs extra memory
        try:
            engines.append(builder(alone.model_copy(update={"device": str(device)}), context))
        except EngineUnavailable as error:
            raise type(error)(f"On {device}: {error.reason}", remedy=error.remedy) from error
    on_cpu = sum(device.type == "cpu" for device in devices)
    if on_cpu > 1:
        share_threads(on_cpu)
    log.info("engine %s runs on %d devices: %s", spec.name, len(devices), ", ".join(map(str, devices)))
    return EnginePool(engines, max_queue=settings.max_queue)


@dataclass(frozen=True, slots=True)
class _PreparedForAll:
    """An adapter that is prepared for each device of a pool."""

    each: list[Prepared]

    @property
    def key(self) -> str:
        return self.each[0].key

    @property
    def rank(self) -> int:
        return self.each[0].rank

    @property
    def base(self) -> str:
        return self.each[0].base


class _AdaptersOfAll:
    """The adapters of all devices of a pool. An adapter is on all devices or on none."""

    def __init__(self, devices: Sequence[RowAdapters]) -> None:
        self._devices = devices

    def prepare(self, folder: Path) -> _PreparedForAll:
        return _PreparedForAll([device.prepare(folder) for device in self._devices])

    def add(self, adapter: _PreparedForAll) -> int:
        size = 0
        for number, (device, prepared) in enumerate(zip(self._devices, adapter.each, strict=True)):
            try:
                size += device.add(prepared)
            except BaseException:
                for earlier in self._devices[:number]:
                    earlier.remove(adapter.key)
                raise
        return size

    def remove(self, key: str) -> None:
        for device in self._devices:
            device.remove(key)
