"""The edges and the level of one utterance: trim silence, fade, apply gain, limit the length.

A model may start late, end late or stop on a loud sample. Without trimming and fades, joined sentences would have long
pauses or click. Does not depend on text or engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.audio import pcm
from app.audio.stages import joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

_KNEE = np.float32(0.9)  # -0.9 dBFS: normal speech rarely reaches it
_WINDOW_S = 0.01

_NOTHING: Samples = np.zeros(0, dtype=np.float32)
_NOTHING.flags.writeable = False


class EdgeTrimmer:
    """A `Stage` that shortens the silence before the first and after the last sound to lead_s and tail_s.

    A 10 ms window is silent if its RMS is below threshold_dbfs. Pauses inside are kept: the first tail_s of a pause is
    returned immediately, the rest when more audio follows. So memory is limited by the longest pause. The delay for
    other audio is less than 10 ms, the rest of its window. An input of only silence returns at most lead_s of it.
    """

    def __init__(
        self, rate_hz: int, *, lead_s: float = 0.05, tail_s: float = 0.15, threshold_dbfs: float = -50.0
    ) -> None:
        self._window_samples = max(1, round(_WINDOW_S * rate_hz))
        self._lead_samples = round(lead_s * rate_hz)
        self._tail_samples = round(tail_s * rate_hz)
        self._threshold = pcm.amplitude(threshold_dbfs)
        self._partial = _NOTHING  # the start of a window that is not complete
        self._held: list[Samples] = []  # at first: the lead-in; later: the part of a pause beyond tail_s
        self._kept_of_pause = 0  # samples of the current pause already returned
        self._sounded = False

    @property
    def sounded(self) -> bool:
        """Whether the input so far has a window that is not silent."""
        return self._sounded

    def push(self, samples: Samples) -> Samples:
        samples = np.concatenate((self._partial, samples))
        whole = len(samples) - len(samples) % self._window_samples
        self._partial = samples[whole:].copy()
        return self._pass(samples[:whole], self._window_samples)

    def flush(self) -> Samples:
        last, self._partial = self._partial, _NOTHING
        out = self._pass(last, len(last)) if len(last) else _NOTHING
        if not self._sounded:
            out = joined(self._held)
        self._held = []
        return out

    def _pass(self, samples: Samples, window_samples: int) -> Samples:
        """Process whole windows (a multiple of window_samples) and return the samples that are ready."""
        if not len(samples):
            return _NOTHING
        windows = samples.reshape(-1, window_samples)
        loud = np.flatnonzero(np.sqrt(np.mean(np.square(windows), axis=1)) >= self._threshold)
        if not len(loud):
            return self._pause(samples)
        out = []
        if self._sounded:
            out += self._held
        else:
            self._sounded = True
            first = loud[0] * window_samples
            before = joined([*self._held, samples[:first]])
            out.append(before[max(0, len(before) - self._lead_samples) :])
            samples = samples[first:]
            loud -= loud[0]
        end = (loud[-1] + 1) * window_samples
        self._held = []
        self._kept_of_pause = 0
        return joined([*out, samples[:end], self._pause(samples[end:])])

    def _pause(self, silent: Samples) -> Samples:
        """Process silent samples: return them up to tail_s of the current pause, hold back the rest."""
        if not self._sounded:
            held = joined([*self._held, silent])
            self._held = [held[max(0, len(held) - self._lead_samples) :].copy()]
            return _NOTHING
        now = min(len(silent), self._tail_samples - self._kept_of_pause)
        self._kept_of_pause += now
        if now < len(silent):
            self._held.append(silent[now:].copy())
        return silent[:now]


class Fader:
    """A `Stage` that fades an utterance in and out with raised cosines, so that its edges do not click.

    The fade-in adds no delay; the fade-out delays by its own length. A shorter utterance gets shorter fades.
    """

    def __init__(self, rate_hz: int, *, fade_in_s: float = 0.004, fade_out_s: float = 0.010) -> None:
        self._rise = _rise(round(fade_in_s * rate_hz))
        self._fall_samples = round(fade_out_s * rate_hz)
        self._position = 0
        self._held = _NOTHING

    def push(self, samples: Samples) -> Samples:
        rise = self._rise[self._position : self._position + len(samples)]
        if len(rise):
            samples = np.concatenate((samples[: len(rise)] * rise, samples[len(rise) :]))
        self._position += len(samples)
        samples = np.concatenate((self._held, samples))
        ready = max(0, len(samples) - self._fall_samples)
        self._held = samples[ready:].copy()
        return samples[:ready]

    def flush(self) -> Samples:
        held, self._held = self._held, _NOTHING
        return held * _rise(len(held))[::-1]


class Gain:
    """A `Stage` that applies gain_db and keeps the result within +-1 with `soft_limit`. No delay, no memory."""

    def __init__(self, gain_db: float) -> None:
        self._factor = np.float32(pcm.amplitude(gain_db))

    def push(self, samples: Samples) -> Samples:
        return soft_limit(samples * self._factor)

    def flush(self) -> Samples:
        return _NOTHING


class LengthLimit:
    """A `Stage` that fades out and ends the audio at limit_s; None = no limit. reached: whether that has happened."""

    def __init__(self, rate_hz: int, limit_s: float | None) -> None:
        self._left_samples = None if limit_s is None else round(limit_s * rate_hz)
        self._fader = Fader(rate_hz, fade_in_s=0.0) if limit_s is not None else None
        self.reached = False

    def push(self, samples: Samples) -> Samples:
        if self._left_samples is None or self._fader is None:
            return samples
        samples = samples[: self._left_samples]
        self._left_samples -= len(samples)
        self.reached = self._left_samples == 0
        return self._fader.push(samples)

    def flush(self) -> Samples:
        return _NOTHING if self._fader is None else self._fader.flush()


def soft_limit(samples: Samples) -> Samples:
    """Limit samples (N,) to [-1, 1]. Samples up to 0.9 stay unchanged; a tanh curve compresses larger ones."""
    magnitude = np.abs(samples)
    over = magnitude > _KNEE
    if not over.any():
        return samples
    room = np.float32(1.0) - _KNEE
    bent = np.minimum(_KNEE + room * np.tanh((magnitude - _KNEE) / room), np.float32(1.0))
    return np.where(over, np.copysign(bent, samples), samples).astype(np.float32, copy=False)


def _rise(length: int) -> NDArray[np.float32]:
    """A rising half of a raised cosine with `length` points, from just above 0 to just below 1."""
    phase = (np.arange(length) + 0.5) / max(1, length)
    return (0.5 - 0.5 * np.cos(np.pi * phase)).astype(np.float32)
