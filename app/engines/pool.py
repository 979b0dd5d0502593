"""One engine per device in one process, behind the same protocol: the least busy one speaks, the others go on when one
fails. Knows no model and no HTTP.

Requests wait here, not at a device, so whichever row comes free first takes the longest waiting. A device is taken out
when its thread is gone or hangs, or when STRIKES utterances in a row failed there that another device could speak (a
CUDA context, once broken, fails at everything). What had not sounded yet moves to another device.
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
    from app.engines.protocol import Engine
    from app.engines.registry import BuildContext, EngineSpec
    from app.settings import Settings
    from app.types import AudioChunk, EngineInfo, Reference, Utterance, VoicePrompt

log = logging.getLogger(__name__)

STRIKES = 3
KNOWN_VOICES = 32  # per device: about as many as an engine keeps as keys and values
WARM = 0.25  # of a device's rows: a voice that was spoken there may find so many more rows taken than elsewhere
UNBOUNDED = 1 << 20
LOOK_S = 1.0  # how often it is looked whether the device that one waits for still lives


@dataclass(eq=False, slots=True)
class _Member:
    """One device: its engine, what has been sent to it, and whose voices it has heard lately."""

    engine: Engine
    speaking: int = 0
    strikes: int = 0
    out: str = ""  # why it was taken out
    voices: LRU[str, bool] = field(default_factory=lambda: LRU(KNOWN_VOICES))

    @property
    def device(self) -> str:
        return self.engine.info.device

    @property
    def usable(self) -> bool:
        return not self.out and self.engine.healthy

    @property
    def rows(self) -> int:
        return self.engine.load.max_rows

    def weight(self, voices: Sequence[str]) -> float:
        """How busy it is, in shares of its rows; less where it knows all these voices."""
        warm = bool(voices) and all(voice in self.voices for voice in voices)
        return self.speaking / self.rows - (WARM if warm else 0.0)

    def heard(self, voices: Sequence[str]) -> None:
        for voice in voices:
            self.voices.put(voice, True)


class EnginePool:
    """Fulfils Engine over several engines of one model. Used from one event loop."""

    def __init__(self, engines: Sequence[Engine], *, max_queue: int) -> None:
        """Raises EngineUnavailable where the engines do not sound the same."""
        infos = [engine.info for engine in engines]
        if len({info.fingerprint for info in infos}) > 1:
            raise EngineUnavailable(
                "The devices do not hold the same model.", remedy="Start again; the weights changed while they loaded."
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
        """How often the devices' engines have failed and gone on."""
        return sum(getattr(member.engine, "restarts", 0) for member in self._members)

    @property
    def devices(self) -> tuple[DeviceState, ...]:
        """How each device is; one that has just stopped is found out here at the latest."""
        for member in self._members:
            self._look(member)
        return tuple(DeviceState(member.device, member.out, member.engine.load) for member in self._members)

    # ---- speaking

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        if utterance.scheduling.background:
            async with contextlib.aclosing(self._behind(utterance)) as side_stream:
                async for part in side_stream:
                    yield part
            return
        tried: list[_Member] = []
        voices = tuple(dict.fromkeys(line.prompt.voice_digest for line in utterance.lines if line.prompt is not None))
        failure: EngineError | None = None
        while True:
            member = await self._place(utterance, voices, tried, failure)
            member.speaking += 1
            sounded = False
            try:
                async with contextlib.aclosing(member.engine.speak(utterance)) as stream:
                    chunk = await self._first(member, stream)
                    while chunk is not None:
                        sounded = True
                        yield chunk
                        chunk = await anext(stream, None)
            except EngineError as error:
                self._look(member)
                if sounded or isinstance(error, OutOfMemory | NothingSpoken):  # another device would say the same
                    raise
                log.warning("%s failed before its first sound; another device takes over", member.device)
                tried.append(member)
                failure = error
            else:
                member.heard(voices)
                self._served(member, tried)
                return
            finally:
                member.speaking -= 1
                self._next()

    async def _behind(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        """Background work. It waits in no queue and counts for no row of the pool, so that the device's own scheduler
        can preempt it. Raises Busy when it is preempted, and when its device stops while others go on."""
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
            self._look(member)
            if not member.out or not self.healthy:
                raise
            raise Busy(f"{member.device} has stopped; another device can do this.", retry_after_s=1) from error

    async def _place(
        self, utterance: Utterance, voices: Sequence[str], tried: Sequence[_Member], failure: EngineError | None
    ) -> _Member:
        """A device for this utterance, waited for where all are full. Raises Busy, EngineError."""
        waited = False
        while True:
            usable = [member for member in self._members if member.usable and member not in tried]
            if not usable:
                raise failure or EngineStopped("The engine has stopped on every device. Restart the server.")
            free = [member for member in usable if member.speaking < member.rows]
            # A later part of an answer, and what a failed device gave back, is never refused; nor is a turn given away
            # to a newcomer.
            if utterance.scheduling.continuation or failure is not None or (free and (waited or not self._waiting)):
                return min(free or usable, key=lambda member: member.weight(voices))
            if not waited and len(self._waiting) >= self._max_queue + self._coming:
                rows = sum(member.rows for member in usable)
                raise Busy(
                    f"The server is speaking for {rows} requests on {len(usable)} devices and {len(self._waiting)} are "
                    "waiting. Try again in a moment.",
                    retry_after_s=1,
                )
            turn = asyncio.get_running_loop().create_future()
            (self._waiting.appendleft if waited else self._waiting.append)(turn)
            waited = True
            if free:
                self._next()
            try:
                while not turn.done() and self.healthy:
                    await asyncio.wait([turn], timeout=LOOK_S)
            except BaseException:
                if turn.done():
                    self._next()  # who was called and leaves hands the call on
                raise
            finally:
                with contextlib.suppress(ValueError):  # it was called
                    self._waiting.remove(turn)

    @property
    def _coming(self) -> int:
        """Free rows that waiting utterances are about to take."""
        return sum(max(0, member.rows - member.speaking) for member in self._members if member.usable)

    def _next(self) -> None:
        """Start one waiting utterance for each free row."""
        for _ in range(min(self._coming, len(self._waiting))):
            self._waiting.popleft().set_result(None)

    async def _first(self, member: _Member, stream: AsyncGenerator[AudioChunk]) -> AudioChunk | None:
        """The first chunk, unless the device hangs: that raises EngineStopped."""
        pulling = asyncio.ensure_future(anext(stream, None))
        try:
            while not (await asyncio.wait([pulling], timeout=LOOK_S))[0]:
                if not member.engine.healthy:
                    raise EngineStopped(f"The engine on {member.device} has stopped.")
            return pulling.result()
        finally:
            if not pulling.done():
                pulling.cancel()
                await asyncio.wait([pulling])

    def _served(self, member: _Member, tried: Sequence[_Member]) -> None:
        """An utterance succeeded here, so the devices that failed it before get a strike."""
        member.strikes = 0
        for other in tried:
            other.strikes += 1
            if other.strikes >= STRIKES and not other.out:
                self._take_out(other, f"It failed at {STRIKES} texts in a row that another device could speak.")

    def _look(self, member: _Member) -> None:
        if not member.out and not member.engine.healthy:
            self._take_out(member, "Its engine has stopped.")

    def _take_out(self, member: _Member, why: str) -> None:
        member.out = why
        left = sum(other.usable for other in self._members)
        log.critical("%s is taken out: %s %d of %d devices go on", member.device, why, left, len(self._members))

    # ---- the rest of the protocol

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        usable = sorted((m for m in self._members if m.usable), key=lambda member: member.speaking / member.rows)
        failure: Exception = EngineStopped("The engine has stopped on every device. Restart the server.")
        for member in usable:
            try:
                return await member.engine.encode_reference(reference)
            except (EngineError, RuntimeError) as error:  # RuntimeError: the device itself, as torch says it
                log.warning("%s failed to read a recording", member.device, exc_info=error)
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
    """The engine of the settings: one, or one for each of TTS_DEVICES. Raises EngineUnavailable, naming the device."""
    builder = spec.builder()
    split = spec.splits and settings.csm_device_map is not None
    if not spec.on_devices or not settings.devices or split:
        return builder(settings, context)
    # Only here: an engine without devices runs where torch is not installed.
    from app.runtime.device import choose_devices, share_threads  # noqa: PLC0415

    devices = choose_devices(settings.devices)
    if len(devices) == 1:
        return builder(settings.model_copy(update={"devices": (), "device": str(devices[0])}), context)
    # Who waits does so in the pool; what an engine is sent beyond its rows, it must not refuse.
    alone = settings.model_copy(update={"devices": (), "max_queue": UNBOUNDED})
    engines = []
    for device in devices:  # one after another: the first downloads, and one at a time takes memory for loading
        try:
            engines.append(builder(alone.model_copy(update={"device": str(device)}), context))
        except EngineUnavailable as error:
            raise type(error)(f"On {device}: {error.reason}", remedy=error.remedy) from error
    on_cpu = sum(device.type == "cpu" for device in devices)
    if on_cpu > 1:
        share_threads(on_cpu)
    log.info("%s on %d devices: %s", spec.name, len(devices), ", ".join(map(str, devices)))
    return EnginePool(engines, max_queue=settings.max_queue)
