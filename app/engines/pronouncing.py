"""Returns pronunciations of words in IPA from eSpeak NG, if eSpeak NG is installed. No engine needs to run for this."""

from __future__ import annotations

import functools

from app.engines.espeak import Library
from app.errors import EngineUnavailable

ACCENTS = ("gmw/en-US", "gmw/en-GB-x-rp")  # identifiers of eSpeak NG voices


@functools.cache
def _library() -> Library | None:
    try:
        return Library()
    except EngineUnavailable:
        return None


@functools.lru_cache(maxsize=8_192)
def pronounce(word: str) -> tuple[str, ...]:
    """Return the pronunciations of an English word in IPA; () if eSpeak NG is not installed. Thread-safe."""
    library = _library()
    return () if library is None else tuple(dict.fromkeys(library.ipa(word, accent) for accent in ACCENTS))
