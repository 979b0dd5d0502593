"""The lexer: it reads whole tokens with digits before later rules can read parts of a token.

A token is a run of letters and digits with the marks . : - between them: "v1.2.3-rc.1", "i7-13700K", "2m30s". `_KINDS`
lists the kinds of token in order. The words come from the first kind whose pattern matches the whole token and whose
reader does not return None. A token that no kind reads, for example "3.5kg" or "50-year-old", is left to the later
rules.

In the words of a token, no ".", ":" or "-" stands next to the word for a number. Otherwise a sentence could be split
there by mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from app.text import number_words, tables
from app.text.rules.common import Match, alternatives, spell_out

# The lookahead `(?=[^\s0-9]{0,24}[0-9])` lets only words with a digit match. It has a maximum length, so that the time
# grows linearly with the length of the text.
TOKEN = re.compile(
    r"(?<![\w.,:/@#$€£¥₹&'+\-−^~\\%°⁰¹²³⁴-₉])(?=[^\s0-9]{0,24}[0-9])"
    r"[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,80}[A-Za-z0-9])?(?:\+[A-Za-z0-9][A-Za-z0-9.]{0,40}(?<!\.))?"
    r"(?![\w/=°@\\⁰¹²³⁴-₉]|[-:.+][\w+])"
)
_DIGIT = re.compile("[0-9]")
_RUNS = re.compile(r"[0-9]+|[A-Za-z]+")
_NUMBER = r"[0-9]{1,30}(?:[.,][0-9]{1,20})?(?::[0-9]{1,2}){0,2}"
# The endings of numbers that the later rules read, such as units, ordinals, decades and times of day. `_KEPT` matches
# such a number alone or in a compound.
_SUFFIX = alternatives(
    [
        *(unit for unit in tables.UNITS if "/" not in unit and " " not in unit and "." not in unit),
        *(scale for scale in tables.SCALES if scale.isalpha()),
        *(code for code in tables.CURRENCIES if len(code) == 3 and code.isalpha()),
        *("st", "nd", "rd", "th", "ST", "ND", "RD", "TH", "am", "pm", "AM", "PM", "x", "ers", "ish"),
    ]
)
_SEGMENT = rf"(?:{_NUMBER}(?:{_SUFFIX})?|[A-Za-z]?[a-z]{{1,30}})"
_KEPT = re.compile(rf"{_SEGMENT}(?:(?:-|x(?=[0-9])){_SEGMENT}){{0,6}}")
_VERSION_WORDS = frozenset(
    {
        "alpha",
        "beta",
        "rc",
        "dev",
        "post",
        "pre",
        "preview",
        "snapshot",
        "final",
        "ga",
        "lts",
        "sp",
        "canary",
        "nightly",
    }
)

# A colon between a word and a number: "Score:5".
GLUED_COLON = re.compile(r"(?<![\w.:/@-])([A-Za-z][A-Za-z-]{2,40}):(?=[0-9])")
DURATION = re.compile(
    r"(?<![\w.,:/-])(?=[0-9]{1,4} ?[wdhm])(?:[0-9]{1,4} ?w ?)?(?:[0-9]{1,4} ?d ?)?(?:[0-9]{1,4} ?(?:hrs?|h) ?)?"
    r"(?:[0-9]{1,4} ?(?:mins?|m)(?![a-z]) ?)?(?:[0-9]{1,4}(?:\.[0-9]{1,6})? ?(?:ms|secs?|s))?(?![\w°²³/^]|-\w)"
)
_DURATION_PART = re.compile(r"([0-9.]{1,12}) ?([a-z]{1,4})")
_DURATION_UNITS = {
    "w": "week", "d": "day", "h": "hour", "hr": "hour", "hrs": "hour", "m": "minute", "min": "minute", "mins": "minute",
    "s": "second", "sec": "second", "secs": "second", "ms": "millisecond",
}  # fmt: skip
STANDARD = re.compile(
    r"(?<![\w/-])((?:(?:ISO|IEC|IEEE|EN|DIN|ANSI|ASTM|ASME|BS|NF|JIS|RFC|FIPS|NIST|SP|ECMA|UL|AS|NZS|SAE|GOST|MIL-STD)"
    r"[ /-]){1,4})([0-9]{3,6})((?:[-.][0-9]{1,4}){0,2})(?::([12][0-9]{3}))?(?![,.:]\w|-[0-9]|[\w%])"
)
WIRELESS = re.compile(r"(?<![\w.,])802\.([0-9]{1,2})([A-Za-z]{0,3}(?:/[a-z]{1,2}){0,6})(?![\w.]\w|\w)")
AIRCRAFT = re.compile(r"(?<![\w.,$€£-])(7[0-9]7)-([0-9]{1,3})(?![\w,]\w|[\w%-])")

_Reader = Callable[[Match, Match], str | None]


def verbalize_token(match: Match) -> str:
    """Return the words for a whole token; the token itself if it is left to later rules."""
    token = match[0]
    if token.isdecimal() or _DIGIT.search(token) is None:
        return token
    for pattern, read in _KINDS:
        if (found := pattern.fullmatch(token)) and (words := read(found, match)) is not None:
            return words
    return token


def _keep(_: Match, match: Match) -> str:
    return match[0]


def read_runs(text: str) -> str:
    """Return the words for a mix of letters and digits: "XM5" -> "XM five", "G991B" -> "G nine ninety one B"."""
    return " ".join(
        number_words.label(run) if run.isdecimal() else run.upper() if len(run) == 1 and run != "x" else run
        for run in _RUNS.findall(text)
    )


def _points(dotted: str) -> str:
    """Return the words for the numbers of a version: "3.11" -> "three point eleven"."""
    return " point ".join(number_words.integer(group) for group in dotted.split("."))


def _hardware_address(found: Match, _: Match) -> str:
    groups = re.split("[:.-]", found[0])
    # a time code and not a hardware address: 01:02:03:04
    if len(groups) == 4 and found[0].replace(":", "").isdecimal():
        return ", ".join(number_words.integer(group) for group in groups)
    return ", ".join(spell_out(group) for group in groups)


def _hash(found: Match, _: Match) -> str | None:
    """Spell a hexadecimal number such as a commit hash.

    If it has more than 12 characters, spell only the first seven, and say how many characters it has.

    The result is None if the text has fewer than four runs of digits or letters, because it may be a word or a number.
    """
    text = found[0]
    if len(_RUNS.findall(text)) < 4:
        return None
    if len(text) <= 12:
        return spell_out(text)
    return f"{spell_out(text[:7])}, and so on, {number_words.cardinal(len(text))} characters in all"


def _groups(found: Match, _: Match) -> str:
    return ", ".join(spell_out(group) for group in found[0].split("-"))


def _literal(found: Match, _: Match) -> str:
    return f"zero {found[1].lower()} {spell_out(found[2])}"


def _vulnerability(found: Match, _: Match) -> str:
    return f"CVE {number_words.year(int(found[1]))}, {number_words.label(found[2])}"


def _episode(found: Match, _: Match) -> str:
    return f"season {number_words.cardinal(int(found[1]))} episode {number_words.cardinal(int(found[2]))}"


def _cells(found: Match, _: Match) -> str:
    return f"{read_runs(found[1])} to {read_runs(found[2])}"


def _recording(found: Match, _: Match) -> str:
    words = f"MP {number_words.digits(found[1])}"
    return number_words.plural(words) if found[2] else words


def _code(found: Match, _: Match) -> str:
    return read_runs(found[0])


def _plural(found: Match, _: Match) -> str:
    """Read the plural of a code: "PS5s" -> "PS fives", "F-16s" -> "F sixteens"."""
    return number_words.plural(read_runs(found[1]))


_MODEL_BEFORE = re.compile(
    rf"\b(?:{'|'.join(sorted(tables.LANGUAGE_MODELS))})(?:[ -]?v?[0-9.]{{1,6}}| [A-Z][a-z]{{1,12}}){{0,2}}[ -]$",
    re.IGNORECASE,
)
_MODEL_AFTER = re.compile(r"[ -](?:models?|LLMs?|instruct|chat|checkpoints?|variants?|versions?|quantized)\b")


def _model_size(found: Match, match: Match) -> str | None:
    """Read "B" after the size of a language model as a letter and not as "billion": "Llama 3 70B" -> "seventy B"."""
    size = (f"{number_words.integer(found[1])} by " if found[1] else "") + number_words.number(found[2])
    is_model = (
        found[1]
        or _MODEL_BEFORE.search(match.string[max(0, match.start() - 40) : match.start()])
        or _MODEL_AFTER.match(match.string, match.end())
    )
    return f"{size} B" if is_model else None


def _processor(found: Match, _: Match) -> str:
    """Read "i7-13700K" as "i seven thirteen seven hundred K"."""
    number = found[2]
    parts = [number[:2], number[2:]] if len(number) == 5 else [number]
    words = [found[1][0], *(number_words.label(part) for part in (found[1][1:], *parts)), spell_out(found[3])]
    return " ".join(words).rstrip()


def _version(found: Match, match: Match) -> str | None:
    """Read a version with a suffix: "v1.2.3-rc.1", "2.0.0+build.5", "3.12.0rc1". Read "V8" as a letter and a number."""
    prefix, numbers, rest = found.groups()
    if prefix and "." not in numbers:
        is_engine = re.match(r" (?:engine|motor)", match.string[match.end() : match.end() + 7]) is not None
        return f"V {number_words.integer(numbers)}" if not rest and (prefix == "V" or is_engine) else None
    if prefix and not rest:
        return match[0]  # the rule net.VERSION reads this token later
    name = re.match(r"[A-Za-z]{0,20}", rest.lstrip("-+."))
    known = name is not None and name[0].lower() in _VERSION_WORDS
    if not prefix and not known and numbers.count(".") < 2:
        return None
    head = {"v": "version ", "V": "Version "}.get(prefix or "", "")
    return " ".join([f"{head}{_points(numbers)}", *_version_rest(rest)])


def _version_rest(rest: str) -> list[str]:
    words = []
    for mark, part in re.findall(r"([-+.]?)([A-Za-z]{1,30}|[0-9]{1,30})", rest):
        words += ["plus"] if mark == "+" else []
        words.append(
            number_words.integer(part) if part.isdecimal() else " ".join(part.upper()) if len(part) <= 2 else part
        )
    return words


def _letter_code(found: Match, match: Match) -> str | None:
    """Read "H.264" as "H two sixty four" and "M.2" as "M dot two"."""
    if found[1] in tables.BEFORE_NUMBER:
        return None
    dot = " dot " if len(found[2]) == 1 else " "
    return f"{found[1]}{dot}{number_words.label(found[2])}{f' {found[3].upper()}' if found[3] else ''}"


def _sentence_end(found: Match, _: Match) -> str:
    return f"{found[1]}. {found[2]}"


def _after_colon(found: Match, _: Match) -> str:
    return f"{found[1]}: {TOKEN.sub(verbalize_token, found[2])}"


_NO_CODE = frozenset(
    [*tables.BEFORE_NUMBER, *tables.TITLES, *tables.STREETS, *tables.MONTH_BY_PREFIX, "Sept", "St", "Rs", "Fr"]
    + [name.rstrip(".") for name in tables.ABBREVIATIONS]
)


def _compound(found: Match, match: Match) -> str | None:
    """Read letters and digits that hyphens, dots or colons join: "SM-G991B" -> "SM G nine ninety one B"."""
    parts = re.split(r"([-.:]+)", found[0])
    segments, joints = parts[::2], parts[1::2]
    if not joints or "+" in found[0] or (segments[0] in _NO_CODE and joints[0] == "."):
        return None
    if len(segments) == 2 and joints[0] == "-":
        first, last = (re.fullmatch(r"([A-Z]{1,3})([0-9]{1,4})", segment) for segment in segments)
        if first and last and first[1] == last[1] and int(first[2]) < int(last[2]):
            return f"{read_runs(segments[0])} to {read_runs(segments[1])}"
    words = read_runs(segments[0])
    for before, joint, segment in zip(segments, joints, segments[1:], strict=False):
        if joint == "." and before[-1:].isdecimal() and segment[:1].isdecimal():
            words += " point "
        elif joint == ".":
            words += " dot "
        elif ":" in joint:
            words += ", "
        elif before.isalpha() and segment.isalpha():
            words += "-"
        else:
            words += " "
        words += read_runs(segment)
    return words


_KINDS: tuple[tuple[re.Pattern[str], _Reader], ...] = (
    (re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){3,7}"), _hardware_address),
    (re.compile(r"[0-9.:,-]{1,90}"), _keep),
    (re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?[eE][+-]?[0-9]{1,3}"), _keep),
    (re.compile(r"[0-9A-Fa-f]{2}(?:-[0-9A-Fa-f]{2}){5}"), _hardware_address),
    (re.compile(r"[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}"), _hardware_address),
    (re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"), _groups),
    (re.compile(r"0([xXbBoO])([0-9A-Fa-f]{1,40})"), _literal),
    (re.compile(r"[0-9a-f]{7,80}"), _hash),
    (re.compile(r"CVE-([12][0-9]{3})-([0-9]{4,7})"), _vulnerability),
    (re.compile(r"[Ss]([0-9]{1,2})[Ee]([0-9]{1,3})"), _episode),
    (re.compile(r"([A-Z]{1,2}[0-9]{1,4}):([A-Z]{1,2}[0-9]{1,4})"), _cells),
    (re.compile(r"mp([34])(s?)"), _recording),
    (re.compile(r"([A-Z][A-Za-z]{0,10}-?[0-9]{1,4}|7[0-9]7)s"), _plural),
    (re.compile(r"(?:([0-9]{1,2})x)?([0-9]{1,4}(?:\.[0-9]{1,2})?)B"), _model_size),
    (re.compile(r"[0-9]{4}(?:XT|XTX|X3D|X|HX|HS|KF|KS|Ti|U)"), _code),
    (re.compile(r"([im][3579])-([0-9]{4,5})((?:[A-Z][A-Z0-9]{0,2})?)"), _processor),
    (
        re.compile(
            r"([vV])?([0-9]{1,6}(?:\.[0-9]{1,6}){0,6})"
            r"((?:[-.]?[A-Za-z][A-Za-z0-9]{0,20})?(?:[-.][A-Za-z0-9]{1,20}){0,5}(?:\+[A-Za-z0-9.]{1,41})?)"
        ),
        _version,
    ),
    (re.compile(r"[A-Za-z]{1,20}-[0-9]{1,3}\.[0-9]{1,3}(?:-[A-Za-z0-9.]{1,20}){0,5}"), _compound),
    (re.compile(r"[A-Za-z]{1,20}(?:-[A-Za-z]{1,20}){0,3}-[0-9]{1,8}(?:-[A-Za-z0-9.]{1,20}){1,5}"), _compound),
    # A model with its size: "Llama-3.1-8B".
    (
        re.compile(
            r"[A-Za-z][A-Za-z0-9.]{0,20}-(?:[A-Za-z0-9.]{1,20}-){0,4}(?:[0-9]{1,2}x)?[0-9]{1,4}(?:\.[0-9]{1,2})?[BMb]"
            r"(?:-[A-Za-z0-9.]{1,20}){0,5}"
        ),
        _compound,
    ),
    (_KEPT, _keep),
    # A number with a rare unit, or with letters that the rule `DECIMAL_LETTERS` reads later.
    (re.compile(r"[0-9]{1,9}\.[0-9]{1,9}[A-Za-z]{1,20}"), _keep),
    (re.compile(r"([A-Z])\.([0-9]{1,5})([A-Za-z]?)"), _letter_code),
    (re.compile(r"([0-9]{1,6})\.([A-Z][a-z]{1,30})"), _sentence_end),
    (re.compile(r"([A-Za-z][A-Za-z-]{1,40}):([A-Za-z0-9.:-]{1,80})"), _after_colon),
    (re.compile(r"([0-9]{1,40}):([A-Za-z][A-Za-z0-9.:-]{1,80})"), _after_colon),
    (re.compile(r"[A-Za-z0-9.:+-]{1,130}"), _compound),
)
# GLUED_MARK matches a full stop or a colon directly between the word for a number and another word: "five.x".
_NUMBER_WORD = "|".join(number_words.WORDS)
GLUED_MARK = re.compile(
    rf"\b({_NUMBER_WORD}|Celsius|Fahrenheit)(?:\.(?=[a-z]|[A-Z](?![a-z]))|:(?=[A-Za-z]))"
    rf"|(?<=[A-Za-z])[.:](?=(?:{_NUMBER_WORD})\b)"
)
_STARTS_WITH_NUMBER = re.compile(rf"(?:{_NUMBER_WORD})\b")
# A decimal number with letters that are no unit: "98.6Q".
DECIMAL_LETTERS = re.compile(r"(?<![\w.,])([0-9]{1,9}\.[0-9]{1,9})([A-Za-z]{1,20})(?!\w)")


def verbalize_decimal_letters(match: Match) -> str:
    letters = match[2] if len(match[2]) > 2 else " ".join(match[2].upper())
    return f"{number_words.number(match[1])} {letters}"


def separate_glued_mark(match: Match) -> str:
    """Return "five dot x" for "five.x" and "five: x" for "five:x"."""
    if ":" in match[0]:
        return f"{match[1] or ''}: "
    is_point = match[1] and _STARTS_WITH_NUMBER.match(match.string, match.end())
    return f"{match[1] or ''} {'point' if is_point else 'dot'} "


def verbalize_duration(match: Match) -> str:
    """Return the words for a time span of at least two units: "2m30s" -> "two minutes thirty seconds"."""
    parts = _DURATION_PART.findall(match[0])
    if len(parts) < 2:
        return match[0]
    words = [
        f"{number_words.number(number)} {_DURATION_UNITS[unit]}{'' if number == '1' else 's'}" for number, unit in parts
    ]
    return " ".join(words) + (" " if match[0].endswith(" ") else "")


def verbalize_standard(match: Match) -> str:
    """Return the words for the number of a standard: "ISO 9001:2015" -> "ISO nine thousand one, twenty fifteen"."""
    number = match[2]
    # Numbers such as 14001 and 27001 are read as one number ("fourteen thousand one"). All other numbers of five or six
    # digits are read digit by digit.
    is_round = len(number) == 5 and number[2] == "0"
    words = number_words.cardinal(int(number)) if is_round else number_words.label(number)
    for mark, part in re.findall(r"([-.])([0-9]{1,4})", match[3]):
        words += f" {'point' if mark == '.' else 'part'} {number_words.label(part)}"
    year = f", {number_words.year(int(match[4]))}" if match[4] else ""
    return f"{match[1].replace('/', ' ').rstrip(' -')} {words}{year}"


def verbalize_wireless(match: Match) -> str:
    return f"eight oh two point {number_words.integer(match[1])} {spell_out(match[2].replace('/', ''))}".rstrip()


def verbalize_aircraft(match: Match) -> str:
    return f"{number_words.label(match[1])} {number_words.label(match[2])}"
