"""Around every request: an id, OpenAI's standing headers, one log line, one count, limits on the body and on readers.

Pure ASGI, so streams pass untouched.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from app.api.errors import response_to, unexpected
from app.errors import BodyTooLarge

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
)
CLIENT_LEFT = 499  # nginx's number for a caller who left before there was a status
_QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines
_FILES = "/static/"  # a dozen with every page


class ReaderStuck(ConnectionError):
    """The caller takes nothing of the answer."""


class ReaderTimeout:
    """Cuts off whoever takes nothing for timeout_s: else its row would be paused for as long as it likes.

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
            log.warning("the reader took nothing", path=scope["path"], for_s=self._timeout_s)


class Access:
    """The outermost of our own layers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

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

        async def stamped(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (REQUEST_ID.encode(), request_id.encode()),
                    (b"openai-version", b"2020-10-01"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            elif message["type"] == "http.response.body":
                finished = not message.get("more_body", False)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, stamped)
            except ReaderStuck:
                raise
            except Exception:
                log.exception("the request failed", path=scope["path"])
                if status == 0:
                    await unexpected()(scope, receive, stamped)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.request(route, status or CLIENT_LEFT)
                quiet = scope["path"] in _QUIET or scope["path"].startswith(_FILES)
                tell = log.debug if quiet else log.info
                tell(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status or CLIENT_LEFT,
                    ms=round((time.monotonic() - started_s) * 1000, 1),
                    whole=finished,
                )


@dataclass(frozen=True, slots=True)
class Limit:
    """How large a body may be, and the setting that says so."""

    max_bytes: int
    setting: str

    def error(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self.max_bytes} bytes ({self.setting}).")


class BodyLimit:
    """Refuses bodies over a limit with 413: by their announced length before reading, else while they arrive.

    by_path: the paths that have another limit than the rest.
    """

    def __init__(self, app: ASGIApp, limit: Limit, by_path: Mapping[str, Limit]) -> None:
        self._app = app
        self._limit = limit
        self._by_path = by_path

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
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit.max_bytes:
                # FastAPI passes only this kind through while it reads a body.
                raise HTTPException(413, limit.error().message)
            return message

        await self._app(scope, limited, send)
