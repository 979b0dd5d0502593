"""The output guard: ends a line of speech in which the model fails.

Rules (each is counted in `tts_guard_total` under its name):

- `frame_cap`: ends a line that takes far more frames than its text needs.
- `early_end`: forbids the end of speech in the first frames of a line, where models sometimes end by mistake.
- `repeat`: ends a line after REPEATED_S of identical frames, or when the last part of its audio repeats earlier audio.
- `silence`: ends a line after a pause that is too long. The longest allowed pause depends on the share of the text that
  must have been spoken already.
- `lead_in`: ends a line if no speech begins within LEAD_IN_S.
- `babble`: ends a line that still produces sound long after its text must be complete.
- `too_short`: reports a line that the model ended sooner than any speaker could speak its text.
- `retry`: generates an utterance again with another seed, if none of its audio was sent yet.

The rules `frame_cap` and `early_end` need the logits of the model, so they are in the runner of the model. The rule
`retry` is in the generator.

The expected duration of a line comes from the pace of the voice's recording, if the voice has a recording with a
transcript. One human speaker varies the pace by a factor of up to 1.5, so all limits are wide. Whether audio is silent
depends on the level and the noise floor of the same line (`levels.py`). This module does not depend on models.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from typing import TYPE_CHECKING, Literal

import numpy as np

from app.audio.levels import DIGITAL_DBFS, QUIET_DBFS, WINDOW_S, LevelTracker, PowerSmoother, levels_dbfs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

Rule = Literal["frame_cap", "early_end", "repeat", "silence", "lead_in", "babble", "too_short", "retry"]

SLOW_CHARS_PER_S, FAST_CHARS_PER_S = 8.0, 28.0  # the paces of 52 measured speakers are between these two
BAND_SLOW, BAND_FAST = 0.65, 0.4  # limits of the duration of a line: 0.4 and 1 / 0.65 times its expected duration
REPEATED_S = 1.0
LEAD_IN_S = 5.0
LONG_SILENCE_S = 4.0  # the longest allowed pause before the expected duration of the line is over
LATE_SILENCE_S = 2.0  # the longest allowed pause after the expected duration of the line
OVER_SILENCE_S = 1.5  # the longest allowed pause after the duration of a slow reading, and the longest digital silence
SMOOTHING_S = 0.1  # levels are averaged over SMOOTHING_S, because the level of room noise varies
MIN_SPOKEN = 0.4  # a line with less sound than MIN_SPOKEN times its expected duration cannot contain its complete text
# The most sound in a line, without its pauses: BABBLE_FACTOR times the duration of a slow reading, plus BABBLE_SLACK_S.
BABBLE_FACTOR, BABBLE_SLACK_S = 1.1, 2.5
REPETITION_FROM = 0.6  # repetitions are searched only after REPETITION_FROM times the expected duration
_BEGIN_DBFS = QUIET_DBFS + 5  # the first sound of a line has at least this level
# A loud window shortens a pause by only _BROKEN_SILENCE windows, so that a click does not end a pause.
_BROKEN_SILENCE = 2


def speech_length(text: str) -> float:
    """Return the length of a text as a number of English characters that take equally long to speak.

    A Chinese or Japanese character is about one syllable, so it counts as three characters.
    """
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + 2.0 * wide


def pace_of(transcript: str, seconds: float) -> float | None:
    """Return the pace of a recording in characters a second. Returns None if the recording is too short, or if the pace
    is not plausible for human speech.
    """
    length = speech_length(transcript)
    if length < 10 or seconds < 1.0:
        return None
    pace = length / seconds
    return pace if SLOW_CHARS_PER_S / 2 <= pace <= FAST_CHARS_PER_S else None


class LineGuard:
    """Checks one line while it is generated, frame by frame. Use an instance for one line, in one thread."""

    def __init__(self, length: float, frame_s: float, rate_hz: int, *, pace: float | None = None) -> None:
        """length: the length of the line's text (see `speech_length`). pace: the pace of the voice in characters a
        second; None = unknown.
        """
        self._rate_hz = rate_hz
        self._frame_s = frame_s
        self._late_s = length / (pace or SLOW_CHARS_PER_S)  # after this time the text is probably complete
        # After this time even a slow reading is complete.
        self._over_s = length / (BAND_SLOW * pace if pace else SLOW_CHARS_PER_S)
        self._least_s = BAND_FAST * length / pace if pace else length / FAST_CHARS_PER_S
        self._spoken_s = MIN_SPOKEN * length / (pace or FAST_CHARS_PER_S / 2)
        self._levels = LevelTracker()
        self._smoother = PowerSmoother(round(SMOOTHING_S / WINDOW_S))
        self._repetition = Repetition(rate_hz)
        self._unjudged = np.zeros(0, np.float32)  # audio that does not fill a window yet
        self._frames = 0
        self._elapsed_s = 0.0  # duration of all frames, including frames that are not decoded yet
        self._begun_s: float | None = None  # time of the first sound; None = no sound yet
        self._sound_s = 0.0  # total duration of the windows with sound
        self._silence_s = self._digital_s = 0.0  # durations of the current pause and of the digital silence in it
        self._repeated_s = 0.0
        self._last: NDArray[np.integer] | None = None

    def check_frame(self, frame: NDArray[np.integer]) -> Rule | None:
        """Check the codes (K,) of the next frame. Returns the rule that ends the line, or None."""
        self._frames += 1
        same = self._last is not None and np.array_equal(frame, self._last)
        self._repeated_s = self._repeated_s + self._frame_s if same else 0.0
        self._last = frame
        if self._repeated_s >= REPEATED_S:
            return "repeat"
        return self._broken()

    def add_samples(self, samples: Samples) -> None:
        """Add the next audio (N,) of the line. The codec may return the audio some steps after its codes."""
        samples = np.concatenate((self._unjudged, samples))
        levels = levels_dbfs(samples, self._rate_hz)
        whole = len(levels) * round(WINDOW_S * self._rate_hz)
        self._unjudged = samples[whole:]
        if not len(levels):
            return
        loud = levels
        levels = self._smoother.push(10 ** (levels / 10))
        self._levels.add(levels)
        threshold = self._levels.threshold_dbfs
        # Do not search for repetitions before this time, because an earlier search would only cost time.
        if self._elapsed_s >= REPETITION_FROM * self._late_s:
            self._repetition.add(samples[:whole], loud >= max(threshold, _BEGIN_DBFS + 5))
        for level in levels:
            self._elapsed_s += WINDOW_S
            if self._begun_s is None and level < _BEGIN_DBFS:
                continue
            if self._begun_s is None:
                self._begun_s = self._elapsed_s - WINDOW_S
            self._digital_s = self._digital_s + WINDOW_S if level < DIGITAL_DBFS else 0.0
            if level < threshold:
                self._silence_s += WINDOW_S
            else:
                self._sound_s += WINDOW_S
                self._silence_s = max(0.0, self._silence_s - _BROKEN_SILENCE * WINDOW_S)

    def end(self) -> Rule | None:
        """Return "too_short" if the line is too short for its text, otherwise None. Call this after the model has ended
        the line.

        Frames that are not decoded yet count as sound.
        """
        spoken_s = max(self._frames * self._frame_s, self._elapsed_s) - (self._begun_s or 0.0) - self._silence_s
        return "too_short" if spoken_s < self._least_s else None

    def _broken(self) -> Rule | None:
        if self._begun_s is None:
            return "lead_in" if self._elapsed_s >= LEAD_IN_S else None
        spoken_s = self._elapsed_s - self._begun_s
        if self._silence_s >= LONG_SILENCE_S:
            return "silence"
        if self._sound_s >= self._spoken_s:
            if spoken_s >= self._over_s and self._silence_s >= OVER_SILENCE_S:
                return "silence"
            if spoken_s >= self._late_s and max(self._silence_s - 0.5, self._digital_s) >= OVER_SILENCE_S:
                return "silence"
            if self._repetition.distance_db < Repetition.MAX_DB:
                return "repeat"
        if self._sound_s >= BABBLE_FACTOR * self._over_s + BABBLE_SLACK_S:
            return "babble"
        return None


class Repetition:
    """Detects that the last part of a line repeats earlier audio of the line. The codes of the two parts may differ.

    The spectrum of each window is compared with the spectra of the windows that are SHORTEST_S to LONGEST_S earlier.
    The line repeats itself if, at one distance in time, the spectra of the last COMPARED_S seconds differ from the
    earlier spectra by less than MAX_DB on average. Different speech of one speaker differs by 8 dB or more.
    """

    BANDS = 20
    SHORTEST_S, LONGEST_S, COMPARED_S = 0.4, 2.4, 1.6
    MAX_DB = 4.0
    LEAST_SOUNDING = 0.15  # two parts are compared only if the share of windows with sound is at least LEAST_SOUNDING

    def __init__(self, rate_hz: int) -> None:
        size = round(WINDOW_S * rate_hz)
        self._bands = _bands(rate_hz, size, self.BANDS)
        self._size = size
        self._window = np.hanning(2 * size).astype(np.float32)
        self._before = np.zeros(size, np.float32)
        self._lags = np.arange(round(self.SHORTEST_S / WINDOW_S), round(self.LONGEST_S / WINDOW_S))
        # Ring buffer with the spectra of the last windows.
        self._spectra = np.full((self._lags[-1] + self._lags[0], self.BANDS), 1e3)
        self._differences = np.full((round(self.COMPARED_S / WINDOW_S), len(self._lags)), 1e3)
        self._sounding = np.zeros(len(self._differences))
        self._count = 0
        self.distance_db = np.inf

    def add(self, samples: Samples, sounding: NDArray[np.bool_]) -> None:
        """Add complete windows of audio (N,). sounding (windows,): whether each window is not silent."""
        padded = np.concatenate((self._before, samples))
        self._before = padded[-self._size :]
        frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * self._size)[:: self._size] * self._window
        power = np.square(np.abs(np.fft.rfft(frames, axis=1))) @ self._bands.T
        spectra = 10 * np.log10(power / self._size**2 + 1e-8)
        block = self._lags[0]  # no window of a block is compared with a window of the same block
        for start in range(0, len(spectra), block):
            new, sounds = spectra[start : start + block], sounding[start : start + block]
            number = self._count + np.arange(len(new))
            earlier = self._spectra[(number[:, None] - self._lags) % len(self._spectra)]  # (windows, lags, BANDS)
            rows = number % len(self._differences)
            self._differences[rows] = np.abs(earlier - new[:, None]).mean(axis=2) * sounds[:, None]
            self._sounding[rows] = sounds
            self._spectra[number % len(self._spectra)] = new
            self._count += len(new)
        share = self._sounding.mean()
        if self._count >= len(self._differences) and share >= self.LEAST_SOUNDING:
            self.distance_db = float(self._differences.mean(axis=0).min() / share)


@functools.cache
def _bands(rate_hz: int, size: int, count: int) -> NDArray[np.float64]:
    """Return a matrix (count, size + 1): 1 if a bin of a Fourier transform of 2 * size samples belongs to a band,
    otherwise 0.
    """
    hertz = np.fft.rfftfreq(2 * size, 1 / rate_hz)
    edges = np.geomspace(120, min(7000, 0.45 * rate_hz), count + 1)
    bands = np.array([(hertz >= low) & (hertz < high) for low, high in itertools.pairwise(edges)], float)
    bands[bands.sum(axis=1) == 0, 1] = 1.0
    return bands
