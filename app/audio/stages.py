"""Stages of sound that compose: what every streaming step offers, and how several become one.

Knows the two names `push` and `flush`, nothing about what a stage does to the sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from app.types import Samples


class Stage(Protocol):
    """A streaming step over mono float32. The sum of all outputs is the same however the input was cut.

    One stage serves one stream, in one thread at a time, and is spent after `flush`.
    """

    def push(self, samples: Samples) -> Samples:
        """Take (N,) samples, give the (M,) that are ready; M may be 0."""
        ...

    def flush(self) -> Samples:
        """The input has ended: give what was still held back."""
        ...


class Chain:
    """Several stages as one, in the order given. No stages: the sound passes through."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self._stages = stages

    def push(self, samples: Samples) -> Samples:
        for stage in self._stages:
            samples = stage.push(samples)
        return samples

    def flush(self) -> Samples:
        tail = np.zeros(0, dtype=np.float32)
        for stage in self._stages:  # what one stage still held is input to the next, before that one ends too
            tail = np.concatenate((stage.push(tail), stage.flush()))
        return tail


def chain(*stages: Stage) -> Chain:
    """chain(a, b, c): sound goes through a, then b, then c."""
    return Chain(stages)


def joined(parts: list[Samples]) -> Samples:
    """The parts one after another; none at all are no samples."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
