"""Remove Markdown, HTML and SSML from a text, and replace code by words.

In the result an empty line separates paragraphs. List items and table rows become sentences. Numbers and abbreviations
do not change, because the package `rules` converts them later. Every repetition in a pattern has a maximum length, so
the time grows linearly with the length of the text.
"""

from __future__ import annotations

import re
from itertools import pairwise

_TAG_NAMES = (
    "a abbr article aside audio b big blockquote body br break button center cite code dd del details div dl dt em "
    "emphasis figcaption figure font footer form h1 h2 h3 h4 h5 h6 head header hr html i img input ins kbd label li "
    "lang link main mark meta nav ol option p phoneme pre prosody q s samp say-as section select small source "
    "span speak strike strong sub summary sup table tbody td tfoot th thead time title tr tt u ul var video voice w "
    "sentence paragraph mstts:[a-z-]{1,20} amazon:[a-z-]{1,20}"
)
_ATTRIBUTES = r"""(?:\s{1,20}[\w:.-]{1,40}\s?=\s?(?:"[^"<>]{0,300}"|'[^'<>]{0,300}'|[^\s"'<>=]{1,200})){0,12}"""
_KNOWN_TAG = re.compile(rf"</?({'|'.join(_TAG_NAMES.split(' '))}){_ATTRIBUTES}\s{{0,5}}/?>", re.IGNORECASE)
# Another name in angle brackets is also a tag, unless it directly follows a word: List<String> is not HTML.
_OTHER_TAG = re.compile(rf"(?<![\w<])</?[A-Za-z][\w:-]{{0,40}}{_ATTRIBUTES}\s{{0,5}}/?>")
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^\s<>]{1,500}|[\w.+-]{1,64}@[\w.-]{1,120})>")
_BLOCK_NAMES = (
    "article aside blockquote body center dd details div dl dt figure footer h1 h2 h3 h4 h5 h6 header hr html li main "
    "nav ol option p paragraph pre section speak summary table tbody tfoot thead title tr ul"
)
_BLOCK_TAGS = frozenset(_BLOCK_NAMES.split(" "))

_FENCE = re.compile(r"\s{0,8}(?:`{3,}|~{3,})")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*)")
_RULE = re.compile(r"\s{0,8}(?:(?:-\s{0,3}){3,200}|(?:\*\s{0,3}){3,200}|(?:_\s{0,3}){3,200}|={3,200})\s*")
_QUOTE = re.compile(r"\s{0,8}(?:>\s?){1,20}")
_BULLET = re.compile(r"\s{0,40}(?:[-*+–—•‣◦▪●○·∙]|o(?=\s{2}))\s+(?:\[[ xX]\]\s+)?(?=\S)")
_NUMBERED = re.compile(r"\s{0,40}\(?(\d{1,3})[.)]\s+(?:\[[ xX]\]\s+)?(?=[^\s\d])")
_TABLE_RULE = re.compile(r"\s{0,8}\|?(?:\s{0,20}:?-{2,100}:?\s{0,20}\|){0,60}\s{0,20}:?-{2,100}:?\s{0,20}\|?\s*")
_REFERENCE = re.compile(r"\s{0,3}\[[^\[\]\n]{1,100}\]:\s+\S{1,500}(?:\s+\"[^\"\n]{0,200}\")?\s*")

_LINK = re.compile(
    r"!?\[(?![0-9]{1,3}\]\[)([^\[\]\n]{0,300})\]"
    r"(?:\(\s?[^()\s]{0,500}(?:\([^()\s]{0,100}\)[^()\s]{0,100})?(?:\s+\"[^\"\n]{0,200}\")?\s?\)|\[[^\[\]\n]{0,60}\])"
)
_FOOTNOTE = re.compile(r"\[\^[^\[\]\s]{1,20}\]:?")
_CODE_SPAN = re.compile(r"`{1,2}([^`\n]{1,300})`{1,2}")
_PROMPT = re.compile(r"\s{0,8}\$ (?=[a-z])")
_EMPHASIS = re.compile(
    r"(?<![\w*])\*{1,3}(?=[^\s*])|(?<=[^\s*])\*{1,3}(?![\w*])|(?<![\w_/.])_{1,3}(?=[^\s_])|(?<=[^\s_])_{1,3}(?![\w/])|~~"
)
_ESCAPE = re.compile(r"\\([*_`#~>|!+.-])")

_TEX_TWO = re.compile(r"\\[dt]?frac\s?\{([^{}]{1,60})\}\s?\{([^{}]{1,60})\}")
_TEX_ONE = re.compile(r"\\(sqrt|text|mathrm|mathbf|boxed)\s?\{([^{}]{1,80})\}")
_TEX_NAME = re.compile(
    r"\\(times|cdot|div|leq?|geq?|neq?|approx|pm|pi|infty|to|rightarrow|degree|circ|theta|alpha|beta|"
    r"gamma|delta|lambda|mu|sigma|omega|sum|int|quad|left|right)(?![A-Za-z])"
)
_TEX_NAMES = {
    "times": "×", "cdot": "×", "div": "÷", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠",
    "approx": "≈", "pm": "±", "pi": "π", "infty": "∞", "to": "→", "rightarrow": "→", "degree": "°", "circ": "°",
    "sum": " the sum of ", "int": " the integral of ", "quad": " ", "left": "", "right": "",
}  # fmt: skip
_TEX_FENCE = re.compile(r"\\[()\[\]]|\$\$|(?<![\w$])\$(?=[^\s$][^$\n]{0,200}[\\^_={][^$\n]{0,200}\$)")

_VERBATIM_CODE = re.compile(
    r"https?://\S+|[\w./~\\-]{1,200}\.[A-Za-z][A-Za-z0-9]{0,5}|v?\d[\d.]*|[A-Za-z]+\d*|/[\w./-]+"
)
_CODE_RULES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"(?:(?<=\s)|^)(?://|#)\s?", " "),
        (r"===?", " equals "),
        (r"!==?", " is not equal to "),
        (r"<=", " is at most "),
        (r"(?<!-)>=", " is at least "),
        (r"[-=]>", " to "),
        (r"\+=", " plus equals "),
        (r"\+\+", " plus plus "),
        (r"-=", " minus equals "),
        (r"&&", " and "),
        (r"\|\|", " or "),
        (r":=|=", " equals "),
        (r"(?:(?<=\s)|^)--(?=\w)", " dash dash "),
        (r"(?:(?<=\s)|^)-(?=[A-Za-z])", " dash "),
        (r"(?<=[A-Za-z])-(?=\w)", " dash "),
        (r"(?<=[A-Za-z_)\]])\.(?=[A-Za-z_])", " dot "),
        (r"(?<=\w)\s?\*\s?(?=\w)", " times "),
        (r"(?<=[\w)\]])\s?<\s(?=\w)", " less than "),
        (r"(?<=[\w)\]])\s?>\s(?=\w)", " greater than "),
        (r"(?<=[a-z])(?=[A-Z])", " "),
        (r"(?<=\w)/(?=\w)", " slash "),
        (r"(?<=\w)%(?=\w|\s\w)", " modulo "),
        (r"@", " at "),
        (r"[`{}()\[\]<>;\"\\_|&*^!?~$#]|'(?![A-Za-z])|(?<![A-Za-z])'|:(?!\d)", " "),
    )
)
_SENTENCE_ENDS = frozenset(".!?:;,。！？：；，…")


def strip_tags(text: str) -> str:
    """Remove HTML and SSML tags, comments, scripts and styles.

    A block tag (such as <p>) becomes a paragraph break. The end of a table cell becomes a comma.
    """
    if "<" not in text:
        return text
    for opening, closing in (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>")):
        text = _cut(text, opening, closing)
    text = _AUTOLINK.sub(r"\1", text)
    text = _KNOWN_TAG.sub(_without_tag, text)
    return _OTHER_TAG.sub("", text)


def _cut(text: str, opening: str, closing: str) -> str:
    """Remove each part of the text that begins with `opening` and ends with `closing`.

    If `closing` does not follow an `opening`, the text after this `opening` stays.
    """
    kept, position = [], 0
    while (start := text.find(opening, position)) >= 0 and (end := text.find(closing, start)) >= 0:
        kept += [text[position:start], " "]
        position = end + len(closing)
    return "".join([*kept, text[position:]]) if kept else text


def _without_tag(match: re.Match[str]) -> str:
    name = match[1].lower()
    if name in _BLOCK_TAGS:
        return "\n\n"
    if name == "br":
        return "\n"
    if name in {"td", "th"}:
        return ", " if match[0].startswith("</") else ""
    return " " if name == "break" else ""


def plain_paragraphs(text: str) -> str:
    """Convert Markdown to plain paragraphs with an empty line between them.

    List items, headings and table rows get a full stop if they do not end with punctuation.
    """
    paragraphs: list[str] = []
    current: list[str] = []  # the lines of the paragraph being collected
    in_code = False

    def close() -> None:
        if current:
            paragraphs.append(_join(current))
            current.clear()

    lines = text.split("\n")
    for index, line in enumerate(lines):
        if _FENCE.match(line) and ("```" not in line.strip("` \n") or in_code):
            close()
            in_code = not in_code
            continue
        if in_code:
            words = verbalize_code(line)
            if words:
                current.append(_with_full_stop(words))
            continue
        if not line.strip() or _RULE.fullmatch(line) or _REFERENCE.fullmatch(line):
            close()
            continue
        in_table = line.lstrip().startswith("|") or (
            "|" in line
            and any("|" in near and _TABLE_RULE.fullmatch(near) for near in lines[max(0, index - 1) : index + 2])
        )
        if in_table:
            if not _TABLE_RULE.fullmatch(line):
                cells = [cell.strip() for cell in _inline(line).strip().strip("|").split("|")]
                current.append(_with_full_stop(", ".join(cell for cell in cells if cell)))
            continue
        if quote := _QUOTE.match(line):
            line = line[quote.end() :]  # noqa: PLW2901 - the text after ">" may be a heading or a list item
        if heading := _HEADING.fullmatch(line):
            close()
            paragraphs.append(_with_full_stop(_inline(heading[1].rstrip("# "))))
        elif bullet := _BULLET.match(line):
            _end_last_line(current)
            current.append(_with_full_stop(_inline(line[bullet.end() :])))
        elif numbered := _NUMBERED.match(line):
            _end_last_line(current)
            current.append(f"{numbered[1]}. {_with_full_stop(_inline(line[numbered.end() :]))}")
        elif line.strip():
            current.append(_inline(line.strip()))
    close()
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _end_last_line(lines: list[str]) -> None:
    if lines:
        lines[-1] = _with_full_stop(lines[-1])


def _with_full_stop(line: str) -> str:
    """Return `line` with a full stop added. If `line` is empty or ends with punctuation, nothing is added."""
    line = line.strip()
    bare = line.rstrip("\"')]}*_ ")
    return line if not bare or bare[-1] in _SENTENCE_ENDS else f"{line}."


def _join(lines: list[str]) -> str:
    """Join the lines of a paragraph with spaces. Two short lines (of a poem, of an address) are joined with a comma."""
    joined = [lines[0].strip()]
    for before, line in pairwise(lines):
        after = line.strip()
        short = len(before) < 50 and len(after) < 50
        apart = short and before.rstrip()[-1:].isalnum() and (after[:1].isupper() or after[:1].isdecimal())
        joined += [", " if apart else " ", after]
    return "".join(joined)


def _inline(line: str) -> str:
    """Return one line without the markup of links, code, emphasis, TeX and shell prompts."""
    if prompt := _PROMPT.match(line):
        line = line[prompt.end() :]
    if "[" in line:
        line = _LINK.sub(r"\1", _LINK.sub(r"\1", line))  # twice, because a link can contain an image
        line = _FOOTNOTE.sub("", line)
    if "`" in line:
        line = _CODE_SPAN.sub(lambda match: verbalize_code(match[1]), line).replace("`", "")
    if "\\" in line or "$" in line:
        line = _TEX_TWO.sub(r"\1 over \2", line)
        line = _TEX_ONE.sub(lambda match: f"{'square root of ' if match[1] == 'sqrt' else ''}{match[2]}", line)
        line = _TEX_NAME.sub(lambda match: _TEX_NAMES.get(match[1], match[1]), line)
        line = _TEX_FENCE.sub(" ", line)
        line = _ESCAPE.sub(r"\1", line)
    if "*" in line or "_" in line or "~~" in line:
        line = _EMPHASIS.sub("", line)
    return line


def verbalize_code(code: str) -> str:
    """Return a line of code as words: "user_id == 3" -> "user id equals 3".

    A line that is only a file path, a web address or a number does not change, because `rules` converts it later.
    """
    code = code.strip().removeprefix("$ ")
    if _VERBATIM_CODE.fullmatch(code):
        return code
    for pattern, words in _CODE_RULES:
        code = pattern.sub(words, code)
    return " ".join(code.split()).strip(" ,:").replace(" ,", ",")
