"""Decide where a line of a caption may end.

`BreakRules` gives the cost of a break between two words. `split_long` divides a long word into parts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# White space at which a line must not end.
JOINED = "\u00a0\u202f\u2007"

_AFTER_SENTENCE = 3.0
_AFTER_CLAUSE = 6.0
_AFTER_COMMA = 8.0
_BEFORE_CONNECTION = 14.0  # cost of a break before a conjunction or a preposition
_PLAIN = 30.0
_INSIDE_WIDE = 34.0  # cost of a break between two Chinese or Japanese characters
_BEFORE_PHRASE = 16.0  # cost of a break in Japanese text between hiragana and a following character of another script
_INSIDE_PHRASE = 70.0  # cost of a break in Japanese text before hiragana
_INSIDE_NAME = 60.0
_AFTER_CONNECTION = 120.0
_INSIDE_WORD = 250.0
_AFTER_ARTICLE = 400.0

# Each language has two lists. The first list has articles and other words that belong to the next word. The second list
# has conjunctions and prepositions, before which a line may end.
_FUNCTION_WORDS = {
    "en": (
        """
        a an the my your his her its our their this these those every each no mr mrs ms dr prof st
        """,
        """
        and or but nor so yet because although though while if unless until when where which who whom whose that
        than as since whether about above across after against along among around at before behind below beneath
        beside between beyond by despite down during except for from in inside into like near of off on onto out
        outside over past through to toward towards under up upon with within without
        """,
    ),
    "de": (
        " ".join(
            f"{stem}{ending}"
            for stem in ("ein", "kein", "mein", "dein", "sein", "ihr", "unser", "eur", "dies", "jed", "welch")
            for ending in ("", "e", "en", "em", "er", "es")
        )
        + " der die das den dem des euer herr frau dr prof",
        """
        und oder aber denn sondern weil dass ob wenn als während bevor nachdem damit obwohl wie wo die an auf aus
        bei bis durch für gegen hinter in im ins mit nach neben ohne seit über um unter von vom vor wegen zu zum zur
        zwischen am
        """,
    ),
    "fr": (
        """
        le la les un une des du de l' d' mon ma mes ton ta tes son sa ses notre nos votre vos leur leurs ce cet
        cette ces m. mme
        """,
        """
        et ou mais donc or ni car que qui dont où quand si comme lorsque puisque parce à dans par pour en vers avec
        sans sous sur chez entre depuis pendant avant après contre
        """,
    ),
    "es": (
        """
        el la los las un una unos unas mi mis tu tus su sus nuestro nuestra este esta estos estas ese esa cada sr
        sra
        """,
        """
        y e o u pero sino porque que cuando como si aunque mientras donde quien a ante bajo con contra de del desde
        en entre hacia hasta para por según sin sobre tras al
        """,
    ),
    "it": (
        """
        il lo la i gli le un uno una mio mia tuo tua suo sua nostro nostra questo questa ogni sig dott
        """,
        """
        e ed o ma però perché che quando come se mentre dove chi di del della dei delle degli a al alla ai alle da
        dal dalla in nel nella con su sul sulla per tra fra
        """,
    ),
    "pt": (
        """
        o os as um uma uns umas meu minha teu tua seu sua nosso nossa este esta esse essa cada sr sra
        """,
        """
        e ou mas porque que quando como se embora enquanto onde quem de do da dos das em no na nos nas por pelo pela
        para com sem sob sobre entre até desde
        """,
    ),
    "nl": (
        """
        de het een mijn jouw zijn haar ons onze hun deze dit die dat elke elk geen dhr mevr dr
        """,
        """
        en of maar want omdat dat als toen terwijl hoewel waar wie aan achter bij binnen boven buiten door in langs
        met na naar naast om onder op over per sinds te tegen tot tussen uit van vanaf voor zonder
        """,
    ),
    "pl": (
        """
        pan pani dr
        """,
        """
        i oraz a ale lub albo że bo gdy kiedy jeśli który która które w we z ze na do od o u przy po przez dla za
        nad pod przed między bez
        """,
    ),
    "ru": (
        "",
        """
        и или но а что чтобы когда если потому как где который которая в во на с со к ко о об от до из у по за для
        при без под над перед между через
        """,
    ),
}

SENTENCE_ENDS = frozenset(".!?…。！？؟।")
_OPENERS = "([{\"'“‘«‹¿¡„‚「『（《【〈〔［｛"
CLOSERS = ")]}\"'”’»›」』）》】〉〕］｝"
# A line must not start with a character of _NOT_FIRST, and must not end with a character of _NOT_LAST.
_NOT_FIRST = frozenset(
    "。、，．・：；！？…‥」』）》】〉〕］｝”’ー々ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ％℃,.!?;:)]}»›"
)
_NOT_LAST = frozenset("「『（《【〈〔［｛“‘（([{«‹￥＄$£€")
_WIDE_STOPS = frozenset("。！？…")
_WIDE_PAUSES = frozenset("、，；：")
_WORD_BREAKS = frozenset("-/\\_.,:;?&=+|@#–—")


def char_width(text: str) -> int:
    """Return the width of a text in narrow characters. A wide character counts as two, and combining and invisible
    characters count as zero.
    """
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(char) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in text
    )


class BreakRules:
    """The costs of breaks in a text of one language."""

    def __init__(self, language: str) -> None:
        """language: BCP 47 tag. For a language without a list of words, only the rules for punctuation are used."""
        code = language.lower().replace("_", "-").partition("-")[0]
        before, connections = _FUNCTION_WORDS.get(code, ("", ""))
        self._belongs_to_next = frozenset(before.split())
        self._connections = frozenset(connections.split())
        self._names = code != "de"  # in German, every noun has a capital letter, not only names

    def cost(self, before: str, after: str, *, joined: bool) -> float:
        """Return the cost of a break between two words. joined: True = the words have no space between them."""
        if joined:
            return self._cost_inside(before, after)
        bare_before = before.strip(_OPENERS + CLOSERS + "*_").lower()
        if bare_before.rstrip(".") in self._belongs_to_next or bare_before in self._belongs_to_next:
            return _AFTER_ARTICLE
        if before[-1] in _OPENERS and before[-1] not in CLOSERS:
            return _AFTER_ARTICLE
        stop = before.rstrip(CLOSERS + "*_")[-1:]
        if stop and stop in SENTENCE_ENDS:
            return _AFTER_SENTENCE
        if (stop and stop in ";:—–；：؛") or bare_before == "-":
            return _AFTER_CLAUSE
        if stop and stop in ",，、،":
            return _AFTER_COMMA
        if after[0] in "—–-" and len(after) == 1:
            return _INSIDE_WORD
        if bare_before in self._connections:
            return _AFTER_CONNECTION
        bare_after = after.strip(_OPENERS + CLOSERS + "*_.,;:!?…").lower()
        if bare_after in self._connections or after[0] in "([{«“„":
            return _BEFORE_CONNECTION
        if bare_before[-1:].isdigit():
            return _INSIDE_NAME  # a number and its unit, such as "5 km"
        if self._names and before[0].isupper() and after[0].isupper():
            return _INSIDE_NAME
        return _PLAIN

    def _cost_inside(self, before: str, after: str) -> float:
        if before[-1] in _NOT_LAST or after[0] in _NOT_FIRST:
            return _AFTER_ARTICLE
        if before[-1] in _WIDE_STOPS:
            return _AFTER_SENTENCE
        if before[-1] in _WIDE_PAUSES:
            return _AFTER_COMMA
        if _is_hiragana(before[-1]) and _breaks_anywhere(after[0]) and not _is_hiragana(after[0]):
            return _BEFORE_PHRASE
        if _is_hiragana(after[0]):
            return _INSIDE_PHRASE
        return _INSIDE_WIDE if _breaks_anywhere(before[-1]) or _breaks_anywhere(after[0]) else _INSIDE_WORD


def split_long(word: str, width: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a word as (start, end). A line may break between two parts.

    A word in a script without spaces (Chinese, Japanese, Thai) has many parts. A word in another script is divided only
    if it is wider than `width`: after a hyphen, a slash or a similar character, or where it reaches `width` if it has
    no such character.
    """
    if word.isascii() and len(word) <= width:
        yield 0, len(word)
        return
    clusters = [match.span() for match in _CLUSTER.finditer(word)]
    long = char_width(word) > width
    start = 0
    since = 0  # the width of the current part so far
    mark = 0  # the last index in the current part at which the word may be divided
    for place, (first, end) in enumerate(clusters):
        if start < first:
            before = word[first - 1]
            wide = (_breaks_anywhere(before) or _breaks_anywhere(word[first])) and not (
                before in _NOT_LAST or word[first] in _NOT_FIRST or before in JOINED or word[first] in JOINED
            )
            if wide:
                yield start, first
                start, since, mark = first, 0, 0
        size = char_width(word[first:end])
        if long and since + size > width and start < first:
            cut = mark if mark > start else first
            yield start, cut
            since = char_width(word[cut:first])
            start, mark = cut, 0
        since += size
        if word[end - 1] in _WORD_BREAKS and place + 1 < len(clusters):
            mark = end
    yield start, len(word)


# Marks that belong to the previous character, such as combining marks and variation selectors. `_CLUSTER` matches a
# character with its marks, several emoji that are joined to one emoji, or a flag.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0903"
    "\u093a-\u094f\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a4d\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b4d"
    "\u0bbe-\u0bcd\u0c00-\u0c04\u0c3e-\u0c4d\u0c81-\u0c83\u0cbc-\u0ccd\u0d00-\u0d03\u0d3b-\u0d4d\u0e31"
    "\u0e33-\u0e3a\u0e45\u0e47-\u0e4e\u0eb1\u0eb3-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u1056-\u1059\u17b4-\u17d3"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u200d\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f\ufe20-\ufe2f\U0001f3fb-\U0001f3ff"
    "\U000e0020-\U000e007f"
)
_LEADING_VOWELS = "\u0e40-\u0e44\u0ec0-\u0ec4"  # Thai and Lao vowels that are written before their consonant
_CLUSTER = re.compile(
    rf"[\U0001f1e6-\U0001f1ff]{{2}}|[{_LEADING_VOWELS}]*(?:.[{_MARKS}]*(?<=\u200d))*.[{_MARKS}]*|.", re.DOTALL
)  # fmt: skip


def _breaks_anywhere(char: str) -> bool:
    """Return whether a line may break before and after a character, because its script has no spaces between words."""
    code = ord(char)
    if code < 0x0E00:
        return False
    if code < 0x0F00 or 0x1000 <= code < 0x10A0 or 0x1780 <= code < 0x1800:  # Thai, Lao, Burmese, Khmer
        return True
    return unicodedata.east_asian_width(char) in "WF" and not _is_hangul(char)


def _is_hangul(char: str) -> bool:
    return "\uac00" <= char <= "\ud7af" or "\u1100" <= char <= "\u11ff" or "\u3130" <= char <= "\u318f"


def _is_hiragana(char: str) -> bool:
    return "\u3040" <= char <= "\u309f"
