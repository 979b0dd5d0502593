"""`/realtime`: OpenAI's Realtime API for speech (`api/realtime.py`), and the client secrets for browsers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request, WebSocket
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth import key_in
from app.api.client_secrets import ClientSecrets
from app.api.errors import problems
from app.api.realtime import RealtimeSession, SessionSettings, changed_settings, check_settings, new_id
from app.api.sockets import accepted
from app.errors import InvalidValue
from app.generator.resolving import find_model

if TYPE_CHECKING:
    from pathlib import Path

    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.keys import Key
    from app.voices.store import VoiceStore

REALTIME_PATH = "/realtime"
MIN_SECRET_S, MAX_SECRET_S, SECRET_S = 10, 7200, 600
_SUBPROTOCOL, _KEY_SUBPROTOCOL = "realtime", "openai-insecure-api-key."
_MAX_SETTINGS = 64 << 10  # characters


class ExpiresAfter(BaseModel):
    """How long a client secret is valid."""

    model_config = ConfigDict(extra="ignore", strict=True)

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=MIN_SECRET_S, le=MAX_SECRET_S)] = SECRET_S


class ClientSecretBody(BaseModel):
    """The body of `POST /v1/realtime/client_secrets`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    expires_after: ExpiresAfter | None = None
    session: Annotated[
        dict[str, Any] | None, Field(description="The settings of the sessions, as in the event `session.update`.")
    ] = None


class ClientSecretSession(BaseModel):
    """The session that a client secret opens. Fields that are not listed here come from `session` in the request."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["realtime.session"]
    type: Literal["realtime"]


class ClientSecret(BaseModel):
    """A key for `/realtime`. A browser may have this key, because the key is valid only for a short time."""

    value: str
    expires_at: int
    session: ClientSecretSession


def router(speaking: Speaking, voices: VoiceStore, gate: Gate, data_dir: Path, *, send_timeout_s: float) -> APIRouter:
    """Create the routes of the Realtime API."""
    routes = APIRouter(tags=["realtime"], route_class=gate.route("speak"))
    known = ClientSecrets(data_dir)

    @routes.post("/realtime/client_secrets", responses=problems(400, 404, 408, 413))
    async def create_client_secret(body: ClientSecretBody, caller: Request) -> ClientSecret:
        """Create a client secret: a key for the WebSocket `/realtime` that is valid for a short time."""
        settings = body.session or {}
        if len(str(settings)) > _MAX_SETTINGS:
            raise InvalidValue("The settings of the session are too long.", param="session")
        default = SessionSettings.of(speaking.manager.requested.model_id, speaking.manager)
        changed, changes = changed_settings(default, settings, speaking, voices)
        await check_settings(changed, changes, speaking)
        admitted = getattr(caller.state, "admitted", None)
        seconds = (body.expires_after or ExpiresAfter()).seconds
        value, expires_at = known.create(None if admitted is None else admitted.key, settings, seconds)
        shown = {**settings, "id": new_id("sess"), "object": "realtime.session", "type": "realtime"}
        return ClientSecret(value=value, expires_at=int(expires_at), session=ClientSecretSession(**shown))

    @routes.websocket(REALTIME_PATH)
    async def realtime(connection: WebSocket) -> None:
        """Speak texts over a WebSocket."""
        sent = _sent_key(connection)
        model = connection.query_params.get("model") or ""
        settings = SessionSettings.of(model or speaking.manager.requested.model_id, speaking.manager)

        def check() -> Key | None:
            nonlocal settings
            secret = known.find(sent)
            key = gate.connect(sent) if secret is None else gate.present(secret.key)
            gate.check_scope(key, "speak")
            if model:
                find_model(model, speaking.manager, speaking.generator.adapters)
            if secret is not None and secret.session:
                changes = {**secret.session, **({"model": model} if model else {})}
                settings, _ = changed_settings(settings, changes, speaking, voices)
            return key

        subprotocol = _SUBPROTOCOL if _SUBPROTOCOL in connection.scope["subprotocols"] else None
        async with accepted(
            connection, check, speaking.metrics, send_timeout_s=send_timeout_s, subprotocol=subprotocol
        ) as socket:
            if socket is not None:
                await RealtimeSession(socket, speaking, voices, gate, settings).run()

    return routes


def _sent_key(connection: WebSocket) -> str:
    """Return the key that a WebSocket's client has sent: in a header, or in the name of a subprotocol (browsers)."""
    offered: list[str] = connection.scope["subprotocols"]
    found = [name.removeprefix(_KEY_SUBPROTOCOL) for name in offered if name.startswith(_KEY_SUBPROTOCOL)]
    return key_in(connection.headers) or (found[0] if found else "")
