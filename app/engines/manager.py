"""Builds and owns the engine of one model. If the requested engine can't run, builds the fallback engine.

A thread downloads the weights and builds the engine. So the server accepts requests immediately, and /health shows the
progress. This module does not depend on HTTP: it reports problems with NotReady and Status.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from app.audio.threads import in_own_thread
from app.engines import pool
from app.engines.admission import Admission
from app.engines.registry import BuildContext, EngineSpec
from app.errors import EngineUnavailable, NotReady, TooLittleMemory, WeightsUnavailable
from app.runtime import heap
from app.runtime.faults import is_out_of_memory
from app.runtime.memory import held_bytes, memory_of
from app.types import DeviceState

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.audio.guard import Rule
    from app.engines.protocol import Engine
    from app.runtime.memory import Memory
    from app.settings import Settings
    from app.types import EngineInfo, Load
    from app.weights.download import Progress

log = logging.getLogger(__name__)

State = Literal["unloaded", "starting", "ok", "degraded", "unhealthy"]
RETRY_WHILE_LOADING_S = 5
RETRY_UNAVAILABLE_S = 30


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the engine, with the reason and the remedy of a problem. running: None = no engine runs."""

    state: State
    requested: EngineSpec
    running: EngineSpec | None
    reason: str = ""
    remedy: str = ""
    progress: Progress | None = None
    missing_weights: bool = False  # True = the engine `requested` does not run because its weights are missing
    too_little_memory: bool = False  # True = the engine `requested` does not run because the memory is too small


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ModelUse:
    """The use of a model by one request. While this object exists, the model stays loaded."""

    manager: EngineManager
    engine: Engine
    is_fallback: bool
    model_id: str

    @property
    def info(self) -> EngineInfo:
        """The description of the engine."""
        return self.engine.info


class EngineManager:
    """Builds, starts and stops the engine. All calls must come from one event loop.

    At the start of `async with`, the manager begins to build the engine. At the end of `async with`, the engine stops.
    """

    def __init__(
        self,
        settings: Settings,
        known: dict[str, EngineSpec],
        on_guard: Callable[[Rule], None] = lambda _: None,
        *,
        on_demand: bool = False,
        memory_share: float = 1.0,
    ) -> None:
        """Create the manager without an engine. Raises ValueError if the settings name an unknown engine.

        known: all engines by name. on_guard: called in any thread for each intervention of the output guard. on_demand:
        True = `async with` does not begin to build the engine; `begin` does. memory_share: the part of
        TTS_GPU_MEMORY_FRACTION that the engine uses. If this part is too small, the engine uses all of
        TTS_GPU_MEMORY_FRACTION.
        """
        for variable, name in (("TTS_ENGINE", settings.engine), ("TTS_FALLBACK_ENGINE", settings.fallback_engine)):
            if name not in known and not (variable == "TTS_FALLBACK_ENGINE" and name == ""):
                raise ValueError(f"{variable}={name!r} is not an engine. The engines are: {', '.join(sorted(known))}.")
        self._settings = settings
        self._on_demand = on_demand
        self._memory_share = memory_share
        self._unloaded = on_demand
        self._uses: weakref.WeakSet[ModelUse] = weakref.WeakSet()
        self._on_guard = on_guard
        self._requested = known[settings.engine]
        fallback = known[settings.fallback_engine] if settings.fallback_engine else None
        self._fallback = fallback if fallback != self._requested else None
        self._running: EngineSpec | None = None
        self._engine: Engine | None = None
        self._problem: EngineUnavailable | None = None
        self._progress: Progress | None = None
        self._stopping = threading.Event()  # set = the thread that builds the engine must stop
        self._stack = AsyncExitStack()
        self._starting: asyncio.Task[None] | None = None
        self.last_used_s = time.monotonic()
        self.loaded_bytes: int | None = None  # memory that the engine took when it was last built; None = unknown
        self.admission = Admission()

    # ---- state

    @property
    def requested(self) -> EngineSpec:
        """The engine that TTS_ENGINE names."""
        return self._requested

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The model ids that requests may name.

        The first id belongs to the requested engine. If the fallback engine runs, the second id belongs to the fallback
        engine.
        """
        ids = [self._requested.model_id]
        if self._running is not None and self._running != self._requested:
            ids.append(self._running.model_id)
        return tuple(ids)

    @property
    def is_fallback(self) -> bool:
        """Whether the fallback engine runs in place of the requested engine."""
        return self._running is not None and self._running != self._requested

    @property
    def current(self) -> Engine | None:
        """The engine, or None if no engine is built. Unlike `engine`, this does not raise NotReady."""
        return self._engine

    @property
    def unloaded(self) -> bool:
        """Whether the engine was unloaded, or waits for the first request that needs it."""
        return self._unloaded

    @property
    def in_use(self) -> bool:
        """Whether a request uses the engine."""
        load = self.load()
        return bool(self._uses) or (load is not None and bool(load.active_rows or load.queued))

    def use(self) -> ModelUse:
        """Return a ModelUse, which keeps the engine loaded. Raises NotReady if the engine can't speak now."""
        use = ModelUse(self, self.engine(), self.is_fallback, (self._running or self._requested).model_id)
        self._uses.add(use)
        self.last_used_s = time.monotonic()
        return use

    def engine(self) -> Engine:
        """Return the engine. Raises NotReady if the engine can't speak now."""
        if self._engine is not None and self._engine.healthy:
            return self._engine
        status = self.status()
        if status.state in ("starting", "unloaded"):
            state = "starting" if status.state == "starting" else "not loaded"
            raise NotReady(
                f"The {self._requested.model_id} engine is {state}. {describe(status)}",
                retry_after_s=RETRY_WHILE_LOADING_S,
            )
        raise NotReady(
            f"The {self._requested.model_id} engine can't answer: {describe(status)}",
            retry_after_s=RETRY_UNAVAILABLE_S,
        )

    def load(self) -> Load | None:
        """Return how busy the engine is; None if no engine is built.

        `queued` includes requests that wait for admission.
        """
        if self._engine is None:
            return None
        load = self._engine.load
        return replace(load, queued=load.queued + self.admission.waiting)

    def devices(self) -> tuple[DeviceState, ...]:
        """Return the state of each device of the engine, or () if no engine is built."""
        if self._engine is None:
            return ()
        if isinstance(self._engine, pool.EnginePool):
            return self._engine.devices
        failure = "" if self._engine.healthy else "The engine of this device has stopped."
        return (DeviceState(self._engine.info.device, failure, self._engine.load),)

    def memory(self) -> tuple[Memory, ...]:
        """Return the memory use of the engine's devices, or () if no engine is built."""
        return memory_of(self._engine.info.device) if self._engine is not None else ()

    def status(self) -> Status:
        """Return the state of the engine."""
        reason, remedy = (self._problem.reason, self._problem.remedy) if self._problem else ("", "")
        missing = isinstance(self._problem, WeightsUnavailable)
        state: State
        if self._engine is None and self._unloaded:
            return Status("unloaded", self._requested, None)
        if self._engine is None:
            state = "unhealthy" if self._problem and (self._starting is None or self._starting.done()) else "starting"
            small = isinstance(self._problem, TooLittleMemory)
            return Status(state, self._requested, None, reason, remedy, self._progress, missing, small)
        if not self._engine.healthy:
            state, reason, remedy = "unhealthy", "The engine has stopped.", "Restart the server."
        else:
            failed = [each for each in self.devices() if each.failure]
            restarts = getattr(self._engine, "restarts", 0)  # the engine of a plug-in may lack the property `restarts`
            state = "degraded" if self._problem or failed or restarts else "ok"
            if restarts:
                reason = " ".join(filter(None, [reason, "The engine has failed and restarted."]))
                remedy = remedy or "The server's log contains the cause. At the next failure the engine stops."
            if failed:
                reason = " ".join([*filter(None, [reason]), *(f"{each.device}: {each.failure}" for each in failed)])
                remedy = (
                    remedy or "The other devices continue. The server's log contains the cause. Restart the server."
                )
        return Status(state, self._requested, self._running, reason, remedy, missing_weights=missing)

    # ---- start and stop

    async def __aenter__(self) -> Self:
        if not self._on_demand:
            self.begin()
        return self

    def begin(self) -> None:
        """Begin to build the engine, unless it runs or is being built. Repeats a build that has failed."""
        if self._engine is None and (self._starting is None or self._starting.done()):
            self._unloaded, self._problem = False, None
            self._stopping.clear()
            self._starting = asyncio.create_task(self._start(), name="engine-start")

    async def unload(self) -> None:
        """Stop the engine and free its memory. The caller makes sure that no request uses the engine."""
        await self.__aexit__(None, None, None)
        self._engine = self._running = self._problem = self._progress = self._starting = None
        self._unloaded = True
        await asyncio.to_thread(_free_memory)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._stack.aclose()

    async def settled(self) -> Status:
        """Wait until an engine runs or the start has failed, and return the status."""
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
        before = held_bytes()
        try:
            self._engine = await self._stack.enter_async_context(await in_own_thread(self._build, spec))
        except EngineUnavailable:
            raise
        except Exception as error:
            log.exception("engine %s failed to start", spec.name)
            kind = TooLittleMemory if is_out_of_memory(error) else EngineUnavailable
            raise kind(
                f"The {spec.model_id} engine failed to start ({type(error).__name__}).",
                remedy="The server's log contains the cause.",
            ) from error
        finally:
            self._progress = None
        self._running = spec
        place = "cuda" if self._engine.info.device.startswith("cuda") else "cpu"
        self.loaded_bytes = max(0, held_bytes()[place] - before[place])

    def _build(self, spec: EngineSpec) -> Engine:
        """Build the engine with its share of TTS_GPU_MEMORY_FRACTION.

        If the share is too small, build the engine with all of TTS_GPU_MEMORY_FRACTION.
        """
        context = BuildContext(on_progress=self._note, cancelled=self._stopping.is_set, on_guard=self._on_guard)
        settings = self._settings
        if self._memory_share < 1.0:
            share = {"gpu_memory_fraction": settings.gpu_memory_fraction * self._memory_share}
            try:
                return pool.build(spec, settings.model_copy(update=share), context)
            except TooLittleMemory as problem:
                log.info("engine %s gets all GPU memory, because its share is too small: %s", spec.name, problem.reason)
        return pool.build(spec, settings, context)

    def _note(self, progress: Progress) -> None:
        self._progress = progress

    def _announce(self) -> None:
        """Log a warning that the requested engine does not run, with the reason and the remedy."""
        assert self._problem is not None  # noqa: S101 - `_start` sets it before the call
        effect = f"{self._running.model_id} ANSWERS INSTEAD" if self._running else "REQUESTS FOR SPEECH GET A 503"
        lines = [
            f"{self._requested.model_id} IS NOT RUNNING: {effect}",
            self._problem.reason,
            *self._problem.remedy.splitlines(),
        ]
        rule = "=" * 100
        log.warning("\n%s\n%s\n%s", rule, "\n".join(f"  {line}" for line in lines if line), rule)


def _free_memory() -> None:
    """Free unused objects, and give their memory back to the system and to the GPU driver."""
    gc.collect()
    heap.trim()


def describe(status: Status) -> str:
    """Return the progress of the download as text. If no download runs, return the reason and the remedy."""
    if status.progress is not None:
        done, total = status.progress.done_bytes / 1e9, status.progress.total_bytes / 1e9
        return f"Downloading {status.progress.source}: {done:.2f} of {total:.2f} GB."
    return f"{_sentence(status.reason)} {status.remedy}".strip()


def _sentence(text: str) -> str:
    """Add a full stop to the text, unless the text is empty or ends with a punctuation mark."""
    return f"{text}." if text and text[-1] not in ".!?" else text
