"""The voices that can be asked for, by id or name, and what is kept of each: its recording, words, codes.

One folder per voice below `cloned_voices` (and, for recordings of standard voices, `voice_references`):

    voice.json      name, description, words, digest, quality, consent; it names the recording's file
    reference.wav   the recording: mono, 16 bit
    consent.wav     where the speaker's agreement was recorded
    codes-*.npy     the recording in a codec's codes, int16 (K, T), made when first needed

Every process that shares the folders sees what another made within `REFRESH_S` and a look. Knows no HTTP, no engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import secrets
import threading
import time
import unicodedata
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.audio import pcm
from app.audio.decode import decode
from app.errors import BadReference, DamagedVoice, InvalidValue, NotFound, UnknownVoice
from app.types import Reference, Voice
from app.voices.folder_store import Damaged, FolderStore
from app.voices.presets import NO_VOICE, PROFILES, preset

if TYPE_CHECKING:
    from app.types import Codec, Codes, Samples

log = logging.getLogger(__name__)

DRAFT_S = 1800.0  # a recording that was checked waits so long to become a voice
REFRESH_S = 1.0  # between two looks at the folders: what another process made is seen this much later
MAX_NAME_CHARS = 100
MAX_DESCRIPTION_CHARS = 1_000
MAX_TRANSCRIPT_CHARS = 2_000  # of 30 s: fast speech has 25 characters a second
MAX_CONSENT_CHARS = 2_000
MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 48_000
MAX_REFERENCE_S = 60.0
SAMPLE_LIST = 30  # names told in an error
MARKER = "voice.json"
REFERENCE_FILE = "reference.wav"
CONSENT_FILE = "consent.wav"
_FORMAT = 1
_WAV_HEADER_BYTES = 44
_LEGACY_MARKER = "info.json"
_LEGACY_WORDS = "transcript.txt"
DRAFT_PREFIX = "draft_"
LANGUAGE_TAG = r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,4}$"  # BCP 47, and with underscores
_LANGUAGE = re.compile(LANGUAGE_TAG)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Consent:
    """The speaker's agreement, as it was given: in words, as a recording, or by the id of one given before."""

    text: str = ""
    consent_id: str = ""
    recording: Reference | None = field(default=None, compare=False, repr=False)

    def __bool__(self) -> bool:
        return bool(self.text or self.consent_id or self.recording)


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """A voice with a recording, and what is known of that. created_at: seconds of Unix time. origin: upload, import,
    migrated, file, cast. quality: the report of how good the recording is, as JSON."""

    voice: Voice
    transcript: str
    rate_hz: int
    samples: int
    created_at: float
    origin: str = "upload"
    sample_count: int = 1
    quality: Mapping[str, Any] = field(default_factory=dict)
    consent: Mapping[str, Any] | None = None
    file: str = REFERENCE_FILE
    sha256: str = ""  # of the samples' bytes

    @property
    def id(self) -> str:
        return self.voice.id

    @property
    def seconds(self) -> float:
        return self.samples / self.rate_hz


@dataclass(frozen=True, slots=True)
class _Known:
    """All voices at one moment."""

    by_id: Mapping[str, Voice]
    by_name: Mapping[str, str]  # key of the name -> id
    stored: Mapping[str, StoredVoice]
    drafts: Mapping[str, StoredVoice]


class VoiceStore:
    """All voices of this server. Any thread. Lookups never block; `refresh`, and whatever changes a voice, do.

    cloned, references: their folders; None = standard voices without recordings only. Raises OSError.
    """

    def __init__(self, cloned: Path | None = None, references: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._looked_s = time.monotonic()
        self._cloned = None if cloned is None else FolderStore(cloned, MARKER, _read_cloned)
        self._references = None if references is None else FolderStore(references, MARKER, _read, PROFILES.__contains__)
        self._drafts = None if cloned is None else FolderStore(cloned / ".drafts", MARKER, _read)
        for shelf in self._shelves:
            shelf.folder.mkdir(parents=True, exist_ok=True)
            shelf.sweep()
            shelf.refresh(whole=True)
        self._drop_old_drafts()
        self._known = self._told()

    @property
    def _shelves(self) -> list[FolderStore[StoredVoice]]:
        return [shelf for shelf in (self._cloned, self._references, self._drafts) if shelf is not None]

    # ---- looking up

    @property
    def stale(self) -> bool:
        """Whether it is time to `refresh`, in a thread where that matters."""
        return time.monotonic() - self._looked_s > REFRESH_S

    def refresh(self) -> None:
        """See what other processes changed. One stat per folder if that is nothing. Never raises."""
        with self._lock:
            try:
                changed = [shelf.refresh() for shelf in self._shelves]
            except OSError as error:
                log.warning("the voices can't be read: %s", error)
                changed = []
            self._looked_s = time.monotonic()
            if any(changed):
                self._known = self._told()

    def all(self) -> list[Voice]:
        """The standard voices, then the cloned ones, oldest first."""
        return list(self._known.by_id.values())

    def get(self, voice: str) -> Voice:
        """By id, else by name, whose case does not matter. Raises UnknownVoice, which names voices there are."""
        known = self._known
        found = known.by_id.get(voice) or known.by_id.get(known.by_name.get(name_key(voice), ""))
        if found is None and voice.startswith(DRAFT_PREFIX):
            return self.draft(voice).voice
        if found is None:
            names = list(known.by_id)
            told = ", ".join(f"'{name}'" for name in names[:SAMPLE_LIST])
            more = f" and {len(names) - SAMPLE_LIST} more, see GET /v1/audio/voices" if len(names) > SAMPLE_LIST else ""
            raise UnknownVoice(f"There is no voice {voice[:80]!r}. Voices are: {told}{more}.", param="voice")
        return found

    def stored(self) -> list[StoredVoice]:
        """The cloned voices, oldest first."""
        return [voice for voice in self._known.stored.values() if voice.voice.kind == "cloned"]

    def find(self, voice_id: str) -> StoredVoice:
        """A cloned voice by its id. Raises NotFound."""
        found = self._known.stored.get(voice_id)
        if found is None or found.voice.kind != "cloned":
            told = "a standard voice, not a cloned one" if voice_id in PROFILES else "not there"
            raise NotFound(f"The cloned voice {voice_id[:80]!r} is {told}.", param="id")
        return found

    def draft(self, draft_id: str) -> StoredVoice:
        """A recording that was checked less than DRAFT_S ago. Raises UnknownVoice."""
        found = self._known.drafts.get(draft_id)
        if found is None or time.time() - found.created_at > DRAFT_S:
            raise UnknownVoice(
                f"There is no draft {draft_id[:80]!r}, or it is older than {DRAFT_S / 60:g} minutes. Send the "
                "recording again.",
                param="draft_id",
            )
        return found

    def recording_of(self, preset_id: str) -> StoredVoice | None:
        """What a standard voice has to go by, if it has."""
        return self._known.stored.get(preset_id)

    @property
    def problems(self) -> dict[str, str]:
        """Folders that hold no voice, by path as the data folder has it, and why."""
        return {f"{shelf.folder.name}/{name}": why for shelf in self._shelves for name, why in shelf.problems.items()}

    # ---- recordings and codes

    def reference(self, voice: Voice) -> Reference:
        """The recording of a voice, exactly as it was stored. Raises DamagedVoice; UnknownVoice if it has none now.

        Blocks while it reads.
        """
        stored = self._present(voice)
        path = self._shelf(voice).folder / voice.id / stored.file
        try:
            samples, rate_hz = read_wav(path.read_bytes())
        except (OSError, ValueError) as error:
            with self._lock, contextlib.suppress(OSError):
                self._look_again()
            self._present(voice)  # another process may have changed or removed it since the last look
            raise _damaged(stored) from error
        if hashlib.sha256(pcm.to_bytes(samples)).hexdigest() != stored.sha256 or rate_hz != stored.rate_hz:
            raise _damaged(stored)
        return Reference(samples, rate_hz, stored.transcript)

    def _present(self, voice: Voice) -> StoredVoice:
        """Raises UnknownVoice where it is another one now."""
        stored = self._known.stored.get(voice.id) or self._known.drafts.get(voice.id)
        if stored is None or stored.voice.digest != voice.digest:
            raise UnknownVoice(f"The voice {voice.name!r} was removed or replaced just now. Ask again.", param="voice")
        return stored

    def marker(self, voice_id: str) -> bytes:
        """A cloned voice's voice.json, its recording under the plain name. Raises NotFound."""
        return _as_json(replace(self.find(voice_id), file=REFERENCE_FILE))

    def consent_recording(self, voice_id: str) -> bytes | None:
        """The recorded agreement as a WAV file. Raises NotFound, OSError."""
        consent = self.find(voice_id).consent
        if self._cloned is None or not consent or not consent.get("file"):
            return None
        return (self._cloned.folder / voice_id / CONSENT_FILE).read_bytes()

    def codes(self, voice: Voice, codec: Codec, fingerprint: str) -> Codes | None:
        """The voice's codes (K, T) int16 as an encoder made them, or None where they still have to be made."""
        path = self._shelf(voice).folder / voice.id / _codes_file(voice, codec, fingerprint)
        try:
            codes = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s can't be read and will be made again: %s", path, error)
            return None
        if not isinstance(codes, np.ndarray) or codes.dtype != np.int16 or codes.ndim != 2:
            log.warning("%s holds no codes and will be made again", path)
            return None
        return codes

    def keep_codes(self, voice: Voice, codec: Codec, fingerprint: str, codes: Codes) -> None:
        """Keep codes beside the voice. Never raises: what can't be kept is made again."""
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(codes, dtype=np.int16), allow_pickle=False)
        shelf = self._shelf(voice)
        try:
            shelf.replace_quietly(voice.id, _codes_file(voice, codec, fingerprint), file.getvalue())
        except Exception as error:  # noqa: BLE001 - the speech they were made for goes on
            log.warning("the codes of %s are not kept: %s", voice.id, error)

    # ---- changing

    @staticmethod
    def check(name: str, *, description: str = "", language: str = "en", consent: str = "") -> None:
        """Before a recording is worked on for seconds. Raises InvalidValue as `add` would."""
        clean_name(name)
        clean_text(description, "description", MAX_DESCRIPTION_CHARS)
        clean_text(consent, "consent", MAX_CONSENT_CHARS)
        _check_language(language)

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
        """A new cloned voice under an id of its own; a name that is taken gets a number: "Anna (2)".

        Once this returns the voice survives whatever happens to the process. Blocks. Raises InvalidValue,
        BadReference, NotStored, Busy.
        """
        shelf = self._writable()
        name = clean_name(name)
        stored, files = _new(reference, description, language, consent or Consent())
        stored = replace(stored, sample_count=sample_count, quality=dict(quality or {}), origin=origin)
        with self._lock, shelf.exclusively():
            self._look_again()
            voice = replace(stored.voice, id=f"voice_{secrets.token_hex(12)}", name=self._free_name(name))
            shelf.put(voice.id, {**files, MARKER: _as_json(replace(stored, voice=voice))})
            self._known = self._told()
            return self._known.stored[voice.id]

    def add_draft(
        self, reference: Reference, *, language: str = "en", sample_count: int, quality: Mapping[str, Any]
    ) -> StoredVoice:
        """Keep a checked recording for DRAFT_S, so that it need not be sent again; it can be spoken with by its id.

        Those that nobody came back for are removed on the way. Blocks. Raises NotFound, BadReference, NotStored.
        """
        shelf = self._drafts
        if shelf is None:
            raise NotFound("This server keeps no cloned voices.")
        stored, files = _new(reference, "", language, Consent())
        voice = replace(stored.voice, id=f"{DRAFT_PREFIX}{secrets.token_hex(12)}", name="Draft")
        stored = replace(stored, voice=voice, sample_count=sample_count, quality=dict(quality), origin="draft")
        with self._lock:
            shelf.put(voice.id, {**files, MARKER: _as_json(stored)})
            self._drop_old_drafts()
            self._known = self._told()
        return stored

    def _drop_old_drafts(self) -> None:
        if self._drafts is None:
            return
        for name, draft in self._drafts.records.items():
            if time.time() - draft.created_at > DRAFT_S:
                self._drafts.drop(name)

    def drop_draft(self, draft_id: str) -> None:
        """It has become a voice. Raises NotStored."""
        with self._lock:
            if self._drafts is not None and draft_id in self._drafts.records:
                self._drafts.drop(draft_id)
            self._known = self._told()

    def change(
        self, voice_id: str, *, name: str | None = None, description: str | None = None, transcript: str | None = None
    ) -> StoredVoice:
        """None leaves a field as it is. Blocks. Raises NotFound, InvalidValue, NotStored, Busy."""
        shelf = self._writable()
        with self._lock, shelf.exclusively():
            self._look_again()
            old = self.find(voice_id)
            voice, words = old.voice, old.transcript
            if name is not None:
                voice = replace(voice, name=self._free_name(clean_name(name), besides=voice_id))
            if description is not None:
                voice = replace(voice, description=clean_text(description, "description", MAX_DESCRIPTION_CHARS))
            if transcript is not None:
                words = clean_text(transcript, "transcript", MAX_TRANSCRIPT_CHARS)
                if not words:
                    raise InvalidValue("`transcript` is empty. Send the words of the recording.", param="transcript")
                voice = replace(voice, digest=_digest(old.sha256, words))
            try:
                shelf.replace(voice_id, MARKER, _as_json(replace(old, voice=voice, transcript=words)))
            except FileNotFoundError as error:
                raise NotFound(f"The cloned voice {voice_id!r} is not there.", param="id") from error
            self._known = self._told()
            self._clear_old_codes(shelf.folder / voice_id, voice.digest)
            return self.find(voice_id)

    def delete(self, voice_id: str) -> StoredVoice:
        """Raises NotFound, NotStored."""
        shelf = self._writable()
        with self._lock:
            self._look_again()
            found = self.find(voice_id)
            gone = shelf.drop(voice_id)
            self._known = self._told()
            if not gone:
                raise NotFound(f"The cloned voice {voice_id!r} is not there.", param="id")
            return found

    def set_reference(
        self,
        preset_id: str,
        reference: Reference,
        *,
        origin: str = "cast",
        quality: Mapping[str, Any] | None = None,
        sample_count: int = 1,
    ) -> StoredVoice:
        """Give a standard voice its recording, or another one. Blocks.

        Raises KeyError, BadReference, NotStored, Busy.
        """
        shelf = self._references
        if shelf is None:
            raise NotFound("This server keeps no recordings of standard voices.")
        stored, recording = _recorded(preset(preset_id), reference)
        stored = replace(stored, origin=origin, sample_count=sample_count, quality=dict(quality or {}))
        with self._lock, shelf.exclusively():
            self._look_again()
            folder = shelf.folder / preset_id
            if not folder.exists():
                shelf.put(preset_id, {REFERENCE_FILE: recording, MARKER: _as_json(stored)})
            else:  # the new recording beside the old one, then one rename decides
                stored = replace(stored, file=f"reference-{stored.sha256[:12]}.wav")
                shelf.replace_quietly(preset_id, stored.file, recording)
                shelf.replace(preset_id, MARKER, _as_json(stored))
                for path in folder.glob("reference*.wav"):
                    if path.name != stored.file:
                        path.unlink(missing_ok=True)
                self._clear_old_codes(folder, stored.voice.digest)
            self._known = self._told()
            return self._known.stored[preset_id]

    def drop_reference(self, preset_id: str) -> bool:
        """Take a standard voice's recording away; False if it had none. Raises NotStored."""
        with self._lock:
            gone = self._references is not None and self._references.drop(preset_id)
            self._known = self._told()
            return gone

    # ----

    def _told(self) -> _Known:
        references = self._references.records if self._references else {}
        cloned = self._cloned.records if self._cloned else {}
        ordered = sorted(cloned.values(), key=lambda stored: (stored.created_at, stored.id))
        stored = {**references, **{voice.id: voice for voice in ordered}}
        by_id = {name: references[name].voice if name in references else preset(name) for name in PROFILES}
        by_name = {name_key(voice.name): voice.id for voice in by_id.values()}
        for name in ordered:
            by_id.setdefault(name.id, name.voice)
            by_name.setdefault(name_key(name.voice.name), name.id)  # of two of one name the older keeps it
        return _Known(by_id, by_name, stored, self._drafts.records if self._drafts else {})

    def _look_again(self) -> None:
        for shelf in self._shelves:
            shelf.refresh(whole=True)
        self._known = self._told()

    def _free_name(self, name: str, besides: str = "") -> str:
        known = self._known
        number, candidate = 1, name
        while (
            name_key(candidate) == name_key(NO_VOICE.id)
            or known.by_name.get(name_key(candidate), besides) != besides
            or (candidate in known.by_id and candidate != besides)
        ):
            number += 1
            ending = f" ({number})"
            candidate = name[: MAX_NAME_CHARS - len(ending)].rstrip() + ending
        return candidate

    def _shelf(self, voice: Voice) -> FolderStore[StoredVoice]:
        shelf = self._references
        if voice.kind == "cloned":
            shelf = self._drafts if voice.id.startswith(DRAFT_PREFIX) else self._cloned
        if shelf is None:
            raise UnknownVoice(f"The voice {voice.name!r} has no recording here.", param="voice")
        return shelf

    def _writable(self) -> FolderStore[StoredVoice]:
        if self._cloned is None:
            raise NotFound("This server keeps no cloned voices.")
        return self._cloned

    @staticmethod
    def _clear_old_codes(folder: Path, digest: str) -> None:
        for path in folder.glob("codes-*.npy"):
            if not path.stem.endswith(digest[:16]):
                path.unlink(missing_ok=True)


# ---- names and words


def clean_name(name: str) -> str:
    """A name as it is kept: one line, without spaces around it. Raises InvalidValue."""
    cleaned = " ".join(unicodedata.normalize("NFC", name).split())
    if not cleaned:
        raise InvalidValue("`name` is empty. Give the voice a name.", param="name")
    if len(cleaned) > MAX_NAME_CHARS:
        raise InvalidValue(
            f"`name` has {len(cleaned)} characters; a voice's name has at most {MAX_NAME_CHARS}.", param="name"
        )
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Co", "Cn") for letter in cleaned):
        raise InvalidValue("`name` has control characters in it. Use plain text.", param="name")
    return cleaned


def clean_text(text: str, param: str, max_chars: int) -> str:
    """Free text as it is kept, on one line. Raises InvalidValue."""
    cleaned = " ".join(
        unicodedata.normalize("NFC", text).encode("utf-8", "replace").decode().replace("\0", " ").split()
    )
    if len(cleaned) > max_chars:
        raise InvalidValue(f"`{param}` has {len(cleaned)} characters; it may have {max_chars}.", param=param)
    return cleaned


def name_key(name: str) -> str:
    """What two names have in common that a person would take for one."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


# ---- sound on disk


def wav(samples: Samples, rate_hz: int) -> bytes:
    """A mono 16-bit WAV file with a header of 44 bytes."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(pcm.to_bytes(samples))
    return file.getvalue()


def read_wav(data: bytes) -> tuple[Samples, int]:
    """Our own kind of WAV file -> samples (N,) float32, rate. Raises ValueError."""
    try:
        with wave.open(io.BytesIO(data), "rb") as reader:
            if (reader.getnchannels(), reader.getsampwidth()) != (1, 2):
                raise ValueError("not mono of 16 bit")
            return pcm.from_bytes(reader.readframes(reader.getnframes())), reader.getframerate()
    except (wave.Error, EOFError) as error:
        raise ValueError(str(error)) from error


def digest_of(samples: Samples, transcript: str) -> str:
    """sha256 (hex) of the recording's 16-bit samples and its words: the key of everything made from a voice."""
    return _digest(hashlib.sha256(pcm.to_bytes(samples)).hexdigest(), transcript)


def _digest(sha256: str, transcript: str) -> str:
    return hashlib.sha256(f"{sha256} {transcript}".encode()).hexdigest()


def _codes_file(voice: Voice, codec: Codec, fingerprint: str) -> str:
    encoder = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    return f"codes-{codec}-{encoder}-{voice.digest[:16]}.npy"


def _checked(reference: Reference) -> Samples:
    """The samples as 16 bit keeps them. Raises BadReference."""
    if not MIN_RATE_HZ <= reference.rate_hz <= MAX_RATE_HZ:
        raise BadReference(f"A recording must have {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, not {reference.rate_hz}.")
    if not 0 < reference.seconds <= MAX_REFERENCE_S:
        raise BadReference(f"A recording must have up to {MAX_REFERENCE_S:g} s, not {reference.seconds:.1f} s.")
    return pcm.from_bytes(pcm.to_bytes(reference.samples))


def _new(
    reference: Reference, description: str, language: str, consent: Consent
) -> tuple[StoredVoice, dict[str, bytes]]:
    """A voice that has neither id nor name yet, and its files but the first. Raises BadReference, InvalidValue."""
    description = clean_text(description, "description", MAX_DESCRIPTION_CHARS)
    _check_language(language)
    stored, recording = _recorded(Voice("", "", "cloned", language, description), reference)
    files = {REFERENCE_FILE: recording}
    kept: dict[str, Any] | None = None
    if consent:
        kept = {"text": clean_text(consent.text, "consent", MAX_CONSENT_CHARS), "id": consent.consent_id}
        if consent.recording is not None:
            kept["file"] = CONSENT_FILE
            files[CONSENT_FILE] = wav(consent.recording.samples, consent.recording.rate_hz)
    return replace(stored, consent=kept), files


def _recorded(voice: Voice, reference: Reference) -> tuple[StoredVoice, bytes]:
    """The voice with this recording, made now, and the recording as a file. Raises BadReference, InvalidValue."""
    samples = _checked(reference)
    words = clean_text(reference.transcript, "transcript", MAX_TRANSCRIPT_CHARS)
    sha256 = hashlib.sha256(pcm.to_bytes(samples)).hexdigest()
    stored = StoredVoice(
        voice=replace(voice, digest=_digest(sha256, words), recorded=True),
        transcript=words,
        rate_hz=reference.rate_hz,
        samples=len(samples),
        created_at=time.time(),
        sha256=sha256,
    )
    return stored, wav(samples, reference.rate_hz)


def _check_language(tag: str) -> None:
    if not _LANGUAGE.fullmatch(tag):
        raise InvalidValue("`language` is a BCP 47 tag, as `en` or `en-GB`.", param="language")


def _damaged(stored: StoredVoice) -> DamagedVoice:
    return DamagedVoice(
        f"The recording of the voice {stored.voice.name!r} is damaged on this server's disk. Delete the voice and make "
        "it again.",
        param="voice",
    )


# ---- voice.json


def _as_json(stored: StoredVoice) -> bytes:
    voice = stored.voice
    content = {
        "format": _FORMAT,
        "id": voice.id,
        "name": voice.name,
        "description": voice.description,
        "language": voice.language,
        "speaker_id": voice.speaker,
        "created_at": datetime.fromtimestamp(stored.created_at, UTC).isoformat(),
        "origin": stored.origin,
        "sample_count": stored.sample_count,
        "transcript": stored.transcript,
        "reference": {
            "file": stored.file,
            "rate_hz": stored.rate_hz,
            "samples": stored.samples,
            "sha256": stored.sha256,
        },
        "quality": dict(stored.quality),
        "consent": None if stored.consent is None else dict(stored.consent),
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def parse(content: bytes, voice_id: str) -> StoredVoice:
    """voice.json -> what it says; the id is the folder's name, whatever it says of that. Raises Damaged."""
    try:
        said = json.loads(content)
        if said["format"] != _FORMAT:
            raise Damaged(f"{MARKER} has format {said['format']!r}; this version reads {_FORMAT}.")
        reference = said["reference"]
        words, sha256 = _string(said["transcript"]), _string(reference["sha256"])
        file = _string(reference["file"])
        rate_hz, samples = int(reference["rate_hz"]), int(reference["samples"])
        if not re.fullmatch(r"reference(-[0-9a-f]{12})?\.wav", file):
            raise Damaged(f"{MARKER} names a recording {file[:40]!r}.")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ or samples <= 0:
            raise Damaged(f"{MARKER} describes no recording.")
        standard = voice_id in PROFILES
        voice = replace(
            preset(voice_id) if standard else Voice(voice_id, _string(said["name"]), "cloned"), recorded=True
        )
        if not standard:
            voice = replace(
                voice,
                name=clean_name(voice.name),
                description=_string(said["description"]),
                language=_string(said["language"]),
                speaker=int(said["speaker_id"]),
            )
        return StoredVoice(
            voice=replace(voice, digest=_digest(sha256, words)),
            transcript=words,
            rate_hz=rate_hz,
            samples=samples,
            created_at=datetime.fromisoformat(said["created_at"]).timestamp(),
            origin=_string(said["origin"]),
            sample_count=int(said["sample_count"]),
            quality=dict(said["quality"]),
            consent=None if said["consent"] is None else dict(said["consent"]),
            file=file,
            sha256=sha256,
        )
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, InvalidValue) as error:
        raise Damaged(f"{MARKER} can't be read ({type(error).__name__}: {error}).") from error


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _read(folder: Path) -> StoredVoice:
    stored = parse((folder / MARKER).read_bytes(), folder.name)
    size = (folder / stored.file).stat().st_size
    if size != _WAV_HEADER_BYTES + 2 * stored.samples:
        raise Damaged(f"{stored.file} has {size} bytes; {MARKER} tells of {stored.samples} samples.")
    return stored


def _read_cloned(folder: Path) -> StoredVoice:
    """A voice's folder, those of earlier versions brought up to date first."""
    if not (folder / MARKER).exists() and (folder / REFERENCE_FILE).exists() and (folder / _LEGACY_MARKER).exists():
        if not _ID.fullmatch(folder.name):  # earlier versions made folders' names of what users typed
            safe = folder.with_name(f"voice_{hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:24]}")
            folder.rename(safe)
            log.info("%s is now %s", folder, safe)
            folder = safe
        migrate(folder)
    if not _ID.fullmatch(folder.name):
        raise Damaged("The folder's name is no voice id: letters, digits, _ and -, up to 64 of them.")
    return _read(folder)


# ---- folders of earlier versions


def migrate(folder: Path) -> None:
    """{info.json, reference.wav, transcript.txt} becomes a voice in place; may be cut off and repeated at any point.

    The old files stay beside it, so that going back to the earlier version is possible. Raises Damaged, OSError.
    """
    info: Any
    try:
        info = json.loads((folder / _LEGACY_MARKER).read_bytes())
        words = info.get("transcript") or ""
        name = clean_name(str(info.get("name") or folder.name)[:MAX_NAME_CHARS])
        description = clean_text(str(info.get("description") or "")[:MAX_DESCRIPTION_CHARS], "description", 1_000)
    except (ValueError, AttributeError, RecursionError, InvalidValue) as error:
        raise Damaged(f"{_LEGACY_MARKER} can't be read ({error}).") from error
    if (folder / _LEGACY_WORDS).exists():
        words = (folder / _LEGACY_WORDS).read_text("utf-8", "replace")
    try:
        words = clean_text(str(words), "transcript", MAX_TRANSCRIPT_CHARS)
        data = (folder / REFERENCE_FILE).read_bytes()
        decoded = decode(data, 44_100, max_seconds=MAX_REFERENCE_S, what=REFERENCE_FILE)
    except (InvalidValue, BadReference) as error:
        raise Damaged(error.message) from error
    if decoded.truncated:
        raise Damaged(f"{REFERENCE_FILE} is longer than {MAX_REFERENCE_S:g} s.")
    if not words:
        raise Damaged(
            f"It comes from an earlier version and has no transcript. Write the recording's words to {_LEGACY_WORDS}."
        )
    samples = pcm.from_bytes(pcm.to_bytes(decoded.samples))
    sha256 = hashlib.sha256(pcm.to_bytes(samples)).hexdigest()
    stored = StoredVoice(
        voice=Voice(folder.name, name, "cloned", str(info.get("language") or "en"), description, recorded=True),
        transcript=words,
        rate_hz=decoded.rate_hz,
        samples=len(samples),
        created_at=_moment(info.get("created_at"), folder),
        origin="migrated",
        file=f"reference-{sha256[:12]}.wav",
        sha256=sha256,
    )
    shelf = FolderStore(folder.parent, MARKER, _read)
    shelf.replace_quietly(folder.name, stored.file, wav(samples, decoded.rate_hz))
    shelf.replace_quietly(folder.name, MARKER, _as_json(stored))
    log.info("%s was brought up to date", folder)


def _moment(told: object, folder: Path) -> float:
    """Unix time in seconds from a number or ISO 8601, else the folder's."""
    try:
        if isinstance(told, int | float):
            return datetime.fromtimestamp(told, UTC).timestamp()
        return datetime.fromisoformat(str(told)).timestamp()
    except (ValueError, OverflowError, OSError):
        return (folder / _LEGACY_MARKER).stat().st_mtime
