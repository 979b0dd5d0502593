"""Simulates many GPUs: how many GPUs a number of listeners needs, the time to first audio, and the cost.

    python -m bench.fleet --streams 1000 --step-ms 1:20 8:22 32:30 --prefill-ms 25
    python -m bench.fleet --streams 1000 --step-ms 1:20 8:22 32:30 --spare 0.1 --kill-at 60 --reload-s 40
    python -m bench.fleet --plan --step-ms ...          # 10, 1,000 and 100,000 streams, as in docs/scaling.md

This is a discrete-event simulation that follows the rules of the server. A copy is one GPU with its server. All rows of
a copy step together, and between two steps a copy reads one prompt. A row pauses when it is far ahead of its listener.
Each copy has a bounded queue. A load balancer sends a request to the copy with the fewest connections. A copy can die
and load again. The user gives the times of a step, measured with `bench.step` on the GPU (rows:milliseconds; values
between two points are interpolated). Requests arrive as a Poisson process, at the rate at which `--streams` listeners
are active on average. The lengths of answers are exponentially distributed with the mean `--answer-s`. If a frame
arrives too late, the listener has run dry.

For many streams, only `--simulated` copies are simulated, with their share of the streams. All other copies are assumed
to behave in the same way.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import json
import math
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

FRAME_S = 0.08  # length of a frame of CSM
AHEAD_S = 10.0  # TTS_OUTBOX_S: a row pauses if it is this many seconds ahead of its listener
BUSY = 0.75  # the share of its time in which a copy may be busy; a busier copy takes longer to send the first audio
RETRY_S = 1.0  # the seconds in the header Retry-After
HEALTH_S = 1.0  # time until the load balancer knows that a copy is dead: two checks, half a second apart


@dataclass(frozen=True, slots=True)
class Times:
    """Measured times: the seconds of a step for each number of rows, and the seconds to read a voice prompt that is not
    cached.
    """

    points: tuple[tuple[int, float], ...]
    prefill_s: float

    def step_s(self, rows: int) -> float:
        counts = [count for count, _ in self.points]
        at = bisect.bisect_left(counts, rows)
        if at < len(counts) and counts[at] == rows:
            return self.points[at][1]
        if len(self.points) == 1 or at == 0:
            return self.points[0][1]
        (n0, t0), (n1, t1) = self.points[min(at, len(counts) - 1) - 1 : min(at, len(counts) - 1) + 1]
        return t0 + (t1 - t0) * (rows - n0) / (n1 - n0)

    def real_time_rows(self) -> int:
        """Return the largest number of rows whose step takes at most 80 % of the length of a frame.

        Numbers of rows above the largest measured number are not considered.
        """
        able = [rows for rows in range(1, self.points[-1][0] + 1) if self.step_s(rows) <= 0.8 * FRAME_S]
        return max(able, default=0)

    def share(self, rows: int, answer_s: float) -> float:
        """Return the share of a copy's time that one listener needs if `rows` step together."""
        return self.step_s(rows) / rows / FRAME_S + self.prefill_s / answer_s


@dataclass(slots=True)
class Stream:
    """One answer: the time of the request, the number of frames, and the time of the first audio."""

    asked_s: float
    frames: int
    made: int = 0
    first_s: float = -1.0
    dry: bool = False
    tries: int = 1

    def ahead_s(self, now_s: float) -> float:
        """Return the seconds of audio that are generated but not played yet."""
        return 0.0 if self.first_s < 0 else self.made * FRAME_S - (now_s - self.first_s)


@dataclass(slots=True)
class Copy:
    """One GPU with its rows and its queue."""

    rows: int
    queue_limit: int
    speaking: list[Stream] = field(default_factory=list)
    waiting: deque[Stream] = field(default_factory=deque)
    stepped: list[Stream] = field(default_factory=list)  # the streams of `speaking` that are in the current step
    stepping: bool = False
    reading: Stream | None = None
    known_dead: bool = False
    dead: bool = False
    life: int = 0
    busy_s: float = 0.0

    @property
    def connections(self) -> int:
        return len(self.speaking) + len(self.waiting) + (self.reading is not None)

    @property
    def full(self) -> bool:
        return self.connections >= self.rows + self.queue_limit


@dataclass(slots=True)
class Result:
    first_s: list[float] = field(default_factory=list)
    spoken: int = 0
    dry: int = 0
    refused: int = 0
    gave_up: int = 0
    cut: int = 0
    busy: float = 0.0
    most: int = 0


class Fleet:
    """The simulation.

    Events: a request arrives, a client or the balancer repeats a request, a step ends, a copy dies, the balancer
    notices that the copy is dead, the copy is back.
    """

    def __init__(self, times: Times, copies: int, rows: int, queue: int, seed: int) -> None:
        self._times = times
        self._copies = [Copy(rows, queue) for _ in range(copies)]
        self._dice = random.Random(seed)
        self._events: list[tuple[float, int, str, object]] = []
        self._counter = 0
        self._now_s = 0.0
        self.result = Result()

    def run(
        self, *, streams: float, answer_s: float, for_s: float, warm_s: float, kill_at_s: float, reload_s: float
    ) -> Result:
        rate = streams / answer_s
        self._at(self._dice.expovariate(rate), "arrive", None)
        if kill_at_s > 0:
            self._at(kill_at_s, "die", self._copies[0])
        while self._events:
            self._now_s, _, kind, what = heapq.heappop(self._events)
            if self._now_s > for_s:
                break
            counted = self._now_s >= warm_s
            match kind:
                case "arrive":
                    frames = max(1, round(self._dice.expovariate(1 / answer_s) / FRAME_S))
                    self._ask(Stream(self._now_s, frames), counted)
                    self._at(self._now_s + self._dice.expovariate(rate), "arrive", None)
                case "again":
                    assert isinstance(what, Stream)
                    self._ask(what, counted)
                case "step":
                    assert isinstance(what, tuple)
                    copy, life, took_s = what
                    if copy.life == life:
                        self._stepped(copy, took_s, counted)
                case "die":
                    assert isinstance(what, Copy)
                    self._die(what, reload_s)
                case "known":
                    assert isinstance(what, Copy)
                    what.known_dead = True
                case "back":
                    assert isinstance(what, Copy)
                    what.dead = what.known_dead = False
            self.result.most = max(self.result.most, sum(copy.connections for copy in self._copies))
        window_s = for_s - warm_s
        self.result.busy = sum(copy.busy_s for copy in self._copies) / (len(self._copies) * window_s)
        return self.result

    def _at(self, when_s: float, kind: str, what: object) -> None:
        self._counter += 1
        heapq.heappush(self._events, (when_s, self._counter, kind, what))

    def _ask(self, stream: Stream, counted: bool) -> None:
        able = [copy for copy in self._copies if not copy.known_dead]
        if not able:
            self._again(stream, counted)
            return
        # Start at a random copy. Otherwise the first of several copies with equal connections would always be chosen.
        start = self._dice.randrange(len(able))
        copy = min(able[start:] + able[:start], key=lambda each: each.connections)
        if copy.dead:  # the connection is refused, so the balancer immediately tries another copy
            copy = min((each for each in able if not each.dead), key=lambda each: each.connections, default=copy)
            if copy.dead:
                self._again(stream, counted)
                return
        if copy.full:
            if counted:
                self.result.refused += 1
            self._again(stream, counted)
            return
        copy.waiting.append(stream)
        self._go(copy)

    def _again(self, stream: Stream, counted: bool) -> None:
        stream.tries += 1
        if stream.tries > 3:  # two retries, as in OpenAI's clients
            if counted:
                self.result.gave_up += 1
            return
        self._at(self._now_s + RETRY_S, "again", stream)

    def _go(self, copy: Copy) -> None:
        """If the copy has work, begin a step: read the prompt of one waiting stream, then step all rows that speak."""
        if copy.stepping or copy.dead:
            return
        if copy.reading is None and copy.waiting and len(copy.speaking) < copy.rows:
            copy.reading = copy.waiting.popleft()
        if copy.reading is None and not copy.speaking:
            return
        copy.stepping = True
        copy.stepped = [stream for stream in copy.speaking if stream.ahead_s(self._now_s) < AHEAD_S]
        if copy.reading is None and not copy.stepped:  # all rows pause: check again after one frame
            self._at(self._now_s + FRAME_S, "step", (copy, copy.life, 0.0))
            return
        took_s = (self._times.prefill_s if copy.reading else 0.0) + (
            self._times.step_s(len(copy.stepped)) if copy.stepped else 0.0
        )
        self._at(self._now_s + took_s, "step", (copy, copy.life, took_s))

    def _stepped(self, copy: Copy, took_s: float, counted: bool) -> None:
        copy.stepping = False
        if counted:
            copy.busy_s += took_s
        for stream in copy.stepped:
            stream.made += 1
            if stream.first_s < 0:
                stream.first_s = self._now_s
                if counted:
                    self.result.first_s.append(self._now_s - stream.asked_s)
            elif self._now_s > stream.first_s + (stream.made - 1) * FRAME_S:
                stream.dry = True
            if stream.made == stream.frames and counted:
                self.result.spoken += 1
                self.result.dry += stream.dry
        copy.speaking = [stream for stream in copy.speaking if stream.made < stream.frames]
        copy.stepped = []
        if copy.reading is not None:
            copy.speaking.append(copy.reading)
            copy.reading = None
        self._go(copy)

    def _die(self, copy: Copy, reload_s: float) -> None:
        copy.dead, copy.stepping = True, False
        copy.life += 1
        waiting = [*copy.waiting, *([copy.reading] if copy.reading else [])]
        self.result.cut += len(copy.speaking)
        copy.speaking, copy.stepped, copy.reading = [], [], None
        copy.waiting.clear()
        for stream in waiting:  # no byte of the answer was sent, so the balancer sends the request to another copy
            self._at(self._now_s, "again", stream)
        self._at(self._now_s + HEALTH_S, "known", copy)
        self._at(self._now_s + reload_s, "back", copy)


def copies_for(streams: float, rows: int, times: Times, answer_s: float, spare: float) -> int:
    """Return the number of copies for `streams` listeners on average, with a reserve of three standard deviations.

    spare: additional copies as a share; 0.1 = 10 % more. A copy is busy for the share BUSY of its time. A row is
    occupied while it generates an answer. If the answer is longer than AHEAD_S, the row then waits for its listener.
    For exponentially distributed answers, the share exp(-AHEAD_S / answer_s) of all audio comes after the first AHEAD_S
    of an answer.
    """
    most = streams + 3 * math.sqrt(streams)
    by_time = times.share(rows, answer_s) / BUSY
    by_rows = (times.step_s(rows) / FRAME_S + math.exp(-AHEAD_S / answer_s)) / rows / BUSY
    return max(1, math.ceil(most * max(by_time, by_rows) * (1 + spare)))


def measure(options: argparse.Namespace, times: Times, streams: float) -> dict[str, float | int]:
    rows = options.rows or times.real_time_rows()
    if not rows:
        raise SystemExit("a step of one row takes longer than 80 % of a frame, so this device can't speak in real time")
    copies = options.copies or copies_for(streams, rows, times, options.answer_s, options.spare)
    share = min(1.0, options.simulated / copies)
    some = max(1, round(copies * share))
    fleet = Fleet(times, some, rows, options.queue, options.seed)
    result = fleet.run(
        streams=streams * some / copies,
        answer_s=options.answer_s,
        for_s=options.for_s,
        warm_s=min(2 * options.answer_s, options.for_s / 2),
        kill_at_s=options.kill_at,
        reload_s=options.reload_s,
    )
    first = sorted(result.first_s)
    cuts = statistics.quantiles(first, n=100) if len(first) > 1 else [math.nan] * 99
    hours = options.gpu_hour
    return {
        "streams": round(streams),
        "rows": rows,
        "copies": copies,
        "simulated_copies": some,
        "answers": result.spoken,
        "busy": round(result.busy, 3),
        "first_p50_ms": round(1000 * cuts[49], 1),
        "first_p95_ms": round(1000 * cuts[94], 1),
        "first_p99_ms": round(1000 * cuts[98], 1),
        "ran_dry": round(result.dry / max(1, result.spoken), 5),
        "refused": result.refused,
        "gave_up": result.gave_up,
        "cut": result.cut,
        "gpu_hours_per_hour_of_speech": round(copies / streams, 4),
        "cost_per_hour_of_speech": round(copies * hours / streams, 4),
        "cost_per_hour": round(copies * hours, 2),
        "mbit_s": round(streams * options.kbit_s / 1000, 1),
        "requests_s": round(streams / options.answer_s, 1),
    }


def read_points(given: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """Convert texts to points (rows, seconds): "8:22", which means 8 rows and 22 ms, -> (8, 0.022)."""
    points = sorted((int(rows), float(ms) / 1000) for rows, _, ms in (pair.partition(":") for pair in given))
    if len({rows for rows, _ in points}) != len(points) or points[0][0] < 1:
        raise ValueError("each number of rows must be 1 or more, and may be given only once")
    return tuple(points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=float, default=1000, help="average number of listeners at the same time")
    parser.add_argument("--step-ms", nargs="+", required=True, help="measured points rows:milliseconds of one step")
    parser.add_argument("--prefill-ms", type=float, default=25.0, help="measured milliseconds to read one prompt")
    parser.add_argument("--rows", type=int, default=0, help="rows of each copy; 0 = as many as stay in real time")
    parser.add_argument("--queue", type=int, default=8, help="TTS_MAX_QUEUE of each copy")
    parser.add_argument("--copies", type=int, default=0, help="number of copies; default: as many as the streams need")
    parser.add_argument("--spare", type=float, default=0.0, help="share of additional copies")
    parser.add_argument("--answer-s", type=float, default=12.0, help="mean length of an answer in seconds")
    parser.add_argument("--for-s", type=float, default=180.0)
    parser.add_argument("--kill-at", type=float, default=0.0, help="second at which one copy dies; 0 = no copy dies")
    parser.add_argument("--reload-s", type=float, default=40.0, help="seconds until this copy is back")
    parser.add_argument("--gpu-hour", type=float, default=1.0, help="price of a GPU for one hour")
    parser.add_argument("--kbit-s", type=float, default=128.0, help="bit rate of one answer; default: mp3")
    parser.add_argument("--simulated", type=int, default=60, help="the largest number of copies to simulate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="simulate 10, 1,000 and 100,000 streams")
    options = parser.parse_args()
    times = Times(read_points(options.step_ms), options.prefill_ms / 1000)
    for streams in (10, 1_000, 100_000) if options.plan else (options.streams,):
        print(json.dumps(measure(options, times, streams)))


if __name__ == "__main__":
    main()
