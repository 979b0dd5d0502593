"""The standard voices' names and described profiles. How they sound is made elsewhere: per engine, from these."""

from __future__ import annotations

import hashlib

from app.types import Voice

# The thirteen names of OpenAI's speech endpoint, each with the character its users expect.
PROFILES: dict[str, str] = {
    "alloy": "Neutral and balanced",
    "ash": "Clear, direct, male",
    "ballad": "Soft, British, male",
    "cedar": "Low, calm, male",
    "coral": "Bright, friendly, female",
    "echo": "Even, warm, male",
    "fable": "British storyteller",
    "marin": "Light, British, female",
    "nova": "Warm, female",
    "onyx": "Deep, male",
    "sage": "Gentle, British, female",
    "shimmer": "Light and bright, female",
    "verse": "Lively, male",
}
DEFAULT_VOICE = "alloy"

# For a line that is to be spoken without any voice to go by: a model's own, or as the conversation before it suggests.
# Not in any list, and no caller can ask for it by this name: over HTTP it is what a conversation means by leaving
# `voice` out.
NO_VOICE = Voice(id="none", name="None", kind="none", digest=hashlib.sha256(b"no voice").hexdigest())


def preset(name: str) -> Voice:
    """The preset voice of that name. Raises KeyError."""
    description = PROFILES[name]
    return Voice(
        id=name,
        name=name.capitalize(),
        kind="preset",
        description=description,
        speaker=list(PROFILES).index(name),
        digest=hashlib.sha256(f"preset {name}".encode()).hexdigest(),
    )
