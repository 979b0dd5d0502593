"""Find the encoding of a text file, and decode it."""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: the mark of UTF-16 is its first half
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(
    rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{2,40})|<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9._-]{2,40})""",
    re.IGNORECASE,
)
_NOT_ASCII = re.compile(rb"[^\n]{0,200}[\x80-\xff][^\n]{0,200}")
_SAMPLE_BYTES = 20_000  # the lines with other than ASCII characters that are examined


def decode(data: bytes) -> str:
    """Decode a text file of any common encoding. Never raises: a byte that can't be decoded becomes U+FFFD.

    In this order, the encoding is: that of the byte order mark, UTF-8, UTF-16 without a mark, the declaration of an
    HTML or XML file, and a guess by the frequency of letters. Windows-1252 is the default.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    try:
        if b"\x00" not in data:
            return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start > len(data) - 4:  # only the last character is cut off
            return data.decode("utf-8", "replace")
    if (wide := _wide_encoding(data)) is not None:
        return data.decode(wide, "replace")
    if (declared := _declared(data)) is not None:
        return data.decode(declared, "replace")
    return data.decode(_guessed(data), "replace")


def _wide_encoding(data: bytes) -> str | None:
    """Return UTF-16 with its byte order if about every second byte of the start is 0; None for any other text."""
    start = data[:4_000]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) < 0.3 * len(start) / 2 or min(even, odd) > 0.1 * max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _declared(data: bytes) -> str | None:
    """Return the encoding that an HTML or XML file declares, if Python knows it and the file is not UTF-8."""
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
    sample = b"\n".join(match[0] for match in _NOT_ASCII.finditer(data[:2_000_000]))[:_SAMPLE_BYTES]
    best = from_bytes(sample).best()
    return (
        "cp1252" if best is None or best.encoding.startswith(("utf", "ascii", "latin", "iso8859_1")) else best.encoding
    )
