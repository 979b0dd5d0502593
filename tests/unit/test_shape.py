"""Trimming, fades and gain; chunk boundaries do not change the output."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio.levels import LevelTracker
from app.audio.shape import EdgeTrimmer, Fader, Gain, soft_limit
from app.audio.stages import Stage, chain

pytestmark = pytest.mark.unit

RATE_HZ = 24_000


def sound(seconds: float, level: float = 0.3) -> np.ndarray:
    return np.random.default_rng(5).uniform(-level, level, round(seconds * RATE_HZ)).astype(np.float32)


def hush(seconds: float) -> np.ndarray:
    """Return noise at -65 dBFS instead of digital silence, so that a test can compare the samples."""
    return sound(seconds, 0.001)


def through(stage: Stage, samples: np.ndarray, chunk: int | None = None) -> np.ndarray:
    step = chunk or max(1, len(samples))
    parts = [stage.push(samples[i : i + step]) for i in range(0, len(samples), step)]
    return np.concatenate([*parts, stage.flush()])


@pytest.mark.parametrize("count", [8, 9, 40, 41, 199, 500])
@pytest.mark.parametrize("spread", [0.0, 3.0, 20.0])
def test_threshold_of_silence_depends_on_the_percentiles_of_numpy(count, spread):
    levels = np.random.default_rng(count).normal(-40, spread, count)
    tracker = LevelTracker()
    tracker.add(levels)
    floor, speech = np.percentile(levels, (5, 90))
    assert tracker.threshold_dbfs == max(min(-50.0, speech - 20.0), min(floor + 6.0, speech - 14.0))


# --- EdgeTrimmer ---


@pytest.mark.parametrize("chunk", [1, 97, 240, 1920, None])
def test_edges_are_trimmed_to_lead_and_tail(chunk):
    before, spoken, after = hush(0.7), sound(0.5), hush(0.9)
    out = through(EdgeTrimmer(RATE_HZ), np.concatenate((before, spoken, after)), chunk)
    # keeps 50 ms before the speech and 150 ms after it
    expected = np.concatenate((before[-1200:], spoken, after[:3600]))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("chunk", [1, 1920, None])
def test_inner_pauses_are_not_trimmed(chunk):
    samples = np.concatenate((sound(0.2), hush(1.3), sound(0.1), hush(0.05), sound(0.2)))
    np.testing.assert_array_equal(through(EdgeTrimmer(RATE_HZ), samples, chunk), samples)


def test_short_edge_silence_is_not_changed():
    samples = np.concatenate((hush(0.02), sound(0.2), hush(0.1)))
    np.testing.assert_array_equal(through(EdgeTrimmer(RATE_HZ), samples, 100), samples)


def test_lead_and_tail_of_zero_remove_all_edge_silence():
    samples = np.concatenate((hush(0.5), sound(0.2), hush(0.5)))
    out = through(EdgeTrimmer(RATE_HZ, lead_s=0, tail_s=0), samples, 960)
    np.testing.assert_array_equal(out, sound(0.2))


@pytest.mark.parametrize("seconds", [0.0, 0.004, 0.03, 3.0])
def test_pure_silence_is_shortened_to_the_lead(seconds):
    out = through(EdgeTrimmer(RATE_HZ), np.zeros(round(seconds * RATE_HZ), np.float32), 1000)
    assert len(out) == min(round(seconds * RATE_HZ), 1200)
    assert not out.any()


def test_audio_shorter_than_a_window_is_kept():
    click = sound(0.003)
    np.testing.assert_array_equal(through(EdgeTrimmer(RATE_HZ), click), click)
    late = np.concatenate((hush(1.0), click))
    np.testing.assert_array_equal(through(EdgeTrimmer(RATE_HZ), late, 480), late[-1200 - len(click) :])


def test_soft_voice_is_not_trimmed():
    steady = sound(0.5, 0.01)  # -44.8 dBFS
    assert len(through(EdgeTrimmer(RATE_HZ), steady)) == len(steady)
    long = sound(3.0, 0.01)
    assert len(through(EdgeTrimmer(RATE_HZ), long)) > 2.8 * RATE_HZ


@pytest.mark.parametrize("chunk", [97, 1920, None])
@pytest.mark.parametrize("floor", [0.0025, 0.0075])  # -57 and -47 dBFS
def test_noise_of_the_room_counts_as_silence(floor, chunk):
    """Two seconds of speech are between noise that is above any fixed limit for silence."""
    speech = np.concatenate([np.concatenate((sound(0.2), sound(0.1, floor))) for _ in range(7)])
    samples = np.concatenate((sound(1.0, floor), speech, sound(1.5, floor)))
    out = through(EdgeTrimmer(RATE_HZ), samples, chunk)
    assert len(speech) <= len(out) <= len(speech) + 0.4 * RATE_HZ
    start = len(samples[:RATE_HZ]) - (0.2 * RATE_HZ)
    assert any(np.array_equal(out[:960], samples[i : i + 960]) for i in range(int(start), RATE_HZ + 1))


def test_audio_is_delayed_by_one_window_at_most():
    trimmer = EdgeTrimmer(RATE_HZ)
    assert len(trimmer.push(sound(0.08))) == 1920
    assert len(trimmer.push(sound(0.005))) == 0
    assert len(trimmer.push(sound(0.005))) == 240
    assert len(trimmer.push(hush(1.0))) == 3600  # the trimmer returns the kept tail immediately


# --- Fader ---


def test_fades_change_only_the_edges():
    flat = np.ones(4800, np.float32)
    out = through(Fader(RATE_HZ), flat, 480)
    assert len(out) == len(flat)
    rise, fall = 96, 240  # 4 ms, 10 ms
    assert (out[rise:-fall] == 1).all()
    assert out[0] < 0.001
    assert out[-1] < 0.001
    assert (np.diff(out[:rise]) > 0).all()
    assert (np.diff(out[-fall:]) < 0).all()
    assert np.max(np.abs(np.diff(out))) < 0.02  # the result has no audible step


def test_first_chunk_is_delayed_by_the_fade_out_only():
    fader = Fader(RATE_HZ)
    assert len(fader.push(np.ones(1920, np.float32))) == 1920 - 240
    assert len(fader.push(np.ones(1920, np.float32))) == 1920


@pytest.mark.parametrize("count", [0, 1, 2, 50, 240, 300])
def test_short_audio_is_faded_too(count):
    out = through(Fader(RATE_HZ), np.ones(count, np.float32), 7)
    assert len(out) == count
    assert (out <= 1).all()
    if count > 2:
        assert out[0] < 0.2
        assert out[-1] < 0.01


def test_zero_fades_change_nothing():
    samples = sound(0.1)
    np.testing.assert_array_equal(through(Fader(RATE_HZ, fade_in_s=0, fade_out_s=0), samples, 100), samples)


# --- Gain ---


def test_gain_is_linear_below_the_knee():
    samples = sound(0.2, 0.4)
    np.testing.assert_array_equal(through(Gain(0.0), samples), samples)
    np.testing.assert_allclose(through(Gain(6.0206), samples), 2 * samples, rtol=1e-5)
    np.testing.assert_allclose(through(Gain(-20.0), samples), 0.1 * samples, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=30))
def test_limiter_never_exceeds_full_scale(values):
    samples = np.array(values, np.float32)
    out = soft_limit(samples)
    assert out.dtype == np.float32
    assert (np.abs(out) <= 1).all()
    quiet = np.abs(samples) <= np.float32(0.9)
    np.testing.assert_array_equal(out[quiet], samples[quiet])
    assert (np.sign(out) == np.sign(samples)).all()


def test_limiter_curve_is_smooth():
    ramp = np.linspace(-3, 3, 60_001, dtype=np.float32)
    out = soft_limit(ramp).astype(np.float64)
    slope = np.diff(out) / 1e-4
    assert (slope >= 0).all()
    assert np.max(np.abs(np.diff(slope))) < 0.02


# --- all of them ---

STAGES = {
    "trim": lambda: EdgeTrimmer(RATE_HZ),
    "trim tightly": lambda: EdgeTrimmer(RATE_HZ, lead_s=0.003, tail_s=0.0111),
    "fade": lambda: Fader(RATE_HZ),
    "gain": lambda: Gain(9.0),
    "chain": lambda: chain(EdgeTrimmer(RATE_HZ), Fader(RATE_HZ), Gain(9.0)),
}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(STAGES)),
    pieces=st.lists(st.tuples(st.booleans(), st.integers(0, 6000)), max_size=6),
    cuts=st.lists(st.integers(0, 30_000), max_size=8),
)
def test_chunk_boundaries_do_not_change_the_output(name, pieces, cuts):
    """pieces: sections of audio (True) and near silence (False), so that pauses of any length meet chunk boundaries."""
    voiced, quiet = sound(0.25), hush(0.25)
    samples = np.concatenate([np.zeros(0, np.float32), *((voiced if loud else quiet)[:n] for loud, n in pieces)])
    at_once = through(STAGES[name](), samples)
    stage = STAGES[name]()
    edges = [0, *sorted(min(cut, len(samples)) for cut in cuts), len(samples)]
    parts = [stage.push(samples[a:b]) for a, b in itertools.pairwise(edges)]
    out = np.concatenate([*parts, stage.flush()])
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, at_once)


def test_inputs_are_not_modified():
    for make in STAGES.values():
        samples = np.concatenate((hush(0.1), sound(0.1, 0.99), hush(0.1)))
        samples.flags.writeable = False
        through(make(), samples, 500)
