"""Convert the folders of voices from the format of an earlier server version, or of the project sesame_csm_openai.

A folder in the earlier format contains `info.json`, `reference.wav` and possibly `transcript.txt`. A short recording
with its words is converted when the folder is read. Every other recording needs the steps of an upload: see
`convert_old_folders` in cloning.py. The old files stay, so the earlier server can still read the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from app.audio.decode import decode
from app.errors import BadReference, InvalidValue
from app.types import Reference, Voice
from app.voices.folder_store import Damaged, FolderStore
from app.voices.voice_file import (
    LANGUAGE_TAG,
    MARKER,
    MAX_DESCRIPTION_CHARS,
    MAX_NAME_CHARS,
    MAX_TRANSCRIPT_CHARS,
    REFERENCE_FILE,
    StoredVoice,
    clean_name,
    clean_text,
    read_voice,
    to_json,
    wav,
    with_recording,
)
from app.voices.window import WHOLE_MAX_S

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

OLD_MARKER = "info.json"
OLD_TRANSCRIPT = "transcript.txt"
ORIGIN = "migrated"
WAITING = (
    "This voice of an earlier version is not converted yet, because its recording is long, or its transcript is "
    "missing or too long. The server converts the voice soon after the server starts."
)
_RATE_HZ = 44_100
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_Signature = tuple[tuple[int, int] | None, ...]

# The reason why a folder can't be used if it has the files of neither format.
INCOMPLETE = (
    f"A file is missing. A folder of a voice has {MARKER} and the files that {MARKER} names, or, in the format of an "
    f"earlier version, {OLD_MARKER} (at least the JSON object {{}}), {REFERENCE_FILE} and {OLD_TRANSCRIPT} (the words "
    "of the recording)."
)


@dataclass(frozen=True, slots=True)
class OldVoice:
    """A voice in the earlier format, without its recording."""

    id: str  # the id in the current format
    aliases: tuple[str, ...]  # the ids in the earlier format, if they differ from `id`
    name: str
    description: str
    language: str
    transcript: str
    created_at: float  # Unix time in seconds


class FolderReader:
    """Reads cloned voices from their folders, and converts folders in the earlier format. Call it only under a lock."""

    def __init__(self) -> None:
        # Folder name -> the state of its files, and why it could not be converted in this state.
        self._failures: dict[str, tuple[_Signature, str]] = {}

    def __call__(self, folder: Path) -> StoredVoice:
        """Read a voice. A short recording in the earlier format is converted first. Raises Damaged, OSError."""
        if is_old(folder):
            self._convert(folder)
        if not _ID.fullmatch(folder.name):
            folder = _with_valid_name(folder)
        return _with_old_id(read_voice(folder), folder)

    def fail(self, folder: Path, reason: str) -> None:
        """Remember why a folder could not be converted. The conversion is tried again when the files of the folder
        change.
        """
        self._failures[folder.name] = (_signature(folder), reason)

    def _convert(self, folder: Path) -> None:
        """Convert a folder in the earlier format with a short recording and a transcript. Raises Damaged, OSError."""
        signature = _signature(folder)
        failed, reason = self._failures.get(folder.name, (None, ""))
        if failed == signature:  # unchanged files are not decoded again, because decoding would slow down each scan
            raise Damaged(reason)
        try:
            _convert_short(folder)
        except Damaged as error:
            self._failures[folder.name] = (signature, str(error))
            raise


def _convert_short(folder: Path) -> None:
    """Convert a folder with a transcript and a recording that needs no cutting. Raises Damaged, OSError."""
    old = read_old(folder)
    if not old.transcript or len(old.transcript) > MAX_TRANSCRIPT_CHARS:
        raise Damaged(WAITING)
    data = (folder / REFERENCE_FILE).read_bytes()
    try:
        decoded = decode(data, _RATE_HZ, max_seconds=WHOLE_MAX_S, what=REFERENCE_FILE)
        if not decoded.truncated:
            write_converted(folder, old, Reference(decoded.samples, decoded.rate_hz, old.transcript))
    except (InvalidValue, BadReference) as error:
        raise Damaged(error.message) from error
    if decoded.truncated:
        raise Damaged(WAITING)


def is_old(folder: Path) -> bool:
    """Return whether a folder has the files of the earlier format, and is not converted yet."""
    return not (folder / MARKER).exists() and (folder / REFERENCE_FILE).exists() and (folder / OLD_MARKER).exists()


def read_old(folder: Path) -> OldVoice:
    """Read a voice in the earlier format. Raises Damaged, OSError."""
    info: Any
    try:
        info = json.loads((folder / OLD_MARKER).read_bytes())
        transcript = info.get("transcript") or ""
        name = _name(str(info.get("name") or ""), folder)
        description = str(info.get("description") or "")[:MAX_DESCRIPTION_CHARS]
        description = clean_text(description, "description", MAX_DESCRIPTION_CHARS)
        language = str(info.get("language") or "en")
        old_ids = [folder.name, str(info.get("id") or folder.name)]
    except (ValueError, AttributeError, RecursionError, InvalidValue) as error:
        raise Damaged(f"{OLD_MARKER} can't be read ({error}).") from error
    if (folder / OLD_TRANSCRIPT).exists():
        transcript = (folder / OLD_TRANSCRIPT).read_text("utf-8", "replace")
    voice_id = _valid_id(folder.name)
    return OldVoice(
        id=voice_id,
        aliases=tuple(dict.fromkeys(old for old in old_ids if old != voice_id)),
        name=name,
        description=description,
        language=language if re.fullmatch(LANGUAGE_TAG, language) else "en",
        transcript=" ".join(str(transcript).split()),
        created_at=_created_at(info.get("created_at"), folder),
    )


def write_converted(
    folder: Path,
    old: OldVoice,
    reference: Reference,
    *,
    sample_count: int = 1,
    quality: Mapping[str, Any] | None = None,
) -> None:
    """Add voice.json and the recording to a folder in the earlier format. Raises BadReference, InvalidValue, OSError.

    The old files stay. If this function is interrupted at any point, it can be repeated.
    """
    voice = Voice(old.id, old.name, "cloned", old.language, old.description)
    stored, _ = with_recording(voice, reference)
    stored = replace(
        stored,
        created_at=old.created_at,
        origin=ORIGIN,
        sample_count=sample_count,
        quality=dict(quality or {}),
        file=f"reference-{stored.sha256[:12]}.wav",
        aliases=old.aliases,
    )
    folders = FolderStore(folder.parent, MARKER, read_voice)
    folders.replace_file_silently(folder.name, stored.file, wav(reference.samples, reference.rate_hz))
    folders.replace_file_silently(folder.name, MARKER, to_json(stored))
    log.info("The voice folder %s of an earlier server version was converted.", folder)


def with_changes(
    info: bytes, folder: Path, *, name: str | None, description: str | None, transcript: str | None
) -> dict[str, bytes]:
    """Return the changed files of a folder in the earlier format: file name -> content.

    info: the content of info.json; it is replaced if it is not a JSON object. name, description, transcript: the new
    values; None = no change.
    """
    try:
        content = json.loads(info)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        content = {}
    content.setdefault("name", folder.name)
    content |= {key: value for key, value in (("name", name), ("description", description)) if value is not None}
    files = {OLD_MARKER: json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")}
    if transcript is not None:
        files[OLD_TRANSCRIPT] = transcript.encode("utf-8", "replace")
    return files


def _name(name: str, folder: Path) -> str:
    """Return the name of an old voice without characters that names may not have. Raises InvalidValue."""
    for text in (name, folder.name, "Voice"):
        printable = "".join(letter if unicodedata.category(letter)[0] != "C" else " " for letter in text)
        if printable.strip():
            return clean_name(printable.strip()[:MAX_NAME_CHARS])
    return "Voice"


def _valid_id(name: str) -> str:
    """Return the name of a folder if the name is a valid voice id, else an id that is derived from the name."""
    return name if _ID.fullmatch(name) else f"voice_{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}"


def _with_valid_name(folder: Path) -> Path:
    """Rename the folder of a converted voice to a valid voice id, and return the new path.

    Raises Damaged if the folder does not contain a converted voice.
    """
    if not (folder / MARKER).exists() or read_voice(folder).origin != ORIGIN:
        raise Damaged("The folder's name is not a voice id: use 1 to 64 letters, digits, _ and -.")
    renamed = folder.with_name(_valid_id(folder.name))
    folder.rename(renamed)
    log.info(
        "The folder %s was renamed to %s, because the old name is not a valid voice id. The old name stays usable.",
        folder,
        renamed,
    )
    return renamed


def _with_old_id(stored: StoredVoice, folder: Path) -> StoredVoice:
    """Add the id in info.json as an alias, for voices that were converted before voice.json had aliases."""
    if stored.origin != ORIGIN or stored.aliases:
        return stored
    try:
        old_id = json.loads((folder / OLD_MARKER).read_bytes()).get("id")
    except (OSError, ValueError, AttributeError, RecursionError):
        return stored
    return replace(stored, aliases=(old_id,)) if isinstance(old_id, str) and old_id not in ("", stored.id) else stored


def _signature(folder: Path) -> _Signature:
    """Return a value that changes when a file of the earlier format changes."""
    found: list[tuple[int, int] | None] = []
    for name in (OLD_MARKER, REFERENCE_FILE, OLD_TRANSCRIPT):
        try:
            stat = (folder / name).stat()
            found.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


def _created_at(value: object, folder: Path) -> float:
    """Convert a number or an ISO 8601 text to Unix time in seconds.

    If `value` can't be converted, return the modification time of info.json in `folder`.
    """
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC).timestamp()
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError, OSError):
        return (folder / OLD_MARKER).stat().st_mtime
