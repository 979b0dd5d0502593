"""Metadata that says that a file is synthetic speech: the comment in the header of an audio file.

Each container has a tag `comment`: WAV as ICMT in LIST/INFO, MP3 and ADTS AAC in ID3, M4A and M4B in `moov`, Ogg and
FLAC as Vorbis comment. `Provenance.tags` returns the comment under the name that FFmpeg has for this tag, and `parse`
reads a comment. The comment never contains the spoken text.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from app import __version__

GENERATOR = f"tts-server {__version__}"
MAX_COMMENT_CHARS = 1_000
MAX_VOICES = 20
_START = "Synthetic speech"
# Terms of IPTC's vocabulary "digital source type": the first is for a model that learned from recordings, the second is
# for a program with rules.
_TRAINED, _RULES = "trainedAlgorithmicMedia", "algorithmicMedia"
_UNSAFE = re.compile(r"[;\x00-\x1f\x7f]+")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a file of synthetic speech was made."""

    model: str  # the id of the model
    voices: tuple[str, ...]  # the ids of the voices; at most MAX_VOICES of them are written
    created_s: int | None = None  # Unix time in seconds; None = not stated
    trained: bool = True  # whether a trained model speaks; False = a program with rules, such as eSpeak NG
    generator: str = GENERATOR  # the name and the version of the program

    @property
    def source_type(self) -> str:
        """IPTC's term for the source of the audio."""
        return _TRAINED if self.trained else _RULES

    @property
    def comment(self) -> str:
        """The text of the tag `comment`. People can read the text, and `parse` converts it back."""
        fields = {
            "source": self.source_type,
            "generator": self.generator,
            "model": self.model,
            "voice": ", ".join(self.voices[:MAX_VOICES]),
        }
        if self.created_s is not None:
            fields["created"] = time_text(self.created_s)
        pairs = (f"{name}={_UNSAFE.sub(' ', value)}" for name, value in fields.items())
        return "; ".join((_START, *pairs))[:MAX_COMMENT_CHARS]

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a file by FFmpeg's names: `container.metadata.update(provenance.tags)`."""
        return {"comment": self.comment}


def now_s() -> int:
    """Return the current Unix time in whole seconds, for `Provenance.created_s`."""
    return int(time.time())


def time_text(unix_s: int) -> str:
    """Return a Unix time as text, such as 2026-11-29T00:00:00Z."""
    return datetime.fromtimestamp(unix_s, UTC).strftime(_TIME)


def parse(comment: str) -> Provenance | None:
    """Read the comment of a file; None if it does not say that the file is synthetic speech. Never raises."""
    start, *pairs = comment[:MAX_COMMENT_CHARS].split("; ")
    if start != _START:
        return None
    found = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    try:
        created = datetime.strptime(found.get("created", ""), _TIME).replace(tzinfo=UTC)
        created_s = int(created.timestamp())
    except ValueError:
        created_s = None
    return Provenance(
        model=found.get("model", ""),
        voices=tuple(voice for voice in found.get("voice", "").split(", ") if voice),
        created_s=created_s,
        trained=found.get("source") != _RULES,
        generator=found.get("generator", ""),
    )
