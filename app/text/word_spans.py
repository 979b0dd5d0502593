"""Find the words of a text. A word is a part between white space. In scripts without spaces, each character is a word.

Speech recognisers and caption tools count Chinese and Japanese words in the same way. In Thai, Lao, Burmese and Khmer,
a character with the marks that belong to it is one word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"\S+")
# Thai, Lao, Burmese, Khmer, Tai scripts, Japanese, Bopomofo, Chinese, Yi. Korean has spaces.
UNSPACED = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e3f-\u0e46\u0e50-\u0ec6\u0ed0-\u0eff\u1000-\u102a\u103f-\u1055\u105a-\u109f\u1780-\u17b3"
    "\u1950-\u19df\u1a20-\u1aaf\u3005-\u3007\u3021-\u3029\u3038-\u303c\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48f\uaa60-\uaa7a\uf900-\ufaff"
    "\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
_HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
# Small kana, the long vowel, voice marks and repetition marks belong to the previous syllable.
_CONTINUES = (
    "\u3041\u3043\u3045\u3047\u3049\u3063\u3083\u3085\u3087\u308e\u3095\u3096\u30a1\u30a3\u30a5\u30a7\u30a9\u30c3\u30e3\u30e5"
    "\u30e7\u30ee\u30f5\u30f6\u30fc\u31f0-\u31ff\uff67-\uff70\uff9e\uff9f\u0e2f\u0e46\u0ec6"
)
_LEADING = "\u0e40-\u0e44\u0ec0-\u0ec4"  # Thai and Lao vowels that are written before their consonant
_STACKING = "\u1039\u17d2"  # Burmese and Khmer signs that put the next consonant below the previous one
_OPENERS = (
    "(\\[{\u00ab\u2018\u201a\u201c\u201e\u2039\u3008\u300a\u300c"
    "\u300e\u3010\u3014\u3016\u3018\u301a\u301d\uff08\uff3b\uff5b\uff5f\uff62"
)
_AFTER = rf"(?:_|[^\w\s{_OPENERS}])*"  # marks and punctuation after a character
_WORD = re.compile(
    rf"(?:_|[^\w\s])*[{_LEADING}]*[{UNSPACED}]{_AFTER}(?:(?:[{_CONTINUES}]|(?<=[{_STACKING}])[{UNSPACED}]){_AFTER})*"
    rf"(?:[{_OPENERS}]+(?=\s|\Z))?"
    rf"|(?:(?![{_OPENERS}]{{0,8}}[{UNSPACED}])\S)+"
)


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and the end (exclusive) of each word of a text. Each visible character belongs to a word.

    Punctuation belongs to the previous word, but an opening bracket belongs to the next word.
    """
    unspaced = not text.isascii() and _HAS_UNSPACED.search(text)
    return (match.span() for match in (_WORD if unspaced else _TOKEN).finditer(text))
