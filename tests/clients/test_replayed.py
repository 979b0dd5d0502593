"""Programs that can't be installed here, by what they send and what they need of the answer, as their sources say.

Read in November 2026: Open WebUI 0.12.4 `routers/audio`, SillyTavern `src/endpoints/openai.js`, Home Assistant's
`openai_tts` component and core `openai_conversation`, Wyoming-OpenAI 0.4.1 `compatibility.py` and `wav.py`, LibreChat
`TTSService.js`.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
import urllib.error
import urllib.request
import wave
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.clients.conftest import KEY, full
from tests.support.ears import PCM_RATE_HZ, SENTENCES, Recogniser, decode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

pytestmark = pytest.mark.integration

SENTENCE = SENTENCES[3]


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server}/v1") as http_client:
        yield http_client


def posted(url: str, body: dict[str, Any], authorization: str = "Bearer ") -> tuple[int, Message, bytes]:
    """Return status, headers and body. Sends an empty key as several clients do; httpx would not."""
    headers = {"Content-Type": "application/json", "Authorization": authorization}
    request = urllib.request.Request(f"{url}/v1/audio/speech", json.dumps(body).encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.status or 0, error.headers, error.read()


# ---- Open WebUI: no response_format, an empty key, lists without any key, sentences all at once


def test_open_webui_lists_voices_and_models_without_a_key(guarded: str) -> None:
    with httpx.Client(base_url=f"{guarded}/v1") as http:
        voices = http.get("/audio/voices").raise_for_status().json()
        named = {voice["id"]: voice["name"] for voice in voices.get("voices", [])}
        assert {"alloy", "marin", "cedar"} <= set(named)
        models = http.get("/audio/models").raise_for_status().json()["models"]
        assert {"tts-1", "tts-1-hd"} <= {model["id"] for model in models}
        assert http.get("/models").raise_for_status().json()["data"]


def test_open_webui_gets_parallel_sentences(server: str, recogniser: Recogniser) -> None:
    bodies = [{"model": "tts-1", "voice": "alloy", "input": text} for text in SENTENCES[:6]]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda body: posted(server, body), bodies))
    for body, (status, headers, data) in zip(bodies, answers, strict=True):
        assert status == 200
        assert headers["content-type"] == "audio/mpeg"  # anything else goes through pydub
        assert recogniser.recognise(decode(data, "mp3")) == body["input"]


def test_open_webui_gets_an_error_message(guarded: str) -> None:
    body = {"input": "Hello.", "voice": "alloy", "model": "tts-1"}
    status, _, data = posted(guarded, body)
    assert status == 401
    assert "No API key" in json.loads(data)["error"]["message"]
    status, _, data = posted(guarded, body | {"voice": "heart"}, f"Bearer {KEY}")
    assert status == 400
    assert "heart" in json.loads(data)["error"]["message"]
    with full(guarded):
        status, headers, data = posted(guarded, body | {"input": "For Open WebUI?"}, f"Bearer {KEY}")
    assert status == 429
    assert json.loads(data)["error"]["message"]
    assert int(headers["retry-after"]) >= 1


# ---- SillyTavern: the endpoint's whole address, an empty key where none is set, a whole mp3


@pytest.mark.parametrize("authorization", ["Bearer ", "Bearer", "Bearer sk-whatever"])
def test_silly_tavern_gets_speech(server: str, recogniser: Recogniser, authorization: str) -> None:
    body = {"input": SENTENCE, "response_format": "mp3", "voice": "alloy", "speed": 1, "model": "tts-1"}
    status, _, data = posted(server, body, authorization)
    assert status == 200
    assert recogniser.recognise(decode(data, "mp3")) == SENTENCE


def test_silly_tavern_gets_an_error_message(server: str) -> None:
    body = {"input": "", "response_format": "mp3", "voice": "alloy", "speed": 1, "model": "tts-1"}
    status, _, data = posted(server, body)
    assert status == 400
    assert b"input" in data


# ---- Home Assistant


def test_home_assistant_component_can_check_url_and_key(server: str, guarded: str) -> None:
    """The component sends a full stop and waits 10 s. It reports a wrong key only after a 401."""
    probe = {"model": "tts-1", "input": ".", "voice": "alloy", "response_format": "mp3"}
    fine = httpx.post(f"{server}/v1/audio/speech", json=probe, headers={"Authorization": "Bearer x"}, timeout=10)
    assert 200 <= fine.status_code < 300
    assert decode(fine.content, "mp3").seconds > 0.2  # silence, because a full stop alone is no word
    for key, status in (("sk-wrong", 401), (KEY, 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.post(f"{guarded}/v1/audio/speech", json=probe, headers=headers).status_code == status


def test_home_assistant_component_gets_voices_and_speech(server: str, recogniser: Recogniser) -> None:
    with urllib.request.urlopen(f"{server}/v1/audio/voices", timeout=5) as answer:
        voices = [(voice["id"], voice["name"]) for voice in json.load(answer)["voices"]]
    assert len(voices) >= 13
    body = {"model": "tts-1", "input": SENTENCE, "voice": "alloy", "response_format": "mp3", "speed": 1.0}
    extra = {"chime": True, "normalize_audio": False, "instructions": "Calmly."}  # extra_payload is merged in
    _, _, data = posted(server, body | extra, "Bearer x")
    assert recogniser.recognise(decode(data, "mp3")) == SENTENCE


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
async def test_home_assistant_core_gets_speech(server: str, recogniser: Recogniser, audio_format: Any) -> None:
    """AsyncOpenAI with streaming, voice marin, and the word None for instructions that are not set."""
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="any") as client:
        data = b""
        async with client.audio.speech.with_streaming_response.create(
            model="gpt-4o-mini-tts",
            voice="marin",
            input=SENTENCES[0],
            instructions="None",
            speed=1.0,
            response_format=audio_format,
        ) as response:
            async for piece in response.iter_bytes():
                data += piece
    assert recogniser.recognise(decode(data, audio_format)) == SENTENCES[0]


# ---- Wyoming-OpenAI: finds out what the server is, then reads WAV as it comes


def test_wyoming_detects_an_openai_server(http: httpx.Client, server: str) -> None:
    """Each of these answers would make Wyoming detect another product, with another voice list."""
    assert http.get("/readyz").status_code != 200  # LocalAI: the voice would be the model's name
    assert httpx.get(f"{server}/health").text != "OK"  # speaches
    assert http.get("/test").status_code != 200  # Kokoro: would have to list voices as strings
    assert all(voice["name"] for voice in http.get("/models/tts-1").json()["voices"])  # what it reads from speaches


def test_wyoming_gets_three_wavs_in_parallel(server: str, recogniser: Recogniser) -> None:
    async def spoken(client: openai.AsyncOpenAI, text: str) -> bytes:
        held, pcm, framed, size = b"", b"", False, 0
        async with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input=text, response_format="wav", speed=1.0
        ) as response:
            async for piece in response.iter_bytes(2048):
                if framed:
                    pcm += piece
                    continue
                held += piece
                with wave.open(io.BytesIO(held)) as header:  # the first 2048 bytes must do
                    shape = header.getframerate(), header.getnchannels(), header.getsampwidth()
                assert shape == (PCM_RATE_HZ, 1, 2)
                start = held.index(b"data") + 8
                (size,) = struct.unpack("<I", held[start - 4 : start])
                framed, pcm = True, held[start:]
        assert size in (0xFFFFFFFF, len(pcm))  # not known, or exact for an answer from the cache
        return pcm

    async def three() -> list[bytes]:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="any") as client:
            return await asyncio.gather(*(spoken(client, text) for text in SENTENCES[3:6]))

    for text, pcm in zip(SENTENCES[3:6], asyncio.run(three()), strict=True):
        assert recogniser.recognise(decode(pcm, "pcm")) == text  # no header is played as audio


# ---- LibreChat: splits a text and joins the mp3 bodies


def test_librechat_can_join_mp3_bodies(http: httpx.Client, recogniser: Recogniser) -> None:
    texts = SENTENCES[3:6]
    body = {"model": "tts-1", "voice": "alloy", "backend": "openai"}
    joined = b"".join(http.post("/audio/speech", json=body | {"input": text}).content for text in texts)
    assert joined[:3] != b"ID3"
    assert b"Xing" not in joined
    alone = sum(
        decode(http.post("/audio/speech", json=body | {"input": text}).content, "mp3").seconds for text in texts
    )
    decoded = decode(joined, "mp3")
    assert decoded.seconds == pytest.approx(alone, abs=0.3)
    assert recogniser.recognise(decoded, several=True).startswith(" ".join(texts))


def test_azure_key_header_and_api_version_are_accepted(guarded: str) -> None:
    """LibreChat and others send an `api-key` header and a version in the query in Azure mode."""
    body = {"model": "tts-1", "voice": "alloy", "input": "Hello."}
    where = f"{guarded}/v1/audio/speech?api-version=2025-03-01-preview"
    assert httpx.post(where, json=body, headers={"api-key": KEY}).status_code == 200
    assert httpx.post(where, json=body, headers={"api-key": "sk-wrong"}).status_code == 401
