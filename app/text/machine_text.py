"""Remove the parts of a text that programs write for programs.

Such parts are the reasoning of language models, special tokens, tool calls, citations and long codes.

A voice agent often sends the whole output of a language model to be spoken, with such parts in it. All functions take
linear time: one scan pairs the opening and closing marks, at any distance from each other.
"""

from __future__ import annotations

import json
import re
from collections import deque
from typing import TYPE_CHECKING

from app.text.spans import SpannedText

if TYPE_CHECKING:
    from collections.abc import Iterator

Edit = tuple[int, int, str]

# ---- blocks: an opening mark, a text, a closing mark

# Names of tags around the reasoning of a language model. The pattern has no groups. Compile it with re.IGNORECASE.
REASONING_NAME = (
    r"(?:[a-z_]{1,20}:)?(?:think(?:ing)?(?:_process)?|thoughts?|thought_?process|reason(?:ing)?(?:_(?:content|process))?|"
    r"reflect(?:ion)?|scratch_?pad|(?:inner|internal)_?(?:monologue|thoughts?|reasoning)|monologue|chain_?of_?thought|"
    r"cot|ant_?thinking|analysis|analyze|planning|deliberation|brainstorm(?:ing)?|rationale|introspection|"
    r"(?:self|internal|inner)_?(?:reflection|dialogue|critique|thinking)|thinking_?(?:mode|block)|emotion|mood)"
)
_TOOL = (
    r"(?:[a-z_]{1,20}:)?(?:tool_?(?:calls?|use|code|response|results?|outputs?)|function_?(?:calls?|results?|response|"
    r"outputs?|names?)|tool_?(?:names?|inputs?|request|args)|available_tools|tools?|function|invoke|use_mcp_tool|grok:render|"
    r"ref|search(?:_(?:results?|quer(?:y|ies)))?|web_?search(?:_results?)?|observations?|parameters?|arguments|"
    r"system(?:[-_](?:reminder|prompt|message|instructions?|warning))?|antartifact|retrieved_?(?:documents?|context))"
)
_REASONING_TAGS = re.compile(rf"<(?:(?P<close>/)\s?)?{REASONING_NAME}(?:\s[^<>]*)?>", re.IGNORECASE)
_REASONING_BRACKETS = re.compile(
    rf"[\[◁](?P<close>/)?{REASONING_NAME}[\]▷]"
    rf"|<\|(?:(?P<end>/|end_of_|end_)|begin_of_|begin_|start_of_|start_)?{REASONING_NAME}(?P<end2>_end)?(?:_start)?\|>"
    r"|<unused94>(?:thought)?|(?P<end3><unused95>)|<\|channel>thought|(?P<end4><channel\|>)",
    re.IGNORECASE,
)
_DETAILS = re.compile(r"<details(?=[\s>])(?P<kind>[^<>]*)>|(?P<close></details\s?>)", re.IGNORECASE)
_TOOL_TAGS = re.compile(rf"<(?:(?P<close>/)\s?)?(?:{_TOOL}(?:\s[^<>]*)?(?<!/)|function=[^<>]*)>", re.IGNORECASE)
_TOOL_TOKENS = re.compile(
    r"<[|｜](?:(?P<end>end_(?:tool|action)[^<>|｜\n]*|/tool[^<>|｜\n]*|(?:tool|action|python)[^<>|｜\n]*end)"
    r"|start_(?:tool|action)[^<>|｜\n]*|(?:tool|action|python)[^<>|｜\n]*(?:begin|start)|tool_calls?)[|｜]>"
    r"|\[TOOL_(?:REQUEST|CALL|RESULT)\]|(?P<end2>\[END_TOOL_(?:REQUEST|CALL|RESULT)\])",
    re.IGNORECASE,
)
_TOOL_REST = re.compile(r"\[TOOL_CALLS\]|<\|python_tag\|>|(?P<end></s>|<\|e[a-z]{1,4}_id\|>)")
_BARE_CALL = re.compile(
    r"\s*+(?:functools)?\s*+\[?\s*+\{\s*\"(?:type|name|function|tool|tool_calls?|action|function_call|arguments|parameters)\"\s*:"
)
_REASON_AND_ACT = re.compile(r"\s*(?:\*\*)?(?:Thought|Question|Reasoning)(?:\*\*)?:")
_FINAL_ANSWER = re.compile(r"^[ \t]*(?:\*\*)?Final Answer:?(?:\*\*)?:?[ \t]*", re.MULTILINE)
_SUMMARY_OF_REASONING = re.compile(
    r"\s*<summary[^<>]*>\s*(?:[^\w<>]{0,4}\s)?(?:think|thought|reasoning|chain of thought)[^<>]*</summary>",
    re.IGNORECASE,
)
_HEAD_OF_CALL = re.compile(r"\s{0,20}(?:[\w.-]{1,80}\s{0,5})?(?:\[ARGS\]\s{0,5})?(?=[\[{])")
_NEXT_OBJECT = re.compile(r"\s{0,20}[;,]?\s{0,20}(?=\{)")
_JSON = json.JSONDecoder()
_DATA_FOLLOWS = re.compile(r"\s*[{\[<]")

_CHANNEL_MARK = re.compile(r"<\|(start|channel|constrain|message|end|return|call)\|>")
_MERGED_CHANNELS = re.compile(r"\s*analysis(?=[A-Z\"'])")
_FINAL_CHANNEL = "assistantfinal"

# ---- special tokens

_ROLE = r"(?:assistant|user|system|model|tool|developer|ipython|function|observation|environment)"
_SPECIAL = re.compile(
    r"<\|?(?:im_start|start_header_id|header_start|start|turn|start_of_role|start_of_turn|role_start)\|?>"
    rf"(?:[ \t]?{_ROLE}\b[ \t]?)?"
    r"|<\|[^\s<>|]{1,80}\|>|<｜[^<>｜\n]{1,80}｜>|<\|[a-z_]{2,30}>|<[a-z_]{2,30}\|>|</?s>|<</?SYS>>"
    r"|<(?:pad|unk|bos|eos|cls|sep|mask|eod|eot|eop|sop|gmask|sos|unused[0-9]{1,5}|extra_id_[0-9]{1,4}|0x[0-9A-F]{2}|"
    r"(?:start|end)_of_[a-z]{1,20}|fim_[a-z]{1,12}|special_[0-9]{1,5}|reserved_[0-9]{1,5})>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CONTENT|CLS|SEP|PAD|UNK|MASK|BOS|EOS|EOT|gMASK|DONE|TOC|"
    r"end of text|END OF TEXT)\]"
    r"|▁+"
)

# ---- subtitles and lyrics

_CUE_TIME = r"(?:[0-9]{1,3}:)?[0-9]{1,2}:[0-9]{2}[.,][0-9]{1,3}"
_CUE = re.compile(
    rf"^(?:WEBVTT\b[^\n]*\n\s*|(?:[0-9]{{1,6}}[ \t\r]*\n)?[ \t]*{_CUE_TIME}[ \t]*-->[ \t]*{_CUE_TIME}[^\n]*(?:\n|$))",
    re.MULTILINE,
)
_VOICE_OF_CUE = re.compile(rf"</?[vc](?:[.\s][^<>\n]*)?>|<{_CUE_TIME}>")
_LYRICS_TIME = re.compile(
    r"^(?:[ \t]*\[[0-9]{1,3}:[0-9]{2}(?::[0-9]{2})?(?:[.,:][0-9]{1,3})?\])+[ \t]*|<[0-9]{2}:[0-9]{2}\.[0-9]{2,3}> ?",
    re.MULTILINE,
)

# A line that is one event of a streamed answer: "data: {...}".
_EVENT_LINE = re.compile(r"^data:[ \t]*(?:\{[^\n]*\}|\[DONE\])[ \t\r]*(?:\n+|$)", re.MULTILINE)

# ---- citations

_CITATION = re.compile(
    r"[ ]?【(?:[^【】\n]*†[^【】]*|[0-9]{1,3}(?:[:,-][0-9]{1,3}){0,3}|turn[0-9][^【】\n]*)】"
    r"|[ ]?:?contentReference\[oaicite:[^\[\]{}]{0,40}\](?:\{index=[0-9]{1,9}\})?"
    r"|[ ]?\[(?:(?:oai)?cite|citation|ref|[Ss]ource|doc|†)[ _:#-]{0,2}[0-9][0-9, :_-]{0,40}\]"
    r"|\[cite_start\]|\[citation needed\]"
    r"|[ ]?\[\^[0-9]{1,4}\^\]"
    r"|[ ]?\b(?:file|nav)?cite(?:turn[0-9]{1,4}[a-z_]{1,20}[0-9]{1,4}){1,40}"
    r"|[ ]?\bturn[0-9]{1,4}(?:search|news|view|fetch|file|image|forecast|finance|sports|product|maps)[0-9]{1,4}\b"
    r"|</?co(?:: ?[0-9,:\[\] ]{1,40})?>|\{\{(?:cite|citation|refn|sfn)[^{}]*\}\}|<ref(?:\s[^<>]*)?/>"
    r"|[ ]?<(?:citations?|cite|source|ref)>[0-9,\[\] -]{1,20}</(?:citations?|cite|source|ref)>"
    r"|[ ]{1,3}\^[0-9]{1,3}\^(?!\w)"
    r"|(?<=[a-z][.,;:!?)\"'])[¹²³⁰⁴-⁹]{1,3}(?:[,⁻–-][¹²³⁰⁴-⁹]{1,3}){0,4}(?![\w⁺⁻])"
    r"|(?<=[a-z]{5})(?<!meter)(?<!metre)(?<!meters)(?<!metres)(?<!inches)(?<!miles)(?<!yards)"
    r"[¹²³⁰⁴-⁹]{1,3}(?:[,⁻–-][¹²³⁰⁴-⁹]{1,3}){0,4}(?![\w⁺⁻])"
)
_MARKS_OF_CITATIONS = ("【", "[", "cite", "turn", "{{", "<", "^", *"¹²³⁴⁵⁶⁷⁸⁹")
_WORD = re.compile(r"\w")
_MARKED_CITATION = re.compile("[ ]?\ue200(?P<parts>[^\ue200\ue201]*)\ue201|[ ]?\ue200[^\\s\ue200\ue201]*")
# Kind of a marked citation -> where its title is: 1 = the second part is the title, 2 = the second part is a JSON list,
# and the second value of the list is the title. Citations of all other kinds have no title that readers see.
_WITH_TITLE = {"url": 1, "link_title": 1, "entity": 2}


def remove_machine_text(text: SpannedText) -> SpannedText:
    """Remove reasoning, tool calls, special tokens and citations. Never raises."""
    if "data:" in text.text:
        text = text.sub(_EVENT_LINE, "")
    if "analysis" in text.text[:200]:
        text = _without_merged_channels(text)
    if "<" in text.text or "[" in text.text or "◁" in text.text:
        if "<|" in text.text:
            text = text.edited(_channels(text.text))
        text = text.edited(_blocks(text.text, _REASONING_TAGS, lone_closing=True))
        text = text.edited(_blocks(text.text, _REASONING_BRACKETS, lone_closing=True))
        text = text.edited(_details(text.text))
        if "VTT" in text.text or "-->" in text.text:
            text = text.sub(_VOICE_OF_CUE, "")
        text = text.edited(_blocks(text.text, _TOOL_TAGS, data=True))
        text = text.edited(_blocks(text.text, _TOOL_TOKENS))
        text = text.edited(_calls(text.text))
        text = text.sub(_SPECIAL, _space_between_words)
    elif "▁" in text.text:
        text = text.sub(_SPECIAL, _space_between_words)
    if _BARE_CALL.match(text.text) and text.text.rstrip().endswith(("}", "]")) and _is_tool_call(text.text):
        return text[:0]
    if _REASON_AND_ACT.match(text.text) and (answers := list(_FINAL_ANSWER.finditer(text.text))):
        text = text[answers[-1].end() :]
    if "-->" in text.text or "[0" in text.text or "[1" in text.text:
        text = text.sub(_CUE, "").sub(_LYRICS_TIME, "")
    if any(mark in text.text for mark in _MARKS_OF_CITATIONS):
        text = text.sub(_CITATION, _without_citation)
    return text.sub(_MARKED_CITATION, _citation_title) if "\ue200" in text.text else text


def _space_between_words(match: re.Match[str]) -> str:
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    return " " if before.isalnum() and after.isalnum() else ""


def _without_citation(match: re.Match[str]) -> str:
    """Return "". But return a citation such as " ^1^" unchanged if no word is before it, because it can be the only
    word of the text.
    """
    is_caret = match[0].lstrip().startswith("^")
    return match[0] if is_caret and not _WORD.search(match.string, 0, match.start()) else ""


def _citation_title(match: re.Match[str]) -> str:
    """Return the title of a citation that stands between private-use characters; "" if readers see no title."""
    parts = (match["parts"] or "").split("\ue202")
    shown = _WITH_TITLE.get(parts[0])
    if shown is None or len(parts) < 2:
        return ""
    title = parts[1]
    if shown == 2:
        try:
            values = json.loads(title)
        except (ValueError, RecursionError):
            values = None
        title = values[1] if isinstance(values, list) and len(values) > 1 and isinstance(values[1], str) else ""
    return f"{' ' if match[0][0] == ' ' else ''}{title}"


def _is_tool_call(text: str) -> bool:
    """Return whether the whole text is one call of a tool in JSON."""
    return any(key in text for key in ('"arguments"', '"parameters"', '"tool_calls"', '"action_input"', '"tool_input"'))


def _without_merged_channels(text: SpannedText) -> SpannedText:
    """Remove the reasoning of gpt-oss if its special tokens are lost: "analysisThe user ...assistantfinalHello"."""
    if _MERGED_CHANNELS.match(text.text) is None:
        return text
    place = text.text.rfind(_FINAL_CHANNEL)
    return text[place + len(_FINAL_CHANNEL) :] if place >= 0 else text


def _channels(text: str) -> Iterator[Edit]:
    """Yield the edits that remove the reasoning and the tool calls of gpt-oss, and the headers of its visible messages.

    In "<|channel|>final<|message|>Hello<|end|>", the header is the part before "Hello".
    """
    header = hidden = -1  # the start of the current header, and of the current hidden message; -1 = none
    for mark in _CHANNEL_MARK.finditer(text):
        name = mark[1]
        if name == "message":
            head = text[header : mark.start()] if header >= 0 else ""
            channel = head.rpartition("<|channel|>")[2].strip()
            is_call = "to=" in head or (
                channel.startswith("commentary") and text[mark.end() :][:40].lstrip()[:1] == "{"
            )
            if header >= 0 and (channel.startswith("analysis") or is_call):
                hidden = header
            elif header >= 0:
                yield header, mark.end(), ""
            header = -1
        elif name in ("start", "channel", "constrain"):
            if hidden >= 0:
                yield hidden, mark.start(), ""
                hidden = -1
            if header < 0:
                header = mark.start()
        elif hidden >= 0:
            yield hidden, mark.end(), ""
            hidden = -1
    if hidden >= 0:
        yield hidden, len(text), ""


def _is_code(text: str, match: re.Match[str]) -> bool:
    """Return whether a mark stands alone between backticks. A mark between backticks is not removed, because the text
    describes the mark.
    """
    return text[match.start() - 1 : match.start()] == "`" and text[match.end() : match.end() + 1] == "`"


def _begins_sentence(text: str, start: int, done: int) -> bool:
    """Return whether a line, a sentence or the text after the last removed block begins at index `start`.

    Spaces before `start` do not count. done: the index at which the last removed block ends.
    """
    while start > done and text[start - 1] in " \t":
        start -= 1
    return start == done or text[start - 1] in "\n.!?…。！？:"


def _calls(text: str) -> Iterator[Edit]:
    """Yield the edits that remove the tool calls that begin with a special token.

    A call reaches to the next closing token. Without such a token, it reaches to the end of its JSON, or to the end of
    the text if the JSON is not complete.
    """
    marks = [mark for mark in _TOOL_REST.finditer(text) if not _is_code(text, mark)]
    closings = deque(mark for mark in marks if mark["end"])
    done = 0
    for mark in marks:
        if mark["end"] or mark.start() < done:
            continue
        while closings and closings[0].start() < mark.end():
            closings.popleft()
        done = closings[0].end() if closings else _end_of_json(text, mark.end())
        yield mark.start(), done, _gap(text, mark.start(), done)


def _end_of_json(text: str, start: int) -> int:
    """Return the end of the JSON of a tool call that begins at `start`.

    If the JSON is not complete, return the end of the text. The JSON can consist of several objects one after another.
    """
    end = len(text)
    head = _HEAD_OF_CALL.match(text, start)
    while head is not None:
        try:
            end = _JSON.raw_decode(text, head.end())[1]
        except (ValueError, RecursionError):
            break
        head = _NEXT_OBJECT.match(text, end)
    return end


def _blocks(text: str, marks: re.Pattern[str], *, lone_closing: bool = False, data: bool = False) -> Iterator[Edit]:
    """Yield the edits that remove blocks of text and the marks around them.

    marks: a pattern for opening and closing marks. A match is a closing mark if one of its groups has text.

    A block without a closing mark reaches to the end of the text if it begins at the start of a sentence. lone_closing:
    True = a closing mark without an opening mark ends a block that began before the text. data: True = a block without
    a closing mark must also begin with data (JSON or XML).
    """
    edits: list[Edit] = []
    depth = begin = done = inside = 0
    for mark in marks.finditer(text):
        if _is_code(text, mark):
            continue
        if not any(mark.groups()):
            if not depth:
                begin, inside = mark.start(), mark.end()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                edits.append((begin, mark.end(), _gap(text, begin, mark.end())))
                done = mark.end()
        elif lone_closing:
            edits.append((done, mark.end(), ""))
            done = mark.end()
        else:
            edits.append((mark.start(), mark.end(), ""))
            done = mark.end()
    if depth:
        goes_on = _begins_sentence(text, begin, done)
        if data and _DATA_FOLLOWS.match(text, inside) is None:
            goes_on = False
        edits.append((begin, len(text) if goes_on else inside, ""))
    yield from edits


def _gap(text: str, start: int, end: int) -> str:
    before, after = text[start - 1 : start], text[end : end + 1]
    return " " if before.isalnum() and after.isalnum() else ""


def _details(text: str) -> Iterator[Edit]:
    """Yield the edits that remove <details type="reasoning"> with its content. Other <details> elements stay."""
    depth, begin = 0, 0
    for mark in _DETAILS.finditer(text):
        if depth:
            depth += -1 if mark["close"] else 1
            if not depth:
                yield begin, mark.end(), ""
        elif not mark["close"] and (
            "reasoning" in mark["kind"].lower() or _SUMMARY_OF_REASONING.match(text, mark.end())
        ):
            depth, begin = 1, mark.start()
    if depth:
        yield begin, len(text), ""


# ---- codes

LONG_ADDRESS = 100  # a web address with more characters than this is read only up to the end of its host
LONG_CODE = 40  # a run without words that has more characters than this is announced as a code and not read
CODE_START = 6  # number of characters of a code that are spoken if no words for the code are known

_CODE_CHAR = r"[A-Za-z0-9+/=_%.~-]"
_LONG_RUN = re.compile(
    r"(?P<url>\b(?:https?|ftp|wss?)://[^\s<>\"'`|\\^{}]+)"
    r"|(?P<data>\bdata:[\w.+-]{1,40}/[\w.+-]{1,80}(?:;[\w=.+-]{1,80}){0,5},[^\s<>\"'()\[\]]*)"
    r"|(?P<pem>-----BEGIN [A-Z0-9 ]{1,40}-----[^-]*(?:-----END [A-Z0-9 ]{1,40}-----)?)"
    rf"|(?<!{_CODE_CHAR})(?P<run>{_CODE_CHAR}{{{LONG_CODE + 1},}}"
    rf"(?:\n{_CODE_CHAR}{{{LONG_CODE + 1},}})*(?:\n[A-Za-z0-9+/]{{2,75}}={{1,2}})?)"
)
_HOST = re.compile(r"[a-z]{2,5}://(?:[^/@\s]*@)?[^/?#\s]*", re.IGNORECASE)
_INSIDE_MARKUP = re.compile(r"(?:\]\(<?|=\s?[\"']?|\]:\s?|url\()$")
_HEX = re.compile(r"[0-9A-Fa-f]+")
_SEPARATOR = re.compile(r"[-/._~+=%\s]+")
_WORD_PART = re.compile(r"(?:[A-Z]?[a-z]{1,24}(?:[A-Z][a-z]{1,24}){0,4}|[A-Z]{1,12})[0-9]{0,4}|[0-9]{1,8}[a-zA-Z]{0,2}")
_REPEATED_LETTER = re.compile(r"([A-Za-z])\1{4,}")
_CONSONANTS = re.compile(r"[^AEIOUYWaeiouyw]{7}")
_LONGEST_WORD = 100
_SHORT_DATA = "data:,"


def announce_codes(text: SpannedText, words: str) -> SpannedText:
    """Replace long codes (base64, hexadecimal, keys, `data:` addresses) by `words`, and shorten long web addresses.

    words: "" = the first characters of a code are spoken instead, so that a text with only a code is not silent.
    """

    def spoken(match: re.Match[str]) -> str:
        if match["url"]:
            return _short_address(match[0])
        if match["data"]:
            before = match.string[max(0, match.start() - 8) : match.start()]
            return _SHORT_DATA if _INSIDE_MARKUP.search(before) else words or "data"
        if match["pem"]:
            return words or "PEM"
        return _code(match[0], words)

    is_short = len(max(text.text.split(), key=len, default="")) <= LONG_CODE
    if is_short and "-----BEGIN" not in text.text and ";base64," not in text.text:
        return text
    return text.sub(_LONG_RUN, spoken)


def _short_address(address: str) -> str:
    """Return a web address and the punctuation after it. If the address is long, return only its scheme and host."""
    depth = 0
    for place, char in enumerate(address):  # the address ends before a closing bracket without an opening bracket
        depth += (char in "([") - (char in ")]")
        if depth < 0:
            address, rest = address[:place], address[place:]
            break
    else:
        bare = address.rstrip(".,;:!?*…")
        address, rest = bare, address[len(bare) :]
    host = _HOST.match(address)
    return (host[0] if len(address) > LONG_ADDRESS and host else address) + rest


def _code(run: str, words: str) -> str:
    """Return the text that is spoken for a long run of characters.

    For a code, this text is `words`; if `words` is empty, it is the first characters of the code. A run that is not a
    code does not change, with one exception: many repetitions of one letter are shortened.
    """
    core = run.rstrip(".-_~/=%")
    rest = "." if run.endswith(".") and not run.endswith("..") else ""
    if core.isdecimal():
        return run
    if len(core) <= LONG_CODE:
        return run
    words = words or core[:CODE_START]
    if _HEX.fullmatch(core) and not core.isalpha():
        return words + rest
    if core.isalpha():
        shorter = _REPEATED_LETTER.sub(r"\1\1\1", core)
        if len(shorter) <= LONG_CODE:
            return shorter + run[len(core) :]
        if _HEX.fullmatch(core):
            return words + rest
        simple = core.islower() or core.isupper() or core.istitle()
        return run if simple and len(core) <= _LONGEST_WORD and not _CONSONANTS.search(core) else words + rest
    parts = [part for part in _SEPARATOR.split(core) if part]
    known = sum(len(part) for part in parts if _WORD_PART.fullmatch(part))
    return run if known >= 0.8 * sum(map(len, parts)) else words + rest
