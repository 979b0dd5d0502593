"""The routes about the state of the server: /health, /ready, /metrics, /version and /debug."""

from __future__ import annotations

import platform
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, get_args

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app import __version__
from app.api.auth import KEY_OPTIONAL, operation_id
from app.api.errors import problems
from app.api.job_requests import RESULT_FORMATS
from app.api.requests import MAX_DIALOGUE_TURNS, number_ranges
from app.api.responses import (
    OUTPUT_RATE_HZ,
    Count,
    Debug,
    Device,
    Download,
    EngineState,
    Health,
    HealthVoice,
    JobLimits,
    KeyOfCaller,
    Limits,
    Marking,
    MemoryUse,
    ModelState,
    PresetVoiceState,
    Queue,
    Ready,
    Recogniser,
    Verification,
    Version,
    YouTubeState,
)
from app.api.routes.models import model_state
from app.audio.formats import AUDIO_FORMATS
from app.books.reading import SUFFIXES
from app.metrics import CONTENT_TYPE
from app.settings import public_values
from app.text.captions import CaptionFormat
from app.voices.presets import PROFILES
from app.voices.voice_file import MAX_DESCRIPTION_CHARS, MAX_NAME_CHARS
from app.voices.youtube import MAX_SECTION_S, MIN_SECTION_S

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.audio.watermark import Watermark
    from app.engines.model_manager import ModelManager
    from app.engines.weight_downloads import WeightDownloads
    from app.generator.checking import TakeChecker
    from app.generator.preset_voices import PresetVoiceMaker
    from app.keys import Key
    from app.metrics import Metrics
    from app.settings import Settings
    from app.voices.cloning import Cloner
    from app.voices.store import VoiceStore
    from app.voices.youtube import YouTube

_PACKAGES = (
    "torch",
    "numpy",
    "av",
    "fastapi",
    "uvicorn",
    "wetext",
    "sentencex",
    "espeakng-loader",
    "huggingface-hub",
    "wyoming",
)


@dataclass(frozen=True, slots=True)
class ServerState:
    """Collects the data of /health and /debug."""

    manager: ModelManager
    preset_voices: PresetVoiceMaker
    watermark: Watermark
    checker: TakeChecker
    youtube: YouTube | None
    voices: VoiceStore
    cloner: Cloner
    weights: WeightDownloads
    settings: Settings
    limits: Limits

    def health(self, *, key_needed: bool, key: Key | None, names: bool) -> Health:
        """Return the body of /health. key_needed: whether speech needs an API key. key: the valid key of the request.
        names: whether to list cloned voices.
        """
        state = self._state()
        cloned = [stored.voice for stored in self.voices.stored()]
        return Health(
            **state,
            tts_engine=state["engine"] or state["requested_engine"],
            standard_voices=list(PROFILES),
            cloned_voices=[
                HealthVoice(id=voice.id, name=voice.name, speaker_id=voice.speaker) for voice in cloned if names
            ],
            cloned_voices_count=len(cloned),
            sample_rate=OUTPUT_RATE_HZ,
            limits=self.limits,
            default_voice=self.manager.default_voice(),
            key_needed=key_needed,
            key=None if key is None else KeyOfCaller.of(key),
        )

    def debug(self) -> Debug:
        """Return the body of /debug."""
        engine = self.manager.current
        return Debug(
            version=__version__,
            python=sys.version,
            platform=platform.platform(),
            packages={name: _version_of(name) for name in _PACKAGES},
            health=EngineState(**self._state()).model_dump(),
            engine=None if engine is None else _plain(asdict(engine.info)),
            settings=public_values(self.settings),
            threads=sorted(thread.name for thread in threading.enumerate()),
        )

    def _state(self) -> dict[str, Any]:
        """Return the fields of EngineState."""
        status = self.manager.status()
        is_unloaded = status.state == "unloaded"
        progress = status.progress or self.weights.progress()
        engine, load = self.manager.current, self.manager.load()
        youtube, watermark = self.youtube, self.watermark
        taken = {model_id: size for model_id, _, size in self.manager.memory_of_models()}
        return {
            "status": "ok" if is_unloaded else status.state,
            "engine": status.running.name if status.running else None,
            "model": status.running.model_id if status.running else None,
            "requested_engine": status.requested.name,
            "models": [
                ModelState(id=model_id, status=state, detail=detail, bytes=taken.get(model_id) or None)
                for model_id in self.manager.model_ids
                for state, detail in (model_state(self.manager, model_id),)
            ],
            "reason": "The model is not loaded. The next request loads it." if is_unloaded else status.reason,
            "remedy": status.remedy,
            "device": engine.info.device if engine else None,
            "dtype": engine.info.dtype if engine else None,
            "setup": dict(engine.info.setup) if engine else None,
            "devices": [
                Device(
                    device=each.device,
                    status="unhealthy" if each.failure else "ok",
                    reason=each.failure,
                    rows=Count(active=each.load.active_rows, limit=each.load.max_rows),
                )
                for each in self.manager.devices()
            ],
            "rows": Count(active=load.active_rows, limit=load.max_rows) if load else None,
            "queue": Queue(waiting=load.queued, limit=load.max_queue) if load else None,
            "watermark": Marking(marked="nobody" if watermark.missing else watermark.scope, reason=watermark.missing),
            "verification": Verification(mode=self.checker.setting, reason=self.checker.missing),
            "youtube": YouTubeState(
                on=youtube is not None and youtube.off is None, reason=youtube.off if youtube else None
            ),
            "recogniser": Recogniser(**asdict(self.cloner.recogniser())),
            "memory": [MemoryUse(**asdict(each)) for each in self.manager.memory()],
            "download": Download(**asdict(progress)) if progress else None,
            "casting": PresetVoiceState(**self.preset_voices.status()),
            "version": __version__,
            "uptime_s": round(time.monotonic() - self.manager.started_s, 1),
        }


def limits(
    max_input_chars: int, max_job_chars: int, sample_range_s: tuple[float, float], best_range_s: tuple[float, float]
) -> Limits:
    """Return the limits of requests, for /health.

    max_job_chars: 0 = the server has no jobs.
    sample_range_s: the shortest and the longest recording that is used as a whole. best_range_s: the shortest and the
    longest recommended recording.
    """
    shortest_s, longest_s = sample_range_s
    best_from_s, best_to_s = best_range_s
    return Limits(
        input_chars=max_input_chars,
        dialogue_turns=MAX_DIALOGUE_TURNS,
        response_formats=list(AUDIO_FORMATS),
        sample_s={"minimum": shortest_s, "maximum": longest_s},
        best_sample_s={"minimum": best_from_s, "maximum": best_to_s},
        youtube_s={"minimum": MIN_SECTION_S, "maximum": MAX_SECTION_S},
        voice_name_chars=MAX_NAME_CHARS,
        voice_description_chars=MAX_DESCRIPTION_CHARS,
        jobs=JobLimits(
            input_chars=max_job_chars,
            file_types=list(SUFFIXES),
            response_formats=list(RESULT_FORMATS),
            captions=list(get_args(CaptionFormat)),
        )
        if max_job_chars
        else None,
        fields=number_ranges(),
    )


def router(state: ServerState, metrics: Metrics, gate: Gate) -> APIRouter:
    """Create the routes about the state of the server."""
    routes = APIRouter(tags=["system"], generate_unique_id_function=operation_id)
    admin = APIRouter(tags=["system"], route_class=gate.route("admin"))

    @routes.get(
        "/health",
        response_description="`starting`, `ok` or `degraded`.",
        responses={503: {"model": Health, "description": "`unhealthy`, with the reason."}},
    )
    async def health(caller: Request, response: Response) -> Health:
        """Health check: 200 if the state is `starting`, `ok` or `degraded`, and 503 if it is `unhealthy`."""
        key = gate.valid_key(caller.headers)
        body = state.health(key_needed=gate.needed, key=key, names=gate.lists_are_open or key is not None)
        response.headers["Cache-Control"] = "no-store"
        if body.status == "unhealthy":
            response.status_code = 503
        return body

    @routes.get("/ready", response_description="The server can answer a speech request.", responses=problems(503))
    async def ready() -> Ready:
        """Readiness check: 200 if the server can answer a speech request, otherwise 503."""
        if state.manager.status().state == "unloaded":  # the next request loads the model
            return Ready(ready=True, engine=state.manager.requested.name)
        return Ready(ready=True, engine=state.manager.engine().info.id)

    @routes.get("/version")
    async def versions() -> Version:
        """Get the versions of the server and of Python."""
        status = state.manager.status()
        engine = status.running or status.requested
        return Version(
            name="tts-server",
            version=__version__,
            python=platform.python_version(),
            api_version=__version__,
            model_version=engine.model_id,
            tts_engine=engine.name,
        )

    @routes.get(
        "/metrics",
        response_class=Response,
        response_description="The metrics in the Prometheus text format.",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        openapi_extra=KEY_OPTIONAL,
    )
    async def prometheus(request: Request) -> Response:
        """Get the Prometheus metrics. With an `admin` key, the metrics include the usage of each API key."""
        key = gate.key_of(request)
        return Response(metrics.text(keys=key is not None and "admin" in key.scopes), media_type=CONTENT_TYPE)

    @admin.get("/debug")
    async def debug() -> Debug:
        """Get versions, settings without secrets, and the state of the server, to find the cause of a problem."""
        return state.debug()

    routes.routes.extend(admin.routes)
    return routes


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values for JSON: sets and tuples become sorted lists."""
    return {name: sorted(value) if isinstance(value, frozenset | tuple) else value for name, value in values.items()}


def _version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
