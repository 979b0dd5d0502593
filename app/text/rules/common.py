"""What the readings share: how numbers look in a pattern, where a sentence ends, when a measure is an adjective."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from app.text import tables

Match = re.Match[str]
Unit = Callable[[str, bool], str | None]  # (symbol, plural) -> its name, or None

INT = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,8}(?![0-9])|[0-9]{1,40})"
NUM = rf"(?:{INT}(?:\.[0-9]{{1,40}})?|\.[0-9]{{1,40}})"
START = r"(?<![\w.,'])"  # not inside a word or a number
END = r"(?![0-9])(?![.,][0-9])"
DASH = r" ?[-–—~] ?"


SUPERSCRIPT_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "01234567890123456789")
BEGIN = "\uf8ff"  # marks where a sentence began with figures; cleaning lets no such character in


def alternatives(keys: Iterable[str]) -> str:
    """Literal strings as a pattern that prefers the longest."""
    return "|".join(sorted(map(re.escape, keys), key=len, reverse=True))


def sentence_stop(found: Match) -> str:
    """A full stop when the abbreviation's own one also ended its sentence, else nothing."""
    rest = found.string[found.end() : found.end() + 40]
    after = re.match(r"[\"')\]]{0,2}(?:\s{1,3}[\"'(]?([A-Za-z']{1,20})|\s*$)", rest)
    if after is None or rest[:1] in {",", ";", ":"}:
        return ""
    if after[1] is None:
        return "."
    if after[1] not in tables.STARTERS:
        return ""
    # "At 3 a.m. I woke" is one sentence still.
    before = re.split(r"[.!?]\s|\n", found.string[max(0, found.start() - 80) : found.start()])[-1]
    opening = before.strip().strip(BEGIN).lower() in {"at", "by", "around", "before", "after", "until", "from"}
    return "" if opening else "."


def capitalised_like(sample: str, words: str) -> str:
    return words[:1].upper() + words[1:] if sample[:1].isupper() else words


def is_adjective(found: Match) -> bool:
    """Whether a measure stands before what it measures, "a five dollar bill": an article before, a thing after."""
    before = found.string[max(0, found.start() - 5) : found.start()]
    after = re.match(r"[ -]([A-Za-z]{1,20})", found.string[found.end() : found.end() + 24])
    if after and after[1].lower() in tables.MEASURED:
        return True
    if found.string[found.end() : found.end() + 1] == "-" and after:
        return True
    if after is None or after[1] in tables.FUNCTION_WORDS:
        return False
    return re.search(r"(?:^|[ (\"'])[Aa]n? $", before) is not None or (
        after[1].islower() and re.search(r"(?:^|[ (\"'])(?:[Tt]he|per|his|her|our|my) $", before) is not None
    )


def per_unit(word: str | None) -> str:
    return f" per {tables.PER[word]}" if word else ""
