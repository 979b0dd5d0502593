"""Export and import of a voice as one zip file.

The zip file contains voice.json and reference.wav, and consent.wav and lexicon.tsv if the voice has them.

An imported zip file is untrusted. Only files with known names are read, and their sizes are limited while they are
read. Numbers and texts are checked in the same way as for a new voice. The audio is decoded in the sandbox. An imported
voice gets a new id.
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
from app.voices.voice_file import (
    CONSENT_FILE,
    LEXICON_FILE,
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
MAX_WAV_BYTES = 16 << 20
MAX_LEXICON_BYTES = 32 << 20
MAX_ENTRIES = 8


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The checked content of an exported voice."""

    voice: StoredVoice
    reference: Reference
    consent: Consent
    lexicon: bytes | None = None  # the voice's dictionary file; its content is not checked


def pack(store: VoiceStore, voice_id: str) -> bytes:
    """Export a cloned voice as a zip file. Blocks. Raises NotFound, DamagedVoice, OSError."""
    stored = store.find(voice_id)
    reference = store.reference(stored.voice)
    consent = store.consent_recording(voice_id)
    lexicon = store.lexicon_file(voice_id)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MARKER, store.marker(voice_id))
        archive.writestr(REFERENCE_FILE, wav(reference.samples, reference.rate_hz))
        if consent is not None:
            archive.writestr(CONSENT_FILE, consent)
        if lexicon is not None:
            archive.writestr(LEXICON_FILE, lexicon)
    return file.getvalue()


def unpack(file: IO[bytes], *, limits: Limits | None = None, what: str = "file") -> Unpacked:
    """Read and check an exported voice. Blocks. Raises BadReference or InvalidValue with the reason."""
    try:
        marker, recording, consent_wav, lexicon = _members(file, what)
    except (
        *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError),
        *(ValueError, struct.error, KeyError, MemoryError, IndexError, OverflowError),
    ) as error:
        raise BadReference(
            f"`{what}` can't be read as a zip file. Send a file that the export returned.", param=what
        ) from error
    try:
        voice = parse(marker, "imported")
    except Damaged as error:
        raise InvalidValue(f"`{what}`: {error}", param=what) from error
    decoded = decode_in_sandbox(recording, voice.rate_hz, max_seconds=MAX_REFERENCE_S, what=what, limits=limits)
    if decoded.truncated:
        raise BadReference(f"`{what}`: {REFERENCE_FILE} is longer than {MAX_REFERENCE_S:g} s.", param=what)
    consent_json = voice.consent or {}
    consent = Consent(str(consent_json.get("text", "")), str(consent_json.get("id", ""))[:80])
    if consent_wav is not None:
        consent = replace(consent, recording=consent_recording(consent_wav, limits=limits, what=what))
    return Unpacked(voice, Reference(decoded.samples, voice.rate_hz, voice.transcript), consent, lexicon)


def _members(file: IO[bytes], what: str) -> tuple[bytes, bytes, bytes | None, bytes | None]:
    """Return the files voice.json, reference.wav, consent.wav and lexicon.tsv of an exported voice.

    consent.wav and lexicon.tsv are None if they are missing.
    """
    with zipfile.ZipFile(file) as archive:
        count, names = len(archive.infolist()), set(archive.namelist())
        if count > MAX_ENTRIES:
            raise BadReference(f"`{what}` contains {count} files; an exported voice contains 2 to 4.", param=what)
        if not {MARKER, REFERENCE_FILE} <= names:
            raise BadReference(
                f"`{what}` is not an exported voice: {MARKER} or {REFERENCE_FILE} is missing.", param=what
            )
        marker = _member(archive, MARKER, MAX_MARKER_BYTES, what)
        recording = _member(archive, REFERENCE_FILE, MAX_WAV_BYTES, what)
        consent_wav = _member(archive, CONSENT_FILE, MAX_WAV_BYTES, what) if CONSENT_FILE in names else None
        lexicon = _member(archive, LEXICON_FILE, MAX_LEXICON_BYTES, what) if LEXICON_FILE in names else None
    return marker, recording, consent_wav, lexicon


def _member(archive: zipfile.ZipFile, name: str, max_bytes: int, what: str) -> bytes:
    """Read one file of a zip archive. Raises BadReference if the file has more than `max_bytes` bytes.

    The unpacked bytes are counted, because the size in the header of the archive can be wrong.
    """
    with archive.open(name) as member:
        data = member.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise BadReference(f"`{what}`: {name} is larger than {max_bytes} bytes.", param=what)
    return data
