"""The one engine of this process: which was asked for, which runs, and why if these differ.

Building (downloads included) happens in a thread, so that the port opens at once and /health can tell how far it is.
Knows no HTTP; says what is the matter as NotReady and as a Status.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from app.engines import pool
from app.engines.registry import BuildContext, EngineSpec
from app.errors import EngineUnavailable, NotReady, WeightsUnavailable
from app.runtime.memory import memory_of
from app.types import DeviceState

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.audio.guard import Rule
    from app.engines.protocol import Engine
    from app.runtime.memory import Memory
    from app.settings import Settings
    from app.types import Load
    from app.weights.download import Progress

log = logging.getLogger(__name__)

State = Literal["starting", "ok", "degraded", "unhealthy"]
RETRY_WHILE_LOADING_S = 5
RETRY_UNAVAILABLE_S = 30


@dataclass(frozen=True, slots=True)
class Status:
    """How things stand, in words. `running` is the engine that answers now, None while there is none."""

    state: State
    requested: EngineSpec
    running: EngineSpec | None
    reason: str = ""
    remedy: str = ""
    progress: Progress | None = None
    missing_weights: bool = False  # why `requested` does not run; else it is something else


class EngineManager:
    """Owns the engine's life. Used from one event loop; `async with` begins to build it and stops it at its end."""

    def __init__(
        self, settings: Settings, known: dict[str, EngineSpec], on_guard: Callable[[Rule], None] = lambda _: None
    ) -> None:
        """Raises ValueError for an unknown engine name."""
        for variable, name in (("TTS_ENGINE", settings.engine), ("TTS_FALLBACK_ENGINE", settings.fallback_engine)):
            if name not in known and not (variable == "TTS_FALLBACK_ENGINE" and name == ""):
                raise ValueError(f"{variable}={name!r} is no engine. Engines are: {', '.join(sorted(known))}.")
        self._settings = settings
        self._on_guard = on_guard
        self._requested = known[settings.engine]
        fallback = known[settings.fallback_engine] if settings.fallback_engine else None
        self._fallback = fallback if fallback != self._requested else None
        self._running: EngineSpec | None = None
        self._engine: Engine | None = None
        self._problem: EngineUnavailable | None = None
        self._progress: Progress | None = None
        self._giving_up = threading.Event()
        self._stack = AsyncExitStack()
        self._starting: asyncio.Task[None] | None = None
        self.started_s = time.monotonic()

    # ---- what others ask

    @property
    def requested(self) -> EngineSpec:
        return self._requested

    @property
    def model_ids(self) -> tuple[str, ...]:
        """Ids that are answered: the running engine's, and the one it stands in for."""
        ids = [self._requested.model_id]
        if self._running is not None and self._running != self._requested:
            ids.append(self._running.model_id)
        return tuple(ids)

    @property
    def is_fallback(self) -> bool:
        return self._running is not None and self._running != self._requested

    @property
    def current(self) -> Engine | None:
        """The engine, if there is one yet; for lists and metrics, which must not fail."""
        return self._engine

    def engine(self) -> Engine:
        """The engine that speaks. Raises NotReady."""
        if self._engine is not None and self._engine.healthy:
            return self._engine
        status = self.status()
        if status.state == "starting":
            raise NotReady(
                f"The {self._requested.model_id} engine is starting. {_told(status)}",
                retry_after_s=RETRY_WHILE_LOADING_S,
            )
        raise NotReady(
            f"The {self._requested.model_id} engine can't answer: {_told(status)}", retry_after_s=RETRY_UNAVAILABLE_S
        )

    def load(self) -> Load | None:
        return self._engine.load if self._engine is not None else None

    def devices(self) -> tuple[DeviceState, ...]:
        """The devices that speech is made on; () while there is no engine."""
        if self._engine is None:
            return ()
        if isinstance(self._engine, pool.EnginePool):
            return self._engine.devices
        out = "" if self._engine.healthy else "Its engine has stopped."
        return (DeviceState(self._engine.info.device, out, self._engine.load),)

    def memory(self) -> tuple[Memory, ...]:
        """Of the devices that the engine runs on."""
        return memory_of(self._engine.info.device) if self._engine is not None else ()

    def status(self) -> Status:
        reason, remedy = (self._problem.reason, self._problem.remedy) if self._problem else ("", "")
        missing = isinstance(self._problem, WeightsUnavailable)
        state: State
        if self._engine is None:
            state = "unhealthy" if self._problem and (self._starting is None or self._starting.done()) else "starting"
            return Status(state, self._requested, None, reason, remedy, self._progress, missing)
        if not self._engine.healthy:
            state, reason, remedy = "unhealthy", "The engine has stopped.", "Restart the server."
        else:
            lost = [each for each in self.devices() if each.failure]
            restarts = getattr(self._engine, "restarts", 0)  # a plug-in's engine may not count them
            state = "degraded" if self._problem or lost or restarts else "ok"
            if restarts:
                reason = " ".join(filter(None, [reason, "The engine has failed once and was started again."]))
                remedy = remedy or "It speaks, and its log says why it failed; the next time it stays down."
            if lost:
                reason = " ".join([*filter(None, [reason]), *(f"{each.device}: {each.failure}" for each in lost)])
                remedy = remedy or "The other devices go on. Restart the server; its log says why."
        return Status(state, self._requested, self._running, reason, remedy, missing_weights=missing)

    # ---- its life

    async def __aenter__(self) -> Self:
        self._starting = asyncio.create_task(self._start(), name="engine-start")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._giving_up.set()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._stack.aclose()

    async def settled(self) -> Status:
        """Wait until it is decided which engine runs, if any."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
        return self.status()

    async def _start(self) -> None:
        try:
            await self._run(self._requested)
            log.info("engine %s is ready", self._requested.name)
        except EngineUnavailable as problem:
            self._problem = problem
            if self._fallback is not None:
                try:
                    await self._run(self._fallback)
                except EngineUnavailable as second:
                    self._problem = type(problem)(
                        f"{_sentence(problem.reason)} {second.reason}",
                        remedy=f"{_sentence(problem.remedy)} {second.remedy}".strip(),
                    )
            self._announce()

    async def _run(self, spec: EngineSpec) -> None:
        context = BuildContext(on_progress=self._note, cancelled=self._giving_up.is_set, on_guard=self._on_guard)
        try:
            engine = await asyncio.to_thread(pool.build, spec, self._settings, context)
            self._engine = await self._stack.enter_async_context(engine)
        except EngineUnavailable:
            raise
        except Exception as error:
            log.exception("engine %s failed to start", spec.name)
            raise EngineUnavailable(
                f"The {spec.model_id} engine failed to start ({type(error).__name__}).",
                remedy="The server's log says why.",
            ) from error
        finally:
            self._progress = None
        self._running = spec

    def _note(self, progress: Progress) -> None:
        self._progress = progress

    def _announce(self) -> None:
        """Log clearly that the fallback engine speaks, and why."""
        assert self._problem is not None  # noqa: S101 - only called with one
        stand_in = f"{self._running.model_id} ANSWERS IN ITS PLACE" if self._running else "SPEECH IS ANSWERED WITH 503"
        lines = [
            f"{self._requested.model_id} IS NOT RUNNING: {stand_in}",
            self._problem.reason,
            *self._problem.remedy.splitlines(),
        ]
        rule = "=" * 100
        log.warning("\n%s\n%s\n%s", rule, "\n".join(f"  {line}" for line in lines if line), rule)


def _told(status: Status) -> str:
    if status.progress is not None:
        done, total = status.progress.done_bytes / 1e9, status.progress.total_bytes / 1e9
        return f"Downloading {status.progress.source}: {done:.2f} of {total:.2f} GB."
    return f"{_sentence(status.reason)} {status.remedy}".strip()


def _sentence(words: str) -> str:
    """With a full stop where it has none, so that another sentence can follow."""
    return f"{words}." if words and words[-1] not in ".!?" else words
