"""The pitch finder: tones, glides and signals that suggest the wrong octave, and Praat's medians for recordings of
people."""

from __future__ import annotations

import numpy as np
import pytest

from app.audio import pitch
from tests.support import human_speech, samples

pytestmark = pytest.mark.unit

RATE_HZ = 16_000
# Median pitch in Hz over the voiced frames, by Praat 6.4 (autocorrelation, 60 to 500 Hz).
PRAAT_HZ = {
    "ls-1688-142285-0000": 168.2,
    "ls-1998-15444-0000": 190.7,
    "ls-2414-128291-0002": 118.4,
    "ls-3005-163389-0003": 92.9,
    "ls-3331-159605-0008": 203.9,
    "ls-367-130732-0005": 228.1,
    "ls-533-1066-0002": 244.8,
    "vctk-p228_023": 194.7,
    "vctk-p236_023": 236.5,
    "vctk-p254_023": 77.3,
    "vctk-p259_023": 112.7,
    "sesame-conversational_a": 201.0,
    "sesame-conversational_b": 101.5,
    "sesame-read_speech_b": 118.0,
    "sesame-read_speech_d": 183.2,
    "fsdd-jackson": 106.8,
}


def harmonics(pitch_hz: float | np.ndarray, numbers: range, seconds: float = 1.0) -> np.ndarray:
    """Return a sum of these harmonics; harmonic n has the amplitude 1 / n."""
    count = round(seconds * RATE_HZ)
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(pitch_hz, count)) / RATE_HZ
    return sum(np.sin(number * phase) / number for number in numbers).astype(np.float32) * np.float32(0.2)


@pytest.mark.parametrize("pitch_hz", [62.0, 80.0, 120.0, 210.0, 300.0, 480.0])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_pitch_of_a_buzz_is_exact_in_nearly_all_frames(pitch_hz, rate_hz):
    t = np.arange(rate_hz) / rate_hz
    buzz = sum(np.sin(2 * np.pi * pitch_hz * n * t) / n for n in range(1, 8)).astype(np.float32)
    found = pitch.track(buzz, rate_hz)
    assert len(found) == 100
    assert np.mean(np.abs(found / pitch_hz - 1) < 0.01) > 0.95


@pytest.mark.parametrize("pitch_hz", [90.0, 150.0, 220.0])
def test_pitch_is_found_without_its_fundamental(pitch_hz):
    found = pitch.voiced(harmonics(pitch_hz, range(3, 9)), RATE_HZ)
    assert np.median(found) == pytest.approx(pitch_hz, rel=0.01)


def test_period_whose_halves_nearly_agree_is_not_halved_or_doubled():
    """Pulses of 100 Hz, in which each second pulse is 20 % weaker, have a pitch of 100 Hz and not of 50 Hz.

    With a strong second harmonic, the pitch is also 100 Hz, and not 200 Hz.
    """
    pulses = np.zeros(RATE_HZ, np.float32)
    pulses[::160] = 1.0
    pulses[160::320] *= 0.8
    vowel = np.convolve(pulses, np.exp(-np.arange(200) / 30) * np.cos(np.arange(200) * 0.25), "same")
    assert np.median(pitch.voiced(vowel, RATE_HZ)) == pytest.approx(100, rel=0.01)
    strong_second = harmonics(100.0, range(1, 2)) + 3 * harmonics(200.0, range(1, 4))
    assert np.median(pitch.voiced(strong_second, RATE_HZ)) == pytest.approx(100, rel=0.01)


def test_gliding_pitch_is_measured():
    course = np.geomspace(100, 300, 2 * RATE_HZ)
    found = pitch.track(harmonics(course, range(1, 8), 2.0), RATE_HZ)
    expected = course[((np.arange(200) + 0.5) * RATE_HZ / 100).astype(int)]
    inside = slice(5, -5)
    assert (found[inside] > 0).all()
    assert np.abs(12 * np.log2(found[inside] / expected[inside])).max() < 0.7


def test_short_disturbance_does_not_change_the_octave():
    tone = harmonics(140.0, range(1, 10))
    rng = np.random.default_rng(1)
    for at in range(1_000, 15_000, 2_000):
        tone[at : at + 200] = rng.normal(0, 0.2, 200)
    found = pitch.voiced(tone, RATE_HZ)
    assert len(found) > 60
    assert np.abs(np.log2(found / 140.0)).max() < 0.2


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.1])
def test_noise_and_silence_have_no_pitch(level):
    noise = samples.noise(2 * RATE_HZ, level)
    assert np.mean(pitch.track(noise, RATE_HZ) > 0) < 0.03


@pytest.mark.parametrize("count", [0, 1, 159, 400, 1_000])
def test_audio_of_a_few_frames_gives_that_many_frames(count):
    assert len(pitch.track(samples.noise(count, 0.1), RATE_HZ)) == count // 160


def test_block_borders_do_not_change_the_pitch(monkeypatch):
    tone = harmonics(np.geomspace(90, 200, 3 * RATE_HZ), range(1, 8), 3.0)
    whole = pitch.track(tone, RATE_HZ)
    monkeypatch.setattr(pitch, "_BLOCK_FRAMES", 17)
    np.testing.assert_allclose(pitch.track(tone, RATE_HZ), whole, rtol=1e-6)


def test_median_pitch_of_people_equals_that_of_praat():
    found = {one.name: one for one in human_speech.recordings("speech", "en")}
    missing = set(PRAAT_HZ) - set(found)
    if missing == set(PRAAT_HZ):
        pytest.skip("another set of recordings")
    errors = {
        name: 12 * np.log2(np.median(pitch.voiced(found[name].samples(), found[name].rate_hz)) / expected_hz)
        for name, expected_hz in PRAAT_HZ.items()
        if name in found
    }
    assert max(map(abs, errors.values())) < 1.2, errors
