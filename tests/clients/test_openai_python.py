"""openai-python of the test environment: every way to get speech, and every error class."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncStream, Stream

from app.audio.formats import AUDIO_FORMATS
from tests.clients.conftest import KEY, full
from tests.support.ears import SENTENCES, Recogniser, decode
from tests.support.live import LONG, wait_until

pytestmark = pytest.mark.integration

SENTENCE = SENTENCES[0]


def test_create_returns_a_whole_mp3(client: openai.OpenAI, recogniser: Recogniser) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="alloy", input=SENTENCE)
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert answer.content[0] == 0xFF
    assert recogniser.recognise(decode(answer.content, "mp3")) == SENTENCE


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_streaming_response_is_chunked_and_complete(client: openai.OpenAI, audio_format: str) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts",
        voice="nova",
        input=SENTENCE,
        response_format=audio_format,
        extra_body={"cache": False},
    ) as response:
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.headers["x-tts-engine"] == "espeak"
        assert response.headers["x-cache"] == "off"
        assert response.headers["x-request-id"].startswith("req_")
        pieces = list(response.iter_bytes())
    assert len(pieces) > 1
    assert 2 < decode(b"".join(pieces), audio_format).seconds < 5


async def test_async_client_gets_the_sentence(server: str, recogniser: Recogniser) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="any") as client:
        answer = await client.audio.speech.create(model="tts-1-hd", voice="shimmer", input=SENTENCE)
    assert recogniser.recognise(decode(answer.content, "mp3")) == SENTENCE


@pytest.mark.parametrize("audio_format", ["mp3", "wav", "opus"])
def test_official_stream_parses_the_events(client: openai.OpenAI, recogniser: Recogniser, audio_format: str) -> None:
    body = {
        "model": "gpt-4o-mini-tts",
        "voice": "alloy",
        "input": SENTENCE,
        "stream_format": "sse",
        "response_format": audio_format,
    }
    events: list[Any] = list(
        client.post("/audio/speech", body=body, cast_to=object, stream=True, stream_cls=Stream[object])
    )
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
    data = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    decoded = decode(data, audio_format)
    assert recogniser.recognise(decoded) == SENTENCE
    assert usage["output_tokens"] == pytest.approx(decoded.seconds / 0.08, abs=2)


async def test_official_async_stream_parses_the_events(server: str, recogniser: Recogniser) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="any") as client:
        body = {"model": "tts-1", "voice": "nova", "input": SENTENCE, "stream_format": "sse", "response_format": "flac"}
        events: list[Any] = [
            event
            async for event in await client.post(
                "/audio/speech", body=body, cast_to=object, stream=True, stream_cls=AsyncStream[object]
            )
        ]
    *deltas, done = events
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["total_tokens"] > 0
    data = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert recogniser.recognise(decode(data, "flac")) == SENTENCE


async def test_async_disconnect_frees_the_row(guarded: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{guarded}/v1", api_key=KEY, max_retries=0) as client:
        for _ in range(3):  # there is one row: each of them must have left it
            async with client.audio.speech.with_streaming_response.create(
                model="tts-1", voice="alloy", input=LONG, response_format="pcm", extra_body={"cache": False}
            ) as response:
                assert await anext(response.iter_bytes(4096))
            await asyncio.to_thread(wait_until, lambda: not httpx.get(f"{guarded}/health").json()["rows"]["active"], 5)


def test_wrong_key_raises_authentication_error(guarded: str) -> None:
    with (
        openai.OpenAI(base_url=f"{guarded}/v1", api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="does not have this key") as caught,
    ):
        client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.")
    assert caught.value.code == "invalid_api_key"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


async def test_async_client_retries_after_a_429(guarded: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{guarded}/v1", api_key=KEY, max_retries=0) as client:
        with full(guarded):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.audio.speech.create(model="tts-1", voice="alloy", input="Let me in.")
            assert int(caught.value.response.headers["retry-after"]) >= 1
        with full(guarded, for_s=0.5):
            patient = client.with_options(max_retries=4)
            assert (await patient.audio.speech.create(model="tts-1", voice="alloy", input="Let me in.")).content


def test_event_stream_has_the_format_of_openai(server: str) -> None:
    body = {"input": "Hello.", "stream_format": "sse"}
    with httpx.stream("POST", f"{server}/v1/audio/speech", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    first = json.loads(lines[0][6:])
    assert set(first) == {"type", "audio"}
    assert len(base64.b64decode(first["audio"])) <= 4096


def test_accept_header_does_not_change_the_response_type(server: str) -> None:
    headers = {"Accept": "application/octet-stream, text/event-stream"}
    answer = httpx.post(f"{server}/v1/audio/speech", json={"input": "Hello."}, headers=headers)
    assert answer.headers["content-type"] == "audio/mpeg"


def test_voice_object_is_accepted_and_instructions_are_ignored(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(
        model="gpt-4o-mini-tts", voice={"id": "onyx"}, input=SENTENCE, instructions="Speak like a pirate."
    )
    plain = client.audio.speech.create(model="gpt-4o-mini-tts", voice="onyx", input=SENTENCE)
    assert answer.response.headers["x-tts-ignored"] == "instructions"
    assert "x-tts-ignored" not in plain.response.headers
    assert answer.content == plain.content


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert {"espeak", "tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15"} <= listed
    assert "csm-1b" not in listed
    for model_id in listed:
        assert client.models.retrieve(model_id).id == model_id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other model")


@pytest.mark.parametrize(
    ("change", "expected", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model"),
        ({"voice": "nobody"}, openai.BadRequestError, "voice"),
        ({"voice": {"id": "voice_1"}}, openai.BadRequestError, "voice"),
        ({"voice": {"id": "alloy", "extra": 1}}, openai.BadRequestError, "voice"),
        ({"voice": 7}, openai.BadRequestError, "voice"),
        ({"input": ""}, openai.BadRequestError, "input"),
        ({"input": " \n\t "}, openai.BadRequestError, "input"),
        ({"input": 12}, openai.BadRequestError, "input"),
        ({"input": ["a"]}, openai.BadRequestError, "input"),
        ({"input": "a" * 1_000_001}, openai.BadRequestError, "input"),
        ({"response_format": "wma"}, openai.BadRequestError, "response_format"),
        ({"speed": 0.24}, openai.BadRequestError, "speed"),
        ({"speed": 4.01}, openai.BadRequestError, "speed"),
        ({"speed": "fast"}, openai.BadRequestError, "speed"),
        ({"speed": True}, openai.BadRequestError, "speed"),
        ({"stream_format": "ndjson"}, openai.BadRequestError, "stream_format"),
        ({"sample_rate": 96_000}, openai.BadRequestError, "sample_rate"),
        ({"sample_rate": 10_000, "response_format": "mp3"}, openai.BadRequestError, "sample_rate"),
        ({"seed": "lucky"}, openai.BadRequestError, "seed"),
        ({"temperature": 0.5}, openai.BadRequestError, "temperature"),
        ({"cfg_scale": 3}, openai.BadRequestError, "cfg_scale"),
        ({"conversation_id": "c"}, openai.BadRequestError, "conversation_id"),
        ({"language": "klingon"}, openai.BadRequestError, "language"),
        ({"max_audio_length_ms": 5}, openai.BadRequestError, "max_audio_length_ms"),
    ],
)
def test_each_error_has_its_class_and_param(
    client: openai.OpenAI, change: dict[str, Any], expected: type[openai.APIStatusError], param: str
) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": "Hello.", **change}
    with pytest.raises(expected) as caught:
        client.post("/audio/speech", body=body, cast_to=object)
    error = caught.value
    assert error.type == "invalid_request_error"
    assert error.param == param
    assert error.body is not None
    assert error.request_id is not None


def test_extra_fields_of_every_engine_are_accepted(client: openai.OpenAI, recogniser: Recogniser) -> None:
    answer = client.audio.speech.create(
        model="tts-1",
        voice="alloy",
        input=SENTENCE,
        response_format="wav",
        speed=1,
        instructions=openai.NOT_GIVEN,
        extra_body={
            "seed": 7,
            "sample_rate": 16_000,
            "language": "en-US",
            "cache": True,
            "normalize": False,
            "max_audio_length_ms": 60_000,
            "top_k": None,
            "lang_code": "a",
            "stream": True,
        },
    )
    decoded = decode(answer.content, "wav")
    assert decoded.rate_hz == 16_000
    assert answer.response.headers["x-tts-seed"] == "7"
    assert recogniser.recognise(decoded) == SENTENCE
