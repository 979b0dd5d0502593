"""Clean the characters of a text: remove characters that can't be spoken, and replace the variants of a character by
one form.

The result of `clean` is in the normal form NFC: a letter and its accents become one character if Unicode has such a
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
from urllib.parse import unquote

from app.text.spans import SpannedText

if TYPE_CHECKING:
    from collections.abc import Iterator

# The number of digits is limited, because html.unescape calls int(), and int() raises for more than 4300 digits.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

# Escape sequences of terminals: colours, movements of the cursor, titles of windows, links.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\x1b[ -/]*[0-Z\\^-~]"
)

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
    "〜": "~",
    **dict.fromkeys("│┃║", "|"),  # the lines between the cells of a drawn table
    "\r": "\n",
    "\x0b": "\n",
    "\x0c": "\n",
    "\x85": "\n",
    "\u2028": "\n",
    "\u2029": "\n\n",
    "\t": " ",
    **dict.fromkeys("\u115f\u1160\u2800\u3164\uffa0", " "),  # invisible letters, which only fill space
}

# Only these characters are normalised to NFKC: full-width letters, ligatures, mathematical alphabets, letters in
# circles, Roman numerals that are one character. Normalising all characters would turn "²" into "2", "™" into "TM" and
# "½" into "1⁄2".
_COMPATIBILITY_FORM = re.compile(
    "[\uff01-\uffee\ufb00-\ufb06\U0001d400-\U0001d7ff\u2160-\u217f\u2460-\u24ff\u2100-\u2121\u3000"
    "\u3200-\u3296\u3298\u329a-\u33ff]"
)
_UNIT_POWER = {"m2": "m²", "m3": "m³"}
# Numbers in circles. _FIRST_ENCLOSED_LETTERS has the letter A of three alphabets whose letters stand in circles or
# squares. Unicode has no compatibility form for most of these characters.
_CIRCLED_NUMBER = re.compile("[\u2460-\u2473\u24ea-\u24ff\u2776-\u2793\u3251-\u325f\u32b1-\u32bf]")
_FIRST_ENCLOSED_LETTERS = (0x1F130, 0x1F150, 0x1F170)
# Small letters above and below the line. Two or more of these letters in a row belong to a word: "1ˢᵗ", "Mᵐᵉ". A single
# letter is a power or an index.
_RAISED_LETTERS = re.compile(
    "(?:[\u2071\u207f\u1d2c-\u1d61\u1d9b-\u1dbf\u02b0-\u02b8\u02e1-\u02e4]|(?<=[^\\W\\d_][^\\W\\d_])[\u1d57\u1d49])"
    "[\u2071\u207f\u1d2c-\u1d61\u1d9b-\u1dbf\u02b0-\u02b8\u02e1-\u02e4]+|[\u1d62-\u1d6a\u2090-\u209c]{2,}"
    "|(?<=S)\u1d57(?=\\W|$)"
)
_SMALL_CAPITAL = re.compile("[\u1d00-\u1d22\ua730\ua731]")
_SMALL_CAPITALS = dict(zip("ᴀʙᴄᴅᴇꜰғɢʜɪᴊᴋʟᴍɴᴏᴘǫʀꜱᴛᴜᴠᴡʏᴢ", "abcdeffghijklmnopqrstuvwyz", strict=True))
_NUMERO = re.compile("\\b[Nn][°º] ?(?=[0-9])")
_RARE_LETTER = re.compile("[°º\u02b0-\u02b8\u02e1-\u02e4\u1d00-\u1dbf\u2071\u207f\u2090-\u209c\ua730\ua731]")
_PERCENT_CODES = re.compile("(?:%[0-9A-Fa-f]{2}){3,}")
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
# The largest number of accents, and of marks of any kind, on one letter. Vietnamese has two accents on a letter, Greek
# three, Hebrew and Tibetan more. If a letter has more marks than this ("zalgo" text), its marks are decoration.
_MAX_ACCENTS, _MAX_MARKS = 3, 8
_ACCENTS = ("\u0300", "\u036f")  # the accents of Latin, Greek and Cyrillic letters
# Lines through or below a letter, and circles around it. Such lines and circles are decoration, unless Unicode has one
# character for the letter and its line ("≠").
_OVERLAYS = frozenset(
    "\u0332\u0333\u033f\u0334\u0335\u0336\u0337\u0338\u0347\u0488\u0489\u20d2\u20d3\u20d8\u20dd\u20de\u20df\u20e0\u20e4\u20e5"
)


def clean(text: SpannedText) -> SpannedText:
    """Remove characters that can't be spoken. Replace the variants of a character, such as curly quotes, by one form.

    Never raises.
    """
    text = text.sub(_LINE_BREAK, "\n")
    if _ASCII_TEXT.fullmatch(text.text):
        return text
    text = text.sub(_ESCAPE_SEQUENCE, "")
    # A pair of surrogates is replaced by the character that the pair encodes. A lone surrogate is removed.
    text = text.sub(_SURROGATES, lambda match: match[0].encode("utf-16", "surrogatepass").decode("utf-16", "ignore"))
    if _RARE_LETTER.search(text.text):
        text = text.sub(_RAISED_LETTERS, _plain_letters).sub(_NUMERO, "No. ")
        if _SMALL_CAPITAL.search(text.text):
            text = text.translated(lambda char: _SMALL_CAPITALS.get(char, char))
    return _composed(text).translated(_speakable)


def _plain_letters(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match[0])


def decode_percent_codes(text: SpannedText) -> SpannedText:
    """Replace percent-encoded bytes of UTF-8 text by their characters: "%E4%BD%A0" -> "你"."""

    def decode(match: re.Match[str]) -> str:
        decoded = unquote(match[0], errors="ignore")
        return decoded if decoded.isprintable() and not decoded.isascii() else match[0]

    return text.sub(_PERCENT_CODES, decode) if "%" in text.text else text


def _composed(text: SpannedText) -> SpannedText:
    """Return the text in the normal form NFC, without decoration and without marks that belong to no letter."""
    text = text.sub(_SYLLABLE, lambda match: unicodedata.normalize("NFC", match[0]))
    marks = {char for char in set(text.text) if char >= "\u0300" and unicodedata.category(char)[0] == "M"}
    marks -= _MARKS_OF_EMOJI
    return text.edited(_letters_with_marks(text.text, marks)) if marks else text


def _letters_with_marks(text: str, marks: set[str]) -> Iterator[tuple[int, int, str]]:
    """Yield an edit for each letter that has combining marks. marks: all combining marks that the text contains."""
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

    For a character that can't be spoken, the result is "". A character of none of these kinds does not change.
    """
    if (replacement := _REPLACEMENTS.get(char)) is not None:
        return replacement
    if char < "\x7f":
        return char if char >= " " or char == "\n" else ""
    if _FRACTION.match(char):
        return f" {unicodedata.normalize('NFKC', char).replace(chr(0x2044), '/')} "
    if _CIRCLED_NUMBER.match(char):
        return f" {unicodedata.numeric(char):.0f} "
    if _COMPATIBILITY_FORM.match(char):
        form = unicodedata.normalize("NFKC", char)
        if form[-2:] in _UNIT_POWER:
            return form[:-2] + _UNIT_POWER[form[-2:]]
        return form if form == char else "".join(map(_speakable, form))
    for first in _FIRST_ENCLOSED_LETTERS:
        if first <= ord(char) < first + 26:
            return chr(ord("A") + ord(char) - first)
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


# ---- faces of characters, such as "(^_^)" and "(╯°□°)╯"

_FACE = re.compile(
    r"(?<![^\s(])\(?(?:\^[_.oO-]?\^;?|[;T][_.][;T]|[oO][_.][oO]|0_0|>[_.]<|-[_.]-;{0,3}|[uU]_[uU]|[xX]_[xX]|\._\.|=_=|@_@|¬_¬|ಠ_{1,3}ಠ"
    r"|\\o/|m\(_ ?_\)m|¯\\_\(ツ\)_/¯)\)?(?![^\s).,!?~])"
)
_PARTS_OF_FACES = "ಥ◕‿•ᴥಠʖ͜͡□益﹏ω◡▽∀･・ДдﾟД˘╥≧≦◠◉ツ⊙◔ᴗ｡。❛ᵔ◞ლ⌐■╯ᗒᗣ✧ヮ﹃ε☆○●ﻌ̀́"
_PART_OF_FACE = re.compile(f"[{_PARTS_OF_FACES}]")
_MARKS_OF_FACES = ("_", "^", "\\o/", "T.T", ";.;", ">.<", "o.o", "O.O", "o.O", "O.o")
_ARMS = r"[づノヽヾﾉ╯╰୧୨۶ง٩σψლ︵彡シ┻━┳┬─︶☆♪_\\/|~ヘヽ]"
_DRAWN_FACE = re.compile(rf"{_ARMS}{{0,4}}[(（ʕ]([^()（）ʕʔ\nA-Za-z0-9]{{2,14}})[)）ʔ](?:{_ARMS}| (?=[┻┳┬])){{0,6}}")
_LEAST_PARTS = 2  # a drawn face has at least this many characters that are "°" or in _PARTS_OF_FACES


def drop_faces(text: SpannedText) -> SpannedText:
    """Replace each face that is drawn with characters, such as "(^_^)" or "(╯°□°)╯︵ ┻━┻", by a space."""
    if any(mark in text.text for mark in _MARKS_OF_FACES):
        text = text.sub(_FACE, " ")
    return (
        text if text.text.isascii() or _PART_OF_FACE.search(text.text) is None else text.sub(_DRAWN_FACE, _without_face)
    )


def _without_face(match: re.Match[str]) -> str:
    parts = sum(char in _PARTS_OF_FACES for char in match[1])
    return " " if parts and parts + match[1].count("°") >= _LEAST_PARTS else match[0]


# ---- symbols whose English names are spoken

_SIGN = re.compile("[★⭐🌟✭✮♠-♧❤↑↓▲△▼▽⬆⬇🔺🔻🔼🔽]")
_STARS = re.compile("([★⭐🌟✭✮]{1,10})\ufe0f?([☆✩]{1,10})|[★⭐🌟✭✮]{2,10}")
_CARD = re.compile(r"(?<!\w)(10|[2-9AKQJ])([♠♥♦♣♤♡♢♧])\ufe0f?(?!\w)")
_RANKS = {"A": "ace", "K": "king", "Q": "queen", "J": "jack"}
_SUITS = {"♠♤": "spades", "♥♡": "hearts", "♦♢": "diamonds", "♣♧": "clubs"}
_HEART = re.compile("(?<=\\bI )[♥❤]\ufe0f?(?= ?\\w)")
_UP_OR_DOWN = re.compile(r"([↑▲△⬆🔺🔼])|[↓▼▽⬇🔻🔽]")
_BEFORE_AMOUNT = re.compile(r"\ufe0f? ?[+-]?[$€£]?[0-9]")


def read_signs(text: SpannedText) -> SpannedText:
    """Replace these signs by English words: a rating in stars ("★★★"), a playing card ("A♠"), an arrow before a number
    ("↑5"), and a heart after "I" ("I ♥ tea").
    """
    if text.text.isascii() or _SIGN.search(text.text) is None:
        return text
    text = text.sub(_STARS, _stars).sub(_CARD, _card).sub(_HEART, "love")
    return text.sub(_UP_OR_DOWN, _direction)


def _stars(match: re.Match[str]) -> str:
    if match[2]:
        return f" {len(match[1])} out of {len(match[1]) + len(match[2])} stars "
    return f" {len(match[0])} stars "


def _card(match: re.Match[str]) -> str:
    suit = next(name for signs, name in _SUITS.items() if match[2] in signs)
    return f"{_RANKS.get(match[1], match[1])} of {suit}"


def _direction(match: re.Match[str]) -> str:
    if _BEFORE_AMOUNT.match(match.string, match.end()) is None:
        return match[0]
    return " up " if match[1] else " down "


_FORM_IN_NAME = re.compile(
    r"\b(?:heavy|black|white|medium|small|negative|squared|circled|beamed|eighth|up|down|pointing|suit|curly|latin) "
    r"| suit$"
)
# The Unicode names of symbols up to this character also describe their form ("heavy black heart"). `_FORM_IN_NAME`
# matches the words for the form, which are not spoken.
_LAST_SYMBOL = "\u2bff"


def name_emoji(text: str) -> str:
    """Return the Unicode names of the first twenty emoji in a text, separated by commas."""
    names = [_name(char) for char in _EMOJI.findall(text) if char not in _NAMELESS]
    return ", ".join([name for name in names if name and "modifier" not in name][:20])


def _name(char: str) -> str:
    name = unicodedata.name(char, "").lower().replace("-", " ")
    return _FORM_IN_NAME.sub("", name) if char <= _LAST_SYMBOL else name
