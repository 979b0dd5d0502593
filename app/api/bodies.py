"""Reads JSON bodies as real clients send them, and says exactly what is wrong with a body that can't be read.

`BodyDecoder` decompresses bodies with a Content-Encoding. `read_json` accepts each declared charset, a byte order mark,
and line breaks inside of strings. PowerShell 5 sends text in Windows-1252 and declares no charset. `read_json` also
accepts such a body, if its bytes can't be another encoding.
"""

from __future__ import annotations

import codecs
import email.message
import json
import re
import zlib
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from app.errors import BodyTooLarge, RequestError

if TYPE_CHECKING:
    from starlette.datastructures import Headers

MAX_DEPTH = 100  # how deep lists and objects in a JSON body may be nested
_SHOWN_CHARS = 24  # how many characters before a mistake are quoted in an error message
_GZIP, _ZLIB_OR_GZIP, _RAW_DEFLATE = 31, 47, -15  # values of zlib's `wbits`, which selects the format of the data
# Text codecs of Python that this server refuses as the charset of a body.
_NO_CHARSETS = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "mbcs", "oem"})


class UnreadableBody(RequestError):
    """The body can't be decompressed or decoded, or is not JSON."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class BodyRejected(HTTPException):
    """An error in a body, as an HTTPException: FastAPI would answer any other exception with its own 400."""

    def __init__(self, error: RequestError, status: int = 400) -> None:
        super().__init__(status, error.message)
        self.error = error


class BodyDecoder:
    """Decompresses one request body. The decompressed size is limited, so that a small body can't fill the memory."""

    def __init__(self, encoding: str, max_bytes: int, too_large: BodyTooLarge) -> None:
        """encoding: the value of Content-Encoding. max_bytes: the largest decompressed size. too_large: the error for a
        larger body.

        Raises BodyRejected for an encoding that this server does not know.
        """
        names = [name for part in encoding.split(",") if (name := part.strip().lower()) not in ("", "identity")]
        known = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB_OR_GZIP}
        if len(names) > 1 or not set(names) <= known.keys():
            message = (
                f"The request has `Content-Encoding: {ascii(encoding[:60])[1:-1]}`. This server reads `gzip`, "
                "`deflate` and bodies without compression. Send the body in one of these forms."
            )
            raise BodyRejected(UnreadableBody(message, "unsupported_content_encoding"))
        self._name = names[0] if names else ""
        self._wbits = known[self._name] if names else 0
        self._decompressor: Any = None  # the type of zlib.decompressobj() has no public name
        self._left_bytes = max_bytes
        self._too_large = too_large

    @property
    def active(self) -> bool:
        """Whether the body is compressed."""
        return bool(self._name)

    def push(self, data: bytes) -> bytes:
        """Return the decompressed form of the next bytes of the body. Raises BodyRejected."""
        parts = []
        while data:
            # `data` begins with the start of the body, or with the start of a further member of a gzip file.
            if self._decompressor is None or self._decompressor.eof:
                if self._decompressor is not None and not data.strip(b"\0"):
                    break  # some programs add zero bytes after the compressed data
                self._decompressor = zlib.decompressobj(self._first_wbits(data))
            try:
                part = self._decompressor.decompress(data, self._left_bytes + 1)
            except zlib.error as error:
                raise self._broken(str(error).partition(": ")[2] or str(error)) from error
            self._left_bytes -= len(part)
            if self._left_bytes < 0:
                raise BodyRejected(self._too_large, 413)
            parts.append(part)
            data = self._decompressor.unused_data
        return b"".join(parts)

    def close(self) -> None:
        """Check that the compressed body is complete. Raises BodyRejected."""
        if self._decompressor is not None and not self._decompressor.eof:
            raise self._broken("it ends too early")

    def _first_wbits(self, data: bytes) -> int:
        """Return zlib's `wbits`, which selects the format, for a compressed body that begins with `data`.

        With `Content-Encoding: deflate`, some clients send data without the header of zlib.
        """
        if self._wbits == _GZIP or data[0] & 0x0F == 8 or data[0] == 0x1F:
            return self._wbits
        return _RAW_DEFLATE

    def _broken(self, why: str) -> BodyRejected:
        message = (
            f"The request has `Content-Encoding: {self._name}`, but its body is not valid {self._name}: {why}. "
            "Compress the body, or leave the header out."
        )
        return BodyRejected(UnreadableBody(message, "invalid_content_encoding"))


def is_json(headers: Headers) -> bool:
    """Return whether the Content-Type of a request is JSON: `application/json` or `application/...+json`."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def read_json(body: bytes, content_type: str) -> Any:
    """Parse a JSON body. content_type: the header, which can declare a charset. Raises UnreadableBody."""
    text = _decoded(body, content_type)
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(text)
    try:
        return json.loads(text, strict=False)  # accepts line breaks and tabs inside of strings
    except json.JSONDecodeError as error:
        raise UnreadableBody(_explained(text, error), "invalid_json") from error
    except RecursionError as error:
        raise UnreadableBody("The body has too many nested lists or objects.", "json_too_deep") from error
    except ValueError as error:  # Python refuses to convert very long numbers
        found = re.search(r"\d{1000,}", text)
        place = _place(text, found.start()) if found else "unknown place"
        message = f"The body has a number with more than 1000 digits ({place}). Send a shorter number."
        raise UnreadableBody(message, "invalid_json") from error


# ---- characters


def _decoded(body: bytes, content_type: str) -> str:
    """Return the text of a body. Raises UnreadableBody."""
    parsed = email.message.Message()
    parsed["content-type"] = content_type
    declared = str(parsed.get_param("charset") or "").strip()
    if not declared or declared.lower() in ("utf-8", "utf8", "utf-8-sig", "us-ascii", "ascii"):
        return _decoded_unicode(body, declared)
    name = _codec(declared)
    try:
        if name in ("utf-16", "utf-32") and (found := json.detect_encoding(body)).startswith(name):
            name = found  # `found` contains the byte order, such as utf-16-le
        return body.decode(name).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if name == "cp1252":  # five of the 256 bytes have no character in Windows-1252
            return body.decode("latin-1")
        message = (
            f"The request declares the charset {declared[:40]!r}, but its byte {_shown_byte(body, error.start)} at "
            f"position {error.start} is not valid in this charset. Send the charset in which the body is written."
        )
        raise UnreadableBody(message, "invalid_charset") from error


def _codec(charset: str) -> str:
    """Return Python's name of a declared charset. Raises UnreadableBody."""
    try:
        found = codecs.lookup(charset)
    except (LookupError, ValueError):  # ValueError: the name contains a NUL character
        found = None
    if found is None or not found._is_text_encoding or found.name.replace("_", "-") in _NO_CHARSETS:
        message = f"The request declares the charset {charset[:40]!a}, which this server does not know. Send UTF-8."
        raise UnreadableBody(message, "unsupported_charset")
    # Text that is declared as Latin-1 is often Windows-1252, which also has typographic quotes and dashes. Web browsers
    # also decode such text as Windows-1252.
    return "cp1252" if found.name == "iso8859-1" else found.name


def _decoded_unicode(body: bytes, declared: str) -> str:
    """Return the text of a body that declares UTF-8, ASCII or no charset. Raises UnreadableBody."""
    encoding = json.detect_encoding(body)  # looks at the byte order mark and at zero bytes
    try:
        return body.decode(encoding, "surrogatepass")  # accepts encoded surrogates, which some Java programs send
    except UnicodeDecodeError as error:
        if not declared and encoding == "utf-8" and _is_western(body):
            return body.decode("cp1252")
        before = body[: error.start].decode(encoding, "replace")
        message = (
            f"The body is not valid {'UTF-8' if encoding.startswith('utf-8') else encoding.upper()}: byte "
            f"{_shown_byte(body, error.start)} at position {error.start} ({_place(before, len(before))}). Send UTF-8, "
            "or declare the charset, for example `Content-Type: application/json; charset=windows-1252`. In "
            "PowerShell 5, send `[System.Text.Encoding]::UTF8.GetBytes($json)` as the body."
        )
        raise UnreadableBody(message, "invalid_utf8") from error


def _shown_byte(body: bytes, at: int) -> str:
    return f"0x{body[at]:02X}" if at < len(body) else "(the end)"


# Each match of this pattern is a run of bytes above 0x7F that ordinary western text in Windows-1252 contains.
_WESTERN = re.compile(
    rb"""
    (?<=[A-Za-z])[\xe0-\xf6\xf8-\xfe\xdf\x9a\x9e\x9c]{1,2}(?![\x80-\x90\x98-\x9f\xc0-\xff])  # after a letter: caf\xe9
  | (?<![\x80-\x90\x98-\x9f\xc0-\xff])[\xe0-\xf6\xf8-\xfe\x9c]{1,2}(?=[a-z'\x92])  # before a letter: \xe9t\xe9
  | (?<![A-Za-z\x80-\x90\x98-\x9f\xc0-\xff])[\xc0-\xd6\xd8-\xde\x8a\x8c\x8e](?=[A-Za-z])  # the first letter: \xcele
  | (?<=[A-Z])[\xc0-\xd6\xd8-\xde]{1,2}(?=[A-Z"\s.,!?])  # in a word of capitals: CAF\xc9
  | (?<=[ ])[\xe0\xe8\xe9\xec\xf2\xf3\xf9\xe5\xf6\xe6](?=[ ])  # words of one letter: \xe0
  | (?<=[A-Za-z])\x92(?=[A-Za-z\x9c\xe0-\xff\s])  # an apostrophe
  | (?<=[\s"])[\x91\x93\xab\xbf\xa1](?=[A-Za-z\xc0-\xff\s\xa0])  # opening quotes and marks
  | (?<=[A-Za-z.,!?\s\xa0\xe0-\xff])[\x92\x94\xbb](?=[\s",.;:!?])  # closing quotes
  | (?<=[\s\d])[\x96\x97](?=[\s\d])  # dashes
  | (?<=[A-Za-z.!?\s])\x85(?=[\s"])  # an ellipsis
  | (?<=[\d\sn])\xb0(?=[\sCF\d",.])  # degrees, and the sign for number
  | (?<=[\d\sm])[\xb2\xb3\xbc-\xbe](?=[\s",.])  # squares and fractions
  | (?<=[A-Za-z\d!?.:;,\xe0-\xff\xab])\xa0(?=[A-Za-z\d!?:;%\x80\xab\xbb\xc0-\xff])  # no-break spaces
  | (?<=[\d\s"\xa0])[\x80\xa3\xa7](?=[\d\s",.])  # euro, pound and section signs
    """,
    re.VERBOSE,
)


def _is_western(body: bytes) -> bool:
    """Return whether a body that is not UTF-8 can only be Windows-1252 text in a western language.

    Each byte above 0x7F must be a letter or a sign in a place where western text can have it. The result is False for a
    body that contains UTF-8 characters, because its encodings are mixed. Long runs of bytes above 0x7F also give False,
    because they belong to another charset.
    """
    if re.search(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}", body):
        return False
    runs = re.sub(rb"[\x00-\x7f]+", b"", body)
    return sum(len(found.group()) for found in _WESTERN.finditer(body)) == len(runs)


# ---- structure


def _check_depth(text: str) -> None:
    """Check that lists and objects are not nested too deeply. Raises UnreadableBody."""
    depth = 0
    for found in re.finditer(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', text, re.DOTALL):
        if (bracket := found.group()) in ("[", "{"):
            depth += 1
        elif bracket in ("]", "}"):
            depth -= 1
        if depth > MAX_DEPTH:
            message = (
                f"The body has more than {MAX_DEPTH} nested lists or objects ({_place(text, found.start())}). Send a "
                "flat JSON object."
            )
            raise UnreadableBody(message, "json_too_deep")


def _explained(text: str, error: json.JSONDecodeError) -> str:
    """Return the error message for a text that is not JSON: what is wrong, where, and what to write instead."""
    at = error.pos
    before, here = text[:at].rstrip(), text[at : at + 1]
    if at >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        what = "it ends too early: a bracket, a brace or a quote is not closed"
        if error.msg.startswith("Unterminated string"):
            what = "the string that begins here has no closing quote"
    elif (here in "]}" and before.endswith(",")) or error.msg.startswith("Illegal trailing comma"):
        what = "a comma stands before the closing bracket; remove the comma"
    elif here == "'":
        what = 'a single quote stands here; JSON needs double quotes, such as "input"'
    elif here in "\u201c\u201d\u201e\u2018\u2019\u00ab":
        what = 'a typographic quote stands here; JSON needs straight double quotes, such as "input"'
    elif text.startswith(("//", "/*", "#"), at):
        what = "a comment stands here; JSON has no comments"
    elif found := re.match(r"(True|False|None|undefined|NaN)\b", text[at:]):
        what = f"`{found[1]}` stands here; JSON has `true`, `false` and `null`"
    elif error.msg.startswith("Invalid \\"):
        what = "a backslash in a string needs a second backslash"
    elif error.msg.startswith("Extra data"):
        what = "more text follows after the end of the JSON value"
    elif error.msg.startswith("Expecting property name"):
        what = "the name of a field must stand in double quotes"
    elif "delimiter" in error.msg:
        what = f"a {'comma' if ',' in error.msg else 'colon'} is missing here"
    else:
        what = "a value is missing here, or it is not a JSON value"
    return f"The body is not valid JSON: {what} ({_place(text, at)}). Send a JSON object."


def _place(text: str, at: int) -> str:
    """Describe the place of a character for an error message: its index, line and column, and the text before it."""
    line_start = text.rfind("\n", 0, at) + 1
    line = text.count("\n", 0, at) + 1
    before = text[max(line_start, at - _SHOWN_CHARS) : at]
    quoted = f", after `{before}`" if before.strip() else ""
    return f"character {at}, line {line}, column {at - line_start + 1}{quoted}"
