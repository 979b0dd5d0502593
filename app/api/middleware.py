"""Around every request: an id, OpenAI's standing headers, one log line, one count, limits on the body and on readers.

Pure ASGI, so streams pass untouched.
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
LEAST_BYTES_S = 1000  # as slow as a body may come
CLIENT_LEFT = 499  # nginx's number for a caller who left before there was a status
_QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines
# Of paths that are not there: what shows in a log how an address was mistaken.
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
_FILES = "/static/"  # a dozen with every page


class ReaderStuck(ConnectionError):
    """The caller takes nothing of the answer."""


class ReaderTimeout:
    """Cut off a client that reads nothing for timeout_s. Otherwise its row would stay paused without end.

    The time runs only while what was sent before still fills the connection's buffers.
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
        except ReaderStuck:  # the server closes the connection of an answer that has not ended
            log.warning("the reader took nothing", path=_shown(scope), for_s=self._timeout_s)


# For what is data. Pages bring their own policies, and a route may say otherwise.
_STANDING = {
    b"openai-version": b"2020-10-01",
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
}


class Access:
    """The outermost of our own layers. foreign: whether pages of other origins may call, and so load, what is here."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, foreign: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._standing = _STANDING | {b"cross-origin-resource-policy": b"cross-origin" if foreign else b"same-origin"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # FastAPI's GET routes refuse it; the server itself leaves the body out
            scope = {**scope, "method": "GET"}
        request_id = f"req_{uuid.uuid4().hex}"
        started_s = time.monotonic()
        status = 0
        finished = False
        state = scope.setdefault("state", {})  # where `Gate` leaves whose request it is

        async def stamped(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                own = list(message.get("headers", []))
                there = {name.lower() for name, _ in own}
                message["headers"] = [
                    *own,
                    (REQUEST_ID.encode(), request_id.encode()),
                    *((name, value) for name, value in self._standing.items() if name not in there),
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
                self._metrics.request(route, status or CLIENT_LEFT)
                if (admitted := state.get("admitted")) is not None:
                    admitted.close()
                if (key := state.get("key")) is not None:
                    self._metrics.key_request(key, status or CLIENT_LEFT)
                quiet = scope["path"] in _QUIET or scope["path"].startswith(_FILES)
                tell = log.debug if quiet else log.info
                tell(
                    "request",
                    method=scope["method"],
                    path=_shown(scope),
                    status=status or CLIENT_LEFT,
                    ms=round((time.monotonic() - started_s) * 1000, 1),
                    whole=finished,
                )
                structlog.contextvars.unbind_contextvars("key")


def _shown(scope: Scope) -> str:
    """The path without what its caller chose: by mistake that may be anything, a key or a text."""
    path: str = scope["path"]
    if "route" not in scope:
        return "/".join(part if part in _KNOWN_PARTS else "*" for part in path.split("/"))
    for name, value in scope.get("path_params", {}).items():
        before, found, after = path.rpartition(str(value))
        path = f"{before}{{{name}}}{after}" if found else path
    return path


def _limits(admitted: Pass | None) -> list[tuple[bytes, bytes]]:
    if admitted is None or admitted.key.per_minute is None:
        return []
    told = limit_headers(admitted.key.per_minute, admitted.remaining, admitted.reset_s)
    return [(name.encode(), value.encode()) for name, value in told.items()]


class OwnPages:
    """Refuse requests that a web page of another origin may send without a CORS preflight: forms, and so recordings.

    Browsers send Sec-Fetch-Site to https and localhost. Requests without that header pass. origins: allowed origins.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _READING:
            headers = Headers(scope=scope)
            if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not (
                "*" in self._origins or headers.get("origin") in self._origins
            ):
                message = (
                    "Web pages of other origins may not send this request. TTS_CORS_ORIGINS lists the origins that may."
                )
                await response_to(ForeignPage(message))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class LastResort:
    """Below the layer that tells browsers which pages may read an answer: they may read this one too."""

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
            log.exception("the request failed", path=_shown(scope))
            if not started:
                await unexpected()(scope, receive, noted)


@dataclass(frozen=True, slots=True)
class Limit:
    """How large a body may be, and the setting that says so."""

    max_bytes: int
    setting: str

    def error(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self.max_bytes} bytes ({self.setting}).")


class BodyLimit:
    """Refuses bodies over a limit with 413: by their announced length before reading, else while they arrive; and with
    408 bodies that come too slowly: a body has `timeout_s`, and a second more for each LEAST_BYTES_S received.

    by_path: the paths that have another limit than the rest.
    """

    def __init__(self, app: ASGIApp, limit: Limit, by_path: Mapping[str, Limit], timeout_s: float) -> None:
        self._app = app
        self._limit = limit
        self._by_path = by_path
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # where another app has mounted this one
        limit = self._by_path.get(path, self._limit)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit.max_bytes:
            await response_to(limit.error())(scope, receive, send)
            return
        received, whole = 0, False
        began_s = time.monotonic()

        async def limited() -> Message:
            nonlocal received, whole
            if whole:  # then it waits for the caller to leave
                return await receive()
            left_s = began_s + self._timeout_s + received / LEAST_BYTES_S - time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"The body of the request comes too slowly: there were {received} bytes after "
                    f"{time.monotonic() - began_s:.0f} s (TTS_READ_TIMEOUT_S).",
                    headers={"Connection": "close"},
                ) from None
            whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > limit.max_bytes:
                # FastAPI passes only this kind through while it reads a body.
                raise HTTPException(413, limit.error().message)
            return message

        await self._app(scope, limited, send)
