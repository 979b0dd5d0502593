"""The routes of OpenAI's custom voices (`/audio/voices`) and voice consents (`/audio/voice_consents`)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from pydantic import ConfigDict, Field
from starlette.datastructures import UploadFile as Upload

from app.api.errors import problems
from app.api.requests import ReportedBody
from app.api.responses import (
    IGNORED_HEADER,
    Consent,
    ConsentPage,
    CustomVoice,
    DeletedConsent,
    DeletedVoice,
    Schema,
)
from app.api.voice_creation import CONSENT_ID_PREFIX, DESCRIPTION_SCHEMA, NAME_SCHEMA, Language
from app.errors import InvalidValue, NotSupported
from app.voices.cloning import Sample, consent_recording

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.voice_creation import VoiceCreation
    from app.voices.cloning import Cloner
    from app.voices.consents import ConsentStore
    from app.voices.voice_file import StoredVoice

VOICES_PATH, CONSENTS_PATH = "/audio/voices", "/audio/voice_consents"
UPLOAD_PATHS = (VOICES_PATH, CONSENTS_PATH)
MAX_FORM_FIELDS = 32


class ConsentPatch(ReportedBody):
    """The body that renames a consent."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Ada's consent"}]})

    name: Annotated[str, Field(json_schema_extra=NAME_SCHEMA)]


_STRING: Schema = {"type": "string"}
# The form in /openapi.json. The route reads the body itself, so that it can answer a JSON body with a clear error.
# Therefore FastAPI can't derive the form.
_CREATE_VOICE: Schema = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "consent", "audio_sample"],
                    "properties": {
                        "name": {**_STRING, **NAME_SCHEMA},
                        "consent": {
                            **_STRING,
                            "pattern": f"^{CONSENT_ID_PREFIX}",
                            "description": "The id of a recorded consent.",
                        },
                        "audio_sample": {**_STRING, "format": "binary", "description": "The recording, as a file."},
                        "type": {**_STRING, "enum": ["audio_sample"]},
                        "transcript": {
                            **_STRING,
                            "description": "The exact words. Default: recognised by the server.",
                        },
                        "description": {**_STRING, **DESCRIPTION_SCHEMA},
                    },
                }
            }
        },
    }
}


def router(creation: VoiceCreation, gate: Gate) -> APIRouter:
    """Create the routes of custom voices and consents."""
    routes = APIRouter(tags=["voices"], route_class=gate.route("clone"))
    _add_voice_routes(routes, creation)
    _add_consent_routes(routes, creation.consents, creation.cloner)
    return routes


def _add_voice_routes(routes: APIRouter, creation: VoiceCreation) -> None:
    @routes.post(
        VOICES_PATH,
        operation_id="create_voice",
        openapi_extra=_CREATE_VOICE,
        responses=problems(400, 408, 413, 429, 507),
    )
    async def create_voice(request: Request) -> CustomVoice:
        """Create a voice from a form with `name`, `consent` (an id), `audio_sample` and optionally `transcript`."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json":
            _refuse_json(await request.body())
        async with request.form(max_files=4, max_fields=MAX_FORM_FIELDS) as form:
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            stored = await _create(creation, fields, form.get("audio_sample"))
        return CustomVoice(
            object="audio.voice",
            id=stored.id,
            name=stored.voice.name,
            created_at=int(stored.created_at),
            type="audio_sample",
        )

    @routes.delete("/audio/voices/{voice_id}", operation_id="delete_voice", responses=problems(404, 429, 507))
    async def delete_voice(voice_id: str) -> DeletedVoice:
        """Delete a voice."""
        await asyncio.to_thread(creation.voices.delete, voice_id)
        return DeletedVoice(object="audio.voice.deleted", id=voice_id, deleted=True)


async def _create(creation: VoiceCreation, fields: dict[str, str], sample: object) -> StoredVoice:
    """Create a voice from the fields of the form. Raises InvalidValue, NotSupported, BadReference, NotStored."""
    if fields.get("type", "audio_sample") != "audio_sample":
        raise _no_prompt_voices()
    for name in ("name", "consent"):
        if not fields.get(name, "").strip():
            raise InvalidValue(f"`{name}` is missing. Send it as a form field.", param=name)
    if not isinstance(sample, Upload):
        raise InvalidValue("`audio_sample` is missing: send the recording as a file.", param="audio_sample")
    name, description, consent_id = fields["name"], fields.get("description", ""), fields["consent"]
    creation.voices.check(name, description=description)
    if not consent_id.startswith(CONSENT_ID_PREFIX):
        raise InvalidValue(
            "`consent` must be the id of a recorded consent (`cons_...`). POST /v1/audio/voice_consents creates one.",
            param="consent",
        )
    consent = await creation.consent(consent_id)
    language = (await asyncio.to_thread(creation.consents.find, consent_id)).language
    prepared = await creation.cloner.prepare(
        [Sample(sample.file, fields.get("transcript", ""))], language=language, what="audio_sample"
    )
    return await creation.store(name, prepared, description=description, language=language, consent=consent)


def _refuse_json(body: bytes) -> None:
    """Raise InvalidValue or NotSupported for a JSON body.

    OpenAI's API accepts JSON here to create a voice from a description. This server does not support that.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidValue("The body is not valid JSON. Send multipart/form-data with `audio_sample`.") from error
    if isinstance(content, dict) and content.get("type") == "prompt":
        raise _no_prompt_voices()
    raise InvalidValue(
        "`audio_sample` is missing: send the recording as a file in multipart/form-data.", param="audio_sample"
    )


def _no_prompt_voices() -> NotSupported:
    return NotSupported(
        "This server creates voices from recordings only. Send a recording as the file `audio_sample`.", param="type"
    )


def _add_consent_routes(routes: APIRouter, consents: ConsentStore, cloner: Cloner) -> None:
    @routes.post(CONSENTS_PATH, operation_id="create_voice_consent", responses=problems(400, 408, 413, 429, 507))
    async def create_consent(
        name: Annotated[str, Form(json_schema_extra=NAME_SCHEMA)],
        language: Language,
        recording: Annotated[UploadFile, File()],
    ) -> Consent:
        """Store a recording in which a speaker agrees to the creation of a voice."""
        decoded = await cloner.run(lambda: consent_recording(recording.file))
        return Consent.of(await asyncio.to_thread(consents.add, name, language, decoded))

    @routes.get(CONSENTS_PATH, operation_id="list_voice_consents", responses=problems(400, 404))
    async def list_consents(after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> ConsentPage:
        """List the consents. after: the id of the last consent of the previous page."""
        page = await asyncio.to_thread(consents.page, after, limit)
        data = [Consent.of(consent) for consent in page.consents]
        return ConsentPage(
            object="list",
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=page.has_more,
        )

    @routes.get("/audio/voice_consents/{consent_id}", operation_id="get_voice_consent", responses=problems(404))
    async def get_consent(consent_id: str) -> Consent:
        """Get a consent."""
        return Consent.of(await asyncio.to_thread(consents.find, consent_id))

    @routes.post(
        "/audio/voice_consents/{consent_id}",
        operation_id="update_voice_consent",
        responses={200: IGNORED_HEADER, **problems(400, 404, 408, 413, 429, 507)},
    )
    async def update_consent(consent_id: str, body: ConsentPatch, response: Response) -> Consent:
        """Rename a consent."""
        body.name_ignored(response)
        return Consent.of(await asyncio.to_thread(consents.rename, consent_id, body.name))

    @routes.delete(
        "/audio/voice_consents/{consent_id}", operation_id="delete_voice_consent", responses=problems(404, 429, 507)
    )
    async def delete_consent(consent_id: str) -> DeletedConsent:
        """Delete a consent and its recording."""
        await asyncio.to_thread(consents.delete, consent_id)
        return DeletedConsent(id=consent_id, object="audio.voice_consent", deleted=True)
