"""The methods that find words in audio: alignment, windows of long audio, time warping, and the result without them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from app.audio import pcm
from app.audio.alignment import Aligner
from app.audio.warping import warp
from app.engines.espeak import TIMBRES, Library
from app.engines.pronouncing import pronounce, read_aloud
from app.generator.timeline import Timeline, TimelineUtterance
from app.generator.word_timing import Found, WordTimer
from app.text.spans import SpannedText
from app.types import SpokenLine, Voice, WordMark
from tests.support.human_speech import recordings

pytestmark = pytest.mark.unit

TEXTS = {
    "en": "The old captain never forgot the broken window near the river.",
    "de": "Der alte Mann trug sieben schwere Kisten durch den Garten.",
    "fr": "Le vieux capitaine a trouvé une petite maison dans la ville.",
    "es": "El viejo capitán nunca olvidó la ventana rota del barco.",
}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture(scope="module")
def aligner() -> Iterator[Aligner]:
    aligner = Aligner(pronounce)
    yield aligner
    aligner.close()


def utterance(texts: Sequence[str], language: str = "en", marks: Sequence[WordMark] = ()) -> TimelineUtterance:
    voice = Voice("alloy", "Alloy", "preset", language)
    lines = [SpokenLine(text, 0, voice, None, tuple(SpannedText(text).words()), 0, len(text)) for text in texts]
    timeline = Timeline()
    timeline.add(lines, 0, 1, marks)
    return timeline[0]


def find(timer: WordTimer, spoken: TimelineUtterance, samples: np.ndarray, rate_hz: int, speed: float = 1.0) -> Found:
    try:
        return asyncio.run(timer.find(spoken, pcm.to_bytes(samples), rate_hz, speed, None))
    finally:
        timer.close()


def starts(places: Sequence[tuple[int, int | None]], rate_hz: int) -> dict[int, float]:
    """Return the start in seconds by the index of the character."""
    return {char: sample / rate_hz for sample, char in places if char is not None}


def errors(text: str, found: Found, places: Sequence[tuple[int, int | None]], rate_hz: int) -> list[float]:
    true = starts(places, rate_hz)
    words = zip(SpannedText(text).words(), found.words[0], strict=True)
    return [abs(span[0] - true[word.start_char]) for word, span in words if span and word.start_char in true]


def test_english_is_aligned(library: Library, aligner: Aligner) -> None:
    pytest.importorskip("pocketsphinx")
    for name in ("alloy", "fable", "onyx", "sage"):
        timbre = TIMBRES[name]
        voice = f"{timbre.accent}+{timbre.variant}"
        samples, places = library.synthesize_words(TEXTS["en"], voice, timbre.pitch)
        found = find(WordTimer(aligner), utterance([TEXTS["en"]]), samples, library.rate_hz)
        assert found.reason == ""
        assert np.median(errors(TEXTS["en"], found, places, library.rate_hz)) <= 0.02


@pytest.mark.parametrize("language", TEXTS)
def test_other_voices_are_warped(library: Library, aligner: Aligner, language: str) -> None:
    text = TEXTS[language]
    voice = f"{library.languages['en-us' if language == 'en' else language]}+f5"
    samples, places = library.synthesize_words(text, voice, 70)
    samples = np.concatenate((np.zeros(library.rate_hz // 2, np.float32), samples))
    shifted = [(sample + library.rate_hz // 2, char) for sample, char in places]
    timer = WordTimer(aligner, read_aloud)
    timer.use_aligner = False
    found = find(timer, utterance([text], language), samples, library.rate_hz)
    assert found.reason == ""
    assert np.median(errors(text, found, shifted, library.rate_hz)) <= 0.05


def test_long_audio_is_aligned_in_windows_without_drift(library: Library, aligner: Aligner) -> None:
    pytest.importorskip("pocketsphinx")
    text = " ".join(f"{TEXTS['en']} The tall woman bought seven heavy boxes." for _ in range(15))
    samples, places = library.synthesize_words(text, "gmw/en-US+f2", 50)
    assert len(samples) > 90 * library.rate_hz
    found = find(WordTimer(aligner), utterance([text]), samples, library.rate_hz)
    wrong = errors(text, found, places, library.rate_hz)
    assert np.median(wrong[-50:]) <= 0.02
    assert max(wrong) < 0.5


def test_several_sentences_of_one_utterance_are_divided(library: Library, aligner: Aligner) -> None:
    first, second = TEXTS["en"], "Every student bought fresh bread."
    samples, places = library.synthesize_words(f"{first} {second}", "gmw/en-US+f2", 50)
    found = find(WordTimer(aligner, read_aloud), utterance([first, second]), samples, library.rate_hz)
    begin = starts(places, library.rate_hz)[len(first) + 1]
    assert found.words[1][0] is not None
    assert found.words[1][0][0] == pytest.approx(begin, abs=0.1)


def test_non_verbal_sounds_and_punctuation_have_no_time(library: Library, aligner: Aligner) -> None:
    samples, _ = library.synthesize_words("Well, this is funny.", "gmw/en-US+f2", 50)
    text = "Well, (laughs) this \u2014 is funny."
    found = find(WordTimer(aligner, read_aloud), utterance([text]), samples, library.rate_hz)
    assert [span is None for span in found.words[0]] == [False, True, False, True, False, False]


def test_missing_aligner_and_voice_give_a_reason(library: Library) -> None:
    samples, _ = library.synthesize_words(TEXTS["en"], "gmw/en-US+f2", 50)
    found = find(WordTimer(), utterance([TEXTS["en"]]), samples, library.rate_hz)
    assert found.words == []
    assert found.reason


def test_aligner_that_gives_no_answer_is_a_reason(library: Library) -> None:
    broken = Aligner(pronounce, command=("/bin/false",))
    samples, _ = library.synthesize_words(TEXTS["en"], "gmw/en-US+f2", 50)
    found = find(WordTimer(broken, read_aloud), utterance([TEXTS["en"]]), samples, library.rate_hz)
    broken.close()
    assert found.words == []
    assert found.reason


def test_language_without_a_voice_gives_a_reason(library: Library, aligner: Aligner) -> None:
    samples, _ = library.synthesize_words(TEXTS["de"], "gmw/de", 50)
    spoken = utterance(["xq zz vv"], "tlh")
    found = find(WordTimer(aligner, lambda text, language: None), spoken, samples, library.rate_hz)
    assert found.words == []
    assert found.reason


@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.0])
def test_silence_does_not_fail(aligner: Aligner, seconds: float) -> None:
    samples = np.zeros(round(seconds * 24_000), np.float32)
    find(WordTimer(aligner, read_aloud), utterance([TEXTS["de"]], "de"), samples, 24_000)


def test_times_of_a_recording_are_found_in_the_same_recording(library: Library) -> None:
    samples, _ = library.synthesize_words(TEXTS["en"], "gmw/en-US", 50)
    times = [0.0, 0.5, 1.0, 1.5, 2.0]
    found = warp(samples, library.rate_hz, samples, library.rate_hz, times)
    assert found is not None
    assert found == pytest.approx(times, abs=0.08)
    assert warp(np.zeros(24_000, np.float32), 24_000, samples, library.rate_hz, times) is None


def test_words_of_people_are_warped() -> None:
    """Without pauses and with less weight on the higher cepstra, most words start within 100 ms of their place."""
    wrong: list[float] = []
    for clip in recordings()[:40]:
        if [word for word, *_ in clip.align] != clip.words.split():
            continue
        reading = read_aloud(clip.words, "en")
        assert reading is not None
        reference, rate_hz, places = reading
        begins = {char: sample / rate_hz for sample, char in places if char is not None}
        words = list(SpannedText(clip.words).words())
        own = [at for at, word in enumerate(words) if word.start_char in begins]
        moments = [begins[words[at].start_char] for at in own]
        found = warp(clip.samples(16_000), 16_000, reference, rate_hz, moments)
        assert found is not None
        wrong += [abs(moment - clip.align[at][1]) for at, moment in zip(own, found, strict=True)]
    assert len(wrong) > 100
    assert np.median(wrong) <= 0.035
    assert np.mean(np.array(wrong) < 0.1) >= 0.7
