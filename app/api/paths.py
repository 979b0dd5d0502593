"""Finds the route that a client means by another spelling of a path, by a path of Azure, or by a path with a prefix.

A path is rewritten only if a route has the rewritten path. The server never redirects, because many clients lose the
body of a redirected POST.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.routing import Match
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

DEPLOYMENT = "deployment"  # the key of scope["state"] under which the model in an Azure path is stored

# Paths that may be another spelling of a route. No other path is examined.
_UNUSUAL = re.compile(
    r"//|.[/\s]$|^/(?:api/)?v1/(?:api/)?v1(?:/|$)|^/openai/|^/(?:api/)?(?:audio|voice-cloning|models)(?:/|$)"
)
_AZURE = re.compile(r"/openai/deployments/([^/]+)(/.+)")
_VERSIONS = re.compile(r"^/(?:openai/)?(?:(?:api/)?v1/)+")
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*")
_MAX_PREFIX_CHARS = 200
# Word in a wrong path -> the route that the caller probably wants.
_TOPICS = {
    "speech": "/v1/audio/speech",
    "tts": "/v1/audio/speech",
    "synthesize": "/v1/audio/speech",
    "generate": "/v1/audio/speech",
    "say": "/v1/audio/speech",
    "voices": "/v1/audio/voices",
    "speakers": "/v1/audio/voices",
    "models": "/v1/models",
    "healthz": "/health",
    "readyz": "/ready",
    "dialog": "/v1/audio/dialogue",
    "clone": "/v1/voice-cloning/clone",
}


class PathAliases:
    """Rewrites other spellings of a path to the path of a route.

    Other spellings are double slashes, a slash at the end, a repeated or missing /v1, and the paths of Azure's clients.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            root = scope.get("root_path", "")
            path = scope["path"].removeprefix(root)
            if _UNUSUAL.search(path) and (found := self._find(scope, root, path)) is not None:
                scope = found
        await self._app(scope, receive, send)

    def _find(self, scope: Scope, root: str, path: str) -> Scope | None:
        """Return the scope with the path of the route that the caller means; None if there is no such route."""
        usual, deployment = canonical(path)
        if usual == path:
            return None
        rewritten = {**scope, "path": root + usual, "raw_path": quote(root + usual).encode()}
        if deployment is not None:
            rewritten["state"] = {**scope.get("state", {}), DEPLOYMENT: deployment}
        return rewritten if any(route.matches(rewritten)[0] is not Match.NONE for route in self._routes) else None


def canonical(path: str) -> tuple[str, str | None]:
    """Return two values: the usual spelling of a path; the model in an Azure path, or None for any other path."""
    path = re.sub(r"/{2,}", "/", path).rstrip("/ \t\r\n") or "/"
    deployment = None
    if azure := _AZURE.fullmatch(path):
        deployment, path = azure[1], f"/v1{azure[2]}"
    path = _VERSIONS.sub("/v1/", path)
    path = re.sub(r"^/(?:openai|api)/(?=audio/|models|voice-cloning/)", "/v1/", path)
    if re.match(r"/(?:audio|models|voice-cloning)(?:/|$)", path) and path != "/voice-cloning":
        path = f"/v1{path}"
    return path, deployment


def paths_of(routes: Iterable[BaseRoute]) -> Iterator[str]:
    """Yield the path of each route. Paths with parameters are left out."""
    for route in routes:
        if "{" not in (path := getattr(route, "path", "{")):
            yield path


def suggestion(path: str, known: Collection[str]) -> str | None:
    """Return the path in `known` that the caller probably wants; None if there is none.

    It is the path that is most similar to `path`, or else the path for a word in `path`, such as `tts`.
    """
    usual = canonical(path.lower()[:200])[0]
    if near := difflib.get_close_matches(usual, known, 1, 0.8):
        return near[0]
    words = [word for word in re.split(r"[^a-z]+", usual) if _TOPICS.get(word) in known]
    return _TOPICS[words[-1]] if words else None


def trusted_addresses(proxies: Sequence[str]) -> Any:
    """Return an object whose operator `in` says whether an address is the address of a trusted proxy.

    proxies: addresses and networks; `*` = all addresses.
    """
    return ProxyHeadersMiddleware(_no_app, list(proxies)).trusted_hosts  # type: ignore[arg-type]  # other ASGI types


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Do nothing. ProxyHeadersMiddleware needs an ASGI app, but this app is never called."""


class PathPrefix:
    """Sets `root_path` to the path prefix of a proxy, so that all links of the pages contain the prefix.

    The prefix is TTS_ROOT_PATH, or the header X-Forwarded-Prefix of a trusted proxy. The proxy may send the path with
    or without the prefix.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: Any) -> None:
        """trusted: the result of `trusted_addresses`."""
        self._app = app
        self._root_path = root_path
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            prefix = self._root_path or self._forwarded(scope)
            if prefix and not scope.get("root_path"):
                path = scope["path"]
                if path != prefix and not path.startswith(f"{prefix}/"):
                    path = prefix + path
                scope = {**scope, "root_path": prefix, "path": path, "raw_path": quote(path).encode()}
        await self._app(scope, receive, send)

    def _forwarded(self, scope: Scope) -> str:
        """Return the value of X-Forwarded-Prefix from a trusted proxy; "" if there is no valid value."""
        values = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
        client = scope.get("client")
        if not values or client is None or client[0] not in self._trusted:
            return ""
        # Several proxies add their prefixes in the order from the outermost proxy to the innermost proxy.
        parts = [part.strip().rstrip("/") for value in values for part in value.decode("latin-1").split(",")]
        prefix = "".join(parts)
        return prefix if len(prefix) <= _MAX_PREFIX_CHARS and _PREFIX.fullmatch(prefix) else ""
