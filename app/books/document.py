"""Turn one HTML or XHTML document into paragraphs and headings, as a person would read it aloud.

These parts are left out: scripts, styles, navigation, notes and the marks that refer to notes, page numbers, hidden
parts, and pictures. An item of a list becomes a paragraph that begins with its number. A row of a table becomes a line
with commas between its cells. The lines of a stanza become the lines of one paragraph. Soft hyphens are removed, and a
drop cap (a large first letter) is joined to its word.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lxml import etree

from app.books.book import BookTooLarge
from app.errors import BadBook
from app.text.markup import raised

# One tag takes up to 0.5 kB of memory in the tree of a document.
MAX_TAGS = 1_000_000

Element = Any  # an element of lxml, a library without type annotations

_OPTIONS = {"no_network": True, "huge_tree": False, "remove_comments": True, "remove_pis": True}
_EPUB_TYPE = ("{http://www.idpf.org/2007/ops}type", "epub:type")
# Two characters that mark the end of a line and the end of a table cell. They are removed from each document before it
# is parsed, so a document can't contain them.
_LINE, _CELL = "\ufdd0", "\ufdd1"
_NO_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufdd0\ufdd1\ufffe\uffff\ud800-\udfff]")
_DECLARATION = re.compile(r"<\?xml[^>]{0,500}>")
_DOCTYPE = re.compile(r"<!DOCTYPE[^\[>]{0,1000}(?:\[(?:[^\]\"']|\"[^\"]*\"|'[^']*')*\]\s*)?>", re.IGNORECASE)
_NAMED = re.compile(r"&(?!(?:amp|lt|gt|quot|apos);)([A-Za-z][A-Za-z0-9]{1,31});")
_NO_TAG = re.compile(r"<!\[CDATA\[|\]\]>|<[?!][^>]*>?")  # a declaration, an instruction, or a mark of CDATA
# XML allows "<title/>", which HTML would read as the start of a title.
_EMPTY_TAG = re.compile(
    r"<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr)\b)([A-Za-z][\w:-]{0,40})"
    r"((?:\s[^<>]{0,2000})?)/>",
    re.IGNORECASE,
)
_INVISIBLE = re.compile("[\xad\u200b\u2060\ufeff]")
_LINE_END = re.compile(rf" ?{_LINE} ?")
_PARAGRAPHS = re.compile(r"\n{2,}")
_WORD = re.compile(r"\w")

_BLOCKS = frozenset(
    """
    address article aside blockquote body caption center dd details dir div dl dt fieldset
    figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu ol p
    pre section summary table tbody td tfoot th thead title tr ul
    """.split()
)
_LEFT_OUT = frozenset(
    """
    head script style template noscript iframe object embed applet audio video canvas svg nav select
    textarea input button rt rp rtc map datalist progress meter
    """.split()
)
_LEFT_OUT_TYPES = frozenset(
    """
    footnote footnotes endnote endnotes rearnote rearnotes note noteref annoref backlink pagebreak
    page-list toc landmarks loi lot loa lov index cover
    """.split()
)
_LEFT_OUT_ROLES = frozenset(
    """
    doc-footnote doc-endnote doc-endnotes doc-noteref doc-backlink doc-pagebreak doc-pagelist
    doc-toc doc-index doc-cover navigation search contentinfo
    """.split()
)
_LEFT_OUT_CLASSES = re.compile(
    r"(?:(?:foot|end|rear)[-_]?notes?(?:[-_](?:end.*|ref|back|text|body|area|section))?|note[-_]?ref"
    r"|fn[-_]?(?:ref|anchor)|fnanchor)(?:[-_]?[0-9]{1,3})?"  # the program calibre adds numbers: "footnote1"
    r"|page-?num(?:ber)?s?|page_num(?:ber)?|pageno|pagebreak|pg-boilerplate|sr-only|visually-hidden",
    re.IGNORECASE,
)
_HIDDEN_STYLE = re.compile(r"(?:^|[;\s])(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_STANZAS = frozenset("stanza linegroup line-group line_group lg verse-group".split())
_DROP_CAP = re.compile(r"drop[-_]?(?:cap|letter)|^drop$|initial|lettrine", re.IGNORECASE)
_NOTE_MARK = re.compile(
    r"[\[({]?\s*(?:[0-9]{1,4}|[*†‡§¶#]{1,4}|[a-z]|[ivxlc]{1,7}|note\s+[0-9]{1,4})\s*[\])}]?", re.IGNORECASE
)
_NOTE_ELEMENTS = frozenset("p li div aside dl dd dt tr section blockquote".split())
_LONGEST_NOTE = 5_000
_LONGEST_CELL = 300
_WORDS_OF_ONE_LETTER = frozenset("AIO")
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, or a heading. A line break in `text` ends a line, for example of a poem or of an address."""

    text: str
    level: int = 0  # 1 to 6 for a heading; 0 = a paragraph


@dataclass(slots=True)
class Document:
    """The blocks of a document."""

    blocks: list[Block] = field(default_factory=list)
    # Wanted id -> index of the first block at or after the element with this id.
    anchors: dict[str, int] = field(default_factory=dict)
    links: int = 0
    linked_chars: int = 0  # the number of characters inside links


def parse(text: str) -> Element:
    """Parse an HTML or XHTML document and return its root. Raises BadBook or BookTooLarge.

    XHTML is parsed as XML. All other documents are parsed as HTML, and errors are repaired as in a browser.
    """
    text = _harmless(text)
    if "<html" in text[:2_000] and "xmlns" in text[:4_000]:
        try:
            return etree.fromstring(
                text.encode(), etree.XMLParser(resolve_entities=False, encoding="utf-8", **_OPTIONS)
            )
        except etree.XMLSyntaxError:
            pass
    text = _EMPTY_TAG.sub(r"<\1\2></\1>", _NO_TAG.sub("", _without_comments(text)))
    parser = etree.HTMLParser(encoding="utf-8", **_OPTIONS)
    # Id of an element at the end of the document. If the parser stops at a limit, it reports no error, but this element
    # is missing.
    end = "end-of-the-document"
    data = f"{text}<i id='{end}'></i>".encode()
    root = None
    try:
        for start in range(0, len(data), 1 << 16):
            parser.feed(data[start : start + (1 << 16)])
        root = parser.close()
    except etree.LxmlError:
        pass
    if root is None or not root.xpath("//i[@id=$end]", end=end):
        raise BadBook(
            "A document of the book can't be read: it is not HTML, its elements are nested more than 250 levels deep, "
            "a paragraph has more than 10 MB, or a script has no end. Convert the file with another program and send "
            "it again."
        )
    return root


def parse_xml(text: str) -> Element:
    """Parse an XML file and return its root. Errors are repaired if possible. Raises BadBook."""
    parser = etree.XMLParser(resolve_entities=False, encoding="utf-8", recover=True, **_OPTIONS)
    try:
        root = etree.fromstring(_harmless(text).encode(), parser)
    except etree.XMLSyntaxError:
        root = None
    if root is None:
        raise BadBook("A file of the EPUB is not XML. Download the EPUB again, or save it with an EPUB editor.")
    return root


def _harmless(text: str) -> str:
    """Return a document without its XML declaration and DOCTYPE, so that the parser loads no file and expands no
    entity.

    Named characters such as `&eacute;` are replaced. Raises BookTooLarge if the document has too many tags.
    """
    if text.count("<") > MAX_TAGS:
        raise BookTooLarge(f"A document of the book has more than {MAX_TAGS:,} tags. Divide the book.")
    text = _NO_CHARACTERS.sub("", text.removeprefix("\ufeff")).lstrip()
    if declaration := _DECLARATION.match(text):
        text = text[declaration.end() :]
    start = text[:10_000].upper().find("<!DOCTYPE")
    if start >= 0 and (doctype := _DOCTYPE.match(text, start)):
        text = text[:start] + text[doctype.end() :]
        # The text may use entities that the removed DOCTYPE declared. These entities are left out.
        if "<!ENTITY" in doctype[0]:
            return _NAMED.sub(lambda match: "" if _is_unknown(match) else _named_character(match), text)
    return _NAMED.sub(_named_character, text)


def _without_comments(text: str) -> str:
    """Remove comments. Raises BadBook for a comment without an end.

    The parser needs quadratic time for a long comment without an end.
    """
    parts = []
    place = 0
    while (start := text.find("<!--", place)) >= 0:
        end = text.find("-->", start)
        if end < 0:
            raise BadBook(
                "A document of the book has a comment without an end (-->). Correct it and send the file again."
            )
        parts.append(text[place:start])
        place = end + 3
    return "".join((*parts, text[place:]))


def _is_unknown(match: re.Match[str]) -> bool:
    return html.unescape(match[0]) == match[0]


def _named_character(match: re.Match[str]) -> str:
    """Return the character of a named reference, escaped for XML (`&eacute;` -> `é`).

    If the name is unknown, return text that shows the reference unchanged (`&xyz;` -> `&amp;xyz;`).
    """
    return f"&amp;{match[0][1:]}" if _is_unknown(match) else html.escape(html.unescape(match[0]), quote=False)


@dataclass(frozen=True, slots=True)
class NoteMark:
    """The mark of a note, for example a raised number that is a link."""

    label: str
    target: str  # the address in the link, such as "notes.xhtml#n1"
    ids: frozenset[str]  # the ids to which a note can link back


def note_marks(root: Element) -> Iterator[NoteMark]:
    """Yield the marks of all notes in a document."""
    for link in root.iter("{*}a"):
        if _is_note_mark(link):
            around = (link, link.getparent(), *link)
            ids = frozenset(value for each in around if each is not None and (value := _id(each)))
            yield NoteMark("".join(link.itertext()).strip(" []().\n"), link.get("href", ""), ids)


def _is_note_mark(link: Element) -> bool:
    """Return whether a link is the mark of a note: by its type, or because it is a raised or bracketed number."""
    if "#" not in link.get("href", ""):
        return False
    if _is_left_out_type(link):
        return True
    text = "".join(link.itertext()).strip()
    if len(text) > 12 or _NOTE_MARK.fullmatch(text) is None:
        return False
    parent = link.getparent()
    is_raised = (parent is not None and _name(parent) == "sup") or any(_name(child) == "sup" for child in link)
    return is_raised or text[0] in "[({*†‡§¶"


def read_document(
    root: Element, *, wanted_ids: Collection[str] = (), notes: Mapping[str, NoteMark] | None = None
) -> Document:
    """Return the blocks of a document.

    wanted_ids: ids of elements; `Document.anchors` gets the places of these elements. notes: id of an element -> the
    mark that links to the element. The element is left out if it is a note: its text begins with the mark, or it links
    back to the mark.
    """
    return _Reader(frozenset(wanted_ids), _notes(root, notes or {})).read(root)


def _notes(root: Element, notes: Mapping[str, NoteMark]) -> frozenset[Element]:
    """Return the elements that are notes."""
    if not notes:
        return frozenset()
    found = set()
    for element in root.iter("*"):
        mark = notes.get(_id(element))
        if mark is None:
            continue
        note = element
        while note is not None and (_name(note) not in _BLOCKS or _name(note) in {"td", "th"}):
            note = note.getparent()
        if note is None or _name(note) not in _NOTE_ELEMENTS:
            continue
        text = "".join(note.itertext()).strip(" []().\n")
        links_back = any(link.get("href", "").rpartition("#")[2] in mark.ids for link in note.iter("{*}a"))
        if len(text) <= _LONGEST_NOTE and (links_back or (mark.label and text.startswith(mark.label))):
            found.add(note)
    return frozenset(found)


def is_left_out(element: Element) -> bool:
    """Return whether an element must not be read aloud. Its name, type, role, class or style decides."""
    if _name(element) in _LEFT_OUT or _is_left_out_type(element):
        return True
    if element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    style = element.get("style")
    return style is not None and _HIDDEN_STYLE.search(style) is not None


def epub_types(element: Element) -> frozenset[str]:
    """Return the values of `epub:type` and `role`."""
    names = next((value for name in _EPUB_TYPE if (value := element.get(name))), "")
    return frozenset((names + " " + element.get("role", "")).lower().split())


def _is_left_out_type(element: Element) -> bool:
    if not len(element.attrib):
        return False
    types = epub_types(element)
    if types and (types & _LEFT_OUT_TYPES or types & _LEFT_OUT_ROLES):
        return True
    classes = element.get("class")
    return classes is not None and any(_LEFT_OUT_CLASSES.fullmatch(each) for each in classes.split())


def _name(element: Element) -> str:
    tag = element.tag
    return tag.rpartition("}")[2].lower() if isinstance(tag, str) else ""


def _id(element: Element) -> str:
    return str(element.get("id") or element.get("name") or "")


class _Reader:
    """Reads one document from its first to its last element."""

    def __init__(self, wanted: frozenset[str], notes: frozenset[Element]) -> None:
        self._document = Document()
        self._wanted, self._notes = wanted, notes
        self._pieces: list[str] = []  # parts of the text of the current paragraph
        self._prefix = ""  # text before the next paragraph: the number of a list item, or a drop cap
        self._level = 0  # level of the heading that is being read; 0 = no heading
        self._stanzas = 0  # the number of open stanzas; their lines belong to one paragraph
        self._table: Element | None = None  # the table whose cells are being read
        self._preformatted = 0
        self._links = 0
        self._numbers: list[int | None] = []  # for each open list: the number of the next item; None = no numbers
        self._joins_letter = False  # whether the text after a drop cap must be joined to it

    def read(self, root: Element) -> Document:
        walker = etree.iterwalk(root, events=("start", "end"))
        skipped: Element | None = None
        notes_at = -1  # how many blocks come before the last notes that were skipped
        for event, element in walker:
            if event == "start":
                if self._is_skipped(element):
                    skipped = element
                    walker.skip_subtree()
                else:
                    self._start(element)
                    self._add(element.text)
                continue
            if element is skipped:
                skipped = None
                if _name(element) in _BLOCKS:
                    self._boundary()
                    notes_at = len(self._document.blocks) if self._is_note(element) else notes_at
            else:
                self._end(element)
            if element is not root:
                self._add(element.tail)
        self._flush()
        blocks = self._document.blocks
        if blocks and blocks[-1].level and notes_at == len(blocks):
            blocks.pop()  # this heading belongs to notes that were left out
        return self._document

    def _is_note(self, element: Element) -> bool:
        """Return whether a skipped element is a note, or a section that contains notes."""
        names = epub_types(element) | set(element.get("class", "").lower().split())
        return element in self._notes or any("note" in name for name in names)

    def _is_skipped(self, element: Element) -> bool:
        name = _name(element)
        if name == "sup":
            self._pieces.append(self._raised(element))
            return True
        if name == "img":
            self._pieces.append(_drop_cap_of(element))
            return True
        return (
            is_left_out(element)
            or (name == "a" and _is_note_mark(element))
            or (bool(self._notes) and element in self._notes)
        )

    def _raised(self, element: Element) -> str:
        """Return the text that is read for a raised element.

        Letters (1st) and powers (x²) are read. For the number of a note, return "".
        """
        content = "".join(element.itertext()).strip()
        if is_left_out(element) or any(_is_note_mark(link) for link in element.iter("{*}a")):
            return ""
        if len(content) > 1 and content.replace(".", "").isalpha():
            return content
        before = "".join(self._pieces[-3:])[-8:]
        word = re.search(r"[^\W\d_]*$", before)
        if content.isalpha() and word is not None and len(word[0]) > 1:
            return content
        return raised(content, before)

    def _start(self, element: Element) -> None:
        name = _name(element)
        if name == "br":
            self._pieces.append(_LINE)
            return
        if name in _BLOCKS:
            self._boundary()
        if self._wanted and (place := _id(element)) in self._wanted:
            self._document.anchors.setdefault(place, len(self._document.blocks))
        match name:
            case "ol":
                first = element.get("start", "")
                self._numbers.append(int(first) if re.fullmatch(r"-?[0-9]{1,6}", first) else 1)
            case "ul" | "menu" | "dir":
                self._numbers.append(None)
            case "li":
                self._prefix = self._next_number(element)
            case "table" if self._table is None and not _is_layout(element):
                self._table = element
            case "pre":
                self._preformatted += 1
            case "a" if element.get("href") is not None:
                self._links += 1
                self._document.links += 1
            case "q":
                self._pieces.append("\u201c")
            case _:
                if level := _heading_level(element, name):
                    self._level = level
        if name in _BLOCKS and _has_class(element, _STANZAS):
            self._stanzas += 1

    def _end(self, element: Element) -> None:
        name = _name(element)
        match name:
            case "ol" | "ul" | "menu" | "dir":
                self._boundary()
                self._numbers.pop()
                return
            case "td" | "th" if self._table is not None:
                self._pieces.append(_CELL)
                return
            case "tr" | "caption" if self._table is not None:
                self._pieces.append(_LINE)
                return
            case "table" if element is self._table:
                self._flush_table()
                self._table = None
                return
            case "pre":
                self._boundary()
                self._preformatted -= 1
                return
            case "a" if element.get("href") is not None:
                self._links -= 1
            case "q":
                self._pieces.append("\u201d")
            case _:
                pass
        is_drop_cap = _is_drop_cap(element)
        if name not in _BLOCKS:
            self._joins_letter = is_drop_cap
            return
        if _has_class(element, _STANZAS):
            self._stanzas -= 1
            if not self._stanzas:
                self._flush()
        if is_drop_cap and self._table is None:
            self._prefix += "".join(self._pieces).strip()
            self._pieces.clear()
            return
        self._boundary()
        if _heading_level(element, name):
            self._level = 0

    def _add(self, text: str | None) -> None:
        if not text:
            return
        if self._links:
            self._document.linked_chars += len(text.strip())
        if self._joins_letter:
            self._joins_letter = False
            if text[0].isspace() and text.lstrip()[:1].islower():
                text = text.lstrip()
        if self._preformatted:
            text = text.replace("\r", "").replace("\n", _LINE)
        self._pieces.append(text)

    def _next_number(self, item: Element) -> str:
        """Return the number of a list item as a person reads it, for example "3. "; "" for an item without number."""
        if not self._numbers or (number := self._numbers[-1]) is None:
            return ""
        value = item.get("value", "")
        if re.fullmatch(r"-?[0-9]{1,6}", value):
            number = int(value)
        self._numbers[-1] = number + 1
        parent = item.getparent()
        kind = parent.get("type", "") if parent is not None else ""
        if kind in {"a", "A"} and 1 <= number <= 26:
            return f"{chr(ord(kind) + number - 1)}. "
        return f"{number}. "

    def _boundary(self) -> None:
        """End a block, which is normally a paragraph.

        In a stanza, the end of a block ends a line. In a table cell, it adds a space.
        """
        if self._table is not None:
            self._pieces.append(" ")
        elif self._stanzas:
            if "".join(self._pieces[-3:]).rstrip(" \t\r\n")[-1:] not in {"", _LINE}:
                self._pieces.append(_LINE)
        else:
            self._flush()

    def _flush(self) -> None:
        text = _tidy("".join(self._pieces))
        self._pieces.clear()
        self._joins_letter = False
        for paragraph in _PARAGRAPHS.split(text) if "\n" in text else (text,):
            if _WORD.search(paragraph) is None:
                continue
            self._document.blocks.append(Block(self._prefix + paragraph.strip("\n"), self._level))
            self._prefix = ""

    def _flush_table(self) -> None:
        """Add a table as one block. Each row is a line with commas between its cells and a full stop at its end."""
        rows = []
        for row in _tidy("".join(self._pieces)).split("\n"):
            cells = [cell for each in row.split(_CELL) if _WORD.search(cell := each.strip())]
            if cells:
                line = "".join(cell + (" " if cell[-1] in ".,:;!?" else ", ") for cell in cells).rstrip(" ,")
                rows.append(line if line[-1] in ".:;!?" else f"{line}.")
        self._pieces.clear()
        if rows:
            self._document.blocks.append(Block("\n".join(rows)))


def _tidy(text: str) -> str:
    """Return the text of a paragraph with single spaces, and with a line break where a line ends."""
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
    text = " ".join(text.split())
    return _LINE_END.sub("\n", text).strip() if _LINE in text else text


def _heading_level(element: Element, name: str) -> int:
    if (level := _HEADINGS.get(name)) is not None:
        return level
    if element.get("role") == "heading":
        level_text = element.get("aria-level", "2")
        return int(level_text) if level_text in {"1", "2", "3", "4", "5", "6"} else 2
    return 0


def _has_class(element: Element, names: Collection[str]) -> bool:
    classes = element.get("class")
    return classes is not None and any(each.lower() in names for each in classes.split())


def _is_drop_cap(element: Element) -> bool:
    classes = element.get("class")
    if classes is None or _DROP_CAP.search(classes) is None:
        return False
    text = "".join(element.itertext()).strip()
    return 1 <= len(text) <= 3 and text[-1].isalpha() and text not in _WORDS_OF_ONE_LETTER


def _drop_cap_of(image: Element) -> str:
    """Return the letter that a picture shows, if the next letters of the word follow it; otherwise "".

    Example: `<img alt="T"/>he` -> "T".
    """
    letter, tail = (image.get("alt") or "").strip(), image.tail or ""
    return letter if 1 <= len(letter) <= 2 and letter[-1].isalpha() and tail[:1].isalpha() else ""


def _is_layout(table: Element) -> bool:
    """Return whether a table only arranges text.

    Such a table has only one column, contains another table, or has a cell with several paragraphs or a long text.
    """
    if next((each for each in table.iter("{*}table") if each is not table), None) is not None:
        return True
    most_cells = 0
    for row in table.iter("{*}tr"):
        cells = [cell for cell in row if _name(cell) in {"td", "th"}]
        most_cells = max(most_cells, len(cells))
        for cell in cells:
            if sum(_name(child) in _BLOCKS for child in cell) > 1 or sum(map(len, cell.itertext())) > _LONGEST_CELL:
                return True
    return most_cells < 2
