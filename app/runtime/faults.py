"""Faults in what a model computed, told per row: numbers that are none, memory that is not there.

A NaN or infinity in a row's logits spreads through all that the row computes later. A runner gives such a row codes of
BROKEN, where codes reach the host anyway; the loop sees them (`broken`) and the row fails alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.errors import EngineError, OutOfMemory, SpeechError

if TYPE_CHECKING:
    from app.types import Codes, Samples

BROKEN = -1  # no codec has such a code


def broken(codes: Codes) -> list[int]:
    """Which of the n rows of codes (n, K) carry the mark."""
    return np.flatnonzero((codes < 0).any(axis=1)).tolist() if codes.size else []


def audible(samples: Samples) -> bool:
    """False where sound (N,) holds what is no number."""
    return bool(np.isfinite(samples).all())


def not_a_number() -> EngineError:
    return EngineError("The model computed no number while speaking this. Try again, with another `seed` if need be.")


def typed(error: Exception) -> SpeechError:
    """What a caller is told of whatever the engine raised."""
    if isinstance(error, SpeechError):
        return error
    # torch.OutOfMemoryError by its name, since what runs without torch comes here too.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return OutOfMemory(
            "There is not enough memory for this request. Send a shorter text or context, or run fewer rows "
            "(TTS_MAX_ROWS)."
        )
    return EngineError("The engine failed while speaking this. Try again; the server's log says why.")
