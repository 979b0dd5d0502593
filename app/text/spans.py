"""A text in which each character has a span: the characters of the caller's input that it comes from.

Every stage of the text front end changes a text: it removes markup, writes numbers as words, splits sentences. Word
times, captions and barge-in need the caller's characters of each spoken word. `SpannedText` keeps the spans through
every change.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import overload

from app.types import SpokenWord

Replacement = str | Callable[[re.Match[str]], str]
Span = tuple[int, int]  # start and end (exclusive) in the caller's input

_GROUP = re.compile(r"\\(?:g<)?([0-9]{1,2})>?")
_TOKEN = re.compile(r"\S+")
_GAP = re.compile(r"\s{2,}|[^\S ]")


class SpannedText:
    """An immutable text. Each character has a span: the characters of the caller's input that it comes from.

    The starts and the ends of the spans never decrease from one character to the next. A text that has not been
    changed stores two `range` objects and no lists.
    """

    __slots__ = ("_ends", "_starts", "text")

    def __init__(self, text: str, starts: Sequence[int] | None = None, ends: Sequence[int] | None = None) -> None:
        """starts, ends: for each character of `text`, the start and the end of the part of the caller's input that the
        character comes from. None = `text` is the caller's input itself.
        """
        self.text = text
        self._starts: Sequence[int] = range(len(text)) if starts is None else starts
        self._ends: Sequence[int] = range(1, len(text) + 1) if ends is None else ends

    @classmethod
    def of(cls, text: str, span: Span) -> SpannedText:
        """Return a text whose characters all have the span `span`."""
        return cls(text, array("I", [span[0]]) * len(text), array("I", [span[1]]) * len(text))

    def __len__(self) -> int:
        return len(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"SpannedText({self.text!r}, {self.span})"

    @overload
    def __getitem__(self, index: slice[int | None, int | None, None]) -> SpannedText: ...
    @overload
    def __getitem__(self, index: int) -> str: ...
    def __getitem__(self, index: slice[int | None, int | None, None] | int) -> SpannedText | str:
        """Return a part of the text with its spans, or one character."""
        if isinstance(index, int):
            return self.text[index]
        return SpannedText(self.text[index], self._starts[index], self._ends[index])

    def __add__(self, other: SpannedText) -> SpannedText:
        return join((self, other))

    @property
    def span(self) -> Span:
        """The characters of the caller's input that the whole text comes from; (0, 0) for an empty text."""
        return (self._starts[0], self._ends[-1]) if self.text else (0, 0)

    def span_of(self, start: int, end: int) -> Span:
        """Return the characters of the caller's input that `text[start:end]` comes from.

        An empty part has the span that its neighbours share. If they share nothing, the span is the place between them.
        """
        if start < end:
            return self._starts[start], self._ends[end - 1]
        if start:
            place = self._ends[start - 1]
            return (min(place, self._starts[start]) if start < len(self.text) else place), place
        place = self._starts[0] if self.text else 0
        return place, place

    def sub(self, pattern: re.Pattern[str], replacement: Replacement) -> SpannedText:
        """Return the text with each match of the pattern replaced, as `pattern.sub` does.

        A group that the replacement names (r"\\1") keeps its span. An unchanged word at the start or the end of a match
        also keeps its span. All other characters of a replacement get the span of the part of the match that changes.
        If nothing matches, the result is this object. The replacement must name groups in the order of the text.
        """
        if pattern.search(self.text) is None:
            return self
        return self.edited(_edits(pattern, replacement, self.text))

    def edited(self, edits: Iterable[tuple[int, int, str]]) -> SpannedText:
        """Return the text with each part `text[start:end]` replaced. edits: (start, end, new text), in order."""
        text = self.text
        pieces: list[str] = []
        starts, ends = array("I"), array("I")
        done = 0
        for start, end, new in edits:
            pieces += (text[done:start], new)
            starts.extend(self._starts[done:start])
            ends.extend(self._ends[done:start])
            if new:
                first, last = self.span_of(start, end)
                starts.extend(array("I", [first]) * len(new))
                ends.extend(array("I", [last]) * len(new))
            done = end
        if not pieces:
            return self
        pieces.append(text[done:])
        starts.extend(self._starts[done:])
        ends.extend(self._ends[done:])
        return SpannedText("".join(pieces), starts, ends)

    def translated(self, replace: Callable[[str], str]) -> SpannedText:
        """Return the text with each character replaced by `replace(character)`."""
        changed = {char: new for char in set(self.text) if (new := replace(char)) != char}
        if not changed:
            return self
        return self.edited((at, at + 1, changed[char]) for at, char in enumerate(self.text) if char in changed)

    def strip(self, chars: str | None = None) -> SpannedText:
        """Return the text without the characters at both ends, as `str.strip` does."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> SpannedText:
        left = len(self.text) - len(self.text.lstrip(chars))
        return self[left:] if left else self

    def rstrip(self, chars: str | None = None) -> SpannedText:
        right = len(self.text.rstrip(chars))
        return self[:right] if right < len(self.text) else self

    def split(self, separator: str) -> list[SpannedText]:
        """Return the parts between the separators."""
        if separator not in self.text:
            return [self]
        parts: list[SpannedText] = []
        start = 0
        for part in self.text.split(separator):
            parts.append(self[start : start + len(part)])
            start += len(part) + len(separator)
        return parts

    def single_spaced(self) -> SpannedText:
        """Return the text with one space between its words, and no white space at its ends."""
        return self.strip().sub(_GAP, " ")

    def words(self, places: Iterable[tuple[int, int]] | None = None) -> Iterator[SpokenWord]:
        """Yield the words with their spans. places: (start, end) of each word; None = the parts between white space."""
        if places is None:
            places = (match.span() for match in _TOKEN.finditer(self.text))
        for start, end in places:
            yield SpokenWord(self.text[start:end], self._starts[start], self._ends[end - 1])


def join(parts: Iterable[SpannedText], separator: str = "") -> SpannedText:
    """Return the parts as one text. The span of a separator is the gap between its neighbours in the caller's input."""
    pieces: list[str] = []
    starts, ends = array("I"), array("I")
    kept: SpannedText | None = None
    for part in parts:
        if kept is not None and separator:
            before = kept.span[1] if kept.text else ends[-1] if ends else 0
            after = part.span[0] if part.text else before
            pieces.append(separator)
            starts.extend(array("I", [min(before, after)]) * len(separator))
            ends.extend(array("I", [max(before, after)]) * len(separator))
        pieces.append(part.text)
        starts.extend(part._starts)
        ends.extend(part._ends)
        kept = part
    if kept is not None and len(pieces) == 1:
        return kept
    return SpannedText("".join(pieces), starts, ends)


def _edits(pattern: re.Pattern[str], replacement: Replacement, text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, new text) for each part of the text that a replacement really changes."""
    template = _template(replacement) if isinstance(replacement, str) and "\\" in replacement else None
    for match in pattern.finditer(text):
        if template is not None:
            yield from _template_edits(match, *template)
            continue
        old, new = match[0], replacement if isinstance(replacement, str) else replacement(match)
        if new == old:
            continue
        start, end = match.span()
        if new and old:
            kept = _kept_before(old, new)
            start, old, new = start + kept, old[kept:], new[kept:]
            kept = _kept_before(old[::-1], new[::-1])
            end, new = end - kept, new[: len(new) - kept]
        yield start, end, new


@lru_cache(maxsize=256)
def _template(replacement: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Split a replacement such as r"\\1 sharp" into the texts around its groups, and the numbers of the groups.

    Raises ValueError if the replacement has an escape that is not a group.
    """
    parts = _GROUP.split(replacement)
    if any("\\" in part for part in parts[::2]):
        raise ValueError(f"the replacement {replacement!r} has an escape that is not a group")
    return tuple(parts[::2]), tuple(int(number) for number in parts[1::2])


def _template_edits(
    match: re.Match[str], literals: tuple[str, ...], groups: tuple[int, ...]
) -> Iterator[tuple[int, int, str]]:
    """Yield the edits of one match. The groups are kept, and the text between the groups is replaced.

    literals: the new texts before, between and after the groups. groups: the numbers of the groups, which must be in
    the order in which the groups stand in the text.
    """
    place = match.start()
    for literal, group in zip(literals, groups, strict=False):
        start, end = match.span(group)
        if start < 0:
            start = end = place
        if literal or start > place:
            yield place, start, literal
        place = end
    if literals[-1] or match.end() > place:
        yield place, match.end(), literals[-1]


def _kept_before(old: str, new: str) -> int:
    """Return how many characters the two texts have in common at their start, up to the end of a word in both texts.

    Punctuation at the end of this common part does not count: in "&amp;" -> "&" the new "&" comes from all old
    characters.
    """
    length = min(len(old), len(new))
    kept = 0
    while kept < length and old[kept] == new[kept]:
        kept += 1
    while kept and old[kept - 1].isalnum() and (old[kept : kept + 1].isalnum() or new[kept : kept + 1].isalnum()):
        kept -= 1
    while kept and not old[kept - 1].isalnum() and not old[kept - 1].isspace():
        kept -= 1
    return kept
