"""All formats, sample rates and listeners share one generation.

Tested over HTTP with the offline voice and real decoders.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import httpx
import numpy as np
import pytest

from app.audio.formats import AUDIO_FORMATS
from tests.support.ears import decode
from tests.support.live import serving, stuck_reader, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

LOSSLESS = ("pcm", "wav", "flac")
SPEECH = "/v1/audio/speech"
SHARED = 'tts_cache_total{result="shared"'


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("data"), TTS_MAX_ROWS=4) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def speak(http: httpx.Client, text: str, **fields: Any) -> httpx.Response:
    answer = http.post(SPEECH, json={"input": text, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def counted(http: httpx.Client, series: str) -> float:
    """Return the value of a metric, such as `tts_cache_total{result="hit"}`; 0 if it was never counted."""
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(series)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def spoken_s(http: httpx.Client) -> float:
    return counted(http, "tts_audio_seconds_total")


@pytest.mark.parametrize("first", list(AUDIO_FORMATS))
def test_every_format_comes_from_one_generation(http: httpx.Client, first: str) -> None:
    text = f"This was first sent as {first}, and then in all other ways."
    made = speak(http, text, response_format=first)
    assert made.headers["x-cache"] == "miss"
    assert "content-length" not in made.headers
    before_s = spoken_s(http)
    lengths_s = []
    for name in AUDIO_FORMATS:
        for rate_hz in (8_000, 24_000, 48_000) if first == "pcm" else (24_000,):
            got = speak(http, text, response_format=name, sample_rate=rate_hz)
            assert got.headers["x-cache"] == "hit"
            assert int(got.headers["content-length"]) == len(got.content)
            assert got.headers["x-tts-seed"] == made.headers["x-tts-seed"]
            audio = decode(got.content, name, rate_hz)
            assert audio.rate_hz == (48_000 if name in ("opus", "ogg") else rate_hz)
            lengths_s.append(audio.seconds)
    assert spoken_s(http) == before_s
    assert max(lengths_s) - min(lengths_s) < 0.4  # MP3 at 8 kHz adds up to 0.3 s of silence


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, changes) for name in AUDIO_FORMATS for changes in ({}, {"sample_rate": 44_100, "speed": 1.3})),
        *(
            (name, changes)
            for name in ("pcm", "opus")
            for changes in (
                {"sample_rate": 16_000},
                {"speed": 0.8, "voice": "nova"},
                {"enhance": False},
                {"max_audio_length_ms": 1500},
                {"seed": 11},
            )
        ),
    ],
)
def test_cached_answer_has_the_same_bytes(http: httpx.Client, name: str, changes: dict[str, Any]) -> None:
    """Only the length in the header differs, because it is unknown when a stream begins."""
    text = f"Said in the format {name} with {' and '.join(changes) or 'nothing'} chosen. It has two sentences."
    first = speak(http, text, response_format=name, **changes)
    second = speak(http, text, response_format=name, **changes)
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    lengths = {"wav": [(4, 8), (40, 44)], "flac": [(21, 26)]}.get(name, [])
    bodies = [bytearray(first.content), bytearray(second.content)]
    for body in bodies:
        for start, end in lengths:
            body[start:end] = bytes(end - start)
    assert bodies[0] == bodies[1]


def test_stream_has_openai_headers_and_cached_answer_has_exact_headers(http: httpx.Client) -> None:
    text = "The header of this file states how long it is."
    streamed = speak(http, text, response_format="wav").content
    assert (streamed[4:8], streamed[40:44]) == (b"\xff" * 4, b"\xff" * 4)
    exact = speak(http, text, response_format="wav").content
    assert int.from_bytes(exact[4:8], "little") == len(exact) - 8
    assert int.from_bytes(exact[40:44], "little") == len(exact) - 44
    with wave.open(io.BytesIO(exact)) as file:
        frames = file.getnframes()
        assert len(file.readframes(frames)) == 2 * frames == len(exact) - 44
    flac = speak(http, text, response_format="flac").content
    with av.open(io.BytesIO(flac)) as container:
        stream = container.streams.audio[0]
        assert stream.duration == frames
        decoded = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(stream)])
    assert decoded.tobytes() == exact[44:]


@pytest.mark.parametrize("name", list(AUDIO_FORMATS))
def test_held_answer_has_exact_headers_and_its_length(http: httpx.Client, name: str) -> None:
    answer = speak(http, f"Checked before it is sent as {name}.", response_format=name, verify=True)
    assert answer.headers["x-cache"] == "miss"
    assert int(answer.headers["content-length"]) == len(answer.content)
    if name == "wav":
        with wave.open(io.BytesIO(answer.content)) as file:
            assert 2 * file.getnframes() == len(answer.content) - 44
    if name == "flac":
        with av.open(io.BytesIO(answer.content)) as container:
            assert container.streams.audio[0].duration


def test_long_cached_answer_is_streamed_and_has_a_length_the_second_time(http: httpx.Client) -> None:
    text = "The ferry crosses the bay twice a day in summer. " * 20
    made = speak(http, text, response_format="opus")
    assert made.headers["x-cache"] == "miss"
    same, other = (speak(http, text, response_format=name) for name in ("opus", "mp3"))
    assert int(same.headers["content-length"]) == len(same.content) == len(made.content)
    assert "content-length" not in other.headers
    again = speak(http, text, response_format="mp3")
    assert again.content == other.content
    assert int(again.headers["content-length"]) == len(again.content)


def test_cached_answer_has_the_same_events_as_the_generated_one(http: httpx.Client) -> None:
    def events(state: str) -> tuple[bytes, dict[str, Any]]:
        answer = speak(http, "Sent as events.", stream_format="sse")
        assert answer.headers["x-cache"] == state
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        *deltas, done = map(json.loads, lines)
        return b"".join(base64.b64decode(delta["audio"]) for delta in deltas), done

    assert events("miss") == events("hit")


# ---- single flight


async def listen(url: str, text: str, **fields: Any) -> tuple[str, bytes]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        answer = await http.post(SPEECH, json={"input": text, **fields})
        assert answer.status_code == 200, answer.text
        return answer.headers["x-cache"], answer.content


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 15])
async def test_24_equal_requests_share_one_generation(url: str, http: httpx.Client, seconds: int) -> None:
    text = "Twenty-four people ask for the same words. " * max(1, seconds // 3)
    before, before_s = counted(http, 'tts_cache_total{result="miss"'), spoken_s(http)
    names = [name for name in AUDIO_FORMATS for _ in range(4)]
    answers = await asyncio.gather(*(listen(url, text, response_format=name) for name in names))
    states = [state for state, _ in answers]
    assert states.count("miss") == 1
    assert set(states) <= {"miss", "shared", "hit"}
    assert counted(http, 'tts_cache_total{result="miss"') - before == 1
    lengths_s = [decode(body, name).seconds for name, (_, body) in zip(names, answers, strict=True)]
    assert max(lengths_s) - min(lengths_s) < 0.3  # MP3 adds silence
    assert spoken_s(http) - before_s == pytest.approx(lengths_s[0], abs=0.1)


async def test_first_listener_that_disconnects_does_not_end_the_other_answers(url: str, http: httpx.Client) -> None:
    text = "The first listener leaves, and the others hear it to the end. " * 60
    body = {"input": text, "response_format": "pcm"}
    before = counted(http, SHARED)
    async with (
        httpx.AsyncClient(base_url=url, timeout=60) as leader,
        leader.stream("POST", SPEECH, json=body) as answer,
    ):
        assert answer.headers["x-cache"] == "miss"
        parts = answer.aiter_raw()
        await anext(parts)
        following = [asyncio.create_task(listen(url, text, response_format="pcm")) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: counted(http, SHARED) == before + 3)
    answers = await asyncio.gather(*following)
    assert len({content for _, content in answers}) == 1
    whole = await listen(url, text, response_format="pcm")
    assert whole == ("hit", answers[0][1])


async def test_slow_listener_does_not_delay_other_listeners(url: str) -> None:
    text = "One of them reads nothing, and the other one hears everything. " * 60
    async with (
        httpx.AsyncClient(base_url=url, timeout=60) as http,
        http.stream("POST", SPEECH, json={"input": text, "response_format": "pcm"}) as slow,
    ):
        parts = slow.aiter_raw()
        begun = await anext(parts)
        state, whole = await asyncio.wait_for(listen(url, text, response_format="pcm"), 30)
        assert state == "shared"
        rest = [part async for part in parts]
    assert begun + b"".join(rest) == whole


async def test_generation_ends_when_all_listeners_have_disconnected(url: str, http: httpx.Client) -> None:
    text = "Everybody leaves before the end of this one. " * 200
    before_s = spoken_s(http)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
            answer = await stack.enter_async_context(
                client.stream("POST", SPEECH, json={"input": text, "response_format": "pcm"})
            )
            parts = answer.aiter_raw()
            await anext(parts)
            stack.push_async_callback(parts.aclose)
    await asyncio.to_thread(wait_until, lambda: http.get("/health").json()["rows"]["active"] == 0)
    assert spoken_s(http) == before_s
    state, _ = await listen(url, text, response_format="pcm", max_audio_length_ms=500)
    assert state == "miss"


async def test_random_seed_and_cache_false_are_never_shared(url: str, http: httpx.Client) -> None:
    before = counted(http, 'tts_cache_total{result="off"')
    fields: list[dict[str, Any]] = [{"seed": "random"}] * 3 + [{"cache": False}] * 3
    answers = await asyncio.gather(*(listen(url, "Everyone gets a take of their own.", **each) for each in fields))
    assert {state for state, _ in answers} == {"off"}
    assert counted(http, 'tts_cache_total{result="off"') - before == 6


async def test_every_listener_gets_the_status_of_a_generation_error(tmp_path: Path) -> None:
    with (
        serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=0, TTS_OUTBOX_S=0.5) as url,
        stuck_reader(url),
    ):
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            answers = await asyncio.gather(
                *(http.post(SPEECH, json={"input": "There is no row for this."}) for _ in range(8))
            )
    assert {answer.status_code for answer in answers} == {429}
    assert all("retry-after" in answer.headers for answer in answers)
    assert {answer.json()["error"]["code"] for answer in answers} == {"rate_limit_exceeded"}
