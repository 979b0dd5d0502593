"""Read the sound of sentences, and find the times of chapters and captions in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from app.audio import pcm
from app.books.audio_file import ChapterMark
from app.text import captions
from app.types import TimedSentence, Timestamps

if TYPE_CHECKING:
    from app.books.book import Book, SpokenSentence
    from app.text.captions import Caption, CaptionFormat
    from app.types import Samples

_BLOCK_BYTES = 1 << 16


def sample_count(sentence: SpokenSentence, rate_hz: int) -> int:
    """Return the number of samples that `read_samples` yields for a sentence and the pause after it."""
    return sentence.sound.stat().st_size // 2 + max(0, round(sentence.pause_s * rate_hz))


def read_samples(sentences: Iterable[SpokenSentence], rate_hz: int) -> Iterator[Samples]:
    """Yield the samples of sentences and of the pauses after them, in small blocks."""
    for sentence in sentences:
        with sentence.sound.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield pcm.from_bytes(block[: len(block) // 2 * 2])
        if sentence.pause_s > 0:
            yield pcm.silence(sentence.pause_s, rate_hz)


def chapter_groups(sentences: Iterable[SpokenSentence]) -> Iterator[tuple[int, Iterator[SpokenSentence]]]:
    """Yield the index of each chapter that has sentences, with its sentences."""
    yield from groupby(sentences, key=lambda sentence: sentence.chapter)


def chapter_marks(book: Book, sentences: Iterable[SpokenSentence], rate_hz: int) -> list[tuple[int, ChapterMark]]:
    """Return for each chapter with sentences a pair: its index in `book.chapters`, and its mark.

    The times in a mark are in seconds from the start of the book.
    """
    marks = []
    position = 0
    for index, group in chapter_groups(sentences):
        start = position
        position += sum(sample_count(sentence, rate_hz) for sentence in group)
        marks.append((index, ChapterMark(book.chapters[index].title, start / rate_hz, position / rate_hz)))
    return marks


def timestamps(sentences: Iterable[SpokenSentence], rate_hz: int) -> tuple[Timestamps, str]:
    """Return the times of sentences, and the text that joins these sentences.

    The times are in seconds from the start of the first sentence. In the text, a blank line separates two paragraphs.
    """
    timed: list[TimedSentence] = []
    pieces: list[str] = []
    length = position = 0
    for sentence in sentences:
        gap = "" if not pieces else "\n\n" if sentence.starts_paragraph else " "
        start_char, start_s = length + len(gap), position / rate_hz
        pieces += (gap, sentence.text)
        length = start_char + len(sentence.text)
        words = tuple(
            replace(
                word,
                start_s=word.start_s + start_s,
                end_s=word.end_s + start_s,
                start_char=word.start_char + start_char,
                end_char=word.end_char + start_char,
                turn=0,
            )
            for word in sentence.words
        )
        end_s = start_s + sentence.sound.stat().st_size // 2 / rate_hz
        timed.append(TimedSentence(sentence.text, start_s, end_s, start_char, length, 0, words))
        position += sample_count(sentence, rate_hz)
    return Timestamps(tuple(timed), position / rate_hz), "".join(pieces)


def caption_parts(book: Book, sentences: Iterable[SpokenSentence], kind: CaptionFormat, rate_hz: int) -> Iterator[str]:
    """Yield the parts of a caption file for sentences of one or several chapters.

    Only the captions of one chapter are in memory at the same time, with one exception: for JSON, the captions of all
    chapters are in memory.
    """
    language = book.language or "en"
    if kind == "json":
        times, text = timestamps(sentences, rate_hz)
        yield captions.caption_file(times, kind, texts=(text,), language=language)
        return
    start_s, number = 0.0, 1
    if kind == "vtt":
        yield "WEBVTT\n"
    for _, group in chapter_groups(sentences):
        times, text = timestamps(group, rate_hz)
        found = captions.build_captions(times, texts=(text,), language=language)
        moved = [_moved(each, round(start_s * 1000)) for each in found]
        if kind == "srt":
            yield captions.to_srt(moved, first=number)
        elif kind == "vtt":
            yield captions.to_vtt(moved).removeprefix("WEBVTT\n")
        else:
            yield captions.to_lrc(moved)
        number += len(moved)
        start_s += times.duration_s


def _moved(caption: Caption, by_ms: int) -> Caption:
    """Return a caption with all its times moved by `by_ms`."""
    lines = tuple(
        replace(
            line,
            words=tuple(
                replace(word, start_ms=word.start_ms + by_ms, end_ms=word.end_ms + by_ms) for word in line.words
            ),
        )
        for line in caption.lines
    )
    return replace(caption, start_ms=caption.start_ms + by_ms, end_ms=caption.end_ms + by_ms, lines=lines)


def paragraphs(sentences: Sequence[SpokenSentence]) -> list[list[SpokenSentence]]:
    """Return the sentences of a chapter, grouped by paragraphs."""
    groups: list[list[SpokenSentence]] = []
    for sentence in sentences:
        if sentence.starts_paragraph or not groups:
            groups.append([])
        groups[-1].append(sentence)
    return groups
