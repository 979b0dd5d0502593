"""Around every request: an id, OpenAI's standing headers, one log line, one count, a limit on the body.

Pure ASGI, so streams pass untouched.
"""

from __future__ import annotations

import time
import uuid
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
    "X-Cache",
    "X-Voice-State",
    "Retry-After",
)
CLIENT_LEFT = 499  # nginx's number for a caller who left before there was a status
_QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines


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
            except Exception:
                log.exception("the request failed", path=scope["path"])
                if status == 0:
                    await unexpected()(scope, receive, stamped)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.request(route, status or CLIENT_LEFT)
                tell = log.debug if scope["path"] in _QUIET else log.info
                tell(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status or CLIENT_LEFT,
                    ms=round((time.monotonic() - started_s) * 1000, 1),
                    whole=finished,
                )


class BodyLimit:
    """Refuses bodies over max_bytes with 413: by their announced length before reading, else while they arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            await response_to(self._error())(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413)  # FastAPI passes only this kind through while it reads a body
            return message

        await self._app(scope, limited, send)

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self._max_bytes} bytes (TTS_MAX_BODY_BYTES).")
