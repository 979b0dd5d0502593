"""The timbre reveals a second speaker with the same pitch, on recordings of people."""

from itertools import combinations

import numpy as np
import pytest

from app.audio import pitch
from app.voices.quality import measure
from app.voices.speaker_change import LIMIT, timbre_change
from app.voices.vad import Span
from tests.support.human_speech import recordings

RATE_HZ = 16_000
NEAR_SEMITONES = 4.0


def _level(samples: np.ndarray) -> np.ndarray:
    return np.asarray(samples * np.float32(0.05 / np.sqrt(np.mean(np.square(samples)))))


def _change(samples: np.ndarray) -> float:
    return timbre_change(samples, RATE_HZ, pitch.track(samples, RATE_HZ))


def _tone(samples: np.ndarray) -> float:
    """Return the median pitch in semitones."""
    pitches = pitch.track(samples, RATE_HZ)
    return float(12 * np.log2(np.median(pitches[pitches > 0])))


@pytest.fixture(scope="module")
def pairs() -> list[np.ndarray]:
    """Return recordings in which a second person with a similar pitch speaks after the first, in the same studio."""
    people = {one.speaker: one for one in recordings() if len(one.samples(RATE_HZ)) >= 3 * RATE_HZ}
    known = [(one.name.split("-")[0], _level(one.samples(RATE_HZ))) for one in people.values()]
    tones = [_tone(samples) for _, samples in known]
    return [
        np.concatenate([known[first][1], known[second][1]])
        for first, second in combinations(range(len(known)), 2)
        if known[first][0] == known[second][0] and abs(tones[first] - tones[second]) < NEAR_SEMITONES
    ]


def test_recordings_of_one_person_seldom_exceed_the_limit() -> None:
    changes = [_change(_level(one.samples(RATE_HZ))) for one in recordings()]
    assert np.mean(np.array(changes) > LIMIT) <= 0.03


def test_second_person_with_a_similar_pitch_is_found(pairs: list[np.ndarray]) -> None:
    assert len(pairs) >= 10
    assert np.mean([_change(both) > LIMIT for both in pairs]) >= 0.6


def test_report_warns_of_a_change_of_timbre(pairs: list[np.ndarray]) -> None:
    levels = []
    for both in pairs[:10]:
        spans = [Span(0.0, len(both) / RATE_HZ)]
        report = measure(both, RATE_HZ, spans, clipped=0.0, bandwidth_hz=8_000.0)
        levels += [check.level for check in report.checks if check.id == "speakers"]
    assert levels.count("warning") >= 5


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.5])
def test_too_little_speech_gives_no_change_of_speaker(seconds: float) -> None:
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ)).astype(np.float32) * 0.1
    assert _change(noise) == 0.0


def test_silence_gives_no_change_of_speaker() -> None:
    assert _change(np.zeros(5 * RATE_HZ, np.float32)) == 0.0
