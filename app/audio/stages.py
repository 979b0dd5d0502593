"""The protocol of a streaming audio stage, and chains of stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from app.types import Samples


class Stage(Protocol):
    """A streaming step over mono float32 samples. The joined output does not depend on how the input is divided.

    A stage serves one stream, in one thread at a time. It can't be used after `flush`.
    """

    def push(self, samples: Samples) -> Samples:
        """Take samples (N,), return the (M,) that are ready; M may be 0."""
        ...

    def flush(self) -> Samples:
        """End the input and return the samples that were held back."""
        ...


class Chain:
    """Several stages in order, as one stage. Without stages, samples pass unchanged."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self._stages = stages

    def push(self, samples: Samples) -> Samples:
        for stage in self._stages:
            samples = stage.push(samples)
        return samples

    def flush(self) -> Samples:
        tail = np.zeros(0, dtype=np.float32)
        for stage in self._stages:  # the last samples of a stage are input for the next stage
            tail = np.concatenate((stage.push(tail), stage.flush()))
        return tail


def chain(*stages: Stage) -> Chain:
    """chain(a, b, c): samples go through a, then b, then c."""
    return Chain(stages)


def joined(parts: list[Samples]) -> Samples:
    """Concatenate the parts; an empty list gives no samples."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
