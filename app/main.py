"""`python -m app.main`: settings -> assemble -> uvicorn. With DEV_MODE it restarts when the code changes; with `--ray`
the same app runs as replicas on a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import uvicorn
from pydantic import ValidationError

from app import __version__, logs
from app.api import http_protocol
from app.runtime import pauses
from app.settings import Settings
from app.wiring import assemble

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

# Before anything loads OpenMP: threads that spin while they wait slow each other and the event loop down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

STARTUP_FAILED = 3  # uvicorn's own


def read_settings(**given: object) -> Settings:
    """Settings from the environment, `given` (by variable) first; ends the process with words when they are wrong."""
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        for problem in error.errors():
            print(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def create_app(settings: Settings | None = None) -> FastAPI:
    """The app, with logging set up; from the environment when uvicorn's reloader calls it in a process of its own."""
    settings = settings or read_settings()
    try:
        logs.set_up(
            "DEBUG" if settings.dev_mode else settings.log_level,
            settings.folder("logs"),
            colors=sys.stderr.isatty(),
            texts=settings.log_texts,
        )
        app = assemble(settings, on_settled=pauses.freeze_loaded_objects)
    except OSError as error:
        print(f"TTS_DATA_DIR={settings.data_dir} can't be used: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    log.info("tts-server %s on http://%s:%d, engine %s", __version__, settings.host, settings.port, settings.engine)
    return app


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl+C; answers that are being spoken then finish, for up to TTS_SHUTDOWN_GRACE_S."""
    pauses.shorten_switch_interval()
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "timeout_graceful_shutdown": settings.shutdown_grace_s,
        **connections(settings),
    }
    if settings.dev_mode:
        uvicorn.run("app.main:create_app", factory=True, reload=True, reload_dirs=["app"], **options)
        return
    config = uvicorn.Config(create_app(settings), **options)
    server = uvicorn.Server(config)
    with config.bind_socket() as listener, contextlib.suppress(KeyboardInterrupt):
        _cut_dead_readers(listener, settings.reader_timeout_s)
        server.run(sockets=[listener])
    if not server.started:
        sys.exit(STARTUP_FAILED)


def _cut_dead_readers(listener: socket.socket, timeout_s: float) -> None:
    """What was written to a caller who takes nothing is thrown away by the kernel after timeout_s, where it can:
    closing such a connection would wait for them, and so would a shutdown. Connections inherit it."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))


def connections(settings: Settings) -> dict[str, Any]:
    """Uvicorn's options for connections and for the headers about itself."""
    return {
        "http": http_protocol.protocol(settings.read_timeout_s),
        "ws": "none",  # there are no WebSockets here
        "timeout_keep_alive": settings.keep_alive_s,
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m app.main", description="The server. Settings: docs/settings.md.")
    parser.add_argument("--version", action="version", version=f"tts-server {__version__}")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run as replicas on Ray: on a cluster of its own here, or on the one at this address (or `auto`)",
    )
    arguments = parser.parse_args()
    settings = read_settings()
    if arguments.ray is None:
        serve(settings)
        return
    from app.scale import ray  # noqa: PLC0415 - beside the house, and only where it is asked for

    try:
        ray.serve(settings, arguments.ray or None)
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
