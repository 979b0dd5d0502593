"""Measure how good a recording is for cloning, and say how to improve it.

The result of each check has a level: `good`, `warning` (the recording is used, but the voice may be worse) or `bad`
(the recording is refused). The thresholds were chosen from measurements of recorded and synthetic speech;
docs/voices.md lists them. This module does not depend on HTTP or engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import soxr

from app.audio import pitch
from app.audio.levels import levels_dbfs
from app.audio.loudness import SILENT_LUFS, integrated_lufs
from app.voices.speaker_change import LIMIT, timbre_change
from app.voices.vad import Span, runs
from app.voices.window import MAX_WINDOW_S, MIN_WINDOW_S

if TYPE_CHECKING:
    from app.types import Samples
    from app.voices.transcript_words import FoundWords

Level = Literal["good", "warning", "bad"]

# The best length of the speech in a recording; longer speech is cut.
BEST_LENGTH = f"{MIN_WINDOW_S:g} to {MAX_WINDOW_S:g} s"
TRANSCRIPT_MISSING = "transcript_missing"  # the id of the check that reports unknown words
MAX_SNR_DB = 60.0
_GOOD_SNR_DB = 18.0
MAX_LETTERS_PER_S, MIN_LETTERS_PER_S = 30.0, 5.0  # letters in one second of speech; spoken English has 10 to 20
IMPOSSIBLE_LETTERS_PER_S = 45.0
_TRANSCRIPT_PREFIX = "transcript_"  # the ids of all checks of the transcript begin with this
_GUARD_S = 0.1  # noise is not measured in this time before and after speech, because speech fades in and out there
_MIN_NOISE_S = 0.2  # if the audio without speech is shorter than this, the quietest audio is measured as noise
_PHRASE_S = 1.5  # the length of a phrase; the median pitch of a shorter phrase varies too much
_MIN_VOICED_FRAMES = 20  # smallest number of voiced frames of 10 ms in a phrase
# Limit of the difference in pitch: between two speakers, it is usually larger; between phrases of one speaker, smaller.
_SPLIT_SEMITONES = 6.8
_SPLIT_SHARE = 0.25  # each of the two groups of phrases must have at least this share of the speech
_MUSIC_RATE_HZ = 16_000
_MUSIC_WINDOW = 3_200  # samples (0.2 s), so that a bin of the spectrum is 5 Hz wide
_MEDIAN_BINS = 41
_PEAK_DB = 7.0  # a spectral peak is at least this many dB above the median of its neighbourhood; noise varies less
# Limit of the mean peak excess in dB. Noise has at most 0.1 dB. Music has at least 0.2 dB if it is 15 dB below the
# speech.
_TONAL = 0.16
_INAUDIBLE_DB = 30.0  # music that is this many dB below the speech does no harm
_LOWEST_TONE_HZ = 80.0
_MIN_MUSIC_FRAMES, _MAX_MUSIC_FRAMES = 3, 100
_HUM_SHARE = 0.6  # if multiples of 50 or 60 Hz have this share of the peak excess, the cause is mains hum


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    id: str  # for example "snr_db"; the end of the id is the unit of the value
    level: Level
    value: float | None  # None = not measured
    message: str  # what the value means and how to improve it


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one recording."""

    checks: tuple[Check, ...]

    @property
    def level(self) -> Level:
        """The worst level of all checks."""
        levels = {check.level for check in self.checks}
        return "bad" if "bad" in levels else "warning" if "warning" in levels else "good"

    @property
    def refusal(self) -> str:
        """The reasons why the recording is refused, with a warning about music; "" if it is not refused."""
        if self.level != "bad":
            return ""
        return joined(
            check.message
            for check in self.checks
            if check.level == "bad" or (check.level == "warning" and check.id == "music")
        )

    def with_check(self, check: Check) -> Report:
        return Report((*self.checks, check))

    def as_json(self) -> dict[str, Any]:
        return {"level": self.level, "checks": [asdict(check) for check in self.checks]}


def joined(messages: Iterable[str]) -> str:
    """Join messages to one text. A message is left out if another message contains it."""
    kept = list(dict.fromkeys(messages))
    return " ".join(one for one in kept if not any(one in other for other in kept if other is not one))


def worst(reports: Sequence[Report]) -> Report:
    """Combine the reports of several recordings. Of each check, the result contains only the worst result."""
    order = ("good", "warning", "bad")
    by_id: dict[str, Check] = {}
    for report in reports:
        for check in report.checks:
            if check.id not in by_id or order.index(check.level) > order.index(by_id[check.id].level):
                by_id[check.id] = check
    return Report(tuple(by_id.values()))


def measure(samples: Samples, rate_hz: int, spans: Sequence[Span], *, clipped: float, bandwidth_hz: float) -> Report:
    """Check the section of a recording that will be used for cloning. The transcript is not checked.

    samples: (N,) mono, before any processing. spans: the parts of the samples that contain speech. clipped: share of
    clipped samples in the file, from 0 to 1. bandwidth_hz: half of the sample rate of the file.
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
    speech, gaps = _speech_and_gaps(samples, rate_hz, spans)
    noise = _noise(samples, gaps, rate_hz)
    bandwidth_hz = min(bandwidth_hz, bandwidth_of(speech, noise, rate_hz))
    ratio_db = snr_db(samples, rate_hz, spans)
    background = _background(samples, rate_hz, spans, ratio_db, bandwidth_hz)
    return Report(
        (
            _speech(speech_s),
            _snr(ratio_db, background),
            _clipping(clipped),
            _bandwidth(bandwidth_hz),
            _loudness(integrated_lufs(samples, rate_hz)),
            background,
            _speakers(samples, rate_hz, spans),
        )
    )


def _speech_and_gaps(samples: Samples, rate_hz: int, spans: Sequence[Span]) -> tuple[Samples, list[Samples]]:
    """Split samples (N,) into the speech (S,) and the gaps, which begin and end _GUARD_S away from speech."""
    speaking = np.zeros(len(samples), np.bool_)
    near = np.zeros(len(samples), np.bool_)
    for span in spans:
        speaking[round(span.start_s * rate_hz) : round(span.end_s * rate_hz)] = True
        near[max(0, round((span.start_s - _GUARD_S) * rate_hz)) : round((span.end_s + _GUARD_S) * rate_hz)] = True
    return samples[speaking], [samples[start:end] for start, end in runs(~near)]


def _noise(samples: Samples, gaps: Sequence[Samples], rate_hz: int) -> Samples:
    """Return the samples of the gaps. If the gaps are shorter than _MIN_NOISE_S, return the quietest tenth of all
    samples.
    """
    noise = np.concatenate([samples[:0], *gaps])
    if len(noise) >= _MIN_NOISE_S * rate_hz:
        return noise
    size = max(1, round(0.02 * rate_hz))
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    order = np.argsort(np.mean(np.square(frames), axis=1))
    return frames[order[: max(1, len(order) // 10)]].reshape(-1)


def snr_db(samples: Samples, rate_hz: int, spans: Sequence[Span]) -> float:
    """Return the signal-to-noise ratio in dB, from -20 to MAX_SNR_DB. The signal is the power of the speech, minus the
    power of the noise.

    The noise level is the level that 40 % of the frames in the gaps do not exceed. With this level, a breath or a
    missed syllable in a gap does not count as noise. If the gaps are too short, the noise level is the level that 4 %
    of all frames do not exceed.
    """
    speech, gaps = _speech_and_gaps(samples, rate_hz, spans)
    if not len(speech):
        return -20.0
    levels = np.concatenate([np.zeros(0), *(levels_dbfs(gap, rate_hz) for gap in gaps)])
    if sum(map(len, gaps)) >= _MIN_NOISE_S * rate_hz and len(levels):
        floor_db = float(np.percentile(levels, 40))
    else:
        floor_db = float(np.percentile(levels_dbfs(samples, rate_hz), 4))
    floor = 10 ** (floor_db / 10)
    both = float(np.mean(np.square(speech, dtype=np.float64)))
    return float(np.clip(10 * np.log10(max(both - floor, 1e-12) / floor), -20.0, MAX_SNR_DB))


def bandwidth_of(speech: Samples, noise: Samples, rate_hz: int) -> float:
    """Return the highest frequency in Hz at which the speech exceeds the noise.

    At this frequency, the speech is also less than 55 dB weaker than at its strongest frequency.
    """
    size = 2048
    if len(speech) < size:
        return rate_hz / 2
    power = _smooth(_spectrum(speech, size))
    # The factor 1.5 allows for the error of the measured noise spectrum.
    floor = 1.5 * _smooth(_spectrum(noise, size)) if len(noise) >= size else np.zeros_like(power)
    bins = np.flatnonzero((power > power.max() * 10**-5.5) & (power > floor))
    return float(bins[-1] * rate_hz / size) if len(bins) else 0.0


def _spectrum(samples: Samples, size: int) -> np.ndarray:
    """Return the mean power (size // 2 + 1,) of each frequency bin over all whole windows of `size` samples."""
    whole = samples[: len(samples) // size * size].reshape(-1, size) * np.hanning(size).astype(np.float32)
    return np.asarray(np.mean(np.square(np.abs(np.fft.rfft(whole, axis=1))), axis=0))


def _smooth(power: np.ndarray) -> np.ndarray:
    """Return the moving average over 9 bins, with the same shape as `power`."""
    return np.convolve(power, np.full(9, 1 / 9), "same")


# ---- the checks


# The longest speech without a warning, in seconds. With its pauses, such a recording is about 20 s long, which is the
# most that every model accepts.
LONG_S = 18.0


def _speech(seconds: float) -> Check:
    found = f"The recording has {seconds:.1f} s of speech"
    if seconds < 1.0:
        return Check("speech_seconds", "bad", round(seconds, 2), f"{found}. At least 1 s is needed.")
    if seconds < 5.0:
        return Check("speech_seconds", "warning", round(seconds, 2), f"{found}. {BEST_LENGTH} would be better.")
    if seconds > LONG_S:
        return Check(
            "speech_seconds",
            "warning",
            round(seconds, 2),
            f"{found}. Some models accept at most 20 s, and {BEST_LENGTH} are enough.",
        )
    return Check("speech_seconds", "good", round(seconds, 2), f"{found}.")


def _snr(ratio_db: float, background: Check) -> Check:
    """Check the signal-to-noise ratio. background: the check for music and hum; its message names the cause of a low
    ratio.
    """
    value = round(ratio_db, 1)
    found = f"The speech is only {value:g} dB above the noise"
    if value <= 0.0:
        found = "The noise is at least as loud as the speech"
    cause = "Record in a quiet room." if background.level == "good" else background.message
    if value < 5.0:
        return Check("snr_db", "bad", value, f"{found}. {cause}")
    if value < _GOOD_SNR_DB:
        return Check("snr_db", "warning", value, f"{found}. {_GOOD_SNR_DB:g} dB or more is good. {cause}")
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
        return Check(
            "loudness_lufs", "bad", value, "The recording is silent or far too quiet. Record at a higher level."
        )
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


def _background(samples: Samples, rate_hz: int, spans: Sequence[Span], ratio_db: float, bandwidth_hz: float) -> Check:
    """Detect music or hum in the gaps by narrow peaks of the spectrum, which noise does not have.

    The value of the check is the mean excess of the peaks in dB: how far the spectrum is above its running median plus
    _PEAK_DB.
    """
    resampled = np.asarray(soxr.resample(samples, rate_hz, _MUSIC_RATE_HZ), np.float32)
    speech, gaps = _speech_and_gaps(resampled, _MUSIC_RATE_HZ, spans)
    spectra = np.concatenate([_levels_db(gap) for gap in gaps] or [_levels_db(resampled[:0])])
    if len(spectra) < _MIN_MUSIC_FRAMES:
        everything = _levels_db(resampled)
        power = everything.mean(axis=1)
        spectra = everything[np.argsort(power)[: max(1, len(power) // 5)]] if len(power) else everything
    good = Check("music", "good", None, "No music was found behind the voice.")
    if ratio_db > _INAUDIBLE_DB or not len(spectra) or not len(speech):
        return good
    spectra = spectra[:: max(1, len(spectra) // _MAX_MUSIC_FRAMES)]
    frequencies_hz = np.fft.rfftfreq(_MUSIC_WINDOW, 1 / _MUSIC_RATE_HZ)
    used = (frequencies_hz > _LOWEST_TONE_HZ) & (frequencies_hz < 0.85 * bandwidth_hz)
    levels, frequencies_hz = spectra[:, used], frequencies_hz[used]
    if levels.shape[1] < _MEDIAN_BINS:
        return good
    wide = np.pad(levels, ((0, 0), (_MEDIAN_BINS // 2, _MEDIAN_BINS // 2)), mode="edge")
    median = np.median(np.lib.stride_tricks.sliding_window_view(wide, _MEDIAN_BINS, axis=1), axis=2)
    excess = np.maximum(levels - median - _PEAK_DB, 0.0)
    value = round(float(np.median(excess.mean(axis=1))), 3)
    if value < _TONAL:
        return Check("music", "good", value, good.message)
    for mains_hz in (50, 60):
        near = np.abs((frequencies_hz + mains_hz / 2) % mains_hz - mains_hz / 2) <= 5.0
        # The harmonics of the mains cover about a fifth of the bins, so music has about 20 % of its excess at these
        # bins.
        if excess[:, near].sum() > _HUM_SHARE * excess.sum():
            return Check(
                "music",
                "warning",
                value,
                f"There is electrical hum of {mains_hz} Hz behind the voice. Use a battery or another cable or power "
                "supply.",
            )
    return Check("music", "warning", value, "There may be music behind the voice. Use a recording without it.")


def _levels_db(samples: Samples) -> np.ndarray:
    """Return the spectra (windows, bins) in dB of samples (N,) at _MUSIC_RATE_HZ. The windows of 0.2 s overlap."""
    if len(samples) < _MUSIC_WINDOW:
        return np.zeros((0, _MUSIC_WINDOW // 2 + 1))
    windows = np.lib.stride_tricks.sliding_window_view(samples, _MUSIC_WINDOW)[:: _MUSIC_WINDOW // 2]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(_MUSIC_WINDOW), axis=1)))
    return np.asarray(10 * np.log10(power + 1e-12))


def _speakers(samples: Samples, rate_hz: int, spans: Sequence[Span]) -> Check:
    """Detect several speakers: two groups of phrases with very different pitches, or a change of the timbre."""
    pitches = pitch.track(samples, rate_hz)
    phrases = []
    for span in spans:
        for start_s in np.arange(span.start_s, span.end_s, _PHRASE_S):
            end_s = min(start_s + _PHRASE_S, span.end_s)
            phrase = pitches[round(start_s / pitch.HOP_S) : round(end_s / pitch.HOP_S)]
            voiced = phrase[phrase > 0]
            if len(voiced) >= _MIN_VOICED_FRAMES:
                phrases.append((12 * np.log2(np.median(voiced) / 55.0), len(voiced)))
    phrases.sort()
    weights = np.array([weight for _, weight in phrases], float)
    tones = np.array([tone for tone, _ in phrases])
    difference = 0.0
    for cut in range(1, len(phrases)):
        share = weights[:cut].sum() / weights.sum()
        if _SPLIT_SHARE <= share <= 1 - _SPLIT_SHARE:
            difference = max(difference, float(np.median(tones[cut:]) - np.median(tones[:cut])))
    value = round(difference, 1)
    if difference >= _SPLIT_SEMITONES:
        return Check(
            "speakers",
            "warning",
            value,
            f"There may be several speakers: pitches differ by {value:g} semitones. Use a part with one speaker.",
        )
    if timbre_change(samples, rate_hz, pitches) > LIMIT:
        message = "There may be several speakers: the sound of the voice changes. Use a part with one speaker."
        return Check("speakers", "warning", value, message)
    return Check("speakers", "good", value, "One speaker was found.")


def transcript_check(transcript: str, speech_s: float, *, recognised: bool) -> Check:
    """Check that the transcript can be spoken in speech_s seconds. recognised: whether a speech recogniser wrote the
    transcript.
    """
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


def no_transcript_check(reason: str) -> Check:
    """Report that the words of the recording are unknown. reason: why they were not recognised."""
    return Check(
        TRANSCRIPT_MISSING,
        "warning",
        None,
        f"The words of the recording are unknown. {reason} An engine that clones voices needs the words of the "
        "recording: send exactly what is said in the part that is used.",
    )


def with_transcript_checks(report: Mapping[str, Any], checks: Iterable[Check] = ()) -> dict[str, Any]:
    """Return a copy of a report (as JSON) in which `checks` replace the checks of the transcript.

    Call this function when a recording gets a new transcript. In `checks`, only checks of the transcript are used.
    """
    if not report:
        return {}
    kept = [each for each in report.get("checks", ()) if not _of_transcript(each["id"])]
    kept += [asdict(check) for check in checks if _of_transcript(check.id)]
    levels = {each["level"] for each in kept}
    level = next((level for level in ("bad", "warning") if level in levels), "good")
    return {**report, "level": level, "checks": kept}


def _of_transcript(check_id: str) -> bool:
    return check_id.startswith(_TRANSCRIPT_PREFIX)


def words_check(found: FoundWords) -> Check:
    """Check that the recording contains the words of its transcript."""
    percent = float(round(100 * found.share))
    if found.fits:
        message = "The words of the transcript were found in the recording."
        return Check("transcript_words_percent", "good", percent, message)
    cause = (
        f"The recording has {found.other_s:.1f} s of speech or noise that is not in the transcript."
        if found.other_s
        else "The transcript does not seem to be what is said in the recording."
    )
    message = f"{cause} Check that the transcript has the exact words. The voice may speak wrong words."
    return Check("transcript_words_percent", "warning", percent, message)


def level_db(samples: Samples, rate_hz: int) -> float:
    """Return the noise floor in dBFS: the level that a tenth of the 20 ms frames do not exceed."""
    levels = levels_dbfs(samples, rate_hz)
    return float(np.percentile(levels, 10)) if len(levels) else -120.0
