"""The one place that knows every room: settings in, a running app out. Owns the order of start and stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from app.api.app import Rooms, create
from app.api.auth import Keys
from app.cache import AnswerCache
from app.engines import registry
from app.engines.host import EngineHost
from app.metrics import Metrics
from app.settings import public_values
from app.studio import Studio
from app.text.normalizer import Normalizer
from app.voices.store import VoiceStore

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.settings import Settings

log = logging.getLogger(__name__)


def studio_of(
    settings: Settings, normalizer: Normalizer | None = None
) -> tuple[Studio, EngineHost, VoiceStore, Metrics]:
    """Everything below HTTP, wired; nothing runs yet. Raises ValueError for an unknown engine name, OSError."""
    metrics = Metrics()
    host = EngineHost(settings, registry.specs(), metrics.guard)
    voices = VoiceStore()
    cache = AnswerCache(settings.folder("audio_cache"), settings.cache_bytes)
    cache.scan()
    metrics.watch_load(host.load)
    metrics.watch_devices(host.devices)
    metrics.watch_cache(lambda: cache.size_bytes)
    return Studio(host, voices, cache, metrics, normalizer or Normalizer()), host, voices, metrics


def assemble(settings: Settings) -> FastAPI:
    """Settings -> the FastAPI app; its lifespan starts and stops the engine. Raises ValueError, OSError."""
    for name in ("models", "cloned_voices", "voice_references", "audio_cache", "logs"):
        settings.folder(name)
    normalizer = Normalizer()
    studio, host, voices, metrics = studio_of(settings, normalizer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        # 0.3 s that would else be taken from the event loop, and so from every stream, by the first rare unit.
        warming = asyncio.create_task(asyncio.to_thread(normalizer.warm), name="normalizer-warm")
        async with host:
            yield
        await warming

    keys = Keys(tuple(key.get_secret_value() for key in settings.api_keys))
    return create(
        Rooms(studio, host, voices, metrics, keys),
        lifespan,
        lambda: public_values(settings),
        max_input_chars=settings.max_input_chars,
        log_texts=settings.log_texts,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        cors_origins=settings.cors_origins,
    )
