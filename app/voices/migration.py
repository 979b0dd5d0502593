"""Convert the folders of voices from the format of an earlier server version to the current format.

A folder in the earlier format contains `info.json`, `reference.wav` and `transcript.txt`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from app.audio import pcm
from app.audio.decode import decode
from app.errors import BadReference, InvalidValue
from app.types import Voice
from app.voices.folder_store import Damaged, FolderStore
from app.voices.voice_file import (
    MARKER,
    MAX_DESCRIPTION_CHARS,
    MAX_NAME_CHARS,
    MAX_REFERENCE_S,
    MAX_TRANSCRIPT_CHARS,
    REFERENCE_FILE,
    StoredVoice,
    clean_name,
    clean_text,
    read_voice,
    samples_digest,
    to_json,
    voice_digest,
    wav,
)

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_LEGACY_MARKER = "info.json"
_LEGACY_TRANSCRIPT = "transcript.txt"
_RATE_HZ = 44_100
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def read_or_migrate(folder: Path) -> StoredVoice:
    """Read a cloned voice from its folder. Raises Damaged, OSError.

    A folder that an earlier version of the server wrote is converted first.
    """
    if not (folder / MARKER).exists() and (folder / REFERENCE_FILE).exists() and (folder / _LEGACY_MARKER).exists():
        if not _ID.fullmatch(folder.name):  # earlier versions used the typed name of the voice as folder name
            safe = folder.with_name(f"voice_{hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:24]}")
            folder.rename(safe)
            log.info("Renamed %s to %s, because the old name is not a valid voice id.", folder, safe)
            folder = safe
        migrate(folder)
    if not _ID.fullmatch(folder.name):
        raise Damaged("The folder's name is not a voice id: use 1 to 64 letters, digits, _ and -.")
    return read_voice(folder)


def migrate(folder: Path) -> None:
    """Add voice.json and a mono recording to a folder that an earlier version wrote. Raises Damaged, OSError.

    If the conversion is interrupted at any point, it can be repeated. The old files stay, so an earlier version of the
    server can still read the folder.
    """
    info: Any
    try:
        info = json.loads((folder / _LEGACY_MARKER).read_bytes())
        transcript = info.get("transcript") or ""
        name = clean_name(str(info.get("name") or folder.name)[:MAX_NAME_CHARS])
        description = str(info.get("description") or "")[:MAX_DESCRIPTION_CHARS]
        description = clean_text(description, "description", MAX_DESCRIPTION_CHARS)
    except (ValueError, AttributeError, RecursionError, InvalidValue) as error:
        raise Damaged(f"{_LEGACY_MARKER} can't be read ({error}).") from error
    if (folder / _LEGACY_TRANSCRIPT).exists():
        transcript = (folder / _LEGACY_TRANSCRIPT).read_text("utf-8", "replace")
    try:
        transcript = clean_text(str(transcript), "transcript", MAX_TRANSCRIPT_CHARS)
        data = (folder / REFERENCE_FILE).read_bytes()
        decoded = decode(data, _RATE_HZ, max_seconds=MAX_REFERENCE_S, what=REFERENCE_FILE)
    except (InvalidValue, BadReference) as error:
        raise Damaged(error.message) from error
    if decoded.truncated:
        raise Damaged(f"{REFERENCE_FILE} is longer than {MAX_REFERENCE_S:g} s.")
    if not transcript:
        raise Damaged(
            f"This voice of an earlier version has no transcript. Write the recorded words to {_LEGACY_TRANSCRIPT}."
        )
    samples = pcm.from_bytes(pcm.to_bytes(decoded.samples))
    sha256 = samples_digest(samples)
    language = str(info.get("language") or "en")
    digest = voice_digest(sha256, transcript)
    stored = StoredVoice(
        voice=Voice(folder.name, name, "cloned", language, description, digest=digest, recorded=True),
        transcript=transcript,
        rate_hz=decoded.rate_hz,
        samples=len(samples),
        created_at=_created_at(info.get("created_at"), folder),
        origin="migrated",
        file=f"reference-{sha256[:12]}.wav",
        sha256=sha256,
    )
    folders = FolderStore(folder.parent, MARKER, read_voice)
    folders.replace_file_silently(folder.name, stored.file, wav(samples, decoded.rate_hz))
    folders.replace_file_silently(folder.name, MARKER, to_json(stored))
    log.info("Migrated the voice folder %s from an earlier version.", folder)


def _created_at(value: object, folder: Path) -> float:
    """Convert a number or an ISO 8601 text to Unix time in seconds.

    If `value` can't be converted, return the modification time of info.json in `folder`.
    """
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC).timestamp()
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError, OSError):
        return (folder / _LEGACY_MARKER).stat().st_mtime
