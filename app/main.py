"""`python -m app.main`: reads the settings, creates the app and serves the app with uvicorn.

With DEV_MODE, the server restarts when the code changes. With `--ray`, replicas of the same app run on a Ray cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from pydantic import ValidationError

from app import __version__, logs, wiring
from app.api import http_protocol, tls
from app.engines import registry
from app.engines.model_manager import served_engines
from app.runtime import pauses
from app.settings import Settings, unknown_variables

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

# This line must run before OpenMP is loaded. By default, each waiting OpenMP thread keeps a core busy, which slows down
# the event loop and other threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

STARTUP_FAILED = 3  # the exit status that uvicorn uses for a failed start


def read_settings(**overrides: object) -> Settings:
    """Read the settings from the environment. If a value is wrong, print the error and exit with status 2.

    overrides: variables such as PORT=8001, which replace the values from the environment.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            print(f"{place}: {problem['msg']}" if place else problem["msg"], file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def create_app(settings: Settings | None = None) -> FastAPI:
    """Set up logging and create the app. If a setting is wrong, print the error and exit with status 2.

    settings: None = read the environment. uvicorn's reloader calls this function without arguments in a new process.
    """
    settings = settings or read_settings()
    try:
        logs.set_up(
            "DEBUG" if settings.dev_mode else settings.log_level,
            settings.folder("logs"),
            colors=sys.stderr.isatty(),
            texts=settings.log_texts,
        )
        if settings.tls_cert and settings.tls_key:
            tls.read_pair(settings.tls_cert, settings.tls_key)
        _warn_about(settings)
        app = wiring.create_app(settings, on_ready=pauses.freeze_loaded_objects)
    except OSError as error:
        remedy = f"Make this folder writable ({_how_to_own(settings.data_dir)}), or set another one."
        print(f"TTS_DATA_DIR={settings.data_dir} can't be used: {error}. {remedy}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    address = f"{settings.scheme}://{settings.host}:{settings.port}"
    engines = ", ".join(served_engines(settings, registry.specs()))
    log.info("tts-server %s on %s, engine %s", __version__, address, engines)
    return app


def _how_to_own(path: Path) -> str:
    """Return the shell command that gives a folder to the user of this process."""
    return f"sudo chown -R {os.geteuid()}:{os.getegid()} {path}"


def _warn_about(settings: Settings) -> None:
    """Log warnings about probable mistakes of the operator: unknown variables, and folders that can't be written."""
    for name, nearest in unknown_variables(os.environ).items():
        hint = f"Did you mean {nearest}?" if nearest else "docs/settings.md lists all variables."
        log.warning("The variable %s has no effect, because the server has no such setting. %s", name, hint)
    settings.close_to_others()
    for path in settings.unwritable_folders():
        log.warning(
            "The folder %s can't be written by user %d, so nothing can be stored in it. If the folder is mounted, run "
            "this command on the host, with the path of the folder on the host: %s",
            path,
            os.geteuid(),
            _how_to_own(path),
        )


def serve(settings: Settings) -> None:
    """Run the server until SIGTERM or Ctrl+C.

    After the signal, the server accepts no new requests, and running answers have TTS_SHUTDOWN_GRACE_S to finish.
    """
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
        _limit_unread_data(listener, settings.reader_timeout_s)
        server.run(sockets=[listener])
    if not server.started:
        sys.exit(STARTUP_FAILED)


def _limit_unread_data(listener: socket.socket, timeout_s: float) -> None:
    """Make the kernel close connections whose client has acknowledged no data for `timeout_s` (TCP_USER_TIMEOUT).

    Without this socket option, a shutdown would wait for clients that never read their answer. Accepted connections
    inherit the option from `listener`. The option exists only on Linux. On other systems this function does nothing.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))


def connections(settings: Settings) -> dict[str, Any]:
    """Return the options of uvicorn for connections, TLS, logging and the header `server`."""
    secure: dict[str, Any] = {}
    if settings.tls_cert and settings.tls_key:
        secure["ssl_context_factory"] = partial(tls.server_context, settings.tls_cert, settings.tls_key)
    # The server sends a ping after `ping_s` seconds, and checks the connection `ping_s` seconds later. If the client
    # has acknowledged only the ping, a second check follows. So a dead connection is closed after at most three times
    # `ping_s`.
    ping_s = min(http_protocol.PING_S, settings.reader_timeout_s / 3)
    return secure | {
        "http": http_protocol.protocol(settings.read_timeout_s),
        "proxy_headers": False,  # create_api adds a middleware that reads the proxy headers
        "ws": http_protocol.SocketProtocol,
        "ws_ping_interval": ping_s,
        "ws_ping_timeout": ping_s,
        "ws_max_size": http_protocol.MAX_MESSAGE_BYTES,
        "ws_per_message_deflate": False,  # compression hardly makes audio smaller
        "timeout_keep_alive": settings.keep_alive_s,
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }


def main() -> None:
    """Parse the command line and start the server."""
    parser = argparse.ArgumentParser(
        prog="python -m app.main",
        description="Start the text-to-speech server. Its settings are environment variables: see docs/settings.md.",
    )
    parser.add_argument("--version", action="version", version=f"tts-server {__version__}")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run replicas on the Ray cluster at ADDRESS; `auto` = a running cluster that Ray finds; without ADDRESS, "
        "a new local cluster",
    )
    arguments = parser.parse_args()
    settings = read_settings()
    if arguments.ray is None:
        serve(settings)
        return
    from app.scale import ray  # noqa: PLC0415 - Ray is optional and is imported only for --ray

    try:
        ray.serve(settings, arguments.ray or None)
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
