"""Write the result of a book: one audio file with chapters, or a zip with one audio file for each chapter.

Sentences are read one after another and encoded at once, so the memory does not grow with the book. A result is written
to a temporary file in the folder of `out`, and renamed when it is complete.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.audio import pcm
from app.books.audio_file import AudioFile, ChapterMark

if TYPE_CHECKING:
    from app.books.book import Book, ResultFormat, SpokenSentence
    from app.text.captions import CaptionFormat
    from app.types import Samples

MEDIA_TYPES: Mapping[ResultFormat, str] = {
    "mp3": "audio/mpeg",
    "m4b": "audio/mp4",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "opus": "audio/opus",
    "zip": "application/zip",
    "epub": "application/epub+zip",
}
# None = the sound as it is; a number = an integrated loudness in LUFS, for example -18; "acx" = the rules of ACX.
LoudnessTarget = float | Literal["acx"] | None
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Result:
    """A result on disk."""

    path: Path
    media_type: str
    seconds: float
    chapters: tuple[ChapterMark, ...]  # times in the whole book, also if each chapter has its own file


def write_result(
    book: Book,
    sentences: Iterable[SpokenSentence],
    *,
    response_format: ResultFormat,
    out: Path,
    sample_rate: int = 24_000,
    captions: Sequence[CaptionFormat] = (),
    loudness: LoudnessTarget = None,
    tags: Mapping[str, str] | None = None,
) -> Result:
    """Write a book that was spoken to the file `out`. Blocks: call it in a thread.

    sentences: in the order of the book; iterated several times, so it must not be an iterator. sample_rate: of the
    files of the sentences, in Hz. captions: the formats of caption files; they are written beside `out` with its name,
    and in a zip beside each audio file. tags: further tags of each audio file (FFmpeg's names), for example comment.

    Raises OSError if the disk is full, and ValueError if there is no sentence.
    """
    if iter(sentences) is sentences:
        raise TypeError("sentences is iterated several times: give a sequence, not an iterator")
    marks = chapter_marks(book, sentences)
    if not marks:
        raise ValueError("the book has no spoken sentence")
    with _temporary(out) as path:
        if response_format == "zip":
            _write_zip(book, sentences, marks, path, rate_hz=sample_rate, tags=tags or {})
        else:
            _write_audio(
                path, response_format, sample_rate, sentences, book=book, chapters=marks, tags=_tags(book, tags or {})
            )
    return Result(out, MEDIA_TYPES[response_format], marks[-1].end_s, tuple(marks))


def chapter_marks(book: Book, sentences: Iterable[SpokenSentence]) -> list[ChapterMark]:
    """Return the chapters that have sentences, with their times in the whole book."""
    marks: list[ChapterMark] = []
    last, clock_s = -1, 0.0
    for sentence in sentences:
        start_s = clock_s
        clock_s += sentence.seconds + sentence.pause_s
        if sentence.chapter == last:
            start_s = marks.pop().start_s
        last = sentence.chapter
        marks.append(ChapterMark(book.chapters[last].title, start_s, clock_s))
    return marks


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """Yield a path in the folder of `out`. The file is renamed to `out` at the end, or removed after an exception."""
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    path = Path(name)
    try:
        yield path
        path.replace(out)
    finally:
        path.unlink(missing_ok=True)


def _tags(book: Book, more: Mapping[str, str]) -> dict[str, str]:
    tags = {"title": book.title, "album": book.title, "artist": book.author, "album_artist": book.author}
    tags |= {"composer": book.narrator, "genre": "Audiobook", **more}
    return {name: value for name, value in tags.items() if value}


def _samples(sentences: Iterable[SpokenSentence], rate_hz: int) -> Iterator[Samples]:
    for sentence in sentences:
        with sentence.sound.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield pcm.from_bytes(block)
        if sentence.pause_s > 0:
            yield pcm.silence(sentence.pause_s, rate_hz)


def _write_audio(
    path: Path,
    kind: str,
    rate_hz: int,
    sentences: Iterable[SpokenSentence],
    *,
    book: Book,
    chapters: Sequence[ChapterMark],
    tags: Mapping[str, str],
) -> None:
    file = AudioFile(path, kind, rate_hz, tags=tags, chapters=chapters, cover=book.cover)
    try:
        for samples in _samples(sentences, rate_hz):
            file.write(samples)
        file.finish()
    finally:
        file.close()


def _write_zip(
    book: Book,
    sentences: Iterable[SpokenSentence],
    marks: Sequence[ChapterMark],
    path: Path,
    *,
    rate_hz: int,
    tags: Mapping[str, str],
) -> None:
    indices = list(dict.fromkeys(sentence.chapter for sentence in sentences))
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        for number, (index, mark) in enumerate(zip(indices, marks, strict=True), 1):
            audio = Path(folder) / f"{number:03}.mp3"
            mine = [sentence for sentence in sentences if sentence.chapter == index]
            chapter_tags = {**_tags(book, tags), "title": mark.title, "track": f"{number}/{len(marks)}"}
            _write_audio(audio, "mp3", rate_hz, mine, book=book, chapters=(), tags=chapter_tags)
            archive.write(audio, audio.name)
            audio.unlink()
