"""The state of one row of CSM: the prompt, the current line and the counters. This module does not use weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from app.audio.guard import LineGuard
    from app.engines.csm.prompt import Segment
    from app.nn.mimi.model import MimiStream
    from app.runtime.sampling import ReferenceNoise, SamplingParams
    from app.types import AnswerPart

# A part of the input: the token ids of a text, or frames of codes (T, K).
Part: TypeAlias = "tuple[int, ...] | np.ndarray | Tensor"


@dataclass(frozen=True, slots=True)
class KeptRow:
    """The state at the end of an utterance. The next utterance of the same answer can continue from this state."""

    segments: list[Segment]
    voices: int
    spoken: list[Segment]
    position: int
    draws: int
    decoded: int
    parts: list[Part]  # the last inputs of the last line, which are not in the KV cache
    adapter_key: str
    keys_and_values: tuple[Tensor, ...]
    stream: MimiStream  # the state of the codec
    part: AnswerPart  # the utterance that has ended with this state, and its take


@dataclass(eq=False, slots=True)
class CsmRow:
    """The state of the utterance in one row, from `admit` to `release`."""

    lines: list[tuple[int, ...]]  # token ids of each line
    lengths: list[float]  # length of each line's text in characters (`guard.speech_length`)
    paces: list[float | None]  # pace of each line's voice in characters a second; None = unknown
    segments: list[Segment]  # voice prompts, then conversation turns
    voices: int  # number of voice prompts in `segments`
    params: SamplingParams
    seed: int
    max_frames: int  # the largest number of frames of the utterance
    line: int = 0  # index of the current line
    position: int = 0  # number of positions in the KV cache
    frames: int = 0  # number of generated frames of speech
    draws: int = 0  # counts the drawn frames, also EOS frames; the noise of a frame depends on this number
    # spoken lines that are in the KV cache, also those of the kept state from which the row continues
    spoken: list[Segment] = field(default_factory=list)
    line_start: int = 0  # position of the current line's first token
    line_frames: list[Tensor] = field(default_factory=list)  # frames of speech (K,) of the current line
    unread: Tensor | None = None  # (S, D) inputs that the model has not read; the first step reads the last one
    over: bool = False  # whether the last line has ended
    generation: int = 0  # increases when a line ends, so that results of earlier launches are ignored
    guard: LineGuard | None = None  # the output guard of the current line
    # Frames (K,) that are not decoded, each with the output guard of the frame's line.
    undecoded: list[tuple[Tensor, LineGuard | None]] = field(default_factory=list)
    decoded: int = 0  # number of frames that the codec has decoded
    reference: ReferenceNoise | None = None
    adapter_key: str = ""  # key of the utterance's LoRA adapter; "" = none
    adapter: int = 0  # the slot of the adapter; 0 = none
    # the utterance's place in its answer; None = the row's state is not kept when the utterance ends
    part: AnswerPart | None = None
    kept: KeptRow | None = None  # the state from which the utterance continues; None = it begins with its prompt
    end_parts: list[Part] | None = None  # see KeptRow.parts; None = the last line has not ended

    @property
    def base(self) -> int:
        """The number of positions of the prompt. The first line follows the prompt."""
        return sum(segment.length for segment in self.segments)

    @property
    def voice_segments(self) -> list[Segment]:
        return self.segments[: self.voices]

    @property
    def voice_positions(self) -> int:
        return sum(segment.length for segment in self.voice_segments)
