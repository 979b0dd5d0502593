"""Rules that write numbers, dates, money, addresses and abbreviations as English words.

A rule is a regular expression and its replacement. The rules run in a fixed order: specific rules (web address,
telephone number) run before the general rules for numbers. `apply_rules` takes one paragraph that `cleaning.clean` and
`markup.plain_paragraphs` have processed. This package does not depend on the library wetext: the caller passes a
function that names rare units.

Every repetition in a pattern has a maximum length. A pattern that begins with a repetition, for example of digits,
can't match in the middle of a longer run of digits. So the time grows linearly with the length of the text.
"""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules import codes, common, dates, grouping, measures, money, net, science, tokens, words
from app.text.spans import Replacement, SpannedText

_Rule = tuple[re.Pattern[str], Replacement]
_RULES: tuple[_Rule, ...] = (
    (re.compile(r"[0-9]{41,}"), lambda match: f" {number_words.digits(match[0])} "),
    (words.CITATION, ""),
    (net.URL, net.verbalize_url),
    (net.EMAIL, net.verbalize_email),
    (words.HEART, "love"),
    (words.SMILEY, " "),
    (net.LOCAL, lambda match: net.spoken_address(match[1], match[2], match[3])),
    (grouping.DOT_GROUPS, grouping.rewrite_dot_groups),
    (net.IPV4, net.verbalize_ipv4),
    (net.HARDWARE_ADDRESS, net.verbalize_hardware_address),
    (net.IPV6, net.verbalize_ipv6),
    (net.FILE, net.verbalize_file),
    (net.DOMAIN, net.verbalize_domain),
    (net.BARE_FILE, lambda match: f"dot {net.spoken_ending(match[1]) if match[1] != 'NET' else 'NET'}"),
    (net.WINDOWS_PATH, net.verbalize_windows_path),
    (science.ISOTOPE, science.verbalize_isotope),
    (science.ION, science.verbalize_ion),
    (science.PLAIN_ION, science.verbalize_plain_ion),
    (science.NOTE, science.verbalize_note),
    (science.PARENTHESES, science.rewrite_parentheses),
    (science.UNIT_AFTER_POWER, science.verbalize_unit_after_power),
    (science.UNIT_AFTER_NUMBER, science.verbalize_unit_after_number),
    (science.BARE_UNIT, science.verbalize_bare_unit),
    (dates.BORN, dates.verbalize_born),
    (words.CIRCA, "circa "),
    (words.SMALL_NUMBER, r"\1 number "),
    (words.WITH, words.verbalize_with),
    (words.BECAUSE, "because"),
    (net.PATH, net.verbalize_path),
    (net.HANDLE, net.verbalize_handle),
    (net.COLOUR, net.verbalize_colour),
    (net.HASHTAG, net.verbalize_hashtag),
    (net.LONG_NUMBER_SIGN, lambda match: f"number {number_words.digits(match[1])}"),
    (net.NUMBER_SIGN, "number "),
    (measures.BETWEEN, r"\1 and "),
    (dates.WEEKDAYS, lambda match: f"{tables.WEEKDAYS[match[1]]} to {tables.WEEKDAYS[match[2]]}"),
    (
        dates.MONTHS,
        lambda match: f"{dates.month_name(match[1])} to {dates.month_name(match[2])}{dates.month_stop(match)}",
    ),
    (net.SHARP, lambda match: f"{match[1] or match[2]} sharp{' ' if match[2] else ''}"),
    (net.PLUS_PLUS, r"\1 plus plus"),
    (dates.DOT_TIME, r"\1:\2"),
    (dates.VERSE, dates.verbalize_verse),
    (dates.SEASON, dates.verbalize_season),
    (dates.DECADES, dates.verbalize_decades),
    (dates.CENTURY, dates.verbalize_century),
    (codes.PHONE_PLUS, codes.verbalize_phone_plus),
    (codes.PHONE_US, codes.verbalize_phone_us),
    (codes.PHONE_LETTERS, codes.verbalize_phone_letters),
    (codes.CARD, lambda match: codes.spoken_groups(*match[1].split(" "))),
    (dates.ISO_DATE, dates.verbalize_iso_date),
    (dates.SLASH_DATE, dates.verbalize_slash_date),
    (dates.SLASH_DAY, dates.verbalize_slash_day),
    (codes.GROUPS, codes.verbalize_groups),
    (codes.PHONE_SHORT, lambda match: codes.spoken_groups(match[1], match[2])),
    (grouping.APOSTROPHES, grouping.rewrite_apostrophes),
    (grouping.SPACES, grouping.rewrite_spaces),
    (grouping.DECIMAL_COMMA, grouping.rewrite_decimal_comma),
    (tokens.GLUED_COLON, r"\1: "),
    (measures.DEGREE_SIGN, "°"),
    (measures.UNIT_RANGE, r"\1-"),
    (measures.TEMPERATURE, measures.verbalize_temperature),
    (measures.TWO_UNITS, measures.verbalize_two_units),
    (measures.ORDINAL_SIGN, measures.verbalize_ordinal_sign),
    (tokens.WIRELESS, tokens.verbalize_wireless),
    (tokens.STANDARD, tokens.verbalize_standard),
    (tokens.AIRCRAFT, tokens.verbalize_aircraft),
    (tokens.DURATION, tokens.verbalize_duration),
    (tokens.TOKEN, tokens.verbalize_token),
    (net.PORT, lambda match: f"{match[1]} {net.spoken_port(match[2])}"),
    (codes.STATE_ZIP, codes.verbalize_state_zip),
    (codes.STATE, lambda match: tables.STATES[match[1]]),
    (codes.CODE_WORD, codes.verbalize_code_word),
    (net.DOTTED, net.verbalize_dotted),
    (words.BEFORE_NUMBER, words.verbalize_before_number),
    (net.VERSION, net.verbalize_version),
    (net.PRODUCT, net.verbalize_product),
    (measures.APPROX, "about "),
    (money.MONEY_EURO, money.verbalize_money_euro),
    (money.MONEY_RANGE, money.verbalize_money_range),
    (money.MONEY, money.verbalize_money),
    (money.MONEY_AFTER, money.verbalize_money_after),
    (money.CENTS, money.verbalize_cents),
    (dates.WEEKDAY, lambda match: tables.WEEKDAYS[match[1]]),
    (dates.MONTH_DAY, dates.verbalize_month_day),
    (dates.DAY_MONTH, dates.verbalize_day_month),
    (dates.MONTH_YEAR, dates.verbalize_month_year),
    (dates.TIME_RANGE, dates.verbalize_time_range),
    (dates.CLOCK_RANGE, dates.verbalize_clock_range),
    (dates.VERSES, r"\1:\2 to \3"),
    (dates.FROM_NOON, r"\1 to "),
    (dates.TIME, dates.verbalize_time),
    (dates.HOUR, dates.verbalize_hour),
    (dates.HOURS_MINUTES, dates.verbalize_hours_minutes),
    (dates.RATIO, dates.verbalize_ratio),
    (measures.FEET_INCHES, measures.verbalize_feet_inches),
    (measures.FEET, measures.verbalize_feet),
    (measures.INCHES, measures.verbalize_inches),
    (dates.QUARTER_YEAR, lambda match: f"{match[1]} {number_words.two_digits(int(match[2]))}"),
    (dates.DECADE, dates.verbalize_decade),
    (dates.SHORT_YEARS, dates.verbalize_short_years),
    (dates.SHORT_YEAR, dates.verbalize_short_year),
    (dates.ERA, dates.verbalize_era),
    (dates.AD, dates.verbalize_ad),
    (dates.EARLY_YEAR, dates.verbalize_early_year),
    (measures.HOUSE_SIDE, lambda match: f"{number_words.label(match[1])} {measures.SIDES[match[2]]} "),
    (measures.HOUSE, measures.verbalize_house),
    (words.SAINT_OR_STREET, words.verbalize_saint_or_street),
    (words.STREET, words.verbalize_street),
    (words.TITLE, words.verbalize_title),
    (measures.NAMED_PAIR, measures.verbalize_named_pair),
    (codes.EMERGENCY, codes.verbalize_emergency),
    (measures.LABELLED, measures.verbalize_labelled),
    (measures.LABELLED_AFTER, lambda match: number_words.label(match[1])),
    (dates.YEAR_RANGE, dates.verbalize_year_range),
    (measures.PERCENT, measures.verbalize_percent),
    (measures.SCIENTIFIC, measures.verbalize_scientific),
    (measures.BEFORE_BY_UNIT, r"\1 by "),
    (measures.BY, measures.verbalize_by),
    (measures.BY_UNIT, r"\1 by "),
    (measures.MEASURE, measures.verbalize_measure),
    (measures.ORDINAL, measures.verbalize_ordinal),
    (measures.TEAM, lambda match: f"{number_words.cardinal(int(match[1])).removesuffix('e')}ers"),
)
# Rules that run after `measures.UNKNOWN_UNIT`.
_RULES_AFTER_UNITS: tuple[_Rule, ...] = (
    (measures.SPACED_SLASH, ", "),
    (measures.BIT_SCALE, measures.verbalize_bit_scale),
    (measures.THOUSANDS, measures.verbalize_thousands),
    (measures.TIMES, measures.verbalize_times),
    (measures.RATING, lambda match: f"{number_words.number(match[1])} out of {number_words.number(match[2])}"),
    (measures.MIXED, measures.verbalize_mixed),
    (measures.SLASH, measures.verbalize_slash),
    (tokens.DECIMAL_LETTERS, tokens.verbalize_decimal_letters),
    (measures.POWER, measures.verbalize_power),
    (science.SUPERSCRIPT, science.verbalize_superscript),
    (words.SUBSCRIPT, lambda match: match[0].translate(common.SUPERSCRIPT_DIGITS)),
    (words.ABBREVIATION, words.verbalize_abbreviation),
    (words.ROMAN_AFTER, words.verbalize_roman),
    (measures.UPPER_HYPHEN, r"\1 "),
    (measures.RANGE, measures.verbalize_range),
    (measures.DIGIT_MINUS, " minus "),
    (measures.SIGNED, "minus "),
    (measures.PLUS_SIGN, "plus "),
    (measures.AFTER_PLUS, " plus"),
    (words.DOUBLE_ARROW, " and "),
    (words.ARROW, " to "),
    (words.BACK_ARROW, " from "),
    (words.BRACKETED, r" \1 "),
    (words.COMPARE, words.verbalize_compare),
    (words.ROOT, " square root of "),
    (measures.ALNUM, measures.verbalize_alnum),
    (measures.GROUPED_NUMBER, lambda match: number_words.number(match[0])),
    (measures.LIST_COMMA, ", "),
    (measures.NUMBER, measures.verbalize_number),
    (words.WORD_SLASH, words.verbalize_word_slash),
    (words.AMPERSAND, " and "),
    (words.DOLLAR_NAME, " dollar "),
)
# The start of a sentence that begins with digits. The words for these digits get a capital letter, because
# `sentences.split` looks for a capital letter at the start of a sentence.
_DIGITS_FIRST = re.compile(r"(?:^|([A-Za-z0-9'.-]{0,20}[.!?])[\"')\]]{0,2} )[\"(\[]?(?=[#$£€¥~+'.-]?[0-9])")
_MARKED_START = re.compile(common.SENTENCE_START + "([a-z]?)")
_NOT_A_SENTENCE_END = frozenset(
    [
        *tables.BEFORE_NUMBER,
        *tables.STREETS,
        *tables.MONTH_BY_PREFIX,
        *tables.TITLES,
        *tables.BOOKS,
        *("Sept", "St", "Rs", "c", "b", "d", "fl", "r", "ft", "lb", "yd"),
    ]
)


def _mark_sentence_start(match: common.Match) -> str:
    word = (match[1] or "").rstrip(".!?")
    is_abbreviation = match[1] and (
        word in _NOT_A_SENTENCE_END or f"{word}." in tables.ABBREVIATIONS or "." in word or word in measures.SIDES
    )
    return match[0] if is_abbreviation else f"{match[0]}{common.SENTENCE_START}"


def apply_rules(text: SpannedText, name_unit: common.UnitNamer) -> SpannedText:
    """Return one paragraph of text with numbers, symbols and abbreviations written as words, with their spans.

    name_unit(symbol, plural): returns the name of a unit that is not in `tables.UNITS`; None for an unknown symbol.
    """

    def verbalize_unknown_unit(match: common.Match) -> str:
        # After a space, match[3] is a word ("5 by", "3 men"). It is a unit only if it contains a slash, a symbol such
        # as "²", or a capital after a small letter ("kHz").
        if match[2] and not re.search(r"[a-zμ][A-ZΩ]|[/·²³μΩ]", match[3]):
            return match[0]
        name = name_unit(match[3], match[1] != "1")
        return match[0] if name is None else f"{number_words.number(match[1])} {name}"

    text = measures.mark_inches(text.sub(_DIGITS_FIRST, _mark_sentence_start))
    for pattern, replacement in _RULES:
        text = text.sub(pattern, replacement)
    if "(" not in text.text:
        text = text.sub(words.ENUMERATOR, r"\1, ")
    text = text.sub(measures.UNKNOWN_UNIT, verbalize_unknown_unit)
    for pattern, replacement in _RULES_AFTER_UNITS:
        text = text.sub(pattern, replacement)
    return text.sub(_MARKED_START, lambda match: match[1].upper())
