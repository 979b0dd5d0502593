"""The studio's pages: one HTML shell for all of them, and the files it loads; and /docs. Does not depend on speech.

The shell is made anew for each request, for its nonce and for the path that a proxy may have put before ours; all else
is plain files, compressed on the way and asked for again only by their ETag. Nothing of it names another host.
"""

from __future__ import annotations

import secrets
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp

FOLDER = Path(__file__).parents[2] / "static"
PATHS = ("/", "/voice-cloning", "/dialogue", "/server")  # js/main.js routes the same

DOCS_PATH = "/docs"

_SHELL, _DOCS = "shell.html", "docs.html"


def policy(nonce: str) -> str:
    """The Content-Security-Policy of a page: our own files, styles with the nonce, sound from memory, nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "script-src 'self'",
            "connect-src 'self'",
            "worker-src 'self'",
            "form-action 'self'",
            f"style-src 'self' 'nonce-{nonce}'",
            "img-src 'self' data:",
            "media-src 'self' blob:",
        )
    )


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    shell, docs = ((FOLDER / name).read_text("utf-8") for name in (_SHELL, _DOCS))

    def made(template: str, request: Request, microphone: str) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        root = str(request.scope.get("root_path", "")).rstrip("/")
        html = template.replace("{nonce}", nonce).replace("{root}", escape(root))
        headers = {
            "Content-Security-Policy": policy(nonce),
            "Cache-Control": "no-store",
            "Permissions-Policy": f"microphone={microphone}, camera=(), geolocation=()",
        }
        return HTMLResponse(html, headers=headers)

    async def page(request: Request) -> HTMLResponse:
        return made(shell, request, "(self)")

    async def documentation(request: Request) -> HTMLResponse:
        """The API to read and to try: Swagger UI over /openapi.json."""
        return made(docs, request, "()")

    for path in PATHS:
        routes.add_api_route(path, page, methods=["GET"])
    routes.add_api_route(DOCS_PATH, documentation, methods=["GET"])
    return routes


def swagger() -> ASGIApp:
    """Swagger UI, for a mount at /static/swagger: from a package, since it is 1.7 MB of others' code."""
    found = find_spec("fastapi_offline")
    assert found is not None  # noqa: S101 - a dependency
    assert found.submodule_search_locations  # noqa: S101
    return GZipMiddleware(_Files(directory=Path(found.submodule_search_locations[0]) / "static"), minimum_size=512)


def files() -> ASGIApp:
    """What the shell loads, for a mount at /static."""
    return GZipMiddleware(_Files(directory=FOLDER), minimum_size=512)


class _Files(StaticFiles):
    """Kept by browsers, but never used unasked: after an update no page runs with half of its modules old."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response
