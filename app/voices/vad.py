"""Voice activity detection: finds speech with Silero VAD, or by its level if torch or Silero VAD is not installed."""

from __future__ import annotations

import functools
import importlib.util
import logging
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

from app.audio.levels import WINDOW_S, levels_dbfs

if TYPE_CHECKING:
    from app.types import Samples

log = logging.getLogger(__name__)

RATE_HZ = 16_000
SHORTEST_PAUSE_S = 0.2  # a shorter pause is part of the speech around it
SHORTEST_SPEECH_S = 0.2  # shorter speech is ignored
_PAD_S = 0.3  # seconds of silence that are added before a recording
_BLOCK_S = 30.0
# If the Silero model is not installed, a frame is speech if its level is far enough above the noise floor, near enough
# to the peak, and above a minimum.
_ABOVE_FLOOR_DB = 12.0
_BELOW_PEAK_DB = 35.0
_QUIETEST_DB = -65.0


@dataclass(frozen=True, slots=True)
class Span:
    """A section of a recording, in seconds from its start."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


_lock = threading.Lock()  # one thread uses the model at a time, because all threads share one model with a state


class SpeechFinder:
    """Finds speech in recordings. Thread-safe. The first call loads torch and the model (2 MB), which takes about
    1 s.
    """

    def find(self, samples: Samples, rate_hz: int) -> list[Span]:
        """Find the speech in mono samples (N,) -> spans in order, separated by pauses of SHORTEST_PAUSE_S or more."""
        resampled = soxr.resample(samples, rate_hz, RATE_HZ) if rate_hz != RATE_HZ else samples
        resampled = np.ascontiguousarray(resampled, np.float32)
        peak = float(np.abs(resampled).max(initial=0.0))
        if peak < 1e-4:
            return []
        resampled = resampled * np.float32(0.7 / peak)  # the model finds no speech at a very low level
        if importlib.util.find_spec("torch") is None or importlib.util.find_spec("silero_vad") is None:
            return by_energy(resampled, RATE_HZ)
        return self._by_model(resampled)

    def contains_speech(self, samples: Samples, rate_hz: int) -> bool:
        """Return whether mono samples (N,) contain speech. The search ends at the first block (_BLOCK_S seconds)
        with speech.
        """
        step = round(_BLOCK_S * rate_hz)
        return any(self.find(samples[at : at + step], rate_hz) for at in range(0, len(samples), step))

    def _by_model(self, samples: Samples) -> list[Span]:
        with _lock:
            model = _load_model()
            import silero_vad  # noqa: PLC0415 - optional
            import torch  # noqa: PLC0415 - optional

            # Add silence before the recording. Without this silence, the model misses the start of speech that begins
            # with the first sample.
            before = round(_PAD_S * RATE_HZ)
            with torch.inference_mode():
                found: list[dict[str, int]] = silero_vad.get_speech_timestamps(
                    torch.from_numpy(np.pad(samples, (before, 0))),
                    model,
                    sampling_rate=RATE_HZ,
                    min_silence_duration_ms=round(1000 * SHORTEST_PAUSE_S),
                    min_speech_duration_ms=round(1000 * SHORTEST_SPEECH_S),
                )
        return [
            Span(max(0, span["start"] - before) / RATE_HZ, (span["end"] - before) / RATE_HZ)
            for span in found
            if span["end"] > before
        ]


@functools.cache
def _load_model() -> Any:
    """Load the model Silero VAD from its package. The number of threads of torch does not change."""
    import torch  # noqa: PLC0415 - optional

    threads = torch.get_num_threads()
    import silero_vad  # noqa: PLC0415 - its first import sets torch's threads to 1 for the whole process

    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return silero_vad.load_silero_vad()


def by_energy(samples: Samples, rate_hz: int) -> list[Span]:
    """Find frames whose level is well above the noise floor of the recording, and join them into spans.

    Music counts as speech. Speech in loud, steady noise is not found.
    """
    levels = levels_dbfs(samples, rate_hz)
    if not len(levels):
        return []
    floor, peak = np.percentile(levels, 10), np.percentile(levels, 98)
    threshold = max(min(floor + _ABOVE_FLOOR_DB, peak - 6.0), peak - _BELOW_PEAK_DB, _QUIETEST_DB)
    return joined(
        [Span(start * WINDOW_S, end * WINDOW_S) for start, end in runs(levels >= threshold)],
        SHORTEST_PAUSE_S,
        SHORTEST_SPEECH_S,
    )


def joined(spans: Sequence[Span], pause_s: float, speech_s: float = 0.0) -> list[Span]:
    """Join neighbouring spans if the pause between them is shorter than pause_s. Then drop spans that are shorter than
    speech_s.
    """
    merged: list[Span] = []
    for span in spans:
        if merged and span.start_s - merged[-1].end_s < pause_s:
            merged[-1] = Span(merged[-1].start_s, span.end_s)
        else:
            merged.append(span)
    return [span for span in merged if span.seconds >= speech_s]


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the start and end index of each run of True in `mask` (N,). The end is exclusive."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
