"""The times of words and sentences: the timeline, and answers of the offline voice through the whole generator."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.generator.timeline import Timeline
from app.settings import Settings
from app.types import Line, SpeechRequest, SpokenLine, SpokenWord, Timestamps, Voice, WordMark
from app.wiring import core_services

pytestmark = pytest.mark.unit

VOICE = Voice("alloy", "Alloy", "preset")


def test_timeline_is_the_same_after_it_was_stored() -> None:
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


async def times_of(folder: Path, *requests: SpeechRequest) -> list[tuple[Timestamps, int, str]]:
    """Speak requests one after another -> the times, the number of bytes, and the use of the cache of each one."""
    services = core_services(Settings(_env_file=None, TTS_ENGINE="espeak", TTS_DATA_DIR=folder))
    found = []
    async with services.manager:
        await services.manager.settled()
        for request in requests:
            answer = await services.generator.answer(request)
            size = sum([len(data) async for data in answer.stream])
            found.append((await answer.timestamps(), size, answer.cache))
    services.word_timer.close()
    await services.take_checker.close()
    return found


def ask(*texts: str, **changes: Any) -> SpeechRequest:
    lines = tuple(Line(text, "alloy") for text in texts)
    return SpeechRequest(**{"model": "tts-1", "lines": lines, "format": "pcm", "timestamps": True} | changes)


def check_order(times: Timestamps, texts: tuple[str, ...]) -> None:
    """Check what is true for all times: order, limits, and characters of the caller."""
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


def test_equal_speech_of_another_text_has_the_places_of_its_own_text(tmp_path: Path) -> None:
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
