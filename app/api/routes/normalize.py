"""`POST /audio/normalize` shows the words that would be spoken for a text, and where they stand in the text."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response

from app.api.errors import problems
from app.api.requests import NormalizeBody, lexicon_entries
from app.api.responses import NormalizedPiece, NormalizedText, NormalizedWord
from app.engines.registry import find_spec, specs
from app.errors import UnsupportedParameter
from app.generator.job import spoken_language
from app.generator.planning import read_text
from app.text.pronunciations import Lexicon, WordList

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.engines.model_manager import ModelManager
    from app.generator.lexicons import LexiconStore
    from app.text.normalizer import Normalizer
    from app.text.spans import SpannedText
    from app.types import TextPacking
    from app.voices.store import VoiceStore


def router(
    manager: ModelManager,
    voices: VoiceStore,
    normalizer: Normalizer,
    lexicons: LexiconStore,
    gate: Gate,
    *,
    max_input_chars: int,
) -> APIRouter:
    """Create the route that normalises a text. max_input_chars: the maximum number of characters of the text."""
    routes = APIRouter(tags=["speech"], route_class=gate.route("speak"))

    @routes.post("/audio/normalize", operation_id="normalize_text", responses=problems(400, 404, 408, 413, 429))
    async def normalize(body: NormalizeBody, response: Response) -> NormalizedText:
        """Show the sentences and words that would be spoken for a text, with their places in the text."""
        body.name_ignored(response)
        text, voice_id = body.checked(max_input_chars)
        packing = _packing(manager, body.engine)
        voice = voices.get(voice_id)
        entries = lexicon_entries(body.lexicon, "lexicon")

        def read() -> list[SpannedText]:
            lexicon = Lexicon((WordList(entries), *lexicons.lists(voice.id)))
            return read_text(
                text,
                normalizer,
                packing,
                lambda part: spoken_language(body.language, part, voice.language),
                lexicon or None,
            )

        sentences = await asyncio.to_thread(read)
        pieces = [
            NormalizedPiece(text=text[start:end], spoken=sentence.text, start_char=start, end_char=end)
            for sentence in sentences
            for start, end in (sentence.span,)
        ]
        words = [
            NormalizedWord(word=word.word, start_char=word.start_char, end_char=word.end_char)
            for sentence in sentences
            for word in sentence.words()
        ]
        return NormalizedText(pieces=pieces, words=words)

    return routes


def _packing(manager: ModelManager, name: str | None) -> TextPacking:
    """Return the text limits of an engine. name: an engine or a model id; None = the engine of this server.

    Raises UnsupportedParameter for an unknown name.
    """
    known = specs()
    if name is None:
        return manager.requested.text_packing() if manager.current is None else manager.current.info.text
    spec = find_spec(name, known.values())
    if spec is None:
        raise UnsupportedParameter(
            f"There is no engine `{name[:80]}`. The engines are: {', '.join(sorted(known))}.", param="engine"
        )
    loaded = manager.of(spec.model_id).current
    if loaded is not None and loaded.info.id in (spec.name, spec.model_id):
        return loaded.info.text
    return spec.text_packing()
