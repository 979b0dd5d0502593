"""Faults of a model, per row: NaN or infinite numbers, and too little memory.

A NaN or infinity in a row's logits spreads to everything that the row computes later. A runner marks such a row with
BROKEN codes, which reach the host without an extra transfer. The loop finds the mark and fails only that row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.errors import EngineError, OutOfMemory, SpeechError

if TYPE_CHECKING:
    from app.types import Codes, Samples

BROKEN = -1  # no codec has such a code


def broken(codes: Codes) -> list[int]:
    """The indices of the rows of codes (n, K) with BROKEN codes."""
    return np.flatnonzero((codes < 0).any(axis=1)).tolist() if codes.size else []


def audible(samples: Samples) -> bool:
    """Whether all samples (N,) are finite."""
    return bool(np.isfinite(samples).all())


def not_a_number() -> EngineError:
    return EngineError("The model produced NaN or Inf for this request. Try again, or with another `seed`.")


def typed(error: Exception) -> SpeechError:
    """The SpeechError that the caller gets for any error of the engine."""
    if isinstance(error, SpeechError):
        return error
    # torch.OutOfMemoryError by its name, since what runs without torch comes here too.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return OutOfMemory(
            "There is not enough memory for this request. Send a shorter text or context, or run fewer rows "
            "(TTS_MAX_ROWS)."
        )
    return EngineError("The engine failed while speaking this. Try again; the server's log says why.")
