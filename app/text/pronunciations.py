"""The pronunciation dictionary: replace words and phrases by respellings that a voice reads correctly.

A `Lexicon` searches a text for the words of its entries. Only whole words match: a word does not match if a letter,
digit or combining mark of any script is directly before or after it. Scripts that are written without spaces, such as
Chinese, are an exception: there, a word also matches directly beside other characters. The longest match wins. The
search takes linear time: it compares tokens along a trie.

The normaliser uses two steps. `Lexicon.masked` replaces each match by a made-up word that no text rule changes. After
the rules, `Masks.revealed` replaces the made-up words by their spoken forms. So the text rules see a word in each place
("Dr." before a name is still read "Doctor"), and never change a respelling.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from app.errors import InvalidValue
from app.text.nonverbal import NON_VERBAL_SOUNDS
from app.text.rules import net
from app.text.spans import SpannedText
from app.types import LexiconEntry

MAX_ENTRIES = 10_000  # the largest number of entries in one list
MAX_CHARS = 200  # the largest number of characters in each of `word`, `say` and `ipa`

# Scripts that are written without spaces between words, and Korean, where endings follow a word directly.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u318f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)


def _mark_ranges() -> str:
    """Return all combining marks as the content of a character class of a regular expression."""
    ranges: list[list[int]] = []
    for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)):
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


_MARKS = _mark_ranges()
_WORD = rf"[^\W_{_UNSPACED}{_MARKS}][^\W_{_UNSPACED}]*(?:[{_MARKS}]+[^\W_{_UNSPACED}]*)*"
_OTHER = rf"[{_UNSPACED}][{_MARKS}]*|\S[{_MARKS}]*"
_TOKEN = re.compile(rf"(?P<space>\s+)|{_WORD}|{_OTHER}")
_VISIBLE_TOKEN = re.compile(f"{_WORD}|{_OTHER}")
# Characters with which the normaliser can form words that the text does not contain: markup, TeX, character references,
# compatibility forms, and characters that it removes.
_FORMS_WORDS = re.compile(
    "[\\\\$&<\x00-\x08\x0e-\x1f\x7f\u00ad\u0300-\u036f\u0600-\u0605\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u2100-\u218f\u2460-\u24ff\ud800-\uf8ff\ufb00-\ufb06\ufe00-\ufe0f\ufeff\uff01-\uffff\U0001d400-\U0001d7ff\U000e0000-\U0010ffff]"
)
_WORD_CHARACTER = re.compile(rf"[^\W_{_UNSPACED}]|[{_MARKS}]")
_SAME = str.maketrans({**dict.fromkeys("\u2019\u2018\u02bc\uff07", "'"), **dict.fromkeys("\u2010\u2011\uff0d", "-")})

_APOSTROPHES = "'\u2019"
_ENDINGS = frozenset(("s", "d", "ll", "ve", "re"))  # endings that may follow a word after an apostrophe: "Nguyen's"
# Words that lose a letter before the next word, as in "l'API". The word after such a word counts as a whole word.
_ELIDED = frozenset(
    "l d j m n s t c qu jusqu lorsqu puisqu quoiqu quelqu dell all nell sull dall coll un quest quell gl".split()
)
_IN_NUMBER = ".,:/-"
_PLAIN_SAY = re.compile(rf"(?:[^\W\d_]|[{_MARKS}]|[ '.,;:!?\u2019-])*")
_SPOKEN = re.compile(r"[^\W_]")

_CODE_FENCE = re.compile(r"^[ \t]{0,8}(`{3,}|~{3,})", re.MULTILINE)
_PROTECTED = tuple(
    re.compile(pattern) if isinstance(pattern, str) else pattern
    for pattern in (
        r"(`{1,2})[^`\n]+\1",  # code in a line
        net.URL,
        net.EMAIL,
        net.DOMAIN,
        net.FILE,
        net.PATH,
        net.WINDOWS_PATH,
        r"data:[\w.+-]{1,40}/[\w.+-]{1,60}[;,]\S+",
        r"\]\([^()\s]*\)",  # the target of a link
        r"</?[A-Za-z][^<>]{0,600}>",
        r"\[[^\[\]\n]{1,40}\](?!\()",  # a tag for a speaker, a pause or a sound
        r"(?i)\((?:" + "|".join(sorted(NON_VERBAL_SOUNDS)) + r")\)",
    )
)


def check_entry(word: str, say: str | None, *, case_sensitive: bool = False, ipa: str | None = None) -> LexiconEntry:
    """Return an entry with cleaned texts.

    Raises InvalidValue if a text can't be used. The `param` of the error is `word`, `say` or `ipa`.
    """
    word = _clean(word, "word")
    if not word:
        raise InvalidValue("`word` is empty. Send the word or phrase whose pronunciation you set.", param="word")
    if not _SPOKEN.search(word) and not any(unicodedata.category(char)[0] in "LNS" or char in "&@#%*" for char in word):
        raise InvalidValue(f"`word` is {word!r}, which has no letter, digit or symbol.", param="word")
    say = _clean(say or "", "say")
    ipa = _clean(ipa or "", "ipa").strip("/[] ") or None
    if ipa is not None and not all(_is_ipa(char) for char in ipa):
        wrong = next(char for char in ipa if not _is_ipa(char))
        raise InvalidValue(
            f"`ipa` contains {wrong!r}, which is not a letter of the International Phonetic Alphabet. Send a "
            "pronunciation such as `\u02c8nw\u026an`, or use `say`.",
            param="ipa",
        )
    if ipa is None and not _SPOKEN.search(say):
        raise InvalidValue(
            "`say` contains nothing that can be spoken. Send the spelling that a voice reads correctly.", param="say"
        )
    return LexiconEntry(word, say, case_sensitive, ipa)


def _clean(text: str, param: str) -> str:
    cleaned = " ".join(unicodedata.normalize("NFC", text).split())
    if len(cleaned) > MAX_CHARS:
        raise InvalidValue(f"`{param}` has {len(cleaned)} characters. Use at most {MAX_CHARS}.", param=param)
    if not (cleaned.isascii() and cleaned.isprintable()) and any(
        unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") for char in cleaned
    ):
        raise InvalidValue(f"`{param}` contains control characters. Use plain text.", param=param)
    return cleaned


def _is_ipa(char: str) -> bool:
    return unicodedata.category(char) in ("Ll", "Lm", "Lo", "Mn", "Sk") or char in " .|'-:\u2016\u203f\u02c8\u02cc"


def key_of(entry: LexiconEntry) -> tuple[bool, str]:
    """Return the key that must be unique in a list: the word of the entry, in lower case unless the entry is
    case-sensitive.
    """
    return entry.case_sensitive, _exact(entry.word) if entry.case_sensitive else folded(entry.word)


def check_distinct(entries: Sequence[LexiconEntry]) -> None:
    """Check that no two entries have the same word.

    Raises InvalidValue if an entry has the word of an earlier entry. The `param` of the error is `N.word`, where N is
    the index of the later entry.
    """
    places: dict[tuple[bool, str], int] = {}
    for place, entry in enumerate(entries):
        first = places.setdefault(key_of(entry), place)
        if first != place:
            raise InvalidValue(
                f"The entries {first} and {place} have the same word {entry.word!r}. Remove one of them.",
                param=f"{place}.word",
            )


def _exact(text: str) -> str:
    """Return the normal form of a text for case-sensitive comparisons."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(_SAME))
    return " ".join(text.split()) if " " in text or not text.isprintable() else text


def folded(text: str) -> str:
    """Return the normal form of a text for case-insensitive comparisons."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", _exact(text).casefold())


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the tokens of a text: (text for comparisons, start, end). A run of white space is one token: a space,
    or two line breaks if the run contains a blank line.
    """
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "space":
            yield " " if match[0].count("\n") < 2 else "\n\n", match.start(), match.end()
        else:
            yield folded(match[0]), match.start(), match.end()


class _Node:
    """A place in the trie of tokens."""

    __slots__ = ("any_case", "exact", "next")

    def __init__(self) -> None:
        self.next: dict[str, _Node] = {}
        self.exact: dict[str, LexiconEntry] = {}  # case-sensitive entries that end here
        self.any_case: LexiconEntry | None = None

    def entry(self, text: str) -> LexiconEntry | None:
        """Return the entry whose word ends at this place of the trie and matches `text`; None if no entry does."""
        return (self.exact.get(_exact(text)) if self.exact else None) or self.any_case


class WordList:
    """The entries of one list, prepared for the search. Immutable."""

    def __init__(self, entries: Iterable[LexiconEntry] = ()) -> None:
        """entries: if two entries have the same word, the later one is used."""
        self.entries = tuple({key_of(entry): entry for entry in entries}.values())
        self._root = _Node()
        self._needs: dict[str, list[tuple[frozenset[str], LexiconEntry]]] = {}
        for entry in self.entries:
            node = self._root
            tokens = [token for token, _, _ in _tokens(entry.word)]
            for token in tokens:
                node = node.next.setdefault(token, _Node())
            if entry.case_sensitive:
                node.exact[_exact(entry.word)] = entry
            else:
                node.any_case = entry
            self._needs.setdefault(tokens[0], []).append((frozenset(tokens) - {" "}, entry))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def candidates(self, words: frozenset[str]) -> list[LexiconEntry]:
        """Return the entries whose tokens are all in `words`, the tokens of a text.

        An entry with a token that is not in `words` can't match in this text.
        """
        firsts = words & self._needs.keys() if len(words) < len(self._needs) else self._needs.keys() & words
        return [entry for first in firsts for needs, entry in self._needs[first] if needs <= words]

    def longest(self, tokens: Sequence[tuple[str, int, int]], at: int, text: str) -> Match | None:
        """Return the longest match that begins at `tokens[at]`; None if no entry matches there."""
        node = self._root
        found: Match | None = None
        for place in range(at, len(tokens)):
            token, _, end = tokens[place]
            following = node.next.get(token)
            if (following is None or not following.next) and token[-1:] == "s":
                found = self._plural(node, tokens, at, place, text) or found
            if following is None:
                break
            node = following
            if node.any_case is not None or node.exact:
                entry = node.entry(text[tokens[at][1] : end])
                if entry is not None and _is_whole(text, tokens[at][1], end):
                    found = Match(tokens[at][1], end, entry, place + 1)
        return found

    def _plural(
        self, node: _Node, tokens: Sequence[tuple[str, int, int]], at: int, place: int, text: str
    ) -> Match | None:
        """Return a match of an abbreviation in the plural: "GIFs" for the word "GIF"."""
        token, start, end = tokens[place]
        singular = node.next.get(token[:-1])
        if singular is None or text[end - 1] != "s" or end - start < 3 or not text[start : end - 1].isupper():
            return None
        entry = singular.entry(text[tokens[at][1] : end - 1])
        if entry is None or not _is_whole(text, tokens[at][1], end):
            return None
        return Match(tokens[at][1], end, entry, place + 1, "s")


@dataclass(frozen=True, slots=True)
class Match:
    """An entry whose word is the part `text[start:end]` of a text."""

    start: int
    end: int
    entry: LexiconEntry
    next_token: int  # the index of the token after the match
    ending: str = ""  # the ending of the match, such as "s", which is spoken after the entry

    @property
    def length(self) -> int:
        return self.end - self.start


class Lexicon:
    """The dictionary entries that apply to one text: entries of the request, of the voice and of the server.
    Immutable.
    """

    def __init__(self, lists: Iterable[WordList] = (), *, ipa: frozenset[str] = frozenset()) -> None:
        """lists: an entry of an earlier list has priority over an entry of a later list. ipa: the IPA symbols that the
        engine can speak.
        """
        self._lists = tuple(words for words in lists if words)
        self.ipa = ipa

    def __bool__(self) -> bool:
        return bool(self._lists)

    def candidates(self, text: str) -> list[LexiconEntry]:
        """Return all entries that may match in a text, in the order of their lists. The result can also have entries
        that do not match.
        """
        if not self._lists:
            return []
        normal = text if text.isascii() else unicodedata.normalize("NFC", text)
        if _FORMS_WORDS.search(normal):
            return [entry for each in self._lists for entry in each.entries]
        words = frozenset(map(folded, set(_VISIBLE_TOKEN.findall(normal))))
        plurals = {word[:-1] for word in words if word[-1:] == "s"}
        return [entry for each in self._lists for entry in each.candidates(words | plurals)]

    def digest(self, entries: Iterable[LexiconEntry]) -> str:
        """Return the SHA-256 (hex) of entries that `candidates` has returned. IPA that the engine can't speak is left
        out.

        An entry of an earlier list hides later entries with the same word. So equal pronunciations give the same
        digest, whether they come from the request or from a file.
        """
        used: dict[tuple[bool, str], LexiconEntry] = {}
        for entry in entries:
            used.setdefault(key_of(entry), entry)
        # Sort by word. Entries with the same word keep the order of their lists, because an earlier list has priority.
        values = [self._values(entry) for entry in sorted(used.values(), key=lambda entry: folded(entry.word))]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def _values(self, entry: LexiconEntry) -> tuple[str, str, bool, str]:
        return entry.word, entry.say, entry.case_sensitive, (entry.ipa or "") if self.speaks_ipa(entry) else ""

    def speaks_ipa(self, entry: LexiconEntry) -> bool:
        """Return whether the engine speaks the IPA of an entry. If it does not, `say` is spoken."""
        return entry.ipa is not None and not unknown_symbol(entry.ipa, self.ipa)

    def usable(self, entry: LexiconEntry) -> bool:
        """Return whether an entry has a pronunciation that the engine can speak: `say`, or IPA with known symbols."""
        return bool(entry.say) or self.speaks_ipa(entry)

    def matches(self, text: str) -> list[Match]:
        """Return the matches in a text, in order. Matches do not overlap."""
        if not self._lists:
            return []
        tokens = list(_tokens(text))
        found: list[Match] = []
        protected: _Regions | None = None
        at = 0
        while at < len(tokens):
            best: Match | None = None
            for words in self._lists:
                match = words.longest(tokens, at, text)
                if match is not None and (best is None or match.length > best.length):
                    best = match
            if best is not None and self.usable(best.entry):
                protected = protected or _Regions(text)
                if not protected.contain(best.start, best.end):
                    found.append(best)
                    at = best.next_token
                    continue
            at += 1
        return found

    def masked(self, text: SpannedText) -> tuple[SpannedText, Masks | None]:
        """Return the text with a made-up word in place of each match, and a `Masks` object.

        The object keeps, for each made-up word, the match that it replaces. If nothing matches, return the text
        itself and None.
        """
        found = self.matches(text.text)
        if not found:
            return text, None
        masks = Masks(text.text, self.speaks_ipa)
        edits: list[tuple[int, int, str]] = []
        for match in found:
            word = masks.add(text.text, match)
            if edits and edits[-1][1] == match.start and match.entry.say[:1].isascii():
                word = f" {word}"
            edits.append((match.start, match.end, word))
        return text.edited(edits), masks

    def replaced(self, text: SpannedText) -> SpannedText:
        """Return the text with each match replaced by its spoken form, exactly as the entry states it."""
        masked, masks = self.masked(text)
        return masked if masks is None else masks.revealed(masked, lambda say: say)


def _is_whole(text: str, start: int, end: int) -> bool:
    """Return whether `text[start:end]` is not a part of a longer word, abbreviation or number."""
    first, last = text[start], text[end - 1]
    before, after = text[start - 1 : start], text[end : end + 1]
    if first.isalnum() and before and before in _APOSTROPHES and _WORD_CHARACTER.match(text[start - 2 : start - 1]):
        word_start = start - 1
        while word_start > max(0, start - 9) and text[word_start - 1].isalpha():
            word_start -= 1
        if text[word_start : start - 1].lower() not in _ELIDED:
            return False
    if last.isalnum() and after and after in _APOSTROPHES and _WORD_CHARACTER.match(text[end + 1 : end + 2]):
        ending = _TOKEN.match(text, end + 1)
        if ending is None or ending[0].lower() not in _ENDINGS:
            return False
    if first.isdigit() and before and before in _IN_NUMBER and text[start - 2 : start - 1].isdigit():
        return False
    if last.isdigit() and after and after in _IN_NUMBER and text[end + 1 : end + 2].isdigit():
        return False
    if last.isalpha() and after and unicodedata.category(after) == "Sc":  # "US$5" is an amount
        return False
    return not (last == "." and after.isalpha())


class _Regions:
    """The parts of a text in which no word is replaced: code, web and mail addresses, file names and tags."""

    def __init__(self, text: str) -> None:
        regions = list(_fenced(text))
        for pattern in _PROTECTED:
            regions += (match.span() for match in pattern.finditer(text))
        regions.sort()
        self._starts: list[int] = []
        # For each region: the region that ends last, among this region and all regions that start before it.
        self._longest: list[tuple[int, int]] = []
        for start, end in regions:
            longest = (start, end)
            if self._longest and self._longest[-1][1] >= end:
                longest = self._longest[-1]
            self._starts.append(start)
            self._longest.append(longest)

    def contain(self, start: int, end: int) -> bool:
        """Return whether `text[start:end]` lies inside a region, and is not the whole region."""
        place = bisect_right(self._starts, start) - 1
        if place < 0:
            return False
        region_start, region_end = self._longest[place]
        return end <= region_end and (region_start, region_end) != (start, end)


def _fenced(text: str) -> Iterator[tuple[int, int]]:
    """Yield the code blocks of a text. A block without an end reaches to the end of the text."""
    opened: re.Match[str] | None = None
    for fence in _CODE_FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1][0] == opened[1][0] and len(fence[1]) >= len(opened[1]):
            yield opened.start(), fence.end()
            opened = None
    if opened is not None:
        yield opened.start(), len(text)


_LETTERS = "bfgkpw"  # letters of the made-up words; no unit, Roman numeral or abbreviation consists of these letters


@dataclass(slots=True)
class Masks:
    """The made-up words of one text, and the matches that they stand for."""

    text: str = field(repr=False)
    speaks_ipa: Callable[[LexiconEntry], bool]
    _prefix: str = ""
    _numbers: dict[tuple[LexiconEntry, str, str], int] = field(default_factory=dict)
    _sayings: list[tuple[LexiconEntry, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lower = self.text.lower()
        self._prefix = next(f"zq{letters}" for letters in _prefixes() if f"zq{letters}" not in lower)

    def add(self, text: str, match: Match) -> str:
        """Return the made-up word for a match. If the word in the text begins with a capital letter, the made-up word
        also begins with a capital letter.
        """
        written = text[match.start : match.end - len(match.ending)]
        saying = (match.entry, written, match.ending)
        number = self._numbers.setdefault(saying, len(self._sayings))
        if number == len(self._sayings):
            self._sayings.append(saying)
        word = f"{self._prefix}{_in_letters(number)}q"
        if written[:1].isupper() or not written[:1].isalpha():
            word = word.capitalize()
        before = " " if _WORD_CHARACTER.match(text[match.start - 1 : match.start]) else ""
        after = " " if _WORD_CHARACTER.match(text[match.end : match.end + 1]) else ""
        return f"{before}{word}{after}"

    def revealed(self, text: SpannedText, normalize: Callable[[str], str]) -> SpannedText:
        """Return the text with each made-up word replaced by its spoken form.

        normalize: is called for a respelling that contains digits or symbols. A respelling of letters only is spoken as
        written.
        """
        spoken: dict[int, str] = {}

        def reveal(match: re.Match[str]) -> str:
            number = _from_letters(match[1].lower())
            if number not in spoken:
                spoken[number] = self._spoken(number, normalize)
            return spoken[number]

        return text.sub(re.compile(f"{self._prefix}([{_LETTERS}]+)q", re.IGNORECASE), reveal)

    def _spoken(self, number: int, normalize: Callable[[str], str]) -> str:
        if number >= len(self._sayings):
            return ""
        entry, written, ending = self._sayings[number]
        say = entry.say or written
        if self.speaks_ipa(entry) and entry.ipa:
            ipa = entry.ipa + (_plural_ipa(entry.ipa) if ending else "")
            return _with_ipa(say + ending, ipa)
        if not _PLAIN_SAY.fullmatch(say):
            normal = normalize(say) or say
            say = normal[:1].lower() + normal[1:] if say[0].isdigit() else normal
        if ending:
            say += "es" if say.lower().endswith(("s", "x", "z", "sh", "ch")) else ending
        return say


# A word with a pronunciation in IPA is marked in the text until the text has been split into sentences. A marked word
# consists of: start, the IPA as private-use characters, separator, word, end.
_START, _SEPARATOR, _END = "\ue000", "\ue001", "\ue002"
_IPA_OFFSET = 0xF0000
_WITH_IPA = re.compile(
    f"{_START}([\U000f0000-\U000ffffd]*){_SEPARATOR}([^{_START}{_END}]*){_END}(?:'(s|d|ll|ve|re)(?![^\\W_]))?"
)
_STRAY_MARKS = re.compile(f"[{_START}{_SEPARATOR}{_END}\U000f0000-\U000ffffd]")
_ENDINGS_IPA = {"d": "d", "ll": "\u0259l", "ve": "v", "re": "\u0259"}


def _with_ipa(word: str, ipa: str) -> str:
    return f"{_START}{''.join(chr(_IPA_OFFSET + ord(char)) for char in ipa)}{_SEPARATOR}{word}{_END}"


def _plural_ipa(ipa: str) -> str:
    """Return the pronunciation of "s" at the end of an English word."""
    if ipa.endswith(tuple("sz\u0283\u0292\u02a7\u02a4")):
        return "\u026az"
    return "s" if ipa.endswith(tuple("ptkf\u03b8")) else "z"


def take_ipa(text: SpannedText) -> tuple[SpannedText, tuple[tuple[int, int, str], ...]]:
    """Return a sentence without the marks of pronunciations, and for each marked word a tuple (start, end, IPA)."""
    if not _STRAY_MARKS.search(text.text):
        return text, ()
    found: list[tuple[int, int, str]] = []
    edits: list[tuple[int, int, str]] = []
    removed = 0
    for match in _WITH_IPA.finditer(text.text):
        ipa = "".join(chr(ord(char) - _IPA_OFFSET) for char in match[1])
        if ending := match[3]:
            ipa += _plural_ipa(ipa) if ending == "s" else _ENDINGS_IPA[ending]
        start, (word_start, word_end) = match.start(), match.span(2)
        edits += [(start, word_start, ""), (word_end, word_end + 1, "")]
        found.append((start - removed, match.end() - removed - (word_start - start) - 1, ipa))
        removed += word_start - start + 1
    plain = text.edited(edits)
    if _STRAY_MARKS.search(plain.text):  # the sentence was cut inside a marked word, so marks are missing
        return plain.sub(_STRAY_MARKS, ""), ()
    return plain, tuple(found)


def unknown_symbol(ipa: str, symbols: frozenset[str]) -> str:
    """Return the first character of a pronunciation that belongs to none of `symbols`; "" if there is none."""
    at = 0
    while at < len(ipa):
        size = 2 if ipa[at : at + 2] in symbols else 1
        if ipa[at : at + size] not in symbols:
            return ipa[at]
        at += size
    return ""


def _prefixes() -> Iterator[str]:
    """Yield different prefixes for made-up words: "j" and then letters of `_LETTERS`."""
    for length in range(1, 12):
        for number in range(len(_LETTERS) ** length):
            yield "j" + _in_letters(number).rjust(length, _LETTERS[0])


def _in_letters(number: int) -> str:
    """Return a number in base 6 with the digits `_LETTERS`."""
    letters = _LETTERS[number % 6]
    while number := number // 6:
        letters = _LETTERS[number % 6] + letters
    return letters


def _from_letters(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 6 + _LETTERS.index(letter)
    return number
