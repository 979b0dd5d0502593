"""Who may come in: the key of a request, read before its body is. Lists, health and metrics stay open, as clients read
them without a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from fastapi import Request
from fastapi.routing import APIRoute

from app.errors import Forbidden, RateLimited

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from starlette.responses import Response

    from app.keys import Key, KeyRing, Scope
    from app.metrics import Metrics


class Gate:
    """The keys as routes use them. What it finds it leaves in `request.state`: `owner`, which tells callers apart
    ("" where there are no keys), `key`, the key's name, and `admitted`, the Pass, which `Access` closes."""

    def __init__(self, ring: KeyRing, metrics: Metrics) -> None:
        self._ring = ring
        self._metrics = metrics

    @property
    def needed(self) -> bool:
        """Whether speech is for those with a key."""
        return self._ring.needed

    def route(self, scope: Scope) -> type[APIRoute]:
        """A router's `route_class`: its routes need a key with this scope, where there are keys. FastAPI reads a body
        before it asks any dependency; here a caller without a key uploads nothing."""
        gate = self

        class KeyedRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def keyed(request: Request) -> Response:
                    gate.enter(request, scope)
                    return await handle(request)

                return keyed

        return KeyedRoute

    def enter(self, request: Request, scope: Scope) -> None:
        """Raises Unauthorized, Forbidden, RateLimited."""
        request.state.owner = ""
        if not self._ring.needed:
            return
        key = self._known(request, _given(request))
        try:
            request.state.admitted = self._ring.admit(key, scope)
        except Forbidden:
            self._metrics.key_refused(key.name, "scope")
            raise
        except RateLimited as error:
            self._metrics.key_refused(key.name, error.reason)
            raise
        request.state.owner = key.sha256

    async def allow(self, request: Request) -> None:
        """A dependency of open routes: no key is fine, a wrong one is told, so that clients can test theirs. Raises
        Unauthorized."""
        self.whose(request)

    def whose(self, request: Request) -> Key | None:
        """The key of a request that needs none; None where it brings none. Raises Unauthorized."""
        given = _given(request)
        return self._known(request, given) if given and self._ring.needed else None

    def _known(self, request: Request, given: str) -> Key:
        key = self._ring.find(given)
        request.state.key = key.name
        structlog.contextvars.bind_contextvars(key=key.name)  # on every line of this request
        return key


def _given(request: Request) -> str:
    """The key as OpenAI's clients send it (Bearer), or Azure's (`api-key`)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("api-key", "").strip()
