"""Numbers themselves and what they measure: units, fractions, ranges, percentages, powers, labels, sizes."""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules.common import (
    DASH,
    INT,
    NUM,
    SUPERSCRIPT_DIGITS,
    Match,
    alternatives,
    is_adjective,
    per_unit,
    sentence_stop,
)

BETWEEN = re.compile(rf"\b([Bb]etween [$£€]?{NUM}%?) ?[-–—] ?(?=[$£€]?[0-9])")
_UNIT = alternatives(tables.UNITS)
_SIGN = r"(?:(?<![\w)\]])[-−–+](?=[0-9.])|(?<=[(])[-−+])?"
_FRACTION = r"[0-9]{1,3}(?: [0-9]{1,3}/[0-9]{1,3}|/[0-9]{1,3})"
MEASURE = re.compile(
    rf"(?<![\w.,])({_SIGN})((?:{_FRACTION}|{NUM}))(?:({DASH}| x | to )({_SIGN})({NUM}))?"
    rf"([ -]?)({_UNIT})(\s?/\s?({alternatives(tables.PER)})\b)?"
    r"(?![\w²³]|[/^]\w|-[A-Za-z]{2}|'[a-z])"
)
SPACED_SLASH = re.compile(r"(?<=[\w.)]) / (?=[\w(])")
TEAM = re.compile(r"(?<![\w.,])([0-9]{2})ers\b")  # the 49ers
BIT_SCALE = re.compile(rf"(?<![\w.,])({NUM})(?:{DASH}({NUM}))?(bn|mn|M|B|T)\b(?!/)\+?")
THOUSANDS = re.compile(rf"(?<![\w.,])({NUM})(?:{DASH}({NUM}))?[kK]\b(?![-/]\w)")
TIMES = re.compile(rf"(?<![\w.,])({NUM})(?:{DASH}({NUM}))?[x×](?![\w])(?= ([a-z]+)|)")
BEFORE_BY_UNIT = re.compile(rf"(?<![\w.,])({NUM}) ?[x×] ?(?={NUM} ?(?:{_UNIT})(?!\w))")
BY_UNIT = re.compile(rf"(?<![\w.,])({NUM} ?(?:{_UNIT})) ?[x×] ?(?=[0-9.])")
BY = re.compile(rf"(?<![\w.,])({NUM}) ?[x×*] ?({NUM})(?: ?[x×*] ?({NUM}))?(?![\w]|\.[0-9])( ?=)?")
PERCENT = re.compile(rf"(?<![\w.,])({_SIGN})({NUM})(?:( ?%)?{DASH}({NUM}))? ?%(?!\w)")
FEET_INCHES = re.compile(r"(?<![\w.,])([0-9]{1,3})' ?([0-9]{1,2})(?:(?:\.([0-9]{1,2}))?(?:″|'')|(?![\w'″]|\.[0-9]))")
FEET = re.compile(rf"(?<![\w.,'])({NUM})'(?= (?:tall|wide|long|deep|high|by|x)\b)|(?:(?<=by )|(?<=x ))({NUM})'(?!\w)")
_QUOTE = re.compile(r"([0-9]?)\"")
INCHES = re.compile(rf"(?<![\w.,\"'])({_FRACTION}|{NUM})(?:″|'')(?!\w)(?= ?([a-z]{{0,20}}))")
MIXED = re.compile(r"(?<![\w.,/])([0-9]{1,6}) ([0-9]{1,3})/([0-9]{1,3})(?![\w/]|\.[0-9])")
RATING = re.compile(r"(?<![\w.,/])([0-9]{1,3}\.[0-9]{1,2})/([0-9]{1,3}(?:\.[0-9])?)(?![\w/]|\.[0-9])")
SLASH = re.compile(r"(?<![\w.,/])([0-9]{1,6})/([0-9]{1,6})(?![\d/]|\.[0-9])(ths?\b|s\b)?(?!\w)")
SCIENTIFIC = re.compile(
    rf"(?<![\w.,])({_SIGN})({NUM})"
    rf"(?:[eE]\+?(-?[0-9]{{1,3}})(?!\w)| ?[×x*·] ?10(?:\^[({{]?([-−]?[0-9]{{1,3}})[)}}]?|([⁻⁰¹²³⁴-⁹]{{1,4}}))(?!\w))"
)
POWER = re.compile(
    r"(?<=[A-Za-z0-9)]) ?\^ ?(?:\{(-?[0-9]{1,4}|[A-Za-z])\}|\((-?[0-9]{1,4}|[A-Za-z])\)|(-?[0-9]{1,4}|[A-Za-z])\b)"
)
ORDINAL = re.compile(rf"(?<![\w.,])({INT})(?:st|nd|rd|th)(?![A-Za-z])", re.IGNORECASE)
RANGE = re.compile(rf"(?<![\w.,/-])({_SIGN})({NUM})( ?[–—~] ?|-)({NUM})(?![\w/]|-[0-9]|[.,][0-9])")
GROUPED_NUMBER = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:,[0-9]{3}){1,8}(?:\.[0-9]{1,40})?(?![\w]|[.,][0-9])")
LIST_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
DIGIT_MINUS = re.compile(r"(?<=[0-9A-Za-z)]) [-−–] (?=[0-9(]|[A-Za-z] ?[=+*/])")
SIGNED = re.compile(r"(?:(?<![\w)\]\"'-])[-−](?=[0-9.]))")
PLUS_SIGN = re.compile(r"(?<![\w)])\+(?=[0-9.])")
AFTER_PLUS = re.compile(r"(?<=[0-9])\+(?![\w+])")
APPROX = re.compile(r"(?<![\w/~])~ ?(?=[$£€]?[0-9.])|(?<![\w)=] )(?<![\w)=])≈ ?(?=[$£€]?[0-9])")
HOUSE = re.compile(
    rf"(?<![\w.,$£€#-])([0-9]{{3,5}})([A-Z]?)"
    rf"(?= (?:[NSEW]\.? )?(?:[A-Z][A-Za-z'.]{{1,20}} |[0-9]{{1,3}}(?:st|nd|rd|th) ){{1,3}}"
    rf"(?:{'|'.join([*tables.STREETS, *sorted(set(tables.STREETS.values()))])})\b)"
)
HOUSE_SIDE = re.compile(
    rf"(?<![\w.,$£€#-])([0-9]{{1,5}}) ([NSEW])\.? (?=(?:[A-Z][A-Za-z'.]{{1,20}} |[0-9]{{1,3}}(?:st|nd|rd|th) ){{1,3}}"
    rf"(?:{'|'.join([*tables.STREETS, *sorted(set(tables.STREETS.values()))])})\b)"
)
SIDES = {"N": "North", "S": "South", "E": "East", "W": "West"}
LABELLED = re.compile(
    rf"\b(flight [A-Z]{{2}}|{'|'.join(sorted(tables.LABELLED))})( |-)([0-9]{{3,4}})([A-Z]?)(?![\w,]\w|\w|\.[0-9])",
    re.IGNORECASE,
)
LABELLED_AFTER = re.compile(
    r"(?<![\w.,])([45]0[1-9]|4[1-9][0-9])(?= (?:error|page|status|not found|response|Not Found|Error))"
)
NAMED_PAIR = re.compile(r"(?<![\w/])(24/7|9/11|50/50|20/20|60/40|80/20|70/30|10-4)(?![\w/-])")
ALNUM = re.compile(r"(?<![0-9A-Za-z_])(?=[A-Za-z_]{0,40}[0-9])(?=[0-9_]{0,40}[A-Za-z])([0-9A-Za-z_]{2,80})")
UPPER_HYPHEN = re.compile(r"\b([A-Z][A-Za-z]{0,12})-(?=[0-9]{1,4}(?![0-9,]))")
NUMBER = re.compile(rf"(?<![0-9A-Za-z])({NUM})(?![0-9])")
UNKNOWN_UNIT = re.compile(rf"(?<![\w.,])({NUM})( ?)([A-Za-zμΩ]{{2,6}}(?:[/·][A-Za-zμΩ]{{1,5}})?[²³]?)(?![\w/])")


def _value_words(text: str) -> str:
    """A number, a fraction or a mixed number in words."""
    if "/" not in text:
        return number_words.number(text)
    whole, _, part = text.rpartition(" ")
    top, bottom = part.split("/")
    words = _fraction(int(top), int(bottom), mixed=bool(whole))
    return f"{number_words.integer(whole)} and {words}" if whole else words


def _fraction(top: int, bottom: int, *, mixed: bool = False) -> str:
    """3/4 -> "three quarters"; after a whole number 1/2 is "a half" (one and a half)."""
    if bottom in tables.FRACTION_NAMES:
        one, many = tables.FRACTION_NAMES[bottom]
        if top == 1:
            return f"a {one}" if mixed and bottom <= 4 else f"one {one}"
        return f"{number_words.cardinal(top)} {many}"
    return f"{number_words.cardinal(top)} over {number_words.cardinal(bottom)}"


def _sign(mark: str) -> str:
    return "minus " if mark in {"-", "−", "–"} else "plus " if mark == "+" else ""


def read_measure(found: Match) -> str:
    sign, value, joint, sign2, value2, gap, unit = found.groups()[:7]
    if _reads_as_word(found, unit, gap):
        return found[0]
    one, many = tables.UNITS[unit]
    last = value2 or value
    plural = last != "1" and not ("/" in last and " " not in last)
    attributive = gap == "-" or is_adjective(found)
    noun = one if attributive or not plural else many
    words = _sign(sign) + _value_words(value)
    if value2:
        words += (" by " if joint == " x " else " to ") + _sign(sign2 or "") + number_words.number(value2)
    words += f" {noun}" + per_unit((found[9] or "") or None)
    return words + (sentence_stop(found) if unit.endswith(".") and not found[8] else "")


def _reads_as_word(found: Match, unit: str, gap: str) -> bool:
    """Units that are also words or letters stand for units only in clear company."""
    rest = found.string[found.end() : found.end() + 20]
    if unit == "in":  # "5in", "5 in wide", "5 in)", but "5 in the morning"
        return bool(gap) and re.match(r"[;,)]| (?:wide|tall|long|deep|thick|high|by)\b", rest) is None
    if gap == " " and unit in {"us", "cal", "mo"}:
        return True
    if not gap and unit == "s" and "/" in found[2]:  # cut into 1/3s
        return True
    if gap == " " and unit in {"m", "g", "s", "h", "l", "L", "V", "W", "J", "C", "F"}:
        return rest.startswith("'") or re.match(r"\.[A-Za-z]", rest) is not None
    return False


def read_bit_scale(found: Match) -> str:
    before = re.search(r"([A-Za-z]+) $", found.string[max(0, found.start() - 20) : found.start()])
    if before and before[1].lower() in tables.LETTERED:  # apartment 4B
        return found[0]
    first = f"{number_words.number(found[1])} to " if found[2] else ""
    plus = " plus" if found[0].endswith("+") else ""
    return f"{first}{number_words.number(found[2] or found[1])} {tables.SCALES[found[3]]}{plus}"


def read_thousands(found: Match) -> str:
    if found[1] in {"401", "403"}:
        return f"{number_words.label(found[1])} K"
    first = f"{number_words.number(found[1])} to " if found[2] else ""
    return f"{first}{number_words.number(found[2] or found[1])} K"


_TIMES_WHAT = frozenset(
    {"as", "zoom", "growth", "speedup", "daily", "weekly", "monthly", "yearly", "annually", "slowdown"}
)


def read_times(found: Match) -> str:
    after = found[3]
    first = f"{number_words.number(found[1])} to " if found[2] else ""
    times = not after or after in tables.FUNCTION_WORDS or after.endswith("er") or after in _TIMES_WHAT
    times = times and after not in {"engineer", "engineers", "developer"}
    before = found.string[max(0, found.start() - 2) : found.start()].strip()
    if re.match(r" ?[-+=*/^<>²³]", found.string[found.end() : found.end() + 2]) or before in {"=", "+", "-", "<", ">"}:
        times = False  # a sum: 3x + 2
    value = found[2] or found[1]
    return f"{first}{number_words.number(value)} {('time' if value == '1' else 'times') if times else 'x'}"


def read_by(found: Match) -> str:
    word = "times" if found[4] or "*" in found[0] else "by"
    sides = [_side(side) for side in found.groups()[:3] if side]
    return f" {word} ".join(sides) + (found[4] or "")


def _side(run: str) -> str:
    """One side of a size: 1920 is "nineteen twenty", as on a screen."""
    return (
        number_words.year(int(run)) if len(run) == 4 and run.isdecimal() and run[0] != "0" else number_words.number(run)
    )


def read_percent(found: Match) -> str:
    if found[4]:
        middle = " percent" if found[3] else ""
        return f"{_sign(found[1])}{number_words.number(found[2])}{middle} to {number_words.number(found[4])} percent"
    return f"{_sign(found[1])}{number_words.number(found[2])} percent"


def read_feet_inches(found: Match) -> str:
    feet, inches = int(found[1]), int(found[2])
    if inches > 11 or (not found[0].endswith(("″", "''")) and not 3 <= feet <= 8):
        return found[0]
    words = f"{number_words.cardinal(feet)} foot {number_words.cardinal(inches)}"
    return words + (f" point {number_words.digits(found[3])}" if found[3] else "")


def mark_inches(text: str) -> str:
    """The same text with a double prime for each quotation mark after a digit that closes no quotation."""
    is_open = False

    def mark(found: Match) -> str:
        nonlocal is_open
        if found[1] and not is_open:
            return f"{found[1]}″"
        is_open = not is_open
        return found[0]

    return _QUOTE.sub(mark, text) if '"' in text else text


def read_feet(found: Match) -> str:
    value = found[1] or found[2]
    return f"{number_words.number(value)} {'foot' if value == '1' else 'feet'}"


def read_inches(found: Match) -> str:
    singular = (
        found[1] == "1"
        or re.fullmatch(r"[0-9]+/[0-9]+", found[1])
        or (found[2] and found[2] not in tables.FUNCTION_WORDS | {"tall", "wide", "long", "deep", "thick"})
    )
    return f"{_value_words(found[1])} {'inch' if singular else 'inches'}"


def read_mixed(found: Match) -> str:
    top, bottom = int(found[2]), int(found[3])
    if not 0 < top < bottom or bottom not in tables.FRACTION_NAMES:
        return found[0]
    return f"{number_words.cardinal(int(found[1]))} and {_fraction(top, bottom, mixed=True)}"


def read_slash(found: Match) -> str:
    top, bottom = int(found[1]), int(found[2])
    known = bottom in tables.FRACTION_NAMES
    if known and found[3] == "s" and top == 1:
        return tables.FRACTION_NAMES[bottom][1]
    if known and (top < bottom or bottom < 10) and not (bottom == 10 and top > 1) and top:
        return _fraction(top, bottom)
    if found[3]:
        return f"{number_words.cardinal(top)} {number_words.ordinal(bottom)}s"
    if top > bottom or 1900 <= bottom <= 2100:
        return f"{_short(found[1])} over {_short(found[2])}"
    return f"{number_words.cardinal(top)} out of {number_words.cardinal(bottom)}"


def _short(run: str) -> str:
    return number_words.label(run) if len(run) == 3 and run[1:] != "00" else number_words.integer(run)


def read_scientific(found: Match) -> str:
    power = (found[3] or found[4] or found[5].replace("⁻", "-").translate(SUPERSCRIPT_DIGITS)).replace("−", "-")
    return f"{_sign(found[1])}{number_words.number(found[2])} times ten to the power of {number_words.number(power)}"


def read_power(found: Match) -> str:
    power = found[1] or found[2] or found[3]
    known = {"2": " squared", "3": " cubed"}.get(power)
    return known or f" to the power of {power if power.isalpha() else number_words.number(power)}"


def read_ordinal(found: Match) -> str:
    run = found[1].replace(",", "")
    return number_words.ordinal(int(run)) if len(run) <= 15 else f"{number_words.digits(run)}th"


def read_range(found: Match) -> str:
    return f"{_sign(found[1])}{_bare(found[2])} to {_bare(found[4])}"


def _bare(run: str) -> str:
    """A number nothing is known about: years where four digits look like one."""
    if len(run) == 4 and run.isdecimal() and 1100 <= int(run) <= 2099:
        return number_words.year(int(run))
    return number_words.number(run)


def read_house(found: Match) -> str:
    return number_words.label(found[1]) + (f" {found[2]}" if found[2] else "")


def read_labelled(found: Match) -> str:
    name = found[1]
    words = number_words.label(found[3]) if not found[3].endswith("000") else number_words.integer(found[3])
    if found[3][1:] == "00":
        words = number_words.cardinal(int(found[3]))
    return f"{name} {words}" + (f" {found[4]}" if found[4] else "")


def read_named_pair(found: Match) -> str:
    return " ".join(number_words.integer(part) for part in re.split("[/-]", found[1]))


def read_alnum(found: Match) -> str:
    """Letters and digits mixed: letters stay, digits are a label; "_" is a gap."""
    parts = re.findall(r"[0-9]+|[A-Za-z]+", found[1])
    words = []
    for index, part in enumerate(parts):
        if part.isdecimal():
            is_named = index or len(part) != 4 or parts[1] in {"p", "i", "P"}  # 1080p
            words.append(number_words.label(part) if is_named else number_words.integer(part))
        elif len(part) == 1 and part != "x":
            words.append(part.upper())
        else:
            words.append(part)
    return " ".join(words)


def read_number(found: Match) -> str:
    text = found[1]
    words = _number_words(found, text)
    before = found.string[found.start() - 1 : found.start()]
    after = found.string[found.end() : found.end() + 1]
    return (" " if before.isalpha() else "") + words + (" " if after.isalpha() else "")


def _number_words(found: Match, text: str) -> str:
    if not text.isdecimal():
        return number_words.number(text)
    if len(text) == 4 and 1100 <= int(text) <= 2099 and not _counts(found):
        return number_words.year(int(text))
    if len(text) >= 10 and not text.endswith("00000"):
        return number_words.digits(text)
    return number_words.integer(text)


def _counts(found: Match) -> bool:
    """Whether a bare four-digit number counts something or stands in a sum, and so is not a year."""
    after = re.match(r" (?:[a-z]+ )?([a-z]+)", found.string[found.end() : found.end() + 40])
    near = re.match(r" ([a-z]+)", found.string[found.end() : found.end() + 30])
    if (near and near[1] in tables.COUNTED) or (
        after and near and after[1] in tables.COUNTED and near[1] not in tables.FUNCTION_WORDS
    ):
        return True
    before = found.string[max(0, found.start() - 16) : found.start()]
    return re.search(r"(?:[=+×*÷]|equals|plus|times|by|minus|than|least|most|about|only)\s?$", before) is not None or (
        re.match(r" ?[=+×*÷]", found.string[found.end() : found.end() + 3]) is not None
    )
