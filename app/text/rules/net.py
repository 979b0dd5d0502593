"""Rules for web and mail addresses, file names, paths, versions and handles."""

from __future__ import annotations

import re
from urllib.parse import unquote

from app.text import number_words, tables
from app.text.rules.common import NUMBER_END, NUMBER_START, SENTENCE_START, Match, capitalised_like, spell_out
from app.text.rules.dates import spoken_day

_SCHEME = (
    r"(?:https?|s?ftp|wss?|s3|gs|file|ssh|git|rediss?|postgres(?:ql)?|mysql|mongodb(?:\+srv)?|amqps?|rts?mp|rtsp|chrome|"
    r"mqtt|ldaps?|jdbc:[a-z]{2,12}|ipfs|app|about|vscode)"
)
URL = re.compile(rf"\b(?:{_SCHEME}://|www\.)[^\s<>\"'\\^`{{|}}\[\]]{{1,600}}", re.IGNORECASE)
EMAIL = re.compile(r"(?<![\w.+@-])(?:mailto:)?([\w.+-]{1,64})@((?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24})(?![\w@])")
DOMAIN = re.compile(
    rf"(?<![\w@./-])((?:[A-Za-z0-9][A-Za-z0-9-]{{0,62}}\.){{1,5}}(?:{'|'.join(sorted(tables.TOP_LEVEL_DOMAINS))}))"
    r"(:[0-9]{2,5})?(/[^\s<>\"']{0,300})?(?![\w@])"
)
PORT = re.compile(r"\b([Pp]orts?) ([0-9]{4,5})(?![\w]|[.,:][0-9])")
LOCAL = re.compile(r"\b(localhost):([0-9]{2,5})(/[^\s<>\"']{0,300})?")
IPV4 = re.compile(
    rf"{NUMBER_START}([0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}})(?::([0-9]{{2,5}}))?(/[0-9]{{1,2}})?(?![\w.]\w|[0-9])"
)
HARDWARE_ADDRESS = re.compile(
    r"(?<![\w:.-])(?:[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}(?![\w:])|[0-9A-Fa-f]{2}(?:-[0-9A-Fa-f]{2}){5}(?![\w-]))"
    r"|(?<![\w.-])[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}(?![\w-]|\.\w)"
)
# A name in program code whose parts are joined by dots: "com.example.Main", "self.x", "foo.bar(".
DOTTED_NAME = re.compile(
    r"(?<![\w.@/\\:-])(?:[a-z_]\w{1,40}(?:\.[A-Za-z_]\w{1,60}){2,8}|(?:self|this|cls|np|pd|os|sys|plt|torch)\.[a-z_]\w{0,60}(?:\.[A-Za-z_]\w{0,60}){0,7}"
    r"|[A-Za-z_]\w{1,40}(?:\.[A-Za-z_]\w{1,60}){1,8}(?=\())(?![\w@/]|\.\w)"
)

IPV6 = re.compile(
    rf"(?<![\w:.])(\[?{SENTENCE_START}?)"
    r"((?=[0-9A-Fa-f:]{0,38}(?:::|(?::[0-9A-Fa-f]{1,4}){7}))[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})"
    r"(?:(?<=:)([0-9]{1,3}(?:\.[0-9]{1,3}){3}))?"
    r"(%[A-Za-z0-9]{1,16})?(?:\](?::([0-9]{2,5}))?)?(/[0-9]{1,3})?(?![\w:.]\w|\w)"
)
FILE = re.compile(
    r"(?<![\w@:.\\-])((?:~|\.{1,2})?/?(?:[\w-]{1,60}[./]){0,8}[\w-]{1,60})"
    rf"\.({'|'.join(sorted(tables.FILE_ENDINGS, key=len, reverse=True))})\b(?!/)"
)
BARE_FILE = re.compile(
    r"(?:(?<![\w.])|(?<=\bASP)|(?<=\bADO)|(?<=\bVB)|(?<=\bML))"
    rf"\.({'|'.join(sorted(tables.FILE_ENDINGS | {'gitignore', 'NET', 'net'}))})\b"
)
PATH = re.compile(r"(?<![\w/<.)])((?:~|\.{1,2})?/(?:[\w.-]{1,60}/){0,10}[\w.-]{0,60}[\w-]/?)")
WINDOWS_PATH = re.compile(r"\b([A-Z]):\\((?:[\w .-]{1,60}\\){0,10}[\w.-]{0,60})")
HANDLE = re.compile(r"(?<![\w@.])@([A-Za-z_]\w{0,40})")
_CODE_OF_ORDER = re.compile(r"(?=[A-Z]{0,10}[0-9])(?:[A-Z]{1,4}[0-9]{1,8}){1,4}[A-Z]{0,4}")
HASHTAG = re.compile(r"(?<![\w#&])#([A-Za-z]\w{0,60})")
COLOUR = re.compile(r"(?<![\w#&])#((?=[A-Fa-f]{0,5}[0-9])[0-9A-Fa-f]{6}|[0-9A-F]{3})\b")
LONG_NUMBER_SIGN = re.compile(r"(?<![\w#&])# ?([0-9]{5,40})(?![\w,.][0-9]|\w)")
NUMBER_SIGN = re.compile(r"(?<![\w#&])# ?(?=[0-9])")
DOTTED = re.compile(rf"{NUMBER_START}([0-9]{{1,6}}(?:\.[0-9]{{1,6}}){{2,6}})(?![\w.]\w)")
VERSION_TWICE = re.compile(r"(?<=[Vv]ersion )[vV]\.?(?=[0-9])")
VERSION = re.compile(r"\b([vV])\.? ?([0-9]{1,6}(?:\.[0-9]{1,6}){0,6})(?![\w]|\.[0-9])")
PRODUCT = re.compile(rf"\b([A-Za-z][A-Za-z+]{{1,20}}) ([0-9]{{1,3}})\.([0-9]{{1,3}}){NUMBER_END}(?!%|\w)")
SHARP = re.compile(r"\b([A-GJ])#(?![A-Za-z_])|\b([A-G])#(?=m(?:aj|in)?[0-9]?\b)")
PLUS_PLUS = re.compile(r"\b([A-Za-z]{1,12})\+\+(?!\w)")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[0-9])(?=[A-Za-z])")


def _runs(text: str) -> str:
    """Return `text` with each run of digits replaced by words: "route53" -> "route fifty three"."""
    return " ".join(re.sub(r"[0-9]{1,40}", lambda run: f" {number_words.label(run[0])} ", text).split())


def spoken_ending(name: str) -> str:
    """Return the words for a file ending or a top-level domain. name: the ending or domain without the dot."""
    name = name.lower()
    return tables.SPOKEN_ENDINGS.get(name) or (name if name in tables.PRONOUNCED_ENDINGS else _runs(name.upper()))


_SYMBOL_NAMES = {
    ".": " dot ",
    "-": " dash ",
    "_": " underscore ",
    "/": " slash ",
    "~": " tilde ",
    "+": " plus ",
    ":": " ",
}


def _spelled(text: str) -> str:
    return _runs(
        re.sub(r"[^A-Za-z0-9]", lambda char: _SYMBOL_NAMES.get(char[0], char[0] if char[0].isalpha() else " "), text)
    )


def _host(host: str) -> str:
    labels = [label for label in host.split(".") if label]
    if labels and labels[0].lower() == "www":
        labels = labels[1:]
    if all(label.isdecimal() for label in labels):
        return " dot ".join(number_words.digits(label) for label in labels)
    names = [_spelled(label) for label in labels]
    if len(labels) > 1:
        names[-1] = spoken_ending(labels[-1])
        if len(labels) > 2 and labels[-2].lower() in {"ac", "gov", "org"}:
            names[-2] = labels[-2] if labels[-2].lower() != "ac" else "AC"
    return " dot ".join(name for name in names if name)


def spoken_address(host: str, port: str | None, path: str | None) -> str:
    """Return the words for a web address. A query ("?...") and a fragment ("#...") in `path` are not read."""
    words = _host(host)
    if port:
        words += f" port {spoken_port(port)}"
    steps = [step for step in re.split(r"[?#]", path or "", maxsplit=1)[0].split("/") if step]
    return "".join([words, *(f" slash {_file_name(step)}" for step in steps)])


def spoken_port(run: str) -> str:
    """Return the words for a port number: "8080" -> "eighty eighty", "8000" -> "eight thousand"."""
    return (
        number_words.label(run) if len(run) == 4 and run[1:] != "000" and run[2] != "0" else number_words.integer(run)
    )


def _trailing(text: str) -> tuple[str, str]:
    """Split a match in two: the web address, and the punctuation after it, which belongs to the sentence."""
    bare = text.rstrip(".,;:!?*)…")
    if "(" in bare and text[len(bare) : len(bare) + 1] == ")":
        bare += ")"
    return bare, text[len(bare) :]


def verbalize_url(match: Match) -> str:
    url, rest = _trailing(match[0])
    parts = re.match(
        r"(?:[a-z0-9+:]{2,20}://)?(?:[^/@\s]{1,60}@)?([^/:?#]{0,250})(?::([0-9]{2,5}))?(.{0,600})", url, re.IGNORECASE
    )
    spoken = spoken_address(parts[1], parts[2], parts[3]) if parts else ""
    return (spoken or _spelled(url)) + rest


def verbalize_email(match: Match) -> str:
    return f"{_spelled(match[1].strip('.'))} at {_host(match[2])}"


def verbalize_domain(match: Match) -> str:
    path, rest = _trailing(match[3] or "")
    return spoken_address(match[1], (match[2] or "")[1:], path) + rest


def verbalize_ipv4(match: Match) -> str:
    groups = match[1].split(".")
    if any(int(group) > 255 for group in groups):
        return verbalize_dotted(match)
    words = " dot ".join(number_words.digits(group) for group in groups)
    words += f" port {spoken_port(match[2])}" if match[2] else ""
    return words + (f" slash {number_words.integer(match[3][1:])}" if match[3] else "")


def verbalize_hardware_address(match: Match) -> str:
    """Return the words for a MAC address: "00:1A:2B:3C:4D:5E" -> "zero zero, one A, two B, ..."."""
    return ", ".join(spell_out(group) for group in re.split("[:.-]", match[0]))


def verbalize_dotted_name(match: Match) -> str:
    """Return the words for a name in code: "com.example.MainActivity" -> "com dot example dot Main Activity"."""
    return " dot ".join(_CAMEL.sub(" ", part.replace("_", " ")).strip() for part in match[0].split("."))


def verbalize_ipv6(match: Match) -> str:
    """Return the words for an IPv6 address: "fe80::1%eth0" -> "F E eight zero colon colon one percent eth zero"."""
    address = match[2]
    if not re.search("[0-9A-Fa-f]", address) or ":::" in address:
        return match[0]
    words = " ".join("colon" if char == ":" else spell_out(char) for char in address)
    words += f" {_host(match[3])}" if match[3] else ""
    words += f" percent {_runs(match[4][1:])}" if match[4] else ""
    words += f" port {spoken_port(match[5])}" if match[5] else ""
    return words + (f" slash {number_words.integer(match[6][1:])}" if match[6] else "")


def verbalize_dotted(match: Match) -> str:
    groups = match[1].split(".")
    day, month, year = (int(group) for group in groups[:3])
    if len(groups) == 3 and 1 <= day <= 31 and 1 <= month <= 12 and 1900 <= year <= 2100:
        return spoken_day(tables.MONTHS[month - 1], day, groups[2])
    return " point ".join(number_words.integer(group) for group in groups)


def verbalize_version(match: Match) -> str:
    words = " point ".join(number_words.integer(group) for group in match[2].split("."))
    return capitalised_like(match[1], f"version {words}")


def verbalize_sharp(match: Match) -> str:
    """Return the words for a note or a programming language: "C#" -> "C sharp".

    A space is added if a letter or digit follows.
    """
    return f"{match[1] or match[2]} sharp{' ' if match.string[match.end() : match.end() + 1].isalnum() else ''}"


def verbalize_product(match: Match) -> str:
    if match[1].lower() not in tables.VERSIONED:
        return match[0]
    minor = (
        number_words.two_digits(int(match[3]))
        if len(match[3]) == 2 and match[3][0] == "0"
        else number_words.integer(match[3])
    )
    return f"{match[1]} {number_words.integer(match[2])} point {minor}"


def _file_name(name: str) -> str:
    if "%" in name:
        name = unquote(name, errors="ignore")
    stem, dot, end = name.rpartition(".")
    return (
        f"{_spelled(stem)} dot {spoken_ending(end)}" if dot and end.lower() in tables.FILE_ENDINGS else _spelled(name)
    )


def verbalize_file(match: Match) -> str:
    if not re.search(r"[A-Za-z]", match[1]):
        return match[0]
    head = match[1]
    return f"{_spelled(head)} dot {spoken_ending(match[2])}"


def verbalize_bare_file(match: Match) -> str:
    space = " " if match.string[match.start() - 1 : match.start()].isalnum() else ""
    return f"{space}dot {spoken_ending(match[1]) if match[1] != 'NET' else 'NET'}"


def verbalize_path(match: Match) -> str:
    *folders, name = match[1].rstrip("/").split("/")
    return " slash ".join([*(_spelled(folder) for folder in folders), _file_name(name)]).strip()


def verbalize_windows_path(match: Match) -> str:
    path, rest = _trailing(match[2])
    steps = [_file_name(step) for step in path.split("\\") if step]
    return " backslash ".join([f"{match[1]} colon", *steps]) + rest


def verbalize_handle(match: Match) -> str:
    return f"at {_spelled(match[1].strip('_'))}" if match[1].strip("_") else "at"


def verbalize_hashtag(match: Match) -> str:
    if _CODE_OF_ORDER.fullmatch(match[1]):
        return f"number {' '.join(spell_out(run) for run in re.findall('[0-9]+|[A-Z]+', match[1]))}"
    words = _CAMEL.sub(" ", match[1].replace("_", " "))
    return f"hashtag {_runs(words)}"


def verbalize_colour(match: Match) -> str:
    return "hash " + " ".join(number_words.digits(char) if char.isdecimal() else char.upper() for char in match[1])
