"""How the server is: /health for people and containers, /ready for balancers, /metrics, /version, /debug."""

from __future__ import annotations

import platform
import sys
import threading
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app import __version__
from app.api.errors import response_to
from app.api.requests import MAX_DIALOGUE_TURNS
from app.errors import NotReady
from app.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.api.auth import Gate
    from app.audio.watermark import Watermark
    from app.engines.manager import EngineManager
    from app.generator.preset_voices import PresetVoiceMaker
    from app.metrics import Metrics
    from app.voices.youtube import YouTube

_PACKAGES = ("torch", "numpy", "av", "fastapi", "uvicorn", "wetext", "sentencex", "espeakng-loader", "huggingface-hub")


def router(
    host: EngineManager,
    metrics: Metrics,
    gate: Gate,
    casting: PresetVoiceMaker,
    *,
    marks: Watermark,
    youtube: YouTube | None,
    settings_shown: Callable[[], dict[str, object]],
    max_input_chars: int,
    debug_errors: dict[int | str, dict[str, Any]],
) -> APIRouter:
    routes = APIRouter(tags=["system"])
    inside = APIRouter(tags=["system"], route_class=gate.route("admin"))
    limits = {"input_chars": max_input_chars, "dialogue_turns": MAX_DIALOGUE_TURNS}

    @routes.get("/health")
    async def health() -> JSONResponse:
        """200 `starting`, `ok` or `degraded`; 503 `unhealthy`. Reasons in words."""
        body = {**_health(host, casting, marks, youtube), "limits": limits, "key_needed": gate.needed}
        return JSONResponse(body, 503 if body["status"] == "unhealthy" else 200, headers={"Cache-Control": "no-store"})

    @routes.get("/ready")
    async def ready() -> Response:
        """200 whenever a speech request would be answered."""
        try:
            engine = host.engine()
        except NotReady as error:
            return response_to(error)
        return JSONResponse({"ready": True, "engine": engine.info.id})

    @routes.get("/version")
    async def versions() -> dict[str, Any]:
        return {"name": "tts-server", "version": __version__, "python": platform.python_version()}

    @routes.get("/metrics", response_class=Response, responses={401: {}})
    async def prometheus(request: Request) -> Response:
        """A key with the scope `admin` is told what each key has used, too."""
        key = gate.whose(request)
        return Response(metrics.text(keys=key is not None and "admin" in key.scopes), media_type=CONTENT_TYPE)

    @inside.get("/debug", responses=debug_errors)
    async def debug() -> dict[str, Any]:
        """All that helps to find a fault, and no secret."""
        engine = host.current
        return {
            "version": __version__,
            "python": sys.version,
            "platform": platform.platform(),
            "packages": {name: _version_of(name) for name in _PACKAGES},
            "health": _health(host, casting, marks, youtube),
            "engine": None if engine is None else _plain(asdict(engine.info)),
            "settings": settings_shown(),
            "threads": sorted(thread.name for thread in threading.enumerate()),
        }

    routes.include_router(inside)
    return routes


def _health(
    host: EngineManager, casting: PresetVoiceMaker, marks: Watermark, youtube: YouTube | None
) -> dict[str, Any]:
    status = host.status()
    engine, load = host.current, host.load()
    return {
        "status": status.state,
        "engine": status.running.name if status.running else None,
        "model": status.running.model_id if status.running else None,
        "requested_engine": status.requested.name,
        "reason": status.reason,
        "remedy": status.remedy,
        "device": engine.info.device if engine else None,
        "dtype": engine.info.dtype if engine else None,
        "setup": dict(engine.info.setup) if engine else None,
        "devices": [
            {
                "device": each.device,
                "status": "unhealthy" if each.failure else "ok",
                "reason": each.failure,
                "rows": {"active": each.load.active_rows, "limit": each.load.max_rows},
            }
            for each in host.devices()
        ],
        "rows": {"active": load.active_rows, "limit": load.max_rows} if load else None,
        "queue": {"waiting": load.queued, "limit": load.max_queue} if load else None,
        "watermark": {"marked": "nobody" if marks.missing else marks.scope, "reason": marks.missing},
        "youtube": {"on": youtube is not None and youtube.off is None, "reason": youtube.off if youtube else None},
        "memory": [asdict(each) for each in host.memory()],
        "download": asdict(status.progress) if status.progress else None,
        "casting": casting.status(),
        "version": __version__,
        "uptime_s": round(time.monotonic() - host.started_s, 1),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, frozenset | tuple) else value for name, value in values.items()}


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
