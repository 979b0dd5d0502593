"""All voices of this server: lookup by id or name, and the folders where recordings, transcripts and codes are stored.

Each cloned voice has a folder below `cloned_voices`. Each preset voice with a recording has a folder below
`voice_references`. The files in a folder are:

    voice.json      name, description, transcript, digest, quality report, consent, the name of the recording's file
    reference.wav   the recording: mono, 16 bit
    consent.wav     the recorded consent, if there is one
    lexicon.tsv     how this voice pronounces words, if it has such a dictionary
    codes-*.npy     the recording as codec codes, int16 (K, T); created when first needed

Processes that share the folders see each other's changes after at most `REFRESH_S` plus one scan. The file format is in
`voice_file.py`. This module does not depend on HTTP or engines.
"""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import DamagedVoice, InvalidValue, NotFound, UnknownVoice
from app.types import Reference, Voice
from app.voices.folder_store import FolderStore
from app.voices.migration import INCOMPLETE, OLD_MARKER, WAITING, FolderReader, OldVoice, with_changes, write_converted
from app.voices.presets import NO_VOICE, PROFILES, preset, speaker_voice
from app.voices.quality import with_transcript_checks
from app.voices.voice_file import (
    CONSENT_FILE,
    LEXICON_FILE,
    MARKER,
    MAX_CONSENT_CHARS,
    MAX_DESCRIPTION_CHARS,
    MAX_NAME_CHARS,
    REFERENCE_FILE,
    Consent,
    StoredVoice,
    check_language,
    clean_color,
    clean_name,
    clean_tags,
    clean_text,
    clean_transcript,
    codes_file,
    name_key,
    new_voice,
    read_voice,
    read_wav,
    samples_digest,
    to_json,
    voice_digest,
    with_recording,
)

if TYPE_CHECKING:
    from app.types import Codec, Codes

log = logging.getLogger(__name__)

DRAFT_S = 1800.0  # lifetime of a draft, which is a checked recording that is not a voice yet
REFRESH_S = 1.0  # minimum time between two scans of the folders
LISTED_VOICES = 30  # the error about an unknown voice lists at most this many ids
DRAFT_PREFIX = "draft_"


@dataclass(frozen=True, slots=True)
class _Index:
    """A snapshot of all voices. Lookups use the snapshot without a lock."""

    by_id: Mapping[str, Voice]
    by_name: Mapping[str, str]  # name_key(name) -> id
    by_alias: Mapping[str, str]  # an earlier id in Unicode NFC -> the current id
    stored: Mapping[str, StoredVoice]
    drafts: Mapping[str, StoredVoice]


class VoiceStore:
    """All voices of this server. Thread-safe. Lookups never block.

    `refresh` and all methods that change a voice block, so call them from another thread than the event loop's.

    cloned: folder for cloned voices; None = cloned voices can't be stored.
    references: folder for recordings of preset voices; None = preset voices have no recordings.
    Raises OSError if a folder can't be created or read.
    """

    def __init__(self, cloned: Path | None = None, references: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._doubtful: dict[str, str] = {}
        # Id of a voice -> the digest of its recording and words, and their quality report (as JSON).
        self._measured: dict[str, tuple[str, Mapping[str, Any]]] = {}
        # Returns the voices of LoRA adapters by name in lower case.
        self.adapter_voices: Callable[[], Mapping[str, Voice]] = dict
        # Returns the name of the voice that is used if a request names no voice. If this voice is a speaker of the
        # model (`speaker:N`), `all` lists it first.
        self.default_voice: Callable[[], str] = str
        self._refreshed_s = time.monotonic()
        self._reader = FolderReader()
        self._cloned = None if cloned is None else FolderStore(cloned, MARKER, self._reader, missing=INCOMPLETE)
        self._references = (
            None if references is None else FolderStore(references, MARKER, read_voice, PROFILES.__contains__)
        )
        self._drafts = None if cloned is None else FolderStore(cloned / ".drafts", MARKER, read_voice)
        for folders in self._folder_stores:
            folders.folder.mkdir(parents=True, exist_ok=True)
            folders.remove_leftovers()
            folders.refresh(full=True)
        if self._cloned is not None:
            # The first scan may have renamed folders; this scan finds them under their new names.
            self._cloned.refresh(full=True)
        self._remove_old_drafts()
        self._index = self._build_index()

    @property
    def _folder_stores(self) -> list[FolderStore[StoredVoice]]:
        return [folders for folders in (self._cloned, self._references, self._drafts) if folders is not None]

    # ---- lookup

    @property
    def stale(self) -> bool:
        """Whether the last `refresh` is more than REFRESH_S ago.

        `refresh` blocks, so code on an event loop must call it in a thread.
        """
        return time.monotonic() - self._refreshed_s > REFRESH_S

    def refresh(self) -> None:
        """Load changes that other processes made. Takes one stat call per folder if nothing changed. Never raises."""
        with self._lock:
            try:
                changed = [folders.refresh() for folders in self._folder_stores]
            except OSError as error:
                log.warning("The voice folders can't be read, so changes of other processes are not loaded: %s", error)
                changed = []
            self._refreshed_s = time.monotonic()
            if any(changed):
                self._index = self._build_index()

    def all(self) -> list[Voice]:
        """Return the preset voices, then the cloned voices from oldest to newest, then the voices of adapters.

        If the default voice is a speaker of the model (`speaker:N`), it comes first.
        """
        speaker = speaker_voice(self.default_voice())
        return [*([speaker] if speaker else []), *self._index.by_id.values(), *self.adapter_voices().values()]

    def get(self, voice: str) -> Voice:
        """Find a voice by its id, its name or an earlier id. The case of names does not matter. Raises UnknownVoice."""
        index = self._index
        found = self.known(voice) or self.adapter_voices().get(voice.casefold())
        if found is None and (speaker := speaker_voice(voice)) is not None:
            return speaker
        if found is None and voice.startswith(DRAFT_PREFIX):
            return self.draft(voice).voice
        if found is None:
            ids = list(index.by_id)
            listed = ", ".join(
                f"'{each.id}'" + (f" ({each.name})" if each.kind == "cloned" else "")
                for each in (index.by_id[voice_id] for voice_id in ids[:LISTED_VOICES])
            )
            more = f" and {len(ids) - LISTED_VOICES} more, see GET /v1/audio/voices" if len(ids) > LISTED_VOICES else ""
            raise UnknownVoice(f"There is no voice {voice[:80]!r}. Voices are: {listed}{more}.", param="voice")
        return found

    def known(self, voice: str) -> Voice | None:
        """Find a preset voice or a cloned voice by its id, its name or an earlier id; None = there is none."""
        index = self._index
        return (
            index.by_id.get(voice)
            or index.by_id.get(index.by_name.get(name_key(voice), ""))
            or index.by_id.get(index.by_alias.get(_alias_key(voice), ""))
        )

    def has(self, voice: str) -> bool:
        """Return whether a voice has this id or name."""
        index = self._index
        return voice in index.by_id or name_key(voice) in index.by_name or voice.casefold() in self.adapter_voices()

    def stored(self) -> list[StoredVoice]:
        """Return the cloned voices, oldest first."""
        return [voice for voice in self._index.stored.values() if voice.voice.kind == "cloned"]

    def find(self, voice_id: str) -> StoredVoice:
        """Find a cloned voice by its id or an earlier id. Raises NotFound."""
        index = self._index
        found = index.stored.get(voice_id) or index.stored.get(index.by_alias.get(_alias_key(voice_id), ""))
        if found is None or found.voice.kind != "cloned":
            named = index.by_name.get(name_key(voice_id))
            if voice_id in PROFILES or named in PROFILES:
                raise NotFound(f"{voice_id!r} is a preset voice, not a cloned voice.", param="id")
            if voice_id in self.refused:
                reason = self.refused[voice_id]
                raise NotFound(f"The folder {voice_id[:80]!r} is not usable as a voice. {reason}", param="id")
            if named is not None:
                raise NotFound(
                    f"There is no cloned voice with the id {voice_id[:80]!r}. The voice with this name has the id "
                    f"{named!r}. Use the id here.",
                    param="id",
                )
            raise _no_cloned_voice(voice_id)
        return found

    def draft(self, draft_id: str) -> StoredVoice:
        """Find a draft that is younger than DRAFT_S. Raises UnknownVoice."""
        found = self._index.drafts.get(draft_id)
        if found is None or time.time() - found.created_at > DRAFT_S:
            raise UnknownVoice(
                f"There is no draft {draft_id[:80]!r}, or it is older than {DRAFT_S / 60:g} minutes. Send the "
                "recording again.",
                param="draft_id",
            )
        return found

    def recording_of(self, preset_id: str) -> StoredVoice | None:
        """Return a preset voice with its recording; None if the voice has no recording."""
        return self._index.stored.get(preset_id)

    @property
    def problems(self) -> dict[str, str]:
        """The folders that can't be read as voices: path inside the data folder -> reason."""
        return {
            f"{folders.folder.name}/{name}": reason
            for folders in self._folder_stores
            for name, reason in folders.problems.items()
        }

    @property
    def refused(self) -> dict[str, str]:
        """The folders below `cloned_voices` that can't be used as voices: folder name -> reason."""
        return {} if self._cloned is None else dict(self._cloned.problems)

    @property
    def doubtful(self) -> dict[str, str]:
        """Recordings that are not used or that may give a bad voice: path inside the data folder -> reason."""
        return dict(self._doubtful)

    @property
    def flagged(self) -> dict[str, str]:
        """All entries of `problems` and `doubtful`."""
        return {**self.problems, **self.doubtful}

    def mark_doubtful(self, path: str, reason: str) -> None:
        """Add an entry to `doubtful`. The entry stays until the voice is deleted or changed, or this process ends."""
        self._doubtful[path] = reason

    def add_measured(self, stored: StoredVoice, report: Mapping[str, Any]) -> None:
        """Keep the measured quality report (as JSON) of a voice whose folder has no report, until this process ends."""
        self._measured[stored.voice.id] = stored.voice.digest, report

    def quality_of(self, stored: StoredVoice) -> Mapping[str, Any]:
        """Return the stored quality report of a voice, or else the measured report; {} if the voice has neither."""
        digest, report = self._measured.get(stored.voice.id, ("", {}))
        return report if not stored.quality.get("level") and digest == stored.voice.digest else stored.quality

    @property
    def references(self) -> Path | None:
        """The folder for recordings of preset voices."""
        return None if self._references is None else self._references.folder

    def recorded(self) -> list[StoredVoice]:
        """Return all voices with a recording: preset voices and cloned voices."""
        return list(self._index.stored.values())

    # ---- recordings and codes

    def reference(self, voice: Voice) -> Reference:
        """Read the recording of a voice and check the digest of the samples. Blocks.

        Raises DamagedVoice if the file can't be read or the digest is wrong; UnknownVoice if the voice was deleted or
        changed after the caller looked up `voice`.
        """
        stored = self._current(voice)
        path = self._folders_of(voice).folder / voice.id / stored.file
        try:
            samples, rate_hz = read_wav(path.read_bytes())
        except (OSError, ValueError) as error:
            with self._lock, contextlib.suppress(OSError):
                self._rescan()
            self._current(voice)  # another process may have changed or deleted the voice since the last scan
            raise _damaged(stored) from error
        if samples_digest(samples) != stored.sha256 or rate_hz != stored.rate_hz:
            raise _damaged(stored)
        return Reference(samples, rate_hz, stored.transcript)

    def _current(self, voice: Voice) -> StoredVoice:
        """Return the StoredVoice of a voice. Raises UnknownVoice if the voice was deleted or its digest has changed."""
        stored = self._index.stored.get(voice.id) or self._index.drafts.get(voice.id)
        if stored is None or stored.voice.digest != voice.digest:
            raise UnknownVoice(f"The voice {voice.name!r} was deleted or changed just now. Try again.", param="voice")
        return stored

    def marker(self, voice_id: str) -> bytes:
        """Return voice.json of a cloned voice for an export.

        In the export, the file name of the recording is reference.wav. Raises NotFound.
        """
        return to_json(replace(self.find(voice_id), file=REFERENCE_FILE))

    def consent_recording(self, voice_id: str) -> bytes | None:
        """Return the recorded consent of a cloned voice as a WAV file; None if the voice has no recorded consent.

        Raises NotFound, OSError.
        """
        consent = self.find(voice_id).consent
        if self._cloned is None or not consent or not consent.get("file"):
            return None
        return (self._cloned.folder / voice_id / CONSENT_FILE).read_bytes()

    def folder_of(self, voice_id: str) -> Path | None:
        """Return the folder of a cloned voice; None if this voice is not a cloned voice."""
        found = self._index.stored.get(voice_id)
        return self._cloned.folder / voice_id if self._cloned and found and found.voice.kind == "cloned" else None

    def lexicon_file(self, voice_id: str) -> bytes | None:
        """Return the dictionary file of a cloned voice; None if the voice has none. Raises OSError."""
        folder = self.folder_of(voice_id)
        try:
            return None if folder is None else (folder / LEXICON_FILE).read_bytes()
        except FileNotFoundError:
            return None

    def codes(self, voice: Voice, codec: Codec, fingerprint: str) -> Codes | None:
        """Return the stored codec codes (K, T) int16 of a voice; None if the recording must be encoded.

        fingerprint: identifies the weights of the encoder.
        """
        path = self._folders_of(voice).folder / voice.id / codes_file(voice, codec, fingerprint)
        try:
            codes = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            log.warning("The file %s can't be read, so the recording is encoded again: %s", path, error)
            return None
        if not isinstance(codes, np.ndarray) or codes.dtype != np.int16 or codes.ndim != 2:
            log.warning("The file %s contains no int16 codes, so the recording is encoded again.", path)
            return None
        return codes

    def keep_codes(self, voice: Voice, codec: Codec, fingerprint: str, codes: Codes) -> None:
        """Store codec codes in the folder of a voice.

        Never raises: if the codes can't be stored, the recording is encoded again later.
        """
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(codes, dtype=np.int16), allow_pickle=False)
        folders = self._folders_of(voice)
        try:
            folders.replace_file_silently(voice.id, codes_file(voice, codec, fingerprint), file.getvalue())
        except Exception as error:  # noqa: BLE001 - the request that needs the codes must not fail
            log.warning(
                "The codes of the voice %s could not be stored, so its recording will be encoded again: %s",
                voice.id,
                error,
            )

    # ---- writing

    @staticmethod
    def check(name: str, *, description: str = "", language: str = "en", consent: str = "") -> None:
        """Check the texts of a new voice in the same way as `add`. Raises InvalidValue.

        A caller can check the texts before it processes a recording, which takes seconds.
        """
        clean_name(name)
        clean_text(description, "description", MAX_DESCRIPTION_CHARS)
        clean_text(consent, "consent", MAX_CONSENT_CHARS)
        check_language(language)

    def add(
        self,
        name: str,
        reference: Reference,
        *,
        description: str = "",
        language: str = "en",
        sample_count: int = 1,
        quality: Mapping[str, Any] | None = None,
        consent: Consent | None = None,
        origin: str = "upload",
    ) -> StoredVoice:
        """Store a new cloned voice under a new id. A name that is taken gets a number: "Anna (2)".

        The voice is on disk when this method returns. Blocks. Raises InvalidValue, BadReference, NotStored, Busy.
        """
        folders = self._writable()
        name = clean_name(name)
        stored, files = new_voice(reference, description, language, consent or Consent())
        stored = replace(stored, sample_count=sample_count, quality=dict(quality or {}), origin=origin)
        with self._lock, folders.locked():
            self._rescan()
            voice = replace(stored.voice, id=f"voice_{secrets.token_hex(12)}", name=self._free_name(name))
            folders.create(voice.id, {**files, MARKER: to_json(replace(stored, voice=voice))})
            self._index = self._build_index()
            return self._index.stored[voice.id]

    def add_draft(
        self, reference: Reference, *, language: str = "en", sample_count: int, quality: Mapping[str, Any]
    ) -> StoredVoice:
        """Store a draft for DRAFT_S: a checked recording from which a voice can be cloned without a second upload.

        The id of the draft can be used as a voice. This method also removes expired drafts. Blocks. Raises NotFound,
        BadReference, NotStored.
        """
        folders = self._drafts
        if folders is None:
            raise NotFound("This server has no folder for cloned voices, so it can't store a voice.")
        stored, files = new_voice(reference, "", language, Consent())
        voice = replace(stored.voice, id=f"{DRAFT_PREFIX}{secrets.token_hex(12)}", name="Draft")
        stored = replace(stored, voice=voice, sample_count=sample_count, quality=dict(quality), origin="draft")
        with self._lock:
            folders.create(voice.id, {**files, MARKER: to_json(stored)})
            self._remove_old_drafts()
            self._index = self._build_index()
        return stored

    def _remove_old_drafts(self) -> None:
        if self._drafts is None:
            return
        for name, draft in self._drafts.records.items():
            if time.time() - draft.created_at > DRAFT_S:
                self._drafts.remove(name)

    def drop_draft(self, draft_id: str) -> None:
        """Remove a draft, for example because it has become a voice. Raises NotStored."""
        with self._lock:
            if self._drafts is not None and draft_id in self._drafts.records:
                self._drafts.remove(draft_id)
            self._index = self._build_index()

    def change(
        self,
        voice_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        transcript: str | None = None,
        tags: Sequence[str] | None = None,
        color: str | None = None,
        quality: Mapping[str, Any] | None = None,
    ) -> StoredVoice:
        """Change fields of a cloned voice and return the voice. A field that is None does not change. Blocks.

        color: `#rrggbb`, or "" for none. quality: the quality report with the checks of the new transcript. Raises
        NotFound, InvalidValue, NotStored, Busy.
        """
        folders = self._writable()
        with self._lock, folders.locked():
            self._rescan()
            old = self.find(voice_id)
            voice_id = old.id
            voice, words = old.voice, old.transcript
            if name is not None:
                voice = replace(voice, name=self._free_name(clean_name(name), owner=voice_id))
            if description is not None:
                voice = replace(voice, description=clean_text(description, "description", MAX_DESCRIPTION_CHARS))
            if tags is not None:
                voice = replace(voice, tags=clean_tags(tags))
            if color is not None:
                voice = replace(voice, color=clean_color(color))
            if transcript is not None:
                words = clean_transcript(transcript)
                if not words:
                    raise InvalidValue(
                        "`transcript` is empty. Send the exact words of the recording.", param="transcript"
                    )
                voice = replace(voice, digest=voice_digest(old.sha256, words), needs_words=False)
            changed = replace(old, voice=voice, transcript=words)
            if quality is not None:
                changed = replace(changed, quality=dict(quality))
            elif words != old.transcript:
                changed = replace(changed, quality=with_transcript_checks(old.quality))
            try:
                folders.replace_file(voice_id, MARKER, to_json(changed))
            except FileNotFoundError as error:
                raise _no_cloned_voice(voice_id) from error
            self._index = self._build_index()
            if words != old.transcript:
                self._doubtful.pop(f"{folders.folder.name}/{voice_id}", None)
            self._remove_old_codes(folders.folder / voice_id, voice.digest)
            return self.find(voice_id)

    def delete(self, voice_id: str) -> str:
        """Delete a cloned voice, or a folder of `refused`, and return its name. Blocks. Raises NotFound, NotStored."""
        folders = self._writable()
        with self._lock:
            self._rescan()
            if voice_id in self.refused:
                folder, name = voice_id, voice_id
            else:
                found = self.find(voice_id)
                folder, name = found.id, found.voice.name
            removed = folders.remove(folder)
            self._index = self._build_index()
            self._doubtful.pop(f"{folders.folder.name}/{folder}", None)
            self._measured.pop(folder, None)
            if not removed:
                raise _no_cloned_voice(voice_id)
            return name

    # ---- folders in the format of an earlier version

    def unconverted(self) -> list[Path]:
        """Return the folders that `convert` can convert to voices."""
        if self._cloned is None:
            return []
        waiting = [name for name, reason in self._cloned.problems.items() if reason == WAITING]
        return [self._cloned.folder / name for name in waiting]

    def convert(
        self, folder: Path, old: OldVoice, reference: Reference, *, sample_count: int, quality: Mapping[str, Any]
    ) -> StoredVoice:
        """Convert a folder to a voice with this recording, and return the voice. Blocks.

        Raises BadReference, InvalidValue, NotFound, NotStored, Busy.
        """
        folders = self._writable()
        with self._lock, folders.locked():
            write_converted(folder, old, reference, sample_count=sample_count, quality=quality)
            self._rescan()
            self._rescan()  # the first scan may have renamed the folder; this scan finds it under its new name
            return self.find(old.id)

    def fail_conversion(self, folder: Path, reason: str) -> None:
        """Record in `refused` why a folder can't be converted. The conversion is tried again when the files of the
        folder change.
        """
        with self._lock:
            self._reader.fail(folder, reason)
            self._rescan()

    def change_unconverted(
        self, name: str, *, voice_name: str | None, description: str | None, transcript: str | None
    ) -> Path:
        """Change the files of a folder in `refused`, and return its path. A value that is None does not change. Blocks.

        Raises NotFound, InvalidValue, NotStored.
        """
        folders = self._writable()
        folder = folders.folder / name
        if name not in self.refused or (folder / MARKER).exists() or not (folder / REFERENCE_FILE).exists():
            self.find(name)
            raise _no_cloned_voice(name)
        cleaned_name = None if voice_name is None else clean_name(voice_name)
        try:
            info = (folder / OLD_MARKER).read_bytes()
        except OSError:
            info = b""
        files = with_changes(info, folder, name=cleaned_name, description=description, transcript=transcript)
        with self._lock:
            for file, content in files.items():
                folders.replace_file_silently(name, file, content)
        return folder

    def set_reference(
        self,
        preset_id: str,
        reference: Reference,
        *,
        origin: str = "cast",
        quality: Mapping[str, Any] | None = None,
        sample_count: int = 1,
    ) -> StoredVoice:
        """Store or replace the recording of a preset voice. Blocks.

        Raises KeyError for an unknown preset voice, NotFound, BadReference, NotStored, Busy.
        """
        folders = self._references
        if folders is None:
            raise NotFound("This server has no folder for recordings of preset voices, so it can't store a recording.")
        stored, recording = with_recording(preset(preset_id), reference)
        stored = replace(stored, origin=origin, sample_count=sample_count, quality=dict(quality or {}))
        with self._lock, folders.locked():
            self._rescan()
            folder = folders.folder / preset_id
            if not folder.exists():
                folders.create(preset_id, {REFERENCE_FILE: recording, MARKER: to_json(stored)})
            else:  # add the new recording under another file name, then replace voice.json, which names the file
                stored = replace(stored, file=f"reference-{stored.sha256[:12]}.wav")
                folders.replace_file_silently(preset_id, stored.file, recording)
                folders.replace_file(preset_id, MARKER, to_json(stored))
                for path in folder.glob("reference*.wav"):
                    if path.name != stored.file:
                        path.unlink(missing_ok=True)
                self._remove_old_codes(folder, stored.voice.digest)
            self._index = self._build_index()
            return self._index.stored[preset_id]

    # ---- internals

    def _build_index(self) -> _Index:
        references = self._references.records if self._references else {}
        cloned = self._cloned.records if self._cloned else {}
        ordered = sorted(cloned.values(), key=lambda stored: (stored.created_at, stored.id))
        stored = {**references, **{voice.id: voice for voice in ordered}}
        by_id = {name: references[name].voice if name in references else preset(name) for name in PROFILES}
        by_name = {name_key(voice.name): voice.id for voice in by_id.values()}
        for clone in ordered:
            by_id.setdefault(clone.id, clone.voice)
            # If two voices have the same name, the name stands for the older one.
            by_name.setdefault(name_key(clone.voice.name), clone.id)
        by_alias = {_alias_key(alias): clone.id for clone in reversed(ordered) for alias in clone.aliases}
        return _Index(by_id, by_name, by_alias, stored, self._drafts.records if self._drafts else {})

    def _rescan(self) -> None:
        for folders in self._folder_stores:
            folders.refresh(full=True)
        self._index = self._build_index()

    def _free_name(self, name: str, owner: str = "") -> str:
        """Return `name` if it is free, else `name` with the lowest free number: "Anna (2)".

        owner: id of a voice; its current name counts as free.
        """
        index = self._index
        number, candidate = 1, name
        while (
            name_key(candidate) == name_key(NO_VOICE.id)
            or index.by_name.get(name_key(candidate), owner) != owner
            or (candidate in index.by_id and candidate != owner)
        ):
            number += 1
            ending = f" ({number})"
            candidate = name[: MAX_NAME_CHARS - len(ending)].rstrip() + ending
        return candidate

    def _folders_of(self, voice: Voice) -> FolderStore[StoredVoice]:
        folders = self._references
        if voice.kind == "cloned":
            folders = self._drafts if voice.id.startswith(DRAFT_PREFIX) else self._cloned
        if folders is None:
            raise UnknownVoice(f"The voice {voice.name!r} has no recording on this server.", param="voice")
        return folders

    def _writable(self) -> FolderStore[StoredVoice]:
        if self._cloned is None:
            raise NotFound("This server has no folder for cloned voices, so it can't change voices.")
        return self._cloned

    @staticmethod
    def _remove_old_codes(folder: Path, digest: str) -> None:
        for path in folder.glob("codes-*.npy"):
            if not path.stem.endswith(digest[:16]):
                path.unlink(missing_ok=True)


def _alias_key(alias: str) -> str:
    """Return a key for comparing earlier ids. A file system may have stored letters with accents in another form."""
    return unicodedata.normalize("NFC", alias)


def _no_cloned_voice(voice_id: str) -> NotFound:
    return NotFound(f"There is no cloned voice {voice_id[:80]!r}.", param="id")


def _damaged(stored: StoredVoice) -> DamagedVoice:
    return DamagedVoice(
        f"The recording of the voice {stored.voice.name!r} is damaged on this server's disk. Delete the voice and "
        "clone it again.",
        param="voice",
    )
