"""Texts without a word in them, such as "." or "?!": what to say for those, since silence is no answer."""

from __future__ import annotations

import unicodedata

MAX_NAMED = 5


def has_words(text: str) -> bool:
    """Whether a voice has something to say: a letter, a digit, or a symbol with a reading (currency, emoji, maths)."""
    return any(char.isalnum() or unicodedata.category(char) in ("So", "Sc", "Sm") for char in text)


def names(text: str) -> str:
    """The names of the first few different marks in a text, as words: "?!" -> "question mark, exclamation mark"."""
    marks = dict.fromkeys(char for char in text if unicodedata.category(char)[0] not in "CZ")  # nothing to be seen
    known = [unicodedata.name(char, "").lower() for char in marks]
    return ", ".join([name for name in known if name][:MAX_NAMED])
