"""The web pages: the studio, and the API documentation at /docs (Swagger UI) and /redoc (ReDoc).

The studio is the web interface of the server. All pages of the studio share one HTML file, shell.html. The server
inserts a new nonce for the Content-Security-Policy and the path prefix of a proxy into each page. Scripts and styles
are static files. Static files are compressed, and a browser checks their ETag before each use. No page loads anything
from another host.
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
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.responses import Response
    from starlette.types import ASGIApp

FOLDER = Path(__file__).parents[2] / "static"
PATHS = (
    "/",
    "/voice-cloning",
    "/dialogue",
    "/live",
    "/books",
    "/server",
    "/pronunciation",
)  # the pages of the studio; static/js/main.js has the same list
DOCS = {"/docs": "docs.html", "/redoc": "redoc.html"}  # path -> HTML file


def policy(nonce: str, llm_origins: Sequence[str] = ()) -> str:
    """Return the Content-Security-Policy of a page. The policy allows files of this server, styles with the nonce, and
    audio blobs.

    llm_origins: the servers of language models that the page may contact.
    """
    return "; ".join(
        (
            "default-src 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "script-src 'self'",
            " ".join(("connect-src 'self'", *llm_origins)),
            "worker-src 'self'",
            "form-action 'self'",
            f"style-src 'self' 'nonce-{nonce}'",
            "img-src 'self' data:",
            "media-src 'self' blob:",
        )
    )


def router(llm_origins: Sequence[str] = ()) -> APIRouter:
    """Create the routes of the pages. llm_origins: TTS_STUDIO_LLM_ORIGINS."""
    routes = APIRouter(include_in_schema=False)
    for path in PATHS:
        routes.add_api_route(path, _page("shell.html", microphone="(self)", llm_origins=llm_origins), methods=["GET"])
    for path, name in DOCS.items():
        routes.add_api_route(path, _page(name, microphone="()"), methods=["GET"])
    return routes


def _page(
    name: str, *, microphone: str, llm_origins: Sequence[str] = ()
) -> Callable[[Request], Awaitable[HTMLResponse]]:
    """Create the handler of a page. name: the HTML file. microphone: the origins that may record sound."""
    template = (FOLDER / name).read_text("utf-8").replace("{llm}", escape(" ".join(llm_origins)))

    async def page(request: Request) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        root = str(request.scope.get("root_path", "")).rstrip("/")
        html = template.replace("{nonce}", nonce).replace("{root}", escape(root))
        headers = {
            "Content-Security-Policy": policy(nonce, llm_origins),
            "Cache-Control": "no-store",
            "Permissions-Policy": f"microphone={microphone}, camera=(), geolocation=()",
        }
        return HTMLResponse(html, headers=headers)

    return page


def docs_files() -> ASGIApp:
    """Return an app with the files of Swagger UI and ReDoc, for /static/swagger. The package fastapi-offline contains
    them.
    """
    found = find_spec("fastapi_offline")
    assert found is not None  # noqa: S101 - it is a dependency
    assert found.submodule_search_locations  # noqa: S101
    return GZipMiddleware(_Files(directory=Path(found.submodule_search_locations[0]) / "static"), minimum_size=512)


def files() -> ASGIApp:
    """Return an app with the scripts, styles and texts of the pages, for /static."""
    return GZipMiddleware(_Files(directory=FOLDER), minimum_size=512)


class _Files(StaticFiles):
    """Static files that browsers check for changes before each use, so that no page mixes files of two versions."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response
