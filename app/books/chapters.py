"""Arrange the paragraphs and headings of a book as chapters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.books.book import MAX_CHAPTERS, BookTooLarge, Chapter

if TYPE_CHECKING:
    from app.books.document import Block

_LONGEST_TITLE = 200
# A heading without a name, such as "Chapter 1". The next heading ("Loomings") completes the title.
_COUNTS = re.compile(r"(?:[^\W\d_]+\s+)?(?:[0-9]{1,4}|[IVXLCDM]{1,8}|[^\W\d_]+)[.:]?", re.IGNORECASE)


class ChapterList:
    """Collects the chapters of a book in order."""

    def __init__(self, book_title: str) -> None:
        self._book_title = book_title
        self._chapters: list[tuple[str, list[str]]] = []  # for each chapter, its title ("" = none) and its paragraphs

    def __len__(self) -> int:
        return len(self._chapters)

    def start(self, title: str, blocks: Sequence[Block]) -> None:
        """Add a chapter. If `blocks` is empty, nothing is added. Raises BookTooLarge above MAX_CHAPTERS chapters."""
        if blocks:
            if len(self._chapters) == MAX_CHAPTERS:
                raise BookTooLarge(f"The book has more than {MAX_CHAPTERS:,} chapters. Divide it into several books.")
            self._chapters.append((title, [block.text for block in blocks]))

    def join(self, blocks: Sequence[Block]) -> None:
        """Add blocks to the last chapter. If there is no chapter yet, the blocks become the first chapter."""
        if self._chapters:
            self._chapters[-1][1].extend(block.text for block in blocks)
        else:
            self.start("", blocks)

    def finish(self) -> list[Chapter]:
        """Return the chapters.

        A chapter without a title gets the title of the book. If the book has no title either, the first words of the
        chapter become its title.
        """
        return [
            Chapter(title or self._book_title or _shortened(paragraphs[0]), "\n\n".join(paragraphs))
            for title, paragraphs in self._chapters
        ]


def title_of(blocks: Sequence[Block]) -> str:
    """Return the first heading of a chapter; "" if the chapter has no heading.

    If this heading has a number but no name ("Chapter 1"), the heading directly after it is appended.
    """
    place = first_heading(blocks)
    if place is None:
        return ""
    title = blocks[place].text
    following = blocks[place + 1] if place + 1 < len(blocks) else None
    if following is not None and following.level and _COUNTS.fullmatch(title):
        title = f"{title.rstrip('.:')}. {following.text}"
    return _shortened(title)


def first_heading(blocks: Sequence[Block]) -> int | None:
    """Return the index of the first block that is a heading; None = there is no heading."""
    return next((index for index, block in enumerate(blocks) if block.level), None)


def split_by_headings(blocks: Sequence[Block], chapters: ChapterList) -> None:
    """Divide one document into chapters at its headings.

    The chapters begin at the headings of the highest level that occurs more than once, and at the headings of all
    higher levels. A heading directly after another heading does not begin a chapter. The text before the first heading
    becomes a separate chapter.
    """
    starts = [index for index, block in enumerate(blocks) if block.level and (not index or not blocks[index - 1].level)]
    levels = [block.level for block in blocks if block.level]
    deepest = next((level for level in sorted(set(levels)) if levels.count(level) > 1), max(levels, default=0))
    places = [index for index in starts if blocks[index].level <= deepest]
    for start, end in zip([0, *places], [*places, len(blocks)], strict=True):
        part = blocks[start:end]
        chapters.start(title_of(part), part)


def _shortened(text: str) -> str:
    """Return a text in one line of at most _LONGEST_TITLE characters."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TITLE else line[: _LONGEST_TITLE - 1].rsplit(" ", 1)[0] + "…"
