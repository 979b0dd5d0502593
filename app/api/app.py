"""The FastAPI app: its layers, its routes under /v1 and their twins under /api/v1."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import errors, openapi
from app.api.middleware import EXPOSED_HEADERS, Access, BodyLimit, LastResort, Limit, OwnPages, ReaderTimeout
from app.api.routes import conversation, models, pages, speech, system, voice_cloning, voices, watermark, youtube
from app.api.speaking import Speaking

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.api.auth import Gate
    from app.audio.detection import WatermarkDetector
    from app.audio.watermark import Watermark
    from app.engines.manager import EngineManager
    from app.generator.preset_voices import PresetVoiceMaker
    from app.generator.speech import SpeechGenerator
    from app.metrics import Metrics
    from app.voices.cloning import Cloner
    from app.voices.consents import ConsentStore
    from app.voices.store import VoiceStore
    from app.voices.youtube import YouTube

PREFIXES = ("/v1", "/api/v1")


# Who is told what of keys; app/api/openapi.py says all else.
_KEYED: dict[int | str, dict[str, Any]] = {401: {}, 403: {}}
_OPEN: dict[int | str, dict[str, Any]] = {401: {}}


@dataclass(frozen=True, slots=True)
class AppServices:
    """What the routes are handed."""

    generator: SpeechGenerator
    manager: EngineManager
    voices: VoiceStore
    cloner: Cloner
    consents: ConsentStore
    metrics: Metrics
    gate: Gate
    preset_voices: PresetVoiceMaker
    watermark: Watermark
    detector: WatermarkDetector
    youtube: YouTube | None  # None: it is not offered at all


def create(
    services: AppServices,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    settings_shown: Callable[[], dict[str, object]],
    *,
    max_input_chars: int,
    log_texts: bool,
    max_body_bytes: int,
    max_upload_bytes: int,
    read_timeout_s: float,
    cors_origins: tuple[str, ...],
    reader_timeout_s: float,
) -> FastAPI:
    app = FastAPI(
        title="tts-server",
        version=__version__,
        summary="OpenAI-compatible text to speech on your own machine.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own loads Swagger UI from another host; pages.py has ours
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    errors.install(app)
    speaking = Speaking(
        services.generator, services.manager, services.metrics, max_input_chars=max_input_chars, log_texts=log_texts
    )
    spoken = [
        speech.router(speaking, services.gate),
        conversation.router(speaking, services.gate),
        voice_cloning.router(
            speaking, services.gate, voices=services.voices, cloner=services.cloner, consents=services.consents
        ),
    ]
    if services.youtube is not None:
        spoken.append(
            youtube.router(
                services.youtube,
                services.metrics,
                services.gate,
                voices=services.voices,
                cloner=services.cloner,
                consents=services.consents,
            )
        )
    for prefix in PREFIXES:
        shown = prefix == PREFIXES[0]
        open_to_all = [Depends(services.gate.allow)]
        for routes in spoken:
            app.include_router(routes, prefix=prefix, responses=_KEYED, include_in_schema=shown)
        for lists in (
            speech.lists(),
            voices.router(services.voices),
            voice_cloning.lists(services.voices),
            models.router(services.manager, services.voices),
        ):
            app.include_router(lists, prefix=prefix, dependencies=open_to_all, responses=_OPEN, include_in_schema=shown)
        app.include_router(
            watermark.router(services.detector, services.gate), prefix=prefix, responses=_KEYED, include_in_schema=shown
        )
    inside = system.router(
        services.manager,
        services.metrics,
        services.gate,
        services.preset_voices,
        marks=services.watermark,
        youtube=services.youtube,
        settings_shown=settings_shown,
        max_input_chars=max_input_chars,
        debug_errors=_KEYED,
    )
    for prefix in ("", *PREFIXES):
        app.include_router(inside, prefix=prefix, include_in_schema=not prefix)

    app.include_router(pages.router())
    app.mount("/static/swagger", pages.swagger())
    app.mount("/static", pages.files())

    openapi.install(app, services.gate, max_input_chars=max_input_chars)
    uploads = Limit(max_upload_bytes, "TTS_MAX_UPLOAD_BYTES")
    app.add_middleware(
        BodyLimit,
        limit=Limit(max_body_bytes, "TTS_MAX_BODY_BYTES"),
        by_path={
            prefix + path: uploads
            for prefix in PREFIXES
            for path in (conversation.CONVERSATION_PATH, watermark.DETECT_PATH, *voice_cloning.UPLOAD_PATHS)
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
    app.add_middleware(Access, metrics=services.metrics, foreign=bool(cors_origins))
    app.add_middleware(ReaderTimeout, timeout_s=reader_timeout_s)
    return app
