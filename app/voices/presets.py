"""The names and profiles of the preset voices. Each engine creates recordings that match these profiles."""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass

from app.types import Voice


@dataclass(frozen=True, slots=True)
class Profile:
    """The properties that a recording of a preset voice should have."""

    description: str
    pitch_hz: float  # median pitch, as app/voices/voice_features.py measures it
    brightness_db: float  # energy above 2 kHz relative to the energy below 2 kHz, as voice_features.py measures it


# The thirteen voice names of OpenAI's speech endpoint. People who read aloud typically have a pitch of 85 to 155 Hz
# (men) or 165 to 255 Hz (women).
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
UNNAMED_VOICE = ""  # stands for the default voice of a model until the model of a request is known

# The name of a voice of the model Kokoro has three parts: the accent (a = American, b = British English), the sex, and
# a name. Names that are joined with `+` mean a mix of voices, and a number in brackets is the share of a voice.
_KOKORO = re.compile(r"(?P<kind>[abefhijpz][fm])_(?P<name>[a-z0-9_]+?)(?:\([0-9.]+\))?|(?P<only>[ab][fm])")
_BY_KIND = {
    "af": ("nova", "coral", "shimmer"),
    "am": ("echo", "ash", "cedar", "onyx", "verse"),
    "bf": ("marin", "sage"),
    "bm": ("ballad", "fable"),
}


def standard_voices_of(kokoro: str) -> tuple[str, ...]:
    """Return for each Kokoro voice in `kokoro` a preset voice of the same sex and, for English, the same accent.

    kokoro: one name, or several names with `+` between them. A name that contains the name of a preset voice gives
    this preset voice: "af_nova" -> ("nova",). The choice depends only on the name. Returns () if `kokoro` contains
    anything other than names of Kokoro voices.
    """
    found = []
    for part in kokoro.strip().casefold().split("+"):
        matched = _KOKORO.fullmatch(part.strip())
        if matched is None:
            return ()
        kind, name = matched["kind"] or matched["only"], matched["name"] or ""
        group = _BY_KIND.get(kind) or _BY_KIND["a" + kind[1]]
        found.append(name if name in PROFILES else group[zlib.crc32(part.strip().encode()) % len(group)])
    return tuple(found)


# The voice for a conversation request without the field `voice`. The model gets no recording, so the earlier turns
# decide how the speaker sounds. No list of voices contains this voice, and a request can't select it.
NO_VOICE = Voice(id="none", name="None", kind="none", digest=hashlib.sha256(b"no voice").hexdigest())

_SPEAKER = re.compile(r"speaker:(0|[1-9]\d{0,2})")


def speaker_voice(voice: str) -> Voice | None:
    """Return the voice `speaker:N`: speaker N of the model, without a recording. Returns None for any other name."""
    if (match := _SPEAKER.fullmatch(voice)) is None:
        return None
    digest = hashlib.sha256(voice.encode()).hexdigest()
    return Voice(id=voice, name=f"Speaker {match[1]}", kind="none", speaker=int(match[1]), digest=digest)


def is_speaker(voice: Voice) -> bool:
    """Return whether the model knows a voice by a speaker number: `speaker:N` or the voice of an adapter."""
    return voice.kind == "adapter" or (voice.kind == "none" and voice.id != NO_VOICE.id)


def preset(name: str) -> Voice:
    """Return the preset voice with this name, without a recording. Raises KeyError for an unknown name."""
    description = PROFILES[name].description
    return Voice(
        id=name,
        name=name.capitalize(),
        kind="preset",
        description=description,
        speaker=list(PROFILES).index(name),
        digest=hashlib.sha256(f"preset {name}".encode()).hexdigest(),
    )
