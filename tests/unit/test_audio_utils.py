"""PCM conversion, levels, resampling and chains of stages."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio import pcm
from app.audio.resample import StreamResampler
from app.audio.stages import chain

pytestmark = pytest.mark.unit


def tone(frequency_hz: float, rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


# --- pcm ---


def test_every_16_bit_value_survives_conversion_to_float_and_back():
    every = np.arange(-32768, 32768).astype("<i2").tobytes()
    samples = pcm.from_bytes(every)
    assert samples.dtype == np.float32
    assert samples.min() == -1.0
    assert pcm.to_bytes(samples) == every


def test_samples_are_rounded_and_clipped():
    loud = np.array([1.0, 1.5, -1.0, -9.0, 0.4 / 32768, 0.6 / 32768, -0.6 / 32768, 1e38], np.float32)
    assert pcm.to_int16(loud).tolist() == [32767, 32767, -32768, -32768, 0, 1, -1, 32767]
    broken = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert pcm.to_int16(broken).tolist() == [0, 32767, -32768]
    assert pcm.clip(broken).tolist() == [0.0, 1.0, -1.0]


def test_bytes_are_little_endian():
    assert pcm.to_bytes(np.array([1 / 32768, -2 / 32768], np.float32)) == b"\x01\x00\xfe\xff"
    with pytest.raises(ValueError, match="multiple"):
        pcm.from_bytes(b"\x00\x01\x02")


def test_inputs_are_not_modified():
    loud = np.array([2.0, np.nan], np.float32)
    loud.flags.writeable = False
    pcm.clip(loud)
    pcm.to_bytes(loud)
    assert loud[0] == 2.0


def test_silence_has_the_requested_length():
    quiet = pcm.silence(0.1, 24_000)
    assert quiet.dtype == np.float32
    assert len(quiet) == 2400
    assert not quiet.any()


def test_levels_are_measured_in_dbfs():
    # amplitude 0.5 is -6.02 dB, and the RMS of a sine is 3.01 dB lower
    assert pcm.rms_dbfs(tone(1000, 24_000)) == pytest.approx(-9.03, abs=0.01)
    for empty in (pcm.silence(0, 24_000), pcm.silence(1, 24_000)):
        assert pcm.rms_dbfs(empty) == -math.inf
    assert pcm.amplitude(-20.0) == pytest.approx(0.1)


# --- resample ---


@pytest.mark.parametrize("to_hz", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("from_hz", [16_000, 22_050, 24_000, 44_100])
def test_resampled_tone_equals_a_tone_at_the_new_rate(from_hz, to_hz):
    sound = tone(440, from_hz)
    stage = StreamResampler(from_hz, to_hz)
    parts = [stage.push(sound[i : i + 777]) for i in range(0, len(sound), 777)]
    out = np.concatenate([*parts, stage.flush()])
    assert out.dtype == np.float32
    assert abs(len(out) - to_hz) <= 1
    expected = tone(440, to_hz)
    middle = slice(to_hz // 10, -to_hz // 10)
    assert np.max(np.abs(out[: len(expected)][middle] - expected[: len(out)][middle])) < 1e-3


@settings(max_examples=40, deadline=None)
@given(
    rates=st.tuples(st.sampled_from([8_000, 22_050, 24_000, 48_000]), st.integers(8_000, 48_000)),
    length=st.integers(0, 9_000),
    cuts=st.lists(st.integers(0, 9_000), max_size=6),
)
def test_resampling_in_chunks_equals_resampling_the_whole(rates, length, cuts):
    sound = np.random.default_rng(3).uniform(-0.5, 0.5, length).astype(np.float32)
    whole, pieces = StreamResampler(*rates), StreamResampler(*rates)
    at_once = np.concatenate([whole.push(sound), whole.flush()])
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    parts = [pieces.push(sound[a:b]) for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate([*parts, pieces.flush()]), at_once)
    assert abs(len(at_once) - length * rates[1] / rates[0]) <= 1


def test_equal_rates_return_the_input():
    sound = tone(440, 24_000)
    stage = StreamResampler(24_000, 24_000)
    assert stage.push(sound) is sound
    assert len(stage.flush()) == 0


# --- stages ---


class Delay:
    """Delays `count` samples and appends `mark` at flush, to show which stages a flush reaches and in what order."""

    def __init__(self, count: int, mark: float) -> None:
        self.count, self.mark = count, mark
        self.held = np.zeros(0, np.float32)
        self.flushed = 0

    def push(self, samples):
        assert not self.flushed, "pushed after its flush"
        joined = np.concatenate((self.held, samples))
        cut = max(0, len(joined) - self.count)
        self.held = joined[cut:]
        return joined[:cut]

    def flush(self):
        self.flushed += 1
        return np.append(self.held, np.float32(self.mark))


def test_flush_reaches_every_stage_in_order():
    stages = [Delay(3, 101), Delay(5, 102), Delay(2, 103)]
    line = chain(*stages)
    parts = [line.push(np.arange(i, i + 4, dtype=np.float32)) for i in range(0, 20, 4)]
    out = np.concatenate([*parts, line.flush()])
    assert out.tolist() == [*range(20), 101, 102, 103]
    assert [stage.flushed for stage in stages] == [1, 1, 1]


def test_chains_can_be_nested_or_empty():
    sound = np.arange(5, dtype=np.float32)
    empty = chain()
    assert empty.push(sound) is sound
    assert len(empty.flush()) == 0
    nested = chain(Delay(2, 7), chain(Delay(1, 8), chain()))
    assert np.concatenate([nested.push(sound), nested.flush()]).tolist() == [0, 1, 2, 3, 4, 7, 8]
