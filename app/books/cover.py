"""Check the picture of a cover without decoding it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAX_PIXELS = 50_000_000  # a larger cover is not used, because a player decodes the whole picture in memory
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class Picture:
    """The kind and the size in pixels of a picture."""

    codec: str  # FFmpeg's name: mjpeg, png
    width: int
    height: int

    @property
    def suffix(self) -> str:
        return ".jpg" if self.codec == "mjpeg" else ".png"

    @property
    def media_type(self) -> str:
        return "image/jpeg" if self.codec == "mjpeg" else "image/png"


def picture(data: bytes) -> Picture | None:
    """Return the kind and the size of a JPEG or PNG file; None for other files, and for more than MAX_PIXELS pixels."""
    found = None
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 24:
        found = Picture("png", *struct.unpack_from(">II", data, 16))
    elif data.startswith(_JPEG):
        found = _jpeg(data)
    return found if found is not None and 0 < found.width * found.height <= MAX_PIXELS else None


def _jpeg(data: bytes) -> Picture | None:
    """Return the kind and the size of a JPEG file, from its segment `start of frame` (SOF).

    Returns None if the file has no such segment.
    """
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Picture("mjpeg", width, height)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
