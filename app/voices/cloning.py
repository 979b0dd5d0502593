"""Voice cloning: convert uploaded recordings to the reference recording of a voice.

Steps: decode a recording in the sandbox, find the speech, choose the best part (the window), measure the quality of the
window, find the transcript of the window, remove rumble, set the loudness. The caller stores the result. This module
does not depend on HTTP or engines.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from app.audio import pcm
from app.audio.loudness import denoised
from app.audio.sandbox import Limits, Source, decode_in_sandbox
from app.audio.threads import ThreadLimit
from app.errors import BadReference, Busy, DamagedVoice, InvalidValue, SpeechError, UnknownVoice
from app.types import Reference
from app.voices import quality, window
from app.voices.enhancement import at_loudness
from app.voices.folder_store import Damaged
from app.voices.known_recordings import MAX_BYTES, known
from app.voices.migration import read_old
from app.voices.presets import PROFILES
from app.voices.quality import Report
from app.voices.transcribe import cut_to
from app.voices.transcript_words import TranscriptChecker
from app.voices.vad import Span, SpeechFinder
from app.voices.voice_file import MAX_TRANSCRIPT_CHARS, REFERENCE_FILE, clean_transcript, has_words

if TYPE_CHECKING:
    from pathlib import Path

    from app.types import Samples
    from app.voices.store import VoiceStore
    from app.voices.transcribe import OnProgress, RecogniserState, Transcriber
    from app.voices.voice_file import StoredVoice

log = logging.getLogger(__name__)

T = TypeVar("T")

RATE_HZ = 44_100  # the sample rate of the codec DAC; for the codec Mimi the reference is resampled to 24 kHz
MAX_SAMPLE_S = 600.0
MIN_SAMPLE_S = 1.0
MAX_SAMPLES = 8  # the largest number of recordings for one voice
MAX_TOGETHER_S = 30.0  # longest total length of the recordings of one voice
TARGET_LUFS = -20.0
RUMBLE_HZ = (62.0, 80.0)  # audio below 62 Hz, including mains hum, is removed; audio above 80 Hz does not change
TRAILING_SILENCE_S = 0.4  # silence after each recording; without it, a model repeats the end of the recording
CONSENT_MAX_S = 60.0
CONSENT_RATE_HZ = 24_000
_MARGIN_S = 0.5  # extra audio on each side of the window for the filters
_FADE_S = 0.01
_BLOCK_S = 22.0  # length of an FFT block: with both margins it has nearly 2**20 samples at 44.1 kHz
# The warnings of these checks are shown in /health.
_DOUBTFUL_CHECKS = ("music", "transcript_letters_per_s", "transcript_words_percent")
# A file that has neither the name of a preset voice nor one of these endings is ignored without a report.
_AUDIO_SUFFIXES = frozenset(
    ".aac .aif .aiff .amr .avi .caf .flac .m4a .mkv .mov .mp3 .mp4 .oga .ogg .opus .wav .webm .wma".split()
)
_WAITING = 8  # maximum number of calls of `Cloner.run` that run or wait at the same time


@dataclass(frozen=True, slots=True)
class Sample:
    """An uploaded recording and its exact transcript. transcript: "" = unknown."""

    audio: Source
    transcript: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The reference recording that was made from uploaded recordings, and facts about it."""

    reference: Reference  # its transcript is empty if the words of at least one recording are unknown
    report: Report
    sample_count: int
    window: Span  # the part of the first recording that the reference contains
    missing_words: str = ""  # why the words of a recording are unknown; "" if they are known


class Cloner:
    """Prepares recordings for cloning, a limited number at a time.

    Use `prepare` and `run` from one event loop. `make` blocks and may run in any thread.
    """

    # Recordings with a length in this range can be used without cutting.
    sample_range_s = (MIN_SAMPLE_S, window.WHOLE_MAX_S)

    best_range_s = (window.MIN_WINDOW_S, window.MAX_WINDOW_S)  # the recommended length of a recording

    def __init__(
        self, transcriber: Transcriber, *, limits: Limits | None = None, checker: TranscriptChecker | None = None
    ) -> None:
        """checker: compares recordings with their transcripts; None = a checker that aligns in the calling thread."""
        self._transcriber = transcriber
        self._checker = checker or TranscriptChecker()
        self._limits = limits or Limits()
        self._finder = SpeechFinder()
        self._threads = ThreadLimit(max(1, min(4, (os.cpu_count() or 2) // 2)))
        self._waiting = 0

    async def prepare(
        self, samples: Sequence[Sample], *, language: str = "en", denoise: bool = False, what: str = "audio_file"
    ) -> Prepared:
        """Run `make` in a thread and return its result. Raises the errors of `make`, and Busy if too many calls
        wait.
        """
        return await self.run(lambda: self.make(samples, language=language, denoise=denoise, what=what))

    async def run(self, task: Callable[[], T]) -> T:
        """Run `task` in one of a limited number of threads and return its result.

        If the caller is cancelled, this method still waits for the thread, because the thread reads the uploaded file.
        Raises Busy if too many calls wait.
        """
        if self._waiting >= _WAITING:
            raise Busy("This server is processing too many recordings. Try again.", retry_after_s=5)
        self._waiting += 1
        try:
            return await self._threads.run(task)
        finally:
            self._waiting -= 1

    def make(
        self, samples: Sequence[Sample], *, language: str = "en", denoise: bool = False, what: str = "audio_file"
    ) -> Prepared:
        """Convert 1 to MAX_SAMPLES recordings of a voice to one reference recording. Blocks for seconds.

        language: BCP 47 tag, for the speech recogniser. denoise: whether to reduce steady noise. what: name of the
        field in the request, for error messages. If a recording has no transcript, the speech recogniser writes the
        transcript. If the speech recogniser can't be used, the reference has no transcript.

        Raises BadReference for a recording that can't be used, and InvalidValue for a transcript that is too long.
        """
        if not samples:
            raise BadReference(f"`{what}` is missing: send a recording of the voice.", param=what)
        if len(samples) > MAX_SAMPLES:
            raise BadReference(
                f"`{what}` was sent {len(samples)} times. Send at most {MAX_SAMPLES} recordings for one voice.",
                param=what,
            )
        # The recordings of a voice together may not be longer than MAX_TOGETHER_S, because the length of a voice prompt
        # is limited.
        most_s = min(window.WHOLE_MAX_S, MAX_TOGETHER_S / len(samples))
        prepared = [self._one(sample, language, denoise=denoise, most_s=most_s, what=what) for sample in samples]
        silence = pcm.silence(TRAILING_SILENCE_S, RATE_HZ)
        sound = np.concatenate([part for one in prepared for part in (one.samples, silence)])
        missing_words = next((one.missing_words for one in prepared if one.missing_words), "")
        words = "" if missing_words else " ".join(one.transcript for one in prepared)
        report = quality.worst([one.report for one in prepared])
        return Prepared(Reference(sound, RATE_HZ, words), report, len(prepared), prepared[0].window, missing_words)

    def prepare_recogniser(self, on_progress: OnProgress | None = None) -> str:
        """Download the speech recogniser if it is missing. Blocks.

        Return the reason why the speech recogniser still can't be used; "" if it can be used.
        """
        return self._transcriber.prepare(on_progress)

    def recogniser(self) -> RecogniserState:
        """Return the state of the speech recogniser."""
        return self._transcriber.state()

    def close(self) -> None:
        """Stop a running download of the speech recogniser."""
        self._transcriber.close()

    def words_of(self, reference: Reference, language: str) -> str:
        """Recognise the words of a stored recording; "" if the recogniser can't be used or finds none. Blocks."""
        if reference.seconds > window.WHOLE_MAX_S or self._transcriber.missing():
            return ""
        return self._words(reference.samples, Span(0.0, reference.seconds), language)

    def problem_of(self, reference: Reference, language: str = "en") -> tuple[str, dict[str, Any]]:
        """Return why a stored recording is not good for cloning ("" if it is good), and its quality report. Blocks.

        The report is a JSON object.
        """
        report = self._report_of(reference, language).as_json()
        if reference.seconds < MIN_SAMPLE_S:
            short = f"The recording has {reference.seconds:.1f} s of audio. {MIN_SAMPLE_S:g} s or more are needed."
            return short, report
        return _doubts(report), report

    def new_report(
        self, reference: Reference, report: Mapping[str, Any], language: str = "en", *, recognised: bool = False
    ) -> dict[str, Any]:
        """Check the new transcript of a stored recording, and return the new quality report (as JSON). Blocks.

        reference: the recording with the new transcript. report: the stored quality report. recognised: whether a
        speech recogniser wrote the transcript. Raises InvalidValue if the transcript has too many letters for the
        length of the speech.
        """
        measured = self._report_of(reference, language, recognised=recognised)
        for check in measured.checks:
            if check.level == "bad" and check.id == "transcript_letters_per_s":
                raise InvalidValue(f"`transcript` can't be used. {check.message}", param="transcript")
        return quality.with_transcript_checks(report, measured.checks) if report else measured.as_json()

    def _report_of(self, reference: Reference, language: str, *, recognised: bool = False) -> Report:
        """Measure the quality of a stored recording, and check its transcript if it has one."""
        samples, rate_hz, transcript = reference.samples, reference.rate_hz, reference.transcript
        spans = self._finder.find(samples, rate_hz)
        report = quality.measure(samples, rate_hz, spans, clipped=0.0, bandwidth_hz=rate_hz / 2)
        if not transcript or not spans:
            return report
        speech_s = sum(span.seconds for span in spans)
        report = report.with_check(quality.transcript_check(transcript, speech_s, recognised=recognised))
        return self._with_words_check(report, samples, rate_hz, transcript, language, recognised=recognised)

    # ----

    def _one(self, sample: Sample, language: str, *, denoise: bool, most_s: float, what: str) -> _PreparedSample:
        text = clean_transcript(sample.transcript, 10 * MAX_TRANSCRIPT_CHARS)
        decoded = decode_in_sandbox(sample.audio, RATE_HZ, max_seconds=MAX_SAMPLE_S, what=what, limits=self._limits)
        if decoded.truncated:
            raise BadReference(
                f"`{what}` is longer than {MAX_SAMPLE_S / 60:g} minutes. Send a part of it: 10 to 60 s of one speaker.",
                param=what,
            )
        if decoded.seconds < MIN_SAMPLE_S:
            raise BadReference(
                f"`{what}` has {decoded.seconds:.1f} s of audio. Send {MIN_SAMPLE_S:g} s or more; "
                f"{quality.BEST_LENGTH} work best.",
                param=what,
            )
        sound = without_rumble(decoded.samples, RATE_HZ)
        spans = self._finder.find(sound, RATE_HZ)
        if not spans:
            raise BadReference(
                f"`{what}` has {decoded.seconds:.1f} s of audio with no speech. Send a recording of one person "
                "who speaks.",
                param=what,
            )
        chosen, transcript, missing_words = self._choose(text, spans, sound, language=language, most_s=most_s)
        place = window.padded(chosen, spans, decoded.seconds)
        inside = [
            Span(max(0.0, span.start_s - place.start_s), min(span.end_s, place.end_s) - place.start_s)
            for span in spans
            if span.start_s < chosen.end_s and span.end_s > chosen.start_s
        ]
        cut = sound[round(place.start_s * RATE_HZ) : round(place.end_s * RATE_HZ)]
        report = quality.measure(
            cut, RATE_HZ, inside, clipped=decoded.clipped, bandwidth_hz=min(decoded.source_hz, RATE_HZ) / 2
        )
        recognised = not text
        speech_s = sum(span.seconds for span in inside)
        report = report.with_check(
            quality.no_transcript_check(missing_words)
            if missing_words
            else quality.transcript_check(transcript, speech_s, recognised=recognised)
        )
        report = self._with_words_check(report, cut, RATE_HZ, transcript, language, recognised=recognised)
        if report.refusal:
            raise BadReference(f"`{what}` can't be used. {report.refusal}", param=what)
        return _PreparedSample(cleaned(sound, place, denoise=denoise), transcript, report, place, missing_words)

    def _with_words_check(
        self, report: Report, samples: Samples, rate_hz: int, transcript: str, language: str, *, recognised: bool
    ) -> Report:
        """Check that samples (N,) contain the words of their transcript, and return the report with the result.

        The report does not change if there is no transcript, if a speech recogniser wrote the transcript, or if the
        checker gives no result.
        """
        if not transcript or recognised:
            return report
        found = self._checker.find(samples, rate_hz, transcript, language)
        return report if found is None else report.with_check(quality.words_check(found))

    def _choose(
        self, text: str, spans: Sequence[Span], sound: Samples, *, language: str, most_s: float
    ) -> tuple[Span, str, str]:
        """Choose the part of a recording that is used.

        Return the part, the exact transcript of this part, and the reason why the transcript is unknown ("" if it is
        known). text: the transcript of the whole recording; "" = unknown. spans: the parts of the samples that contain
        speech. most_s: the maximum length of the chosen part.
        """
        whole = Span(spans[0].start_s, spans[-1].end_s)
        best = window.best_window(spans, sound, RATE_HZ, most_s)
        if not text:
            recognised_text, missing = self._recognise(sound, spans, best, language)
            return best, recognised_text, missing
        if whole.seconds <= min(window.MAX_WINDOW_S, most_s):
            return whole, text, ""
        if part := self._part_of(text, spans, sound, best, language, whole_fits=whole.seconds <= most_s):
            return best, part, ""
        if whole.seconds <= most_s:
            return whole, text, ""
        reason = (
            f"The recording has {whole.seconds:.0f} s from the first word to the last word, of which "
            f"{best.seconds:.0f} s are used. The words of `transcript` for these seconds could not be found."
        )
        return best, "", " ".join(filter(None, (reason, self._transcriber.missing())))

    def _part_of(
        self,
        text: str,
        spans: Sequence[Span],
        sound: Samples,
        best: Span,
        language: str,
        *,
        whole_fits: bool,
    ) -> str:
        """Find the words of the section `best` in the transcript of the whole recording; "" if they are not found.

        If the speech recogniser is on the disk, it is tried first, and the word aligner second. Otherwise the word
        aligner is tried first. If the word aligner finds nothing, the speech recogniser is downloaded and tried.

        whole_fits: True = the recording can be used without cutting. In this case, only a speech recogniser that is
        already on the disk is tried.
        """
        is_here = self._transcriber.is_here
        if not is_here:
            if whole_fits:
                return ""
            if part := self._aligned_part(text, spans, sound, best, language):
                return part
        recognised_text, _ = self._recognise(sound, spans, best, language)
        if part := cut_to(text, recognised_text):
            return part
        return self._aligned_part(text, spans, sound, best, language) if is_here and not whole_fits else ""

    def _aligned_part(self, text: str, spans: Sequence[Span], sound: Samples, best: Span, language: str) -> str:
        """Find the words of the section `best` with the word aligner; "" if they are not found."""
        speech_s = sum(span.seconds for span in spans)
        before_s = sum(span.seconds for span in spans if span.end_s <= best.start_s)
        inside_s = sum(max(0.0, min(span.end_s, best.end_s) - max(span.start_s, best.start_s)) for span in spans)
        shares = (before_s / speech_s, (before_s + inside_s) / speech_s)
        place = window.padded(best, spans, len(sound) / RATE_HZ)
        cut = sound[round(place.start_s * RATE_HZ) : round(place.end_s * RATE_HZ)]
        return self._checker.section(cut, RATE_HZ, text, shares, language)

    def _recognise(self, sound: Samples, spans: Sequence[Span], best: Span, language: str) -> tuple[str, str]:
        """Recognise the words of the section `best`. Returns the words, and the reason why there are no words ("" if
        there are words).
        """
        if missing := self._transcriber.missing():
            return "", missing
        words = self._words(sound, window.padded(best, spans, len(sound) / RATE_HZ), language)
        if words:
            return words, ""
        return "", self._transcriber.missing() or "The speech recogniser found no words."

    def _words(self, sound: Samples, place: Span, language: str) -> str:
        cut = sound[round(place.start_s * RATE_HZ) : round(place.end_s * RATE_HZ)]
        try:
            recognised_text = self._transcriber.transcribe(cut, RATE_HZ, language)
        except OSError as error:  # for example a failed download
            log.warning("The recording is processed without recognised words: %s", error)
            return ""
        except (RuntimeError, ValueError):
            log.exception("The speech recogniser failed, so the recording is processed without recognised words.")
            return ""
        printable = "".join(
            letter if letter.isprintable() else " " for letter in recognised_text[:MAX_TRANSCRIPT_CHARS]
        )
        return clean_transcript(printable) if has_words(printable) else ""


@dataclass(frozen=True, slots=True)
class _PreparedSample:
    samples: Samples
    transcript: str
    report: Report
    window: Span
    missing_words: str  # why the words are unknown; "" if they are known


def import_preset_files(store: VoiceStore, folder: Path, cloner: Cloner) -> None:
    """Import recordings of preset voices from `folder`: `onyx.wav` and its transcript `onyx.txt` for the voice onyx.

    The recording may have any audio format. A recording that known_recordings.py lists needs no transcript. An imported
    file is imported again only if it has changed. Blocks.

    If a file can't be imported, or its quality report has a warning, the reason is logged and added to
    `store.doubtful`. No error is raised.
    """
    for path in sorted(folder.iterdir()):
        words = path.with_suffix(".txt")
        if path.name.startswith(".") or path.suffix.lower() in ("", ".txt") or not path.is_file():
            continue
        label = f"{folder.name}/{path.name}"
        try:
            if path.stem not in PROFILES:
                if path.suffix.lower() not in _AUDIO_SUFFIXES:
                    continue
                if path.stat().st_size > MAX_BYTES or known(path.read_bytes()) is None:
                    reason = (
                        f"The file is not used, because no preset voice has the name {path.stem!r}. Give the file the "
                    )
                    reason += f"name of a preset voice in small letters: {', '.join(PROFILES)}."
                    log.warning("Audio file %s: %s", path, reason)
                    store.mark_doubtful(label, reason)
                continue
            transcript = words.read_text("utf-8") if words.exists() else ""
            data = path.read_bytes()
            stamp = hashlib.sha256(data + transcript.encode()).hexdigest()[:16]
            stored = store.recording_of(path.stem)
            if stored is None or stored.origin != f"file {stamp}":
                reference, report = _imported(cloner, path, data, transcript)
                stored = store.set_reference(
                    path.stem, reference, origin=f"file {stamp}", quality=report, sample_count=1
                )
                log.info("The voice %s now uses the recording %s", path.stem, path)
            if doubts := _doubts(stored.quality):
                log.warning(
                    "The voice %s may sound wrong, because its recording %s has problems: %s", path.stem, path, doubts
                )
                store.mark_doubtful(label, doubts)
        except (SpeechError, OSError, UnicodeDecodeError) as error:
            log.warning("The file %s was not imported for the voice %s: %s", path, path.stem, error)
            store.mark_doubtful(label, f"The file is not used. {error}")


def _doubts(report: Mapping[str, Any]) -> str:
    """Return the messages of a quality report (as JSON) that the operator must know; "" if there are none."""
    return quality.joined(
        each["message"]
        for each in report.get("checks", ())
        if each["level"] == "bad" or (each["level"] == "warning" and each["id"] in _DOUBTFUL_CHECKS)
    )


def _imported(cloner: Cloner, path: Path, data: bytes, transcript: str) -> tuple[Reference, dict[str, Any]]:
    """Return the recording of a preset voice from an audio file, and its quality report (as JSON).

    Raises SpeechError.
    """
    recording = known(data) if len(data) <= MAX_BYTES and not transcript else None
    if recording is not None:
        reference = recording.reference(data, RATE_HZ)
        samples = at_loudness(reference.samples, RATE_HZ, TARGET_LUFS)
        samples = np.concatenate((samples, pcm.silence(TRAILING_SILENCE_S, RATE_HZ)))
        return Reference(samples, RATE_HZ, reference.transcript), {"source": recording.name}
    prepared = cloner.make([Sample(path, transcript)], what=path.name)
    if prepared.missing_words:
        raise InvalidValue(
            f"The words of the recording are unknown. {prepared.missing_words} Write the words of the recording to "
            f"{path.stem}.txt, next to {path.name}."
        )
    return prepared.reference, prepared.report.as_json()


def check_stored(store: VoiceStore, cloner: Cloner, *, ended: threading.Event) -> None:
    """Measure the recordings of the voices that have no quality report. Blocks.

    Voices have no report if their files were put on the disk by hand. A recording whose report has the level `bad` is
    measured again. `store.quality_of` returns the measured report if no report is stored. If a recording is not good
    for cloning, the reason is added to `store.doubtful`, and the voice stays usable.

    ended: when this event is set, the remaining recordings are not measured.
    """
    for stored in store.recorded():
        if ended.is_set():
            return
        if stored.quality and stored.quality.get("level") != "bad":
            continue
        kind = "cloned_voices" if stored.voice.kind == "cloned" else "voice_references"
        try:
            problem, report = cloner.problem_of(store.reference(stored.voice), stored.voice.language)
            store.add_measured(stored, report)
        except (SpeechError, OSError, ValueError) as error:
            problem = str(error)
        if problem:
            log.warning("The voice %s may sound wrong: %s", stored.voice.id, problem)
            store.mark_doubtful(f"{kind}/{stored.voice.id}", problem)


def recognise_missing_words(store: VoiceStore, cloner: Cloner, *, ended: threading.Event) -> None:
    """Recognise the words of cloned voices without a transcript, and store the words as transcripts. Blocks.

    ended: when this event is set, the remaining voices are not changed.
    """
    for stored in store.stored():
        if ended.is_set():
            return
        if not stored.voice.needs_words:
            continue
        try:
            language = stored.voice.language
            reference = store.reference(stored.voice)
            if words := cloner.words_of(reference, language):
                reference = replace(reference, transcript=words)
                report = cloner.new_report(reference, stored.quality, language, recognised=True)
                store.change(stored.id, transcript=words, quality=report)
                log.info("The words of the voice %s were recognised, so engines can use the voice now.", stored.id)
        except (SpeechError, OSError, ValueError) as error:
            log.warning("The words of the voice %s could not be recognised: %s", stored.id, error)


def convert_old_folders(store: VoiceStore, cloner: Cloner, *, ended: threading.Event) -> None:
    """Convert the voice folders of an earlier server version, if their recordings need the same steps as an upload.

    If a folder can't be converted, the reason is added to `store.refused`. ended: when this event is set, the remaining
    folders are not converted. Blocks.
    """
    for folder in store.unconverted():
        if ended.is_set():
            return
        try:
            convert_old_folder(store, cloner, folder)
        except (SpeechError, Damaged, OSError, ValueError) as error:
            log.warning("The voice folder %s of an earlier version can't be converted: %s", folder, error)
            store.fail_conversion(folder, str(error))


def convert_old_folder(store: VoiceStore, cloner: Cloner, folder: Path) -> StoredVoice:
    """Convert a folder in the format of an earlier version, and return the voice. Blocks.

    A transcript that does not fit the recording is not used. Raises SpeechError, Damaged, OSError.
    """
    old = read_old(folder)
    recording = folder / REFERENCE_FILE
    try:
        prepared = cloner.make([Sample(recording, old.transcript)], language=old.language, what=REFERENCE_FILE)
    except (BadReference, InvalidValue):
        if not old.transcript:
            raise
        prepared = cloner.make([Sample(recording)], language=old.language, what=REFERENCE_FILE)
    report = prepared.report.as_json()
    stored = store.convert(folder, old, prepared.reference, sample_count=prepared.sample_count, quality=report)
    log.info("The voice %s of an earlier version was converted. %s", stored.id, stored.missing)
    return stored


def change_voice(store: VoiceStore, cloner: Cloner, voice_id: str, *, transcript: str, **changes: Any) -> StoredVoice:
    """Change the transcript and other fields of a voice, and check the new transcript. Blocks. Raises SpeechError.

    changes: values for further parameters of `VoiceStore.change`.
    """
    store.refresh()
    stored = store.find(voice_id)
    words = clean_transcript(transcript)
    report = None
    if words:
        try:
            reference = replace(store.reference(stored.voice), transcript=words)
            report = cloner.new_report(reference, stored.quality, stored.voice.language)
        except (DamagedVoice, UnknownVoice) as error:
            log.warning("The new transcript of the voice %s was not checked: %s", stored.id, error)
    changed = store.change(voice_id, transcript=transcript, quality=report, **changes)
    if report and (problem := _doubts(report)):
        store.mark_doubtful(f"cloned_voices/{changed.id}", problem)
    return changed


def change_unconverted(
    store: VoiceStore,
    cloner: Cloner,
    name: str,
    *,
    voice_name: str | None = None,
    description: str | None = None,
    transcript: str | None = None,
) -> StoredVoice:
    """Change the files of a folder that is not usable as a voice yet, and convert the folder to a voice. Blocks.

    Raises SpeechError.

    name: the name of the folder. voice_name, description, transcript: the new values; None = no change.
    """
    folder = store.change_unconverted(name, voice_name=voice_name, description=description, transcript=transcript)
    try:
        return convert_old_folder(store, cloner, folder)
    except SpeechError as error:
        store.fail_conversion(folder, error.message)
        raise
    except (Damaged, OSError) as error:
        store.fail_conversion(folder, str(error))
        raise InvalidValue(f"The folder {name!r} can't be converted to a voice: {error}", param="id") from error


def cleaned(sound: Samples, place: Span, *, denoise: bool) -> Samples:
    """Return the part `place` of a recording, with a loudness of TARGET_LUFS, true peaks below -1 dBTP and faded edges.

    sound: samples (N,) at RATE_HZ that `without_rumble` returned. denoise: whether to reduce steady noise.
    """
    first, last = round(place.start_s * RATE_HZ), round(place.end_s * RATE_HZ)
    margin = round(_MARGIN_S * RATE_HZ)
    start = max(0, first - margin)
    wide = sound[start : last + margin]
    if denoise:
        wide = denoised(wide, RATE_HZ, quality.level_db(wide, RATE_HZ))
    cut = at_loudness(wide[first - start : first - start + last - first], RATE_HZ, TARGET_LUFS)
    rise = (0.5 - 0.5 * np.cos(np.pi * np.arange(round(_FADE_S * RATE_HZ)) / round(_FADE_S * RATE_HZ))).astype(
        np.float32
    )
    size = min(len(rise), len(cut) // 2)
    cut[:size] *= rise[:size]
    cut[len(cut) - size :] *= rise[:size][::-1]
    return cut


def without_rumble(samples: Samples, rate_hz: int) -> Samples:
    """Remove DC, rumble and the fundamental of mains hum from samples (N,) -> (N,).

    The filter has zero phase. The gain of the filter rises as a raised cosine from 0 at RUMBLE_HZ[0] to 1 at
    RUMBLE_HZ[1]. The samples are filtered in blocks, so that the memory for the FFT does not grow with the length of
    the recording.
    """
    margin, step = round(_MARGIN_S * rate_hz), round(_BLOCK_S * rate_hz)
    level = np.float32(np.mean(samples, dtype=np.float64)) if len(samples) else np.float32(0.0)
    wide = np.pad(samples - level, margin)
    low, high = RUMBLE_HZ
    out = []
    for start in range(0, len(samples), step):
        block = wide[start : start + step + 2 * margin]
        size = 1 << (len(block) - 1).bit_length()
        frequencies_hz = np.fft.rfftfreq(size, 1 / rate_hz)
        gains = 0.5 - 0.5 * np.cos(np.pi * np.clip((frequencies_hz - low) / (high - low), 0.0, 1.0))
        filtered = np.fft.irfft(np.fft.rfft(block.astype(np.float64), size) * gains, size)
        out.append(filtered[margin : len(block) - margin].astype(np.float32))
    return np.concatenate(out) if out else samples


def consent_recording(audio: Source, *, limits: Limits | None = None, what: str = "recording") -> Reference:
    """Decode a recorded consent to mono at CONSENT_RATE_HZ. Blocks.

    Raises BadReference if the recording can't be decoded or is longer than CONSENT_MAX_S.
    """
    decoded = decode_in_sandbox(audio, CONSENT_RATE_HZ, max_seconds=CONSENT_MAX_S, what=what, limits=limits)
    if decoded.truncated:
        raise BadReference(f"`{what}` is longer than {CONSENT_MAX_S:g} s. Send a shorter recording.", param=what)
    return Reference(decoded.samples, CONSENT_RATE_HZ, "")
