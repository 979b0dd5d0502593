"""Dia's input text: the transcripts of the voices' recordings, and then the lines, each after its speaker's tag.

The rules come from Dia's README and its maintainers. A script begins with the tag [S1]. The tags [S1] and [S2]
alternate, so consecutive lines of one speaker are joined. The transcripts of the voices come first, in the order of
their recordings. After the last line of a dialogue, the tag of the other speaker follows. Without this tag, Dia cuts
off the end of the last line. Only non-verbal sounds may be in parentheses.

This module does not depend on voices or the model.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import TooManySpeakers
from app.text.nonverbal import NON_VERBAL_SOUNDS
from app.text.script import SPEAKER_TAG, split_speakers
from app.text.spans import SpannedText
from app.types import TextPacking

Speaker = TypeVar("Speaker", bound=Hashable)

MAX_SPEAKERS = 2
BYTES_PER_S = 15.0  # bytes of English text that a calm speaker says in one second
# largest number of characters in a line (about 13 s of speech); Dia speaks a line of more than 20 s too fast
MAX_TEXT_CHARS = 200
MAX_PASSAGE_CHARS = 240  # largest sum of the characters of a dialogue's lines in one utterance
# according to Dia's authors, speech is too fast if recordings and speech together take more than this number of seconds
NATURAL_S = 20.0
TEXT = TextPacking(
    max_chars=MAX_TEXT_CHARS,
    max_passage_chars=MAX_PASSAGE_CHARS,
    independent=True,
    max_speakers=MAX_SPEAKERS,
    natural_s=NATURAL_S,
    chars_per_s=BYTES_PER_S,
    utf8_bytes=True,
    sounds=NON_VERBAL_SOUNDS,
)

_TAGS = re.compile(r"\[S[12]\]")
_BRACKETED = re.compile(r" ?([(\[{])([^()\[\]{}]*)([)\]}]) ?")
_BRACKETS = re.compile(r"[()\[\]{}]")
_NO_SPACE_BEFORE = frozenset({"", ",", ".", "!", "?", ";", ":"})
_PAD = "<pad>"
_ASCII = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»″", '"'),
        **dict.fromkeys("‘’‚‛′ʼ", "'"),
        **dict.fromkeys("‐‑‒–", "-"),
        **dict.fromkeys("—―", " - "),
        "…": "...",
        "\u00a0": " ",
    }
)


@dataclass(frozen=True, slots=True)
class Script(Generic[Speaker]):
    """The input text of one generation."""

    text: str  # the whole script: the transcripts, and then `spoken_text`
    speakers: tuple[Speaker, ...]  # the speakers of [S1] and [S2]
    spoken_text: str  # the part of the script that Dia speaks


def spoken_bytes(text: str) -> int:
    """Return the number of bytes of a script without its speaker tags, because tags are not spoken."""
    return len(without_tags(text).encode("utf-8", "replace"))


def without_tags(text: str) -> str:
    """Return a script without its speaker tags."""
    return _TAGS.sub("", text)


def format_script(
    lines: Sequence[tuple[Speaker, str]], transcripts: Mapping[Speaker, str] | None = None
) -> Script[Speaker]:
    """Format (speaker, text) lines as a script. The transcripts of the speakers come first.

    The first speaker gets the tag [S1]. Speakers with a transcript come before speakers without a transcript.
    Otherwise, speakers come in the order in which they first appear in `lines`. If there is only one line, its speaker
    tags are used. If there are several lines, their speaker tags are removed. Raises TooManySpeakers.
    """
    if len(lines) == 1 and SPEAKER_TAG.search(lines[0][1]):
        return _format_tagged(lines[0], transcripts or {})
    cleaned = [(speaker, clean_line(SPEAKER_TAG.sub(" ", text))) for speaker, text in lines]
    return _format(cleaned, transcripts or {})


def _format_tagged(line: tuple[Speaker, str], transcripts: Mapping[Speaker, str]) -> Script[Speaker]:
    """Format a line that contains speaker tags. The first tag in the line stands for the speaker of the line.

    Only the speaker of the line can have a transcript.
    """
    line_speaker, text = line
    tagged = split_speakers(SpannedText(text))
    numbers = list(dict.fromkeys(number for number, _ in tagged))
    if len(numbers) > MAX_SPEAKERS:
        raise TooManySpeakers(f"Dia has {MAX_SPEAKERS} speakers, [S1] and [S2]; this text has {len(numbers)}.")
    transcript = {0: transcripts[line_speaker]} if line_speaker in transcripts else {}
    script = _format([(numbers.index(number), clean_line(words.text)) for number, words in tagged], transcript)
    return Script(script.text, (line_speaker,) if 0 in script.speakers else (), script.spoken_text)


def _format(lines: Sequence[tuple[Speaker, str]], transcripts: Mapping[Speaker, str]) -> Script[Speaker]:
    lines = [(speaker, text) for speaker, text in lines if text]
    appearing = list(dict.fromkeys(speaker for speaker, _ in lines))
    if len(appearing) > MAX_SPEAKERS:
        raise TooManySpeakers(f"Dia has {MAX_SPEAKERS} speakers in one utterance; this utterance has {len(appearing)}.")
    cleaned = [(s, clean_line(SPEAKER_TAG.sub(" ", transcripts[s]))) for s in appearing if s in transcripts]
    prompts = [(speaker, text) for speaker, text in cleaned if text]
    speakers = tuple(dict.fromkeys([speaker for speaker, _ in prompts] + appearing))
    tags = {speaker: f"[S{i}]" for i, speaker in enumerate(speakers, 1)}

    def join(parts: Sequence[tuple[Speaker, str]], before: Speaker | None) -> str:
        words: list[str] = []
        for speaker, text in parts:
            words += [text] if speaker == before else [tags[speaker], text]
            before = speaker
        return " ".join(words)

    prompt_text = join(prompts, None)
    spoken_text = join(lines, prompts[-1][0] if prompts else None)
    if len(appearing) == MAX_SPEAKERS:
        last = lines[-1][0]
        spoken_text += " " + tags[next(speaker for speaker in speakers if speaker != last)]
    return Script(f"{prompt_text} {spoken_text}".strip(), speakers, spoken_text)


def clean_line(text: str) -> str:
    """Return the line with ASCII punctuation, and with parentheses only around NON_VERBAL_SOUNDS. Never raises."""
    while _PAD in text:
        text = text.replace(_PAD, " ")
    text = " ".join(text.translate(_ASCII).split())
    parts: list[str] = []
    position = 0
    for match in _BRACKETED.finditer(text):
        before = _BRACKETS.sub(" ", text[position : match.start()])
        position = match.end()
        inside = " ".join(match[2].split())
        sound = inside.lower().strip(" .,!?;:*")
        after = text[position : position + 1]
        parts.append(before)
        if sound in NON_VERBAL_SOUNDS and match[1] == "(":
            parts.append(f" ({sound})" + ("" if after in _NO_SPACE_BEFORE else " "))
        elif inside:
            opening = ", " if before.strip() and before.rstrip()[-1] not in ",.!?;:-" else " "
            parts.append(opening + inside + ("" if after in _NO_SPACE_BEFORE else ", "))
        elif after not in _NO_SPACE_BEFORE:
            parts.append(" ")
    parts.append(_BRACKETS.sub(" ", text[position:]))
    return " ".join("".join(parts).split())
