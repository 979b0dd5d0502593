"""Soak test: many ordinary requests in a short time. Finds leaks of memory, threads and files, and wrong answers.

    python -m bench.soak                                     # 60 s
    python -m bench.soak --minutes 30 --strict --plot docs/images/soak.svg --out soak.json
    python -m bench.soak --minutes 5 --sockets 200           # live speech: 200 idle WebSockets, 16 that speak

Requests arrive at a fixed share of the server's capacity and do not wait for earlier answers (open loop). They have
random texts, voices, formats, speeds and sample rates. The answers are audio streams or events, with and without the
cache. Some clients leave before the first byte or in the middle, and some clients read slowly.

Before the test, each request is sent once alone. This gives a reference answer. Every complete answer of the test must
be as long as its reference answer, and its spectrum over time must be more similar to its reference answer than to any
other reference answer. A comparison of bytes is not possible, because eSpeak NG keeps its phases from one utterance to
the next, so equal texts give different bytes.

After the test, all rows must be free, the numbers of threads and open files must be as after the warm-up, and the
resident memory must not grow. `--strict` also requires that no listener ran dry. Use `--strict` only on a machine
without other work. `server_waited_for_a_core` in the result shows how many seconds per second the server's threads
waited for a CPU core.

The last line of standard output is one JSON object. The exit status is 1 if a requirement is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gc
import json
import multiprocessing
import os
import platform
import random
import sys
import time
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from app.audio.decode import decode
from app.audio.formats import AUDIO_FORMATS
from app.engines.espeak import TIMBRES
from bench.live import ANSWERS, Session, Turn
from bench.load import WORDS, spread_ms
from bench.plot import Panel, Series, figure
from bench.server import Server, own_server
from bench.wire import Client, Heard, gaps

LONG_WORDS = 120  # words in a slow reader's text; its audio must not fit into the sockets and the audio queue
SLOW_RATE_HZ = 48_000
SPEAKING_SOCKETS = 16
MOST_ALIKE = 0.9  # largest allowed likeness (scalar product of the fingerprints) of two reference answers
Manner = Literal["stays", "leaves early", "leaves", "slow", "slow and leaves"]
# What the client of a request does -> its relative weight. Also, a slow reader starts every SLOW_EVERY_S seconds.
MANNERS: dict[Manner, float] = {"stays": 0.86, "leaves early": 0.05, "leaves": 0.08}
SLOW_EVERY_S = 8.0
MAX_SLOPE_BYTES = 1 << 20  # largest allowed growth of the resident memory in one minute
WARM_SHARE, WARM_MOST_S = 0.25, 300.0  # length of the warm-up as a share of the test, and its maximum in seconds
# How many more files and threads than after the warm-up are allowed. A short connection may still be open.
SPARE_FILES, SPARE_THREADS = 4, 2
# A fingerprint has 24 bands up to 6 kHz at 64 points in time. The spectra are measured in windows of 512 samples at
# 16 kHz.
EAR_HZ, EAR_SAMPLES, BANDS, COLUMNS = 16_000, 512, 24, 64
Print = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Wish:
    """A request body without cache options, and the length of its reference answer in seconds."""

    body: dict[str, Any]
    seconds: float

    @property
    def second_bytes(self) -> int | None:
        """The number of bytes in a second of audio; None if the format has no constant bit rate."""
        if self.body["response_format"] not in ("pcm", "wav"):
            return None
        return 2 * int(self.body["sample_rate"])


@dataclass(slots=True)
class Sample:
    """Measurements of the server, `at_s` seconds after the start."""

    at_s: float
    rss_bytes: int
    threads: int
    open_files: int
    rows: int
    queued: int
    cpu_s: float
    waited_s: float


@dataclass(slots=True)
class Books:
    """Counts and measurements of all requests."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first_s: list[tuple[float, float]] = field(default_factory=list)  # (time, seconds to the first bytes)
    dry: list[tuple[float, float]] = field(default_factory=list)  # (time, seconds of the gap)
    likeness: float = 1.0  # the smallest likeness of an answer to its reference answer
    # the smallest margin: the likeness of an answer to its own reference answer, minus the highest of its likenesses
    # to the reference answers of other requests
    margin: float = 1.0


def fingerprint(sound: bytes, audio_format: str, rate_hz: int) -> tuple[Print, float]:
    """Return the fingerprint of audio and the length of the audio in seconds.

    The fingerprint is a vector (BANDS * COLUMNS,) of log energies with the mean 0 and the Euclidean norm 1.
    """
    if audio_format == "pcm":
        samples = soxr.resample(np.frombuffer(sound, "<i2").astype(np.float32) / 32768, rate_hz, EAR_HZ)
    else:
        samples = decode(sound, EAR_HZ, max_seconds=120.0).samples
    windows = sliding_window_view(np.pad(samples, (0, EAR_SAMPLES)), EAR_SAMPLES)[:: EAR_SAMPLES // 2]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(EAR_SAMPLES), axis=1)))
    edges = np.geomspace(100, 6_000, BANDS + 1) * EAR_SAMPLES / EAR_HZ
    bands = np.stack([power[:, int(a) : int(b) + 1].sum(axis=1) for a, b in pairwise(edges)])
    heard = np.log10(bands + 1e-4 * bands.max())
    at = np.linspace(0, heard.shape[1] - 1, COLUMNS)
    columns = np.stack([np.interp(at, np.arange(heard.shape[1]), row) for row in heard])
    columns -= columns.mean()
    return (columns / np.linalg.norm(columns)).astype(np.float32).reshape(-1), len(samples) / EAR_HZ


def sound_of(heard: Heard, *, events: bool) -> bytes:
    sound = bytes(heard.body)
    if events:
        told = [json.loads(line[6:]) for line in sound.split(b"\n") if line.startswith(b"data: {")]
        sound = b"".join(base64.b64decode(event.get("audio", "")) for event in told)
    return sound


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choices(WORDS, k=count)).capitalize() + "."


def wish_for(dice: random.Random) -> dict[str, Any]:
    audio_format = dice.choice(list(AUDIO_FORMATS))
    rate = dice.choice([16_000, 24_000, 48_000]) if audio_format in ("pcm", "wav", "flac", "opus") else 24_000
    return {
        "input": " ".join(words(dice, dice.randint(3, 7)) for _ in range(dice.choice([1, 1, 1, 2, 3]))),
        "voice": dice.choice(sorted(TIMBRES)),
        "response_format": audio_format,
        "sample_rate": rate,
        "speed": dice.choice([0.75, 1.0, 1.0, 1.0, 1.3, 2.0]),
    }


class Soak:
    """Sends the requests of all clients to one server, and checks the answers."""

    def __init__(self, client: Client, dice: random.Random, ears: Executor) -> None:
        """ears: computes fingerprints in another process, so that this work does not delay the measurement of times."""
        self._client = client
        self._dice = dice
        self._ears = ears
        self.books = Books()
        self.wishes: list[Wish] = []
        self._prints: Print = np.zeros((0, BANDS * COLUMNS), np.float32)
        self.began_s = time.perf_counter()

    async def prepare(self, count: int) -> None:
        """Request all reference answers one after another. Raises RuntimeError if two of them are too similar."""
        prints = []
        for _ in range(count):
            body = wish_for(self._dice)
            heard = await self._client.ask("/audio/speech", json.dumps(body | {"cache": False}).encode())
            if heard.status != 200 or not heard.whole:
                raise RuntimeError(f"{body} was answered with {heard.status}: {bytes(heard.body[:300])!r}")
            found, seconds = await self._listen(bytes(heard.body), body)
            self.wishes.append(Wish(body, seconds))
            prints.append(found)
        self._prints = np.stack(prints)
        alike = self._prints @ self._prints.T - 2 * np.eye(count)
        if alike.max() > MOST_ALIKE:
            one, other = np.unravel_index(alike.argmax(), alike.shape)
            raise RuntimeError(f"the answers to {self.wishes[one].body} and {self.wishes[other].body} are too similar")

    async def _listen(self, sound: bytes, body: dict[str, Any]) -> tuple[Print, float]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._ears, fingerprint, sound, body["response_format"], body["sample_rate"])

    async def ask(self, due_s: float, manner: Manner) -> None:
        index = self._dice.randrange(len(self.wishes))
        wish = self.wishes[index]
        events = self._dice.random() < 0.15
        extra = {"cache": self._dice.random() < 0.3} | ({"stream_format": "sse"} if events else {})
        request = self._client.request("/audio/speech", json.dumps(wish.body | extra).encode())
        connection = await self._client.connection()
        heard = Heard(time.perf_counter())
        answer = asyncio.create_task(connection.ask(request, heard))
        if manner in ("leaves early", "leaves"):
            deadline_s = self._dice.uniform(0.0, 0.01) if manner == "leaves early" else self._dice.uniform(0.02, 0.3)
            await asyncio.wait([answer], timeout=deadline_s)
            connection.close()
        with contextlib.suppress(ConnectionError):
            await answer
        self._client.give_back(connection)
        if self._judge(wish, heard, manner, due_s, events=events):
            await self._recognise(index, sound_of(heard, events=events))

    async def _recognise(self, index: int, sound: bytes) -> None:
        wish = self.wishes[index]
        found, seconds = await self._listen(sound, wish.body)
        likeness = self._prints @ found
        nearest = int(likeness.argmax())
        if nearest != index or abs(seconds - wish.seconds) > 0.1 + 0.02 * wish.seconds:
            self.books.wrong.append(
                f"wrong audio: {wish.body}, {seconds:.2f} s instead of {wish.seconds:.2f}, likeness "
                f"{likeness[index]:.3f}; nearest is {self.wishes[nearest].body} with {likeness[nearest]:.3f}"
            )
        self.books.likeness = min(self.books.likeness, float(likeness[index]))
        self.books.margin = min(self.books.margin, float(likeness[index] - np.delete(likeness, index).max()))

    def _judge(self, wish: Wish, heard: Heard, manner: Manner, due_s: float, *, events: bool) -> bool:
        """Count the result of a request. Return whether its audio must be compared with the reference answer."""
        books = self.books
        if not heard.whole:
            books.counts["left" if manner != "stays" else "broken"] += 1
            if manner == "stays":
                books.wrong.append(f"broken off: {wish.body}")
            return False
        if heard.status != 200:
            books.counts[str(heard.status)] += 1
            if heard.status != 429:
                books.wrong.append(f"{heard.status}: {bytes(heard.body[:200])!r}")
            return False
        books.counts["whole"] += 1
        first_s = heard.pieces[0][0]
        books.first_s.append((first_s - self.began_s, first_s - due_s))
        if wish.second_bytes is not None and not events:
            per_s = wish.second_bytes
            found = gaps((when_s, received / per_s) for when_s, received in heard.pieces)
            books.dry += [(when_s - self.began_s, dry_s) for when_s, dry_s in found]
        return True

    async def read_slowly(self, manner: Manner) -> None:
        """Request a minute of audio, and read it with pauses. If `manner` is "slow and leaves", leave in the middle."""
        text = " ".join(words(self._dice, 6) for _ in range(LONG_WORDS // 6))
        body = {"input": text, "response_format": "pcm", "sample_rate": SLOW_RATE_HZ, "cache": False}
        connection = await self._client.connection()
        heard = Heard(time.perf_counter())
        answer = asyncio.create_task(
            connection.ask(self._client.request("/audio/speech", json.dumps(body).encode()), heard)
        )
        for _ in range(6):
            await asyncio.wait([answer], timeout=self._dice.uniform(0.01, 0.05))
            connection.pause()
            await asyncio.sleep(self._dice.uniform(0.3, 1.5))
            connection.resume()
        if manner == "slow and leaves":
            connection.close()
        with contextlib.suppress(ConnectionError):
            await answer
        self._client.give_back(connection)
        if manner == "slow and leaves":
            self.books.counts["left slowly"] += 1
        elif heard.whole and heard.status == 200:
            self.books.counts["whole, slowly"] += 1
        elif heard.status == 429:
            self.books.counts["429"] += 1
        else:
            self.books.wrong.append(f"a slow reader got status {heard.status}, complete: {heard.whole}")

    async def closed_loop(self, clients: int, seconds: float) -> float:
        """Run clients that each wait for an answer before the next request. Return the requests per second."""
        began_s, asked = time.perf_counter(), 0

        async def one() -> None:
            nonlocal asked
            while time.perf_counter() < began_s + seconds:
                asked += 1
                await self.ask(time.perf_counter(), "stays")

        await asyncio.gather(*(one() for _ in range(clients)))
        return asked / (time.perf_counter() - began_s)

    async def open_loop(self, rate_hz: float, seconds: float) -> None:
        going: set[asyncio.Task[None]] = set()
        due_s = began_s = time.perf_counter()
        slow_s = began_s + SLOW_EVERY_S
        manners = list(MANNERS)
        while (due_s := due_s + self._dice.expovariate(rate_hz)) < began_s + seconds:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            (manner,) = self._dice.choices(manners, [MANNERS[each] for each in manners])
            going.add(asyncio.create_task(self.ask(due_s, manner)))
            if due_s > slow_s:
                slow_s += SLOW_EVERY_S
                slowly: Manner = self._dice.choice(["slow", "slow and leaves"])
                going.add(asyncio.create_task(self.read_slowly(slowly)))
            for task in [task for task in going if task.done()]:
                going.discard(task)
                task.result()
        await asyncio.gather(*going)


async def look(client: Client, server: Server, began_s: float) -> Sample:
    health = await client.ask("/health")
    rows = json.loads(bytes(health.body))["rows"]
    queue = json.loads(bytes(health.body))["queue"]
    return Sample(
        time.perf_counter() - began_s,
        server.rss_bytes,
        server.threads,
        server.open_files,
        rows["active"],
        queue["waiting"],
        server.cpu_s,
        server.waited_s,
    )


async def watch(client: Client, server: Server, soak: Soak, samples: list[Sample], every_s: float) -> None:
    while True:
        samples.append(await look(client, server, soak.began_s))
        await asyncio.sleep(every_s)


def slope(samples: list[Sample]) -> float:
    """Return the growth of the resident memory in bytes a minute, by least squares."""
    if len(samples) < 3:
        return 0.0
    minutes = np.array([sample.at_s / 60 for sample in samples])
    return float(np.polyfit(minutes, np.array([sample.rss_bytes for sample in samples], float), 1)[0])


async def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    if options.sockets:
        return await soaked_sockets(options)
    seconds = options.minutes * 60
    dice = random.Random(options.seed)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=os.nice, initargs=(5,)) as ears:
        return await soaked(options, seconds, dice, ears)


async def soaked(
    options: argparse.Namespace, seconds: float, dice: random.Random, ears: Executor
) -> tuple[dict[str, Any], list[str]]:
    async with own_server(TTS_OUTBOX_S="2", TTS_CACHE_BYTES=str(8 << 20)) as server:
        client, watcher = Client(server.url), Client(server.url.removesuffix("/v1"))
        soak = Soak(client, dice, ears)
        await soak.prepare(options.wishes)
        capacity = await soak.closed_loop(16, min(20.0, seconds / 6))
        soak.books = Books()
        soak.began_s = time.perf_counter()
        samples: list[Sample] = []
        looking = asyncio.create_task(watch(watcher, server, soak, samples, min(5.0, seconds / 60)))
        try:
            await soak.open_loop(options.load * capacity, seconds)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        client.close()
        await asyncio.sleep(1.0)
        idle = [await look(watcher, server, soak.began_s)]
        while (idle[-1].rows or idle[-1].queued) and len(idle) < 20:
            await asyncio.sleep(0.5)
            idle.append(await look(watcher, server, soak.began_s))
        text = bytes((await watcher.ask("/metrics")).body).decode()
        log_bytes = server.log.stat().st_size
    told = {"capacity_per_s": round(capacity, 1), "log_bytes": log_bytes}
    told["underruns_told_by_server"] = sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("tts_underruns_total")
    )
    return report(options, soak.books, samples, idle[-1], told)


async def soaked_sockets(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Hold idle WebSockets open while other WebSockets speak one turn after another in real time.

    A quarter of the turns is cancelled. After one turn in ten, a new connection replaces the old one.
    """
    seconds = options.minutes * 60
    dice = random.Random(options.seed)
    async with own_server() as server:
        watcher = Client(server.url.removesuffix("/v1"))
        empty = await look(watcher, server, time.perf_counter())
        idle = [Session(server, "realtime") for _ in range(options.sockets)]
        await asyncio.gather(*(session.connect() for session in idle))
        began_s = time.perf_counter()
        turns: list[Turn] = []

        async def converse() -> None:
            session: Session | None = None
            while time.perf_counter() < began_s + seconds:
                if session is None:
                    session = Session(server, "realtime")
                    await session.connect()
                cancel = dice.uniform(0.1, 3.0) if dice.random() < 0.25 else None
                turn = await session.speak(dice.choice(ANSWERS), 0.02, cancel)
                turns.append(turn)
                if turn.arrivals and not turn.cancel_s:
                    await asyncio.sleep(max(0.0, turn.arrivals[0][0] + turn.arrivals[-1][1] - time.perf_counter()))
                if dice.random() < 0.1:
                    session.close()
                    session = None
            if session is not None:
                session.close()

        samples: list[Sample] = []

        async def watching() -> None:
            while True:
                await asyncio.sleep(min(5.0, seconds / 60))
                samples.append(await look(watcher, server, began_s))

        looking = asyncio.create_task(watching())
        try:
            await asyncio.gather(*(converse() for _ in range(SPEAKING_SOCKETS)))
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        lost = sum(session.closed for session in idle)
        for session in idle:
            session.close()
        await asyncio.sleep(2.0)
        end = await look(watcher, server, began_s)
        watcher.close()
    warm = [sample for sample in samples if sample.at_s >= WARM_SHARE * seconds]
    failed = [turn.error for turn in turns if turn.error]
    gaps = [gap for turn in turns for gap in turn.gaps()]
    problems = failed[:10]
    if lost:
        problems.append(f"{lost} idle connections were closed")
    if end.rows or end.queued:
        problems.append(f"{end.rows} rows and {end.queued} places in the queue were not freed")
    if end.open_files > empty.open_files + SPARE_FILES:
        problems.append(f"open files went from {empty.open_files} to {end.open_files}")
    if end.threads > max(sample.threads for sample in warm) + SPARE_THREADS:
        problems.append(f"threads went to {end.threads}")
    bytes_a_minute = slope(warm)
    if seconds >= 180 and bytes_a_minute > MAX_SLOPE_BYTES:
        problems.append(f"resident memory grows by {bytes_a_minute / (1 << 20):.2f} MiB a minute")
    if options.strict and gaps:
        problems.append(f"{len(gaps)} underruns, the longest {max(gaps):.2f} s")
    result = {
        "bench": "soak",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "minutes": options.minutes,
        "idle_sockets": options.sockets,
        "speaking_sockets": SPEAKING_SOCKETS,
        "turns": len(turns),
        "failed": len(failed),
        "first_ms": spread_ms(turn.arrivals[0][0] - turn.decided_s for turn in turns if turn.arrivals),
        "underruns": len(gaps),
        "underruns_longest_s": round(max(gaps, default=0.0), 3),
        "rss_mib": {
            "empty": round(empty.rss_bytes / (1 << 20), 1),
            "warm": round(max(sample.rss_bytes for sample in warm) / (1 << 20), 1),
            "end": round(end.rss_bytes / (1 << 20), 1),
        },
        "rss_slope_mib_per_minute": round(bytes_a_minute / (1 << 20), 3),
        "threads": {"warm": max(sample.threads for sample in warm), "end": end.threads},
        "open_files": {"empty": empty.open_files, "warm": warm[-1].open_files, "end": end.open_files},
        "server_cores": round((samples[-1].cpu_s - samples[0].cpu_s) / (samples[-1].at_s - samples[0].at_s), 3),
        "problems": problems,
    }
    return result, problems


def report(
    options: argparse.Namespace, books: Books, samples: list[Sample], idle: Sample, told: dict[str, float]
) -> tuple[dict[str, Any], list[str]]:
    """Return two values: the result, which includes the values of `told`, and the list of problems.

    idle: the state after all clients have left.
    """
    seconds = options.minutes * 60
    warm_s = min(WARM_SHARE * seconds, WARM_MOST_S)
    warm = [sample for sample in samples if sample.at_s >= warm_s]
    busy = Sample(*(max(getattr(s, name) for s in warm[: max(3, len(warm) // 4)]) for name in Sample.__slots__))
    bytes_a_minute = slope(warm)
    long_enough = seconds >= 600
    problems = list(books.wrong[:10])
    if idle.rows or idle.queued:
        problems.append(f"{idle.rows} rows and {idle.queued} places in the queue were not freed")
    if idle.threads > busy.threads + SPARE_THREADS:
        problems.append(f"threads went from {busy.threads} to {idle.threads}")
    if idle.open_files > busy.open_files + SPARE_FILES:
        problems.append(f"open files went from {busy.open_files} to {idle.open_files}")
    if long_enough and bytes_a_minute > MAX_SLOPE_BYTES:
        problems.append(f"resident memory grows by {bytes_a_minute / (1 << 20):.2f} MiB a minute")
    if options.strict and books.dry:
        problems.append(f"{len(books.dry)} underruns, the longest {max(dry for _, dry in books.dry):.2f} s")
    first, last = samples[0], samples[-1]
    span_s = max(1e-9, last.at_s - first.at_s)
    result = {
        "bench": "soak",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "minutes": options.minutes,
        "rate_per_s": round(options.load * told["capacity_per_s"], 1),
        "answers": dict(books.counts),
        "wrong": len(books.wrong),
        "likeness_least": round(books.likeness, 3),
        "margin_least": round(books.margin, 3),
        "first_bytes_ms": spread_ms(took for _, took in books.first_s),
        "underruns": len(books.dry),
        "underruns_longest_s": round(max((dry for _, dry in books.dry), default=0.0), 3),
        "rss_mib": {"warm": round(busy.rss_bytes / (1 << 20), 1), "end": round(idle.rss_bytes / (1 << 20), 1)},
        "rss_slope_mib_per_minute": round(bytes_a_minute / (1 << 20), 3),
        "rss_slope_asserted": long_enough,
        "threads": {"warm": busy.threads, "end": idle.threads},
        "open_files": {"warm": busy.open_files, "end": idle.open_files},
        "rows_at_end": idle.rows,
        "server_cores": round((last.cpu_s - first.cpu_s) / span_s, 3),
        "server_waited_for_a_core": round((last.waited_s - first.waited_s) / span_s, 3),
        **told,
        "problems": problems,
    }
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plot(books, samples), encoding="utf-8")
    return result, problems


def plot(books: Books, samples: list[Sample]) -> str:
    def line(name: str, scale: float = 1 / 60) -> list[tuple[float, float]]:
        return [(sample.at_s * scale, float(getattr(sample, name))) for sample in samples]

    firsts: dict[int, list[float]] = {}
    window_s = max(1.0, samples[-1].at_s / 60)
    for at_s, took_s in books.first_s:
        firsts.setdefault(int(at_s / window_s), []).append(1000 * took_s)
    middle = {index: sorted(each) for index, each in sorted(firsts.items())}
    p50 = [((index + 0.5) * window_s / 60, each[len(each) // 2]) for index, each in middle.items()]
    p95 = [((index + 0.5) * window_s / 60, each[int(0.95 * len(each))]) for index, each in middle.items()]
    rss = [(at, value / (1 << 20)) for at, value in line("rss_bytes")]
    return figure(
        "minutes",
        [
            Panel("resident memory, MiB", [Series("RSS", rss)]),
            Panel("threads and open files", [Series("threads", line("threads")), Series("files", line("open_files"))]),
            Panel("rows and queue", [Series("rows", line("rows")), Series("waiting", line("queued"))]),
            Panel("first bytes, ms", [Series("p50", p50), Series("p95", p95)]),
            Panel("underruns, s", [Series("gap", [(at / 60, dry) for at, dry in books.dry], dots=True)]),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--load", type=float, default=0.7, help="share of the server's capacity")
    parser.add_argument("--wishes", type=int, default=120, help="different requests")
    parser.add_argument("--sockets", type=int, default=0, help="test live speech beside this number of idle WebSockets")
    parser.add_argument("--strict", action="store_true", help="an underrun is a failure")
    parser.add_argument("--plot", type=Path, help="the .svg file for the plot")
    parser.add_argument("--out", type=Path, help="a file for the JSON result")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    gc.freeze()
    result, problems = asyncio.run(run(options))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
