"""JSON bodies in every charset and form that clients send, and compressed bodies."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from app.api.bodies import BodyDecoder, BodyRejected, UnreadableBody, read_json
from app.errors import BodyTooLarge

pytestmark = pytest.mark.unit

JSON = "application/json"
TOO_LARGE = BodyTooLarge("too large")


def refused(body: bytes, content_type: str = JSON) -> UnreadableBody:
    with pytest.raises(UnreadableBody) as error:
        read_json(body, content_type)
    return error.value


# ---- charsets


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("utf-8", "日本 é 😀"),
        ("UTF8", "é"),
        ("utf-8-sig", "é"),
        ("utf-16", "日本 é"),
        ("utf-16le", "日本 é"),
        ("UTF-16BE", "日本 é"),
        ("utf-32", "😀"),
        ("iso-8859-1", "café"),
        ("latin1", "Größe"),
        ("ISO-8859-15", "5 €"),
        ("windows-1252", "“quotes” – and €"),
        ("cp1251", "Привет"),
        ("koi8-r", "Привет"),
        ("shift_jis", "日本語"),
        ("gb18030", "你好"),
        ("euc-kr", "안녕"),
        ("big5", "你好"),
        ("ascii", "plain"),
        ("ibm850", "é"),
    ],
)
def test_declared_charset_is_read(charset: str, text: str) -> None:
    body = json.dumps({"input": text}, ensure_ascii=False).encode(charset)
    assert read_json(body, f"{JSON}; charset={charset}") == {"input": text}
    assert read_json(body, f'{JSON};odata=verbose; Charset="{charset}"') == {"input": text}


def test_latin_1_is_read_as_browsers_do() -> None:
    body = json.dumps({"input": "“é”"}, ensure_ascii=False).encode("cp1252")
    assert read_json(body, f"{JSON}; charset=ISO-8859-1") == {"input": "“é”"}
    assert read_json(b'{"input": "a\x81b"}', f"{JSON}; charset=latin1") == {"input": "a\x81b"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_unicode_without_a_charset_is_detected(encoding: str) -> None:
    body = json.dumps({"input": "日本 é"}, ensure_ascii=False).encode(encoding)
    assert read_json(body, JSON) == {"input": "日本 é"}


@pytest.mark.parametrize(
    "text",
    [
        "café",
        "Größe und Maß",
        "¿Qué tal? ¡Hola!",
        "Il va à Paris, où ça?",
        "l’été",
        "C’est l’œuvre",
        "«\u00a0Bonjour\u00a0!\u00a0»",
        "Ça va, Élise?",
        "CAFÉ",
        "30 °C, 5 €",
        "don’t “stop” – ever…",
        "São João, coração",
        "jalapeño piñata",
        "10–20 m²",
    ],
)
def test_western_text_of_powershell_5_is_read(text: str) -> None:
    """PowerShell 5 sends Latin-1 bytes and declares no charset."""
    assert read_json(json.dumps({"input": text}, ensure_ascii=False).encode("cp1252"), JSON) == {"input": text}


@pytest.mark.parametrize(
    ("body", "byte", "at"),
    [
        (b'{"input": "\xff"}', "0xFF", 11),
        (b'{"input": "caf\xc3"}', "0xC3", 14),
        (b'{"input": "abc\xe2\x82"}', "0xE2", 14),
        (b'{"input": "caf\x82"}', "0x82", 14),
        (b'{"input": "\xc3\xa9 caf\xe9"}', "0xE9", 17),
        (b'{"input": "Hello \xff\xfe"}', "0xFF", 17),
        (b'{"input": "\xf0\x9f\x98"}', "0xF0", 11),
        (b'{"input": "\xc0\x80"}', "0xC0", 11),
        ('{"input": "Привет мир"}'.encode("cp1251"), "0xCF", 11),
        ('{"input": "日本語"}'.encode("shift_jis"), "0x93", 11),
        ('{"input": "你好"}'.encode("gbk"), "0xC4", 11),
        ('{"input": "Zażółć gęślą"}'.encode("cp1250"), "0xBF", 13),
    ],
)
def test_other_bytes_are_refused_with_their_place(body: bytes, byte: str, at: int) -> None:
    error = refused(body)
    assert error.code == "invalid_utf8"
    assert f"byte {byte} at position {at} " in error.message
    assert "line 1" in error.message
    assert "charset=" in error.message


def test_declared_utf_8_is_not_guessed() -> None:
    error = refused(b'{\n"input": "caf\xe9"}', f"{JSON}; charset=utf-8")
    assert error.code == "invalid_utf8"
    assert 'byte 0xE9 at position 15 (character 15, line 2, column 14, after `"input": "caf`)' in error.message


@pytest.mark.parametrize(
    "charset", ["klingon", "base64", "rot13", "idna", "unicode_escape", "undefined", "x" * 500, "\0"]
)
def test_error_names_an_unknown_charset(charset: str) -> None:
    error = refused(b"{}", f'{JSON}; charset="{charset}"')
    assert error.code == "unsupported_charset"
    assert len(error.message) < 200


def test_error_names_a_wrong_declared_charset() -> None:
    error = refused(b'{"input": "\x80\xff"}', f"{JSON}; charset=shift_jis")
    assert error.code == "invalid_charset"
    assert "0x80 at position 11" in error.message


# ---- structure


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ('{"input": "one\ntwo"}', "one\ntwo"),
        ('{"input": "one\r\n\ttwo"}', "one\r\n\ttwo"),
        ('{"input": "a\x01b\x1f"}', "a\x01b\x1f"),
        ('\ufeff {"input": "x"}\n\n', "x"),
        ('{"input": "[[[[' + "[{" * 200 + '"}', "[[[[" + "[{" * 200),
        ('{"input": "\\\\", "x": "' + "[" * 200 + '"}', "\\"),
    ],
)
def test_lenient_json_is_read(body: str, content: str) -> None:
    assert read_json(body.encode(), JSON)["input"] == content


@pytest.mark.parametrize(
    ("body", "words", "place"),
    [
        ('{"input": "a",}', "comma", "line 1, column 15"),
        ('{\n "input": "a",\n "speed": 1,\n}', "comma", "line 4, column 1"),
        ('{"a": [1, 2, ]}', "comma", "column 14"),
        ("{'input': 'a'}", "single quote", "column 2"),
        ("{\"input\": 'a'}", "single quote", "column 11"),
        ('{"input": “a”}', "typographic quote", "column 11"),
        ('{input: "a"}', "double quotes", "column 2"),
        ('{"input": True}', "`True`", "column 11"),
        ('{"input": "a", "voice": None}', "`None`", "column 25"),
        ('{"input": undefined}', "`undefined`", "column 11"),
        ('{"input": "C:\\dir"}', "backslash", "column 14"),
        ('{"input": "a"} tail', "more text", "column 16"),
        ('{"input": "a"}{"input": "b"}', "more text", "column 15"),
        ('{"input": "a" "voice": "b"}', "comma is missing", "column 15"),
        ('{"input" "a"}', "colon is missing", "column 10"),
        ('{"input": "a"', "ends too early", "column 14"),
        ('{"input": ', "ends too early", "column 11"),
        ('{"input": "a', "no closing quote", "column 11"),
        ('// hello\n{"input": "a"}', "comment", "line 1, column 1"),
        ('{"input": "a" /* x */}', "comment", "column 15"),
        ("input=Hello", "value", "column 1"),
        ("<speak>Hi</speak>", "value", "column 1"),
        ('{"speed": .5}', "value", "column 11"),
        ('{"seed": ' + "9" * 5000 + "}", "digits", "column 10"),
    ],
)
def test_error_explains_why_a_body_is_not_json(body: str, words: str, place: str) -> None:
    error = refused(body.encode())
    assert error.code == "invalid_json"
    assert words in error.message
    assert place in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize(
    "body",
    ["[" * 101, "[" * 100_000, '{"a":' * 300 + "1" + "}" * 300, '{"context": ' + '[{"a":' * 60 + "1" + "}]" * 60 + "}"],
)
def test_deep_json_is_refused(body: str) -> None:
    error = refused(body.encode())
    assert error.code == "json_too_deep"
    assert "more than 100 nested" in error.message
    assert "column" in error.message


def test_hundred_levels_are_read() -> None:
    assert read_json(b"[" * 100 + b"]" * 100, JSON)


# ---- compression


def decompressed(encoding: str, *parts: bytes, max_bytes: int = 10_000) -> bytes:
    decoder = BodyDecoder(encoding, max_bytes, TOO_LARGE)
    data = b"".join(decoder.push(part) for part in parts)
    decoder.close()
    return data


TEXT = b'{"input": "Hello."}' * 50


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("GZIP", gzip.compress(TEXT, mtime=0)),
        ("x-gzip", gzip.compress(TEXT, mtime=0)),
        ("identity, gzip", gzip.compress(TEXT, mtime=0)),
        ("gzip", gzip.compress(TEXT[:100], mtime=0) + gzip.compress(TEXT[100:], mtime=0)),
        ("gzip", gzip.compress(TEXT, mtime=0) + b"\0" * 100),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", zlib.compress(TEXT, wbits=-15)),
        ("deflate", gzip.compress(TEXT, mtime=0)),
    ],
)
def test_compressed_body_is_read(encoding: str, data: bytes) -> None:
    assert decompressed(encoding, data) == TEXT
    assert decompressed(encoding, *(data[at : at + 1] for at in range(len(data)))) == TEXT


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "\u00e9" * 200])
def test_error_names_an_unknown_compression(encoding: str) -> None:
    with pytest.raises(BodyRejected) as error:
        BodyDecoder(encoding, 100, TOO_LARGE)
    assert error.value.error.code == "unsupported_content_encoding"
    assert "`gzip`" in error.value.error.message


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        gzip.compress(TEXT, mtime=0)[:-9],
        gzip.compress(TEXT, mtime=0)[:5],
        gzip.compress(TEXT, mtime=0) + b"tail",
        b"\x1f\x8b" + b"x" * 99,
    ],
)
def test_damaged_compression_is_refused(data: bytes) -> None:
    with pytest.raises(BodyRejected) as error:
        decompressed("gzip", data)
    assert error.value.error.code == "invalid_content_encoding"


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"\0" * 50_000_000, mtime=0),
        gzip.compress(b"a" * 9_999, mtime=0) * 2,
        gzip.compress(b"a" * 10_001, mtime=0),
    ],
)
def test_decompression_bomb_is_refused(data: bytes) -> None:
    with pytest.raises(BodyRejected) as error:
        decompressed("gzip", data)
    assert error.value.status_code == 413
    assert error.value.error is TOO_LARGE
