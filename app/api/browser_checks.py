"""Protects the server from foreign web pages: CSRF, DNS rebinding, and CORS preflights that are not allowed.

Only requests that a browser has sent are checked. A browser sends Origin or Sec-Fetch-Site with each request that
changes something, and a web page can't change these headers. Programs that are not browsers send neither of these
headers. When a browser only reads, both headers may be missing; `_from_browser` then looks at other headers.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from app.api.errors import body_of, response_to
from app.errors import ForeignHost, ForeignPage, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_FORWARDED = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "forwarded", "via")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Endings of names in private networks. A name with such an ending can't be registered, so DNS rebinding with this name
# is impossible.
_PRIVATE_ENDINGS = (".local", ".lan", ".internal", ".svc", ".localhost", ".localdomain", ".test", ".home.arpa")


class CrossOriginCheck:
    """Rejects three kinds of requests from foreign web pages: requests that change something, WebSockets, and CORS
    preflights that are not allowed.

    The CORS middleware does not stop a form, because browsers send forms without a CORS preflight. The header
    Sec-Fetch-Site says whether the page has another origin. Browsers send this header only to https addresses and to
    localhost. If Sec-Fetch-Site is missing, Origin is compared with Host and X-Forwarded-Host. A foreign page can't set
    X-Forwarded-Host without a preflight.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """origins: the origins whose pages may send these requests; `*` = all."""
        self._app = app
        self._all = "*" in origins
        self._origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._all:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        foreign = origin.lower() not in self._origins and _is_foreign(headers)
        if foreign and scope["type"] == "websocket":
            await _refuse(ForeignPage(_message(origin)), scope, receive, send)
        elif foreign and scope["method"] not in _READING:
            await response_to(ForeignPage(_message(origin)))(scope, receive, send)
        elif foreign and scope["method"] == "OPTIONS" and origin and "access-control-request-method" in headers:
            await JSONResponse(body_of(ForeignPage(_message(origin))), 400)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _message(origin: str) -> str:
    example = f", for example TTS_CORS_ORIGINS={origin}" if re.fullmatch(r"[a-z]+://[\w.:\[\]-]{1,100}", origin) else ""
    return (
        "This request comes from a web page of another origin, which is not allowed. The operator of this server can "
        f"add the origin to TTS_CORS_ORIGINS{example}."
    )


def _is_foreign(headers: Headers) -> bool:
    """Return whether a web page of another origin has sent the request."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("cross-site", "same-site")
    if origin is None:
        return False
    if origin == "null":  # browsers send this value, for example, for a sandboxed frame
        return True
    parsed = urlsplit(origin)
    if parsed.scheme not in _DEFAULT_PORTS:  # the page of an application, such as app://obsidian.md
        return False
    proxied = any(name in headers for name in _FORWARDED)
    return not any(_same_host(parsed.scheme, parsed.netloc, host, proxied=proxied) for host in _own_hosts(headers))


def _own_hosts(headers: Headers) -> list[str]:
    """Return the host names in the request: the name that the client used, and the names that proxies have added."""
    hosts = [headers.get("host", "")]
    for value in headers.getlist("x-forwarded-host"):
        hosts += value.split(",")
    for value in headers.getlist("forwarded"):
        hosts += re.findall(r'(?i)\bhost="?([^";,]+)', value)
    return [host.strip() for host in hosts]


def _same_host(scheme: str, wanted: str, host: str, *, proxied: bool) -> bool:
    """Return whether `wanted` and `host` have the same host name and the same port.

    scheme: for example https; a missing port means the default port of this scheme. proxied: True = a missing port of
    `host` matches every port, because many proxies remove the port.
    """
    default = _DEFAULT_PORTS[scheme]
    (name, port), (other, other_port) = split_host(wanted), split_host(host)
    if not name or name != other:
        return False
    return (port or default) == (other_port or default) or (proxied and other_port is None)


def split_host(host: str) -> tuple[str, int | None]:
    """Split a host with an optional port, such as `[::1]:8000`, into its name in lower case and its port."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.%]+)\](?::(\d{1,5}))?|([^:\[\]@/]*)(?::(\d{1,5}))?", host.strip())
    if found is None:
        return host.strip().lower(), None
    port = found[2] or found[4]
    return (found[1] or found[3] or "").lower().rstrip("."), int(port) if port else None


class HostCheck:
    """Rejects requests of web pages that reach this server under a name that is not its own (DNS rebinding).

    In DNS rebinding, a web page comes from a public name whose DNS entry has changed to the address of this server. For
    the browser, the page and the server then have the same origin.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed: Collection[str],
        host: str,
        origins: Collection[str],
        has_key: Callable[[Any], bool],
        keys_needed: Callable[[], bool],
    ) -> None:
        """Store the names of the server, and two functions about API keys.

        allowed: TTS_ALLOWED_HOSTS. host: the address that the server listens on. origins: the origins whose pages may
        call the server; `*` = all. has_key: returns whether the headers of a request contain a valid API key.
        keys_needed: returns whether the server requires API keys. A foreign page has no key, so a server with keys
        checks hosts only if TTS_ALLOWED_HOSTS is set.
        """
        self._app = app
        self._off = "*" in allowed or "*" in origins
        own = [host, socket.gethostname(), *(urlsplit(origin).netloc for origin in origins)]
        self._names = frozenset(split_host(name)[0] for name in (*allowed, *own) if name)
        self._endings = tuple(name.lower().lstrip("*") for name in allowed if name.startswith(("*.", ".")))
        self._configured = bool(allowed)
        self._has_key = has_key
        self._keys_needed = keys_needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._off or scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not _from_browser(headers):
            await self._app(scope, receive, send)
            return
        name = split_host(headers.get("host", ""))[0]
        if self._is_own(name) or (self._keys_needed() and not self._configured) or self._has_key(headers):
            await self._app(scope, receive, send)
            return
        shown = re.sub(r"[^a-z0-9.:_-]", "?", name[:100])
        error = ForeignHost(
            f"A web page has sent this request to the host `{shown}`, which is not a known name of this server. If it "
            f"is one of its names, set TTS_ALLOWED_HOSTS={shown} (several names with commas), or create an API key "
            "with `python -m app.cli keys add`."
        )
        if scope["type"] == "websocket":
            await _refuse(error, scope, receive, send)
        else:
            await response_to(error)(scope, receive, send)

    def _is_own(self, name: str) -> bool:
        """Return whether a name is a name or address of this server, or a name that exists only in private networks."""
        if not name or "." not in name or name in self._names or name.endswith((*_PRIVATE_ENDINGS, *self._endings)):
            return True
        try:
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
        return True  # DNS rebinding needs a name: a page whose origin is an IP address was loaded from this address


def _from_browser(headers: Headers) -> bool:
    """Return whether a browser has sent the request.

    When a page with an http address reads from its own host, the browser sends neither Origin nor Sec-Fetch-Site. But a
    browser always sends Accept-Language: a page can change the value of this header, but can't remove the header. Two
    kinds of programs send Accept-Language, too, and are recognised by another header. Node's `fetch` sends
    Sec-Fetch-Mode, which a page can't set. Apps on Apple's systems have CFNetwork in the header User-Agent.
    """
    if "origin" in headers or "sec-fetch-site" in headers:
        return True
    is_program = "sec-fetch-mode" in headers or " CFNetwork/" in headers.get("user-agent", "")
    return "accept-language" in headers and not is_program


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer the handshake of a WebSocket with an error."""
    await WebSocket(scope, receive, send).send_denial_response(response_to(error))
