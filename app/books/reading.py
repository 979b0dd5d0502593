"""Read the file of a book: .txt, .md, .html or .epub becomes a `Book`."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import PurePath

from app.books.book import MAX_FILE_BYTES, Book, BookTooLarge, Chapter, EmptyBook, UnknownBookType
from app.books.encodings import decode
from app.text import markup
from app.text.spans import SpannedText

_MARKDOWN_HEADING = re.compile(r"(?m)^ {0,3}#{1,2} +(\S.*?)(?: +#+)?[ \t]*$")
_HEADING = re.compile(
    r"(?:chapter|kapitel|chapitre|capítulo|capitolo)\s+(?:[0-9]{1,4}|[ivxlc]{1,8})\b.{0,80}", re.IGNORECASE
)
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def read_book(data: bytes, filename: str) -> Book:
    """Read a book. filename: its extension says the type of the file: .txt, .md, .html, .epub.

    Takes a few seconds for 20 MB. Raises a `BadBook`: UnknownBookType, BookTooLarge, ProtectedBook, EmptyBook, or
    BadBook itself if the file is damaged.
    """
    if len(data) > MAX_FILE_BYTES:
        raise BookTooLarge(f"The file has more than {MAX_FILE_BYTES >> 20} MB. Divide it into several books.")
    name = PurePath(filename)
    title = re.sub(r"[\s_]+", " ", name.stem).strip()
    match name.suffix.lower():
        case ".txt" | ".text" | "":
            chapters = _plain_chapters(decode(data))
        case ".md" | ".markdown":
            chapters = _markdown_chapters(decode(data))
        case other:
            raise UnknownBookType(f"Files of the type {other} can't be read. Send a .txt or .md file.")
    if not chapters:
        raise EmptyBook("The file contains no text. Send a file with text that can be spoken.")
    return Book(title=title, author="", chapters=tuple(chapters))


def _plain_chapters(text: str) -> list[Chapter]:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts: list[tuple[str, list[str]]] = []
    for paragraph in _BLANK_LINES.split(text.strip("\n")):
        if not paragraph.strip():
            continue
        if _HEADING.fullmatch(paragraph.strip()) or not parts:
            parts.append((" ".join(paragraph.split()) if _HEADING.fullmatch(paragraph.strip()) else "", []))
        parts[-1][1].append(paragraph.strip())
    return [
        Chapter(title or f"Part {number}", "\n\n".join(paragraphs))
        for number, (title, paragraphs) in enumerate(parts, 1)
    ]


def _markdown_chapters(text: str) -> list[Chapter]:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    starts = [0, *(match.start() for match in _MARKDOWN_HEADING.finditer(text)), len(text)]
    chapters = []
    for number, (start, end) in enumerate(pairwise(starts), 1):
        part = text[start:end]
        heading = _MARKDOWN_HEADING.match(part)
        paragraphs = markup.plain_paragraphs(SpannedText(part))
        if paragraphs:
            title = heading[1] if heading else f"Part {number}"
            chapters.append(Chapter(title, "\n\n".join(paragraph.text for paragraph in paragraphs)))
    return chapters
