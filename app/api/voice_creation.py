"""Creates voices from uploaded recordings: checks and cleans a recording, and stores the voice.

All routes that create voices use this module and its form fields. Uploads are passed to app/voices as open files, and
app/voices decodes them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import File, Form, UploadFile
from pydantic import BeforeValidator, JsonValue

from app.api.requests import NOT_BLANK
from app.errors import BadReference, InvalidValue, NotFound
from app.text.languages import language_tag
from app.voices.cloning import Sample, change_unconverted, change_voice
from app.voices.quality import BEST_LENGTH
from app.voices.voice_file import (
    LANGUAGE_TAG,
    MAX_CONSENT_CHARS,
    MAX_DESCRIPTION_CHARS,
    MAX_NAME_CHARS,
    Consent,
    clean_transcript,
)

if TYPE_CHECKING:
    from app.voices.cloning import Cloner, Prepared
    from app.voices.consents import ConsentStore
    from app.voices.store import VoiceStore
    from app.voices.voice_file import StoredVoice

CONSENT_ID_PREFIX = "cons_"

# These limits are used only in the JSON schemas. VoiceStore.check enforces them, with clearer messages.
NAME_SCHEMA: dict[str, JsonValue] = {"minLength": 1, "maxLength": MAX_NAME_CHARS, "pattern": NOT_BLANK}
DESCRIPTION_SCHEMA: dict[str, JsonValue] = {"maxLength": MAX_DESCRIPTION_CHARS}
CONSENT_SCHEMA: dict[str, JsonValue] = {"maxLength": MAX_CONSENT_CHARS}
NAME_HELP = "The name of the voice, up to 100 characters. If another voice has this name, a number is added."
CONSENT_HELP = "The speaker's agreement in words, or the id of a recorded consent."

Recordings = Annotated[
    list[UploadFile] | None,
    File(description=f"Recordings of one speaker, in any common audio or video format. {BEST_LENGTH} are enough."),
]
Transcripts = Annotated[
    list[str] | None,
    Form(
        description="The exact words, one transcript for each recording. Default: the server recognises them (TTS_ASR)."
    ),
]
LANGUAGE_HELP = 'The language as a BCP 47 tag ("de", "pt-BR") or by its name ("German", "Deutsch").'


def voice_language(value: object) -> object:
    """Return the tag of a language that a request names by its tag or name; "en" for "" and "auto"."""
    return language_tag(value) or "en" if isinstance(value, str) else value


Language = Annotated[
    str,
    BeforeValidator(voice_language),
    Form(
        description=LANGUAGE_HELP,
        max_length=35,
        json_schema_extra={"pattern": LANGUAGE_TAG},
        examples=["en-GB"],
    ),
]
Denoise = Annotated[bool, Form(description="Remove steady noise. Use it only for noisy recordings.")]


@dataclass(frozen=True, slots=True)
class VoiceCreation:
    """Creates voices. Use it from one event loop; slow work runs in threads and child processes."""

    voices: VoiceStore
    cloner: Cloner
    consents: ConsentStore

    async def prepare(
        self, files: list[UploadFile] | None, transcripts: list[str] | None, language: str, *, denoise: bool
    ) -> Prepared:
        """Decode, measure and clean recordings. transcripts: one for each file, or an empty list.

        Raises BadReference, InvalidValue.
        """
        return await self.cloner.prepare(_samples(files, transcripts), language=language, denoise=denoise)

    async def store(
        self,
        name: str,
        prepared: Prepared,
        *,
        description: str,
        language: str,
        consent: Consent,
        origin: str = "upload",
    ) -> StoredVoice:
        """Store a voice. origin: how the voice was created, for example "youtube". Raises NotStored."""

        def add() -> StoredVoice:
            return self.voices.add(
                name,
                prepared.reference,
                description=description,
                language=language,
                sample_count=prepared.sample_count,
                quality=prepared.report.as_json(),
                consent=consent,
                origin=origin,
            )

        return await asyncio.to_thread(add)

    async def adopt_draft(
        self, draft_id: str, *, name: str, description: str, transcript: str | None, consent: Consent
    ) -> StoredVoice:
        """Store a draft as a voice and delete the draft. transcript: None = keep the transcript of the draft.

        Raises NotFound, InvalidValue, NotStored, Busy.
        """

        def adopt() -> StoredVoice:
            draft = self.voices.draft(draft_id)
            reference, quality = self.voices.reference(draft.voice), draft.quality
            if transcript is not None and (words := clean_transcript(transcript)) != reference.transcript:
                reference = replace(reference, transcript=words)
                quality = self.cloner.new_report(reference, quality, draft.voice.language)
            stored = self.voices.add(
                name,
                reference,
                description=description,
                language=draft.voice.language,
                sample_count=draft.sample_count,
                quality=quality,
                consent=consent,
            )
            self.voices.drop_draft(draft_id)
            return stored

        return await self.cloner.run(adopt)

    async def change(
        self,
        voice_id: str,
        *,
        name: str | None,
        description: str | None,
        transcript: str | None,
        tags: list[str] | None = None,
        color: str | None = None,
    ) -> StoredVoice:
        """Change a voice, or repair a folder that is not usable as a voice. A parameter that is None changes nothing.

        Raises NotFound, InvalidValue, BadReference, NotStored, Busy.
        """
        if voice_id in self.voices.refused:

            def mend() -> StoredVoice:
                return change_unconverted(
                    self.voices,
                    self.cloner,
                    voice_id,
                    voice_name=name,
                    description=description,
                    transcript=transcript,
                )

            stored = await self.cloner.run(mend)
            if tags is None and color is None:
                return stored
            return await asyncio.to_thread(partial(self.voices.change, stored.id, tags=tags, color=color))
        changes: dict[str, Any] = {"name": name, "description": description, "tags": tags, "color": color}
        if transcript is not None:
            check = partial(change_voice, self.voices, self.cloner, voice_id)
            return await self.cloner.run(lambda: check(transcript=transcript, **changes))
        return await asyncio.to_thread(partial(self.voices.change, voice_id, **changes))

    async def consent(self, text: str | None) -> Consent:
        """Create a Consent from the value of a form field. Raises InvalidValue.

        text: the words of the consent, or the id of a recorded consent; None = no consent.
        """
        if not text or not text.strip():
            return Consent()
        if not text.startswith(CONSENT_ID_PREFIX):
            return Consent(text)
        try:
            recording = await asyncio.to_thread(self.consents.recording, text)
        except NotFound as error:
            raise InvalidValue(error.message, param="consent") from error
        return Consent("", text, recording)


def _samples(files: list[UploadFile] | None, transcripts: list[str] | None) -> list[Sample]:
    """Pair the files with their transcripts. Raises BadReference, InvalidValue."""
    files = files or []
    texts = [text for text in transcripts or [] if text.strip()]
    if not files:
        raise BadReference(
            "`audio_file` is missing: send a recording of the voice as a file (multipart/form-data).",
            param="audio_file",
        )
    if texts and len(texts) != len(files):
        raise InvalidValue(
            f"The number of recordings is {len(files)}, and the number of transcripts is {len(texts)}. Send one "
            "transcript for each recording, in the same order.",
            param="transcript",
        )
    texts = texts or [""] * len(files)
    return [Sample(file.file, text) for file, text in zip(files, texts, strict=True)]
