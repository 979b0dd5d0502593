"""Bring a whole audio file to a target: measure the audio, then read it again and apply a gain and a limiter.

A target is a loudness in LUFS, or the rules of ACX, the publisher of audiobooks: an RMS level of -23 to -18 dB and
peaks below -3 dB. ACX also asks for a noise floor below -60 dB: this module measures the noise floor, and does not
change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from app.audio import pcm
from app.audio.limiter import Limiter
from app.audio.loudness import SILENT_LUFS, LoudnessMeter

if TYPE_CHECKING:
    from app.types import Samples

# None = do not change the sound; a number = an integrated loudness in LUFS, for example -18; "acx" = the rules of ACX.
LoudnessTarget = float | Literal["acx"] | None
LOUDEST_LUFS, QUIETEST_LUFS = -9.0, -40.0  # the range of valid targets

_ACX_RMS_DB = -20.0  # ACX allows -23 to -18 dB, and the limiter lowers this level by up to 1 dB
_ACX_CEILING_DBTP = -3.6  # below ACX's limit of -3 dB, because codecs raise peaks by up to 0.5 dB
_CEILING_DBTP = -1.0
_MAX_GAIN_DB = 30.0  # more gain would amplify noise
_NOISE_WINDOW_S = 0.5  # the noise floor is the level of the quietest window of this length, as in Audacity's ACX check
_LOWEST_DB = -120.0


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of an audio file. A level below -120 dB is stored as -120 dB."""

    lufs: float  # integrated loudness (ITU-R BS.1770); SILENT_LUFS for silence
    rms_db: float  # RMS level of the whole file, in dB relative to a full-scale square wave
    peak_db: float  # the largest sample
    noise_floor_db: float  # RMS level of the quietest half second

    @property
    def meets_acx(self) -> bool:
        """Whether the file keeps the rules of ACX for levels."""
        return -23 <= self.rms_db <= -18 and self.peak_db <= -3 and self.noise_floor_db <= -60


@dataclass(frozen=True, slots=True)
class LevelRange:
    """The levels of all audio files of a result."""

    lufs_lowest: float
    lufs_highest: float
    rms_db_lowest: float
    rms_db_highest: float
    peak_db: float  # of the loudest file
    noise_floor_db: float  # the noise floor of the file with the most noise
    meets_acx: bool  # whether every file keeps the rules of ACX for levels

    @classmethod
    def of(cls, levels: Sequence[Levels]) -> LevelRange:
        """Return the range of the levels of several files, rounded to 0.1 dB."""
        lufs, rms = [each.lufs for each in levels], [each.rms_db for each in levels]
        return cls(
            lufs_lowest=round(min(lufs), 1),
            lufs_highest=round(max(lufs), 1),
            rms_db_lowest=round(min(rms), 1),
            rms_db_highest=round(max(rms), 1),
            peak_db=round(max(each.peak_db for each in levels), 1),
            noise_floor_db=round(max(each.noise_floor_db for each in levels), 1),
            meets_acx=all(each.meets_acx for each in levels),
        )


class Meter:
    """Measures the levels of a stream."""

    def __init__(self, rate_hz: int) -> None:
        self._loudness = LoudnessMeter(rate_hz)
        self._window = round(_NOISE_WINDOW_S * rate_hz)
        self._pending: Samples = np.zeros(0, np.float32)  # less than a window
        self._samples = 0
        self._power = 0.0
        self._peak = 0.0
        self._floor = np.inf

    def push(self, samples: Samples) -> None:
        """Measure the next samples (N,)."""
        self._loudness.push(samples)
        self._samples += len(samples)
        self._power += float(np.sum(np.square(samples, dtype=np.float64)))
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))
        joined = np.concatenate((self._pending, samples))
        count = len(joined) // self._window
        if count:
            windows = joined[: count * self._window].reshape(count, self._window)
            self._floor = min(self._floor, float(np.mean(np.square(windows, dtype=np.float64), axis=1).min()))
        self._pending = joined[count * self._window :].copy()

    def finish(self) -> Levels:
        mean = self._power / max(1, self._samples)
        floor = self._floor if np.isfinite(self._floor) else mean
        return Levels(self._loudness.finish(), _power_db(mean), _power_db(self._peak * self._peak), _power_db(floor))


def _power_db(power: float) -> float:
    return max(_LOWEST_DB, 10 * float(np.log10(max(power, 1e-20))))


def mastered(read: Callable[[], Iterable[Samples]], rate_hz: int, target: LoudnessTarget) -> Iterator[Samples]:
    """Yield the samples of a file in blocks, at the loudness of the target. Digital silence stays silent.

    read: returns the samples of the file from its start. It is called once if `target` is None, and twice otherwise.
    """
    if target is None:
        yield from read()
        return
    meter = Meter(rate_hz)
    for samples in read():
        meter.push(samples)
    levels = meter.finish()
    ceiling = _CEILING_DBTP
    if target == "acx":
        gain_db, ceiling = _ACX_RMS_DB - levels.rms_db, _ACX_CEILING_DBTP
    else:
        gain_db = target - levels.lufs
    if levels.lufs <= SILENT_LUFS or levels.rms_db <= _LOWEST_DB:
        gain_db = 0.0
    gain = np.float32(pcm.amplitude(min(gain_db, _MAX_GAIN_DB)))
    limiter = Limiter(rate_hz, ceiling)
    for samples in read():
        yield limiter.push(samples * gain)
    yield limiter.flush()
