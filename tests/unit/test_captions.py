"""Captions: the rules for their times and lines, and files that other programs can read.

FFmpeg (through PyAV) parses SRT, WebVTT and LRC.
"""

from __future__ import annotations

import io
import json
import logging
import re
from itertools import pairwise
from typing import Any

import av
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from openai.types.audio import TranscriptionVerbose

from app.text.caption_breaks import char_width
from app.text.captions import Caption, CaptionFormat, build_captions, caption_file
from app.types import TimedSentence, TimedWord, Timestamps

pytestmark = pytest.mark.unit

FOX = (
    "Hi. The quick brown fox jumps over the lazy dog, and the dog, which had been sleeping in the warm sun since early "
    "morning, does not even open an eye to look at the fox. Yes. No! It costs 5 kg of cheese."
)


def spoken(*texts: str, rate: float = 15.0, words: bool = True, pause_s: float = 0.3) -> Timestamps:
    """Return word times for texts: each character takes 1 / rate seconds. Each text is a turn."""
    sentences: list[TimedSentence] = []
    clock = 0.0
    for turn, text in enumerate(texts):
        for match in re.finditer(
            r"\S.*?(?:(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bSt)[.!?]+(?=\s|$)|[。！？]|$)", text, re.DOTALL
        ):
            start, timed = clock, []
            for word in re.finditer(r"\S+", match[0]):
                end = clock + len(word[0]) / rate
                place = match.start() + word.start()
                timed.append(TimedWord(word[0], clock, end, place, place + len(word[0]), turn))
                clock = end + 1 / rate
            sentences.append(
                TimedSentence(match[0], start, clock, match.start(), match.end(), turn, tuple(timed) if words else ())
            )
            clock += pause_s
    return Timestamps(tuple(sentences), clock)


def parsed(text: str, kind: str) -> list[tuple[float, float, str]]:
    """Return the captions of a file as FFmpeg reads them: start and end in seconds, text."""
    events = []
    with av.open(io.BytesIO(text.encode()), format={"vtt": "webvtt"}.get(kind, kind)) as container:
        stream: Any = container.streams[0]
        for packet in container.demux(stream):
            if packet.size:
                start = float(packet.pts * packet.time_base)
                events.append((start, start + float((packet.duration or 0) * packet.time_base), bytes(packet).decode()))
    return events


def bare(text: str) -> str:
    return "".join(text.split())


def lines_of(captions: list[Caption]) -> list[str]:
    return [line.text for caption in captions for line in caption.lines]


def check_rules(captions: list[Caption], times: Timestamps) -> None:
    """Check the rules that hold for all captions."""
    last_end = None
    for caption in captions:
        assert 0 <= caption.start_ms < caption.end_ms <= times.duration_s * 1000
        assert caption.end_ms - caption.start_ms <= 7_000
        assert len(caption.lines) <= 2
        assert all(line.text.strip() == line.text != "" for line in caption.lines)
        assert last_end is None or caption.start_ms >= last_end
        last_end = caption.end_ms


TEXTS = {
    "english": FOX,
    "one word": "Stop!",
    "no full stop": "hello there",
    "abbreviations": "Dr. Miller lives in St. Louis with the U.S. ambassador and an old dog, I was told by Mr. Fox.",
    "url": "See https://example.org/a/very/long/path/that/nobody/ever/reads?with=a&long=query#and-a-fragment now.",
    "one long word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft.",
    "german": "Der Hund, der seit dem frühen Morgen in der warmen Sonne geschlafen hatte, öffnet nicht ein Auge.",
    "french": "Où êtes-vous ? Je suis « ici », dans la vieille maison de mon oncle qui habite à la campagne.",
    "japanese": "私は昨日、東京駅の近くにある小さな喫茶店で、友人と三時間も話をしていました。とても楽しかったです。",
    "chinese": "这是一个很长的句子没有任何空格也没有逗号所以必须在某个地方断开否则一行就放不下这么多字了。",
    "korean": "오늘은 날씨가 매우 좋아서 우리는 공원에 가서 점심을 먹고 오래 산책을 하기로 했습니다.",
    "thai": "วันนี้อากาศดีมากเราจึงตัดสินใจไปเดินเล่นในสวนสาธารณะและกินข้าวกลางวันด้วยกันที่นั่น",
    "arabic": "ذهبت إلى السوق في الصباح الباكر لأشتري الخبز والحليب، ثم عدت إلى البيت وقرأت كتابا جديدا.",
    "hebrew": "הלכתי לשוק מוקדם בבוקר כדי לקנות לחם וחלב, ואחר כך חזרתי הביתה וקראתי ספר חדש.",
    "emoji": "Good morning 👩‍👩‍👧‍👦🏳️‍🌈 to all of you 🎉🎉🎉 and to the family in the other room of the house!",
    "combining": "Ça va bien aujourd'hui, merci beaucoup à tous les élèves de la classe.",
    "markup": "Use <b>bold</b> & <i>italic</i>, a --> b, {\\an8} and 5 < 6 > 4; [00:01.00] is a time &amp; <00:02.00>.",
    "block of srt": "1\n\n00:00:01,000 --> 00:00:02,000\n\nNot a caption.",
    "blank lines": "A heading\n\n\n   and a line.\r\n\r\nAnother\u2028line\u2029here.\x0bAnd here.",
    "no-break spaces": "Il pèse 5\u202fkg\u00a0: c'est beaucoup\u00a0!",
    "quotes": "“Come in,” she said. “It's (almost) open.” He didn't. 'Why?'",
    "list": "First, apples; second, pears: green ones – or yellow ones — and third, well... nothing else, I think.",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("words", [True, False], ids=["words", "no words"])
def test_captions_are_verbatim_and_keep_the_rules(name, words):
    text = TEXTS[name]
    rate = 5.0 if name in ("japanese", "chinese") else 12.0
    times = spoken(text, rate=rate, words=words)
    captions = build_captions(times, texts=[text])
    check_rules(captions, times)
    assert bare("".join(lines_of(captions))) == bare(text)
    assert all(char_width(line) <= 42 for line in lines_of(captions))
    for before, after in pairwise(captions):
        gap = after.start_ms - before.end_ms
        assert gap == 80 or gap >= 200
    assert all(each.end_ms - each.start_ms >= 833 for each in captions) or times.duration_s < 0.833


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["srt", "vtt", "lrc"])
@pytest.mark.parametrize("highlight", ["none", "word"])
def test_another_program_reads_the_same_captions(name, kind: CaptionFormat, highlight):
    text = TEXTS[name]
    times = spoken(text, rate=12.0)
    content = caption_file(times, kind, texts=[text], highlight=highlight)
    events = parsed(content, kind)
    captions = build_captions(times, texts=[text])
    assert len(events) == len(captions)
    shown = "".join(each for _, _, each in events).replace("\u2060", "")
    if highlight == "word" and kind != "srt":
        shown = re.sub(r"<\d\d:\d\d[\d:.]*>", "", shown) if name != "markup" else shown
    if kind == "vtt":
        shown = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    if highlight == "none" or name != "markup":
        assert bare(shown) == bare(text)
    for (start, end, _), caption in zip(events, captions, strict=True):
        assert start == pytest.approx(caption.start_ms / 1000, abs=0.011)
        assert kind == "lrc" or end == pytest.approx(caption.end_ms / 1000, abs=0.001)


def test_a_sentence_that_fits_is_one_caption():
    text = "This sentence has exactly two lines, because it is a little longer. This one is short enough for one."
    captions = build_captions(spoken(text), texts=[text])
    assert [caption.text for caption in captions] == [
        "This sentence has exactly two lines, because it is a little longer.",
        "This one is short enough for one.",
    ]
    assert lines_of(captions)[:2] == ["This sentence has exactly two lines,", "because it is a little longer."]


@pytest.mark.parametrize(
    ("language", "bad_ends", "text"),
    [
        (
            "en",
            "a an the",
            "We walked for hours through the old town to see a house with an orange roof near the small bridge.",
        ),
        (
            "en",
            "my her our his the",
            "My sister gave her friend the keys of our car because his bus did not come to the corner at all.",
        ),
        (
            "en",
            "mrs. dr. an the",
            "Yesterday Mrs. Henderson and Dr. Abernathy talked for an hour about the state of the new hospital.",
        ),
        (
            "de",
            "der meiner eine den",
            "Gestern hat der Nachbar meiner Mutter eine Kiste mit den besten Äpfeln aus seinem Garten gebracht.",
        ),
        (
            "fr",
            "le ma une des son",
            "Hier matin le voisin de ma mère a apporté une caisse remplie des plus belles pommes de son jardin.",
        ),
        (
            "es",
            "la el mi una las su",
            "Ayer por la mañana el vecino de mi madre trajo una caja llena de las mejores manzanas de su huerto.",
        ),
        (
            "it",
            "il mia una le suo",
            "Ieri mattina il vicino di mia madre ha portato una cassetta con le mele più belle del suo giardino.",
        ),
        (
            "nl",
            "de mijn een zijn",
            "Gisteren bracht de buurman van mijn moeder een kist met de mooiste appels uit zijn eigen tuin mee.",
        ),
    ],
)
def test_no_line_ends_between_an_article_and_its_noun(language, text, bad_ends):
    for lead in range(0, 40, 3):  # texts of different lengths, so that the line breaks are at different words
        longer = "So " * (lead // 3) + text
        captions = build_captions(spoken(longer), texts=[longer], language=language)
        for line in lines_of(captions):
            assert line.split()[-1].lower() not in bad_ends.split(), lines_of(captions)


def test_lines_break_after_punctuation_and_before_conjunctions():
    cases = {
        "I would have called you earlier, but my phone was empty.": "I would have called you earlier,",
        "They stayed at home all day because the weather was bad.": "They stayed at home all day",
        "She put the heavy wooden boxes under the kitchen table.": "She put the heavy wooden boxes",
    }
    for text, first in cases.items():
        assert lines_of(build_captions(spoken(text), texts=[text]))[0] == first


def test_a_short_sentence_is_shown_long_enough():
    text = "I saw him there yesterday evening. Yes. He stood at the door of the house."
    captions = build_captions(spoken(text, pause_s=0.05), texts=[text])
    assert all(each.end_ms - each.start_ms >= 833 for each in captions)
    alone = build_captions(spoken("Yes.", pause_s=2.0))
    assert [(each.start_ms, each.end_ms) for each in alone] == [(0, 833)]


def test_a_short_audio_has_a_caption_up_to_its_end():
    word = TimedWord("Yes.", 0.05, 0.3, 0, 4)
    times = Timestamps((TimedSentence("Yes.", 0.05, 0.3, 0, 4, 0, (word,)),), 0.4)
    (caption,) = build_captions(times)
    assert (caption.start_ms, caption.end_ms) == (0, 400)


def test_last_short_caption_starts_earlier_so_that_it_ends_with_the_audio():
    first = TimedSentence("It is late now.", 0.0, 1.0, 0, 15)
    last = TimedSentence("Yes.", 2.0, 2.3, 16, 20)
    captions = build_captions(Timestamps((first, last), 2.3))
    assert captions[-1].end_ms == 2300
    assert captions[-1].end_ms - captions[-1].start_ms >= 833


def test_sentences_after_the_end_of_the_audio_are_left_out():
    sentences = (TimedSentence("Heard.", 0.0, 1.0, 0, 6), TimedSentence("Not heard.", 2.0, 3.0, 7, 17))
    assert [each.text for each in build_captions(Timestamps(sentences, 2.0))] == ["Heard."]
    assert build_captions(Timestamps(sentences, 0.0)) == []
    assert build_captions(Timestamps((), 3.0)) == []


def test_empty_captions_are_valid_files():
    nothing = Timestamps((), 0.25)
    assert caption_file(nothing, "srt") == ""
    assert caption_file(nothing, "vtt") == "WEBVTT\n"
    assert caption_file(nothing, "lrc") == ""
    assert json.loads(caption_file(nothing, "json"))["segments"] == []


def test_words_without_times_share_the_time_of_their_sentence():
    text = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen."
    sentence = TimedSentence(text, 1.0, 9.0, 0, len(text))
    captions = build_captions(Timestamps((sentence,), 9.5))
    assert captions[0].start_ms == 1000
    for caption in captions:
        place = text.index(caption.text)
        assert caption.words[0].start_ms == pytest.approx(1000 + place / len(text) * 8000, abs=200)


def test_words_that_are_not_spoken_stay_in_the_text():
    words = (TimedWord("Salt", 0.0, 0.4, 0, 4), TimedWord("pepper.", 1.0, 1.5, 7, 14))
    times = Timestamps((TimedSentence("Salt — pepper.", 0.0, 1.5, 0, 14, 0, words),), 2.0)
    (caption,) = build_captions(times)
    assert caption.text == "Salt — pepper."
    assert [(word.start_ms, word.end_ms) for word in caption.words] == [(0, 400), (400, 1000), (1000, 1500)]


def test_punctuation_beside_a_sentence_is_kept():
    text = "“Hello”, **she said.** [pause 1s] (Then) she left…"
    sentences = (
        TimedSentence("Hello”, **she said", 0.0, 1.0, 1, 19),
        TimedSentence("Then) she left", 2.5, 3.5, 35, 49),
    )
    captions = build_captions(Timestamps(sentences, 4.0), texts=[text])
    assert [each.text for each in captions] == ["“Hello”, **she said.**", "(Then) she left…"]


def test_parts_of_a_long_sentence_are_not_treated_as_sentences():
    text = "We left early, and nobody said a word about it."
    sentences = (TimedSentence("We left early,", 0.0, 0.9, 0, 14), TimedSentence(text[15:], 1.0, 3.0, 15, len(text)))
    assert [each.text for each in build_captions(Timestamps(sentences, 3.2), texts=[text])] == [text]


def test_short_lines_of_the_text_keep_their_line_breaks():
    text = "# Menu\n\nTea costs five dollars today.\n- One\n- Two and so on\nLast"
    places = [("Menu", 0.4), ("Tea costs five dollars today.", 2.0), ("One\n- Two and so on", 2.0), ("Last", 0.4)]
    sentences, clock = [], 0.0
    for part, length in places:
        start = text.index(part)
        sentences.append(TimedSentence(part, clock, clock + length, start, start + len(part)))
        clock += length
    captions = build_captions(Timestamps(tuple(sentences), clock), texts=[text])
    assert [[line.text for line in each.lines] for each in captions] == [
        ["Menu", "Tea costs five dollars today."],
        ["One - Two and so on", "Last"],
    ]


def test_sentences_of_two_tagged_speakers_have_two_lines():
    text = "[S1] No. [S2] Oh."
    sentences = (TimedSentence("No.", 0.0, 0.4, 5, 8), TimedSentence("Oh.", 0.5, 0.9, 14, 17))
    (caption,) = build_captions(Timestamps(sentences, 1.0), texts=[text])
    assert [line.text for line in caption.lines] == ["No.", "Oh."]


def test_japanese_lines_break_between_phrases():
    text = TEXTS["japanese"]
    captions = build_captions(spoken(text, rate=5.0), texts=[text], language="ja")
    for line in lines_of(captions)[1:]:
        assert not "\u3040" <= line[0] <= "\u309f" or line == "とても楽しかったです。", lines_of(captions)


def test_the_speed_of_reading_is_logged_and_nothing_is_shortened(caplog):
    with caplog.at_level(logging.WARNING, "app.text.captions"):
        content = caption_file(spoken(FOX, rate=40.0), "srt", texts=[FOX])
    assert "more than 20 characters per second" in caplog.text
    assert bare(FOX) in bare(re.sub(r"\d+\r\n[\d:,]+ --> [\d:,]+", "", content))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "app.text.captions"):
        caption_file(spoken(FOX, rate=12.0), "srt", texts=[FOX])
    assert not caplog.text


# ---- files


def test_srt_has_the_documented_form():
    text = "Hello there. This is the second caption of the file, with two lines of text."
    assert caption_file(spoken(text), "srt", texts=[text]) == (
        "1\r\n00:00:00,000 --> 00:00:00,833\r\nHello there.\r\n\r\n"
        "2\r\n00:00:01,167 --> 00:00:05,367\r\nThis is the second caption of the file,\r\n"
        "with two lines of text.\r\n\r\n"
    )


def test_vtt_has_the_time_of_each_word_on_request():
    text = "Tom & Jerry <3"
    times = spoken(text)
    assert caption_file(times, "vtt", texts=[text]) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.933\nTom &amp; Jerry &lt;3\n"
    )
    assert caption_file(times, "vtt", texts=[text], highlight="word") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.933\nTom <00:00:00.267>&amp; <00:00:00.400>Jerry <00:00:00.800>&lt;3\n"
    )


def test_the_times_of_words_in_vtt_increase_inside_their_caption():
    for name, text in TEXTS.items():
        content = caption_file(spoken(text, rate=20), "vtt", texts=[text], highlight="word")
        for block in content.split("\n\n")[1:]:
            stamps = re.findall(r"(?<!&lt;)\d\d:\d\d:\d\d\.\d{3}", block)
            order = [stamps[0], *stamps[2:], stamps[1]]
            assert all(before < after for before, after in pairwise(order)), (name, block)


def test_lrc_has_one_line_for_each_caption():
    text = "Hello there. Good morning to you."
    times = spoken(text, rate=10)
    assert caption_file(times, "lrc", texts=[text]) == "[00:00.00]Hello there.\n[00:01.60]Good morning to you.\n"
    assert caption_file(times, "lrc", texts=[text], highlight="word") == (
        "[00:00.00]<00:00.00>Hello <00:00.60>there.\n"
        "[00:01.60]<00:01.60>Good <00:02.10>morning <00:02.90>to <00:03.20>you.\n"
    )


def test_times_of_long_audio_have_hours():
    sentence = TimedSentence("Late.", 36_061.5, 36_063.0, 0, 5)
    times = Timestamps((sentence,), 36_100.0)
    assert "10:01:01,500 --> " in caption_file(times, "srt")
    assert "10:01:01.500 --> " in caption_file(times, "vtt")
    assert caption_file(times, "lrc") == "[601:01.50]Late.\n"


def test_json_is_the_verbose_form_of_openai():
    answer = json.loads(caption_file(spoken(FOX), "json", texts=[FOX], language="en-GB"))
    verbose = TranscriptionVerbose.model_validate(answer)
    assert verbose.text == FOX
    assert verbose.language == "en-GB"
    assert [word.word for word in verbose.words or ()] == FOX.split()
    assert " ".join(segment.text for segment in verbose.segments or ()) == FOX
    assert [segment.id for segment in verbose.segments or ()] == list(range(len(verbose.segments or ())))


def test_text_cannot_start_a_caption_in_srt():
    text = "x" * 40 + " 00:00:01,000 --> 00:00:02,000 injected"
    content = caption_file(spoken(text), "srt", texts=[text])
    assert len(parsed(content, "srt")) == len(build_captions(spoken(text), texts=[text]))
    assert bare(content.replace("\u2060", "")).count("00:00:01,000-->00:00:02,000injected") == 1


@pytest.mark.parametrize("kind", ["srt", "vtt", "lrc"])
def test_control_characters_do_not_reach_a_file(kind: CaptionFormat):
    text = "Be\x00ll \x07 and \x1b[0m \ud800 whistle."
    content = caption_file(spoken(text), kind, texts=[text])
    content.encode()
    assert not re.search("[\x00-\x08\x0e-\x1f]", content)
    assert "Bell and [0m whistle." in content


# ---- dialogues

TURNS = ("Have you seen my umbrella? I left it here.", "You left it on the bus.", "Oh no!", "Sorry.")
SPEAKERS = ("Ann", "Bob", "Ann", "Bob")


def test_srt_names_the_speaker_where_the_turn_changes():
    captions = caption_file(spoken(*TURNS), "srt", texts=TURNS, speakers=SPEAKERS)
    shown = [line for line in captions.split("\r\n") if line and not line.isdigit() and "-->" not in line]
    assert shown == [
        "Ann: Have you seen my umbrella?",
        "I left it here.",
        "Bob: You left it on the bus.",
        "Ann: Oh no!",
        "Bob: Sorry.",
    ]


def test_vtt_names_the_speaker_in_a_tag():
    content = caption_file(spoken(*TURNS), "vtt", texts=TURNS, speakers=("Ann", "B<o>b & Co\n", "Ann", "Bob"))
    assert "<v Ann>Have you seen my umbrella?\n" in content
    assert "<v Ann>I left it here.\n" in content
    assert "<v B&lt;o&gt;b &amp; Co>You left it on the bus.\n" in content


def test_short_turns_share_a_caption_with_one_line_for_each_speaker():
    times = spoken(*TURNS, pause_s=0.05)
    assert "<v Ann>Oh no!</v>\n<v Bob>Sorry.</v>\n" in caption_file(times, "vtt", texts=TURNS, speakers=SPEAKERS)
    assert "Ann: Oh no!\r\nBob: Sorry.\r\n" in caption_file(times, "srt", texts=TURNS, speakers=SPEAKERS)
    lrc = caption_file(times, "lrc", texts=TURNS, speakers=SPEAKERS)
    assert re.search(r"\]Ann: Oh no!\n\[00:0\d\.\d\d\]Bob: Sorry\.\n$", lrc)
    segments = json.loads(caption_file(times, "json", texts=TURNS, speakers=SPEAKERS))["segments"]
    assert [segment["speaker"] for segment in segments] == ["Ann", "Ann", "Bob", "Ann / Bob"]


def test_speaker_name_counts_as_part_of_the_line():
    text = "A sentence that has nearly forty letters."
    captions = build_captions(spoken(text), texts=[text], speakers=["Margaret"], names_in_text=True)
    assert all(len("Margaret: ") + len(line) <= 42 for line in lines_of(captions)[:1])


def test_repeated_words_are_found_in_the_text_of_their_turn():
    times = spoken("Yes, I do.", "Yes, I do.", pause_s=1.0)
    captions = build_captions(times, texts=["Yes, I do.", "Yes, I do."], speakers=["A", "B"])
    assert [(each.text, each.lines[0].speaker) for each in captions] == [("Yes, I do.", "A"), ("Yes, I do.", "B")]


# ---- any text, any times

LONG_RUN_OF_MARKS = re.compile(r"(?:(?<!\S)[^\w\s]+(?:\s+|$)){4}")

any_text = st.text(
    st.sampled_from(
        "ab .,!?\n\t-–—\"'()[]<>&{}: 0189áßñ東京。、「」ไทย한국العرب\u00a0\u202f\u200d\U0001f469\ufe0f\u0301"
    ),
    max_size=300,
)


@settings(max_examples=150, deadline=None)
@given(any_text, st.floats(0.5, 60), st.booleans(), st.floats(0, 3))
@example(": :\U0001f469<\u4eac", 1.0, False, 0.0)
def test_any_text_gives_readable_files(text, rate, words, pause_s):
    assume(words or not LONG_RUN_OF_MARKS.search(text))  # such a run is not shown
    times = spoken(text, rate=rate, words=words, pause_s=pause_s)
    captions = build_captions(times, texts=[text])
    check_rules(captions, times)
    assert bare("".join(lines_of(captions))) == bare(text)
    for kind in ("srt", "vtt"):
        content = caption_file(times, kind, texts=[text])
        assert len(parsed(content, kind) if captions else []) == len(captions)
        assert "-->" not in re.sub(r"(?m)^[\d:,.]+ --> [\d:,.]+\r?$", "", content) or "-->" in bare(text)


times_of_words = st.lists(st.tuples(st.floats(-1, 30), st.floats(-1, 30)), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(times_of_words, st.floats(0.3, 30), st.integers(1, 9))
def test_any_times_give_captions_that_do_not_overlap(spans, duration, size):
    sentences = []
    place = 0
    for number in range(0, len(spans), size):
        words = []
        start = place
        for begin, end in spans[number : number + size]:
            words.append(TimedWord("word", begin, end, place, place + 4))
            place += 5
        text = " ".join(["word"] * len(words))
        sentences.append(TimedSentence(text, words[0].start_s, words[-1].end_s, start, place - 1, 0, tuple(words)))
    times = Timestamps(tuple(sentences), duration)
    captions = build_captions(times)
    check_rules(captions, times)
    heard = sum(len(each.words) for each in sentences if each.start_s < int(duration * 1000) / 1000)
    assert sum(len(each.words) for each in captions) == heard


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("- " * 60 + "end", "end"),
        ("so " + "* " * 40 + "on", "so on"),
        ("- one - two", "- one - two"),
        ("a . . . b", "a . . . b"),
        ("stop . . . . . . . .", "stop"),
    ],
)
def test_captions_leave_out_a_line_of_silent_punctuation(text: str, shown: str) -> None:
    words = tuple(
        TimedWord(match[0], at, at + 1.0, *match.span()) for at, match in enumerate(re.finditer(r"[a-z]+", text))
    )
    times = Timestamps((TimedSentence(text, 0.0, float(len(words)), 0, len(text), 0, words),), len(words) + 0.5)
    assert " ".join(caption.text for caption in build_captions(times, texts=(text,))) == shown
