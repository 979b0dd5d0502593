"""The simulated listener: only a wait that empties its buffer is an underrun."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from app.generator import pacing
from app.generator.pacing import UNDERRUN_WAIT_S, ListenerClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from app.types import Samples

pytestmark = pytest.mark.unit


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


async def play(monkeypatch: pytest.MonkeyPatch, *waits_s: float, pauses_s: float = 0.0) -> ListenerClock:
    """Play one second of audio after each wait for the engine. pauses_s: the reader waits for this time before each
    read."""
    clock, time = ListenerClock(), Time()
    monkeypatch.setattr(pacing, "time", time)

    async def audio() -> AsyncGenerator[Samples]:
        for wait_s in waits_s:
            time.now_s += wait_s
            yield np.zeros(100, np.float32)

    encoded_s = 0.0
    produced = audio()
    while await clock.timed(produced) is not None:
        encoded_s += 1.0
        clock.encoded(encoded_s)
        time.now_s += pauses_s
    return clock


async def test_wait_for_the_first_audio_is_not_an_underrun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = await play(monkeypatch, 5.0)
    assert (clock.underruns, clock.waited_s) == (0, 5.0)


async def test_wait_longer_than_the_buffer_is_an_underrun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = await play(monkeypatch, 0.1, 1.0 + UNDERRUN_WAIT_S + 0.1, 0.5, 0.5)
    assert clock.underruns == 1


async def test_wait_shorter_than_the_buffer_is_not_an_underrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await play(monkeypatch, 0.1, 0.9, 0.9, 0.9)).underruns == 0


async def test_slow_reader_does_not_count_as_an_underrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer is empty because the reader pauses. The engine returns audio immediately."""
    assert (await play(monkeypatch, 0.1, 0.0, 0.0, pauses_s=3.0)).underruns == 0
