"""Voices of one's own: `/voice-cloning/*`, and OpenAI's custom voices and consents.

Uploads go as open files to the room that decodes them; nothing here looks into them.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema
from starlette.datastructures import UploadFile as Upload

from app.api.requests import NOT_BLANK, GenerateBody, PreviewBody
from app.api.routes.voices import fresh
from app.errors import BadReference, InvalidValue, NotFound, NotSupported, UnknownVoice
from app.voices import archive
from app.voices.cloning import Sample, consent_recording
from app.voices.voice_file import LANGUAGE_TAG, MAX_CONSENT_CHARS, MAX_DESCRIPTION_CHARS, MAX_NAME_CHARS, Consent, wav

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.voices.cloning import Cloner, Prepared
    from app.voices.consents import ConsentStore, StoredConsent
    from app.voices.store import VoiceStore
    from app.voices.voice_file import StoredVoice

log: Any = structlog.get_logger(__name__)

UPLOAD_PATHS = (
    "/voice-cloning/clone",
    "/voice-cloning/check",
    "/voice-cloning/import",
    "/audio/voices",
    "/audio/voice_consents",
)
MAX_FORM_FIELDS = 32

Samples = Annotated[
    list[UploadFile] | None,
    File(description="Recordings of one speaker in any common audio or video format; 6 to 12 s are enough."),
]
Transcripts = Annotated[
    list[str] | None,
    Form(description="Exactly what is said, one for each recording. Left out: recognised, where this server can."),
]
Language = Annotated[
    str, Form(description="BCP 47.", max_length=35, json_schema_extra={"pattern": LANGUAGE_TAG}, examples=["en-GB"])
]
NAME: dict[str, JsonValue] = {"minLength": 1, "maxLength": MAX_NAME_CHARS, "pattern": NOT_BLANK}  # for schemas
DESCRIPTION: dict[str, JsonValue] = {"maxLength": MAX_DESCRIPTION_CHARS}
WORDS: dict[str, JsonValue] = {"maxLength": MAX_CONSENT_CHARS}
Denoise = Annotated[bool, Form(description="Take steady noise out; only for recordings that are really noisy.")]


class VoicePatch(BaseModel):
    """What of a voice may be changed; what is left out stays."""

    model_config = ConfigDict(
        extra="ignore", strict=True, json_schema_extra={"examples": [{"description": "Warm, unhurried."}]}
    )

    name: Annotated[str, WithJsonSchema({"type": "string", **NAME})] | None = None
    description: Annotated[str, WithJsonSchema({"type": "string", **DESCRIPTION})] | None = None
    transcript: Annotated[str | None, Field(description="Exactly what is said in the stored recording.")] = None


class ConsentPatch(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra={"examples": [{"name": "Ada's consent"}]})

    name: Annotated[str, Field(json_schema_extra=NAME)]


_WORD: dict[str, Any] = {"type": "string"}
_CUSTOM_VOICE: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["name", "consent", "audio_sample"],
                "properties": {
                    "name": {**_WORD, **NAME},
                    "consent": {**_WORD, "pattern": "^cons_", "description": "The id of a recorded consent."},
                    "audio_sample": {**_WORD, "format": "binary", "description": "The recording, as a file."},
                    "type": {**_WORD, "enum": ["audio_sample"]},
                    "transcript": {**_WORD, "description": "Exactly what is said. Left out: recognised."},
                    "description": {**_WORD, **DESCRIPTION},
                },
            }
        }
    },
}


def router(speaking: Speaking, gate: Gate, *, voices: VoiceStore, cloner: Cloner, consents: ConsentStore) -> APIRouter:
    routes = APIRouter(tags=["voices"], route_class=gate.route("clone"))
    spoken = APIRouter(tags=["voices"], route_class=gate.route("speak"))

    async def prepared(
        files: list[UploadFile] | None, transcripts: list[str] | None, language: str, *, denoise: bool
    ) -> Prepared:
        return await cloner.prepare(_samples(files, transcripts), language=language, denoise=denoise)

    async def kept(name: str, made: Prepared, description: str, language: str, consent: Consent) -> StoredVoice:
        return await asyncio.to_thread(
            voices.add,
            name,
            made.reference,
            description=description,
            language=language,
            sample_count=made.sample_count,
            quality=made.report.as_json(),
            consent=consent,
        )

    # ---- cloning

    @routes.post("/voice-cloning/clone", operation_id="clone_voice")
    async def clone(
        *,
        name: Annotated[
            str,
            Form(
                description="Free text, up to 100 characters; a taken one gets a number.",
                json_schema_extra=NAME,
                examples=["Ada"],
            ),
        ],
        audio_file: Samples = None,
        transcript: Transcripts = None,
        description: Annotated[str, Form(json_schema_extra=DESCRIPTION)] = "",
        consent: Annotated[
            str | None,
            Form(description="The speaker's agreement in words, or a consent's id.", json_schema_extra=WORDS),
        ] = None,
        language: Language = "en",
        denoise: Denoise = False,
        draft_id: Annotated[str | None, Form(description="Of an earlier check, in place of `audio_file`.")] = None,
    ) -> dict[str, Any]:
        """Make a voice of a recording. It is in every list at once, and speaks by its id or name."""
        voices.check(name, description=description, language=language, consent=consent or "")
        consented = await agreed(consents, consent)
        if draft_id and not audio_file:
            await fresh(voices)
            words = transcript[0] if transcript and transcript[0].strip() else None
            stored = await asyncio.to_thread(
                _adopt, voices, draft_id, name=name, description=description, transcript=words, consent=consented
            )
        else:
            made = await prepared(audio_file, transcript, language, denoise=denoise)
            stored = await kept(name, made, description, language, consented)
        log.info("cloned", voice=stored.id, seconds=round(stored.seconds, 2), level=stored.quality.get("level"))
        return told("The voice was cloned", name, stored)

    @routes.post("/voice-cloning/check", operation_id="check_recording")
    async def check(
        audio_file: Samples = None,
        transcript: Transcripts = None,
        language: Language = "en",
        denoise: Denoise = False,
    ) -> dict[str, Any]:
        """Say how good a recording is, and keep it for 30 minutes as a draft that `clone` and `preview` take."""
        made = await prepared(audio_file, transcript, language, denoise=denoise)
        draft = await asyncio.to_thread(
            voices.add_draft,
            made.reference,
            language=language,
            sample_count=made.sample_count,
            quality=made.report.as_json(),
        )
        return {
            "draft_id": draft.id,
            "transcript": draft.transcript,
            "audio_duration": round(draft.seconds, 3),
            "window": {"start": round(made.window.start_s, 3), "end": round(made.window.end_s, 3)},
            "quality": dict(draft.quality),
        }

    @routes.get("/voice-cloning/voices", operation_id="list_cloned_voices")
    async def list_cloned() -> dict[str, Any]:
        """All cloned voices with what is known of them, and folders on disk that should be voices but are not."""
        await fresh(voices)
        return {"voices": [voice_json(stored) for stored in voices.stored()], "problems": voices.problems}

    @routes.get("/voice-cloning/voices/{voice_id}", operation_id="get_cloned_voice")
    async def get_cloned(voice_id: str) -> dict[str, Any]:
        await fresh(voices)
        return voice_json(voices.find(voice_id))

    @routes.patch("/voice-cloning/voices/{voice_id}", operation_id="change_cloned_voice")
    async def change(voice_id: str, body: VoicePatch) -> dict[str, Any]:
        stored = await asyncio.to_thread(
            voices.change, voice_id, name=body.name, description=body.description, transcript=body.transcript
        )
        return voice_json(stored)

    @routes.delete("/voice-cloning/voices/{voice_id}", operation_id="delete_cloned_voice")
    async def delete(voice_id: str) -> dict[str, Any]:
        gone = await asyncio.to_thread(voices.delete, voice_id)
        return {"status": "success", "message": f"The voice {gone.voice.name!r} was deleted.", "id": voice_id}

    @routes.get(
        "/voice-cloning/voices/{voice_id}/reference",
        operation_id="get_reference",
        response_class=Response,
        responses={200: {"content": {"audio/wav": {}}}},
    )
    async def reference(voice_id: str) -> Response:
        """The recording that the voice goes by, as a WAV file."""
        await fresh(voices)
        heard = await asyncio.to_thread(voices.reference, voices.find(voice_id).voice)
        return Response(wav(heard.samples, heard.rate_hz), media_type="audio/wav")

    @routes.get(
        "/voice-cloning/voices/{voice_id}/export",
        operation_id="export_voice",
        response_class=Response,
        responses={200: {"content": {"application/zip": {}}}},
    )
    async def export(voice_id: str) -> Response:
        """The voice as one zip, for `import` here or elsewhere."""
        await fresh(voices)
        data = await asyncio.to_thread(archive.pack, voices, voice_id)
        named = {"Content-Disposition": f'attachment; filename="{voices.find(voice_id).id}.zip"'}
        return Response(data, media_type="application/zip", headers=named)

    @routes.post("/voice-cloning/import", operation_id="import_voice")
    async def import_(file: Annotated[UploadFile, File(description="What an export gave.")]) -> dict[str, Any]:
        """Take over an exported voice, under an id of its own."""
        unpacked = await cloner.work(lambda: archive.unpack(file.file))
        voice = unpacked.voice
        stored = await asyncio.to_thread(
            voices.add,
            voice.voice.name,
            unpacked.reference,
            description=voice.voice.description,
            language=voice.voice.language,
            sample_count=voice.sample_count,
            quality=voice.quality,
            consent=unpacked.consent,
            origin="import",
        )
        return told("The voice was imported", voice.voice.name, stored)

    @spoken.post("/voice-cloning/generate", operation_id="generate_with_voice")
    async def generate(body: GenerateBody, caller: Request) -> Response:
        """As `/audio/speech`, with the voice as `voice_id`."""
        return speaking.respond(body, caller)

    @spoken.post("/voice-cloning/voices/{voice_id}/preview", operation_id="preview_voice")
    async def preview(voice_id: str, caller: Request, body: PreviewBody | None = None) -> Response:
        """A sentence in this voice, or in that of a draft. Takes all that `/audio/speech` takes."""
        await fresh(voices)
        try:
            voices.get(voice_id)
        except UnknownVoice as error:
            raise NotFound(error.message, param="id") from error
        return speaking.respond(body or PreviewBody(), caller, voice=voice_id)

    # ---- OpenAI's custom voices

    @routes.post("/audio/voices", operation_id="create_voice", openapi_extra={"requestBody": _CUSTOM_VOICE})
    async def create_voice(request: Request) -> dict[str, Any]:
        """OpenAI's custom voice: multipart `name`, `consent` (an id), `audio_sample`; ours: `transcript`."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json":
            _refuse_prompt_voice(await request.body())
        async with request.form(max_files=4, max_fields=MAX_FORM_FIELDS) as form:
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            if fields.get("type", "audio_sample") != "audio_sample":
                raise _no_prompt_voices()
            for name in ("name", "consent"):
                if not fields.get(name, "").strip():
                    raise InvalidValue(f"`{name}` is missing.", param=name)
            sample = form.get("audio_sample")
            if not isinstance(sample, Upload):
                raise InvalidValue("`audio_sample` is missing: send the recording as a file.", param="audio_sample")
            voices.check(fields["name"], description=fields.get("description", ""))
            if not fields["consent"].startswith("cons_"):
                raise InvalidValue(
                    "`consent` is the id of a recorded consent (`cons_...`), see POST /v1/audio/voice_consents.",
                    param="consent",
                )
            consented = await agreed(consents, fields["consent"])
            consent = await asyncio.to_thread(consents.find, fields["consent"])
            made = await cloner.prepare(
                [Sample(sample.file, fields.get("transcript", ""))], language=consent.language, what="audio_sample"
            )
            stored = await kept(fields["name"], made, fields.get("description", ""), consent.language, consented)
        return {
            "object": "audio.voice",
            "id": stored.id,
            "name": stored.voice.name,
            "created_at": int(stored.created_at),
            "type": "audio_sample",
        }

    @routes.delete("/audio/voices/{voice_id}", operation_id="delete_voice")
    async def delete_voice(voice_id: str) -> dict[str, Any]:
        await asyncio.to_thread(voices.delete, voice_id)
        return {"object": "audio.voice.deleted", "id": voice_id, "deleted": True}

    @routes.post("/audio/voice_consents", operation_id="create_voice_consent")
    async def create_consent(
        name: Annotated[str, Form(json_schema_extra=NAME)], language: Language, recording: Annotated[UploadFile, File()]
    ) -> dict[str, Any]:
        """Keep the recording in which a speaker agrees to the making of a voice."""
        heard = await cloner.work(lambda: consent_recording(recording.file))
        return consent_json(await asyncio.to_thread(consents.add, name, language, heard))

    @routes.get("/audio/voice_consents", operation_id="list_voice_consents")
    async def list_consents(
        after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> dict[str, Any]:
        page = await asyncio.to_thread(consents.page, after, limit)
        data = [consent_json(consent) for consent in page.consents]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return {"object": "list", "data": data, **ends, "has_more": page.has_more}

    @routes.get("/audio/voice_consents/{consent_id}", operation_id="get_voice_consent")
    async def get_consent(consent_id: str) -> dict[str, Any]:
        return consent_json(await asyncio.to_thread(consents.find, consent_id))

    @routes.post("/audio/voice_consents/{consent_id}", operation_id="update_voice_consent")
    async def update_consent(consent_id: str, body: ConsentPatch) -> dict[str, Any]:
        return consent_json(await asyncio.to_thread(consents.rename, consent_id, body.name))

    @routes.delete("/audio/voice_consents/{consent_id}", operation_id="delete_voice_consent")
    async def delete_consent(consent_id: str) -> dict[str, Any]:
        await asyncio.to_thread(consents.delete, consent_id)
        return {"id": consent_id, "object": "audio.voice_consent", "deleted": True}

    routes.include_router(spoken)
    return routes


def lists(voices: VoiceStore) -> APIRouter:
    """What clients read without a key."""
    routes = APIRouter(tags=["voices"])

    @routes.get("/voice-cloning/openai-compatible-voices", operation_id="list_openai_compatible_voices")
    async def compatible(request: Request) -> dict[str, Any]:
        """All voices that a speech request may name."""
        await fresh(voices)
        prefix = request.url.path.removesuffix("/openai-compatible-voices")
        return {
            "voices": [
                {
                    "voice_id": voice.id,
                    "name": voice.name,
                    "preview_url": f"{prefix}/voices/{voice.id}/reference" if voice.kind == "cloned" else None,
                    "description": voice.description,
                    "languages": [voice.language],
                    "cloned": voice.kind == "cloned",
                }
                for voice in voices.all()
            ]
        }

    return routes


async def agreed(consents: ConsentStore, consent: str | None) -> Consent:
    """What a request says of the speaker's agreement: words, or the id of a recorded consent. Raises InvalidValue."""
    if not consent or not consent.strip():
        return Consent()
    if not consent.startswith("cons_"):
        return Consent(consent)
    try:
        recording = await asyncio.to_thread(consents.recording, consent)
    except NotFound as error:
        raise InvalidValue(error.message, param="consent") from error
    return Consent("", consent, recording)


def voice_json(stored: StoredVoice) -> dict[str, Any]:
    voice = stored.voice
    consent = stored.consent
    return {
        "id": voice.id,
        "name": voice.name,
        "object": "audio.voice",
        "created_at": int(stored.created_at),
        "speaker_id": voice.speaker,
        "description": voice.description,
        "language": voice.language,
        "audio_duration": round(stored.seconds, 3),
        "sample_count": stored.sample_count,
        "transcript": stored.transcript,
        "quality": dict(stored.quality),
        "consent": None if consent is None else {"text": consent.get("text", ""), "id": consent.get("id", "")},
        "origin": stored.origin,
    }


def consent_json(consent: StoredConsent) -> dict[str, Any]:
    return {
        "object": "audio.voice_consent",
        "id": consent.id,
        "name": consent.name,
        "language": consent.language,
        "created_at": int(consent.created_at),
    }


def told(what: str, asked: str, stored: StoredVoice) -> dict[str, Any]:
    """The answer to a request that made a voice."""
    name = stored.voice.name
    message = f"{what}; it is called {name!r}."
    if name.casefold() != " ".join(asked.split()).casefold():
        message = f"{what}; since {' '.join(asked.split())!r} was taken, it is called {name!r}."
    return {"status": "success", "message": message, "voice": voice_json(stored)}


def _samples(files: list[UploadFile] | None, transcripts: list[str] | None) -> list[Sample]:
    """Raises BadReference, InvalidValue."""
    files = files or []
    words = [text for text in transcripts or [] if text.strip()]
    if not files:
        raise BadReference(
            "`audio_file` is missing: send a recording of the voice as a file (multipart/form-data).",
            param="audio_file",
        )
    if words and len(words) != len(files):
        raise InvalidValue(
            f"There are {len(files)} recordings and {len(words)} transcripts; send one transcript for each, in order.",
            param="transcript",
        )
    words = words or [""] * len(files)
    return [Sample(file.file, text) for file, text in zip(files, words, strict=True)]


def _adopt(
    voices: VoiceStore, draft_id: str, *, name: str, description: str, transcript: str | None, consent: Consent
) -> StoredVoice:
    """A draft becomes a voice. Blocks."""
    draft = voices.draft(draft_id)
    reference = voices.reference(draft.voice)
    if transcript is not None:
        reference = replace(reference, transcript=transcript)
    stored = voices.add(
        name,
        reference,
        description=description,
        language=draft.voice.language,
        sample_count=draft.sample_count,
        quality=draft.quality,
        consent=consent,
    )
    voices.drop_draft(draft_id)
    return stored


def _refuse_prompt_voice(body: bytes) -> None:
    """OpenAI takes JSON here for voices made of a description."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidValue("The body is not valid JSON. Send multipart/form-data with `audio_sample`.") from error
    if isinstance(said, dict) and said.get("type") == "prompt":
        raise _no_prompt_voices()
    raise InvalidValue("`audio_sample` is missing: send multipart/form-data.", param="audio_sample")


def _no_prompt_voices() -> NotSupported:
    return NotSupported("This server makes voices of recordings only. Send `audio_sample`, a file.", param="type")
