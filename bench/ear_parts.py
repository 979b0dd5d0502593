"""The parts of `python -m bench.ear` for casting (preset voice creation), quality report, loudness and watermark.

casting
    `casting_accepted`: share of a speaker's recordings that can become a preset voice. The figure is the mean of the
    shares of all speakers.
    `casting_refused_negatives`: share of the sounds without words that can't become a preset voice.
quality
    `quality_refused`: the names of the recordings of speech that cloning refuses.
    `quality_false_music`, `quality_false_speakers`: share of the recordings of speech for which the check `music`, or
    the check `speakers`, warns.
    `quality_accepted_negatives`: the names of the sounds without words that cloning accepts.
loudness
    `loudness_within_1lu`: share of recordings whose loudness is within 1 LU of the target after the loudness stage.
    Before the stage, each recording is scaled to the target by its own measured level. For
    `loudness_within_1lu_other`, each recording is scaled by the measured level of another recording of the speaker.
    `loudness_true_peak_dbtp`: the highest true peak.
watermark
    `watermark_false`: share of files without a watermark in which the detector finds a watermark.
    `watermark_missed`: share of recordings with a watermark in which the detector finds no watermark.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

from app.audio import pcm, watermark
from app.audio.decode import decode
from app.audio.detection import WatermarkDetector
from app.audio.loudness import integrated_lufs
from app.audio.shape import EdgeTrimmer
from app.audio.threads import ThreadLimit
from app.errors import SpeechError
from app.generator.preset_voices import evaluate
from app.voices.cloning import Cloner, Sample
from app.voices.enhancement import TARGET_LUFS, Loudness
from app.voices.presets import DEFAULT_VOICE, PROFILES
from app.voices.transcribe import NoTranscriber
from app.voices.transcript_words import TranscriptChecker
from app.voices.vad import SpeechFinder
from app.voices.voice_file import wav

if TYPE_CHECKING:
    from app.types import Samples

RATE_HZ = 24_000
PROCESSES = 2
MAX_SECONDS = 120.0
CHUNK = 1_920  # 80 ms, the length of a frame of CSM


@dataclass(frozen=True, slots=True)
class Recording:
    """One entry of the manifest."""

    path: Path
    words: str
    speaker: str
    speech: bool
    beside: Path  # another recording of the same speaker; this recording if there is no other

    @property
    def samples(self) -> Samples:
        return _decoded(self.path)


def _decoded(path: Path) -> Samples:
    return decode(path.read_bytes(), RATE_HZ, max_seconds=MAX_SECONDS).samples


def _share(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else 0.0


def _mapped(work: Any, recordings: Sequence[Recording]) -> list[Any]:
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        return pool.map(work, recordings, chunksize=4)


# ---- casting


def _cast(one: Recording) -> str:
    """Return the reason why a recording can't become a preset voice; "" if it can."""
    find = TranscriptChecker().find
    found = evaluate(one.samples, RATE_HZ, one.words, PROFILES[DEFAULT_VOICE], one.path.name, words_heard=find)
    return found if isinstance(found, str) else ""


def casting(recordings: Sequence[Recording]) -> dict[str, Any]:
    people: dict[str, list[bool]] = defaultdict(list)
    refused = []
    for one, defect in zip(recordings, _mapped(_cast, recordings), strict=True):
        if one.speech:
            people[one.speaker].append(not defect)
        else:
            refused.append(bool(defect))
        if one.speech == bool(defect):
            print(f"casting: {one.path.name}: {defect or 'accepted'}")
    return {
        "casting_accepted": _share([_share(accepted) for accepted in people.values()]),
        "casting_refused_negatives": _share(refused),
    }


# ---- quality report


def _report(one: Recording) -> tuple[str, list[str]]:
    """Return the reason why cloning refuses a recording ("" = it accepts the recording), and the checks that warn."""
    try:
        made = Cloner(NoTranscriber()).make([Sample(one.path, one.words)])
    except SpeechError as error:
        return error.message, []
    return "", [check.id for check in made.report.checks if check.level != "good"]


def quality(recordings: Sequence[Recording]) -> dict[str, Any]:
    refused, accepted_negatives, warnings = [], [], []
    for one, (why, warned) in zip(recordings, _mapped(_report, recordings), strict=True):
        if not one.speech:
            accepted_negatives += [] if why else [one.path.name]
            continue
        if why:
            refused.append(one.path.name)
        warnings.append(warned)
        if why or {"music", "speakers"} & set(warned):
            print(f"quality: {one.path.name}: {why or ', '.join(warned)}")
    return {
        "quality_refused": refused,
        "quality_false_music": _share(["music" in each for each in warnings]),
        "quality_false_speakers": _share(["speakers" in each for each in warnings]),
        "quality_accepted_negatives": accepted_negatives,
    }


# ---- loudness


def _trimmed(path: Path) -> Samples:
    """Return a recording without the silence at both ends. The server trims a take in the same way."""
    edges = EdgeTrimmer(RATE_HZ)
    return np.concatenate((edges.push(_decoded(path)), edges.flush()))


def _through_loudness(one: Recording) -> tuple[float, float, float]:
    """Return two loudness errors in LU and the true peak in dBTP.

    For the first error, the recording is scaled by its own level, for the second by the level of another recording.
    """
    own_lu, peak = _after_loudness(one.path, one.path)
    other_lu, _ = (own_lu, peak) if one.beside == one.path else _after_loudness(one.path, one.beside)
    return own_lu, other_lu, peak


def _after_loudness(path: Path, known: Path) -> tuple[float, float]:
    """Return the loudness error in LU and the true peak in dBTP. known: the recording whose level sets the gain."""
    samples = _trimmed(path) * np.float32(pcm.amplitude(TARGET_LUFS - integrated_lufs(_trimmed(known), RATE_HZ)))
    stage = Loudness(RATE_HZ)
    stage.expect(TARGET_LUFS)
    parts = [stage.push(samples[at : at + CHUNK]) for at in range(0, len(samples), CHUNK)]
    out = np.concatenate([*parts, stage.flush()])
    peak = np.abs(soxr.resample(out, RATE_HZ, 8 * RATE_HZ, quality="VHQ")).max()
    return integrated_lufs(out, RATE_HZ) - TARGET_LUFS, float(20 * np.log10(peak + 1e-9))


def loudness(recordings: Sequence[Recording]) -> dict[str, Any]:
    speech = [one for one in recordings if one.speech]
    found = _mapped(_through_loudness, speech)
    for one, (error, _, _) in zip(speech, found, strict=True):
        if abs(error) > 1.0:
            print(f"loudness: {one.path.name}: {error:+.1f} LU")
    return {
        "loudness_within_1lu": _share([abs(error) <= 1.0 for error, _, _ in found]),
        "loudness_within_1lu_other": _share([abs(error) <= 1.0 for _, error, _ in found]),
        "loudness_true_peak_dbtp": round(max(peak for _, _, peak in found), 2),
    }


# ---- watermark


def _detected(one: Recording) -> tuple[bool, bool]:
    """Return whether the detector finds a watermark in the file, and whether it finds one in a marked copy."""
    detector = WatermarkDetector(ThreadLimit(1), SpeechFinder().contains_speech)
    plain = asyncio.run(detector.detect(one.path.read_bytes())).watermarked is True
    if not one.speech:
        return plain, True
    stage = watermark.StreamMarker(RATE_HZ, watermark.load())
    marked = np.concatenate((stage.push(one.samples), stage.flush()))
    return plain, asyncio.run(detector.detect(wav(marked, RATE_HZ))).watermarked is True


def marks(recordings: Sequence[Recording]) -> dict[str, Any]:
    found = _mapped(_detected, recordings)
    for one, (plain, marked) in zip(recordings, found, strict=True):
        if plain or not marked:
            print(f"watermark: {one.path.name}: {'false' if plain else 'missed'}")
    spoken = [marked for one, (_, marked) in zip(recordings, found, strict=True) if one.speech]
    return {
        "watermark_false": _share([plain for plain, _ in found]),
        "watermark_missed": _share([not marked for marked in spoken]),
    }
