"""The Ray deployment as far as it can be tested without Ray: its numbers, its start, its health.

The rest is in tests/integration/contract.
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
from app.scale import ray
from app.settings import Settings
from app.wiring import assemble
from tests.support.live import ROOT, environment, settings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


def given(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def test_the_rows_that_ray_reckons_with_are_the_engines():
    assert (ray.ROWS_CPU, ray.ROWS_GPU) == (csm_loading.ROWS_CPU, csm_loading.ROWS_GPU)
    assert espeak.AUTO_ROWS == ray.ROWS_OFFLINE


def test_the_server_refuses_before_ray_does():
    for values in ({}, {"TTS_MAX_ROWS": 4, "TTS_MAX_QUEUE": 0}, {"TTS_ENGINE": "espeak"}):
        chosen = given(**values)
        options = ray.options_for(chosen, gpus=1)
        assert options["max_ongoing_requests"] > chosen.rows(32) + chosen.max_queue
        assert options["backpressure_config"] == {"status_code": 429, "retry_after_s": 1}


def test_answers_that_sound_may_end():
    options = ray.options_for(given(TTS_SHUTDOWN_GRACE_S=77, TTS_REPLICAS="2-6", TTS_MAX_ROWS=10), gpus=0)
    assert options["graceful_shutdown_timeout_s"] == 77
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 6)
    assert scaling["target_ongoing_requests"] == pytest.approx(7)
    wanted = ray.environment(7200)
    assert wanted["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == "7200"
    assert (wanted["RAY_USAGE_STATS_ENABLED"], wanted["RAY_worker_niceness"]) == ("0", "0")


@pytest.mark.parametrize(("written", "found"), [("1", (1, 1)), ("3", (3, 3)), ("1-8", (1, 8)), (" 2 - 4 ", (2, 4))])
def test_how_many_replicas(written: str, found: tuple[int, int]):
    assert given(TTS_REPLICAS=written).replica_range == found


@pytest.mark.parametrize("written", ["0", "", "-1", "8-1", "many", "1-2-3"])
def test_no_such_number_of_replicas(written: str):
    with pytest.raises(ValidationError, match="must be a number"):
        given(TTS_REPLICAS=written)


@pytest.mark.parametrize(
    ("values", "in_cluster", "gpus"),
    [
        ({}, 0, 0),
        ({}, 4, 1),
        ({"TTS_DEVICE": "cuda"}, 0, 1),
        ({"TTS_DEVICE": "cpu"}, 4, 0),
        ({"TTS_ENGINE": "espeak"}, 4, 0),
        ({"TTS_DEVICES": "cpu,cpu"}, 4, 0),
    ],
)
def test_how_many_gpus_a_replica_takes(values: dict[str, str], in_cluster: int, gpus: int):
    assert ray.gpus_for(given(**values), in_cluster) == gpus


def test_ray_gives_out_the_gpus():
    with pytest.raises(ValueError, match="TTS_DEVICE=cuda"):
        ray.gpus_for(given(TTS_DEVICE="cuda:1"), 4)


async def test_a_replica_has_started_when_its_engine_has(tmp_path: Path):
    app = assemble(settings(tmp_path))
    said: list[str] = []
    heard = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        return {"type": next(heard)}

    async def send(message: Any) -> None:
        if message["type"] == "lifespan.startup.complete":
            assert (await ray.get(app, "/health"))[1]["status"] == "ok"
        said.append(message["type"])

    await ray.started_when_settled(app)({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_an_unhealthy_replica_says_so(tmp_path: Path):
    replica = ray.Replica.__new__(ray.Replica)
    replica._app = assemble(settings(tmp_path))
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
def test_what_is_missing_is_said(tmp_path: Path, variables: dict[str, str], words: str):
    if find_spec("ray") is not None:  # in its environment, the next thing is missing
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
