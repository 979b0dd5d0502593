"""The lists of voices in ElevenLabs' format: `/v1/voices` with all voices, and `/v2/voices` with a search and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from app.api.routes.voices import listed
from app.errors import InvalidValue, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.api.auth import Gate
    from app.types import Voice
    from app.voices.store import VoiceStore

Object = dict[str, Any]

MAX_PAGE = 100
# Value of `voice_type` -> (whether the list has the standard voices, whether the list has the cloned voices).
_TYPES = {
    "default": (True, False),
    "personal": (False, True),
    "workspace": (False, True),
    "saved": (False, True),
    "non-default": (False, True),
    "non-community": (True, True),
    "community": (False, False),
}


def router(voices: VoiceStore, gate: Gate, path: str) -> APIRouter:
    """Create the routes of voices. path: the path of the list, which ends with /v1/voices or /v2/voices."""
    routes = APIRouter(route_class=gate.route(None), include_in_schema=False)

    async def found(caller: Request) -> list[Object]:
        created = {stored.id: stored.created_at for stored in voices.stored()}
        return [_shown(voice, created) for voice in await listed(voices, gate, caller)]

    async def list_voices(caller: Request) -> Object:
        """List all voices."""
        return _page(await found(caller), has_more=False, total=None)

    async def search_voices(
        caller: Request,
        *,
        search: str = "",
        sort: Literal["name", "created_at_unix"] | None = None,
        sort_direction: Literal["asc", "desc"] | None = None,
        voice_type: str | None = None,
        category: str | None = None,
        voice_ids: Annotated[list[str] | None, Query()] = None,
        page_size: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
        next_page_token: str = "",
        include_total_count: bool = True,
    ) -> Object:
        """List the voices that match a search, in pages."""
        if voice_type not in (None, *_TYPES):
            raise InvalidValue(f"`voice_type` must be one of: {', '.join(_TYPES)}.", param="voice_type")
        standard, cloned = _TYPES[voice_type or "non-community"]
        matching = [
            voice
            for voice in await found(caller)
            if (standard if voice["category"] == "premade" else cloned)
            and category in (None, voice["category"])
            and (voice_ids is None or voice["voice_id"] in voice_ids)
            and _matches(voice, search)
        ]
        if sort == "name":
            matching.sort(key=lambda voice: str(voice["name"]).casefold())
        # Without sort="name", the order is that of `VoiceStore.all`, where an older cloned voice comes first.
        if sort_direction == "desc":
            matching.reverse()
        start = 0
        if next_page_token:
            ids = [voice["voice_id"] for voice in matching]
            if next_page_token not in ids:
                raise InvalidValue(
                    "`next_page_token` belongs to no page of this search. Begin again without it.",
                    param="next_page_token",
                )
            start = ids.index(next_page_token)
        end = start + page_size
        following = matching[end]["voice_id"] if end < len(matching) else None
        page = _page(matching[start:end], has_more=following is not None, total=len(matching))
        return page | {"next_page_token": following, **({} if include_total_count else {"total_count": None})}

    @routes.get(f"{path}/{{voice_id}}")
    async def get_voice(voice_id: str, caller: Request) -> Object:
        """Get one voice."""
        for voice in await found(caller):
            if voice_id == voice["voice_id"]:
                return voice
        raise NotFound(f"There is no voice {voice_id[:80]!r}. GET /v1/voices lists the voices.", param="voice_id")

    routes.get(path)(search_voices if path.startswith("/v2") else list_voices)
    return routes


def _shown(voice: Voice, created: Mapping[str, float]) -> Object:
    at_s = created.get(voice.id)
    return {
        "voice_id": voice.id,
        "name": voice.name,
        "category": "cloned" if voice.kind == "cloned" else "premade",
        "description": voice.description,
        "labels": {"language": voice.language},
        "preview_url": None,
        "settings": None,
        "samples": None,
        "created_at_unix": None if at_s is None else round(at_s),
    }


def _matches(voice: Object, search: str) -> bool:
    """Return whether each word of a search is in the name, the description, the labels or the category."""
    text = " ".join(
        (voice["name"], voice["voice_id"], voice["description"], voice["category"], *voice["labels"].values())
    )
    return all(word in text.casefold() for word in search.casefold().split())


def _page(shown: list[Object], *, has_more: bool, total: int | None) -> Object:
    count = len(shown) if total is None else total
    return {"voices": shown, "has_more": has_more, "total_count": count, "next_page_token": None}  # nosec B105
