"""Voice activity detection: Silero VAD if torch is installed, otherwise by energy."""

from __future__ import annotations

import importlib.util
import logging
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

if TYPE_CHECKING:
    from app.types import Samples

log = logging.getLogger(__name__)

RATE_HZ = 16_000
SHORTEST_PAUSE_S = 0.2
SHORTEST_SPEECH_S = 0.2
_FRAME_S = 0.02
_ABOVE_FLOOR_DB = 12.0
_BELOW_PEAK_DB = 35.0
_QUIETEST_DB = -65.0


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a recording, in seconds."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class SpeechFinder:
    """Finds speech. Any thread; loads its model (2 MB, about a second with torch) at the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: Any = None

    def find(self, samples: Samples, rate_hz: int) -> list[Span]:
        """Stretches of speech, in order, with pauses of SHORTEST_PAUSE_S or more between them."""
        heard = soxr.resample(samples, rate_hz, RATE_HZ) if rate_hz != RATE_HZ else samples
        heard = np.ascontiguousarray(heard, np.float32)
        peak = float(np.abs(heard).max(initial=0.0))
        if peak < 1e-4:
            return []
        heard = heard * np.float32(0.7 / peak)  # the model hears nothing in recordings of very low level
        if importlib.util.find_spec("torch") is None or importlib.util.find_spec("silero_vad") is None:
            return by_energy(heard, RATE_HZ)
        return self._by_model(heard)

    def _by_model(self, heard: Samples) -> list[Span]:
        with self._lock:
            import silero_vad  # noqa: PLC0415 - with torch, which may not be there

            # Importing the package sets torch's thread count to one for the whole process.
            import torch  # noqa: PLC0415

            if self._model is None:
                threads = torch.get_num_threads()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    self._model = silero_vad.load_silero_vad()
                torch.set_num_threads(threads)
            with torch.inference_mode():
                found: list[dict[str, int]] = silero_vad.get_speech_timestamps(
                    torch.from_numpy(heard),
                    self._model,
                    sampling_rate=RATE_HZ,
                    min_silence_duration_ms=round(1000 * SHORTEST_PAUSE_S),
                    min_speech_duration_ms=round(1000 * SHORTEST_SPEECH_S),
                )
        return [Span(span["start"] / RATE_HZ, span["end"] / RATE_HZ) for span in found]


def by_energy(samples: Samples, rate_hz: int) -> list[Span]:
    """Frames well above the recording's own floor. Takes music for speech, and hears nothing in steady noise."""
    levels = frame_levels_db(samples, rate_hz)
    if not len(levels):
        return []
    floor, peak = np.percentile(levels, 10), np.percentile(levels, 98)
    threshold = max(min(floor + _ABOVE_FLOOR_DB, peak - 6.0), peak - _BELOW_PEAK_DB, _QUIETEST_DB)
    return joined(
        [Span(start * _FRAME_S, end * _FRAME_S) for start, end in runs(levels >= threshold)],
        SHORTEST_PAUSE_S,
        SHORTEST_SPEECH_S,
    )


def joined(spans: Sequence[Span], pause_s: float, speech_s: float = 0.0) -> list[Span]:
    """Spans with shorter pauses than pause_s between them made one; then those below speech_s left out."""
    made: list[Span] = []
    for span in spans:
        if made and span.start_s - made[-1].end_s < pause_s:
            made[-1] = Span(made[-1].start_s, span.end_s)
        else:
            made.append(span)
    return [span for span in made if span.seconds >= speech_s]


def frame_levels_db(samples: Samples, rate_hz: int, frame_s: float = _FRAME_S) -> np.ndarray:
    """RMS level of each whole frame in dB of full scale, -120 for silence. (frames,)"""
    size = max(1, round(frame_s * rate_hz))
    whole = samples[: len(samples) // size * size].reshape(-1, size)
    return np.asarray(10 * np.log10(np.mean(np.square(whole, dtype=np.float64), axis=1) + 1e-12))


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Start and end index of each stretch where `mask` (N,) is True. The end is exclusive."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
