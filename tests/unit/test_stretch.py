"""Speed change: exact lengths, the same pitch, no influence of chunk boundaries."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio.stretch import StreamStretcher
from app.errors import UnsupportedParameter

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
SPEEDS = [0.25, 0.3, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0]


def voice(seconds: float, f0_hz: float = 140.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    tone = sum(np.sin(2 * np.pi * f0_hz * k * t) / k for k in range(1, 12))
    return (0.25 * tone * (0.6 - 0.4 * np.cos(2 * np.pi * 3 * t))).astype(np.float32)


def stretch(sound: np.ndarray, speed: float, rate_hz: int = RATE_HZ, chunk: int = 1920) -> np.ndarray:
    stage = StreamStretcher(rate_hz, speed)
    parts = [stage.push(sound[i : i + chunk]) for i in range(0, len(sound), chunk)]
    return np.concatenate([*parts, stage.flush()])


def pitch_hz(sound: np.ndarray, rate_hz: int = RATE_HZ) -> float:
    """Return the fundamental frequency: the autocorrelation's peak between 80 and 300 Hz, refined by a parabola."""
    size = 1 << (2 * len(sound)).bit_length()
    curve = np.fft.irfft(np.abs(np.fft.rfft(sound, size)) ** 2)
    low, high = rate_hz // 300, rate_hz // 80
    peak = low + int(np.argmax(curve[low:high]))
    before, at, after = curve[peak - 1 : peak + 2]
    return rate_hz / (peak + 0.5 * (before - after) / (before - 2 * at + after))


@pytest.mark.parametrize("speed", SPEEDS)
def test_length_is_exact_and_pitch_stays(speed):
    sound = voice(2.0)
    out = stretch(sound, speed)
    assert out.dtype == np.float32
    assert len(out) == round(len(sound) / speed)
    assert pitch_hz(out) == pytest.approx(140.0, rel=0.015)
    assert np.max(np.abs(out)) <= np.max(np.abs(sound)) * 1.05


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("speed", [0.25, 0.75, 1.5, 4.0])
def test_other_rates_keep_exact_length_and_pitch(rate_hz, speed):
    sound = voice(1.0, rate_hz=rate_hz)
    out = stretch(sound, speed, rate_hz)
    assert len(out) == round(len(sound) / speed)
    assert pitch_hz(out, rate_hz) == pytest.approx(140.0, rel=0.015)


@pytest.mark.parametrize("speed", [speed for speed in SPEEDS if speed != 1.0])
def test_events_move_to_time_divided_by_speed(speed):
    """Tones at the start and the end reveal a lost tail or a shifted middle."""
    sound = 0.3 * voice(2.0)
    mark = round(0.06 * RATE_HZ)
    t = np.arange(mark) / RATE_HZ
    sound[:mark] += 0.5 * np.sin(2 * np.pi * 3000 * t).astype(np.float32)
    sound[-mark:] += 0.5 * np.sin(2 * np.pi * 2500 * t).astype(np.float32)
    out = stretch(sound, speed)

    def audible_s(frequency_hz: float) -> np.ndarray:
        turned = out * np.exp(-2j * np.pi * frequency_hz * np.arange(len(out)) / RATE_HZ)
        return np.flatnonzero(np.abs(np.convolve(turned, np.ones(120) / 120, "same")) > 0.1) / RATE_HZ

    first, last = audible_s(3000), audible_s(2500)
    assert first[0] < 0.010
    assert first[-1] == pytest.approx(0.06 / speed, abs=0.030)
    # a window repeats the audio that begins in it
    assert last[0] == pytest.approx(1.94 / speed, abs=0.015 + 0.015 / speed)
    assert last[-1] == pytest.approx(2.0 / speed, abs=0.030)


def test_speed_one_returns_the_input():
    sound = voice(0.5)
    stage = StreamStretcher(RATE_HZ, 1.0)
    assert stage.push(sound) is sound
    assert len(stage.flush()) == 0


@settings(max_examples=20, deadline=None)
@given(
    speed=st.floats(0.25, 4.0),
    length=st.integers(0, 20_000),
    cuts=st.lists(st.integers(0, 20_000), max_size=6),
)
def test_chunk_boundaries_do_not_change_the_output(speed, length, cuts):
    sound = voice(1.0)[:length]
    stage = StreamStretcher(RATE_HZ, speed)
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    parts = [stage.push(sound[a:b]) for a, b in itertools.pairwise(edges)]
    out = np.concatenate([*parts, stage.flush()])
    np.testing.assert_array_equal(out, stretch(sound, speed, chunk=20_000))
    assert len(out) == round(length / speed)


def test_feeding_single_samples_gives_the_same_output():
    sound = voice(0.4)
    np.testing.assert_array_equal(stretch(sound, 1.5, chunk=1), stretch(sound, 1.5, chunk=480))


@pytest.mark.parametrize(("speed", "by_ms"), [(0.25, 240), (0.5, 160), (0.9, 160), (1.5, 160), (2.0, 160), (4.0, 240)])
def test_first_output_has_low_latency(speed, by_ms):
    stage = StreamStretcher(RATE_HZ, speed)
    sound = voice(0.5)
    fed = 0
    while not len(stage.push(sound[fed : fed + 480])):
        fed += 480
    assert (fed + 480) / 24 <= by_ms


def test_silence_stays_silent_and_short_audio_is_kept():
    assert not stretch(np.zeros(5000, np.float32), 0.7).any()
    assert len(stretch(np.zeros(0, np.float32), 0.7)) == 0
    for count in (1, 5, 100):
        assert len(stretch(voice(0.1)[:count], 0.5)) == 2 * count


@pytest.mark.parametrize("speed", [0.0, 0.249, 4.01, -1.0, float("nan"), float("inf")])
def test_unsupported_speeds_are_refused(speed):
    with pytest.raises(UnsupportedParameter) as caught:
        StreamStretcher(RATE_HZ, speed)
    assert caught.value.param == "speed"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_abandoned_stretchers_leak_no_memory():
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def round_of(count: int) -> None:
        for _ in range(count):
            StreamStretcher(RATE_HZ, 0.6).push(sound)

    sound = voice(0.3)
    gc.collect()
    gc.disable()
    try:
        round_of(50)
        before = resident_bytes()
        round_of(400)
        grown = resident_bytes() - before
    finally:
        gc.enable()
    assert grown < 4_000_000
