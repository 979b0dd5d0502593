"""Several copies: many parallel streams, a killed copy, a graceful shutdown, and a rolling restart."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.integration.contract.fleets import SENTENCE, Callers, Fleet, configuration, fleet, haproxy
from tests.support.live import Process, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
MODES = [pytest.param("replicas", marks=pytest.mark.fleet), pytest.param("ray", marks=pytest.mark.ray)]
ABOUT_BYTES = 240_000  # about the size of SENTENCE as 24 kHz PCM: 5 s
PIECES = 12  # number of sentences in a request: one minute of speech, which these servers generate in 8 s


@contextlib.contextmanager
def roomy(mode: str, data: Path) -> Iterator[Fleet]:
    with fleet(mode, data, TTS_MAX_ROWS="16", TTS_MAX_QUEUE="4") as started_fleet:
        yield started_fleet


@pytest.mark.parametrize("mode", MODES)
def test_sixteen_streams_are_complete_and_a_killed_copy_breaks_only_its_own_streams(mode: str, tmp_path: Path) -> None:
    with roomy(mode, tmp_path) as served:
        results = Callers(served, 16, SENTENCE * PIECES).join()
        assert {each.status for each in results} == {200}
        assert not [each.error for each in results if each.error]
        whole = min(each.size for each in results)
        assert whole > ABOUT_BYTES * PIECES * 0.8

        callers = Callers(served, 16, SENTENCE * PIECES)
        callers.wait_begun()
        spread = [health["rows"]["active"] for health in served.healths()]  # type: ignore[index]
        assert min(spread) >= 4  # the streams are distributed over the copies
        os.kill(served.pids()[0], signal.SIGKILL)
        begun_s = time.monotonic()
        after = []
        while len(after) < 20:
            answer = httpx.post(served.speech, json={"input": "Still here?", "cache": False}, timeout=20)
            after.append(answer.status_code)
        took_s = time.monotonic() - begun_s
        results = callers.join()
        lost = [each for each in results if each.error]
        kept = [each for each in results if not each.error]
        assert len(lost) == pytest.approx(8, abs=1)
        # each lost answer ends with an error; none looks like a complete short answer
        assert {each.error for each in lost} == {"RemoteProtocolError"}
        assert min(each.size for each in kept) >= whole * 0.98
        print(f"{mode}: {len(lost)} cut, {len(kept)} whole; 20 requests after the kill in {took_s:.2f} s: {after}")
        # If a request reaches the dead copy first, the balancer sends it to the other copy.
        assert after.count(200) >= 19
        assert set(after[2:]) == {200}
        if mode == "ray":  # Ray also replaces the dead copy
            wait_until(lambda: len(served.pids()) == 2, 60)
            print(f"ray: replaced {time.monotonic() - begun_s:.1f} s after the kill, at most")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["embedded", MODES[1]])
def test_shutdown_lets_open_streams_finish(mode: str, tmp_path: Path) -> None:
    """Streams shorter than the grace (30 s here) are complete.

    Requests after the shutdown began never get an incomplete file.
    """
    with roomy(mode, tmp_path) as served:
        callers = Callers(served, 8, SENTENCE * PIECES)
        callers.wait_begun()
        served.front.child.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        results = callers.join()
        assert not [each.error for each in results if each.error]
        assert min(each.size for each in results) > ABOUT_BYTES * PIECES * 0.8
        served.front.child.wait(90)


@pytest.mark.fleet
def test_rolling_restart_breaks_no_stream_and_answers_new_requests(tmp_path: Path) -> None:
    """During a rolling restart under load, every stream is complete and every new request succeeds."""
    with roomy("replicas", tmp_path) as served, contextlib.ExitStack() as stack:
        for index, server in enumerate(list(served.servers)):
            callers = Callers(served, 6, SENTENCE * PIECES)
            callers.wait_begun()
            server.child.send_signal(signal.SIGTERM)
            statuses = [
                httpx.post(served.speech, json={"input": "And now?", "cache": False}, timeout=20).status_code
                for _ in range(15)
            ]
            assert set(statuses) == {200}
            assert not [each.error for each in callers.join() if each.error]
            server.child.wait(40)
            port = server.url.rpartition(":")[2]
            again = stack.enter_context(
                Process(tmp_path / f"again{index}", **{**_variables(), "PORT": port, "TTS_MAX_ROWS": "16"})
            )
            again.url = server.url
            again.wait()
            wait_until(lambda: _up(served))


def _variables() -> dict[str, str]:
    from tests.integration.contract.fleets import variables

    return variables()


def _up(served: Fleet) -> bool:
    """Wait until both copies got requests, which shows that the load balancer uses the new copy."""
    before = {url: _count(url) for url in served.members()}
    for _ in range(4):
        httpx.post(served.speech, json={"input": "Who is it?", "cache": False}, timeout=20)
    return all(_count(url) > count for url, count in before.items())


def _count(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith('tts_requests_total{route="/v1/audio/speech"')
    )


@pytest.mark.fleet
def test_haproxy_configuration_is_valid(tmp_path: Path) -> None:
    from tests.support.live import ROOT

    for file in (ROOT / "deploy/k8s/haproxy.cfg", tmp_path / "changed.cfg"):
        if not file.exists():
            file.write_text(configuration(8000, ["http://127.0.0.1:1"]))
        done = subprocess.run([haproxy(), "-c", "-f", file], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert "[WARNING]" not in done.stderr
