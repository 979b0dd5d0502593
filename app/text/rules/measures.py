"""Rules for numbers and measures: units, fractions, ranges, percentages, powers, sizes, labels ("Boeing 747")."""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules.common import (
    DASH,
    INT,
    NUM,
    SENTENCE_START,
    SUPERSCRIPT_DIGITS,
    Match,
    alternatives,
    is_adjective,
    per_unit,
    previous_word,
    sentence_stop,
)
from app.text.spans import SpannedText

BETWEEN = re.compile(rf"\b([Bb]etween [$£€]?{NUM}%?) ?[-–—] ?(?=[$£€]?[0-9])")
_UNIT = alternatives(tables.UNITS)
_SIGN = r"(?:(?<![\w)\]])[-−–+](?=[0-9.])|(?<=[(])[-−+])?"
_FRACTION = r"[0-9]{1,3}(?: [0-9]{1,3}/[0-9]{1,3}|/[0-9]{1,3})"
MEASURE = re.compile(
    rf"(?<![\w.,])({_SIGN})((?:{_FRACTION}|{NUM}))(?:({DASH}| x | to )({_SIGN})({NUM}))?"
    rf"([ -]?)({_UNIT})(\s?/\s?({alternatives(tables.PER)})\b)?"
    r"(?![\w²³]|[/^]\w|-[A-Za-z]{2}|'[a-z])"
)
TEMPERATURE = re.compile(
    rf"(?<![\w.,])({_SIGN})({NUM})(?:({DASH}| to )({NUM}))?( ?)([FC])(?![\w°'#♯♭+/-]|\.[A-Za-z])(?= ([a-z]{{1,12}})|)"
)
# A measure in two units: "5 ft. 3 in.". The full stop after the first unit does not end a sentence.
TWO_UNITS = re.compile(
    rf"(?<![\w.,/])([0-9]{{1,4}}) ?(ft|foot|feet|lbs?|hrs?|min|yd|yds)\.?,? {SENTENCE_START}?"
    r"([0-9]{1,3}(?:\.[0-9]{1,2})?) ?(in|inch|inches|oz|mins?|secs?|ft)(\.?)(?![\w])"
)
DEGREES_LETTER = re.compile(r"\b(degrees?) ([CF])\b(?!['#])")
DEGREE_SIGN = re.compile(r"(?<=[0-9])(?:º| º)(?= ?[CFK]\b)")
TIME_SIGNATURE = re.compile(r"(?<![\w/.,])([2-9]|12)/(2|4|8|16)(?= (?:time|meter|metre|signature)\b)")
ROUND_PLURAL = re.compile(r"(?<![\w.,$€£])(10|100|1,?000)s(?= of\b)")
# Two measures with a slash or a dash between them: "5V/2A", "180°C/350°F", "20 Hz–20 kHz".
MEASURES = re.compile(rf"(?<![\w.,/])({NUM} ?(?:{_UNIT}))(?:(/)| ?([–—-]) ?)(?={NUM} ?(?:{_UNIT}|A)(?!\w))")
AMPERES = re.compile(rf"(?<=[0-9]V)([/, ] ?|, | at )({NUM}) ?A(?![\w-])|(?<![\w.,])([0-9]\.[0-9]{{1,2}}) ?A(?![\w-])")
METER_POWER = re.compile(rf"(?<![\w.,])({NUM}) ?((?:[kcm]?m|ft|in|yd))([23])(?![\w.]\w|\w)")
PER_HUNDRED = re.compile(r"(?<=[0-9]) ?(L|l|kWh)/100 ?km(?!\w)")
ONE_OVER_SECONDS = re.compile(r"(?<![\w/.,])1/([0-9]{2,4}) ?(?:s|sec)(?!\w)")
F_NUMBER = re.compile(r"(?<![\w/])([fƒ])/([0-9]{1,2}(?:\.[0-9])?)(?=(L?)(?!\w))L?")
COORDINATE = re.compile(
    r"(?<![\w.,])([0-9]{1,3}(?:\.[0-9]{1,8})?) ?°(?: ?([0-9]{1,2}(?:\.[0-9]{1,6})?) ?['′](?:"
    r" ?([0-9]{1,2}(?:\.[0-9]{1,6})?) ?(?:″|\"|''))?)?"
    r"(?: ?([NSEW])(?![\w]))?"
)
_COMPASS = {"N": " north", "S": " south", "E": " east", "W": " west"}
MILLIONS_OF = re.compile(
    r"(?<=[0-9])m(?= (?:people|users|customers|views|followers|subscribers|downloads|copies|units|jobs|homes|"
    r"households|visitors|votes|tons|tonnes|barrels|Americans|Britons|workers|children|listeners|viewers)\b)"
)
DOT_RANGE = re.compile(r"(?<=[0-9])\.{2,3}(?=[0-9])")
# In a calculation with "=", a hyphen means minus ("5-2=3"), and a slash means division ("6/2=3").
SUM_MINUS = re.compile(r"(?<=[0-9])-(?=[0-9]{1,9}(?:\.[0-9]{1,9})? ?=(?!=))")
SUM_DIVIDED = re.compile(
    r"(?<![\w.,/])(?<![+*×=-] )([0-9]{1,9}) ?/ ?(?=[0-9]{1,9} ?= ?[0-9]{1,9}(?:\.[0-9]{1,9})?(?![0-9/]))"
)
FACTORIAL = re.compile(r"(?<=[0-9])!(?= ?=)")
STARS = re.compile(r"(?<![\w.,/])([0-9])/(5|10)(?= stars?\b)")
NAMED_SLASH = re.compile(
    rf"\b({'|'.join(sorted(tables.VERSIONED | tables.LETTERED))}) ([0-9]{{1,4}})/([0-9]{{1,4}})(?![\w/]|[.,][0-9])",
    re.IGNORECASE,
)
# "12V-24V" is rewritten as "12-24V", so that the rule `MEASURE` reads it.
UNIT_RANGE = re.compile(rf"(?<![\w.,])({NUM}) ?({_UNIT}) ?[-–] ?(?={NUM} ?\2(?!\w))")
ORDINAL_SIGN = re.compile(r"(?<![\w.,])([0-9]{1,4})\.?[ºª](?! ?[CFK]\b)(?!\w)")
SPACED_SLASH = re.compile(r"(?<=[\w.)]) / (?=[\w(])")
TEAM = re.compile(r"(?<![\w.,])([0-9]{2})ers\b")  # the name of a team, such as "the 49ers"
BIT_SCALE = re.compile(rf"(?<![\w.,])({NUM})(?:{DASH}({NUM}))?(bn|mn|M|B|T)\b(?!/)\+?")
THOUSANDS = re.compile(rf"(?<![\w.,])({NUM})(?:{DASH}({NUM}))?[kK]\b(?![-/]\w)")
TIMES = re.compile(rf"(?<![\w.,])({NUM})(?:{DASH}({NUM}))?[x×](?![\w])(?:(?= ([a-z]+))|/(day|week|month|year|wk|d)\b|)")
BEFORE_BY_UNIT = re.compile(rf"(?<![\w.,])({NUM}) ?[x×] ?(?={NUM} ?(?:{_UNIT})(?!\w))")
BY_UNIT = re.compile(rf"(?<![\w.,])({NUM} ?(?:{_UNIT})) ?[x×] ?(?=[0-9.])")
_BY = "(?: [x×*] |[x×*])"
BY = re.compile(rf"(?<![\w.,])({NUM}){_BY}({NUM})(?:{_BY}({NUM}))?(?![\w]|\.[0-9])( ?=)?")
PERCENT = re.compile(rf"(?<![\w.,])({_SIGN})({_FRACTION}|{NUM})(?:( ?%)?{DASH}({NUM}))? ?%(?!\w)")
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
    r"(?<=[A-Za-z0-9)]) ?(?:\^|\*\*) ?(?:\{(-?[0-9]{1,4}|-?[A-Za-z])\}|\((-?[0-9]{1,4}|-?[A-Za-z])\)"
    r"|(-?[0-9]{1,4}|-?[A-Za-z])\b)"
)
ORDINAL = re.compile(rf"(?<![\w.,])({INT})(?:st|nd|rd|th)(?![A-Za-z])", re.IGNORECASE)
RANGE = re.compile(rf"(?<![\w.,/-])({_SIGN})({NUM})( ?[–—~] ?|-)({NUM})(?![\w/]|-[0-9]|[.,][0-9])")
GROUPED_NUMBER = re.compile(
    r"(?<![\w.,])(?:[0-9]{1,3}(?:,[0-9]{3}){1,8}|[0-9]{1,2}(?:,[0-9]{2}){1,6},[0-9]{3})(?:\.[0-9]{1,40})?(?![\w]|[.,][0-9])"
)
LIST_COMMA = re.compile(r"(?<=[0-9])([,;])(?=[0-9])")
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
NAMED_PAIR = re.compile(
    r"(?<![\w/])(24/7|9/11|7/11|7/7|50/50|50-50|90/10|70/20/10|20/20|60/40|80/20|70/30|10-4)(?![\w/-])"
)
ALNUM = re.compile(r"(?<![0-9A-Za-z_])(?=[A-Za-z_]{0,40}[0-9])(?=[0-9_]{0,40}[A-Za-z])([0-9A-Za-z_]{2,80})")
UPPER_HYPHEN = re.compile(r"\b([A-Z][A-Za-z]{0,12})-(?=[0-9]{1,4}(?![0-9,]))")
NUMBER = re.compile(rf"(?<![0-9A-Za-z])({NUM})(?![0-9])")
UNKNOWN_UNIT = re.compile(rf"(?<![\w.,])({NUM})( ?)([A-Za-zμΩ]{{2,6}}(?:[/·][A-Za-zμΩ]{{1,5}})?[²³]?)(?![\w/])")


def _value_words(text: str) -> str:
    """Return the words for a number, a fraction (3/4) or a mixed number (1 3/4)."""
    if "/" not in text:
        return number_words.number(text)
    whole, _, part = text.rpartition(" ")
    top, bottom = part.split("/")
    words = _fraction(int(top), int(bottom), mixed=bool(whole))
    return f"{number_words.integer(whole)} and {words}" if whole else words


def _fraction(top: int, bottom: int, *, mixed: bool = False) -> str:
    """Return the words for a fraction: 3/4 -> "three quarters".

    mixed: True = the fraction follows a whole number, so 1/2 is read "a half" and not "one half".
    """
    if bottom in tables.FRACTION_NAMES:
        one, many = tables.FRACTION_NAMES[bottom]
        if top == 1:
            return f"a {one}" if mixed and bottom <= 4 else f"one {one}"
        return f"{number_words.cardinal(top)} {many}"
    return f"{number_words.cardinal(top)} over {number_words.cardinal(bottom)}"


def _sign(sign: str) -> str:
    return "minus " if sign in {"-", "−", "–"} else "plus " if sign == "+" else ""


def verbalize_measure(match: Match) -> str:
    sign, value, joint, sign2, value2, gap, unit = match.groups()[:7]
    if _reads_as_word(match, unit, gap):
        return match[0]
    one, many = tables.UNITS[unit]
    last = value2 or value
    plural = last != "1" and not ("/" in last and " " not in last and unit != "mmHg")
    attributive = gap == "-" or is_adjective(match)
    noun = one if attributive or not plural else many
    words = _sign(sign) + _value_words(value)
    if value2:
        words += (" by " if joint == " x " else " to ") + _sign(sign2 or "") + number_words.number(value2)
    words += f" {noun}" + per_unit((match[9] or "") or None)
    return words + (sentence_stop(match) if unit.endswith(".") and not match[8] else "")


_DEGREES = {"C": "Celsius", "F": "Fahrenheit"}
_BEFORE_DEGREES = frozenset(
    {"at", "to", "of", "about", "around", "below", "above", "under", "over", "is", "was", "reached"}
)


def separate_measures(match: Match) -> str:
    return f"{match[1]}, " if match[2] else f"{match[1]} to "


def verbalize_amperes(match: Match) -> str:
    value = match[2] or match[3]
    return f"{', ' if match[1] else ''}{number_words.number(value)} {'amp' if value == '1' else 'amps'}"


def rewrite_meter_power(match: Match) -> str:
    return f"{match[1]} {match[2]}{'²' if match[3] == '2' else '³'}"


def verbalize_per_hundred(match: Match) -> str:
    return " kilowatt hours per hundred kilometers" if match[1] == "kWh" else " liters per hundred kilometers"


def verbalize_one_over_seconds(match: Match) -> str:
    return f"one {number_words.ordinal(int(match[1]))} of a second"


def verbalize_f_number(match: Match) -> str:
    return f"F {number_words.number(match[2])}{' L' if match[3] else ''}"


def verbalize_coordinate(match: Match) -> str:
    """Return the words for an angle with minutes or a compass direction: 40°N -> "forty degrees north"."""
    degrees, minutes, seconds, side = match.groups()
    if not minutes and not side:
        return match[0]
    words = f"{number_words.number(degrees)} degree{'' if degrees == '1' else 's'}"
    words += f" {number_words.number(minutes)} minutes" if minutes else ""
    words += f" {number_words.number(seconds)} seconds" if seconds else ""
    return words + (_COMPASS[side] if side else "")


def verbalize_stars(match: Match) -> str:
    return f"{number_words.cardinal(int(match[1]))} out of {number_words.cardinal(int(match[2]))}"


def verbalize_named_slash(match: Match) -> str:
    """Return the words for two numbers after one name: "Windows 10/11" -> "Windows ten or eleven"."""
    if match[1].lower() in tables.VERSIONED:
        return f"{match[1]} {number_words.integer(match[2])} or {number_words.integer(match[3])}"
    return f"{match[1]} {number_words.label(match[2])} slash {number_words.label(match[3])}"


def verbalize_temperature(match: Match) -> str:
    """Return the words for a temperature without a degree sign: "-40 C" -> "minus forty degrees Celsius"."""
    sign, value, joint, value2, gap, letter, after = match.groups()
    before = previous_word(match)
    is_clear = "." in value or bool(sign) or (bool(value2) and not gap)
    if gap:
        is_clear = is_clear or (not before and not after and len(value) in {2, 3})
        is_clear = is_clear or (
            len(value) in {2, 3} and before.lower() in _BEFORE_DEGREES and after not in {"major", "minor"}
        )
    elif not is_clear:
        is_name = before.lower() in tables.LETTERED or (before[:1].isupper() and before not in tables.STARTERS)
        is_clear = value == "0" or (len(value) in {2, 3} and value.isdecimal() and not is_name)
    if not is_clear:
        return match[0]
    last = value2 or value
    words = _sign(sign) + number_words.number(value) + (f" to {number_words.number(value2)}" if joint else "")
    return f"{words} {'degree' if last == '1' else 'degrees'} {_DEGREES[letter]}"


_TWO_UNITS = {"ft": "foot", "feet": "foot", "lb": "pound", "lbs": "pound", "hr": "hour", "hrs": "hour", "min": "minute",
              "mins": "minute", "sec": "second", "secs": "second", "in": "inch", "inches": "inch", "oz": "ounce",
              "yd": "yard", "yds": "yard"}  # fmt: skip
_TWO_PLURALS = {"foot": "feet", "inch": "inches"}


def verbalize_degrees_letter(match: Match) -> str:
    return f"{match[1]} {_DEGREES[match[2]]}"


def verbalize_two_units(match: Match) -> str:
    """Return the words for a measure in two units: "5 ft. 3 in." -> "five feet three inches"."""
    words = []
    for value, unit in ((match[1], match[2]), (match[3], match[4])):
        name = _TWO_UNITS.get(unit, unit)
        words.append(f"{number_words.number(value)} {name if value == '1' else _TWO_PLURALS.get(name, f'{name}s')}")
    return " ".join(words) + (sentence_stop(match) if match[5] else "")


def verbalize_time_signature(match: Match) -> str:
    return f"{number_words.integer(match[1])} {number_words.integer(match[2])}"


def verbalize_round_plural(match: Match) -> str:
    return {"10": "tens", "100": "hundreds"}.get(match[1], "thousands")


def verbalize_ordinal_sign(match: Match) -> str:
    return number_words.ordinal(int(match[1]))


def _reads_as_word(match: Match, unit: str, gap: str) -> bool:
    """Return whether the text `unit` after a number is not a unit here, such as "in" in "5 in the morning"."""
    rest = match.string[match.end() : match.end() + 20]
    if unit == "in":  # "in" is a unit in "5in", "5 in wide" and "5 in)", but a word in "5 in the morning"
        return bool(gap) and re.match(r"[;,)]| (?:wide|tall|long|deep|thick|high|by)\b", rest) is None
    if gap == " " and unit in {"us", "cal", "mo"}:
        return True
    # the "s" is a plural ending and does not mean seconds: "cut into 1/3s"
    if not gap and unit == "s" and "/" in match[2]:
        return True
    if gap == " " and unit in {"m", "g", "s", "h", "l", "L", "V", "W", "J", "C", "F"}:
        return rest.startswith("'") or re.match(r"\.[A-Za-z]", rest) is not None
    return False


def verbalize_bit_scale(match: Match) -> str:
    before = re.search(r"([A-Za-z]+) $", match.string[max(0, match.start() - 20) : match.start()])
    # the "B" is a letter and does not mean billions: "apartment 4B"
    if before and before[1].lower() in tables.LETTERED:
        return match[0]
    first = f"{number_words.number(match[1])} to " if match[2] else ""
    plus = " plus" if match[0].endswith("+") else ""
    return f"{first}{number_words.number(match[2] or match[1])} {tables.SCALES[match[3]]}{plus}"


def verbalize_thousands(match: Match) -> str:
    if match[1] in {"401", "403"}:
        return f"{number_words.label(match[1])} K"
    first = f"{number_words.number(match[1])} to " if match[2] else ""
    return f"{first}{number_words.number(match[2] or match[1])} K"


_MULTIPLIED = frozenset(
    {"as", "zoom", "growth", "speedup", "daily", "weekly", "monthly", "yearly", "annually", "slowdown"}
)


def verbalize_times(match: Match) -> str:
    after = match[3]
    first = f"{number_words.number(match[1])} to " if match[2] else ""
    times = not after or after in tables.FUNCTION_WORDS or after.endswith("er") or after in _MULTIPLIED
    times = times and after not in {"engineer", "engineers", "developer"}
    before = match.string[max(0, match.start() - 2) : match.start()].strip()
    if re.match(r" ?[-+=*/^<>²³]", match.string[match.end() : match.end() + 2]) or before in {"=", "+", "-", "<", ">"}:
        times = False  # "x" is a variable in a formula and does not mean "times": "3x + 2"
    value = match[2] or match[1]
    words = f"{first}{number_words.number(value)} {('time' if value == '1' else 'times') if times else 'x'}"
    return words + per_unit(match[4])


def verbalize_by(match: Match) -> str:
    word = "times" if match[4] or "*" in match[0] else "by"
    sides = [_side(side) for side in match.groups()[:3] if side]
    return f" {word} ".join(sides) + (match[4] or "")


def _side(run: str) -> str:
    """Return the words for one number of a size such as 1920x1080. Four digits are read as a year (nineteen twenty)."""
    return (
        number_words.year(int(run)) if len(run) == 4 and run.isdecimal() and run[0] != "0" else number_words.number(run)
    )


def verbalize_percent(match: Match) -> str:
    if match[4]:
        middle = " percent" if match[3] else ""
        return f"{_sign(match[1])}{_value_words(match[2])}{middle} to {number_words.number(match[4])} percent"
    return f"{_sign(match[1])}{_value_words(match[2])} percent"


def verbalize_feet_inches(match: Match) -> str:
    feet, inches = int(match[1]), int(match[2])
    if inches > 11 or (not match[0].endswith(("″", "''")) and not 3 <= feet <= 8):
        return match[0]
    words = f"{number_words.cardinal(feet)} foot {number_words.cardinal(inches)}"
    return words + (f" point {number_words.digits(match[3])}" if match[3] else "")


def mark_inches(text: SpannedText) -> SpannedText:
    """Replace each quotation mark that means inches with a double prime: 5" -> 5″.

    A quotation mark means inches if it follows a digit and no quotation is open.
    """
    is_open = False

    def mark(match: Match) -> str:
        nonlocal is_open
        if match[1] and not is_open:
            return f"{match[1]}″"
        is_open = not is_open
        return match[0]

    return text.sub(_QUOTE, mark) if '"' in text.text else text


def verbalize_feet(match: Match) -> str:
    value = match[1] or match[2]
    return f"{number_words.number(value)} {'foot' if value == '1' else 'feet'}"


def verbalize_inches(match: Match) -> str:
    singular = (
        match[1] == "1"
        or re.fullmatch(r"[0-9]+/[0-9]+", match[1])
        or (match[2] and match[2] not in tables.FUNCTION_WORDS | {"tall", "wide", "long", "deep", "thick"})
    )
    return f"{_value_words(match[1])} {'inch' if singular else 'inches'}"


def verbalize_mixed(match: Match) -> str:
    top, bottom = int(match[2]), int(match[3])
    if not 0 < top < bottom or bottom not in tables.FRACTION_NAMES:
        return match[0]
    return f"{number_words.cardinal(int(match[1]))} and {_fraction(top, bottom, mixed=True)}"


def verbalize_slash(match: Match) -> str:
    top, bottom = int(match[1]), int(match[2])
    known = bottom in tables.FRACTION_NAMES
    if known and match[3] == "s" and top == 1:
        return tables.FRACTION_NAMES[bottom][1]
    if known and (top < bottom or bottom < 10) and not (bottom == 10 and top > 1) and top:
        return _fraction(top, bottom)
    if match[3]:
        return f"{number_words.cardinal(top)} {number_words.ordinal(bottom)}s"
    if top > bottom or 1900 <= bottom <= 2100:
        return f"{_short_label(match[1])} over {_short_label(match[2])}"
    return f"{number_words.cardinal(top)} out of {number_words.cardinal(bottom)}"


def _short_label(run: str) -> str:
    return number_words.label(run) if len(run) == 3 and run[1:] != "00" else number_words.integer(run)


def verbalize_scientific(match: Match) -> str:
    power = (match[3] or match[4] or match[5].replace("⁻", "-").translate(SUPERSCRIPT_DIGITS)).replace("−", "-")
    return f"{_sign(match[1])}{number_words.number(match[2])} times ten to the power of {number_words.number(power)}"


def verbalize_power(match: Match) -> str:
    power = match[1] or match[2] or match[3]
    known = {"2": " squared", "3": " cubed"}.get(power)
    if power.lstrip("-").isalpha():
        return f" to the power of {power.replace('-', 'minus ')}"
    return known or f" to the power of {number_words.number(power)}"


def verbalize_ordinal(match: Match) -> str:
    run = match[1].replace(",", "")
    return number_words.ordinal(int(run)) if len(run) <= 15 else f"{number_words.digits(run)}th"


def verbalize_range(match: Match) -> str:
    return f"{_sign(match[1])}{_plain_number(match[2])} to {_plain_number(match[4])}"


def _plain_number(run: str) -> str:
    """Return the words for one end of a range. A whole number from 1100 to 2099 is read as a year."""
    if len(run) == 4 and run.isdecimal() and 1100 <= int(run) <= 2099:
        return number_words.year(int(run))
    return number_words.number(run)


def verbalize_house(match: Match) -> str:
    return number_words.label(match[1]) + (f" {match[2]}" if match[2] else "")


def verbalize_labelled(match: Match) -> str:
    name = match[1]
    words = number_words.label(match[3]) if not match[3].endswith("000") else number_words.integer(match[3])
    if match[3][1:] == "00":
        words = number_words.cardinal(int(match[3]))
    return f"{name} {words}" + (f" {match[4]}" if match[4] else "")


def verbalize_named_pair(match: Match) -> str:
    return " ".join(number_words.integer(part) for part in re.split("[/-]", match[1]))


def verbalize_alnum(match: Match) -> str:
    """Return the words for a mix of letters and digits: "user_id42" -> "user id forty two"."""
    parts = re.findall(r"[0-9]+|[A-Za-z]+", match[1])
    words = []
    for index, part in enumerate(parts):
        if part.isdecimal():
            is_named = index or len(part) != 4 or parts[1] in {"p", "i", "P"}  # "1080p" is read "ten eighty P"
            words.append(number_words.label(part) if is_named else number_words.integer(part))
        elif len(part) == 1 and part != "x":
            words.append(part.upper())
        else:
            words.append(part)
    return " ".join(words)


def verbalize_number(match: Match) -> str:
    text = match[1]
    words = _number_words(match, text)
    before = match.string[match.start() - 1 : match.start()]
    after = match.string[match.end() : match.end() + 1]
    return (" " if before.isalpha() else "") + words + (" " if after.isalpha() else "")


def _number_words(match: Match, text: str) -> str:
    if not text.isdecimal():
        return number_words.number(text)
    if len(text) == 4 and 1100 <= int(text) <= 2099 and not _is_count(match):
        return number_words.year(int(text))
    if len(text) >= 10 and not text.endswith("00000"):
        return number_words.digits(text)
    return number_words.integer(text)


def _is_count(match: Match) -> bool:
    """Return whether a four-digit number is a count or a part of a calculation. Otherwise, it is read as a year."""
    after = re.match(r" (?:[a-z]+ )?([a-z]+)", match.string[match.end() : match.end() + 40])
    near = re.match(r" ([a-z]+)", match.string[match.end() : match.end() + 30])
    if (near and near[1] in tables.COUNTED) or (
        after and near and after[1] in tables.COUNTED and near[1] not in tables.FUNCTION_WORDS
    ):
        return True
    before = match.string[max(0, match.start() - 16) : match.start()]
    return re.search(r"(?:[=+×*÷]|equals|plus|times|by|minus|than|least|most|about|only)\s?$", before) is not None or (
        re.match(r" ?[=+×*÷]", match.string[match.end() : match.end() + 3]) is not None
    )
