"""`GET /audio/voices`: the union of the shapes that clients read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

if TYPE_CHECKING:
    from app.voices.store import VoiceStore


async def fresh(voices: VoiceStore) -> None:
    """What other processes made is seen too, from here on."""
    if voices.stale:
        await asyncio.to_thread(voices.refresh)


def router(voices: VoiceStore) -> APIRouter:
    routes = APIRouter(tags=["voices"])

    @routes.get("/audio/voices")
    async def list_voices(legacy: bool = False) -> dict[str, Any]:
        """All voices; `legacy=true` lists plain strings, as older clients want."""
        await fresh(voices)
        if legacy:
            names = [voice.id for voice in voices.all()]
            return {"object": "list", "voices": names, "data": names}
        items = [
            {
                "id": voice.id,
                "name": voice.name,
                "object": "audio.voice",
                "type": voice.kind,
                "language": voice.language,
                "description": voice.description,
            }
            for voice in voices.all()
        ]
        return {"object": "list", "voices": items, "data": items}

    return routes
