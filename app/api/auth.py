"""Checks the API key of a request, and reads the body of the request only after that.

The lists of voices and models, the health check and the metrics need no key, because many clients read them without a
key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.api.bodies import is_json, read_json
from app.api.errors import problem
from app.api.paths import DEPLOYMENT
from app.api.responses import RATE_LIMIT_HEADERS
from app.errors import Forbidden, RateLimited, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.datastructures import Headers

    from app.api.responses import Schema
    from app.keys import Key, KeyRing, Pass, Scope
    from app.metrics import Metrics

_SCHEMES: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The API key as OpenAI's clients send it."},
    "api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "api-key",
        "description": "The API key as Azure's clients send it.",
    },
}
_REQUIRED: list[Schema] = [{"bearer": []}, {"api-key": []}]
KEY_REQUIRED: Schema = {"security": _REQUIRED}  # the `openapi_extra` of a route that needs a key
KEY_OPTIONAL: Schema = {"security": [*_REQUIRED, {}]}


def operation_id(route: APIRoute) -> str:
    """Return the `operationId` of a route in /openapi.json: the name of the function that handles the route."""
    return route.name


class Gate:
    """Checks the API keys of requests, and stores the result in `request.state`.

    `state.owner` is the SHA-256 digest of the key, which identifies the caller; "" if the server has no keys.
    `state.key` is the name of the key. `state.admitted` is a `Pass`, which counts the request against the limits of the
    key. The middleware RequestLog closes the `Pass` at the end of the request.
    """

    def __init__(self, ring: KeyRing, metrics: Metrics, *, keyed_lists: bool = False) -> None:
        """keyed_lists: whether a server with API keys shows cloned voices in lists only to callers with a key."""
        self._keyed_lists = keyed_lists
        self._ring = ring
        self._metrics = metrics

    @property
    def needed(self) -> bool:
        """Whether the server requires API keys."""
        return self._ring.needed

    def route(self, scope: Scope | None) -> type[APIRoute]:
        """Create the `route_class` of routes that need an API key with this scope.

        If the server has no API keys, the routes accept all requests. scope: None = the key is optional. But a wrong
        key gives a 401, so that clients can test their key. The API key is not checked in a FastAPI dependency,
        because FastAPI reads the body before it runs dependencies. With a dependency, a caller without a key could
        upload files.
        """
        gate = self

        class KeyedRoute(APIRoute):
            def __init__(self, *args: Any, **options: Any) -> None:
                security = KEY_OPTIONAL if scope is None else KEY_REQUIRED
                options["openapi_extra"] = {**(options.get("openapi_extra") or {}), **security}
                options["generate_unique_id_function"] = operation_id
                super().__init__(*args, **options)

            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def keyed(request: Request) -> Response:
                    if scope is None:
                        gate.key_of(request)
                    else:
                        gate.enter(request, scope)
                    try:
                        body = await request.body() if is_json(request.headers) else b""
                    except ClientDisconnect:
                        return Response(status_code=400)  # the connection is closed, so no client reads this response
                    if body:
                        # FastAPI uses this value and does not parse the body again.
                        request._json = read_json(body, request.headers["content-type"])
                        if isinstance(request._json, dict) and (model := request.scope["state"].get(DEPLOYMENT)):
                            request._json["model"] = model
                    return await handle(request)

                return keyed

        return KeyedRoute

    def enter(self, request: Request, scope: Scope) -> None:
        """Admit a request if its API key is valid, has this scope and is within its limits.

        Raises Unauthorized, Forbidden, RateLimited.
        """
        request.state.owner = ""
        if not self._ring.needed:
            return
        key = self._find(request, _sent_key(request))
        try:
            request.state.admitted = self._ring.admit(key, scope)
        except Forbidden:
            self._metrics.key_refused(key.name, "scope")
            raise
        except RateLimited as error:
            self._metrics.key_refused(key.name, error.reason)
            raise
        request.state.owner = key.sha256

    def connect(self, sent: str) -> Key | None:
        """Return the API key of a WebSocket; None if the server has no keys. Raises Unauthorized."""
        return self._ring.find(sent) if self._ring.needed else None

    @staticmethod
    def check_scope(key: Key | None, scope: Scope) -> None:
        """Check that the API key of a WebSocket has this scope. Raises Forbidden."""
        if key is not None:
            key.check(scope)

    def present(self, key: Key | None) -> Key | None:
        """Return the current entry of the API key of an open WebSocket; None if the server has no keys.

        key: the entry when the client connected; None = the server had no keys at this time. Raises Unauthorized if the
        key was removed, or if the server now needs keys.
        """
        if key is not None:
            return self._ring.present(key)
        if self.needed:
            raise Unauthorized("This server now needs API keys. Connect again with a key.")
        return None

    def admit(self, key: Key | None, scope: Scope) -> Pass | None:
        """Count a request that came through a WebSocket against the limits of its API key.

        Returns a Pass, which the caller must close; None if the server has no keys.
        Raises Unauthorized, Forbidden, RateLimited.
        """
        present = self.present(key)
        if present is None:
            return None
        try:
            return self._ring.admit(present, scope)
        except (Forbidden, RateLimited) as error:
            self._metrics.key_refused(present.name, "scope" if isinstance(error, Forbidden) else error.reason)
            raise

    def key_of(self, request: Request) -> Key | None:
        """Return the API key of a request for which a key is optional; None if the request or the server has no key.

        Raises Unauthorized for a wrong key.
        """
        sent = _sent_key(request)
        return self._find(request, sent) if sent and self._ring.needed else None

    @property
    def lists_are_open(self) -> bool:
        """Whether lists for callers without a key contain cloned voices."""
        return not (self._keyed_lists and self.needed)

    def shows_cloned(self, request: Request) -> bool:
        """Return whether a list for this request contains cloned voices."""
        return self.lists_are_open or self.has_key(request.headers)

    def has_key(self, headers: Headers) -> bool:
        """Return whether the headers of a request contain a valid API key."""
        return self.valid_key(headers) is not None

    def valid_key(self, headers: Headers) -> Key | None:
        """Return the API key in the headers of a request; None if they have no valid key, or the server has no keys."""
        try:
            return self._ring.find(key_in(headers)) if self._ring.needed else None
        except Unauthorized:
            return None

    def all_keys(self) -> tuple[Key, ...]:
        """Return all API keys of the server."""
        return self._ring.keys

    def describe(self, schema: Schema) -> None:
        """Describe API keys in the OpenAPI document `schema`: the security schemes, and the errors 401, 403 and 429.

        If the server has no keys, this method removes the security requirements from `schema` instead.
        """
        needed = self.needed
        if needed:
            schema["components"]["securitySchemes"] = _SCHEMES
        for operations in schema["paths"].values():
            for operation in operations.values():
                security = operation.get("security")
                if security is None:
                    continue
                if not needed:
                    del operation["security"]
                    continue
                answers = operation["responses"]
                answers["401"] = problem(401)
                if {} not in security:
                    answers["403"] = problem(403)
                    answers.setdefault("429", problem(429))
                    for status in (*(each for each in answers if each in ("200", "202")), "429"):
                        answers[status].setdefault("headers", {}).update(RATE_LIMIT_HEADERS)
                operation["responses"] = dict(sorted(answers.items()))

    def _find(self, request: Request, sent: str) -> Key:
        """Return the API key with the text `sent`. Raises Unauthorized.

        Store the name of the key in `request.state`, and add it to the log lines of the request.
        """
        key = self._ring.find(sent)
        request.state.key = key.name
        structlog.contextvars.bind_contextvars(key=key.name)  # adds the name to every log line of this request
        return key


def _sent_key(request: Request) -> str:
    return key_in(request.headers)


def key_in(headers: Headers) -> str:
    """Return the API key in the headers of a request; "" if they contain none.

    OpenAI's clients send the header `Authorization: Bearer`, Azure's clients send `api-key`, and ElevenLabs' clients
    send `xi-api-key`.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return (headers.get("api-key") or headers.get("xi-api-key") or "").strip()
