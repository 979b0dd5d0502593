"""Non-verbal sounds: words in parentheses, such as "(laughs)", that some engines perform.

This table is the only one. `EngineInfo.sounds` has the sounds that an engine performs; the API lists them per model.
"""

from __future__ import annotations

import re

# The list in the README of Dia. Other words work now and then, or are read aloud.
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
    """Remove the NON_VERBAL_SOUNDS that an engine does not perform, so that it does not read "laughs" aloud."""

    def keep(match: re.Match[str]) -> str:
        return match[0] if " ".join(match[1].lower().split()) in supported else " "

    return text if supported >= NON_VERBAL_SOUNDS else _SOUND.sub(keep, text)
