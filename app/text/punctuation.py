"""Names of punctuation marks, which are spoken for a text without words such as "." or "?!"."""

from __future__ import annotations

import unicodedata

MAX_NAMED = 5


def has_words(text: str) -> bool:
    """Whether the text has something to speak: a letter, a digit, or a symbol with a name (currency, emoji, maths)."""
    return any(char.isalnum() or unicodedata.category(char) in ("So", "Sc", "Sm") for char in text)


def punctuation_names(text: str) -> str:
    """The names of the first MAX_NAMED different marks: "?!" -> "question mark, exclamation mark"."""
    characters = dict.fromkeys(char for char in text if unicodedata.category(char)[0] not in "CZ")  # C, Z: invisible
    names = [unicodedata.name(char, "").lower() for char in characters]
    return ", ".join([name for name in names if name][:MAX_NAMED])
