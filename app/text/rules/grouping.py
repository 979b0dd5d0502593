"""Rules for numbers in notations that English does not use: "1.234,56", "10 000", "1'000", "0,5".

Each rule rewrites a number as English writes it ("1,234.56"), so that the later rules for money, measures and numbers
read it. "1,234" does not change, because it can be an English number (one thousand two hundred thirty four). "1.234"
changes only in amounts of some currencies.
"""

from __future__ import annotations

import re

from app.text import tables
from app.text.rules.codes import spoken_groups
from app.text.rules.common import Match, alternatives, previous_word

_CURRENCY = alternatives([*tables.CURRENCIES, "Ft", "lei"])
_UNITS = alternatives(unit for unit in tables.UNITS if unit not in {"in", "us", "mo", "cal", "pt", "min.", "in.", "ha"})
# In amounts of these currencies, a full stop before three digits separates thousands: "Rp 50.000", "1.000 €".
_DOT_CURRENCY = alternatives(["€", "Rp", "₫", "VND", "IDR", "R$", "EUR", "kr", "₺", "TL", "COP", "CLP", "ARS", "Kč"])
THOUSANDS = re.compile(
    rf"(?<![\w.,])((?:{_DOT_CURRENCY}) ?)([1-9][0-9]{{0,2}})\.([0-9]{{3}})(?![0-9]|[.,][0-9])"
    rf"|(?<![\w.,])([1-9][0-9]{{0,2}})\.([0-9]{{3}})(?= ?(?:{_DOT_CURRENCY})(?!\w))"
)
_COUNTED_AFTER = re.compile(rf" (?:{'|'.join(sorted(tables.COUNTED))})\b")
_PLURAL_AFTER = re.compile(r" [a-z]{2,20}(?<!time)(?<!plu)s\b")
_MEASURE_AFTER = re.compile(
    rf" ?(?:(?:{_CURRENCY}|{_UNITS}|%|‰)(?![\w])"
    r"|(?:million|billion|Million|Millionen|Mio|Mrd|Liter|Meter|Kilometer|Euro|Prozent|grams?|liters?|litres?)\b)"
)
_CURRENCY_BEFORE = re.compile(rf"(?:{_CURRENCY}) ?$")
_PHONE_BEFORE = frozenset({"tel", "phone", "call", "dial", "fax", "mobile", "telephone"})
_NO_AMOUNT_BEFORE = frozenset(
    "cell number room flight bus suite box code zip pages pp chapters chapter verses "
    "lines items steps questions rows columns sections figures tables versions numbers problems exercises lotto "
    "coordinates point points positions players between".split()
)

DOT_GROUPS = re.compile(
    r"(?<![\w.,'])([1-9][0-9]{0,2}(?:\.[0-9]{3}){2,5}|[0-9]{1,3}(?:\.[0-9]{3}){1,5}(?=,[0-9]{1,2}(?![0-9,.]\w|[0-9])))"
    r"(?:,([0-9]{1,4}))?(?![0-9]|[.,:][0-9])"
)
APOSTROPHES = re.compile(r"(?<![\w.,'])([0-9]{1,3}(?:'[0-9]{3}){1,5})(?![0-9'])")
UNDERSCORES = re.compile(r"(?<![\w.,])([0-9]{1,3}(?:_[0-9]{3}){1,5})(?![\w]|[.,][0-9])")
SWISS_END = re.compile(r"(?<=[0-9])\.[-–—](?!\w)")  # for example 12'500.–
SPACES = re.compile(
    r"(?<![\w.,+/:'-])(?<![0-9)] )([1-9][0-9]{0,2}(?: [0-9]{3}){1,4})(?:,([0-9]{1,2}))?(?![0-9]|[.,:/-][0-9]| [0-9])"
)
DECIMAL_COMMA = re.compile(r"(?<![\w.,:/'])(?<!\w-)([0-9]{1,9}),([0-9]{1,12})(?![0-9A-Z]|[.,:/][0-9])")


def rewrite_thousands(match: Match) -> str:
    return f"{match[1]}{match[2]},{match[3]}" if match[1] else f"{match[4]},{match[5]}"


def rewrite_dot_groups(match: Match) -> str:
    groups = match[1].split(".")
    if len(groups) == 4 and not match[2] and all(group[0] != "0" for group in groups):
        return match[0]  # an IPv4 address
    return ",".join(groups) + (f".{match[2]}" if match[2] else "")


def rewrite_underscores(match: Match) -> str:
    return match[1].replace("_", ",")


def rewrite_apostrophes(match: Match) -> str:
    return match[1].replace("'", ",")


def rewrite_spaces(match: Match) -> str:
    groups = match[1].split(" ")
    before = previous_word(match)
    if before.lower() in _PHONE_BEFORE and not match[2]:
        return spoken_groups(*groups)
    if before.lower() in _NO_AMOUNT_BEFORE or before.lower() in tables.LABELLED:
        return match[0]
    clear = (
        len(groups) > 2
        or groups[1] == "000"
        or match[2] is not None
        or _CURRENCY_BEFORE.search(match.string[max(0, match.start() - 6) : match.start()])
        or (
            any(noun.match(match.string, match.end()) for noun in (_MEASURE_AFTER, _COUNTED_AFTER, _PLURAL_AFTER))
            and not (len(groups[0]) == 1 and groups[1] in {"100", "200", "400", "800"})
        )
    )
    return ",".join(groups) + (f".{match[2]}" if match[2] else "") if clear else match[0]


def rewrite_decimal_comma(match: Match) -> str:
    """Return "3.14" for "3,14". Lists ("pages 1,2") and groups of thousands ("1,234") do not change."""
    whole, fraction = match[1], match[2]
    if len(fraction) == 3 and whole != "0":
        return match[0]
    decimal = f"{whole}.{fraction}"
    if len(whole) > 1 and whole[0] == "0":
        return match[0]
    before = match.string[max(0, match.start() - 6) : match.start()]
    if _MEASURE_AFTER.match(match.string, match.end()) or _CURRENCY_BEFORE.search(before):
        return decimal
    if _COUNTED_AFTER.match(match.string, match.end()) and len(whole) < 4:
        return decimal
    if len(whole) > 3:
        return match[0]
    in_list = (
        before[-1:] in tuple("([{")
        or re.match(r" ?[)\]},]| (?:and|or|&|to) [0-9]", match.string[match.end() : match.end() + 8]) is not None
        or previous_word(match).lower() in _NO_AMOUNT_BEFORE
    )
    return decimal if not in_list and (whole == "0" or len(fraction) != 1) else match[0]
