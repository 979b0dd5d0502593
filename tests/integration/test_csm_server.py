"""The whole server over CSM with a small random checkpoint: what it says is noise, how it says it is not."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest

from app.audio.encoders import open_encoder
from app.audio.formats import AUDIO_FORMATS
from tests.support.ears import decode
from tests.support.live import ROOT, environment, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

FRAME_S = 0.08
SHORT = {"max_audio_length_ms": 800, "response_format": "pcm", "cache": False}


def fabricate(folder: Path, layout: str) -> Path:
    command = [sys.executable, "-m", "bench.fabricate", "csm", "--size", "tiny", "--layout", layout, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("csm") / "model", "transformers")


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("data")
    with serving(
        data, TTS_ENGINE="csm", CSM_MODEL=str(checkpoint), TTS_DTYPE="float32", TTS_FALLBACK_ENGINE="", TTS_OUTBOX_S=2
    ) as served:
        yield served


def speak(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/audio/speech", json={"input": "Hello there.", **SHORT, **body}, timeout=60)


def test_health_names_the_engine(url: str) -> None:
    health = httpx.get(f"{url}/health").json()
    assert (health["status"], health["engine"], health["model"]) == ("ok", "csm", "csm-1b")
    assert (health["device"], health["dtype"]) == ("cpu", "float32")
    assert health["rows"]["limit"] == 8


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_the_official_client_gets_every_format(url: str, audio_format: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        answer = client.audio.speech.create(
            model="csm-1b",
            voice="alloy",
            input="Hello there.",
            response_format=audio_format,
            extra_body={"max_audio_length_ms": 800, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
        )
    assert answer.response.headers["x-tts-engine"] == "csm"
    heard = decode(answer.content, audio_format)
    assert heard.seconds == pytest.approx(0.8, abs=0.15)
    assert heard.loudness_dbfs > -50


def test_what_it_lacks_is_told(url: str) -> None:
    answer = speak(url, cfg_scale=3.0)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "cfg_scale"
    assert speak(url, instructions="Whisper.").headers["x-tts-ignored"] == "instructions"
    assert speak(url, input="x " * 20_001).status_code == 400


def test_seeds_decide(url: str) -> None:
    first, again, other = (speak(url, seed=seed).content for seed in (1, 1, 2))
    assert first == again
    assert first != other
    greedy = {speak(url, seed=seed, temperature=0).content for seed in (1, 2)}
    assert len(greedy) == 1


async def test_an_answer_does_not_depend_on_its_company(url: str) -> None:
    """The same codes, so the same sound to the last bit of int16, alone and among seven others that come and go."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def ask(index: int) -> np.ndarray:
            body = {"input": f"Sentence number {index}.", **SHORT, "seed": index}
            return decode((await http.post("/v1/audio/speech", json=body)).content, "pcm").samples

        alone = [await ask(index) for index in range(4)]
        together = await asyncio.gather(*(ask(index) for index in range(8)))
    for mine, among in zip(alone, together, strict=False):
        assert np.abs(mine - among).max() <= 1 / 32768
    assert len({sound.tobytes() for sound in together}) == 8


def test_first_sound_comes_while_the_rest_is_unspoken(url: str) -> None:
    body = {"input": "A sentence. " * 30, "response_format": "pcm", "cache": False}
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as answer:
        pieces = answer.iter_raw()  # kept: httpx closes the connection when this goes
        first = next(pieces)
        assert 0 < len(first) <= 48_000
        assert httpx.get(f"{url}/health").json()["rows"]["active"] == 1
    wait_until(lambda: httpx.get(f"{url}/health").json()["rows"]["active"] == 0, 5)


def test_sentences_go_on_in_one_row_and_pauses_stay(url: str) -> None:
    one = decode(speak(url, input="One.", max_audio_length_ms=None, seed=3).content, "pcm").seconds
    body = {"input": "One. [pause:1s] Two.", "max_audio_length_ms": None, "seed": 3}
    heard = decode(speak(url, **body).content, "pcm")
    assert heard.seconds > one + 1
    quiet = np.abs(heard.samples) < 1e-4
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(np.int8), [0]])))
    assert max(np.diff(edges)[::2]) / 24_000 >= 0.98


def test_parallel_sentences_take_rows_and_keep_their_order(url: str) -> None:
    sentences = ["Go on now.", "I am up."]
    body = {"input": " ".join(sentences), "seed": 3, "max_audio_length_ms": None, "enhance": False, "parallel": True}
    active = 0
    with httpx.stream("POST", f"{url}/v1/audio/speech", json={**SHORT, **body}, timeout=60) as answer:
        assert "x-tts-ignored" not in answer.headers
        streamed = bytearray()
        for piece in answer.iter_raw():
            streamed += piece
            if active < 2:
                active = httpx.get(f"{url}/health").json()["rows"]["active"]
    assert active == 2
    alone = [
        decode(speak(url, **(body | {"input": text, "seed": 3 + index})).content, "pcm").samples
        for index, text in enumerate(sentences)
    ]
    heard = decode(bytes(streamed), "pcm").samples
    gap = round(0.1 * 24_000)
    assert len(heard) == sum(map(len, alone)) + gap
    at = 0
    for sound in alone:  # each as if it had been asked for by itself, in the text's order
        assert np.abs(heard[at : at + len(sound)] - sound).max() <= 1 / 32768
        at += len(sound) + gap


def test_the_original_layout_needs_its_codec(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "original", "original")
    codec = next(path.parent for path in folder.rglob("config.json") if path.parent != folder)
    variables = {"TTS_ENGINE": "csm", "CSM_MODEL": str(folder), "TTS_DTYPE": "float32", "TTS_FALLBACK_ENGINE": ""}
    with serving(tmp_path / "data", CSM_CODEC=str(codec), **variables) as served:
        assert speak(served).status_code == 200
    with serving(tmp_path / "data", CSM_CODEC=str(tmp_path / "nowhere"), wait=False, **variables) as served:
        wait_until(lambda: httpx.get(f"{served}/health").json()["status"] == "unhealthy")
        assert "CSM_CODEC" in httpx.get(f"{served}/health").json()["reason"]


def test_a_damaged_checkpoint_is_told(tmp_path: Path, checkpoint: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    with serving(
        tmp_path / "data", TTS_ENGINE="csm", CSM_MODEL=str(broken), TTS_DTYPE="float32", TTS_FALLBACK_ENGINE="espeak"
    ) as served:
        health = httpx.get(f"{served}/health").json()
        assert health["status"] == "degraded"
        assert health["engine"] == "espeak"
        assert "cut short" in health["reason"]


def test_codes_from_the_command_line(tmp_path: Path, checkpoint: Path) -> None:
    arguments = (
        f"say --engine csm --model {checkpoint} --voice none --speaker 0 --no-normalize --temperature 0 --max-frames 9 "
        f"--codes {tmp_path}/out.npy -o {tmp_path}/out.wav"
    ).split()
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments, "Hello there."],
        env=environment(tmp_path / "data", TTS_DTYPE="float32"),
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = np.load(tmp_path / "out.npy")
    assert codes.dtype == np.int16
    assert codes.shape == (32, 9)
    assert decode((tmp_path / "out.wav").read_bytes(), "wav").seconds == pytest.approx(9 * FRAME_S)


def recording(seed: int, seconds: float = 1.0) -> str:
    noise = np.random.default_rng(seed).normal(0, 0.1, int(24_000 * seconds)).astype(np.float32)
    encoder = open_encoder("wav", 24_000)
    return base64.b64encode(encoder.encode(noise) + encoder.flush()).decode()


def test_a_conversation_is_heard(url: str) -> None:
    """What was said before, and by whom, changes what is said now; the same conversation says the same."""

    def answer(*turns: tuple[int, str, int], speaker: int = 0) -> bytes:
        context = [{"speaker": who, "text": text, "audio": recording(seed)} for who, text, seed in turns]
        body = {"text": "And then?", "speaker_id": speaker, "context": context, "temperature": 0, **SHORT}
        said = httpx.post(f"{url}/v1/audio/conversation", json=body, timeout=60)
        assert said.status_code == 200, said.text
        return said.content

    heard = [
        answer(),
        answer((1, "I went home.", 1)),
        answer((1, "I went home.", 2)),
        answer((0, "I went home.", 1)),
        answer((1, "I went home.", 1), (0, "Why?", 3)),
        answer((1, "I went home.", 1), speaker=1),
    ]
    assert len(set(heard)) == len(heard)
    assert answer((1, "I went home.", 1)) == heard[1]


def test_a_conversation_that_does_not_fit_is_told(url: str) -> None:
    context = [{"speaker": 0, "text": "Noise.", "audio": recording(1, 50)} for _ in range(4)]
    answer = httpx.post(f"{url}/v1/audio/conversation", json={"text": "Hm.", "context": context}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_dialogue_is_one_file(url: str) -> None:
    turns = [
        {"speaker": who, "voice": voice, "text": "Hi."} for who, voice in ((0, "alloy"), (1, "onyx"), (0, "alloy"))
    ]
    body = {"turns": turns, "response_format": "wav", "cache": False, "max_audio_length_ms": 3000}
    answer = httpx.post(f"{url}/v1/audio/dialogue", json=body, timeout=60)
    assert answer.status_code == 200
    assert 1 < decode(answer.content, "wav").seconds <= 3.01


def test_the_output_guard_is_counted(url: str) -> None:
    speak(url, input="Go.", max_audio_length_ms=None)
    assert 'tts_guard_total{rule="frame_cap"}' in httpx.get(f"{url}/metrics").text
