"""Helpers that several rules use: patterns for numbers, and functions that look at the text around a match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from app.text import number_words, tables

Match = re.Match[str]
# (symbol, whether the plural is needed) -> name of the unit; None = unknown symbol
UnitNamer = Callable[[str, bool], str | None]

# Digits in groups of three ("150,000"), in groups as in India ("1,50,000", one lakh fifty thousand), or without groups.
INT = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,8}(?![0-9])|[0-9]{1,2}(?:,[0-9]{2}){1,6},[0-9]{3}(?![0-9])|[0-9]{1,40})"
NUM = rf"(?:{INT}(?:\.[0-9]{{1,40}})?|\.[0-9]{{1,40}})"
NUMBER_START = r"(?<![\w.,'])"  # the match must not begin inside a word or another number
NUMBER_END = r"(?![0-9])(?![.,][0-9])"
DASH = r" ?[-–—~] ?"


SUPERSCRIPT_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "01234567890123456789")
# While the rules run, this character marks the start of a sentence that began with digits. The caller's text never
# contains this character, because `cleaning.clean` removes all private-use characters.
SENTENCE_START = "\uf8ff"


def alternatives(keys: Iterable[str]) -> str:
    """Return a pattern that matches any of the texts `keys`. The pattern tries longer texts first."""
    return "|".join(sorted(map(re.escape, keys), key=len, reverse=True))


def spell_out(text: str) -> str:
    """Return letters and digits one by one: "1A" -> "one A"."""
    return " ".join(number_words.digits(char) if char.isdecimal() else char.upper() for char in text)


_WORD_BEFORE = re.compile(r"([A-Za-z]{1,20})[.:]? ?[$€£]?$")


def previous_word(match: Match) -> str:
    """Return the word directly before a match; "" if there is no word."""
    word = _WORD_BEFORE.search(match.string[max(0, match.start() - 24) : match.start()])
    return word[1] if word else ""


def sentence_stop(match: Match) -> str:
    """Return "." if the full stop of a matched abbreviation also ends the sentence, else ""."""
    rest = match.string[match.end() : match.end() + 40]
    after = re.match(r"[\"')\]]{0,2}(?:\s{1,3}[\"'(]?([A-Za-z']{1,20})|\s*$)", rest)
    if after is None or rest[:1] in {",", ";", ":"}:
        return ""
    if after[1] is None:
        return "."
    if after[1] not in tables.STARTERS:
        return ""
    # Here, "I" usually begins a new sentence. But "At 3 a.m. I woke" is one sentence, as its first word "At" shows.
    before = re.split(r"[.!?]\s|\n", match.string[max(0, match.start() - 80) : match.start()])[-1]
    opening = before.strip().strip(SENTENCE_START).lower() in {"at", "by", "around", "before", "after", "until", "from"}
    return "" if opening else "."


def capitalised_like(sample: str, words: str) -> str:
    """Return `words`. If `sample` begins with a capital letter, the result also begins with a capital letter."""
    return words[:1].upper() + words[1:] if sample[:1].isupper() else words


def is_adjective(match: Match) -> bool:
    """Return whether a matched measure is used as an adjective before a noun, as in "a five dollar bill"."""
    before = match.string[max(0, match.start() - 5) : match.start()]
    after = re.match(r"[ -]([A-Za-z]{1,20})", match.string[match.end() : match.end() + 24])
    if after and after[1].lower() in tables.MEASURED:
        return True
    if match.string[match.end() : match.end() + 1] == "-" and after:
        return True
    if after is None or after[1] in tables.FUNCTION_WORDS:
        return False
    return re.search(r"(?:^|[ (\"'])[Aa]n? $", before) is not None or (
        after[1].islower() and re.search(r"(?:^|[ (\"'])(?:[Tt]he|per|his|her|our|my) $", before) is not None
    )


def per_unit(word: str | None) -> str:
    return f" per {tables.PER[word]}" if word else ""
