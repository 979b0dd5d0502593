"""Loudness normalization, measured by FFmpeg's meter on offline voices and synthetic speech."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import soxr

from app.audio.shape import Gain
from app.engines.espeak import TIMBRES, Library
from app.voices.enhancement import CEILING_DBTP, TARGET_LUFS, Loudness, k_weighting
from tests.support import human_speech
from tests.support.ears import loudness_lufs, true_peak_dbtp

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
SENTENCES = (
    "We walked along the river after dinner, and the library closes at eight this evening.",
    "Hello there, how are you today?",
    "Well, I don't know; perhaps we should ask her first, before anything else happens?",
    "Please call me back tomorrow morning.",
)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def spoken(library: Library, voice: str, text: str) -> np.ndarray:
    """Return (N,) samples at RATE_HZ, spoken by an offline voice."""
    timbre = TIMBRES[voice]
    samples = library.synthesize(text, f"{timbre.accent}+{timbre.variant}", timbre.pitch)
    return soxr.resample(Gain(timbre.gain_db).push(samples), library.rate_hz, RATE_HZ).astype(np.float32)


def speechlike(seconds: float, seed: int, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Return a signal like speech at about -20 dBFS: harmonics with two formants, syllables of different loudness, and
    pauses."""
    dice = np.random.default_rng(seed)
    count = round(seconds * rate_hz)
    pitch_hz = dice.uniform(90, 220) * (1 + 0.05 * np.sin(2 * np.pi * 0.7 * np.arange(count) / rate_hz))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    harmonics = range(1, int(0.4 * rate_hz / pitch_hz.max()))
    weight = [np.exp(-0.5 * ((h * pitch_hz.mean() - 550) / 300) ** 2) + 0.2 / h for h in harmonics]
    voiced = sum(w * np.sin(h * phase) for h, w in zip(harmonics, weight, strict=True))
    envelope = np.zeros(count)
    at = 0
    while at < count:
        syllable = round(dice.uniform(0.12, 0.28) * rate_hz)
        stop = min(count, at + syllable)
        envelope[at:stop] = (np.hanning(syllable) * 10 ** (dice.normal(0, 3) / 20))[: stop - at]
        at += syllable + (round(dice.uniform(0.2, 0.5) * rate_hz) if dice.random() < 0.15 else 0)
    sound = voiced * envelope + 0.002 * dice.standard_normal(count)
    return (sound * 0.1 / np.sqrt(np.mean(sound**2))).astype(np.float32)


def evened(samples: np.ndarray, expected_lufs: float = TARGET_LUFS, chunk: int = 1920) -> np.ndarray:
    stage = Loudness(RATE_HZ)
    stage.expect(expected_lufs)
    parts = [stage.push(samples[at : at + chunk]) for at in range(0, len(samples), chunk)]
    return np.concatenate([*parts, stage.flush()])


def at_level(samples: np.ndarray, lufs: float) -> np.ndarray:
    return samples * np.float32(10 ** ((lufs - loudness_lufs(samples, RATE_HZ)) / 20))


@pytest.mark.parametrize("voice", TIMBRES)
def test_all_offline_voices_have_the_target_loudness(library, voice):
    loud = loudness_lufs(evened(spoken(library, voice, " ".join(SENTENCES))), RATE_HZ)
    assert loud == pytest.approx(TARGET_LUFS, abs=0.5)


@pytest.mark.parametrize("voice", ["onyx", "fable", "marin", "verse"])
def test_single_sentences_reach_the_target_loudness(library, voice):
    for text in SENTENCES:
        assert loudness_lufs(evened(spoken(library, voice, text)), RATE_HZ) == pytest.approx(TARGET_LUFS, abs=1.0), text


@pytest.mark.parametrize("lufs", [-35.0, -28.0, -12.0, -6.0])
@pytest.mark.parametrize("voice", ["onyx", "nova", "fable"])
def test_unexpected_input_level_reaches_the_target_loudness(library, voice, lufs):
    source = at_level(spoken(library, voice, " ".join(SENTENCES)), lufs)
    assert loudness_lufs(evened(source), RATE_HZ) == pytest.approx(TARGET_LUFS, abs=1.0)


@pytest.mark.parametrize("lufs", [-35.0, -27.0, -20.0, -13.0, -6.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_synthetic_speech_of_any_level_reaches_the_target_loudness(lufs, seed):
    source = at_level(speechlike(10.0, seed), lufs)
    assert loudness_lufs(evened(source), RATE_HZ) == pytest.approx(TARGET_LUFS, abs=1.0)


@pytest.mark.parametrize("lufs", [-30.0, -20.0, -12.0])
@pytest.mark.parametrize("seed", [4, 5])
def test_two_seconds_at_a_known_level_reach_the_target_loudness(lufs, seed):
    source = at_level(speechlike(2.0, seed), lufs)
    assert loudness_lufs(evened(source, lufs), RATE_HZ) == pytest.approx(TARGET_LUFS, abs=1.0)


@pytest.mark.parametrize("text", ["Yes.", "Okay!", "No, thank you."])
def test_very_short_speech_comes_closer_to_the_target_loudness(library, text):
    """The meter's window of 400 ms is longer than the word, so its silence lowers the measured loudness by up to 3
    LU."""
    for voice in ("onyx", "nova", "ash"):
        for lufs in (-30.0, -20.0, -10.0):
            source = at_level(spoken(library, voice, text), lufs)
            error = loudness_lufs(evened(source, lufs), RATE_HZ) - TARGET_LUFS
            assert -1.0 < error < 1.0, (voice, lufs)
            off = loudness_lufs(evened(source), RATE_HZ) - TARGET_LUFS
            assert abs(off) < max(1.0, 0.5 * abs(lufs - TARGET_LUFS)), (voice, lufs)


def test_sentences_of_different_levels_become_equally_loud(library):
    steps_db = (0, -8, 6, -6)
    for voice in ("onyx", "nova"):
        stage = Loudness(RATE_HZ)
        parts, ends = [], [0]
        for text, step_db in zip(SENTENCES, steps_db, strict=True):
            sentence = at_level(spoken(library, voice, text), TARGET_LUFS + step_db)
            stage.expect(TARGET_LUFS)
            parts += [stage.push(np.zeros(RATE_HZ // 10, np.float32)), stage.push(sentence)]
            ends.append(ends[-1] + RATE_HZ // 10 + len(sentence))
        whole = np.concatenate([*parts, stage.flush()])
        assert loudness_lufs(whole, RATE_HZ) == pytest.approx(TARGET_LUFS, abs=1.0)
        for start, end in itertools.pairwise(ends):
            assert loudness_lufs(whole[start:end], RATE_HZ) == pytest.approx(TARGET_LUFS, abs=3.0)  # 1.5 to 2 s each


def test_next_voice_starts_from_its_expected_level():
    loud, soft = at_level(speechlike(4.0, 6), -14.0), at_level(speechlike(4.0, 7), -27.0)
    stage = Loudness(RATE_HZ)
    stage.expect(-14.0)
    parts = [stage.push(loud), stage.push(np.zeros(RATE_HZ // 4, np.float32))]
    stage.expect(-27.0)
    whole = np.concatenate([*parts, stage.push(soft), stage.flush()])
    second = len(loud) + RATE_HZ // 4
    half_a_second = RATE_HZ // 2
    for start in (0, second):
        assert loudness_lufs(whole[start : start + 4 * RATE_HZ], RATE_HZ) == pytest.approx(TARGET_LUFS, abs=1.0)
    source, result = soft[:half_a_second], whole[second : second + half_a_second]
    assert 20 * np.log10(np.sqrt(np.mean(result**2) / np.mean(source**2))) == pytest.approx(7.0, abs=1.5)


@pytest.mark.parametrize("lufs", [-30.0, -20.0, -10.0])
def test_frequency_response_is_flat_from_60_hz(lufs):
    """The test measures the transfer function (cross-spectrum over power spectrum) in third octaves, for noise in
    syllables."""
    dice = np.random.default_rng(8)
    count = 60 * RATE_HZ
    syllables = 0.05 + np.abs(np.sin(2 * np.pi * 1.7 * np.arange(count) / RATE_HZ))
    source = at_level((dice.standard_normal(count) * syllables * 0.05).astype(np.float32), lufs)
    result = evened(source)
    size = 4096
    window = np.hanning(size)
    x, y = (
        np.fft.rfft(np.lib.stride_tricks.sliding_window_view(part, size)[:: size // 2] * window)
        for part in (source, result)
    )
    cross, power = (y * x.conj()).sum(axis=0), np.square(np.abs(x)).sum(axis=0)
    frequencies_hz = np.fft.rfftfreq(size, 1 / RATE_HZ)
    edges_hz = [60 * 2 ** (third / 3) for third in range(40)]
    edges_hz = [edge for edge in edges_hz if edge < 0.45 * RATE_HZ] + [0.45 * RATE_HZ]
    response_db = []
    for low_hz, high_hz in itertools.pairwise(edges_hz):
        band = (frequencies_hz >= low_hz) & (frequencies_hz <= high_hz)
        response_db.append(20 * np.log10(np.abs(cross[band].sum()) / power[band].sum()))
    assert len(response_db) > 20
    assert np.ptp(response_db) < 0.5


def test_true_peaks_stay_below_the_ceiling():
    dice = np.random.default_rng(9)
    for rate_hz in (24_000, 44_100):
        spiky = at_level(speechlike(4.0, 10), -20.0)
        spiky[dice.integers(0, len(spiky), 200)] = 1.4
        between = 0.9 * np.sin(
            2 * np.pi * rate_hz / 4 * np.arange(rate_hz) / rate_hz + np.pi / 4
        )  # a signal with its peaks between the samples
        for source in (spiky, between.astype(np.float32) * np.float32(1.5)):
            stage = Loudness(rate_hz)
            stage.expect(-20.0)
            result = np.concatenate((stage.push(source), stage.flush()))
            assert true_peak_dbtp(result[: 2 * rate_hz], rate_hz) < CEILING_DBTP + 0.3


def test_gain_changes_smoothly_without_limiting():
    source = at_level(speechlike(6.0, 16), -32.0)  # after the gain, the peaks stay below the limiter's threshold
    result = evened(source)
    loud = np.abs(source) > 0.003
    gain_db = 20 * np.log10(result[loud] / source[loud])
    apart_s = np.diff(np.flatnonzero(loud)) / RATE_HZ
    assert (np.abs(np.diff(gain_db)) <= 600 * apart_s + 0.01).all()  # never a step
    later = np.flatnonzero(loud)[1:] > RATE_HZ
    assert (np.abs(np.diff(gain_db))[later] <= 150 * apart_s[later] + 0.01).all()


def test_chunk_size_does_not_change_the_output():
    source = at_level(speechlike(3.0, 12), -14.0)
    source[20_000] = 1.3  # a peak that the limiter must reduce
    whole = evened(source, chunk=len(source))
    assert len(whole) == len(source)
    for chunk in (119, 480, 1920, 30_720):
        np.testing.assert_array_equal(evened(source, chunk=chunk), whole)


@pytest.mark.parametrize("count", [0, 1, 50, 119, 120, 121, 500, 2000])
def test_no_sample_is_lost(count):
    assert len(evened(np.full(count, 0.1, np.float32))) == count


def test_latency_is_10_ms():
    stage = Loudness(RATE_HZ)
    stage.expect(-20.0)
    assert len(stage.push(speechlike(0.08, 13))) >= 0.07 * RATE_HZ - 1


def test_silence_stays_silent_and_nan_is_removed():
    assert not evened(np.zeros(RATE_HZ, np.float32)).any()
    source = at_level(speechlike(3.0, 14), -20.0)
    source[30_000:30_010] = np.nan
    result = evened(source)
    assert np.isfinite(result).all()
    assert loudness_lufs(result, RATE_HZ) == pytest.approx(TARGET_LUFS, abs=1.0)


@pytest.mark.filterwarnings("error")
def test_huge_and_infinite_samples_are_limited():
    source = at_level(speechlike(3.0, 14), -20.0)
    source[30_000:30_010] = 3e38
    source[32_000] = -np.inf
    result = evened(source)
    assert np.isfinite(result).all()
    assert np.abs(result).max() < 1.0


def test_k_weighting_matches_bs_1770():
    """The test uses the coefficients that BS.1770-4 prints for 48 kHz."""
    frequencies_hz = np.geomspace(20, 12_000, 200)
    z = np.exp(-2j * np.pi * frequencies_hz / 48_000)
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (
        1 - 1.69065929318241 * z + 0.73248077421585 * z**2
    )
    low_cut = (1 - 2 * z + z**2) / (1 - 1.99004745483398 * z + 0.99007225036621 * z**2)
    printed_db = 20 * np.log10(np.abs(shelf * low_cut))
    np.testing.assert_allclose(10 * np.log10(k_weighting(frequencies_hz)), printed_db, atol=0.1)


def people() -> list[np.ndarray]:
    """Return recordings of people at RATE_HZ, without the silence at their ends."""
    found = []
    for one in human_speech.recordings("speech"):
        source = one.samples(RATE_HZ)
        loud = np.flatnonzero(np.abs(source) > 0.05 * np.abs(source).max())
        found.append(source[max(0, loud[0] - 1_200) : loud[-1] + 2_400])
    return found


@pytest.mark.parametrize("off_db", [0.0, -3.0])
def test_people_reach_the_target_loudness(off_db):
    """off_db: the difference between the level and the expected level."""
    errors = []
    for source in people():
        result = evened(at_level(source, TARGET_LUFS + off_db))
        errors.append(loudness_lufs(result, RATE_HZ) - TARGET_LUFS)
    assert np.mean(np.abs(errors) <= 1.0) >= 0.85
    assert np.mean(errors) == pytest.approx(0.0, abs=0.4)


def test_true_peaks_of_people_stay_below_the_ceiling():
    for source in people()[::3]:
        assert true_peak_dbtp(evened(at_level(source, TARGET_LUFS)), RATE_HZ) <= CEILING_DBTP + 0.02


def test_loudness_of_the_output_corrects_a_wrong_estimate():
    """The voice has few loud syllables and long soft sounds between them, so its estimated loudness is too low."""
    dice = np.random.default_rng(3)
    count = 12 * RATE_HZ
    t = np.arange(count) / RATE_HZ
    envelope = np.where((t * 2) % 1 < 0.25, 1.0, 0.06)
    source = at_level((dice.standard_normal(count) * envelope).astype(np.float32), TARGET_LUFS)
    assert loudness_lufs(evened(source), RATE_HZ) == pytest.approx(TARGET_LUFS, abs=1.2)


@pytest.mark.parametrize("floor_db", [-26.0, -30.0, -35.0])
@pytest.mark.parametrize("seed", [21, 22])
def test_noise_in_pauses_is_not_raised(floor_db, seed):
    """floor_db: level of the room noise below the speech. The lead-in and the pauses are 1 s long."""
    dice = np.random.default_rng(seed)
    pause = np.zeros(RATE_HZ, np.float32)
    source = at_level(np.concatenate([pause, speechlike(3.0, seed), pause, speechlike(3.0, seed + 50), pause]), -20.0)
    source += (10 ** ((floor_db - 20) / 20) * dice.standard_normal(len(source))).astype(np.float32)
    result = evened(source)
    second = RATE_HZ
    for start in (0, 4 * second, 8 * second):
        inside = slice(start + second // 10, start + second - second // 10)
        gain_db = 20 * np.log10(np.std(result[inside]) / np.std(source[inside]))
        assert abs(gain_db) < 4.0, (start / second, gain_db)
