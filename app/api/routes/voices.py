"""`GET /audio/voices`: every voice, in the union of the shapes that clients read."""

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
    """Read the voice store again if another process has changed it."""
    if voices.stale:
        await asyncio.to_thread(voices.refresh)


def router(voices: VoiceStore, gate: Gate) -> APIRouter:
    routes = APIRouter(tags=["voices"], route_class=gate.route(None))

    @routes.get("/audio/voices", responses=problems(400))
    async def list_voices(legacy: bool = False) -> VoiceList:
        """All voices; with `legacy=true` their ids only, as older clients expect."""
        await refresh(voices)
        if legacy:
            names = [voice.id for voice in voices.all()]
            return VoiceList(object="list", voices=names, data=names)
        items = [ListedVoice.of(voice) for voice in voices.all()]
        return VoiceList(object="list", voices=items, data=items)

    return routes
