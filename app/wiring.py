"""Creates all services from the settings, connects them to the FastAPI app, and starts and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.api.app import AppServices, create_api
from app.api.auth import Gate
from app.api.speaking import Speaking
from app.api.wyoming import WyomingServer
from app.audio.alignment import Aligner
from app.audio.detection import WatermarkDetector
from app.audio.reencode import FileEncoder
from app.audio.sandbox import Limits
from app.audio.signing import FileSigner
from app.audio.threads import ThreadLimit
from app.audio.watermark import Watermark, WatermarkMissing
from app.engines import registry
from app.engines.adapters import AdapterRegistry
from app.engines.model_manager import ModelManager
from app.engines.pronouncing import pronounce, read_aloud
from app.engines.weight_downloads import WeightDownloads
from app.errors import WeightsUnavailable
from app.generator.cache import AnswerCache
from app.generator.checking import TakeChecker
from app.generator.lexicons import LexiconStore
from app.generator.preset_voices import PresetVoiceMaker
from app.generator.speech import SpeechGenerator
from app.generator.word_timing import WordTimer
from app.jobs.runner import JobRunner
from app.jobs.store import JobStore
from app.keys import KeyFile, KeyRing
from app.metrics import Metrics
from app.runtime import heap
from app.text.normalizer import Normalizer
from app.usage import UsageStore
from app.voices.cloning import (
    Cloner,
    check_stored,
    convert_old_folders,
    import_preset_files,
    recognise_missing_words,
)
from app.voices.consents import ConsentStore
from app.voices.memory import Memory
from app.voices.store import VoiceStore
from app.voices.transcribe import NoTranscriber, WhisperTranscriber
from app.voices.transcript_words import TranscriptChecker
from app.voices.vad import SpeechFinder
from app.voices.youtube import YouTube
from app.weights import hub
from app.weights.download import Cancelled
from app.weights.download import fetch as fetch_weights
from app.weights.hub_token import find_token

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI

    from app.generator.speech import OnSent
    from app.settings import Settings
    from app.types import SpeechRequest
    from app.voices.transcribe import OnProgress, Transcriber

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CoreServices:
    """The services that work without HTTP, for the server and the command line. These services are not started yet."""

    generator: SpeechGenerator
    manager: ModelManager
    voices: VoiceStore
    metrics: Metrics
    preset_voices: PresetVoiceMaker
    watermark: Watermark
    detector: WatermarkDetector
    files: FileEncoder
    checker: TranscriptChecker
    take_checker: TakeChecker
    lexicons: LexiconStore
    word_timer: WordTimer
    adapters: AdapterRegistry
    usage: UsageStore
    signer: FileSigner | None  # signs audio files with C2PA; None = TTS_C2PA_CERT is not set


def core_services(
    settings: Settings, normalizer: Normalizer | None = None, ring: KeyRing | None = None
) -> CoreServices:
    """Create the services that do not depend on HTTP. ring: the API keys; None = usage is not counted.

    Raises ValueError for a wrong setting, for example an unknown engine name. Raises OSError if the data folder can't
    be used.
    """
    metrics = Metrics()
    manager = ModelManager(settings, registry.specs(), metrics.guard)
    voices = VoiceStore(settings.folder("cloned_voices"), settings.folder("voice_references"))
    adapters = AdapterRegistry(settings, manager, voices.known)
    voices.adapter_voices, voices.default_voice = adapters.voices, manager.default_voice
    cache = AnswerCache(settings.folder("audio_cache"), settings.cache_bytes)
    cache.scan()
    metrics.watch_load(manager.load)
    metrics.watch_devices(manager.devices)
    metrics.watch_models(manager.memory_of_models)
    metrics.watch_cache(lambda: cache.size_bytes)
    normalizer = normalizer or Normalizer()
    aligner = Aligner(pronounce)
    checker = TranscriptChecker(aligner.align, normalizer.normalize)
    preset_voices = PresetVoiceMaker(
        manager,
        voices,
        create_transcriber(settings, download=False),
        enabled=settings.casting == "auto",
        wait_s=settings.casting_wait_s,
        checker=checker,
    )
    memory = Memory(
        tokens=settings.memory_tokens,
        ttl_s=settings.memory_ttl_s,
        folder=settings.folder("conversations") if settings.memory_keep else None,
    )
    uploads = ThreadLimit()
    watermark = create_watermark(settings)
    signer = create_signer(settings)
    take_checker = TakeChecker(settings.verify, aligner)
    lexicons = LexiconStore(settings.data_dir, voices)
    usage = UsageStore(settings.data_dir)
    word_timer = WordTimer(aligner, read_aloud, normalizer.normalize)
    generator = SpeechGenerator(
        manager,
        voices,
        cache,
        metrics,
        normalizer,
        preset_voices=preset_voices,
        memory=memory,
        watermark=watermark,
        uploads=uploads,
        enhance=settings.enhance,
        checker=take_checker,
        lexicons=lexicons,
        word_timer=word_timer,
        adapters=adapters,
        signer=signer,
        **({} if ring is None else {"on_sent": _counter(usage, metrics, ring)}),
    )
    detector = WatermarkDetector(uploads, SpeechFinder().contains_speech)
    return CoreServices(
        generator,
        manager,
        voices,
        metrics,
        preset_voices,
        watermark,
        detector,
        FileEncoder(uploads),
        checker,
        take_checker,
        lexicons,
        word_timer,
        adapters,
        usage,
        signer,
    )


def _counter(usage: UsageStore, metrics: Metrics, ring: KeyRing) -> OnSent:
    """Return the function that counts an answer for its API key."""

    def count(request: SpeechRequest, model: str, characters: int, seconds: float) -> None:
        key = ring.name_of(request.caller)
        usage.add(key, model, requests=0 if request.counted else 1, characters=characters, seconds=seconds)
        metrics.used(key, model, characters, seconds)

    return count


def create_jobs(services: CoreServices, store: JobStore, *, keep_days: float) -> JobRunner:
    """Create the service that generates the speech of the stored jobs in the background."""
    return JobRunner(
        store,
        services.generator,
        voices_pending=services.preset_voices.is_creating,
        keep_days=keep_days,
        signer=services.signer,
    )


def create_watermark(settings: Settings) -> Watermark:
    """Create the watermark that TTS_WATERMARK selects.

    Raises ValueError if TTS_WATERMARK is `all` and the extra `watermark` is not installed.
    """
    try:
        return Watermark(settings.watermark)
    except WatermarkMissing as error:
        raise ValueError(f"TTS_WATERMARK={settings.watermark}: {error.message}") from error


def create_signer(settings: Settings) -> FileSigner | None:
    """Create the signer of files; None if TTS_C2PA_CERT is not set. Raises ValueError if its certificate can't sign."""
    if settings.c2pa_cert is None or settings.c2pa_key is None:
        return None
    return FileSigner(settings.c2pa_cert, settings.c2pa_key)


def create_transcriber(settings: Settings, *, download: bool = True) -> Transcriber:
    """Create the speech recogniser for recordings without a transcript. With TTS_ASR=off, it recognises nothing.

    download: False = never download the weights of the recogniser, even if TTS_ASR_DOWNLOAD is true.
    """
    if settings.asr == "off":
        return NoTranscriber()
    files, models = hub.files_for("whisper", settings.asr_model), settings.folder("models")

    def find() -> Path | None:
        try:
            return hub.find(files, models)
        except WeightsUnavailable:  # `fetch` reports this error
            return None

    def fetch(on_progress: OnProgress, cancelled: Callable[[], bool]) -> Path:
        try:
            return fetch_weights(
                files, models, token=find_token(settings), on_progress=on_progress, cancelled=cancelled
            )
        except Cancelled as error:
            raise WeightsUnavailable(f"The download was stopped ({error})") from error

    return WhisperTranscriber(settings.asr_model, find, fetch if download and settings.asr_download else None)


def _wyoming_server(settings: Settings, speaking: Speaking, voices: VoiceStore, gate: Gate) -> WyomingServer | None:
    """Create the server for Home Assistant; None if TTS_WYOMING is empty. Raises ValueError if zeroconf is missing."""
    if not settings.wyoming:
        return None
    return WyomingServer(
        speaking,
        voices,
        gate,
        settings.wyoming,
        name=settings.wyoming_zeroconf,
        send_timeout_s=settings.reader_timeout_s,
        read_timeout_s=settings.read_timeout_s,
    )


def create_app(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> FastAPI:
    """Create the FastAPI app. The lifespan of the app starts and stops the engine. Raises ValueError, OSError.

    on_ready: called once at the end of the start, when the engine runs or has failed and all other data is loaded.
    """
    for name in ("models", "cloned_voices", "voice_references", "audio_cache", "logs"):
        settings.folder(name)
    normalizer = Normalizer()
    ring = KeyRing([key.get_secret_value() for key in settings.api_keys], KeyFile(settings.data_dir))
    services = core_services(settings, normalizer, ring)

    limits = Limits(input_bytes=settings.max_upload_bytes)
    cloner = Cloner(create_transcriber(settings), limits=limits, checker=services.checker)
    speaking = Speaking(
        services.generator,
        services.manager,
        services.metrics,
        max_input_chars=settings.max_input_chars,
        log_texts=settings.log_texts,
    )
    ring = KeyRing([key.get_secret_value() for key in settings.api_keys], KeyFile(settings.data_dir))
    gate = Gate(ring, services.metrics, keyed_lists=settings.voice_lists == "keyed")
    wyoming = _wyoming_server(settings, speaking, services.voices, gate)
    weights = WeightDownloads(settings, services.manager, registry.specs(), services.adapters.load_at_start)
    services.manager.on_load = services.preset_voices.begin_again
    jobs = None
    if settings.jobs_max_chars:
        jobs = create_jobs(services, JobStore(settings.data_dir / "jobs"), keep_days=settings.jobs_keep_days)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        # Load the tables of the text normalizer in a thread. Otherwise the first text that needs these tables would
        # block the event loop and all streams for 0.3 s.
        warming = asyncio.create_task(asyncio.to_thread(normalizer.warm), name="normalizer-warm")
        references = settings.folder("voice_references")
        importing = asyncio.create_task(
            asyncio.to_thread(import_preset_files, services.voices, references, cloner), name="import-preset-files"
        )
        ended = threading.Event()

        async def check_recordings() -> None:
            await importing
            await asyncio.to_thread(convert_old_folders, services.voices, cloner, ended=ended)
            await asyncio.to_thread(check_stored, services.voices, cloner, ended=ended)
            await asyncio.to_thread(recognise_missing_words, services.voices, cloner, ended=ended)

        checking = asyncio.create_task(check_recordings(), name="check-recordings")

        async def report_ready() -> None:
            await services.manager.settled()
            await services.adapters.load_at_start()
            await asyncio.wait([warming, importing])
            on_ready()

        def is_idle() -> bool:
            load = services.manager.load()
            return not services.generator.encoding and (load is None or not (load.active_rows or load.queued))

        async with (
            services.usage.writing(),
            services.manager,
            services.preset_voices,
            weights,
            wyoming or contextlib.nullcontext(),
            jobs or contextlib.nullcontext(),
        ):
            reporting = asyncio.create_task(report_ready(), name="report-ready")
            trimming = asyncio.create_task(heap.trim_when_idle(is_idle), name="trim-heap")
            try:
                yield
            finally:
                reporting.cancel()
                trimming.cancel()
                ended.set()
                cloner.close()
        services.word_timer.close()
        await services.take_checker.close()  # if the check of a recording hangs, this ends the check
        await asyncio.gather(warming, importing, checking)

    consents = ConsentStore(settings.folder("cloned_voices") / ".consents")
    return create_api(
        AppServices(
            speaking,
            services.manager,
            services.voices,
            cloner,
            consents,
            services.metrics,
            gate,
            services.preset_voices,
            services.watermark,
            services.detector,
            services.files,
            services.take_checker,
            normalizer,
            services.lexicons,
            services.adapters,
            services.usage,
            weights,
            jobs,
            None if settings.youtube == "off" else YouTube(),
        ),
        lifespan,
        settings,
    )
