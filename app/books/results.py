"""Write the result of a book: one audio file with chapters, a zip with a file per chapter, or an EPUB to read along.

Sentences are read and encoded one after another, so the memory does not grow with the book. A result is written
to a temporary file in the folder of `out`, and renamed when it is complete. Equal sentences give equal bytes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from app.audio import provenance
from app.books.audio_file import AudioFile, ChapterMark
from app.books.cover import picture
from app.books.mastering import LevelRange, Levels, LoudnessTarget, Meter, mastered
from app.books.read_along import ReadAlongBook, add_file
from app.books.sound import caption_parts, chapter_groups, chapter_marks, read_samples

if TYPE_CHECKING:
    from app.books.book import Book, ResultFormat, SpokenSentence
    from app.text.captions import CaptionFormat

__all__ = [
    "MEDIA_TYPES",
    "ChapterMark",
    "Levels",
    "LoudnessTarget",
    "Result",
    "caption_parts",
    "file_name",
    "write_result",
]

MEDIA_TYPES: Mapping[ResultFormat, str] = {
    "mp3": "audio/mpeg",
    "m4b": "audio/mp4",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "opus": "audio/opus",
    "zip": "application/zip",
    "epub": "application/epub+zip",
}
# ACX accepts MP3 files of 44.1 kHz with a constant bit rate of 192 kbit/s.
_ACX_RATE_HZ, _ACX_BIT_RATE = 44_100, 192_000
_MP4_TAGS = {"media_type": "2", "gapless_playback": "1"}  # FFmpeg's names of the MP4 tags stik (2 = audiobook) and pgap
# Characters that Windows forbids in file names, and controls of the text direction, which can hide the real suffix.
_FORBIDDEN = re.compile(r"[<>:\"/\\|?*\x00-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_LONGEST_NAME_BYTES = 120


@dataclass(frozen=True, slots=True)
class AudioPart:
    """One audio file of a result."""

    title: str
    seconds: float
    levels: Levels  # the levels of the sound before it is encoded


@dataclass(frozen=True, slots=True)
class Result:
    """A result on disk."""

    path: Path
    media_type: str
    seconds: float
    # The times count from the start of the book, also if each chapter has its own file.
    chapters: tuple[ChapterMark, ...]
    files: tuple[AudioPart, ...]
    captions: tuple[Path, ...]  # the caption files beside `path`

    @property
    def levels(self) -> LevelRange:
        """The range of the levels of all audio files."""
        return LevelRange.of([file.levels for file in self.files])


@dataclass(frozen=True, slots=True)
class _Sound:
    """The sound settings, tags and cover that all audio files of a result share."""

    rate_hz: int
    loudness: LoudnessTarget
    tags: Mapping[str, str]
    cover: bytes | None

    def write(
        self,
        path: Path,
        kind: str,
        sentences: Iterable[SpokenSentence],
        title: str,
        *,
        chapters: Sequence[ChapterMark] = (),
        tags: Mapping[str, str] | None = None,
    ) -> AudioPart:
        """Write one audio file. `sentences` is iterated twice if the loudness is changed, and once otherwise."""
        meter = Meter(self.rate_hz)
        samples = 0
        is_acx = self.loudness == "acx" and kind == "mp3"
        with AudioFile(
            path,
            kind,
            self.rate_hz,
            tags={**self.tags, **(tags or {}), **(_MP4_TAGS if kind in {"m4a", "m4b"} else {})},
            chapters=chapters,
            cover=self.cover,
            codec_rate_hz=_ACX_RATE_HZ if is_acx else None,
            bit_rate=_ACX_BIT_RATE if is_acx else None,
        ) as file:
            for block in mastered(partial(read_samples, sentences, self.rate_hz), self.rate_hz, self.loudness):
                meter.push(block)
                samples += len(block)
                file.write(block)
            file.finish()
        return AudioPart(title, samples / self.rate_hz, meter.finish())


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
    chapter_format: str = "mp3",
) -> Result:
    """Write a spoken book to the file `out`. Blocks, so call it in a thread.

    sentences: all sentences in the order of the book. They are iterated several times, so an iterator is not allowed.
    sample_rate: the sample rate of the sentences' files, in Hz.
    captions: the formats of caption files. The files are written beside `out`, with its name and another
    suffix. A zip contains caption files for each of its audio files instead.
    loudness: the level that each audio file gets: see LoudnessTarget.
    tags: further tags of each audio file, by FFmpeg's names, for example comment.
    chapter_format: the format of the audio files in a zip: mp3, m4a, flac, opus or wav.

    Raises OSError if the disk is full, and ValueError if there is no sentence.
    """
    if iter(sentences) is sentences:
        raise TypeError("sentences is iterated several times: give a sequence, not an iterator")
    places = chapter_marks(book, sentences, sample_rate)
    if not places:
        raise ValueError("the book has no spoken sentence")
    marks = [mark for _, mark in places]
    # A zip and an EPUB contain the cover once, so that it is not repeated in each of their audio files.
    cover = None if response_format in {"zip", "epub"} else book.cover
    sound = _Sound(sample_rate, loudness, _tags(book, tags or {}), cover)
    written: list[Path] = []
    with _temporary_folder(out) as folder:
        path = folder / "result"
        if response_format == "zip":
            files = _write_zip(
                book, sentences, sound, path, len(marks), captions=captions, chapter_format=chapter_format
            )
        elif response_format == "epub":
            files = _write_epub(book, sentences, sound, path)
        else:
            files = [sound.write(path, response_format, sentences, book.title, chapters=marks)]
        if response_format != "zip":
            for kind in captions:
                beside = out.with_suffix(f".{kind}")
                _write_text(folder / "captions", caption_parts(book, sentences, kind, sample_rate))
                (folder / "captions").replace(beside)
                written.append(beside)
        path.replace(out)
    return Result(out, MEDIA_TYPES[response_format], marks[-1].end_s, tuple(marks), tuple(files), tuple(written))


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`, and remove the folder at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tags(book: Book, more: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that all audio files get. Players show `composer` as the narrator."""
    tags = {"title": book.title, "album": book.title, "artist": book.author, "album_artist": book.author}
    tags |= {"composer": book.narrator, "genre": "Audiobook", **more}
    return {name: value for name, value in tags.items() if value}


def _write_text(path: Path, parts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for part in parts:
            file.write(part)


def _write_zip(
    book: Book,
    sentences: Iterable[SpokenSentence],
    sound: _Sound,
    path: Path,
    count: int,
    *,
    captions: Sequence[CaptionFormat],
    chapter_format: str,
) -> list[AudioPart]:
    """Write a zip with folders for audiobookshelf: "Author/Title/01 - Chapter.mp3", cover.jpg, metadata.opf."""
    place = f"{file_name(book.author or 'Unknown author')}/{file_name(book.title or 'Untitled')}"
    digits = max(2, len(str(count)))
    files = []
    audio = path.with_name("audio")
    with zipfile.ZipFile(path, "w") as archive:
        if book.cover is not None and (found := picture(book.cover)) is not None:
            add_file(archive, f"{place}/cover{found.suffix}", book.cover)
        add_file(archive, f"{place}/metadata.opf", _metadata(book, sound.tags).encode())
        for number, (index, group) in enumerate(chapter_groups(sentences), 1):
            spoken = list(group)
            title = book.chapters[index].title
            tags = {"title": title, "track": f"{number}/{count}"}
            files.append(sound.write(audio, chapter_format, spoken, title, tags=tags))
            name = f"{place}/{number:0{digits}} - {file_name(title)}"
            add_file(archive, f"{name}.{chapter_format}", audio)
            for kind in captions:
                text = "".join(caption_parts(book, spoken, kind, sound.rate_hz))
                add_file(archive, f"{name}.{kind}", text.encode())
    return files


def _write_epub(book: Book, sentences: Iterable[SpokenSentence], sound: _Sound, path: Path) -> list[AudioPart]:
    comment = sound.tags.get("comment", "")
    made = provenance.parse(comment)
    created_s = made.created_s if made is not None else None
    time = datetime.fromtimestamp(created_s if created_s is not None else provenance.now_s(), UTC)
    files = []
    audio = path.with_name("audio")
    with zipfile.ZipFile(path, "w") as archive:
        written = ReadAlongBook(
            archive, book, sound.rate_hz, description=comment, modified=time.strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        for index, group in chapter_groups(sentences):
            spoken = list(group)
            title = book.chapters[index].title
            part = sound.write(audio, "m4a", spoken, title, tags={"title": title})
            files.append(part)
            written.add_chapter(ChapterMark(title, 0.0, part.seconds), spoken, audio)
        written.finish()
    return files


def _metadata(book: Book, tags: Mapping[str, str]) -> str:
    """Return the metadata of a book as a package document. Audiobookshelf and Jellyfin read it."""
    comment = tags.get("comment", "")
    fields = [f"<dc:title>{escape(book.title)}</dc:title>"]
    fields += [f'<dc:creator opf:role="aut">{escape(book.author)}</dc:creator>'] * bool(book.author)
    fields += [f'<dc:creator opf:role="nrt">{escape(book.narrator)}</dc:creator>'] * bool(book.narrator)
    fields += [f"<dc:language>{escape(book.language or '')}</dc:language>"] * bool(book.language)
    fields += [f"<dc:description>{escape(comment)}</dc:description>"] * bool(comment)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<package xmlns="http://www.idpf.org/2007/opf" version="2.0">\n'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:opf="http://www.idpf.org/2007/opf">\n'
        + "\n".join(fields)
        + "\n</metadata>\n</package>\n"
    )


def file_name(text: str) -> str:
    """Convert a text to a file name that every operating system accepts."""
    name = " ".join(_FORBIDDEN.sub(" ", unicodedata.normalize("NFC", text)).split()).strip(". ")
    name = name.encode()[:_LONGEST_NAME_BYTES].decode("utf-8", "ignore").rstrip(". ")
    return f"_{name}" if not name or _RESERVED.fullmatch(name) else name
