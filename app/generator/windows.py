"""Cuts a long text into windows that are normalised one after another, so that a long text does not delay the first
audio.

A window ends at a blank line if possible. A window never ends inside a block whose meaning depends on its end: the
reasoning of a language model, a comment, a formula. Code in a fence may be cut between its lines; the next window then
begins with the same fence.

All scans take linear time and read only the text that the next window needs. The only exception is one search in the
whole text for the end of reasoning without a start tag. This module does not depend on HTTP, audio or a particular
engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.text.machine_text import REASONING_NAME
from app.text.spans import SpannedText, join

FIRST_CHARS = 1_000  # the first window is short, because the first audio waits for it
WINDOW_CHARS = 4_000
MOST_CHARS = 8_000  # a window without a blank line ends before this length, after a line, a sentence or a word
MOST_BLOCK_CHARS = 200_000  # a block of code or markup that is longer than this limit may be cut like plain text

_BLOCK = re.compile(
    rf"(?m:^[ \t]{{0,8}}(?P<fence>`{{3,}}|~{{3,}})[^\n]*$)|<(?P<reason>{REASONING_NAME})\b[^<>]{{0,200}}>"
    r"|<(?P<tag>details|script|style|tool_call|tool_response|function_calls?|pre|table)\b[^<>]{0,200}>"
    r"|(?P<comment><!--)|(?P<math>\$\$)|\\begin\{(?P<tex>[a-z*]{1,20})\}|(?P<bracket>\\\[)",
    re.IGNORECASE,
)
_LONE_REASON_END = re.compile(rf"<(?P<close>/)?{REASONING_NAME}\b[^<>]{{0,200}}>", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_LINE_END = re.compile(r"\n\s*")
_SENTENCE_END = re.compile(r"(?<=[^\W\d_][^\W\d_][^\W\d_])[\"')\]]?[.!?…][\"')\]]{0,3}\s+|[。！？]")
_WORD_END = re.compile(r"\s+")


def windows(text: SpannedText) -> Iterator[SpannedText]:
    """Yield the windows of a text in order. Together they contain all characters of the text, except white space
    between windows.
    """
    scanner = _Scanner(text.text)
    start, length = 0, FIRST_CHARS
    fence = ""
    while start < len(text):
        end, next_fence = scanner.cut(start, length)
        window = text[start:end].strip()
        if window and fence:
            place = window.span[0]
            window = join((SpannedText.of(f"{fence}\n", (place, place)), window))
        if window:
            yield window
        start, length, fence = end, WINDOW_CHARS, next_fence


class _Scanner:
    """Finds the ends of windows in one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = _lone_reason_end(text)  # all blocks that begin before this position were found
        self._blocks: list[tuple[int, int, str]] = [(0, self._position, "")] if self._position else []
        self._without_end: set[str] = set()  # closing marks that a search in the text did not find

    def cut(self, start: int, length: int) -> tuple[int, str]:
        """Return the end of the window that begins at `start`, and the fence of the code block in which it ends ("" =
        none).

        length: the preferred length of the window.
        """
        text = self._text
        if len(text) - start <= length:
            return len(text), ""
        earliest, latest = start + length // 2, start + max(MOST_CHARS, length)
        while True:
            self._scan(latest)
            self._blocks = [block for block in self._blocks if block[1] > start]
            wanted = max(earliest, start + length)
            ends = [match.end() for match in _BLANK_LINE.finditer(text, earliest, min(wanted, len(text)))]
            for end in reversed(ends):  # try the longest window first
                if self._block_at(end) is None:
                    return end, ""
            for pattern, lowest in (
                (_BLANK_LINE, wanted),
                (_LINE_END, earliest),
                (_SENTENCE_END, earliest),
                (_WORD_END, earliest),
            ):
                for match in pattern.finditer(text, lowest, min(latest, len(text))):
                    block = self._block_at(match.end())
                    if block is None:
                        return match.end(), ""
                    if block[2] and pattern is _LINE_END:
                        return match.end(), block[2]
            block = self._block_at(latest)
            if latest >= len(text):
                return len(text), ""
            if block is None or block[2]:
                return latest, "" if block is None else block[2]
            earliest, latest = block[1], min(block[1] + MOST_CHARS, len(text))

    def _block_at(self, position: int) -> tuple[int, int, str] | None:
        """Return the block that a cut at `position` would divide; None if there is none."""
        return next((block for block in self._blocks if block[0] < position < block[1]), None)

    def _scan(self, until: int) -> None:
        """Find all blocks that begin before the position `until`."""
        while self._position < until:
            match = _BLOCK.search(self._text, self._position, min(len(self._text), until + 300))
            if match is None or match.start() >= until:
                self._position = max(self._position, until)
                return
            end, fence = self._end_of(match), match[0].strip() if match["fence"] else ""
            if end is None or (not fence and end - match.start() > MOST_BLOCK_CHARS and not match["reason"]):
                self._position = match.end()
                continue
            self._blocks.append((match.start(), end, fence))
            self._position = end

    def _end_of(self, match: re.Match[str]) -> int | None:
        """Return the end of the block that begins with a match; None if the block is never closed."""
        kind = match.lastgroup
        if kind == "fence":
            mark = match["fence"]
            closing = re.compile(rf"(?m:^[ \t]{{0,8}}{mark[0]}{{{len(mark)},}}[ \t]*$)")
            found = closing.search(self._text, match.end())
            return found.end() if found else len(self._text)
        if kind in ("reason", "tag"):
            mark = f"</{match[kind].lower()}"
        elif kind == "tex":
            mark = f"\\end{{{match['tex']}}}"
        else:
            mark = {"comment": "-->", "math": "$$", "bracket": "\\]"}[kind or ""]
        if mark in self._without_end:
            return None
        place = self._text.find(mark, match.end())
        if place < 0 and kind in ("reason", "tag"):
            found = re.compile(re.escape(mark), re.IGNORECASE).search(self._text, match.end())
            place = found.start() if found else -1
        if place < 0:
            self._without_end.add(mark)
            is_open = kind == "reason" and not self._text[: match.start()].rpartition("\n")[2].strip()
            return len(self._text) if is_open else None
        return min(len(self._text), place + len(mark) + 1)


def _lone_reason_end(text: str) -> int:
    """Return the end of reasoning at the start of a text, if its opening tag is missing; otherwise 0."""
    open_tags, end = 0, 0
    for match in _LONE_REASON_END.finditer(text):
        if not match["close"]:
            open_tags += 1
        elif open_tags:
            open_tags -= 1
        else:
            end = match.end()
    return end
