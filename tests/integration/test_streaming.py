"""Streaming over a real socket: headers are sent when the first audio exists, and the response closes its stream."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.support.ears import decode
from tests.support.live import LONG, request_speech, serving, stuck_reader, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def rows(url: str) -> dict[str, int]:
    return httpx.get(f"{url}/health").json()["rows"]  # type: ignore[no-any-return]


def test_full_queue_gives_status_429(tmp_path: Path) -> None:
    with (
        serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=0, TTS_OUTBOX_S=0.5) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        with stuck_reader(url):
            for stream_format in ("audio", "sse"):
                with pytest.raises(openai.RateLimitError) as caught:
                    client.audio.speech.create(
                        model="tts-1", voice="alloy", input="Let me in.", stream_format=stream_format
                    )
                assert int(caught.value.response.headers["retry-after"]) >= 1
                assert caught.value.code == "rate_limit_exceeded"
            assert httpx.get(f"{url}/health").json()["status"] == "ok"
        wait_until(lambda: rows(url)["active"] == 0)
        assert client.audio.speech.create(model="tts-1", voice="alloy", input="Let me in.").content


def test_official_client_retries_a_429_until_a_row_is_free(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=0, TTS_OUTBOX_S=0.5) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=3)
        with stuck_reader(url) as raw:
            threading.Timer(0.5, raw.close).start()
            assert client.audio.speech.create(model="tts-1", voice="alloy", input="Patience.").content
        client.close()


def test_queued_request_is_answered_when_a_row_is_free(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=4, TTS_OUTBOX_S=0.5) as url, stuck_reader(url) as raw:
        answers: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/audio/speech", json={"input": "My turn?"}, timeout=120))
        )
        waiting.start()
        wait_until(lambda: httpx.get(f"{url}/health").json()["queue"]["waiting"] == 1)
        raw.close()
        waiting.join(60)
        assert answers[0].status_code == 200


def test_slow_reader_pauses_only_its_own_row(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_MAX_ROWS=4, TTS_OUTBOX_S=0.5) as url, stuck_reader(url) as raw:
        for index in range(4):
            speech_body = {"input": f"Number {index} passes by.", "cache": False}
            answer = httpx.post(
                f"{url}/v1/audio/speech", json=speech_body, timeout=60
            )  # this read times out if the slow reader blocks the other request
            assert answer.status_code == 200
        assert rows(url)["active"] >= 1  # the slow reader still has its row
        # The reader continues: the rest of the audio arrives without a gap.
        raw.settimeout(60)
        received = sum(len(raw.recv(65_536)) for _ in range(50))
        assert received > 500_000


@pytest.mark.parametrize("after_bytes", [0, 1, 50_000])
def test_disconnect_frees_the_row(tmp_path: Path, after_bytes: int) -> None:
    with serving(tmp_path, TTS_OUTBOX_S=0.5) as url:
        with httpx.stream(
            "POST", f"{url}/v1/audio/speech", json={"input": LONG, "response_format": "pcm", "cache": False}
        ) as answer:
            received = 0
            pieces = answer.iter_raw()
            while received < after_bytes:
                received += len(next(pieces))
            wait_until(lambda: rows(url)["active"] >= 1)
        wait_until(lambda: rows(url)["active"] == 0)
        metrics = httpx.get(f"{url}/metrics").text
        assert "tts_cancelled_total 1.0" in metrics


def test_disconnected_client_is_removed_from_the_queue(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=4, TTS_OUTBOX_S=0.5) as url, stuck_reader(url):

        def waiting() -> int:
            return int(httpx.get(f"{url}/health").json()["queue"]["waiting"])

        with socket.socket() as raw:
            request_speech(raw, url, {"input": "I give up."})
            wait_until(lambda: waiting() == 1)
        wait_until(lambda: waiting() == 0)
        counted = 'tts_requests_total{route="/v1/audio/speech",status="499"} 1.0'
        wait_until(lambda: counted in httpx.get(f"{url}/metrics").text)


def test_first_bytes_arrive_long_before_generation_ends(server: str) -> None:
    """The first bytes of 15 minutes of speech arrive while most of the text is not generated yet."""
    body = {"input": LONG, "response_format": "mp3", "cache": False}
    begun_s = time.monotonic()
    with httpx.stream("POST", f"{server}/v1/audio/speech", json=body) as answer:
        pieces = answer.iter_raw()
        assert next(pieces)
        first_s = time.monotonic() - begun_s
        for _ in pieces:
            if time.monotonic() - begun_s > 4 * first_s:
                break
        else:
            pytest.fail("the first bytes took more than a quarter of the time of the whole answer")


@pytest.mark.slow
async def test_long_response_is_complete(server: str) -> None:
    async with httpx.AsyncClient(base_url=server, timeout=60) as http:
        body: dict[str, Any] = {"input": LONG[:6_000], "response_format": "pcm", "cache": False}
        whole, again = await asyncio.gather(
            http.post("/v1/audio/speech", json=body), http.post("/v1/audio/speech/stream", json=body)
        )
    seconds = decode(whole.content, "pcm").seconds
    assert seconds == pytest.approx(decode(again.content, "pcm").seconds, rel=0.01)
    assert seconds > 200
