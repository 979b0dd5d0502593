"""The output guard: ends a line of speech in which the model fails.

Rules (each is counted in `tts_guard_total` under its name):

- `frame_cap`: ends a line that takes far more frames than its text needs.
- `early_end`: forbids the end of speech in a line's first frames, where models sometimes draw it by mistake.
- `repeat`: ends a line after REPEATED_S of identical frames, or when its last second sounds a second time.
- `silence`: ends a line after a pause that is too long. How long a pause may be depends on how much of the text must
  have been spoken already.
- `lead_in`: ends a line that does not begin to speak within LEAD_IN_S.
- `babble`: ends a line that still produces sound when its text must be over for a long time.
- `too_short`: the line ended by itself, in less time than any speaker needs for its text.
- `retry`: generates an utterance once more with another seed; nothing of it was sent yet.

`frame_cap` and `early_end` need the model's logits and are in its runner. `retry` is in the generator.

The expected duration comes from the pace of the voice's own recording, if it has one with a transcript. Human
recordings of one speaker differ from each other by up to 1.5 times, so all rules leave a generous band. Silence is
judged by the line's own level and noise floor (`levels.py`). Does not depend on models.
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

SLOW_CHARS_PER_S, FAST_CHARS_PER_S = 8.0, 28.0  # all of 52 measured speakers are between these
BAND_SLOW, BAND_FAST = 0.65, 0.4  # a line may last 0.4 to 1 / 0.65 times its expected duration
REPEATED_S = 1.0
LEAD_IN_S = 5.0
LONG_SILENCE_S = 4.0  # the limit before the expected duration is over; longer than a dramatic pause
LATE_SILENCE_S = 2.0  # the limit after the expected duration
OVER_SILENCE_S = 1.5  # the limit after the duration of a slow reading, and for digital silence
SMOOTHING_S = 0.1  # levels are averaged over this time, because the noise of a room varies
MIN_SPOKEN = 0.4  # share of the expected duration; with less sound, the text cannot be complete
BABBLE_FACTOR, BABBLE_SLACK_S = 1.1, 2.5  # a line may last this factor times a slow reading, plus these seconds
REPETITION_FROM = 0.6  # share of the expected duration after which repetitions are searched
_BEGIN_DBFS = QUIET_DBFS + 5  # the first sound of a line has at least this level
_BROKEN_SILENCE = 2  # one loud window cancels this many silent windows, so a click does not end a silence


def speech_length(text: str) -> float:
    """Return the length of a text, measured in characters of English that take equally long to speak.

    A Chinese or Japanese character is about one syllable, so it counts as three characters.
    """
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + 2.0 * wide


def pace_of(transcript: str, seconds: float) -> float | None:
    """Return the pace of a recording in characters a second. Returns None if the recording is too short, or if people
    do not speak at this pace.
    """
    length = speech_length(transcript)
    if length < 10 or seconds < 1.0:
        return None
    pace = length / seconds
    return pace if SLOW_CHARS_PER_S / 2 <= pace <= FAST_CHARS_PER_S else None


class LineGuard:
    """Checks one line while it is generated, frame by frame. Used for one line, in one thread."""

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
        self._silence_s = self._digital_s = 0.0  # duration of the current pause
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
        """Add decoded audio (N,) of the line. The codec may return the audio of a frame some steps after its codes."""
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
        if self._elapsed_s >= REPETITION_FROM * self._late_s:  # not before, to save time
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
        """Return "too_short" if a line, which the model has ended with EOS, is too short for its text; otherwise None.

        Frames that are not decoded yet count as sound."""
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
    """Detects that the last second of a line sounds a second time, with other codes.

    Compares the spectrum of each window with the windows that are SHORTEST_S to LONGEST_S earlier. If the mean
    difference at one distance is below MAX_DB for COMPARED_S seconds, this is a repetition. Different speech of one
    speaker differs by 8 dB or more.
    """

    BANDS = 20
    SHORTEST_S, LONGEST_S, COMPARED_S = 0.4, 2.4, 1.6
    MAX_DB = 4.0
    LEAST_SOUNDING = 0.15  # smallest share of windows with sound in a comparison

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
        block = self._lags[0]  # the windows of such a block are compared with earlier blocks only
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
    """Return which bins of a transform of 2 * size samples belong to which of `count` bands: (count, size + 1), values
    0 and 1.
    """
    hertz = np.fft.rfftfreq(2 * size, 1 / rate_hz)
    edges = np.geomspace(120, min(7000, 0.45 * rate_hz), count + 1)
    bands = np.array([(hertz >= low) & (hertz < high) for low, high in itertools.pairwise(edges)], float)
    bands[bands.sum(axis=1) == 0, 1] = 1.0
    return bands
