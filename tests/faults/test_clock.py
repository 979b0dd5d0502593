"""Jumps of the wall clock, as after a suspend or a first NTP answer: requests work, and conversations expire
correctly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from app.voices.memory import Memory, RememberedTurn
from tests.integration.test_streaming import stuck_reader
from tests.support.live import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

DAY_S = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._time, self._time_ns = time.time, time.time_ns

    def time(self) -> float:
        return self._time() + self.ahead_s

    def time_ns(self) -> int:
        return self._time_ns() + round(self.ahead_s * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake_clock = Clock()
    monkeypatch.setattr(time, "time", fake_clock.time)
    monkeypatch.setattr(time, "time_ns", fake_clock.time_ns)
    return fake_clock


def test_server_works_while_the_clock_jumps(tmp_path: Path, clock: Clock) -> None:
    with (
        serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=0, TTS_OUTBOX_S=0.5) as url,
        httpx.Client(base_url=url) as http,
    ):
        body = {"input": "The clock strikes."}
        assert http.post("/v1/audio/speech", json=body).status_code == 200
        for ahead_s in (3650 * DAY_S, -3650 * DAY_S, -3600.0, 0.0):
            clock.ahead_s = ahead_s
            assert http.post("/v1/audio/speech", json=body).headers["x-cache"] == "hit"
            fresh = {"input": f"Now it is {round(ahead_s)} seconds later.", "cache": False}
            assert http.post("/v1/audio/speech", json=fresh).status_code == 200
            health = http.get("/health").json()
            assert health["status"] == "ok"
            assert 0 <= health["uptime_s"] < 600
            with stuck_reader(url):
                refused = http.post("/v1/audio/speech", json=fresh)
                assert refused.status_code == 429
                assert 1 <= int(refused.headers["retry-after"]) <= 60
            # The slow reader has disconnected; a busy server needs a moment to notice this.
            deadline_s = time.monotonic() + 5
            while http.get("/health").json()["rows"]["active"] and time.monotonic() < deadline_s:
                time.sleep(0.01)


@pytest.mark.parametrize("kept", [False, True])
def test_conversations_expire_correctly_when_the_clock_jumps(tmp_path: Path, clock: Clock, kept: bool) -> None:
    memory = Memory(tokens=100, ttl_s=3600, folder=tmp_path if kept else None)
    turn = RememberedTurn("alloy", "Hello.", np.zeros((2, 4), np.int16))

    def there() -> bool:
        return bool(memory.recall("key", "maker", {"alloy": 0}, 100))

    memory.remember("key", "maker", [turn])
    clock.ahead_s = -60.0  # the clock goes back by one minute, as after an NTP correction
    assert there()
    clock.ahead_s = 10 * DAY_S
    assert not there()
    memory.remember("key", "maker", [turn])  # this turn is stored while the clock is wrong
    assert there()
    clock.ahead_s = 0.0
    assert not there()
