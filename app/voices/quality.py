"""How good a recording is for cloning, measured: what each measure is, what it should be, and what to do about it.

Thresholds come from how the measures behave on synthetic and spoken material, see docs/voices.md; they are where advice
begins, not laws of nature. A level is `good`, `warning` (it will work, less well) or `bad` (it is refused).
Knows samples and spans only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import soxr

from app.audio.loudness import SILENT_LUFS, integrated_lufs
from app.voices.vad import RATE_HZ as PITCH_RATE_HZ
from app.voices.vad import Span, frame_levels_db, joined

if TYPE_CHECKING:
    from app.types import Samples

Level = Literal["good", "warning", "bad"]

MAX_SNR_DB = 60.0
MAX_LETTERS_PER_S, MIN_LETTERS_PER_S = 30.0, 5.0  # English is spoken at 10 to 20; some scripts have a letter a syllable
IMPOSSIBLE_LETTERS_PER_S = 45.0
_GUARD_S = 0.06  # before and after speech, not measured as noise: speech fades in and out there
_MIN_NOISE_S = 0.2
_SPLIT_SEMITONES = 7.0  # two people's usual pitches lie further apart than one's phrases
_SPLIT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Check:
    """One measure. value: its number, in the unit that its id says. message: what it means and what to do."""

    id: str
    level: Level
    value: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    checks: tuple[Check, ...]

    @property
    def level(self) -> Level:
        levels = {check.level for check in self.checks}
        return "bad" if "bad" in levels else "warning" if "warning" in levels else "good"

    @property
    def refusal(self) -> str:
        """Why it can't be used, in words; "" if it can."""
        return " ".join(check.message for check in self.checks if check.level == "bad")

    def with_check(self, check: Check) -> Report:
        return Report((*self.checks, check))

    def as_json(self) -> dict[str, Any]:
        return {"level": self.level, "checks": [asdict(check) for check in self.checks]}


def worst(reports: Sequence[Report]) -> Report:
    """One report of several recordings: of each measure the worst."""
    order = ("good", "warning", "bad")
    by_id: dict[str, Check] = {}
    for report in reports:
        for check in report.checks:
            if check.id not in by_id or order.index(check.level) > order.index(by_id[check.id].level):
                by_id[check.id] = check
    return Report(tuple(by_id.values()))


def measure(samples: Samples, rate_hz: int, spans: Sequence[Span], *, clipped: float, bandwidth_hz: float) -> Report:
    """samples (N,): the stretch that will be used, as it came. spans: the speech in it. clipped: share of the file's
    samples that were cut off. bandwidth_hz: half of the file's rate."""
    speech_s = sum(span.seconds for span in spans)
    if not spans:
        return Report((Check("speech_seconds", "bad", 0.0, "There is no speech in the recording that can be heard."),))
    speech, noise = _parted(samples, rate_hz, spans)
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


def _parted(samples: Samples, rate_hz: int, spans: Sequence[Span]) -> tuple[Samples, Samples]:
    """The speech, and the audio between it. If there is almost none between, the quietest tenth of the speech."""
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
    """Speech without the noise under it, over the noise, in dB up to MAX_SNR_DB."""
    both = float(np.mean(np.square(speech, dtype=np.float64)))
    floor = float(np.mean(np.square(noise, dtype=np.float64))) + 1e-12
    return float(np.clip(10 * np.log10(max(both - floor, 1e-12) / floor), -20.0, MAX_SNR_DB))


def bandwidth_of(speech: Samples, noise: Samples, rate_hz: int) -> float:
    """The highest frequency in Hz at which speech stands above the noise and is within 55 dB of its own strongest."""
    size = 2048
    if len(speech) < size:
        return rate_hz / 2
    power = _smooth(_spectrum(speech, size))
    # The noise is measured with an error of its own, so it has to be surpassed by something.
    floor = 1.5 * _smooth(_spectrum(noise, size)) if len(noise) >= size else np.zeros_like(power)
    heard = np.flatnonzero((power > power.max() * 10**-5.5) & (power > floor))
    return float(heard[-1] * rate_hz / size) if len(heard) else 0.0


def _spectrum(samples: Samples, size: int) -> np.ndarray:
    """Mean power per bin. (size // 2 + 1,)"""
    whole = samples[: len(samples) // size * size].reshape(-1, size) * np.hanning(size).astype(np.float32)
    return np.asarray(np.mean(np.square(np.abs(np.fft.rfft(whole, axis=1))), axis=0))


def _smooth(power: np.ndarray) -> np.ndarray:
    return np.convolve(power, np.full(9, 1 / 9), "same")


def pitches(samples: Samples, rate_hz: int) -> np.ndarray:
    """Fundamental frequency in Hz of each 40 ms frame that has one (60 to 400 Hz), by autocorrelation. (voiced,)"""
    heard = np.asarray(soxr.resample(samples, rate_hz, PITCH_RATE_HZ) if rate_hz != PITCH_RATE_HZ else samples)
    size, step = round(0.04 * PITCH_RATE_HZ), round(0.02 * PITCH_RATE_HZ)
    if len(heard) < size:
        return np.zeros(0)
    frames = np.lib.stride_tricks.sliding_window_view(heard, size)[::step].astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    strong = np.mean(np.square(frames), axis=1)
    frames = frames[strong > 0.05 * np.percentile(strong, 95)]
    window = np.hanning(size)
    spectrum = np.fft.rfft(frames * window, 2 * size, axis=1)
    same = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :size]
    own = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * size)) ** 2)[:size]
    same = same / np.maximum(same[:, :1], 1e-12) / np.maximum(own / own[0], 0.05)  # the window's own decay taken out
    first, last = PITCH_RATE_HZ // 400, PITCH_RATE_HZ // 60
    within = same[:, first:last]
    best = within.max(axis=1, initial=0.0)
    # The first peak that is nearly as high as the highest: the highest is often an octave below.
    lag = np.argmax(within > 0.9 * best[:, None], axis=1)
    for _ in range(8):  # from the flank up to that peak
        further = np.minimum(lag + 1, within.shape[1] - 1)
        rising = np.take_along_axis(within, further[:, None], 1) > np.take_along_axis(within, lag[:, None], 1)
        lag = np.where(rising[:, 0], further, lag)
    return np.asarray(PITCH_RATE_HZ / (first + lag[best > 0.6]))


# ---- the checks


LONG_S = 18.0  # of speech: with its pauses a recording of 20 s, the most that every model takes


def _speech(seconds: float) -> Check:
    told = f"{seconds:.1f} s of speech"
    if seconds < 1.0:
        return Check("speech_seconds", "bad", round(seconds, 2), f"There is only {told}; at least 1 s is needed.")
    if seconds < 5.0:
        return Check("speech_seconds", "warning", round(seconds, 2), f"{told}: 6 to 12 s would be better.")
    if seconds > LONG_S:
        return Check(
            "speech_seconds",
            "warning",
            round(seconds, 2),
            f"{told}: some models take 20 s at most; 6 to 12 s are enough.",
        )
    return Check("speech_seconds", "good", round(seconds, 2), f"{told}.")


def _snr(speech: Samples, noise: Samples) -> Check:
    value = round(snr_db(speech, noise), 1)
    if value < 5.0:
        return Check(
            "snr_db", "bad", value, f"Speech is only {value:g} dB above the background. Record in a quiet room."
        )
    if value < 18.0:
        return Check(
            "snr_db", "warning", value, f"Speech is {value:g} dB above the background; 25 dB and more is good."
        )
    return Check("snr_db", "good", value, f"Speech is {value:g} dB above the background.")


def _clipping(share: float) -> Check:
    percent = round(100 * share, 2)
    if share > 0.001:
        level: Level = "bad" if share > 0.1 else "warning"
        told = f"{percent:g} % of the sound is cut off at the top. Record softer."
        return Check("clipping_percent", level, percent, told)
    return Check("clipping_percent", "good", percent, "The sound is not cut off at the top.")


def _bandwidth(hertz: float) -> Check:
    value = float(round(hertz, -1))
    told = f"There is sound up to {value / 1000:.1f} kHz"
    if value < 2_500:
        return Check("bandwidth_hz", "bad", value, f"{told} only: words are hard to understand in it.")
    if value < 6_500:
        return Check("bandwidth_hz", "warning", value, f"{told}, as on a telephone; the voice will sound so too.")
    return Check("bandwidth_hz", "good", value, f"{told}.")


def _loudness(lufs: float) -> Check:
    value = round(lufs, 1)
    if value <= SILENT_LUFS:
        return Check("loudness_lufs", "bad", value, "The recording is silent.")
    if value < -45.0:
        return Check("loudness_lufs", "warning", value, f"It is very soft ({value:g} LUFS). Record nearer or louder.")
    return Check("loudness_lufs", "good", value, f"It has {value:g} LUFS; it is brought to one level for all voices.")


def _background(speech: Samples, noise: Samples, rate_hz: int) -> Check:
    """Tonal sound between the words: music, or hum. Spectral flatness is 0.56 for noise, near 0 for tones."""
    size = 2048
    ratio = snr_db(speech, noise)
    if ratio > 30.0 or len(noise) < size:
        return Check("music", "good", None, "No music is heard behind the voice.")
    whole = noise[: len(noise) // size * size].reshape(-1, size) * np.hanning(size).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(whole, axis=1)))[:, round(100 * size / rate_hz) : round(5000 * size / rate_hz)]
    flatness = float(np.mean(np.exp(np.mean(np.log(power + 1e-12), axis=1)) / (np.mean(power, axis=1) + 1e-12)))
    value = round(flatness, 3)
    if flatness < 0.15:
        return Check("music", "warning", value, "Music or hum is suspected behind the voice. Use a recording without.")
    return Check("music", "good", value, "No music is heard behind the voice.")


def _speakers(samples: Samples, rate_hz: int, spans: Sequence[Span]) -> Check:
    """Two groups of phrases whose usual pitches lie far apart. Two voices of one pitch are not told apart."""
    phrases = []
    for span in joined(spans, 0.0):
        for start_s in np.arange(span.start_s, span.end_s, 1.0):
            heard = samples[round(start_s * rate_hz) : round(min(start_s + 1.0, span.end_s) * rate_hz)]
            voiced = pitches(heard, rate_hz)
            if len(voiced) >= 10:
                phrases.append((12 * np.log2(np.median(voiced) / 55.0), len(voiced)))
    phrases.sort()
    weights = np.array([weight for _, weight in phrases], float)
    tones = np.array([tone for tone, _ in phrases])
    apart = 0.0
    for cut in range(1, len(phrases)):
        share = weights[:cut].sum() / weights.sum()
        if _SPLIT_SHARE <= share <= 1 - _SPLIT_SHARE:
            apart = max(apart, float(tones[cut:][len(tones[cut:]) // 2] - tones[:cut][len(tones[:cut]) // 2]))
    value = round(apart, 1)
    if apart >= _SPLIT_SEMITONES:
        return Check(
            "speakers", "warning", value, f"Several speakers are suspected: pitches lie {value:g} semitones apart."
        )
    return Check("speakers", "good", value, "One speaker is heard.")


def transcript_check(transcript: str, speech_s: float, *, recognised: bool) -> Check:
    letters = sum(1 for letter in transcript if letter.isalnum())
    pace = round(letters / max(speech_s, 0.1), 1)
    if pace > IMPOSSIBLE_LETTERS_PER_S:
        return Check(
            "transcript_letters_per_s",
            "bad",
            pace,
            f"The transcript has {letters} letters for {speech_s:.1f} s of speech, more than anybody speaks. It must "
            "be exactly what is said in the recording.",
        )
    if not MIN_LETTERS_PER_S <= pace <= MAX_LETTERS_PER_S and transcript.isascii():
        return Check(
            "transcript_letters_per_s",
            "warning",
            pace,
            f"The transcript has {letters} letters for {speech_s:.1f} s of speech. Check that it is what is said.",
        )
    told = "The transcript was recognised; check that it is exactly what is said." if recognised else "It fits."
    return Check("transcript_letters_per_s", "good", pace, told)


def level_db(samples: Samples, rate_hz: int) -> float:
    """The level of the quietest tenth of the frames: the noise floor in dB of full scale."""
    levels = frame_levels_db(samples, rate_hz)
    return float(np.percentile(levels, 10)) if len(levels) else -120.0
