"""Which engine answers requests, and which status is reported while none does."""

from __future__ import annotations

import asyncio
import logging
import threading
from importlib.metadata import EntryPoint

import pytest

from app.engines import registry
from app.engines.manager import EngineManager
from app.engines.registry import BUILT_IN, BuildContext, EngineSpec, specs
from app.errors import EngineUnavailable, NotReady
from app.settings import Settings
from tests.support import engine_targets

pytestmark = pytest.mark.unit

BUILDERS = (
    "ok",
    "stand_in",
    "slow",
    "broken_off",
    "missing",
    "missing_too",
    "weightless",
    "crashing",
    "unstartable",
    "imports_what_is_not_there",
)
KNOWN = {name: EngineSpec(name, f"{name}-1b", f"tests.support.engine_targets:{name}") for name in BUILDERS} | {
    "absent": EngineSpec("absent", "absent-1b", "tests.unit.no_such_module:build"),
    "misnamed": EngineSpec("misnamed", "misnamed-1b", "tests.support.engine_targets:no_such_function"),
}


@pytest.fixture(autouse=True)
def _fresh():
    engine_targets.go_on.clear()
    yield
    engine_targets.go_on.set()


def host_of(engine: str, fallback: str = "stand_in", **more: object) -> EngineManager:
    return EngineManager(Settings(_env_file=None, TTS_ENGINE=engine, TTS_FALLBACK_ENGINE=fallback, **more), KNOWN)


async def test_thread_that_has_built_an_engine_ends():
    """The buffers that PyTorch and glibc keep for this thread are free again."""
    async with host_of("ok") as host:
        await host.settled()
        thread = engine_targets.build_threads[-1]
        assert thread is not threading.current_thread()
        thread.join(timeout=60)
        assert not thread.is_alive()


async def test_requested_engine_runs():
    async with host_of("ok", TTS_MAX_ROWS=3, TTS_MAX_QUEUE=5) as host:
        status = await host.settled()
        assert (status.state, status.running, status.reason, status.remedy) == ("ok", KNOWN["ok"], "", "")
        assert host.engine() is host.current
        assert host.engine().info.id == "ok"
        assert not host.is_fallback
        assert host.model_ids == ("ok-1b",)
        assert host.load().max_rows == 3
        assert host.load().max_queue == 5
        engine = host.engine()
    assert not engine.healthy  # the manager has stopped the engine
    assert host.status().state == "unhealthy"
    with pytest.raises(NotReady):
        host.engine()


async def test_starting_engine_reports_progress():
    async with host_of("slow") as host:
        for _ in range(200):
            if host.status().progress is not None:
                break
            await asyncio.sleep(0.01)
        status = host.status()
        assert (status.state, status.running) == ("starting", None)
        assert status.progress.done_bytes == 1_500_000_000
        assert host.current is host.load() is None
        assert not host.is_fallback
        assert host.model_ids == ("slow-1b",)
        with pytest.raises(NotReady, match=r"is starting\. Downloading org/model: 1\.50 of 6\.00 GB") as error:
            host.engine()
        assert 1 <= error.value.retry_after_s <= 10
        engine_targets.go_on.set()
        status = await host.settled()
        assert (status.state, status.progress) == ("ok", None)
        assert host.engine().healthy


async def test_fallback_engine_is_reported(caplog):
    async with host_of("missing") as host:
        status = await host.settled()
        assert (status.state, status.requested, status.running) == ("degraded", KNOWN["missing"], KNOWN["stand_in"])
        assert (status.reason, status.remedy) == ("The weights are missing.", "Download them.")
        assert host.is_fallback
        assert host.model_ids == ("missing-1b", "stand_in-1b")
        assert host.engine().info.id == "stand-in"
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    for words in ("missing-1b IS NOT RUNNING", "stand_in-1b ANSWERS", "The weights are missing.", "Download them."):
        assert words in warning.getMessage()


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ("crashing", "ZeroDivisionError"),
        ("unstartable", "MemoryError"),
        ("imports_what_is_not_there", "ModuleNotFoundError"),
        ("misnamed", "AttributeError"),
    ],
)
async def test_crash_at_start_is_reported_without_internal_details(engine, kind, caplog):
    async with host_of(engine) as host:
        status = await asyncio.wait_for(host.settled(), 10)
        assert status.state == "degraded"
        assert f"({kind})" in status.reason
        assert "log" in status.remedy
        for secret in ("secret", "Traceback", "engine_targets"):
            assert secret not in status.reason + status.remedy
        assert host.engine().info.id == "stand-in"
    assert any(record.exc_info and record.exc_info[0].__name__ == kind for record in caplog.records)


async def test_engine_missing_from_this_build_falls_back():
    async with host_of("absent") as host:
        status = await host.settled()
        assert "no absent engine" in status.reason
        assert status.state == "degraded"


@pytest.mark.parametrize("engine", ["missing", "crashing", "unstartable"])
async def test_failed_engine_without_fallback_is_unhealthy(engine):
    async with host_of(engine, fallback="") as host:
        status = await asyncio.wait_for(host.settled(), 10)
        assert (status.state, status.running) == ("unhealthy", None)
        assert status.reason
        assert host.model_ids == (f"{engine}-1b",)
        assert not host.is_fallback
        with pytest.raises(NotReady) as error:
            host.engine()
        assert status.reason in error.value.message
        assert error.value.retry_after_s > 5  # a shorter time is useless, since an earlier retry fails


async def test_failed_download_reports_no_progress():
    async with host_of("broken_off", fallback="") as host:
        status = await host.settled()
        assert (status.state, status.progress) == ("unhealthy", None)
        with pytest.raises(NotReady, match="broke off"):
            host.engine()


async def test_engine_is_not_its_own_fallback():
    async with host_of("missing", fallback="missing") as host:
        assert (await host.settled()).state == "unhealthy"
        assert host.status().reason == "The weights are missing."


@pytest.mark.parametrize("second", ["missing_too", "unstartable"])
async def test_reasons_of_both_failed_engines_are_reported(second):
    async with host_of("missing", fallback=second) as host:
        status = await asyncio.wait_for(host.settled(), 10)
        assert status.state == "unhealthy"
        assert "The weights are missing." in status.reason
        assert ("The extra is missing." if second == "missing_too" else "MemoryError") in status.reason
        assert "Download them." in status.remedy


@pytest.mark.parametrize(("builder", "missing"), [("weightless", True), ("missing", False), ("crashing", False)])
@pytest.mark.parametrize("fallback", ["stand_in", "missing_too", ""])
async def test_missing_weights_are_distinguished_from_other_errors(builder, missing, fallback):
    async with host_of(builder, fallback=fallback) as host:
        assert (await asyncio.wait_for(host.settled(), 10)).missing_weights is missing


async def test_reason_is_a_complete_sentence():
    async with host_of("weightless", fallback="") as host:
        await host.settled()
        with pytest.raises(NotReady, match=r"The hub can't be reached\. Check the network."):
            host.engine()


async def test_status_is_starting_while_the_fallback_loads():
    async with host_of("missing", fallback="slow") as host:
        for _ in range(200):
            if host.status().reason:
                break
            await asyncio.sleep(0.01)
        assert (host.status().state, host.status().reason) == ("starting", "The weights are missing.")
        engine_targets.go_on.set()
        assert (await host.settled()).state == "degraded"


async def test_shutdown_cancels_a_starting_engine():
    async def shut_down_early() -> EngineManager:
        async with host_of("slow") as host:
            for _ in range(200):
                if host.status().progress is not None:
                    break
                await asyncio.sleep(0.01)
        return host

    host = await asyncio.wait_for(shut_down_early(), 5)
    with pytest.raises(NotReady):
        host.engine()
    # The builder's thread must stop too, or the process could not exit.
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 5)


async def test_stopped_engine_is_unhealthy():
    async with host_of("ok") as host:
        await host.settled()
        host.engine()._loop.stop()
        status = host.status()
        assert (status.state, status.running) == ("unhealthy", KNOWN["ok"])
        assert "stopped" in status.reason
        with pytest.raises(NotReady):
            host.engine()
        assert host.current is not None


@pytest.mark.parametrize(
    ("engine", "fallback", "variable"),
    [("nothing", "ok", "TTS_ENGINE"), ("ok", "nothing", "TTS_FALLBACK_ENGINE"), ("", "ok", "TTS_ENGINE")],
)
def test_unknown_engine_name_is_refused(engine, fallback, variable):
    with pytest.raises(ValueError, match=rf"{variable}=.* is not an engine\. The engines are: absent, ") as error:
        host_of(engine, fallback)
    assert "stand_in" in str(error.value)


# ---- the registry


def test_built_in_engines_are_registered():
    assert specs().keys() >= {"csm", "dia", "espeak"}
    assert len({spec.model_id for spec in BUILT_IN}) == len(BUILT_IN)


def plugged(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    def found(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points] if group == "tts_server.engines" else []

    monkeypatch.setattr(registry, "entry_points", found)


async def test_plugin_engine_runs(monkeypatch):
    plugged(monkeypatch, ("mine", "tests.support.engine_targets:ok"))
    known = specs()
    assert known["mine"] == EngineSpec("mine", "mine", "tests.support.engine_targets:ok")
    async with EngineManager(Settings(_env_file=None, TTS_ENGINE="mine"), known) as host:
        assert (await host.settled()).state == "ok"
        assert host.model_ids == ("mine",)


def test_plugin_name_is_case_insensitive(monkeypatch):
    """TTS_ENGINE is case-insensitive."""
    plugged(monkeypatch, ("MyEngine", "tests.support.engine_targets:ok"))
    assert EngineManager(Settings(_env_file=None, TTS_ENGINE="MyEngine"), specs()).requested.model_id == "MyEngine"


def test_plugin_does_not_replace_a_built_in_engine(monkeypatch):
    plugged(monkeypatch, ("espeak", "tests.support.engine_targets:ok"), ("Espeak", "tests.support.engine_targets:ok"))
    assert specs()["espeak"].target == "app.engines.espeak:build"


def test_engine_modules_are_imported_lazily(monkeypatch):
    plugged(monkeypatch, ("broken", "tests.unit.no_such_module:build"))
    with pytest.raises(EngineUnavailable, match="no broken engine") as error:
        specs()["broken"].builder()
    assert "TTS_ENGINE" in error.value.remedy


def test_build_context_forwards_progress_and_cancellation():
    reported: list[object] = []
    context = BuildContext(reported.append, lambda: True)
    context.on_progress("half")
    assert (reported, context.cancelled()) == (["half"], True)
