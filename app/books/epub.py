"""Read EPUB 2 and EPUB 3: a zip file with XHTML documents, a list of them (the spine) and a table of contents.

Nothing is unpacked to disk, and no script, style or font is read. The file comes from a stranger, so there are limits
on the number of entries, on the sizes before and after decompression, and on the number of tags.
"""

from __future__ import annotations

import io
import posixpath
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

from app.books import document
from app.books.book import (
    MAX_COVER_BYTES,
    Book,
    BookTooLarge,
    EmptyBook,
    ProtectedBook,
)
from app.books.chapters import ChapterList, first_heading, split_by_headings, title_of
from app.books.cover import picture
from app.books.document import Block, NoteMark
from app.books.encodings import decode
from app.books.plain_text import heading_level, with_headings
from app.errors import BadBook

Element = Any  # an element of lxml, a library without type annotations

MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = 4 << 20
MAX_DOCUMENT_BYTES = 16 << 20
MAX_UNPACKED_BYTES = 64 << 20  # limit for all documents together, after decompression
MAX_RATIO = 200  # a document above 1 MB may be at most this many times as large as its compressed form
MAX_TAGS = 2_000_000  # of all documents
_DOCUMENT_TYPES = frozenset({"application/xhtml+xml", "text/html", "text/x-oeb1-document", "application/x-dtbook+xml"})
# These methods encrypt only fonts, so the text can be read.
_FONT_ENCRYPTION = frozenset({"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"})
# A document that is not in the table of contents starts a chapter only if the level of its first heading is at most
# this number (1 = the highest level).
_DEEPEST_CHAPTER = 3
# If a document has more characters than this before its first heading, this text is added to the previous chapter.
_LONGEST_BEFORE_HEADING = 600
_LEAST_LINKS = 5  # a document with fewer links is not a table of contents
_END_OF_DIRECTORY = b"PK\x05\x06"
_DAMAGED = "The EPUB is damaged: {}. Download it again, or open it in an EPUB editor and save it."
_PROTECTED = (
    "The EPUB is protected by {} (DRM), so its text can't be read. Use a copy without protection, for example from the "
    "publisher or the author."
)


@dataclass(frozen=True, slots=True)
class _Item:
    """An entry of the manifest."""

    path: str  # in the archive
    media_type: str
    properties: frozenset[str]


@dataclass(frozen=True, slots=True)
class _TocEntry:
    path: str
    fragment: str
    label: str
    depth: int


@dataclass(slots=True)
class _Package:
    """The package document (OPF)."""

    title: str = ""
    author: str = ""
    language: str | None = None
    items: dict[str, _Item] = field(default_factory=dict)  # by id
    # The documents in reading order. Documents with linear="no" are left out, unless all documents have linear="no".
    spine: list[_Item] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)  # paths of the cover page and of the table of contents
    ncx: _Item | None = None
    nav: _Item | None = None
    cover: _Item | None = None


def read_epub(data: bytes, *, title_page: bool = False, default_title: str = "") -> Book:
    """Read an EPUB. title_page: whether a page that only repeats the title and the author is kept.

    Raises ProtectedBook, BookTooLarge, EmptyBook, or BadBook if the file is damaged.

    The chapters have the order of the spine. A document with a heading is a chapter, and a document without a heading
    is added to the previous chapter. If the table of contents divides a document, each part is a chapter.
    """
    with _Archive(data) as archive:
        archive.check_protection()
        package = _read_package(archive)
        package.title = package.title or default_title
        reading = _Reading(archive, package, title_page, _read_toc(archive, package), _note_marks(archive, package))
        chapters = ChapterList(package.title)
        for item in package.spine:
            if item.path not in package.left_out:
                _add_chapters(reading, item, chapters)
        if not len(chapters):
            raise EmptyBook(
                "The EPUB contains no text. If its pages are pictures, recognise their text with an OCR program first."
            )
        return Book(
            package.title,
            package.author,
            tuple(chapters.finish()),
            language=package.language,
            cover=_cover(archive, package),
        )


class _Archive:
    """The zip file of an EPUB, with limits on what is read from it."""

    def __init__(self, data: bytes) -> None:
        _check_directory(data)
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (
            zipfile.BadZipFile,
            ValueError,
            struct.error,
            OSError,
            NotImplementedError,
            UnicodeDecodeError,
        ) as error:
            raise BadBook(_DAMAGED.format("it is not a complete zip file")) from error
        infos = self._zip.infolist()
        self._infos = {_entry_name(info.filename): info for info in infos if not info.is_dir()}
        self._similar = {_simplified(name): name for name in self._infos}
        self._unpacked = 0

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def find(self, path: str) -> str | None:
        """Return the name of the entry with this path; None if the archive has no such entry.

        The path and the name may differ in case, in percent-encoding and in the composition of accented letters.
        """
        return path if path in self._infos else self._similar.get(_simplified(path))

    def names(self, suffix: str) -> list[str]:
        return sorted(name for name in self._infos if name.lower().endswith(suffix))

    def check_protection(self) -> None:
        """Raise ProtectedBook if the text of the EPUB is encrypted."""
        if self.find("META-INF/license.lcpl"):
            raise ProtectedBook(_PROTECTED.format("Readium LCP"))
        if self.find("META-INF/sinf.xml"):
            raise ProtectedBook(_PROTECTED.format("Apple FairPlay"))
        if self.find("META-INF/rights.xml"):
            raise ProtectedBook(_PROTECTED.format("its seller"))
        if (name := self.find("META-INF/encryption.xml")) is None:
            return
        for method in _parse_xml(self.read(name)).iter("{*}EncryptionMethod"):
            if method.get("Algorithm") not in _FONT_ENCRYPTION:
                raise ProtectedBook(_PROTECTED.format("encryption"))

    def size(self, name: str) -> int:
        return self._infos[name].file_size

    def read(self, name: str, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
        """Read an entry. Raises BookTooLarge above a limit, and BadBook if the entry is damaged."""
        info = self._infos[name]
        if info.flag_bits & 1:
            raise ProtectedBook(_PROTECTED.format("a password"))
        if info.file_size > limit:
            raise BookTooLarge(f"A document of the EPUB has more than {limit >> 20} MB. Divide the book.")
        if info.file_size > 1 << 20 and info.file_size > MAX_RATIO * max(1, info.compress_size):
            raise BookTooLarge(
                f"A document of the EPUB is compressed to less than 1/{MAX_RATIO} of its size, as in an attack (zip "
                "bomb). Save the book with an EPUB editor."
            )
        try:
            with self._zip.open(info) as file:
                data = file.read(info.file_size + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            raise BadBook(_DAMAGED.format("an entry of the zip file can't be decompressed")) from error
        self._unpacked += len(data)
        if self._unpacked > MAX_UNPACKED_BYTES:
            raise BookTooLarge(
                f"The documents of the EPUB have more than {MAX_UNPACKED_BYTES >> 20} MB. Divide the book."
            )
        return data


@dataclass(frozen=True, slots=True)
class _Reading:
    """An EPUB whose documents are being read."""

    archive: _Archive
    package: _Package
    title_page: bool
    toc: Mapping[str, list[_TocEntry]]  # path of a document -> its entries in the table of contents
    notes: Mapping[str, Mapping[str, NoteMark]]  # path of a document -> id of a note in it -> the mark of this note


def _check_directory(data: bytes) -> None:
    """Check the size of the directory of a zip file before `zipfile` reads it. Raises BadBook or BookTooLarge."""
    at = data.rfind(_END_OF_DIRECTORY, -(1 << 16) - 22)
    if data.startswith(b"PK") and not 0 <= at <= len(data) - 22:
        raise BadBook(_DAMAGED.format("its end is missing"))
    if not data.startswith(b"PK"):
        raise BadBook(
            "The file is not an EPUB: an EPUB is a zip file. If it is another kind of text, rename it to .html or .txt."
        )
    entries, directory_bytes = struct.unpack_from("<HI", data, at + 10)
    if entries > MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise BookTooLarge(f"The EPUB has more than {MAX_ENTRIES:,} files. Divide the book.")


def _parse_xml(data: bytes) -> Element:
    return document.parse_xml(decode(data))


def _entry_name(name: str) -> str:
    """Convert the name of an archive's entry to the form of the paths that `_resolved` returns."""
    return posixpath.normpath(name.replace("\\", "/").lstrip("/"))


def _simplified(path: str) -> str:
    return unicodedata.normalize("NFC", unquote(path)).casefold()


def _text_of(element: Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())[:500]


def _resolved(base: str, href: str) -> tuple[str, str]:
    """Return the path in the archive and the fragment to which a link leads. base: the entry that contains the link.

    The path is "" for an address of another server, and for a path that leads out of the archive.
    """
    path, _, fragment = href.partition("#")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", path):
        return "", ""
    if not path:
        return base, unquote(fragment)
    # A path with a leading slash starts at the root of the archive.
    folder = "" if path.startswith("/") else posixpath.dirname(base)
    joined = posixpath.normpath(posixpath.join(folder, unquote(path).lstrip("/")))
    return ("" if joined.startswith(("../", "/")) or joined == ".." else joined), unquote(fragment)


def _read_package(archive: _Archive) -> _Package:
    path = _package_path(archive)
    root = _parse_xml(archive.read(path))
    package = _Package()
    metadata = next(root.iter("{*}metadata"), root)
    titles = [title for each in metadata.iter("{*}title") if (title := _text_of(each))]
    package.title = titles[0] if titles else ""
    package.author = _authors(metadata)
    language = _text_of(next(metadata.iter("{*}language"), None))
    package.language = language if re.fullmatch(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8})*", language) else None
    for item in root.iter("{*}item"):
        href = item.get("href", "")
        # Some programs write paths with a leading slash that start at the folder of the package document.
        name = archive.find(_resolved(path, href)[0]) or archive.find(_resolved(path, href.lstrip("/"))[0])
        if name is None:
            continue
        properties = frozenset(item.get("properties", "").split())
        found = _Item(name, item.get("media-type", "").lower(), properties)
        package.items.setdefault(item.get("id", ""), found)
        if "nav" in properties:
            package.nav = found
            package.left_out.add(name)
        if "cover-image" in properties:
            package.cover = found
        if found.media_type == "application/x-dtbncx+xml":
            package.ncx = found
    if package.cover is None:
        names = {meta.get("content", "") for meta in metadata.iter("{*}meta") if meta.get("name") == "cover"}
        package.cover = next((item for key, item in package.items.items() if key in names), None)
    for reference in root.iter("{*}reference"):
        if reference.get("type", "").lower() in {"cover", "toc", "index", "loi", "lot"}:
            package.left_out.add(_resolved(path, reference.get("href", ""))[0])
    references = list(root.iter("{*}itemref"))
    if not references:
        raise BadBook(_DAMAGED.format("it has no list of its documents (spine)"))
    seen = set()
    linear = [each for each in references if each.get("linear", "yes").strip().lower() != "no"]
    for reference in linear or references:
        item = package.items.get(reference.get("idref", ""))
        if item is None or item.path in seen:
            continue
        seen.add(item.path)
        if item.media_type in _DOCUMENT_TYPES or item.path.lower().endswith((".xhtml", ".html", ".htm")):
            package.spine.append(item)
    if not package.spine:
        raise BadBook(_DAMAGED.format("none of the documents in its list (spine) exists"))
    return package


def _package_path(archive: _Archive) -> str:
    """Return the path of the package document. Raises BadBook."""
    if (container := archive.find("META-INF/container.xml")) is not None:
        for rootfile in _parse_xml(archive.read(container)).iter("{*}rootfile"):
            path = posixpath.normpath(unquote(rootfile.get("full-path", "")).lstrip("/"))
            if (name := archive.find(path)) is not None:
                return name
    packages = archive.names(".opf")
    if not packages:
        raise BadBook(_DAMAGED.format("it has no package document (OPF)"))
    return packages[0]


def _authors(metadata: Element) -> str:
    """Return the names of the authors, separated by commas. Editors and translators are left out."""
    roles = {}
    for meta in metadata.iter("{*}meta"):
        if meta.get("property") == "role":
            roles[meta.get("refines", "").lstrip("#")] = _text_of(meta)
    names: dict[str, str] = {}
    for creator in metadata.iter("{*}creator"):
        role = roles.get(creator.get("id", ""), creator.get("{http://www.idpf.org/2007/opf}role", "aut"))
        if (name := _text_of(creator)) and name.casefold() != "unknown":  # "Unknown" means that the author is not known
            names.setdefault(name, role)
    authors = [name for name, role in names.items() if role == "aut"]
    return ", ".join((authors or list(names))[:10])


def _read_toc(archive: _Archive, package: _Package) -> Mapping[str, list[_TocEntry]]:
    """Return the entries of the table of contents: path of a document -> the entries that lead into this document."""
    entries: list[_TocEntry] = []
    if package.nav is not None:
        entries = list(_nav_entries(document.parse(decode(archive.read(package.nav.path))), package.nav.path))
    if not entries and package.ncx is not None:
        root = _parse_xml(archive.read(package.ncx.path))
        for point in root.iter("{*}navPoint"):
            content, label = next(point.iter("{*}content"), None), next(point.iter("{*}navLabel"), None)
            if content is not None:
                depth = sum(1 for _ in point.iterancestors("{*}navPoint"))
                entries.append(_TocEntry(*_resolved(package.ncx.path, content.get("src", "")), _text_of(label), depth))
    by_path: dict[str, list[_TocEntry]] = {}
    for entry in entries:
        if (name := archive.find(entry.path)) is not None:
            by_path.setdefault(name, []).append(entry)
    return by_path


def _nav_entries(root: Element, path: str) -> Iterator[_TocEntry]:
    """Yield the entries of the navigation document of EPUB 3."""
    for nav in root.iter("{*}nav"):
        if document.epub_types(nav) & {"toc", "doc-toc"}:
            for link in nav.iter("{*}a"):
                depth = sum(1 for _ in link.iterancestors("{*}ol"))
                yield _TocEntry(*_resolved(path, link.get("href", "")), _text_of(link), depth)
            return


def _note_marks(archive: _Archive, package: _Package) -> Mapping[str, Mapping[str, NoteMark]]:
    """Return the marks of notes in all documents: path of the note's document -> id of the note -> its mark.

    Raises BookTooLarge if the documents have too many tags.
    """
    marks: dict[str, dict[str, NoteMark]] = {}
    tags = 0
    for item in package.spine:
        data = archive.read(item.path)
        if data.startswith(b"PK\x03\x04"):
            raise BadBook(_DAMAGED.format("one of its documents is a zip file"))
        text = decode(data)
        tags += text.count("<")
        if tags > MAX_TAGS:
            raise BookTooLarge(f"The documents of the EPUB have more than {MAX_TAGS:,} tags. Divide the book.")
        if "#" not in text:
            continue
        for mark in document.note_marks(document.parse(text)):
            path, fragment = _resolved(item.path, mark.target)
            if (name := archive.find(path)) is not None:
                marks.setdefault(name, {}).setdefault(fragment, mark)
    return marks


def _add_chapters(book: _Reading, item: _Item, chapters: ChapterList) -> None:
    """Add one document of the spine to the chapters."""
    root = document.parse(decode(book.archive.read(item.path)))
    if any(document.is_left_out(each) for each in (root, *root.iter("{*}body"))):
        return
    entries = book.toc.get(item.path, [])
    wanted = {entry.fragment for entry in entries if entry.fragment}
    found = document.read_document(root, wanted_ids=wanted, notes=book.notes.get(item.path))
    blocks = found.blocks
    if not blocks or _is_contents(found) or (not book.title_page and _is_title_page(root, blocks, book.package)):
        return
    parts = _parts(found, entries)
    if len(parts) > 1:
        if parts[0][0]:
            _add_document(blocks[: parts[0][0]], "", chapters)
        for (start, label), (end, _) in pairwise([*parts, (len(blocks), "")]):
            chapters.start(title_of(blocks[start:end]) or label, blocks[start:end])
    elif (marked := with_headings(blocks)) is not blocks:
        first = first_heading(marked) or 0
        if first:
            _add_document(marked[:first], "", chapters)
        split_by_headings(marked[first:], chapters)
    else:
        _add_document(blocks, entries[0].label if entries else "", chapters)


def _add_document(blocks: Sequence[Block], label: str, chapters: ChapterList) -> None:
    """Add a document as a new chapter, or append it to the previous chapter.

    label: the title that the table of contents gives the document; "" = none.
    """
    place = first_heading(blocks)
    if place is None and not label and heading_level(" ".join(blocks[0].text.split())):
        chapters.start(title_of([replace(blocks[0], level=1), *blocks[1:]]), blocks)
        return
    if place is None or (not label and blocks[place].level > _DEEPEST_CHAPTER):
        if label:
            chapters.start(label, blocks)
        else:
            chapters.join(blocks)
        return
    if len(chapters) and sum(len(block.text) for block in blocks[:place]) > _LONGEST_BEFORE_HEADING:
        chapters.join(blocks[:place])
        blocks = blocks[place:]
    chapters.start(title_of(blocks), blocks)


def _parts(found: document.Document, entries: Sequence[_TocEntry]) -> list[tuple[int, str]]:
    """Return the parts into which the table of contents divides a document.

    Each part is a pair: the index of its first block, and its title.
    """
    depth = min((entry.depth for entry in entries), default=0)
    parts: dict[int, str] = {}
    for entry in entries:
        if entry.depth == depth:
            place = found.anchors.get(entry.fragment) if entry.fragment else 0
            if place is not None and place < len(found.blocks):
                parts.setdefault(place, entry.label)
    return sorted(parts.items())


def _is_title_page(root: Element, blocks: Sequence[Block], package: _Package) -> bool:
    """Return whether a document is a title page: its type says so, or it has only the title and the authors."""
    for element in (root, *root.iter("{*}body"), *root.iterfind(".//{*}body/*")):
        if document.epub_types(element) & {"titlepage", "halftitlepage"}:
            return True
    if len(package.spine) == 1:
        return False
    known = set(re.findall(r"\w+", f"{package.title} {package.author} by".casefold()))
    words = re.findall(r"\w+", " ".join(block.text for block in blocks).casefold())
    return known.issuperset(words) and bool(package.title)


def _is_contents(found: document.Document) -> bool:
    """Return whether a document is a table of contents: most of its text is the text of links."""
    return found.links >= _LEAST_LINKS and found.linked_chars > 0.6 * sum(len(block.text) for block in found.blocks)


def _cover(archive: _Archive, package: _Package) -> bytes | None:
    """Return the cover; None if there is none, or if it is not a JPEG or PNG file of at most MAX_COVER_BYTES."""
    if package.cover is None or not 0 < archive.size(package.cover.path) <= MAX_COVER_BYTES:
        return None
    try:
        data = archive.read(package.cover.path, MAX_COVER_BYTES)
    except BadBook:
        return None
    return data if picture(data) is not None else None
