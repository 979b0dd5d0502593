"""Find the headings, the paragraphs and the metadata of a Markdown file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.books.book import MAX_CHAPTERS, BookTooLarge
from app.books.document import Block
from app.text import markup
from app.text.cleaning import resolve_entities
from app.text.languages import guess_language
from app.text.spans import SpannedText

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_NOTE = re.compile(r" {0,3}\[\^[^\[\]\s]{1,80}\]:")
_IMAGE = re.compile(r"!\[[^\[\]\n]*\](?:\([^()\n]*\)|\[[^\[\]\n]*\])")
_MOST_HEADINGS = 5 * MAX_CHAPTERS
# A letter, and then a character that is not markup (`_PLAIN` repeats only the second one). A text of long lines that
# have this form contains no markup, so it needs no cleaning.
_PROSE = r"[A-Za-z](?:[^\W_]|[ ,.;:!?'\"()“”‘’—-])"
_PLAIN = re.compile(rf"(?:(?:{_PROSE}{{49,}}+)?\n)*+(?:{_PROSE}*+)?")
_NO_TITLE = re.compile(r"[ \t]*(?:[-*+>|#]|\d{1,3}[.)]\s)")
_FIELD = re.compile(r"(title|author|lang|language):[ \t]*(\S.*)", re.IGNORECASE)


def read_markdown(text: str) -> tuple[Mapping[str, str], list[Block]]:
    """Return the fields of the front matter (title, author, lang), and the blocks of a Markdown file.

    Notes and pictures are left out. All other markup is removed, by the same functions that clean the texts of speech
    requests.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    english = guess_language(text) in {None, "en"}
    lines = text.split("\n")
    fields, lines = _front_matter(lines)
    blocks: list[Block] = []
    pending: list[str] = []
    fence = ""
    in_note = False
    headings = 0

    def flush() -> None:
        part = _IMAGE.sub("", "\n".join(pending))
        pending.clear()
        if _PLAIN.fullmatch(part):
            blocks.extend(Block(paragraph) for each in part.split("\n\n") if (paragraph := " ".join(each.split())))
            return
        cleaned = resolve_entities(markup.strip_tags(SpannedText(part)))
        blocks.extend(Block(each.text) for each in markup.plain_paragraphs(cleaned, english=english))

    for line in lines:
        mark = _FENCE.match(line)
        if fence or mark:
            pending.append(line)
            if mark and not fence:
                fence = mark[1]
            elif mark and mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
            continue
        if in_note and (not line.strip() or line.startswith(("    ", "\t"))):
            continue
        in_note = _NOTE.match(line) is not None
        if in_note:
            continue
        heading = _HEADING.fullmatch(line)
        if heading or (pending and _is_underlined(pending, line)):
            title = heading[2] if heading else pending.pop()
            headings += 1
            if headings > _MOST_HEADINGS:
                raise BookTooLarge(f"The file has more than {_MOST_HEADINGS:,} headings. Divide it into several books.")
            level = len(heading[1]) if heading else 1 if "=" in line else 2
            flush()
            pending.append(f"# {title.strip()}")
            start = len(blocks)
            flush()
            blocks[start:] = [Block(block.text.removesuffix("."), level) for block in blocks[start:]]
            continue
        pending.append(line)
    flush()
    return fields, blocks


def _is_underlined(before: list[str], line: str) -> bool:
    """Return whether a line of "===" or "---" turns the previous line into a heading."""
    if _UNDERLINE.fullmatch(line) is None or not before[-1].strip() or _NO_TITLE.match(before[-1]):
        return False
    return len(before) == 1 or not before[-2].strip()


def _front_matter(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the fields between two lines "---" at the start of a file, and the lines after them."""
    if not lines or lines[0].rstrip() != "---":
        return {}, lines
    end = next((index for index, line in enumerate(lines[1:200], 1) if line.rstrip() in {"---", "..."}), None)
    if end is None or not any(":" in line for line in lines[1:end]):
        return {}, lines
    matches = [match for line in lines[1:end] if (match := _FIELD.fullmatch(line))]
    return {match[1].lower(): _value(match[2].strip()) for match in matches}, lines[end + 1 :]


def _value(text: str) -> str:
    """Return a value of the front matter without quotes. A list such as ["A", "B"] becomes "A, B"."""
    parts = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else [text]
    return ", ".join(value for part in parts if (value := part.strip().strip("\"'")))
