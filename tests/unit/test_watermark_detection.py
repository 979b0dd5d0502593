"""Detection requires speech: tones, hum and music never count as marked, and marked speech of any kind is detected."""

from __future__ import annotations

import asyncio
import functools

import numpy as np
import pytest
import soxr

from app.audio import detection, watermark
from app.audio.detection import Detection, WatermarkDetector
from app.audio.threads import ThreadLimit
from app.audio.watermark import StreamMarker
from app.voices.vad import SpeechFinder
from tests.support import human_speech, samples

pytestmark = pytest.mark.unit

RATE_HZ = 44_100
FINDER = SpeechFinder()


def detect(sound: np.ndarray, rate_hz: int = RATE_HZ) -> Detection:
    detector = WatermarkDetector(ThreadLimit(1), FINDER.contains_speech)
    return asyncio.run(detector.detect(samples.file(sound, rate_hz=rate_hz)))


def marked(sound: np.ndarray, rate_hz: int = RATE_HZ) -> np.ndarray:
    stage = StreamMarker(rate_hz, watermark.load())
    return np.concatenate((stage.push(sound), stage.flush()))


# Sounds without speech. The network alone would report some of them as marked.
TONES = (
    *(f"tone {hertz} Hz" for hertz in (100, 220, 440, 800, 1_000, 1_500)),
    *("hum 50 Hz", "hum 60 Hz", "buzz 110 Hz", "buzz 195 Hz", "buzz 300 Hz", "chord", "noise", "noise in bursts"),
)


@functools.cache
def tones() -> dict[str, np.ndarray]:
    """Return the sounds of TONES, each 6 seconds long."""
    t = np.arange(6 * RATE_HZ) / RATE_HZ
    found = {f"tone {hertz} Hz": np.sin(2 * np.pi * hertz * t) for hertz in (100, 220, 440, 800, 1_000, 1_500)}
    found |= {f"hum {hertz} Hz": sum(np.sin(2 * np.pi * hertz * n * t) / n for n in range(1, 20)) for hertz in (50, 60)}
    found |= {
        f"buzz {hertz} Hz": sum(np.sin(2 * np.pi * hertz * n * t) / n for n in range(1, 30))
        * np.abs(np.sin(2 * np.pi * 1.9 * t))
        for hertz in (110, 195, 300)
    }
    found["chord"] = samples.music(len(t))
    dice = np.random.default_rng(3)
    found["noise"] = dice.standard_normal(len(t))
    found["noise in bursts"] = dice.standard_normal(len(t)) * np.abs(np.sin(2 * np.pi * 1.9 * t))
    return {name: (0.2 * sound / np.abs(sound).max()).astype(np.float32) for name, sound in found.items()}


@pytest.mark.parametrize("name", TONES)
def test_sound_without_speech_is_not_marked(name):
    assert tones().keys() == set(TONES)
    assert detect(tones()[name]).watermarked is False


@pytest.mark.slow
def test_network_alone_detects_a_watermark_in_a_tone():
    """Without this result, the tests above would prove nothing."""
    scores = [
        watermark.detect(soxr.resample(sound, RATE_HZ, watermark.DETECT_RATE_HZ).astype(np.float32))
        for sound in tones().values()
    ]
    assert max(scores) >= watermark.FOUND


@pytest.mark.parametrize("text", ["Okay!", samples.WORDS[0]])
def test_marked_speech_is_detected(text):
    speech = samples.said(text)
    assert detect(marked(speech)).watermarked is True
    assert detect(speech).watermarked is False


@pytest.mark.slow
@pytest.mark.parametrize("speed", [0.93, 1.05, 1.1])
def test_mark_is_found_in_speech_that_is_played_at_another_speed(speed):
    speech = samples.said(samples.WORDS[0])
    played = soxr.resample(marked(speech), RATE_HZ * speed, RATE_HZ)
    found = detect(played)
    assert found.watermarked is True
    assert found.speed == pytest.approx(speed, abs=0.011)
    assert detect(soxr.resample(speech, RATE_HZ * speed, RATE_HZ)).speed is None


def test_search_examines_the_loudest_part():
    quiet = np.zeros(60 * 100, np.float32)
    quiet[3_000:3_500] = 1.0
    part = detection._loudest(quiet, 600)
    assert part.sum() == 500
    assert len(detection._loudest(quiet[:500], 600)) == 500


def test_marked_speech_late_in_a_recording_is_detected():
    silence = np.zeros(40 * RATE_HZ, np.float32)
    assert detect(np.concatenate((silence, marked(samples.speech())))).watermarked is True


@pytest.mark.slow
def test_speech_of_people_is_detected_only_if_it_is_marked():
    for one in human_speech.recordings("speech")[::3]:
        sound = one.samples(RATE_HZ)
        assert detect(sound).watermarked is False, one.name
        assert detect(marked(sound)).watermarked is True, one.name
    for one in human_speech.recordings("negative"):
        assert detect(one.samples(RATE_HZ)).watermarked is False, one.name
