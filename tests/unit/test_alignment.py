"""The aligner: word times and misfits on eSpeak's speech, on recordings of people, and failures of its process."""

from __future__ import annotations

import json
import re
import sys
import threading

import numpy as np
import pytest

from app.audio import alignment
from app.audio.acoustic_model import find_model, load_model
from app.audio.alignment import Aligner, align
from app.audio.pronunciation import Pronouncer, british, from_ipa, from_letters, plain_word
from app.engines.espeak import Library
from tests.support.human_speech import recordings, sesame_prompts
from tests.support.live import wait_until
from tests.support.samples import RATE_HZ, noise, said, silence

pytestmark = pytest.mark.unit

SENTENCE = "The weather was fine, so they walked along the river and talked."
OTHER = "My brother lives in a small village in the north."
WORDS = SENTENCE.split()
EASY_RECORDINGS = 12
ANSWERS = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.recv(99);"


@pytest.fixture(scope="module")
def pronouncer() -> Pronouncer:
    folder = find_model()
    assert folder is not None
    return Pronouncer(folder / "cmudict-en-us.dict")


def aligned(samples, words=WORDS):
    found = align(samples, RATE_HZ, words)
    assert found is not None
    return found


# ---- word times and misfits


def test_words_come_in_order_and_fill_the_speech():
    speech = said(SENTENCE)
    found = aligned(np.concatenate((silence(0.5), speech, silence(0.5))))
    assert [word.word for word in found.words] == WORDS
    assert not found.missing
    assert not found.other
    starts = [word.start_s for word in found.words]
    assert starts == sorted(starts)
    assert all(before.end_s <= after.start_s for before, after in zip(found.words, found.words[1:], strict=False))
    assert found.words[0].start_s == pytest.approx(0.5, abs=0.08)
    # eSpeak adds about 0.3 s of silence to a sentence.
    assert 0.5 + len(speech) / RATE_HZ - 0.5 < found.words[-1].end_s < 0.5 + len(speech) / RATE_HZ + 0.05


def test_pause_between_two_sentences_is_found():
    first, second = said(SENTENCE), said(OTHER)
    found = aligned(np.concatenate((first, silence(0.7), second)), [*WORDS, *OTHER.split()])
    gap_s = found.words[len(WORDS)].start_s - found.words[len(WORDS) - 1].end_s
    assert found.words[len(WORDS)].start_s == pytest.approx(len(first) / RATE_HZ + 0.7, abs=0.1)
    assert gap_s > 0.65


@pytest.mark.parametrize("voice", ["gmw/en-US+f2", "gmw/en-GB-x-rp+f5", "gmw/en-GB-x-rp+Reed", "gmw/en-US+klatt4"])
def test_us_and_british_voices_align(voice):
    for sentence in (SENTENCE, OTHER, "He forgot his umbrella on the bus, but the car was not far."):
        assert not aligned(said(sentence, voice), sentence.split()).missing


def test_missing_word_is_reported():
    sentence = "The weather was fine, so they walked along the river and talked."
    without = sentence.replace("river ", "")
    found = aligned(said(without))
    assert [found.words[at].word for at in found.missing] == ["river"]


def test_missing_end_is_cut_off():
    speech = said(SENTENCE)
    whole, half = aligned(speech), aligned(speech[: len(speech) // 2])
    assert whole.cut_off < 13
    assert half.cut_off > 30
    assert half.missing


def test_other_speech_after_the_text_is_not_counted_as_words():
    found = aligned(np.concatenate((said(SENTENCE), said(OTHER))))
    start_s = len(said(SENTENCE)) / RATE_HZ
    assert found.other_s > 1.0
    assert all(start > start_s - 0.5 for start, _ in found.other)


def test_noise_after_the_last_word_does_not_lengthen_the_word():
    speech = said("She opened the doors and went into the house with the dogs.")
    level = float(np.sqrt(np.mean(np.square(speech))))
    found = aligned(
        np.concatenate((speech, noise(3 * RATE_HZ, level))),
        "She opened the doors and went into the house with the dogs".split(),
    )
    assert found.words[-1].end_s < len(speech) / RATE_HZ + 1.0


def test_score_prefers_the_right_text():
    right, wrong = aligned(said(SENTENCE)), aligned(said(SENTENCE), OTHER.split())
    assert right.score > wrong.score + 1.0


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (said(SENTENCE), []),
        (said(SENTENCE), ["...", "-"]),
        (silence(0.05), WORDS),
        (silence(alignment.MAX_SECONDS + 1), WORDS),
        (np.zeros(0, np.float32), WORDS),
    ],
    ids=["no words", "no letters", "too short", "too long", "empty"],
)
def test_empty_input_gives_no_alignment(samples, words):
    assert align(samples, RATE_HZ, words) is None


@pytest.mark.parametrize("level", [0.0, 1e-5, 0.3, np.nan])
def test_sound_without_speech_still_gets_an_answer(level):
    found = aligned(noise(2 * RATE_HZ, 1.0) * np.float32(level))
    assert len(found.words) == len(WORDS)
    assert found.missing or found.cut_off > 13 or found.score < -2.5


def test_word_without_letters_takes_no_time():
    found = aligned(said(SENTENCE), [WORDS[0], "-", *WORDS[1:]])
    assert found.words[1].start_s == found.words[1].end_s
    assert not found.words[1].missing


# ---- recordings of people


def test_words_of_people_are_found_where_they_are():
    """The expected times come from another aligner, with errors of about 50 ms."""
    differences: list[float] = []
    for recording in [each for each in recordings() if each.align and len(each.align) < 30][:EASY_RECORDINGS]:
        found = align(recording.samples(), recording.rate_hz, [word for word, _, _ in recording.align])
        assert found is not None
        assert not found.missing, recording.name
        differences += [
            abs(word.start_s - start) for word, (_, start, _) in zip(found.words, recording.align, strict=True)
        ]
    assert np.median(differences) <= 0.02
    assert np.percentile(differences, 90) <= 0.05


def test_words_of_the_recordings_that_ship_with_csm_are_found():
    for recording in sesame_prompts():
        if recording.name.startswith("read"):
            found = align(recording.samples(), recording.rate_hz, re.split(r"[\s-]+", recording.words))
            assert found is not None
            assert not found.missing, recording.name


# ---- the process


@pytest.fixture(scope="module")
def aligner():
    made = Aligner()
    yield made
    made.close()


def test_process_gives_the_same_words(aligner):
    here, there = aligned(said(SENTENCE)), aligner.align(said(SENTENCE), RATE_HZ, WORDS)
    assert there is not None
    assert [(word.word, word.start_s, word.end_s) for word in there.words] == [
        (word.word, word.start_s, word.end_s) for word in here.words
    ]
    assert there.cut_off == pytest.approx(here.cut_off, abs=0.5)


def test_process_is_started_again_after_it_died(aligner):
    assert aligner.align(said(SENTENCE), RATE_HZ, WORDS) is not None
    aligner._process.kill()
    aligner._process.wait()
    assert aligner.align(said(SENTENCE), RATE_HZ, WORDS) is not None


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        "import os; os.abort()",
        f"{ANSWERS} s.sendall(b'garbage\\n'); s.recv(1)",
        f"{ANSWERS} s.sendall(b'{{}}\\n'); s.recv(1)",
    ],
    ids=["hangs", "crashes", "answers garbage", "answers with fields missing"],
)
def test_failed_process_gives_no_alignment(program):
    broken = Aligner(command=(sys.executable, "-c", program))
    assert broken.align(said(SENTENCE), RATE_HZ, WORDS, deadline_s=2.0) is None
    assert broken._process is None


def test_closing_the_aligner_ends_a_process_that_hangs():
    hung = Aligner(command=(sys.executable, "-c", "import time; time.sleep(600)"))
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.append(hung.align(said(SENTENCE), RATE_HZ, WORDS, deadline_s=500.0)), daemon=True
    )
    waiting.start()
    wait_until(lambda: hung._process is not None)
    process = hung._process
    closing = threading.Thread(target=hung.close, daemon=True)
    closing.start()
    try:
        for thread in (closing, waiting):
            thread.join(60)
            assert not thread.is_alive()
        assert process.poll() is not None
        assert (answers, hung._process) == ([None], None)
    finally:
        process.kill()


def test_pronunciations_of_the_caller_are_added(aligner):
    asked: list[str] = []

    def pronounce(word: str) -> list[str]:
        asked.append(word)
        return ["zˈɔːblat"]

    made = Aligner(pronounce)
    try:
        assert made.align(said("The zorblatt came home."), RATE_HZ, ["the", "zorblatt", "came", "home"]) is not None
    finally:
        made.close()
    assert "zorblatt" in asked


# ---- pronunciations


def test_espeak_pronounces_words_for_the_aligner(pronouncer):
    library = Library()
    assert from_ipa(library.ipa("car", "gmw/en-US")) == ("K", "AA", "R")
    assert from_ipa(library.ipa("car", "gmw/en-GB-x-rp")) == ("K", "AA")
    for word in ("kubernetes", "Llanelli", "xiaoming", "zorblatt", "a.b", ""):
        ipa = library.ipa(word, "gmw/en-GB-x-rp")
        assert bool(from_ipa(ipa)) is bool(plain_word(word)), word
    assert pronouncer.pronunciations("kubernetes", [library.ipa("kubernetes", "gmw/en-US")])


def test_pronunciation_comes_from_dictionary_then_ipa_then_letters(pronouncer):
    assert pronouncer.pronunciations("Hello,")[0] == ("HH", "AH", "L", "OW")
    assert pronouncer.pronunciations("zorblatt", ["zˈɔːblæt"])[0] == tuple("Z AO B L AE T".split())
    assert pronouncer.pronunciations("zorblatt")[0] == tuple("Z AO R B L AE T".split())
    assert pronouncer.pronunciations("Café") == pronouncer.pronunciations("cafe")
    assert pronouncer.pronunciations("—") == ()


def test_every_pronunciation_uses_phonemes_of_the_model(pronouncer):
    folder = find_model()
    assert folder is not None
    known = set(load_model(folder).phonemes)
    words = "car not zorblatt xylograph nginx 42 btw Smith's naïve queue thought psst".split()
    for word in words:
        found = pronouncer.pronunciations(word, ["ˈaɪɹɒɬʃœχ"])
        assert found
        assert {phoneme for variant in found for phoneme in variant} <= known, word


@pytest.mark.parametrize(
    ("us", "uk"),
    [
        ("K AA R", "K AA"),
        ("N AA T", "N AO T"),
        ("N IH R", "N IH AH"),
        ("R IH V ER", "R IH V AH"),
        ("V EH R IY", "V EH R IY"),
    ],
)
def test_british_variants_are_derived_from_us_pronunciations(us, uk):
    assert british(tuple(us.split())) == tuple(uk.split())


def test_letters_and_ipa_are_converted_to_phonemes():
    assert from_letters("btw") == tuple("B IY T IY D AH B AH L Y UW".split())
    assert from_letters("shape") == tuple("SH AE P".split())
    assert from_ipa("həlˈəʊ") == tuple("HH AH L OW".split())
    assert plain_word("“Don’t!”") == "don't"


def test_process_gets_no_secrets(monkeypatch):
    """The process of the aligner gets no environment variables with tokens or keys, since it does not need them."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("TTS_API_KEYS", "secret-key-of-a-server")
    program = f"{ANSWERS} import json, os; s.sendall(json.dumps(dict(os.environ)).encode() + b'\\n'); s.recv(1)"
    helper = Aligner(command=(sys.executable, "-c", program))
    try:
        line = helper._running()
        line.settimeout(20)
        line.sendall(b"go")
        with line.makefile("rb") as reader:
            names = json.loads(reader.readline())
    finally:
        helper.close()
    assert "PATH" in names
    assert not {"HF_TOKEN", "TTS_API_KEYS"} & set(names)
