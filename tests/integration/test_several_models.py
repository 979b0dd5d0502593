"""Several models in one server: each request is spoken by its model, and models are loaded and unloaded while other
models speak."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from app.runtime.memory import resident_bytes
from tests.support.ears import decode
from tests.support.live import serving, wait_until

pytestmark = pytest.mark.integration

MODELS = ("csm-1b", "dia-1.6b", "espeak")


def variables(csm: Path, dia: Path, **more: object) -> dict[str, object]:
    return {
        "TTS_ENGINE": "espeak",
        "TTS_MODELS": ",".join(MODELS),
        "CSM_MODEL": str(csm),
        "DIA_MODEL": str(dia),
        "TTS_DTYPE": "float32",
        "TTS_MAX_ROWS": 2,
        **more,
    }


def speak(url: str, model: str, text: str = "Hello there.", **more: object) -> httpx.Response:
    body = {"model": model, "input": text, "response_format": "wav", "max_audio_length_ms": 800, "cache": False, **more}
    return httpx.post(f"{url}/v1/audio/speech", json=body, timeout=120)


def states(url: str) -> dict[str, str]:
    return {each["id"]: each["status"] for each in httpx.get(f"{url}/health").json()["models"]}


def order(url: str, model: str, what: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/models/{model}/{what}", timeout=120)


def test_each_model_speaks_and_is_unloaded(tmp_path: Path, tiny_csm: Path, tiny_dia: Path) -> None:
    with serving(tmp_path, **variables(tiny_csm, tiny_dia)) as url:
        assert states(url) == {"espeak": "ready", "csm-1b": "unloaded", "dia-1.6b": "unloaded"}
        for model, engine in zip(MODELS, ("csm", "dia", "espeak"), strict=True):
            answer = speak(url, model)
            assert answer.status_code == 200, answer.text
            assert answer.headers["X-TTS-Engine"] == engine
            assert answer.headers.get("X-TTS-Ignored") is None
            assert decode(answer.content, "wav").seconds > 0.1
        assert set(states(url).values()) == {"ready"}
        assert speak(url, "tts-1").headers["X-TTS-Engine"] == "espeak"  # the default model
        for model, engine in (("csm-1b", "csm"), ("eleven_v3", "espeak")):
            body = {"text": "Hello.", "model_id": model}
            with httpx.stream("POST", f"{url}/v1/text-to-speech/alloy/stream", json=body, timeout=120) as elevenlabs:
                assert elevenlabs.headers["X-TTS-Engine"] == engine
        listed = {each["id"]: each for each in httpx.get(f"{url}/v1/models").json()["data"]}
        assert (listed["csm-1b"]["clones"], listed["espeak"]["clones"]) == (True, False)
        assert all(listed[model]["loaded"] for model in MODELS)
        metrics = httpx.get(f"{url}/metrics").text
        assert 'tts_model_loaded{model="csm-1b"} 1.0' in metrics

        gone = order(url, "csm-1b", "unload")
        assert (gone.status_code, gone.json()["status"], gone.json()["loaded"]) == (200, "unloaded", False)
        assert 'tts_model_loaded{model="csm-1b"} 0.0' in httpx.get(f"{url}/metrics").text
        assert speak(url, "dia-1.6b").status_code == 200
        back = order(url, "csm-1b", "load")
        assert (back.status_code, back.json()["status"], back.json()["parameters"] is None) == (200, "ready", False)

        assert order(url, "espeak", "unload").json()["status"] == "unloaded"  # the default too
        health = httpx.get(f"{url}/health").json()
        assert (health["status"], health["engine"]) == ("ok", None)
        assert httpx.get(f"{url}/ready").status_code == 200
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            sound = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.", response_format="wav")
        assert decode(sound.content, "wav").seconds > 0.1


def test_unknown_and_foreign_models(tmp_path: Path, tiny_csm: Path, tiny_dia: Path) -> None:
    with serving(tmp_path, **variables(tiny_csm, tiny_dia, TTS_MODELS="espeak,csm-1b")) as url:
        for name in ("dia-1.6b", "nari-labs/Dia-1.6B", "another"):
            answer = speak(url, name)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert "csm-1b" in answer.text or "espeak" in answer.text
        for name in ("another", "dia-1.6b"):
            assert order(url, name, "load").status_code == 404
        assert states(url)["csm-1b"] == "unloaded"
        assert speak(url, "sesame/CSM-1B").headers["X-TTS-Engine"] == "csm"


def test_paths_of_actions_are_no_model_ids(http: httpx.Client) -> None:
    for action in ("load", "unload"):
        assert http.options(f"/v1/models/espeak/{action}").headers["Allow"] == "POST"
        assert http.get(f"/v1/models/org/espeak/{action}").status_code == 405
    assert http.get("/v1/models/org/espeak").status_code == 200
    assert http.post("/v1/models/org/espeak/load").json()["id"] == "espeak"


def test_model_that_cannot_be_loaded_says_why(tmp_path: Path, tiny_dia: Path) -> None:
    (tmp_path / "empty").mkdir()
    with serving(tmp_path, **variables(tmp_path / "empty", tiny_dia)) as url:
        for answer in (speak(url, "csm-1b"), order(url, "csm-1b", "load")):
            assert answer.status_code == 503
            assert "CSM_MODEL" in answer.text
            assert int(answer.headers["Retry-After"]) >= 1
        assert states(url)["csm-1b"] == "missing_weights"
        assert speak(url, "espeak").status_code == 200
        assert httpx.get(f"{url}/health").json()["status"] == "ok"


def test_only_admin_keys_load_and_unload(tmp_path: Path, tiny_csm: Path, tiny_dia: Path) -> None:
    with serving(tmp_path, **variables(tiny_csm, tiny_dia, TTS_API_KEYS="secret-key-of-the-admin")) as url:
        for what in ("load", "unload"):
            assert order(url, "csm-1b", what).status_code == 401
            sent = {"Authorization": "Bearer secret-key-of-the-admin"}
            assert httpx.post(f"{url}/v1/models/csm-1b/{what}", headers=sent, timeout=60).status_code == 200


@pytest.mark.slow
def test_switching_models_breaks_no_stream(tmp_path: Path, tiny_csm: Path, tiny_dia: Path) -> None:
    """Answers of one model continue while another model is repeatedly loaded and unloaded."""
    with serving(tmp_path, **variables(tiny_csm, tiny_dia, TTS_IDLE_UNLOAD_S=0.2)) as url:
        alone = decode(speak(url, "csm-1b", seed=7, max_audio_length_ms=5_000).content, "wav").samples
        answers: list[httpx.Response] = []
        done = threading.Event()

        def stream() -> None:
            while not done.is_set():
                answers.append(speak(url, "csm-1b", seed=7, max_audio_length_ms=5_000))

        threads = [threading.Thread(target=stream) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                assert speak(url, "dia-1.6b").status_code == 200
                assert order(url, "dia-1.6b", "unload").status_code == 200
        finally:
            done.set()
            for thread in threads:
                thread.join(120)
        assert len(answers) >= 2
        assert {answer.status_code for answer in answers} == {200}
        for answer in answers:
            audio = decode(answer.content, "wav").samples
            assert len(audio) == len(alone)
            assert np.abs(audio - alone).max() < 1e-3  # sums of floats depend on the number of rows


@pytest.mark.slow
def test_idle_model_frees_its_memory(tmp_path: Path, tiny_csm: Path, tiny_dia: Path) -> None:
    with serving(tmp_path, **variables(tiny_csm, tiny_dia)) as url:
        sizes = []
        for _ in range(10):
            assert speak(url, "csm-1b").status_code == 200
            assert order(url, "csm-1b", "unload").status_code == 200
            sizes.append(resident_bytes())
        assert max(sizes[5:]) <= min(sizes[2:5]) * 1.03


def test_first_answer_after_an_idle_unload(tmp_path: Path, tiny_csm: Path, tiny_dia: Path) -> None:
    with serving(tmp_path, **variables(tiny_csm, tiny_dia, TTS_ENGINE="csm", TTS_IDLE_UNLOAD_S=0.2)) as url:
        assert speak(url, "csm-1b").status_code == 200
        wait_until(lambda: states(url)["csm-1b"] == "unloaded")
        answer = speak(url, "tts-1")
        assert (answer.status_code, answer.headers["X-TTS-Engine"]) == (200, "csm")


def test_request_that_waits_too_long_for_its_model_gets_status_503(
    tmp_path: Path, tiny_csm: Path, tiny_dia: Path
) -> None:
    with serving(tmp_path, **variables(tiny_csm, tiny_dia, TTS_LOAD_WAIT_S=0)) as url:
        answer = speak(url, "csm-1b")
        assert answer.status_code == 503
        assert "is being loaded" in answer.json()["error"]["message"]
        deadline_s = time.monotonic() + 60
        while (answer := speak(url, "csm-1b")).status_code == 503:
            assert time.monotonic() < deadline_s
            time.sleep(float(answer.headers["Retry-After"]) / 10)
        assert answer.headers["X-TTS-Engine"] == "csm"
