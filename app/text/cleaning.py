"""Clean the characters of a text: remove characters that can't be spoken, and replace the variants of a character by
one form.

The result of `clean` is in the normal form NFC: a letter and its accents are one character where Unicode has this
character. The result has no control, format, surrogate or private-use characters. The result has only ASCII digits,
straight quotes and one kind of line break, so that the patterns in `rules` can be short. This module does not depend on
the language of the text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from app.text.spans import SpannedText

if TYPE_CHECKING:
    from collections.abc import Iterator

# The number of digits is limited, because html.unescape calls int(), and int() raises for more than 4300 digits.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_REPLACEMENTS = {
    **dict.fromkeys("“”„‟«»″❝❞", '"'),
    **dict.fromkeys("‘’‚‛´′ʼ", "'"),
    **dict.fromkeys("‐‑", "-"),
    **dict.fromkeys("―⸺⸻", "—"),
    "…": "...",
    "⁄": "/",
    "∕": "/",
    "µ": "μ",
    "℃": "°C",
    "℉": "°F",
    "№": "No. ",
    "\r": "\n",
    "\x0b": "\n",
    "\x0c": "\n",
    "\x85": "\n",
    "\u2028": "\n",
    "\u2029": "\n\n",
    "\t": " ",
}

# Only these characters are normalised to NFKC: full-width letters, ligatures, mathematical alphabets, letters in
# circles, Roman numerals as one character. Normalising all characters would turn "²" into "2", "™" into "TM" and "½"
# into "1⁄2".
_COMPATIBILITY_FORM = re.compile(
    "[\uff01-\uffee\ufb00-\ufb06\U0001d400-\U0001d7ff\u2160-\u217f\u2460-\u24ff\u2100-\u2121\u3000]"
)
_FRACTION = re.compile(r"[¼½¾⅐-⅞]")

_ASCII_TEXT = re.compile(r"[\x20-\x7e\n]*")
_LINE_BREAK = re.compile(r"\r\n")
_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]")
_EMOJI = re.compile(
    "[\U0001f000-\U0001f0ff\U0001f10d-\U0001f1ff\U0001f200-\U0001faff\u2600-\u266c\u2670-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55"
    "\u231a\u231b\u23e9-\u23fa\u25aa-\u25fe\u3030\u303d\u3297\u3299\ufe0f\u20e3\u200d]"
)
_NAMELESS = frozenset("\ufe0f\u20e3\u200d")

# The letters of a Korean syllable. Unicode composes them to one character, as it composes a letter and its accents.
_SYLLABLE = re.compile("[\u1100-\u115f][\u1160-\u11a7][\u11a8-\u11ff]?")
_MARKS_OF_EMOJI = frozenset("\ufe0f\u20e3")
# The largest number of marks on one letter. Vietnamese has two accents on a letter, Greek three, Hebrew and Tibetan
# more. Letters with more marks ("zalgo" text) are decoration.
_MAX_ACCENTS, _MAX_MARKS = 3, 8
_ACCENTS = ("\u0300", "\u036f")  # the accents of Latin, Greek and Cyrillic letters
# Lines through a letter, and circles around it. Such lines and circles are decoration, unless Unicode has one character
# for the letter and its line ("≠").
_OVERLAYS = frozenset(
    "\u0334\u0335\u0336\u0337\u0338\u0488\u0489\u20d2\u20d3\u20d8\u20dd\u20de\u20df\u20e0\u20e4\u20e5"
)


def clean(text: SpannedText) -> SpannedText:
    """Remove characters that can't be spoken, and replace each curly quote, dash variant and the like by one form.

    Never raises.
    """
    text = text.sub(_LINE_BREAK, "\n")
    if _ASCII_TEXT.fullmatch(text.text):
        return text
    # A pair of surrogates is replaced by the character that the pair encodes. A lone surrogate is removed.
    text = text.sub(_SURROGATES, lambda match: match[0].encode("utf-16", "surrogatepass").decode("utf-16", "ignore"))
    return _composed(text).translated(_speakable)


def _composed(text: SpannedText) -> SpannedText:
    """Return the text in the normal form NFC, without decoration and without marks that belong to no letter."""
    text = text.sub(_SYLLABLE, lambda match: unicodedata.normalize("NFC", match[0]))
    marks = {char for char in set(text.text) if char >= "\u0300" and unicodedata.category(char)[0] == "M"}
    marks -= _MARKS_OF_EMOJI
    return text.edited(_letters_with_marks(text.text, marks)) if marks else text


def _letters_with_marks(text: str, marks: set[str]) -> Iterator[tuple[int, int, str]]:
    """Yield an edit for each letter with its marks. marks: all combining marks of the text."""
    position, end = 0, len(text)
    while position < end:
        if text[position] not in marks:
            position += 1
            continue
        start = position
        while position < end and text[position] in marks:
            position += 1
        letter = text[start - 1] if start else ""
        if letter and (letter.isalnum() or unicodedata.category(letter) in ("Sm", "So")):
            yield start - 1, position, _letter(letter, text[start:position])
        else:
            yield start, position, ""


def _letter(letter: str, marks: str) -> str:
    """Return a letter with its marks in the normal form NFC; the bare letter if its marks are decoration."""
    accents = sum(_ACCENTS[0] <= mark <= _ACCENTS[1] for mark in marks[: _MAX_MARKS + 1])
    if accents > _MAX_ACCENTS or len(marks) > _MAX_MARKS:
        return letter
    composed = unicodedata.normalize("NFC", letter + marks)
    return "".join(char for char in composed if char not in _OVERLAYS)


@lru_cache(maxsize=4096)
def _speakable(char: str) -> str:
    """Return the replacement of one character: an ASCII digit for a digit of any script, " " for a space of any kind.

    The replacement is "" for a character that can't be spoken, and the same character in all other cases.
    """
    if (replacement := _REPLACEMENTS.get(char)) is not None:
        return replacement
    if char < "\x7f":
        return char if char >= " " or char == "\n" else ""
    if _FRACTION.match(char):
        return f" {unicodedata.normalize('NFKC', char).replace(chr(0x2044), '/')} "
    if _COMPATIBILITY_FORM.match(char):
        form = unicodedata.normalize("NFKC", char)
        return form if form == char else "".join(map(_speakable, form))
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Zs":
        return " "
    # U+200D (zero-width joiner) is kept, because it joins emoji, and some scripts need it between letters.
    if category in {"Cc", "Cf", "Cs", "Co", "Cn"} and char != "\u200d":
        return ""
    return char


def resolve_entities(text: SpannedText) -> SpannedText:
    """Replace HTML character references by the characters: "&amp;" -> "&". References with unknown names do not
    change.
    """
    return text.sub(_ENTITY, lambda match: html.unescape(match[0])) if "&" in text.text else text


def drop_emoji(text: SpannedText) -> SpannedText:
    """Replace each emoji and dingbat by a space."""
    return text if text.text.isascii() else text.sub(_EMOJI, " ")


def name_emoji(text: str) -> str:
    """Return the Unicode names of the first twenty emoji in a text, separated by commas."""
    names = [unicodedata.name(char, "").lower() for char in _EMOJI.findall(text) if char not in _NAMELESS]
    return ", ".join([name.replace("-", " ") for name in names if name and "modifier" not in name][:20])
