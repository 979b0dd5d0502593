"""Tests which model speaks a request, when models are loaded and unloaded, and which model is unloaded to free
memory for another."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from app.engines import model_manager
from app.engines.manager import EngineManager, ModelUse
from app.engines.model_manager import ModelManager
from app.engines.registry import EngineSpec
from app.errors import Busy, NotReady, UnknownModel
from app.generator.resolving import find_model
from app.settings import Settings
from app.types import Load
from tests.support import engine_targets

pytestmark = pytest.mark.unit

NAMES = ("ok", "stand_in", "slow", "missing", "weightless", "crashing", "once", "large")
KNOWN = {name: EngineSpec(name, f"{name}-1b", f"tests.support.engine_targets:{name}") for name in NAMES}


@pytest.fixture(autouse=True)
def _fresh():
    engine_targets.go_on.clear()
    engine_targets.builds.clear()
    yield
    engine_targets.go_on.set()


def models(names: str, **more: object) -> ModelManager:
    variables = {"TTS_FALLBACK_ENGINE": "", "TTS_MODELS": names, **more}
    return ModelManager(Settings(_env_file=None, **variables), KNOWN)


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not ready():  # noqa: ASYNC110 - nothing sets an event when a model is unloaded
            await asyncio.sleep(0.02)


# ---- which models are served


@pytest.mark.parametrize(
    ("variables", "ids"),
    [
        ({"TTS_ENGINE": "ok"}, ("ok-1b",)),
        ({"TTS_ENGINE": "ok", "TTS_MODELS": "stand_in-1b"}, ("ok-1b", "stand_in-1b")),
        ({"TTS_ENGINE": "stand_in", "TTS_MODELS": "ok-1b,stand_in-1b"}, ("stand_in-1b", "ok-1b")),
        ({"TTS_MODELS": "Somebody/OK-1B, stand_in"}, ("ok-1b", "stand_in-1b")),
        ({"TTS_MODELS": "ok,ok-1b,org/ok"}, ("ok-1b",)),
    ],
)
def test_default_model_is_the_engine_of_the_settings_or_the_first_model(
    variables: dict[str, str], ids: tuple[str, ...]
):
    served = ModelManager(Settings(_env_file=None, **{"TTS_FALLBACK_ENGINE": "", **variables}), KNOWN)
    assert served.model_ids == ids
    assert served.requested.model_id == ids[0]


def test_unknown_model_in_the_settings_is_an_error():
    with pytest.raises(ValueError, match=r"TTS_MODELS: 'okay' is not a model\. The models are: .*ok-1b"):
        models("ok,okay")


async def test_request_finds_its_model_by_any_name():
    async with models("ok,stand_in") as served:
        await served.settled()
        for name in ("ok", "OK-1b", "org/ok_1b", "tts-1", "gpt-4o-mini-tts"):
            assert (await served.use(find_model(name, served))).info.id == "ok"
        for name in ("stand_in", "STAND_IN-1B", "org/stand_in-1b"):
            assert (await served.use(find_model(name, served))).info.id == "stand-in"
        with pytest.raises(UnknownModel, match=r"`slow-1b` is not served here\. .*`ok-1b`, `stand_in-1b`"):
            find_model("slow", served)
        with pytest.raises(UnknownModel):
            find_model("another", served)


async def test_names_of_other_models_are_answered_by_the_only_model():
    async with models("ok") as served:
        await served.settled()
        assert (await served.use(find_model("slow-1b", served))).info.id == "ok"


# ---- loading


async def test_other_models_are_loaded_by_their_first_request():
    async with models("ok,stand_in") as served:
        await served.settled()
        assert engine_targets.builds == ["ok"]
        assert served.of("stand_in-1b").status().state == "unloaded"
        uses = await asyncio.gather(*(served.use("stand_in-1b") for _ in range(5)))
        assert engine_targets.builds == ["ok", "stand_in"]
        assert len({id(use.engine) for use in uses}) == 1
        assert not uses[0].is_fallback


async def test_request_waits_for_its_model_and_then_gets_a_retry_after():
    async with models("ok,slow", TTS_LOAD_WAIT_S="0.2") as served:
        await served.settled()
        with pytest.raises(NotReady, match=r"slow-1b is being loaded\. Downloading org/model: 1\.50 of 6\.00") as error:
            await served.use("slow-1b")
        assert error.value.retry_after_s >= 1
        assert (await served.use("ok-1b")).info.id == "ok"  # the other model speaks meanwhile
        waiting = asyncio.create_task(served.load_model("slow-1b"))
        await asyncio.sleep(0)
        engine_targets.go_on.set()
        assert (await waiting).state == "ok"
        assert engine_targets.builds.count("slow") == 1  # a caller who has left has not stopped the load


async def test_load_that_fails_is_reported_and_tried_again(monkeypatch: pytest.MonkeyPatch):
    async with models("ok,once") as served:
        await served.settled()
        for _ in range(2):
            with pytest.raises(NotReady, match="The file is not there yet"):
                await served.use("once-1b")
        assert engine_targets.builds.count("once") == 1  # not at each request
        monkeypatch.setattr(model_manager, "RETRY_UNAVAILABLE_S", 0.0)
        assert (await served.use("once-1b")).info.id == "ok"


async def test_failed_load_is_repeated_when_the_operator_asks():
    async with models("ok,once") as served:
        await served.settled()
        with pytest.raises(NotReady):
            await served.use("once-1b")
        assert (await served.load_model("once-1b")).state == "ok"


async def test_loading_the_default_ends_the_use_of_the_fallback():
    async with models("once,ok", TTS_FALLBACK_ENGINE="stand_in") as served:
        assert (await served.settled()).running == KNOWN["stand_in"]
        assert served.model_ids == ("once-1b", "stand_in-1b", "ok-1b")
        assert (await served.load_model("once-1b")).running == KNOWN["once"]
        assert not served.default.is_fallback


@pytest.mark.parametrize("name", ["missing", "weightless", "crashing"])
async def test_model_that_cannot_run_does_not_affect_other_models(name: str):
    async with models(f"ok,{name}") as served:
        await served.settled()
        kept = served.engine()
        with pytest.raises(NotReady):
            await served.use(f"{name}-1b")
        assert (await served.use("ok-1b")).engine is kept


# ---- unloading


async def test_idle_model_is_unloaded_and_loaded_again():
    async with models("ok,stand_in", TTS_IDLE_UNLOAD_S="0.1") as served:
        engine = (await served.use("stand_in-1b")).engine
        await until(lambda: not engine.healthy and served.of("ok-1b").status().state == "unloaded")
        assert served.load() is None
        assert (await served.use("ok-1b")).engine.healthy


async def test_model_in_use_is_not_unloaded():
    async with models("ok,stand_in", TTS_IDLE_UNLOAD_S="0.05", TTS_LOAD_WAIT_S="0.1") as served:
        use = await served.use("stand_in-1b")
        await asyncio.sleep(0.3)
        assert use.engine.healthy
        with pytest.raises(Busy, match="still speaking"):
            await served.unload_model("stand_in-1b")
        assert (await served.use("stand_in-1b")).engine is use.engine
        engine = use.engine
        del use
        gc.collect()
        await until(lambda: not engine.healthy)


async def test_model_is_not_unloaded_between_its_load_and_its_first_use(monkeypatch: pytest.MonkeyPatch):
    """The unload of idle models may run before the request that has waited for the load."""
    async with models("ok,stand_in") as served:
        await served.settled()
        load = served._load

        async def delayed(manager: EngineManager) -> ModelUse | None:
            use = await load(manager)
            served._settings = served._settings.model_copy(update={"load_wait_s": 0.0})
            with pytest.raises(Busy):
                await served.unload_model("stand_in-1b")
            return use

        monkeypatch.setattr(served, "_load", delayed)
        assert (await served.use("stand_in-1b")).engine.healthy


async def test_load_of_the_engine_keeps_the_model_loaded(monkeypatch: pytest.MonkeyPatch):
    async with models("ok", TTS_LOAD_WAIT_S="0.1") as served:
        await served.settled()
        monkeypatch.setattr(type(served.engine()), "load", Load(1, 8, 0, 64))
        with pytest.raises(Busy):
            await served.unload_model("ok-1b")
        assert served.engine().healthy


async def test_request_during_an_unload_loads_the_model_again():
    async with models("ok,stand_in") as served:
        use = await served.use("stand_in-1b")
        unloading = asyncio.create_task(served.unload_model("stand_in-1b"))
        await asyncio.sleep(0.05)
        later = asyncio.create_task(served.use("stand_in-1b"))
        await asyncio.sleep(0.05)
        assert not later.done()
        first = use.engine
        del use
        await unloading
        assert (await later).engine is not first
        assert not first.healthy


async def test_unloading_a_model_twice_is_not_an_error():
    async with models("ok,stand_in") as served:
        await served.settled()
        for model in ("ok-1b", "ok-1b", "stand_in-1b"):
            assert (await served.unload_model(model)).state == "unloaded"


async def test_shutdown_during_a_load():
    async with models("ok,slow") as served:
        await served.settled()
        task = asyncio.create_task(served.use("slow-1b"))
        await asyncio.sleep(0.05)
    with pytest.raises((NotReady, asyncio.CancelledError)):
        await task


# ---- memory


@pytest.mark.parametrize(("free", "kept"), [([5_000], 2), ([500, 5_000], 1), ([500, 500, 5_000], 0)])
async def test_least_recently_used_models_are_unloaded_first(
    monkeypatch: pytest.MonkeyPatch, free: list[int], kept: int
):
    monkeypatch.setattr(model_manager, "weight_bytes", lambda spec, _: 1_000 if spec.name == "slow" else 0)
    engine_targets.go_on.set()
    async with models("ok,stand_in,slow") as served:
        await served.settled()
        older = (await served.use("stand_in-1b")).engine
        newer = (await served.use("ok-1b")).engine
        found = iter(free)
        monkeypatch.setattr(model_manager, "available_bytes", lambda: next(found))
        assert (await served.use("slow-1b")).engine.healthy
        assert [older.healthy, newer.healthy] == [kept == 2, kept >= 1]


async def test_model_that_is_speaking_is_not_unloaded_for_another_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_manager, "weight_bytes", lambda *_: 1_000)
    monkeypatch.setattr(model_manager, "available_bytes", lambda: 1)
    async with models("ok,stand_in") as served:
        await served.settled()
        use = await served.use("ok-1b")
        assert (await served.use("stand_in-1b")).engine.healthy
        assert use.engine.healthy


async def test_model_that_fails_beside_others_is_loaded_alone():
    """A GPU has too little memory for both models: the build fails until the other model is unloaded."""
    async with models("ok,large") as served:
        await served.settled()
        other = served.engine()
        assert (await served.use("large-1b")).engine.healthy
        assert not other.healthy


async def test_model_that_needs_the_memory_of_a_speaking_model_is_refused():
    async with models("ok,large") as served:
        await served.settled()
        use = await served.use("ok-1b")
        with pytest.raises(NotReady, match=r"cuda:0 has 1\.0 GB free"):
            await served.use("large-1b")
        assert use.engine.healthy
