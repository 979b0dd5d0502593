"""The whole server with two engines on the devices `cpu,cpu`: one port, /health for each device, and a failing
device."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.engines import pool
from tests.support.live import serving, wait_until
from tests.unit.test_pool import kill

if TYPE_CHECKING:
    from app.engines.registry import BuildContext, EngineSpec
    from app.settings import Settings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture
def built_engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the engines that servers build during a test. The test breaks them."""
    kept: list[Any] = []
    build = pool.build

    def remember(spec: EngineSpec, settings: Settings, context: BuildContext) -> Any:
        kept.append(build(spec, settings, context))
        return kept[-1]

    monkeypatch.setattr(pool, "build", remember)
    return kept


@pytest.mark.slow
def test_one_of_two_devices_dies(tmp_path: Path, built_engines: list[Any]) -> None:
    from tests.support.random_csm import fabricate_csm

    folder = fabricate_csm(tmp_path / "model")
    body = {"input": "Hello there.", "max_audio_length_ms": 800, "response_format": "pcm", "cache": False}
    long = {"input": "word " * 60, "max_audio_length_ms": 20_000, "response_format": "pcm", "cache": False}
    with serving(
        tmp_path, TTS_ENGINE="csm", CSM_MODEL=str(folder), TTS_DEVICES="cpu,cpu", TTS_MAX_ROWS=2, TTS_FALLBACK_ENGINE=""
    ) as url:
        health = httpx.get(f"{url}/health").json()
        assert (health["status"], health["device"], health["rows"]["limit"]) == ("ok", "cpu,cpu", 4)
        assert [each["status"] for each in health["devices"]] == ["ok", "ok"]
        ends: dict[int, str] = {}
        begun = threading.Barrier(3)

        def listen(number: int) -> None:
            with httpx.stream("POST", f"{url}/v1/audio/speech", json={**long, "seed": number}, timeout=60) as answer:
                pieces = answer.iter_raw()
                next(pieces)
                begun.wait(30)
                try:
                    ends[number] = f"{sum(map(len, pieces)) > 100_000}"
                except httpx.RemoteProtocolError:
                    ends[number] = "cut"

        listeners = [threading.Thread(target=listen, args=(number,)) for number in range(2)]
        for listener in listeners:
            listener.start()
        begun.wait(30)
        wait_until(lambda: [each["rows"]["active"] for each in httpx.get(f"{url}/health").json()["devices"]] == [1, 1])
        kill(built_engines[0]._members[0].engine)
        for listener in listeners:
            listener.join(60)
        assert sorted(ends.values()) == ["True", "cut"]
        answers = [httpx.post(f"{url}/v1/audio/speech", json={**body, "seed": n}, timeout=60) for n in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        health = httpx.get(f"{url}/health")
        assert health.status_code == 200
        assert health.json()["status"] == "degraded"
        assert "cpu: The engine of this device has stopped." in health.json()["reason"]
        assert [each["status"] for each in health.json()["devices"]] == ["unhealthy", "ok"]
        assert httpx.get(f"{url}/ready").status_code == 200
        metrics = httpx.get(f"{url}/metrics").text
        assert 'tts_device_up{device="0:cpu"} 0.0' in metrics
        assert 'tts_device_up{device="1:cpu"} 1.0' in metrics
        assert "tts_rows_limit 2.0" in metrics
        kill(built_engines[0]._members[1].engine)
        assert httpx.get(f"{url}/health").json()["status"] == "unhealthy"
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.post(f"{url}/v1/audio/speech", json=body).status_code == 503
