"""The one place that knows every room: settings in, a running app out. Owns the order of start and stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.api.app import AppServices, create
from app.api.auth import Gate
from app.audio.detection import WatermarkDetector
from app.audio.sandbox import Limits
from app.audio.threads import ThreadLimit
from app.audio.watermark import Watermark, WatermarkMissing
from app.engines import registry
from app.engines.manager import EngineManager
from app.generator.cache import AnswerCache
from app.generator.preset_voices import PresetVoiceMaker
from app.generator.speech import SpeechGenerator
from app.keys import KeyFile, KeyRing
from app.metrics import Metrics
from app.settings import public_values
from app.text.normalizer import Normalizer
from app.voices.cloning import Cloner, import_preset_files
from app.voices.consents import ConsentStore
from app.voices.memory import Memory
from app.voices.store import VoiceStore
from app.voices.transcribe import NoTranscriber, WhisperTranscriber
from app.voices.youtube import YouTube

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.settings import Settings
    from app.voices.transcribe import Transcriber

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CoreServices:
    """Everything below HTTP, wired; nothing runs yet."""

    generator: SpeechGenerator
    manager: EngineManager
    voices: VoiceStore
    metrics: Metrics
    preset_voices: PresetVoiceMaker
    watermark: Watermark
    detector: WatermarkDetector


def core_services(settings: Settings, normalizer: Normalizer | None = None) -> CoreServices:
    """Raises ValueError for an unknown engine name, OSError."""
    metrics = Metrics()
    manager = EngineManager(settings, registry.specs(), metrics.guard)
    voices = VoiceStore(settings.folder("cloned_voices"), settings.folder("voice_references"))
    cache = AnswerCache(settings.folder("audio_cache"), settings.cache_bytes)
    cache.scan()
    metrics.watch_load(manager.load)
    metrics.watch_devices(manager.devices)
    metrics.watch_cache(lambda: cache.size_bytes)
    preset_voices = PresetVoiceMaker(
        manager,
        voices,
        transcriber_of(settings),
        enabled=settings.casting == "auto",
        wait_s=settings.casting_wait_s,
    )
    memory = Memory(
        tokens=settings.memory_tokens,
        ttl_s=settings.memory_ttl_s,
        folder=settings.folder("conversations") if settings.memory_keep else None,
    )
    uploads = ThreadLimit()
    watermark = watermark_of(settings)
    generator = SpeechGenerator(
        manager,
        voices,
        cache,
        metrics,
        normalizer or Normalizer(),
        preset_voices=preset_voices,
        memory=memory,
        watermark=watermark,
        uploads=uploads,
        enhance=settings.enhance,
    )
    return CoreServices(generator, manager, voices, metrics, preset_voices, watermark, WatermarkDetector(uploads))


def watermark_of(settings: Settings) -> Watermark:
    """Raises ValueError where TTS_WATERMARK=all can't be followed: then nothing may be spoken unmarked."""
    try:
        return Watermark(settings.watermark)
    except WatermarkMissing as error:
        raise ValueError(f"TTS_WATERMARK={settings.watermark}: {error.message}") from error


def transcriber_of(settings: Settings) -> Transcriber:
    if settings.asr == "off":
        return NoTranscriber()
    return WhisperTranscriber(
        settings.asr_model, settings.folder("models"), download=settings.asr_download, token=settings.token
    )


def assemble(settings: Settings, on_settled: Callable[[], None] = lambda: None) -> FastAPI:
    """Settings -> the FastAPI app; its lifespan starts and stops the engine. Raises ValueError, OSError.

    on_settled: called once, when the engine runs or has been given up and what else is loaded at the start is there.
    """
    for name in ("models", "cloned_voices", "voice_references", "audio_cache", "logs"):
        settings.folder(name)
    normalizer = Normalizer()
    services = core_services(settings, normalizer)

    cloner = Cloner(transcriber_of(settings), limits=Limits(input_bytes=settings.max_upload_bytes))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        # 0.3 s that would else be taken from the event loop, and so from every stream, by the first rare unit.
        warming = asyncio.create_task(asyncio.to_thread(normalizer.warm), name="normalizer-warm")
        references = settings.folder("voice_references")
        taking = asyncio.create_task(
            asyncio.to_thread(import_preset_files, services.voices, references, cloner), name="import-preset-files"
        )

        async def settle() -> None:
            await services.manager.settled()
            await asyncio.wait([warming, taking])
            on_settled()

        async with services.manager, services.preset_voices:
            settling = asyncio.create_task(settle(), name="settle")
            try:
                yield
            finally:
                settling.cancel()
        await asyncio.gather(warming, taking)

    ring = KeyRing([key.get_secret_value() for key in settings.api_keys], KeyFile(settings.data_dir))
    consents = ConsentStore(settings.folder("cloned_voices") / ".consents")
    return create(
        AppServices(
            services.generator,
            services.manager,
            services.voices,
            cloner,
            consents,
            services.metrics,
            Gate(ring, services.metrics),
            services.preset_voices,
            services.watermark,
            services.detector,
            None if settings.youtube == "off" else YouTube(),
        ),
        lifespan,
        lambda: public_values(settings),
        max_input_chars=settings.max_input_chars,
        log_texts=settings.log_texts,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        read_timeout_s=settings.read_timeout_s,
        cors_origins=settings.cors_origins,
        reader_timeout_s=settings.reader_timeout_s,
    )
