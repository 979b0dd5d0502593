"""The whole server with Dia and a small random checkpoint. The speech is noise; all other parts are real."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest

from tests.support.commands import run_command
from tests.support.ears import decode
from tests.support.live import environment, serving, wait_until
from tests.support.random_dia import fabricate_dia

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

FRAME_S = 512 / 44_100
SHORT = {"max_audio_length_ms": 800, "response_format": "pcm", "cache": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("dia") / "model")


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("data")
    with serving(
        data, TTS_ENGINE="dia", DIA_MODEL=str(checkpoint), TTS_DTYPE="float32", TTS_FALLBACK_ENGINE="", TTS_OUTBOX_S=2
    ) as served:
        yield served


def speak(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/audio/speech", json={"input": "Hello there.", **SHORT, **body}, timeout=60)


def test_health_names_the_engine(url: str) -> None:
    health = httpx.get(f"{url}/health").json()
    assert (health["status"], health["engine"], health["model"]) == ("ok", "dia", "dia-1.6b")
    assert (health["device"], health["dtype"]) == ("cpu", "float32")


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "wav", "pcm"])
def test_the_official_client_gets_every_format(url: str, audio_format: Any) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        answer = client.audio.speech.create(
            model="dia-1.6b",
            voice="alloy",
            input="Hello there (laughs), you!",
            response_format=audio_format,
            extra_body={"max_audio_length_ms": 800, "cfg_scale": 2.0, "temperature": 1.2, "top_k": 20, "top_p": 0.9},
        )
    assert answer.response.headers["x-tts-engine"] == "dia"
    audio = decode(answer.content, audio_format)
    assert audio.seconds == pytest.approx(0.8, abs=0.15)
    assert audio.loudness_dbfs > -50


def test_guidance_and_seed_determine_the_speech(url: str) -> None:
    first, again = (speak(url, seed=1).content for _ in range(2))
    assert first == again
    others = [speak(url, seed=2), speak(url, seed=1, cfg_scale=1.0), speak(url, seed=1, top_k=3)]
    assert {other.status_code for other in others} == {200}
    assert len({first, *(other.content for other in others)}) == 4


@pytest.mark.slow
async def test_answer_does_not_depend_on_other_requests(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def ask(index: int) -> np.ndarray:
            body = {"input": f"Sentence number {index}.", **SHORT, "seed": index}
            return decode((await http.post("/v1/audio/speech", json=body)).content, "pcm").samples

        alone = [await ask(index) for index in range(2)]
        together = await asyncio.gather(*(ask(index) for index in range(6)))
    for expected, found in zip(alone, together, strict=False):
        assert np.abs(expected - found).max() <= 1 / 32768
    assert len({samples.tobytes() for samples in together}) == 6


def test_first_audio_is_streamed_before_the_speech_ends(url: str) -> None:
    body = {"input": "A long sentence. " * 30, "response_format": "pcm", "cache": False}
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as answer:
        parts = answer.iter_raw()
        assert 0 < len(next(parts)) <= 48_000
        assert httpx.get(f"{url}/health").json()["rows"]["active"] >= 1
    wait_until(lambda: httpx.get(f"{url}/health").json()["rows"]["active"] == 0)


def test_dialogue_gives_one_file(url: str) -> None:
    turns = [{"speaker": n % 2, "voice": ("alloy", "onyx")[n % 2], "text": f"Turn number {n}."} for n in range(4)]
    body = {"turns": turns, "response_format": "wav", "cache": False, "max_audio_length_ms": 2000}
    answer = httpx.post(f"{url}/v1/audio/dialogue", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert 1 < decode(answer.content, "wav").seconds <= 2.01
    tagged = speak(url, input="[S1] Who are you? [S2] A friend. (sighs) [S1] I see.")
    assert tagged.status_code == 200
    assert decode(tagged.content, "pcm").seconds == pytest.approx(0.8, abs=0.1)


def test_unsupported_fields_are_listed_in_the_ignored_header(url: str) -> None:
    answer = speak(url, instructions="Whisper.")
    assert answer.headers["x-tts-ignored"] == "instructions"


def test_converted_weights_of_dia_v01_are_refused(tmp_path: Path) -> None:
    """Weights in the transformers layout beside the config.json of v0.1 are refused.

    The server loads the original files.
    """
    folder = fabricate_dia(tmp_path / "converted")
    v01 = fabricate_dia(tmp_path / "v01", layout_name="nari", release="v0.1")
    (folder / "config.json").write_bytes((v01 / "config.json").read_bytes())
    variables: dict[str, Any] = {"TTS_ENGINE": "dia", "TTS_DTYPE": "float32", "TTS_FALLBACK_ENGINE": ""}
    with serving(tmp_path / "data", wait=False, DIA_MODEL=str(folder), **variables) as served:
        wait_until(lambda: httpx.get(f"{served}/health").json()["status"] == "unhealthy")
        assert "RoPE in cross-attention" in httpx.get(f"{served}/health").json()["reason"]
    with serving(tmp_path / "data", DIA_MODEL=str(v01), **variables) as served:
        assert speak(served).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[S1] Hello there. [S2] Hi (laughs)", "no tags at all <b>"])
def test_command_line_writes_codes(tmp_path: Path, checkpoint: Path, text: str) -> None:
    """The codes equal transformers' greedy codes for the same bytes."""
    from tests.support import dia_oracle as oracle

    arguments = (
        f"say --engine dia --model {checkpoint} --voice none --no-normalize --temperature 0 --max-frames 30 "
        f"--codes {tmp_path}/out.npy -o {tmp_path}/out.wav"
    ).split()
    env = environment(tmp_path / "data", TTS_DTYPE="float32")
    result = run_command((*arguments, text), tmp_path, env, limit_s=120)
    assert result.returncode == 0, result.stderr
    codes = np.load(tmp_path / "out.npy")
    assert codes.dtype == np.int16
    reference = oracle.transformers().DiaForConditionalGeneration.from_pretrained(checkpoint).eval()
    encoded = text.encode().replace(b"[S1]", b"\1").replace(b"[S2]", b"\2")
    [expected] = oracle.generate(reference, [encoded], 30)
    assert np.array_equal(codes, expected.numpy().T)
    audio = decode((tmp_path / "out.wav").read_bytes(), "wav")
    assert audio.seconds == pytest.approx(30 * FRAME_S)
    assert audio.rate_hz == 44_100
