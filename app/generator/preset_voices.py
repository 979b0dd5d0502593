"""Casting: gives each standard voice its recording, once, by letting the engine read a fixed sentence.

A voice takes the candidate that comes nearest to what its name promises (`voices/presets.py`): a recording that came
with the model and whose words are known, or the engine's own reading with one of a few fixed seeds. It is kept in
`voice_references` and never changed by use: the name sounds the same in every request, on every engine, from then on.

Casting is background work: it advances only while nobody waits for speech. A voice that somebody asks for comes first,
and its request waits a few seconds for it. A voice whose candidates all fail stays uncast until the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from app.audio import pcm
from app.audio.decode import decode
from app.audio.loudness import integrated_lufs
from app.audio.shape import EdgeTrimmer, Gain
from app.audio.stages import joined
from app.errors import Busy, EngineStopped, NotReady, SpeechError
from app.types import Reference, Sampling, Scheduling, SpokenLine, Utterance
from app.voices.enhancement import TARGET_LUFS
from app.voices.presets import DEFAULT_VOICE, NO_VOICE, PROFILES, Profile
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
GOOD = 0.5  # a candidate this near to its profile ends the search: a semitone and a half and half a decibel, say
FAR = 2.5  # a recording that came with the model and is this far from a profile is for another name
CHARS_PER_S = 15.0
TAIL_S = 0.4  # silence after the words, so that their end is not heard at the start of what follows
GAVE_WAY_S = 0.5  # before asking again for a row that others wanted
_SEMITONES, _DECIBELS = 4.0, 6.0  # of difference that weigh as much as each other


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recording that a voice might have, and how far it is from the voice's profile."""

    reference: Reference
    character: VoiceFeatures
    distance: float
    source: str


class RejectedRecording(Exception):
    """No candidate will do; the message says why the last one did not."""


@dataclass(slots=True)
class Progress:
    """Where casting stands, for /health."""

    state: str = "waiting"  # waiting (for the engine), off, not needed, casting, done
    voice: str | None = None
    failed: dict[str, str] = field(default_factory=dict)


class PresetVoiceMaker:
    """Used from one event loop; `async with` casts in the background and stops at its end."""

    def __init__(
        self, manager: EngineManager, voices: VoiceStore, transcriber: Transcriber, *, enabled: bool, wait_s: float
    ) -> None:
        """wait_s: how long a request waits for its voice. transcriber: for recordings that came with the model."""
        self._manager = manager
        self._transcriber = transcriber
        self._voices = voices
        self._enabled = enabled
        self._wait_s = wait_s
        self._progress = Progress("waiting" if enabled else "off")
        self._wanted: list[str] = []
        self._cast: dict[str, asyncio.Event] = {name: asyncio.Event() for name in PROFILES}  # cast, or failed
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._enabled:
            self._task = asyncio.create_task(self._run(), name="casting")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # ---- what others ask

    async def wait_for(self, names: Collection[str]) -> None:
        """Wait until these voices are cast, have failed, or the time is over. Returns at once for all but uncast
        standard voices of an engine that learns voices."""
        missing = [name for name in names if self._is_missing(name)]
        if not missing or self._task is None or self._task.done():
            return
        self._wanted += [name for name in missing if name not in self._wanted]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                for name in missing:
                    await self._cast[name].wait()

    def status(self) -> dict[str, Any]:
        """For /health: state, how many voices have their recording, which is being cast, which failed and why."""
        done = sum(self._voices.recording_of(name) is not None for name in PROFILES)
        p = self._progress
        return {"state": p.state, "cast": done, "voices": len(PROFILES), "voice": p.voice, "failed": dict(p.failed)}

    # ---- the work

    def _is_missing(self, name: str) -> bool:
        return name in PROFILES and self._voices.recording_of(name) is None and name not in self._progress.failed

    async def _run(self) -> None:
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
            examples = await asyncio.to_thread(assign, engine.info, self._transcriber)
            while (name := self._next()) is not None:
                self._progress.state, self._progress.voice = "casting", name
                await self._one(engine, name, examples.get(name))
        except EngineStopped:
            return
        except Exception:
            log.exception("casting has failed; uncast voices are spoken with a fixed seed")
        finally:
            self._progress.voice = None
            self._progress.state = "done"
            for event in self._cast.values():
                event.set()

    def _next(self) -> str | None:
        missing = [name for name in (DEFAULT_VOICE, *PROFILES) if self._is_missing(name)]
        return next((name for name in self._wanted if name in missing), missing[0] if missing else None)

    async def _one(self, engine: Engine, name: str, example: Candidate | None) -> None:
        started_s = time.monotonic()
        try:
            await asyncio.to_thread(self._voices.refresh)  # another replica may have been first
            if self._voices.recording_of(name) is None:
                best = await audition(engine, name, example)
                await asyncio.to_thread(self._voices.refresh)
                if self._voices.recording_of(name) is None:  # nor has a person given it one meanwhile
                    await asyncio.to_thread(keep, self._voices, name, best)
                    log.info("cast %s: %s, in %.0f s", name, describe(best), time.monotonic() - started_s)
        except RejectedRecording as problem:
            self._progress.failed[name] = str(problem)
            log.warning("%s is not cast: %s", name, problem)
        except EngineStopped:
            raise
        except SpeechError as error:  # the disk is full, say
            self._progress.failed[name] = error.message
            log.warning("%s is not cast: %s", name, error.message)
        self._cast[name].set()


async def audition(engine: Engine, name: str, example: Candidate | None = None, *, take: int = 0) -> Candidate:
    """The best candidate for a standard voice. take: another number, other readings.

    Raises RejectedRecording, EngineStopped.
    """
    profile = PROFILES[name]
    best = example
    fault = "the engine said nothing"
    for number in range(CANDIDATES):
        if best is not None and best.distance <= GOOD:
            break
        seed = seed_of(name, take, number)
        try:
            samples, codes = await _read(engine, name, seed)
        except EngineStopped:
            raise
        except SpeechError as error:
            fault = error.message
            continue
        candidate = await asyncio.to_thread(judge, samples, engine.info.rate_hz, SENTENCE, profile, f"seed {seed}")
        if isinstance(candidate, str) or (codes is not None and _repeats(codes)):
            fault = candidate if isinstance(candidate, str) else "it repeats itself"
            log.info("candidate %d for %s: %s", number + 1, name, fault)
        elif best is None or candidate.distance < best.distance:
            best = candidate
    if best is None:
        raise RejectedRecording(f"None of {CANDIDATES} readings will do; of the last one: {fault}.")
    return best


async def _read(engine: Engine, name: str, seed: int) -> tuple[Samples, np.ndarray | None]:
    """One reading: samples (N,), codes (K, T) if the engine has them. Raises SpeechError."""
    line = SpokenLine(SENTENCE, list(PROFILES).index(name) % max(1, engine.info.text.max_speakers), NO_VOICE)
    longest_s = 3 * len(SENTENCE) / CHARS_PER_S
    utterance = Utterance((line,), Sampling(), seed, longest_s, language="en", scheduling=Scheduling(background=True))
    while True:
        chunks: list[AudioChunk] = []
        try:
            async with contextlib.aclosing(engine.speak(utterance)) as stream:
                chunks.extend([chunk async for chunk in stream])
        except Busy:
            await asyncio.sleep(GAVE_WAY_S)
            continue
        codes = [chunk.codes for chunk in chunks if chunk.codes is not None]
        return joined([chunk.samples for chunk in chunks]), np.concatenate(codes, axis=1) if codes else None


def judge(samples: Samples, rate_hz: int, transcript: str, profile: Profile, source: str) -> Candidate | str:
    """A recording (N,) as a candidate: silence cut off at its edges, set to one level. Or what is wrong with it."""
    edges = EdgeTrimmer(rate_hz)
    samples = joined([edges.push(samples), edges.flush()])
    character = measure(samples, rate_hz)
    if (fault := fault_of(character, transcript)) is not None:
        return fault
    level = Gain(TARGET_LUFS - integrated_lufs(samples, rate_hz))
    samples = joined([level.push(samples), level.flush(), pcm.silence(TAIL_S, rate_hz)])
    return Candidate(Reference(samples, rate_hz, transcript), character, distance(character, profile), source)


def fault_of(character: VoiceFeatures, transcript: str) -> str | None:
    """Why this is no clean reading of the words, or None."""
    c, expected_s = character, len(transcript) / CHARS_PER_S
    faults = (
        (
            not 0.45 * expected_s <= c.seconds <= 1.9 * expected_s,
            f"it takes {c.seconds:.1f} s, not about {expected_s:.0f}",
        ),
        (c.level_dbfs < -45.0, f"it is as quiet as {c.level_dbfs:.0f} dBFS"),
        (c.clipped > 0.005, f"{c.clipped:.1%} of it are clipped"),
        (c.longest_pause_s > 1.5, f"it has a pause of {c.longest_pause_s:.1f} s"),
        (c.said < 0.5, f"only {c.said:.0%} of it are sound"),
        (c.voiced < 0.25 or not c.pitch_hz, f"only {c.voiced:.0%} of it have a pitch, as no speech has"),
        (c.pitch_spread > 5.0, f"its pitch wanders by {c.pitch_spread:.0f} semitones"),
    )
    return next((words for wrong, words in faults if wrong), None)


def distance(character: VoiceFeatures, profile: Profile) -> float:
    """How unlike a profile a voice is: 1 is four semitones of pitch, or six decibels of brightness."""
    semitones = abs(12 * np.log2(character.pitch_hz / profile.pitch_hz))
    return float(semitones / _SEMITONES + abs(character.brightness_db - profile.brightness_db) / _DECIBELS)


def assign(info: EngineInfo, transcriber: Transcriber) -> dict[str, Candidate]:
    """The recordings that came with the model, each for the voice it suits, the best match first. Only those whose
    words are known: from a text file beside them, or from the recogniser. Blocks."""
    matches: list[tuple[float, str, str, Candidate]] = []
    folder = Path(info.prompts.examples) if info.prompts.examples else None
    for path in sorted(folder.glob("*.wav")) if folder is not None and folder.is_dir() else []:
        words = path.with_suffix(".txt")
        try:
            decoded = decode(path.read_bytes(), info.rate_hz, max_seconds=30.0, what=path.name)
            if words.is_file():
                transcript = " ".join(words.read_text("utf-8").split())
            elif not (lacking := transcriber.missing()):
                transcript = transcriber.transcribe(decoded.samples, info.rate_hz, "en")
            else:
                log.info("%s is not used: its words are not known. There is no %s. %s", path, words.name, lacking)
                continue
        except (OSError, ValueError, RuntimeError, SpeechError) as error:
            log.warning("%s is not used: %s", path, error)
            continue
        for name, profile in PROFILES.items():
            candidate = judge(decoded.samples, info.rate_hz, transcript, profile, path.name)
            if isinstance(candidate, str):
                log.info("%s is not used: %s", path, candidate)
                break
            matches.append((candidate.distance, name, path.name, candidate))
    given: dict[str, Candidate] = {}
    used: set[str] = set()
    for near, name, file, candidate in sorted(matches, key=lambda match: match[:3]):
        if near <= FAR and name not in given and file not in used:
            given[name] = candidate
            used.add(file)
    return given


def keep(voices: VoiceStore, name: str, chosen: Candidate, *, take: int = 0) -> None:
    """Store a voice's recording. Blocks. Raises SpeechError."""
    c = chosen.character
    quality = {
        "source": chosen.source,
        "take": take,
        "distance": round(chosen.distance, 2),
        "pitch_hz": round(c.pitch_hz, 1),
        "brightness_db": round(c.brightness_db, 1),
    }
    voices.set_reference(name, chosen.reference, origin="cast", quality=quality)


def describe(chosen: Candidate) -> str:
    c = chosen.character
    return f"{chosen.source}, {c.pitch_hz:.0f} Hz, {c.brightness_db:.0f} dB, {c.seconds:.1f} s"


def seed_of(name: str, take: int = 0, number: int = 0) -> int:
    """A name's own seed (31 bits): the same everywhere and for ever."""
    return int.from_bytes(hashlib.sha256(f"{name} {take} {number}".encode()).digest()[:4], "big") >> 1


def _repeats(codes: np.ndarray) -> bool:
    """Whether more than a third of the frames (K, T) are copies of the one before."""
    return codes.shape[1] > 1 and float(np.mean((codes[:, 1:] == codes[:, :-1]).all(axis=0))) > 1 / 3
