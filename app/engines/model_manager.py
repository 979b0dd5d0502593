"""Loads and unloads the models of this process, and finds the model of a request.

Each model has an EngineManager. The model of TTS_ENGINE is the default: it is loaded at the start. The other models of
TTS_MODELS are loaded when a request names them. A model without requests for TTS_IDLE_UNLOAD_S is unloaded. If the
memory is too small for a model, the least recently used models are unloaded first. This module does not depend on HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from app.engines.manager import RETRY_UNAVAILABLE_S, RETRY_WHILE_LOADING_S, EngineManager, describe
from app.engines.registry import find_spec
from app.errors import Busy, NotReady, WeightsUnavailable
from app.runtime.memory import available_bytes
from app.types import Load
from app.voices.presets import DEFAULT_VOICE
from app.weights import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.audio.guard import Rule
    from app.engines.manager import ModelUse, Status
    from app.engines.protocol import Engine
    from app.engines.registry import EngineSpec
    from app.runtime.memory import Memory
    from app.settings import Settings
    from app.types import DeviceState

log = logging.getLogger(__name__)

LONGEST_CHECK_S = 5.0  # the longest time between two checks for unused models
COLLECT_AFTER_S = 0.5  # if a model that will be unloaded is still in use after this time, the garbage collector runs
IDLE_DRAIN_S = 1.0  # an idle model stays loaded if its last uses do not end within this time
DRAIN_CHECK_S = 0.02  # seconds between two checks whether a model that will be unloaded is still in use
MEMORY_MARGIN = 1.2  # estimated bytes of memory that a model needs for each byte of its weight files


class ModelManager:
    """The models of this process. All calls must come from one event loop.

    At the start of `async with`, the default model begins to load. At the end, all models are unloaded.
    """

    def __init__(
        self, settings: Settings, known: dict[str, EngineSpec], on_guard: Callable[[Rule], None] = lambda _: None
    ) -> None:
        """Create a manager for each model, without engines.

        known: all engines by name. on_guard: called in any thread for each intervention of the output guard. Raises
        ValueError if the settings name an unknown engine or model.
        """
        self._settings = settings
        self._known = known
        default, *others = served_engines(settings, known)
        share = 1.0 / max(1, sum(known[name].on_devices for name in (default, *others) if name in known))
        self._default = EngineManager(
            settings.model_copy(update={"engine": default}), known, on_guard, memory_share=share
        )
        self._managers = {self._default.requested.model_id: self._default}
        for name in others:
            alone = settings.model_copy(update={"engine": name, "fallback_engine": ""})
            manager = EngineManager(alone, known, on_guard, on_demand=True, memory_share=share)
            self._managers[manager.requested.model_id] = manager
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()  # held while one model is loaded or unloaded
        # The models that are being loaded. Requests wait for the tasks.
        self._loading: dict[EngineManager, asyncio.Task[ModelUse | None]] = {}
        # The models that are being unloaded. The event is set when the unload ends.
        self._closing: dict[EngineManager, asyncio.Event] = {}
        # the time at which the last load of the model failed; a successful load removes the entry
        self._failed_s: dict[EngineManager, float] = {}
        self._changed = asyncio.Event()  # set each time after a model was loaded or could not be loaded
        self._watching: asyncio.Task[None] | None = None
        self.on_load: Callable[[], None] = lambda: None  # called after a model was loaded on demand
        self.started_s = time.monotonic()

    # ---- the models

    @property
    def requested(self) -> EngineSpec:
        """The engine of the default model."""
        return self._default.requested

    @property
    def default(self) -> EngineManager:
        """The manager of the default model."""
        return self._default

    @property
    def several(self) -> bool:
        """Whether this process serves several models."""
        return len(self._managers) > 1

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The model ids that requests may name: the default model, a running fallback, and the other served models."""
        return tuple(dict.fromkeys((*self._default.model_ids, *self._managers)))

    def find_model(self, name: str) -> str | None:
        """Return the id of the model with this name, even if this process does not serve it; None for an unknown name.

        Ignores case and the organisation in the name: `sesame/CSM-1B` and `csm` both mean csm-1b.
        """
        spec = find_spec(name, (self.requested, *self._known.values()))
        return None if spec is None else spec.model_id

    @property
    def models_with_adapters(self) -> tuple[str, ...]:
        """The ids of the models of this process that can use LoRA adapters. The default model comes first."""
        specs = (manager.requested for manager in self._managers.values())
        return tuple(spec.model_id for spec in specs if spec.adapters)

    def default_voice(self, name: str = "") -> str:
        """Return the voice that a model uses if a request names none. name: the model's name; "" = the default model.

        If the model was trained with one speaker, this voice is that speaker.
        """
        spec = self.of(self.find_model(name) if name else None).requested
        speakers: tuple[int, ...] = getattr(self._settings, spec.speakers) if spec.speakers else ()
        return f"speaker:{speakers[0]}" if len(speakers) == 1 else DEFAULT_VOICE

    def of(self, model_id: str | None) -> EngineManager:
        """Return the manager of a model; the default manager for None and for models that are not served here."""
        return self._managers.get(model_id or "", self._default)

    # ---- the state

    @property
    def current(self) -> Engine | None:
        """The engine of the default model, or None if it is not loaded."""
        return self._default.current

    def engine(self) -> Engine:
        """Return the engine of the default model. Raises NotReady if it can't speak now."""
        return self._default.engine()

    def status(self) -> Status:
        """Return the state of the default model."""
        return self._default.status()

    async def settled(self) -> Status:
        """Wait until the default model is loaded or its load has failed, and return its status."""
        return await self._default.settled()

    def load(self) -> Load | None:
        """Return how busy all loaded models are together, or None if no model is loaded."""
        loads = [load for manager in self._managers.values() if (load := manager.load()) is not None]
        if not loads:
            return None
        return Load(
            sum(load.active_rows for load in loads),
            sum(load.max_rows for load in loads),
            sum(load.queued for load in loads),
            max(load.max_queue for load in loads),
        )

    def devices(self) -> tuple[DeviceState, ...]:
        """Return the state of each device of each loaded model."""
        return tuple(state for manager in self._managers.values() for state in manager.devices())

    def memory(self) -> tuple[Memory, ...]:
        """Return the memory use of the devices of all loaded models."""
        found = {memory.device: memory for manager in self._managers.values() for memory in manager.memory()}
        return tuple(found.values())

    def memory_of_models(self) -> Iterator[tuple[str, bool, int]]:
        """Yield the id of each model, whether it is loaded, and the memory that it takes in bytes (0 = unknown)."""
        for model_id, manager in self._managers.items():
            loaded = manager.current is not None
            yield model_id, loaded, (manager.loaded_bytes or 0) if loaded else 0

    # ---- use

    async def use(self, model_id: str | None) -> ModelUse:
        """Load a model if it is not loaded, and return a ModelUse, which keeps the model loaded.

        model_id: None = the default model. Waits for the load at most TTS_LOAD_WAIT_S. Raises NotReady.
        """
        manager = self.of(model_id)
        use: ModelUse | None = None
        if manager in self._closing or (manager.current is None and self._is_loadable(manager)):
            use = await self._wait_for(manager)
        return use or manager.use()

    def _is_loadable(self, manager: EngineManager) -> bool:
        """Whether a request must load this model and wait for it.

        Requests do not wait while the server loads its default model at the start.
        """
        failed_s = self._failed_s.get(manager)
        is_due = failed_s is not None and time.monotonic() - failed_s >= RETRY_UNAVAILABLE_S
        return is_due or manager.unloaded or manager in self._loading

    async def cloning_use(self) -> ModelUse | None:
        """Wait until a model that can clone voices is loaded, and return a ModelUse.

        Returns None if this process serves only one model, and its engine can't clone voices.
        """
        await self._default.settled()
        while True:
            self._changed.clear()
            for manager in self._managers.values():
                engine = manager.current
                if engine is not None and engine.healthy and engine.info.can_clone and manager not in self._closing:
                    return manager.use()
            if not self.several:
                return None
            await self._changed.wait()

    def is_closing(self, manager: EngineManager) -> bool:
        """Whether the model is being unloaded. The unload ends after the last requests that use the model."""
        return manager in self._closing

    async def load_model(self, model_id: str) -> Status:
        """Load a model, and return its status. Repeats a failed load. If the fallback engine runs, unloads it first.

        Raises NotReady if the model can't be loaded, or if the load takes longer than TTS_LOAD_WAIT_S.
        """
        manager = self.of(model_id)
        if manager.is_fallback:
            await self.unload_model(model_id)
        if manager.current is None:
            await self._wait_for(manager)
        manager.engine()
        return manager.status()

    async def unload_model(self, model_id: str) -> Status:
        """Unload a model when its last answer has ended, and return its status.

        Requests for the model that arrive meanwhile wait for the end of the unload, and then load the model again.
        Raises Busy if answers still run after TTS_LOAD_WAIT_S.
        """
        manager = self.of(model_id)
        if not await self._unload(manager, wait_s=self._settings.load_wait_s):
            raise Busy(
                f"The model {manager.requested.model_id} is still speaking, so it was not unloaded. Try again later.",
                retry_after_s=RETRY_WHILE_LOADING_S,
            )
        return manager.status()

    async def _wait_for(self, manager: EngineManager) -> ModelUse | None:
        """Wait until a model is loaded, and return a ModelUse; None if the load has failed. Begins the load if needed.

        Raises NotReady if the load takes longer than TTS_LOAD_WAIT_S.
        """
        task = self._loading.get(manager)
        if task is None:
            task = self._loading[manager] = asyncio.create_task(self._load(manager), name="model-load")
        done, _ = await asyncio.wait([task], timeout=self._settings.load_wait_s)
        if not done:
            model = manager.requested.model_id
            raise NotReady(
                f"The model {model} is being loaded. {describe(manager.status())}".strip(),
                retry_after_s=RETRY_WHILE_LOADING_S,
            )
        return None if task.cancelled() else task.result()

    async def _load(self, manager: EngineManager) -> ModelUse | None:
        """Load a model, and return a ModelUse; None if the load has failed.

        The ModelUse keeps the model loaded until all requests that wait for the model have their own ModelUse.
        """
        try:
            if (closing := self._closing.get(manager)) is not None:
                await closing.wait()
            async with self._lock:
                if manager.current is not None:
                    return _use_of(manager)
                name = manager.requested.name
                began_s = time.monotonic()
                await self._make_room(manager)
                manager.begin()
                status = await manager.settled()
                if status.too_little_memory and await self._unload_idle(manager):
                    log.info(
                        "engine %s did not fit into memory, so idle models were unloaded; the engine is built again",
                        name,
                    )
                    manager.begin()
                    status = await manager.settled()
                if status.running is None:
                    self._failed_s[manager] = time.monotonic()
                    return None
                self._failed_s.pop(manager, None)
                log.info("model %s was loaded in %.1f s", manager.requested.model_id, time.monotonic() - began_s)
                self.on_load()
                return _use_of(manager)
        finally:
            self._loading.pop(manager, None)
            self._changed.set()

    async def _make_room(self, manager: EngineManager) -> None:
        """Unload the least recently used models that no request uses, until the free main memory is enough for a model.

        This does not check the GPU memory, because the engine itself checks it.
        """
        needed_bytes = manager.loaded_bytes
        if needed_bytes is None:
            needed_bytes = round(
                MEMORY_MARGIN * await asyncio.to_thread(weight_bytes, manager.requested, self._settings)
            )
        while (free_bytes := available_bytes()) is not None and free_bytes < needed_bytes:
            if not await self._unload_oldest(manager):
                return

    async def _unload_idle(self, but: EngineManager) -> bool:
        """Unload all models that no request uses, except the model `but`. Returns whether any model was unloaded."""
        unloaded = False
        while await self._unload_oldest(but):
            unloaded = True
        return unloaded

    async def _unload_oldest(self, but: EngineManager) -> bool:
        """Unload the least recently used model that no request uses. but: the model that is never unloaded.

        Returns False if there is no such model.
        """
        idle = [
            each
            for each in self._managers.values()
            if each is not but and each.current is not None and not each.in_use and each not in self._closing
        ]
        if not idle:
            return False
        oldest = min(idle, key=lambda each: each.last_used_s)
        log.info("model %s is unloaded to make room for %s", oldest.requested.model_id, but.requested.model_id)
        with self._marked_closing(oldest):
            await oldest.unload()
        return True

    async def _unload(self, manager: EngineManager, *, wait_s: float) -> bool:
        """Unload a model as soon as no request uses it. Returns False if this takes more than `wait_s` seconds."""
        if (closing := self._closing.get(manager)) is not None:
            await closing.wait()
            return manager.current is None
        with self._marked_closing(manager):
            began_s = time.monotonic()
            collected = False
            while manager.in_use:
                waited_s = time.monotonic() - began_s
                if waited_s >= wait_s:
                    return False
                # The ModelUse of a failed request can be part of a reference cycle, which only the collector frees.
                if waited_s >= COLLECT_AFTER_S and not collected:
                    collected = True
                    await asyncio.to_thread(gc.collect)
                await asyncio.sleep(DRAIN_CHECK_S)
            async with self._lock:
                await manager.unload()
        log.info("model %s was unloaded", manager.requested.model_id)
        return True

    @contextlib.contextmanager
    def _marked_closing(self, manager: EngineManager) -> Iterator[None]:
        """Mark a model as being unloaded. Inside the context, new requests for the model wait."""
        ended = self._closing[manager] = asyncio.Event()
        try:
            yield
        finally:
            del self._closing[manager]
            ended.set()

    # ---- start and stop

    async def __aenter__(self) -> Self:
        for manager in self._managers.values():
            await self._stack.enter_async_context(manager)
        if self._settings.idle_unload_s:
            self._watching = asyncio.create_task(self._watch(self._settings.idle_unload_s), name="idle-models")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._loading.values(), *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _watch(self, idle_s: float) -> None:
        """Until the task is cancelled, unload each model that no request has used for `idle_s` seconds."""
        while True:
            await asyncio.sleep(min(LONGEST_CHECK_S, idle_s / 4))
            for manager in self._managers.values():
                load, now_s = manager.load(), time.monotonic()
                if load is None or load.active_rows or load.queued:
                    manager.last_used_s = now_s
                elif now_s - manager.last_used_s >= idle_s and not await self._unload(manager, wait_s=IDLE_DRAIN_S):
                    manager.last_used_s = time.monotonic()


def _use_of(manager: EngineManager) -> ModelUse | None:
    """Return a ModelUse of a loaded model; None if its engine has failed."""
    try:
        return manager.use()
    except NotReady:
        return None


def weight_bytes(spec: EngineSpec, settings: Settings) -> int:
    """Return the size in bytes of the model's weight files that are on disk; 0 if none of them is on disk."""
    found = 0
    for files in spec.files(settings):
        try:
            folder = hub.find(files, settings.folder("models"))
        except WeightsUnavailable:
            continue
        if folder is not None:
            found += sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return found


def served_engines(settings: Settings, known: dict[str, EngineSpec]) -> list[str]:
    """Return the names of the engines that this process serves; the first one is the default.

    Raises ValueError if TTS_MODELS names an unknown model.
    """
    named = []
    for name in settings.models:
        spec = find_spec(name, known.values())
        if spec is None:
            models = ", ".join(sorted(each.model_id for each in known.values()))
            raise ValueError(f"TTS_MODELS: {name!r} is not a model. The models are: {models}.")
        named.append(spec.name)
    default = settings.engine if "engine" in settings.model_fields_set or not named else named[0]
    return list(dict.fromkeys((default, *named)))
