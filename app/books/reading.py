"""Read the file of a book: .txt, .md, .html or .epub becomes a `Book`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath

from app.books import document
from app.books.book import MAX_FILE_BYTES, Book, BookTooLarge, EmptyBook, ProtectedBook, UnknownBookType
from app.books.chapters import ChapterList, split_by_headings
from app.books.document import Block
from app.books.encodings import decode
from app.books.epub import read_epub
from app.books.markdown import read_markdown
from app.books.plain_text import read_plain_text, with_headings
from app.text.languages import language_tag

# One suffix for each type of file that can be read. `_KINDS` also has other suffixes of these types, such as .htm.
SUFFIXES = (".txt", ".md", ".html", ".epub")
_KINDS = {
    ".text": ".txt",
    "": ".txt",
    ".markdown": ".md",
    ".htm": ".html",
    ".xhtml": ".html",
    **{suffix: suffix for suffix in SUFFIXES},
}
# The number of characters that are examined at the start of a file, and the largest share of odd characters (control
# characters and bytes that can't be decoded) in a text. Of random bytes, 10 % are odd.
_EXAMINED_CHARS, _MOST_ODD = 20_000, 0.05
_CONVERT = "Convert the file to EPUB, for example with calibre, and send the EPUB."
_ZIP, _PDF = b"PK\x03\x04", b"%PDF-"


def read_book(data: bytes, filename: str, *, title_page: bool = False) -> Book:
    """Read a book. filename: its extension says the type of the file: .txt, .md, .html, .epub.

    title_page: whether to keep the title page of an EPUB, a page that only repeats the title and the author.

    Takes a few seconds for 20 MB. Raises a `BadBook`: UnknownBookType, BookTooLarge, ProtectedBook, EmptyBook, or
    BadBook itself if the file is damaged.
    """
    if len(data) > MAX_FILE_BYTES:
        raise BookTooLarge(f"The file has more than {MAX_FILE_BYTES >> 20} MB. Divide it into several books.")
    name = PurePath(filename.replace("\\", "/"))
    title = re.sub(r"[\s_]+", " ", name.stem).strip()
    kind = _kind(data, name.suffix.lower())
    if kind == ".epub":
        return read_epub(data, title_page=title_page, default_title=title)
    text = decode(data)
    if _is_binary(text):
        raise UnknownBookType(
            "The file contains no text, but binary data such as a program, a picture or audio. Send a file of one of "
            f"these types: {', '.join(SUFFIXES)}."
        )
    if kind == ".html":
        return _book(title, "", None, with_headings(_html_blocks(text)))
    if kind == ".md":
        fields, blocks = read_markdown(text)
        language = fields.get("lang") or fields.get("language")
        return _book(fields.get("title") or title, fields.get("author", ""), language, blocks)
    plain = read_plain_text(text)
    fields = plain.fields
    return _book(fields.get("Title") or title, fields.get("Author", ""), fields.get("Language"), plain.blocks)


def _kind(data: bytes, suffix: str) -> str:
    """Return the suffix that names the type of a file. Raises UnknownBookType or ProtectedBook."""
    if data.startswith(_PDF) or suffix == ".pdf":
        raise UnknownBookType(f"PDF files can't be read: they contain pages and not text in order. {_CONVERT}")
    if suffix in {".mobi", ".azw", ".azw3", ".kfx", ".fb2", ".docx", ".odt", ".rtf", ".doc", ".lit", ".djvu"}:
        raise UnknownBookType(f"Files of the type {suffix} can't be read. {_CONVERT}")
    if suffix == ".acsm":
        raise ProtectedBook("The file is a licence of Adobe and contains no book. Use a copy without protection (DRM).")
    kind = _KINDS.get(suffix)
    if kind is None:
        raise UnknownBookType(
            f"Files of the type {suffix[:20]} can't be read. Send a file of one of these types: {', '.join(SUFFIXES)}."
        )
    if kind != ".epub" and data.startswith(_ZIP):
        if b"application/epub+zip" in data[:200]:
            return ".epub"
        raise UnknownBookType(f"The file is a zip archive and not text. Send one of its files: {', '.join(SUFFIXES)}.")
    return kind


def _is_binary(text: str) -> bool:
    """Return whether many characters of a decoded file are control characters, or bytes that can't be decoded."""
    start = text[:_EXAMINED_CHARS]
    odd = sum(char == "\ufffd" or (not char.isspace() and unicodedata.category(char)[0] == "C") for char in start)
    return odd - start.count("\xad") - start.count("\u200b") > _MOST_ODD * len(start)


def _html_blocks(text: str) -> Sequence[Block]:
    root = document.parse(text)
    notes = {mark.target.removeprefix("#"): mark for mark in document.note_marks(root)}
    return document.read_document(root, notes=notes).blocks


def _book(title: str, author: str, language: str | None, blocks: Sequence[Block]) -> Book:
    """Return a book whose chapters begin at its headings. Raises EmptyBook or BookTooLarge."""
    chapters = ChapterList(title)
    split_by_headings(blocks, chapters)
    if not len(chapters):
        raise EmptyBook("The file contains no text. Send a file with text that can be spoken.")
    return Book(title, author, tuple(chapters.finish()), language=language_tag(language) if language else None)
