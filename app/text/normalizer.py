"""Text normalisation: convert written English to words that a voice reads correctly.

`Normalizer.spoken` runs several stages: `machine_text` removes text that programs write for programs, `cleaning` makes
characters uniform, `markup` removes Markdown and HTML, `tex` reads formulas, and `rules` writes numbers and
abbreviations as words. Through all stages, the text is a `SpannedText`: each character knows from which characters of
the caller's text it comes. The same text always gives the same words. The module `script` reads speaker tags and pause
tags. The module `sentences` splits a text into sentences.

The library wetext is used only to read units that are not in `tables.UNITS` ("9 rad/s"). On whole sentences wetext
misreads amounts, versions and decades, drops final full stops, fails on brackets, and takes 2 ms. The package `rules`
takes less than 1 ms.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from app.text import cleaning, machine_text, markup, number_words, rules, tables, tex
from app.text.flags import flag_names
from app.text.spans import SpannedText, join

if TYPE_CHECKING:
    from wetext import Normalizer as WetextNormalizer

    from app.text.pronunciations import Lexicon

# Speaker tags and pause tags. While the rules run, a private-use character replaces each tag.
_TAG = re.compile(r"\[(?:[sS][0-9]{1,2}|[pP][aA][uU][sS][eE]\b[^\[\]\n]{0,40})\]")
_FIRST_MASK, _MAX_MASKS = 0xE000, 0x1800  # the last mask is U+F7FF, because the rules use U+F800 and later characters
_MASKED = re.compile("[\ue000-\uf8ff]")

# A text of letters and punctuation only. If `_ABBREVIATION` finds nothing in such a text, no rule changes the text, and
# `spoken` only joins repeated spaces.
_PLAIN_PROSE = re.compile(r"[A-Za-z,;:!?'\" ]*(?:[.](?=[\s\"']|$)[A-Za-z,;:!?'\" ]*)*")
_ABBREVIATION = re.compile(
    r"\b(?:[A-Za-z]{1,6}\.|[IVXL]{1,7}|Mr|Mrs|Ms|Dr|Prof|St|vs|Vs)(?=\W|$)|[:;=][)(DP]|[.,;:!?]{2}"
    r"|(?<!\S):[a-z]|assistantfinal|\S{41}|'{2}|[a-z]\.[A-Za-z]{2}"
    # Small Roman numerals, years and centuries in Roman numerals, and a hardware address that consists of letters only.
    r"|\b(?:[Ss]cene|[Aa]ct|[Pp]art|[Cc]hapter|[Bb]ook|[Ss]ection|[Vv]olume) [ivxl]+\b|[IVX]th\b|\bM[MDCLXVI]{4}"
    r"|[a-fA-F]{2}(?::[a-fA-F]{2}){5}"
)

_DASHES = frozenset("-–—")
_DASH_PAUSE = re.compile(r"(?:(?<=\S)|(?<! ) +)(?:[—–]+|(?<=[ \w])-{2,}(?=[ \w])|(?<= )-(?= ))\s*")
_JOINING_DASH = re.compile(r"(?<=[a-z])–(?=[A-Z])")  # for example "the Paris–London train"
_DASH_END = re.compile(r" ?(?:(?<![—–])[—–]+|(?<!-)-{2,})(?=[\"')\]]*\s*$|\")")
# Repeated marks. An entry has three parts: a text that must be in the paragraph, the pattern, and the replacement. The
# first part saves time.
_REPEATED = (
    ("..", re.compile(r"\.{3,}"), "..."),
    (". .", re.compile(r"(?:\. ){2,}\.(?!\w)"), "..."),
    ("!!", re.compile(r"!{2,}"), "!"),
    ("??", re.compile(r"\?{2,}"), "?"),
    ("!", re.compile(r"(?:\?!|!\?)[!?]*"), "?!"),
    (",", re.compile(r",(?:\s*,)+"), ","),
    (";;", re.compile(r";{2,}"), ";"),
    ("::", re.compile(r":{2,}"), ":"),
    ("..", re.compile(r"(?<!\.)\.\.(?!\.)"), "."),
)
_LEFTOVER_NUMBER = re.compile(r"[0-9]{1,40}")
_SYMBOL = re.compile("|".join(map(re.escape, sorted(tables.SYMBOLS, key=len, reverse=True))))
_SYMBOL_CHARS = frozenset("".join(tables.SYMBOLS)) - {"!"}  # each symbol contains at least one of these characters
# Matches each character that must not reach a model. Letters and digits of any script, spaces, punctuation and brackets
# (for tags) are allowed.
_UNSPEAKABLE = re.compile(r"[^\w\s.,;:!?'\"()\[\]\-%。，、！？；：「」『』（）…·\ue000-\uf8ff]|_")
_TIDY = (
    (re.compile(r"\(\s*(?:[.,;:]\s*)?\)|\[\s*\]"), " "),
    (re.compile(r"[^\S\n]{2,}|[^\S\n ]"), " "),
    (re.compile(r" ?\n ?"), "\n"),
    (re.compile(r" (?=[.,;:!?)\]](?![\w.]))"), ""),
    (re.compile(r"([(\[]) +"), r"\1"),
    (re.compile(r"(?<=[.!?;:,])(?<!,,),+(?=\s|$)"), ""),
    (re.compile(r"(?<![,;:])[,;:]+(?=[.!?](?:\s|$))"), ""),
    (re.compile(r"(?m)^[,;:.!?\-] ?(?=\w)"), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
)
_SPACES = re.compile(r"  +")
_WORD = re.compile(r"[^\W_]")
_NO_WORD = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"[0-9]+")


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
            except (AssertionError, RuntimeError):  # wetext raises both errors for symbols that it cannot parse
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
        """Return the text of `spoken`: the words of a text, with an empty line between paragraphs. Never raises."""
        return self.spoken(SpannedText(text), english=english).text

    def spoken(
        self,
        text: SpannedText,
        *,
        english: bool = True,
        language: str = "",
        lexicon: Lexicon | None = None,
        is_window: bool = False,
    ) -> SpannedText:
        """Convert `text` to words with their spans, with an empty line between paragraphs. Never raises.

        The result is empty if the text contains only layout: tags, quotes, dashes, dots, or text for machines.

        english=False: remove only markup, TeX marks, link addresses and emoji. Numbers stay as digits, because the
        engine reads the digits in the language of the voice. language: the BCP 47 tag of that language.

        lexicon: how some words are pronounced. A respelling with digits or symbols is normalised without the text
        around it; other respellings are spoken as written.

        is_window: True = the text is one window of a longer text. If a whole text has no words, the names of its flags
        and emoji are spoken. In a window these names are not spoken, because other windows may contain words.
        """
        is_plain = _PLAIN_PROSE.fullmatch(text.text) and not _ABBREVIATION.search(text.text)
        if is_plain and (lexicon is None or not lexicon.matches(text.text)):
            return text.single_spaced()
        human = machine_text.remove_machine_text(text)
        announcement = _ANNOUNCEMENTS.get("en" if english else language.lower()[:2], "")
        cleaned = cleaning.decode_percent_codes(human)
        cleaned = cleaning.drop_faces(cleaning.clean(machine_text.announce_codes(cleaned, announcement)))
        cleaned = markup.strip_tags(cleaned)
        if "&" in cleaned.text:
            cleaned = cleaning.clean(cleaning.resolve_entities(cleaned))
        formulas = tex.replace_tex(cleaned, english=english)
        masked, masks = (formulas, None) if lexicon is None else lexicon.masked(formulas)
        spoken = self._to_words(masked) if english else self._strip_markup(masked)
        if masks is not None:
            spoken = masks.revealed(spoken, lambda say: self.normalize(say, english=english))
        if is_window or _WORD.search(spoken.text):
            return spoken
        return self._name_contents(cleaned, human.text) or spoken

    def _to_words(self, text: SpannedText) -> SpannedText:
        masks: dict[str, str] = {}

        def mask(match: re.Match[str]) -> str:
            if match[0] not in masks and len(masks) < _MAX_MASKS:
                masks[match[0]] = chr(_FIRST_MASK + len(masks))
            return masks.get(match[0], match[0])

        paragraphs = markup.plain_paragraphs(cleaning.drop_emoji(cleaning.read_signs(text.sub(_TAG, mask))))
        spoken = join(filter(None, map(self._paragraph_to_words, paragraphs)), "\n\n")
        if not masks:
            return spoken
        tags = {char: tag for tag, char in masks.items()}
        return spoken.sub(_MASKED, lambda match: tags.get(match[0], ""))

    def _strip_markup(self, text: SpannedText) -> SpannedText:
        paragraphs = markup.plain_paragraphs(cleaning.drop_emoji(text), english=False)
        return join(filter(None, (paragraph.single_spaced() for paragraph in paragraphs)), "\n\n")

    def _paragraph_to_words(self, text: SpannedText) -> SpannedText:
        text = rules.apply_rules(text.sub(_SPACES, " "), self._grammar.name_unit)
        if not _DASHES.isdisjoint(text.text):
            text = text.sub(_DASH_END, "...").sub(_JOINING_DASH, "-").sub(_DASH_PAUSE, ", ")
        if not _SYMBOL_CHARS.isdisjoint(text.text):
            text = text.sub(_SYMBOL, lambda match: tables.SYMBOLS[match[0]])
        text = text.sub(_UNSPEAKABLE, _mark_or_space)
        text = text.sub(_LEFTOVER_NUMBER, lambda match: f" {number_words.integer(match[0])} ")
        for marks, pattern, replacement in _REPEATED:
            if marks in text.text:
                text = text.sub(pattern, replacement)
        for pattern, replacement in _TIDY:
            text = text.sub(pattern, replacement)
        return text.strip()

    def _name_contents(self, text: SpannedText, written: str) -> SpannedText:
        """Return the words inside the markup of a text; if the markup has no words, the names of its flags and emoji.

        written: the text before cleaning. Some flags consist of invisible characters, which cleaning removes.
        """
        plain = cleaning.drop_emoji(text).sub(_NO_WORD, " ")
        if words := _spell_digits(plain):
            return words
        names = flag_names(written) or cleaning.name_emoji(text.text)
        return _spell_digits(SpannedText.of(names, text.span))


# Language -> the words that replace a long code.
_ANNOUNCEMENTS = {
    "en": "a long code", "de": "ein langer Code", "fr": "un long code", "es": "un código largo",
    "it": "un codice lungo",
    "pt": "um código longo", "nl": "een lange code", "sv": "en lång kod", "da": "en lang kode", "nb": "en lang kode",
    "pl": "długi kod", "cs": "dlouhý kód", "ru": "длинный код", "uk": "довгий код", "tr": "uzun bir kod",
    "ja": "長いコード", "zh": "一段长代码", "cm": "一段长代码", "ko": "긴 코드", "hi": "एक लंबा कोड", "ar": "رمز طويل",
}  # fmt: skip


def _mark_or_space(match: re.Match[str]) -> str:
    """Return a combining mark as it is, because its letter needs it, and a space for any other character."""
    return match[0] if unicodedata.category(match[0])[0] == "M" and match[0] != "\ufe0f" else " "


def _spell_digits(text: SpannedText) -> SpannedText:
    return text.sub(_DIGITS, lambda match: f" {number_words.integer(match[0])} ").single_spaced()
