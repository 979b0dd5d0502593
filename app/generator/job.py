"""SpeechJob: a request together with its engine, voices, seed, cache key and prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.generator.progress import Progress
from app.runtime.playback import Playback

if TYPE_CHECKING:
    from app.engines.protocol import Engine
    from app.text.script import Pause, Words
    from app.types import ContextTurn, EngineInfo, SpeechRequest, Voice, VoicePrompt

    ParsedLine = tuple[Words | Pause, ...]


@dataclass(frozen=True, slots=True)
class SpeechJob:
    """A request that is ready to be spoken. The last three fields are empty if the answer comes from the cache."""

    request: SpeechRequest  # without the fields that the engine ignores
    engine: Engine
    voices: tuple[Voice, ...]  # one per line
    parsed_lines: tuple[ParsedLine, ...]  # the text of each line as words and pauses
    seed: int
    cache_key: str
    ignored: tuple[str, ...] = ()  # names of the request fields that this engine does not support
    marked: bool = False  # whether the audio gets the watermark
    voice_not_ready: bool = False  # whether a preset voice has no recording yet and uses a fixed seed
    progress: Progress = field(default_factory=Progress)
    playback: Playback = field(default_factory=Playback)

    context: tuple[ContextTurn, ...] = ()  # remembered turns, then uploaded turns
    remembered: int = 0  # how many of the context's turns are remembered ones
    prompts: tuple[VoicePrompt | None, ...] = ()  # one per line

    @property
    def info(self) -> EngineInfo:
        """The description of the engine."""
        return self.engine.info

    def speaker_of(self, line: int) -> int:
        """The speaker number of a line. line: its index."""
        speaker = self.request.lines[line].speaker
        return self.voices[line].speaker if speaker is None else speaker
