"""How English writes numbers, dates, money, addresses and short forms, and how a person reads them aloud.

One function per kind of thing, one pattern each, applied in a fixed order: what is most specific (a web address, a
telephone number) goes first, so that the general rules for numbers see only what is left. In and out is one paragraph
of clean text (`cleaning.clean`, `markup.plain_paragraphs`). Knows nothing of markdown, and nothing of wetext beyond the
function it is handed for units it has no name for.

Every repetition in a pattern is bounded and every pattern that begins with a run refuses to start inside one, which keeps
the time linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from app.text import lexicon, spelling

Unit = Callable[[str, bool], str | None]
Match = re.Match[str]

_INT = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,8}(?![0-9])|[0-9]{1,40})"
_NUM = rf"(?:{_INT}(?:\.[0-9]{{1,40}})?|\.[0-9]{{1,40}})"
_START = r"(?<![\w.,'])"  # not inside a word or a number
_LOOSE = r"(?<![A-Za-z0-9_])(?<![0-9][.,:/])"  # the same, but ".5" after a stop and "('80" are fine
_END = r"(?![0-9])(?![.,][0-9])"
_MONTH = (
    r"(Jan(?:uary|\.)?|Feb(?:ruary|\.)?|Mar(?:ch|\.)?|Apr(?:il|\.)?|May|June?\.?|July?\.?|Aug(?:ust|\.)?|"
    r"Sept?(?:ember|\.)?|Oct(?:ober|\.)?|Nov(?:ember|\.)?|Dec(?:ember|\.)?)"
)
_MERIDIEM = r"(?: ?([AaPp])(?:\.[Mm]\.|[Mm]\b))"
_DASH = r" ?[-–—~] ?"


def _alternatives(table: object, *, longest_first: bool = True) -> str:
    keys = [re.escape(str(key)) for key in table]  # type: ignore[attr-defined]
    return "|".join(sorted(keys, key=len, reverse=True) if longest_first else keys)


def _plain(number: str) -> float:
    return float(number.replace(",", ""))


def _stop(found: Match) -> str:
    """ "." when the abbreviation's stop also ended its sentence, else ""."""
    rest = found.string[found.end() : found.end() + 40]
    after = re.match(r"[\"')\]]{0,2}(?:\s{1,3}[\"'(]?([A-Za-z']{1,20})|\s*$)", rest)
    if after is None or rest[:1] in {",", ";", ":"}:
        return ""
    if after[1] is None:
        return "."
    if after[1] not in lexicon.STARTERS:
        return ""
    # "At 3 a.m. I woke" is one sentence still.
    before = re.split(r"[.!?]\s|\n", found.string[max(0, found.start() - 80) : found.start()])[-1]
    return (
        ""
        if before.strip().strip(_BEGIN).lower() in {"at", "by", "around", "before", "after", "until", "from"}
        else "."
    )


def _capitalised_like(sample: str, words: str) -> str:
    return words[:1].upper() + words[1:] if sample[:1].isupper() else words


# ---------------------------------------------------------------- addresses on the net, names of files, versions

_URL = re.compile(r"\b(?:(?:https?|ftp|wss?)://|www\.)[^\s<>\"'\\^`{|}\[\]]{1,600}", re.IGNORECASE)
_EMAIL = re.compile(r"(?<![\w.+@-])(?:mailto:)?([\w.+-]{1,64})@((?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24})(?![\w@])")
_DOMAIN = re.compile(
    rf"(?<![\w@./-])((?:[A-Za-z0-9][A-Za-z0-9-]{{0,62}}\.){{1,5}}(?:{'|'.join(sorted(lexicon.TOP_LEVEL_DOMAINS))}))"
    r"(:[0-9]{2,5})?(/[^\s<>\"']{0,300})?(?![\w@])"
)
_PORT = re.compile(r"\b([Pp]orts?) ([0-9]{4,5})(?![\w]|[.,:][0-9])")
_LOCAL = re.compile(r"\b(localhost):([0-9]{2,5})(/[^\s<>\"']{0,300})?")
_IPV4 = re.compile(rf"{_START}([0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}})(?::([0-9]{{2,5}}))?(/[0-9]{{1,2}})?(?![\w.]\w)")
_FILE = re.compile(
    r"(?<![\w@:.\\-])((?:~|\.{1,2})?/?(?:[\w-]{1,60}[./]){0,8}[\w-]{1,60})"
    rf"\.({'|'.join(sorted(lexicon.FILE_ENDINGS, key=len, reverse=True))})\b(?!/)"
)
_BARE_FILE = re.compile(rf"(?<![\w.])\.({'|'.join(sorted(lexicon.FILE_ENDINGS | {'gitignore', 'NET', 'net'}))})\b")
_PATH = re.compile(r"(?<![\w/<.)])((?:~|\.{1,2})?/(?:[\w.-]{1,60}/){0,10}[\w.-]{0,60}[\w-]/?)")
_WINDOWS_PATH = re.compile(r"\b([A-Z]):\\((?:[\w .-]{1,60}\\){0,10}[\w.-]{0,60})")
_HANDLE = re.compile(r"(?<![\w@.])@([A-Za-z_]\w{0,40})")
_HASHTAG = re.compile(r"(?<![\w#&])#([A-Za-z]\w{0,60})")
_COLOUR = re.compile(r"(?<![\w#&])#((?=[A-Fa-f]{0,5}[0-9])[0-9A-Fa-f]{6}|[0-9A-F]{3})\b")
_LONG_NUMBER_SIGN = re.compile(r"(?<![\w#&])# ?([0-9]{5,40})(?![\w,.][0-9]|\w)")
_NUMBER_SIGN = re.compile(r"(?<![\w#&])# ?(?=[0-9])")
_DOTTED = re.compile(rf"{_START}([0-9]{{1,6}}(?:\.[0-9]{{1,6}}){{2,6}})(?![\w.]\w)")
_VERSION = re.compile(r"\b([vV])\.? ?([0-9]{1,6}(?:\.[0-9]{1,6}){0,6})(?![\w]|\.[0-9])")
_PRODUCT = re.compile(rf"\b([A-Za-z][A-Za-z+]{{1,20}}) ([0-9]{{1,3}})\.([0-9]{{1,3}}){_END}(?!%|\w)")
_SHARP = re.compile(r"\b([CFGJA])#(?!\w)")
_PLUS_PLUS = re.compile(r"\b([A-Za-z]{1,12})\+\+(?!\w)")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[0-9])(?=[A-Za-z])")


def _runs(text: str) -> str:
    """Letters stay, runs of digits are read as labels: "route53" -> "route fifty three"."""
    return " ".join(re.sub(r"[0-9]{1,40}", lambda run: f" {spelling.label(run[0])} ", text).split())


def _ending(name: str) -> str:
    name = name.lower()
    return lexicon.ENDINGS_SAID.get(name) or (name if name in lexicon.SAID_AS_WORDS else _runs(name.upper()))


_NET_MARKS = {".": " dot ", "-": " dash ", "_": " underscore ", "/": " slash ", "~": " tilde ", "+": " plus ", ":": " "}


def _spelled(text: str) -> str:
    return _runs(
        re.sub(r"[^A-Za-z0-9]", lambda mark: _NET_MARKS.get(mark[0], mark[0] if mark[0].isalpha() else " "), text)
    )


def _host(host: str) -> str:
    labels = [label for label in host.split(".") if label]
    if labels and labels[0].lower() == "www":
        labels = labels[1:]
    if all(label.isdigit() for label in labels):
        return " dot ".join(spelling.digits(label) for label in labels)
    names = [_spelled(label) for label in labels]
    if len(labels) > 1:
        names[-1] = _ending(labels[-1])
        if len(labels) > 2 and labels[-2].lower() in {"ac", "gov", "org"}:
            names[-2] = labels[-2] if labels[-2].lower() != "ac" else "AC"
    return " dot ".join(name for name in names if name)


def _address(host: str, port: str | None, path: str | None) -> str:
    words = _host(host)
    if port:
        words += f" port {_port(port)}"
    steps = [step for step in re.split(r"[?#]", path or "", maxsplit=1)[0].split("/") if step]
    return "".join([words, *(f" slash {_file_name(step)}" for step in steps)])


def _port(run: str) -> str:
    return spelling.label(run) if len(run) == 4 and run[1:] != "000" and run[2] != "0" else spelling.integer(run)


def _trailing(text: str) -> tuple[str, str]:
    """A web address and the punctuation after it that belongs to the sentence."""
    bare = text.rstrip(".,;:!?*)…")
    if "(" in bare and text[len(bare) : len(bare) + 1] == ")":
        bare += ")"
    return bare, text[len(bare) :]


def _read_url(found: Match) -> str:
    url, rest = _trailing(found[0])
    parts = re.match(
        r"(?:[a-z]{2,5}://)?(?:[^/@\s]{1,60}@)?([^/:?#]{0,250})(?::([0-9]{2,5}))?(.{0,600})", url, re.IGNORECASE
    )
    spoken = _address(parts[1], parts[2], parts[3]) if parts else ""
    return (spoken or _spelled(url)) + rest


def _read_email(found: Match) -> str:
    return f"{_spelled(found[1].strip('.'))} at {_host(found[2])}"


def _read_domain(found: Match) -> str:
    path, rest = _trailing(found[3] or "")
    return _address(found[1], (found[2] or "")[1:], path) + rest


def _read_ipv4(found: Match) -> str:
    groups = found[1].split(".")
    if any(int(group) > 255 for group in groups):
        return _read_dotted(found)
    words = " dot ".join(spelling.digits(group) for group in groups)
    words += f" port {_port(found[2])}" if found[2] else ""
    return words + (f" slash {spelling.integer(found[3][1:])}" if found[3] else "")


def _read_dotted(found: Match) -> str:
    groups = found[1].split(".")
    day, month, year = (int(group) for group in groups[:3])
    if len(groups) == 3 and 1 <= day <= 31 and 1 <= month <= 12 and 1900 <= year <= 2100:
        return _day_of(lexicon.MONTHS[month - 1], day, groups[2])
    return " point ".join(spelling.integer(group) for group in groups)


def _read_version(found: Match) -> str:
    words = " point ".join(spelling.integer(group) for group in found[2].split("."))
    return _capitalised_like(found[1], f"version {words}")


def _read_product(found: Match) -> str:
    if found[1].lower() not in lexicon.VERSIONED:
        return found[0]
    minor = spelling.pair(int(found[3])) if len(found[3]) == 2 and found[3][0] == "0" else spelling.integer(found[3])
    return f"{found[1]} {spelling.integer(found[2])} point {minor}"


def _file_name(name: str) -> str:
    stem, dot, end = name.rpartition(".")
    return f"{_spelled(stem)} dot {_ending(end)}" if dot and end.lower() in lexicon.FILE_ENDINGS else _spelled(name)


def _read_file(found: Match) -> str:
    if not re.search(r"[A-Za-z]", found[1]):
        return found[0]
    head = found[1]
    return f"{_spelled(head)} dot {_ending(found[2])}"


def _read_path(found: Match) -> str:
    *folders, name = found[1].rstrip("/").split("/")
    return " slash ".join([*(_spelled(folder) for folder in folders), _file_name(name)]).strip()


def _read_windows_path(found: Match) -> str:
    path, rest = _trailing(found[2])
    steps = [_file_name(step) for step in path.split("\\") if step]
    return " backslash ".join([f"{found[1]} colon", *steps]) + rest


def _read_handle(found: Match) -> str:
    return f"at {_spelled(found[1].strip('_'))}" if found[1].strip("_") else "at"


def _read_hashtag(found: Match) -> str:
    words = _CAMEL.sub(" ", found[1].replace("_", " "))
    return f"hashtag {_runs(words)}"


def _read_colour(found: Match) -> str:
    return "hash " + " ".join(spelling.digits(char) if char.isdigit() else char.upper() for char in found[1])


# ---------------------------------------------------------------- telephone numbers, long codes

_PHONE_PLUS = re.compile(r"(?<![\w+])\+([0-9]{1,3}(?:[ .-]?\(?[0-9]{1,5}\)?){2,6})(?![0-9])")
_PHONE_US = re.compile(r"(?<![\w-])(?:(1)[ .-])?(?:\(([0-9]{3})\) ?|([0-9]{3})[ .-])([0-9]{3})[ .-]([0-9]{4})(?![\w-])")
_PHONE_LETTERS = re.compile(r"(?<![\w-])(?:(1)-)?(8[0-9]{2})-([A-Z][A-Z-]{2,12}|[0-9]{3}-[A-Z]{4})(?![\w-])")
_PHONE_SHORT = re.compile(r"(?<![\w-])([2-9][0-9]{2})-([0-9]{4})(?![\w-])")
_EMERGENCY = re.compile(r"(?<![\w.,$€£-])(911|999|112|988|311|411|211|811)(?![\w%-]|[.,][0-9]|:)")
_GROUPS = re.compile(r"(?<![\w.-])([0-9]{1,10}(?:-[0-9]{1,10}){2,6})(?![\w-])")
_CARD = re.compile(r"(?<![\w.-])([0-9]{4}(?: [0-9]{4}){3})(?![\w-])")
_CODE_WORD = re.compile(
    r"\b(zip(?: code)?|area code|post(?:al )?code|pin(?: code)?|passcode|password|code|extension|ext\.?|serial(?: number)?|"
    r"confirmation(?: number)?|tracking(?: number)?|account(?: number)?|ISBN|SKU)((?: is|:| number)? #?)([0-9]{2,40})\b"
    r"(?![.,:-][0-9])",
    re.IGNORECASE,
)
_STATE_ZIP = re.compile(rf"(?<=[ ,])({'|'.join(lexicon.STATES)})\.?,? ([0-9]{{5}})(?:-([0-9]{{4}}))?(?![\w-])")
_STATE = re.compile(rf"(?<=[a-z], )({'|'.join(lexicon.STATES)})(?=[,.;:)]|$)")


def _grouped(*groups: str | None) -> str:
    return ", ".join(spelling.digits(group) for group in groups if group)


def _read_phone_plus(found: Match) -> str:
    groups = re.findall(r"[0-9]+", found[1])
    if not 7 <= sum(map(len, groups)) <= 15:
        return found[0]
    return f"plus {_grouped(*groups)}"


def _exchange(run: str) -> str:
    return f"{spelling.cardinal(int(run[0]))} hundred" if run.endswith("00") else spelling.digits(run)


def _read_phone_us(found: Match) -> str:
    area = found[2] or found[3]
    head = [spelling.digits("1")] if found[1] else []
    return (" " if found[1] and area.endswith("00") else ", ").join([*head, _exchange(area)]) + (
        f", {_grouped(found[4], found[5])}"
    )


def _read_phone_letters(found: Match) -> str:
    tail = ", ".join(spelling.digits(part) if part.isdigit() else part for part in found[3].split("-"))
    return f"{'one ' if found[1] else ''}{_exchange(found[2])}, {tail}"


def _read_emergency(found: Match) -> str:
    before = re.search(r"([A-Za-z]+) $", found.string[max(0, found.start() - 20) : found.start()])
    after = re.match(r" ([a-z]+)", found.string[found.end() : found.end() + 20])
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
    if calls or (found[1] == "911" and not (after and after[1] in lexicon.COUNTED) and not _is_label(before)):
        return spelling.digits(found[1])
    return found[0]


def _is_label(before: Match | None) -> bool:
    return before is not None and before[1].lower() in lexicon.LABELLED


def _read_groups(found: Match) -> str:
    groups = found[1].split("-")
    if max(map(len, groups)) <= 2:
        return " ".join(spelling.integer(group) for group in groups)
    return _grouped(*groups)


def _read_code_word(found: Match) -> str:
    if found[1].lower() == "code" and len(found[3]) < 3:
        return found[0]
    joint = found[2].replace("#", "")
    name = "extension" if found[1].lower().startswith("ext") else found[1]
    return f"{name}{joint}{spelling.digits(found[3])}"


def _read_state_zip(found: Match) -> str:
    return f"{lexicon.STATES[found[1]]} {_grouped(found[2], found[3])}"


# ---------------------------------------------------------------- dates and times

_ISO_DATE = re.compile(
    r"(?<![\w.-])([12][0-9]{3})[-/]([01]?[0-9])[-/]([0-3]?[0-9])"
    r"(?:[T ]([0-2][0-9]):([0-5][0-9])(?::[0-5][0-9](?:\.[0-9]{1,9})?)?(Z)?)?(?![\w-])(?!/[0-9])"
)
_SLASH_DATE = re.compile(r"(?<![\w/.-])([0-3]?[0-9])([/-])([0-3]?[0-9])\2([12][0-9]{3}|[0-9]{2})(?![\w/-])")
_SLASH_DAY = re.compile(
    r"\b([Oo]n|[Bb]y|[Ss]ince|[Uu]ntil|[Dd]ue|[Bb]efore|[Aa]fter|[Ff]rom) ([01]?[0-9])/([0-3]?[0-9])(?![\w/]|\.[0-9])"
)
_WEEKDAY = re.compile(rf"\b({'|'.join(lexicon.WEEKDAYS)})\b\.?(?=,? (?:{_MONTH}|[0-9]))")
_WEEKDAYS = re.compile(rf"\b({'|'.join(lexicon.WEEKDAYS)})\.? ?[-–] ?({'|'.join(lexicon.WEEKDAYS)})\b")
_MONTHS = re.compile(rf"\b{_MONTH} ?[-–] ?{_MONTH}(?![A-Za-z])")
_MONTH_DAY = re.compile(
    rf"\b{_MONTH} ([0-3]?[0-9])(?:st|nd|rd|th)?(?:{_DASH}([0-3]?[0-9])(?:st|nd|rd|th)?)?(?:(,? )([12][0-9]{{3}})\b)?"
    r"(?![\w%]|[.,:/][0-9])(?! ?(?:[ap]\.?m\b|percent|million|billion|people))"
)
_DAY_MONTH = re.compile(
    rf"(?<![\w.,/-])((?:[Tt]he )?)([0-3]?[0-9])(?:st|nd|rd|th)?( of)? {_MONTH}(?![a-z])(?:(,? )([12][0-9]{{3}})\b)?(?![.,:/][0-9])"
)
_MONTH_YEAR = re.compile(rf"\b{_MONTH},? (?:'([0-9]{{2}})|([12][0-9]{{3}}))(?![\w,]\w|[\w%])")
_TIME_RANGE = re.compile(
    rf"{_LOOSE}([0-2]?[0-9])(?::([0-5][0-9]))?{_MERIDIEM}?{_DASH}([0-2]?[0-9])(?::([0-5][0-9]))?{_MERIDIEM}(?!\w)"
)
_CLOCK_RANGE = re.compile(rf"{_LOOSE}([0-2]?[0-9]):([0-5][0-9]){_DASH}([0-2]?[0-9]):([0-5][0-9])(?![\w:])")
_VERSES = re.compile(rf"{_LOOSE}([0-9]{{1,3}}):([0-9]{{1,3}})[-–]([0-9]{{1,3}})(?![\w:]|\.[0-9])")
_FROM_NOON = re.compile(r"\b([Nn]oon|[Mm]idnight) ?[-–] ?(?=[0-9])")
_TIME = re.compile(rf"{_LOOSE}([0-2]?[0-9]):([0-5][0-9])(?::([0-5][0-9]))?(?:{_MERIDIEM}(?!\w)|(?![\w:]|\.[0-9]))")
_HOUR = re.compile(rf"{_LOOSE}([01]?[0-9]){_MERIDIEM}(?!\w)")
_DURATION = re.compile(rf"{_LOOSE}([0-9]{{1,3}})h ?([0-5]?[0-9])(?:m|min)?(?!\w|\.[0-9])")
_RATIO = re.compile(rf"{_LOOSE}([0-9]{{1,5}}) ?: ?([0-9]{{1,5}})(?![\w:]|\.[0-9])")
_DECADE = re.compile(r"(?<![\w$£€.,])('?)([12][0-9]{2}0|[1-9]0)('?)s\b")
_SHORT_YEARS = re.compile(r"(?<![\w'])'([0-9]{2})[-–]'([0-9]{2})(?![\w'])")
_SHORT_YEAR = re.compile(r"(?<![\w'])(?:(?<=[0-9])|)'([0-9]{2})(?![\w'\"]|[.,][0-9])")
_QUARTER_YEAR = re.compile(r"\b([QH][1-4])'([0-9]{2})\b")
_ERA = re.compile(r"(?<![\w.,])([0-9]{1,4})(?:(–|-)([0-9]{1,4}))? ?(AD|BC|BCE|CE|A\.D\.|B\.C\.E?\.?|C\.E\.)(?!\w)")
_AD = re.compile(r"\b(AD|A\.D\.) ([0-9]{1,4})\b")
_YEAR_RANGE = re.compile(
    rf"(?<![\w.,$£€-])(1[0-9]{{3}}|20[0-9]{{2}}){_DASH}((?:1[0-9]|20)?[0-9]{{2}})(?![\w%-]|[.,][0-9])"
)

_DECADE_LEAD = frozenset(
    "the his her their my our your early mid late mid- early- late- roaring these those mid-to-late".split()
)  # noqa: SIM905


def _month(name: str) -> str:
    return lexicon.MONTH_BY_PREFIX[name[:3]]


def _month_stop(found: Match) -> str:
    """The stop of "Mar." when it also ends the sentence."""
    return _stop(found) if found[0].endswith(".") else ""


def _day_of(month: str, day: int, year: str | None) -> str:
    return f"{month} {spelling.ordinal(day)}" + (f", {_year(year)}" if year else "")


def _year(year: str) -> str:
    if len(year) == 2:
        value = int(year)
        return spelling.year(value + (2000 if value < 50 else 1900))
    return spelling.year(int(year))


def _date(year: str, month: int, day: int) -> str | None:
    return _day_of(lexicon.MONTHS[month - 1], day, year) if 1 <= month <= 12 and 1 <= day <= 31 else None


def _read_iso_date(found: Match) -> str:
    date = _date(found[1], int(found[2]), int(found[3]))
    if date is None:
        return found[0]
    if found[4]:
        date += f" at {_clock(int(found[4]), int(found[5]))}" + (" UTC" if found[6] else "")
    return date


def _read_slash_date(found: Match) -> str:
    if found[2] == "-" and len(found[4]) == 2:
        return found[0]
    first, second = int(found[1]), int(found[3])
    return _date(found[4], first, second) or _date(found[4], second, first) or found[0]


def _read_slash_day(found: Match) -> str:
    month, day = int(found[2]), int(found[3])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return found[0]
    return f"{found[1]} {_day_of(lexicon.MONTHS[month - 1], day, None)}"


def _read_month_day(found: Match) -> str:
    first, last, year = int(found[2]), int(found[3] or 1), found[5]
    if not (1 <= first <= 31 and 1 <= last <= 31):
        return found[0]
    words = f"{_month(found[1])} {spelling.ordinal(first)}"
    words += f" to {spelling.ordinal(last)}" if found[3] else ""
    return words + (f", {_year(year)}" if year else "")


def _read_day_month(found: Match) -> str:
    day = int(found[2])
    if not 1 <= day <= 31:
        return found[0]
    sentence_start = found.start() == 0 or found.string[max(0, found.start() - 2) : found.start()] in {". ", "! ", "? "}
    article = found[1] or ("The " if sentence_start else "the ")
    words = f"{article}{spelling.ordinal(day)} of {_month(found[4])}"
    return words + (f", {_year(found[6])}" if found[6] else _month_stop(found))


def _read_month_year(found: Match) -> str:
    return f"{_month(found[1])} {_year(found[2] or found[3])}"


def _meridiem(letter: str | None) -> str:
    return f" {letter.upper()}M" if letter else ""


def _clock(hour: int, minute: int, letter: str | None = None) -> str:
    if letter:
        return spelling.cardinal(hour) + (f" {spelling.pair(minute)}" if minute else "") + _meridiem(letter)
    if minute:
        return f"{spelling.cardinal(hour)} {spelling.pair(minute)}"
    if hour == 0:
        return "midnight"
    return f"{spelling.cardinal(hour)} o'clock" if hour <= 12 else f"{spelling.cardinal(hour)} hundred"


def _after_meridiem(found: Match, words: str) -> str:
    return words + (_stop(found) if found[0].endswith(".") else "")


def _read_time_range(found: Match) -> str:
    if int(found[1]) > 12 or int(found[4]) > 12:
        return found[0]
    first = spelling.cardinal(int(found[1])) + (
        f" {spelling.pair(int(found[2]))}" if found[2] and found[2] != "00" else ""
    )
    return _after_meridiem(
        found, f"{first}{_meridiem(found[3])} to {_clock(int(found[4]), int(found[5] or 0), found[6])}"
    )


def _read_clock_range(found: Match) -> str:
    if int(found[1]) > 24 or int(found[3]) > 24:
        return found[0]
    return f"{_clock(int(found[1]), int(found[2]))} to {_clock(int(found[3]), int(found[4]))}"


def _read_time(found: Match) -> str:
    hour, minute = int(found[1]), int(found[2])
    if hour > 24 or (found[4] and hour > 12):
        return found[0]
    if found[3]:
        words = f"{spelling.cardinal(hour)} {spelling.pair(minute)} and {spelling.cardinal(int(found[3]))} seconds"
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


def _read_hour(found: Match) -> str:
    return _after_meridiem(found, f"{spelling.integer(found[1].lstrip('0') or '0')}{_meridiem(found[2])}")


def _read_duration(found: Match) -> str:
    hours, minutes = int(found[1]), int(found[2])
    return f"{_counted(hours, 'hour')} {_counted(minutes, 'minute')}"


def _counted(value: int, noun: str) -> str:
    return f"{spelling.cardinal(value)} {noun}{'' if value == 1 else 's'}"


def _read_ratio(found: Match) -> str:
    return f"{spelling.integer(found[1])} to {spelling.integer(found[2])}"


def _read_decade(found: Match) -> str:
    value = int(found[2])
    before = re.search(r"([A-Za-z]+-?) ?$", found.string[max(0, found.start() - 16) : found.start()])
    if value < 100 and not found[1] and not found[3] and not (before and before[1].lower() in _DECADE_LEAD):
        return found[0]
    return spelling.decade(value)


def _read_short_year(found: Match) -> str:
    return (
        f" {spelling.pair(int(found[1]))}"
        if found.start() and found.string[found.start() - 1].isalnum()
        else spelling.pair(int(found[1]))
    )


def _era_year(run: str) -> str:
    value = int(run)
    return spelling.cardinal(value) if value % 100 == 0 and value < 1100 else spelling.year(value)


def _read_era(found: Match) -> str:
    words = _era_year(found[1]) + (f" to {_era_year(found[3])}" if found[3] else "")
    return f"{words} {found[4].replace('.', '')}" + (_stop(found) if found[4].endswith(".") else "")


def _read_ad(found: Match) -> str:
    return f"AD {_era_year(found[2])}"


def _read_year_range(found: Match) -> str:
    first, last = found[1], found[2]
    if len(last) == 4 and int(last) < int(first):
        return found[0]
    if len(last) == 2:
        if int(last) <= int(first[2:]):
            return found[0]
        return f"{_year(first)} to {spelling.pair(int(last))}"
    return f"{_year(first)} to {_year(last)}"


# ---------------------------------------------------------------- money

_CURRENCY = _alternatives([sign for sign in lexicon.CURRENCIES if not sign.isalpha()])
_CURRENCY_CODE = _alternatives([sign for sign in lexicon.CURRENCIES if sign.isalpha()])
_SCALE = r"(?: ?-?(thousand|million|billion|trillion|Thousand|Million|Billion|Trillion|grand)\b| ?(k|K|m|M|mn|MM|b|B|bn|Bn|t|T|tn|trn)(?![\w²³/]))?"
_PER = rf"(?: ?/ ?({_alternatives(lexicon.PER)})\b)?"
_MONEY = re.compile(
    rf"(?<![\w$£€])([-–−]?)({_CURRENCY}|\b(?:{_CURRENCY_CODE})) ?([-–−]?)({_NUM}){_SCALE}(?![0-9]|[.,][0-9])\+?{_PER}(?: USD\b)?"
)
_MONEY_RANGE = re.compile(
    rf"(?<![\w$£€])({_CURRENCY}) ?({_NUM}){_SCALE}{_DASH}(?:(\1) ?)?({_NUM}){_SCALE}(?![0-9]|[.,][0-9]){_PER}"
)
_MONEY_AFTER = re.compile(rf"(?<![\w.,$£€])({_NUM}){_SCALE} ?([€£¥₹]|\b(?:{_CURRENCY_CODE}))(?![\w])")
_MONEY_EURO = re.compile(r"(?<![\w.,])(€ ?)?([0-9]{1,3}(?:\.[0-9]{3}){0,5}),([0-9]{2})(?:(?(1)| ?€))(?![\w,.][0-9])")
_CENTS = re.compile(rf"(?<![\w.,])({_NUM}) ?(¢|ct\b)")


def _scale(name: str | None, letter: str | None) -> str:
    key = name or letter
    return lexicon.SCALES[key] if key else ""


def _amount(sign: str, number: str, scale: str, *, single: bool = False) -> str:
    """An amount in words. `single`: used as an adjective, "a five dollar bill"."""
    one, many, cent, cents = lexicon.CURRENCIES[sign]
    whole, dot, fraction = number.replace(",", "").partition(".")
    if single:
        many = one
    if scale:
        return f"{spelling.number(number)} {scale} {many}"
    if dot and len(fraction) == 2 and cent:
        whole_words = f"{spelling.integer(whole)} {one if whole == '1' else many}" if int(whole or 0) else ""
        part = int(fraction)
        part_words = f"{spelling.cardinal(part)} {cent if part == 1 else cents}" if part else ""
        return " and ".join(words for words in (whole_words, part_words) if words) or f"zero {many}"
    return f"{spelling.number(number)} {one if number == '1' else many}"


def _is_adjective(found: Match) -> bool:
    """ "a ... N-dollar bill": an article before, and a thing after that is not one of the small words."""
    before = found.string[max(0, found.start() - 5) : found.start()]
    after = re.match(r"[ -]([A-Za-z]{1,20})", found.string[found.end() : found.end() + 24])
    if after and after[1].lower() in lexicon.MEASURED:
        return True
    if found.string[found.end() : found.end() + 1] == "-" and after:
        return True
    if after is None or after[1] in lexicon.FUNCTION_WORDS:
        return False
    return re.search(r"(?:^|[ (\"'])[Aa]n? $", before) is not None or (
        after[1].islower() and re.search(r"(?:^|[ (\"'])(?:[Tt]he|per|his|her|our|my) $", before) is not None
    )


def _per(word: str | None) -> str:
    return f" per {lexicon.PER[word]}" if word else ""


def _read_money(found: Match) -> str:
    minus = "minus " if found[1] or found[3] else ""
    plus = " plus" if "+" in found[0] else ""
    scale = _scale(found[5], found[6])
    return f"{minus}{_amount(found[2], found[4], scale, single=_is_adjective(found))}{plus}{_per(found[7])}"


def _read_money_range(found: Match) -> str:
    sign, low, high = found[1], found[2], found[6]
    low_scale, high_scale = _scale(found[3], found[4]), _scale(found[7], found[8])
    last = _amount(sign, high, high_scale, single=_is_adjective(found))
    whole = "." not in low + high or bool(low_scale or high_scale)
    if low_scale and found[5]:
        first = _amount(sign, low, low_scale)
    elif low_scale == high_scale and whole:
        first = spelling.number(low)
    elif not low_scale and not found[5] and whole:
        first = spelling.number(low)
    else:
        first = _amount(sign, low, low_scale)
    return f"{first} to {last}{_per(found[9])}"


def _read_money_after(found: Match) -> str:
    return _amount(found[4], found[1], _scale(found[2], found[3]), single=_is_adjective(found))


def _read_money_euro(found: Match) -> str:
    return _amount("€", f"{found[2].replace('.', '')}.{found[3]}", "")


def _read_cents(found: Match) -> str:
    return f"{spelling.number(found[1])} {'cent' if found[1] == '1' else 'cents'}"


# ---------------------------------------------------------------- measures, fractions, ranges, numbers

_BETWEEN = re.compile(rf"\b([Bb]etween [$£€]?{_NUM}%?) ?[-–—] ?(?=[$£€]?[0-9])")
_UNIT = _alternatives(lexicon.UNITS)
_SIGN = r"(?:(?<![\w)\]])[-−–+](?=[0-9.])|(?<=[(])[-−+])?"
_FRACTION = r"[0-9]{1,3}(?: [0-9]{1,3}/[0-9]{1,3}|/[0-9]{1,3})"
_MEASURE = re.compile(
    rf"(?<![\w.,])({_SIGN})((?:{_FRACTION}|{_NUM}))(?:({_DASH}| x | to )({_SIGN})({_NUM}))?([ -]?)({_UNIT})(\s?/\s?({_alternatives(lexicon.PER)})\b)?"
    r"(?![\w²³]|[/^]\w|-[A-Za-z]{2}|'[a-z])"
)
_SPACED_SLASH = re.compile(r"(?<=[\w.)]) / (?=[\w(])")
_TEAM = re.compile(r"(?<![\w.,])([0-9]{2})ers\b")  # the 49ers
_BIT_SCALE = re.compile(rf"(?<![\w.,])({_NUM})(?:{_DASH}({_NUM}))?(bn|mn|M|B|T)\b(?!/)\+?")
_THOUSANDS = re.compile(rf"(?<![\w.,])({_NUM})(?:{_DASH}({_NUM}))?[kK]\b(?![-/]\w)")
_TIMES = re.compile(rf"(?<![\w.,])({_NUM})(?:{_DASH}({_NUM}))?[x×](?![\w])(?= ([a-z]+)|)")
_BEFORE_BY_UNIT = re.compile(rf"(?<![\w.,])({_NUM}) ?[x×] ?(?={_NUM} ?(?:{_UNIT})(?!\w))")
_BY_UNIT = re.compile(rf"(?<![\w.,])({_NUM} ?(?:{_UNIT})) ?[x×] ?(?=[0-9.])")
_BY = re.compile(rf"(?<![\w.,])({_NUM}) ?[x×*] ?({_NUM})(?: ?[x×*] ?({_NUM}))?(?![\w]|\.[0-9])( ?=)?")
_PERCENT = re.compile(rf"(?<![\w.,])({_SIGN})({_NUM})(?:( ?%)?{_DASH}({_NUM}))? ?%(?!\w)")
_FEET_INCHES = re.compile(r"(?<![\w.,])([0-9]{1,3})' ?([0-9]{1,2})(?:(?:\.([0-9]{1,2}))?(?:″|'')|(?![\w'″]|\.[0-9]))")
_FEET = re.compile(
    rf"(?<![\w.,'])({_NUM})'(?= (?:tall|wide|long|deep|high|by|x)\b)|(?:(?<=by )|(?<=x ))({_NUM})'(?!\w)"
)
_QUOTE = re.compile(r"([0-9]?)\"")
_INCHES = re.compile(rf"(?<![\w.,\"'])({_FRACTION}|{_NUM})(?:″|'')(?!\w)(?= ?([a-z]{{0,20}}))")
_MIXED = re.compile(r"(?<![\w.,/])([0-9]{1,6}) ([0-9]{1,3})/([0-9]{1,3})(?![\w/]|\.[0-9])")
_RATING = re.compile(r"(?<![\w.,/])([0-9]{1,3}\.[0-9]{1,2})/([0-9]{1,3}(?:\.[0-9])?)(?![\w/]|\.[0-9])")
_SLASH = re.compile(r"(?<![\w.,/])([0-9]{1,6})/([0-9]{1,6})(?![\d/]|\.[0-9])(ths?\b|s\b)?(?!\w)")
_SCIENTIFIC = re.compile(
    rf"(?<![\w.,])({_SIGN})({_NUM})(?:[eE]\+?(-?[0-9]{{1,3}})(?!\w)| ?[×x*·] ?10(?:\^[({{]?([-−]?[0-9]{{1,3}})[)}}]?|([⁻⁰¹²³⁴-⁹]{{1,4}}))(?!\w))"
)
_POWER = re.compile(
    r"(?<=[A-Za-z0-9)]) ?\^ ?(?:\{(-?[0-9]{1,4}|[A-Za-z])\}|\((-?[0-9]{1,4}|[A-Za-z])\)|(-?[0-9]{1,4}|[A-Za-z])\b)"
)
_ORDINAL = re.compile(rf"(?<![\w.,])({_INT})(?:st|nd|rd|th)(?![A-Za-z])", re.IGNORECASE)
_RANGE = re.compile(rf"(?<![\w.,/-])({_SIGN})({_NUM})( ?[–—~] ?|-)({_NUM})(?![\w/]|-[0-9]|[.,][0-9])")
_GROUPED_NUMBER = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:,[0-9]{3}){1,8}(?:\.[0-9]{1,40})?(?![\w]|[.,][0-9])")
_LIST_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
_DIGIT_MINUS = re.compile(r"(?<=[0-9A-Za-z)]) [-−–] (?=[0-9(]|[A-Za-z] ?[=+*/])")
_SIGNED = re.compile(r"(?:(?<![\w)\]\"'-])[-−](?=[0-9.]))")
_PLUS_SIGN = re.compile(r"(?<![\w)])\+(?=[0-9.])")
_AFTER_PLUS = re.compile(r"(?<=[0-9])\+(?![\w+])")
_APPROX = re.compile(r"(?<![\w/~])~ ?(?=[$£€]?[0-9.])|(?<![\w)=] )(?<![\w)=])≈ ?(?=[$£€]?[0-9])")
_HOUSE = re.compile(
    rf"(?<![\w.,$£€#-])([0-9]{{3,5}})([A-Z]?)(?= (?:[NSEW]\.? )?(?:[A-Z][A-Za-z'.]{{1,20}} |[0-9]{{1,3}}(?:st|nd|rd|th) ){{1,3}}"
    rf"(?:{'|'.join([*lexicon.STREETS, *sorted(set(lexicon.STREETS.values()))])})\b)"
)
_HOUSE_SIDE = re.compile(
    rf"(?<![\w.,$£€#-])([0-9]{{1,5}}) ([NSEW])\.? (?=(?:[A-Z][A-Za-z'.]{{1,20}} |[0-9]{{1,3}}(?:st|nd|rd|th) ){{1,3}}"
    rf"(?:{'|'.join([*lexicon.STREETS, *sorted(set(lexicon.STREETS.values()))])})\b)"
)
_SIDES = {"N": "North", "S": "South", "E": "East", "W": "West"}
_LABELLED = re.compile(
    rf"\b(flight [A-Z]{{2}}|{'|'.join(sorted(lexicon.LABELLED))})( |-)([0-9]{{3,4}})([A-Z]?)(?![\w,]\w|\w|\.[0-9])",
    re.IGNORECASE,
)
_LABELLED_AFTER = re.compile(
    r"(?<![\w.,])([45]0[1-9]|4[1-9][0-9])(?= (?:error|page|status|not found|response|Not Found|Error))"
)
_NAMED_PAIR = re.compile(r"(?<![\w/])(24/7|9/11|50/50|20/20|60/40|80/20|70/30|10-4)(?![\w/-])")
_ALNUM = re.compile(r"(?<![0-9A-Za-z_])(?=[A-Za-z_]{0,40}[0-9])(?=[0-9_]{0,40}[A-Za-z])([0-9A-Za-z_]{2,80})")
_UPPER_HYPHEN = re.compile(r"\b([A-Z][A-Za-z]{0,12})-(?=[0-9]{1,4}(?![0-9,]))")
_NUMBER = re.compile(rf"(?<![0-9A-Za-z])({_NUM})(?![0-9])")
_EQUATION = re.compile(r"[=+×*÷]\s?$")
_UNKNOWN_UNIT = re.compile(rf"(?<![\w.,])({_NUM})( ?)([A-Za-zμΩ]{{2,6}}(?:[/·][A-Za-zμΩ]{{1,5}})?[²³]?)(?![\w/])")


def _value_words(text: str) -> str:
    """A number, a fraction or a mixed number in words."""
    if "/" not in text:
        return spelling.number(text)
    whole, _, part = text.rpartition(" ")
    top, bottom = part.split("/")
    words = _fraction(int(top), int(bottom), mixed=bool(whole))
    return f"{spelling.integer(whole)} and {words}" if whole else words


def _fraction(top: int, bottom: int, *, mixed: bool = False) -> str:
    """3/4 -> "three quarters"; after a whole number 1/2 is "a half" (one and a half)."""
    if bottom in lexicon.FRACTION_NAMES:
        one, many = lexicon.FRACTION_NAMES[bottom]
        if top == 1:
            return f"a {one}" if mixed and bottom <= 4 else f"one {one}"
        return f"{spelling.cardinal(top)} {many}"
    return f"{spelling.cardinal(top)} over {spelling.cardinal(bottom)}"


def _sign(mark: str) -> str:
    return "minus " if mark in {"-", "−", "–"} else "plus " if mark == "+" else ""


def _read_measure(found: Match) -> str:
    sign, value, joint, sign2, value2, gap, unit = found.groups()[:7]
    if _reads_as_word(found, unit, gap):
        return found[0]
    one, many = lexicon.UNITS[unit]
    last = value2 or value
    plural = last not in {"1"} and not (("/" in last) and " " not in last)
    attributive = gap == "-" or _is_adjective(found)
    noun = one if attributive or not plural else many
    words = _sign(sign) + _value_words(value)
    if value2:
        words += (" by " if joint == " x " else " to ") + _sign(sign2 or "") + spelling.number(value2)
    words += f" {noun}" + _per((found[9] or "") or None)
    return words + (_stop(found) if unit.endswith(".") and not found[8] else "")


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


def _read_bit_scale(found: Match) -> str:
    before = re.search(r"([A-Za-z]+) $", found.string[max(0, found.start() - 20) : found.start()])
    if before and before[1].lower() in lexicon.LETTERED:  # apartment 4B
        return found[0]
    first = f"{spelling.number(found[1])} to " if found[2] else ""
    plus = " plus" if found[0].endswith("+") else ""
    return f"{first}{spelling.number(found[2] or found[1])} {lexicon.SCALES[found[3]]}{plus}"


def _read_thousands(found: Match) -> str:
    if found[1] in {"401", "403"}:
        return f"{spelling.label(found[1])} K"
    first = f"{spelling.number(found[1])} to " if found[2] else ""
    return f"{first}{spelling.number(found[2] or found[1])} K"


_TIMES_WHAT = frozenset(
    {"as", "zoom", "growth", "speedup", "daily", "weekly", "monthly", "yearly", "annually", "slowdown"}
)


def _read_times(found: Match) -> str:
    after = found[3]
    first = f"{spelling.number(found[1])} to " if found[2] else ""
    times = not after or after in lexicon.FUNCTION_WORDS or after.endswith("er") or after in _TIMES_WHAT
    times = times and after not in {"engineer", "engineers", "developer"}
    before = found.string[max(0, found.start() - 2) : found.start()].strip()
    if re.match(r" ?[-+=*/^<>²³]", found.string[found.end() : found.end() + 2]) or before in {"=", "+", "-", "<", ">"}:
        times = False  # a sum: 3x + 2
    value = found[2] or found[1]
    return f"{first}{spelling.number(value)} {('time' if value == '1' else 'times') if times else 'x'}"


def _read_by(found: Match) -> str:
    word = "times" if found[4] or "*" in found[0] else "by"
    sides = [_side(side) for side in found.groups()[:3] if side]
    return f" {word} ".join(sides) + (found[4] or "")


def _side(run: str) -> str:
    """One side of a size: 1920 is "nineteen twenty", as on a screen."""
    return spelling.year(int(run)) if len(run) == 4 and run.isdigit() and run[0] != "0" else spelling.number(run)


def _read_percent(found: Match) -> str:
    if found[4]:
        middle = " percent" if found[3] else ""
        return f"{_sign(found[1])}{spelling.number(found[2])}{middle} to {spelling.number(found[4])} percent"
    return f"{_sign(found[1])}{spelling.number(found[2])} percent"


def _read_feet_inches(found: Match) -> str:
    feet, inches = int(found[1]), int(found[2])
    if inches > 11 or (not found[0].endswith(("″", "''")) and not 3 <= feet <= 8):
        return found[0]
    words = f"{spelling.cardinal(feet)} foot {spelling.cardinal(inches)}"
    return words + (f" point {spelling.digits(found[3])}" if found[3] else "")


def _mark_inches(text: str) -> str:
    """The same text with a double prime for each quotation mark after a digit that closes no quotation."""
    is_open = False

    def mark(found: Match) -> str:
        nonlocal is_open
        if found[1] and not is_open:
            return f"{found[1]}″"
        is_open = not is_open
        return found[0]

    return _QUOTE.sub(mark, text) if '"' in text else text


def _read_feet(found: Match) -> str:
    value = found[1] or found[2]
    return f"{spelling.number(value)} {'foot' if value == '1' else 'feet'}"


def _read_inches(found: Match) -> str:
    singular = (
        found[1] == "1"
        or re.fullmatch(r"[0-9]+/[0-9]+", found[1])
        or (found[2] and found[2] not in lexicon.FUNCTION_WORDS | {"tall", "wide", "long", "deep", "thick"})
    )
    return f"{_value_words(found[1])} {'inch' if singular else 'inches'}"


def _read_mixed(found: Match) -> str:
    top, bottom = int(found[2]), int(found[3])
    if not 0 < top < bottom or bottom not in lexicon.FRACTION_NAMES:
        return found[0]
    return f"{spelling.cardinal(int(found[1]))} and {_fraction(top, bottom, mixed=True)}"


def _read_slash(found: Match) -> str:
    top, bottom = int(found[1]), int(found[2])
    known = bottom in lexicon.FRACTION_NAMES
    if known and found[3] == "s" and top == 1:
        return lexicon.FRACTION_NAMES[bottom][1]
    if known and (top < bottom or bottom < 10) and not (bottom == 10 and top > 1) and top:
        return _fraction(top, bottom)
    if found[3]:
        return f"{spelling.cardinal(top)} {spelling.ordinal(bottom)}s"
    if top > bottom or 1900 <= bottom <= 2100:
        return f"{_short(found[1])} over {_short(found[2])}"
    return f"{spelling.cardinal(top)} out of {spelling.cardinal(bottom)}"


def _short(run: str) -> str:
    return spelling.label(run) if len(run) == 3 and run[1:] != "00" else spelling.integer(run)


def _read_scientific(found: Match) -> str:
    power = (found[3] or found[4] or found[5].replace("⁻", "-").translate(_SUPERSCRIPT_DIGITS)).replace("−", "-")
    return f"{_sign(found[1])}{spelling.number(found[2])} times ten to the power of {spelling.number(power)}"


def _read_power(found: Match) -> str:
    power = found[1] or found[2] or found[3]
    known = {"2": " squared", "3": " cubed"}.get(power)
    return known or f" to the power of {power if power.isalpha() else spelling.number(power)}"


def _read_ordinal(found: Match) -> str:
    run = found[1].replace(",", "")
    return spelling.ordinal(int(run)) if len(run) <= 15 else f"{spelling.digits(run)}th"


def _read_range(found: Match) -> str:
    return f"{_sign(found[1])}{_bare(found[2])} to {_bare(found[4])}"


def _bare(run: str) -> str:
    """A number nothing is known about: years where four digits look like one."""
    if len(run) == 4 and run.isdigit() and 1100 <= int(run) <= 2099:
        return spelling.year(int(run))
    return spelling.number(run)


def _read_house(found: Match) -> str:
    return spelling.label(found[1]) + (f" {found[2]}" if found[2] else "")


def _read_labelled(found: Match) -> str:
    name = found[1]
    words = spelling.label(found[3]) if not found[3].endswith("000") else spelling.integer(found[3])
    if found[3][1:] == "00":
        words = spelling.cardinal(int(found[3]))
    return f"{name} {words}" + (f" {found[4]}" if found[4] else "")


def _read_named_pair(found: Match) -> str:
    return " ".join(spelling.integer(part) for part in re.split("[/-]", found[1]))


def _read_alnum(found: Match) -> str:
    """Letters and digits mixed: letters stay, digits are a label; "_" is a gap."""
    parts = re.findall(r"[0-9]+|[A-Za-z]+", found[1])
    words = []
    for index, part in enumerate(parts):
        if part.isdigit():
            is_named = index or len(part) != 4 or parts[1] in {"p", "i", "P"}  # 1080p
            words.append(spelling.label(part) if is_named else spelling.integer(part))
        elif len(part) == 1 and part != "x":
            words.append(part.upper())
        else:
            words.append(part)
    return " ".join(words)


def _read_number(found: Match) -> str:
    text = found[1]
    words = _number_words(found, text)
    before = found.string[found.start() - 1 : found.start()]
    after = found.string[found.end() : found.end() + 1]
    return (" " if before.isalpha() else "") + words + (" " if after.isalpha() else "")


def _number_words(found: Match, text: str) -> str:
    if not text.isdigit():
        return spelling.number(text)
    if len(text) == 4 and 1100 <= int(text) <= 2099 and not _counts(found):
        return spelling.year(int(text))
    if len(text) >= 10 and not text.endswith("00000"):
        return spelling.digits(text)
    return spelling.integer(text)


def _counts(found: Match) -> bool:
    """Whether a bare four-digit number counts something or stands in a sum, and so is not a year."""
    after = re.match(r" (?:[a-z]+ )?([a-z]+)", found.string[found.end() : found.end() + 40])
    near = re.match(r" ([a-z]+)", found.string[found.end() : found.end() + 30])
    if (near and near[1] in lexicon.COUNTED) or (
        after and near and after[1] in lexicon.COUNTED and near[1] not in lexicon.FUNCTION_WORDS
    ):
        return True
    before = found.string[max(0, found.start() - 16) : found.start()]
    return re.search(r"(?:[=+×*÷]|equals|plus|times|by|minus|than|least|most|about|only)\s?$", before) is not None or (
        re.match(r" ?[=+×*÷]", found.string[found.end() : found.end() + 3]) is not None
    )


# ---------------------------------------------------------------- words: abbreviations, Roman numerals, symbols

_TITLE = re.compile(rf"\b(?:({'|'.join(lexicon.TITLES)})\.|(Mr|Mrs|Ms|Prof))(?= [A-Z]| & | and )")
_STOPPED = re.compile(rf"(?<![\w.@])({_alternatives(lexicon.ABBREVIATIONS)})(?!\w)")
_BEFORE_NUMBER = re.compile(
    rf"(?<![\w.])({_alternatives(lexicon.BEFORE_NUMBER)})\. ?(?=[0-9])|\b(pp?|Apt|Ste) (?=[0-9])"
)
_SAINT_OR_STREET = re.compile(r"\b(St|Dr)(?:\.|(?= [A-Z])|(?=[,;:!?)]|$))(?!\w)")
_TWO_WORDS_BEFORE = re.compile(r"(?:([\w'.-]{1,30}),? )?([\w'.-]{1,30}) $")
_STREET = re.compile(
    rf"(?<=[a-zA-Z0-9] )({'|'.join(name for name in lexicon.STREETS if name not in {'St', 'Dr'})})(?:\.|(?=[,;:!?)]|$)|(?= [NS][EW]\b))(?!\w)(?: (NW|NE|SW|SE)\b)?"
)
_COMPASS = {"NW": "Northwest", "NE": "Northeast", "SW": "Southwest", "SE": "Southeast"}
_ROMAN_AFTER = re.compile(r"\b([A-Z][A-Za-z]{1,20}) ([IVXL]{1,7})\b(?!['-]\w)(?!\.[A-Za-z])")
_CIRCA = re.compile(r"(?<!\w)(?:c|ca)\. ?(?=[0-9]{3,4}\b)")
_WITH = re.compile(r"(?<![\w/])([Ww])/(o)?(?= ?[A-Za-z0-9])(?! ?[/])")
_BECAUSE = re.compile(r"(?<!\w)b/c(?!\w)")
_WORD_SLASH = re.compile(r"(?<![\w/])([A-Za-z]{1,30})/([A-Za-z]{1,30})(?:/([A-Za-z]{1,30}))?(?![\w/])")
_AMPERSAND = re.compile(r"(?<=\w)&(?=\w)|(?<=\w)&(?= )|(?<= )&(?=\w)")
_BRACKETED = re.compile(r"<([A-Za-z][\w.,]{0,40})>")
_COMPARE = re.compile(r"(?<=[\w)%°]) ?(<=|>=|!=|==|<|>|=) ?(?=[-\w($.])")
_DOUBLE_ARROW = re.compile(r" ?(?:<-+>|<=+>|↔|⇔) ?")
_ARROW = re.compile(r" ?(?:-{1,3}>|={1,3}>|→|⟶|➜|➔|⇒) ?")
_BACK_ARROW = re.compile(r" ?(?:<-{1,3}|←) ?(?=\D)")
_ROOT = re.compile(r"√ ?\(?")
_HEART = re.compile(r"(?<=I )<3(?= )")
_SMILEY = re.compile(r"(?<![\w:;])(?:[:;=8]['`]?-?[)(DPpOo/|\\*\]\[3]{1,3}|[xX]D|<3|\^_\^|-_-|¯\\_\(ツ\)_/¯)(?![\w(])")
_DOLLAR_NAME = re.compile(r"\$(?=[A-Za-z_])")
_SUPERSCRIPT = re.compile(r"(?<=[A-Za-z0-9)])([⁰¹⁴-⁹²³]{1,6})")
_SUBSCRIPT = re.compile(r"[₀-₉]")
_SUPERSCRIPT_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "01234567890123456789")
_ENUMERATOR = re.compile(r"(?<![\w.,])([0-9]{1,2})\) (?=[A-Za-z])")
_CITATION = re.compile(r" ?(?:\[[0-9]{1,3}(?:[,–-] ?[0-9]{1,3}){0,5}\])+(?=[\s.,;:!?)]|$)")


def _read_title(found: Match) -> str:
    return lexicon.TITLES[found[1] or found[2]]


def _read_stopped(found: Match) -> str:
    words = lexicon.ABBREVIATIONS[found[1]]
    if found[1] == "v." and not re.match(r" [A-Z]", found.string[found.end() : found.end() + 2]):
        return found[0]
    if found[1] == "est." and not re.match(r" (?:in )?[12][0-9]{3}\b", found.string[found.end() : found.end() + 9]):
        words = "estimated"
    at_start = found.start() == 0 or found.string[max(0, found.start() - 2) : found.start()] in {". ", "! ", "? "}
    return (_capitalised_like("A", words) if at_start else words) + _stop(found)


def _read_before_number(found: Match) -> str:
    key = found[1] or found[2]
    return _capitalised_like(key, f"{lexicon.BEFORE_NUMBER[key]} ")


def _read_saint_or_street(found: Match) -> str:
    """St. and Dr.: a title before a name, a road after one. The two words before decide, then the one after."""
    short = found[1]
    words = _TWO_WORDS_BEFORE.search(found.string[max(0, found.start() - 62) : found.start()])
    earlier, before = (words[1], words[2]) if words else (None, None)
    after = found.string[found.end() : found.end() + 30]
    name_follows = re.match(r" [A-Z]", after) is not None
    named = bool(before) and before[:1].isupper() and before not in lexicon.STARTERS and before not in _NOT_A_ROAD
    road = named and (
        not name_follows
        or (before or "").endswith("'s")
        or bool(earlier and (earlier[:1].isdigit() or earlier.lower() in {"on", "at", "near", "along", "down", "off"}))
        or bool(re.match(r" (?:is|was)\b", after))
        or (_stop_follows(after) and short == "St")
    )
    numbered = bool(before) and re.fullmatch(r"[0-9]{1,3}(?:st|nd|rd|th)", before or "") is not None
    if road or numbered:
        stop = _stop(found) if found[0].endswith(".") else ""
        return f"{lexicon.STREETS[short]}{stop}"
    if name_follows:
        return "Saint" if short == "St" else "Doctor"
    return found[0] if short == "St" or not found[0].endswith(".") else f"doctor{_stop(found)}"


_NOT_A_ROAD = frozenset(
    "Port Mount Mt. Fort Ft. Old Ask Call Visit See Meet Dear Hello Hi Hey Thanks Thank Saint Sir Near Today Yesterday "
    "Tomorrow Yes No Well Okay Ok Oh Is Was Did Does Has With By Of To For And Good Morning Afternoon Evening San "
    "Professor Mister Both Only Even East West Lake River".split()  # noqa: SIM905
)


def _stop_follows(after: str) -> bool:
    word = re.match(r" ([A-Za-z']{1,20})", after)
    return word is not None and word[1] in lexicon.STARTERS


def _read_street(found: Match) -> str:
    before = re.search(r"([\w'.-]+) $", found.string[max(0, found.start() - 30) : found.start()])
    if before is None or not (before[1][:1].isupper() or before[1][:1].isdigit()):
        return found[0]
    if found[2]:
        return f"{lexicon.STREETS[found[1]]} {_COMPASS[found[2]]}"
    return lexicon.STREETS[found[1]] + (_stop(found) if found[0].endswith(".") else "")


def _read_roman(found: Match) -> str:
    name, numeral = found[1], found[2]
    value = spelling.roman(numeral)
    if value is None:
        return found[0]
    after = found.string[found.end() : found.end() + 12]
    clear = (
        len(numeral) > 1
        or re.match(r"[,.:;)!?]|$| (?:of|and|was|is|had|in|at|to|by|ended|began|the)\b", after) is not None
    )
    if name in lexicon.RULERS:
        return f"{name} the {spelling.ordinal(value)}" if clear or numeral in {"V", "X"} else found[0]
    if name in lexicon.NUMBERED_THINGS and clear:
        return f"{name} {spelling.cardinal(value)}"
    if (
        numeral in {"II", "III", "IV", "VI", "VII", "VIII", "IX", "XI", "XII", "XIII", "XIV", "XV", "XVI"}
        and name not in _IV_FLUIDS
    ):
        return f"{name} {spelling.cardinal(value)}" if numeral != "IV" or name not in lexicon.STARTERS else found[0]
    return found[0]


_IV_FLUIDS = frozenset({"An", "The", "Start", "Via", "Through", "By", "And"})


def _read_with(found: Match) -> str:
    rest = found.string[found.end() : found.end() + 1]
    return _capitalised_like(found[1], "without" if found[2] else "with") + ("" if rest == " " else " ")


def _read_word_slash(found: Match) -> str:
    words = [word for word in found.groups() if word]
    if "/".join(words).lower() in lexicon.EITHER_OR:
        return " or ".join(words)
    return " ".join(words)


def _read_compare(found: Match) -> str:
    names = {"<=": "less than or equal to", ">=": "greater than or equal to", "!=": "not equal to", "==": "equals"}
    return f" {names.get(found[1]) or lexicon.SYMBOLS[found[1]].strip()} "


def _read_superscript(found: Match) -> str:
    power = found[1].translate(_SUPERSCRIPT_DIGITS)
    return {"2": " squared", "3": " cubed"}.get(power, f" to the power of {spelling.integer(power)}")


_Reading = tuple[re.Pattern[str], str | Callable[[Match], str]]

_READINGS: tuple[_Reading, ...] = (
    (re.compile(r"[0-9]{41,}"), lambda found: f" {spelling.digits(found[0])} "),
    (_CITATION, ""),
    (_URL, _read_url),
    (_EMAIL, _read_email),
    (_HEART, "love"),
    (_SMILEY, " "),
    (_LOCAL, lambda found: _address(found[1], found[2], found[3])),
    (_IPV4, _read_ipv4),
    (_FILE, _read_file),
    (_DOMAIN, _read_domain),
    (_BARE_FILE, lambda found: f"dot {_ending(found[1]) if found[1] != 'NET' else 'NET'}"),
    (_WINDOWS_PATH, _read_windows_path),
    (_CIRCA, "circa "),
    (_WITH, _read_with),
    (_BECAUSE, "because"),
    (_PATH, _read_path),
    (_HANDLE, _read_handle),
    (_COLOUR, _read_colour),
    (_HASHTAG, _read_hashtag),
    (_LONG_NUMBER_SIGN, lambda found: f"number {spelling.digits(found[1])}"),
    (_NUMBER_SIGN, "number "),
    (_BETWEEN, r"\1 and "),
    (_WEEKDAYS, lambda found: f"{lexicon.WEEKDAYS[found[1]]} to {lexicon.WEEKDAYS[found[2]]}"),
    (_MONTHS, lambda found: f"{_month(found[1])} to {_month(found[2])}{_month_stop(found)}"),
    (_SHARP, r"\1 sharp"),
    (_PLUS_PLUS, r"\1 plus plus"),
    (_PHONE_PLUS, _read_phone_plus),
    (_PHONE_US, _read_phone_us),
    (_PHONE_LETTERS, _read_phone_letters),
    (_CARD, lambda found: _grouped(*found[1].split(" "))),
    (_ISO_DATE, _read_iso_date),
    (_SLASH_DATE, _read_slash_date),
    (_SLASH_DAY, _read_slash_day),
    (_GROUPS, _read_groups),
    (_PHONE_SHORT, lambda found: _grouped(found[1], found[2])),
    (_PORT, lambda found: f"{found[1]} {_port(found[2])}"),
    (_STATE_ZIP, _read_state_zip),
    (_STATE, lambda found: lexicon.STATES[found[1]]),
    (_CODE_WORD, _read_code_word),
    (_DOTTED, _read_dotted),
    (_BEFORE_NUMBER, _read_before_number),
    (_VERSION, _read_version),
    (_PRODUCT, _read_product),
    (_APPROX, "about "),
    (_MONEY_EURO, _read_money_euro),
    (_MONEY_RANGE, _read_money_range),
    (_MONEY, _read_money),
    (_MONEY_AFTER, _read_money_after),
    (_CENTS, _read_cents),
    (_WEEKDAY, lambda found: lexicon.WEEKDAYS[found[1]]),
    (_MONTH_DAY, _read_month_day),
    (_DAY_MONTH, _read_day_month),
    (_MONTH_YEAR, _read_month_year),
    (_TIME_RANGE, _read_time_range),
    (_CLOCK_RANGE, _read_clock_range),
    (_VERSES, r"\1:\2 to \3"),
    (_FROM_NOON, r"\1 to "),
    (_TIME, _read_time),
    (_HOUR, _read_hour),
    (_DURATION, _read_duration),
    (_RATIO, _read_ratio),
    (_FEET_INCHES, _read_feet_inches),
    (_FEET, _read_feet),
    (_INCHES, _read_inches),
    (_QUARTER_YEAR, lambda found: f"{found[1]} {spelling.pair(int(found[2]))}"),
    (_DECADE, _read_decade),
    (_SHORT_YEARS, lambda found: f"{spelling.pair(int(found[1]))} to {spelling.pair(int(found[2]))}"),
    (_SHORT_YEAR, _read_short_year),
    (_ERA, _read_era),
    (_AD, _read_ad),
    (_HOUSE_SIDE, lambda found: f"{spelling.label(found[1])} {_SIDES[found[2]]} "),
    (_HOUSE, _read_house),
    (_SAINT_OR_STREET, _read_saint_or_street),
    (_STREET, _read_street),
    (_TITLE, _read_title),
    (_NAMED_PAIR, _read_named_pair),
    (_EMERGENCY, _read_emergency),
    (_LABELLED, _read_labelled),
    (_LABELLED_AFTER, lambda found: spelling.label(found[1])),
    (_YEAR_RANGE, _read_year_range),
    (_PERCENT, _read_percent),
    (_SCIENTIFIC, _read_scientific),
    (_BEFORE_BY_UNIT, r"\1 by "),
    (_BY, _read_by),
    (_BY_UNIT, r"\1 by "),
    (_MEASURE, _read_measure),
)
_LATER: tuple[_Reading, ...] = (
    (_SPACED_SLASH, ", "),
    (_TEAM, lambda found: f"{spelling.cardinal(int(found[1])).removesuffix('e')}ers"),
    (_BIT_SCALE, _read_bit_scale),
    (_THOUSANDS, _read_thousands),
    (_TIMES, _read_times),
    (_RATING, lambda found: f"{spelling.number(found[1])} out of {spelling.number(found[2])}"),
    (_MIXED, _read_mixed),
    (_SLASH, _read_slash),
    (_POWER, _read_power),
    (_SUPERSCRIPT, _read_superscript),
    (_SUBSCRIPT, lambda found: found[0].translate(_SUPERSCRIPT_DIGITS)),
    (_ORDINAL, _read_ordinal),
    (_STOPPED, _read_stopped),
    (_ROMAN_AFTER, _read_roman),
    (_UPPER_HYPHEN, r"\1 "),
    (_RANGE, _read_range),
    (_DIGIT_MINUS, " minus "),
    (_SIGNED, "minus "),
    (_PLUS_SIGN, "plus "),
    (_AFTER_PLUS, " plus"),
    (_DOUBLE_ARROW, " and "),
    (_ARROW, " to "),
    (_BACK_ARROW, " from "),
    (_BRACKETED, r" \1 "),
    (_COMPARE, _read_compare),
    (_ROOT, " square root of "),
    (_ALNUM, _read_alnum),
    (_GROUPED_NUMBER, lambda found: spelling.number(found[0])),
    (_LIST_COMMA, ", "),
    (_NUMBER, _read_number),
    (_WORD_SLASH, _read_word_slash),
    (_AMPERSAND, " and "),
    (_DOLLAR_NAME, " dollar "),
)


# A sentence that begins with figures begins with a capital once they are words: the cutter looks for one.
_BEGINNING = re.compile(r"(?:^|([A-Za-z0-9'.-]{0,20}[.!?])[\"')\]]{0,2} )[\"(\[]?(?=[#$£€¥~+'.-]?[0-9])")
_BEGIN = "\uf8ff"
_BEGUN = re.compile(_BEGIN + "([a-z]?)")
_NO_BEGINNING = frozenset(
    [*lexicon.BEFORE_NUMBER, *lexicon.STREETS, *lexicon.MONTH_BY_PREFIX, *lexicon.TITLES, "Sept", "St", "c"]
)


def _mark_beginning(found: Match) -> str:
    word = (found[1] or "").rstrip(".!?")
    short = found[1] and (word in _NO_BEGINNING or f"{word}." in lexicon.ABBREVIATIONS or "." in word or word in _SIDES)
    return found[0] if short else f"{found[0]}{_BEGIN}"


def read(text: str, unit: Unit) -> str:
    """One paragraph of clean text in words. `unit(name, plural)` names a unit the lexicon lacks, or None."""

    def read_unknown_unit(found: Match) -> str:
        # With a gap a short word follows ("5 by", "3 men"), unless its capitals or its slash say otherwise.
        if found[2] and not re.search(r"[a-zμ][A-ZΩ]|[/·²³μΩ]", found[3]):
            return found[0]
        name = unit(found[3], found[1] != "1")
        return found[0] if name is None else f"{spelling.number(found[1])} {name}"

    text = _mark_inches(_BEGINNING.sub(_mark_beginning, text))
    for pattern, reading in _READINGS:
        text = pattern.sub(reading, text)
    if "(" not in text:
        text = _ENUMERATOR.sub(r"\1, ", text)
    text = _UNKNOWN_UNIT.sub(read_unknown_unit, text)
    for pattern, reading in _LATER:
        text = pattern.sub(reading, text)
    return _BEGUN.sub(lambda found: found[1].upper(), text)
