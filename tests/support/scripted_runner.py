"""A Runner whose samples contain their row, utterance and frame, so tests detect mixed rows.

`violations` lists calls that break the Runner protocol, since an exception would only fail a job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.runtime.faults import BROKEN
from app.runtime.runner import StepResult
from app.types import EngineInfo, Sampling, Scheduling, SpokenLine, Utterance, Voice

if TYPE_CHECKING:
    from app.types import Codes, Samples

RATE_HZ = 100
FRAME_SAMPLES = 4  # the samples of a frame are: row, utterance, frame, 0
FRAME_S = FRAME_SAMPLES / RATE_HZ
VOICE = Voice("alloy", "Alloy", "preset")


@dataclass(frozen=True)
class Part:
    """The script of one utterance: its frames, the chunks of its prompt, and where it fails.

    fails: the failing method: "admit", "prefill", "move", "step", "decode" or "release". Or the result contains NaN:
    "nan codes" or "nan sound". at: index of the failing prompt chunk or frame. together: this number of frames is
    decoded together.
    """

    frames: int
    pieces: int = 1
    fails: str = ""
    at: int = 0
    error: BaseException | None = None
    together: int = 1


class ScriptedRunner:
    """Runs the script of each row. `utterance` registers a part; its seed is its number."""

    def __init__(self, max_rows: int, *, codebooks: int = 3) -> None:
        self.max_rows = max_rows
        self.rate_hz = RATE_HZ
        self.codebooks = codebooks
        self.calls: list[tuple[str, object]] = []
        self.violations: list[str] = []
        self.said: list[tuple[int, int]] = []  # (utterance, frame) in decoding order
        self.bucket_sizes: tuple[int, ...] = ()
        self._failed_move: set[int] = set()
        self.before_step: Callable[[], None] = lambda: None
        self._parts: dict[int, Part] = {}
        self._numbers: dict[int, int] = {}  # row -> utterance
        self._read: Counter[int] = Counter()  # row -> number of prompt chunks read
        self._step_counts: Counter[int] = Counter()  # row -> frames
        self._ended: set[int] = set()
        self._held: dict[int, list[Samples]] = {}  # row -> frames that are not decoded yet

    def utterance(self, part: Part, *, follows: bool = False, background: bool = False) -> Utterance:
        number = len(self._parts)
        self._parts[number] = part
        line = SpokenLine(f"utterance {number}", 0, VOICE)
        scheduling = Scheduling(continuation=follows, background=background)
        return Utterance((line,), Sampling(), seed=number, max_seconds=60.0, scheduling=scheduling)

    def expected(self, utterance: Utterance) -> list[tuple[int, int]]:
        """Return (utterance, frame) of each frame."""
        return [(utterance.seed, frame) for frame in range(self._parts[utterance.seed].frames)]

    @property
    def rows(self) -> dict[int, int]:
        """Return row -> number of the utterance in this row."""
        return dict(self._numbers)

    def named(self, call: str) -> list[object]:
        return [argument for name, argument in self.calls if name == call]

    # ---- the protocol

    def admit(self, row: int, utterance: Utterance) -> None:
        self.calls.append(("admit", row))
        self._must(row not in self._numbers, f"admit to row {row}, which is taken")
        self._must(0 <= row < self.max_rows, f"there is no row {row}")
        self._numbers[row] = utterance.seed
        self._read[row] = self._step_counts[row] = 0
        self._held[row] = []
        self._maybe_fail(row, "admit", 0)

    def prefill(self, row: int) -> bool:
        self.calls.append(("prefill", row))
        self._must(row in self._numbers, f"prefill of row {row}, which is free")
        self._maybe_fail(row, "prefill", self._read[row])
        self._read[row] += 1
        part = self._parts[self._numbers[row]]
        self._must(self._read[row] <= part.pieces, f"prefill of row {row}, which has read all")
        return self._read[row] >= part.pieces

    def step(self, rows: Sequence[int]) -> StepResult:
        self.calls.append(("step", tuple(rows)))
        self._must(len(rows) > 0, "an empty step")
        self._must(list(rows) == sorted(set(rows)), f"rows {rows} are not in order")
        self.before_step()
        codes = np.zeros((len(rows), self.codebooks), np.int16)
        ended = np.zeros(len(rows), np.bool_)
        for i, row in enumerate(rows):
            self._must(row in self._numbers, f"step of row {row}, which is free")
            self._must(row not in self._ended, f"step of row {row}, which has ended")
            number, frame = self._numbers[row], self._step_counts[row]
            part = self._parts[number]
            self._must(self._read[row] == part.pieces, f"step of row {row} before it has read its prompt")
            self._maybe_fail(row, "step", frame)
            ended[i] = frame == part.frames
            if ended[i]:
                self._ended.add(row)
            elif self.codebooks:
                broken = part.fails == "nan codes" and part.at == frame
                codes[i] = BROKEN if broken else (number, frame, row)
            self._step_counts[row] += 1
        return StepResult(codes, ended)

    def decode(self, rows: Sequence[int], codes: Codes) -> list[Samples]:
        self.calls.append(("decode", tuple(rows)))
        self._must(codes.shape == (len(rows), self.codebooks), f"codes {codes.shape} for {len(rows)} rows")
        out = []
        for row, code in zip(rows, codes, strict=True):
            number, frame = self._numbers[row], self._step_counts[row] - 1
            self._must(not self.codebooks or tuple(code) == (number, frame, row), f"row {row} got the codes {code}")
            self._maybe_fail(row, "decode", frame)
            self.said.append((number, frame))
            part = self._parts[number]
            broken = part.fails == "nan sound" and part.at == frame
            self._held[row].append(np.array([row, number, frame, np.nan if broken else 0], np.float32))
            out.append(self._release_held(row) if len(self._held[row]) >= part.together else np.zeros(0, np.float32))
        return out

    def drain(self, row: int) -> Samples:
        self._must(row in self._numbers, f"rest of row {row}, which is free")
        return self._release_held(row)

    def _release_held(self, row: int) -> Samples:
        held, self._held[row] = self._held[row], []
        return np.concatenate([np.zeros(0, np.float32), *held])

    def move_row(self, source: int, target: int) -> None:
        self.calls.append(("move_row", (source, target)))
        self._must(source in self._numbers, f"move of row {source}, which is free")
        self._must(target not in self._numbers, f"move to row {target}, which is taken")
        self._must(target < source, f"move up from row {source} to {target}")
        self._must(self._read[source] == self._parts[self._numbers[source]].pieces, "move before the prompt is read")
        self._failed_move = {source, target}  # after an error, the loop releases both rows
        self._maybe_fail(source, "move", 0)
        self._failed_move.clear()
        for values in (self._numbers, self._read, self._step_counts, self._held):
            values[target] = values.pop(source)  # type: ignore[attr-defined]

    def release(self, row: int) -> None:
        self.calls.append(("release", row))
        self._must(row in self._numbers or row in self._failed_move, f"release of row {row}, which is free")
        number = self._numbers.pop(row, None)
        self._ended.discard(row)
        if number is not None and self._parts[number].fails == "release":
            raise self._parts[number].error or RuntimeError("scripted failure in release")

    def _maybe_fail(self, row: int, call: str, at: int) -> None:
        part = self._parts[self._numbers[row]]
        if part.fails == call and part.at == at:
            raise part.error or RuntimeError(f"scripted failure in {call}")

    def _must(self, holds: bool, message: str) -> None:
        if not holds:
            self.violations.append(message)


def info(name: str = "scripted", **changes: object) -> EngineInfo:
    fields: dict[str, object] = {
        "id": name,
        "name": name.capitalize(),
        "rate_hz": RATE_HZ,
        "frame_s": FRAME_S,
        "languages": ("en",),
        "fingerprint": f"{name} 1",
    }
    return EngineInfo(**(fields | changes))  # type: ignore[arg-type]


def frames_in(samples: Samples) -> list[tuple[int, int]]:
    """Return (utterance, frame) of each frame in samples (N,)."""
    return [(int(frame[1]), int(frame[2])) for frame in samples.reshape(-1, FRAME_SAMPLES)]
