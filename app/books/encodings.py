"""Find the encoding of a text file, and decode it."""

from __future__ import annotations

import codecs
import math
import re
from itertools import pairwise

from charset_normalizer import from_bytes

from app.text.languages import guess_language

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # must be checked before UTF-16, because this mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(
    rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{2,40})|<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9._-]{2,40})""",
    re.IGNORECASE,
)
# Only lines with other characters than ASCII are examined: about _SAMPLE_BYTES bytes of all these lines together, and
# at most _LINE_BYTES bytes of one line.
_SAMPLE_BYTES, _LINE_BYTES = 20_000, 2_000
# Code pages of Latin script. They agree on most bytes, so the code page that gives the most usual text is chosen.
_LATIN = ("cp1252", "cp1250", "iso8859_2", "cp1254", "cp1257", "mac_roman", "cp850")
_CENTRAL_EUROPEAN = frozenset("pl cs sk hu ro hr sl".split())
_LANGUAGES = {
    "cp1250": _CENTRAL_EUROPEAN,
    "iso8859_2": _CENTRAL_EUROPEAN,
    "cp1254": frozenset({"tr"}),
    "cp1257": frozenset({"lt", "lv", "et"}),
}
# Characters that are not letters and are usual in books in Latin script.
_USUAL = frozenset("“”„‘’‚«»‹›–—…€£§©®°·•¿¡†‡½¼¾ºª²³×\xa0\xad")

_CYRILLIC = ("cp1251", "koi8_r", "koi8_u", "iso8859_5", "cp866")
_WORD = re.compile(r"[^\W\d_]+|[^\x00-\x7f]")
_CYRILLIC_LETTERS = "\u0400-\u045f\u0490\u0491"
_CYRILLIC_WORD = re.compile(
    "[\u0400-\u042f\u0490]?[\u0430-\u045f\u0491]+|[\u0400-\u042f\u0490]+"  # Word, word, WORD
    f"|[^{_CYRILLIC_LETTERS}\\w\u2500-\u259f]"  # a sign
)
_FREQUENT = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфіъёїє_____"  # the most frequent letter first; all other letters are rare
# The mean place of a Cyrillic text's letters in _FREQUENT is below this limit. For Hebrew or Greek that is decoded as
# Cyrillic, the mean place is about 14.
_MEAN_RANK = 11.5
_CAPITAL_RANKS = 3

_RARE_LETTER = re.compile(r"œ(?!u)|[þðÞÐ¶]")
_SIGN_INSIDE = re.compile(r"(?<=[^\W\d_])[^\w\s'’\-\u2010-\u2015.\xad](?=[^\W\d_])|(?<=[^\W\d_])[¶£¥¤¦¬±¼µ]")
_OLD = frozenset({"mac_roman", "cp850"})  # code pages of computers before about 2000


def decode(data: bytes) -> str:
    """Decode a text file of any common encoding. Never raises: a byte that can't be decoded becomes U+FFFD.

    The encoding is the first of these that fits: the encoding of the byte order mark, UTF-8, UTF-16 without a mark, the
    encoding that an HTML or XML file declares, and a guess from the letters and signs. The guess prefers Windows-1252.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    try:
        if b"\x00" not in data:
            return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start > len(data) - 4 and error.reason == "unexpected end of data":  # the file ends inside a character
            return data.decode("utf-8", "replace")
    if (wide := _wide_encoding(data)) is not None:
        return data.decode(wide, "replace")
    if (declared := _declared(data)) is not None:
        return data.decode(declared, "replace")
    return data.decode(_guessed(data), "replace")


def _wide_encoding(data: bytes) -> str | None:
    """Return "utf-16-le" or "utf-16-be" if about every second byte at the start is 0; None for any other text."""
    start = data[:4_000]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) < 0.3 * len(start) / 2 or min(even, odd) > 0.1 * max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _declared(data: bytes) -> str | None:
    """Return the encoding that an HTML or XML file declares.

    Returns None if Python does not know the encoding, or if it is UTF-8, UTF-16 or UTF-32.
    """
    match = _DECLARED.search(data[:4_000])
    if match is None:
        return None
    name = (match[1] or match[2]).decode("ascii").lower()
    try:
        known = codecs.lookup(name)
    except LookupError:
        return None
    if not known._is_text_encoding or known.name.startswith("utf"):
        return None
    return "cp1252" if known.name in {"iso8859-1", "ascii"} else known.name


def _guessed(data: bytes) -> str:
    """Return the most likely encoding of a text that is not UTF-8."""
    lines: list[bytes] = []
    size = 0
    for line in data.split(b"\n"):
        if not line.isascii() and size < _SAMPLE_BYTES:
            lines.append(line[:_LINE_BYTES])
            size += len(lines[-1])
    sample = b"\n".join(lines)
    for encoding in ("cp932", "euc_jp"):
        if _has_kana(sample.decode(encoding, "replace")):
            return encoding
    if (cyrillic := _cyrillic_encoding(sample)) is not None:
        return cyrillic
    best = from_bytes(sample).best()
    if best is not None and _is_other_script(best.encoding, str(best)):
        return best.encoding
    return min(_LATIN, key=lambda encoding: _strangeness(sample.decode(encoding, "replace"), encoding))


def _cyrillic_encoding(sample: bytes) -> str | None:
    """Return the code page of a text in Cyrillic script; None for any other text.

    Only the right code page gives words with a usual order of capitals and small letters. The frequency of the letters
    decides between code pages that differ only in the case of the letters.
    """
    found: list[tuple[float, str]] = []
    for encoding in _CYRILLIC:
        words = _WORD.findall(sample.decode(encoding, "replace"))
        letters = [char for word in words if not word.isascii() for char in word]
        usual = sum(len(word) for word in words if _CYRILLIC_WORD.fullmatch(word))
        if usual > 0.9 * len(letters):
            ranks = sum(_FREQUENT.find(char.lower()) % len(_FREQUENT) for char in letters)
            capitals = sum(char.isupper() for char in letters)
            found.append(((ranks + _CAPITAL_RANKS * capitals) / max(1, len(letters)), encoding))
    rank, encoding = min(found, default=(math.inf, ""))
    return encoding if rank < _MEAN_RANK else None


def _is_other_script(encoding: str, text: str) -> bool:
    """Return whether a decoded text has many letters that are not Latin."""
    letters = [char for char in text if char.isalpha()]
    return encoding not in _LATIN and sum(char > "\u024f" for char in letters) > 0.3 * len(letters)


def _has_kana(text: str) -> bool:
    """Return whether many characters are Japanese kana, and all characters could be decoded."""
    kana = sum("\u3041" <= char <= "\u30fc" for char in text)
    return kana > 0.2 * len(text) and "\ufffd" not in text


def _strangeness(text: str, encoding: str) -> float:
    """Return how unlikely a text is: unusual characters, and capitals after small letters, make it unlikely."""
    strange = float(sum(char > "\x7f" and not char.isalpha() and char not in _USUAL for char in text))
    strange += sum(len(pattern.findall(text)) for pattern in (_SIGN_INSIDE, _RARE_LETTER))
    strange += sum(before.islower() and char.isupper() and char > "\x7f" for before, char in pairwise(text))
    languages = _LANGUAGES.get(encoding)
    if languages is not None:
        strange += -0.5 if guess_language(text) in languages else 0.5
    return strange + 0.1 * _LATIN.index(encoding) + (2.0 if encoding in _OLD else 0.0)
