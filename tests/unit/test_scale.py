"""The Ray deployment without Ray: its options, its start and its health check.

Tests with Ray are in tests/integration/contract.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from app.engines import espeak
from app.engines.csm import loading as csm_loading
from app.engines.dia import loading as dia_loading
from app.engines.registry import specs
from app.scale import ray
from app.settings import Settings
from app.wiring import create_app
from tests.support.live import ROOT, environment, settings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


def configured(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def test_ray_counts_with_the_rows_of_the_engines():
    rows = {name: (spec.rows_cpu, spec.rows_gpu) for name, spec in specs().items()}
    assert rows["csm"] == (csm_loading.ROWS_CPU, csm_loading.ROWS_GPU)
    assert rows["dia"] == (dia_loading.ROWS_CPU, dia_loading.ROWS_GPU)
    assert rows["espeak"] == (espeak.AUTO_ROWS, espeak.AUTO_ROWS)
    for name in ("csm", "dia", "espeak"):
        for gpus, auto in enumerate(rows[name]):
            chosen = configured(TTS_ENGINE=name, TTS_MAX_QUEUE=10)
            options = ray.options_for(chosen, gpus=gpus)
            assert options["max_ongoing_requests"] == auto + 10 + ray.SPARE_REQUESTS


def test_unknown_engine_is_an_error_under_ray():
    with pytest.raises(ValueError, match="TTS_ENGINE='none'"):
        ray.options_for(configured(TTS_ENGINE="none"), gpus=0)


def test_server_answers_429_before_ray_does():
    for values in ({}, {"TTS_MAX_ROWS": 4, "TTS_MAX_QUEUE": 0}, {"TTS_ENGINE": "espeak"}):
        chosen = configured(**values)
        options = ray.options_for(chosen, gpus=1)
        assert options["max_ongoing_requests"] > chosen.rows(32) + chosen.max_queue
        assert options["backpressure_config"] == {"status_code": 429, "retry_after_s": 1}


def test_running_answers_have_the_shutdown_grace_to_finish():
    options = ray.options_for(configured(TTS_SHUTDOWN_GRACE_S=77, TTS_REPLICAS="2-6", TTS_MAX_ROWS=10), gpus=0)
    assert options["graceful_shutdown_timeout_s"] == 77
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 6)
    assert scaling["target_ongoing_requests"] == pytest.approx(7)
    variables = ray.environment(7200)
    assert variables["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == "7200"
    assert (variables["RAY_USAGE_STATS_ENABLED"], variables["RAY_worker_niceness"]) == ("0", "0")


@pytest.mark.parametrize(("written", "found"), [("1", (1, 1)), ("3", (3, 3)), ("1-8", (1, 8)), (" 2 - 4 ", (2, 4))])
def test_replica_range_is_read(written: str, found: tuple[int, int]):
    assert configured(TTS_REPLICAS=written).replica_range == found


@pytest.mark.parametrize("written", ["0", "-1", "8-1", "many", "1-2-3"])
def test_invalid_replica_range_is_rejected(written: str):
    with pytest.raises(ValidationError, match="must be a number"):
        configured(TTS_REPLICAS=written)


@pytest.mark.parametrize(
    ("values", "in_cluster", "gpus"),
    [
        ({}, 0, 0),
        ({}, 4, 1),
        ({"TTS_DEVICE": "cuda"}, 0, 1),
        ({"TTS_DEVICE": "cpu"}, 4, 0),
        ({"TTS_ENGINE": "espeak"}, 4, 0),
        ({"TTS_ENGINE": "espeak", "TTS_MODELS": "csm-1b"}, 4, 1),
        ({"TTS_DEVICES": "cpu,cpu"}, 4, 0),
    ],
)
def test_gpus_of_one_replica(values: dict[str, str], in_cluster: int, gpus: int):
    assert ray.gpus_for(configured(**values), in_cluster) == gpus


def test_numbered_gpus_are_rejected_under_ray():
    with pytest.raises(ValueError, match="TTS_DEVICE=cuda"):
        ray.gpus_for(configured(TTS_DEVICE="cuda:1"), 4)


async def test_start_is_complete_when_the_engine_runs(tmp_path: Path):
    app = create_app(settings(tmp_path))
    sent: list[str] = []
    received = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        return {"type": next(received)}

    async def send(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            assert (await ray.get(app, "/health"))[1]["status"] == "ok"
        sent.append(message["type"])

    await ray.started_when_settled(app)({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_stopped_engine_fails_the_health_check(tmp_path: Path):
    replica = ray.Replica.__new__(ray.Replica)
    replica._app = create_app(settings(tmp_path))
    async with replica._app.router.lifespan_context(replica._app):
        while (await ray.get(replica._app, "/health"))[1]["status"] == "starting":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await replica.check_health()
    with pytest.raises(RuntimeError, match="has stopped"):
        await replica.check_health()


@pytest.mark.parametrize(
    ("variables", "words"),
    [({"TTS_REPLICAS": "no"}, "TTS_REPLICAS"), ({"PORT": "0"}, "--ray needs Ray")],
)
def test_invalid_configuration_ends_the_start_with_a_message(tmp_path: Path, variables: dict[str, str], words: str):
    if find_spec("ray") is not None:  # if Ray is installed, the next check can't raise
        words = {"--ray needs Ray": "PORT"}.get(words, words)
    done = subprocess.run(
        [sys.executable, "-m", "app.main", "--ray"],
        cwd=ROOT,
        env=environment(tmp_path, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
