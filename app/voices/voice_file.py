"""The file format of one voice: voice.json, the recording as a WAV file, digests, and checks of names and texts.

This module reads and writes the files of one voice. `store.py` manages all voices.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
import unicodedata
import wave
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from app.audio import pcm
from app.errors import BadReference, InvalidValue
from app.types import Reference, Voice
from app.voices.folder_store import Damaged
from app.voices.presets import PROFILES, preset

if TYPE_CHECKING:
    from pathlib import Path

    from app.types import Codec, Samples

MAX_NAME_CHARS = 100
MAX_DESCRIPTION_CHARS = 1_000
MAX_TRANSCRIPT_CHARS = 2_000  # enough for the longest recording (60 s): fast speech has 25 characters a second
MAX_CONSENT_CHARS = 2_000
MAX_TAGS, MAX_TAG_CHARS = 20, 40
MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 48_000
MAX_REFERENCE_S = 60.0
MARKER = "voice.json"
REFERENCE_FILE = "reference.wav"
CONSENT_FILE = "consent.wav"
LEXICON_FILE = "lexicon.tsv"  # dictionary of a voice; the dictionary of the server has the same file name
LANGUAGE_TAG = r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,4}$"  # the form of a BCP 47 tag; underscores are also accepted
_FORMAT = 1
_WAV_HEADER_BYTES = 44
_LANGUAGE = re.compile(LANGUAGE_TAG)
COLOR = r"^(#[0-9a-fA-F]{6})?$"
_COLOR = re.compile(COLOR)
# Invisible characters that are not in the Unicode category Cf: fillers of Korean and Khmer, joiners, selectors of
# Mongolian letters, and the blank of Braille.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
_SHOWN_CHARS = 40  # an error message shows at most this many characters of a wrong value


@dataclass(frozen=True, slots=True)
class Consent:
    """The speaker's consent: as text, as a recording, or as the id of a stored consent."""

    text: str = ""
    consent_id: str = ""
    recording: Reference | None = field(default=None, compare=False, repr=False)

    def __bool__(self) -> bool:
        return bool(self.text or self.consent_id or self.recording)


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """A voice with a recording. The fields are the content of voice.json."""

    voice: Voice
    transcript: str
    rate_hz: int
    samples: int
    created_at: float  # Unix time in seconds
    # Origin of the recording: "upload", "youtube", "import" (an exported voice), "migrated" (a voice of an earlier
    # version), "draft", "cast" (created by an engine), "file" or "file <digest>" (an audio file for a preset voice).
    origin: str = "upload"
    sample_count: int = 1  # number of uploaded recordings of which this recording consists
    quality: Mapping[str, Any] = field(default_factory=dict)  # the quality report as JSON
    consent: Mapping[str, Any] | None = None
    file: str = REFERENCE_FILE
    sha256: str = ""  # digest of the samples as 16-bit bytes
    # Earlier ids of the voice, under which requests still find it.
    aliases: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.voice.id

    @property
    def seconds(self) -> float:
        return self.samples / self.rate_hz

    @property
    def missing(self) -> str:
        """What the voice lacks and how to add it; "" if it lacks nothing."""
        if not self.voice.needs_words:
            return ""
        path = f"/v1/voice-cloning/voices/{self.id}"
        return (
            f"The words of the recording are unknown. Listen to the recording (GET {path}/reference), and send its "
            f'exact words: PATCH {path} with the JSON body {{"transcript": "..."}}.'
        )


# ---- names and texts


def clean_name(name: str) -> str:
    """Return a name in Unicode NFC, on one line, with single spaces and without invisible characters.

    Raises InvalidValue if the name is empty or too long, or contains control characters.
    """
    visible = "".join(letter for letter in unicodedata.normalize("NFC", name) if not _is_invisible(letter))
    cleaned = " ".join(unicodedata.normalize("NFC", visible).split())
    if not cleaned:
        raise InvalidValue("`name` is empty. Give the voice a name.", param="name")
    if len(cleaned) > MAX_NAME_CHARS:
        raise InvalidValue(
            f"`name` has {len(cleaned)} characters. Use at most {MAX_NAME_CHARS}.",
            param="name",
        )
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Co", "Cn") for letter in cleaned):
        raise InvalidValue("`name` contains control characters. Use plain text.", param="name")
    return cleaned


def _is_invisible(letter: str) -> bool:
    """Return whether a character is invisible, such as a zero-width space, or changes the direction of a text.

    With invisible characters, two names that look equal can be different, and the letters of a name can be shown in
    another order.
    """
    return unicodedata.category(letter) == "Cf" or letter in _INVISIBLE


def clean_text(text: str, param: str, max_chars: int) -> str:
    """Return a text in Unicode NFC, on one line, with single spaces.

    param: name of the field in the request, for the error. Raises InvalidValue if the text has more than max_chars
    characters.
    """
    cleaned = " ".join(
        unicodedata.normalize("NFC", text).encode("utf-8", "replace").decode().replace("\0", " ").split()
    )
    if len(cleaned) > max_chars:
        raise InvalidValue(f"`{param}` has {len(cleaned)} characters. Use at most {max_chars}.", param=param)
    return cleaned


def has_words(text: str) -> bool:
    """Return whether a text has a letter or a digit."""
    return any(letter.isalnum() for letter in text)


def clean_transcript(text: str, max_chars: int = MAX_TRANSCRIPT_CHARS) -> str:
    """Return a transcript on one line; "" = the words are unknown.

    Raises InvalidValue if the transcript has more than max_chars characters, or has neither letters nor digits.
    """
    cleaned = clean_text(text, "transcript", max_chars)
    if cleaned and not has_words(cleaned):
        raise InvalidValue("`transcript` has no words. Send the exact words of the recording.", param="transcript")
    return cleaned


def name_key(name: str) -> str:
    """Return a key for comparing names. Names that differ only in case or in the width of letters have the same key."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags in the same order, without empty and repeated tags.

    Raises InvalidValue if there are more than MAX_TAGS tags, or if a tag has more than MAX_TAG_CHARS characters.
    """
    cleaned = {name_key(tag): tag for tag in (clean_text(tag, "tags", MAX_TAG_CHARS) for tag in tags) if tag}
    if len(cleaned) > MAX_TAGS:
        raise InvalidValue(f"`tags` has {len(cleaned)} tags. Use at most {MAX_TAGS}.", param="tags")
    return tuple(cleaned.values())


def clean_color(color: str) -> str:
    """Return a colour as `#rrggbb` in lower case; "" = no colour. Raises InvalidValue."""
    if color and not _COLOR.fullmatch(color):
        raise InvalidValue("`color` must be empty or have the form `#rrggbb`, for example `#0b675e`.", param="color")
    return color.lower()


def check_language(tag: str) -> None:
    """Check that `tag` has the form of a BCP 47 language tag. Raises InvalidValue."""
    if not _LANGUAGE.fullmatch(tag):
        raise InvalidValue("`language` must be a BCP 47 tag, for example `en` or `en-GB`.", param="language")


# ---- recordings


def wav(samples: Samples, rate_hz: int) -> bytes:
    """Return a mono 16-bit WAV file with a header of 44 bytes."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(pcm.to_bytes(samples))
    return file.getvalue()


def read_wav(data: bytes) -> tuple[Samples, int]:
    """Read a WAV file that `wav` wrote -> samples (N,) float32, rate in Hz. Raises ValueError."""
    try:
        with wave.open(io.BytesIO(data), "rb") as reader:
            if (reader.getnchannels(), reader.getsampwidth()) != (1, 2):
                raise ValueError("the WAV file is not mono with 16 bits")
            return pcm.from_bytes(reader.readframes(reader.getnframes())), reader.getframerate()
    except (wave.Error, EOFError) as error:
        raise ValueError(str(error)) from error


def samples_digest(samples: Samples) -> str:
    """Return the SHA-256 digest (hex) of the samples as 16-bit bytes."""
    return hashlib.sha256(pcm.to_bytes(samples)).hexdigest()


def voice_digest(sha256: str, transcript: str) -> str:
    """Return the SHA-256 digest (hex) of a voice, which depends on its recording and its transcript.

    Data that is computed from the voice is stored under this digest. sha256: `samples_digest` of the recording.
    """
    return hashlib.sha256(f"{sha256} {transcript}".encode()).hexdigest()


def codes_file(voice: Voice, codec: Codec, fingerprint: str) -> str:
    """Return the file name for the codec codes of a voice. fingerprint: identifies the weights of the encoder."""
    encoder = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    return f"codes-{codec}-{encoder}-{voice.digest[:16]}.npy"


def with_recording(voice: Voice, reference: Reference) -> tuple[StoredVoice, bytes]:
    """Attach a recording to a voice. Returns the stored voice and the recording as a WAV file.

    The stored voice has the current time as its creation time. Raises BadReference for a sample rate or length out of
    range, and InvalidValue for a transcript that is too long.
    """
    if not MIN_RATE_HZ <= reference.rate_hz <= MAX_RATE_HZ:
        raise BadReference(
            f"The recording has a sample rate of {reference.rate_hz} Hz. "
            f"Use a rate from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz."
        )
    if not 0 < reference.seconds <= MAX_REFERENCE_S:
        raise BadReference(
            f"The recording is {reference.seconds:.1f} s long. Use a recording of at most {MAX_REFERENCE_S:g} s."
        )
    samples = pcm.from_bytes(pcm.to_bytes(reference.samples))  # rounded to 16 bits, as the WAV file stores them
    transcript = clean_text(reference.transcript, "transcript", MAX_TRANSCRIPT_CHARS)
    sha256 = samples_digest(samples)
    stored = StoredVoice(
        voice=replace(
            voice, digest=voice_digest(sha256, transcript), recorded=True, needs_words=needs_words(voice, transcript)
        ),
        transcript=transcript,
        rate_hz=reference.rate_hz,
        samples=len(samples),
        created_at=time.time(),
        sha256=sha256,
    )
    return stored, wav(samples, reference.rate_hz)


def needs_words(voice: Voice, transcript: str) -> bool:
    """Return whether this is a cloned voice whose recording has no transcript."""
    return voice.kind == "cloned" and not transcript


def new_voice(
    reference: Reference, description: str, language: str, consent: Consent
) -> tuple[StoredVoice, dict[str, bytes]]:
    """Create a cloned voice that has no id and no name yet. Returns the voice and its files: file name -> content.

    voice.json is not among the files, because it contains the id and the name. Raises BadReference, InvalidValue.
    """
    description = clean_text(description, "description", MAX_DESCRIPTION_CHARS)
    check_language(language)
    stored, recording = with_recording(Voice("", "", "cloned", language, description), reference)
    files = {REFERENCE_FILE: recording}
    consent_json: dict[str, Any] | None = None
    if consent:
        consent_json = {"text": clean_text(consent.text, "consent", MAX_CONSENT_CHARS), "id": consent.consent_id}
        if consent.recording is not None:
            consent_json["file"] = CONSENT_FILE
            files[CONSENT_FILE] = wav(consent.recording.samples, consent.recording.rate_hz)
    return replace(stored, consent=consent_json), files


# ---- voice.json


def to_json(stored: StoredVoice) -> bytes:
    """Return the content of voice.json for a voice."""
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
        **({"aliases": list(stored.aliases)} if stored.aliases else {}),
        **({"tags": list(voice.tags)} if voice.tags else {}),
        **({"color": voice.color} if voice.color else {}),
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def parse(content: bytes, voice_id: str) -> StoredVoice:
    """Parse the content of voice.json. Raises Damaged.

    The voice gets the id `voice_id`; the id in the file is ignored.
    """
    try:
        data = json.loads(content)
        if data["format"] != _FORMAT:
            raise Damaged(f"{MARKER} has format {data['format']!r}; this version reads format {_FORMAT}.")
        reference = data["reference"]
        transcript, sha256 = _string(data["transcript"]), _string(reference["sha256"])
        file = _string(reference["file"])
        rate_hz, samples = int(reference["rate_hz"]), int(reference["samples"])
        if not re.fullmatch(r"reference(-[0-9a-f]{12})?\.wav", file):
            raise Damaged(f"{MARKER} names the recording {file[:_SHOWN_CHARS]!r}, which is not an allowed file name.")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ or samples <= 0:
            raise Damaged(f"{MARKER} has an invalid sha256, sample rate or length of the recording.")
        standard = voice_id in PROFILES
        voice = replace(
            preset(voice_id) if standard else Voice(voice_id, _string(data["name"]), "cloned"), recorded=True
        )
        if not standard:
            voice = replace(
                voice,
                name=clean_name(voice.name),
                description=_string(data["description"]),
                language=_string(data["language"]),
                speaker=int(data["speaker_id"]),
                tags=clean_tags(_string(tag) for tag in data.get("tags", ())),
                color=clean_color(_string(data.get("color", ""))),
            )
        return StoredVoice(
            voice=replace(voice, digest=voice_digest(sha256, transcript), needs_words=needs_words(voice, transcript)),
            transcript=transcript,
            rate_hz=rate_hz,
            samples=samples,
            created_at=datetime.fromisoformat(data["created_at"]).timestamp(),
            origin=_string(data["origin"]),
            sample_count=int(data["sample_count"]),
            quality=dict(data["quality"]),
            consent=None if data["consent"] is None else dict(data["consent"]),
            file=file,
            sha256=sha256,
            aliases=tuple(_string(alias) for alias in data.get("aliases", ())),
        )
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, InvalidValue) as error:
        raise Damaged(f"{MARKER} can't be read ({type(error).__name__}: {error}).") from error


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a string")
    return value


def read_voice(folder: Path) -> StoredVoice:
    """Read a voice from its folder. Raises Damaged, OSError.

    The samples of the recording are not read; only the size of the WAV file is checked.
    """
    stored = parse((folder / MARKER).read_bytes(), folder.name)
    size_bytes = (folder / stored.file).stat().st_size
    expected_bytes = _WAV_HEADER_BYTES + 2 * stored.samples
    if size_bytes != expected_bytes:
        raise Damaged(f"{stored.file} has {size_bytes} bytes instead of {expected_bytes}.")
    return stored
