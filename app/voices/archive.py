"""A voice as one zip, to take it to another server: voice.json, reference.wav, and consent.wav if there is one.

What comes in is trusted in nothing: known names only, sizes counted while they are read, numbers and texts checked as
in the store, the sound decoded anew in a process of its own. An import has an id of its own.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from app.audio.sandbox import Limits, decode_in_sandbox
from app.errors import BadReference, InvalidValue
from app.types import Reference
from app.voices.cloning import consent_recording
from app.voices.folder_store import Damaged
from app.voices.store import (
    CONSENT_FILE,
    MARKER,
    MAX_REFERENCE_S,
    REFERENCE_FILE,
    Consent,
    StoredVoice,
    parse,
    wav,
)

if TYPE_CHECKING:
    from app.voices.store import VoiceStore

MAX_MARKER_BYTES = 256 << 10
MAX_SOUND_BYTES = 16 << 20
MAX_ENTRIES = 8


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a zip holds, checked."""

    voice: StoredVoice
    reference: Reference
    consent: Consent


def pack(store: VoiceStore, voice_id: str) -> bytes:
    """Blocks. Raises NotFound, DamagedVoice, OSError."""
    stored = store.find(voice_id)
    reference = store.reference(stored.voice)
    consent = store.consent_recording(voice_id)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MARKER, store.marker(voice_id))
        archive.writestr(REFERENCE_FILE, wav(reference.samples, reference.rate_hz))
        if consent is not None:
            archive.writestr(CONSENT_FILE, consent)
    return file.getvalue()


def unpack(file: IO[bytes], *, limits: Limits | None = None, what: str = "file") -> Unpacked:
    """Blocks. Raises BadReference, InvalidValue: this is no exported voice, and why."""
    try:
        marker, sound, consent = _members(file, what)
    except (
        *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError),
        *(ValueError, struct.error, KeyError, MemoryError, IndexError, OverflowError),
    ) as error:
        raise BadReference(
            f"`{what}` is no zip file that can be read. Send what an export gave.", param=what
        ) from error
    try:
        voice = parse(marker, "imported")
    except Damaged as error:
        raise InvalidValue(f"`{what}`: {error}", param=what) from error
    decoded = decode_in_sandbox(sound, voice.rate_hz, max_seconds=MAX_REFERENCE_S, what=what, limits=limits)
    if decoded.truncated:
        raise BadReference(f"`{what}`: {REFERENCE_FILE} is longer than {MAX_REFERENCE_S:g} s.", param=what)
    told = voice.consent or {}
    agreed = Consent(str(told.get("text", "")), str(told.get("id", ""))[:80])
    if consent is not None:
        agreed = replace(agreed, recording=consent_recording(consent, limits=limits, what=what))
    return Unpacked(voice, Reference(decoded.samples, voice.rate_hz, voice.transcript), agreed)


def _members(file: IO[bytes], what: str) -> tuple[bytes, bytes, bytes | None]:
    """voice.json, reference.wav, and consent.wav if it is there."""
    with zipfile.ZipFile(file) as archive:
        count, names = len(archive.infolist()), set(archive.namelist())
        if count > MAX_ENTRIES:
            raise BadReference(f"`{what}` has {count} files in it; a voice has 2 or 3.", param=what)
        if not {MARKER, REFERENCE_FILE} <= names:
            raise BadReference(f"`{what}` is no exported voice: {MARKER} or {REFERENCE_FILE} is missing.", param=what)
        marker = _member(archive, MARKER, MAX_MARKER_BYTES, what)
        sound = _member(archive, REFERENCE_FILE, MAX_SOUND_BYTES, what)
        consent = _member(archive, CONSENT_FILE, MAX_SOUND_BYTES, what) if CONSENT_FILE in names else None
    return marker, sound, consent


def _member(archive: zipfile.ZipFile, name: str, most_bytes: int, what: str) -> bytes:
    """What it unpacks to is counted, whatever the archive says of its size."""
    with archive.open(name) as member:
        data = member.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise BadReference(f"`{what}`: {name} is larger than {most_bytes} bytes.", param=what)
    return data
