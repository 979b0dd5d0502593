"""The voices that can be asked for, by id."""

from __future__ import annotations

from app.errors import UnknownVoice
from app.types import Voice
from app.voices.presets import PROFILES, preset


class VoiceStore:
    """All voices of this server."""

    def __init__(self) -> None:
        self._voices = {name: preset(name) for name in PROFILES}

    def all(self) -> list[Voice]:
        return list(self._voices.values())

    def get(self, voice_id: str) -> Voice:
        """Raises UnknownVoice, which names the voices there are."""
        voice = self._voices.get(voice_id)
        if voice is None:
            known = ", ".join(f"'{name}'" for name in self._voices)
            raise UnknownVoice(f"There is no voice {voice_id[:80]!r}. Voices are: {known}.", param="voice")
        return voice
