"""Creates the recordings of the preset voices: the engine speaks a fixed sentence, once for each voice.

A voice gets the candidate that is nearest to its profile (`voices/presets.py`). Candidates are recordings that come
with the model, if their words are known, and the fixed sentence spoken with a few fixed seeds. The recording is stored
in `voice_references` and does not change afterwards: the voice sounds the same in every request and on every engine.

This work runs in the background, only while no request waits for speech. If a request needs a voice without a
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
from app.audio.alignment import align, is_available
from app.audio.decode import decode
from app.audio.shape import EdgeTrimmer
from app.audio.stages import joined
from app.audio.verification import judge
from app.errors import Busy, EngineStopped, NotReady, SpeechError
from app.types import Reference, Sampling, Scheduling, SpokenLine, Utterance
from app.voices.enhancement import TARGET_LUFS, at_loudness
from app.voices.presets import DEFAULT_VOICE, NO_VOICE, PROFILES, Profile
from app.voices.vad import SpeechFinder
from app.voices.voice_features import VoiceFeatures, measure

if TYPE_CHECKING:
    from app.engines.manager import EngineManager
    from app.engines.protocol import Engine
    from app.types import AudioChunk, EngineInfo, Samples
    from app.voices.store import VoiceStore
    from app.voices.transcribe import Transcriber

log = logging.getLogger(__name__)

SENTENCE = (
    "The harbour is quiet this morning. Fishing boats rock gently while the gulls circle above, and a young girl "
    "throws them bread."
)
CANDIDATES = 6
GOOD_DISTANCE = 0.5  # a candidate with this distance from the profile is accepted without further tries; see `distance`
MAX_EXAMPLE_DISTANCE = 2.5  # the largest distance at which a recording that comes with the model is used
CHARS_PER_S = 15.0
MIN_FOUND = 0.3  # of the audible part of a recording, that the speech finder takes for speech
MIN_FIT = -1.9  # mean score of aligned words: people have -1.5 and more, other words -2.2 and less
MIN_WORDS = 0.2  # share of the words that a recogniser must find; it finds more in nearly all clean recordings
TAIL_S = 0.4  # silence at the end, so that engines do not repeat the last words of the recording
RETRY_AFTER_PREEMPTION_S = 0.5  # wait before the next try after a preemption
_SEMITONES, _DECIBELS = 4.0, 6.0  # the differences in pitch and in brightness that count as distance 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible recording of a preset voice."""

    reference: Reference
    features: VoiceFeatures
    distance: float  # from the profile of the voice
    source: str  # the name of the file, or the seed


# Returns the share (0 to 1) of a transcript's words that a speech recogniser finds in samples (N,) at a rate in Hz.
# None = it can't tell, for example because of the language.
WordsHeard = Callable[[np.ndarray, int, str], float | None]


class RejectedRecording(Exception):
    """All candidates of a voice were rejected. The message has the reason for the last one."""


@dataclass(slots=True)
class Progress:
    """The progress of preset voice creation, for /health."""

    state: str = "waiting"  # waiting (for the engine), off, not needed, casting (running), done
    voice: str | None = None  # the voice whose recording is being created
    failed: dict[str, str] = field(default_factory=dict)  # voice -> the reason why it has no recording


class PresetVoiceMaker:
    """Creates missing recordings in the background, inside `async with`. Used from one event loop."""

    def __init__(
        self, manager: EngineManager, voices: VoiceStore, transcriber: Transcriber, *, enabled: bool, wait_s: float
    ) -> None:
        """transcriber: recognises the words of recordings that come with the model. wait_s: the limit of `wait_for`."""
        self._manager = manager
        self._transcriber = transcriber
        self._voices = voices
        self._enabled = enabled
        self._wait_s = wait_s
        self._progress = Progress("waiting" if enabled else "off")
        self._requested: list[str] = []  # voices that requests wait for
        # set when ready or failed
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

    async def wait_for(self, names: Collection[str]) -> None:
        """Wait until these voices have a recording or have failed, at most `wait_s`.

        Returns immediately if none of them is a preset voice without a recording, or if the engine cannot clone.
        """
        missing = [name for name in names if self._is_missing(name)]
        if not missing or self._task is None or self._task.done():
            return
        self._requested += [name for name in missing if name not in self._requested]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                for name in missing:
                    await self._decided[name].wait()

    def status(self) -> dict[str, Any]:
        """The progress for /health: the state, the number of ready voices, the present voice and the failures."""
        ready = sum(self._voices.recording_of(name) is not None for name in PROFILES)
        p = self._progress
        return {"state": p.state, "cast": ready, "voices": len(PROFILES), "voice": p.voice, "failed": dict(p.failed)}

    # ---- background work

    def _is_missing(self, name: str) -> bool:
        """Whether this is a preset voice whose recording must still be created."""
        return name in PROFILES and self._voices.recording_of(name) is None and name not in self._progress.failed

    async def _run(self) -> None:
        """Create all missing recordings."""
        try:
            await self._manager.settled()
            engine = self._manager.engine()
        except NotReady:
            self._progress.state = "not needed"
            return
        if not engine.info.can_clone:
            self._progress.state = "not needed"
            return
        try:
            examples = await asyncio.to_thread(match_examples, engine.info, self._transcriber)
            while (name := self._next()) is not None:
                self._progress.state, self._progress.voice = "casting", name
                await self._create(engine, name, examples.get(name))
        except EngineStopped:
            return
        except Exception:
            log.exception("preset voice creation failed; voices without a recording are spoken with a fixed seed")
        finally:
            self._progress.voice = None
            self._progress.state = "done"
            for event in self._decided.values():
                event.set()

    def _next(self) -> str | None:
        """The voice to create next: voices that requests wait for, then the default voice, then the others."""
        missing = [name for name in (DEFAULT_VOICE, *PROFILES) if self._is_missing(name)]
        return next((name for name in self._requested if name in missing), missing[0] if missing else None)

    async def _create(self, engine: Engine, name: str, example: Candidate | None) -> None:
        """Create the recording of one voice. example: a recording that comes with the model."""
        started_s = time.monotonic()
        try:
            await asyncio.to_thread(self._voices.refresh)  # another replica may have created the recording
            if self._voices.recording_of(name) is None:
                best = await choose_recording(engine, name, example)
                await asyncio.to_thread(self._voices.refresh)
                if self._voices.recording_of(name) is None:  # the operator may have set a recording meanwhile
                    await asyncio.to_thread(store_recording, self._voices, name, best)
                    log.info(
                        "created the recording of voice %s: %s, in %.0f s",
                        name,
                        describe(best),
                        time.monotonic() - started_s,
                    )
        except RejectedRecording as problem:
            self._progress.failed[name] = str(problem)
            log.warning("voice %s has no recording: %s", name, problem)
        except EngineStopped:
            raise
        except SpeechError as error:  # for example a full disk
            self._progress.failed[name] = error.message
            log.warning("voice %s has no recording: %s", name, error.message)
        self._decided[name].set()


async def choose_recording(engine: Engine, name: str, example: Candidate | None = None, *, take: int = 0) -> Candidate:
    """Generate candidates for a preset voice and return the best one.

    example: a recording that comes with the model, as a further candidate. take: another number gives other seeds.
    Raises RejectedRecording, EngineStopped.
    """
    profile = PROFILES[name]
    best = example
    defect = "the engine produced no audio"
    for number in range(CANDIDATES):
        if best is not None and best.distance <= GOOD_DISTANCE:
            break
        seed = seed_of(name, take, number)
        try:
            samples, broken = await _speak(engine, name, seed)
        except EngineStopped:
            raise
        except SpeechError as error:
            defect = error.message
            continue
        candidate: Candidate | str = broken or await asyncio.to_thread(
            evaluate, samples, engine.info.rate_hz, SENTENCE, profile, f"seed {seed}"
        )
        if isinstance(candidate, str):
            defect = candidate
            log.info("rejected candidate %d for voice %s: %s", number + 1, name, defect)
        elif best is None or candidate.distance < best.distance:
            best = candidate
    if best is None:
        raise RejectedRecording(
            f"All {CANDIDATES} candidates were rejected. Reason for the last one: {defect.removesuffix('.')}."
        )
    return best


async def _speak(engine: Engine, name: str, seed: int) -> tuple[Samples, str]:
    """Speak the fixed sentence: samples (N,), and the defect that the engine's guard or its codes show ("" = none).

    Raises SpeechError.
    """
    line = SpokenLine(SENTENCE, list(PROFILES).index(name) % max(1, engine.info.text.max_speakers), NO_VOICE)
    longest_s = 3 * len(SENTENCE) / CHARS_PER_S
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
) -> Candidate | str:
    """Trim a recording (N,), set its loudness and measure it. Returns a candidate, or its defect in words.

    words_heard: a speech recogniser; None = there is none, and the words are not checked.
    """
    edges = EdgeTrimmer(rate_hz)
    samples = joined([edges.push(samples), edges.flush()])
    features = measure(samples, rate_hz)
    if (defect := defect_of(features, transcript)) is not None:
        return defect
    found_s = sum(span.seconds for span in SpeechFinder().find(samples, rate_hz))
    if found_s < MIN_FOUND * features.speech * features.seconds:
        return f"only {found_s:.1f} s of its {features.seconds:.1f} s sound like speech"
    share = None if words_heard is None else words_heard(samples, rate_hz, transcript)
    if share is not None and share < MIN_WORDS:
        return f"a speech recogniser found only {share:.0%} of its words"
    samples = np.concatenate((at_loudness(samples, rate_hz, TARGET_LUFS), pcm.silence(TAIL_S, rate_hz)))
    return Candidate(Reference(samples, rate_hz, transcript), features, distance(features, profile), source)


def words_found(samples: Samples, rate_hz: int, transcript: str) -> float | None:
    """The share of the words that the aligner finds in English speech; a `WordsHeard`. Blocks.

    0 = the audio is other speech, or no speech. Extra sounds, such as hesitations, do not count. None = the extra for
    word alignment is not installed.
    """
    if not is_available():
        return None
    verdict = judge(align(samples, rate_hz, transcript.split()), samples, rate_hz)
    if verdict.alignment is None:
        return None
    if verdict.reason not in ("", "not_words") or verdict.alignment.score < MIN_FIT:
        return 0.0
    return 1.0 - len(verdict.alignment.missing) / max(1, len(verdict.alignment.words))


def defect_of(features: VoiceFeatures, transcript: str) -> str | None:
    """Why this is not a clean recording of the transcript, in words; None if it is."""
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
        (f.voiced < 0.1 or not f.pitch_hz, f"only {f.voiced:.0%} of it has a pitch, which is too little for speech"),
        (f.movement_db < 1.3, f"its sound changes too little for speech: {f.movement_db:.1f} dB in 50 ms"),
    )
    return next((message for found, message in defects if found), None)


def distance(features: VoiceFeatures, profile: Profile) -> float:
    """The difference between a voice and a profile. 4 semitones of pitch, or 6 dB of brightness, count as 1."""
    semitones = abs(12 * np.log2(features.pitch_hz / profile.pitch_hz))
    return float(semitones / _SEMITONES + abs(features.brightness_db - profile.brightness_db) / _DECIBELS)


def match_examples(info: EngineInfo, transcriber: Transcriber) -> dict[str, Candidate]:
    """Assign each recording that comes with the model to the preset voice that it resembles most. Blocks.

    The words of a recording come from a text file next to it, or from the transcriber. A recording whose words are
    unknown is not used.
    """
    matches: list[tuple[float, str, str, Candidate]] = []
    folder = Path(info.prompts.examples) if info.prompts.examples else None
    for path in sorted(folder.glob("*.wav")) if folder is not None and folder.is_dir() else []:
        words_file = path.with_suffix(".txt")
        try:
            decoded = decode(path.read_bytes(), info.rate_hz, max_seconds=30.0, what=path.name)
            if words_file.is_file():
                transcript = " ".join(words_file.read_text("utf-8").split())
            elif not (missing := transcriber.missing()):
                transcript = transcriber.transcribe(decoded.samples, info.rate_hz, "en")
            else:
                log.info(
                    "%s is not used as a preset voice: its words are unknown, because %s does not exist. %s",
                    path,
                    words_file.name,
                    missing,
                )
                continue
        except (OSError, ValueError, RuntimeError, SpeechError) as error:
            log.warning("%s is not used as a preset voice: %s", path, error)
            continue
        candidate = evaluate(decoded.samples, info.rate_hz, transcript, PROFILES[DEFAULT_VOICE], path.name)
        if isinstance(candidate, str):
            log.info("%s is not used as a preset voice: %s", path, candidate)
            continue
        for name, profile in PROFILES.items():
            away = distance(candidate.features, profile)
            matches.append((away, name, path.name, dataclasses.replace(candidate, distance=away)))
    assigned: dict[str, Candidate] = {}
    used: set[str] = set()
    for _, name, file, candidate in sorted(matches, key=lambda match: match[:3]):
        if candidate.distance <= MAX_EXAMPLE_DISTANCE and name not in assigned and file not in used:
            assigned[name] = candidate
            used.add(file)
    return assigned


def store_recording(voices: VoiceStore, name: str, chosen: Candidate, *, take: int = 0) -> None:
    """Make a candidate the recording of a voice. Blocks. Raises SpeechError."""
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
    """The source and the measurements of a recording, for the log."""
    f = chosen.features
    return f"{chosen.source}, {f.pitch_hz:.0f} Hz, {f.brightness_db:.0f} dB, {f.seconds:.1f} s"


def seed_of(name: str, take: int = 0, number: int = 0) -> int:
    """A fixed seed (31 bits) for a voice. take, number: other values give other seeds."""
    return int.from_bytes(hashlib.sha256(f"{name} {take} {number}".encode()).digest()[:4], "big") >> 1


def _repeats(codes: np.ndarray) -> bool:
    """Whether more than a third of the frames (K, T) equal the frame before."""
    return codes.shape[1] > 1 and float(np.mean((codes[:, 1:] == codes[:, :-1]).all(axis=0))) > 1 / 3
