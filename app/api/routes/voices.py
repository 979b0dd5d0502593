"""`GET /audio/voices` lists all voices. The response has the fields that different clients read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from app.api.errors import problems
from app.api.responses import ListedVoice, VoiceList

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.types import Voice
    from app.voices.store import VoiceStore


async def refresh(voices: VoiceStore) -> None:
    """Read the stored voices again if another process has changed them."""
    if voices.stale:
        await asyncio.to_thread(voices.refresh)


async def listed(voices: VoiceStore, gate: Gate, caller: Request | None = None) -> list[Voice]:
    """Return the voices that the caller may see in a list. caller: None = the protocol has no API keys."""
    await refresh(voices)
    cloned = gate.lists_are_open if caller is None else gate.shows_cloned(caller)
    return [voice for voice in voices.all() if cloned or voice.kind not in {"cloned", "adapter"}]


def router(voices: VoiceStore, gate: Gate) -> APIRouter:
    """Create the route that lists all voices."""
    routes = APIRouter(tags=["voices"], route_class=gate.route(None))

    @routes.get("/audio/voices", responses=problems(400))
    async def list_voices(caller: Request, legacy: bool = False) -> VoiceList:
        """List all voices. With `legacy=true` the list has only their ids, for older clients."""
        shown = await listed(voices, gate, caller)
        if legacy:
            names = [voice.id for voice in shown]
            return VoiceList(object="list", voices=names, data=names)
        items = [ListedVoice.of(voice) for voice in shown]
        return VoiceList(object="list", voices=items, data=items)

    return routes
