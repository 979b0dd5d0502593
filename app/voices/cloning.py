"""From a recording that somebody sends to a voice's reference: decode, find the best stretch, clean it, name its words.

Nothing is stored here; what comes out is put into the store by who asked. A recording may be a path or bytes, from any
source. Knows no HTTP, no engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from app.audio import pcm
from app.audio.loudness import denoised, integrated_lufs
from app.audio.sandbox import Limits, Source, decode_in_sandbox
from app.errors import BadReference, Busy, InvalidValue, SpeechError
from app.types import Reference
from app.voices import quality, window
from app.voices.presets import PROFILES
from app.voices.quality import Report
from app.voices.transcribe import cut_to
from app.voices.vad import Span, SpeechFinder
from app.voices.voice_file import MAX_TRANSCRIPT_CHARS, clean_text

if TYPE_CHECKING:
    from pathlib import Path

    from app.types import Samples
    from app.voices.store import VoiceStore
    from app.voices.transcribe import Transcriber

log = logging.getLogger(__name__)

T = TypeVar("T")

RATE_HZ = 44_100  # as DAC wants it; Mimi takes 24 kHz of it
MAX_SAMPLE_S = 600.0
MIN_SAMPLE_S = 1.0
MAX_SAMPLES = 8  # recordings of one voice
MAX_TOGETHER_S = 30.0  # of all of them
TARGET_LUFS = -20.0
PEAK = 0.89  # -1 dBFS
RUMBLE_HZ = (20.0, 45.0)  # silent below the first, untouched above the second
TRAILING_SILENCE_S = 0.4  # models take a prompt's last sound over into what they say, unless it ends in silence
CONSENT_MAX_S = 60.0
CONSENT_RATE_HZ = 24_000
_MARGIN_S = 0.5  # around the window while it is filtered
_FADE_S = 0.01
_WAITING = 8  # more recordings than this are not queued


@dataclass(frozen=True, slots=True)
class Sample:
    """A recording as it came (path, bytes or an open file), and its exact words if they are known."""

    audio: Source
    transcript: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a voice is made of. window: where it lies in the first recording."""

    reference: Reference
    report: Report
    sample_count: int
    window: Span


class Cloner:
    """Prepares recordings, a few at the same time. Used from one event loop; `make` blocks and is for any thread."""

    sample_range_s = (MIN_SAMPLE_S, window.WHOLE_MAX_S)  # a recording of this length can be used as it is

    def __init__(self, transcriber: Transcriber, *, limits: Limits | None = None) -> None:
        self._transcriber = transcriber
        self._limits = limits or Limits()
        self._finder = SpeechFinder()
        self._room = asyncio.Semaphore(max(1, min(4, (os.cpu_count() or 2) // 2)))
        self._waiting = 0

    async def prepare(
        self, samples: Sequence[Sample], *, language: str = "en", denoise: bool = False, what: str = "audio_file"
    ) -> Prepared:
        """`make` in a thread. Raises Busy too."""
        return await self.work(lambda: self.make(samples, language=language, denoise=denoise, what=what))

    async def work(self, task: Callable[[], T]) -> T:
        """Something that decodes, in a thread, no more at a time than leaves the others theirs. Raises Busy.

        Who is cancelled leaves when the thread is done: it reads their file.
        """
        if self._waiting >= _WAITING:
            raise Busy("Too many recordings are being worked on. Try again.", retry_after_s=5)
        self._waiting += 1
        try:
            async with self._room:
                thread = asyncio.ensure_future(asyncio.to_thread(task))
                try:
                    return await asyncio.shield(thread)
                except asyncio.CancelledError:
                    await asyncio.wait([thread])
                    raise
        finally:
            self._waiting -= 1

    def make(
        self, samples: Sequence[Sample], *, language: str = "en", denoise: bool = False, what: str = "audio_file"
    ) -> Prepared:
        """Blocks for seconds. Raises BadReference, InvalidValue: in words, with what was measured."""
        if not samples:
            raise BadReference(f"`{what}` is missing: send a recording of the voice.", param=what)
        if len(samples) > MAX_SAMPLES:
            raise BadReference(f"`{what}` came {len(samples)} times; a voice takes {MAX_SAMPLES} at most.", param=what)
        # Several share the length that a prompt may have.
        most_s = min(window.WHOLE_MAX_S, MAX_TOGETHER_S / len(samples))
        made = [self._one(sample, language, denoise=denoise, most_s=most_s, what=what) for sample in samples]
        silence = pcm.silence(TRAILING_SILENCE_S, RATE_HZ)
        sound = np.concatenate([part for one in made for part in (one.samples, silence)])
        words = " ".join(one.transcript for one in made)
        report = quality.worst([one.report for one in made])
        return Prepared(Reference(sound, RATE_HZ, words), report, len(made), made[0].window)

    # ----

    def _one(self, sample: Sample, language: str, *, denoise: bool, most_s: float, what: str) -> _Made:
        given = clean_text(sample.transcript, "transcript", 10 * MAX_TRANSCRIPT_CHARS)
        decoded = decode_in_sandbox(sample.audio, RATE_HZ, max_seconds=MAX_SAMPLE_S, what=what, limits=self._limits)
        if decoded.truncated:
            raise BadReference(
                f"`{what}` is longer than {MAX_SAMPLE_S / 60:g} minutes. Send a part of it: 10 to 60 s of one speaker.",
                param=what,
            )
        if decoded.seconds < MIN_SAMPLE_S:
            raise BadReference(
                f"`{what}` has {decoded.seconds:.1f} s of sound; at least {MIN_SAMPLE_S:g} s are needed, and 6 to 12 s "
                "are good.",
                param=what,
            )
        sound = decoded.samples
        spans = self._finder.find(sound, RATE_HZ)
        if not spans:
            raise BadReference(
                f"`{what}` has {decoded.seconds:.1f} s of sound in which no speech is heard. Send a recording of one "
                "person who speaks.",
                param=what,
            )
        chosen, transcript = self._choose(given, spans, sound, language=language, most_s=most_s, what=what)
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
        recognised = not given
        speech_s = sum(span.seconds for span in inside)
        report = report.with_check(quality.transcript_check(transcript, speech_s, recognised=recognised))
        if report.refusal:
            raise BadReference(f"`{what}` can't be used. {report.refusal}", param=what)
        return _Made(cleaned(sound, place, denoise=denoise), transcript, report, place)

    def _choose(
        self, given: str, spans: Sequence[Span], sound: Samples, *, language: str, most_s: float, what: str
    ) -> tuple[Span, str]:
        """The stretch to use, and exactly its words."""
        whole = Span(spans[0].start_s, spans[-1].end_s)
        best = window.best_window(spans, sound, RATE_HZ)
        if best.seconds > most_s:
            best = Span(best.start_s, best.start_s + most_s)
        if given and whole.seconds <= min(window.MAX_WINDOW_S, most_s):
            return whole, given
        missing = self._transcriber.missing()
        heard = "" if missing else self._words(sound, window.padded(best, spans, len(sound) / RATE_HZ), language)
        if given:
            if part := cut_to(given, heard):
                return best, part
            if whole.seconds <= most_s:
                return whole, given
            why = missing or "What a speech recogniser hears in it is not in `transcript`."
            raise BadReference(
                f"`{what}` has {whole.seconds:.0f} s from its first word to its last; with a `transcript` of the whole "
                f"it may have {most_s:.0f} s. Send a shorter recording, with just its words. {why}",
                param=what,
            )
        if not heard:
            why = missing or "The speech recogniser heard no words."
            raise InvalidValue(
                f"`transcript` is missing: send exactly what is said in the recording. {why}", param="transcript"
            )
        return best, heard

    def _words(self, sound: Samples, place: Span, language: str) -> str:
        cut = sound[round(place.start_s * RATE_HZ) : round(place.end_s * RATE_HZ)]
        try:
            heard = self._transcriber.transcribe(cut, RATE_HZ, language)
        except (OSError, RuntimeError, ValueError):
            log.exception("the speech recogniser failed")
            return ""
        printable = "".join(letter if letter.isprintable() else " " for letter in heard[:MAX_TRANSCRIPT_CHARS])
        return clean_text(printable, "transcript", MAX_TRANSCRIPT_CHARS)


@dataclass(frozen=True, slots=True)
class _Made:
    samples: Samples
    transcript: str
    report: Report
    window: Span


def take_files(store: VoiceStore, folder: Path, cloner: Cloner) -> None:
    """A person replaces a standard voice by a file: `onyx.wav` (or any sound) and `onyx.txt`, its words, in `folder`.

    Each is taken once, and again when it changed. Blocks. Never raises: what can't be taken is told in the log.
    """
    for path in sorted(folder.iterdir()):
        words = path.with_suffix(".txt")
        if path.stem not in PROFILES or path.suffix in ("", ".txt") or not path.is_file():
            continue
        try:
            transcript = words.read_text("utf-8") if words.exists() else ""
            stamp = hashlib.sha256(path.read_bytes() + transcript.encode()).hexdigest()[:16]
            present = store.recording_of(path.stem)
            if present is not None and present.origin == f"file {stamp}":
                continue
            made = cloner.make([Sample(path, transcript)], what=path.name)
            store.set_reference(
                path.stem, made.reference, origin=f"file {stamp}", quality=made.report.as_json(), sample_count=1
            )
            log.info("the voice %s now sounds as in %s", path.stem, path)
        except (SpeechError, OSError, UnicodeDecodeError) as error:
            log.warning("%s is not taken for the voice %s: %s", path, path.stem, error)


def cleaned(sound: Samples, place: Span, *, denoise: bool) -> Samples:
    """The stretch of `sound` at RATE_HZ without rumble, at TARGET_LUFS unless its peaks forbid it, edges faded."""
    first, last = round(place.start_s * RATE_HZ), round(place.end_s * RATE_HZ)
    margin = round(_MARGIN_S * RATE_HZ)
    start = max(0, first - margin)
    wide = sound[start : last + margin]
    if denoise:
        wide = denoised(wide, RATE_HZ, quality.level_db(wide, RATE_HZ))
    cut = without_rumble(wide, RATE_HZ)[first - start : first - start + last - first]
    gain_db = TARGET_LUFS - integrated_lufs(cut, RATE_HZ)
    peak = float(np.abs(cut).max(initial=1e-9))
    cut = cut * np.float32(min(pcm.amplitude(gain_db), PEAK / peak))
    rise = (0.5 - 0.5 * np.cos(np.pi * np.arange(round(_FADE_S * RATE_HZ)) / round(_FADE_S * RATE_HZ))).astype(
        np.float32
    )
    size = min(len(rise), len(cut) // 2)
    cut[:size] *= rise[:size]
    cut[len(cut) - size :] *= rise[:size][::-1]
    return cut


def without_rumble(samples: Samples, rate_hz: int) -> Samples:
    """No DC and nothing below RUMBLE_HZ, without a change of phase or level above: a raised cosine over frequency."""
    count = len(samples)
    size = count + rate_hz // 2  # room, so that the end does not ring into the start
    spectrum = np.fft.rfft(samples.astype(np.float64) - float(np.mean(samples, dtype=np.float64)), size)
    low, high = RUMBLE_HZ
    frequencies_hz = np.fft.rfftfreq(size, 1 / rate_hz)
    spectrum *= 0.5 - 0.5 * np.cos(np.pi * np.clip((frequencies_hz - low) / (high - low), 0.0, 1.0))
    return np.fft.irfft(spectrum, size)[:count].astype(np.float32)


def consent_recording(audio: Source, *, limits: Limits | None = None, what: str = "recording") -> Reference:
    """A spoken agreement as it is kept: mono, 24 kHz. Blocks. Raises BadReference."""
    decoded = decode_in_sandbox(audio, CONSENT_RATE_HZ, max_seconds=CONSENT_MAX_S, what=what, limits=limits)
    if decoded.truncated:
        raise BadReference(f"`{what}` is longer than {CONSENT_MAX_S:g} s.", param=what)
    return Reference(decoded.samples, CONSENT_RATE_HZ, "")
