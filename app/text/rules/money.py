"""Rules for amounts of money: "$5", "5 €", "$3 million", "$5-10", "$15/hr"."""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules.common import DASH, NUM, Match, alternatives, is_adjective, per_unit

_CURRENCY = alternatives([sign for sign in tables.CURRENCIES if not sign.isalpha()])
_CURRENCY_CODE = alternatives([sign for sign in tables.CURRENCIES if sign.isalpha()])
_SIGN_AFTER = "".join(sign for sign in tables.CURRENCIES if len(sign) == 1 and sign != "$")
_DOLLAR_CODE = {
    "USD": "$",
    "US": "$",
    "CAD": "C$",
    "AUD": "A$",
    "NZD": "NZ$",
    "HKD": "HK$",
    "SGD": "S$",
    "TWD": "NT$",
    "MXN": "MX$",
}
_SCALE = (
    r"(?: ?-?(thousand|million|billion|trillion|Thousand|Million|Billion|Trillion|grand|lakhs?|crores?)\b"
    rf"| ?(k|K|m|M|mn|MM|b|B|bn|Bn|t|T|tn|trn|Cr|L)(?![\w²³]|/(?!(?:{alternatives(tables.PER)})\b)))?"
)
_PER = rf"(?: ?/ ?({alternatives(tables.PER)})\b)?(?: ?/ ?({alternatives(tables.PER)})\b)?"
# Marks that mean "no cents" after an amount: "Rs. 500/-", "100,- kr".
AFTER_AMOUNT = re.compile(r"(?<=[0-9])(?:/-|,[-–—](?= ?(?:kr|€|EUR|Kč)))(?!\w)")
PAIR = re.compile(rf"\b({_CURRENCY_CODE})/({_CURRENCY_CODE}) (?=[0-9])")
MONEY = re.compile(
    rf"(?<![\w$£€/])([-–−]?)({_CURRENCY}|\b(?:{_CURRENCY_CODE})) ?([-–−]?)({NUM}){_SCALE}"
    rf"(?![0-9]|[.,][0-9])\+?{_PER}(?: ({alternatives(_DOLLAR_CODE)})\b)?"
)
MONEY_RANGE = re.compile(
    rf"(?<![\w$£€])({_CURRENCY}) ?({NUM}){_SCALE}{DASH}(?:(\1) ?)?({NUM}){_SCALE}(?![0-9]|[.,][0-9]){_PER}"
)
MONEY_AFTER = re.compile(
    rf"(?<![\w.,$£€])({NUM}){_SCALE} ?([{_SIGN_AFTER}]|(?:\b|(?<=[0-9]))(?:{_CURRENCY_CODE}))(?![\w]){_PER}"
)
# An amount with a power of ten: "$1e6".
MONEY_POWER = re.compile(
    rf"(?<![\w$£€/])({_CURRENCY}) ?([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?)[eE]\+?([0-9]{{1,2}})(?!\w|\.[0-9])"
)
MONEY_EURO = re.compile(
    r"(?<![\w.,])(€ ?)?([0-9]{1,3}(?:\.[0-9]{3}){0,5}),([0-9]{2})(?![0-9])(?:(?(1)| ?€))(?![\w,.][0-9])"
)
CENTS = re.compile(rf"(?<![\w.,])({NUM}) ?(¢|ct\b)")


def _scale(name: str | None, letter: str | None) -> str:
    key = name or letter
    return tables.SCALES[key] if key else ""


def _amount(sign: str, number: str, scale: str, *, single: bool = False) -> str:
    """Return the words for an amount of money. single: True = use the singular, as in "a five dollar bill"."""
    one, many, cent, cents = tables.CURRENCIES[sign]
    whole, dot, fraction = number.replace(",", "").partition(".")
    if single:
        many = one
    if scale:
        return f"{number_words.number(number)} {scale} {many}"
    if dot and len(fraction) == 2 and cent:
        whole_words = (
            f"{number_words.number(number.partition('.')[0])} {one if whole == '1' else many}"
            if int(whole or 0)
            else ""
        )
        part = int(fraction)
        part_words = f"{number_words.cardinal(part)} {cent if part == 1 else cents}" if part else ""
        return " and ".join(words for words in (whole_words, part_words) if words) or f"zero {many}"
    return f"{number_words.number(number)} {one if number == '1' else many}"


def verbalize_pair(match: Match) -> str:
    return f"{' '.join(match[1])} to {' '.join(match[2])}, "


def verbalize_money(match: Match) -> str:
    minus = "minus " if match[1] or match[3] else ""
    plus = " plus" if "+" in match[0] else ""
    scale = _scale(match[5], match[6])
    sign = _DOLLAR_CODE[match[9]] if match[2] == "$" and match[9] else match[2]
    words = _amount(sign, match[4], scale, single=is_adjective(match))
    return f"{minus}{words}{plus}{per_unit(match[7])}{per_unit(match[8])}"


def verbalize_money_range(match: Match) -> str:
    sign, low, high = match[1], match[2], match[6]
    low_scale, high_scale = _scale(match[3], match[4]), _scale(match[7], match[8])
    last = _amount(sign, high, high_scale, single=is_adjective(match))
    whole = "." not in low + high or bool(low_scale or high_scale)
    shared = not (low_scale and match[5]) and whole and (low_scale == high_scale or not (low_scale or match[5]))
    first = number_words.number(low) if shared else _amount(sign, low, low_scale)
    return f"{first} to {last}{per_unit(match[9])}{per_unit(match[10])}"


def verbalize_money_after(match: Match) -> str:
    words = _amount(match[4], match[1], _scale(match[2], match[3]), single=is_adjective(match))
    return f"{words}{per_unit(match[5])}{per_unit(match[6])}"


def verbalize_money_power(match: Match) -> str:
    """Return the words for an amount with a power of ten: "$1.5e6" -> "one million five hundred thousand dollars"."""
    whole, _, fraction = match[2].partition(".")
    power = int(match[3])
    if power < len(fraction.rstrip("0")) or power > 15:
        return match[0]
    return _amount(match[1], str(int(whole + fraction.ljust(power, "0")[:power])), "")


def verbalize_money_euro(match: Match) -> str:
    return _amount("€", f"{match[2]}.{match[3]}", "")


def verbalize_cents(match: Match) -> str:
    return f"{number_words.number(match[1])} {'cent' if match[1] == '1' else 'cents'}"
