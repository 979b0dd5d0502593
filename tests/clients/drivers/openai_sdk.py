"""openai-python, of whatever version the environment has."""

from __future__ import annotations

import base64
from typing import Any

import openai
from talk import Job, Result, serve, sound


def client(job: Job) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=job["base_url"], api_key=job["api_key"], max_retries=job.get("retries", 0))


async def speak(job: Job) -> Result:
    async with client(job) as sdk_client:
        answer = await sdk_client.audio.speech.create(**job["request"])
    headers = answer.response.headers
    return sound(answer.content, type=headers["content-type"], version=openai.__version__)


async def stream(job: Job) -> Result:
    async with (
        client(job) as sdk_client,
        sdk_client.audio.speech.with_streaming_response.create(**job["request"]) as answer,
    ):
        pieces = [piece async for piece in answer.iter_bytes()]
    return sound(b"".join(pieces), pieces=len(pieces), request_id=answer.request_id)


async def events(job: Job) -> Result:
    async with client(job) as sdk_client:
        body = {**job["request"], "stream_format": "sse"}
        stream = await sdk_client.post(
            "/audio/speech", body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
        )
        got: list[Any] = [event async for event in stream]
    *deltas, done = got
    return sound(b"".join(base64.b64decode(event["audio"]) for event in deltas), done=done)


async def models(job: Job) -> Result:
    async with client(job) as sdk_client:
        return {"models": [model.id async for model in sdk_client.models.list()]}


serve({"speak": speak, "stream": stream, "events": events, "models": models})
