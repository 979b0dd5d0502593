"""The state of one row of Dia: the script, the prompt and the counters. This module does not use weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from app.audio.guard import LineGuard
    from app.engines.dia.guidance import Guided
    from app.runtime.sampling import ReferenceNoise


@dataclass(eq=False, slots=True)
class DiaRow:
    """The state of the utterance in one row, from `admit` to `release`."""

    ids: list[int]  # token ids of the script
    prompt: Tensor  # (P, C) int64: codes of the recordings of the voices
    guided: Guided
    seed: int
    max_frames: int  # the largest number of frames of speech
    capped: bool  # whether max_frames is below the limit in the request
    position: int = 0  # number of positions in the KV cache
    draws: int = 0  # number of steps that have drawn codes; the noise of a step depends on this number
    prefill: Iterator[None] | None = None  # the prefill in progress, which yields after each chunk
    over: bool = False  # the speech has ended
    generation: int = 0  # increases when the speech ends, so that results of earlier launches are ignored
    undecoded: list[Tensor] = field(default_factory=list)  # frames (C,) that are not decoded
    decoded: int = 0  # number of frames that the codec has decoded
    guard: LineGuard | None = None
    reference: ReferenceNoise | None = None
    adapter_key: str = ""  # key of the utterance's LoRA adapter; "" = none
    adapter: int = 0  # the slot of the adapter; 0 = none
