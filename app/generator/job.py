"""SpeechJob: a request together with its engine, voices, seed, cache key and prompts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from app.generator.progress import Progress
from app.generator.timeline import Timeline
from app.runtime.playback import Playback
from app.text.languages import guess_language
from app.voices.presets import is_speaker

if TYPE_CHECKING:
    from app.audio.provenance import Provenance
    from app.engines.manager import ModelUse
    from app.engines.protocol import Engine
    from app.text.pronunciations import Lexicon
    from app.text.script import Pause, Words
    from app.types import ContextTurn, EngineInfo, SpeechRequest, Voice, VoicePrompt

    ParsedLine = tuple[Words | Pause, ...]


@dataclass(frozen=True, slots=True)
class LineText:
    """A text that one voice speaks."""

    parts: ParsedLine
    voice: Voice
    speaker: int
    prompt: VoicePrompt | None
    turn: int  # the index of the caller's text that this text comes from
    new_turn: bool = True  # whether the speaker may pause before this line


class LaterText(Protocol):
    """The part of the text of an answer that arrives while the answer is already spoken."""

    @property
    def ready(self) -> bool:
        """Whether `next` can return without waiting for text."""

    @property
    def size_bytes(self) -> int:
        """The size in bytes of all text that has arrived so far, as UTF-8."""

    @property
    def recent(self) -> str:
        """The end of the text that has arrived so far. The language is recognised from it."""

    async def next(self) -> Sequence[LineText] | None:
        """Wait for the next part of the text and return its lines; None at the end of the text."""


@dataclass(frozen=True, slots=True)
class SpeechJob:
    """A request that is ready to be spoken. `context`, `remembered` and `prompts` are empty if the answer comes from
    the cache.
    """

    request: SpeechRequest  # the request without the fields that the engine ignores
    use: ModelUse  # the engine stays loaded while this object exists
    voices: tuple[Voice, ...]  # the voice of each line
    speakers: tuple[int, ...]  # the speaker number of each line, for the engine
    parsed_lines: tuple[ParsedLine, ...]  # the text of each line as words and pauses
    turns: tuple[int, ...]  # the index of the caller's text that each line comes from
    seed: int
    cache_key: str
    ignored: tuple[str, ...] = ()  # the request fields that the engine does not support
    marked: bool = False  # whether the audio gets the watermark
    provenance: Provenance | None = None  # what the comment in the file says; None = the file has no comment
    voice_not_ready: bool = False  # whether a preset voice has no recording yet and uses a fixed seed
    texts: Sequence[str] = ()  # the texts of the caller; `turns` has indices into them
    lexicons: dict[str, Lexicon] = field(default_factory=dict)  # the pronunciations of each voice, by voice id
    progress: Progress = field(default_factory=Progress)
    timeline: Timeline = field(default_factory=Timeline)
    playback: Playback = field(default_factory=Playback)
    broken_rules: list[str] = field(default_factory=list)  # rules of the output guard that the speech broke
    held: bool = False  # whether nothing is sent before the whole answer has been checked
    background: bool = False  # whether the job gives way to all other requests
    later: LaterText | None = None  # the text that arrives while the first part is spoken; None = the text is complete
    answer_id: str = ""  # identifies the answer for the engine; "" if `later` is None
    over: threading.Event = field(default_factory=threading.Event)  # set when the answer has ended or is cancelled
    heard_takes: list[int] = field(default_factory=list)  # for each spoken utterance: the index of the sent take
    # The last spoken utterances of this answer; empty if `later` is None.
    spoken_turns: list[ContextTurn] = field(default_factory=list)

    context: tuple[ContextTurn, ...] = ()  # remembered turns, then uploaded turns
    remembered: int = 0  # the number of remembered turns in `context`
    prompts: tuple[VoicePrompt | None, ...] = ()  # the voice prompt of each line

    @property
    def engine(self) -> Engine:
        return self.use.engine

    @property
    def info(self) -> EngineInfo:
        """The description of the engine."""
        return self.use.info

    @property
    def goes_on(self) -> bool:
        """Whether each utterance continues the previous utterance, as if both were one utterance."""
        return self.later is not None and self.info.text.continues and self.info.capabilities.context

    @property
    def comment(self) -> str:
        """The comment in the header of the file; "" = none."""
        return "" if self.provenance is None else self.provenance.comment

    def language_of(self, text: str, voice: Voice) -> str:
        """Return the language of a text of this request. See `spoken_language`."""
        return spoken_language(self.request.language, text, voice.language)


def spoken_language(requested: str | None, text: str, voice_language: str) -> str:
    """Return the language of a text: `requested` if it is set, otherwise the language of the words.

    If the language of the words is unknown or English, return the language of the voice.
    """
    guess = None if requested else guess_language(text)
    return requested or (voice_language if guess in (None, "en") else guess)


def number_speakers(request: SpeechRequest, voices: Sequence[Voice], known: Sequence[int] = (0, 1)) -> tuple[int, ...]:
    """Return the speaker number of each line.

    The voice `speaker:N` has the number N. A line whose speaker number the caller has set keeps this number. All other
    lines with the same voice share one speaker number: the first unused number of `known`, or else the lowest unused
    number. voices: the voice of each line. known: the numbers with which the model was trained.
    """
    lines = [
        replace(line, speaker=voice.speaker) if is_speaker(voice) else line
        for line, voice in zip(request.lines, voices, strict=True)
    ]
    used = {line.speaker for line in lines} | {turn.speaker for turn in request.context}
    order = itertools.chain(known, (number for number in itertools.count() if number not in known))
    free = (number for number in order if number not in used)
    numbers: dict[str, int] = {}
    for line, voice in zip(lines, voices, strict=True):
        if line.speaker is None and voice.id not in numbers:
            numbers[voice.id] = next(free)
    return tuple(
        numbers[voice.id] if line.speaker is None else line.speaker for line, voice in zip(lines, voices, strict=True)
    )
