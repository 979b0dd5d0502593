"""Remove markup from a text: Markdown with its dialects, HTML, SSML and the marks of Discord. Replace code by words.

List items and table rows become sentences. Numbers and abbreviations do not change, because the package `rules`
converts them later. A repetition in a pattern has a maximum length, or cannot contain the character that begins the
pattern. So the time grows linearly with the length of the text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from app.text.spans import SpannedText, join

if TYPE_CHECKING:
    from collections.abc import Iterator

_TAG_NAMES = (
    "a abbr article aside audio b big blockquote body br break button center cite code dd del details div dl dt em "
    "emphasis figcaption figure font footer form h1 h2 h3 h4 h5 h6 head header hr html i img input ins kbd label li "
    "lang link main mark meta nav ol option p phoneme pre prosody q s samp say-as section select small source "
    "span speak strike strong sub summary sup table tbody td tfoot th thead time title tr tt u ul var video voice w "
    "sentence paragraph mstts:[a-z-]{1,20} amazon:[a-z-]{1,20}"
)
# The value of an attribute may have any length, because an address can contain a whole image.
_VALUE = r"""(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+)"""
_FLAG = (
    "(?:open|hidden|disabled|checked|controls|autoplay|loop|muted|required|selected|readonly|async|defer|multiple|"
    "reversed|download|nowrap|itemscope|allowfullscreen)"
)
_KNOWN_TAG = re.compile(
    rf"</?({'|'.join(_TAG_NAMES.split(' '))})(?:\s+(?:[\w:.@-]+\s?=\s?{_VALUE}|{_FLAG}\b))*+\s*/?>", re.IGNORECASE
)
# A name in angle brackets that is not in _TAG_NAMES is also a tag, unless it directly follows a word: List<String> is
# not HTML. A closing tag may follow a word.
_OTHER_TAG = re.compile(
    rf"(?<![\w<])<[A-Za-z][\w:-]{{0,40}}(?:\s+[\w:.-]+\s?=\s?{_VALUE})*+\s*/?>|</[A-Za-z][\w:-]{{0,40}}\s*>"
    # Declarations and instructions of a document, and the notes that messengers write in place of a picture.
    r"|<![A-Za-z][^<>]*>|<\?[^<>]*\?>|<(?:Media omitted|attached: [^<>\n]*|This message was (?:edited|deleted))>"
)
# Readings (furigana), which are printed above Chinese characters and show how to pronounce them. The readings are
# written as HTML, or in the notation of Japanese books. A reading in kana is spoken in place of the Chinese characters.
# A reading in other letters is left out.
_RUBY = re.compile(
    r"(?<=>)([^<>]{1,60})(?:</rb>)?(?:<rp>[^<>]{0,4}</rp>)?<rt>([^<>]{0,80})</rt>(?:<rp>[^<>]{0,4}</rp>)?",
    re.IGNORECASE,
)
_KANA = "\u3041-\u3096\u30a1-\u30fa\u30fc"
_BOOK_RUBY = re.compile(rf"(?:\|[^|《》\n]{{1,40}}|[\u3005\u4e00-\u9fff]{{1,20}})《([{_KANA}]{{1,40}})》")
_READING = re.compile(rf"([\u3005\u4e00-\u9fff])[(（][{_KANA}]{{1,40}}[)）]")
_IS_KANA = re.compile(rf"[{_KANA}\s]+")
# A raised number after a number or after a symbol of one or two letters is a power. After any other text, it is the
# number of a footnote.
_RAISED = re.compile(r"<sup(?:\s[^<>]*)?>\s{0,5}([^<>\s][^<>]{0,30})</sup>", re.IGNORECASE)
_ORDINAL_ENDING = frozenset("st nd rd th er e re ème TM SM".split())
_POWER = re.compile(r"[+−-]?[0-9]{1,4}")
_BEFORE_POWER = re.compile(r"(?:(?<![A-Za-z])[A-Za-z]{1,2}|[0-9)])$")
_SUPERSCRIPT = str.maketrans("0123456789+-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^\s<>|]+|[\w.+-]{1,64}@[\w.-]{1,120})>")
_SLACK_LINK = re.compile(r"<(?:https?://|mailto:)[^\s<>|]+\|([^<>|\n]+)>")
# Mentions, channels, roles and custom emoji of Discord and Slack. They contain ids, which are not read aloud.
_MENTION = re.compile(
    r"<(?:[@#][!&]?[0-9]+|[@#][A-Z0-9]{5,20}(?:\|[^<>|\n]*)?|a?:\w{1,64}:[0-9]+|![a-z]{3,10}(?:\^[^<>\n]*)?|id:[a-z]+)>"
)
_SLASH_COMMAND = re.compile(r"</([\w -]{1,100}):[0-9]+>")
_TIMESTAMP = re.compile(r"<t:(-?[0-9]{1,12})(?::[tTdDfFR])?>")
_BLOCK_NAMES = (
    "article aside blockquote body center dd details div dl dt figure footer h1 h2 h3 h4 h5 h6 header hr html li main "
    "nav ol option p paragraph pre section speak summary table tbody tfoot thead title tr ul"
)
_BLOCK_TAGS = frozenset(_BLOCK_NAMES.split(" "))

_FENCE = re.compile(r"\s{0,8}(?:`{3,}|~{3,})\s?\{?\.?([\w+-]{0,30})")
# Languages of code fences that contain data or the source of a picture. The content of such fences is not read aloud.
_SILENT_FENCES = frozenset(
    "mermaid json jsonc json5 jsonl yaml yml toml xml svg csv tsv plantuml puml dot graphviz chart vega vega-lite ini "
    "geojson diff patch base64 hex log tool_code tool_call tool_calls tool_outputs tool_output thinking thought "
    "thoughts reasoning think katex-macros abc nomnoml bibtex dataview dataviewjs query embed iframe properties".split()
)
_FRONT_MATTER = re.compile(r"\s*(---|\+\+\+)[ \t]*\n")
_FRONT_MATTER_LINE = re.compile(r"\s*(?:[\w\"'.-]{1,80}\s?[:=].*|-\s.*|#.*|[}\]],?|[ \t]+\S.*|)")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*)")
_HEADING_END = re.compile(r"(?:(?<!#)#+|\{[#.][^{}]*\})$")
_RULE = re.compile(r"\s{0,8}(?:(?:-\s{0,3}){3,200}|(?:\*\s{0,3}){3,200}|(?:_\s{0,3}){3,200}|={3,200})\s*")
# A quotation. ">= 5" and ">5" at the start of a line are comparisons.
_QUOTE = re.compile(r"\s{0,8}(?:>(?![=0-9.$€£])\s?){1,20}|\s{0,3}-#\s(?=\S)")
_CALLOUT = re.compile(r"\[!([A-Za-z]{2,20})\][-+]?\s*|(?:!!!|\?\?\?\+?|:::)\s?\{?\.?([a-z-]{2,20})\}?\s*(?=[\"\w]|$)")
_FENCED_DIV = re.compile(r"\s{0,8}:{3,}\s*")
_BULLET = re.compile(r"\s{0,40}(?:[-*+–—•‣◦▪●○·∙]|o(?=\s{2}))\s+(?:\[[ xX]\]\s+)?(?=\S)")
_NUMBERED = re.compile(r"\s{0,40}\(?(\d{1,3})[.)]\s+(?:\[[ xX]\]\s+)?(?=[^\s\d])")
_TABLE_RULE = re.compile(r"\s{0,8}\|?(?:\s{0,20}:?-{1,100}:?\s{0,20}\|){0,60}\s{0,20}:?-{1,100}:?\s{0,20}\|?\s*")
_DRAWN_RULE = re.compile(r"\s{0,8}\+(?:[-=]{2,200}\+){1,60}\s*")  # +-----+-----+
_REFERENCE = re.compile(r"\s{0,3}\[[^\[\]\n^]{1,100}\]:\s+\S+(?:\s+\"[^\"\n]*\")?\s*")

# The target of a link: an address with an optional title, or any text in brackets that begins with a scheme.
_TARGET = (
    r"(?:\(\s?<?(?:[^()\s]*(?:\([^()\s]*\)[^()\s]*)*+)>?(?:\s+(?:\"[^\"\n]*\"|'[^'\n]*'))?\s?\)"
    r"|\(\s?<?(?:https?:|data:|\.{0,2}/)[^()\n]*\))"
)
_LABEL = r"(?:[^\[\]\n]|\[[^\[\]\n]*\])*+"
_LINK = re.compile(rf"!?\[(?![0-9]{{1,3}}\]\[)({_LABEL})\]{_TARGET}")
# A link whose address is elsewhere in the text: "[text][1]". After a word, such brackets are an index: "array[i][j]".
_REFERENCE_LINK = re.compile(rf"(?<![A-Za-z0-9_])!?\[(?![0-9]{{1,3}}\]\[)({_LABEL})\]\[[^\[\]\n]{{0,60}}\]")
_EXTERNAL_LINK = re.compile(r"\[(?:https?|mailto):[^\s\[\]]+ ([^\[\]\n]+)\]")  # a link in MediaWiki
# A link whose text is only a number is a citation.
_CITED_LINK = re.compile(
    r"[ ]?\[{1,2}\^?(?:[0-9]{1,3}|\*|†)\]{1,2}\(\s?<?https?:[^()\s]*(?:\([^()\s]*\)[^()\s]*)*+>?\)"
)
_CITATION = re.compile(r" ?(?:\[{1,2}[0-9]{1,3}(?:[,–-] ?[0-9]{1,3}){0,5}\]{1,2}){1,20}(?=[\s.,;:!?)]|$)")
_NEEDS_NUMBER = re.compile(r"\b(?:to|in|by|see|See|of|from|From|In|ref|refs|reference)$")
_NOT_DIGITS = re.compile(r"[^0-9]+")
# Matches the text before a bracket that holds the elements of a list or the index of a variable: "x = [1, 2]",
# "f([1, 2])", "x[1]", "my_list[2]".
_IS_INDEX = re.compile(r"(?:[=(+*/<>]\s?|(?<![A-Za-z0-9'])[a-z]|_[a-z0-9]{1,10})$")
_WIKI_LINK = re.compile(r"!?\[\[([^\[\]\n|]*)(?:\|([^\[\]\n]*))?\]\]")
_BBCODE_IMAGE = re.compile(r"\[(img|media|youtube|video)(?:=[^\[\]\n]*)?\][^\[\]\n]*\[/\1\]", re.IGNORECASE)
_BBCODE = re.compile(
    r"\[/?(?:b|i|u|s|url|quote|code|color|size|font|center|left|right|list|li|\*|spoiler|table|tr|td|th|email|su[bp]|align|"
    r"indent|justify|noparse|pre|user|mention|h[1-6])(?:=[^\[\]\n]*)?\]",
    re.IGNORECASE,
)
_JIRA = re.compile(r"\{(?:color|quote|panel|noformat|code|info|note|tip|warning)(?::[^{}\n]*)?\}")
_WIKI_HEADING = re.compile(r"\s{0,3}(={1,6})\s+([^=\s][^=]*[^=\s]|[^=\s])\s+\1\s*|\s{0,3}h[1-6]\.\s+(\S.*)")
_APOSTROPHE = re.compile(r"(?<=[A-Za-z])`(?=(?:t|s|d|m|re|ve|ll)\b(?!`))")
_IMAGE_FILE = re.compile(r"[^|]*\.(?:png|jpe?g|gif|svg|webp|pdf|mp[34]|webm)", re.IGNORECASE)
_FOOTNOTE = re.compile(r"\^?\[\^[^\[\]\s]{1,80}\]:?")
_CODE_SPAN = re.compile(r"`{1,2}([^`\n]+)`{1,2}")
_PROMPT = re.compile(r"\s{0,8}\$ (?=[a-z])")
_EMPHASIS = re.compile(
    r"(?<![\w*])\*{1,3}(?=[^\s*])|(?<=[^\s*])\*{1,3}(?![\w*])|(?<![\w_/.])_{1,3}(?=[^\s_])|(?<=[^\s_])_{1,3}(?![\w/])|~~"
)
# _AROUND lists marks around a word or a phrase, such as ==marked==, ++inserted++ and ||spoiler||. An entry has three
# parts: a text that must be in the line, the pattern, and the replacement. The first part saves time.
_SPOILER = re.compile(r"\|\|(?=[^\s|])([^|\n]+)(?<=\S)\|\|")
_AROUND = (
    ("==", re.compile(r"(?<![\w=!<>])==(?=[^\s=])([^=\n]+)(?<=\S)==(?![\w=])"), r"\1"),
    ("++", re.compile(r"(?<![\w+])\+\+(?=[^\s+])([^+\n]+)(?<=\S)\+\+(?![\w+])"), r"\1"),
    ("||", _SPOILER, r"\1"),
    ("%", re.compile(r"%%[^%\n]*%%|\{%[^%\n]*%\}"), " "),
    ("{{", re.compile(r"\{\{[<%][^{}\n]*\}\}"), " "),
    ("]{", re.compile(r"\[([^\[\]\n]*)\]\{[.#:][^{}\n]*\}"), r"\1"),
    (">=", re.compile(r"(?<!\S)>=(?=\s?[0-9$€£.-])"), "≥"),
    ("<=", re.compile(r"(?<!\S)<=(?=\s?[0-9$€£.-])"), "≤"),
    ("^", re.compile(r"(?<!\S)\^([A-Za-z]{1,20})\^(?=[\s.,;:!?]|$)"), r"\1"),
    ("~", re.compile(r"(?<=[A-Za-z])~([0-9]{1,2})~(?!~)"), r"\1"),
    ("^", re.compile(r"(?<=[A-Za-z0-9])\^([0-9A-Za-z+-]{1,4})\^"), r"^\1"),
    (":", re.compile(r"(?<![\w:]):(?:[a-z][a-z0-9_+-]{1,40}|[+-]1):(?![\w:/])"), " "),
)
_ESCAPE = re.compile(r"\\([*_`#~>|!+.\[\]()<={}-])")

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
_BACKTICK = re.compile("`")
_WIKI_QUOTES = re.compile("'{2,5}(?=\\w[^'\n]*'{2})|(?<=[\\w.,!?])'{2,5}(?!')")
_SPACE_BEFORE_COMMA = re.compile(" ,")


def strip_tags(text: SpannedText) -> SpannedText:
    """Remove HTML and SSML tags, comments, scripts and styles, and the mentions of Discord and Slack.

    A block tag (such as <p>) becomes a paragraph break. The end of a table cell becomes a comma.
    """
    if "《" in text.text:
        text = text.sub(_BOOK_RUBY, r"\1")
    if not text.text.isascii():
        text = text.sub(_READING, r"\1")
    if "<" not in text.text:
        return text
    if "<rt>" in text.text:
        text = text.sub(_RUBY, lambda match: match[2] if _IS_KANA.fullmatch(match[2]) else match[1])
    text = text.sub(_RAISED, _raised)
    for opening, closing in (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>")):
        text = text.edited(_between(text.text, opening, closing))
    text = text.sub(_MENTION, "").sub(_TIMESTAMP, _date).sub(_SLACK_LINK, r"\1").sub(_AUTOLINK, r"\1")
    text = text.sub(_SLASH_COMMAND, r"\1").sub(_KNOWN_TAG, _without_tag)
    return text.sub(_OTHER_TAG, _between_words)


def _raised(match: re.Match[str]) -> str:
    return raised(match[1].rstrip(), match.string[max(0, match.start() - 4) : match.start()])


def raised(content: str, before: str) -> str:
    """Return the text that replaces raised characters.

    The ending of an ordinal does not change ("th"), a letter gets "^" before it ("^n"), a power gets raised digits
    ("²"), and the number of a footnote becomes "".

    content: the raised characters. before: the characters in front of them.
    """
    if content in _ORDINAL_ENDING:
        return content
    if _POWER.fullmatch(content) is None:
        return f"^{content}" if len(content) == 1 and content.isalpha() else ""
    return content.translate(_SUPERSCRIPT) if _BEFORE_POWER.search(before) else ""


def _between_words(match: re.Match[str]) -> str:
    """Return a space if a tag stands directly between two words, so that the words stay apart; otherwise ""."""
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    return " " if before.isalnum() and after.isalnum() else ""


def _between(text: str, opening: str, closing: str) -> Iterator[tuple[int, int, str]]:
    """Yield the edits that remove each part of the text that begins with `opening` and ends with `closing`.

    If `closing` does not follow an `opening`, the text after this `opening` is kept.
    """
    position = 0
    while (start := text.find(opening, position)) >= 0 and (end := text.find(closing, start)) >= 0:
        position = end + len(closing)
        yield start, position, " "


def _date(match: re.Match[str]) -> str:
    try:
        return datetime.fromtimestamp(int(match[1]), UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return ""


def _without_tag(match: re.Match[str]) -> str:
    name = match[1].lower()
    if name in _BLOCK_TAGS:
        return "\n\n"
    if name == "br":
        return "\n"
    if name in {"td", "th"}:
        return ", " if match[0].startswith("</") else ""
    return " " if name == "break" else ""


def plain_paragraphs(text: SpannedText, *, english: bool = True) -> list[SpannedText]:
    """Convert Markdown to plain paragraphs. A paragraph has no line breaks and is not empty.

    List items, headings and table rows get a full stop if they do not end with punctuation. english: True = write the
    signs in code as English words; False = remove them.
    """
    paragraphs: list[SpannedText] = []
    current: list[SpannedText] = []  # the lines of the current paragraph
    in_code = silent = False

    def close() -> None:
        if current:
            paragraphs.append(_join(current))
            current.clear()

    lines = _without_front_matter(text).split("\n")
    for index, line in enumerate(lines):
        if (fence := _FENCE.match(line.text)) and ("```" not in line.text.strip("` \n") or in_code):
            close()
            in_code = not in_code
            silent = in_code and fence[1].lower() in _SILENT_FENCES
            continue
        if in_code:
            words = line[:0] if silent else verbalize_code(line, english=english)
            if words:
                current.append(_with_full_stop(words))
            continue
        if not line.text.strip() or _RULE.fullmatch(line.text) or _REFERENCE.fullmatch(line.text):
            close()
            continue
        if "||" in line.text and not (line.text.lstrip().startswith("|") and line.text.lstrip()[1:2] != "|"):
            line = line.sub(_SPOILER, r"\1")  # noqa: PLW2901 - the spoiler marks of Discord are not the cells of a table
        if _in_table(lines, index, line):
            if not _TABLE_RULE.fullmatch(line.text):
                cells = [cell.strip() for cell in _inline(line, english=english).strip().strip("|").split("|")]
                current.append(_with_full_stop(join([cell for cell in cells if cell], ", ")))
            continue
        if quote := _QUOTE.match(line.text):
            line = line[quote.end() :]  # noqa: PLW2901 - the text after ">" may be a heading or a list item
        if callout := _CALLOUT.match(line.text):
            close()
            name = line[callout.start(callout.lastindex or 0) : callout.end(callout.lastindex or 0)]
            title = _inline(line[callout.end() :].strip().strip('"'), english=english)
            current += [_sentence_case(_with_full_stop(part)) for part in (name, title) if part]
        elif _FENCED_DIV.fullmatch(line.text):
            close()
        elif _DRAWN_RULE.fullmatch(line.text):
            continue
        elif wiki := _WIKI_HEADING.fullmatch(line.text):
            close()
            title = line[wiki.start(wiki.lastindex or 0) : wiki.end(wiki.lastindex or 0)]
            paragraphs.append(_with_full_stop(_inline(title, english=english)))
        elif heading := _HEADING.fullmatch(line.text):
            close()
            title = line[heading.start(1) : heading.end(1)].rstrip().sub(_HEADING_END, "").rstrip("# ")
            paragraphs.append(_with_full_stop(_inline(title, english=english)))
        elif bullet := _BULLET.match(line.text):
            _end_last_line(current)
            current.append(_with_full_stop(_inline(line[bullet.end() :], english=english)))
        elif numbered := _NUMBERED.match(line.text):
            _end_last_line(current)
            number = line[numbered.start(1) : numbered.end(1)]
            dot = SpannedText.of(". ", line.span_of(numbered.end(1), numbered.end(1) + 1))
            current.append(join((number, dot, _with_full_stop(_inline(line[numbered.end() :], english=english)))))
        elif line.text.strip():
            current.append(_inline(line.strip(), english=english))
    close()
    return [paragraph for paragraph in paragraphs if paragraph]


def _without_front_matter(text: SpannedText) -> SpannedText:
    """Remove the metadata at the start of a document: lines such as "title: Page" between two lines "---"."""
    opening = _FRONT_MATTER.match(text.text)
    if opening is None:
        return text
    place = opening.end()
    first = True
    for line in text.text[place:].split("\n"):
        place += len(line) + 1
        if line.rstrip() == opening[1]:
            return text if first else text[place:]
        if _FRONT_MATTER_LINE.fullmatch(line) is None or (first and ":" not in line and "=" not in line):
            return text
        first = False
    return text


def _in_table(lines: list[SpannedText], index: int, line: SpannedText) -> bool:
    """Return whether a line is a row of a table. A row that does not begin with "|" must be next to a line of
    dashes.
    """
    row = line.text.strip()
    if row.startswith("|"):  # "|x| < 5" is not a row of a table
        near = (*lines[max(0, index - 1) : index], *lines[index + 1 : index + 2])
        return row.endswith("|") or row.count("|") > 2 or any(each.text.lstrip().startswith("|") for each in near)
    return "|" in line.text and any(
        "|" in near.text and _TABLE_RULE.fullmatch(near.text) for near in lines[max(0, index - 1) : index + 2]
    )


def _sentence_case(text: SpannedText) -> SpannedText:
    """Return a word in capitals with only its first letter as a capital: "NOTE." -> "Note."."""
    word = text.text.rstrip(".")
    return text.edited([(0, len(word), word.capitalize())]) if word.isalpha() else text


def _end_last_line(lines: list[SpannedText]) -> None:
    if lines:
        lines[-1] = _with_full_stop(lines[-1])


def _with_full_stop(line: SpannedText) -> SpannedText:
    """Return `line` with a full stop added. If `line` is empty or ends with punctuation, nothing is added."""
    line = line.strip()
    bare = line.text.rstrip("\"')]}*_ ")
    return line if not bare or bare[-1] in _SENTENCE_ENDS else line.edited([(len(line), len(line), ".")])


def _join(lines: list[SpannedText]) -> SpannedText:
    """Join the lines of a paragraph with spaces. Two short lines (of a poem, of an address) are joined with a comma."""
    joined = [lines[0].strip()]
    for before, line in pairwise(lines):
        after = line.strip()
        short = len(before) < 50 and len(after) < 50
        apart = (
            short and before.text.rstrip()[-1:].isalnum() and (after.text[:1].isupper() or after.text[:1].isdecimal())
        )
        end, start = joined[-1].span[1] if joined[-1] else after.span[0], after.span[0]
        comma = SpannedText.of("," if apart else "", (end, end))
        joined += [comma, SpannedText.of(" ", (min(end, start), max(end, start))), after]
    return join(joined)


def _inline(line: SpannedText, *, english: bool) -> SpannedText:
    """Return one line without the markup of links, code, emphasis and shell prompts."""
    if prompt := _PROMPT.match(line.text):
        line = line[prompt.end() :]
    if "[" in line.text:
        line = line.sub(_CITED_LINK, "")
        line = line.sub(_LINK, r"\1").sub(_LINK, r"\1")  # twice, because a link can contain an image
        line = line.sub(_REFERENCE_LINK, r"\1")
        if "://" in line.text or "mailto:" in line.text:
            line = line.sub(_EXTERNAL_LINK, r"\1")
        if "[/" in line.text:
            line = line.sub(_BBCODE_IMAGE, "").sub(_BBCODE, "")
        line = line.sub(_FOOTNOTE, "")
        if "[[" in line.text:
            line = line.sub(_WIKI_LINK, _wiki_title)
    if "`" in line.text:
        line = line.sub(_APOSTROPHE, "'")
        line = line.edited(_code_spans(line, english=english)).sub(_BACKTICK, "")
    if "[" in line.text:
        line = line.sub(_CITATION, _cited)
    for mark, pattern, replacement in _AROUND:
        if mark in line.text:
            line = line.sub(pattern, replacement)
    if "*" in line.text or "_" in line.text or "~~" in line.text:
        line = line.sub(_EMPHASIS, "")
    if "''" in line.text:
        line = line.sub(_WIKI_QUOTES, "")
    if "{" in line.text:
        line = line.sub(_JIRA, "")
    return line.sub(_ESCAPE, r"\1") if "\\" in line.text else line


def _cited(match: re.Match[str]) -> str:
    """Return "" for a citation, or its number if the sentence needs it: "according to [1]". An index (x[1]) does not
    change.
    """
    before = match.string[max(0, match.start() - 12) : match.start()]
    if _IS_INDEX.search(before) or _NOT_DIGITS.sub("", match[0]) == "0":
        return match[0]
    return f" {_NOT_DIGITS.sub(' ', match[0]).strip()}" if _NEEDS_NUMBER.search(before) else ""


def _wiki_title(match: re.Match[str]) -> str:
    """Return the part of a wiki link that a reader sees: the name after the last "|", or the name of the page."""
    page, title = match[1], (match[2] or "").rpartition("|")[2]
    if match[0][0] == "!" and _IMAGE_FILE.fullmatch(page):
        return ""
    if page.startswith("Category:"):
        return ""
    if title:
        return title
    return page.lstrip(":").replace("#", ", ").strip(", ") if not page.strip().isdecimal() else ""


def _code_spans(line: SpannedText, *, english: bool) -> Iterator[tuple[int, int, str]]:
    for span in _CODE_SPAN.finditer(line.text):
        yield span.start(), span.end(), verbalize_code(line[span.start(1) : span.end(1)], english=english).text


def verbalize_code(code: SpannedText, *, english: bool = True) -> SpannedText:
    """Return a line of code as words: "user_id == 3" -> "user id equals 3".

    A line that is only a file path, a web address or a number does not change, because `rules` converts it later.
    english: False = remove the signs.
    """
    code = code.strip()
    if code.text.startswith("$ "):
        code = code[2:]
    if _VERBATIM_CODE.fullmatch(code.text):
        return code
    for pattern, words in _CODE_RULES:
        code = code.sub(pattern, words if english else " ")
    return code.single_spaced().strip(" ,:").sub(_SPACE_BEFORE_COMMA, ",")
