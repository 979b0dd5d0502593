"""The protocol of a stage (one step that processes a stream of samples), and chains of stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from app.types import Samples


class Stage(Protocol):
    """A step that processes one stream of mono float32 samples, in one thread at a time.

    If the same samples are pushed in blocks of another size, the joined output is the same. A stage can't be used after
    `flush`.
    """

    def push(self, samples: Samples) -> Samples:
        """Process samples (N,) and return the next output samples (M,). M may be 0, because a stage may hold samples
        back.
        """
        ...

    def flush(self) -> Samples:
        """End the input and return the remaining output samples."""
        ...


class Chain:
    """Several stages that act as one stage. Samples pass through the stages in order.

    A chain without stages does not change the samples.
    """

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self._stages = stages

    def push(self, samples: Samples) -> Samples:
        for stage in self._stages:
            samples = stage.push(samples)
        return samples

    def flush(self) -> Samples:
        tail = np.zeros(0, dtype=np.float32)
        for stage in self._stages:  # the last samples of a stage are input for the next stage
            tail = np.concatenate((stage.push(tail), stage.flush())) if len(tail) else stage.flush()
        return tail


def chain(*stages: Stage) -> Chain:
    """Return one stage that passes samples through the given stages in order."""
    return Chain(stages)


def joined(parts: list[Samples]) -> Samples:
    """Return the parts as one array; an empty list gives an empty array."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
