"""Properties that must hold for all input bytes. Each target takes bytes. If a property does not hold, it raises
AssertionError or the exception of the code.

The targets are plain Python, so `make test` runs them with the corpus. `run.py` runs the same functions with atheris.
Texts are decoded from UTF-8. Invalid bytes become lone surrogates, which JSON can also contain.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ValidationError

from app.api.errors import body_of
from app.api.requests import ConversationBody, DialogueBody, GenerateBody, PreviewBody, SpeechBody
from app.audio.decode import decode
from app.engines.dia import script as dia_script
from app.engines.espeak_ipa import SYMBOLS
from app.errors import BadReference, SpeechError, TextTooLong, TooManySpeakers
from app.generator.planning import read_text
from app.text import cleaning, markup, script
from app.text.lexicon_file import LexiconFile, format_lexicon, parse_lexicon
from app.text.nonverbal import NON_VERBAL_SOUNDS
from app.text.normalizer import Normalizer
from app.text.pronunciations import Lexicon, WordList, take_ipa
from app.text.punctuation import has_words
from app.text.sentences import split
from app.text.spans import SpannedText
from app.text.tex import replace_tex
from app.types import SpeechRequest, TextPacking

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_INPUT_CHARS = 4096
RATE_HZ = 24_000
MAX_SECONDS = 2.0
# One character can become the name of a symbol ("less than or equal to"), and 15 digits can become many words.
SPOKEN_PER_CHAR, SPOKEN_SPARE = 40, 300

_BODIES: tuple[type[BaseModel], ...] = (SpeechBody, GenerateBody, PreviewBody, ConversationBody, DialogueBody)
_LANGUAGES = ("en", "de", "zh", "ja", "", "no-such", "é")
_MARKUP = re.compile(r"[\x1b\x9b<>\[\]【▁\ue200{}]|cite|turn|analysis|\n---|^---|^\+\+\+|```")
_FACE = re.compile(r"([oO0tTuUxX;])[_.]\1|[oO][_.][oO]|ಠ_+ಠ")
_DIGIT = re.compile(r"[0-9]")
_KEPT = re.compile(r"\[[sS][0-9]{1,2}\]|\[pause[^\]]*\]", re.IGNORECASE)


@cache
def _normalizer() -> Normalizer:
    return Normalizer()


def warm() -> None:
    """Load lazy resources, so that their load time is not part of the time of an input."""
    _normalizer().warm()


NO_INK = "\u115f\u1160\u3164\uffa0"  # letters of Hangul that are invisible


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def bare(text: str) -> str:
    return "".join(text.split())


def normaliser(data: bytes) -> None:
    """Check the text normaliser. The first byte chooses whether the text is English.

    A text with words gives words. The result has a limited length, can be encoded, and is equal in a second call.
    """
    english, text = data[:1] != b"\0", text_of(data[1:])
    spoken = _normalizer().normalize(text, english=english)
    spoken.encode("utf-8")
    assert spoken == _normalizer().normalize(text, english=english)
    assert len(spoken) <= SPOKEN_PER_CHAR * len(text) + SPOKEN_SPARE, (len(text), len(spoken))
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Co") for char in spoken if char != "\n"), ascii(spoken)
    # A single modifier letter, such as an apostrophe of some alphabets, counts as punctuation. A text with characters
    # of tags, links, citations or escape sequences of terminals may lose all its words, and a face such as "O_O" is
    # not spoken. An HTML entity such as "&#x40;" counts as its character. Invisible characters are removed first.
    visible = "".join(char for char in html.unescape(text) if unicodedata.category(char) not in ("Cc", "Cf"))
    if any(
        char.isalnum() and unicodedata.category(char) != "Lm" and char not in NO_INK for char in _FACE.sub("", visible)
    ) and not _MARKUP.search(text):
        assert has_words(spoken), ascii(spoken)
    if english:
        assert not _DIGIT.search(_KEPT.sub("", spoken)), ascii(spoken)


def front_end(data: bytes) -> None:
    """Check the stages of the text front end. The first byte chooses engine and language.

    Check that spans are in order within the text, and cover every spoken word.
    """
    head, text = data[:1] or b"\0", text_of(data[1:])
    packing = TextPacking(max_chars=1 + head[0], sounds=NON_VERBAL_SOUNDS if head[0] % 2 else frozenset())
    language = _LANGUAGES[head[0] % len(_LANGUAGES)]
    try:
        sentences = read_text(text, _normalizer(), packing, lambda _: language)
    except TextTooLong:  # the pauses are longer than ten minutes
        return
    last = (0, 0)
    for sentence in sentences:
        words = list(sentence.words())
        assert [word.word for word in words] == sentence.text.split()
        for word in words:
            assert last[0] <= word.start_char <= word.end_char <= len(text), (last, word)
            assert last[1] <= word.end_char, (last, word)
            last = word.start_char, word.end_char


def formulas(data: bytes) -> None:
    """Check that a formula of any characters is read to its end, and that the result has no TeX characters."""
    content = re.sub(r"[$`]", "", text_of(data))
    for english in (True, False):
        spoken = replace_tex(SpannedText(f"$x {content} x^2$"), english=english).text
        assert len(spoken) <= SPOKEN_PER_CHAR * len(content) + SPOKEN_SPARE
        if english and "\n" not in content:
            assert not re.search(r"[\\{}$]", spoken), ascii(spoken)


def splitter(data: bytes) -> None:
    """Check the splitter of sentences. The first byte is the limit, the second one the language.

    No text is lost, added or moved, and no chunk exceeds the limit.
    """
    head, text = data[:2].ljust(2, b"\1"), text_of(data[2:])
    max_chars = 1 + head[0]
    pieces = [each.text for each in split(SpannedText(text), max_chars, _LANGUAGES[head[1] % len(_LANGUAGES)])]
    assert bare("".join(pieces)) == bare(text)
    for piece in pieces:
        assert piece, "a blank piece"
        assert piece == piece.strip(), ascii(piece)
        assert len(piece) <= max_chars


def parser(data: bytes) -> None:
    """Check that speaker tags, pauses, Dia's scripts and markup keep every word in order, and that pauses are
    limited."""
    text = text_of(data)
    lines = [(speaker, words.text) for speaker, words in script.split_speakers(SpannedText(text))]
    assert " ".join(words for _, words in lines).split() == script.SPEAKER_TAG.sub(" ", text).split()
    assert all(before[0] != after[0] for before, after in pairwise(lines))

    parts = script.parse(SpannedText(text))
    words = " ".join(part.text.text for part in parts if isinstance(part, script.Words))
    assert bare(words) == bare(script._TAG.sub(" ", text))
    for part in parts:
        if isinstance(part, script.Pause):
            assert 0 < part.seconds <= script.MAX_SILENCE_S
        else:
            assert part.text.text.strip() == part.text.text != ""
    assert not any(isinstance(a, script.Pause) and isinstance(b, script.Pause) for a, b in pairwise(parts))

    cleaned = dia_script.clean_line(text)
    assert letters(cleaned).lower() == letters(text.translate(dia_script._ASCII).replace("<pad>", " ")).lower()
    assert not re.search(r"[\[\]{}]", cleaned)
    try:
        formatted = dia_script.format_script(lines[:8], {0: text[:40]})
    except TooManySpeakers:
        # If speaker tags were nested, a single line can still contain tags.
        nested = [speaker for speaker, _ in script.split_speakers(SpannedText(lines[0][1]))] if len(lines) == 1 else []
        assert max(len({speaker for speaker, _ in lines[:8]}), len({*nested})) > dia_script.MAX_SPEAKERS
    else:
        tags = re.findall(r"\[S([12])\]", formatted.text)
        assert not tags or tags[0] == "1", ascii(formatted.text)
        assert all(before != after for before, after in pairwise(tags)), ascii(formatted.text)
        assert len(formatted.text) <= 4 * len(text) + 200

    clean = cleaning.clean(SpannedText(text))
    cleaned = clean.text
    plain = "\n\n".join(each.text for each in markup.plain_paragraphs(markup.strip_tags(clean)))
    assert len(plain) <= 12 * len(cleaned) + 100
    # In a text without markup characters every letter stays. A line that begins with "o" and a gap is a list item, and
    # one that begins with "h1. " is a heading.
    if not re.search(r"[<>&\[\]`\\$*_~|#=+:!%{}]|^\s*o\s\s|^\s*h[1-6]\.\s", cleaned, re.MULTILINE):
        assert letters(plain) == letters(cleaned), (ascii(plain), ascii(cleaned))


def letters(text: str) -> str:
    return "".join(char for char in text if char.isalpha())


def upload(data: bytes) -> None:
    """Check that any file gives audio within the limits, or BadReference."""
    refused: BadReference | None = None
    try:
        decoded = decode(data, RATE_HZ, max_seconds=MAX_SECONDS)
    except BadReference as error:
        refused = error
    if refused is not None:
        assert refused.param == "audio"
        assert len(refused.message) < 400
        return
    samples = decoded.samples
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 0 < len(samples) <= MAX_SECONDS * RATE_HZ
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1.0
    assert 0.0 <= decoded.clipped <= 1.0


def schemas(data: bytes) -> None:
    """Check the validation of request bodies.

    The first byte selects the body model; the rest is JSON. Check that the result is a request or a typed error.
    """
    kind = _BODIES[data[0] % len(_BODIES)] if data else SpeechBody
    try:
        content = json.loads(data[1:])
    except (ValueError, RecursionError):  # the framework's own response with status 400
        return
    try:
        body = kind.model_validate(content)
        request = body.to_request(default_model="csm-1b", max_input_chars=MAX_INPUT_CHARS)  # type: ignore[attr-defined]
        if isinstance(body, ConversationBody):
            for turn in body.decode_context():
                assert isinstance(turn.audio, bytes)
    except ValidationError as error:
        for problem in error.errors():
            assert problem["loc"] or not isinstance(content, dict)
            assert len(problem["msg"]) < 1000
        return
    except SpeechError as error:
        json.dumps(body_of(error))
        return
    assert isinstance(request, SpeechRequest)
    assert 0.25 <= request.speed <= 4.0
    assert 8_000 <= request.sample_rate_hz <= 48_000
    assert sum(len(line.text) for line in request.lines) <= MAX_INPUT_CHARS
    assert all(line.text.strip() for line in request.lines)
    assert len(request.digest("context")) == 64
    assert 0 <= request.content_seed("context") < 2**31


def lexicon(data: bytes) -> None:
    """Check the pronunciation dictionary. The bytes up to the first NUL are a dictionary file; the rest is a text.

    Every file is read, and the result contains no private-use character.
    """
    file, _, written = data.partition(b"\0")
    content = parse_lexicon(file)
    assert parse_lexicon(format_lexicon(content.entries)) == LexiconFile(content.entries)
    text = text_of(written)
    # the text and the entries may contain the made-up word "zqj" themselves
    own = " ".join([text, *(entry.say or "" for entry in content.entries)])
    for symbols in (frozenset[str](), SYMBOLS):
        found = Lexicon([WordList(content.entries)], ipa=symbols)
        replaced, ipa = take_ipa(found.replaced(SpannedText(text)))
        spoken, _ = take_ipa(_normalizer().spoken(SpannedText(text), lexicon=found))
        assert all(0 <= start < end <= len(replaced) for start, end, _ in ipa)
        assert not any("\U000f0000" <= char <= "\U000ffffd" for char in spoken.text)
        assert "zqj" in letters(own).lower() or "zqj" not in (replaced.text + spoken.text).lower()
        if not found.candidates(text):
            # private-use characters are removed, since they stand for IPA
            assert replaced.text == re.sub("[\U000f0000-\U000ffffd]", "", text)
            assert spoken.text == _normalizer().normalize(text)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "normaliser": normaliser,
    "front_end": front_end,
    "formulas": formulas,
    "splitter": splitter,
    "parser": parser,
    "upload": upload,
    "schemas": schemas,
    "lexicon": lexicon,
}
