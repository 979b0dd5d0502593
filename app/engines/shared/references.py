"""A recording on its way to a model's codec: what every model asks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.errors import BadReference

if TYPE_CHECKING:
    from app.types import Reference, Samples


def checked(reference: Reference, rate_hz: int, *, least_s: float, most_s: float, best: str = "") -> Samples:
    """The samples (N,) float32. best: what to say of good lengths. Raises BadReference."""
    if reference.rate_hz != rate_hz:
        raise BadReference(f"The recording has {reference.rate_hz} Hz; the codec needs {rate_hz} Hz.")
    samples: Samples = np.asarray(reference.samples, np.float32)
    seconds = len(samples) / rate_hz
    if not least_s <= seconds <= most_s:
        raise BadReference(f"The recording is {seconds:.1f} s long; it must be {least_s:g} to {most_s:g} s{best}.")
    if not np.isfinite(samples).all():
        raise BadReference("The recording holds samples that are no numbers.")
    return samples
