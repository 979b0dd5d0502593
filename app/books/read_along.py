"""Write an EPUB 3 to read along: the text of a book, its sound, and media overlays.

The media overlays (SMIL) connect the text with the sound.

A reading system highlights each sentence while it is heard. Each chapter has one document, one overlay and one audio
file (AAC in MP4).
"""

from __future__ import annotations

import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from app.books.cover import picture
from app.books.sound import paragraphs, sample_count

if TYPE_CHECKING:
    from pathlib import Path

    from app.books.audio_file import ChapterMark
    from app.books.book import Book, SpokenSentence

MEDIA_TYPE = "application/epub+zip"
# All entries of a zip file have this date, so that equal books have equal bytes. It is the earliest possible date.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_XHTML = "http://www.w3.org/1999/xhtml"
_OPS = "http://www.idpf.org/2007/ops"
_STYLE = """\
body { line-height: 1.5; margin: 5%; }
h1 { line-height: 1.2; }
.spoken { background-color: #ffe9a8; color: #000000; }
"""
_CONTAINER = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="EPUB/package.opf" media-type="application/oebps-package+xml"/></rootfiles></container>\n'
)


@dataclass(frozen=True, slots=True)
class _Chapter:
    name: str  # name of the chapter's files, without folder and suffix
    title: str
    seconds: float


class ReadAlongBook:
    """An EPUB that is being written. Call `add_chapter` for each chapter, and then `finish`."""

    def __init__(self, archive: zipfile.ZipFile, book: Book, rate_hz: int, *, description: str, modified: str) -> None:
        """archive: an empty zip file. rate_hz: the sample rate of the sentences.

        modified: the time of the last change, such as 2026-11-29T00:00:00Z.
        """
        self._archive = archive
        self._book = book
        self._rate_hz = rate_hz
        self._description = description
        self._modified = modified
        self._language = book.language or "und"
        self._chapters: list[_Chapter] = []
        self._cover = None if book.cover is None else picture(book.cover)
        self._write("mimetype", MEDIA_TYPE)
        self._write("META-INF/container.xml", _CONTAINER)
        self._write("EPUB/style.css", _STYLE)
        if book.cover is not None and self._cover is not None:
            add_file(archive, f"EPUB/cover{self._cover.suffix}", book.cover)

    def add_chapter(self, mark: ChapterMark, sentences: Sequence[SpokenSentence], audio: Path) -> None:
        """Add a chapter with its sentences.

        audio: an M4A file with the sound of the sentences; it is copied into the EPUB.
        """
        name = f"chapter-{len(self._chapters) + 1:04}"
        self._chapters.append(_Chapter(name, mark.title, mark.end_s - mark.start_s))
        add_file(self._archive, f"EPUB/audio/{name}.m4a", audio)
        self._write(f"EPUB/text/{name}.xhtml", "".join(self._document(mark.title, sentences)))
        self._write(f"EPUB/overlays/{name}.smil", "".join(self._overlay(name, sentences)))

    def finish(self) -> None:
        """Write the navigation and the package document."""
        self._write("EPUB/nav.xhtml", "".join(self._navigation()))
        self._write("EPUB/package.opf", "".join(self._package()))

    def _write(self, name: str, text: str) -> None:
        add_file(self._archive, name, text.encode())

    def _document(self, title: str, sentences: Sequence[SpokenSentence]) -> Iterator[str]:
        yield self._head(title, "../style.css")
        yield '<body epub:type="bodymatter"><section epub:type="chapter" id="chapter">\n'
        number = 0
        for place, paragraph in enumerate(paragraphs(sentences)):
            text = " ".join(" ".join(sentence.text for sentence in paragraph).split())
            is_heading = not place and _is_heading(text, title)
            tag = "h1" if is_heading else "p"
            spans = []
            for sentence in paragraph:
                number += 1
                lines = "<br/>".join(escape(line, quote=False) for line in sentence.text.split("\n"))
                spans.append(f'<span id="s{number}">{lines}</span>')
            yield f"<{tag}>{' '.join(spans)}</{tag}>\n"
        yield "</section></body>\n</html>\n"

    def _head(self, title: str, style: str) -> str:
        language = escape(self._language)
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html>\n'
            f'<html xmlns="{_XHTML}" xmlns:epub="{_OPS}" lang="{language}" xml:lang="{language}">\n'
            f'<head><title>{_escaped(title)}</title><link rel="stylesheet" type="text/css" href="{style}"/></head>\n'
        )

    def _overlay(self, name: str, sentences: Sequence[SpokenSentence]) -> Iterator[str]:
        yield (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<smil xmlns="http://www.w3.org/ns/SMIL" xmlns:epub="{_OPS}" version="3.0"><body>\n'
            f'<seq id="chapter" epub:textref="../text/{name}.xhtml#chapter" epub:type="chapter">\n'
        )
        position = 0
        for number, sentence in enumerate(sentences, 1):
            start = position
            position += sample_count(sentence, self._rate_hz)
            yield (
                f'<par id="p{number}"><text src="../text/{name}.xhtml#s{number}"/><audio src="../audio/{name}.m4a" '
                f'clipBegin="{start / self._rate_hz:.3f}s" clipEnd="{position / self._rate_hz:.3f}s"/></par>\n'
            )
        yield "</seq></body></smil>\n"

    def _navigation(self) -> Iterator[str]:
        yield self._head(self._book.title, "style.css")
        yield '<body><nav epub:type="toc" id="toc"><ol>\n'
        for chapter in self._chapters:
            yield f'<li><a href="text/{chapter.name}.xhtml">{_escaped(chapter.title)}</a></li>\n'
        yield "</ol></nav></body>\n</html>\n"

    def _package(self) -> Iterator[str]:
        book = self._book
        identifier = uuid.uuid5(uuid.NAMESPACE_URL, f"{book.title}\n{book.author}\n{self._modified}").urn
        yield (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" '
            f'xml:lang="{escape(self._language)}">\n<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">\n'
            f'<dc:identifier id="id">{identifier}</dc:identifier>\n<dc:title>{_escaped(book.title)}</dc:title>\n'
            f"<dc:language>{escape(self._language)}</dc:language>\n"
            f'<meta property="dcterms:modified">{self._modified}</meta>\n'
        )
        if book.author:
            yield f'<dc:creator id="author">{_escaped(book.author)}</dc:creator>\n'
            yield '<meta refines="#author" property="role" scheme="marc:relators">aut</meta>\n'
        if book.narrator:
            yield f'<meta property="media:narrator">{_escaped(book.narrator)}</meta>\n'
        if self._description:
            yield f"<dc:description>{_escaped(self._description)}</dc:description>\n"
        yield '<meta property="media:active-class">spoken</meta>\n'
        total_s = 0.0
        for chapter in self._chapters:
            total_s += round(chapter.seconds, 3)
            yield f'<meta property="media:duration" refines="#o-{chapter.name}">{chapter.seconds:.3f}s</meta>\n'
        yield f'<meta property="media:duration">{total_s:.3f}s</meta>\n'
        if self._cover is not None:
            yield '<meta name="cover" content="cover"/>\n'
        yield (
            '</metadata>\n<manifest>\n<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" '
            'properties="nav"/>\n<item id="style" href="style.css" media-type="text/css"/>\n'
        )
        if self._cover is not None:
            suffix, media_type = self._cover.suffix, self._cover.media_type
            yield f'<item id="cover" href="cover{suffix}" media-type="{media_type}" properties="cover-image"/>\n'
        for chapter in self._chapters:
            name = chapter.name
            yield (
                f'<item id="t-{name}" href="text/{name}.xhtml" media-type="application/xhtml+xml" '
                f'media-overlay="o-{name}"/>\n'
                f'<item id="o-{name}" href="overlays/{name}.smil" media-type="application/smil+xml"/>\n'
                f'<item id="a-{name}" href="audio/{name}.m4a" media-type="audio/mp4"/>\n'
            )
        yield "</manifest>\n<spine>\n"
        for chapter in self._chapters:
            yield f'<itemref idref="t-{chapter.name}"/>\n'
        yield "</spine>\n</package>\n"


def add_file(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    """Add a file to a zip file. Only texts are compressed, because audio and pictures are compressed already."""
    info = zipfile.ZipInfo(name, ZIP_DATE)
    info.external_attr = 0o644 << 16
    is_text = name != "mimetype" and name.endswith(
        (".xml", ".xhtml", ".smil", ".opf", ".css", ".srt", ".vtt", ".lrc", ".json")
    )
    info.compress_type = zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED
    if isinstance(content, bytes):
        archive.writestr(info, content)
        return
    info.file_size = content.stat().st_size
    with content.open("rb") as source, archive.open(info, "w") as target:
        while block := source.read(1 << 20):
            target.write(block)


def _is_heading(text: str, title: str) -> bool:
    """Return whether a paragraph is the heading of its chapter: the chapter's title begins with the paragraph."""
    return bool(text) and " ".join(title.split()).startswith(text.rstrip(".:"))


def _escaped(text: str) -> str:
    return escape(" ".join(text.split()) or "Untitled", quote=False)
