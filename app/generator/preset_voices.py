"""Creates the recordings of the preset voices, once for each voice.

Recordings of people are used first. Each recording that is published with CSM (`voices/known_recordings.py`) belongs to
one voice. Any other recording next to the model is used if its words are known. It is used for the voice that it
resembles most.

For each remaining voice, the engine speaks a fixed sentence with a few fixed seeds. Each take (the audio for one seed)
is measured, and a word aligner looks for its words. A take that is near the profile of the voice (`voices/presets.py`)
is tested immediately. If no take passes, the other takes are tested, the nearest first. In the test, the engine speaks
a second sentence with the take as its voice prompt. The second sentence must have the same voice and pace as the take.
The first take that passes is used.

The recording is stored in `voice_references` and does not change afterwards. So the voice sounds the same in every
request and on every engine.

Recordings are created in the background, only while no request waits for speech. If a request needs a voice without a
recording, this voice is created first, and the request waits a few seconds for it. If all candidates of a voice are
rejected, the server tries again at its next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from app.audio import pcm
from app.audio.decode import decode
from app.audio.shape import EdgeTrimmer
from app.audio.stages import joined
from app.errors import Busy, EngineStopped, SpeechError
from app.types import Reference, Sampling, Scheduling, SpokenLine, Utterance
from app.voices.enhancement import TARGET_LUFS, at_loudness
from app.voices.known_recordings import MAX_BYTES, known
from app.voices.presets import DEFAULT_VOICE, NO_VOICE, PROFILES, Profile
from app.voices.transcript_words import MIN_WORDS, FoundWords, TranscriptChecker
from app.voices.vad import SpeechFinder
from app.voices.voice_features import VoiceFeatures, measure

if TYPE_CHECKING:
    from app.engines.model_manager import ModelManager
    from app.engines.protocol import Engine
    from app.types import AudioChunk, EngineInfo, Samples, VoicePrompt
    from app.voices.store import VoiceStore
    from app.voices.transcribe import Transcriber

log = logging.getLogger(__name__)

SENTENCE = (
    "The harbour is quiet this morning. Fishing boats rock gently while the gulls circle above, and a young girl "
    "throws them bread."
)
SECOND_SENTENCE = (
    "We did not know when the rain would stop, so we stayed by the window, drank our tea and talked about the summer."
)
CANDIDATES = 6
# A candidate is tested immediately if its `distance` from the profile is at most GOOD_DISTANCE.
GOOD_DISTANCE = 0.5
CHARS_PER_S = 15.0
MIN_VOICED = 0.1  # smallest share of the speech that has a pitch; required only if the words are not checked
MIN_FOUND = 0.3  # smallest share of the audible part of a recording that `SpeechFinder` finds
# The largest difference between the second sentence and the recording. Two recordings of one person differ by less in
# 95 % of all pairs.
MAX_CHANGE_SEMITONES, MAX_CHANGE_DB, MAX_CHANGE_PACE = 6.0, 7.0, 1.8
TAIL_S = 0.4  # silence at the end of a recording, so that engines do not repeat its last words
RETRY_AFTER_PREEMPTION_S = 0.5  # wait before the next try after a preemption
_SEMITONES, _DECIBELS = 4.0, 6.0  # the differences in pitch and in brightness that count as distance 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible recording of a preset voice."""

    reference: Reference
    features: VoiceFeatures
    distance: float  # distance from the profile of the voice
    source: str  # the name of the file, or the seed


# A function that looks for the words of a transcript in samples (N,) at a rate in Hz, like `TranscriptChecker.find`.
# The function returns None if it can't check the words, for example because of the language.
WordsHeard = Callable[[np.ndarray, int, str], FoundWords | None]


class RejectedRecording(Exception):
    """All candidates of a voice were rejected. The message has the reason for the last candidate."""


def not_used(path: Path, reason: str) -> None:
    """Log that a recording is not used."""
    log.warning("The recording %s is not used for a preset voice: %s", path, reason)


@dataclass(slots=True)
class Progress:
    """The progress of preset voice creation, for /health."""

    state: str = "waiting"  # waiting (for the engine), off, not needed, casting (recordings are being created), done
    voice: str | None = None  # the voice whose recording is being created
    failed: dict[str, str] = field(default_factory=dict)  # voice -> the reason why it has no recording


class PresetVoiceMaker:
    """Creates missing recordings in the background, inside `async with`. Use it from one event loop."""

    def __init__(
        self,
        manager: ModelManager,
        voices: VoiceStore,
        transcriber: Transcriber,
        *,
        enabled: bool,
        wait_s: float,
        checker: TranscriptChecker | None = None,
    ) -> None:
        """transcriber: recognises the words of recordings that come with the model. wait_s: the longest wait of
        `wait_for`.

        checker: looks for the words of a sentence in the audio that the engine has spoken.
        """
        self._manager = manager
        self._transcriber = transcriber
        self._checker = checker or TranscriptChecker()
        self._voices = voices
        self._enabled = enabled
        self._wait_s = wait_s
        self._progress = Progress("waiting" if enabled else "off")
        self._requested: list[str] = []  # voices that requests wait for
        # Each event is set when the voice has a recording or has failed.
        self._decided: dict[str, asyncio.Event] = {name: asyncio.Event() for name in PROFILES}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._enabled:
            self._task = asyncio.create_task(self._run(), name="preset-voices")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def begin_again(self) -> None:
        """Create the missing recordings now, if no model could clone voices before."""
        if self._progress.state == "not needed" and self._task is not None and self._task.done():
            self._progress.state = "waiting"
            self._task = asyncio.create_task(self._run(), name="preset-voices")

    async def wait_for(self, names: Collection[str]) -> None:
        """Wait until these voices have a recording or have failed, at most `wait_s`.

        Returns immediately if none of their recordings must still be created, or if no recordings are being created,
        for example because the engine can't clone.
        """
        missing = [name for name in names if self._is_missing(name)]
        if not missing or self._task is None or self._task.done():
            return
        self._requested += [name for name in missing if name not in self._requested]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                for name in missing:
                    await self._decided[name].wait()

    def is_creating(self, names: Collection[str]) -> bool:
        """Return whether the recording of one of these voices must still be created. Such recordings are created before
        all others.
        """
        if self._task is None or self._task.done():
            return False
        missing = [name for name in names if self._is_missing(name)]
        self._requested += [name for name in missing if name not in self._requested]
        return bool(missing)

    def status(self) -> dict[str, Any]:
        """Return the progress for /health: the state, the number of ready voices, the current voice, the failures, and
        the recordings on disk that are damaged or doubtful.
        """
        ready = sum(self._voices.recording_of(name) is not None for name in PROFILES)
        p = self._progress
        return {
            "state": p.state,
            "cast": ready,
            "voices": len(PROFILES),
            "voice": p.voice,
            "failed": dict(p.failed),
            "words_unchecked": self._checker.missing,
            "problems": self._voices.flagged,
        }

    # ---- background work

    def _is_missing(self, name: str) -> bool:
        """Return whether `name` is a preset voice whose recording must still be created."""
        return name in PROFILES and self._voices.recording_of(name) is None and name not in self._progress.failed

    async def _run(self) -> None:
        """Create all missing recordings, with the first model that can clone voices."""
        use = await self._manager.cloning_use()
        # A model that has only one speaker speaks all voices with this speaker.
        if use is None or use.info.only_speaker is not None:
            self._progress.state = "not needed"
            return
        try:
            if self._checker.missing and any(map(self._is_missing, PROFILES)):
                log.warning("The words of new preset voices are not checked: %s", self._checker.missing)
            examples = await asyncio.to_thread(
                match_examples,
                use.info,
                self._transcriber,
                self._voices.references,
                checker=self._checker,
                report=self._report,
            )
            while (name := self._next(examples)) is not None:
                self._progress.state, self._progress.voice = "casting", name
                if self._manager.is_closing(use.manager):
                    use = None  # release the model, because it could not be unloaded otherwise
                    use = await self._manager.cloning_use()
                    if use is None:
                        return
                await self._create(use.engine, name, examples.get(name))
        except EngineStopped:
            return
        except Exception:
            log.exception("preset voice creation failed, so voices without a recording are spoken with a fixed seed")
        finally:
            self._progress.voice = None
            self._progress.state = "done"
            for event in self._decided.values():
                event.set()

    def _report(self, path: Path, reason: str) -> None:
        not_used(path, reason)
        self._voices.mark_doubtful(f"{path.parent.name}/{path.name}", reason)

    def _next(self, examples: Collection[str]) -> str | None:
        """Return the voice to create next. The order is: voices that requests wait for, the default voice, voices with
        a recording of a person (`examples`), all other voices.
        """
        missing = [name for name in (DEFAULT_VOICE, *examples, *PROFILES) if self._is_missing(name)]
        return next((name for name in self._requested if name in missing), missing[0] if missing else None)

    async def _create(self, engine: Engine, name: str, example: Candidate | None) -> None:
        """Create the recording of one voice. example: a recording that comes with the model."""
        started_s = time.monotonic()
        try:
            await asyncio.to_thread(self._voices.refresh)  # another replica may have created the recording
            if self._voices.recording_of(name) is None:
                best = await choose_recording(engine, name, example, checker=self._checker)
                await asyncio.to_thread(self._voices.refresh)
                if self._voices.recording_of(name) is None:  # the operator may have set a recording meanwhile
                    await asyncio.to_thread(store_recording, self._voices, name, best)
                    log.info(
                        "created the recording of the preset voice %s: %s, in %.0f s",
                        name,
                        describe(best),
                        time.monotonic() - started_s,
                    )
        except RejectedRecording as problem:
            self._progress.failed[name] = str(problem)
            log.warning("no recording could be created for the preset voice %s: %s", name, problem)
        except EngineStopped:
            raise
        except SpeechError as error:  # the recording can't be stored, for example because the disk is full
            self._progress.failed[name] = error.message
            log.warning("no recording could be created for the preset voice %s: %s", name, error.message)
        self._decided[name].set()


async def choose_recording(
    engine: Engine,
    name: str,
    example: Candidate | None = None,
    *,
    take: int = 0,
    checker: TranscriptChecker | None = None,
) -> Candidate:
    """Return the best recording for a preset voice: the example, or a take of the engine.

    example: a recording of a person, which is used without a check; None = the engine must speak. take: a number from
    which the seeds are derived. checker: looks for the words of the takes. Raises RejectedRecording, EngineStopped.
    """
    if example is not None:
        return example
    checker = checker or TranscriptChecker()
    waiting: list[Candidate] = []  # takes that are farther from the profile than GOOD_DISTANCE
    defect = "the engine produced no audio"
    for number in range(CANDIDATES):
        found = await _take(engine, name, SENTENCE, seed_of(name, take, number), checker=checker)
        if isinstance(found, Candidate) and found.distance > GOOD_DISTANCE:
            waiting.append(found)
            continue
        if isinstance(found, Candidate):
            found = await _held_as_prompt(engine, name, found, checker)
        if isinstance(found, Candidate):
            return found
        defect = found
        log.info("rejected candidate %d for the preset voice %s: %s", number + 1, name, defect)
    for candidate in sorted(waiting, key=lambda each: each.distance):
        found = await _held_as_prompt(engine, name, candidate, checker)
        if isinstance(found, Candidate):
            return found
        defect = found
        log.info("rejected the candidate %s for the preset voice %s: %s", candidate.source, name, defect)
    raise RejectedRecording(
        f"All {CANDIDATES} candidates were rejected. Reason for the last candidate: {defect.removesuffix('.')}."
    )


async def _take(
    engine: Engine,
    name: str,
    sentence: str,
    seed: int,
    *,
    checker: TranscriptChecker,
    prompt: VoicePrompt | None = None,
) -> Candidate | str:
    """Speak a sentence and measure the audio. Returns the candidate, or its defect in words. Raises EngineStopped."""
    try:
        samples, broken = await _speak(engine, sentence, seed, prompt)
    except EngineStopped:
        raise
    except SpeechError as error:
        return error.message
    if broken:
        return broken
    return await asyncio.to_thread(
        evaluate,
        samples,
        engine.info.rate_hz,
        sentence,
        PROFILES[name],
        f"seed {seed}",
        words_heard=checker.find,
        words_only=True,
    )


async def _held_as_prompt(
    engine: Engine, name: str, candidate: Candidate, checker: TranscriptChecker
) -> Candidate | str:
    """Speak a second sentence with a candidate as the voice prompt. Returns the candidate, or why the second sentence
    is bad.

    Raises EngineStopped.
    """
    try:
        prompt = await engine.encode_reference(candidate.reference)
    except EngineStopped:
        raise
    except SpeechError as error:
        return error.message
    second = await _take(engine, name, SECOND_SENTENCE, seed_of(name), checker=checker, prompt=prompt)
    if isinstance(second, str):
        return f"a second sentence in this voice failed: {second}"
    return change_of(candidate, second) or candidate


def change_of(first: Candidate, second: Candidate) -> str:
    """Return in words why two recordings do not sound like one speaker; "" if they sound like one speaker."""
    one, other = first.features, second.features
    semitones = abs(12 * np.log2(one.pitch_hz / other.pitch_hz)) if one.pitch_hz and other.pitch_hz else 0.0
    brightness_db = abs(one.brightness_db - other.brightness_db)
    paces = [len(each.reference.transcript) / each.features.seconds for each in (first, second)]
    pace = max(paces) / min(paces)
    changes = (
        (semitones > MAX_CHANGE_SEMITONES, f"its pitch differs by {semitones:.0f} semitones"),
        (brightness_db > MAX_CHANGE_DB, f"its brightness differs by {brightness_db:.0f} dB"),
        (pace > MAX_CHANGE_PACE, f"its pace differs by a factor of {pace:.1f}"),
    )
    reason = next((message for changed, message in changes if changed), "")
    return f"a second sentence in this voice sounds different: {reason}" if reason else ""


async def _speak(engine: Engine, sentence: str, seed: int, prompt: VoicePrompt | None) -> tuple[Samples, str]:
    """Speak a sentence. Returns the samples (N,), and the defect that the output guard or the codes show ("" = none).

    Raises SpeechError.
    """
    line = SpokenLine(sentence, engine.info.speakers[0], NO_VOICE, prompt)
    longest_s = 3 * len(sentence) / CHARS_PER_S
    utterance = Utterance((line,), Sampling(), seed, longest_s, language="en", scheduling=Scheduling(background=True))
    while True:
        chunks: list[AudioChunk] = []
        try:
            async with contextlib.aclosing(engine.speak(utterance)) as stream:
                chunks.extend([chunk async for chunk in stream])
        except Busy:
            await asyncio.sleep(RETRY_AFTER_PREEMPTION_S)
            continue
        codes = [chunk.codes for chunk in chunks if chunk.codes is not None]
        rules = [rule for chunk in chunks for rule in chunk.rules]
        defect = f"it broke a rule of the output guard ({rules[0]})" if rules else ""
        if codes and _repeats(np.concatenate(codes, axis=1)):
            defect = "its codes repeat"
        return joined([chunk.samples for chunk in chunks]), defect


def evaluate(
    samples: Samples,
    rate_hz: int,
    transcript: str,
    profile: Profile,
    source: str,
    *,
    words_heard: WordsHeard | None = None,
    words_only: bool = False,
) -> Candidate | str:
    """Trim a recording (N,), set its loudness and measure it. Returns a candidate, or its defect in words.

    words_heard: looks for the words in the recording; None = the words are not checked. words_only: True = refuse a
    recording with a long sound that is not in its transcript. In free speech such sounds are normal.
    """
    edges = EdgeTrimmer(rate_hz)
    samples = joined([edges.push(samples), edges.flush()])
    features = measure(samples, rate_hz)
    if (defect := defect_of(features, transcript)) is not None:
        return defect
    found_s = sum(span.seconds for span in SpeechFinder().find(samples, rate_hz))
    if found_s < MIN_FOUND * features.speech * features.seconds:
        return f"only {found_s:.1f} s of its {features.seconds:.1f} s sound like speech"
    words = None if words_heard is None else words_heard(samples, rate_hz, transcript)
    if words is not None and words.share < MIN_WORDS:
        return f"a speech recogniser found only {words.share:.0%} of its words"
    if words is not None and words_only and words.other_s:
        return f"{words.other_s:.1f} s of it are sounds or words that are not in its text"
    if words is None and (features.voiced < MIN_VOICED or not features.pitch_hz):
        return f"only {features.voiced:.0%} of it has a pitch, which is too little for speech"
    return _candidate(Reference(samples, rate_hz, transcript), features, profile, source)


def _candidate(trimmed: Reference, features: VoiceFeatures, profile: Profile, source: str) -> Candidate:
    """Set the loudness of a trimmed recording and add the silence at its end."""
    rate_hz = trimmed.rate_hz
    samples = at_loudness(trimmed.samples, rate_hz, TARGET_LUFS)
    samples = np.concatenate((samples, pcm.silence(TAIL_S, rate_hz)))
    return Candidate(Reference(samples, rate_hz, trimmed.transcript), features, distance(features, profile), source)


def defect_of(features: VoiceFeatures, transcript: str) -> str | None:
    """Return in words why a recording is not a clean recording of the transcript; None if it is clean."""
    f, expected_s = features, len(transcript) / CHARS_PER_S
    defects = (
        (
            not 0.45 * expected_s <= f.seconds <= 2.4 * expected_s,
            f"its length is {f.seconds:.1f} s, and the text needs about {expected_s:.0f} s",
        ),
        (f.level_dbfs < -45.0, f"it is too quiet: {f.level_dbfs:.0f} dBFS"),
        (f.clipped > 0.005, f"{f.clipped:.1%} of its samples are clipped"),
        (f.longest_pause_s > 1.5, f"it has a pause of {f.longest_pause_s:.1f} s"),
        (f.speech < 0.5, f"only {f.speech:.0%} of it is speech"),
        (f.movement_db < 1.3, f"its sound changes too little for speech: {f.movement_db:.1f} dB in 50 ms"),
    )
    return next((message for found, message in defects if found), None)


def distance(features: VoiceFeatures, profile: Profile) -> float:
    """Return the distance between a voice and a profile. 4 semitones of pitch, or 6 dB of brightness, count as 1.

    If the pitch was not found, the pitch difference counts as one octave.
    """
    semitones = abs(12 * np.log2(features.pitch_hz / profile.pitch_hz)) if features.pitch_hz else 12.0
    return float(semitones / _SEMITONES + abs(features.brightness_db - profile.brightness_db) / _DECIBELS)


def match_examples(
    info: EngineInfo,
    transcriber: Transcriber,
    beside: Path | None = None,
    *,
    checker: TranscriptChecker | None = None,
    report: Callable[[Path, str], None] = not_used,
) -> dict[str, Candidate]:
    """Assign recordings of people to preset voices. Blocks.

    A published recording is recognised by its digest and assigned to its voice. A published recording may also be in
    the folder `beside`. Each other recording that comes with the model is assigned to the remaining voice that it
    resembles most. The words of such a recording come from a text file next to it, or from the transcriber. A recording
    whose words are unknown is not used.

    checker: looks for the words. report: is called with each file that is not used, and the reason.
    """
    folders = [beside, Path(info.prompts.examples) if info.prompts.examples else None]
    files = [path for folder in folders if folder is not None and folder.is_dir() for path in sorted(folder.iterdir())]
    # A file in `beside` that has the name of a voice is a recording for this voice, so it is not assigned here.
    files = [path for path in files if path.parent != beside or path.stem not in PROFILES]
    examples = folders[1]
    assigned: dict[str, Candidate] = {}
    others: list[Candidate] = []
    for path in files:
        try:
            data = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_BYTES else b""
            if (recording := known(data)) is not None:
                if recording.voice not in assigned:
                    reference = recording.reference(data, info.rate_hz)
                    assigned[recording.voice] = _candidate(
                        reference, measure(reference.samples, info.rate_hz), PROFILES[recording.voice], path.name
                    )
            elif path.parent == examples and path.suffix.lower() == ".wav":
                found = _example(path, info, transcriber, checker or TranscriptChecker())
                if isinstance(found, str):
                    report(path, found)
                else:
                    others.append(found)
        except (OSError, ValueError, RuntimeError, SpeechError) as error:
            report(path, str(error))
    matches = sorted(
        (distance(candidate.features, profile), name, number)
        for number, candidate in enumerate(others)
        for name, profile in PROFILES.items()
        if name not in assigned
    )
    used: set[int] = set()
    for away, name, number in matches:
        if name not in assigned and number not in used:
            assigned[name] = dataclasses.replace(others[number], distance=away)
            used.add(number)
    return assigned


def _example(path: Path, info: EngineInfo, transcriber: Transcriber, checker: TranscriptChecker) -> Candidate | str:
    """Measure a recording that comes with the model. Returns a candidate, or why the recording is not used.

    The pitch is not checked: the recording is of a person, and the pitch of a person is sometimes measured wrongly.
    Raises OSError, ValueError, RuntimeError, SpeechError.
    """
    words_file = path.with_suffix(".txt")
    decoded = decode(path.read_bytes(), info.rate_hz, max_seconds=30.0, what=path.name)
    if words_file.is_file():
        transcript = " ".join(words_file.read_text("utf-8").split())
    elif not (missing := transcriber.missing()):
        transcript = transcriber.transcribe(decoded.samples, info.rate_hz, "en")
    else:
        return f"its words are unknown, because {words_file.name} does not exist. {missing}"

    def words_heard(samples: Samples, rate_hz: int, transcript: str) -> FoundWords:
        return checker.find(samples, rate_hz, transcript) or FoundWords(1.0, 0.0)

    profile = PROFILES[DEFAULT_VOICE]
    return evaluate(decoded.samples, info.rate_hz, transcript, profile, path.name, words_heard=words_heard)


def store_recording(voices: VoiceStore, name: str, chosen: Candidate, *, take: int = 0) -> None:
    """Store a candidate as the recording of a voice. Blocks. Raises SpeechError."""
    f = chosen.features
    quality = {
        "source": chosen.source,
        "take": take,
        "distance": round(chosen.distance, 2),
        "pitch_hz": round(f.pitch_hz, 1),
        "brightness_db": round(f.brightness_db, 1),
    }
    voices.set_reference(name, chosen.reference, origin="cast", quality=quality)


def describe(chosen: Candidate) -> str:
    """Return the source and the measurements of a recording, for the log."""
    f = chosen.features
    return f"{chosen.source}, {f.pitch_hz:.0f} Hz, {f.brightness_db:.0f} dB, {f.seconds:.1f} s"


def seed_of(name: str, take: int = 0, number: int = 0) -> int:
    """Return a fixed seed (31 bits) for a voice. If `take` or `number` changes, the seed changes, too."""
    return int.from_bytes(hashlib.sha256(f"{name} {take} {number}".encode()).digest()[:4], "big") >> 1


def _repeats(codes: np.ndarray) -> bool:
    """Return whether more than a third of the frames in codes (K, T) are equal to their previous frame."""
    return codes.shape[1] > 1 and float(np.mean((codes[:, 1:] == codes[:, :-1]).all(axis=0))) > 1 / 3
