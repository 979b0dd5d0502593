"""Dates, times of day, ratios with a colon, years, decades and eras."""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules.common import DASH, Match, sentence_stop

_LOOSE = r"(?<![A-Za-z0-9_])(?<![0-9][.,:/])"  # the same, but ".5" after a stop and "('80" are fine
_MONTH = (
    r"(Jan(?:uary|\.)?|Feb(?:ruary|\.)?|Mar(?:ch|\.)?|Apr(?:il|\.)?|May|June?\.?|July?\.?|Aug(?:ust|\.)?|"
    r"Sept?(?:ember|\.)?|Oct(?:ober|\.)?|Nov(?:ember|\.)?|Dec(?:ember|\.)?)"
)
_MERIDIEM = r"(?: ?([AaPp])(?:\.[Mm]\.|[Mm]\b))"
ISO_DATE = re.compile(
    r"(?<![\w.-])([12][0-9]{3})[-/]([01]?[0-9])[-/]([0-3]?[0-9])"
    r"(?:[T ]([0-2][0-9]):([0-5][0-9])(?::[0-5][0-9](?:\.[0-9]{1,9})?)?(Z)?)?(?![\w-])(?!/[0-9])"
)
SLASH_DATE = re.compile(r"(?<![\w/.-])([0-3]?[0-9])([/-])([0-3]?[0-9])\2([12][0-9]{3}|[0-9]{2})(?![\w/-])")
SLASH_DAY = re.compile(
    r"\b([Oo]n|[Bb]y|[Ss]ince|[Uu]ntil|[Dd]ue|[Bb]efore|[Aa]fter|[Ff]rom) ([01]?[0-9])/([0-3]?[0-9])(?![\w/]|\.[0-9])"
)
WEEKDAY = re.compile(rf"\b({'|'.join(tables.WEEKDAYS)})\b\.?(?=,? (?:{_MONTH}|[0-9]))")
WEEKDAYS = re.compile(rf"\b({'|'.join(tables.WEEKDAYS)})\.? ?[-–] ?({'|'.join(tables.WEEKDAYS)})\b")
MONTHS = re.compile(rf"\b{_MONTH} ?[-–] ?{_MONTH}(?![A-Za-z])")
MONTH_DAY = re.compile(
    rf"\b{_MONTH} ([0-3]?[0-9])(?:st|nd|rd|th)?(?:{DASH}([0-3]?[0-9])(?:st|nd|rd|th)?)?(?:(,? )([12][0-9]{{3}})\b)?"
    r"(?![\w%]|[.,:/][0-9])(?! ?(?:[ap]\.?m\b|percent|million|billion|people))"
)
DAY_MONTH = re.compile(
    rf"(?<![\w.,/-])((?:[Tt]he )?)([0-3]?[0-9])(?:st|nd|rd|th)?( of)? {_MONTH}(?![a-z])"
    r"(?:(,? )([12][0-9]{3})\b)?(?![.,:/][0-9])"
)
MONTH_YEAR = re.compile(rf"\b{_MONTH},? (?:'([0-9]{{2}})|([12][0-9]{{3}}))(?![\w,]\w|[\w%])")
TIME_RANGE = re.compile(
    rf"{_LOOSE}([0-2]?[0-9])(?::([0-5][0-9]))?{_MERIDIEM}?{DASH}([0-2]?[0-9])(?::([0-5][0-9]))?{_MERIDIEM}(?!\w)"
)
CLOCK_RANGE = re.compile(rf"{_LOOSE}([0-2]?[0-9]):([0-5][0-9]){DASH}([0-2]?[0-9]):([0-5][0-9])(?![\w:])")
VERSES = re.compile(rf"{_LOOSE}([0-9]{{1,3}}):([0-9]{{1,3}})[-–]([0-9]{{1,3}})(?![\w:]|\.[0-9])")
FROM_NOON = re.compile(r"\b([Nn]oon|[Mm]idnight) ?[-–] ?(?=[0-9])")
TIME = re.compile(rf"{_LOOSE}([0-2]?[0-9]):([0-5][0-9])(?::([0-5][0-9]))?(?:{_MERIDIEM}(?!\w)|(?![\w:]|\.[0-9]))")
HOUR = re.compile(rf"{_LOOSE}([01]?[0-9]){_MERIDIEM}(?!\w)")
DURATION = re.compile(rf"{_LOOSE}([0-9]{{1,3}})h ?([0-5]?[0-9])(?:m|min)?(?!\w|\.[0-9])")
RATIO = re.compile(rf"{_LOOSE}([0-9]{{1,5}}) ?: ?([0-9]{{1,5}})(?![\w:]|\.[0-9])")
DECADE = re.compile(r"(?<![\w$£€.,])('?)([12][0-9]{2}0|[1-9]0)('?)s\b")
SHORT_YEARS = re.compile(r"(?<![\w'])'([0-9]{2})[-–]'([0-9]{2})(?![\w'])")
SHORT_YEAR = re.compile(r"(?<![\w'])(?:(?<=[0-9])|)'([0-9]{2})(?![\w'\"]|[.,][0-9])")
QUARTER_YEAR = re.compile(r"\b([QH][1-4])'([0-9]{2})\b")
ERA = re.compile(r"(?<![\w.,])([0-9]{1,4})(?:(–|-)([0-9]{1,4}))? ?(AD|BC|BCE|CE|A\.D\.|B\.C\.E?\.?|C\.E\.)(?!\w)")
AD = re.compile(r"\b(AD|A\.D\.) ([0-9]{1,4})\b")
YEAR_RANGE = re.compile(
    rf"(?<![\w.,$£€-])(1[0-9]{{3}}|20[0-9]{{2}}){DASH}((?:1[0-9]|20)?[0-9]{{2}})(?![\w%-]|[.,][0-9])"
)


def month_name(name: str) -> str:
    return tables.MONTH_BY_PREFIX[name[:3]]


def month_stop(found: Match) -> str:
    """The stop of "Mar." when it also ends the sentence."""
    return sentence_stop(found) if found[0].endswith(".") else ""


def spoken_day(month: str, day: int, year: str | None) -> str:
    return f"{month} {number_words.ordinal(day)}" + (f", {_year(year)}" if year else "")


def _year(year: str) -> str:
    if len(year) == 2:
        value = int(year)
        return number_words.year(value + (2000 if value < 50 else 1900))
    return number_words.year(int(year))


def _date(year: str, month: int, day: int) -> str | None:
    return spoken_day(tables.MONTHS[month - 1], day, year) if 1 <= month <= 12 and 1 <= day <= 31 else None


def read_iso_date(found: Match) -> str:
    date = _date(found[1], int(found[2]), int(found[3]))
    if date is None:
        return found[0]
    if found[4]:
        date += f" at {_clock(int(found[4]), int(found[5]))}" + (" UTC" if found[6] else "")
    return date


def read_slash_date(found: Match) -> str:
    if found[2] == "-" and len(found[4]) == 2:
        return found[0]
    first, second = int(found[1]), int(found[3])
    return _date(found[4], first, second) or _date(found[4], second, first) or found[0]


def read_slash_day(found: Match) -> str:
    month, day = int(found[2]), int(found[3])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return found[0]
    return f"{found[1]} {spoken_day(tables.MONTHS[month - 1], day, None)}"


def read_month_day(found: Match) -> str:
    first, last, year = int(found[2]), int(found[3] or 1), found[5]
    if not (1 <= first <= 31 and 1 <= last <= 31):
        return found[0]
    words = f"{month_name(found[1])} {number_words.ordinal(first)}"
    words += f" to {number_words.ordinal(last)}" if found[3] else ""
    return words + (f", {_year(year)}" if year else "")


def read_day_month(found: Match) -> str:
    day = int(found[2])
    if not 1 <= day <= 31:
        return found[0]
    sentence_start = found.start() == 0 or found.string[max(0, found.start() - 2) : found.start()] in {". ", "! ", "? "}
    article = found[1] or ("The " if sentence_start else "the ")
    words = f"{article}{number_words.ordinal(day)} of {month_name(found[4])}"
    return words + (f", {_year(found[6])}" if found[6] else month_stop(found))


def read_month_year(found: Match) -> str:
    return f"{month_name(found[1])} {_year(found[2] or found[3])}"


def _meridiem(letter: str | None) -> str:
    return f" {letter.upper()}M" if letter else ""


def _clock(hour: int, minute: int, letter: str | None = None) -> str:
    if letter:
        return number_words.cardinal(hour) + (f" {number_words.pair(minute)}" if minute else "") + _meridiem(letter)
    if minute:
        return f"{number_words.cardinal(hour)} {number_words.pair(minute)}"
    if hour == 0:
        return "midnight"
    return f"{number_words.cardinal(hour)} o'clock" if hour <= 12 else f"{number_words.cardinal(hour)} hundred"


def _after_meridiem(found: Match, words: str) -> str:
    return words + (sentence_stop(found) if found[0].endswith(".") else "")


def read_time_range(found: Match) -> str:
    if int(found[1]) > 12 or int(found[4]) > 12:
        return found[0]
    first = number_words.cardinal(int(found[1])) + (
        f" {number_words.pair(int(found[2]))}" if found[2] and found[2] != "00" else ""
    )
    return _after_meridiem(
        found, f"{first}{_meridiem(found[3])} to {_clock(int(found[4]), int(found[5] or 0), found[6])}"
    )


def read_clock_range(found: Match) -> str:
    if int(found[1]) > 24 or int(found[3]) > 24:
        return found[0]
    return f"{_clock(int(found[1]), int(found[2]))} to {_clock(int(found[3]), int(found[4]))}"


def read_time(found: Match) -> str:
    hour, minute = int(found[1]), int(found[2])
    if hour > 24 or (found[4] and hour > 12):
        return found[0]
    if found[3]:
        seconds = number_words.cardinal(int(found[3]))
        words = f"{number_words.cardinal(hour)} {number_words.pair(minute)} and {seconds} seconds"
        words += _meridiem(found[4])
    elif _is_ratio(found):
        return found[0]
    else:
        words = _clock(hour, minute, found[4])
    return _after_meridiem(found, words)


_RATIO_AFTER = re.compile(r" (?:ratio|odds|scale|mix|aspect|split|dilution)\b")


def _is_ratio(found: Match) -> bool:
    before = found.string[max(0, found.start() - 30) : found.start()].lower()
    return not found[4] and (
        _RATIO_AFTER.match(found.string, found.end()) is not None
        or re.search(r"\b(?:ratio|odds|scale)\b[^.]{0,20}$", before) is not None
        or f"{found[1]}:{found[2]}" == "16:10"
    )


def read_hour(found: Match) -> str:
    return _after_meridiem(found, f"{number_words.integer(found[1].lstrip('0') or '0')}{_meridiem(found[2])}")


def read_duration(found: Match) -> str:
    hours, minutes = int(found[1]), int(found[2])
    return f"{_counted(hours, 'hour')} {_counted(minutes, 'minute')}"


def _counted(value: int, noun: str) -> str:
    return f"{number_words.cardinal(value)} {noun}{'' if value == 1 else 's'}"


def read_ratio(found: Match) -> str:
    return f"{number_words.integer(found[1])} to {number_words.integer(found[2])}"


def read_decade(found: Match) -> str:
    value = int(found[2])
    before = re.search(r"([A-Za-z]+-?) ?$", found.string[max(0, found.start() - 16) : found.start()])
    if value < 100 and not found[1] and not found[3] and not (before and before[1].lower() in tables.BEFORE_DECADES):
        return found[0]
    return number_words.decade(value)


def read_short_year(found: Match) -> str:
    return (
        f" {number_words.pair(int(found[1]))}"
        if found.start() and found.string[found.start() - 1].isalnum()
        else number_words.pair(int(found[1]))
    )


def _era_year(run: str) -> str:
    value = int(run)
    return number_words.cardinal(value) if value % 100 == 0 and value < 1100 else number_words.year(value)


def read_era(found: Match) -> str:
    words = _era_year(found[1]) + (f" to {_era_year(found[3])}" if found[3] else "")
    return f"{words} {found[4].replace('.', '')}" + (sentence_stop(found) if found[4].endswith(".") else "")


def read_ad(found: Match) -> str:
    return f"AD {_era_year(found[2])}"


def read_year_range(found: Match) -> str:
    first, last = found[1], found[2]
    if len(last) == 4 and int(last) < int(first):
        return found[0]
    if len(last) == 2:
        if int(last) <= int(first[2:]):
            return found[0]
        return f"{_year(first)} to {number_words.pair(int(last))}"
    return f"{_year(first)} to {_year(last)}"
