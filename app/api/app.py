"""The FastAPI app: its layers, its routes under /v1 and their twins under /api/v1."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import cloning, conversation, errors, models, pages, speech, system, voices, watermark, youtube
from app.api.access import EXPOSED_HEADERS, Access, BodyLimit, LastResort, Limit, OwnPages

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.api.auth import Gate
    from app.audio.watermark import Watermark
    from app.casting import Casting
    from app.engines.host import EngineHost
    from app.metrics import Metrics
    from app.studio import Studio
    from app.voices.cloning import Cloner
    from app.voices.consents import ConsentStore
    from app.voices.store import VoiceStore
    from app.voices.youtube import YouTube

PREFIXES = ("/v1", "/api/v1")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


_SPEECH_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorEnvelope, "description": "The request can't be answered as it is; the message says why."},
    401: {"model": ErrorEnvelope, "description": "A key is needed, or is wrong."},
    403: {"model": ErrorEnvelope, "description": "The key lacks a scope, or a foreign web page asks."},
    404: {"model": ErrorEnvelope, "description": "No such model, voice or consent here."},
    408: {"model": ErrorEnvelope, "description": "The body came too slowly."},
    413: {"model": ErrorEnvelope, "description": "The body is too large."},
    429: {
        "model": ErrorEnvelope,
        "description": "The queue is full, or the key has used what it may; Retry-After says when to come back.",
    },
    500: {"model": ErrorEnvelope, "description": "The engine failed."},
    503: {"model": ErrorEnvelope, "description": "The engine is starting or can't be had; Retry-After."},
}
_UPLOAD_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _SPEECH_ERRORS[status] for status in (400, 401, 403, 408, 413, 429)
}
_LIST_ERRORS: dict[int | str, dict[str, Any]] = {status: _SPEECH_ERRORS[status] for status in (400, 401)}
_DEBUG_ERRORS: dict[int | str, dict[str, Any]] = {status: _SPEECH_ERRORS[status] for status in (401, 403, 429)}
_KEY_ERRORS: dict[int | str, dict[str, Any]] = {401: _SPEECH_ERRORS[401]}
_LOOKUP_ERRORS: dict[int | str, dict[str, Any]] = {status: _SPEECH_ERRORS[status] for status in (400, 401, 404)}


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the routes are handed."""

    studio: Studio
    host: EngineHost
    voices: VoiceStore
    cloner: Cloner
    consents: ConsentStore
    metrics: Metrics
    gate: Gate
    casting: Casting
    marks: Watermark
    youtube: YouTube | None  # None: it is not offered at all


def create(
    rooms: Rooms,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    settings_shown: Callable[[], dict[str, object]],
    *,
    max_input_chars: int,
    log_texts: bool,
    max_body_bytes: int,
    max_upload_bytes: int,
    read_timeout_s: float,
    cors_origins: tuple[str, ...],
) -> FastAPI:
    app = FastAPI(
        title="tts-server",
        version=__version__,
        summary="OpenAI-compatible text to speech on your own machine.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own loads Swagger UI from another host; pages.py has ours
        redoc_url=None,
    )
    errors.install(app)
    inner = (rooms.studio, rooms.host, rooms.metrics, rooms.gate)
    spoken = [
        routes(*inner, max_input_chars=max_input_chars, log_texts=log_texts)
        for routes in (speech.router, conversation.router)
    ]
    spoken.append(
        cloning.router(
            *inner,
            voices=rooms.voices,
            cloner=rooms.cloner,
            consents=rooms.consents,
            max_input_chars=max_input_chars,
        )
    )
    if rooms.youtube is not None:
        spoken.append(
            youtube.router(
                rooms.youtube,
                rooms.metrics,
                rooms.gate,
                voices=rooms.voices,
                cloner=rooms.cloner,
                consents=rooms.consents,
            )
        )
    for prefix in PREFIXES:
        shown = prefix == PREFIXES[0]
        open_to_all = [Depends(rooms.gate.allow)]
        for speaking in spoken:
            app.include_router(speaking, prefix=prefix, responses=_SPEECH_ERRORS, include_in_schema=shown)
        for lists, wrong in (
            (speech.lists(), _LIST_ERRORS),
            (voices.router(rooms.voices), _LIST_ERRORS),
            (cloning.lists(rooms.voices), _LIST_ERRORS),
            (models.router(rooms.host, rooms.voices), _LOOKUP_ERRORS),
        ):
            app.include_router(lists, prefix=prefix, dependencies=open_to_all, responses=wrong, include_in_schema=shown)
        app.include_router(
            watermark.router(rooms.studio, rooms.gate), prefix=prefix, responses=_UPLOAD_ERRORS, include_in_schema=shown
        )
    inside = system.router(
        rooms.host,
        rooms.metrics,
        rooms.gate,
        rooms.casting,
        marks=rooms.marks,
        youtube=rooms.youtube,
        settings_shown=settings_shown,
        max_input_chars=max_input_chars,
        debug_errors=_DEBUG_ERRORS,
    )
    for prefix in ("", *PREFIXES):
        app.include_router(inside, prefix=prefix, responses=_KEY_ERRORS, include_in_schema=not prefix)

    app.include_router(pages.router())
    app.mount("/static/swagger", pages.swagger())
    app.mount("/static", pages.files())

    _describe_only_what_happens(app, rooms.gate)
    uploads = Limit(max_upload_bytes, "TTS_MAX_UPLOAD_BYTES")
    app.add_middleware(
        BodyLimit,
        limit=Limit(max_body_bytes, "TTS_MAX_BODY_BYTES"),
        by_path={
            prefix + path: uploads
            for prefix in PREFIXES
            for path in (conversation.CONVERSATION_PATH, watermark.DETECT_PATH, *cloning.UPLOAD_PATHS)
        },
        timeout_s=read_timeout_s,
    )
    app.add_middleware(LastResort)
    app.add_middleware(OwnPages, origins=cors_origins)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED_HEADERS),
        )
    app.add_middleware(Access, metrics=rooms.metrics, foreign=bool(cors_origins))
    return app


def _describe_only_what_happens(app: FastAPI, gate: Gate) -> None:
    """Take FastAPI's 422 out of /openapi.json: a body that does not fit is a 400 here, as OpenAI's clients expect. And
    say what needs a key, where there are keys."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
        schema = generate()
        if not gate.needed:
            return schema
        paths = {path: {method: _keyed(each) for method, each in ops.items()} for path, ops in schema["paths"].items()}
        schemes = {"key": {"type": "http", "scheme": "bearer"}}
        return {**schema, "paths": paths, "components": {**schema["components"], "securitySchemes": schemes}}

    app.openapi = openapi  # type: ignore[method-assign]


def _keyed(operation: dict[str, Any]) -> dict[str, Any]:
    return {**operation, "security": [{"key": []}]} if "403" in operation["responses"] else operation
