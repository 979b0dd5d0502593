"""What Dia reads: a text as bytes, its speaker tags as one byte each. No weights here."""

from __future__ import annotations

from app.errors import TextTooLong

_TAGS = ((b"[S1]", b"\x01"), (b"[S2]", b"\x02"))
_PAD = "<pad>"


def text_bytes(text: str) -> bytes:
    """UTF-8 with [S1] as byte 1 and [S2] as byte 2, as nari's code and transformers' DiaTokenizer have it."""
    encoded = text.encode("utf-8", "replace")
    for tag, byte in _TAGS:
        encoded = encoded.replace(tag, byte)
    return encoded


def without_padding(text: str) -> str:
    """The text without "<pad>", which transformers' tokenizer reads as byte 0, the padding."""
    while _PAD in text:
        text = text.replace(_PAD, "")
    return text


def text_ids(text: str, limit: int) -> list[int]:
    """The token ids of a text. Raises TextTooLong beyond `limit` bytes; the original Dia code cuts the text there
    without an error."""
    ids = list(text_bytes(text))
    if len(ids) > limit:
        raise TextTooLong(
            f"The text and the transcripts of its voices have {len(ids)} bytes together; Dia reads {limit}. Use a "
            "shorter text, or voices with shorter recordings.",
            param="input",
        )
    return ids
