"""English as people type it into words a voice reads right. The one door to cleaning, markup, readings and the grammar.

Knows no speakers, no pauses, no sentence limits (`script.py`, `sentences.py`), and only English: for another language
the caller leaves it out. Pure from the outside: the same text gives the same words, from any thread.

wetext's compiled grammar is asked for one thing only, the name of a unit that our own lexicon lacks ("350 kPa" is ours,
"9 rad/s" is its): on whole sentences it misreads amounts, versions and decades, drops sentence-final stops, asserts on
brackets, and takes 2 ms where the rules here take less than one.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from app.text import cleaning, markup, number_words, rules, tables

if TYPE_CHECKING:
    from wetext import Normalizer as WetextNormalizer

# Tags that a later stage or the model itself understands travel through all rules as one private-use character each.
_KEPT_TAG = re.compile(r"\[(?:[sS][0-9]{1,2}|[pP][aA][uU][sS][eE]\b[^\[\]\n]{0,40})\]")
_FIRST_MASK, _MASKS = 0xE000, 0x1800  # U+F800 and above are the readings' own
_MASKED = re.compile("[\ue000-\uf8ff]")

# Letters, marks that carry intonation, and nothing any rule could read: such prose only has its spaces tidied.
_PROSE = re.compile(r"[A-Za-z,;:!?'\" ]*(?:[.](?=[\s\"']|$)[A-Za-z,;:!?'\" ]*)*")
_SHORT_FORM = re.compile(
    r"\b(?:[A-Za-z]{1,6}\.|[IVXL]{1,7}|Mr|Mrs|Ms|Dr|Prof|St|vs|Vs)(?=\W|$)|[:;=][)(DP]|[.,;:!?]{2}"
)

_DASH_PAUSE = re.compile(r"(?:(?<=\S)|(?<! ) +)(?:[—–]+|(?<=[ \w])-{2,}(?=[ \w])|(?<= )-(?= ))\s*")
_JOINING_DASH = re.compile(r"(?<=[a-z])–(?=[A-Z])")  # the Paris–London train
_DASH_END = re.compile(r" ?(?:(?<![—–])[—–]+|(?<!-)-{2,})(?=[\"')\]]*\s*$|\")")
_REPEATED = (
    (re.compile(r"\.{3,}|(?:\. ){2,}\.(?!\w)"), "..."),
    (re.compile(r"!{2,}"), "!"),
    (re.compile(r"\?{2,}"), "?"),
    (re.compile(r"(?:\?!|!\?)[!?]*"), "?!"),
    (re.compile(r",(?:\s*,)+"), ","),
    (re.compile(r";{2,}"), ";"),
    (re.compile(r":{2,}"), ":"),
    (re.compile(r"(?<!\.)\.\.(?!\.)"), "."),
)
_LEFTOVER_NUMBER = re.compile(r"[0-9]{1,40}")
_SYMBOL = re.compile("|".join(re.escape(symbol) for symbol in tables.SYMBOLS))
# What may reach a model: words in any script, marks it knows how to breathe at, and brackets (tags look like them).
_UNSPOKEN = re.compile(r"[^\w\s.,;:!?'\"()\[\]\-%。，、！？；：「」『』（）…·\ue000-\uf8ff]|_")
_TIDY = (
    (re.compile(r"\(\s*(?:[.,;:]\s*)?\)|\[\s*\]"), " "),
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile(r" ?\n ?"), "\n"),
    (re.compile(r"(?<! ) +(?=[.,;:!?)\]](?![\w.]))"), ""),
    (re.compile(r"([(\[]) +"), r"\1"),
    (re.compile(r"(?<=[.!?;:,])(?<!,,),+(?=\s|$)"), ""),
    (re.compile(r"(?<![,;:])[,;:]+(?=[.!?](?:\s|$))"), ""),
    (re.compile(r"(?m)^[,;:.!?\-] ?(?=\w)"), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
)
_SPACES = re.compile(r"  +")
_WORD = re.compile(r"[^\W_]")


class Grammar:
    """wetext behind a lock: whether its transducers may be shared between threads is not documented.

    Owns the one loaded grammar (0.3 s, on first need). Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wetext: WetextNormalizer | None = None
        self.unit = lru_cache(maxsize=512)(self._unit)

    def warm(self) -> None:
        with self._lock:
            self._loaded()

    def _loaded(self) -> WetextNormalizer:
        if self._wetext is None:
            from wetext import Normalizer as WetextNormalizer  # noqa: PLC0415 - 0.3 s that most texts never need

            self._wetext = WetextNormalizer(lang="en", operator="tn")
        return self._wetext

    def _unit(self, unit: str, plural: bool) -> str | None:
        """The words for a unit's symbol, or None when the grammar does not know it either."""
        count, lead = ("2", "two ") if plural else ("1", "one ")
        with self._lock:
            try:
                words = self._loaded().normalize(f"{count} {unit}")
            except (AssertionError, RuntimeError):  # its tag parser asserts, its search finds no path
                return None
        name = words.removeprefix(lead)
        known = words.startswith(lead) and name.isascii() and name.replace(" ", "").isalpha() and name.islower()
        return name if known and name != unit and len(name) > len(unit) + 1 else None


class Normalizer:
    """Text to words. Cheap to make, safe from any thread; `warm()` loads the grammar ahead of the first request."""

    def __init__(self) -> None:
        self._grammar = Grammar()

    def warm(self) -> None:
        """Load the grammar now (0.3 s) rather than under the first sentence that has a rare unit in it."""
        self._grammar.warm()

    def normalize(self, text: str, *, english: bool = True) -> str:
        """`text` as words, paragraphs apart by an empty line. Never raises; empty only when nothing can be said.

        english False: only what is not language goes (markup, links' addresses, emoji); numbers stay as they are
        written, for a voice that reads them in its own language.
        """
        if _PROSE.fullmatch(text) and not _SHORT_FORM.search(text):
            return " ".join(text.split())
        cleaned = cleaning.clean(text)
        cleaned = markup.strip_tags(cleaned)
        if "&" in cleaned:
            cleaned = cleaning.clean(cleaning.resolve_entities(cleaned))
        spoken = self._read(cleaned) if english else self._unmarked(cleaned)
        if _WORD.search(spoken):
            return spoken
        return self._last_resort(text) or spoken

    def _read(self, text: str) -> str:
        kept: dict[str, str] = {}

        def mask(found: re.Match[str]) -> str:
            if found[0] not in kept and len(kept) < _MASKS:
                kept[found[0]] = chr(_FIRST_MASK + len(kept))
            return kept.get(found[0], found[0])

        masked = _KEPT_TAG.sub(mask, text)
        paragraphs = markup.plain_paragraphs(cleaning.drop_emoji(masked)).split("\n\n")
        spoken = "\n\n".join(filter(None, (self._paragraph(paragraph) for paragraph in paragraphs)))
        if not kept:
            return spoken
        tags = {char: tag for tag, char in kept.items()}
        return _MASKED.sub(lambda found: tags.get(found[0], ""), spoken)

    def _unmarked(self, text: str) -> str:
        paragraphs = markup.plain_paragraphs(cleaning.drop_emoji(text)).split("\n\n")
        return "\n\n".join(filter(None, (" ".join(paragraph.split()) for paragraph in paragraphs)))

    def _paragraph(self, text: str) -> str:
        text = rules.read(_SPACES.sub(" ", text), self._grammar.unit)
        text = _DASH_END.sub("...", text)
        text = _JOINING_DASH.sub("-", text)
        text = _DASH_PAUSE.sub(", ", text)
        text = _SYMBOL.sub(lambda found: tables.SYMBOLS[found[0]], text)
        text = _UNSPOKEN.sub(" ", text)
        text = _LEFTOVER_NUMBER.sub(lambda found: f" {number_words.integer(found[0])} ", text)
        for pattern, replacement in _REPEATED:
            text = pattern.sub(replacement, text)
        for pattern, replacement in _TIDY:
            text = pattern.sub(replacement, text)
        return text.strip()

    def _last_resort(self, text: str) -> str:
        """For a text whose words were all markup, or that is emoji only: say what is there, plainly."""
        plain = re.sub(r"[^\w\s]|_", " ", cleaning.clean(text))
        words = _digits_said(plain)
        return words if _WORD.search(words) else _digits_said(cleaning.name_emoji(text))


def _digits_said(text: str) -> str:
    return " ".join(re.sub(r"[0-9]+", lambda found: f" {number_words.integer(found[0])} ", text).split())
