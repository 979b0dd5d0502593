"""The web pages: the studio, and the API documentation at /docs (Swagger UI) and /redoc (ReDoc).

The studio is the web interface of the server. All pages of the studio share one HTML file, shell.html. The server
inserts a new nonce for the Content-Security-Policy and the path prefix of a proxy into each page. Scripts and styles
are static files. Static files are compressed, and a browser checks their ETag before each use. No page loads anything
from another host.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.types import ASGIApp, Scope

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
LANGUAGES = ("en", "de", "fr")  # the order of the languages of each text in static/i18n; js/ui.js has the same list
_TEXTS = re.compile(rf"i18n/((?:[a-z]+/)?)({'|'.join(LANGUAGES)})\.json")
ICON = "/favicon.ico"
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
    routes.add_api_route(ICON, _icon, methods=["GET"])
    return routes


def _page(
    name: str, *, microphone: str, llm_origins: Sequence[str] = (), status: int = 200
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
        return HTMLResponse(html, status, headers=headers)

    return page


def unknown_page(llm_origins: Sequence[str] = ()) -> Callable[[Request], Awaitable[HTMLResponse]]:
    """Create the handler for unknown paths. Its page says in the language of the user that there is no such page."""
    return _page("shell.html", microphone="(self)", llm_origins=llm_origins, status=404)


async def _icon() -> FileResponse:
    """Return the icon. Browsers also request the icon when they show another file of this server, such as audio."""
    return FileResponse(FOLDER / "icon.svg", headers={"Cache-Control": "max-age=86400"})


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


@cache
def texts(folder: str, language: str) -> bytes:
    """Return the texts of the pages in one language as JSON: {group: {key: text}}, or {group: text} for a single text.

    The texts come from texts.json. Each text in this file is a list, with the text in every language, or with a single
    text for all languages. folder: the folder in static/i18n that has the file, with a slash at the end; "" =
    static/i18n itself. Raises OSError if there is no such folder.
    """
    groups = json.loads((FOLDER / "i18n" / folder / "texts.json").read_text("utf-8"))
    chosen = {
        group: _text_in(language, found)
        if isinstance(found, list)
        else {key: _text_in(language, text) for key, text in found.items()}
        for group, found in groups.items()
    }
    return json.dumps(chosen, ensure_ascii=False, separators=(",", ":")).encode()


def _text_in(language: str, text: list[str]) -> str:
    return text[LANGUAGES.index(language) if len(text) > 1 else 0]


class _Files(StaticFiles):
    """Static files that browsers check for changes before each use, so that no page mixes files of two versions.

    Files such as /static/i18n/en.json are not on the disk: they are made from texts.json, which has all languages.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        if (wanted := _TEXTS.fullmatch(path)) is None:
            return await super().get_response(path, scope)
        try:
            content = texts(*wanted.groups())
        except OSError:
            raise HTTPException(404) from None
        headers = {"Cache-Control": "no-cache", "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
        response = Response(content, media_type="application/json", headers=headers)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response
