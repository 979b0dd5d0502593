"""The check of a take: planted faults in eSpeak's speech, and in recordings of people if these exist."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from app.audio import alignment, verification
from app.audio.alignment import Aligner, align
from app.audio.verification import Verdict, Verifier, best_take, is_english, judge
from tests.support.human_speech import recordings
from tests.support.samples import RATE_HZ, music, noise, rms, said, silence

pytestmark = pytest.mark.unit

TEXTS = (
    "The weather was fine, so they walked along the river and talked.",
    "Nobody knew the way home, but everyone was happy about it.",
    "My brother lives in a small village in the north.",
    "The library closes at eight this evening.",
)
VOICES = ("gmw/en-US+f2", "gmw/en-GB-x-rp+f5")
BABBLE = said("Completely different sentences are spoken here for more than three long seconds, and then the end.")
TAKES = [(text, voice) for text in TEXTS for voice in VOICES]
HUMAN_CLIPS = 10


def check(samples, text, **limits) -> Verdict:
    return judge(align(samples, RATE_HZ, text.split()), samples, RATE_HZ, **limits)


def with_pause(speech):
    return np.concatenate((silence(0.2), speech, silence(0.3)))


@pytest.mark.parametrize(("text", "voice"), TAKES)
def test_a_whole_take_is_ok(text, voice):
    found = check(with_pause(said(text, voice)), text)
    assert (found.status, found.reason) == ("ok", "")


@pytest.mark.parametrize(("text", "voice"), TAKES)
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.65])
def test_take_that_ends_early_is_bad(text, voice, share):
    speech = said(text, voice)
    assert check(speech[: round(share * len(speech))], text).status == "bad"


@pytest.mark.parametrize(("text", "voice"), TAKES)
def test_an_end_inside_the_last_word_is_cut_off(text, voice):
    speech = said(text, voice)
    whole = align(speech, RATE_HZ, text.split())
    assert whole is not None
    end = round((whole.words[-1].start_s + 0.06) * RATE_HZ)
    if len(text.split()[-1]) > 3:  # 60 ms are more than half of a short word such as "it."
        assert check(speech[:end], text).reason == "cut_off"


@pytest.mark.parametrize(("text", "voice"), TAKES)
def test_babble_and_noise_after_the_text_are_not_counted_as_words(text, voice):
    speech = said(text, voice)
    loud = noise(3 * RATE_HZ, rms(speech))
    for tail in (BABBLE[: 3 * RATE_HZ], BABBLE[: 3 * RATE_HZ : -1][: 3 * RATE_HZ], loud):
        assert check(np.concatenate((speech, tail)), text).status == "bad"


def test_babble_in_the_middle_is_not_counted_as_words():
    first, second = said(TEXTS[0]), said(TEXTS[1])
    samples = np.concatenate((first, BABBLE[: 3 * RATE_HZ], second))
    assert check(samples, f"{TEXTS[0]} {TEXTS[1]}").reason == "not_words"


@pytest.mark.parametrize("at", range(len(TEXTS)))
def test_another_text_is_bad(at):
    assert check(said(TEXTS[at]), TEXTS[at - 1]).status == "bad"


def test_missing_words_in_the_middle_are_bad():
    text = "The library closes at eight this evening, and they walked along the river."
    found = check(said("The library closes, and they walked along the river."), text)
    assert found.reason == "missing_words"
    assert len(found.doubtful) >= 2
    assert set(found.doubtful) <= {3, 4, 5, 6}


@pytest.mark.parametrize("sound", [noise(3 * RATE_HZ, 0.1), 0.1 * music(3 * RATE_HZ), silence(3.0)], ids=str)
def test_a_sound_without_words_is_bad(sound):
    assert check(sound.astype(np.float32), TEXTS[2]).status == "bad"


def test_long_pause_does_not_fail_the_check_of_the_words():
    """The check accepts a long pause, because the output guard is responsible for silence."""
    samples = np.concatenate((said(TEXTS[0]), silence(3.0), said(TEXTS[1])))
    assert check(samples, f"{TEXTS[0]} {TEXTS[1]}").status == "ok"


def test_audio_without_words_can_be_allowed():
    samples = np.concatenate((said(TEXTS[0]), BABBLE[: 2 * RATE_HZ]))
    assert check(samples, TEXTS[0]).reason == "not_words"
    assert check(samples, TEXTS[0], allowed_s=2.5).status == "ok"


def test_take_far_from_the_expected_length_is_bad():
    speech = said(TEXTS[0])
    seconds = len(speech) / RATE_HZ
    assert check(speech, TEXTS[0], expected_s=seconds / 1.5).status == "ok"
    assert check(speech, TEXTS[0], expected_s=seconds / 2.5).reason == "length"
    assert check(speech, TEXTS[0], expected_s=seconds * 2.5).reason == "length"


@pytest.mark.parametrize("text", TEXTS)
def test_complete_take_is_chosen_among_faulty_takes(text):
    speech = said(text)
    takes = [
        speech[: len(speech) // 2],
        np.concatenate((speech, BABBLE[: 3 * RATE_HZ])),
        speech,
        said(" ".join([*text.split()[:3], *text.split()[4:]])),  # the fourth word is missing
    ]
    assert best_take([check(take, text) for take in takes]) == 2


def test_an_unchecked_take_is_chosen_before_a_bad_one():
    bad, unchecked, good = Verdict("bad", "cut_off", -1.0), Verdict("unchecked", "no_answer"), Verdict("ok", "", -2.0)
    assert best_take([bad, unchecked]) == 1
    assert best_take([unchecked, bad, good]) == 2
    assert best_take([good, good]) == 0


# ---- what is not checked


@pytest.mark.parametrize(
    ("text", "language", "english"),
    [
        ("Hello there.", None, True),
        ("Hello there.", "en-GB", True),
        ("Hello there.", "en_us", True),
        ("Guten Tag.", "de", False),
        ("Привет, мир.", None, False),
        ("你好", None, False),
        ("A café in Kraków.", None, True),
        ("...", None, False),
    ],
)
def test_only_english_is_checked(text, language, english):
    assert is_english(text, language) is english


def test_another_language_is_unchecked():
    verifier = Verifier(Aligner(command=(sys.executable, "-c", "raise SystemExit('must not start')")))
    assert verifier.check(silence(1.0), RATE_HZ, "Guten Tag.", language="de") == Verdict("unchecked", "language")


def test_without_the_extra_everything_is_unchecked(monkeypatch):
    monkeypatch.setattr(alignment, "find_model", lambda: None)
    verifier = Verifier(Aligner())
    assert verifier.check(said(TEXTS[0]), RATE_HZ, TEXTS[0]) == Verdict("unchecked", "not_installed")
    assert align(said(TEXTS[0]), RATE_HZ, TEXTS[0].split()) is None


def test_an_aligner_that_hangs_is_unchecked():
    aligner = Aligner(command=(sys.executable, "-c", "import time; time.sleep(60)"))
    found = Verifier(aligner).check(said(TEXTS[0]), RATE_HZ, TEXTS[0], deadline_s=1.0)
    assert found == Verdict("unchecked", "no_answer")


def test_check_works_through_the_helper_process():
    aligner = Aligner()
    try:
        verifier = Verifier(aligner)
        speech = said(TEXTS[0])
        assert verifier.check(speech, RATE_HZ, TEXTS[0], language="en").status == "ok"
        assert verifier.check(speech[: len(speech) // 2], RATE_HZ, TEXTS[0]).reason == "cut_off"
    finally:
        aligner.close()


# ---- recordings of people


def human_takes():
    """Return short recordings of different speakers."""
    by_speaker = {each.speaker: each for each in recordings() if 1.5 < len(each.samples()) / each.rate_hz < 8}
    return list(by_speaker.values())[:HUMAN_CLIPS]


def judged(recording, samples, words):
    found = align(samples, recording.rate_hz, words.split())
    return judge(found, samples, recording.rate_hz)


def test_recordings_of_people_are_ok_and_faulty_versions_are_bad():
    takes = human_takes()
    assert len({take.speaker for take in takes}) >= 3
    false, missed, wrong_missed = [], [], []
    for take, other in zip(takes, takes[1:] + takes[:1], strict=True):
        samples = take.samples()
        tail = np.resize(other.samples(take.rate_hz), 3 * take.rate_hz)
        false += [take.name] * (judged(take, samples, take.words).status != "ok")
        faulty = {"half": samples[: len(samples) // 2], "babble": np.concatenate((samples, tail))}
        missed += [
            f"{take.name} {name}" for name, twin in faulty.items() if judged(take, twin, take.words).status == "ok"
        ]
        wrong_missed += [take.name] * (judged(take, samples, other.words).status == "ok")
    assert len(false) <= 1, false
    assert len(missed) <= 1, missed
    assert not wrong_missed


def test_recordings_of_people_are_far_from_the_limits():
    """No recording of a person comes near a limit."""
    for take in human_takes():
        found = align(take.samples(), take.rate_hz, take.words.split())
        assert found is not None
        assert found.cut_off < verification.MAX_CUT_OFF - 2, take.name
        assert found.score > verification.MIN_SCORE + 0.4, take.name
