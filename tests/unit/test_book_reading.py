"""Books are read as people read them aloud: every visible word once, in order, divided into chapters."""

# ruff: noqa: E501 - a document is easier to read in one line
from __future__ import annotations

import itertools
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.books import document
from app.books.book import Book, BookTooLarge, EmptyBook, ProtectedBook, UnknownBookType
from app.books.encodings import decode
from app.books.reading import read_book
from app.errors import BadBook
from tests.support.books import METADATA, OPF, epub, page

pytestmark = pytest.mark.unit


def texts(book: Book) -> list[tuple[str, str]]:
    return [(chapter.title, chapter.text) for chapter in book.chapters]


def blocks(body: str) -> list[str]:
    root = document.parse(page(body))
    marks = {mark.target.removeprefix("#"): mark for mark in document.note_marks(root)}
    return [block.text for block in document.read_document(root, notes=marks).blocks]


# ---- one document


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<h1>CHAPTER I.<br/>The&#160;Har&#173;bour</h1><p>One  <b>t</b>wo\n three.</p>", ["CHAPTER I.\nThe Harbour", "One two three."]),
        ("<div>Loose <p>inside</p> after</div>", ["Loose", "inside", "after"]),
        ('<ol start="3"><li>c</li><li><p>d</p><p>e</p><ul><li>f</li></ul></li></ol>', ["3. c", "4. d", "e", "f"]),
        ('<ol type="a"><li>first</li><li value="5">second</li></ol>', ["a. first", "e. second"]),
        (
            "<table><caption>Ages</caption><tr><th>Name</th><th>Age</th></tr><tr><td>Ann</td><td><p>12</p></td></tr></table>",
            ["Ages.\nName, Age.\nAnn, 12."],
        ),
        ("<table><tr><td><p>a</p><p>b</p></td><td>c</td></tr></table>", ["a", "b", "c"]),
        (
            '<div class="stanza"><div class="verse">The wind is west,</div><div class="verse">the sea is still.</div></div>'
            '<div class="stanza"><p>New stanza</p></div>',
            ["The wind is west,\nthe sea is still.", "New stanza"],
        ),
        ("<p>one<br/>two<br/><br/>three</p>", ["one\ntwo", "three"]),
        ('<p><span class="dropcap">T</span>he end</p>', ["The end"]),
        ('<p><span class="dropcap">T</span> he end</p>', ["The end"]),
        ('<p><span class="dropcap">A</span> man</p>', ["A man"]),
        ('<div class="dropcap">T</div><p>he end</p>', ["The end"]),
        ('<p><img src="t.jpg" alt="T"/>he end. <img src="s.jpg" alt="A ship"/>After.</p>', ["The end. After."]),
        ("<p>x<sup>2</sup>, the 21<sup>st</sup>, M<sup>rs</sup> B.<sup>3</sup> H<sub>2</sub>O</p>", ["x², the 21st, Mrs B. H2O"]),
        ('<p>A note<a epub:type="noteref" href="#n">1</a>.</p><aside epub:type="footnote" id="n">1 Note.</aside>', ["A note."]),
        ('<p>A note<sup><a href="#n">1</a></sup>.</p><div class="footnote">Note.</div>', ["A note."]),
        ('<p>A note<a id="r" href="#n"><sup>1</sup></a>.</p><p id="n"><a href="#r">1</a> Note.</p><p>End.</p>', ["A note.", "End."]),
        ('<p>A<sup><a id="r" href="#n">1</a></sup>.</p><dl id="n"><dt>[<a href="#r">←1</a>]</dt><dd>Note.</dd></dl>', ["A."]),
        ('<p>A<a class="noteref1" href="#n">1</a>.</p><h2>Notes</h2><dl class="footnote1" id="n"><dt>1</dt></dl>', ["A."]),
        ('<h2>Last</h2><div class="pagebreak"/>', ["Last"]),
        ('<p>See <a href="#p12">12</a> and <a href="#x">this</a>.</p>', ["See 12 and this."]),
        ('<p>a<span class="pagenum">[Pg 12]</span>b<span epub:type="pagebreak" title="13"/>c</p>', ["abc"]),
        ("<script>bad()</script><style>p{}</style><nav><a>x</a></nav><p hidden='hidden'>no</p><p>yes</p>", ["yes"]),
        ('<p style="display: none">no</p><p>* * *</p><hr/><p>yes</p>', ["yes"]),
        ("<p><ruby>漢<rt>かん</rt></ruby>字 <q>so</q> &amp; &lt;b&gt;</p>", ["漢字 “so” & <b>"]),
        ("<pre>a  b\nc</pre>", ["a b\nc"]),
    ],
)  # fmt: skip
def test_document_is_read_as_people_read_it(body: str, expected: list[str]) -> None:
    assert blocks(body) == expected


def test_link_to_a_chapter_is_not_a_note() -> None:
    body = (
        '<p><a href="#c1">[1]</a> <a href="#c2">[2]</a></p><div id="c1"><p>One.</p></div><div id="c2"><p>Two.</p></div>'
    )
    root = document.parse(page(body))
    marks = {mark.target.removeprefix("#"): mark for mark in document.note_marks(root)}
    assert [block.text for block in document.read_document(root, notes=marks).blocks] == ["One.", "Two."]


@pytest.mark.parametrize(
    "text",
    [
        "<title/><p>One <a id='x'/>two &amp; AT&T <b>bold</p><p>more</i> <br>x</p>tail",
        "<html xmlns='http://www.w3.org/1999/xhtml'><body><p>One two &amp; AT&T <b>bold</p> more x tail</body></html>",
        "<p>One<!-- a comment --> two & AT&T bold<![CDATA[ more]]> x<?php x ?> tail",
    ],
)
def test_broken_markup_loses_no_word(text: str) -> None:
    words = " ".join(block.text for block in document.read_document(document.parse(text)).blocks).split()
    assert words == "One two & AT&T bold more x tail".split()


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """Draw the body of a document whose visible words are w1, w2, ... in order. Hidden words contain an x."""
    count = 0

    def word() -> str:
        nonlocal count
        count += 1
        return f"w{count}"

    def inline(depth: int) -> str:
        parts = []
        for kind in draw(
            st.lists(st.sampled_from(["word", "b", "br", "note", "comment", "img"]), min_size=1, max_size=4)
        ):
            match kind:
                case "b" if depth:
                    parts.append(f"<b>{inline(depth - 1)}</b>")
                case "br":
                    parts.append(f"{word()}<br/>{word()}")
                case "note":
                    parts.append(f'{word()}<a epub:type="noteref" href="#x">x{count}</a>')
                case "comment":
                    parts.append(f"{word()}<!-- x -->")
                case "img":
                    parts.append(f'<img alt="x x" src="x"/>{word()}')
                case _:
                    parts.append(word())
        return " ".join(parts)

    def block(depth: int) -> str:
        kind = draw(st.sampled_from(["p", "h2", "text", "div", "ul", "table", "hidden", "quote", "stanza"]))
        match kind:
            case "div" | "quote" if depth:
                name = "div" if kind == "div" else "blockquote"
                return f"<{name}>{flow(depth - 1)}</{name}>"
            case "ul" if depth:
                return f"<ul><li>{inline(1)}</li><li>{flow(depth - 1)}</li></ul>"
            case "table":
                return f"<table><tr><td>{word()}</td><td>{word()}</td></tr><tr><td/><td>{inline(0)}</td></tr></table>"
            case "hidden":
                return "<div hidden='hidden'><p>x</p>x</div><script>x</script>"
            case "stanza":
                return f'<div class="stanza"><span>{word()}</span><br/><span>{word()}</span></div>'
            case "h2":
                return f"<h2>{inline(1)}</h2>"
            case "text":
                return f" {inline(1)} "
            case _:
                return f"<p>{inline(1)}</p>"

    def flow(depth: int) -> str:
        return "".join(block(depth) for _ in range(draw(st.integers(1, 3))))

    return flow(3)


@settings(max_examples=60, deadline=None)
@given(bodies())
def test_every_visible_word_is_read_once_and_in_order(body: str) -> None:
    words = re.findall(r"\w+", " ".join(blocks(body)))
    assert words == [f"w{number}" for number in range(1, len(words) + 1)]
    assert len(words) == len(set(re.findall(r"\bw\d+", body)))


# ---- EPUB


def test_epub_has_one_chapter_for_each_document_with_a_heading() -> None:
    book = read_book(
        epub(
            {
                "title.xhtml": page('<section epub:type="titlepage"><h1>The Lamp Keeper</h1><p>A tale</p></section>'),
                "nav.xhtml": page(
                    '<nav epub:type="toc"><ol><li><a href="a.xhtml">One</a></li></ol></nav><p>Contents</p>'
                ),
                "front.xhtml": page("<p>For Ann.</p>"),
                "a.xhtml": page("<h1>Chapter 1</h1><h2>The Harbour</h2><p>First.</p>"),
                "b.xhtml": page("<p>Second.</p>"),
                "notes.xhtml": page("<h1>Notes</h1><p>Not linear.</p>"),
                "c.xhtml": page("<p>Third.</p><h2>Night</h2><p>Fourth.</p>"),
            },
            properties={"nav.xhtml": "nav"},
            not_linear=["notes.xhtml"],
        ),
        "x.epub",
    )
    assert (book.title, book.author, book.language) == ("The Lamp Keeper", "Ada Example", "en-GB")
    assert texts(book) == [
        ("The Lamp Keeper", "For Ann."),
        ("Chapter 1. The Harbour", "Chapter 1\n\nThe Harbour\n\nFirst.\n\nSecond."),
        ("Night", "Third.\n\nNight\n\nFourth."),
    ]


def test_title_page_is_kept_if_asked() -> None:
    data = epub(
        {"t.xhtml": page("<h1>The Lamp Keeper</h1><p>by Ada Example</p>"), "a.xhtml": page("<h1>One</h1><p>x</p>")}
    )
    assert [chapter.title for chapter in read_book(data, "x.epub").chapters] == ["One"]
    assert [chapter.title for chapter in read_book(data, "x.epub", title_page=True).chapters] == [
        "The Lamp Keeper",
        "One",
    ]


def test_epub_2_is_divided_by_its_table_of_contents() -> None:
    points = "".join(
        f'<navPoint><navLabel><text>{label}</text></navLabel><content src="{src}"/></navPoint>'
        for label, src in [("Start", "a.xhtml"), ("Middle", "a.xhtml#m"), ("Last", "b.xhtml")]
    )
    book = read_book(
        epub(
            {
                "cover.xhtml": page("<p>Cover words</p>"),
                "a.xhtml": page('<p>One.</p><p>Two.</p><div id="m"><p>Three.</p></div>'),
                "b.xhtml": page("<p>Four.</p><sup><a href='end.xhtml#n1'>1</a></sup>"),
                "end.xhtml": page('<h2>Notes</h2><p id="n1"><a href="b.xhtml#r1">1</a> A note.</p><p>Kept.</p>'),
            },
            version="2.0",
            outside_spine={
                "toc.ncx": f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{points}</navMap></ncx>'
            },
            guide='<reference type="cover" href="cover.xhtml"/>',
        ),
        "x.epub",
    )
    assert texts(book) == [
        ("Start", "One.\n\nTwo."),
        ("Middle", "Three."),
        ("Last", "Four."),
        ("Notes", "Notes\n\nKept."),
    ]


@pytest.mark.parametrize(
    ("href", "entry"),
    [
        ("/OEBPS/a b.xhtml", "OEBPS/a b.xhtml"),
        ("/a%20b.xhtml", "OEBPS/a b.xhtml"),
        ("a%20b.xhtml", "OEBPS/a%20b.xhtml"),
        ("a%20b.xhtml", "OEBPS/A b.xhtml"),
        ("caf%C3%A9.xhtml", "OEBPS/cafe\u0301.xhtml"),
        ("text/a.xhtml", "OEBPS\\text\\a.xhtml"),
        ("./text/../a.xhtml", "/OEBPS/a.xhtml"),
    ],
)
def test_names_of_documents_are_found_as_other_programs_write_them(href: str, entry: str) -> None:
    opf = OPF.format(
        version="2.0",
        metadata=METADATA,
        manifest=f'<item id="a" href="{href}" media-type="application/xhtml+xml"/>',
        spine='<itemref idref="a"/>',
        guide="",
    )
    assert texts(read_book(epub({}, opf=opf, more={entry: page("<p>Words.</p>")}), "x.epub"))[0][1] == "Words."


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_documents_of_an_epub_have_their_own_encoding(encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="UTF-16"?>\n{page("<h1>Größe</h1><p>Grüße — «ja».</p>")}'
    assert texts(read_book(epub({"a.xhtml": text.encode(encoding)}), "x.epub")) == [("Größe", "Größe\n\nGrüße — «ja».")]


def test_book_whose_documents_are_all_outside_the_reading_order_is_read() -> None:
    only, other = {"a.xhtml": page("<p>Words.</p>")}, {"b.xhtml": page("<p>More.</p>")}
    assert texts(read_book(epub({**only, **other}, not_linear=["b.xhtml"]), "x.epub"))[0][1] == "Words."
    assert texts(read_book(epub(only, not_linear=["a.xhtml"]), "x.epub"))[0][1] == "Words."


def test_nested_navigation_divides_a_document() -> None:
    nav = page(
        '<nav epub:type="toc"><ol><li><a href="a.xhtml">Part</a><ol><li><a href="a.xhtml#one">One</a></li>'
        '<li><span>Group</span><ol><li><a href="a.xhtml#two">Two</a></li></ol></li></ol></li></ol></nav>'
    )
    body = '<p>Before.</p><div id="one"><p>First words.</p></div><div id="two"><p>Second words.</p></div>'
    read = texts(read_book(epub({"nav.xhtml": nav, "a.xhtml": page(body)}, properties={"nav.xhtml": "nav"}), "x.epub"))
    assert "\n\n".join(text for _, text in read) == "Before.\n\nFirst words.\n\nSecond words."


def test_page_of_links_is_a_table_of_contents() -> None:
    names = [f"c{number}" for number in range(6)]
    contents = page(
        "<h2>Contents</h2>" + "".join(f'<p><a href="{name}.xhtml">Chapter {name}</a></p>' for name in names)
    )
    chapters = {f"{name}.xhtml": page(f"<h1>{name}</h1><p>Words.</p>") for name in names}
    assert [each.title for each in read_book(epub({"toc.xhtml": contents, **chapters}), "x.epub").chapters] == names


def test_chapters_without_marked_headings_are_found() -> None:
    paragraphs = "".join(f"<p>CHAPTER {number}</p><p>Words {number}.</p>" for number in ("I", "II", "III"))
    documents = {"a.xhtml": page(f"<p>Contents</p><p>CHAPTER I</p><p>CHAPTER II</p><p>CHAPTER III</p>{paragraphs}")}
    documents["b.xhtml"] = page("<p>Chapter IV</p><p>Words IV.</p>")
    documents["c.xhtml"] = page("<p>The chapter goes on.</p>")
    expected = [(f"CHAPTER {number}", f"CHAPTER {number}\n\nWords {number}.") for number in ("I", "II", "III")]
    assert texts(read_book(epub(documents), "x.epub")) == [
        *expected,
        ("Chapter IV", "Chapter IV\n\nWords IV.\n\nThe chapter goes on."),
    ]
    assert texts(read_book(paragraphs.encode(), "x.html")) == expected


def test_authors_are_joined_and_translators_left_out() -> None:
    metadata = (
        METADATA + '<dc:creator opf:role="trl">A Translator</dc:creator><dc:creator id="c">Bo Writer</dc:creator>'
        '<meta refines="#c" property="role">aut</meta>'
    )
    assert (
        read_book(epub({"a.xhtml": page("<p>x</p>")}, metadata=metadata), "x.epub").author == "Ada Example, Bo Writer"
    )


def png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))


@pytest.mark.parametrize(
    ("data", "kept"),
    [(png(600, 800), True), (png(60_000, 60_000), False), (b"<svg/>", False), (png(9, 9) + bytes(11 << 20), False)],
)
def test_cover_is_kept_only_if_it_is_a_picture_of_sensible_size(data: bytes, kept: bool) -> None:
    book = read_book(
        epub({"a.xhtml": page("<p>x</p>")}, outside_spine={"c.png": data}, properties={"c.png": "cover-image"}),
        "x.epub",
    )
    assert (book.cover == data) is kept


ENCRYPTION = '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptionMethod Algorithm="{}"/></encryption>'
ONE = {"a.xhtml": page("<p>Words.</p>")}
BOMB = page("<p>" + "a" * 9_000_000 + "</p>")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: b"", BadBook, "zip file"),
        (lambda: b"<html>", BadBook, "zip file"),
        (lambda: epub(ONE)[:-30], BadBook, "damaged: its end is missing"),
        (lambda: epub({}), BadBook, "spine"),
        (lambda: epub({}, opf=OPF.format(version="3.0", metadata="", manifest="", spine='<itemref idref="x"/>', guide="")), BadBook, "exists"),
        (lambda: epub({"../../../etc/passwd": "root"}), BadBook, "exists"),
        (lambda: epub({"a.xhtml": page("<img src='a.png' alt='picture'/>")}), EmptyBook, "OCR"),
        (lambda: epub({"a.xhtml": page("<div>" * 400 + "x")}), BadBook, "nested"),
        (lambda: epub({"a.xhtml": epub(ONE)}), BadBook, "is a zip file"),
        (lambda: epub({"a.xhtml": BOMB}), BookTooLarge, "zip bomb"),
        (lambda: epub({"a.xhtml": page("a" * 20_000_000)}), BookTooLarge, "16 MB"),
        (lambda: epub(ONE, more={f"f{number}": "" for number in range(20_001)}), BookTooLarge, "files"),
        (lambda: epub(ONE, more={"META-INF/rights.xml": "<rights/>"}), ProtectedBook, "DRM"),
        (lambda: epub(ONE, more={"META-INF/encryption.xml": ENCRYPTION.format("aes128-cbc")}), ProtectedBook, "DRM"),
        (lambda: epub(ONE, more={"META-INF/license.lcpl": "{}"}), ProtectedBook, "LCP"),
    ],
)  # fmt: skip
def test_bad_epub_is_refused_with_a_reason(make: Callable[[], bytes], error: type[BadBook], words: str) -> None:
    data = make()
    with pytest.raises(error, match=words) as caught:
        read_book(data, "x.epub")
    assert caught.value.code.startswith("book_")


def test_encrypted_fonts_are_no_protection() -> None:
    encryption = ENCRYPTION.format("http://www.idpf.org/2008/embedding")
    assert texts(read_book(epub(ONE, more={"META-INF/encryption.xml": encryption}), "x.epub"))[0][1] == "Words."


def test_damaged_entry_is_reported() -> None:
    data = bytearray(epub({"a.xhtml": page("<p>Some words of a book.</p>")}))
    at = data.find(b"OEBPS/a.xhtml") + len("OEBPS/a.xhtml")
    data[at : at + 40] = bytes(40)
    with pytest.raises(BadBook, match="decompressed"):
        read_book(bytes(data), "x.epub")


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE html [<!ENTITY e SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE html [<!ENTITY a "boom"><!ENTITY e "&a;&a;&a;">]>',
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">',
    ],
)
def test_declared_entities_are_not_read(doctype: str) -> None:
    opf = OPF.format(
        version="3.0",
        metadata="<dc:title>&e;T</dc:title>",
        manifest='<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>',
        spine='<itemref idref="a"/>',
        guide="",
    )
    book = read_book(
        epub({"a.xhtml": doctype + page("<p>One &e;two&nbsp;&mdash; three</p>")}, opf=doctype + opf), "x.epub"
    )
    assert "boom" not in book.title + book.chapters[0].text
    assert re.findall(r"\w+", book.chapters[0].text.replace("&e;", "")) == ["One", "two", "three"]


def test_five_thousand_chapters_are_read() -> None:
    documents = {f"{number}.xhtml": page(f"<h1>{number}</h1><p>Words.</p>") for number in range(5_000)}
    assert [each.title for each in read_book(epub(documents), "x.epub").chapters] == [str(n) for n in range(5_000)]


# ---- HTML, Markdown, plain text


def test_html_is_divided_at_its_headings() -> None:
    text = (
        "<h1>The Book</h1><p>By me.</p><h2>One</h2><p>First.</p><h3>Inside</h3><p>More.</p><h2>Two</h2><p>Second.</p>"
    )
    assert texts(read_book(text.encode(), "a.html")) == [
        ("The Book", "The Book\n\nBy me."),
        ("One", "One\n\nFirst.\n\nInside\n\nMore."),
        ("Two", "Two\n\nSecond."),
    ]


def test_heading_below_the_title_counts_for_its_level() -> None:
    """The sections of one chapter are not chapters, although their level is the first that occurs at two places."""
    text = "# The Book\n\n## One\n\nFirst.\n\n### In\n\nMore.\n\n### Side\n\nMore.\n\n## Two\n\nSecond."
    assert [title for title, _ in texts(read_book(text.encode(), "a.md"))] == ["The Book. One", "Two"]


def test_markdown_is_divided_at_its_headings() -> None:
    text = (
        "---\ntitle: The Book\nauthor: 'Ada Example'\nlang: en-GB\n---\n\n# One\n\nSome *words* here.[^1] ![a ship](s.png)\n\n"
        "[^1]: A note\n    of two lines.\n\nTwo\n===\n\n```\n# no heading\n```\n\n1. first\n2. second\n\n| A | B |\n|---|---|\n| c | d |\n"
    )
    book = read_book(text.encode(), "a.md")
    assert (book.title, book.author, book.language) == ("The Book", "Ada Example", "en-GB")
    assert texts(book) == [
        ("One", "One\n\nSome words here."),
        ("Two", "Two\n\nno heading.\n\n1. first. 2. second.\n\nA, B. c, d."),
    ]


@pytest.mark.parametrize("author", ['[Ann One, "Ben Two"]', "Ann One, Ben Two", "'Ann One, Ben Two'"])
def test_authors_of_markdown_may_be_a_list(author: str) -> None:
    assert read_book(f"---\nauthor: {author}\n---\n\nText.".encode(), "a.md").author == "Ann One, Ben Two"


GUTENBERG = """\ufeffThe Project Gutenberg eBook of The Lamp Keeper

Title: The Lamp Keeper

Author: Ada Example

Language: English

*** START OF THE PROJECT GUTENBERG EBOOK THE LAMP KEEPER ***

[Illustration]

CONTENTS

 CHAPTER I. The Harbour
 CHAPTER II. The Storm
 CHAPTER III. The Night

CHAPTER I.
The Harbour

The harbour was _very_ quiet that evening, and the keeper went up to
his lamp as he had done for twenty-three years without a single night
of rest.[1]

    The wind is in the west,
      And all the lamps are low;

[Footnote 1: Not quite
true.]

CHAPTER II.

The Storm

Then came the storm.

CHAPTER III

The Night

It was night.

*** END OF THE PROJECT GUTENBERG EBOOK THE LAMP KEEPER ***

The licence.
""".replace("\n", "\r\n")


def test_text_of_project_gutenberg() -> None:
    book = read_book(GUTENBERG.encode(), "pg1.txt")
    assert (book.title, book.author, book.language) == ("The Lamp Keeper", "Ada Example", "en")
    assert texts(book) == [
        (
            "CHAPTER I. The Harbour",
            "CHAPTER I.\nThe Harbour\n\nThe harbour was very quiet that evening, and the keeper went up to his lamp as he had "
            "done for twenty-three years without a single night of rest.\n\nThe wind is in the west,\nAnd all the lamps are low;",
        ),
        ("CHAPTER II. The Storm", "CHAPTER II.\n\nThe Storm\n\nThen came the storm."),
        ("CHAPTER III. The Night", "CHAPTER III\n\nThe Night\n\nIt was night."),
    ]


@pytest.mark.parametrize(
    ("line", "is_heading"),
    [
        ("Chapter 1", True), ("CHAPTER XII. Down the Hole", True), ("Chapter Twenty-One", True), ("Kapitel 3", True),
        ("Drittes Kapitel", True), ("Chapitre premier", True), ("Capítulo 2: El mar", True), ("Глава 1", True),
        ("第十二章 黎明", True), ("PROLOGUE", True), ("Epilogue: After", True), ("Part the First", True),
        ("Chapter 1 was the one he liked, and", False), ("# Not Markdown", False), ("chapter and verse", False),
        ("The introduction of the boy", False), ("Part of the reason", False), ("1", False),
    ],
)  # fmt: skip
def test_headings_of_plain_text(line: str, is_heading: bool) -> None:
    book = read_book(f"Some words before it.\n\n{line}\n\nSome words after it.\n".encode(), "a.txt")
    assert len(book.chapters) == 1 + is_heading
    assert (
        " ".join(chapter.text for chapter in book.chapters).split()
        == f"Some words before it. {line} Some words after it.".split()
    )


@pytest.mark.parametrize(
    ("numbers", "are_headings"),
    [
        (("I", "II", "III", "IV"), True),
        (("1", "2", "3"), True),
        (("1", "2"), False),
        (("1", "3", "4"), False),
        (("2", "3", "4"), False),
    ],
)
def test_numbers_alone_are_headings_if_there_are_three_and_they_count(
    numbers: Sequence[str], are_headings: bool
) -> None:
    text = "\n\n".join(f"{number}\n\nWords of a chapter." for number in numbers)
    chapters = read_book(text.encode(), "a.txt").chapters
    assert [chapter.title for chapter in chapters] == ([*numbers] if are_headings else ["a"])  # "a": the file's name


def test_lines_of_a_file_without_wrapping_are_paragraphs() -> None:
    long = (
        "This is a paragraph that stands in one line of the file, as programs for writing save it as plain text. " * 2
    )
    text = f"{long}\n{long}\n\nA short line\nof a poem\n"
    assert (
        read_book(text.encode(), "a.txt").chapters[0].text
        == f"{long.strip()}\n\n{long.strip()}\n\nA short line\nof a poem"
    )


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Die Bäume waren schön, und die Größe der Häuser überraschte ihn. „Ja“, sagte er.", "cp1252"),
        ("“It’s a café,” she said—“naïve.”\n" + "A line of English words without accents.\n" * 30, "cp1252"),
        ("Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte.", "iso8859-1"),
        ("Litwo! Ojczyzno moja! ty jesteś jak zdrowie; ile cię trzeba cenić, ten tylko się dowie.", "cp1250"),
        ("Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива.", "cp1251"),
        ("Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива.", "koi8-r"),
        *itertools.product(
            ("Да.", "Привет, мир!", "МАМА МЫЛА РАМУ", "Она ушла домой, а он остался ждать."),
            ("cp1251", "koi8-r", "iso8859-5", "cp866"),
        ),
        ("Їжак їсть яблука у садку.", "cp1251"),
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。", "shift_jis"),
        ("吾輩は猫である。", "shift_jis"),
        ("Καλημέρα κόσμε, είμαι εδώ.", "cp1253"),
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。", "euc_jp"),
        ("道可道，非常道。名可名，非常名。无名天地之始。", "gb18030"),
        ("Bäume und “Häuser”", "utf-8"),
        ("Bäume und “Häuser”", "utf-8-sig"),
        ("Bäume und “Häuser”", "utf-16"),
        ("A plain text without a mark, and one Ä", "utf-16-le"),
        ("A plain text without a mark, and one Ä", "utf-16-be"),
    ],
)
def test_encoding_is_found(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


def test_declared_encoding_of_html() -> None:
    text = "<html><head><meta charset='windows-1251'></head><body><p>Привет</p></body></html>"
    assert read_book(text.encode("cp1251"), "a.html").chapters[0].text == "Привет"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["a.txt", "a.md", "a.html", "a.epub"]))
def test_any_bytes_give_a_book_or_a_bad_book(data: bytes, name: str) -> None:
    try:
        book = read_book(data, name)
    except BadBook:
        return
    assert all(chapter.text.strip() and chapter.title for chapter in book.chapters)


@pytest.mark.parametrize(
    ("data", "name", "error", "words"),
    [
        (b"%PDF-1.7", "a.pdf", UnknownBookType, "EPUB"),
        (b"x", "a.docx", UnknownBookType, "calibre"),
        (b"x", "a.exe", UnknownBookType, ".epub"),
        (b"x", "a.acsm", ProtectedBook, "DRM"),
        (b"PK\x03\x04...", "a.txt", UnknownBookType, "zip archive"),
        (random.Random(1).randbytes(300), "a.txt", UnknownBookType, "binary"),
        (random.Random(2).randbytes(30_000), "a.md", UnknownBookType, "binary"),
        (random.Random(3).randbytes(3_000), "a.html", UnknownBookType, "binary"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00>\x00\x01\x00\x00\x00" * 50, "a", UnknownBookType, "binary"),
        (b" \n ", "a.txt", EmptyBook, "no text"),
        (b"<p> </p>", "a.html", EmptyBook, "no text"),
        (b"<p>x<!-- y", "a.html", BadBook, "comment"),
        (b"<b>" * 1_000_001, "a.html", BookTooLarge, "tags"),
        (bytes((20 << 20) + 1), "a.txt", BookTooLarge, "20 MB"),
    ],
)
def test_file_that_is_no_book_is_refused(data: bytes, name: str, error: type[BadBook], words: str) -> None:
    with pytest.raises(error, match=words):
        read_book(data, name)


def test_epub_with_another_name_is_read() -> None:
    assert read_book(epub(ONE), "book.txt").chapters[0].text == "Words."
