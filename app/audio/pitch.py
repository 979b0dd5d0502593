"""Find the pitch (fundamental frequency) of each frame of speech.

YIN (de Cheveigné and Kawahara, JASA 2002) gives several candidate periods per frame. For each frame, dynamic
programming selects one candidate or "unvoiced", so that the pitch does not jump by an octave and back. This module
depends on numpy and soxr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soxr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

    Array = NDArray[np.float64]

HOP_S = 0.01
LOWEST_HZ, HIGHEST_HZ = 55.0, 500.0
_RATE_HZ = 8_000
_HOP = round(HOP_S * _RATE_HZ)
_LONGEST = int(_RATE_HZ / LOWEST_HZ) + 2  # longest lag, in samples
_TYPICAL_LAG = 60  # in samples; the centre of a frame is exact for this lag, which is a pitch of 133 Hz
_SHORTEST = int(_RATE_HZ / HIGHEST_HZ)  # shortest lag, in samples
_WINDOW = 240  # 30 ms; these samples are compared with the samples one lag later
_FRAME = _WINDOW + _LONGEST
_FFT = 512
_CANDIDATES = 5
_UNVOICED_COST = 0.33  # a candidate with a larger YIN difference is treated as noise
_OCTAVE_COST = 0.015  # cost per octave below HIGHEST_HZ, so that the shorter of two equally good periods wins
_JUMP_COST = 0.5  # cost per octave of pitch change from one frame to the next
_SWITCH_COST = 0.2  # cost of a change between voiced and unvoiced
_QUIET_DB = 35.0  # a frame is unvoiced if its level is at least _QUIET_DB below the level of loud frames
_BLOCK_FRAMES = 2_000  # number of frames (20 s) that are computed together; the limit saves memory


def track(samples: Samples, rate_hz: int) -> Array:
    """Find the pitch in Hz of each frame of samples (N,) -> (frames,). An unvoiced frame has the pitch 0.

    A new frame begins every HOP_S seconds. The centre of frame i is at (i + 0.5) * HOP_S.
    """
    at_rate = np.asarray(soxr.resample(samples, rate_hz, _RATE_HZ) if rate_hz != _RATE_HZ else samples, np.float64)
    count = int(len(samples) / rate_hz / HOP_S + 1e-6)
    if count < 3:
        return np.zeros(count)
    at_rate -= at_rate.mean()
    before = (_WINDOW + _TYPICAL_LAG - _HOP) // 2
    padded = np.pad(at_rate, (before, _FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[: count * _HOP : _HOP]
    blocks = [_candidates(frames[at : at + _BLOCK_FRAMES]) for at in range(0, count, _BLOCK_FRAMES)]
    lags, costs, power = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    levels = 10 * np.log10(power + 1e-12)
    audible = levels > max(np.percentile(levels, 95) - _QUIET_DB, -80.0)
    return _path(lags, costs, audible)


def voiced(samples: Samples, rate_hz: int) -> Array:
    """Return the pitch in Hz of each voiced frame -> (voiced frames,). Unvoiced frames are left out."""
    pitches = track(samples, rate_hz)
    return pitches[pitches > 0]


def _candidates(frames: Array) -> tuple[Array, Array, Array]:
    """Find the candidate periods of frames (F, _FRAME) -> lags (F, C) in samples, costs (F, C), power (F,).

    If a frame has fewer than C candidates, the missing candidates have an infinite cost.
    """
    spectrum = np.fft.rfft(frames, _FFT)
    head = np.fft.rfft(frames[:, :_WINDOW], _FFT)
    # An inverse FFT of twice the size also gives the correlation at half lags. Without half lags, a short period
    # between two whole lags would have a higher cost than a multiple of this period.
    product = 2 * np.fft.irfft(spectrum * head.conj(), 2 * _FFT)[:, : 2 * _LONGEST + 1]
    squares = np.concatenate((np.zeros((len(frames), 1)), np.cumsum(np.square(frames), axis=1)), axis=1)
    lags = np.arange(_LONGEST + 1)
    energy = np.empty_like(product)
    energy[:, ::2] = squares[:, lags + _WINDOW] - squares[:, lags]
    energy[:, 1::2] = 0.5 * (energy[:, :-2:2] + energy[:, 2::2])
    difference = np.maximum(energy[:, :1] + energy - 2 * product, 0.0)[:, 1:]  # equation 6 of YIN, for lags from 0.5 on
    mean = np.cumsum(difference, axis=1) / np.arange(1, 2 * _LONGEST + 1)
    normalised = (difference / np.maximum(mean, 1e-12))[:, 2 * _SHORTEST - 1 :]  # equation 8 of YIN
    left, middle, right = normalised[:, :-2], normalised[:, 1:-1], normalised[:, 2:]
    dip = (middle <= left) & (middle < right) & (middle < 1.0)
    lag = _SHORTEST + 0.5 * np.arange(1, middle.shape[1] + 1)
    cost = np.where(dip, middle + _OCTAVE_COST * np.log2(lag / _SHORTEST), np.inf)
    best = np.argpartition(cost, _CANDIDATES, axis=1)[:, :_CANDIDATES]
    before, lowest, after = (np.take_along_axis(table, best, axis=1) for table in (left, middle, right))
    # Refine the lag: find the vertex of the parabola through the lowest value and the values beside it.
    bend = before + after - 2 * lowest
    shift = np.clip(0.5 * (before - after) / np.maximum(bend, 1e-9), -0.5, 0.5)
    depth = np.minimum(0.25 * (before - after) * shift, lowest)
    return lag[best] + 0.5 * shift, np.take_along_axis(cost, best, axis=1) - depth, squares[:, -1] / _FRAME


def _path(lags: Array, costs: Array, audible: NDArray[np.bool_]) -> Array:
    """Select one candidate per frame, so that the total cost is lowest -> pitch in Hz of each frame (F,).

    lags, costs: the candidates (F, C). audible: whether a frame may be voiced (F,). Each frame has one more candidate,
    "unvoiced", with the pitch 0.
    """
    count, states = len(lags), lags.shape[1]
    octaves = np.log2(lags)
    own = np.full((count, states + 1), _UNVOICED_COST + _OCTAVE_COST)
    own[:, :states] = costs
    own[~audible, :states] = np.inf
    own[~audible, states] = 0.0
    change = np.full((count - 1, states + 1, states + 1), _SWITCH_COST)  # (frame, from, to)
    change[:, :states, :states] = _JUMP_COST * np.abs(octaves[:-1, :, None] - octaves[1:, None, :])
    change[:, states, states] = 0.0
    back = np.zeros((count, states + 1), np.int64)
    total = own[0]
    columns = np.arange(states + 1)
    for frame in range(1, count):
        sums = total[:, None] + change[frame - 1]
        back[frame] = sums.argmin(axis=0)
        total = sums[back[frame], columns] + own[frame]
    state = int(total.argmin())
    pitches = np.zeros(count)
    for frame in range(count - 1, -1, -1):
        if state < states:
            pitches[frame] = _RATE_HZ / lags[frame, state]
        state = int(back[frame, state])
    return pitches
