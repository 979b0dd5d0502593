"""Callers that stop reading: the server takes their rows back."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import httpx

from tests.integration.test_streaming import LONG, rows, stuck_reader
from tests.support.live import Process, serving, wait_until

if TYPE_CHECKING:
    from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def test_stalled_reader_loses_its_row(tmp_path: Path) -> None:
    with (
        serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=4, TTS_OUTBOX_S=0.5, TTS_READER_TIMEOUT_S=1.5) as url,
        stuck_reader(url) as raw,
    ):
        wait_until(lambda: rows(url)["active"] == 1)  # between two utterances, a request has no row for a moment
        # This request waits for the stalled one and gets its row after the timeout, while that socket is still open.
        assert httpx.post(f"{url}/v1/audio/speech", json={"input": "My turn?"}, timeout=120).status_code == 200
        wait_until(lambda: rows(url)["active"] == 0)
        raw.settimeout(60)
        received = b""
        while part := raw.recv(65_536):
            received += part
        # the connection was cut: the last chunk of a complete response is missing
        assert not received.endswith(b"0\r\n\r\n")
        assert "tts_cancelled_total 1.0" in httpx.get(f"{url}/metrics").text


def test_slow_reader_keeps_its_row(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_OUTBOX_S=0.5, TTS_READER_TIMEOUT_S=1.5) as url, stuck_reader(url) as raw:
        raw.settimeout(60)
        began_s = time.monotonic()
        while time.monotonic() - began_s < 4:
            for _ in range(40):
                assert raw.recv(16_384)
            time.sleep(0.5)
        assert rows(url)["active"] >= 1


@pytest.mark.slow
def test_stalled_reader_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    """The server resets such a connection: a normal close would wait for the reader."""
    with Process(tmp_path, TTS_READER_TIMEOUT_S="1.5", TTS_OUTBOX_S="0.5", TTS_SHUTDOWN_GRACE_S="60") as process:
        process.wait()
        with stuck_reader(process.url, LONG):
            wait_until(lambda: rows(process.url)["active"] == 0)
            process.child.terminate()
            assert process.child.wait(20) in (0, -signal.SIGTERM)
