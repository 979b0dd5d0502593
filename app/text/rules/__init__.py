"""How English writes numbers, dates, money, addresses and short forms, and how a person reads them aloud.

One function per kind of thing, one pattern each, applied in a fixed order: what is most specific (a web address, a
telephone number) goes first, so that the general rules for numbers see only what is left. In and out is one paragraph
of clean text (`cleaning.clean`, `markup.plain_paragraphs`). Knows nothing of markdown, and nothing of wetext beyond the
function it is handed for units it has no name for.

Every repetition in a pattern is bounded and every pattern that begins with a run refuses to start inside one, which
keeps the time linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from app.text import number_words, tables
from app.text.rules import codes, common, dates, measures, money, net, words

_Reading = tuple[re.Pattern[str], str | Callable[[common.Match], str]]
_READINGS: tuple[_Reading, ...] = (
    (re.compile(r"[0-9]{41,}"), lambda found: f" {number_words.digits(found[0])} "),
    (words.CITATION, ""),
    (net.URL, net.read_url),
    (net.EMAIL, net.read_email),
    (words.HEART, "love"),
    (words.SMILEY, " "),
    (net.LOCAL, lambda found: net.spoken_address(found[1], found[2], found[3])),
    (net.IPV4, net.read_ipv4),
    (net.FILE, net.read_file),
    (net.DOMAIN, net.read_domain),
    (net.BARE_FILE, lambda found: f"dot {net.spoken_ending(found[1]) if found[1] != 'NET' else 'NET'}"),
    (net.WINDOWS_PATH, net.read_windows_path),
    (words.CIRCA, "circa "),
    (words.SMALL_NUMBER, r"\1 number "),
    (words.WITH, words.read_with),
    (words.BECAUSE, "because"),
    (net.PATH, net.read_path),
    (net.HANDLE, net.read_handle),
    (net.COLOUR, net.read_colour),
    (net.HASHTAG, net.read_hashtag),
    (net.LONG_NUMBER_SIGN, lambda found: f"number {number_words.digits(found[1])}"),
    (net.NUMBER_SIGN, "number "),
    (measures.BETWEEN, r"\1 and "),
    (dates.WEEKDAYS, lambda found: f"{tables.WEEKDAYS[found[1]]} to {tables.WEEKDAYS[found[2]]}"),
    (
        dates.MONTHS,
        lambda found: f"{dates.month_name(found[1])} to {dates.month_name(found[2])}{dates.month_stop(found)}",
    ),
    (net.SHARP, r"\1 sharp"),
    (net.PLUS_PLUS, r"\1 plus plus"),
    (codes.PHONE_PLUS, codes.read_phone_plus),
    (codes.PHONE_US, codes.read_phone_us),
    (codes.PHONE_LETTERS, codes.read_phone_letters),
    (codes.CARD, lambda found: codes.spoken_groups(*found[1].split(" "))),
    (dates.ISO_DATE, dates.read_iso_date),
    (dates.SLASH_DATE, dates.read_slash_date),
    (dates.SLASH_DAY, dates.read_slash_day),
    (codes.GROUPS, codes.read_groups),
    (codes.PHONE_SHORT, lambda found: codes.spoken_groups(found[1], found[2])),
    (net.PORT, lambda found: f"{found[1]} {net.spoken_port(found[2])}"),
    (codes.STATE_ZIP, codes.read_state_zip),
    (codes.STATE, lambda found: tables.STATES[found[1]]),
    (codes.CODE_WORD, codes.read_code_word),
    (net.DOTTED, net.read_dotted),
    (words.BEFORE_NUMBER, words.read_before_number),
    (net.VERSION, net.read_version),
    (net.PRODUCT, net.read_product),
    (measures.APPROX, "about "),
    (money.MONEY_EURO, money.read_money_euro),
    (money.MONEY_RANGE, money.read_money_range),
    (money.MONEY, money.read_money),
    (money.MONEY_AFTER, money.read_money_after),
    (money.CENTS, money.read_cents),
    (dates.WEEKDAY, lambda found: tables.WEEKDAYS[found[1]]),
    (dates.MONTH_DAY, dates.read_month_day),
    (dates.DAY_MONTH, dates.read_day_month),
    (dates.MONTH_YEAR, dates.read_month_year),
    (dates.TIME_RANGE, dates.read_time_range),
    (dates.CLOCK_RANGE, dates.read_clock_range),
    (dates.VERSES, r"\1:\2 to \3"),
    (dates.FROM_NOON, r"\1 to "),
    (dates.TIME, dates.read_time),
    (dates.HOUR, dates.read_hour),
    (dates.DURATION, dates.read_duration),
    (dates.RATIO, dates.read_ratio),
    (measures.FEET_INCHES, measures.read_feet_inches),
    (measures.FEET, measures.read_feet),
    (measures.INCHES, measures.read_inches),
    (dates.QUARTER_YEAR, lambda found: f"{found[1]} {number_words.pair(int(found[2]))}"),
    (dates.DECADE, dates.read_decade),
    (dates.SHORT_YEARS, lambda found: f"{number_words.pair(int(found[1]))} to {number_words.pair(int(found[2]))}"),
    (dates.SHORT_YEAR, dates.read_short_year),
    (dates.ERA, dates.read_era),
    (dates.AD, dates.read_ad),
    (measures.HOUSE_SIDE, lambda found: f"{number_words.label(found[1])} {measures.SIDES[found[2]]} "),
    (measures.HOUSE, measures.read_house),
    (words.SAINT_OR_STREET, words.read_saint_or_street),
    (words.STREET, words.read_street),
    (words.TITLE, words.read_title),
    (measures.NAMED_PAIR, measures.read_named_pair),
    (codes.EMERGENCY, codes.read_emergency),
    (measures.LABELLED, measures.read_labelled),
    (measures.LABELLED_AFTER, lambda found: number_words.label(found[1])),
    (dates.YEAR_RANGE, dates.read_year_range),
    (measures.PERCENT, measures.read_percent),
    (measures.SCIENTIFIC, measures.read_scientific),
    (measures.BEFORE_BY_UNIT, r"\1 by "),
    (measures.BY, measures.read_by),
    (measures.BY_UNIT, r"\1 by "),
    (measures.MEASURE, measures.read_measure),
    (measures.ORDINAL, measures.read_ordinal),
    (measures.TEAM, lambda found: f"{number_words.cardinal(int(found[1])).removesuffix('e')}ers"),
)
# Between these two: units that only the grammar knows.
_LATER: tuple[_Reading, ...] = (
    (measures.SPACED_SLASH, ", "),
    (measures.BIT_SCALE, measures.read_bit_scale),
    (measures.THOUSANDS, measures.read_thousands),
    (measures.TIMES, measures.read_times),
    (measures.RATING, lambda found: f"{number_words.number(found[1])} out of {number_words.number(found[2])}"),
    (measures.MIXED, measures.read_mixed),
    (measures.SLASH, measures.read_slash),
    (measures.POWER, measures.read_power),
    (words.SUPERSCRIPT, words.read_superscript),
    (words.SUBSCRIPT, lambda found: found[0].translate(common.SUPERSCRIPT_DIGITS)),
    (words.STOPPED, words.read_stopped),
    (words.ROMAN_AFTER, words.read_roman),
    (measures.UPPER_HYPHEN, r"\1 "),
    (measures.RANGE, measures.read_range),
    (measures.DIGIT_MINUS, " minus "),
    (measures.SIGNED, "minus "),
    (measures.PLUS_SIGN, "plus "),
    (measures.AFTER_PLUS, " plus"),
    (words.DOUBLE_ARROW, " and "),
    (words.ARROW, " to "),
    (words.BACK_ARROW, " from "),
    (words.BRACKETED, r" \1 "),
    (words.COMPARE, words.read_compare),
    (words.ROOT, " square root of "),
    (measures.ALNUM, measures.read_alnum),
    (measures.GROUPED_NUMBER, lambda found: number_words.number(found[0])),
    (measures.LIST_COMMA, ", "),
    (measures.NUMBER, measures.read_number),
    (words.WORD_SLASH, words.read_word_slash),
    (words.AMPERSAND, " and "),
    (words.DOLLAR_NAME, " dollar "),
)
# A sentence that begins with figures begins with a capital once they are words: the cutter looks for one.
_BEGINNING = re.compile(r"(?:^|([A-Za-z0-9'.-]{0,20}[.!?])[\"')\]]{0,2} )[\"(\[]?(?=[#$£€¥~+'.-]?[0-9])")
_BEGUN = re.compile(common.BEGIN + "([a-z]?)")
_NO_BEGINNING = frozenset(
    [*tables.BEFORE_NUMBER, *tables.STREETS, *tables.MONTH_BY_PREFIX, *tables.TITLES, "Sept", "St", "c"]
)


def _mark_beginning(found: common.Match) -> str:
    word = (found[1] or "").rstrip(".!?")
    short = found[1] and (
        word in _NO_BEGINNING or f"{word}." in tables.ABBREVIATIONS or "." in word or word in measures.SIDES
    )
    return found[0] if short else f"{found[0]}{common.BEGIN}"


def read(text: str, unit: common.Unit) -> str:
    """One paragraph of clean text in words. `unit(name, plural)` names a unit the lexicon lacks, or None."""

    def read_unknown_unit(found: common.Match) -> str:
        # With a gap a short word follows ("5 by", "3 men"), unless its capitals or its slash say otherwise.
        if found[2] and not re.search(r"[a-zμ][A-ZΩ]|[/·²³μΩ]", found[3]):
            return found[0]
        name = unit(found[3], found[1] != "1")
        return found[0] if name is None else f"{number_words.number(found[1])} {name}"

    text = measures.mark_inches(_BEGINNING.sub(_mark_beginning, text))
    for pattern, reading in _READINGS:
        text = pattern.sub(reading, text)
    if "(" not in text:
        text = words.ENUMERATOR.sub(r"\1, ", text)
    text = measures.UNKNOWN_UNIT.sub(read_unknown_unit, text)
    for pattern, reading in _LATER:
        text = pattern.sub(reading, text)
    return _BEGUN.sub(lambda found: found[1].upper(), text)
