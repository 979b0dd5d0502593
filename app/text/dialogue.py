"""The script that Dia reads: turns under the tags [S1] and [S2], transcripts of voices before what is to be said.

Rules, as Dia's README and its maintainers give them: a script begins with [S1]; tags alternate, so a speaker's turns in
a row are one; a voice's transcript comes first, as its recording does; a dialogue ends with the tag of the speaker who
is not the last one, or its end is cut. Only the sounds below are said in parentheses, everything else there is read.

Knows text and speakers' numbers; no voices, no model. Sizes are in bytes as Dia reads them: UTF-8, a tag is one.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import TooManySpeakers
from app.text.script import SPEAKER_TAG, turns

Speaker = TypeVar("Speaker", bound=Hashable)

MAX_BYTES = 1024  # of a script; Dia's encoder has no more positions
MAX_SPEAKERS = 2
BYTES_PER_S = 15.0  # of unhurried English speech

# The list in Dia's README; others work now and then, or are read aloud.
SOUNDS = frozenset(
    {
        "laughs", "clears throat", "sighs", "gasps", "coughs", "singing", "sings", "mumbles", "beep", "groans",
        "sniffs", "claps", "screams", "inhales", "exhales", "applause", "burps", "humming", "sneezes", "chuckle",
        "whistles",
    }
)  # fmt: skip

_SOUND = re.compile(
    r"\(\s{0,3}(" + "|".join(name.replace(" ", r"\s{1,3}") for name in sorted(SOUNDS)) + r")\s{0,3}\)", re.IGNORECASE
)
_TAG_BYTES = len("[S1]") - 1
_TAGS = re.compile(r"\[S[12]\]")
_ASIDE = re.compile(r" ?([(\[{])([^()\[\]{}]*)([)\]}]) ?")
_BRACKETS = re.compile(r"[()\[\]{}]")
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
    """What Dia reads. speakers: who [S1] and [S2] are. said: the part of the text that is to be spoken."""

    text: str
    speakers: tuple[Speaker, ...]
    said: str

    @property
    def size_bytes(self) -> int:
        return size_bytes(self.text)

    @property
    def said_s(self) -> float:
        """About how long the part that is to be spoken takes."""
        return spoken_bytes(self.said) / BYTES_PER_S


def size_bytes(text: str) -> int:
    """How many of Dia's MAX_BYTES a script takes."""
    return len(text.encode("utf-8", "replace")) - _TAG_BYTES * len(_TAGS.findall(text))


def spoken_bytes(text: str) -> int:
    """The bytes of a script that take time to say: tags take none."""
    return len(_TAGS.sub("", text).encode("utf-8", "replace"))


def passage_bytes(lines: Sequence[tuple[Speaker, str]], transcripts: Mapping[Speaker, str] | None = None) -> int:
    """How many of Dia's MAX_BYTES these lines and their speakers' transcripts take. Raises TooManySpeakers."""
    return write(lines, transcripts).size_bytes


def write(lines: Sequence[tuple[Speaker, str]], transcripts: Mapping[Speaker, str] | None = None) -> Script[Speaker]:
    """The script of `lines`, each (speaker, text), behind the transcripts of those speakers who have one.

    [S1] is who speaks first, transcripts included; those stand in the order in which their speakers appear. Tags in a
    line's own text name speakers only where it is the only line: they are kept, brought to the rules above. Raises
    TooManySpeakers.
    """
    if len(lines) == 1 and SPEAKER_TAG.search(lines[0][1]):
        return _tagged(lines[0], transcripts or {})
    said = [(speaker, tidy(SPEAKER_TAG.sub(" ", text))) for speaker, text in lines]
    return _script(said, transcripts or {})


def _tagged(line: tuple[Speaker, str], transcripts: Mapping[Speaker, str]) -> Script[Speaker]:
    """One line with tags inside: its own speaker is the first to speak, the other is nobody known."""
    own, text = line
    found = turns(text)
    numbers = list(dict.fromkeys(number for number, _ in found))
    if len(numbers) > MAX_SPEAKERS:
        raise TooManySpeakers(f"Dia speaks with {MAX_SPEAKERS} speakers, [S1] and [S2]; this text has {len(numbers)}.")
    told = {0: transcripts[own]} if own in transcripts else {}
    script = _script([(numbers.index(number), tidy(words)) for number, words in found], told)
    return Script(script.text, (own,) if 0 in script.speakers else (), script.said)


def _script(lines: Sequence[tuple[Speaker, str]], transcripts: Mapping[Speaker, str]) -> Script[Speaker]:
    lines = [(speaker, text) for speaker, text in lines if text]
    appearing = list(dict.fromkeys(speaker for speaker, _ in lines))
    if len(appearing) > MAX_SPEAKERS:
        raise TooManySpeakers(f"Dia speaks with {MAX_SPEAKERS} speakers at a time, not {len(appearing)}.")
    known = [(s, tidy(SPEAKER_TAG.sub(" ", transcripts[s]))) for s in appearing if s in transcripts]
    told = [(speaker, text) for speaker, text in known if text]
    speakers = tuple(dict.fromkeys([speaker for speaker, _ in told] + appearing))
    tags = {speaker: f"[S{i}]" for i, speaker in enumerate(speakers, 1)}

    def join(parts: Sequence[tuple[Speaker, str]], before: Speaker | None) -> str:
        words: list[str] = []
        for speaker, text in parts:
            words += [text] if speaker == before else [tags[speaker], text]
            before = speaker
        return " ".join(words)

    front = join(told, None)
    said = join(lines, told[-1][0] if told else None)
    if len(appearing) == MAX_SPEAKERS:
        last = lines[-1][0]
        said += " " + tags[next(speaker for speaker in speakers if speaker != last)]
    return Script(f"{front} {said}".strip(), speakers, said)


def without_sounds(text: str, able: frozenset[str]) -> str:
    """A text less the SOUNDS in parentheses that an engine can't make: nobody wants to hear "laughs" read out."""

    def keep(found: re.Match[str]) -> str:
        return found[0] if " ".join(found[1].lower().split()) in able else " "

    return text if able >= SOUNDS else _SOUND.sub(keep, text)


def tidy(text: str) -> str:
    """A turn's words as Dia knows them: one line, ASCII punctuation, no parentheses but around SOUNDS. Never raises."""
    while _PAD in text:
        text = text.replace(_PAD, " ")
    text = " ".join(text.translate(_ASCII).split())
    parts: list[str] = []
    position = 0
    for side_stream in _ASIDE.finditer(text):
        before = _BRACKETS.sub(" ", text[position : side_stream.start()])
        position = side_stream.end()
        inside = " ".join(side_stream[2].split())
        sound = inside.lower().strip(" .,!?;:*")
        after = text[position : position + 1]
        parts.append(before)
        if sound in SOUNDS and side_stream[1] == "(":
            parts.append(f" ({sound})" + ("" if after in {"", ",", ".", "!", "?", ";", ":"} else " "))
        elif inside:
            opening = ", " if before.strip() and before.rstrip()[-1] not in ",.!?;:-" else " "
            parts.append(opening + inside + ("" if after in {"", ",", ".", "!", "?", ";", ":"} else ", "))
        elif after not in {"", ",", ".", "!", "?", ";", ":"}:
            parts.append(" ")
    parts.append(_BRACKETS.sub(" ", text[position:]))
    return " ".join("".join(parts).split())
