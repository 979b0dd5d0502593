"""Pronunciations of English words for the aligner, as phonemes of the acoustic model (ARPAbet without stress).

The sources are, in this order: the dictionary in the pocketsphinx wheel (US English, 135,000 words), IPA that the
caller has from eSpeak NG or another source, and letter-to-sound rules. British pronunciations are derived from US
pronunciations by rules: British speakers do not speak the R in "car", and use another vowel in "not".
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Phonemes = tuple[str, ...]
    Source = Callable[[str], Iterable[str]]  # a word -> its pronunciations in IPA

MAX_VARIANTS = 4
_VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())

# IPA symbols are matched from the longest to the shortest. Marks of length and stress are removed before the match.
_IPA = {
    "tʃ": "CH", "dʒ": "JH", "aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "ɔɪ": "OY", "oʊ": "OW", "əʊ": "OW", "ɪə": "IH AH",
    "eə": "EH AH", "ʊə": "UH AH", "iə": "IY AH", "aɪə": "AY AH", "aʊə": "AW AH", "əl": "AH L", "ɚ": "ER", "ɝ": "ER",
    "ɜ": "ER", "ɑ": "AA", "ɒ": "AA", "ɔ": "AO", "æ": "AE", "a": "AE", "ɐ": "AH", "ʌ": "AH", "ə": "AH", "ɛ": "EH",
    "e": "EH", "ɪ": "IH", "i": "IY", "ᵻ": "IH", "ɨ": "IH", "y": "UW", "ʊ": "UH", "u": "UW", "o": "OW", "ɵ": "UH",
    "ø": "ER", "œ": "ER", "b": "B", "d": "D", "ð": "DH", "f": "F", "ɡ": "G", "g": "G", "h": "HH", "ç": "HH", "x": "K",
    "χ": "K", "j": "Y", "k": "K", "l": "L", "ɫ": "L", "ɬ": "L", "ʎ": "L Y", "m": "M", "n": "N", "ɲ": "N Y", "ŋ": "NG",
    "p": "P", "r": "R", "ɹ": "R", "ɾ": "T", "ʁ": "R", "s": "S", "ʃ": "SH", "t": "T", "θ": "TH", "v": "V", "β": "V",
    "w": "W", "ʍ": "W", "ɣ": "G", "z": "Z", "ʒ": "ZH", "ʔ": "T", "q": "K", "c": "K",
}  # fmt: skip
_IPA_SYMBOL = re.compile("|".join(sorted(map(re.escape, _IPA), key=len, reverse=True)))

# Letter groups -> phonemes, for the approximate pronunciation of a word that is in no dictionary. The longest group
# that matches is used.
_LETTERS = {
    "tion": "SH AH N", "sion": "ZH AH N", "ture": "CH ER", "ough": "AO", "augh": "AO", "eigh": "EY", "igh": "AY",
    "sch": "SH", "tch": "CH", "dge": "JH", "ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "wh": "W", "ck": "K",
    "ng": "NG", "qu": "K W", "kn": "N", "wr": "R", "gh": "G", "ee": "IY", "ea": "IY", "oo": "UW", "ou": "AW",
    "ow": "OW", "oa": "OW", "oi": "OY", "oy": "OY", "ai": "EY", "ay": "EY", "au": "AO", "aw": "AO", "ei": "EY",
    "ey": "IY", "ie": "IY", "ue": "UW", "ew": "UW", "er": "ER", "ir": "ER", "ur": "ER", "ar": "AA R", "or": "AO R",
    "ce": "S", "ci": "S IH", "ge": "JH", "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G",
    "h": "HH", "i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R",
    "s": "S", "t": "T", "u": "AH", "v": "V", "w": "W", "x": "K S", "y": "IY", "z": "Z",
}  # fmt: skip
_LETTER_GROUP = re.compile("|".join(sorted(_LETTERS, key=len, reverse=True)))
_LETTER_NAMES = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "EY|B IY|S IY|D IY|IY|EH F|JH IY|EY CH|AY|JH EY|K EY|EH L|EH M|EH N|OW|P IY|K Y UW|AA R|EH S|T IY|Y UW|V IY|"
        "D AH B AH L Y UW|EH K S|W AY|Z IY|Z IH R OW|W AH N|T UW|TH R IY|F AO R|F AY V|S IH K S|S EH V AH N|EY T|"
        "N AY N".split("|"),
        strict=True,
    )
)


class Pronouncer:
    """Looks up the pronunciations of words. Thread-safe."""

    def __init__(self, dictionary: Path) -> None:
        self._entries = b"\n" + dictionary.read_bytes()
        self._found = functools.lru_cache(maxsize=8_192)(self._variants)

    def pronunciations(self, word: str, ipa: Sequence[str] = ()) -> tuple[Phonemes, ...]:
        """Return at most MAX_VARIANTS pronunciations of a word, the most common first; () for a word without letters.

        ipa: pronunciations from another source, which are added to the pronunciations of the dictionary.
        """
        return self._found(word, tuple(ipa))

    def _variants(self, word: str, ipa: tuple[str, ...]) -> tuple[Phonemes, ...]:
        parts = [part for part in re.split(r"[-‐-―/]+", word) if plain_word(part)]
        if len(parts) > 1:  # a word with a hyphen, for example "well-known"
            return tuple(dict.fromkeys(self._joined(parts, which) for which in (0, 1)))
        plain = plain_word(word)
        if not plain:
            return ()
        base = self._look_up(plain)
        spelled = [phonemes for text in ipa if (phonemes := from_ipa(text))]
        if not base:
            base = spelled or self._inflected(plain) or [from_letters(plain)]
        both = dict.fromkeys([*base[:2], *spelled[:1], *(british(phonemes) for phonemes in base[:2]), *base, *spelled])
        return tuple(phonemes for phonemes in both if phonemes)[:MAX_VARIANTS]

    def _joined(self, parts: Sequence[str], which: int) -> Phonemes:
        found = [self._found(part, ()) for part in parts]
        return tuple(phoneme for variants in found for phoneme in variants[min(which, len(variants) - 1)])

    def _look_up(self, word: str) -> list[Phonemes]:
        found = []
        for name in (word, f"{word}(2)", f"{word}(3)", f"{word}(4)"):
            start = self._entries.find(f"\n{name} ".encode())
            if start < 0:
                break
            start += len(name) + 2
            found.append(tuple(self._entries[start : self._entries.index(b"\n", start)].decode().split()))
        return found

    def _inflected(self, word: str) -> list[Phonemes]:
        """Return the pronunciations of a possessive or plural form, if the dictionary contains its basic form."""
        for ending in ("'s", "s'", "s"):
            stem = word.removesuffix(ending)
            if stem != word and (base := self._look_up(stem)):
                return [(*phonemes, *_plural(phonemes[-1])) for phonemes in base]
        return []


def plain_word(word: str) -> str:
    """Return only the letters, digits and apostrophes of a word, lower-case, without accents: "Café," -> "cafe"."""
    letters = unicodedata.normalize("NFKD", word.replace("’", "'")).lower()
    return re.sub(r"[^a-z0-9']+", "", letters).strip("'")


def from_ipa(text: str) -> Phonemes:
    """Convert IPA to phonemes. Unknown symbols are left out."""
    text = re.sub(r"[ˈˌːˑ̩.\s]", "", unicodedata.normalize("NFD", text))
    return tuple(" ".join(_IPA[symbol] for symbol in _IPA_SYMBOL.findall(text)).split())


def from_letters(word: str) -> Phonemes:
    """Apply letter-to-sound rules to a word that is in no dictionary. A word with digits or without vowels is spelled
    letter by letter.
    """
    letters = word.replace("'", "")
    if not re.search("[aeiouy]", letters) or re.search("[0-9]", letters):
        return tuple(" ".join(_LETTER_NAMES[letter] for letter in letters).split())
    letters = re.sub(r"([b-df-hj-np-tv-z])\1", r"\1", letters)
    letters = re.sub(r"(?<=[aeiouy])([b-df-hj-np-tv-z])e$", r"\1", letters)
    return tuple(" ".join(_LETTERS[group] for group in _LETTER_GROUP.findall(letters)).split())


def british(phonemes: Phonemes) -> Phonemes:
    """Convert a US pronunciation to a British pronunciation. British speakers speak R only before vowels, and have a
    rounded vowel in "not".
    """
    out: list[str] = []
    for at, phoneme in enumerate(phonemes):
        before_vowel = at + 1 < len(phonemes) and phonemes[at + 1] in _VOWELS
        before_r = at + 1 < len(phonemes) and phonemes[at + 1] == "R"
        if phoneme == "R" and at and phonemes[at - 1] in _VOWELS and not before_vowel:
            if phonemes[at - 1] in {"IH", "IY", "EH", "UH"}:
                out.append("AH")
        elif phoneme == "ER" and at + 1 == len(phonemes) and at > 1:
            out.append("AH")
        elif phoneme == "AA" and not before_r:
            out.append("AO")
        else:
            out.append(phoneme)
    return tuple(out)


def _plural(last: str) -> Phonemes:
    if last in {"S", "Z", "SH", "ZH", "CH", "JH"}:
        return ("IH", "Z")
    return ("S",) if last in {"P", "T", "K", "F", "TH"} else ("Z",)
