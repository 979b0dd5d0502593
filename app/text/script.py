"""Read speaker tags and pause tags in a text.

`[S1]` to `[S9]` name the speaker of the text after the tag. Text before the first tag belongs to speaker `[S1]`.

`[pause]` adds half a second of silence. `[pause:0.5s]`, `[pause: 500 ms]`, `[pause 1s]` and SSML's `<break time="1s"/>`
add silence of the stated length. A malformed pause tag (`[pause:abc]`) is removed, so that no voice reads it aloud.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.text.spans import SpannedText, join

DEFAULT_PAUSE_S = 0.5
MAX_PAUSE_S = 10.0  # the longest pause of one tag
MAX_SILENCE_S = 60.0  # the longest total of consecutive pauses

_TAG = re.compile(r"\[\s{0,5}pause\b([^\[\]\n]{0,60})\]|</?break\b([^<>\n]{0,80})>", re.IGNORECASE)
SPEAKER_TAG = re.compile(r"\[\s?S([1-9])\s?\]", re.IGNORECASE)
_LENGTH = re.compile(
    r"\s*(?:[:=]\s*)?([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})\s*(ms|msecs?|milliseconds?|s|secs?|seconds?)?\s*",
    re.IGNORECASE,
)
_TIME = re.compile(r"\btime\s{0,3}=\s{0,3}[\"']?([^\"'/]{1,30})", re.IGNORECASE)
_STRENGTH = re.compile(r"\bstrength\s{0,3}=\s{0,3}[\"']?([a-z-]{1,10})", re.IGNORECASE)
_STRENGTHS_S = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 1.0, "x-strong": 1.5}


@dataclass(frozen=True, slots=True)
class Words:
    """Text to speak. The text is not blank, does not begin or end with a space, and contains no pause tag."""

    text: SpannedText


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence between words: more than 0 s and at most MAX_SILENCE_S."""

    seconds: float


def split_speakers(text: SpannedText) -> list[tuple[int, SpannedText]]:
    """Split a text at its speaker tags. Return its lines in order: (speaker number, text without tags). Never raises.

    `[S1]` has the speaker number 0. Consecutive lines of one speaker become one line. A text without tags gives one
    line of speaker 0. A blank text gives no lines.
    """
    lines: list[tuple[int, list[SpannedText]]] = []
    speaker, position = 0, 0
    for number, start, end in [*((int(tag[1]), *tag.span()) for tag in SPEAKER_TAG.finditer(text.text)), (1, None, 0)]:
        words = text[position:start].strip()
        if words and lines and lines[-1][0] == speaker:
            lines[-1][1].append(words)
        elif words:
            lines.append((speaker, [words]))
        speaker, position = number - 1, end
    return [(speaker, join(parts, " ")) for speaker, parts in lines]


def parse(text: SpannedText) -> list[Words | Pause]:
    """Split a text at its pause tags. Return its words and pauses in order. Never raises.

    Consecutive pauses become one pause.
    """
    parts: list[Words | Pause] = []
    words: list[SpannedText] = []
    silence_s, position = 0.0, 0

    def flush_words() -> None:
        nonlocal silence_s
        spoken = [stripped for piece in words if (stripped := piece.strip())]
        words.clear()
        if not spoken:
            return
        if silence_s:
            parts.append(Pause(min(silence_s, MAX_SILENCE_S)))
            silence_s = 0.0
        parts.append(Words(join(spoken, " ")))

    for tag in _TAG.finditer(text.text):
        words.append(text[position : tag.start()])
        position = tag.end()
        if seconds := _seconds(tag):
            flush_words()
            silence_s += seconds
    words.append(text[position:])
    flush_words()
    if silence_s:
        parts.append(Pause(min(silence_s, MAX_SILENCE_S)))
    return parts


def _seconds(tag: re.Match[str]) -> float:
    """Return the length in seconds that a pause tag states; 0 for a malformed tag and for a closing tag."""
    if tag[1] is not None:
        return _length_s(tag[1]) if tag[1].strip(" :=") else DEFAULT_PAUSE_S
    if tag[0].startswith("</"):
        return 0.0
    if time := _TIME.search(tag[2]):
        return _length_s(time[1])
    if strength := _STRENGTH.search(tag[2]):
        return _STRENGTHS_S.get(strength[1].lower(), 0.0)
    return DEFAULT_PAUSE_S if tag[2].strip(" /") == "" else 0.0


def _length_s(text: str) -> float:
    length = _LENGTH.fullmatch(text)
    if length is None:
        return 0.0
    value = float(length[1])
    return min(value / 1000 if (length[2] or "").lower().startswith("m") else value, MAX_PAUSE_S)
