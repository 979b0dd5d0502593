"""The types of a book: its chapters before they are spoken, and its sentences after they are spoken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from app.errors import BadBook

if TYPE_CHECKING:
    from pathlib import Path

    from app.types import TimedWord

MAX_FILE_BYTES = 20 * 1024 * 1024
MAX_CHAPTERS = 10_000
MAX_TEXT_CHARS = 20_000_000  # of the whole book
MAX_COVER_BYTES = 10 * 1024 * 1024

# The formats of a spoken book. "zip" has one audio file per chapter. "epub" is an EPUB 3 with text and sound.
ResultFormat = Literal["mp3", "m4b", "wav", "flac", "opus", "zip", "epub"]


class BookTooLarge(BadBook):
    """The file, its text or the number of its chapters is above a limit."""

    code = "book_too_large"


class ProtectedBook(BadBook):
    """The file is encrypted (DRM)."""

    code = "book_protected"


class UnknownBookType(BadBook):
    """The file has a type that can't be read."""

    code = "book_type_unknown"


class EmptyBook(BadBook):
    """The file contains no text that could be spoken."""

    code = "book_empty"


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter before it is spoken.

    A blank line ends a paragraph of `text`, and a single line break ends a line, for example of a poem. The heading of
    the chapter is the first paragraph of `text`, if the book shows a heading.
    """

    title: str  # shown in the list of chapters, and not spoken
    text: str
    voice: str | None = None  # the id of a voice; None = the voice of the whole book


@dataclass(frozen=True, slots=True)
class Book:
    """A book before it is spoken. An unknown title, author or narrator is "", and an unknown language is None."""

    title: str
    author: str
    chapters: tuple[Chapter, ...]
    narrator: str = ""
    language: str | None = None  # BCP 47 tag
    cover: bytes | None = None  # a JPEG or PNG file


@dataclass(frozen=True, slots=True)
class SpokenSentence:
    """A sentence after it is spoken. In the audio of the book, `pause_s` seconds of silence follow its sound."""

    chapter: int  # index in `Book.chapters`; never decreases from one sentence to the next
    text: str  # the text in the book, not normalised
    sound: Path  # a file of raw samples: signed 16-bit integers, little-endian, mono, at the rate of the book
    seconds: float  # duration of `sound`
    pause_s: float
    # The words of `text`. `start_s` and `end_s` are seconds from the start of `sound`. `start_char` and `end_char` are
    # places in `text`. Empty = the times of the words are not known.
    words: tuple[TimedWord, ...] = ()
    starts_paragraph: bool = False
