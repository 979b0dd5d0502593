"""Measure how good a recording is for cloning, and say how to improve it.

Each check has a level: `good`, `warning` (the recording is used, but the voice may be worse) or `bad` (the recording is
refused). The thresholds are advice. They were chosen from measurements of recorded and synthetic speech; docs/voices.md
lists them. Does not depend on HTTP or engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import soxr

from app.audio.loudness import SILENT_LUFS, integrated_lufs
from app.voices.vad import RATE_HZ as PITCH_RATE_HZ
from app.voices.vad import Span, frame_levels_db

if TYPE_CHECKING:
    from app.types import Samples

Level = Literal["good", "warning", "bad"]

MAX_SNR_DB = 60.0
MAX_LETTERS_PER_S, MIN_LETTERS_PER_S = 30.0, 5.0  # spoken English has 10 to 20
IMPOSSIBLE_LETTERS_PER_S = 45.0
_GUARD_S = 0.06  # before and after speech; not measured as noise, because speech fades in and out there
_MIN_NOISE_S = 0.2  # of audio without speech; with less, the quietest speech is measured instead
_SPLIT_SEMITONES = 7.0  # the pitches of two speakers usually differ by more, the phrases of one speaker by less
_SPLIT_SHARE = 0.2  # each of the two groups of phrases must have this share of the speech


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    id: str  # such as "snr_db"; it ends with the unit of the value
    level: Level
    value: float | None  # None = not measured
    message: str  # what the value means and how to improve it


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one recording."""

    checks: tuple[Check, ...]

    @property
    def level(self) -> Level:
        """The worst level of the checks."""
        levels = {check.level for check in self.checks}
        return "bad" if "bad" in levels else "warning" if "warning" in levels else "good"

    @property
    def refusal(self) -> str:
        """The reasons why the recording is refused; "" if it is not."""
        return " ".join(check.message for check in self.checks if check.level == "bad")

    def with_check(self, check: Check) -> Report:
        return Report((*self.checks, check))

    def as_json(self) -> dict[str, Any]:
        return {"level": self.level, "checks": [asdict(check) for check in self.checks]}


def worst(reports: Sequence[Report]) -> Report:
    """Combine the reports of several recordings: for each id the check with the worst level."""
    order = ("good", "warning", "bad")
    by_id: dict[str, Check] = {}
    for report in reports:
        for check in report.checks:
            if check.id not in by_id or order.index(check.level) > order.index(by_id[check.id].level):
                by_id[check.id] = check
    return Report(tuple(by_id.values()))


def measure(samples: Samples, rate_hz: int, spans: Sequence[Span], *, clipped: float, bandwidth_hz: float) -> Report:
    """Run all checks except `transcript_check` on the section of a recording that will be used for cloning.

    samples: (N,) mono, before any processing. spans: the speech in them. clipped: share of clipped samples in the file,
    from 0 to 1. bandwidth_hz: half of the file's sample rate.
    """
    speech_s = sum(span.seconds for span in spans)
    if not spans:
        return Report(
            (
                Check(
                    "speech_seconds", "bad", 0.0, "No speech was found in the recording. Record one person who speaks."
                ),
            )
        )
    speech, noise = _speech_and_noise(samples, rate_hz, spans)
    return Report(
        (
            _speech(speech_s),
            _snr(speech, noise),
            _clipping(clipped),
            _bandwidth(min(bandwidth_hz, bandwidth_of(speech, noise, rate_hz))),
            _loudness(integrated_lufs(samples, rate_hz)),
            _background(speech, noise, rate_hz),
            _speakers(samples, rate_hz, spans),
        )
    )


def _speech_and_noise(samples: Samples, rate_hz: int, spans: Sequence[Span]) -> tuple[Samples, Samples]:
    """Split samples into speech (S,) and the audio between it (N,).

    If that is shorter than _MIN_NOISE_S, the second array is the quietest tenth of the speech.
    """
    speaking = np.zeros(len(samples), np.bool_)
    near = np.zeros(len(samples), np.bool_)
    for span in spans:
        speaking[round(span.start_s * rate_hz) : round(span.end_s * rate_hz)] = True
        near[max(0, round((span.start_s - _GUARD_S) * rate_hz)) : round((span.end_s + _GUARD_S) * rate_hz)] = True
    speech, noise = samples[speaking], samples[~near]
    if len(noise) < _MIN_NOISE_S * rate_hz:
        size = max(1, round(0.02 * rate_hz))
        frames = speech[: len(speech) // size * size].reshape(-1, size)
        order = np.argsort(np.mean(np.square(frames), axis=1))
        noise = frames[order[: max(1, len(order) // 10)]].reshape(-1)
    return speech, noise


def snr_db(speech: Samples, noise: Samples) -> float:
    """Signal-to-noise ratio in dB, from -20 to MAX_SNR_DB. The power of the noise is subtracted from the speech."""
    both = float(np.mean(np.square(speech, dtype=np.float64)))
    floor = float(np.mean(np.square(noise, dtype=np.float64))) + 1e-12
    return float(np.clip(10 * np.log10(max(both - floor, 1e-12) / floor), -20.0, MAX_SNR_DB))


def bandwidth_of(speech: Samples, noise: Samples, rate_hz: int) -> float:
    """The highest frequency in Hz at which speech is above the noise and within 55 dB of its strongest frequency."""
    size = 2048
    if len(speech) < size:
        return rate_hz / 2
    power = _smooth(_spectrum(speech, size))
    # The factor 1.5 allows for the error of the measured noise spectrum.
    floor = 1.5 * _smooth(_spectrum(noise, size)) if len(noise) >= size else np.zeros_like(power)
    bins = np.flatnonzero((power > power.max() * 10**-5.5) & (power > floor))
    return float(bins[-1] * rate_hz / size) if len(bins) else 0.0


def _spectrum(samples: Samples, size: int) -> np.ndarray:
    """Mean power of each frequency bin over all whole windows of `size` samples -> (size // 2 + 1,)."""
    whole = samples[: len(samples) // size * size].reshape(-1, size) * np.hanning(size).astype(np.float32)
    return np.asarray(np.mean(np.square(np.abs(np.fft.rfft(whole, axis=1))), axis=0))


def _smooth(power: np.ndarray) -> np.ndarray:
    """Moving average over 9 bins. Same shape."""
    return np.convolve(power, np.full(9, 1 / 9), "same")


def pitches(samples: Samples, rate_hz: int) -> np.ndarray:
    """Fundamental frequencies in Hz of the voiced 40 ms frames, from 60 to 400 Hz, by autocorrelation -> (voiced,)."""
    resampled = np.asarray(soxr.resample(samples, rate_hz, PITCH_RATE_HZ) if rate_hz != PITCH_RATE_HZ else samples)
    size, step = round(0.04 * PITCH_RATE_HZ), round(0.02 * PITCH_RATE_HZ)
    if len(resampled) < size:
        return np.zeros(0)
    frames = np.lib.stride_tricks.sliding_window_view(resampled, size)[::step].astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    power = np.mean(np.square(frames), axis=1)
    frames = frames[power > 0.05 * np.percentile(power, 95)]
    window = np.hanning(size)
    spectrum = np.fft.rfft(frames * window, 2 * size, axis=1)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :size]
    decay = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * size)) ** 2)[:size]  # autocorrelation of the window itself
    correlation = correlation / np.maximum(correlation[:, :1], 1e-12) / np.maximum(decay / decay[0], 0.05)
    first, last = PITCH_RATE_HZ // 400, PITCH_RATE_HZ // 60
    within = correlation[:, first:last]
    best = within.max(axis=1, initial=0.0)
    # Take the first peak that is nearly as high as the highest one, which is often an octave too low.
    lag = np.argmax(within > 0.9 * best[:, None], axis=1)
    for _ in range(8):  # move from the edge of the peak to its maximum
        further = np.minimum(lag + 1, within.shape[1] - 1)
        rising = np.take_along_axis(within, further[:, None], 1) > np.take_along_axis(within, lag[:, None], 1)
        lag = np.where(rising[:, 0], further, lag)
    return np.asarray(PITCH_RATE_HZ / (first + lag[best > 0.6]))


# ---- the checks


LONG_S = 18.0  # seconds of speech; with pauses about 20 s, the longest recording that every model accepts


def _speech(seconds: float) -> Check:
    found = f"The recording has {seconds:.1f} s of speech"
    if seconds < 1.0:
        return Check("speech_seconds", "bad", round(seconds, 2), f"{found}. At least 1 s is needed.")
    if seconds < 5.0:
        return Check("speech_seconds", "warning", round(seconds, 2), f"{found}. 6 to 12 s would be better.")
    if seconds > LONG_S:
        return Check(
            "speech_seconds",
            "warning",
            round(seconds, 2),
            f"{found}. Some models accept at most 20 s, and 6 to 12 s are enough.",
        )
    return Check("speech_seconds", "good", round(seconds, 2), f"{found}.")


def _snr(speech: Samples, noise: Samples) -> Check:
    value = round(snr_db(speech, noise), 1)
    if value < 5.0:
        return Check(
            "snr_db", "bad", value, f"The speech is only {value:g} dB above the noise. Record in a quiet room."
        )
    if value < 18.0:
        return Check("snr_db", "warning", value, f"The speech is {value:g} dB above the noise. 25 dB or more is good.")
    return Check("snr_db", "good", value, f"The speech is {value:g} dB above the noise.")


def _clipping(share: float) -> Check:
    percent = round(100 * share, 2)
    if share > 0.001:
        level: Level = "bad" if share > 0.1 else "warning"
        message = f"{percent:g} % of the recording is clipped. Record at a lower level."
        return Check("clipping_percent", level, percent, message)
    return Check("clipping_percent", "good", percent, "The recording is not clipped.")


def _bandwidth(hertz: float) -> Check:
    value = float(round(hertz, -1))
    found = f"The highest frequency of the speech is {value / 1000:.1f} kHz"
    if value < 2_500:
        return Check("bandwidth_hz", "bad", value, f"{found}. That is too low to understand all words.")
    if value < 6_500:
        return Check(
            "bandwidth_hz", "warning", value, f"{found}, as on a telephone. The voice will sound the same way."
        )
    return Check("bandwidth_hz", "good", value, f"{found}.")


def _loudness(lufs: float) -> Check:
    value = round(lufs, 1)
    if value <= SILENT_LUFS:
        return Check("loudness_lufs", "bad", value, "The recording is silent.")
    if value < -45.0:
        return Check(
            "loudness_lufs",
            "warning",
            value,
            f"The recording is very quiet ({value:g} LUFS). Speak louder or nearer to the microphone.",
        )
    return Check(
        "loudness_lufs", "good", value, f"The recording has {value:g} LUFS. The server sets all voices to one level."
    )


def _background(speech: Samples, noise: Samples, rate_hz: int) -> Check:
    """Detect music or hum between the words by spectral flatness, which is 0.56 for noise and near 0 for tones."""
    size = 2048
    ratio = snr_db(speech, noise)
    if ratio > 30.0 or len(noise) < size:
        return Check("music", "good", None, "No music was found behind the voice.")
    whole = noise[: len(noise) // size * size].reshape(-1, size) * np.hanning(size).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(whole, axis=1)))[:, round(100 * size / rate_hz) : round(5000 * size / rate_hz)]
    flatness = float(np.mean(np.exp(np.mean(np.log(power + 1e-12), axis=1)) / (np.mean(power, axis=1) + 1e-12)))
    value = round(flatness, 3)
    if flatness < 0.15:
        return Check(
            "music", "warning", value, "There may be music or hum behind the voice. Use a recording without it."
        )
    return Check("music", "good", value, "No music was found behind the voice.")


def _speakers(samples: Samples, rate_hz: int, spans: Sequence[Span]) -> Check:
    """Detect several speakers: two groups of phrases with very different pitches.

    Speakers with similar pitches are not detected.
    """
    phrases = []
    for span in spans:
        for start_s in np.arange(span.start_s, span.end_s, 1.0):
            phrase = samples[round(start_s * rate_hz) : round(min(start_s + 1.0, span.end_s) * rate_hz)]
            voiced = pitches(phrase, rate_hz)
            if len(voiced) >= 10:
                phrases.append((12 * np.log2(np.median(voiced) / 55.0), len(voiced)))
    phrases.sort()
    weights = np.array([weight for _, weight in phrases], float)
    tones = np.array([tone for tone, _ in phrases])
    difference = 0.0
    for cut in range(1, len(phrases)):
        share = weights[:cut].sum() / weights.sum()
        if _SPLIT_SHARE <= share <= 1 - _SPLIT_SHARE:
            difference = max(difference, float(tones[cut:][len(tones[cut:]) // 2] - tones[:cut][len(tones[:cut]) // 2]))
    value = round(difference, 1)
    if difference >= _SPLIT_SEMITONES:
        return Check(
            "speakers",
            "warning",
            value,
            f"There may be several speakers: pitches differ by {value:g} semitones. Use a part with one speaker.",
        )
    return Check("speakers", "good", value, "One speaker was found.")


def transcript_check(transcript: str, speech_s: float, *, recognised: bool) -> Check:
    """Check that the transcript can be spoken in speech_s seconds. recognised: whether a speech recogniser wrote it."""
    letters = sum(1 for letter in transcript if letter.isalnum())
    pace = round(letters / max(speech_s, 0.1), 1)
    if pace > IMPOSSIBLE_LETTERS_PER_S:
        return Check(
            "transcript_letters_per_s",
            "bad",
            pace,
            f"The transcript has {letters} letters for {speech_s:.1f} s of speech, which is too fast to speak. Send "
            "exactly the words of the recording.",
        )
    if not MIN_LETTERS_PER_S <= pace <= MAX_LETTERS_PER_S and transcript.isascii():
        return Check(
            "transcript_letters_per_s",
            "warning",
            pace,
            f"The transcript has {letters} letters for {speech_s:.1f} s of speech. Check that it has the exact words.",
        )
    message = (
        "A speech recogniser wrote the transcript. Check that it has the exact words."
        if recognised
        else "The transcript fits the length of the speech."
    )
    return Check("transcript_letters_per_s", "good", pace, message)


def level_db(samples: Samples, rate_hz: int) -> float:
    """The noise floor in dBFS: the level that a tenth of the 20 ms frames do not exceed."""
    levels = frame_levels_db(samples, rate_hz)
    return float(np.percentile(levels, 10)) if len(levels) else -120.0
