"""Runs replicas of the whole server on Ray Serve, behind Ray's HAProxy: `python -m app.main --ray [address]`.

Each replica is a complete server with the same settings, but with separate limits and a separate health check. Ray
places the replicas, replaces dead replicas, and changes the number of replicas with the load. This module needs the
extra `[ray]`. The extra pins the version of Ray, because two features are new in Ray and may change: HAProxy as the
proxy, and replicas that build an ASGI app themselves.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from app import logs
from app.engines.model_manager import served_engines
from app.engines.registry import EngineSpec, specs
from app.runtime import pauses
from app.wiring import create_app

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.settings import Settings

log = logging.getLogger(__name__)

APP = "tts"
# Ray sends a replica up to this many more requests than the replica has rows and queue places. The replica answers
# these requests with a 429 in OpenAI's format. Because of this reserve, GET /health and the lists also work while all
# rows are in use. Ray itself answers all further requests with a 429.
SPARE_REQUESTS = 32
TARGET_SHARE = 0.7  # Ray adds a replica if more than this share of the rows is in use on average
HEALTH_PERIOD_S = 5.0
HEALTH_TIMEOUT_S = 10.0
STARTUP_POLL_S = 0.2
LONGEST_STREAM_S = 3600


def environment(grace_s: int) -> dict[str, str]:
    """Return the environment variables for Ray and its processes. Ray reads these variables when it is imported.

    grace_s: the number of seconds after which a shutdown cuts off unfinished answers.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",  # HAProxy delays the first byte by 0.5 ms; Ray's Python proxy, by 6 ms
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_worker_niceness": "0",  # Ray's default of 15 would give all other processes priority over the replicas
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # Ray replaces a dead proxy after three failed checks
        # If a replica stops or dies before the first byte of an answer, the proxy sends the request to another replica.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 503",
        # HAProxy reloads when replicas change. The old HAProxy process ends after its last stream, or at the latest
        # after this time.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(grace_s, LONGEST_STREAM_S)),
    }


class Replica:
    """One copy of the server with the methods that Ray calls."""

    def __init__(self, settings: Settings) -> None:
        pauses.shorten_switch_interval()
        self._settings = settings
        # Log only to the console, because several processes can't rotate one log file. Ray stores the console output.
        logs.set_up(settings.log_level, None, colors=False, texts=settings.log_texts)
        self._app: FastAPI = create_app(settings, on_ready=pauses.freeze_loaded_objects)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return started_when_settled(self._app)

    async def check_health(self) -> None:
        """If the engine does not work, raise RuntimeError, so that Ray replaces this replica."""
        status, body = await get(self._app, "/health")
        if status != 200:
            raise RuntimeError(f"The replica is unhealthy: {body.get('reason')}")


def started_when_settled(app: ASGIApp) -> ASGIApp:
    """Return an ASGI app that delays the end of the app's startup until an engine runs or has failed.

    Ray sends requests to a replica only after the startup is complete.
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_when_settled(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                while (await get(app, "/health"))[1]["status"] == "starting":  # noqa: ASYNC110 - there is no event to wait for
                    await asyncio.sleep(STARTUP_POLL_S)
            await send(message)

        await app(scope, receive, send_when_settled if scope["type"] == "lifespan" else send)

    return wrapped


async def get(app: ASGIApp, path: str) -> tuple[int, dict[str, Any]]:
    """Send a GET request to the app without a socket. Returns the HTTP status and the JSON body."""
    status, body = 0, b""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, body
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            body += message.get("body", b"")

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return status, json.loads(body)


def gpus_for(settings: Settings, in_cluster: float) -> int:
    """Return the number of GPUs that one replica uses. in_cluster: the number of GPUs in the cluster.

    Raises ValueError if the settings name GPUs by number, because Ray chooses the GPUs.
    """
    named = settings.devices or (settings.device,)
    if any(name.startswith("cuda:") for name in named):
        raise ValueError(
            "Under --ray, Ray chooses the GPUs of each replica: set TTS_DEVICE=cuda, and TTS_REPLICAS to the number "
            "of replicas. One model can't be split over several GPUs under --ray: start the server without --ray."
        )
    if not any(spec.uses_gpu for spec in _specs(settings)) or set(named) <= {"cpu", "mps"}:
        return 0
    return 1 if "cuda" in named or in_cluster >= 1 else 0


def _specs(settings: Settings) -> list[EngineSpec]:
    """Return the engines of TTS_ENGINE and TTS_MODELS, the default first. Raises ValueError for an unknown name."""
    known = specs()
    names = served_engines(settings, known)
    if names[0] not in known:
        raise ValueError(f"TTS_ENGINE={names[0]!r} is not an engine. The engines are: {', '.join(sorted(known))}.")
    return [known[name] for name in names]


def options_for(settings: Settings, gpus: int) -> dict[str, Any]:
    """Return the options of the Ray deployment. gpus: the number of GPUs of one replica."""
    spec = _specs(settings)[0]
    rows = settings.rows(spec.rows_gpu if gpus else spec.rows_cpu)
    least, most = settings.replica_range
    return {
        "ray_actor_options": {"num_cpus": 1, "num_gpus": gpus},
        "max_ongoing_requests": rows + settings.max_queue + SPARE_REQUESTS,
        "max_queued_requests": SPARE_REQUESTS,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "initial_replicas": least,
            "target_ongoing_requests": max(1.0, TARGET_SHARE * rows),
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 300.0,
        },
        "graceful_shutdown_timeout_s": float(settings.shutdown_grace_s),
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
    }


def serve(settings: Settings, address: str | None) -> None:
    """Run the server until SIGTERM or Ctrl+C. Then wait up to TTS_SHUTDOWN_GRACE_S for answers in progress.

    address: the address of a running cluster; None = start a cluster on this machine. Raises ValueError if Ray is not
    installed, or if the settings can't be used with Ray.
    """
    variables = environment(settings.shutdown_grace_s)
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    try:
        import ray  # noqa: PLC0415 - Ray reads the environment variables at import
        from ray import serve as ray_serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ValueError("--ray needs Ray: pip install -c constraints.txt '.[ray]'") from error
    if settings.port == 0:
        raise ValueError("Under --ray, PORT can't be 0, because Ray's proxies do not report their port. Set PORT.")

    if settings.tls_cert:
        raise ValueError("TTS_TLS_CERT does not work with --ray, whose proxies have no TLS. Put a TLS proxy in front.")

    if settings.wyoming:
        raise ValueError(
            "Under --ray, TTS_WYOMING can't be used, because all replicas of a machine would listen on one port. Start "
            "another server without --ray for Home Assistant."
        )
    logs.set_up(settings.log_level, None, colors=sys.stderr.isatty())
    options = {"include_dashboard": False} if address is None else {"runtime_env": {"env_vars": variables}}
    ray.init(address=address or "local", log_to_driver=True, **options)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray's own handlers would end the process immediately
        signal.signal(number, lambda *_: stopping.set())
    try:
        gpus = gpus_for(settings, ray.cluster_resources().get("GPU", 0))
        ray_serve.start(
            proxy_location="EveryNode",
            http_options={
                "host": settings.host,
                "port": settings.port,
                "keep_alive_timeout_s": settings.keep_alive_s,
            },
        )
        deployment = ray_serve.deployment(ray_serve.ingress()(Replica)).options(**options_for(settings, gpus))
        ray_serve.run(deployment.bind(settings), name=APP, route_prefix="/", blocking=False)
        log.info(
            "the server runs on Ray at http://%s:%d with %s replicas", settings.host, settings.port, settings.replicas
        )
        stopping.wait()
        drain(ray_serve, settings.shutdown_grace_s)
    finally:
        if address is None:
            ray_serve.shutdown()
        ray.shutdown()


def drain(ray_serve: Any, grace_s: float) -> None:
    """Shut down gracefully: refuse new requests, and wait up to grace_s + 5 seconds for answers in progress."""
    log.info("the server stops and waits up to %.0f s for the requests in progress", grace_s)
    ray_serve.delete(APP, _blocking=False)
    until_s = time.monotonic() + grace_s + 5
    while APP in ray_serve.status().applications and time.monotonic() < until_s:
        time.sleep(0.2)
