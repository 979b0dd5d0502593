"""`/audio/lexicon`: the pronunciation dictionaries of the server and of each voice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from app.api.errors import problems
from app.api.requests import LexiconEntries, lexicon_entries
from app.api.responses import DeletedPronunciations, Pronunciation, Pronunciations
from app.api.routes.voices import refresh
from app.errors import InvalidValue, NotFound, UnknownVoice
from app.voices.store import DRAFT_PREFIX

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.generator.lexicons import LexiconStore
    from app.text.lexicon_file import LexiconFile
    from app.voices.store import VoiceStore

LEXICON_PATH = "/audio/lexicon"

VoiceQuery = Annotated[
    str | None,
    Query(description="The id or the name of a voice: use the dictionary of this voice. Default: the server's."),
]


class LexiconBody(BaseModel):
    """The body that replaces a dictionary."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={"examples": [{"entries": [{"word": "SQL", "say": "sequel"}]}]},
    )

    entries: LexiconEntries


def router(lexicons: LexiconStore, voices: VoiceStore, gate: Gate) -> APIRouter:
    """The routes of the pronunciation dictionaries."""
    readable = APIRouter(tags=["lexicon"], route_class=gate.route("speak"))
    routes = APIRouter(tags=["lexicon"], route_class=gate.route("clone"))

    async def voice_id(voice: str | None) -> str | None:
        """Return the id of a voice that can have a dictionary; None = the server. Raises NotFound."""
        if voice is None:
            return None
        await refresh(voices)
        try:
            found = voices.get(voice).id
        except UnknownVoice as error:
            raise NotFound(error.message, param="voice") from error
        if found.startswith(DRAFT_PREFIX):
            raise NotFound("A draft has no pronunciation dictionary. Clone the voice first.", param="voice")
        return found

    @readable.get(LEXICON_PATH, operation_id="get_lexicon", responses=problems(404))
    async def get(voice: VoiceQuery = None) -> Pronunciations:
        """Get the pronunciation dictionary of the server, or of one voice."""
        name = await voice_id(voice)
        return _response(await asyncio.to_thread(lexicons.content, name))

    @routes.put(LEXICON_PATH, operation_id="replace_lexicon", responses=problems(400, 404, 408, 413, 429, 507))
    async def replace(body: LexiconBody, voice: VoiceQuery = None) -> Pronunciations:
        """Replace all entries of the server's dictionary, or of one voice's. An entry of a voice wins."""
        name = await voice_id(voice)

        def store() -> LexiconFile:
            return lexicons.replace(lexicon_entries(body.entries, "entries"), name)

        return _response(await asyncio.to_thread(store))

    @routes.delete(
        LEXICON_PATH + "/{word:path}", operation_id="delete_pronunciation", responses=problems(400, 404, 429, 507)
    )
    async def delete(word: str, voice: VoiceQuery = None) -> DeletedPronunciations:
        """Remove the entries with this word from the server's dictionary, or from one voice's."""
        if not word.strip():
            raise InvalidValue("The URL contains no word. DELETE /v1/audio/lexicon/SQL removes `SQL`.", param="word")
        removed = await asyncio.to_thread(lexicons.remove, word, await voice_id(voice))
        return DeletedPronunciations(word=word, deleted=True, entries=[Pronunciation.of(entry) for entry in removed])

    routes.include_router(readable)
    return routes


def _response(content: LexiconFile) -> Pronunciations:
    return Pronunciations(
        entries=[Pronunciation.of(entry) for entry in content.entries],
        problems=[f"lexicon.tsv, {problem}" for problem in content.problems],
    )
