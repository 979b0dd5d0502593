"""Creates the FastAPI app: its routes under /v1 and /api/v1, its middleware, and the document /openapi.json."""

from __future__ import annotations

import copy
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, WebSocketRoute, compile_path
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app import __version__
from app.api import errors
from app.api.browser_checks import CrossOriginCheck, HostCheck
from app.api.elevenlabs import DetailedErrors
from app.api.middleware import (
    EXPOSED_HEADERS,
    BodyLimit,
    Limit,
    OrderlyShutdown,
    ReaderTimeout,
    RequestLog,
    UnexpectedErrors,
)
from app.api.paths import PathAliases, PathPrefix, paths_of, trusted_addresses
from app.api.responses import REQUEST_ID_HEADER, Schema
from app.api.routes import (
    adapters,
    captions,
    conversation,
    custom_voices,
    elevenlabs,
    elevenlabs_voices,
    encode,
    jobs,
    lexicons,
    long_speech,
    models,
    normalize,
    pages,
    realtime,
    speech,
    system,
    usage,
    vllm,
    voice_cloning,
    watermark,
    weights,
    youtube,
)
from app.api.routes import voices as voices_routes
from app.api.speaking import Speaking
from app.api.voice_creation import VoiceCreation

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter

    from app.api.auth import Gate
    from app.audio.detection import WatermarkDetector
    from app.audio.reencode import FileEncoder
    from app.audio.watermark import Watermark
    from app.engines.adapters import AdapterRegistry
    from app.engines.model_manager import ModelManager
    from app.engines.weight_downloads import WeightDownloads
    from app.generator.checking import TakeChecker
    from app.generator.lexicons import LexiconStore
    from app.generator.preset_voices import PresetVoiceMaker
    from app.jobs.runner import JobRunner
    from app.metrics import Metrics
    from app.settings import Settings
    from app.text.normalizer import Normalizer
    from app.usage import UsageStore
    from app.voices.cloning import Cloner
    from app.voices.consents import ConsentStore
    from app.voices.store import VoiceStore
    from app.voices.youtube import YouTube

PREFIXES = ("/v1", "/api/v1")
_UPLOAD_PATHS = (
    captions.CAPTIONS_PATH,
    conversation.CONVERSATION_PATH,
    jobs.JOBS_PATH,
    long_speech.LONG_PATH,
    lexicons.LEXICON_PATH,
    encode.ENCODE_PATH,
    watermark.DETECT_PATH,
    *voice_cloning.UPLOAD_PATHS,
    *custom_voices.UPLOAD_PATHS,
)


@dataclass(frozen=True, slots=True)
class AppServices:
    """The services that the routes call."""

    speaking: Speaking
    manager: ModelManager
    voices: VoiceStore
    cloner: Cloner
    consents: ConsentStore
    metrics: Metrics
    gate: Gate
    preset_voices: PresetVoiceMaker
    watermark: Watermark
    detector: WatermarkDetector
    files: FileEncoder
    checker: TakeChecker
    normalizer: Normalizer
    lexicons: LexiconStore
    adapters: AdapterRegistry
    usage: UsageStore
    weights: WeightDownloads
    jobs: JobRunner | None  # None if TTS_JOBS_MAX_CHARS is 0; the routes for jobs then do not exist
    youtube: YouTube | None  # None if TTS_YOUTUBE is off; the routes for YouTube then do not exist


class Api(FastAPI):
    """FastAPI with an /openapi.json that also describes request ids, API keys and the limits of this server."""

    def __init__(self, gate: Gate, max_input_chars: int, **options: Any) -> None:
        self._gate = gate
        self._max_input_chars = max_input_chars
        # The OpenAPI documents: one for a server with API keys, and one for a server without keys. Both are cached,
        # because the first API key can be added while the server runs.
        self._documents: dict[bool, Schema] = {}
        super().__init__(**options)

    def openapi(self) -> Schema:
        """Return the content of /openapi.json."""
        needed = self._gate.needed
        if needed not in self._documents:
            self.openapi_schema = None
            self._documents[needed] = self._complete(super().openapi())
            self.openapi_schema = None
        return self._documents[needed]

    def _complete(self, document: Schema) -> Schema:
        """Add API keys, request ids and limits to FastAPI's OpenAPI document, and correct its mistakes.

        Changes and returns `document`.
        """
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas |= errors.error_schemas()
        document["components"]["schemas"] = schemas = dict(sorted(schemas.items()))
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # this server answers an invalid body with 400, as OpenAI does
                for status, response in operation["responses"].items():
                    if "example" in response.get("content", {}).get("application/json", {}):
                        # FastAPI removes null values from the example of an error, so they are restored here.
                        response.update(errors.problem(int(status)))
        self._gate.describe(document)
        for operations in document["paths"].values():
            for operation in operations.values():
                for response in operation["responses"].values():
                    headers = response.setdefault("headers", {})
                    response["headers"] = {"X-Request-ID": REQUEST_ID_HEADER, **headers}
        for name, schema in schemas.items():
            if name.startswith("Body_"):  # a form field can be absent, but it can't be null
                for field in schema["properties"].values():
                    kinds = [kind for kind in field.pop("anyOf", []) if kind != {"type": "null"}]
                    field.update(kinds[0] if kinds else {})
        for body, field in (
            ("SpeechBody", "input"),
            ("NormalizeBody", "input"),
            *((name, "text") for name in _TEXT_BODIES),
        ):
            schemas[body]["properties"][field]["maxLength"] = self._max_input_chars
        _correct_numbers_and_files(schemas)
        return document


_TEXT_BODIES = ("ConversationBody", "GenerateBody", "PreviewBody")
_INT64 = 2**63


def _correct_numbers_and_files(node: Any) -> None:
    """Convert the bounds of integer fields from float to int, and give file fields the format `binary`.

    Changes `node` and everything in it. FastAPI stores bounds as floats, which are exact only up to 2**53. Tools for
    OpenAPI 3.0 recognise a file by the format `binary`.
    """
    if isinstance(node, dict):
        if node.get("contentMediaType") == "application/octet-stream":
            node["format"] = "binary"
        if node.get("type") == "integer":
            for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
                if isinstance(node.get(bound), float):
                    node[bound] = min(int(node[bound]), _INT64 - 1)
        for value in node.values():
            _correct_numbers_and_files(value)
    elif isinstance(node, list):
        for value in node:
            _correct_numbers_and_files(value)


def create_api(
    services: AppServices,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    settings: Settings,
) -> FastAPI:
    """Create the FastAPI app with all routes, web pages and middleware. lifespan: starts and stops the services."""
    app = Api(
        services.gate,
        settings.max_input_chars,
        title="tts-server",
        version=__version__,
        summary="OpenAI-compatible text to speech on your own machine.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own /docs and /redoc load scripts from another host; pages.py serves both offline
        redoc_url=None,
    )
    speaking = services.speaking
    v1_routers = _v1_routers(services, speaking, settings)
    for prefix in PREFIXES:
        for routes in v1_routers:
            _add_routes(app, routes, prefix, in_schema=prefix == PREFIXES[0])
    state = system.ServerState(
        services.manager,
        services.preset_voices,
        services.watermark,
        services.checker,
        services.youtube,
        services.voices,
        services.cloner,
        services.weights,
        settings,
        system.limits(
            settings.max_input_chars,
            settings.jobs_max_chars,
            services.cloner.sample_range_s,
            services.cloner.best_range_s,
        ),
    )
    system_routes = system.router(state, services.metrics, services.gate)
    for prefix in ("", *PREFIXES):
        _add_routes(app, system_routes, prefix, in_schema=not prefix)
    kokoro_routes = captions.kokoro_router(speaking, services.gate)
    _add_routes(app, kokoro_routes)
    for prefix in (*PREFIXES, "/v2"):
        _add_routes(app, elevenlabs_voices.router(services.voices, services.gate, f"{prefix}/voices"))
    _add_routes(app, pages.router(settings.studio_llm_origins))
    app.mount("/static/swagger", pages.docs_files())
    app.mount("/static", pages.files())
    known_paths = {
        *(PREFIXES[0] + path for routes in v1_routers for path in paths_of(routes.routes)),
        *paths_of(system_routes.routes),
        *paths_of(kokoro_routes.routes),
        *pages.PATHS,
        *pages.DOCS,
    }
    errors.install(app, sorted(known_paths), pages.unknown_page(settings.studio_llm_origins))
    _add_middleware(app, services, settings)
    return app


def _add_routes(app: FastAPI, router: APIRouter, prefix: str = "", *, in_schema: bool = True) -> None:
    """Add the routes of a router to the app, under `prefix`.

    `FastAPI.include_router` would create each route again for each prefix, which takes 0.16 s of CPU time at every
    start.
    """
    for route in router.routes:
        if not isinstance(route, Route | WebSocketRoute):
            raise TypeError(f"{route} is not a route with a path")
        added = copy.copy(route)
        added.path = prefix + route.path
        added.path_regex, added.path_format, added.param_convertors = compile_path(added.path)
        if isinstance(added, Route):
            added.include_in_schema = added.include_in_schema and in_schema
        app.router.routes.append(added)


def _v1_routers(services: AppServices, speaking: Speaking, settings: Settings) -> list[APIRouter]:
    """Create the routers whose routes are under /v1."""
    send_timeout_s = settings.reader_timeout_s
    gate, voices = services.gate, services.voices
    creation = VoiceCreation(voices, services.cloner, services.consents)
    routers = [
        speech.router(speaking, gate),
        normalize.router(
            services.manager,
            voices,
            services.normalizer,
            services.lexicons,
            gate,
            max_input_chars=speaking.max_input_chars,
        ),
        conversation.router(speaking, gate),
        realtime.router(speaking, voices, gate, settings.data_dir, send_timeout_s=send_timeout_s),
        vllm.router(speaking, gate, send_timeout_s=send_timeout_s),
        elevenlabs.router(speaking, voices, gate, send_timeout_s=send_timeout_s),
        captions.router(speaking, voices, gate),
        voice_cloning.router(speaking, gate, creation, services.lexicons),
        custom_voices.router(creation, gate),
        lexicons.router(services.lexicons, voices, gate),
        adapters.router(services.adapters, gate),
    ]
    if services.jobs is not None:
        shared = jobs.Jobs(services.jobs, speaking, gate, settings.jobs_max_chars)
        routers += [jobs.router(shared), long_speech.router(shared)]
    if services.youtube is not None:
        routers.append(youtube.router(services.youtube, creation, services.metrics, gate))
    return [
        *routers,
        speech.formats_router(gate),
        voices_routes.router(voices, gate),
        voice_cloning.lists_router(voices, gate),
        models.router(services.manager, voices, services.adapters, gate, speaking.max_input_chars),
        weights.router(services.manager, services.weights, settings, gate),
        watermark.router(services.detector, gate),
        encode.router(services.files, gate),
        usage.router(services.usage, gate),
    ]


def _add_middleware(app: FastAPI, services: AppServices, settings: Settings) -> None:
    """Add the middleware to the app. The middleware that is added last receives each request first."""
    uploads = Limit(settings.max_upload_bytes, "TTS_MAX_UPLOAD_BYTES")
    adapter_files = Limit(settings.max_adapter_bytes, "TTS_MAX_ADAPTER_BYTES")
    app.add_middleware(
        BodyLimit,
        limit=Limit(settings.max_body_bytes, "TTS_MAX_BODY_BYTES"),
        by_path={
            **{prefix + path: uploads for prefix in PREFIXES for path in _UPLOAD_PATHS},
            **{prefix + adapters.ADAPTERS_PATH: adapter_files for prefix in PREFIXES},
        },
        timeout_s=settings.read_timeout_s,
    )
    app.add_middleware(UnexpectedErrors)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=list(EXPOSED_HEADERS),
        )
    app.add_middleware(CrossOriginCheck, origins=settings.cors_origins)
    app.add_middleware(
        HostCheck,
        allowed=settings.allowed_hosts,
        host=settings.host,
        origins=settings.cors_origins,
        has_key=services.gate.has_key,
        keys_needed=lambda: services.gate.needed,
    )
    app.add_middleware(DetailedErrors)
    app.add_middleware(RequestLog, metrics=services.metrics, cross_origin=bool(settings.cors_origins))
    app.add_middleware(PathAliases, routes=app.routes)
    app.add_middleware(ReaderTimeout, timeout_s=settings.reader_timeout_s)
    proxies = list(settings.trusted_proxies)
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=proxies)
    # The middleware that is added last receives a request first. So PathPrefix still sees the address of the proxy;
    # after it, ProxyHeadersMiddleware replaces this address with the address of the client.
    app.add_middleware(PathPrefix, root_path=settings.root_path, trusted=trusted_addresses(proxies))
    app.add_middleware(OrderlyShutdown)
