"""Names of punctuation marks. If a text contains no words (for example "?!"), these names are spoken instead."""

from __future__ import annotations

import unicodedata

MAX_NAMED = 5


def has_words(text: str) -> bool:
    """Return whether the text contains a letter, a digit, or a symbol that has a name (currency, emoji, maths)."""
    return any(char.isalnum() or unicodedata.category(char) in ("So", "Sc", "Sm") for char in text)


def punctuation_names(text: str) -> str:
    """Return the names of the first MAX_NAMED different marks: "?!" -> "question mark, exclamation mark"."""
    characters = dict.fromkeys(char for char in text if unicodedata.category(char)[0] not in "CZ")  # C, Z: invisible
    names = [unicodedata.name(char, "").lower() for char in characters]
    return ", ".join([name for name in names if name][:MAX_NAMED])
