"""Recorded agreements of speakers, which voices refer to: kept until they are deleted, one folder each."""

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
from app.voices.store import VoiceStore, clean_name, read_wav, wav

if TYPE_CHECKING:
    from collections.abc import Mapping

_MARKER, _RECORDING = "consent.json", "recording.wav"


@dataclass(frozen=True, slots=True)
class StoredConsent:
    """created_at: seconds of Unix time. language: BCP 47."""

    id: str
    name: str
    language: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Page:
    consents: tuple[StoredConsent, ...]
    has_more: bool


class ConsentStore:
    """All agreements. Any thread; every call blocks. Raises OSError where the folder can't be had."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._shelf = FolderStore(folder, _MARKER, _read)
        self._shelf.sweep()

    def add(self, name: str, language: str, recording: Reference) -> StoredConsent:
        """Raises InvalidValue, NotStored."""
        VoiceStore.check(name, language=language)
        consent = StoredConsent(f"cons_{secrets.token_hex(12)}", clean_name(name), language, time.time())
        self._shelf.put(consent.id, {_RECORDING: wav(recording.samples, recording.rate_hz), _MARKER: _as_json(consent)})
        return consent

    def find(self, consent_id: str) -> StoredConsent:
        """Raises NotFound."""
        found = self._all().get(consent_id)
        if found is None:
            raise NotFound(f"There is no voice consent {consent_id[:80]!r}.", param="consent")
        return found

    def recording(self, consent_id: str) -> Reference:
        """What was said. Raises NotFound, OSError, ValueError."""
        consent = self.find(consent_id)
        samples, rate_hz = read_wav((self._shelf.folder / consent.id / _RECORDING).read_bytes())
        return Reference(samples, rate_hz, "")

    def page(self, after: str | None, limit: int) -> Page:
        """The newest first; `after`: those that follow this one. Raises NotFound."""
        ordered = sorted(self._all().values(), key=lambda consent: (consent.created_at, consent.id), reverse=True)
        start = 0
        if after is not None:
            self.find(after)
            start = [consent.id for consent in ordered].index(after) + 1
        return Page(tuple(ordered[start : start + limit]), len(ordered) > start + limit)

    def rename(self, consent_id: str, name: str) -> StoredConsent:
        """Raises NotFound, InvalidValue, NotStored."""
        changed = replace(self.find(consent_id), name=clean_name(name))
        try:
            self._shelf.replace(consent_id, _MARKER, _as_json(changed))
        except FileNotFoundError as error:
            raise NotFound(f"There is no voice consent {consent_id[:80]!r}.", param="consent") from error
        return changed

    def delete(self, consent_id: str) -> None:
        """Voices made with it keep their copy of it. Raises NotFound, NotStored."""
        self.find(consent_id)
        self._shelf.drop(consent_id)

    def _all(self) -> Mapping[str, StoredConsent]:
        self._shelf.refresh()
        return self._shelf.records


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
        said: Any = json.loads((folder / _MARKER).read_bytes())
        moment = datetime.fromisoformat(said["created_at"]).timestamp()
        return StoredConsent(folder.name, clean_name(said["name"]), str(said["language"]), moment)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidValue) as error:
        raise Damaged(f"{_MARKER} can't be read ({type(error).__name__}).") from error
