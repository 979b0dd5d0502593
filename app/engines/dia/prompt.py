"""Dia's text input: UTF-8 bytes, with one byte for each speaker tag. This module does not use weights."""

from __future__ import annotations

from app.errors import TextTooLong

_TAGS = ((b"[S1]", b"\x01"), (b"[S2]", b"\x02"))


def text_bytes(text: str) -> bytes:
    """Encode a text as UTF-8, with [S1] as byte 1 and [S2] as byte 2, as nari's code and transformers do."""
    encoded = text.encode("utf-8", "replace")
    for tag, byte in _TAGS:
        encoded = encoded.replace(tag, byte)
    return encoded


def text_ids(text: str, limit: int) -> list[int]:
    """Return the token ids of a text. Raises TextTooLong for more than `limit` bytes.

    The code of nari cuts a longer text without an error.
    """
    ids = list(text_bytes(text))
    if len(ids) > limit:
        raise TextTooLong(
            f"The text and the transcripts of its voices have {len(ids)} bytes; Dia reads {limit} at most. Use a "
            "shorter text, or voices with shorter recordings.",
            param="input",
        )
    return ids
