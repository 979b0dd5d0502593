"""Recorded consents: in each recording, a speaker allows the cloning of the speaker's voice.

Each consent has its own folder, which exists until the consent is deleted. A voice that is cloned with a consent stores
the id of the consent.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import InvalidValue, NotFound
from app.types import Reference
from app.voices.folder_store import Damaged, FolderStore
from app.voices.voice_file import check_language, clean_name, read_wav, wav

if TYPE_CHECKING:
    from collections.abc import Mapping

_MARKER, _RECORDING = "consent.json", "recording.wav"


@dataclass(frozen=True, slots=True)
class StoredConsent:
    """The description of a consent, without the recording."""

    id: str
    name: str
    language: str  # BCP 47
    created_at: float  # Unix time in seconds


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the list of consents."""

    consents: tuple[StoredConsent, ...]
    has_more: bool


class ConsentStore:
    """All consents of this server. Thread-safe; every method blocks. Raises OSError if the folder can't be created."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folders = FolderStore(folder, _MARKER, _read)
        self._folders.remove_leftovers()

    def add(self, name: str, language: str, recording: Reference) -> StoredConsent:
        """Store a consent under a new id. Raises InvalidValue, NotStored."""
        name = clean_name(name)
        check_language(language)
        consent = StoredConsent(f"cons_{secrets.token_hex(12)}", name, language, time.time())
        files = {_RECORDING: wav(recording.samples, recording.rate_hz), _MARKER: _as_json(consent)}
        self._folders.create(consent.id, files)
        return consent

    def find(self, consent_id: str) -> StoredConsent:
        """Find a consent by its id. Raises NotFound."""
        found = self._all().get(consent_id)
        if found is None:
            raise _no_consent(consent_id)
        return found

    def recording(self, consent_id: str) -> Reference:
        """Read the recording of a consent. Raises NotFound, OSError, ValueError."""
        consent = self.find(consent_id)
        samples, rate_hz = read_wav((self._folders.folder / consent.id / _RECORDING).read_bytes())
        return Reference(samples, rate_hz, "")

    def page(self, after: str | None, limit: int) -> Page:
        """Return at most `limit` consents, newest first.

        after: id of the last consent of the previous page; None = start with the newest consent. Raises NotFound if
        `after` is unknown.
        """
        ordered = sorted(self._all().values(), key=lambda consent: (consent.created_at, consent.id), reverse=True)
        start = 0
        if after is not None:
            self.find(after)
            start = [consent.id for consent in ordered].index(after) + 1
        return Page(tuple(ordered[start : start + limit]), len(ordered) > start + limit)

    def rename(self, consent_id: str, name: str) -> StoredConsent:
        """Change the name of a consent. Raises NotFound, InvalidValue, NotStored."""
        changed = replace(self.find(consent_id), name=clean_name(name))
        try:
            self._folders.replace_file(consent_id, _MARKER, _as_json(changed))
        except FileNotFoundError as error:
            raise _no_consent(consent_id) from error
        return changed

    def delete(self, consent_id: str) -> None:
        """Delete a consent. Voices that were cloned with this consent keep a copy of it. Raises NotFound, NotStored."""
        self.find(consent_id)
        self._folders.remove(consent_id)

    def _all(self) -> Mapping[str, StoredConsent]:
        self._folders.refresh()
        return self._folders.records


def _no_consent(consent_id: str) -> NotFound:
    return NotFound(f"There is no voice consent {consent_id[:80]!r}.", param="consent")


def _as_json(consent: StoredConsent) -> bytes:
    content = {
        "format": 1,
        "name": consent.name,
        "language": consent.language,
        "created_at": datetime.fromtimestamp(consent.created_at, UTC).isoformat(),
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def _read(folder: Path) -> StoredConsent:
    try:
        data: Any = json.loads((folder / _MARKER).read_bytes())
        created_at = datetime.fromisoformat(data["created_at"]).timestamp()
        return StoredConsent(folder.name, clean_name(data["name"]), str(data["language"]), created_at)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidValue) as error:
        raise Damaged(f"{_MARKER} can't be read ({type(error).__name__}).") from error
