"""Watermarks over HTTP: which audio has one, detection, and a missing watermark package."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from app.audio import watermark
from app.engines import espeak
from app.settings import Settings
from app.types import EngineInfo
from tests.support.ears import decode, loudness_lufs
from tests.support.live import ROOT, create_certificate, environment, serving, settings
from tests.support.signing_certificate import SigningPair, create_pair

pytestmark = pytest.mark.integration

TEXT = "We walked along the river after dinner, and the library closes at eight this evening."


@pytest.fixture(scope="module")
def marking(tmp_path_factory: pytest.TempPathFactory) -> str:
    with serving(tmp_path_factory.mktemp("marking"), TTS_WATERMARK="all") as url:
        yield url


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")
    folder = tmp_path_factory.mktemp("signing")
    with serving(folder, **create_pair(folder / "certificate").variables) as url:
        yield url


def speak(url: str, **fields: object) -> bytes:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        voice = fields.pop("voice", "onyx")
        return client.audio.speech.create(model="tts-1", voice=voice, input=TEXT, extra_body=fields).content


def detect(url: str, data: bytes, prefix: str = "/v1") -> dict[str, object]:
    answer = httpx.post(f"{url}{prefix}/audio/watermark/detect", files={"file": ("x", data)}, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": "mp3"},
        {"response_format": "opus", "sample_rate": 48_000},
        {"response_format": "aac"},
        {"response_format": "wav", "sample_rate": 8_000},
        {"response_format": "mp3", "speed": 1.1},
        {"response_format": "flac", "speed": 2.0},
        {"response_format": "mp3", "max_audio_length_ms": 2500},
    ],
)
def test_watermark_of_this_server_is_detected(marking: str, server: str, fields: dict[str, object]) -> None:
    found = detect(marking, speak(marking, **fields))
    assert found["watermarked"] is True
    assert float(str(found["score"])) > 0.8
    unmarked = detect(marking, speak(server, **fields))
    assert unmarked["watermarked"] is False
    assert float(str(unmarked["score"])) < 0.3


@pytest.mark.parametrize("trained", [True, False])
def test_default_marks_the_speech_of_models_and_not_of_the_offline_voice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    monkeypatch.setattr(espeak, "EngineInfo", lambda **fields: EngineInfo(**{**fields, "trained": trained}))
    default = Settings.model_fields["watermark"].default
    with serving(tmp_path, TTS_WATERMARK=default) as url:
        assert httpx.get(f"{url}/health").json()["watermark"] == {"marked": "model", "reason": None}
        assert detect(url, speak(url), "/api/v1")["watermarked"] is trained


def test_cached_watermarked_audio_equals_the_streamed_audio(marking: str) -> None:
    first, again = speak(marking), speak(marking)
    assert first == again
    assert detect(marking, again)["watermarked"] is True


def test_watermark_changes_neither_length_nor_loudness(marking: str, server: str) -> None:
    """Small differences are allowed, because the length of eSpeak NG's audio varies by a few samples."""
    marked, plain = (decode(speak(url, response_format="pcm"), "pcm") for url in (marking, server))
    assert marked.seconds == pytest.approx(plain.seconds, abs=0.02)
    change = loudness_lufs(marked.samples, 24_000) - loudness_lufs(plain.samples, 24_000)
    assert abs(change) < 0.3


def test_detection_in_a_file_without_audio_is_a_400(server: str) -> None:
    answer = httpx.post(f"{server}/v1/audio/watermark/detect", files={"file": ("x.wav", b"not a sound")})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_reference"
    assert answer.json()["error"]["param"] == "file"
    answer = httpx.post(f"{server}/v1/audio/watermark/detect", data={"x": "y"})
    assert answer.status_code == 400


def test_detection_names_the_metadata_of_a_file(server: str) -> None:
    kept = detect(server, speak(server, provenance=True))
    made = kept["metadata"]
    assert isinstance(made, dict)
    assert (made["model"], made["voices"], made["source_type"]) == ("espeak", ["onyx"], "algorithmicMedia")
    assert abs(made["created_at"] - time.time()) < 60
    assert (kept["watermarked"], kept["c2pa"]) == (False, None)
    plain = detect(server, speak(server))
    assert (plain["watermarked"], plain["metadata"], plain["c2pa"]) == (False, None, None)
    opus = detect(server, speak(server, response_format="opus"))["metadata"]
    assert isinstance(opus, dict)
    assert (opus["model"], opus["created_at"]) == ("espeak", None)


@pytest.mark.parametrize("fields", [{"response_format": "wav"}, {"response_format": "mp3"}, {"response_format": "m4a"}])
def test_files_to_keep_are_signed_and_found(signing: str, fields: dict[str, object], tmp_path: Path) -> None:
    c2pa = pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")
    for _ in range(2):  # generated, and from the cache
        data = speak(signing, provenance=True, **fields)
        file = tmp_path / f"speech.{fields['response_format']}"
        file.write_bytes(data)
        with c2pa.Reader(str(file)) as reader:
            assert reader.get_validation_state() == "Valid"
    assert decode(data, str(fields["response_format"])).seconds > 3
    found = detect(signing, data)
    assert found["metadata"] is not None
    signature = found["c2pa"]
    assert isinstance(signature, dict)
    assert (signature["state"], signature["issuer"], signature["synthetic"]) == ("valid", "Test operator", True)
    assert detect(signing, speak(signing, **fields))["c2pa"] is None  # an answer that is streamed has no signature


def test_captions_with_audio_are_signed(signing: str) -> None:
    pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")
    body = {"input": TEXT, "response_format": "wav", "return_audio": True}
    answer = httpx.post(f"{signing}/v1/audio/captions", json=body, timeout=120)
    assert b"c2pa" in answer.content


def test_signing_needs_a_certificate_that_can_sign(tmp_path: Path) -> None:
    pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")
    pair = create_certificate(tmp_path)
    with pytest.raises(ValueError, match="TTS_C2PA_CERT"), serving(tmp_path, **SigningPair(*pair).variables):
        pass
    with pytest.raises(ValueError, match="TTS_C2PA_CERT is set without TTS_C2PA_KEY"):
        settings(tmp_path, TTS_C2PA_CERT=pair.cert)


@pytest.fixture
def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark, "_package", lambda: None)
    watermark.load.cache_clear()


@pytest.mark.usefixtures("without_the_extra")
def test_missing_watermark_package_is_reported_and_speech_still_works(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        watermark_state = httpx.get(f"{url}/health").json()["watermark"]
        assert watermark_state["marked"] == "nobody"
        assert "pip install" in watermark_state["reason"]
        assert len(speak(url)) > 1000
        answer = httpx.post(f"{url}/v1/audio/watermark/detect", files={"file": ("x.mp3", speak(url))})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_supported")
        found = detect(url, speak(url, provenance=True))  # the metadata are found without the extra
        assert (found["watermarked"], found["score"]) == (None, None)
        assert found["metadata"] is not None


def test_setting_all_without_the_watermark_package_prevents_the_start(tmp_path: Path) -> None:
    code = "from app.audio import watermark; watermark._package = lambda: None; import app.main; app.main.main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path, TTS_WATERMARK="all", PORT="0"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "TTS_WATERMARK=all" in done.stderr
    assert "pip install 'resemble-perth==1.0.1'" in done.stderr
