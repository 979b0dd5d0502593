"""Find the paragraphs and the headings of a plain text, for example of a file of Project Gutenberg."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from app.books.document import Block

# In a file of Project Gutenberg, the book stands between two lines of this form. The licence stands
# before the first line and after the second.
_GUTENBERG_LINE = re.compile(
    r"^(?:\*{3} ?(?:START|END) OF (?:THE|THIS) PROJECT GUTENBERG EBOOK|End of (?:the )?Project Gutenberg).{0,300}$",
    re.MULTILINE | re.IGNORECASE,
)
_FIELD = re.compile(r"^(Title|Author|Language):[ \t]*(\S.{0,300})$", re.MULTILINE)
_ILLUSTRATION = re.compile(r"\[(?:Illustration|Image)\b[^\[\]]{0,500}\]", re.IGNORECASE)
_NOTE = re.compile(r"\[(?:Foot)?note\b[^\[\]]{0,3000}\]", re.IGNORECASE)
_NOTE_MARK = re.compile(r"(?<=[\w.,;:!?\"'”’])\[(?:[0-9]{1,3}|[A-Z*])\](?![\w(])")
_EMPHASIS = re.compile(r"(?<!\w)_(?=[^\s_])([^_]{1,500})(?<=\S)_(?!\w)")
_WORD = re.compile(r"\w")
_SPACES = re.compile(r"[ \t\xa0\u2000-\u200a\u3000]+")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*+\n)++[ \t]*+")
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef]")

_ONES = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
).replace(" ", "|")
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|last"
_FOREIGN_ORDINALS = (
    r"premi[eè]re?|second|deuxi[eè]me|troisi[eè]me|primer[ao]?|segund[ao]|\w{2,20}(?:[st]es|[st]er|[st]e)"
)
_NUMBER = (
    rf"(?:the\s+)?(?:[0-9]{{1,4}}|[IVXLCDM]{{1,8}}|(?:{_ONES})(?:[ -](?:{_ONES}))?|{_ORDINALS}|premier|primero)(?!\w)"
)
# The names of the parts of a book in several languages.
_PARTS = (
    "part book volume teil buch band partie livre tome parte libro livro tomo deel boek część księga bok часть книга"
).replace(" ", "|")
_CHAPTERS = (
    "chapter letter canto act scene kapitel chapitre capítulo capitulo capitolo hoofdstuk rozdział kapitola kapittel "
    "luku fejezet capitol bölüm глава розділ κεφάλαιο"
).replace(" ", "|")
_NAMES = (
    "prologue epilogue preface foreword introduction afterword postscript appendix prolog epilog vorwort nachwort "
    "einleitung préface avant-propos épilogue prólogo epílogo prefacio introducción prefazione epilogo voorwoord wstęp "
    "пролог эпилог предисловие"
).replace(" ", "|")
# What may follow the number of a heading: a title, a sign, or nothing.
_TITLE = r"(?:\s*[.:—–-]+\s*\S.{0,120}|\s*[.:]?|\s+[A-ZÀ-Þ\"“].{0,120})"
_HEADING = re.compile(
    rf"(?i:(?P<part>{_PARTS})|{_CHAPTERS})\s+(?i:{_NUMBER}){_TITLE}"
    rf"|(?i:the\s+)?(?i:{_ORDINALS}|{_FOREIGN_ORDINALS})\s+(?i:(?P<part2>{_PARTS})|{_CHAPTERS})(?!\w){_TITLE}"
    rf"|(?i:{_NAMES})(?!\w)(?:\s*[.:—–-]+\s*\S.{{0,120}}|[.:]?)"
    r"|第\s*[0-9０-９一二三四五六七八九十百千零〇]{1,8}\s*[章回节節部篇卷](?:\s*\S.{0,60})?"
)
_KEY = re.compile(rf"(?:{_PARTS}|{_CHAPTERS}|{_NAMES})?\W*(?:{_NUMBER})?", re.IGNORECASE)
_BARE_NUMBER = re.compile(r"(?:[IVXLC]{1,7}|[0-9]{1,3})\.?")
_CONTENTS = re.compile(
    r"(?:table of )?contents[.:]?|inhalt(?:sverzeichnis)?|table des matières|índice|indice|inhoud|spis treści"
    "|содержание",
    re.IGNORECASE,
)
_SUBTITLE_END = re.compile(r"[.,;:—–-]$")
_LONGEST_HEADING, _LONGEST_SUBTITLE = 160, 70
_LEAST_IN_CONTENTS = 3  # a table of contents has at least this number of headings in a row, which are repeated later
_LEAST_NUMBERS = 3  # fewer paragraphs with only a number are not headings: they can be page numbers or a list
_WIDEST = 100  # if 95 % of the lines have at most this number of characters, the lines of the file are wrapped
_VERSE = 60  # a line of a poem has at most this number of characters, in a file whose lines are not wrapped


@dataclass(frozen=True, slots=True)
class PlainText:
    """A plain text. `fields` has Title, Author and Language from the header of a file of Project Gutenberg."""

    fields: Mapping[str, str]
    blocks: Sequence[Block]


def read_plain_text(text: str) -> PlainText:
    """Divide a plain text into paragraphs and headings such as "Chapter 1", "CHAPTER I. Loomings" and "Kapitel 3"."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n\n").expandtabs(4)
    fields: dict[str, str] = {}
    marks = list(_GUTENBERG_LINE.finditer(text))
    if marks and "START" in marks[0][0].upper():
        fields = {match[1]: match[2].strip() for match in _FIELD.finditer(text, 0, marks[0].start())}
        text = text[marks[0].end() : marks[1].start() if len(marks) > 1 else len(text)]
    has_notes = _NOTE.search(text) is not None
    text = _NOTE.sub("", _ILLUSTRATION.sub("", text))
    if has_notes:
        text = _NOTE_MARK.sub("", text)
    groups = [[line.rstrip() for line in group.split("\n") if line.strip()] for group in _BLANK_LINES.split(text)]
    blocks = list(_blocks([group for group in groups if group]))
    return PlainText(fields, _with_numbers(_without_contents(blocks)))


def with_headings(blocks: Sequence[Block]) -> Sequence[Block]:
    """Turn paragraphs such as "Chapter 1" into headings, for HTML that does not mark its headings.

    The blocks do not change if one of these paragraphs is already marked as a heading, or if the text has fewer than
    _LEAST_IN_CONTENTS such paragraphs.
    """
    levels = [heading_level(" ".join(block.text.split())) for block in blocks]
    if any(level and block.level for level, block in zip(levels, blocks, strict=True)):
        return blocks
    if sum(map(bool, levels)) < _LEAST_IN_CONTENTS:
        return blocks
    return _without_contents(
        [replace(block, level=level or block.level) for block, level in zip(blocks, levels, strict=True)]
    )


def _blocks(groups: Sequence[Sequence[str]]) -> Iterator[Block]:
    """Yield the blocks of a text. groups: each group has the lines between two blank lines."""
    lengths = sorted(len(line) for group in groups for line in group)
    width = lengths[len(lengths) * 95 // 100] if lengths else 0
    is_wrapped = width <= _WIDEST
    after_heading = False
    for group in groups:
        if all(heading_level(line.strip()) for line in group) and len(group) >= _LEAST_IN_CONTENTS:
            yield from (Block(_single_spaced(line), heading_level(line.strip())) for line in group)
            continue
        level = heading_level(group[0].strip()) if len(group) <= 3 and _is_short(group) else 0
        if not level and after_heading and len(group) == 1 and _is_subtitle(group[0].strip()):
            yield Block(_single_spaced(group[0]), 3)
            after_heading = False
            continue
        after_heading = bool(level)
        if level:
            yield Block("\n".join(map(_single_spaced, group)), level)
            continue
        for paragraph in [_unwrapped(group, width)] if is_wrapped else _long_lines(group):
            if _WORD.search(paragraph):
                yield Block(_EMPHASIS.sub(r"\1", paragraph))


def _is_short(group: Sequence[str]) -> bool:
    return sum(len(line.strip()) for line in group) <= _LONGEST_HEADING


def heading_level(line: str) -> int:
    """Return 1 if a line is the heading of a part or a book, 2 if it is the heading of a chapter, and 0 otherwise."""
    if len(line) > _LONGEST_HEADING or (match := _HEADING.fullmatch(line)) is None:
        return 0
    return 1 if match["part"] or match["part2"] else 2


def _is_subtitle(line: str) -> bool:
    """Return whether a line after a heading is the title of the chapter."""
    return (
        len(line) <= _LONGEST_SUBTITLE
        and _SUBTITLE_END.search(line) is None
        and line[0].isalnum()
        and not line[0].islower()
    )


def _single_spaced(line: str) -> str:
    return _SPACES.sub(" ", line).strip()


def _long_lines(group: Sequence[str]) -> list[str]:
    """Return the paragraphs of a group of lines that are not wrapped.

    Each line is a paragraph, with one exception: all lines of a poem together are one paragraph.
    """
    lines = [_single_spaced(line) for line in group]
    return ["\n".join(lines)] if len(lines) > 1 and max(map(len, lines)) <= _VERSE else lines


def _unwrapped(group: Sequence[str], width: int) -> str:
    """Return a paragraph without the line breaks that only keep lines short.

    A line break is kept if the first word of the next line would also have fitted on the line before the break.
    """
    pieces = [_single_spaced(group[0])]
    for before, line in pairwise(group):
        words = _single_spaced(line)
        had_space = len(before) + 1 + len(words.partition(" ")[0]) <= width - 3
        last = pieces[-1][-1:]
        if had_space and not _CJK.match(last):
            pieces.append("\n")
        elif not (_CJK.match(last) or (last == "-" and pieces[-1][-2:-1].isalpha() and words[:1].islower())):
            pieces.append(" ")
        pieces.append(words)
    return "".join(pieces)


def _without_contents(blocks: Sequence[Block]) -> list[Block]:
    """Leave out a table of contents: headings in a row, without text between them, that are repeated later."""
    kept: list[Block] = []
    place = 0
    for is_heading, run in groupby(blocks, key=lambda block: bool(block.level)):
        found = list(run)
        place += len(found)
        if is_heading and len(found) >= _LEAST_IN_CONTENTS:
            later = {_key(block) for block in blocks[place:] if block.level}
            repeated = [_key(block) in later for block in found]
            # The last of these headings can belong to the first chapter and not to the table of contents.
            while repeated and not repeated[-1]:
                repeated.pop()
            if len(repeated) >= _LEAST_IN_CONTENTS and sum(repeated) > len(repeated) / 2:
                found = found[len(repeated) :]
                if kept and _CONTENTS.fullmatch(kept[-1].text):
                    kept.pop()
        kept += found
    return kept


def _key(block: Block) -> str:
    """Return the part of a heading that a table of contents repeats, such as "chapter iv"."""
    match = _KEY.match(block.text)
    key = re.sub(r"[\W_]+", " ", match[0] if match is not None else "").strip().casefold()
    return key or re.sub(r"[\W_]+", " ", block.text).strip().casefold()


def _with_numbers(blocks: Sequence[Block]) -> list[Block]:
    """Turn paragraphs that are only a number into headings, if they count 1, 2, 3 ... and the text has no headings."""
    places = [index for index, block in enumerate(blocks) if _BARE_NUMBER.fullmatch(block.text)]
    numbers = [_number(blocks[index].text.rstrip(".")) for index in places]
    counts = len(numbers) >= _LEAST_NUMBERS and numbers == list(range(1, len(numbers) + 1))
    if not counts or any(block.level == 2 for block in blocks):
        return list(blocks)
    return [replace(block, level=2) if index in set(places) else block for index, block in enumerate(blocks)]


def _number(text: str) -> int:
    """Return the value of a decimal or Roman number."""
    if text.isdecimal():
        return int(text)
    values = [dict(zip("IVXLC", (1, 5, 10, 50, 100), strict=True))[char] for char in text]
    return sum(-value if value < after else value for value, after in zip(values, [*values[1:], 0], strict=True))
