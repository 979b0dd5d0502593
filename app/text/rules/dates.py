"""Rules for dates, times of day, ratios ("3:1"), years, decades and eras ("44 BC")."""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules.common import DASH, SENTENCE_START, Match, sentence_stop

# The match must not begin inside a word or a number. Unlike NUMBER_START, this pattern allows punctuation before the
# match.
_LOOSE_START = r"(?<![A-Za-z0-9_])(?<![0-9][.,:/])"
_MONTH = (
    r"(Jan(?:uary|\.)?|Feb(?:ruary|\.)?|Mar(?:ch|\.)?|Apr(?:il|\.)?|May|June?\.?|July?\.?|Aug(?:ust|\.)?|"
    r"Sept?(?:ember|\.)?|Oct(?:ober|\.)?|Nov(?:ember|\.)?|Dec(?:ember|\.)?)"
)
_MERIDIEM = r"(?: ?([AaPp])(?:\.[Mm]\.|[Mm]\b))"
ISO_DATE = re.compile(
    r"(?<![\w.-])([12][0-9]{3})[-/]([01]?[0-9])[-/]([0-3]?[0-9])"
    r"(?:[T ]([0-2][0-9]):([0-5][0-9])(?::[0-5][0-9](?:[.,][0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?(?![\w-])"
    r"(?!/[0-9])"
)
_CLOCK_FOLLOWS = r"(?=,? [0-2]?[0-9]:[0-5][0-9])"
# NAMED_DATE matches dates with the name of the month: "10-Dec-2024". COMPACT_DATE matches eight digits: "20241210".
NAMED_DATE = re.compile(
    rf"(?<![\w./-])(?:([0-3]?[0-9])([-/]){_MONTH}\2([12][0-9]{{3}}|[0-9]{{2}})|{_MONTH}-([0-3]?[0-9])-([12][0-9]{{3}}))(?![\w/-])(:?)"
)
COMPACT_DATE = re.compile(
    r"(?<![\w.,$€£#+/-])((?:19|20)[0-9]{2})(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])(?:(?:T|_|-)([01][0-9]|2[0-3])([0-5][0-9])(?:[0-5][0-9])?Z?)?(?![\w%]|[.,:-][0-9])"
)
DOT_DATE = re.compile(
    rf"(?<![\w.,])(?:((?:19|20)[0-9]{{2}})\.(0[1-9]|1[0-2])\.(0[1-9]|[12][0-9]|3[01])|"
    rf"(0?[1-9]|[12][0-9]|3[01])\.(0?[1-9]|1[0-2])\.([0-9]{{2}}){_CLOCK_FOLLOWS})(?![\w.]\w|\w)"
)
YEAR_MONTH = re.compile(r"(?<![\w.,$€£/-])((?:19|20)([0-9]{2}))-(0[1-9]|1[0-2])(?![\w%-]|[.,:][0-9])")
# Military times, with hours and minutes in four digits: "0600 hours", "1430Z".
MILITARY_TIME = re.compile(r"(?<![\w.,$€£-])([01][0-9]|2[0-3])([0-5][0-9])(?:( h(?:ou)?rs\b)|( ?Z|(?= Zulu))\b)")
# Times with fractions of a second: 01:30:45.500, 1:23.45.
EXACT_TIME = re.compile(
    r"(?<![\w.:])(?:([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])[.,]([0-9]{1,6})|([0-9]{1,2}):([0-5][0-9])\.([0-9]{1,3}))(?![\w:]|[.,][0-9])"
)
# "8.30am" is rewritten as "8:30am", so that the rules for times read it.
DOT_TIME = re.compile(
    rf"{_LOOSE_START}([0-2]?[0-9])\.([0-5][0-9])(?={_MERIDIEM}|{DASH}[0-2]?[0-9]\.[0-5][0-9]{_MERIDIEM})"
)
HOUR_SIGN = re.compile(r"(?<=[0-9]:[0-5][0-9]) ?h(?!\w)")  # for example "15:30h"
# Two consecutive years ("the 2023/24 season", "FY2023/24"), or a year and a month ("2024/05").
SEASON = re.compile(r"(?<![\w.,/$€£-])(FY ?)?((?:1[0-9]|20)[0-9]{2})/([0-9]{4}|[0-9]{2})(?![\w/-]|[.,][0-9])")
VERSE = re.compile(
    rf"\b({'|'.join(sorted(tables.BOOKS, key=len, reverse=True))})\.? ?{SENTENCE_START}?(?<![A-Za-z])"
    r"([0-9]{1,3}):([0-9]{1,3})(?:[-–]([0-9]{1,3})(?::([0-9]{1,3}))?)?"
    r"((?:[,;] ?[0-9]{1,3}:[0-9]{1,3}(?:[-–][0-9]{1,3})?){0,8})"
    r"(?![\w:-]|\.[0-9]| ?[AaPp]\.?[Mm]\b)"
)
BORN = re.compile(
    rf"(?<![\w.':-])(b|d|fl|r|m)\. ?{SENTENCE_START}?(?=(?:c\. ?|ca\. ?|circa )?[0-9]{{3,4}}(?!,[0-9]|\w)|"
    rf"{_MONTH} [0-9]|[0-3]?[0-9] {_MONTH} [0-9])"
)
_BORN = {"b": "born ", "d": "died ", "fl": "flourished ", "r": "reigned ", "m": "married "}
# A number from 1001 to 1099 is read as a year only after one of these words, as in "in 1066". A number from 1100 to
# 2099 is read as a year without such a word, too.
EARLY_YEAR = re.compile(
    r"\b([Ii]n|[Ss]ince|[Uu]ntil|[Bb]efore|[Aa]fter|[Aa]round|[Cc]irca|[Dd]uring|[Yy]ear) (10[0-9][1-9]|10[1-9]0)"
    r"(?![\w%]|[.,:/-][0-9]|-[A-Za-z])(?= ([A-Za-z]{1,20})|)"
)
EARLY_YEARS = re.compile(
    rf"\b([Ff]rom|[Bb]etween) (10[0-9]{{2}}) (to|and|until) (1[0-9]{{3}})"
    rf"(?![\w%]|[.,:/-][0-9]| (?:{'|'.join(sorted(tables.COUNTED))})\b)"
)
DECADES = re.compile(r"(?<![\w$£€.,])('?)((?:1[0-9]|20)[0-9]0|[2-9]0)s ?([-–/]) ?'?([12][0-9]{2}0|[1-9]0)'?s\b")
CENTURY = re.compile(r"(?<=[0-9]st|[0-9]nd|[0-9]rd|[0-9]th) (ed|edn|c|cent|C)\.(?!\w)")
SLASH_DATE = re.compile(r"(?<![\w/.-])([0-3]?[0-9])([/-])([0-3]?[0-9])\2([12][0-9]{3}|[0-9]{2})(?![\w/-])")
SLASH_DAY = re.compile(
    r"\b([Oo]n|[Bb]y|[Ss]ince|[Uu]ntil|[Dd]ue|[Bb]efore|[Aa]fter|[Ff]rom) ([01]?[0-9])/([0-3]?[0-9])(?![\w/]|\.[0-9])"
)
WEEKDAY = re.compile(rf"\b({'|'.join(tables.WEEKDAYS)})\b\.?(?=,? (?:{_MONTH}|[0-9]))")
WEEKDAYS = re.compile(rf"\b({'|'.join(tables.WEEKDAYS)})\.? ?[-–] ?({'|'.join(tables.WEEKDAYS)})\b", re.IGNORECASE)
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
    rf"{_LOOSE_START}([0-2]?[0-9])(?::([0-5][0-9]))?{_MERIDIEM}?{DASH}([0-2]?[0-9])(?::([0-5][0-9]))?{_MERIDIEM}(?!\w)"
)
CLOCK_RANGE = re.compile(rf"{_LOOSE_START}([0-2]?[0-9]):([0-5][0-9]){DASH}([0-2]?[0-9]):([0-5][0-9])(?![\w:])")
VERSES = re.compile(rf"{_LOOSE_START}([0-9]{{1,3}}):([0-9]{{1,3}})[-–]([0-9]{{1,3}})(?![\w:]|\.[0-9])")
FROM_NOON = re.compile(r"\b([Nn]oon|[Mm]idnight) ?[-–] ?(?=[0-9])")
TIME = re.compile(rf"{_LOOSE_START}([0-2]?[0-9]):([0-5][0-9])(?::([0-5][0-9]))?(?:{_MERIDIEM}(?!\w)|(?![\w:]|\.[0-9]))")
HOUR = re.compile(rf"{_LOOSE_START}([01]?[0-9]){_MERIDIEM}(?!\w)")
HOURS_MINUTES = re.compile(rf"{_LOOSE_START}([0-9]{{1,3}})h([0-5][0-9])(?!\w|\.[0-9])")
RATIO = re.compile(rf"{_LOOSE_START}([0-9]{{1,5}}) ?: ?([0-9]{{1,5}})(?![\w:]|\.[0-9])")
DECADE = re.compile(r"(?<![\w$£€.,])('?)([12][0-9]{2}0|[1-9]0|(?<=[Tt]he )00)('?)s\b")
SHORT_YEARS = re.compile(r"(?<![\w'])'([0-9]{2})[-–]'([0-9]{2})(?![\w'])")
SHORT_YEAR = re.compile(r"(?<![\w'])(?:(?<=[0-9])|)'([0-9]{2})(?![\w'\"]|[.,][0-9])")
QUARTER_YEAR = re.compile(r"\b([QH][1-4])'([0-9]{2})\b")
ERA = re.compile(
    r"(?<![\w.,])([0-9]{1,4})(?:(–|-| – | to | until )([0-9]{1,4}))? ?(AD|BC|BCE|CE|A\.D\.|B\.C\.E?\.?|C\.E\.)(?!\w)"
)
AD = re.compile(r"\b(AD|A\.D\.) ([0-9]{1,4})\b")
YEAR_RANGE = re.compile(
    rf"(?<![\w.,$£€-])(1[0-9]{{3}}|20[0-9]{{2}}){DASH}((?:1[0-9]|20)?[0-9]{{2}})(?![\w%-]|[.,][0-9])"
)


def month_name(name: str) -> str:
    """Return the full name of a month: "Mar" -> "March", "March" -> "March"."""
    return tables.MONTH_BY_PREFIX[name[:3]]


def month_stop(match: Match) -> str:
    """Return "." if a matched abbreviation such as "Mar." also ends the sentence, else ""."""
    return sentence_stop(match) if match[0].endswith(".") else ""


def spoken_day(month: str, day: int, year: str | None) -> str:
    """Return the words for a date: "March", 3, "1999" -> "March third, nineteen ninety nine"."""
    return f"{month} {number_words.ordinal(day)}" + (f", {_year(year)}" if year else "")


def _year(year: str) -> str:
    if len(year) == 2:
        value = int(year)
        return number_words.year(value + (2000 if value < 50 else 1900))
    return number_words.year(int(year))


def _date(year: str, month: int, day: int) -> str | None:
    return spoken_day(tables.MONTHS[month - 1], day, year) if 1 <= month <= 12 and 1 <= day <= 31 else None


def verbalize_iso_date(match: Match) -> str:
    date = _date(match[1], int(match[2]), int(match[3]))
    if date is None:
        return match[0]
    if match[4]:
        date += f" at {_clock(int(match[4]), int(match[5]))}" + (f" UTC{_offset(match[6])}" if match[6] else "")
    return date


def verbalize_weekdays(match: Match) -> str:
    return f"{tables.WEEKDAYS[match[1].capitalize()]} to {tables.WEEKDAYS[match[2].capitalize()]}"


def verbalize_named_date(match: Match) -> str:
    """Return the words for a date: "10-Dec-2024" -> "December tenth, twenty twenty four"."""
    day, month, year = (match[1], match[3], match[4]) if match[1] else (match[6], match[5], match[7])
    if not 1 <= int(day) <= 31:
        return match[0]
    return spoken_day(month_name(month), int(day), year) + (", " if match[8] else "")


def verbalize_compact_date(match: Match) -> str:
    words = spoken_day(tables.MONTHS[int(match[2]) - 1], int(match[3]), match[1])
    return words + (f" at {_clock(int(match[4]), int(match[5]))}" if match[4] else "")


def verbalize_dot_date(match: Match) -> str:
    """Return the words for a date with full stops: "2024.10.12" -> "October twelfth, twenty twenty four".

    A short date such as "24.12.24" matches only before a time.
    """
    if match[1]:
        return spoken_day(tables.MONTHS[int(match[2]) - 1], int(match[3]), match[1])
    return spoken_day(tables.MONTHS[int(match[5]) - 1], int(match[4]), match[6])


def verbalize_year_month(match: Match) -> str:
    """Return the words for a year and a month: "2024-05" -> "May twenty twenty four".

    "2009-12" does not change, because it may be a range of years.
    """
    return (
        match[0]
        if int(match[3]) > int(match[2])
        else f"{tables.MONTHS[int(match[3]) - 1]} {number_words.year(int(match[1]))}"
    )


def verbalize_military_time(match: Match) -> str:
    hour = number_words.digits(match[1]) if match[1][0] == "0" else number_words.cardinal(int(match[1]))
    minute = "hundred" if match[2] == "00" else number_words.two_digits(int(match[2]))
    return f"{hour} {minute}{' hours' if match[3] else ' Zulu' if match[4] else ''}"


def verbalize_exact_time(match: Match) -> str:
    """Return the words for a time with fractions of a second: "1:23.45" -> "one minute twenty three point four five
    seconds".
    """
    hour, minute, second, part = (group or "0" for group in (match.groups()[:4] if match[2] else match.groups()[3:]))
    hour = hour if match[2] else "0"
    words = [_counted(int(value), unit) for value, unit in ((hour, "hour"), (minute, "minute")) if int(value)]
    fraction = part.rstrip("0")
    seconds = number_words.cardinal(int(second)) + (f" point {number_words.digits(fraction)}" if fraction else "")
    return " ".join([*words, seconds, "seconds"])


def _offset(zone: str) -> str:
    """Return the words for an offset from UTC: "+05:30" -> " plus five thirty"."""
    hours, minutes = int(zone[1:3] or 0) if zone != "Z" else 0, int(zone[-2:]) if zone != "Z" else 0
    if not hours and not minutes:
        return ""
    sign = "plus" if zone[0] == "+" else "minus"
    return f" {sign} {number_words.cardinal(hours)}" + (f" {number_words.two_digits(minutes)}" if minutes else "")


def verbalize_season(match: Match) -> str:
    """Return the words for two consecutive years ("2023/24"), or for a year and a month ("2024/05")."""
    first, last = int(match[2]), int(match[3])
    prefix = "FY " if match[1] else ""
    if last in {first + 1, (first + 1) % 100}:
        words = number_words.year(last) if len(match[3]) == 4 else number_words.two_digits(last)
        return f"{prefix}{number_words.year(first)} {words}"
    if not prefix and len(match[3]) == 2 and 1 <= last <= 12:
        return f"{tables.MONTHS[last - 1]} {number_words.year(first)}"
    return match[0]


def verbalize_verse(match: Match) -> str:
    """Return the words for a verse of the Bible: "Gen 1:1-3" -> "Genesis one one to three"."""
    if match[3] == "00":
        return match[0]
    words = f"{tables.BOOKS[match[1]]} {number_words.label(match[2])} {number_words.label(match[3])}"
    if match[4]:
        words += f" to {number_words.label(match[4])}" + (f" {number_words.label(match[5])}" if match[5] else "")
    for chapter, verse, last in re.findall(r"([0-9]{1,3}):([0-9]{1,3})(?:[-–]([0-9]{1,3}))?", match[6]):
        words += f", {number_words.label(chapter)} {number_words.label(verse)}"
        words += f" to {number_words.label(last)}" if last else ""
    return words


def verbalize_early_years(match: Match) -> str:
    years = number_words.year(int(match[2])), number_words.year(int(match[4]))
    return f"{match[1]} {years[0]} {match[3]} {years[1]}"


def verbalize_born(match: Match) -> str:
    return _BORN[match[1]]


def verbalize_early_year(match: Match) -> str:
    after = match[3]
    if after and after[0].islower() and after not in tables.FUNCTION_WORDS:
        return match[0]
    return f"{match[1]} {number_words.year(int(match[2]))}"


def verbalize_decades(match: Match) -> str:
    joint = " " if match[3] == "/" else " to "
    return f"{number_words.decade(int(match[2]))}{joint}{number_words.decade(int(match[4]))}"


def verbalize_century(match: Match) -> str:
    return (" edition" if match[1].startswith("ed") else " century") + sentence_stop(match)


def verbalize_slash_date(match: Match) -> str:
    if match[2] == "-" and len(match[4]) == 2:
        return match[0]
    first, second = int(match[1]), int(match[3])
    return _date(match[4], first, second) or _date(match[4], second, first) or match[0]


def verbalize_slash_day(match: Match) -> str:
    month, day = int(match[2]), int(match[3])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return f"{match[1]} {spoken_day(tables.MONTHS[month - 1], day, None)}"


def verbalize_month_day(match: Match) -> str:
    first, last, year = int(match[2]), int(match[3] or 1), match[5]
    if not (1 <= first <= 31 and 1 <= last <= 31):
        return match[0]
    words = f"{month_name(match[1])} {number_words.ordinal(first)}"
    words += f" to {number_words.ordinal(last)}" if match[3] else ""
    return words + (f", {_year(year)}" if year else "")


def verbalize_day_month(match: Match) -> str:
    day = int(match[2])
    if not 1 <= day <= 31:
        return match[0]
    sentence_start = match.start() == 0 or match.string[max(0, match.start() - 2) : match.start()] in {". ", "! ", "? "}
    article = match[1] or ("The " if sentence_start else "the ")
    words = f"{article}{number_words.ordinal(day)} of {month_name(match[4])}"
    return words + (f", {_year(match[6])}" if match[6] else month_stop(match))


def verbalize_month_year(match: Match) -> str:
    return f"{month_name(match[1])} {_year(match[2] or match[3])}"


def _meridiem(letter: str | None) -> str:
    return f" {letter.upper()}M" if letter else ""


def _clock(hour: int, minute: int, letter: str | None = None) -> str:
    if letter:
        return (
            number_words.cardinal(hour) + (f" {number_words.two_digits(minute)}" if minute else "") + _meridiem(letter)
        )
    if minute:
        return f"{number_words.cardinal(hour)} {number_words.two_digits(minute)}"
    if hour == 0:
        return "midnight"
    return f"{number_words.cardinal(hour)} o'clock" if hour <= 12 else f"{number_words.cardinal(hour)} hundred"


def _after_meridiem(match: Match, words: str) -> str:
    return words + (sentence_stop(match) if match[0].endswith(".") else "")


def verbalize_time_range(match: Match) -> str:
    if int(match[1]) > 12 or int(match[4]) > 12:
        return match[0]
    first = number_words.cardinal(int(match[1])) + (
        f" {number_words.two_digits(int(match[2]))}" if match[2] and match[2] != "00" else ""
    )
    return _after_meridiem(
        match, f"{first}{_meridiem(match[3])} to {_clock(int(match[4]), int(match[5] or 0), match[6])}"
    )


def verbalize_clock_range(match: Match) -> str:
    if int(match[1]) > 24 or int(match[3]) > 24:
        return match[0]
    return f"{_clock(int(match[1]), int(match[2]))} to {_clock(int(match[3]), int(match[4]))}"


def verbalize_time(match: Match) -> str:
    hour, minute = int(match[1]), int(match[2])
    if hour > 24 or (match[4] and hour > 12):
        return match[0]
    if match[3]:
        seconds = number_words.cardinal(int(match[3]))
        words = f"{number_words.cardinal(hour)} {number_words.two_digits(minute)} and {seconds} seconds"
        words += _meridiem(match[4])
    elif _is_ratio(match):
        return match[0]
    else:
        words = _clock(hour, minute, match[4])
    return _after_meridiem(match, words)


_RATIO_AFTER = re.compile(r" (?:ratio|odds|scale|mix|aspect|split|dilution)\b")


def _is_ratio(match: Match) -> bool:
    before = match.string[max(0, match.start() - 30) : match.start()].lower()
    return not match[4] and (
        _RATIO_AFTER.match(match.string, match.end()) is not None
        or re.search(r"\b(?:ratio|odds|scale)\b[^.]{0,20}$", before) is not None
        or f"{match[1]}:{match[2]}" == "16:10"
    )


def verbalize_hour(match: Match) -> str:
    return _after_meridiem(match, f"{number_words.integer(match[1].lstrip('0') or '0')}{_meridiem(match[2])}")


def verbalize_hours_minutes(match: Match) -> str:
    hours, minutes = int(match[1]), int(match[2])
    return f"{_counted(hours, 'hour')} {_counted(minutes, 'minute')}"


def _counted(value: int, noun: str) -> str:
    return f"{number_words.cardinal(value)} {noun}{'' if value == 1 else 's'}"


def verbalize_ratio(match: Match) -> str:
    return f"{number_words.integer(match[1])} to {number_words.integer(match[2])}"


def verbalize_decade(match: Match) -> str:
    value = int(match[2])
    if match[2] == "00":
        return "two thousands"
    before = re.search(r"([A-Za-z]+-?) ?$", match.string[max(0, match.start() - 16) : match.start()])
    if value < 100 and not match[1] and not match[3] and not (before and before[1].lower() in tables.BEFORE_DECADES):
        return match[0]
    return number_words.decade(value)


def verbalize_short_years(match: Match) -> str:
    return f"{number_words.two_digits(int(match[1]))} to {number_words.two_digits(int(match[2]))}"


def verbalize_short_year(match: Match) -> str:
    return (
        f" {number_words.two_digits(int(match[1]))}"
        if match.start() and match.string[match.start() - 1].isalnum()
        else number_words.two_digits(int(match[1]))
    )


def _era_year(run: str) -> str:
    value = int(run)
    return number_words.cardinal(value) if value % 100 == 0 and value < 1100 else number_words.year(value)


def verbalize_era(match: Match) -> str:
    words = _era_year(match[1]) + (f" to {_era_year(match[3])}" if match[3] else "")
    return f"{words} {match[4].replace('.', '')}" + (sentence_stop(match) if match[4].endswith(".") else "")


def verbalize_ad(match: Match) -> str:
    return f"AD {_era_year(match[2])}"


def verbalize_year_range(match: Match) -> str:
    first, last = match[1], match[2]
    if len(last) == 4 and int(last) < int(first):
        return match[0]
    if len(last) == 2:
        if int(last) <= int(first[2:]):
            return match[0]
        return f"{_year(first)} to {number_words.two_digits(int(last))}"
    return f"{_year(first)} to {_year(last)}"
