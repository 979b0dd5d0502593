"""API keys: who may ask for speech. Lists, health and metrics stay open, as clients read them without a key."""

from __future__ import annotations

import secrets

from fastapi import Request

from app.errors import Unauthorized


class Keys:
    """The keys of this server; with none, everybody may."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = [key.encode() for key in keys]

    @property
    def needed(self) -> bool:
        """Whether speech is for those with a key."""
        return bool(self._keys)

    def require(self, request: Request) -> None:
        """A dependency of routes that need a key; `request.state.owner` is then the key. Raises Unauthorized."""
        request.state.owner = ""
        if self._keys:
            request.state.owner = _given(request)
            self._check(request.state.owner)

    def allow(self, request: Request) -> None:
        """A dependency of open routes: no key is fine, a wrong one is told, so that clients can test theirs."""
        given = _given(request)
        if self._keys and given:
            self._check(given)

    def _check(self, given: str) -> None:
        # Every key is compared, in constant time each: how long it takes tells nothing.
        matches = [secrets.compare_digest(given.encode("utf-8", "replace"), key) for key in self._keys]
        if not any(matches):
            # OpenAI's first words for a wrong key: LiteLLM knows by them that this is not the request's fault.
            wrong = "Incorrect API key provided: it is not one of this server's"
            shown = wrong if given else "No API key was given"
            raise Unauthorized(f"{shown}. Send `Authorization: Bearer <key>` with a key from TTS_API_KEYS.")


def _given(request: Request) -> str:
    """The key as OpenAI's clients send it (Bearer), or Azure's (`api-key`)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("api-key", "").strip()
