"""Checks an installation by its speech: each voice speaks fixed sentences, and the check reports faults.

The command `python -m app.cli check` is for the first day with new weights. The server's speech generator speaks the
sentences one after another, in the same way as requests. A take is one spoken sentence. The result is a Report with
measurements of each take and with findings. A finding describes a fault and names a remedy. `first_day_page.py` writes
the report as a web page.

A finding is a `problem` or a `note`. A voice has a problem if more than MAX_SHARE of its takes have the same fault. A
single bad take is no problem, because the measurements have false alarms.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import soxr

from app import __version__
from app.audio import guard, pcm
from app.audio.alignment import Aligner
from app.audio.levels import WINDOW_S, levels_dbfs, silence_threshold
from app.audio.loudness import integrated_lufs
from app.audio.verification import Verifier
from app.engines.pronouncing import pronounce
from app.errors import DamagedVoice, SpeechError
from app.generator.preset_voices import distance
from app.types import Line, SpeechRequest
from app.voices import voice_features
from app.voices.enhancement import TARGET_LUFS
from app.voices.presets import Profile
from app.voices.voice_file import wav

if TYPE_CHECKING:
    from pathlib import Path

    from app.audio.verification import Verdict
    from app.generator.speech import Answer
    from app.settings import Settings
    from app.text.normalizer import Normalizer
    from app.types import Samples, Voice
    from app.voices.voice_features import VoiceFeatures
    from app.wiring import CoreServices

SENTENCES = (
    "Good morning, and welcome back.",
    "How are you today?",
    "The library closes at eight this evening.",
    "My brother lives in a small village in the north.",
    "Please turn left at the second traffic light, and then stop.",
    "The weather was fine, so they walked along the river and talked.",
    "Can you help me carry these boxes to the car?",
    "I would like a cup of tea with milk, but no sugar.",
    "That was the best concert I have heard in years!",
    "She opened the window, took a deep breath, and smiled.",
    "The train leaves at 7:45 from platform 9.",
    "The tickets cost $12.50 each, and children pay half.",
    "He asked twice, but no one in the room knew the answer.",
    "On Monday morning the children found a small grey cat behind the garden wall.",
    "If it rains tomorrow, we will stay at home and play cards.",
    "The museum has a large collection of old maps, coins and letters.",
    "After a long silence the old man shook his head and said: not today.",
    "Fresh bread, butter, and a little honey make a good breakfast.",
    "Their flight was delayed by three hours because of heavy snow.",
    "In the middle of the night a bright light moved slowly across the sky, and then it was dark again.",
)
RATE_HZ = 24_000
GIVE_UP_AFTER = 2
MAX_SHARE = 0.1  # the largest share of a voice's takes that may have the same fault

# Limits for one take. For comparison, the next comments give the values of 66 recordings of people who speak English.
PACE_BAND = (0.5, 2.0)  # pace of a take / pace of its voice; 0.61 to 1.63 in 90 % of one person's recordings
MIN_PACE, MAX_PACE = 6.0, guard.FAST_CHARS_PER_S  # characters a second; people speak 6.7 to 23
MIN_PACED_LENGTH = 25.0  # characters; the pace of shorter sentences is not checked, because it varies more
MAX_SILENCE_S = 1.5  # limit of a silence inside a sentence; 1 of the 66 recordings has a longer silence
# The largest difference from the target level. The level of takes that are shorter than MIN_LEVEL_S is not checked.
MAX_LEVEL_ERROR_LU, MIN_LEVEL_S = 3.0, 1.5
MAX_TRUE_PEAK_DBTP = -0.5  # largest true peak; the limiter keeps true peaks below -1.0
# Limit of `preset_voices.distance`. Of the 4 s parts of one person's speech, 1 % have a larger distance.
MAX_VOICE_DISTANCE = 2.5
WAVE_POINTS = 120

_REASONS = {
    "cut_off": "The recording ends inside the text.",
    "missing_words": "Words are missing: {words}.",
    "not_words": "More than a second of the audio is not a word of the text, but babble, noise or other speech.",
    "wrong_words": "The words of the text were not found.",
    "length": "The recording is far too short or too long for its text.",
    # the check that searches for the words of the text gave no result
    "no_answer": "The words of the text were not found.",
}
# Fault -> description of the fault, and remedy.
_FAULTS = {
    "failed": (
        "The sentence could not be spoken",
        "Follow the error message. If it does not help, download the weights again, or compare their checksums with "
        "those of the hub.",
    ),
    "words": (
        "The words of the text were not found in the speech",
        "Listen to these takes. If all voices are affected, the weights are damaged, incomplete or from another model. "
        "If one voice is affected, give this voice another recording, and check that the transcript has the exact "
        "words.",
    ),
    "pace": (
        "The speech is much faster or slower than the voice should speak",
        "Check that the transcript of the voice has the exact words of its recording, or use another recording.",
    ),
    "silence": (
        f"There is a silence of more than {MAX_SILENCE_S:g} s inside a sentence",
        "Use a recording without long pauses, or a lower `temperature`.",
    ),
    "level": (
        f"The loudness is more than {MAX_LEVEL_ERROR_LU:g} LU from {TARGET_LUFS:g} LUFS",
        "Listen to these takes: noise or long pauses in the speech change its measured loudness.",
    ),
    "peak": (
        f"The true peak is above {MAX_TRUE_PEAK_DBTP:g} dBTP",
        "Please report this: the limiter should keep all peaks below -1 dBTP.",
    ),
    "voice": (
        "The voice sounds different from its recording, or from its first take",
        "Use a longer recording of 5 to 10 s of clear speech, or a lower `temperature`.",
    ),
    "guard": (
        "The output guard has ended or rejected speech",
        "docs/models.md describes the rules. A lower `temperature` or another recording of the voice helps in most "
        "cases.",
    ),
}


@dataclass(slots=True)
class Take:
    """One sentence that one voice has spoken. None = not measured."""

    number: int  # number of the sentence, from 1
    text: str
    file: str = ""  # the audio file, relative to the report; "" = there is no audio
    seconds: float = 0.0
    error: str = ""  # why speech is missing or incomplete
    pace: float | None = None  # characters a second
    pace_ratio: float | None = None  # pace divided by the pace of the voice
    words: str = "unchecked"  # result of the check of the words: ok, bad or unchecked
    words_reason: str = ""
    words_found: float | None = None  # share of the words of the text that were found
    word_score: float | None = None  # mean log-likelihood of the words: about 0 for clear speech, -5 without speech
    doubtful_words: list[str] = field(default_factory=list)
    longest_silence_s: float = 0.0
    loudness_lufs: float | None = None
    true_peak_dbtp: float | None = None
    # 0 = like the voice's recording. A difference of 4 semitones in pitch, or of 6 dB in brightness, adds 1.
    voice_distance: float | None = None
    guard: dict[str, int] = field(default_factory=dict)  # rule of the output guard -> how often it acted
    first_audio_s: float | None = None
    speed: float | None = None  # seconds of audio that are generated in one second
    wave: list[int] = field(default_factory=list)  # the peak of each of up to WAVE_POINTS equal parts, 0 to 100
    faults: dict[str, str] = field(default_factory=dict)  # fault -> description of the fault


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault or a hint, with a remedy."""

    severity: str  # problem or note
    text: str
    advice: str
    voice: str = ""  # "" = all voices


@dataclass(slots=True)
class VoiceReport:
    """The takes of one voice."""

    id: str
    name: str
    recorded: bool
    # Characters a second in the voice's recording. If the voice has no recording: the median of its takes.
    pace: float | None = None
    takes: list[Take] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The result of a check."""

    engine: str
    device: str
    dtype: str
    version: str = __version__
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    voices: list[VoiceReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    guard: dict[str, int] = field(default_factory=dict)
    speed: float | None = None  # the audio of all takes, divided by the time in which it was generated
    first_audio_s: float | None = None  # median of all takes
    # "process" or the name of a GPU -> the largest number of bytes in use.
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the report contains no problem."""
        return all(finding.severity != "problem" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the content of report.json."""
        return {"ok": self.ok, **asdict(self)}


# ---- speaking


async def run(
    services: CoreServices,
    settings: Settings,
    voices: Sequence[Voice],
    folder: Path,
    *,
    normalizer: Normalizer,
    sentences: Sequence[str] = SENTENCES,
    on_progress: Callable[[int, str], None] = lambda _done, _step: None,
) -> Report:
    """Let each voice speak each sentence, store the audio in `folder`/audio, measure the takes, and report faults.

    The engine must be running. on_progress: called before each step with the number of takes so far and the name of the
    step. Raises OSError if the audio can't be stored.
    """
    info = services.manager.engine().info
    report = Report(info.id, info.device, info.dtype)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    missing = await _create_recordings(services, voices, lambda step: on_progress(0, step)) if info.can_clone else {}
    with contextlib.closing(Aligner(pronounce)) as aligner:
        verifier = Verifier(aligner)
        for chosen in voices:
            voice = services.voices.get(chosen.id)  # look up the voice again, because it may have a recording now
            own = await asyncio.to_thread(_recording_of, services, voice)
            pace, features = own or (None, None)
            result = VoiceReport(voice.id, voice.name, voice.recorded, pace)
            report.voices.append(result)
            for number, text in enumerate(sentences, 1):
                on_progress(len(_takes(report)), f"{voice.id} speaks")
                take = Take(number, text)
                before = _guard_counts(services)
                samples = await _speak(services, take, voice.id)
                take.guard = dict(Counter(_guard_counts(services)) - Counter(before))
                report.peak_memory_bytes = _peak_memory(services, report.peak_memory_bytes)
                if len(samples):
                    take.file = f"audio/{voice.id}-{number:02d}.wav"
                    await asyncio.to_thread((folder / take.file).write_bytes, wav(samples, RATE_HZ))
                    spoken = normalizer.normalize(text)
                    features = await asyncio.to_thread(
                        _measure, take, samples, spoken, verifier, language=voice.language, compare=features, pace=pace
                    )
                result.takes.append(take)
            _judge(result, enhanced=settings.enhance)
    _summarise(report)
    report.findings = _findings(report, missing) + _bad_files(services)
    return report


def _bad_files(services: CoreServices) -> list[Finding]:
    """Return notes about recordings on disk that the server does not use, or that may give a bad voice."""
    return [
        Finding("note", f"{path} is not used, or may give a bad voice: {reason}", "Replace or remove these files.")
        for path, reason in sorted(services.voices.flagged.items())
    ]


def _summarise(report: Report) -> None:
    """Set the values of the report that summarise all takes."""
    takes = _takes(report)
    spoken = [take for take in takes if take.speed]
    if spoken:
        seconds = sum(take.seconds for take in spoken)
        report.speed = round(seconds / sum(take.seconds / (take.speed or 1.0) for take in spoken), 2)
        report.first_audio_s = round(float(np.median([take.first_audio_s or 0.0 for take in spoken])), 3)
    report.guard = dict(sum((Counter(take.guard) for take in takes), Counter[str]()))


async def _create_recordings(
    services: CoreServices, voices: Sequence[Voice], on_step: Callable[[str], None]
) -> dict[str, str]:
    """Wait until these preset voices have recordings. Return a mapping: voice that has no recording -> the reason.

    If the first GIVE_UP_AFTER recordings can't be created, this function does not wait for the other voices.
    """
    names = [voice.id for voice in voices if voice.kind == "preset"]
    if not names:
        return {}
    maker = services.preset_voices
    async with maker:
        await maker.wait_for(names)
        while (status := maker.status())["state"] in ("waiting", "casting"):
            ready = [name for name in names if services.voices.recording_of(name) is not None]
            failed = [name for name in names if name in status["failed"]]
            if len(ready) + len(failed) == len(names) or (len(failed) >= GIVE_UP_AFTER and not ready):
                break
            on_step(f"creating the recording of {status['voice'] or names[0]}")
            await asyncio.sleep(0.1)
    status = maker.status()
    other = "TTS_CASTING is off." if status["state"] == "off" else "It was not created, because earlier voices failed."
    return {name: status["failed"].get(name, other) for name in names if services.voices.recording_of(name) is None}


def _recording_of(services: CoreServices, voice: Voice) -> tuple[float | None, VoiceFeatures] | None:
    """Return the pace and the features of the voice's recording; None = the voice has no recording."""
    if not voice.recorded:
        return None
    try:
        reference = services.voices.reference(voice)
    except (DamagedVoice, OSError):  # the takes of this voice will fail with the same error
        return None
    return (
        guard.pace_of(reference.transcript, reference.seconds),
        voice_features.measure(reference.samples, reference.rate_hz),
    )


async def _speak(services: CoreServices, take: Take, voice: str) -> Samples:
    """Speak the sentence of a take, and return the samples (N,) at RATE_HZ."""
    request = SpeechRequest("tts-1", (Line(take.text, voice),), format="pcm", sample_rate_hz=RATE_HZ, use_cache=False)
    parts: list[bytes] = []
    started_s = time.perf_counter()
    answer: Answer | None = None
    try:
        answer = await services.generator.answer(request)
        async with contextlib.aclosing(answer.stream) as stream:
            async for data in stream:
                if data and take.first_audio_s is None:
                    take.first_audio_s = round(time.perf_counter() - started_s, 3)
                parts.append(data)
    except SpeechError as error:
        take.error = error.message
    seconds = time.perf_counter() - started_s
    samples = pcm.from_bytes(b"".join(parts))
    take.seconds = round(len(samples) / RATE_HZ, 2)
    if len(samples):
        take.speed = round(take.seconds / seconds, 3)
    if answer is not None and answer.broken_rules and not take.error:
        take.faults["guard"] = f"The output guard has ended this speech: {', '.join(answer.broken_rules)}."
    return samples


def _guard_counts(services: CoreServices) -> dict[str, int]:
    values = {rule: services.metrics.registry.get_sample_value("tts_guard_total", {"rule": rule}) for rule in _RULES}
    return {rule: int(value) for rule, value in values.items() if value}


_RULES: tuple[str, ...] = get_args(guard.Rule)


def _peak_memory(services: CoreServices, before: dict[str, int]) -> dict[str, int]:
    unit = 1 if sys.platform == "darwin" else 1024
    now = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    now |= {memory.device: memory.used_bytes for memory in services.manager.memory() if memory.device != "cpu"}
    return {name: max(value, before.get(name, 0)) for name, value in now.items()}


# ---- measuring


def _measure(
    take: Take,
    samples: Samples,
    spoken: str,
    verifier: Verifier,
    *,
    language: str,
    compare: VoiceFeatures | None,
    pace: float | None,
) -> VoiceFeatures | None:
    """Measure a take. Return the features with which later takes are compared.

    spoken: the normalised text. compare: the features of the voice's recording, or of an earlier take if it has no
    recording; None = neither exists. pace: the pace of the recording; None = there is no recording.
    """
    length = guard.speech_length(spoken)
    take.pace = round(length / take.seconds, 1) if length >= MIN_PACED_LENGTH and take.seconds else None
    take.longest_silence_s = longest_silence_s(samples, RATE_HZ)
    take.loudness_lufs = round(integrated_lufs(samples, RATE_HZ), 1)
    take.true_peak_dbtp = true_peak_dbtp(samples, RATE_HZ)
    parts = np.array_split(np.abs(samples), min(WAVE_POINTS, len(samples)))
    take.wave = [round(100 * min(1.0, float(part.max()))) for part in parts]
    own = voice_features.measure(samples, RATE_HZ)
    if compare is None:
        compare = own if own.pitch_hz else None
    elif own.pitch_hz and compare.pitch_hz:
        profile = Profile("", compare.pitch_hz, compare.brightness_db)
        take.voice_distance = round(distance(own, profile), 2)
    expected_s = length / pace if pace else None
    verdict = verifier.check(samples, RATE_HZ, spoken, language=language, expected_s=expected_s)
    _note_words(take, verdict, spoken.split())
    return compare


def _note_words(take: Take, verdict: Verdict, words: list[str]) -> None:
    unfound = verdict.status == "unchecked" and verdict.reason == "no_answer"
    take.words, take.words_reason = "bad" if unfound else verdict.status, verdict.reason
    if unfound:
        take.words_found = 0.0
    if verdict.alignment is None:
        return
    doubtful = sorted({*verdict.doubtful, *verdict.alignment.missing})
    take.doubtful_words = [words[at] for at in doubtful]
    take.words_found = round(1 - len(doubtful) / max(1, len(words)), 3)
    score = verdict.alignment.score
    take.word_score = round(score, 2) if np.isfinite(score) else None


def longest_silence_s(samples: Samples, rate_hz: int) -> float:
    """Return the longest silence between sounds in samples (N,), in seconds."""
    levels = levels_dbfs(samples, rate_hz)
    sounding = np.flatnonzero(levels >= silence_threshold(levels))
    gaps = np.diff(sounding) - 1
    return round(float(gaps.max(initial=0)) * WINDOW_S, 2)


def true_peak_dbtp(samples: Samples, rate_hz: int) -> float:
    """Return the true peak of samples (N,) in dBTP: the peak after fourfold oversampling (ITU-R BS.1770)."""
    peak = float(np.abs(soxr.resample(samples, rate_hz, 4 * rate_hz)).max(initial=0.0))
    return round(20 * float(np.log10(max(peak, 1e-6))), 1)


# ---- judging


def _judge(voice: VoiceReport, *, enhanced: bool) -> None:
    """Store the faults of each take of a voice in the take. enhanced: whether the server sets the loudness."""
    paces = [take.pace for take in voice.takes if take.pace is not None]
    if voice.pace is None and paces:
        voice.pace = round(float(np.median(paces)), 1)
    for take in voice.takes:
        if take.error:
            take.faults["failed"] = take.error
        if take.words == "bad":
            reason = _REASONS.get(take.words_reason, "The words of the text were not found.")
            take.faults["words"] = reason.format(words=", ".join(take.doubtful_words) or "several")
        if take.pace is not None and voice.pace:
            take.pace_ratio = round(take.pace / voice.pace, 2)
            if take.pace < MIN_PACE or take.pace_ratio < PACE_BAND[0]:
                take.faults["pace"] = f"The speech is too slow: {take.pace:g} characters a second."
            elif take.pace > MAX_PACE or take.pace_ratio > PACE_BAND[1]:
                take.faults["pace"] = f"The speech is too fast: {take.pace:g} characters a second."
        if take.longest_silence_s > MAX_SILENCE_S:
            take.faults["silence"] = f"The speech has a silence of {take.longest_silence_s:g} s."
        error_lu = abs((TARGET_LUFS if take.loudness_lufs is None else take.loudness_lufs) - TARGET_LUFS)
        if enhanced and take.seconds >= MIN_LEVEL_S and error_lu > MAX_LEVEL_ERROR_LU:
            take.faults["level"] = f"The loudness is {take.loudness_lufs:g} LUFS."
        if take.true_peak_dbtp is not None and enhanced and take.true_peak_dbtp > MAX_TRUE_PEAK_DBTP:
            take.faults["peak"] = f"The true peak is {take.true_peak_dbtp:g} dBTP."
        if take.voice_distance is not None and take.voice_distance > MAX_VOICE_DISTANCE:
            take.faults["voice"] = "The pitch or the brightness differs from the voice's recording or first take."


def _takes(report: Report) -> list[Take]:
    return [take for voice in report.voices for take in voice.takes]


def _findings(report: Report, missing: dict[str, str]) -> list[Finding]:
    """Return the findings, the most important first. missing: voice without a recording -> reason."""
    found = []
    takes = _takes(report)
    for fault, (text, advice) in _FAULTS.items():
        every = sum(fault in take.faults for take in takes)
        if every > len(takes) / 2:
            words = f"{text}: {every} of {len(takes)} takes. {_example(takes, fault)}"
            found.append(Finding("problem", words, advice, report.voices[0].id if len(report.voices) == 1 else ""))
            continue
        for voice in report.voices:
            count = sum(fault in take.faults for take in voice.takes)
            if not count:
                continue
            severity = "problem" if count > MAX_SHARE * len(voice.takes) else "note"
            words = f"{text}: {count} of {len(voice.takes)} takes. {_example(voice.takes, fault)}"
            found.append(Finding(severity, words, advice, voice.id))
    found += [
        Finding(
            "problem",
            f"The voice has no recording, so it may sound different in each answer. {reason}",
            f"Run `python -m app.cli voices cast --voice {name}`, or add `--file` and `--transcript` with a recording "
            "of 5 to 10 s.",
            name,
        )
        for name, reason in missing.items()
    ]
    if report.speed is not None and report.speed < 1:
        found.append(
            Finding(
                "note",
                f"Speech is generated more slowly than it is played: {report.speed:g} seconds of audio in one second.",
                "Streamed answers will pause. Use a GPU, or TTS_QUANTIZE=int8 on a CPU.",
            )
        )
    found += _unchecked(report)
    return sorted(found, key=lambda finding: finding.severity != "problem")


def _example(takes: Sequence[Take], fault: str) -> str:
    take = next(take for take in takes if fault in take.faults)
    return f"For example, sentence {take.number}: {take.faults[fault]}"


def _unchecked(report: Report) -> list[Finding]:
    """Return notes about takes whose words were not checked."""
    reasons = Counter(take.words_reason for take in _takes(report) if take.words == "unchecked" and take.seconds)
    notes = {
        "not_installed": ("The `words` extra is not installed.", "Install it: pip install '.[words]'."),
        "language": (
            "The check of words supports English only.",
            "Listen to the takes of the voices in other languages yourself.",
        ),
    }
    return [
        Finding("note", f"The words of {count} takes were not checked. {notes[reason][0]}", notes[reason][1])
        for reason, count in reasons.items()
        if reason in notes
    ]
