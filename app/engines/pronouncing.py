"""If eSpeak NG is installed, asks it for pronunciations of words in IPA, and lets it read texts aloud.

These functions also work while no engine runs.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from app.engines.espeak import Library, resolve_language
from app.errors import EngineUnavailable, SpeechError

if TYPE_CHECKING:
    from app.types import Samples

ACCENTS = ("gmw/en-US", "gmw/en-GB-x-rp")  # the eSpeak NG voices whose pronunciations `pronounce` returns
_PITCH = 50  # the middle of eSpeak NG's range of 0 to 99


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


def read_aloud(text: str, language: str) -> tuple[Samples, int, list[tuple[int, int | None]]] | None:
    """Speak a text with eSpeak NG. Returns samples (N,), their rate in Hz, and the place of each word.

    See `Library.synthesize_words`. Returns None if eSpeak NG is not installed, or if it has no voice for the language.
    Thread-safe.
    """
    library = _library()
    if library is None:
        return None
    try:
        voice = resolve_language(language, library.languages)
        samples, places = library.synthesize_words(text, voice, _PITCH)
    except SpeechError:
        return None
    return samples, library.rate_hz, places
