"""The middleware around all routes: request ids, default headers, the request log, and limits on bodies and readers.

All classes are plain ASGI middleware, so they do not buffer streams.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from app.api.errors import limit_headers, response_to, unexpected
from app.errors import BodyTooLarge, ForeignPage

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.keys import Pass
    from app.metrics import Metrics

log: Any = structlog.get_logger("app.access")

REQUEST_ID = "x-request-id"
EXPOSED_HEADERS = (
    "X-Request-ID",
    "X-TTS-Engine",
    "X-TTS-Seed",
    "X-TTS-Guard",
    "X-TTS-Ignored",
    "X-Voice-State",
    "X-Cache",
    "Retry-After",
    "X-Should-Retry",
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
    "OpenAI-Processing-Ms",
)
MIN_BYTES_PER_S = 1000  # the lowest speed of a request body
CLIENT_DISCONNECTED = 499  # as in nginx: the client disconnected before the response had a status
_QUIET = frozenset({"/health", "/ready", "/metrics"})  # monitoring systems request these paths every few seconds
# The parts of an unknown path that are logged. They show how a client got the URL wrong. Other parts may be private.
_KNOWN_PARTS = frozenset(
    (
        "",
        "v1",
        "api",
        "audio",
        "speech",
        "stream",
        "voices",
        "models",
        "static",
        "chat",
        "completions",
        "transcriptions",
    )
)
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_FILES = "/static/"  # each page loads about a dozen of these files


class ReaderStuck(ConnectionError):
    """The client reads nothing of its response."""


class ReaderTimeout:
    """Disconnects a client that reads nothing for `timeout_s`. Otherwise its row would stay paused for ever.

    The time is measured only while the connection's buffers are full of unread data.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def timed(message: Message) -> None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await send(message)
            except TimeoutError:
                raise ReaderStuck from None

        try:
            await self._app(scope, receive, timed)
        except ReaderStuck:  # uvicorn closes the connection because the response has no end
            log.warning("disconnected a client that read nothing", path=_loggable_path(scope), for_s=self._timeout_s)


# Headers of each response that does not set them itself. The web pages set their own policies.
_DEFAULT_HEADERS = {
    b"openai-version": b"2020-10-01",
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
}


class RequestLog:
    """Gives each request an id, adds the default headers to the response, and logs and counts the request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, cross_origin: bool) -> None:
        """cross_origin: whether web pages of other origins may load responses."""
        self._app = app
        self._metrics = metrics
        policy = b"cross-origin" if cross_origin else b"same-origin"
        self._default_headers = _DEFAULT_HEADERS | {b"cross-origin-resource-policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # FastAPI's GET routes do not support HEAD; uvicorn removes the body
            scope = {**scope, "method": "GET"}
        request_id = f"req_{uuid.uuid4().hex}"
        started_s = time.monotonic()
        status = 0
        finished = False
        state = scope.setdefault("state", {})  # auth.Gate stores the caller here

        async def stamped(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                own = list(message.get("headers", []))
                own_names = {name.lower() for name, _ in own}
                message["headers"] = [
                    *own,
                    (REQUEST_ID.encode(), request_id.encode()),
                    *((name, value) for name, value in self._default_headers.items() if name not in own_names),
                    *_limits(state.get("admitted")),
                ]
            elif message["type"] == "http.response.body":
                finished = not message.get("more_body", False)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, stamped)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.request(route, status or CLIENT_DISCONNECTED)
                if (admitted := state.get("admitted")) is not None:
                    admitted.close()
                if (key := state.get("key")) is not None:
                    self._metrics.key_request(key, status or CLIENT_DISCONNECTED)
                quiet = scope["path"] in _QUIET or scope["path"].startswith(_FILES)
                write = log.debug if quiet else log.info
                write(
                    "request",
                    method=scope["method"],
                    path=_loggable_path(scope),
                    status=status or CLIENT_DISCONNECTED,
                    ms=round((time.monotonic() - started_s) * 1000, 1),
                    whole=finished,
                )
                structlog.contextvars.unbind_contextvars("key")


def _loggable_path(scope: Scope) -> str:
    """The path for the log, without the parts that the caller chose: these may contain a key or a text by mistake."""
    path: str = scope["path"]
    if "route" not in scope:
        return "/".join(part if part in _KNOWN_PARTS else "*" for part in path.split("/"))
    for name, value in scope.get("path_params", {}).items():
        before, found, after = path.rpartition(str(value))
        path = f"{before}{{{name}}}{after}" if found else path
    return path


def _limits(admitted: Pass | None) -> list[tuple[bytes, bytes]]:
    """The rate limit headers of an admitted request; none if its key has no rate limit."""
    if admitted is None or admitted.key.per_minute is None:
        return []
    headers = limit_headers(admitted.key.per_minute, admitted.remaining, admitted.reset_s)
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class CrossOriginCheck:
    """Rejects forms, and so uploads, from web pages of other origins. Browsers send forms without a CORS preflight.

    Browsers add the header Sec-Fetch-Site to requests for https and localhost. Requests without it are allowed.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """origins: the origins whose pages may send these requests; `*` = all."""
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _READING:
            headers = Headers(scope=scope)
            if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not (
                "*" in self._origins or headers.get("origin") in self._origins
            ):
                message = (
                    "This request comes from a web page of another origin, which is not allowed. The operator of this "
                    "server can add the origin to TTS_CORS_ORIGINS."
                )
                await response_to(ForeignPage(message))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class UnexpectedErrors:
    """Answers an unexpected exception with a 500. It is inside the CORS middleware, so allowed pages can read it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ReaderStuck:
            raise
        except Exception:
            log.exception("an unexpected error was answered with 500", path=_loggable_path(scope))
            if not started:
                await unexpected()(scope, receive, noted)


@dataclass(frozen=True, slots=True)
class Limit:
    """The maximum size of a request body, and the environment variable that sets it."""

    max_bytes: int
    setting: str

    def error(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self.max_bytes} bytes ({self.setting}). Send less.")


class BodyLimit:
    """Rejects request bodies that are too large with 413, and bodies that arrive too slowly with 408.

    The size is checked before reading if the request has a Content-Length, and otherwise while the body arrives.
    """

    def __init__(self, app: ASGIApp, limit: Limit, by_path: Mapping[str, Limit], timeout_s: float) -> None:
        """Set the limits.

        by_path: the limits of paths that differ from `limit`. timeout_s: the time for a body, plus one second for each
        MIN_BYTES_PER_S bytes received.
        """
        self._app = app
        self._limit = limit
        self._by_path = by_path
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # set if another app has mounted this one
        limit = self._by_path.get(path, self._limit)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit.max_bytes:
            await response_to(limit.error())(scope, receive, send)
            return
        received, whole = 0, False
        began_s = time.monotonic()

        async def limited() -> Message:
            nonlocal received, whole
            if whole:  # later calls wait for the client to disconnect
                return await receive()
            left_s = began_s + self._timeout_s + received / MIN_BYTES_PER_S - time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"The body of the request arrived too slowly: {received} bytes in "
                    f"{time.monotonic() - began_s:.0f} s (TTS_READ_TIMEOUT_S). Send it again.",
                    headers={"Connection": "close"},
                ) from None
            whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > limit.max_bytes:
                # While FastAPI reads a body, it passes on only exceptions of this class.
                raise HTTPException(413, limit.error().message)
            return message

        await self._app(scope, limited, send)
