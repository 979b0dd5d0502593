"""Enhancement: set every voice, request and sentence to the same loudness, in a stream.

Loudness is measured as in ITU-R BS.1770-4. The loudness of a stream is known only at its end, so it is estimated. The
estimate is a probability distribution over possible levels, and starts at the expected level of the voice. Each 20 ms
window updates the distribution by Bayes' rule, with the known distribution of window levels in speech. A loud syllable
immediately excludes low levels. Soft syllables change the estimate little, and pauses do not change it.

The gain follows the estimate, slowly during speech. A limiter with 5 ms of lookahead limits true peaks. No filter
changes the sound: the output is the input times a slowly changing gain.

No state is shared between responses: the same samples and the same expected level give the same output. This module
does not depend on engines.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.audio import pcm
from app.audio.limiter import Limiter
from app.audio.loudness import integrated_lufs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

    Array = NDArray[np.floating]

VERSION = "loudness.4"  # increase VERSION whenever the output for the same input changes
TARGET_LUFS = -20.0  # peaks of speech are 14 to 18 dB above this loudness, so the limiter is seldom active
CEILING_DBTP = -1.0
MAX_GAIN_DB = 20.0  # more gain would amplify noise
MIN_GAIN_DB = -24.0

_BLOCK_S = 0.005  # length of a block; within a block, the gain changes linearly
_WINDOW_BLOCKS = 4  # blocks in a window of 20 ms; each window gives one measurement of the level
_LOOK_BLOCKS = 2  # blocks (10 ms) between two measurements; in this file, a measurement is called a look
_MOMENT_LOOKS = 40  # looks in a gating block of BS.1770 (400 ms); in this file, such a block is called a moment
_MOMENT_EVERY = 10
_MOMENT_S = 0.1

_STEP_DB = 0.5
_LEVELS = np.arange(-60.0, _STEP_DB / 2, _STEP_DB)  # the possible levels in LUFS
_LOWEST, _HIGHEST = float(_LEVELS[0]), float(_LEVELS[-1])
_QUIETEST = -65.0  # in LUFS; quieter measurements are ignored
_EXPECT_SPREAD_DB = 2.0  # standard deviation of a line's level around the expected level
_SURPRISE = 0.2  # probability that the level of a line is unrelated to its expected level
_DRIFT_DB = 1.2  # standard deviation of the drift of the level in one second of speech
# At each look, this share of the probability of a level moves to each neighbouring level.
_DRIFT_SHARE = 0.5 * (_DRIFT_DB / _STEP_DB) ** 2 * _LOOK_BLOCKS * _BLOCK_S
_MIN_PROBABILITY = 1e-9  # the smallest probability of a level
_TINY = 1e-60  # if the sum of the probabilities is below this value, they are normalised to prevent underflow
_GAP_DB = 20.0  # a measurement this many dB below the most likely level is a gap between words and is ignored
_PAUSE_DB = 19.0  # a look more than this many dB below `_LevelEstimate._anchor` is a pause and is ignored
# The anchor falls by this many dB at each look; so after 4 s, the noise of a pause counts as soft speech.
_ANCHOR_FALL_DB = 0.04
_SAME_LOOKS = 3.0  # this many neighbouring looks count as one look, because they measure the same syllable
# The measured loudness of the output corrects the gain. The four values: the time constant of the measurement in
# seconds, the largest correction in dB, the correction in dB for each dB of error, and the seconds of speech after
# which half of the correction is used.
_SENT_MEMORY_S, _SENT_DB, _SENT_GAIN, _SENT_TRUST_S = 12.0, 3.0, 1.2, 0.5
_MODE_DB, _LOUD_SPREAD_DB, _SOFT_SLOPE_DB = 3.0, 3.2, 11.0  # see `_table`
_MEMORY_S = 4.0  # time constant of the measured loudness
_FINE_DB = 2.0  # the measured loudness corrects the estimate by at most this many dB
_RISE_DB, _FALL_DB = 0.4, 0.75  # maximum rise and fall of the gain per block: 80 and 150 dB a second
_HUSH_DB = 3.0  # maximum change of the gain per block in dB, before speech begins

_NEPERS_PER_DB = math.log(10) / 20
_LOUDEST = 1e6  # larger samples are clipped, because their squares would overflow float32


@dataclass(frozen=True, slots=True)
class _Weighting:
    """The K weighting of BS.1770 for one window. `power` (bins,) has a factor for the power of each Fourier bin."""

    window: Array
    power: Array

    @staticmethod
    @functools.lru_cache(maxsize=16)
    def of(rate_hz: int, count: int) -> _Weighting:
        window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(count) + 0.5) / count)
        frequencies_hz = np.fft.rfftfreq(count, 1 / rate_hz)
        both_sides = np.full(len(frequencies_hz), 2.0)
        both_sides[0] = 1.0
        if count % 2 == 0:
            both_sides[-1] = 1.0
        # With this scale, the sum over all bins is the mean power (Parseval's theorem).
        scale = both_sides / (count * np.square(window).sum())
        power = scale * k_weighting(frequencies_hz)
        return _Weighting(window.astype(np.float32), power.astype(np.float32))


def k_weighting(frequencies_hz: Array) -> Array:
    """Return the power response |H|^2 (F,) of the two filters of BS.1770-4 at frequencies_hz (F,).

    The filters are a shelf of +4 dB above 1682 Hz and a high-pass at 38 Hz, as analogue prototypes. The constants are
    from B. De Man, "Evaluation of Implementations of the EBU R128 Loudness Measurement", AES 145, 2018. The power
    response differs from the digital filters of BS.1770-4 by at most 0.1 dB.
    """
    s = 1j * np.asarray(frequencies_hz)
    f0, q, high, band = 1681.9744509555319, 0.7071752369554196, 1.5848647011308556, 1.2587209302325618
    shelf = (high * s**2 + band * f0 / q * s + f0**2) / (s**2 + f0 / q * s + f0**2)
    f1, q1 = 38.13547087613982, 0.5003270373253953
    low_cut = s**2 / (s**2 + f1 / q1 * s + f1**2)
    return np.square(np.abs(shelf * low_cut))


def at_loudness(samples: Samples, rate_hz: int, lufs: float) -> Samples:
    """Set a whole recording (N,) to an integrated loudness of `lufs`, with true peaks below CEILING_DBTP -> (N,).

    The limiter lowers the loudness of recordings with high peaks, so the gain is corrected up to three times.
    """
    gain_db = lufs - integrated_lufs(samples, rate_hz)
    for _ in range(4):
        limiter = Limiter(rate_hz, CEILING_DBTP)
        given = samples * np.float32(pcm.amplitude(gain_db))
        limited = np.concatenate((limiter.push(given), limiter.flush()))
        error_db = lufs - integrated_lufs(limited, rate_hz)
        if abs(error_db) < 0.2:
            break
        gain_db += error_db
    return limited


class Loudness:
    """A `Stage` that brings speech to TARGET_LUFS with true peaks below CEILING_DBTP.

    `expect` sets the probable loudness of the next line. The delay is 10 ms: one block, and the lookahead of the
    limiter. The output has as many samples as the input.
    """

    def __init__(self, rate_hz: int) -> None:
        self._block_samples = max(1, round(_BLOCK_S * rate_hz))
        self._partial: Samples = np.zeros(0, np.float32)  # audio that does not fill a block yet
        self._ramp = ((np.arange(self._block_samples) + 0.5) / self._block_samples).astype(np.float32)
        self._meter = _Meter(rate_hz, self._block_samples)
        self._estimate = _LevelEstimate()
        self._sent = _SentLoudness()
        self._limiter = Limiter(rate_hz, CEILING_DBTP)
        self._gain_db: float | None = None
        self._taken_samples = 0
        self._expected: list[tuple[int, float]] = []  # (first sample of a line, its expected LUFS)

    def expect(self, lufs: float) -> None:
        """Start a new line with the next sample. lufs: the probable loudness of the line."""
        self._expected.append((self._taken_samples, lufs))

    def push(self, samples: Samples) -> Samples:
        before = self._taken_samples - len(self._partial)
        self._taken_samples += len(samples)
        samples = samples.astype(np.float32, copy=False)
        if not np.abs(samples).max(initial=0.0) <= _LOUDEST:
            samples = np.clip(np.nan_to_num(samples, nan=0.0), -_LOUDEST, _LOUDEST)
        samples = np.concatenate((self._partial, samples))
        whole = len(samples) - len(samples) % self._block_samples
        self._partial = samples[whole:].copy()
        return self._limiter.push(self._ride(samples[:whole], before))

    def flush(self) -> Samples:
        last, self._partial = self._partial, np.zeros(0, np.float32)
        held = last * np.float32(pcm.amplitude(self._gain_db or 0.0))
        return self._limiter.push(np.concatenate((held, self._limiter.end)))

    def _ride(self, samples: Samples, at: int) -> Samples:
        """Apply the gain to whole blocks of samples (N,). at: position of the first sample in the input."""
        if not len(samples):
            return samples
        size = self._block_samples
        estimate, sent, gain_db = self._estimate, self._sent, self._gain_db
        if gain_db is None:
            self._begin_lines(at + size)
            gain_db = min(MAX_GAIN_DB, max(MIN_GAIN_DB, TARGET_LUFS - estimate.lufs))
        wanted_db, rise_db, fall_db = 0.0, 0.0, 0.0
        is_stale = True  # whether the three values above must be computed again
        end = at
        points = [gain_db]
        # This loop runs for each block, so it avoids function calls.
        for look in self._meter.look(samples.reshape(-1, size)):
            end += size
            if self._expected and self._expected[0][0] < end:
                self._begin_lines(end)
                is_stale = True
            if look is not None:
                estimate.update(look)
                sent.update(look * 10 ** (gain_db / 10))
                is_stale = True
            if is_stale:
                is_stale = False
                wanted_db = TARGET_LUFS - estimate.lufs + sent.correction_db
                if not MIN_GAIN_DB <= wanted_db <= MAX_GAIN_DB:
                    wanted_db = MIN_GAIN_DB if wanted_db < 0 else MAX_GAIN_DB
                rise_db, fall_db = (_RISE_DB, _FALL_DB) if estimate.spoken else (_HUSH_DB, _HUSH_DB)
            step_db = wanted_db - gain_db
            if not -fall_db <= step_db <= rise_db:
                step_db = rise_db if step_db > 0 else -fall_db
            gain_db += step_db
            points.append(gain_db)
        self._gain_db = gain_db
        ends: Samples = (np.array(points) * _NEPERS_PER_DB).astype(np.float32)
        gains: Samples = (ends[1:] - ends[:-1])[:, None] * self._ramp
        gains += ends[:-1, None]
        return samples * np.exp(gains, out=gains).reshape(-1)

    def _begin_lines(self, end: int) -> None:
        """Begin the lines whose first sample is before the position `end` in the input."""
        while self._expected and self._expected[0][0] < end:
            self._estimate.expect(self._expected.pop(0)[1])


class _Meter:
    """Measures the K-weighted power of the last 20 ms of audio, every 10 ms."""

    def __init__(self, rate_hz: int, block_samples: int) -> None:
        self._weighting = _Weighting.of(rate_hz, _WINDOW_BLOCKS * block_samples)
        self._past = np.zeros((_WINDOW_BLOCKS - 1, block_samples), np.float32)
        self._blocks = 0

    def look(self, blocks: Samples) -> list[float | None]:
        """Measure blocks (B, block). Returns for each block the power of the window that ends with the block; None if
        no window ends with it.
        """
        whole = np.concatenate((self._past, blocks))
        self._past = whole[len(blocks) :].copy()
        first = -(self._blocks + 1) % _LOOK_BLOCKS
        self._blocks += len(blocks)
        looks: list[float | None] = [None] * len(blocks)
        if first < len(blocks):
            count = len(range(first, len(blocks), _LOOK_BLOCKS))
            steps = whole[first:][: _LOOK_BLOCKS * (count + 1)].reshape(count + 1, -1)  # a window consists of two steps
            spectra = np.fft.rfft(np.concatenate((steps[:-1], steps[1:]), axis=1) * self._weighting.window)
            powers = (np.square(spectra.real) + np.square(spectra.imag)) * self._weighting.power
            looks[first::_LOOK_BLOCKS] = powers.sum(axis=1).tolist()
        return looks


class _LevelEstimate:
    """Estimates the loudness of speech from the expected level and the measurements ("looks")."""

    def __init__(self) -> None:
        self._probable = _prior(TARGET_LUFS)  # probability of each of _LEVELS, up to a common factor
        self._expected: float | None = None
        self._moment = np.zeros(_MOMENT_LOOKS)  # ring buffer with the powers of the last 400 ms
        self._looks = 0
        self._measured_power = self._measured_s = 0.0  # decaying sums over the 400 ms blocks above the gate
        self._measured_lufs = TARGET_LUFS  # the loudness of these blocks together; has no meaning without a block
        # The anchor rises immediately with the estimated level and falls slowly. Looks far below the anchor are pauses.
        self._anchor = TARGET_LUFS
        self.spoken = False  # whether speech has begun since the expected level changed
        self.lufs = TARGET_LUFS

    def expect(self, lufs: float) -> None:
        """Begin a line with the expected level `lufs`. If the previous line had the same expected level, the
        estimate stays and its distribution becomes wider.
        """
        if lufs != self._expected:
            self._expected = self.lufs = self._anchor = lufs
            self.spoken = False
        keep = 0.3 if self.spoken else 0.0
        self._measured_power *= keep
        self._measured_s *= keep
        if self._measured_s:
            self._measured_lufs = _lufs(self._measured_power / self._measured_s)
        probable = self._probable / self._probable.sum()
        self._probable = 0.2 * keep * probable + (1 - 0.2 * keep) * _prior(self.lufs)

    def update(self, power: float) -> None:
        """Update the estimate with the power of one window."""
        self._moment[self._looks % _MOMENT_LOOKS] = power
        self._looks += 1
        level = -0.691 + 10 * math.log10(power) if power > 0 else -200.0  # `_lufs` without a call
        if level < _QUIETEST:
            return
        # Ignore looks in a pause. Otherwise the noise of the pause would count as soft speech, and the gain would
        # amplify it.
        self._anchor = max(self.lufs, self._anchor - _ANCHOR_FALL_DB)
        if level < self._anchor - _PAUSE_DB:
            if self._looks % _MOMENT_EVERY == 0:
                self._measure()
            return
        over = int((min(level, _HIGHEST) - _LOWEST) / _STEP_DB + 0.5) if level > _LOWEST else 0
        weighted = self._probable * _LIKELY[over]
        if level > self.lufs - _GAP_DB:
            self.spoken = True
            least, total, moment = _DRIFTED_SUMS.dot(weighted).tolist()
            self._probable = np.correlate(weighted, _DRIFT, "same")
            self._probable += least
        else:
            total, moment = _KEPT_SUMS.dot(weighted).tolist()
            self._probable = weighted
        if total < _TINY:
            self._probable /= total
        mean_lufs = moment / total
        if self._looks % _MOMENT_EVERY == 0:
            self._measure()
        if self._measured_s:
            fine = self._measured_lufs - mean_lufs
            if not -_FINE_DB <= fine <= _FINE_DB:
                fine = _FINE_DB if fine > 0 else -_FINE_DB
            mean_lufs += self._measured_s / (self._measured_s + 1.0) * fine
        self.lufs = mean_lufs

    def _measure(self) -> None:
        """Update the gated mean of BS.1770. Older blocks decay with the time constant _MEMORY_S."""
        looks = min(self._looks, _MOMENT_LOOKS)
        power = float(np.add.reduce(self._moment[:looks])) / looks
        if _lufs(power) < self.lufs - 10:
            return
        keep = 1 - _MOMENT_S / _MEMORY_S
        self._measured_power = keep * self._measured_power + _MOMENT_S * power
        self._measured_s = keep * self._measured_s + _MOMENT_S
        self._measured_lufs = _lufs(self._measured_power / self._measured_s)


class _SentLoudness:
    """Measures the loudness of the output so far, and computes the gain correction to reach the target."""

    def __init__(self) -> None:
        self._moment = np.zeros(_MOMENT_LOOKS)
        self._looks = 0
        self._power = self._seconds = 0.0  # decaying sums over the moments above the gate
        self.correction_db = 0.0

    def update(self, power: float) -> None:
        """Add the power of one look at the output, and update `correction_db`."""
        self._moment[self._looks % _MOMENT_LOOKS] = power
        self._looks += 1
        if self._looks % _MOMENT_EVERY or self._looks < _MOMENT_LOOKS:
            return
        moment = float(np.add.reduce(self._moment)) / _MOMENT_LOOKS
        if _lufs(moment) < TARGET_LUFS - 10:
            return
        keep = 1 - _MOMENT_S / _SENT_MEMORY_S
        self._power = keep * self._power + _MOMENT_S * moment
        self._seconds = keep * self._seconds + _MOMENT_S
        error_db = TARGET_LUFS - _lufs(self._power / self._seconds)
        share = self._seconds / (self._seconds + _SENT_TRUST_S)
        self.correction_db = share * min(_SENT_DB, max(-_SENT_DB, _SENT_GAIN * error_db))


def _lufs(power: float) -> float:
    return -0.691 + 10 * math.log10(power) if power > 0 else -200.0


@functools.lru_cache(maxsize=64)
def _prior(lufs: float) -> Array:
    """Return the probability of each of _LEVELS before the first look (measurement).

    The array is cached: do not change it.
    """
    near = np.exp(-0.5 * np.square((_LEVELS - lufs) / _EXPECT_SPREAD_DB))
    prior: Array = (1 - _SURPRISE) * near / near.sum() + _SURPRISE / len(_LEVELS)
    return prior


def _drifted_sums() -> Array:
    """Return three rows (3, L) for a distribution (L,) before its drift. The drift makes the distribution slightly
    wider (`_DRIFT`), and gives every level the same minimum probability.

    The product of a row and the distribution is the minimum probability; the sum of the distribution after the drift;
    and the sum of the levels, each multiplied by its probability after the drift.
    """
    count = len(_LEVELS)
    least = np.full(count, _MIN_PROBABILITY)
    drift = sum(share * np.eye(count, k=place - 1) for place, share in enumerate(_DRIFT)) + least
    return np.stack((least, drift.sum(axis=0), _LEVELS @ drift))


def _table() -> list[Array]:
    """Return an array (L,) for each possible level of a look: the likelihood of this look for each true level.

    The levels of the looks and the true levels are the values in _LEVELS. The likelihoods are correct up to a common
    factor.

    The table was fitted to 40 people and 13 synthetic voices. The most likely look is 3 dB above the true level. A look
    8 dB above the true level is rare. Below the most likely look, the likelihood falls by a factor of e every 11 dB.
    Looks far below the true level are gaps between words, and all of them have the same likelihood.
    """
    above = _LEVELS[:, None] - _LEVELS - _MODE_DB
    loud, soft = -0.5 * np.square(above / _LOUD_SPREAD_DB), np.maximum(above, -_GAP_DB) / _SOFT_SLOPE_DB
    likely = np.where(above > 0, loud, soft)
    return list(np.exp(likely / _SAME_LOOKS))


_LIKELY = _table()
# The shares of a level's probability that the drift moves to the next lower level, keeps, and moves to the next higher
# level.
_DRIFT = np.array((_DRIFT_SHARE, 1 - 2 * _DRIFT_SHARE, _DRIFT_SHARE))
_DRIFTED_SUMS = _drifted_sums()
_KEPT_SUMS = np.stack((np.ones(len(_LEVELS)), _LEVELS))  # the last two rows for a distribution that does not drift
