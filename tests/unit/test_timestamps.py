"""The times of words and sentences: the timeline, and answers of the offline voice through the whole generator."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from app.generator import cache as cache_module
from app.generator import word_timing as module
from app.generator.speech import SpeechGenerator
from app.generator.stored_times import pack, pack_utterance, unpack
from app.generator.timeline import Timeline, TimelineUtterance
from app.generator.word_timing import Found, WordTimer
from app.settings import Settings
from app.text.word_spans import word_spans
from app.types import LexiconEntry, Line, SpeechRequest, SpokenLine, SpokenWord, Timestamps, Voice, WordMark
from app.wiring import core_services

pytestmark = pytest.mark.unit

VOICE = Voice("alloy", "Alloy", "preset")


def test_stored_timeline_is_read_back_unchanged() -> None:
    words = (SpokenWord("twelve", 3, 9), SpokenWord("dollars,", 3, 9), SpokenWord("é😀", 12, 14))
    line = SpokenLine("twelve dollars, é😀", 0, VOICE, None, words, 3, 14, 1, ipa=((0, 6, "twɛlv"),))
    timeline = Timeline()
    timeline.add((line, line), 0, 24_000, [WordMark(0, 0, 0), WordMark(900, 0, None), WordMark(1_000, 1, 7)])
    timeline.add((line,), 26_400, None, [])
    text = timeline.to_text()
    assert text is not None
    stored = Timeline.from_text(text)
    assert len(stored) == 2
    assert [stored[at] for at in range(2)] == [timeline[at] for at in range(2)]
    assert stored[0].lines[1].words == words
    assert stored[0].marks[1] == WordMark(900, 0, None)
    assert stored[1].end is None


@contextlib.asynccontextmanager
async def server(folder: Path) -> AsyncIterator[SpeechGenerator]:
    services = core_services(Settings(_env_file=None, TTS_ENGINE="espeak", TTS_DATA_DIR=folder))
    async with services.manager:
        await services.manager.settled()
        yield services.generator
    services.word_timer.close()
    await services.take_checker.close()


async def times_of(folder: Path, *requests: SpeechRequest) -> list[tuple[Timestamps, int, str]]:
    """Speak requests one after another; return the times, the number of bytes, and the use of the cache of each one."""
    found = []
    async with server(folder) as generator:
        for request in requests:
            answer = await generator.answer(request)
            size = sum([len(data) async for data in answer.stream])
            found.append((await answer.timestamps(), size, answer.cache))
    return found


def ask(*texts: str, **changes: Any) -> SpeechRequest:
    lines = tuple(Line(text, "alloy") for text in texts)
    return SpeechRequest(**{"model": "tts-1", "lines": lines, "format": "pcm", "timestamps": True} | changes)


def check_order(times: Timestamps, texts: tuple[str, ...]) -> None:
    """Check the order and limits of all times, and their characters in the caller's text."""
    last_s = 0.0
    for sentence in times.sentences:
        assert sentence.text == texts[sentence.turn][sentence.start_char : sentence.end_char]
        for word in sentence.words:
            assert last_s <= word.start_s <= word.end_s <= times.duration_s
            assert sentence.start_s <= word.start_s
            assert word.end_s <= sentence.end_s
            assert word.word == texts[word.turn][word.start_char : word.end_char]
            assert not any(map(str.isspace, word.word))
            last_s = word.end_s
        last_s = max(last_s, sentence.end_s)


TEXTS = {
    "markup": ("Hello **there**, it's `one` of the *best*.", "Hello **there**, it's `one` of the *best*."),
    "money": ("It costs $12.50 today.", "It costs $12.50 today."),
    "dash": ("Now — or never – said she.", "Now or never said she."),
    "emoji": ("Good 😀 morning 🎉!", "Good morning"),
    "quotes": ("He said: \"It's 5 o'clock!\"", "He said: \"It's 5 o'clock!\""),
    "point inside": ("See foo.Bar now.", "See foo.Bar now."),
    "unit": ("It is 10 km to St. Paul, Dr. Lee.", "It is 10 km to St. Paul, Dr. Lee."),
    "address": ("Write to joe@example.com or visit https://example.com now.", None),
    "pause": ("One. [pause 1s] Two.", "One. Two."),
    "list": ("- first\n- second\n- third", "first second third"),
    "heading": ("# Title\n\nText follows.", "Title Text follows."),
    "french": ("Ça va bien ? C'est l'été !", "Ça va bien C'est l'été"),
}


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS)
def test_each_spoken_part_of_a_text_has_one_time(tmp_path: Path, text: str, words: str | None) -> None:
    [(times, size, _)] = asyncio.run(times_of(tmp_path, ask(text)))
    check_order(times, (text,))
    assert times.reason == ""
    assert times.duration_s == pytest.approx(size / 48_000, abs=0.001)
    assert [word.word for word in times.words] == (text if words is None else words).split()


def test_cached_answer_has_the_same_times(tmp_path: Path) -> None:
    request = ask("First of all, hello. Then 25 more words.")
    first, second = asyncio.run(times_of(tmp_path, request, request))
    assert (first[2], second[2]) == ("miss", "hit")
    assert first[0] == second[0]


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the texts whose words are searched in audio."""
    texts: list[str] = []
    find = WordTimer.find

    async def spy(self: WordTimer, utterance: TimelineUtterance, *rest: Any) -> Found:
        texts.append(" ".join(line.text for line in utterance.lines))
        return await find(self, utterance, *rest)

    monkeypatch.setattr(WordTimer, "find", spy)
    return texts


STORED = "First of all, hello. Then 25 more words, 今天很好。 (laughs) And the end: foo.Bar!"


@pytest.mark.parametrize("first", [True, False], ids=["first with times", "first without times"])
@pytest.mark.parametrize("audio_format", ["pcm", "mp3"])
def test_answer_from_the_cache_is_not_searched_again(
    tmp_path: Path, searched: list[str], first: bool, audio_format: str
) -> None:
    request = ask(STORED, format=audio_format)
    begin = replace(request, timestamps=first)

    async def work() -> list[tuple[Timestamps | None, bytes, str]]:
        found = []
        for requests in ((begin, request, request), (request,)):  # the second server reads what the first has stored
            async with server(tmp_path) as generator:
                for each in requests:
                    answer = await generator.answer(each)
                    data = b"".join([part async for part in answer.stream])
                    times = await answer.timestamps() if each.timestamps else None
                    found.append((times, data, answer.cache))
        return found

    answers = asyncio.run(work())
    assert [cache for _, _, cache in answers] == ["miss", "hit", "hit", "hit"]
    assert len(searched) == len(set(searched)) > 1
    assert answers[1] == answers[2] == answers[3]
    assert answers[1][0] is not None
    check_order(answers[1][0], (STORED,))
    assert answers[0][0] in (None, answers[1][0])


def test_stored_times_keep_each_word_also_words_without_a_time() -> None:
    found = [
        Found([[(0.1, 0.25), None, (0.25, 0.5), None], [None, (1.0, 1.5), (2.0, 2.25)], []]),
        Found([], "No times."),
        Found([[None, None]]),
    ]
    assert unpack(pack(map(pack_utterance, found))) == [found[0], None, found[2]]


def test_equal_samples_have_stored_times_in_each_format(tmp_path: Path, searched: list[str]) -> None:
    requests = [ask(STORED, format=each) for each in ("pcm", "mp3", "opus", "wav", "aac", "flac")]
    found = asyncio.run(times_of(tmp_path, *requests))
    assert len(searched) == len(set(searched))
    plain, mp3, opus, *_ = (times for times, _, _ in found)
    assert plain == opus
    assert mp3.words[0].start_s - plain.words[0].start_s == pytest.approx(1105 / 24_000, abs=0.001)


@pytest.mark.parametrize("damage", ["removed", "cut", "flipped", "other samples", "other text", "other form"])
def test_damaged_stored_times_are_found_again(tmp_path: Path, searched: list[str], damage: str) -> None:
    request = ask(STORED)
    [(true, _, _)] = asyncio.run(times_of(tmp_path, request))
    [path] = tmp_path.rglob("*.times")
    data = path.read_bytes()
    [checksum] = {int.from_bytes(data[4:8], "little")}
    write = cache_module._write_times
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-3])
    elif damage == "flipped":
        path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    elif damage == "other samples":
        write(path, checksum ^ 1, "{}")
    elif damage == "other text":
        write(path, checksum, '{"version":1,"utterances":[[[5,"x"]],[[]]]}')
    else:
        write(path, checksum, '{"version":1,"utterances":[[[5,6,null]]]}')
    before = len(searched)
    [(found, _, cache)] = asyncio.run(times_of(tmp_path, request))
    assert cache == "hit"
    assert found == true
    assert len(searched) == 2 * before
    [(found, _, _)] = asyncio.run(times_of(tmp_path, request))  # stored again
    assert found == true
    assert len(searched) == 2 * before


@pytest.mark.parametrize("damage", ["!", "no", "flipped"])
def test_damaged_stored_timeline_is_a_miss(tmp_path: Path, damage: str) -> None:
    request = ask(STORED)
    [(true, _, _)] = asyncio.run(times_of(tmp_path, request))
    [path] = tmp_path.rglob("*.pcm")
    data = path.read_bytes()
    at = data.rindex(b'"timeline": "') + 13
    if damage == "no":
        changed = data.replace(b'"timeline": "', b'"timelinf": "')
    elif damage == "!":
        changed = data[:at] + b"!!!!" + data[at + 4 :]
    else:
        changed = data[: at + 40] + bytes([data[at + 40] ^ 1]) + data[at + 41 :]
    path.write_bytes(changed)
    (found, _, cache), (again, _, after) = asyncio.run(times_of(tmp_path, request, request))
    assert (cache, after) == ("miss", "hit")
    assert found == again == true


def test_missing_word_times_are_not_stored() -> None:
    found = Found([[(0.0, 0.25), None], []])
    utterances = [pack_utterance(each) for each in (found, Found([], "no voice"), Found([]))]
    assert unpack(pack(utterances)) == [found, None, Found([])]
    for text in ("", "[]", "{}", "3", '{"version":1}', '{"version":1,"utterances":[[[1]]]}', "[" * 100_000):
        with pytest.raises(ValueError, match="damaged"):
            unpack(text)
    assert unpack('{"version":2,"utterances":[]}') == []


def test_equal_speech_of_another_text_has_positions_in_its_own_text(tmp_path: Path) -> None:
    texts = ("Hello (laughs) world.", "Hello [laughs]   world.")
    found = asyncio.run(times_of(tmp_path, *map(ask, texts)))
    for (times, _, _), text in zip(found, texts, strict=True):
        check_order(times, (text,))


def test_dialogue_counts_characters_in_each_turn(tmp_path: Path) -> None:
    texts = ("Hi! How are you?", "Good, thanks a lot.")
    [(times, _, _)] = asyncio.run(times_of(tmp_path, ask(*texts)))
    check_order(times, texts)
    assert [sentence.turn for sentence in times.sentences] == [0, 0, 1]


def test_words_after_the_length_limit_have_no_times(tmp_path: Path) -> None:
    text = "One two three. Four five six seven eight nine ten. Eleven twelve."
    [(times, size, _)] = asyncio.run(times_of(tmp_path, ask(text, max_audio_ms=2_000)))
    assert size == 96_000
    check_order(times, (text,))
    spoken = [word.word for word in times.words]
    assert spoken == text.split()[: len(spoken)]
    assert 4 <= len(spoken) <= 8


@pytest.mark.parametrize("speed", [0.25, 0.5, 2.0, 4.0])
def test_times_are_divided_by_the_speed(tmp_path: Path, speed: float) -> None:
    text = "First of all, hello to everyone. Then some more words."
    normal, changed = asyncio.run(times_of(tmp_path, ask(text), ask(text, speed=speed)))
    check_order(changed[0], (text,))
    for before, after in zip(normal[0].words, changed[0].words, strict=True):
        assert after.word == before.word
        assert after.start_s == pytest.approx(before.start_s / speed, abs=0.003)


def test_word_that_is_cut_into_several_lines_has_one_time(tmp_path: Path) -> None:
    text = "Before it. " + "blah" * 300 + " after it."
    [(times, _, _)] = asyncio.run(times_of(tmp_path, ask(text)))
    check_order(times, (text,))
    assert [word.word for word in times.words] == text.split()


NUMBERS = [
    "75979489 48491320 467206872 201542992 254998153 541035796 188120915 952610039 1234567 89",
    "Call 467206872201542992254998153541035796188120915952610039 and then 83.",
    " ".join(f"${number}.{number % 90 + 10}" for number in range(1_000_001, 9_000_000, 777_777)),
    " ".join(f"{day}/12/19{day + 60}" for day in range(10, 30)),
    "ab" * 40 + "123456789" * 12 + " end",
]


@pytest.mark.parametrize("text", NUMBERS)
def test_number_that_is_divided_into_several_lines_is_in_one_sentence(tmp_path: Path, text: str) -> None:
    [(times, _, _)] = asyncio.run(times_of(tmp_path, ask(text)))
    check_order(times, (text,))
    assert [word.word for word in times.words] == text.split()
    places = [(sentence.start_char, sentence.end_char) for sentence in times.sentences]
    assert all(before[1] <= after[0] for before, after in pairwise(places))
    for before, after in pairwise(times.words):
        assert after.start_s - before.end_s < 0.5


KINDS = """
83 83. 1983 (83) "83" 83rd 3.5% $12.50 \u20ac1,250 12/25/2024 3:45 Dr. Mr. e.g. U.S. AT&T R&D \u00bd 10^6 #1
C++ B-52 MP3s isn't 'tis **bold** _under_ ~~old~~ `code` [link](https://example.com/83) www.example.org
joe@example.com foo_bar and/or caf\u00e9 x=5 5km -5 IV $x^2$ \\(a+b\\) \U0001f600 \u2014 (laughs) [sighs]
tomato New York naive\u0301 \u043c\u0438\u0440 \u4f60\u597d kubectl 2,000.50 50/50 1990s x86 9:30
""".split()
NOT_SPOKEN = {"(laughs)", "[sighs]", "\u2014", "\U0001f600"}
ENTRIES = (
    LexiconEntry("tomato", "tom ah toe"),
    LexiconEntry("New York", "the big apple"),
    LexiconEntry("kubectl", "cube control"),
)


def random_text(seed: int, sentences: int) -> str:
    draw = random.Random(seed)
    parts = []
    for _ in range(sentences):
        words = [draw.choice(KINDS) for _ in range(draw.randint(2, 9))]
        parts.append(" ".join(["Say", *words, "now" + draw.choice(".!?")]))
    return draw.choice(" \n").join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("aligned", [False, True], ids=["reported", "searched"])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "as it is"])
def test_each_spoken_word_has_exactly_one_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligned: bool, normalize: bool
) -> None:
    if aligned:
        monkeypatch.setattr(module, "_marked_words", lambda *_: pytest.fail("the marks are used"))
        make = WordTimer.__init__

        def without_marks(self: WordTimer, *values: Any) -> None:
            make(self, *values)
            self.use_marks = False

        monkeypatch.setattr(WordTimer, "__init__", without_marks)
    texts = [random_text(seed, 2) for seed in range(3 if aligned else 6)]
    if not aligned:
        texts.append(random_text(99, 60))
    requests = [ask(text, normalize=normalize, lexicon=ENTRIES) for text in texts]
    dialogue = tuple(random_text(seed, 2) for seed in (200, 201, 202))
    requests.append(ask(*dialogue, normalize=normalize, lexicon=ENTRIES))
    found = asyncio.run(times_of(tmp_path, *requests))
    for (times, _, _), request in zip(found, requests, strict=True):
        turns = tuple(line.text for line in request.lines)
        check_order(times, turns)
        assert times.reason == ""
        places = [(word.turn, word.start_char, word.end_char) for word in times.words]
        assert len(set(places)) == len(places)
        wanted = {
            (turn, start, end)
            for turn, text in enumerate(turns)
            for start, end in word_spans(text)
            if text[start:end] not in NOT_SPOKEN
        }
        texts_of = [turns[turn][start:end] for turn, start, end in sorted(wanted ^ set(places))]
        assert set(texts_of) <= (NOT_SPOKEN if normalize else {*NOT_SPOKEN, "**bold**"})
