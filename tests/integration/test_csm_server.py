"""The whole server with CSM and a small random checkpoint. The speech is noise; all other parts are real."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest

from app.audio.encoders import open_encoder
from app.audio.formats import AUDIO_FORMATS
from app.generator.speech import WAITING_SILENCE_S
from tests.integration.test_realtime import audio_of, calling
from tests.support.commands import run_command
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


def test_fine_tune_with_one_speaker_is_the_default_voice(checkpoint: Path, tmp_path: Path) -> None:
    """Requests without a voice, and standard voices without a recording, speak as the only speaker of the model."""
    options = {"CSM_MODEL": str(checkpoint), "TTS_DTYPE": "float32", "CSM_SPEAKERS": "3", "TTS_CASTING": "auto"}
    with serving(tmp_path, TTS_ENGINE="csm", **options) as url:
        greedy = {"temperature": 0}
        expected = speak(url, voice="speaker:3", **greedy).content
        assert len(expected) > 1000
        for given in ({}, {"voice": "alloy"}, {"voice": "af_heart"}, {"model": "csm-1b"}):
            answer = speak(url, **greedy, **given)
            assert (answer.status_code, answer.content == expected, answer.headers.get("x-tts-ignored")) == (
                200, True, None,
            ), given  # fmt: skip
        other = speak(url, speaker_id=1, **greedy).content
        assert other == speak(url, voice="speaker:1", **greedy).content != expected
        turn = {"text": "Hello there.", **SHORT, **greedy}
        assert httpx.post(f"{url}/v1/audio/conversation", json=turn, timeout=60).content == expected
        turns = {"turns": [{"text": "Hello there.", "speaker": "Ann"}], **SHORT, **greedy}
        assert httpx.post(f"{url}/v1/audio/dialogue", json=turns, timeout=60).content == expected
        health = httpx.get(f"{url}/health").json()
        assert health["default_voice"] == "speaker:3"
        assert health["casting"]["state"] == "not needed"
        voices = httpx.get(f"{url}/v1/audio/voices").json()["voices"]
        assert (voices[0]["id"], voices[0]["type"]) == ("speaker:3", "speaker")
        models = {each["id"]: each["default_voice"] for each in httpx.get(f"{url}/v1/models").json()["data"]}
        assert models["csm-1b"] == models["tts-1"] == "speaker:3"


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
    audio = decode(answer.content, audio_format)
    assert audio.seconds == pytest.approx(0.8, abs=0.15)
    assert audio.loudness_dbfs > -50


def test_unsupported_fields_are_refused_or_named(url: str) -> None:
    answer = speak(url, cfg_scale=3.0)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "cfg_scale"
    assert speak(url, instructions="Whisper.").headers["x-tts-ignored"] == "instructions"
    assert speak(url, input="x " * 600_000).status_code == 400


def test_seed_determines_the_speech(url: str) -> None:
    first, again, other = (speak(url, seed=seed).content for seed in (1, 1, 2))
    assert first == again
    assert first != other
    greedy = {speak(url, seed=seed, temperature=0).content for seed in (1, 2)}
    assert len(greedy) == 1


async def test_answer_does_not_depend_on_other_requests(url: str) -> None:
    """A request gets the same codes alone and beside seven other requests. So its int16 samples differ by at most 1."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def ask(index: int) -> np.ndarray:
            body = {"input": f"Sentence number {index}.", **SHORT, "seed": index}
            return decode((await http.post("/v1/audio/speech", json=body)).content, "pcm").samples

        alone = [await ask(index) for index in range(4)]
        together = await asyncio.gather(*(ask(index) for index in range(8)))
    for expected, found in zip(alone, together, strict=False):
        assert np.abs(expected - found).max() <= 1 / 32768
    assert len({samples.tobytes() for samples in together}) == 8


def test_first_audio_is_streamed_before_the_speech_ends(url: str) -> None:
    body = {"input": "A sentence. " * 30, "response_format": "pcm", "cache": False}
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as answer:
        parts = answer.iter_raw()  # keeps a reference: without it, httpx closes the connection
        first = next(parts)
        assert 0 < len(first) <= 48_000
        assert httpx.get(f"{url}/health").json()["rows"]["active"] == 1
    wait_until(lambda: httpx.get(f"{url}/health").json()["rows"]["active"] == 0)


def test_sentences_share_a_row_and_keep_their_pause(url: str) -> None:
    one = decode(speak(url, input="One.", max_audio_length_ms=None, seed=3).content, "pcm").seconds
    body = {"input": "One. [pause:1s] Two.", "max_audio_length_ms": None, "seed": 3}
    audio = decode(speak(url, **body).content, "pcm")
    assert audio.seconds > one + 1
    silent = np.abs(audio.samples) < 1e-4
    edges = np.flatnonzero(np.diff(np.concatenate([[0], silent.astype(np.int8), [0]])))
    assert max(np.diff(edges)[::2]) / 24_000 >= 0.98


def test_parallel_sentences_use_several_rows_and_keep_their_order(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The random model repeats itself. The second sentence would get a second take if none of it has been sent yet.
    monkeypatch.setattr("app.generator.speech.ATTEMPTS", 1)
    sentences = ["Go on now.", "I am up."]
    body = {"input": " ".join(sentences), "seed": 3, "max_audio_length_ms": None, "enhance": False, "parallel": True}
    active = 0
    with httpx.stream("POST", f"{url}/v1/audio/speech", json={**SHORT, **body}, timeout=60) as answer:
        assert "x-tts-ignored" not in answer.headers
        streamed = bytearray()
        for part in answer.iter_raw():
            streamed += part
            if active < 2:
                active = httpx.get(f"{url}/health").json()["rows"]["active"]
    assert active == 2
    alone = [
        decode(speak(url, **(body | {"input": text, "seed": 3 + index})).content, "pcm").samples
        for index, text in enumerate(sentences)
    ]
    audio = decode(bytes(streamed), "pcm").samples
    gap = round(0.1 * 24_000)
    assert len(audio) == sum(map(len, alone)) + gap
    at = 0
    for samples in alone:  # each sentence equals the answer to its own request, in the order of the text
        assert np.abs(audio[at : at + len(samples)] - samples).max() <= 1 / 32768
        at += len(samples) + gap


def test_realtime_speech_is_the_speech_of_a_request(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole text, and a sentence that arrives in parts, have the same codes as in a speech request."""
    monkeypatch.setattr("app.generator.speech.ATTEMPTS", 1)  # the random model repeats itself
    settings = {"seed": 3, "temperature": 0.7, "top_k": 20}
    sentence, text = "Go on now.", "Go on now. I am up."
    expected = {each: speak(url, input=each, max_audio_length_ms=None, **settings).content for each in (sentence, text)}
    with calling(url) as caller:
        caller.send("session.update", session={"type": "realtime", **settings})
        caller.until("session.updated")
        assert audio_of(caller.speak(text)) == expected[text]
        for part in ("Go", " on", " now", "."):
            caller.send("input_text_buffer.append", text=part)
        caller.send("input_text_buffer.commit")
        assert audio_of(caller.until("response.done")) == expected[sentence]
        assert audio_of(caller.speak(text, seed=4)) != expected[text]


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line ends after about a second without a broken rule, so that the next line goes on after its frames."""
    monkeypatch.setattr("app.generator.speech.ATTEMPTS", 1)
    limits = "app.engines.csm.limits.Limits"
    monkeypatch.setattr(f"{limits}.line_limit", lambda self, state, line: 4 + len(state.lines[line]))
    monkeypatch.setattr(f"{limits}.is_capped", lambda self, state: False)
    monkeypatch.setattr("app.audio.guard.LineGuard.check_frame", lambda self, codes: None)


@pytest.mark.slow
@pytest.mark.usefixtures("short_lines")
def test_sentences_in_parts_are_joined_as_in_one_request(url: str) -> None:
    texts = (
        "Go on now then. I am up here. So are you all.",
        "It is late here. It costs 3.50 euros. And it rains a lot.",
        "One is the first here. Two is the second one. Three is not.",
    )
    settings = {"seed": 5, "temperature": 0.8, "enhance": False}
    expected = [speak(url, input=text, max_audio_length_ms=None, **settings).content for text in texts]
    with calling(url) as caller:
        caller.send("session.update", session={"type": "realtime", **settings})
        caller.until("session.updated")
        for text, whole in zip(texts, expected, strict=True):
            for start in range(0, len(text), 5):
                caller.send("input_text_buffer.append", text=text[start : start + 5])
            caller.send("input_text_buffer.commit")
            assert audio_of(caller.until("response.done")) == whole


@pytest.mark.usefixtures("short_lines")
def test_late_sentence_goes_on_after_silence(url: str) -> None:
    """The speech is that of one request, with silence and fades at the place where the text was late."""
    text, settings = "Go on now then. I am up here.", {"seed": 5, "temperature": 0.8, "enhance": False}
    whole = np.frombuffer(speak(url, input=text, max_audio_length_ms=None, **settings).content, "<i2").astype(int)
    waiting = round(WAITING_SILENCE_S * 24_000)
    with calling(url) as caller:
        caller.send("session.update", session={"type": "realtime", **settings})
        caller.until("session.updated")
        caller.send("input_text_buffer.append", text=text[:17])
        events = caller.until("response.output_audio.delta")
        while np.frombuffer(audio_of(events), "<i2")[-waiting:].any():
            events += caller.until("response.output_audio.delta")
        before = len(audio_of(events)) // 2
        caller.send("input_text_buffer.append", text=text[17:])
        caller.send("input_text_buffer.commit")
        events += caller.until("response.done")
    late = np.frombuffer(audio_of(events), "<i2").astype(int)
    joint = before - waiting
    faded = round(0.015 * 24_000)
    assert len(late) == len(whole) + waiting
    assert np.abs(late[: joint - faded] - whole[: joint - faded]).max() <= 1
    assert np.abs(late[before + faded :] - whole[joint + faded :]).max() <= 1
    assert 0 < joint < len(whole)


def test_original_weight_layout_needs_a_codec(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "original", "original")
    codec = next(path.parent for path in folder.rglob("config.json") if path.parent != folder)
    variables = {"TTS_ENGINE": "csm", "CSM_MODEL": str(folder), "TTS_DTYPE": "float32", "TTS_FALLBACK_ENGINE": ""}
    with serving(tmp_path / "data", CSM_CODEC=str(codec), **variables) as served:
        assert speak(served).status_code == 200
    with serving(tmp_path / "data", CSM_CODEC=str(tmp_path / "nowhere"), wait=False, **variables) as served:
        wait_until(lambda: httpx.get(f"{served}/health").json()["status"] == "unhealthy")
        assert "CSM_CODEC" in httpx.get(f"{served}/health").json()["reason"]


def test_health_reports_a_damaged_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
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
        assert "truncated" in health["reason"]


@pytest.mark.slow
def test_command_line_writes_codes(tmp_path: Path, checkpoint: Path) -> None:
    arguments = (
        f"say --engine csm --model {checkpoint} --voice none --speaker 0 --no-normalize --temperature 0 --max-frames 9 "
        f"--codes {tmp_path}/out.npy -o {tmp_path}/out.wav"
    ).split()
    env = environment(tmp_path / "data", TTS_DTYPE="float32")
    result = run_command((*arguments, "Hello there."), tmp_path, env, limit_s=120)
    assert result.returncode == 0, result.stderr
    codes = np.load(tmp_path / "out.npy")
    assert codes.dtype == np.int16
    assert codes.shape == (8, 9)
    assert decode((tmp_path / "out.wav").read_bytes(), "wav").seconds == pytest.approx(9 * FRAME_S)


def recording(seed: int, seconds: float = 1.0) -> str:
    noise = np.random.default_rng(seed).normal(0, 0.1, int(24_000 * seconds)).astype(np.float32)
    encoder = open_encoder("wav", 24_000)
    return base64.b64encode(encoder.encode(noise) + encoder.flush()).decode()


def test_conversation_context_changes_the_speech(url: str) -> None:
    """Earlier turns and their speakers change the answer. The same conversation gives the same answer."""

    def answer(*turns: tuple[int, str, int], speaker: int = 0) -> bytes:
        context = [{"speaker": number, "text": text, "audio": recording(seed)} for number, text, seed in turns]
        body = {
            "text": "And then?",
            "speaker_id": speaker,
            "context": context,
            **SHORT,
            "seed": 2,
            "max_audio_length_ms": 3000,
        }
        response = httpx.post(f"{url}/v1/audio/conversation", json=body, timeout=60)
        assert response.status_code == 200, response.text
        return response.content

    answers = [
        answer(),
        answer((1, "I went home.", 1)),
        answer((1, "I went home.", 2)),
        answer((0, "I went home.", 1)),
        answer((1, "I went home.", 1), (0, "Why?", 3)),
        answer((1, "I went home.", 1), speaker=1),
    ]
    assert len(set(answers)) == len(answers)
    assert answer((1, "I went home.", 1)) == answers[1]


def test_conversation_that_exceeds_the_context_is_refused(url: str) -> None:
    context = [{"speaker": 0, "text": "Noise.", "audio": recording(1, 50)} for _ in range(4)]
    answer = httpx.post(f"{url}/v1/audio/conversation", json={"text": "Hm.", "context": context}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_dialogue_gives_one_file(url: str) -> None:
    turns = [
        {"speaker": number, "voice": voice, "text": "Hi."}
        for number, voice in ((0, "alloy"), (1, "onyx"), (0, "alloy"))
    ]
    body = {"turns": turns, "response_format": "wav", "cache": False, "max_audio_length_ms": 3000}
    answer = httpx.post(f"{url}/v1/audio/dialogue", json=body, timeout=60)
    assert answer.status_code == 200
    assert 1 < decode(answer.content, "wav").seconds <= 3.01


def test_metrics_count_the_output_guard(url: str) -> None:
    speak(url, input="Go.", max_audio_length_ms=None)
    rules = re.findall(r'tts_guard_total{rule="(\w+)"} [1-9]', httpx.get(f"{url}/metrics").text)
    assert set(rules) & {"frame_cap", "repeat", "babble", "too_short", "silence"}
