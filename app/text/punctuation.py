"""Names of punctuation marks. If a text contains no words (for example "?!"), these names are spoken."""

from __future__ import annotations

import unicodedata

MAX_NAMED = 5

# Marks without a spoken name: quotes, dots, dashes, brackets, and the marks of Markdown. A voice agent cuts the
# output of a language model into parts, so a part may consist of one of these marks.
_LAYOUT = frozenset("\"'`.,:;…·•-–—_*~#|<>()[]{}=\\/^。、，；：・「」『』（）【】《》¨´¯")


def has_words(text: str) -> bool:
    """Return whether the text contains a letter, a digit, or a symbol that has a name (currency, emoji, maths)."""
    return any(char.isalnum() or unicodedata.category(char) in ("So", "Sc", "Sm") for char in text)


def punctuation_names(text: str) -> str:
    """Return the names of the first MAX_NAMED different marks: "?!" -> "question mark, exclamation mark".

    Marks that only arrange a text, such as quotes and dashes, have no names here.
    """
    # characters of the Unicode categories C and Z are invisible, and those of M are marks on a letter
    characters = dict.fromkeys(c for c in text if c not in _LAYOUT and unicodedata.category(c)[0] not in "CZM")
    names = [unicodedata.name(char, "").lower() for char in characters]
    return ", ".join([name for name in names if name][:MAX_NAMED])
