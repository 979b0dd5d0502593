"""The same cases for every deployment mode: all modes behave the same for callers."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from app.audio.formats import AUDIO_FORMATS
from tests.integration.contract.fleets import SENTENCE, Callers, Fleet, fleet
from tests.integration.test_realtime import calling
from tests.support.ears import decode
from tests.support.live import stuck_reader, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
# one sentence, so a request uses one row: 17 s of speech, generated in 2 s
ONE_UTTERANCE = SENTENCE.replace(". ", "; ") * 3
LONG = SENTENCE * 100


@pytest.fixture(
    scope="module",
    params=[
        "embedded",
        pytest.param("replicas", marks=pytest.mark.fleet),
        pytest.param("ray", marks=pytest.mark.ray),
    ],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(request.param, tmp_path_factory.mktemp(request.param)) as started_fleet:
        yield started_fleet


@pytest.fixture
def client(served: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as openai_client:
        yield openai_client


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_every_format_is_decodable(client: openai.OpenAI, audio_format: str) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="nova", input="Good day.", response_format=audio_format)
    assert decode(answer.content, audio_format).seconds == pytest.approx(0.9, abs=0.5)


def test_event_stream_ends_with_done(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="nova", input="Good day.", stream_format="sse"
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert "speech.audio.done" in lines[-2]


def test_models_and_voices_are_listed(client: openai.OpenAI, served: Fleet) -> None:
    assert "paced" in {model.id for model in client.models.list()}
    assert httpx.get(f"{served.url}/v1/audio/voices").is_success


def test_health_readiness_and_row_limit_are_reported(served: Fleet) -> None:
    assert {health["status"] for health in served.healths()} == {"ok"}
    assert httpx.get(f"{served.url}/ready").json() == {"ready": True, "engine": "espeak"}
    assert "tts_rows_limit 4.0" in httpx.get(f"{served.url}/metrics").text


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b'{"input": "Hi.", "voice": "nobody"}', "voice_not_found"),
        (b'{"input": ', "invalid_json"),
        (b'{"input": "%s"}' % (b"x " * 600_000), "string_too_long"),
    ],
)
def test_invalid_body_is_rejected_with_its_error_code(served: Fleet, content: bytes, code: str) -> None:
    answer = httpx.post(served.speech, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_unknown_path_is_not_found(served: Fleet) -> None:
    answer = httpx.get(f"{served.url}/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_same_text_has_the_same_seed_on_every_copy(served: Fleet) -> None:
    answers = [httpx.post(served.speech, json={"input": "Once more.", "cache": False}) for _ in range(6)]
    assert len({answer.headers["x-tts-seed"] for answer in answers}) == 1


def test_first_audio_is_sent_while_the_rest_is_generated(served: Fleet) -> None:
    with httpx.stream("POST", served.speech, json={"input": LONG, "cache": False}, timeout=60) as answer:
        pieces = answer.iter_raw()  # keep a reference: without it, garbage collection closes the stream
        assert next(pieces)
        wait_until(lambda: served.active() >= 1)
    wait_until(served.quiet)


def test_live_socket_speaks_text_in_parts_and_is_cancelled(served: Fleet) -> None:
    """A WebSocket stays with one copy, also during a pause."""
    with calling(served.url) as caller:
        caller.send("input_text_buffer.append", text="The first sentence is complete. And ")
        caller.until("response.output_audio.delta")
        caller.send("input_text_buffer.append", text="the second one follows.")
        caller.send("input_text_buffer.commit")
        assert caller.until("response.done")[-1]["response"]["status"] == "completed"
        time.sleep(1)
        caller.create(SENTENCE * 10)
        caller.until("response.output_audio.delta")
        caller.send("response.cancel")
        assert caller.until("response.done")[-1]["response"]["status"] == "cancelled"
    wait_until(served.quiet)


def test_disconnect_before_the_first_audio_frees_the_row(served: Fleet) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    body = b'{"input": "%s", "cache": false}' % LONG.encode()
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
    time.sleep(0.2)
    wait_until(served.quiet)


def test_disconnect_during_the_stream_frees_the_row(served: Fleet) -> None:
    with httpx.stream("POST", served.speech, json={"input": LONG, "cache": False}, timeout=60) as answer:
        pieces = answer.iter_raw()  # keep a reference: without it, garbage collection closes the stream
        received = 0
        while received <= 20_000:
            received += len(next(pieces))
        wait_until(lambda: served.active() >= 1)
    wait_until(served.quiet)


def test_slow_reader_does_not_delay_other_requests(served: Fleet) -> None:
    with stuck_reader(served.url, LONG):
        for number in range(6):
            answer = httpx.post(served.speech, json={"input": f"Number {number}.", "cache": False}, timeout=120)
            assert answer.status_code == 200
    wait_until(served.quiet)


def test_a_dialogue_is_one_file(served: Fleet) -> None:
    turns = [{"text": "Who is there?", "voice": "alloy"}, {"text": "It is me.", "voice": "onyx"}]
    answer = httpx.post(f"{served.url}/v1/audio/dialogue", json={"turns": turns, "response_format": "wav"}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert decode(answer.content, "wav").seconds > 1


def test_excess_requests_are_429_with_retry_after(served: Fleet, client: openai.OpenAI) -> None:
    """Requests that fit into rows and queues succeed. All other requests get a 429 that OpenAI's client understands."""
    callers = Callers(served, served.capacity + 4, ONE_UTTERANCE)
    wait_until(lambda: sum(result.status == 429 for result in callers.results) >= 2)
    rate_limit_errors: list[openai.RateLimitError] = []

    def ask() -> None:
        try:
            client.audio.speech.create(model="tts-1", voice="alloy", input="Let me in.")
        except openai.RateLimitError as error:
            rate_limit_errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(60)
    results = callers.join()
    statuses = sorted(each.status for each in results)
    assert set(statuses) == {200, 429}
    spoken = statuses.count(200) + (not rate_limit_errors)
    # A load balancer does not count rejected requests, so one or two requests may reach the fuller copy.
    assert served.capacity - (0 if served.copies == 1 else 2) <= spoken <= served.capacity
    assert all(int(each.retry_after or 0) >= 1 for each in results if each.status == 429)
    assert not [each.error for each in results if each.error]
    sizes = [each.size for each in results if each.status == 200]
    assert min(sizes) == pytest.approx(max(sizes), rel=0.02)
    for error in rate_limit_errors:
        assert error.code == "rate_limit_exceeded"
    wait_until(served.quiet)
    assert client.audio.speech.create(model="tts-1", voice="alloy", input="Let me in.").content
