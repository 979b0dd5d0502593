"""Finds batch rows with NaN or infinite values, and converts an engine's errors to errors for the caller.

If a row's logits contain NaN or infinity, all later frames of the row are wrong. So the runner replaces the codes of
this row by BROKEN. The codes are copied to the host in any case, so the mark needs no extra transfer. The loop finds
BROKEN and fails only this row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.errors import EngineError, OutOfMemory, SpeechError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.types import Codes, Samples

BROKEN = -1  # this code marks NaN or infinite values; valid codes are not negative
# Parts of error messages of CUDA and its libraries. Each tuple below has the parts for one kind of error.
_OUT_OF_MEMORY = ("CUDA error: out of memory", "HIP error: out of memory", "_STATUS_ALLOC_FAILED")
_WRONG_CALL = (
    "invalid argument",
    "invalid configuration argument",
    "invalid resource handle",
    "not supported",
    "captur",
)
_DEVICE_LOST = (
    "CUDA error:",
    "HIP error:",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)


def broken_rows(codes: Codes) -> list[int]:
    """Return the indices of the rows of codes (n, K) that contain BROKEN."""
    return np.flatnonzero((codes < 0).any(axis=1)).tolist() if codes.size else []


def is_finite(samples: Samples) -> bool:
    """Return whether all samples (N,) are finite: no NaN and no infinity."""
    return bool(np.isfinite(samples).all())


def non_finite_error() -> EngineError:
    """Return the error for a row with NaN or infinite values."""
    return EngineError("The model produced NaN or Inf for this request. Try again, or with another `seed`.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, the cause of the error, the cause of this cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_kind(error: BaseException, name: str) -> bool:
    """Return whether the error's class or one of its base classes has this name.

    The comparison of names avoids an import of torch.
    """
    return any(kind.__name__ == name for kind in type(error).__mro__)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error, or one of its causes, means that the host or the device has too little memory.

    PyTorch's allocator raises torch.OutOfMemoryError. A library or the CUDA driver may also allocate memory, for
    example for a CUDA graph. Then the error is a torch.AcceleratorError or a RuntimeError, and only the message shows
    the cause.
    """
    return any(
        isinstance(each, MemoryError)
        or _is_kind(each, "OutOfMemoryError")
        or (isinstance(each, RuntimeError) and any(words in str(each) for words in _OUT_OF_MEMORY))
        for each in _causes(error)
    )


def is_device_lost(error: BaseException) -> bool:
    """Return whether the process can no longer use its GPU after this error or one of its causes.

    After such an error, for example an illegal memory access, every later call of CUDA in this process fails too. Only
    a new process can use the GPU again. An error that CUDA raises for wrong arguments does not affect later calls.
    """
    return not is_out_of_memory(error) and any(
        (
            _is_kind(each, "AcceleratorError")
            or (isinstance(each, RuntimeError) and any(words in str(each) for words in _DEVICE_LOST))
        )
        and not any(words in str(each) for words in _WRONG_CALL)
        for each in _causes(error)
    )


def to_speech_error(error: Exception) -> SpeechError:
    """Convert any error of the engine to the SpeechError that the caller gets."""
    if isinstance(error, SpeechError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(
            "There is not enough memory for this request. Send a shorter text or context, or run fewer rows "
            "(TTS_MAX_ROWS)."
        )
    return EngineError("The engine failed during this request. Try again. The server's log contains the cause.")
