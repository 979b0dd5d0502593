"""Fundamental frequency of speech, frame by frame: YIN candidates and the cheapest path through them.

YIN (de Cheveigné and Kawahara, JASA 2002) gives several candidate periods per frame. Dynamic programming picks one of
them, or "unvoiced", for each frame, so that pitch does not jump by an octave and back. Depends on numpy and soxr only.
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
_LONGEST = int(_RATE_HZ / LOWEST_HZ) + 2  # lags, in samples
_TYPICAL_LAG = 60  # a frame is centred for a pitch of 133 Hz
_SHORTEST = int(_RATE_HZ / HIGHEST_HZ)
_WINDOW = 240  # 30 ms: what is compared with itself at each lag
_FRAME = _WINDOW + _LONGEST
_FFT = 512
_CANDIDATES = 5
_UNVOICED_COST = 0.33  # a candidate with a larger YIN difference is taken for noise
_OCTAVE_COST = 0.015  # per octave below HIGHEST_HZ: of two equal periods the shorter one is right
_JUMP_COST = 0.5  # per octave of change in 10 ms
_SWITCH_COST = 0.2  # between voiced and unvoiced
_QUIET_DB = 35.0  # a frame this far below the loud frames is unvoiced
_BLOCK_FRAMES = 2_000  # 20 s: bounds the memory


def track(samples: Samples, rate_hz: int) -> Array:
    """Find the pitch in Hz of each 10 ms of samples (N,) -> (frames,). It is 0 for unvoiced frames.

    Frame i is centred at (i + 0.5) * HOP_S.
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
    """The pitches in Hz of the voiced frames alone. (voiced frames,)"""
    pitches = track(samples, rate_hz)
    return pitches[pitches > 0]


def _candidates(frames: Array) -> tuple[Array, Array, Array]:
    """frames (F, _FRAME) -> lags (F, C), costs (F, C), power (F,). The cost of a missing candidate is infinite."""
    spectrum = np.fft.rfft(frames, _FFT)
    head = np.fft.rfft(frames[:, :_WINDOW], _FFT)
    # Twice the size gives the correlation at half lags. Without them, a short period between two lags loses to a
    # multiple of it.
    product = 2 * np.fft.irfft(spectrum * head.conj(), 2 * _FFT)[:, : 2 * _LONGEST + 1]
    squares = np.concatenate((np.zeros((len(frames), 1)), np.cumsum(np.square(frames), axis=1)), axis=1)
    lags = np.arange(_LONGEST + 1)
    energy = np.empty_like(product)
    energy[:, ::2] = squares[:, lags + _WINDOW] - squares[:, lags]
    energy[:, 1::2] = 0.5 * (energy[:, :-2:2] + energy[:, 2::2])
    difference = np.maximum(energy[:, :1] + energy - 2 * product, 0.0)[:, 1:]  # YIN, equation 6, from lag 0.5
    mean = np.cumsum(difference, axis=1) / np.arange(1, 2 * _LONGEST + 1)
    normalised = (difference / np.maximum(mean, 1e-12))[:, 2 * _SHORTEST - 1 :]  # YIN, equation 8
    left, middle, right = normalised[:, :-2], normalised[:, 1:-1], normalised[:, 2:]
    dip = (middle <= left) & (middle < right) & (middle < 1.0)
    lag = _SHORTEST + 0.5 * np.arange(1, middle.shape[1] + 1)
    cost = np.where(dip, middle + _OCTAVE_COST * np.log2(lag / _SHORTEST), np.inf)
    best = np.argpartition(cost, _CANDIDATES, axis=1)[:, :_CANDIDATES]
    before, lowest, after = (np.take_along_axis(table, best, axis=1) for table in (left, middle, right))
    # The vertex of the parabola through three points.
    bend = before + after - 2 * lowest
    shift = np.clip(0.5 * (before - after) / np.maximum(bend, 1e-9), -0.5, 0.5)
    depth = np.minimum(0.25 * (before - after) * shift, lowest)
    return lag[best] + 0.5 * shift, np.take_along_axis(cost, best, axis=1) - depth, squares[:, -1] / _FRAME


def _path(lags: Array, costs: Array, audible: NDArray[np.bool_]) -> Array:
    """The cheapest path through the candidates (F, C) and "unvoiced" -> Hz or 0 of each frame (F,)."""
    count, states = len(lags), lags.shape[1]
    octaves = np.log2(lags)
    own = np.full((count, states + 1), _UNVOICED_COST + _OCTAVE_COST)
    own[:, :states] = costs
    own[~audible, :states] = np.inf
    own[~audible, states] = 0.0
    change = np.full((count - 1, states + 1, states + 1), _SWITCH_COST)  # from, to
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
