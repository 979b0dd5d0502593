"""Rules for numbers that are read digit by digit: telephone number, card number, PIN, postal code."""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules.common import SENTENCE_START, Match, spell_out

PHONE_PLUS = re.compile(r"(?<![\w+])\+([0-9]{1,3}(?:[ .-]?\(?[0-9]{1,5}\)?){2,6})(?![0-9])")
PHONE_US = re.compile(
    rf"(?<![\w-])(?:(1)[ .-])?(?:\({SENTENCE_START}?([0-9]{{3}})\) ?"
    rf"|([0-9]{{3}})[ .-])([0-9]{{3}})(?(2)[ .-]?|[ .-])([0-9]{{4}})(?![\w-])"
)
PHONE_LETTERS = re.compile(r"(?<![\w-])(?:(1)-)?(8[0-9]{2})-([A-Z][A-Z-]{2,12}|[0-9]{3}-[A-Z]{4})(?![\w-])")
PHONE_SHORT = re.compile(r"(?<![\w-])([2-9][0-9]{2})-([0-9]{4})(?![\w-])")
# Outside the United States, telephone numbers often begin with 0: "020 7946 0958", "030/123456", "01 23 45 67 89".
PHONE_ZERO = re.compile(r"(?<![\w.,:/+-])(0[0-9]{1,4})([ /-][0-9]{2,8}(?:[ -][0-9]{2,6}){0,4})(?![\w-]|[.,:/][0-9])")
BOOK_NUMBER = re.compile(r"\b(ISSN|ISBN(?:-1[03])?)(:? ?)([0-9][0-9Xx-]{7,18})(?![\w-])")
IBAN = re.compile(r"(?<![\w-])([A-Z]{2}[0-9]{2}(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,4})?)(?![\w-])")
DOI = re.compile(r"(?<![\w./-])(doi: ?)?10\.([0-9]{4,9})/([A-Za-z0-9][\w.;()/:-]{0,80}(?<=[\w)]))", re.IGNORECASE)
ARXIV = re.compile(r"\b(arXiv): ?([0-9]{4})\.([0-9]{4,5})(?:v([0-9]{1,2}))?(?!\w)")
POSTCODE = re.compile(r"(?<![\w-])(?:([A-Z][0-9][A-Z]) ([0-9][A-Z][0-9])|([0-9]{5})-([0-9]{4}))(?![\w-])")
# A long key or token of letters and digits in random order. Only its first characters and its length are read.
RANDOM = re.compile(r"(?<![\w/.-])(?=[A-Za-z_]{0,20}[0-9])[A-Za-z0-9_]{20,80}(?![\w/.-]\w|\w)")
_RUNS = re.compile(r"[0-9]+|[A-Z]+[a-z]*|[a-z]+")
EMERGENCY = re.compile(r"(?<![\w.,$€£-])(911|999|112|988|311|411|211|811)(?![\w%-]|[.,][0-9]|:)")
GROUPS = re.compile(r"(?<![\w.-])([0-9]{1,10}(?:-[0-9]{1,10}){2,6})(?![\w-])")
CARD = re.compile(r"(?<![\w.-])([0-9]{4}(?: [0-9]{4}){3})(?![\w-])")
CODE_WORD = re.compile(
    r"\b(zip(?: code)?|area code|post(?:al )?code|pin(?: code)?|passcode|password|code|extension|ext\.?|"
    r"serial(?: number)?|"
    r"EAN|UPC|PMID|MRN|GTIN|IMEI|SSN|confirmation(?: number)?|tracking(?: number)?|account(?: number)?"
    r"|ISBN|SKU)((?: is|:| number)? #?)([0-9]{2,40})\b"
    r"(?![.,:-][0-9])",
    re.IGNORECASE,
)
STATE_ZIP = re.compile(rf"(?<=[ ,])({'|'.join(tables.STATES)})\.?,? ([0-9]{{5}})(?:-([0-9]{{4}}))?(?![\w-])")
STATE = re.compile(rf"(?<=[a-z], )({'|'.join(tables.STATES)})(?=[,.;:)]|$)")


def spoken_groups(*groups: str | None) -> str:
    """Return the words for groups of digits: "020", "7946" -> "zero two zero, seven nine four six".

    A group that is None or "" is skipped.
    """
    return ", ".join(number_words.digits(group) for group in groups if group)


def verbalize_phone_plus(match: Match) -> str:
    groups = re.findall(r"[0-9]+", match[1])
    if not 7 <= sum(map(len, groups)) <= 15:
        return match[0]
    return f"plus {spoken_groups(*groups)}"


def verbalize_phone_zero(match: Match) -> str:
    groups = re.findall(r"[0-9]+", match[0])
    if not 8 <= sum(map(len, groups)) <= 13:
        return match[0]
    return spoken_groups(*groups)


def verbalize_book_number(match: Match) -> str:
    groups = [spell_out(group) for group in match[3].split("-") if group]
    return f"{match[1].split('-')[0]}{match[2]}{', '.join(groups)}"


def verbalize_iban(match: Match) -> str:
    groups = match[1].split(" ")
    if sum(map(len, groups)) < 15 or sum(char.isdecimal() for char in match[1]) < 8:
        return match[0]
    return ", ".join(spell_out(group) for group in groups)


def verbalize_doi(match: Match) -> str:
    name = " ".join(spell_out(run) if run.isdecimal() else run for run in re.findall(r"[0-9]+|[A-Za-z]+|/", match[3]))
    return f"{'DOI, ' if match[1] else ''}ten point {number_words.digits(match[2])} slash {name.replace('/', 'slash')}"


def verbalize_arxiv(match: Match) -> str:
    version = f" version {number_words.integer(match[4])}" if match[4] else ""
    return f"{match[1]} {number_words.digits(match[2])} point {number_words.digits(match[3])}{version}"


def verbalize_postcode(match: Match) -> str:
    return ", ".join(spell_out(group) for group in match.groups() if group)


def verbalize_random(match: Match) -> str:
    """Return the words for the first seven characters of a random key, and for the number of its characters."""
    text = match[0]
    runs = _RUNS.findall(text)
    if len(runs) < 7 or len(text) > 4 * len(runs):
        return text
    return f"{spell_out(text.replace('_', '')[:7])}, and so on, {number_words.cardinal(len(text))} characters in all"


def _area_code(run: str) -> str:
    return f"{number_words.cardinal(int(run[0]))} hundred" if run.endswith("00") else number_words.digits(run)


def verbalize_phone_us(match: Match) -> str:
    area = match[2] or match[3]
    head = [number_words.digits("1")] if match[1] else []
    return (" " if match[1] and area.endswith("00") else ", ").join([*head, _area_code(area)]) + (
        f", {spoken_groups(match[4], match[5])}"
    )


def verbalize_phone_letters(match: Match) -> str:
    tail = ", ".join(number_words.digits(part) if part.isdecimal() else part for part in match[3].split("-"))
    return f"{'one ' if match[1] else ''}{_area_code(match[2])}, {tail}"


def verbalize_emergency(match: Match) -> str:
    before = re.search(r"([A-Za-z]+) $", match.string[max(0, match.start() - 20) : match.start()])
    after = re.match(r" ([a-z]+)", match.string[match.end() : match.end() + 20])
    calls = before is not None and before[1].lower() in {
        "call",
        "dial",
        "dialed",
        "called",
        "calling",
        "text",
        "ring",
        "phone",
    }
    if calls or (match[1] == "911" and not (after and after[1] in tables.COUNTED) and not _is_label(before)):
        return number_words.digits(match[1])
    return match[0]


def _is_label(before: Match | None) -> bool:
    return before is not None and before[1].lower() in tables.LABELLED


def verbalize_groups(match: Match) -> str:
    groups = match[1].split("-")
    if max(map(len, groups)) <= 2:
        return " ".join(number_words.integer(group) for group in groups)
    return spoken_groups(*groups)


def verbalize_code_word(match: Match) -> str:
    if match[1].lower() == "code" and len(match[3]) < 3:
        return match[0]
    joint = match[2].replace("#", "")
    name = "extension" if match[1].lower().startswith("ext") else match[1]
    return f"{name}{joint}{number_words.digits(match[3])}"


def verbalize_state_zip(match: Match) -> str:
    return f"{tables.STATES[match[1]]} {spoken_groups(match[2], match[3])}"
