"""Characters before words: what no voice can say is removed, what has several spellings gets one. Knows no language.

After `clean` a text holds no control, format, surrogate or private-use characters, only ASCII digits, straight quotes,
and one kind of line break. That is what lets every later rule be short.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Bounded on purpose: html.unescape reads a numeric reference with int(), which refuses more than 4300 digits.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_SAME = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»″❝❞", '"'),
        **dict.fromkeys("‘’‚‛´′ʼ", "'"),
        **dict.fromkeys("‐‑", "-"),
        **dict.fromkeys("―⸺⸻", "—"),
        "…": "...",
        "⁄": "/",
        "∕": "/",
        "µ": "μ",
        "º": "°",
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

# Compatibility forms are folded only in these blocks: full-width letters, ligatures, mathematical alphabets, letters in
# circles, Roman numerals as one character. Folding everything would turn "²" into "2", "™" into "TM", "½" into "1⁄2".
_FOLDED = re.compile("[\uff01-\uffee\ufb00-\ufb06\U0001d400-\U0001d7ff\u2160-\u217f\u2460-\u24ff\u2100-\u2121\u3000]")

_FRACTIONS = str.maketrans(
    {char: f" {unicodedata.normalize('NFKC', char).replace(chr(0x2044), '/')} " for char in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
)
_FRACTION = re.compile(r"[¼½¾⅐-⅞]")

_ASCII_TEXT = re.compile(r"[\x20-\x7e\n]*")
_EMOJI = re.compile(
    "[\U0001f000-\U0001f0ff\U0001f10d-\U0001f1ff\U0001f200-\U0001faff\u2600-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55"
    "\u231a\u231b\u23e9-\u23fa\u25aa-\u25fe\u3030\u303d\u3297\u3299\ufe0f\u20e3\u200d]"
)
_UNNAMED = frozenset("\ufe0f\u20e3\u200d")


def clean(text: str) -> str:
    """`text` with one spelling per character and nothing unspeakable in it. Entities are resolved. Never raises."""
    text = text.replace("\r\n", "\n")
    if _ASCII_TEXT.fullmatch(text):
        return text
    # A pair of surrogates is one character that was written down in two halves; a lone one is nothing.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore").translate(_SAME)
    text = _FOLDED.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    if _FRACTION.search(text):
        text = text.translate(_FRACTIONS)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_speakable(char) for char in text)


def _speakable(char: str) -> str:
    """The character itself, "" for what makes no sound, a plain space or digit for the rarer ones."""
    if char < "\x7f":
        return char if char >= " " or char == "\n" else ""
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Zs":
        return " "
    # U+200D joins emoji and, like U+200C, shapes some scripts; emoji are gone before it matters to English.
    if category in {"Cc", "Cf", "Cs", "Co", "Cn"} and char != "\u200d":
        return ""
    return char


def resolve_entities(text: str) -> str:
    """Named and numeric references as characters, "&amp;" -> "&". Unknown names stay as they are."""
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def drop_emoji(text: str) -> str:
    """Without emoji and dingbats; a space stays where one stood between words."""
    return text if text.isascii() else _EMOJI.sub(" ", text)


def name_emoji(text: str) -> str:
    """The Unicode names of the emoji in `text`, at most twenty, for a text that has nothing else to say."""
    names = [unicodedata.name(char, "").lower() for char in _EMOJI.findall(text) if char not in _UNNAMED]
    return ", ".join([name.replace("-", " ") for name in names if name and "modifier" not in name][:20])
