"""Rules that write numbers, dates, money, addresses and abbreviations as English words.

A rule is a regular expression and its replacement. The rules run in a fixed order: specific rules (web address,
telephone number) run before the general rules for numbers. `apply_rules` takes one paragraph that `cleaning.clean` and
`markup.plain_paragraphs` have processed. This package does not depend on the library wetext: the caller passes a
function that names rare units.

Every repetition in a pattern has a maximum length. A pattern that begins with a repetition, for example of digits, can
match only at the start of a run of digits. So the time grows linearly with the length of the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from app.text import number_words, tables
from app.text.rules import codes, common, dates, games, grouping, measures, money, net, science, tokens, words
from app.text.spans import Replacement, SpannedText

DIGITS, SUPERSCRIPTS, ANY = "0123456789₀₁₂₃₄₅₆₇₈₉", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", ""
# A text meets INNER_DOT if it has a full stop directly before a letter or digit. A text meets ADDRESS if it has such a
# full stop or slashes. `_present` checks both.
INNER_DOT, ADDRESS = ".", "./"
# A text meets HARDWARE if it has several colons, hyphens or full stops, as in a MAC address. It meets ROMAN if it has a
# Roman numeral in small letters. It meets CHESS if it has a square of the chess board, such as "e4", or castling
# ("O-O"). `_PROBES` checks all three.
HARDWARE, ROMAN, CHESS = "hardware", "roman", "chess"
# A rule: pattern, replacement, and a set of characters. The rule runs only if the paragraph contains at least one
# character of the set (ANY = the rule always runs). If the rule has a tuple of sets, the paragraph must contain a
# character of each set. If a paragraph has no character of a set, no rule inserts such a character. So `apply_rules`
# can select the rules before the first rule runs.
_Rule = tuple[re.Pattern[str], Replacement, str | tuple[str, ...]]
_RULES: tuple[_Rule, ...] = (
    (re.compile(r"[0-9]{41,}"), lambda match: f" {number_words.digits(match[0])} ", DIGITS),
    (words.CITATION, "", (DIGITS, "[")),
    (net.URL, net.verbalize_url, ADDRESS),
    (net.EMAIL, net.verbalize_email, "@"),
    (words.HEART, "love", "<"),
    (words.SMILEY, " ", ":;=8<D"),
    (codes.DOI, codes.verbalize_doi, (DIGITS, "/")),
    (codes.ARXIV, codes.verbalize_arxiv, (DIGITS, "X")),
    (net.LOCAL, lambda match: net.spoken_address(match[1], match[2], match[3]), (DIGITS, ":")),
    (net.HARDWARE_ADDRESS, net.verbalize_hardware_address, HARDWARE),
    (net.IPV6, net.verbalize_ipv6, HARDWARE),
    (grouping.DOT_GROUPS, grouping.rewrite_dot_groups, (DIGITS, ".")),
    (net.IPV4, net.verbalize_ipv4, (DIGITS, ".")),
    (net.FILE, net.verbalize_file, INNER_DOT),
    (net.DOMAIN, net.verbalize_domain, INNER_DOT),
    (net.DOTTED_NAME, net.verbalize_dotted_name, INNER_DOT),
    (net.BARE_FILE, net.verbalize_bare_file, INNER_DOT),
    (net.WINDOWS_PATH, net.verbalize_windows_path, "\\"),
    (games.MOVE_NUMBER, r"\1, ", (DIGITS, ".…")),
    (games.MOVE, games.verbalize_move, CHESS),
    (grouping.SWISS_END, "", (DIGITS, ".…")),
    (money.AFTER_AMOUNT, "", (DIGITS, "-–—")),
    (money.PAIR, money.verbalize_pair, (DIGITS, "/")),
    (grouping.THOUSANDS, grouping.rewrite_thousands, (DIGITS, ".")),
    (grouping.APOSTROPHES, grouping.rewrite_apostrophes, (DIGITS, "'")),
    (grouping.UNDERSCORES, grouping.rewrite_underscores, (DIGITS, "_")),
    (grouping.SPACES, grouping.rewrite_spaces, DIGITS),
    (grouping.DECIMAL_COMMA, grouping.rewrite_decimal_comma, (DIGITS, ",")),
    (measures.METER_POWER, measures.rewrite_meter_power, (DIGITS, "23")),
    (science.ISOTOPE, science.verbalize_isotope, SUPERSCRIPTS),
    (science.ION, science.verbalize_ion, SUPERSCRIPTS),
    (science.PLAIN_ION, science.verbalize_plain_ion, (DIGITS, "+")),
    (science.FORMULA, science.verbalize_formula, "₀₁₂₃₄₅₆₇₈₉"),
    (science.NOTE, science.verbalize_note, "♯♭♮"),
    (science.PARENTHESES, science.rewrite_parentheses, "/"),
    (science.AREA, science.verbalize_area, "²³"),
    (science.UNIT_AFTER_POWER, science.verbalize_unit_after_power, SUPERSCRIPTS),
    (science.UNIT_AFTER_NUMBER, science.verbalize_unit_after_number, DIGITS),
    (science.BARE_UNIT, science.verbalize_bare_unit, f"{SUPERSCRIPTS}/·⋅^"),
    (science.RAISED_LETTER, science.verbalize_raised_letter, "ˣʸᶻⁿⁱʲᵏᵐᵗᵃᵇᵀᶜᵖʳᵈᵉ"),
    (science.LOWERED_SUM, science.verbalize_lowered_sum, "₊₋"),
    (science.LOWERED_LETTER, science.verbalize_lowered_letter, "ₐₑₒₓₕₖₗₘₙₚₛₜᵢⱼᵣᵤᵥ"),
    (science.ACCENTED, science.verbalize_accented, "\u0304\u0305\u0302\u0303\u20d7\u0307"),
    (dates.BORN, dates.verbalize_born, (DIGITS, ".…")),
    (words.CIRCA, "circa ", (DIGITS, ".…")),
    (words.SMALL_NUMBER_FIRST, "number ", (DIGITS, ".…")),
    (words.ROMAN_CENTURY, words.verbalize_roman_century, "VX"),
    (words.ROMAN_YEAR, words.verbalize_roman_year, "M"),
    (words.ROMAN_SMALL, words.verbalize_roman_small, ROMAN),
    (words.BEFORE_ROMAN, words.verbalize_before_roman, "IVXL"),
    (words.CARE_OF, "care of", "/"),
    (words.SMALL_NUMBER, r"\1 number ", (DIGITS, ".…")),
    (words.WITH, words.verbalize_with, "/"),
    (words.BECAUSE, "because", "/"),
    (net.PATH, net.verbalize_path, "/~"),
    (net.HANDLE, net.verbalize_handle, "@"),
    (net.COLOUR, net.verbalize_colour, "#"),
    (net.HASHTAG, net.verbalize_hashtag, "#"),
    (net.LONG_NUMBER_SIGN, lambda match: f"number {number_words.digits(match[1])}", "#"),
    (net.NUMBER_SIGN, "number ", "#"),
    (measures.BETWEEN, r"\1 and ", (DIGITS, "-–—")),
    (measures.SUM_MINUS, " minus ", (DIGITS, "=")),
    (measures.SUM_DIVIDED, r"\1 divided by ", (DIGITS, "=")),
    (measures.FACTORIAL, " factorial", (DIGITS, "!")),
    (measures.DOT_RANGE, " to ", (DIGITS, ".")),
    (dates.WEEKDAYS, dates.verbalize_weekdays, "-–"),
    (
        dates.MONTHS,
        lambda match: f"{dates.month_name(match[1])} to {dates.month_name(match[2])}{dates.month_stop(match)}",
        "-–",
    ),
    (net.SHARP, net.verbalize_sharp, "#"),
    (net.PLUS_PLUS, r"\1 plus plus", "+"),
    (dates.NAMED_DATE, dates.verbalize_named_date, (DIGITS, "-/")),
    (dates.DOT_DATE, dates.verbalize_dot_date, (DIGITS, ".")),
    (dates.MILITARY_TIME, dates.verbalize_military_time, (DIGITS, "hZ")),
    (dates.DOT_TIME, r"\1:\2", (DIGITS, ".")),
    (dates.HOUR_SIGN, "", (DIGITS, ":")),
    (dates.VERSE, dates.verbalize_verse, (DIGITS, ":")),
    (dates.SEASON, dates.verbalize_season, (DIGITS, "/")),
    (dates.DECADES, dates.verbalize_decades, (DIGITS, "-–/")),
    (dates.CENTURY, dates.verbalize_century, (DIGITS, ".…")),
    (words.BEFORE_NUMBER, words.verbalize_before_number, (DIGITS, ".pASHR")),
    (codes.BOOK_NUMBER, codes.verbalize_book_number, (DIGITS, "I")),
    (codes.IBAN, codes.verbalize_iban, (DIGITS, "ABCDEFGHIKLMNPRSTVX")),
    (codes.POSTCODE, codes.verbalize_postcode, (DIGITS, "-ABCEGHJKLMNPRSTVXY")),
    (codes.PHONE_PLUS, codes.verbalize_phone_plus, "+"),
    (codes.PHONE_US, codes.verbalize_phone_us, DIGITS),
    (codes.PHONE_LETTERS, codes.verbalize_phone_letters, (DIGITS, "-")),
    (codes.CARD, lambda match: codes.spoken_groups(*match[1].split(" ")), DIGITS),
    (codes.PHONE_ZERO, codes.verbalize_phone_zero, DIGITS),
    (dates.COMPACT_DATE, dates.verbalize_compact_date, DIGITS),
    (dates.ISO_DATE, dates.verbalize_iso_date, (DIGITS, "-/")),
    (dates.SLASH_DATE, dates.verbalize_slash_date, (DIGITS, "-/")),
    (dates.SLASH_DAY, dates.verbalize_slash_day, (DIGITS, "/")),
    (dates.YEAR_MONTH, dates.verbalize_year_month, (DIGITS, "-")),
    (dates.EXACT_TIME, dates.verbalize_exact_time, (DIGITS, ":")),
    (codes.GROUPS, codes.verbalize_groups, (DIGITS, "-")),
    (codes.PHONE_SHORT, lambda match: codes.spoken_groups(match[1], match[2]), (DIGITS, "-")),
    (tokens.GLUED_COLON, r"\1: ", (DIGITS, ":")),
    (measures.DEGREES_LETTER, measures.verbalize_degrees_letter, (DIGITS, "CF")),
    (measures.DEGREE_SIGN, "°", (DIGITS, "º")),
    (measures.TIME_SIGNATURE, measures.verbalize_time_signature, (DIGITS, "/")),
    (measures.ROUND_PLURAL, measures.verbalize_round_plural, (DIGITS, "s")),
    (measures.PER_HUNDRED, measures.verbalize_per_hundred, (DIGITS, "/")),
    (measures.ONE_OVER_SECONDS, measures.verbalize_one_over_seconds, (DIGITS, "/")),
    (measures.F_NUMBER, measures.verbalize_f_number, (DIGITS, "/")),
    (measures.STARS, measures.verbalize_stars, (DIGITS, "/")),
    (measures.NAMED_SLASH, measures.verbalize_named_slash, (DIGITS, "/")),
    (measures.MILLIONS_OF, " million", DIGITS),
    (measures.COORDINATE, measures.verbalize_coordinate, "°"),
    (games.ADDED_TIME, games.verbalize_added_time, (DIGITS, "+")),
    (games.MINUTES, games.verbalize_minutes, (DIGITS, "'")),
    (measures.AMPERES, measures.verbalize_amperes, (DIGITS, "A")),
    (measures.UNIT_RANGE, r"\1-", (DIGITS, "-–")),
    (measures.MEASURES, measures.separate_measures, (DIGITS, "/-–—")),
    (measures.TEMPERATURE, measures.verbalize_temperature, (DIGITS, "CF")),
    (measures.TWO_UNITS, measures.verbalize_two_units, (DIGITS, "ftiyh")),
    (measures.ORDINAL_SIGN, measures.verbalize_ordinal_sign, (DIGITS, "ºª")),
    (tokens.WIRELESS, tokens.verbalize_wireless, (DIGITS, ".")),
    (tokens.STANDARD, tokens.verbalize_standard, (DIGITS, "IEDANBJRFSUG")),
    (tokens.AIRCRAFT, tokens.verbalize_aircraft, (DIGITS, "-")),
    (tokens.DURATION, tokens.verbalize_duration, DIGITS),
    (codes.RANDOM, codes.verbalize_random, DIGITS),
    (tokens.TOKEN, tokens.verbalize_token, DIGITS),
    (net.PORT, lambda match: f"{match[1]} {net.spoken_port(match[2])}", DIGITS),
    (codes.STATE_ZIP, codes.verbalize_state_zip, (DIGITS, "ACDFGHIKLMNOPRSTUVW")),
    (codes.STATE, lambda match: tables.STATES[match[1]], ","),
    (codes.CODE_WORD, codes.verbalize_code_word, DIGITS),
    (net.DOTTED, net.verbalize_dotted, (DIGITS, ".")),
    (net.VERSION_TWICE, "", (DIGITS, "vV")),
    (net.VERSION, net.verbalize_version, (DIGITS, "vV")),
    (net.PRODUCT, net.verbalize_product, (DIGITS, ".,")),
    (measures.APPROX, "about ", (DIGITS, "~≈")),
    (money.MONEY_EURO, money.verbalize_money_euro, (DIGITS, ",")),
    (money.MONEY_POWER, money.verbalize_money_power, (DIGITS, "eE")),
    (money.MONEY_RANGE, money.verbalize_money_range, (DIGITS, "-–—~")),
    (money.MONEY, money.verbalize_money, DIGITS),
    (money.MONEY_AFTER, money.verbalize_money_after, DIGITS),
    (money.CENTS, money.verbalize_cents, (DIGITS, "¢c")),
    (dates.WEEKDAY, lambda match: tables.WEEKDAYS[match[1]], ANY),
    (dates.MONTH_DAY, dates.verbalize_month_day, (DIGITS, "JFMASOND")),
    (dates.DAY_MONTH, dates.verbalize_day_month, (DIGITS, "JFMASOND")),
    (dates.MONTH_YEAR, dates.verbalize_month_year, (DIGITS, "JFMASOND")),
    (dates.TIME_RANGE, dates.verbalize_time_range, (DIGITS, "-–—~")),
    (dates.CLOCK_RANGE, dates.verbalize_clock_range, (DIGITS, "-–—~")),
    (dates.VERSES, r"\1:\2 to \3", (DIGITS, ":")),
    (dates.FROM_NOON, r"\1 to ", (DIGITS, "-–")),
    (dates.TIME, dates.verbalize_time, (DIGITS, ":.")),
    (dates.HOUR, dates.verbalize_hour, (DIGITS, "aApP")),
    (dates.HOURS_MINUTES, dates.verbalize_hours_minutes, (DIGITS, "h")),
    (dates.RATIO, dates.verbalize_ratio, (DIGITS, ":")),
    (measures.FEET_INCHES, measures.verbalize_feet_inches, (DIGITS, "'")),
    (measures.FEET, measures.verbalize_feet, (DIGITS, "'")),
    (measures.INCHES, measures.verbalize_inches, (DIGITS, "'\"″")),
    (dates.QUARTER_YEAR, lambda match: f"{match[1]} {number_words.two_digits(int(match[2]))}", (DIGITS, "'")),
    (dates.DECADE, dates.verbalize_decade, (DIGITS, "s")),
    (dates.SHORT_YEARS, dates.verbalize_short_years, (DIGITS, "'")),
    (dates.SHORT_YEAR, dates.verbalize_short_year, (DIGITS, "'")),
    (dates.ERA, dates.verbalize_era, (DIGITS, "ABC")),
    (dates.AD, dates.verbalize_ad, (DIGITS, "A")),
    (dates.EARLY_YEARS, dates.verbalize_early_years, (DIGITS, "0")),
    (dates.EARLY_YEAR, dates.verbalize_early_year, (DIGITS, "0")),
    (
        measures.HOUSE_SIDE,
        lambda match: f"{number_words.label(match[1])} {measures.SIDES[match[2]]} ",
        (DIGITS, "NSEW"),
    ),
    (measures.HOUSE, measures.verbalize_house, (DIGITS, "SABRLCPHDETF")),
    (words.SAINT_OR_STREET, words.verbalize_saint_or_street, ANY),
    (words.STREET, words.verbalize_street, ANY),
    (words.TITLE, words.verbalize_title, ANY),
    (measures.NAMED_PAIR, measures.verbalize_named_pair, (DIGITS, "/-")),
    (codes.EMERGENCY, codes.verbalize_emergency, DIGITS),
    (measures.LABELLED, measures.verbalize_labelled, DIGITS),
    (measures.LABELLED_AFTER, lambda match: number_words.label(match[1]), DIGITS),
    (dates.YEAR_RANGE, dates.verbalize_year_range, (DIGITS, "-–—~")),
    (measures.PERCENT, measures.verbalize_percent, (DIGITS, "%")),
    (measures.SCIENTIFIC, measures.verbalize_scientific, (DIGITS, "eE×x*·")),
    (measures.BEFORE_BY_UNIT, r"\1 by ", (DIGITS, "x×")),
    (measures.BY, measures.verbalize_by, (DIGITS, "x×*")),
    (measures.BY_UNIT, r"\1 by ", (DIGITS, "x×")),
    (measures.MEASURE, measures.verbalize_measure, DIGITS),
    (measures.ORDINAL, measures.verbalize_ordinal, DIGITS),
    (measures.TEAM, lambda match: f"{number_words.cardinal(int(match[1])).removesuffix('e')}ers", (DIGITS, "e")),
)
# Rules that run after the rule for rare units, `measures.UNKNOWN_UNIT`.
_RULES_AFTER_UNITS: tuple[_Rule, ...] = (
    (measures.SPACED_SLASH, ", ", "/"),
    (measures.BIT_SCALE, measures.verbalize_bit_scale, (DIGITS, "bmMBT")),
    (measures.THOUSANDS, measures.verbalize_thousands, (DIGITS, "kK")),
    (measures.TIMES, measures.verbalize_times, (DIGITS, "x×")),
    (
        measures.RATING,
        lambda match: f"{number_words.number(match[1])} out of {number_words.number(match[2])}",
        (DIGITS, "/"),
    ),
    (measures.MIXED, measures.verbalize_mixed, (DIGITS, "/")),
    (measures.SLASH, measures.verbalize_slash, (DIGITS, "/")),
    (tokens.DECIMAL_LETTERS, tokens.verbalize_decimal_letters, (DIGITS, ".,")),
    (measures.POWER, measures.verbalize_power, "^"),
    (science.SUPERSCRIPT, science.verbalize_superscript, f"{SUPERSCRIPTS}ⁿ"),
    (words.SUBSCRIPT, lambda match: match[0].translate(common.SUPERSCRIPT_DIGITS), "₀₁₂₃₄₅₆₇₈₉"),
    (words.ABBREVIATION, words.verbalize_abbreviation, ANY),
    (words.ROMAN_AFTER, words.verbalize_roman, "IVXL"),
    (measures.UPPER_HYPHEN, r"\1 ", (DIGITS, "-")),
    (measures.RANGE, measures.verbalize_range, (DIGITS, "-–—~")),
    (measures.DIGIT_MINUS, " minus ", "-−–"),
    (measures.SIGNED, "minus ", (DIGITS, "-−")),
    (measures.PLUS_SIGN, "plus ", "+"),
    (measures.AFTER_PLUS, " plus", "+"),
    (words.DOUBLE_ARROW, " and ", "<↔⇔"),
    (words.ARROW, " to ", ">→⟶➜➔⇒"),
    (words.BACK_ARROW, " from ", "<←"),
    (words.BRACKETED, r" \1 ", "<"),
    (words.COMPARE, words.verbalize_compare, "<>="),
    (words.ROOT, " square root of ", "√"),
    (measures.ALNUM, measures.verbalize_alnum, DIGITS),
    (measures.GROUPED_NUMBER, lambda match: number_words.number(match[0]), (DIGITS, ",")),
    (measures.LIST_COMMA, r"\1 ", (DIGITS, ",;")),
    (measures.NUMBER, measures.verbalize_number, DIGITS),
    (tokens.GLUED_MARK, tokens.separate_glued_mark, DIGITS),
    (words.WORD_SLASH, words.verbalize_word_slash, "/"),
    (words.GRADE, r"\1 minus", "-−"),
    (words.PRIME, words.verbalize_prime, ("'", "(")),
    (science.GREEK, science.verbalize_greek, "".join(tables.GREEK)),
    (words.AMPERSAND, " and ", "&"),
    (words.DOLLAR_NAME, " dollar ", "$"),
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
        *("Sept", "St", "Rs", "c", "b", "d", "m", "fl", "r", "ft", "lb", "yd"),
    ]
)


def _mark_sentence_start(match: common.Match) -> str:
    word = (match[1] or "").rstrip(".!?")
    is_abbreviation = match[1] and (
        word in _NOT_A_SENTENCE_END or f"{word}." in tables.ABBREVIATIONS or "." in word or word in measures.SIDES
    )
    return match[0] if is_abbreviation else f"{match[0]}{common.SENTENCE_START}"


def _keys(needed: str | tuple[str, ...]) -> tuple[str, ...]:
    return (needed,) if isinstance(needed, str) else needed


_TWO_DOTS = re.compile(r"\w\.\w{4}\.\w")
_SMALL_ROMAN = re.compile(r" [ivxl]+\b")
_CHESS_MOVE = re.compile(r"[a-h][1-8]\b|O-O|0-0")
# Key -> a function that checks whether a text meets the key. For these keys, a set of characters is not precise enough.
_PROBES: dict[str, Callable[[str], bool]] = {
    HARDWARE: lambda text: text.count(":") > 1 or text.count("-") > 4 or _TWO_DOTS.search(text) is not None,
    ROMAN: lambda text: _SMALL_ROMAN.search(text) is not None,
    CHESS: lambda text: _CHESS_MOVE.search(text) is not None,
}
_NEEDED = {key: frozenset(key) for *_, needed in (*_RULES, *_RULES_AFTER_UNITS) for key in _keys(needed)}
_INNER_DOT = re.compile(r"[.]\w")


def _present(text: str) -> frozenset[str]:
    """Return the keys of `_NEEDED` that a text meets.

    A set of characters is met if the text contains one of them. A key of `_PROBES` is met if its function returns True.
    """
    chars = frozenset(text)
    present = set(_present_sets(chars))
    present.update(key for key, probe in _PROBES.items() if probe(text))
    if INNER_DOT in present and _INNER_DOT.search(text) is None:
        present -= {INNER_DOT, ADDRESS}
        present |= {ADDRESS} if "//" in text else set()
    return frozenset(present)


@functools.lru_cache(maxsize=4096)
def _present_sets(chars: frozenset[str]) -> tuple[str, ...]:
    """Return ANY, and each key of `_NEEDED` that is a set of characters and contains at least one of `chars`."""
    return tuple(
        key for key, needed in _NEEDED.items() if key not in _PROBES and (not key or not needed.isdisjoint(chars))
    )


@functools.lru_cache(maxsize=4096)
def _select(present: frozenset[str]) -> tuple[tuple[tuple[re.Pattern[str], Replacement], ...], ...]:
    """Return the rules of `_RULES` and of `_RULES_AFTER_UNITS` whose keys are all in `present`."""
    return tuple(
        tuple((pattern, replacement) for pattern, replacement, needed in rules if present.issuperset(_keys(needed)))
        for rules in (_RULES, _RULES_AFTER_UNITS)
    )


def apply_rules(text: SpannedText, name_unit: common.UnitNamer) -> SpannedText:
    """Return a paragraph in which numbers, symbols and abbreviations are written as words. The spans are kept.

    A rule runs only if the paragraph contains a character that the rule needs. This saves time, because most paragraphs
    have no digits and no symbols. name_unit(symbol, plural): returns the name of a unit that is not in `tables.UNITS`;
    None for an unknown symbol.
    """

    def verbalize_unknown_unit(match: common.Match) -> str:
        # match[3] is the text after the number. If a space separates this text from the number, the text is usually a
        # word ("5 by", "3 men"). It is a unit only if it contains a slash, a symbol such as "²", or a capital after a
        # small letter ("kHz").
        if match[2] and not re.search(r"[a-zμ][A-ZΩ]|[/·²³μΩ]", match[3]):
            return match[0]
        name = name_unit(match[3], match[1] != "1")
        return match[0] if name is None else f"{number_words.number(match[1])} {name}"

    present = _present(text.text)
    rules, rules_after_units = _select(present)
    has_digits = DIGITS in present
    if has_digits:
        text = measures.mark_inches(text.sub(_DIGITS_FIRST, _mark_sentence_start))
    for pattern, replacement in rules:
        text = text.sub(pattern, replacement)
    if has_digits:
        if "(" not in text.text:
            text = text.sub(words.ENUMERATOR, r"\1, ")
        text = text.sub(measures.UNKNOWN_UNIT, verbalize_unknown_unit)
    for pattern, replacement in rules_after_units:
        text = text.sub(pattern, replacement)
    return text.sub(_MARKED_START, lambda match: match[1].upper()) if has_digits else text
