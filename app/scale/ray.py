"""`python -m app.main --ray [address]`: the whole app, once per Ray Serve replica, behind Ray's HAProxy.

Nothing of the server changes in there: each replica assembles it anew from the settings, refuses by itself what it has
no room for, and says by itself whether it is well. Ray places replicas, replaces dead ones, adds and takes away with
the load. Needs the extra `[ray]`; written for the version that it pins (HAProxy ingress and late-bound apps are new).
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
from app.runtime import pauses
from app.wiring import assemble

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.settings import Settings

log = logging.getLogger(__name__)

APP = "tts"
# Rows of `TTS_MAX_ROWS=auto` as far as Ray is concerned, which must know before an engine is built.
ROWS_CPU, ROWS_GPU, ROWS_OFFLINE = 8, 64, 32
# Beyond rows and queue the server itself answers 429, in OpenAI's words, and lists and /health pass even when it is
# full. Only past this many more does Ray refuse in its own.
SPARE_REQUESTS = 32
TARGET_SHARE = 0.7  # of the rows: with more in use on average, a replica is added
HEALTH_PERIOD_S = 5.0
HEALTH_TIMEOUT_S = 10.0
SETTLE_LOOK_S = 0.2
LONGEST_STREAM_S = 3600


def environment(grace_s: int) -> dict[str, str]:
    """What Ray reads when it is imported, and every process of its own with it."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",  # 0.5 ms to the first byte instead of 6 with the Python proxy
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_worker_niceness": "0",  # 15 by default: replicas starve beside anything else
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # a dead proxy is replaced after three of these
        # A replica that died before its first byte, or is stopping: the caller need not know.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 503",
        # Every change of replicas loads HAProxy anew; the old one ends when its streams have, or after this long.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(grace_s, LONGEST_STREAM_S)),
    }


class Replica:
    """One copy of the server, as Ray wants it: made from settings, asked for its health."""

    def __init__(self, settings: Settings) -> None:
        pauses.switch_quickly()
        self._settings = settings
        # To the console only, which Ray keeps per replica: one file can't be rotated by several processes.
        logs.set_up(settings.log_level, None, colors=False, texts=settings.log_texts)
        self._app: FastAPI = assemble(settings, on_settled=pauses.spare_what_stays)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return started_when_settled(self._app)

    async def check_health(self) -> None:
        """Raises where the engine's loop has ended or hangs: Ray then replaces this replica."""
        status, body = await get(self._app, "/health")
        if status != 200:
            raise RuntimeError(f"unhealthy: {body.get('reason')}")


def started_when_settled(app: ASGIApp) -> ASGIApp:
    """The app, whose start is over only when it is decided which engine speaks: no request comes before."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def later(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                while (await get(app, "/health"))[1]["status"] == "starting":  # noqa: ASYNC110 - seen from outside only
                    await asyncio.sleep(SETTLE_LOOK_S)
            await send(message)

        await app(scope, receive, later if scope["type"] == "lifespan" else send)

    return wrapped


async def get(app: ASGIApp, path: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of a GET, without a socket."""
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
    """How many GPUs one replica takes. Raises ValueError for devices that it is not ours to choose."""
    named = settings.devices or (settings.device,)
    if any(name.startswith("cuda:") for name in named):
        raise ValueError(
            "Under --ray, Ray says which GPUs a replica sees: write TTS_DEVICE=cuda, and TTS_REPLICAS for how many. "
            "To split one model, TTS_DEVICES=cuda,cuda with CSM_DEVICE_MAP is not possible there: use one process."
        )
    if settings.engine == "espeak" or set(named) <= {"cpu", "mps"}:
        return 0
    return 1 if "cuda" in named or in_cluster >= 1 else 0


def options_for(settings: Settings, gpus: int) -> dict[str, Any]:
    """The deployment's numbers, from the settings."""
    rows = settings.rows(ROWS_OFFLINE if settings.engine == "espeak" else ROWS_GPU if gpus else ROWS_CPU)
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
    """Serve until SIGTERM or Ctrl+C; answers that are being spoken then finish, for up to TTS_SHUTDOWN_GRACE_S.

    address: of a cluster that runs already, or None = one of its own on this machine. Raises ValueError.
    """
    wanted = environment(settings.shutdown_grace_s)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    try:
        import ray  # noqa: PLC0415 - only here, and only after its environment is set
        from ray import serve as ray_serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ValueError("--ray needs Ray: pip install -c constraints.txt '.[ray]'") from error
    if settings.port == 0:
        raise ValueError("Under --ray, PORT must be a number of its own: Ray's proxies can't say which one they got.")

    logs.set_up(settings.log_level, None, colors=sys.stderr.isatty())
    own = {"include_dashboard": False} if address is None else {"runtime_env": {"env_vars": wanted}}
    ray.init(address=address or "local", log_to_driver=True, **own)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has put its own, which end the process at once
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
        log.info("on Ray: http://%s:%d, %s replicas", settings.host, settings.port, settings.replicas)
        stopping.wait()
        drain(ray_serve, settings.shutdown_grace_s)
    finally:
        if address is None:
            ray_serve.shutdown()
        ray.shutdown()


def drain(ray_serve: Any, grace_s: float) -> None:
    """Take the app away: new requests are refused, answers that sound may end."""
    log.info("stopping: answers may end, for up to %.0f s", grace_s)
    ray_serve.delete(APP, _blocking=False)
    until_s = time.monotonic() + grace_s + 5
    while APP in ray_serve.status().applications and time.monotonic() < until_s:
        time.sleep(0.2)
