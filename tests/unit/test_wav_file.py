"""WAV files of other programs: more chunks, another order, unknown lengths, and formats that are not read."""

from __future__ import annotations

import struct

import pytest

from app.audio.formats import MAX_RATE_HZ, MIN_RATE_HZ
from app.audio.provenance import MAX_COMMENT_CHARS
from app.audio.reencode import read_wav
from app.errors import BadReference

pytestmark = pytest.mark.unit

SAMPLES = struct.pack("<4h", 1, -2, 300, -32768)


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    """Return a chunk; an odd body gets a padding byte. size: the size in the header, if it is not that of the body."""
    return struct.pack("<4sI", name, len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def form(*, tag: int = 1, channels: int = 1, rate_hz: int = 24_000, bits: int = 16, more: bytes = b"") -> bytes:
    frame = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * frame, frame, bits) + more)


def extensible(sub_tag: int) -> bytes:
    """Return `fmt ` of WAVE_FORMAT_EXTENSIBLE: size, valid bits, speakers, and the GUID, which begins with the tag."""
    return form(tag=0xFFFE, more=struct.pack("<HHIH14s", 22, 16, 4, sub_tag, b"\0" * 14))


def info(*entries: tuple[bytes, bytes]) -> bytes:
    return chunk(b"LIST", b"INFO" + b"".join(chunk(name, text) for name, text in entries))


def wav(*chunks: bytes, start: bytes = b"RIFF", kind: bytes = b"WAVE") -> bytes:
    body = b"".join(chunks)
    return start + struct.pack("<I", 4 + len(body)) + kind + body


DATA = chunk(b"data", SAMPLES)


@pytest.mark.parametrize(
    ("file", "comment"),
    [
        (wav(form(), DATA), ""),
        (wav(form(more=struct.pack("<H", 0)), DATA), ""),
        (wav(extensible(1), DATA), ""),
        (wav(chunk(b"JUNK", b"odd"), form(), chunk(b"fact", bytes(4)), DATA), ""),
        (wav(chunk(b"zzzz", b"after data by name"), form(), DATA), ""),
        (wav(form(), DATA, chunk(b"zzzz", bytes(6))), ""),
        (wav(form(), DATA, info((b"ICMT", b"After it.\0"))), "After it."),
        (wav(info((b"ICMT", b"No zero byte")), form(), DATA), "No zero byte"),
        (wav(form(), info((b"INAM", b"odd"), (b"ICMT", b"Second entry.\0\0")), DATA), "Second entry."),
        (wav(form(), info((b"INAM", b"Title"), (b"ZZZZ", b"Z")), DATA), ""),
        (wav(form(), chunk(b"LIST", b"adtl" + chunk(b"ICMT", b"Not in INFO.")), DATA), ""),
        (wav(form(), info((b"ICMT", "Grüße \U0001f600".encode() + b"\xff")), DATA), "Grüße \U0001f600\ufffd"),
        (wav(form(), info((b"ICMT", b"c" * (MAX_COMMENT_CHARS + 1))), DATA), "c" * MAX_COMMENT_CHARS),
        (wav(form(), DATA, chunk(b"data", bytes(2))), ""),
        (wav(form(), chunk(b"data", SAMPLES + b"\1")), ""),
        (wav(form(), chunk(b"data", SAMPLES, size=0xFFFFFFFF)), ""),
        (wav(form(), DATA, b"short"), ""),
    ],
)
def test_files_of_other_programs_are_read(file: bytes, comment: str) -> None:
    found = read_wav(file)
    assert (bytes(found.data), found.rate_hz, found.comment) == (SAMPLES, 24_000, comment)


@pytest.mark.parametrize("rate_hz", [MIN_RATE_HZ, 44_100, MAX_RATE_HZ])
def test_sample_rates_within_the_limits_are_read(rate_hz: int) -> None:
    assert read_wav(wav(form(rate_hz=rate_hz), DATA)).rate_hz == rate_hz


@pytest.mark.parametrize("rate_hz", [0, MIN_RATE_HZ - 1, MAX_RATE_HZ + 1])
def test_other_sample_rates_are_refused(rate_hz: int) -> None:
    with pytest.raises(BadReference, match=f"{rate_hz} Hz.*{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz"):
        read_wav(wav(form(rate_hz=rate_hz), DATA))


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"RIFF",
        wav(form(), DATA, start=b"RIFX"),
        wav(form(), DATA, kind=b"AVI "),
        wav(form()),
        wav(DATA),
        wav(form(channels=2), DATA),
        wav(form(bits=8), DATA),
        wav(form(bits=24), DATA),
        wav(form(tag=3), DATA),
        wav(form(tag=7), DATA),
        wav(extensible(3), DATA),
        wav(form(tag=0xFFFE), DATA),
        wav(chunk(b"fmt ", struct.pack("<HHIIH", 1, 1, 24_000, 48_000, 2)), DATA),
    ],
)
def test_other_formats_are_refused(file: bytes) -> None:
    with pytest.raises(BadReference, match="not a WAV file of 16-bit mono samples"):
        read_wav(file)
