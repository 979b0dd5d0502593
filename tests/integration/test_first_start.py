"""First start while weights are downloading, or are gated or unreachable, with and without a fallback engine."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from app import wiring
from app.engines.registry import EngineSpec, specs
from tests.support.fake_hub import FakeHub
from tests.support.live import Process, serving, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

NOWHERE = "http://127.0.0.1:9"  # no server listens on this port
REPO = "sesame/csm-1b"
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": os.urandom(600_000),
}


@pytest.mark.slow
def test_missing_weights_start_the_offline_voice_and_degrade_health(tmp_path: Path) -> None:
    with Process(tmp_path, TTS_ENGINE="csm", HF_ENDPOINT=NOWHERE) as process:
        process.wait("/health")
        process.wait("/ready")
        health = httpx.get(f"{process.url}/health").json()
        assert health["status"] == "degraded"
        assert health["requested_engine"] == "csm"
        assert health["engine"] == "espeak"
        assert "cannot reach" in health["reason"]
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="any", max_retries=0) as client:
            for model in ("csm-1b", "espeak", "tts-1"):
                answer = client.audio.speech.create(
                    model=model,
                    voice="alloy",
                    input="Who is speaking?",
                    instructions="Cheerfully.",
                    extra_body={"temperature": 0.7, "cfg_scale": 3.0},
                )
                assert answer.response.headers["x-tts-engine"] == "espeak"
                assert answer.response.headers["x-tts-ignored"] == "instructions, cfg_scale, temperature"
            with pytest.raises(openai.NotFoundError):
                client.audio.speech.create(model="gpt-5", voice="alloy", input="Nobody.")
            listed = {model.id: model.to_dict() for model in client.models.list()}
            assert listed["csm-1b"]["status"] == "missing_weights"
            assert listed["espeak"]["status"] == "ready"
            assert "dia-1.6b" not in listed
    console = process.console()
    assert "csm-1b IS NOT RUNNING: espeak ANSWERS INSTEAD" in console
    assert "CSM_MODEL" in console


def test_missing_weights_without_a_fallback_engine_give_status_503_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with serving(tmp_path, wait=False, TTS_ENGINE="csm", TTS_FALLBACK_ENGINE="") as url:
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 503)
        health = httpx.get(f"{url}/health").json()
        assert health["status"] == "unhealthy"
        assert httpx.get(f"{url}/ready").status_code == 503
        answer = httpx.post(f"{url}/v1/audio/speech", json={"input": "Anybody?"})
        assert answer.status_code == 503
        assert "cannot reach" in answer.json()["error"]["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert {model["status"] for model in httpx.get(f"{url}/v1/models").json()["data"]} == {"missing_weights"}


def test_failed_engine_is_not_reported_as_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = EngineSpec("crashing", "crashing-1b", "tests.support.engine_targets:crashing")
    monkeypatch.setattr(wiring.registry, "specs", lambda: {"crashing": crashing, **specs()})
    with serving(tmp_path, TTS_ENGINE="crashing") as url:
        states = {model["id"]: model["status"] for model in httpx.get(f"{url}/v1/models").json()["data"]}
    assert states["crashing-1b"] == "failed"
    assert states["espeak"] == states["tts-1"] == "ready"


def test_normalizer_is_warmed_up_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed = threading.Event()
    monkeypatch.setattr(wiring.Normalizer, "warm", lambda _: warmed.set())
    with serving(tmp_path):
        assert warmed.wait(5)


@pytest.mark.slow
def test_health_reports_the_progress_of_a_download(tmp_path: Path) -> None:
    with FakeHub({REPO: MODEL}) as hub:
        hub.bytes_per_s = 100_000
        with Process(tmp_path, TTS_ENGINE="csm", HF_ENDPOINT=hub.url) as process:
            process.wait("/health")  # the port is open while the weights are downloading
            assert httpx.get(f"{process.url}/health").json()["status"] == "starting"
            process.wait("/ready", 503)
            ready_response = httpx.get(f"{process.url}/ready")
            assert 1 <= int(ready_response.headers["retry-after"]) <= 30
            answer = httpx.post(f"{process.url}/v1/audio/speech", json={"input": "Already?"})
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "server_error"
            assert httpx.get(f"{process.url}/v1/models/csm-1b").json()["status"] == "loading"
            progress_reports = []
            while (health := httpx.get(f"{process.url}/health").json())["status"] == "starting":
                if health["download"]:
                    progress_reports.append(health["download"])
            assert len(progress_reports) > 3
            last = progress_reports[-1]
            assert 0 < last["done_bytes"] <= last["total_bytes"] == sum(len(data) for data in MODEL.values())
            assert last["rate_bytes_s"] > 0
            assert any(progress["eta_s"] is not None for progress in progress_reports)
            assert [p["done_bytes"] for p in progress_reports] == sorted(p["done_bytes"] for p in progress_reports)
            process.wait("/ready", 200)


HINTS = ("https://huggingface.co/sesame/csm-1b", "HF_TOKEN", "CSM_MODEL=")


def test_gated_model_error_names_the_licence_the_token_and_a_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub({REPO: MODEL}) as hub:
        hub.gated = {REPO}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "")
        with serving(tmp_path, TTS_ENGINE="csm") as url:
            health = httpx.get(f"{url}/health").json()
            assert health["status"] == "degraded"
            assert all(hint in f"{health['reason']} {health['remedy']}" for hint in HINTS)


@pytest.mark.slow
def test_token_without_access_is_named_but_not_logged(tmp_path: Path) -> None:
    token = "hf_secretsecretsecret"
    with FakeHub({REPO: MODEL}) as hub:
        hub.gated = {REPO}
        with Process(tmp_path, TTS_ENGINE="csm", HF_ENDPOINT=hub.url, HF_TOKEN=token) as process:
            process.wait("/ready", 200)
            health = httpx.get(f"{process.url}/health").json()
            assert health["status"] == "degraded"
            error_text = f"{health['reason']} {health['remedy']}"
            console = process.console()
            for hint in HINTS:
                assert hint in error_text
                assert hint in console
            everything = console + json.dumps(httpx.get(f"{process.url}/debug").json())
            everything += (tmp_path / "logs" / "server.log").read_text()
            assert token not in everything


def test_server_stops_during_a_download(tmp_path: Path) -> None:
    with FakeHub({REPO: MODEL}) as hub:
        hub.bytes_per_s = 20_000
        with Process(tmp_path, TTS_ENGINE="csm", HF_ENDPOINT=hub.url) as process:
            process.wait("/health")
            process.child.terminate()
            assert process.child.wait(10) in (0, -signal.SIGTERM)
    assert "Traceback" not in process.console()
