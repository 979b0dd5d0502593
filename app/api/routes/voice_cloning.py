"""The routes below `/voice-cloning`: create, list, change and delete cloned voices, and speak with them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import Response
from pydantic import ConfigDict, Field, WithJsonSchema

from app.api.errors import problems
from app.api.requests import GenerateBody, PreviewBody, ReportedBody
from app.api.responses import (
    BINARY,
    COLOR_HELP,
    IGNORED_HEADER,
    Cloned,
    ClonedVoice,
    ClonedVoices,
    CompatibleVoice,
    CompatibleVoices,
    DeletedClone,
    Draft,
    Quality,
    RefusedFolder,
    Window,
    text_header,
)
from app.api.routes.speech import answers
from app.api.routes.voices import listed, refresh
from app.api.voice_creation import (
    CONSENT_HELP,
    CONSENT_SCHEMA,
    DESCRIPTION_SCHEMA,
    NAME_HELP,
    NAME_SCHEMA,
    Denoise,
    Language,
    Recordings,
    Transcripts,
)
from app.errors import NotFound, UnknownVoice
from app.text.lexicon_file import parse_lexicon
from app.voices import archive
from app.voices.voice_file import COLOR, MAX_TAG_CHARS, MAX_TAGS, wav

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.api.voice_creation import VoiceCreation
    from app.generator.lexicons import LexiconStore
    from app.voices.store import VoiceStore

log: Any = structlog.get_logger(__name__)

CLONE_PATH, CHECK_PATH, IMPORT_PATH = "/voice-cloning/clone", "/voice-cloning/check", "/voice-cloning/import"
UPLOAD_PATHS = (CLONE_PATH, CHECK_PATH, IMPORT_PATH)
UPLOAD_PROBLEMS = (400, 408, 413, 429, 507)


class VoicePatch(ReportedBody):
    """The body that changes a voice. A field that is left out keeps its value."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"description": "Warm, unhurried."}]})

    name: Annotated[str, WithJsonSchema({"type": "string", **NAME_SCHEMA})] | None = None
    description: Annotated[str, WithJsonSchema({"type": "string", **DESCRIPTION_SCHEMA})] | None = None
    transcript: Annotated[str | None, Field(description="The exact words of the stored recording.")] = None
    tags: Annotated[
        list[Annotated[str, Field(max_length=MAX_TAG_CHARS)]] | None,
        Field(max_length=MAX_TAGS, description="Words for finding the voice. They replace the stored ones."),
    ] = None
    color: Annotated[str | None, Field(pattern=COLOR, description=COLOR_HELP)] = None


def router(speaking: Speaking, gate: Gate, creation: VoiceCreation, lexicons: LexiconStore) -> APIRouter:
    """Create the routes below `/voice-cloning` for which a server with API keys requires a key."""
    routes = APIRouter(tags=["voices"], route_class=gate.route("clone"))
    _add_creation_routes(routes, creation)
    _add_voice_routes(routes, creation)
    _add_file_routes(routes, creation, lexicons)
    spoken = APIRouter(tags=["voices"], route_class=gate.route("speak"))
    _add_speech_routes(spoken, speaking, creation.voices)
    routes.routes.extend(spoken.routes)
    return routes


def _add_creation_routes(routes: APIRouter, creation: VoiceCreation) -> None:
    voices = creation.voices

    @routes.post(CLONE_PATH, operation_id="clone_voice", responses=problems(*UPLOAD_PROBLEMS, 404, 500))
    async def clone(
        *,
        name: Annotated[str, Form(description=NAME_HELP, json_schema_extra=NAME_SCHEMA, examples=["Ada"])],
        audio_file: Recordings = None,
        transcript: Transcripts = None,
        description: Annotated[str, Form(json_schema_extra=DESCRIPTION_SCHEMA)] = "",
        consent: Annotated[str | None, Form(description=CONSENT_HELP, json_schema_extra=CONSENT_SCHEMA)] = None,
        language: Language = "en",
        denoise: Denoise = False,
        draft_id: Annotated[
            str | None, Form(description="The id of a draft from `check`, instead of `audio_file`.")
        ] = None,
    ) -> Cloned:
        """Create a voice from a recording. Speech requests can then use its id or its name."""
        voices.check(name, description=description, language=language, consent=consent or "")
        agreement = await creation.consent(consent)
        if draft_id and not audio_file:
            await refresh(voices)
            words = transcript[0] if transcript and transcript[0].strip() else None
            stored = await creation.adopt_draft(
                draft_id, name=name, description=description, transcript=words, consent=agreement
            )
        else:
            prepared = await creation.prepare(audio_file, transcript, language, denoise=denoise)
            stored = await creation.store(name, prepared, description=description, language=language, consent=agreement)
        log.info(
            "a voice was cloned", voice=stored.id, seconds=round(stored.seconds, 2), level=stored.quality.get("level")
        )
        return Cloned.of("The voice was cloned", name, stored)

    @routes.post(CHECK_PATH, operation_id="check_recording", responses=problems(*UPLOAD_PROBLEMS))
    async def check(
        audio_file: Recordings = None,
        transcript: Transcripts = None,
        language: Language = "en",
        denoise: Denoise = False,
    ) -> Draft:
        """Measure the quality of a recording, and store it for 30 minutes as a draft for `clone` and `preview`."""
        prepared = await creation.prepare(audio_file, transcript, language, denoise=denoise)
        quality = prepared.report.as_json()
        draft = await asyncio.to_thread(
            voices.add_draft,
            prepared.reference,
            language=language,
            sample_count=prepared.sample_count,
            quality=quality,
        )
        return Draft(
            draft_id=draft.id,
            transcript=draft.transcript,
            audio_duration=round(draft.seconds, 3),
            window=Window(start=round(prepared.window.start_s, 3), end=round(prepared.window.end_s, 3)),
            quality=Quality(**quality),
        )


def _add_voice_routes(routes: APIRouter, creation: VoiceCreation) -> None:
    voices = creation.voices

    @routes.get("/voice-cloning/voices", operation_id="list_cloned_voices")
    async def list_cloned() -> ClonedVoices:
        """List the cloned voices, and the folders on disk that can't be read as voices."""
        await refresh(voices)
        return ClonedVoices(
            voices=[ClonedVoice.of(stored, voices.quality_of(stored)) for stored in voices.stored()],
            refused=[RefusedFolder(id=name, reason=reason) for name, reason in voices.refused.items()],
            problems=voices.problems,
        )

    @routes.get("/voice-cloning/voices/{voice_id}", operation_id="get_cloned_voice", responses=problems(404))
    async def get_cloned(voice_id: str) -> ClonedVoice:
        """Get a cloned voice."""
        await refresh(voices)
        stored = voices.find(voice_id)
        return ClonedVoice.of(stored, voices.quality_of(stored))

    @routes.patch(
        "/voice-cloning/voices/{voice_id}",
        operation_id="change_cloned_voice",
        responses={200: IGNORED_HEADER, **problems(400, 404, 408, 413, 429, 507)},
    )
    async def change(voice_id: str, body: VoicePatch, response: Response) -> ClonedVoice:
        """Change the name, the description, the transcript, the tags or the colour of a voice.

        If `voice_id` names a folder that the list of voices shows in `refused`, the server also tries to convert the
        folder to a voice.
        """
        stored = await creation.change(
            voice_id,
            name=body.name,
            description=body.description,
            transcript=body.transcript,
            tags=body.tags,
            color=body.color,
        )
        body.name_ignored(response)
        return ClonedVoice.of(stored, voices.quality_of(stored))

    @routes.delete(
        "/voice-cloning/voices/{voice_id}", operation_id="delete_cloned_voice", responses=problems(404, 429, 507)
    )
    async def delete(voice_id: str) -> DeletedClone:
        """Delete a voice and its recording, or a folder that the list of voices shows in `refused`."""
        name = await asyncio.to_thread(voices.delete, voice_id)
        message = f"The voice {name!r} was deleted."
        return DeletedClone(status="success", message=message, id=voice_id)


def _add_file_routes(routes: APIRouter, creation: VoiceCreation, lexicons: LexiconStore) -> None:
    voices = creation.voices

    @routes.get(
        "/voice-cloning/voices/{voice_id}/reference",
        operation_id="get_reference",
        response_class=Response,
        responses={200: {"content": {"audio/wav": BINARY}}, **problems(404, 500)},
    )
    async def reference(voice_id: str) -> Response:
        """Get the recording of a voice as a WAV file."""
        await refresh(voices)
        recording = await asyncio.to_thread(voices.reference, voices.find(voice_id).voice)
        headers = {"Content-Disposition": f'inline; filename="{voices.find(voice_id).id}.wav"'}
        return Response(wav(recording.samples, recording.rate_hz), media_type="audio/wav", headers=headers)

    @routes.get(
        "/voice-cloning/voices/{voice_id}/export",
        operation_id="export_voice",
        response_class=Response,
        responses={
            200: {
                "content": {"application/zip": BINARY},
                "headers": {"Content-Disposition": text_header("The name of the file.")},
            },
            **problems(404, 500),
        },
    )
    async def export(voice_id: str) -> Response:
        """Get a voice as a zip file, for `import` on this server or another server."""
        await refresh(voices)
        data = await asyncio.to_thread(archive.pack, voices, voice_id)
        headers = {"Content-Disposition": f'attachment; filename="{voices.find(voice_id).id}.zip"'}
        return Response(data, media_type="application/zip", headers=headers)

    @routes.post(IMPORT_PATH, operation_id="import_voice", responses=problems(*UPLOAD_PROBLEMS))
    async def import_(
        file: Annotated[UploadFile, File(description="The zip file that `export` has created.")],
    ) -> Cloned:
        """Add an exported voice with a new id."""
        unpacked = await creation.cloner.run(lambda: archive.unpack(file.file))
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
        if voice.voice.tags or voice.voice.color:
            change = partial(voices.change, stored.id, tags=voice.voice.tags, color=voice.voice.color)
            stored = await asyncio.to_thread(change)
        if unpacked.lexicon is not None:
            entries = parse_lexicon(unpacked.lexicon).entries
            await asyncio.to_thread(lexicons.replace, entries, stored.id)
        return Cloned.of("The voice was imported", voice.voice.name, stored)


def _add_speech_routes(routes: APIRouter, speaking: Speaking, voices: VoiceStore) -> None:
    @routes.post(
        "/voice-cloning/generate",
        operation_id="generate_with_voice",
        response_class=Response,
        responses=answers(),
    )
    async def generate(body: GenerateBody, caller: Request) -> Response:
        """Speak a text with the voice `voice_id`. Accepts every field of `/audio/speech`."""
        return speaking.respond(body, caller)

    @routes.post(
        "/voice-cloning/voices/{voice_id}/preview",
        operation_id="preview_voice",
        response_class=Response,
        responses=answers(),
    )
    async def preview(voice_id: str, caller: Request, body: PreviewBody | None = None) -> Response:
        """Speak a sample text with this voice or draft. Accepts every field of `/audio/speech`."""
        await refresh(voices)
        try:
            voices.get(voice_id)
        except UnknownVoice as error:
            raise NotFound(error.message, param="id") from error
        return speaking.respond(body or PreviewBody(), caller, voice=voice_id)


def lists_router(voices: VoiceStore, gate: Gate) -> APIRouter:
    """Create the route that lists voices without an API key."""
    routes = APIRouter(tags=["voices"], route_class=gate.route(None))

    @routes.get("/voice-cloning/openai-compatible-voices", operation_id="list_openai_compatible_voices")
    async def compatible(request: Request) -> CompatibleVoices:
        """List all voices that a speech request can use."""
        prefix = request.url.path.removesuffix("/openai-compatible-voices")
        return CompatibleVoices(
            voices=[
                CompatibleVoice(
                    voice_id=voice.id,
                    name=voice.name,
                    preview_url=f"{prefix}/voices/{voice.id}/reference" if voice.kind == "cloned" else None,
                    description=voice.description,
                    languages=[voice.language],
                    cloned=voice.kind == "cloned",
                )
                for voice in await listed(voices, gate, request)
            ]
        )

    return routes
