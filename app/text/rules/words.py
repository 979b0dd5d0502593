"""Rules for abbreviations, titles, streets, Roman numerals and symbols that are read as words."""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules.common import (
    SENTENCE_START,
    Match,
    alternatives,
    capitalised_like,
    sentence_stop,
)

TITLE = re.compile(rf"\b(?:({'|'.join(tables.TITLES)})\.|(Mr|Mrs|Ms|Prof))(?= [A-Z]| & | and )")
ABBREVIATION = re.compile(rf"(?<![\w.@])({alternatives(tables.ABBREVIATIONS)})(?!\w)")
BEFORE_NUMBER = re.compile(
    rf"(?<![\w.])(?:(?<![0-9] )|(?!min\.))({alternatives(tables.BEFORE_NUMBER)})\. ?{SENTENCE_START}?(?=[0-9])"
    r"|(?<![\w-])(pp?|Apt|Ste|Hwy|Rte) (?=[0-9])"
)
SAINT_OR_STREET = re.compile(r"\b(St|Dr)(?:\.|(?= [A-Z])|(?=[,;:!?)]|$))(?!\w)")
_TWO_WORDS_BEFORE = re.compile(r"(?:([\w'.-]{1,30}),? )?([\w'.-]{1,30}) $")
STREET = re.compile(
    rf"(?<=[a-zA-Z0-9] )({'|'.join(name for name in tables.STREETS if name not in {'St', 'Dr'})})"
    r"(?:\.|(?=[,;:!?)]|$)|(?= [NS][EW]\b))(?!\w)(?: (NW|NE|SW|SE)\b)?"
)
_COMPASS = {"NW": "Northwest", "NE": "Northeast", "SW": "Southwest", "SE": "Southeast"}
_ROMAN = r"(?:X{0,3}(?:IX|IV|V?I{0,3}))"
ROMAN_CENTURY = re.compile(r"\b([IVX]{1,5})(?:(?:th|st|nd|rd) | |-)(?=(?:century|centuries)\b)")
ROMAN_YEAR = re.compile(r"\b(M{1,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))\b(?!['.-]\w)")
ROMAN_SMALL = re.compile(
    r"\b([Aa]ct|[Ss]cene|[Pp]art|[Cc]hapter|[Bb]ook|[Ss]ection|[Pp]ages?|[Cc]anto|[Vv]olume) ([ivxl]{1,6})\b(?!['.-]\w)"
)
GRADE = re.compile(
    r"(?<![\w'.-])(AB|Rh|[A-DFO])[-−](?=[,.;:!?)\"']|$| (?:on|in|for|blood|grade|student|average|and then)\b)"
)
PRIME = re.compile(r"\b([fgh])('{1,3})(?=\()")
ROMAN_AFTER = re.compile(r"\b([A-Z][A-Za-z]{1,20}) ([IVXL]{1,7})\b(?!-\w|'(?!s\b)\w)(?!\.[A-Za-z])")
# "no." means "number" in "He has no. 5 on his back", but not in "I said no. 5 people left".
SMALL_NUMBER = re.compile(
    rf"\b(the|has|had|at|as|a|from|to|in|of|ranked|world|room|seed|his|her|wears|wore) no\. ?{SENTENCE_START}?(?=[0-9])"
)
SMALL_NUMBER_FIRST = re.compile(rf"(?:^|(?<=[(;])|(?<=[;,] ))no\. ?{SENTENCE_START}?(?=[0-9])")
_BOOK_PARTS = {
    "vol": "volume", "ch": "chapter", "pt": "part", "no": "number", "fig": "figure", "sec": "section", "bk": "book",
    "art": "article", "app": "appendix",
}  # fmt: skip
BEFORE_ROMAN = re.compile(
    rf"(?<![\w.])({'|'.join([*_BOOK_PARTS, *map(str.capitalize, _BOOK_PARTS)])})\. ([IVXL]{{1,7}})\b(?!['.-]\w)"
)
CARE_OF = re.compile(r"(?<![\w/])c/o(?![\w/])")
CIRCA = re.compile(r"(?<!\w)(?:c|ca)\. ?(?=[0-9]{3,4}\b)")
WITH = re.compile(r"(?<![\w/])([Ww])/(?:(o)(?![A-Za-z0-9/])|(o)?(?= ?[A-Za-z0-9])(?! ?[/]))")
BECAUSE = re.compile(r"(?<!\w)b/c(?!\w)")
WORD_SLASH = re.compile(r"(?<![\w/])([A-Za-z]{1,30})/([A-Za-z]{1,30})(?:/([A-Za-z]{1,30}))?(?![\w/])")
AMPERSAND = re.compile(r"(?<=\w)&(?=\w)|(?<=\w)&(?= )|(?<= )&(?=\w)")
BRACKETED = re.compile(r"<([A-Za-z][\w.,]{0,40}(?:, [\w.]{1,40}){0,4})>")
COMPARE = re.compile(r"(?<=[\w)%°]) ?(<=|>=|!=|==|<|>|=) ?(?=[-\w($.'\"])")
DOUBLE_ARROW = re.compile(r" ?(?:<-+>|<=+>|↔|⇔) ?")
ARROW = re.compile(r" ?(?:-{1,3}>|={1,3}>|→|⟶|➜|➔|⇒) ?")
BACK_ARROW = re.compile(r" ?(?:<-{1,3}|←) ?(?=\D)")
ROOT = re.compile(r"√ ?\(?")
HEART = re.compile(r"(?<=I )<3(?= )")
SMILEY = re.compile(r"(?<![\w:;])(?:[:;=]['`]?-?[)(DPpOo/|\\*\]\[]{1,3}|:-?3|8-\)|[xX]D|<3)(?![\w(])")
DOLLAR_NAME = re.compile(r"\$(?=[A-Za-z_])")
SUBSCRIPT = re.compile(r"[₀-₉]")
ENUMERATOR = re.compile(r"(?<![\w.,])([0-9]{1,2})\) (?=[A-Za-z])")
CITATION = re.compile(
    r"(?<![=(+*/<>])(?<![=(+*/<>] )(?<![^A-Za-z0-9'][a-z])(?<!^[a-z])"
    r" ?(?:\[(?!0\])[0-9]{1,3}(?:[,–-] ?[0-9]{1,3}){0,5}\]){1,20}(?=[\s.,;:!?)]|$)"
)


def verbalize_title(match: Match) -> str:
    return tables.TITLES[match[1] or match[2]]


def verbalize_abbreviation(match: Match) -> str:
    words = tables.ABBREVIATIONS[match[1]]
    if match[1] == "v." and not re.match(r" [A-Z]", match.string[match.end() : match.end() + 2]):
        return match[0]
    if match[1] == "est." and not re.match(r" (?:in )?[12][0-9]{3}\b", match.string[match.end() : match.end() + 9]):
        words = "estimated"
    at_start = match.start() == 0 or match.string[max(0, match.start() - 2) : match.start()] in {". ", "! ", "? "}
    return (capitalised_like("A", words) if at_start else words) + sentence_stop(match)


def verbalize_before_number(match: Match) -> str:
    key = match[1] or match[2]
    return capitalised_like(key, f"{tables.BEFORE_NUMBER[key]} ")


def verbalize_saint_or_street(match: Match) -> str:
    """Return "Saint" or "Street" for "St.", and "Doctor" or "Drive" for "Dr.".

    The two words before the abbreviation and the word after it decide which of the two is meant.
    """
    short = match[1]
    words = _TWO_WORDS_BEFORE.search(match.string[max(0, match.start() - 62) : match.start()])
    earlier, before = (words[1], words[2]) if words else (None, None)
    after = match.string[match.end() : match.end() + 30]
    name_follows = re.match(r" [A-Z]", after) is not None
    named = (
        before is not None
        and before[:1].isupper()
        and before not in tables.STARTERS
        and before not in tables.NOT_A_STREET_NAME
    )
    is_street = named and (
        not name_follows
        or (before or "").endswith("'s")
        or bool(
            earlier and (earlier[:1].isdecimal() or earlier.lower() in {"on", "at", "near", "along", "down", "off"})
        )
        or bool(re.match(r" (?:is|was)\b", after))
        or (_stop_follows(after) and short == "St")
    )
    numbered = bool(before) and re.fullmatch(r"[0-9]{1,3}(?:st|nd|rd|th)", before or "") is not None
    if is_street or numbered:
        stop = sentence_stop(match) if match[0].endswith(".") else ""
        return f"{tables.STREETS[short]}{stop}"
    if name_follows:
        return "Saint" if short == "St" else "Doctor"
    return match[0] if short == "St" or not match[0].endswith(".") else f"doctor{sentence_stop(match)}"


def _stop_follows(after: str) -> bool:
    word = re.match(r" ([A-Za-z']{1,20})", after)
    return word is not None and word[1] in tables.STARTERS


def verbalize_street(match: Match) -> str:
    before = re.search(r"([\w'.-]+) $", match.string[max(0, match.start() - 30) : match.start()])
    if before is None or not (before[1][:1].isupper() or before[1][:1].isdecimal()):
        return match[0]
    if match[2]:
        return f"{tables.STREETS[match[1]]} {_COMPASS[match[2]]}"
    return tables.STREETS[match[1]] + (sentence_stop(match) if match[0].endswith(".") else "")


def verbalize_roman(match: Match) -> str:
    name, numeral = match[1], match[2]
    value = number_words.roman(numeral)
    if value is None:
        return match[0]
    after = match.string[match.end() : match.end() + 12]
    clear = (
        len(numeral) > 1
        or re.match(r"[,.:;)!?]|$|'s\b| (?:of|and|was|is|had|in|at|to|by|ended|began|the)\b", after) is not None
    )
    if name in tables.RULERS:
        return f"{name} the {number_words.ordinal(value)}" if clear or numeral in {"V", "X"} else match[0]
    if name in tables.NUMBERED_THINGS and clear:
        return f"{name} {number_words.cardinal(value)}"
    if (
        numeral in {"II", "III", "IV", "VI", "VII", "VIII", "IX", "XI", "XII", "XIII", "XIV", "XV", "XVI"}
        and name not in _BEFORE_INTRAVENOUS
    ):
        return f"{name} {number_words.cardinal(value)}" if numeral != "IV" or name not in tables.STARTERS else match[0]
    return match[0]


def verbalize_roman_century(match: Match) -> str:
    value = number_words.roman(match[1])
    return f"{number_words.ordinal(value)} " if value and value <= 30 else match[0]


def verbalize_roman_year(match: Match) -> str:
    """Return the words for a year in Roman numerals: "MCMXCIX" -> "nineteen ninety nine".

    A numeral of at most four letters does not change, because it may be a word or a name: "MIX", "MD".
    """
    total = number_words.roman_value(match[1])
    return number_words.year(total) if len(match[1]) > 4 and 1100 <= total <= 2100 else match[0]


def verbalize_roman_small(match: Match) -> str:
    value = number_words.roman(match[2].upper())
    return f"{match[1]} {number_words.cardinal(value)}" if value else match[0]


def verbalize_prime(match: Match) -> str:
    return f"{match[1]} {('', 'double ', 'triple ')[len(match[2]) - 1]}prime"


def verbalize_before_roman(match: Match) -> str:
    """Return the words for a numbered part: "vol. XII" -> "volume twelve"."""
    value = number_words.roman(match[2])
    if value is None or (len(match[2]) == 1 and match[1].lower() == "no"):
        return match[0]
    return f"{capitalised_like(match[1], _BOOK_PARTS[match[1].lower()])} {number_words.cardinal(value)}"


_BEFORE_INTRAVENOUS = frozenset({"An", "The", "Start", "Via", "Through", "By", "And"})


def verbalize_with(match: Match) -> str:
    rest = match.string[match.end() : match.end() + 1]
    words = capitalised_like(match[1], "without" if match[2] or match[3] else "with")
    return words + (" " if rest.isalnum() else "")


def verbalize_word_slash(match: Match) -> str:
    words = [word for word in match.groups() if word]
    if "/".join(words).lower() in tables.EITHER_OR:
        return " or ".join(words)
    return " ".join(words)


def verbalize_compare(match: Match) -> str:
    names = {"<=": "less than or equal to", ">=": "greater than or equal to", "!=": "not equal to", "==": "equals"}
    return f" {names.get(match[1]) or tables.SYMBOLS[match[1]].strip()} "
