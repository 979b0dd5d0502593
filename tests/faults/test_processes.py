"""Signals during many requests: each response is complete or visibly broken, and acknowledged voices are kept."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support import samples
from tests.support.ears import decode
from tests.support.live import Process, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

STREAMS = 16


@pytest.mark.slow
def test_sigterm_breaks_only_streams_longer_than_the_grace(tmp_path: Path) -> None:
    """Short responses finish within the grace. Longer responses break off, and a broken response never ends cleanly."""
    grace_s = 3
    with Process(tmp_path, TTS_SHUTDOWN_GRACE_S=str(grace_s), TTS_OUTBOX_S="0.5", TTS_MAX_ROWS="16") as process:
        process.wait()
        speech = f"{process.url}/v1/audio/speech"
        sentence = "A sentence that takes a while to say. "
        whole_s = decode(
            httpx.post(speech, json={"input": sentence * 3, "response_format": "wav"}).content, "wav"
        ).seconds
        begun = threading.Barrier(STREAMS + 1)

        def listen(index: int) -> tuple[bool, bytes]:
            """Return (whether the response ended cleanly, the received bytes)."""
            short = index % 4 == 0
            body = {"input": sentence * (3 if short else 2_000 // 4), "response_format": "wav", "cache": False}
            received = b""
            with httpx.stream("POST", speech, json=body, timeout=60) as answer:
                assert answer.status_code == 200
                pieces = answer.iter_raw(1024)
                received += next(pieces)
                begun.wait(60)
                try:
                    for piece in pieces:
                        received += piece
                        time.sleep(0 if short else 0.005)  # no request is complete before the signal
                except httpx.RemoteProtocolError:
                    return False, received
            return True, received

        with ThreadPoolExecutor(STREAMS) as threads:
            outcomes = threads.map(listen, range(STREAMS))
            begun.wait(60)
            process.child.terminate()
            signalled_s = time.monotonic()
            process.child.wait(60)
            gone_s = time.monotonic() - signalled_s
            results = list(outcomes)
    assert gone_s < grace_s + 20  # the server does not wait for the long requests, which need minutes
    for index, (clean, received) in enumerate(results):
        if index % 4 == 0:
            assert clean
            assert decode(received, "wav").seconds == pytest.approx(whole_s, abs=0.1)
        else:
            assert not clean
    assert "Traceback" not in process.console()


def _killed_again_and_again(tmp_path: Path, rounds: int) -> None:
    """Kill the server during each cloning. After each restart, all acknowledged voices have their recordings."""
    data = tmp_path / "data"
    sample = samples.file(samples.speech(), "mp3")
    promised: dict[str, bytes] = {}  # voice id -> its recording
    for count in range(rounds):
        with Process(data, TTS_MAX_ROWS="4") as process, httpx.Client(base_url=process.url, timeout=60) as http:
            process.wait()
            listed = {voice["id"] for voice in http.get("/v1/voice-cloning/voices").json()["voices"]}
            assert set(promised) <= listed
            for voice, recording in promised.items():
                assert http.get(f"/v1/voice-cloning/voices/{voice}/reference").content == recording
            assert http.post("/v1/audio/speech", json={"input": "Still here."}).status_code == 200

            stop = threading.Event()

            def clones(stop: threading.Event = stop, count: int = count) -> None:
                clone_count = 0
                while not stop.is_set():
                    try:
                        form = {"name": f"voice {count} {clone_count}", "transcript": samples.TEXT}
                        answer = http.post(
                            "/v1/voice-cloning/clone", data=form, files={"audio_file": ("a.mp3", sample)}
                        )
                        voice = answer.json()["voice"]["id"]
                        reference = http.get(f"/v1/voice-cloning/voices/{voice}/reference")
                        assert reference.status_code == 200
                        promised[voice] = reference.content
                        clone_count += 1
                    except (httpx.TransportError, KeyError, ValueError):
                        return

            def speaks(stop: threading.Event = stop, count: int = count) -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    try:
                        http.post("/v1/audio/speech", json={"input": f"Round {count}, answer {number}."})
                    except httpx.TransportError:
                        return

            before = len(promised)
            working = [threading.Thread(target=work) for work in (clones, speaks, speaks)]
            for thread in working:
                thread.start()
            wait_until(lambda before=before: len(promised) > before, 60)
            time.sleep(0.05 * (count % 5))
            process.child.send_signal(signal.SIGKILL)
            stop.set()
            for thread in working:
                thread.join(60)
    with Process(data) as process, httpx.Client(base_url=process.url, timeout=60) as http:
        process.wait()
        listed = [voice["id"] for voice in http.get("/v1/voice-cloning/voices").json()["voices"]]
        assert set(promised) <= set(listed)
        for _ in range(2):
            assert http.post("/v1/audio/speech", json={"input": "Round 0, answer 1."}).status_code == 200
        assert "Traceback" not in process.console()
    left = [path for path in (data / "cloned_voices").rglob("*") if path.name.startswith((".new-", ".gone-"))]
    assert left == []


@pytest.mark.slow
def test_acknowledged_voices_survive_a_kill(tmp_path: Path) -> None:
    _killed_again_and_again(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_acknowledged_voices_survive_fifteen_kills(tmp_path: Path) -> None:
    _killed_again_and_again(tmp_path, 15)
