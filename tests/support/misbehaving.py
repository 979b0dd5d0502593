"""A fake speech model with faults: it plays human recordings with planted faults, frame by frame, through the output
guard.

The faults are those that users report of CSM and Dia: a tail that never ends, an early end, a late beginning, a slow or
fast reading, a repeated second, a repeated word, babble, a music bed, NaN.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from app.audio.guard import LineGuard, pace_of, speech_length
from app.audio.levels import levels_dbfs, silence_threshold
from app.engines.batched import BatchedEngine
from app.runtime.faults import BROKEN
from app.runtime.runner import StepResult
from app.types import Capabilities, EngineInfo, TextPacking

if TYPE_CHECKING:
    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.types import Codes, Samples, Utterance

FRAME_S = 0.08
RATE_HZ = 24_000  # sample rate of the engine that `build` returns
TAIL_S = 20.0

Fault = Callable[["Samples", int, np.random.Generator], "Samples"]


def _quietest(samples: Samples, rate_hz: int, seconds: float) -> Samples:
    """Return the quietest section of this length, which is mostly the noise of the room without the voice."""
    size = round(seconds * rate_hz)
    power = np.convolve(np.square(samples, dtype=np.float64), np.ones(size) / size, "valid")
    start = int(power.argmin())
    return samples[start : start + size]


def _looped(part: Samples, seconds: float, rate_hz: int) -> Samples:
    """Repeat the part forwards and backwards up to this length, so that its borders are not audible."""
    count = round(seconds * rate_hz)
    return np.tile(np.concatenate((part, part[::-1])), count // (2 * len(part)) + 1)[:count]


def noise_tail(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
    """Append TAIL_S of white noise at the level of the recording's noise floor."""
    floor = float(np.percentile(levels_dbfs(samples, rate_hz), 5))
    return np.concatenate((samples, random.normal(0, 10 ** (floor / 20), round(TAIL_S * rate_hz)).astype(np.float32)))


def room_tail(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
    """Append TAIL_S of the noise of the recording's room: its quietest 0.2 s, repeated."""
    return np.concatenate((samples, _looped(_quietest(samples, rate_hz, 0.2), TAIL_S, rate_hz)))


def silent_tail(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
    """Append TAIL_S of digital silence."""
    return np.concatenate((samples, np.zeros(round(TAIL_S * rate_hz), np.float32)))


def repeated_second(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
    """Append repetitions of the last second for TAIL_S, each with slightly different noise."""
    tail = np.tile(samples[-rate_hz:], round(TAIL_S))
    return np.concatenate((samples, tail + random.normal(0, 1e-3, len(tail)).astype(np.float32)))


def early_end(share: float) -> Fault:
    """Keep only this share of the recording."""
    return lambda samples, rate_hz, random: samples[: round(share * len(samples))]


def late_beginning(seconds: float, *, breath: bool = False) -> Fault:
    """Insert noise of the recording's room, or a soft breath, before the first word."""

    def fault(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
        lead = _looped(_quietest(samples, rate_hz, 0.2), seconds, rate_hz)
        if breath:
            swell = np.sin(np.linspace(0, np.pi, len(lead)))
            lead = lead + (0.01 * swell * random.normal(0, 1, len(lead))).astype(np.float32)
        return np.concatenate((lead, samples))

    return fault


def babble(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
    """Append parts of the recording in random order, for twice its length plus TAIL_S, as speech without meaning."""
    size = round(0.25 * rate_hz)
    starts = random.integers(0, max(1, len(samples) - size), round((TAIL_S + 2 * len(samples) / rate_hz) / 0.25))
    fade = np.hanning(size).astype(np.float32) ** 0.3
    return np.concatenate(
        [samples, *(samples[start : start + size] * fade[: len(samples[start:])] for start in starts)]
    )


def repeated_word(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
    """Play 0.4 s from the middle three times."""
    middle, size = len(samples) // 2, round(0.4 * rate_hz)
    return np.concatenate((samples[: middle + size], *[samples[middle : middle + size]] * 2, samples[middle + size :]))


def music_bed(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
    """Add a chord at -32 dBFS to the recording and to TAIL_S after it."""
    seconds = np.arange(len(samples) + round(TAIL_S * rate_hz)) / rate_hz
    chord = 0.018 * np.sum([np.sin(2 * np.pi * hertz * seconds) for hertz in (220.0, 277.2, 329.6)], axis=0)
    bed: Samples = chord.astype(np.float32)
    bed[: len(samples)] += samples
    return bed


def not_a_number(samples: Samples, rate_hz: int, random: np.random.Generator) -> Samples:
    """Put NaN into the middle."""
    broken = samples.copy()
    broken[len(broken) // 2] = np.nan
    return broken


def until_rule(
    samples: Samples, words: str, rate_hz: int, *, pace: float | None = None, seed: int = 0
) -> tuple[str | None, float]:
    """Feed a line to its guard as a runner does; return the rule that ended the line or failed at its end, and the
    seconds."""
    random = np.random.default_rng(seed)
    guard = LineGuard(speech_length(words), FRAME_S, rate_hz, pace=pace)
    size = round(FRAME_S * rate_hz)
    for start in range(0, len(samples) - size + 1, size):
        if (rule := guard.check_frame(random.integers(0, 2048, 32))) is not None:
            return rule, start / rate_hz
        guard.add_samples(samples[start : start + size])
    return guard.end(), len(samples) / rate_hz


def last_sound_s(samples: Samples, rate_hz: int) -> float:
    """Return the time in seconds at which the speech of a recording ends."""
    levels = levels_dbfs(samples, rate_hz)
    return (int(np.flatnonzero(levels >= silence_threshold(levels))[-1]) + 1) * 0.02


def pace_of_samples(samples: Samples, words: str, rate_hz: int) -> float | None:
    """Return the speaking pace of a recording, as an engine measures it for a voice."""
    return pace_of(words, len(samples) / rate_hz)


@dataclasses.dataclass
class Gate:
    """Stops a HumanRunner when a row has spoken this many samples of its line."""

    samples: int
    reached: threading.Event = dataclasses.field(default_factory=threading.Event)
    opened: threading.Event = dataclasses.field(default_factory=threading.Event)


class HumanRunner:
    """A Runner that plays recordings: it looks up the text of each line in `recordings`, and plays the next take.

    The guard watches each line as it does in the models' runners: it ends a line that fails, and the next line follows.
    """

    def __init__(self, recordings: dict[str, Sequence[Samples]], rate_hz: int, max_rows: int = 2) -> None:
        """recordings: text of a line -> its takes.

        The first utterance with this text gets the first take, and so on.
        """
        self.max_rows = max_rows
        self.rate_hz = rate_hz
        self.taken: dict[str, int] = {}
        self.seeds: list[int] = []
        self.most_rows = 0  # the highest number of rows that generated speech at the same time
        self.gate: Gate | None = None
        self._recordings = recordings
        self._size = round(FRAME_S * rate_hz)
        self._random = np.random.default_rng(0)
        self._lines: dict[int, list[tuple[LineGuard, Samples, int]]] = {}  # row -> guard, samples, position

    def admit(self, row: int, utterance: Utterance) -> None:
        self.seeds.append(utterance.seed)
        self._lines[row] = []
        for line in utterance.lines:
            takes = self._recordings[line.text]
            taken = self.taken.get(line.text, 0)
            samples = takes[min(taken, len(takes) - 1)]
            self.taken[line.text] = taken + 1
            guard = LineGuard(speech_length(line.text), FRAME_S, self.rate_hz)
            self._lines[row].append((guard, samples[: len(samples) // self._size * self._size], 0))

    def prefill(self, row: int) -> bool:
        return True

    def step(self, rows: Sequence[int]) -> StepResult:
        self.most_rows = max(self.most_rows, len(rows))
        if self.gate is not None and any(self._lines[row][0][2] >= self.gate.samples for row in rows):
            self.gate.reached.set()
            self.gate.opened.wait(20)
        codes = self._random.integers(0, 2048, (len(rows), 32)).astype(np.int16)
        ended = np.zeros(len(rows), np.bool_)
        silent = np.zeros(len(rows), np.bool_)
        rules: dict[int, str] = {}
        for i, row in enumerate(rows):
            guard, samples, position = self._lines[row][0]
            over = position >= len(samples)
            rule = guard.end() if over else guard.check_frame(codes[i])
            if rule is not None:
                rules[row] = rule
            if over or rule is not None:
                self._lines[row].pop(0)
                ended[i] = not self._lines[row]
                silent[i] = True
            elif np.isnan(samples[position : position + self._size]).any():
                codes[i] = BROKEN
        return StepResult(codes, ended, silent, rules=rules)

    def decode(self, rows: Sequence[int], codes: Codes) -> list[Samples]:
        found = []
        for row in rows:
            guard, samples, position = self._lines[row][0]
            frame = samples[position : position + self._size]
            self._lines[row][0] = (guard, samples, position + self._size)
            guard.add_samples(frame)
            found.append(frame)
        return found

    def drain(self, row: int) -> Samples:
        return np.zeros(0, np.float32)

    def release(self, row: int) -> None:
        self._lines.pop(row, None)


script: dict[str, Sequence[Samples]] = {}  # the recordings of the engine that `build` returns
runners: list[HumanRunner] = []  # the runners of the engines that `build` has returned
INFO = EngineInfo(
    id="misbehaving",
    name="Misbehaving",
    fingerprint="1",
    rate_hz=RATE_HZ,
    frame_s=FRAME_S,
    capabilities=Capabilities(temperature=True, language=True),
    text=TextPacking(max_chars=400),
)


def build(settings: Settings, _: BuildContext) -> BatchedEngine:
    """Return an engine for a server that speaks `script`."""
    runner = HumanRunner(script, RATE_HZ, settings.rows(4))
    runners.append(runner)
    return BatchedEngine(INFO, runner, max_queue=settings.max_queue, audio_queue_s=settings.audio_queue_s)
