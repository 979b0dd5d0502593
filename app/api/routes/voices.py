"""`GET /audio/voices` lists all voices. The response has the fields that different clients read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter

from app.api.errors import problems
from app.api.responses import ListedVoice, VoiceList

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.voices.store import VoiceStore


async def refresh(voices: VoiceStore) -> None:
    """Read the stored voices again if another process has changed them."""
    if voices.stale:
        await asyncio.to_thread(voices.refresh)


def router(voices: VoiceStore, gate: Gate) -> APIRouter:
    """The route that lists all voices."""
    routes = APIRouter(tags=["voices"], route_class=gate.route(None))

    @routes.get("/audio/voices", responses=problems(400))
    async def list_voices(legacy: bool = False) -> VoiceList:
        """List all voices. With `legacy=true` the list has only their ids, for older clients."""
        await refresh(voices)
        if legacy:
            names = [voice.id for voice in voices.all()]
            return VoiceList(object="list", voices=names, data=names)
        items = [ListedVoice.of(voice) for voice in voices.all()]
        return VoiceList(object="list", voices=items, data=items)

    return routes
