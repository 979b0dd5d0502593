"""The names and profiles of the preset voices. Each engine creates its own recordings from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from app.types import Voice


@dataclass(frozen=True, slots=True)
class Profile:
    """What a preset voice should sound like: in words, and as `voices/voice_features.py` measures a recording: its
    median pitch, and its energy above 2 kHz against the energy below."""

    description: str
    pitch_hz: float
    brightness_db: float


# The thirteen names of OpenAI's speech endpoint, each with the character its users expect. Pitches are those of men
# (about 85 to 155 Hz) and women (165 to 255 Hz) who read aloud.
PROFILES: dict[str, Profile] = {
    "alloy": Profile("Neutral and balanced", 160, -14),
    "ash": Profile("Clear, direct, male", 115, -14),
    "ballad": Profile("Soft, British, male", 125, -17),
    "cedar": Profile("Low, calm, male", 95, -18),
    "coral": Profile("Bright, friendly, female", 210, -11),
    "echo": Profile("Even, warm, male", 110, -16),
    "fable": Profile("British storyteller", 140, -14),
    "marin": Profile("Light, British, female", 205, -12),
    "nova": Profile("Warm, female", 190, -15),
    "onyx": Profile("Deep, male", 85, -19),
    "sage": Profile("Gentle, British, female", 195, -14),
    "shimmer": Profile("Light and bright, female", 225, -10),
    "verse": Profile("Lively, male", 130, -12),
}
DEFAULT_VOICE = "alloy"

# For a line that is to be spoken without any voice to go by: a model's own, or as the conversation before it suggests.
# Not in any list, and no caller can ask for it by this name: over HTTP it is what a conversation means by leaving
# `voice` out.
NO_VOICE = Voice(id="none", name="None", kind="none", digest=hashlib.sha256(b"no voice").hexdigest())


def preset(name: str) -> Voice:
    """The preset voice of that name. Raises KeyError."""
    description = PROFILES[name].description
    return Voice(
        id=name,
        name=name.capitalize(),
        kind="preset",
        description=description,
        speaker=list(PROFILES).index(name),
        digest=hashlib.sha256(f"preset {name}".encode()).hexdigest(),
    )
