"""Text normalisation: convert written English to words that a voice reads correctly.

`Normalizer.normalize` calls the modules `cleaning`, `markup` and `rules` in this order. The same text always gives the
same words. The module `script` reads speaker tags and pause tags. The module `sentences` splits a text into sentences.

The library wetext is used only to read units that are not in `tables.UNITS` ("9 rad/s"). On whole sentences wetext
misreads amounts, versions and decades, drops final full stops, fails on brackets, and takes 2 ms. The package `rules`
takes less than 1 ms.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from app.text import cleaning, markup, number_words, rules, tables
from app.text.spans import SpannedText

if TYPE_CHECKING:
    from wetext import Normalizer as WetextNormalizer

# Speaker tags and pause tags. While the rules run, a private-use character replaces each tag.
_TAG = re.compile(r"\[(?:[sS][0-9]{1,2}|[pP][aA][uU][sS][eE]\b[^\[\]\n]{0,40})\]")
_FIRST_MASK, _MAX_MASKS = 0xE000, 0x1800  # the rules use the private-use characters from U+F800 on
_MASKED = re.compile("[\ue000-\uf8ff]")

# A text of letters and punctuation only. No rule changes such a text, so `normalize` only joins repeated spaces.
_PLAIN_PROSE = re.compile(r"[A-Za-z,;:!?'\" ]*(?:[.](?=[\s\"']|$)[A-Za-z,;:!?'\" ]*)*")
_ABBREVIATION = re.compile(
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
# Every character that must not reach a model. Letters and digits of any script, spaces, punctuation and brackets (for
# tags) are allowed.
_UNSPEAKABLE = re.compile(r"[^\w\s.,;:!?'\"()\[\]\-%。，、！？；：「」『』（）…·\ue000-\uf8ff]|_")
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
    """Reads rare units with the grammar of the library wetext. Thread-safe.

    The grammar is loaded at the first use (0.3 s). A lock protects the grammar, because wetext does not document
    whether threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wetext: WetextNormalizer | None = None
        self.name_unit = lru_cache(maxsize=512)(self._name_unit)

    def warm(self) -> None:
        """Load wetext's grammar now (0.3 s) instead of at the first use."""
        with self._lock:
            self._loaded()

    def _loaded(self) -> WetextNormalizer:
        if self._wetext is None:
            from wetext import Normalizer as WetextNormalizer  # noqa: PLC0415 - takes 0.3 s; most texts do not need it

            self._wetext = WetextNormalizer(lang="en", operator="tn")
        return self._wetext

    def _name_unit(self, symbol: str, plural: bool) -> str | None:
        """Return the name of the unit with this symbol; None if wetext does not know the symbol."""
        count, count_words = ("2", "two ") if plural else ("1", "one ")
        with self._lock:
            try:
                words = self._loaded().normalize(f"{count} {symbol}")
            except (AssertionError, RuntimeError):  # wetext raises both for symbols that it cannot parse
                return None
        name = words.removeprefix(count_words)
        is_name = (
            words.startswith(count_words) and name.isascii() and name.replace(" ", "").isalpha() and name.islower()
        )
        return name if is_name and name != symbol and len(name) > len(symbol) + 1 else None


class Normalizer:
    """Converts text to words that a voice can read. Thread-safe."""

    def __init__(self) -> None:
        self._grammar = Grammar()

    def warm(self) -> None:
        """Load wetext's grammar now (0.3 s), so that the first request with a rare unit does not wait for the load."""
        self._grammar.warm()

    def normalize(self, text: str, *, english: bool = True) -> str:
        """Convert `text` to words, with an empty line between paragraphs. Never raises.

        The result is empty only if the text contains nothing that can be spoken.

        english=False: remove only markup, link addresses and emoji. Numbers stay as digits, because the engine reads
        the digits in the language of the voice.
        """
        if _PLAIN_PROSE.fullmatch(text) and not _ABBREVIATION.search(text):
            return " ".join(text.split())
        cleaned = cleaning.clean(text)
        cleaned = markup.strip_tags(cleaned)
        if "&" in cleaned:
            cleaned = cleaning.clean(cleaning.resolve_entities(cleaned))
        spoken = self._to_words(cleaned) if english else self._strip_markup(cleaned)
        if _WORD.search(spoken):
            return spoken
        return self._name_contents(text) or spoken

    def _to_words(self, text: str) -> str:
        masks: dict[str, str] = {}

        def mask(match: re.Match[str]) -> str:
            if match[0] not in masks and len(masks) < _MAX_MASKS:
                masks[match[0]] = chr(_FIRST_MASK + len(masks))
            return masks.get(match[0], match[0])

        masked = _TAG.sub(mask, text)
        paragraphs = markup.plain_paragraphs(cleaning.drop_emoji(masked)).split("\n\n")
        spoken = "\n\n".join(filter(None, (self._paragraph_to_words(paragraph) for paragraph in paragraphs)))
        if not masks:
            return spoken
        tags = {char: tag for tag, char in masks.items()}
        return _MASKED.sub(lambda match: tags.get(match[0], ""), spoken)

    def _strip_markup(self, text: str) -> str:
        paragraphs = markup.plain_paragraphs(cleaning.drop_emoji(text)).split("\n\n")
        return "\n\n".join(filter(None, (" ".join(paragraph.split()) for paragraph in paragraphs)))

    def _paragraph_to_words(self, text: str) -> str:
        text = rules.apply_rules(SpannedText(_SPACES.sub(" ", text)), self._grammar.name_unit).text
        text = _DASH_END.sub("...", text)
        text = _JOINING_DASH.sub("-", text)
        text = _DASH_PAUSE.sub(", ", text)
        text = _SYMBOL.sub(lambda match: tables.SYMBOLS[match[0]], text)
        text = _UNSPEAKABLE.sub(" ", text)
        text = _LEFTOVER_NUMBER.sub(lambda match: f" {number_words.integer(match[0])} ", text)
        for pattern, replacement in _REPEATED:
            text = pattern.sub(replacement, text)
        for pattern, replacement in _TIDY:
            text = pattern.sub(replacement, text)
        return text.strip()

    def _name_contents(self, text: str) -> str:
        """Return the words inside the markup of a text; if the markup has no words, the names of the text's emoji."""
        plain = re.sub(r"[^\w\s]|_", " ", cleaning.clean(text))
        words = _spell_digits(plain)
        return words if _WORD.search(words) else _spell_digits(cleaning.name_emoji(text))


def _spell_digits(text: str) -> str:
    return " ".join(re.sub(r"[0-9]+", lambda match: f" {number_words.integer(match[0])} ", text).split())
