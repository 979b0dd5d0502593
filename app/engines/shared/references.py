"""Checks and encodes reference recordings, and checks codes before a model reads them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from app.errors import BadReference

if TYPE_CHECKING:
    from app.types import Codes, Reference, Samples


def checked_samples(reference: Reference, rate_hz: int, *, min_s: float, max_s: float, advice: str = "") -> Samples:
    """Return the samples (N,) float32 of a recording. Raises BadReference if the recording can't be encoded.

    advice: words about good lengths. The error message for a recording that is too short or too long ends with them.
    """
    if reference.rate_hz != rate_hz:
        raise BadReference(
            f"The recording has a sample rate of {reference.rate_hz} Hz; the codec needs {rate_hz} Hz. Resample it."
        )
    samples: Samples = np.asarray(reference.samples, np.float32)
    seconds = len(samples) / rate_hz
    if not min_s <= seconds <= max_s:
        raise BadReference(f"The recording is {seconds:.1f} s long; it must be {min_s:g} to {max_s:g} s{advice}.")
    if not np.isfinite(samples).all():
        raise BadReference("The recording contains NaN or infinite samples.")
    return samples


def encode_samples(
    samples: Samples,
    encoder: Callable[[Tensor], Tensor],
    *,
    codebooks: int,
    device: torch.device,
    stream: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Codes:
    """Encode samples (N,) at the codec's rate, and return the codes (K, T) int16 of the first `codebooks` codebooks.

    stream: returns a context in which the encoder runs on another CUDA stream; see side_stream.
    """
    with torch.inference_mode(), stream():
        codes = encoder(torch.from_numpy(samples).to(device))
        found: Codes = codes[:codebooks].cpu().numpy().astype(np.int16)
    return found


def checked_codes(codes: Codes, *, codebooks: int, codebook_size: int) -> Codes:
    """Return the first `codebooks` rows of codes (K, T). Raises BadReference for a wrong shape or a wrong code."""
    if codes.ndim != 2 or codes.shape[0] < codebooks:
        raise BadReference(f"Codes of shape {list(codes.shape)} do not fit a model with {codebooks} codebooks.")
    codes = codes[:codebooks]
    if codes.size and (codes.min() < 0 or codes.max() >= codebook_size):
        raise BadReference(f"Every code must be between 0 and {codebook_size - 1}.")
    return codes
