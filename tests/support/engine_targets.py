"""Builders of engines for `test_engine_manager.py`, which finds them by `module:function`, like real engines.

Each name tells how its engine behaves.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Self

from app.engines.batched import BatchedEngine
from app.errors import EngineUnavailable, TooLittleMemory, WeightsUnavailable
from app.weights.download import Progress
from tests.support.scripted_runner import ScriptedRunner, info

if TYPE_CHECKING:
    from app.engines.registry import BuildContext
    from app.settings import Settings

go_on = threading.Event()  # ends the download of `slow`; a test clears it first


built: weakref.WeakSet[BatchedEngine] = weakref.WeakSet()
builds: list[str] = []  # the names of the engines that were built, for tests that clear it
build_threads: list[threading.Thread] = []  # the threads that have built `ok`


def ok(settings: Settings, _: BuildContext) -> BatchedEngine:
    builds.append(settings.engine)
    build_threads.append(threading.current_thread())
    engine = BatchedEngine(
        info("ok"), ScriptedRunner(settings.rows(8)), max_queue=settings.max_queue, audio_queue_s=1.0
    )
    built.add(engine)
    return engine


def once(settings: Settings, context: BuildContext) -> BatchedEngine:
    """Build an engine; the first build fails, and later builds succeed."""
    if "once" not in builds:
        builds.append("once")
        raise EngineUnavailable("The file is not there yet.")
    return ok(settings, context)


def large(settings: Settings, context: BuildContext) -> BatchedEngine:
    """Build an engine that needs the memory of all other engines."""
    if any(engine.healthy for engine in built):
        raise TooLittleMemory("cuda:0 has 1.0 GB free.")
    return ok(settings, context)


def stand_in(settings: Settings, _: BuildContext) -> BatchedEngine:
    builds.append(settings.engine)
    return BatchedEngine(info("stand-in"), ScriptedRunner(1), max_queue=0, audio_queue_s=1.0)


def slow(settings: Settings, context: BuildContext) -> BatchedEngine:
    """Return an engine whose download lasts until `go_on` is set or the start is cancelled."""
    context.on_progress(Progress("org/model", "model.safetensors", 1_500_000_000, 6_000_000_000, 1e6, None))
    while not go_on.wait(0.01):
        if context.cancelled():
            raise EngineUnavailable("The download was given up.")
    return ok(settings, context)


def broken_off(settings: Settings, context: BuildContext) -> BatchedEngine:
    context.on_progress(Progress("org/model", "model.safetensors", 1, 2, 1e6, None))
    raise EngineUnavailable("The download broke off.")


def missing(settings: Settings, _: BuildContext) -> BatchedEngine:
    time.sleep(0.01)
    raise EngineUnavailable("The weights are missing.", remedy="Download them.")


def missing_too(settings: Settings, _: BuildContext) -> BatchedEngine:
    raise EngineUnavailable("The extra is missing.", remedy="Install it.")


def weightless(settings: Settings, _: BuildContext) -> BatchedEngine:
    raise WeightsUnavailable("The hub can't be reached", remedy="Check the network.")


def crashing(settings: Settings, _: BuildContext) -> BatchedEngine:
    raise ZeroDivisionError("secret insides")


class Unstartable(BatchedEngine):
    async def __aenter__(self) -> Self:
        raise MemoryError("secret insides")


def unstartable(settings: Settings, _: BuildContext) -> BatchedEngine:
    return Unstartable(info("unstartable"), ScriptedRunner(1), max_queue=0, audio_queue_s=1.0)


def imports_what_is_not_there(settings: Settings, _: BuildContext) -> BatchedEngine:
    import a_library_that_nobody_has  # noqa: F401

    raise AssertionError
