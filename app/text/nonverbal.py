"""Non-verbal sounds: words in parentheses, such as "(laughs)", that some engines perform.

`NON_VERBAL_SOUNDS` lists all of these sounds. `EngineInfo.sounds` lists the sounds that one engine performs. The API
returns that list for each model.
"""

from __future__ import annotations

import re

# The list in the README of the model Dia. Dia performs other words only sometimes, and otherwise reads them aloud.
NON_VERBAL_SOUNDS = frozenset(
    {
        "laughs", "clears throat", "sighs", "gasps", "coughs", "singing", "sings", "mumbles", "beep", "groans",
        "sniffs", "claps", "screams", "inhales", "exhales", "applause", "burps", "humming", "sneezes", "chuckle",
        "whistles",
    }
)  # fmt: skip

_SOUND = re.compile(
    r"\(\s{0,3}(" + "|".join(name.replace(" ", r"\s{1,3}") for name in sorted(NON_VERBAL_SOUNDS)) + r")\s{0,3}\)",
    re.IGNORECASE,
)


def remove_unsupported_sounds(text: str, supported: frozenset[str]) -> str:
    """Remove each non-verbal sound that is not in `supported`, so that the engine does not read the word aloud."""

    def keep(match: re.Match[str]) -> str:
        return match[0] if " ".join(match[1].lower().split()) in supported else " "

    return text if supported >= NON_VERBAL_SOUNDS else _SOUND.sub(keep, text)


def without_sounds(text: str) -> tuple[str, int]:
    """Return the text without its non-verbal sounds, and the number of these sounds."""
    return _SOUND.subn(" ", text)
