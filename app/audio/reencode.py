"""Encode audio that a client already has: a WAV file of 16-bit mono samples, or raw samples.

The WAV file is read without FFmpeg, so no sandbox is needed. This module does not depend on HTTP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.audio import pcm
from app.audio.encoders import open_encoder
from app.audio.formats import MAX_RATE_HZ, MIN_RATE_HZ
from app.audio.provenance import MAX_COMMENT_CHARS, parse
from app.audio.resample import StreamResampler, resampled_length
from app.errors import BadReference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.audio.threads import ThreadLimit
    from app.types import AudioFormat

RAW_RATE_HZ = 24_000  # the sample rate of raw samples
_BLOCK_BYTES = 2 * 10 * RAW_RATE_HZ  # a thread encodes 10 s of audio at a time, which takes 60 ms

_PCM = 1  # the tag of a WAV file without compression
_EXTENSIBLE = 0xFFFE  # the tag of a WAV file whose real tag stands at the offset 24
_WRONG = "`file` is not a WAV file of 16-bit mono samples. Send such a file, or raw samples with `input_format=pcm`."


class FileEncoder:
    """Encodes whole recordings in threads. Use it from one event loop."""

    def __init__(self, threads: ThreadLimit) -> None:
        """threads: limits the number of parallel encodings."""
        self._threads = threads

    def encode(self, data: bytes, audio_format: AudioFormat, rate_hz: int, *, raw: bool) -> AsyncIterator[bytes]:
        """Return the encoded file in parts. rate_hz: the sample rate of the encoded file. raw: True = `data` contains
        raw samples at RAW_RATE_HZ; False = `data` is a WAV file.

        The audio gets no watermark, because speech of this server already has one. If the comment of a WAV file says
        that the file is synthetic speech, the encoded file has the same comment.

        Raises BadReference if `data` can't be read, and UnsupportedParameter if the format does not support the sample
        rate.
        """
        source = WavFile(memoryview(data), RAW_RATE_HZ, "") if raw else read_wav(data)
        if not source.data or len(source.data) % 2:
            message = "`file` ends in the middle of a sample." if source.data else "`file` has no samples."
            raise BadReference(f"{message} Send 16-bit samples.", param="file")
        comment = source.comment if parse(source.comment) else ""
        total = resampled_length(len(source.data) // 2, source.rate_hz, rate_hz)
        encoder = open_encoder(audio_format, rate_hz, total, comment=comment)
        resampler = StreamResampler(source.rate_hz, rate_hz)

        def block(at: int) -> bytes:
            part = bytes(source.data[at : at + _BLOCK_BYTES])
            encoded = encoder.encode(resampler.push(pcm.from_bytes(part)))
            if at + _BLOCK_BYTES < len(source.data):
                return encoded
            return encoded + encoder.encode(resampler.flush()) + encoder.flush()

        async def blocks() -> AsyncIterator[bytes]:
            try:
                for at in range(0, len(source.data), _BLOCK_BYTES):
                    yield await self._threads.run(block, at)
            finally:
                encoder.close()

        return blocks()


@dataclass(frozen=True, slots=True)
class WavFile:
    """The content of a WAV file."""

    data: memoryview  # 16-bit little-endian mono samples
    rate_hz: int
    comment: str  # ICMT in LIST/INFO; "" = none


def read_wav(data: bytes) -> WavFile:
    """Read a WAV file of 16-bit mono samples, also one whose header states an unknown length.

    Raises BadReference if the bytes are not such a file, or if the sample rate is not MIN_RATE_HZ to MAX_RATE_HZ.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadReference(_WRONG, param="file")
    rate_hz, comment, samples, at = 0, "", None, 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        body = memoryview(data)[at + 8 : at + 8 + size]
        if name == b"fmt ":
            rate_hz = _rate_hz(body)
        elif name == b"LIST" and bytes(body[:4]) == b"INFO":
            comment = _comment(bytes(body[4:]))
        elif name == b"data" and samples is None:
            samples = body[: len(body) // 2 * 2]
        at += 8 + size + size % 2
    if samples is None or not rate_hz:
        raise BadReference(_WRONG, param="file")
    return WavFile(samples, rate_hz, comment)


def _rate_hz(body: memoryview) -> int:
    """Return the sample rate that a chunk `fmt ` states. Raises BadReference if the audio is not 16-bit mono PCM."""
    if len(body) < 16:
        raise BadReference(_WRONG, param="file")
    tag, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack_from("<H", body, 24)
    if (tag, channels, bits) != (_PCM, 1, 16):
        raise BadReference(_WRONG, param="file")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        message = f"`file` has a sample rate of {rate_hz} Hz. Send {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz."
        raise BadReference(message, param="file")
    return int(rate_hz)


def _comment(info: bytes) -> str:
    """Return the value of ICMT in the content of LIST/INFO; "" = none."""
    at = 0
    while at + 8 <= len(info):
        name, size = struct.unpack_from("<4sI", info, at)
        if name == b"ICMT":
            return info[at + 8 : at + 8 + size].rstrip(b"\0").decode("utf-8", "replace")[:MAX_COMMENT_CHARS]
        at += 8 + size + size % 2
    return ""
