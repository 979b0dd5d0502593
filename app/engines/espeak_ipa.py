"""Converts pronunciations in IPA to the phoneme names that eSpeak NG accepts in `[[...]]`.

eSpeak NG does not read IPA. The tables contain the sounds of English. Other sounds, such as French nasal vowels, can't
be converted. `tests/unit/test_espeak.py` converts IPA to phoneme names, lets eSpeak NG write these names as IPA again,
and compares the result with the original IPA.
"""

from __future__ import annotations

import functools

# Symbol in IPA -> phoneme name of eSpeak NG's English voices.
CONSONANTS = {
    "p": "p", "b": "b", "t": "t", "d": "d", "k": "k", "g": "g", "ɡ": "g", "f": "f", "v": "v", "θ": "T", "ð": "D",
    "s": "s", "z": "z", "ʃ": "S", "ʒ": "Z", "h": "h", "m": "m", "n": "n", "ŋ": "N", "l": "l", "ɫ": "l",
    "ɹ": "r", "r": "r", "w": "w", "j": "j", "tʃ": "tS", "dʒ": "dZ", "ʧ": "tS", "ʤ": "dZ", "x": "x",
    "ʔ": "?",
}  # fmt: skip
VOWELS = {
    "iː": "i:", "i": "i", "ɪ": "I", "ɛ": "E", "e": "E", "æ": "a", "a": "a", "ɑː": "A:", "ɑ": "A:",
    "ɒ": "0", "ɔː": "O:", "ɔ": "O", "ʊ": "U", "uː": "u:", "u": "u:", "ʌ": "V", "ɜː": "3:",
    "ɜ": "3:", "ɝ": "3:", "ɚ": "3", "ə": "@", "eɪ": "eI", "aɪ": "aI", "ɔɪ": "OI", "oʊ": "oU",
    "əʊ": "oU", "aʊ": "aU", "ɪə": "i@", "eə": "e@", "ɛə": "e@", "ʊə": "U@",
    "n\u0329": "@n", "l\u0329": "@L", "m\u0329": "@m", "əl": "@L",
}  # fmt: skip
_STRESSES = {"ˈ": "'", "'": "'", "ˌ": ","}
_SILENT = frozenset(".|\u0361‿ʰ-")  # IPA symbols without a phoneme name: syllable breaks, ties, aspiration
SYMBOLS = frozenset((*CONSONANTS, *VOWELS, *_STRESSES, *_SILENT, " "))


@functools.lru_cache(maxsize=4_096)
def to_phonemes(ipa: str) -> str | None:
    """Convert a pronunciation in IPA to phoneme names, without `[[` and `]]`. Returns None for an unknown sound.

    In IPA, a stress mark is before the syllable. eSpeak NG needs the stress mark before the vowel.
    """
    names: list[str] = []
    stress = ""
    at = 0
    plain = ipa.replace("\u0361", "").replace("‿", "")
    while at < len(plain):
        symbol = plain[at : at + 2] if plain[at : at + 2] in VOWELS | CONSONANTS else plain[at]
        at += len(symbol)
        if symbol in _STRESSES:
            stress = _STRESSES[symbol]
        elif symbol in VOWELS:
            names.append(stress + VOWELS[symbol])
            stress = ""
        elif symbol in CONSONANTS:
            names.append(CONSONANTS[symbol])
        elif symbol == " ":
            names.append(" ")
        elif symbol not in _SILENT:
            return None
    return "|".join(names).replace("| |", " ").strip(" |") or None
