"""`/audio/lexicon`: the pronunciation dictionaries of the server and of each voice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic import ConfigDict

from app.api.conditional import check_if_match, etag_of, not_modified
from app.api.errors import problems
from app.api.requests import LexiconEntries, ReportedBody, lexicon_entries
from app.api.responses import (
    IGNORED_HEADER,
    DeletedPronunciations,
    Pronunciation,
    Pronunciations,
    Schema,
    text_header,
)
from app.api.routes.voices import refresh
from app.errors import InvalidValue, NotFound, UnknownVoice
from app.voices.store import DRAFT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.api.auth import Gate
    from app.generator.lexicons import LexiconStore
    from app.text.lexicon_file import LexiconFile
    from app.types import LexiconEntry
    from app.voices.store import VoiceStore

LEXICON_PATH = "/audio/lexicon"

VoiceQuery = Annotated[
    str | None,
    Query(description="The id or the name of a voice, to use its dictionary. Default: the dictionary of the server."),
]
IfMatch = Annotated[
    str | None,
    Header(
        description="The ETag of the dictionary that you have changed. If it is no longer valid, the response is a 412."
    ),
]
IfNoneMatch = Annotated[
    str | None,
    Header(description="The ETag of the dictionary that you have. If it is still valid, the response is a 304."),
]
_ETAG: Schema = {"headers": {"ETag": text_header("The state of the dictionary, for `If-Match` and `If-None-Match`.")}}


class LexiconBody(ReportedBody):
    """The body that replaces a dictionary."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"entries": [{"word": "SQL", "say": "sequel"}]}]})

    entries: LexiconEntries


def router(lexicons: LexiconStore, voices: VoiceStore, gate: Gate) -> APIRouter:
    """Create the routes of the pronunciation dictionaries."""
    readable = APIRouter(tags=["lexicon"], route_class=gate.route("speak"))
    routes = APIRouter(tags=["lexicon"], route_class=gate.route("clone"))

    async def voice_id(voice: str | None) -> str | None:
        """Return the id of the voice whose dictionary is used; None = the server's dictionary. Raises NotFound."""
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

    def check(if_match: str | None) -> Callable[[LexiconFile], None] | None:
        """Return a function that compares a dictionary's ETag with the header If-Match; None without this header."""
        return None if if_match is None else lambda before: check_if_match(if_match, _response(before)[1])

    @readable.get(
        LEXICON_PATH,
        operation_id="get_lexicon",
        response_model=Pronunciations,
        responses={200: _ETAG, 304: {"description": "You have this dictionary already.", **_ETAG}, **problems(404)},
    )
    async def get(
        answer: Response, voice: VoiceQuery = None, if_none_match: IfNoneMatch = None
    ) -> Pronunciations | Response:
        """Get the pronunciation dictionary of the server, or of one voice."""
        name = await voice_id(voice)
        body, etag = await asyncio.to_thread(lambda: _response(lexicons.content(name)))
        answer.headers.update({"ETag": etag, "Cache-Control": "no-cache"})
        return Response(status_code=304, headers=answer.headers) if not_modified(if_none_match, etag) else body

    @routes.put(
        LEXICON_PATH,
        operation_id="replace_lexicon",
        responses={
            200: {"headers": {**_ETAG["headers"], **IGNORED_HEADER["headers"]}},
            **problems(400, 404, 408, 412, 413, 429, 507),
        },
    )
    async def replace(
        body: LexiconBody, answer: Response, voice: VoiceQuery = None, if_match: IfMatch = None
    ) -> Pronunciations:
        """Replace all entries of the server's dictionary, or of the dictionary of one voice.

        When this voice speaks, an entry of its own dictionary replaces the server's entry for the same word.
        """
        name = await voice_id(voice)

        def store() -> tuple[Pronunciations, str]:
            entries = lexicon_entries(body.entries, "entries")
            return _response(lexicons.replace(entries, name, check=check(if_match)))

        stored, answer.headers["ETag"] = await asyncio.to_thread(store)
        body.name_ignored(answer)
        return stored

    @routes.delete(
        LEXICON_PATH + "/{word:path}",
        operation_id="delete_pronunciation",
        responses={200: _ETAG, **problems(400, 404, 412, 429, 507)},
    )
    async def delete(
        word: str, answer: Response, voice: VoiceQuery = None, if_match: IfMatch = None
    ) -> DeletedPronunciations:
        """Remove the entries for this word from the server's dictionary, or from the dictionary of one voice.

        The headers `If-Match` and `ETag` contain the ETag of the whole dictionary.
        """
        if not word.strip():
            raise InvalidValue("The URL contains no word. DELETE /v1/audio/lexicon/SQL removes `SQL`.", param="word")
        name = await voice_id(voice)

        def remove() -> tuple[tuple[LexiconEntry, ...], str]:
            removed, content = lexicons.remove(word, name, check=check(if_match))
            return removed, _response(content)[1]

        removed, answer.headers["ETag"] = await asyncio.to_thread(remove)
        return DeletedPronunciations(word=word, deleted=True, entries=[Pronunciation.of(entry) for entry in removed])

    routes.routes.extend(readable.routes)
    return routes


def _response(content: LexiconFile) -> tuple[Pronunciations, str]:
    """Return the response body with a dictionary, and the ETag of this body."""
    body = Pronunciations(
        entries=[Pronunciation.of(entry) for entry in content.entries],
        problems=[f"lexicon.tsv, {problem}" for problem in content.problems],
    )
    return body, etag_of(body)
