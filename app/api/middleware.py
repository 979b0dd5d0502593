"""The middleware for all requests: ids, default headers, the request log, and limits on slow clients and large bodies.

All classes in this module are plain ASGI middleware, so they do not buffer streams.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from app.api.bodies import BodyDecoder, BodyRejected
from app.api.errors import limit_headers, response_to, unexpected
from app.api.waiting import within
from app.errors import BodyTooLarge

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
    "X-TTS-Verified",
    "X-TTS-Ignored",
    "X-Voice-State",
    "X-Cache",
    "ETag",
    "Retry-After",
    "X-Should-Retry",
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
    "OpenAI-Processing-Ms",
    "Content-Disposition",
)
CLEANUP_S = 4.0  # how long a shutdown waits for cancelled requests
MIN_BYTES_PER_S = 1000  # the lowest allowed speed at which a request body arrives
CLIENT_DISCONNECTED = 499  # logged if the client disconnected before the response had a status, as in nginx
_QUIET = frozenset({"/health", "/ready", "/metrics"})  # logged as DEBUG: monitoring systems send these requests often
# If no route matches a path, only these parts of the path are logged: they show how the client built the wrong URL. Any
# other part of the path may be private and is logged as `*`.
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
_FILES = "/static/"  # logged as DEBUG: each page loads about a dozen of these files


class ReaderStuck(ConnectionError):
    """The client has read no data of its response for too long."""


class ReaderTimeout:
    """Disconnects a client that reads no data for `timeout_s` seconds, so that other requests can use its row (its
    place in the batch of the engine).

    The time is measured only while the send buffers of the connection are full.
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
                await within(self._timeout_s, send(message))
            except TimeoutError:
                raise ReaderStuck from None

        try:
            await self._app(scope, receive, timed)
        except ReaderStuck:  # uvicorn closes the connection, because the end of the response was not sent
            log.warning(
                "a client was disconnected because it read no data for too long",
                path=_loggable_path(scope),
                for_s=self._timeout_s,
            )


# Default response headers. A response that already has one of these headers keeps its value. For example, web pages set
# their own values.
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
        # FastAPI's GET routes do not support HEAD, so handle HEAD as GET. uvicorn then does not send the body.
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        request_id = f"req_{uuid.uuid4().hex}"
        started_s = time.monotonic()
        status = 0
        finished = False
        state = scope.setdefault("state", {})  # auth.Gate stores the caller's API key here

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
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                quiet = path in _QUIET or path.startswith(_FILES)
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
    """Return the path of a request for the log. Parts that the caller chose are replaced: they may contain a key or a
    text.
    """
    path: str = scope["path"]
    if "route" not in scope:
        return "/".join(part if part in _KNOWN_PARTS else "*" for part in path.split("/"))
    for name, value in scope.get("path_params", {}).items():
        before, found, after = path.rpartition(str(value))
        path = f"{before}{{{name}}}{after}" if found else path
    return path


def _limits(admitted: Pass | None) -> list[tuple[bytes, bytes]]:
    """Return the rate limit headers of an admitted request; an empty list if the API key has no rate limit."""
    if admitted is None or admitted.key.per_minute is None:
        return []
    headers = limit_headers(admitted.key.per_minute, admitted.remaining, admitted.reset_s)
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class OrderlyShutdown:
    """Delays the end of the server until its requests have ended, but by at most CLEANUP_S seconds.

    At the end of a graceful shutdown, uvicorn cancels the requests that still run, and ends the process without
    waiting for them. A cancelled request still needs time, for example to remove its temporary files.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running = 0
        self._idle = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":

            async def receive_when_idle() -> Message:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    await self._wait_until_idle()
                return message

            await self._app(scope, receive_when_idle, send)
            return
        self._running += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _wait_until_idle(self) -> None:
        if not self._running:
            return
        try:
            async with asyncio.timeout(CLEANUP_S):
                await self._idle.wait()
        except TimeoutError:
            log.warning("the server ends before all cancelled requests have cleaned up", requests=self._running)


class UnexpectedErrors:
    """Answers an unexpected exception with a 500.

    This middleware is inside the CORS middleware, so that web pages of allowed origins can read the response.
    """

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
    """The maximum size of a request body, and the environment variable that sets this size."""

    max_bytes: int
    setting: str

    def error(self, *, decompressed: bool = False) -> BodyTooLarge:
        what = "decompressed request body" if decompressed else "request body"
        return BodyTooLarge(f"The {what} is larger than {self.max_bytes} bytes ({self.setting}). Send a smaller body.")


class BodyLimit:
    """Rejects request bodies that are too large with 413, and bodies that arrive too slowly with 408.

    The header Content-Length is checked before the body is read. The size is also checked while the body arrives. A
    compressed body is decompressed here, so that the limit also holds for its decompressed size.
    """

    def __init__(self, app: ASGIApp, limit: Limit, by_path: Mapping[str, Limit], timeout_s: float) -> None:
        """Set the limits.

        limit: the limit of all paths that are not in `by_path`. by_path: path -> its limit. timeout_s: seconds in which
        a body must arrive; one second is added for each MIN_BYTES_PER_S bytes received.
        """
        self._app = app
        self._limit = limit
        self._by_path = by_path
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(
            scope.get("root_path", "")
        )  # root_path is set if another app has mounted this app
        limit = self._by_path.get(path, self._limit)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit.max_bytes:
            await response_to(limit.error())(scope, receive, send)
            return
        decoder: BodyDecoder | None = None
        if encoding := Headers(scope=scope).get("content-encoding", ""):
            try:
                decoder = BodyDecoder(encoding, limit.max_bytes, limit.error(decompressed=True))
            except BodyRejected as rejected:
                await response_to(rejected.error)(scope, receive, send)
                return
            scope = {**scope, "headers": list(scope["headers"])}
            headers = MutableHeaders(scope=scope)
            del headers["content-encoding"]
            if decoder.active:
                del headers["content-length"]
        received, whole = 0, False
        began_s = time.monotonic()

        async def limited() -> Message:
            nonlocal received, whole
            if whole:  # the body is complete: later calls wait until the client disconnects
                return await receive()
            left_s = began_s + self._timeout_s + received / MIN_BYTES_PER_S - time.monotonic()
            try:
                message = await within(left_s, receive())
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
                # Raise HTTPException, because FastAPI reads the body here and replaces any other exception with a 400.
                raise HTTPException(413, limit.error().message)
            if decoder is not None and decoder.active and message["type"] == "http.request":
                message = {**message, "body": decoder.push(message.get("body", b""))}
                if whole:
                    decoder.close()
            return message

        await self._app(scope, limited, send)
