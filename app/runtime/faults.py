"""Finds rows with NaN or infinite values, and converts an engine's errors to errors for the caller.

If a row's logits contain NaN or infinity, all later frames of the row are wrong. So the runner replaces the codes of
this row by BROKEN. The codes go to the host in any case, so the mark needs no extra transfer. The loop finds BROKEN
and fails only this row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.errors import EngineError, OutOfMemory, SpeechError

if TYPE_CHECKING:
    from app.types import Codes, Samples

BROKEN = -1  # valid codes are not negative


def broken_rows(codes: Codes) -> list[int]:
    """Return the indices of the rows of codes (n, K) that contain BROKEN."""
    return np.flatnonzero((codes < 0).any(axis=1)).tolist() if codes.size else []


def is_finite(samples: Samples) -> bool:
    """Whether all samples (N,) are finite: no NaN and no infinity."""
    return bool(np.isfinite(samples).all())


def non_finite_error() -> EngineError:
    """Return the error for a row with NaN or infinite values."""
    return EngineError("The model produced NaN or Inf for this request. Try again, or with another `seed`.")


def to_speech_error(error: Exception) -> SpeechError:
    """Convert any error of the engine to the SpeechError that the caller gets."""
    if isinstance(error, SpeechError):
        return error
    # Compare the name of torch.OutOfMemoryError, because engines without torch use this function too.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return OutOfMemory(
            "There is not enough memory for this request. Send a shorter text or context, or run fewer rows "
            "(TTS_MAX_ROWS)."
        )
    return EngineError("The engine failed during this request. Try again. The server's log contains the cause.")
