"""Clean the characters of a text: remove characters that can't be spoken, and replace variants of a character by one.

The result of `clean` has no control, format, surrogate or private-use characters. It has only ASCII digits, straight
quotes and one kind of line break, so that the patterns in `rules` can be short. This module does not depend on the
language of the text.
"""

from __future__ import annotations

import html
import re
import unicodedata

# The number of digits is limited, because html.unescape calls int(), and int() raises for more than 4300 digits.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_REPLACEMENTS = str.maketrans(
    {
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
)

# Only these characters are normalised to NFKC: full-width letters, ligatures, mathematical alphabets, letters in
# circles, Roman numerals as one character. Normalising all characters would turn "²" into "2", "™" into "TM" and "½"
# into "1⁄2".
_COMPATIBILITY_FORM = re.compile(
    "[\uff01-\uffee\ufb00-\ufb06\U0001d400-\U0001d7ff\u2160-\u217f\u2460-\u24ff\u2100-\u2121\u3000]"
)

_FRACTIONS = str.maketrans(
    {char: f" {unicodedata.normalize('NFKC', char).replace(chr(0x2044), '/')} " for char in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
)
_FRACTION = re.compile(r"[¼½¾⅐-⅞]")

_ASCII_TEXT = re.compile(r"[\x20-\x7e\n]*")
_EMOJI = re.compile(
    "[\U0001f000-\U0001f0ff\U0001f10d-\U0001f1ff\U0001f200-\U0001faff\u2600-\u266c\u2670-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55"
    "\u231a\u231b\u23e9-\u23fa\u25aa-\u25fe\u3030\u303d\u3297\u3299\ufe0f\u20e3\u200d]"
)
_NAMELESS = frozenset("\ufe0f\u20e3\u200d")


def clean(text: str) -> str:
    """Remove characters that can't be spoken, and replace each curly quote, dash variant and the like by one form.

    Never raises.
    """
    text = text.replace("\r\n", "\n")
    if _ASCII_TEXT.fullmatch(text):
        return text
    # A pair of surrogates is replaced by the character that the pair encodes. A lone surrogate is removed.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore").translate(_REPLACEMENTS)
    text = _COMPATIBILITY_FORM.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    if _FRACTION.search(text):
        text = text.translate(_FRACTIONS)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_speakable(char) for char in text)


def _speakable(char: str) -> str:
    """Return the replacement of one character: an ASCII digit for a digit of any script, " " for a space of any kind.

    The replacement is "" for a character that can't be spoken, and the same character in all other cases.
    """
    if char < "\x7f":
        return char if char >= " " or char == "\n" else ""
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Zs":
        return " "
    # U+200D (zero-width joiner) stays: it joins emoji, and some scripts need it between letters.
    if category in {"Cc", "Cf", "Cs", "Co", "Cn"} and char != "\u200d":
        return ""
    return char


def resolve_entities(text: str) -> str:
    """Replace HTML character references by the characters: "&amp;" -> "&". References with unknown names stay."""
    return _ENTITY.sub(lambda match: html.unescape(match[0]), text) if "&" in text else text


def drop_emoji(text: str) -> str:
    """Replace each emoji and dingbat by a space."""
    return text if text.isascii() else _EMOJI.sub(" ", text)


def name_emoji(text: str) -> str:
    """Return the Unicode names of the first twenty emoji in a text, separated by commas."""
    names = [unicodedata.name(char, "").lower() for char in _EMOJI.findall(text) if char not in _NAMELESS]
    return ", ".join([name.replace("-", " ") for name in names if name and "modifier" not in name][:20])
