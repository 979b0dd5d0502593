"""Guess the language of a text from its writing system only, without looking at words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Script (the first word of the Unicode name of a letter) -> the language that this module assumes for the script.
_SCRIPT_LANGUAGES = {
    "ARABIC": "ar",
    "ARMENIAN": "hy",
    "BENGALI": "bn",
    "CJK": "cmn",
    "CYRILLIC": "ru",
    "DEVANAGARI": "hi",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "HANGUL": "ko",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "TAMIL": "ta",
    "THAI": "th",
}
# Script -> the number of Latin letters that carry as much text as one of its characters.
_LETTERS_PER_CHARACTER = {"CJK": 3.0, "HIRAGANA": 2.5, "KATAKANA": 2.5, "HANGUL": 2.5}

# A Greek letter alone is a sign of mathematics or of a unit: "10 μF", "2πr".
_GREEK_SIGN = re.compile("(?<![\u0370-\u03ff\u1f00-\u1fff])[µΩ\u0370-\u03ff](?![\u0370-\u03ff\u1f00-\u1fff])")


def script_language(text: str) -> str | None:
    """Return the language tag for the most frequent script in a text; None for Latin and for unknown scripts.

    In a script whose characters are syllables or words, each character counts as several letters.
    """
    if text.isascii():
        return None
    text = _GREEK_SIGN.sub("", text)
    scripts = Counter(unicodedata.name(char, "").split(" ")[0] for char in text if char.isalpha())
    if not scripts:
        return None
    for script in scripts.keys() & _LETTERS_PER_CHARACTER.keys():
        scripts[script] = round(scripts[script] * _LETTERS_PER_CHARACTER[script])
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0 and scripts["LATIN"] < sum(scripts.values()) / 2:
        return "ja"  # Japanese text contains kana, but often more Chinese characters than kana
    return _SCRIPT_LANGUAGES.get(scripts.most_common(1)[0][0])
