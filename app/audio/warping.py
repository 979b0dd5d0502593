"""Dynamic time warping: find the moments of one recording in another recording of the same words.

The offline voice reads a text and reports when it speaks each word. The warping finds the same words in the speech of
another voice. The warping needs no model of the language, but it is less exact than an alignment: the median error of
the start of a word is about 20 ms, and every sixth error is above 100 ms. The warping takes about 2 % of the duration
of the recording.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.audio.acoustic_model import FRAME_S, RATE_HZ, cepstra
from app.audio.resample import StreamResampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.types import Samples

    Floats = NDArray[np.float32]

MAX_SECONDS = 300.0
_LEAST_BAND = 150  # on each side of the straight path, at least _LEAST_BAND frames are searched
_BAND_SHARE = 0.15  # the frames to search on each side, as a share of the length of the reference
_LONGEST_PAUSE = 8  # of a longer pause, only the first _LONGEST_PAUSE frames are kept
# Weights of the cepstral coefficients. A coefficient with a higher index has a smaller weight, because it differs more
# between voices than between phonemes.
_LIFTER = np.tile(np.float32(0.75) ** np.arange(13, dtype=np.float32), 2)
_SILENCE_DB = 25.0  # audio is silence if it is at least _SILENCE_DB below loud speech
_STEPS = 4  # with each frame of the recording, the path advances 0 to 3 frames in the reference
_STAY_COST = np.float32(0.3)
_WINDOW_S = 410 / RATE_HZ  # a frame describes the _WINDOW_S seconds of audio that begin at its start


def warp(
    samples: Samples, rate_hz: int, reference: Samples, reference_rate_hz: int, times: Sequence[float]
) -> list[float] | None:
    """For each time in `times`, a position in `reference`, return the matching position in `samples`. All are in
    seconds; `times` does not decrease.

    Both recordings must contain the same words. Returns None if a recording is silent, shorter than 0.1 s or longer
    than MAX_SECONDS.
    """
    for audio, rate in ((samples, rate_hz), (reference, reference_rate_hz)):
        if not 0.1 <= len(audio) / rate <= MAX_SECONDS:
            return None
    spoken, spoken_loud = _features(_resampled(samples, rate_hz))
    model, model_loud = _features(_resampled(reference, reference_rate_hz))
    if not spoken_loud.any() or not model_loud.any():
        return None
    last = _edges(spoken_loud)[1]
    heard, kept = _without_pauses(spoken_loud), _without_pauses(model_loud)
    # For each kept frame of the reference: the matching frame of the recording.
    path = heard[_path(spoken[heard], model[kept])]
    places = np.searchsorted(kept, np.asarray(times) / FRAME_S - 0.5)
    found = np.append(path, last)[np.minimum(places, len(path))] * FRAME_S
    limited = np.clip(np.maximum.accumulate(found), 0.0, len(samples) / rate_hz)
    return [round(float(place), 3) for place in limited]


def _resampled(samples: Samples, rate_hz: int) -> Samples:
    resampler = StreamResampler(rate_hz, RATE_HZ)
    return np.concatenate((resampler.push(samples), resampler.flush()))


def _features(samples: Samples) -> tuple[Floats, NDArray[np.bool_]]:
    """Return normalised cepstra with their differences (T, 26), and (T,) whether each frame is louder than silence."""
    half = round(_WINDOW_S * RATE_HZ / 2)
    padded = np.pad(samples, (half, half))  # the middle of frame t is at t * FRAME_S
    cepstrum = cepstra(padded)
    power = np.square(padded).cumsum(dtype=np.float64)
    starts = np.arange(len(cepstrum)) * round(FRAME_S * RATE_HZ)
    ends = np.minimum(starts + 2 * half, len(padded) - 1)
    level = 10 * np.log10((power[ends] - power[starts]) / (2 * half) + 1e-10)
    loud: NDArray[np.bool_] = level > max(-70.0, float(np.percentile(level, 95)) - _SILENCE_DB)
    spoken = cepstrum[loud] if loud.any() else cepstrum
    normal = (cepstrum - spoken.mean(axis=0)) / (spoken.std(axis=0) + 1e-3)
    around = np.pad(normal, ((2, 2), (0, 0)), mode="edge")
    delta = around[4:] - around[:-4]
    return np.concatenate((normal, delta), axis=1).astype(np.float32) * _LIFTER, loud


def _edges(loud: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the index of the first loud frame, and the index after the last loud frame."""
    places = np.flatnonzero(loud)
    return int(places[0]), int(places[-1]) + 1


def _without_pauses(loud: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the indices of the frames from the first loud frame to the last one. Of a long pause, only the first
    _LONGEST_PAUSE frames are included.
    """
    first, last = _edges(loud)
    places = np.arange(first, last)
    before = np.maximum.accumulate(np.where(loud, np.arange(len(loud)), -1))[first:last]
    return places[places - before <= _LONGEST_PAUSE]


def _path(spoken: Floats, model: Floats) -> NDArray[np.intp]:
    """Return the path: for each frame of `model` (M, D), the first frame of `spoken` (N, D) that belongs to this frame
    or to a later frame of `model`.

    The search considers only paths near the straight path, which runs at one speed from the start to the end.
    """
    count, width = len(spoken), len(model)
    band = int(min(width, max(_LEAST_BAND, _BAND_SHARE * width)))
    lows = np.clip(np.arange(count) * width // count - band, 0, width)
    highs = np.minimum(lows + 2 * band + 1, width)
    spoken_square, model_square = np.square(spoken).sum(axis=1), np.square(model).sum(axis=1)
    choices = np.zeros((count, int((highs - lows).max())), np.uint8)
    never = np.float32(1e9)
    best = np.full(width + _STEPS, never)  # best[j + _STEPS - 1] = the cost of the best path that ends at frame j
    best[_STEPS - 2] = 0.0  # the path begins before the first frame of the reference, at no cost
    skipped = np.zeros(width + _STEPS, np.float32)
    for row in range(count):
        low, high = int(lows[row]), int(highs[row])
        distance = spoken_square[row] + model_square[low:high] - 2 * (model[low:high] @ spoken[row])
        distance = np.sqrt(np.maximum(distance, 0.0))
        skipped[low + _STEPS - 1 : high + _STEPS - 1] = distance
        candidates = np.empty((_STEPS, high - low), np.float32)
        missed = np.zeros(high - low, np.float32)
        for step in range(_STEPS):
            if step >= 2:  # a longer step skips frames, and the path pays for each skipped frame too
                missed = missed + skipped[low + _STEPS - step : high + _STEPS - step]
            candidates[step] = best[low + _STEPS - 1 - step : high + _STEPS - 1 - step] + missed
        candidates[0] += _STAY_COST
        chosen = candidates.argmin(axis=0)
        choices[row, : high - low] = chosen
        cost = candidates[chosen, np.arange(high - low)] + distance
        best[:] = never
        best[low + _STEPS - 1 : high + _STEPS - 1] = cost
    starts = np.zeros(width, np.intp)
    at, end = width - 1, width
    for row in range(count - 1, -1, -1):
        step = int(choices[row, min(max(at - int(lows[row]), 0), choices.shape[1] - 1)])
        if step:
            starts[at - step + 1 : end] = row
            end = max(0, at - step + 1)
            at -= step
        if at < 0:
            break
    return starts
