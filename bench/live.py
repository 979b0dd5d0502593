"""Measures live speech over WebSockets: the time to first audio, gaps, cancellation, and the CPU time of the server.

    python -m bench.live                                   # the offline voice, 1 and 16 sessions
    python -m bench.live --engine csm --watermark off      # a tiny CSM with random weights
    python -m bench.live --compare ../other-checkout       # two versions of the server in alternation

The client is a separate process. It sends a text token by token, as a language model writes it. `first_ms` is the time
from the deciding token to the first audio: the token with which the end of the first piece is certain, usually the
first one of the next sentence. `sentence_ms` is the time from the token with the end of the first piece. In a `burst`
all sessions send the same sentence, with different numbers, at the same time. With `spread`, each session speaks turn
after turn and listens in real time, so that a turn begins while other sessions speak.

Two references alternate with the bursts and use the same sentence: `engine_ms`, the first chunk of the engine in the
client's process without a server, and `speech_ms`, the first bytes of POST /v1/audio/speech.

`first_cpu_ms` is the CPU time of the server between the deciding token and the first audio, and `speech_first_cpu_ms`
that of the reference. Unlike the other times, they hardly depend on other programs of the machine.

Each second turn of the protocol `realtime` is cancelled. `cancel_ms` is the time from the cancellation to the last byte
of audio, and `cancelled_ms` to the event that confirms it. A gap is a time of more than 20 ms without audio for a
listener who plays from the first audio on.

The table is written to standard error. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import multiprocessing
import os
import platform
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.text.incremental import IncrementalSplitter
from bench.latency import build_engine, engine_first_s
from bench.server import ROOT, Server, own_server, tiny_csm
from bench.wire import Client, WebSocket, gaps

RATE_HZ = 24_000
TURN_S = 60.0  # a turn that takes longer has failed
SENTENCE = "The ferry number {n} crosses the bay at noon."  # the first piece of each turn in a burst
FURTHER = " It takes about an hour to get to the island. Bring a coat, because the wind can be cold on the open deck."
# Answers of a language model, which the sessions of `spread` speak.
ANSWERS = (
    "Sure, I can help with that. The meeting starts at 3.5 hours from now. Please bring your notes!",
    "Yes. It is open until 9 p.m. on weekdays, and until noon on Sundays. Do you want directions?",
    "The U.S. economy grew 2.5% last year. That beat most forecasts, but it was slower than in the year before.",
    "Good question! There are **three** reasons:\n\n1. It is cheap.\n2. It is quick.\n3. It works.\n\nShall I go on?",
    "I looked it up for you. Dr. Smith wrote the book in 1984, i.e. before the wall fell. It has 320 pages.",
    "Turn left at the old mill and follow the river for about two miles. The house is the red one on the right.",
)
Protocol = Literal["realtime", "elevenlabs"]


def tokens(text: str) -> list[str]:
    """Divide a text as the tokenizers of language models do. A word and the space before it become tokens of up to 6
    letters.
    """
    return re.findall(r" ?\w{1,6}|\s+|[^\w\s]", text)


def cut_of(parts: list[str]) -> tuple[int, int]:
    """Return the indexes of two tokens: the token with the end of the first piece, and the deciding token.

    Only when the deciding token has arrived, the end of the first piece is certain.
    """
    splitter = IncrementalSplitter()
    for index, part in enumerate(parts):
        if pieces := splitter.append(part):
            at, end = 0, pieces[0].end_char
            for number, each in enumerate(parts):
                at += len(each)
                if at >= end:
                    return number, index
    return len(parts) - 1, len(parts) - 1


@dataclass(slots=True)
class Turn:
    """The times of one spoken text, from time.perf_counter()."""

    sentence_s: float = 0.0  # when the token with the end of the first piece was sent
    decided_s: float = 0.0  # when the deciding token was sent
    decided_cpu_s: float = 0.0  # CPU seconds of the server when the deciding token was sent
    first_cpu_s: float = 0.0  # CPU seconds of the server at the first audio
    arrivals: list[tuple[float, float]] = field(default_factory=list)  # (time, seconds of audio so far)
    cancel_s: float = 0.0
    ended_s: float = 0.0
    error: str = ""
    audible: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def gaps(self) -> list[float]:
        """The seconds of each gap that a listener in real time hears."""
        return [dry_s for _, dry_s in gaps(self.arrivals)]


class Session:
    """One connection that speaks one text after another."""

    def __init__(self, server: Server, protocol: Protocol) -> None:
        self._server = server
        self._protocol = protocol
        self._socket: WebSocket | None = None
        self._turn = Turn()
        self._number = 0
        self._ready = asyncio.Event()

    async def connect(self) -> None:
        path = "/realtime?model=gpt-realtime"
        if self._protocol == "elevenlabs":
            path = "/text-to-speech/alloy/multi-stream-input?output_format=pcm_24000&inactivity_timeout=180"
            self._ready.set()
        self._socket = await WebSocket.connect(self._server.url + path, self._receive)
        await self._ready.wait()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._socket is None or self._socket.closed.is_set()

    def _receive(self, text: str) -> None:
        now_s = time.perf_counter()
        message = json.loads(text)
        turn = self._turn
        kind = message.get("type")
        if kind == "session.created":
            self._ready.set()
        audio = message.get("delta") if kind == "response.output_audio.delta" else message.get("audio")
        if audio:
            before_s = turn.arrivals[-1][1] if turn.arrivals else 0.0
            turn.first_cpu_s = turn.first_cpu_s or self._server.cpu_s
            turn.arrivals.append((now_s, before_s + len(base64.b64decode(audio)) / (2 * RATE_HZ)))
            turn.audible.set()
        if "response_cancel_not_active" in text:  # the response ended when the cancellation was on its way
            return
        if "error" in message:
            turn.error = text[:300]
        if kind == "response.done" or message.get("isFinal") or "error" in message:
            turn.ended_s = now_s
            turn.audible.set()
            turn.ended.set()

    def _send(self, text: str, *, end: bool = False) -> None:
        assert self._socket is not None
        if self._protocol == "realtime":
            event = {"type": "input_text_buffer.commit"} if end else {"type": "input_text_buffer.append", "text": text}
            self._socket.send(json.dumps(event))
        else:
            context = {"context_id": str(self._number)}
            self._socket.send(
                json.dumps({"flush": True, "close_context": True, **context} if end else {"text": text, **context})
            )

    async def speak(self, text: str, token_s: float, cancel_after_s: float | None = None) -> Turn:
        """Send a text token by token, and return when its speech has ended. cancel_after_s: seconds from the
        first audio to the cancellation; None = no cancellation.
        """
        self._number += 1
        turn = self._turn = Turn()
        cancel = None if cancel_after_s is None else asyncio.create_task(self._cancel(turn, cancel_after_s))
        parts = tokens(text)
        last, deciding = cut_of(parts)
        began_s = time.perf_counter()
        for index, part in enumerate(parts):
            await asyncio.sleep(max(0.0, began_s + index * token_s - time.perf_counter()))
            if turn.cancel_s or turn.ended.is_set():
                break
            self._send(part)
            now_s = time.perf_counter()
            turn.sentence_s = now_s if index == last else turn.sentence_s
            if index == deciding:
                turn.decided_s, turn.decided_cpu_s = now_s, self._server.cpu_s
        else:
            self._send("", end=True)
        try:
            async with asyncio.timeout(TURN_S):
                await turn.ended.wait()
        except TimeoutError:
            turn.error = f"no end after {len(turn.arrivals)} messages with audio, cancelled: {turn.cancel_s > 0}"
        if cancel is not None:
            cancel.cancel()
        return turn

    async def _cancel(self, turn: Turn, after_s: float) -> None:
        await turn.audible.wait()
        await asyncio.sleep(after_s)
        if not turn.ended.is_set():
            assert self._socket is not None
            turn.cancel_s = time.perf_counter()
            self._socket.send('{"type":"response.cancel"}')


@dataclass(frozen=True, slots=True)
class Case:
    """What a client process measures."""

    server: Server
    protocol: Protocol
    sessions: int
    rounds: int
    token_s: float
    spread: bool
    variables: Mapping[str, str]  # environment variables of the server's engine, which this process also runs


@dataclass(slots=True)
class Measured:
    """The times of all turns of a case in seconds, and the errors."""

    first_s: list[float] = field(default_factory=list)
    sentence_s: list[float] = field(default_factory=list)
    cancel_s: list[float] = field(default_factory=list)
    cancelled_s: list[float] = field(default_factory=list)
    engine_s: list[float] = field(default_factory=list)
    speech_s: list[float] = field(default_factory=list)
    first_cpu_s: list[float] = field(default_factory=list)
    speech_first_cpu_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    turns: int = 0
    cpu_s: float = 0.0  # CPU seconds of the server for the turns
    speech_cpu_s: float = 0.0  # CPU seconds of the server for the same number of answers of POST /v1/audio/speech
    errors: list[str] = field(default_factory=list)

    def add(self, turn: Turn) -> None:
        self.turns += 1
        if turn.error or not turn.arrivals:
            self.errors.append(turn.error or "a turn without audio")
            return
        self.first_s.append(turn.arrivals[0][0] - turn.decided_s)
        self.first_cpu_s.append(turn.first_cpu_s - turn.decided_cpu_s)
        self.sentence_s.append(turn.arrivals[0][0] - turn.sentence_s)
        self.gaps_s += turn.gaps()
        if turn.cancel_s:
            self.cancel_s.append(max(0.0, turn.arrivals[-1][0] - turn.cancel_s))
            self.cancelled_s.append(turn.ended_s - turn.cancel_s)

    def extend(self, other: Measured) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


async def _speech_first_s(client: Client, server: Server, text: str) -> tuple[float, float]:
    """Return the seconds to the first bytes of POST /v1/audio/speech, and the CPU seconds of the server until then."""
    body = {"input": text, "voice": "alloy", "response_format": "pcm", "cache": False}
    before_s = server.cpu_s
    first: list[float] = []
    answer = await client.ask(
        "/audio/speech", json.dumps(body).encode(), on_first=lambda: first.append(server.cpu_s - before_s)
    )
    if answer.status != 200 or not answer.pieces:
        raise RuntimeError(f"POST /v1/audio/speech was answered with {answer.status}")
    return answer.pieces[0][0] - answer.begun_s, first[0]


@contextlib.contextmanager
def _server_cpu(server: Server) -> Iterator[list[float]]:
    """Yield an empty list. At the end of `with`, append the CPU seconds that the server has used inside it."""
    found: list[float] = []
    before_s = server.cpu_s
    yield found
    found.append(server.cpu_s - before_s)


async def _bursts(case: Case, dice: random.Random) -> Measured:
    """Measure turns in which all sessions send a sentence at the same time. The references alternate with them."""
    measured = Measured()
    sessions = [Session(case.server, case.protocol) for _ in range(case.sessions)]
    client = Client(case.server.url)
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(build_engine(case.variables))
        await asyncio.gather(*(session.connect() for session in sessions))
        for number in range(-2, case.rounds):  # the first two rounds only fill caches and are not counted
            texts = [SENTENCE.format(n=dice.randrange(10_000)) for _ in sessions]
            own = await asyncio.gather(*(engine_first_s(engine, text, "alloy") for text in texts))
            with _server_cpu(case.server) as speech_cpu:
                plain = await asyncio.gather(*(_speech_first_s(client, case.server, text + FURTHER) for text in texts))
                await asyncio.sleep(0.05)
            cancels = [
                dice.uniform(0.02, 0.5) if case.protocol == "realtime" and (index + number) % 2 else None
                for index in range(len(sessions))
            ]
            with _server_cpu(case.server) as cpu:
                turns = await asyncio.gather(
                    *(
                        session.speak(text + FURTHER, case.token_s, cancel)
                        for session, text, cancel in zip(sessions, texts, cancels, strict=True)
                    )
                )
                await asyncio.sleep(0.05)
            if number < 0:
                continue
            measured.engine_s += own
            measured.speech_s += [first_s for first_s, _ in plain]
            measured.speech_first_cpu_s += [cpu_s for _, cpu_s in plain]
            measured.speech_cpu_s += speech_cpu[0]
            measured.cpu_s += cpu[0]
            for turn in turns:
                measured.add(turn)
    for session in sessions:
        session.close()
    client.close()
    return measured


async def _spread(case: Case, dice: random.Random) -> Measured:
    """Measure sessions that each speak one turn after another, and listen to each turn in real time."""
    measured = Measured()

    async def converse(session: Session) -> None:
        await session.connect()
        await asyncio.sleep(dice.uniform(0.0, 4.0))
        for number in range(case.rounds):
            cancel = dice.uniform(0.1, 2.0) if case.protocol == "realtime" and number % 2 else None
            turn = await session.speak(dice.choice(ANSWERS), case.token_s, cancel)
            measured.add(turn)
            heard_s = turn.arrivals[-1][1] if turn.arrivals and not turn.cancel_s else 0.0
            spoken_s = time.perf_counter() - turn.arrivals[0][0] if turn.arrivals else 0.0
            await asyncio.sleep(max(0.0, heard_s - spoken_s) + dice.uniform(0.2, 1.0))
        session.close()

    with _server_cpu(case.server) as cpu:
        await asyncio.gather(*(converse(Session(case.server, case.protocol)) for _ in range(case.sessions)))
    measured.cpu_s = cpu[0]
    return measured


def run_client(case: Case, seed: int) -> Measured:
    """Measure one case. Called in the client's process."""
    os.environ.update(case.variables)
    return asyncio.run((_spread if case.spread else _bursts)(case, random.Random(seed)))


def spread_ms(seconds: list[float]) -> dict[str, float] | None:
    ordered = sorted(seconds)
    if not ordered:
        return None
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
    }


def result_of(measured: Measured) -> dict[str, Any]:
    found: dict[str, Any] = {"turns": measured.turns, "errors": measured.errors[:5], "failed": len(measured.errors)}
    for name in ("first", "sentence", "engine", "speech", "cancel", "cancelled", "first_cpu", "speech_first_cpu"):
        found[f"{name}_ms"] = spread_ms(getattr(measured, f"{name}_s"))
    for name in ("engine", "speech"):
        if found[f"{name}_ms"] and found["first_ms"]:
            found[f"over_{name}_ms"] = round(found["first_ms"]["p50"] - found[f"{name}_ms"]["p50"], 1)
    found["gaps"] = len(measured.gaps_s)
    found["gaps_s"] = round(sum(measured.gaps_s), 3)
    found["gaps_longest_s"] = round(max(measured.gaps_s, default=0.0), 3)
    found["cpu_ms_per_turn"] = round(1000 * measured.cpu_s / max(1, measured.turns), 1)
    if measured.speech_cpu_s:
        found["speech_cpu_ms"] = round(1000 * measured.speech_cpu_s / max(1, measured.turns), 1)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return f"{value['p50']:.0f} / {value['p95']:.0f}"
        return "" if value is None else str(value)

    names = {
        "server": "server", "watermark": "mark", "protocol": "protocol", "load": "load", "sessions": "n",
        "first_ms": "first p50/p95", "engine_ms": "engine", "speech_ms": "POST", "sentence_ms": "sentence",
        "cancel_ms": "cancel", "cancelled_ms": "confirmed", "gaps": "gaps", "gaps_s": "gaps s",
        "cpu_ms_per_turn": "CPU ms", "speech_cpu_ms": "POST CPU",
        "first_cpu_ms": "first CPU", "speech_first_cpu_ms": "POST first CPU", "failed": "failed",
    }  # fmt: skip
    lines = [list(names.values()), *([shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


@contextlib.asynccontextmanager
async def model_variables(engine: str) -> AsyncIterator[dict[str, str]]:
    """Yield the environment variables of a server with this engine."""
    if engine == "espeak":
        yield {}
        return
    with tiny_csm() as variables:
        yield {**variables, "TTS_MAX_ROWS": "16"}


async def measure(options: argparse.Namespace, watermark: str, variables: dict[str, str]) -> list[dict[str, Any]]:
    """Measure all cases with one setting of the watermark. The servers of several checkouts alternate."""
    roots = [ROOT, *options.compare]
    cases = [
        (protocol, int(count), load == "spread")
        for protocol in options.protocols.split(",")
        for count in options.sessions.split(",")
        for load in options.loads.split(",")
    ]
    found: dict[tuple[Any, ...], Measured] = {}
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                own_server(**variables, TTS_WATERMARK=watermark, TTS_CACHE_BYTES="0", PYTHONPATH=str(root))
            )
            for root in roots
        ]
        context = multiprocessing.get_context("spawn")
        pool = stack.enter_context(ProcessPoolExecutor(1, context))
        for turn in range(options.turns):
            for protocol, count, spread in cases:
                rounds = max(2, options.rounds // (1 if count == 1 else 4))
                for root, server in zip(roots, servers, strict=True):
                    case = Case(
                        server,
                        protocol,
                        count,
                        min(rounds, 6) if spread else rounds,
                        1 / options.tokens_hz,
                        spread,
                        variables,
                    )
                    seed = options.seed + turn
                    measured = await asyncio.get_running_loop().run_in_executor(pool, run_client, case, seed)
                    found.setdefault((str(root), protocol, count, spread), Measured()).extend(measured)
    return [
        {
            "server": Path(root).name,
            "watermark": watermark,
            "protocol": protocol,
            "load": "spread" if spread else "burst",
            "sessions": count,
            **result_of(measured),
        }
        for (root, protocol, count, spread), measured in found.items()
    ]


async def run(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    async with model_variables(options.engine) as variables:
        for watermark in options.watermark.split(","):
            rows += await measure(options, watermark, variables)
    return {
        "bench": "live",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "engine": options.engine,
        "tokens_hz": options.tokens_hz,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["espeak", "csm"], default="espeak")
    parser.add_argument("--protocols", default="realtime,elevenlabs", help="separated by commas")
    parser.add_argument("--sessions", default="1,16", help="numbers of sessions, separated by commas")
    parser.add_argument("--loads", default="burst,spread", help="separated by commas")
    parser.add_argument("--watermark", default="cloned,all", help="values of TTS_WATERMARK, separated by commas")
    parser.add_argument("--rounds", type=int, default=24, help="turns of a single session; 16 sessions speak a quarter")
    parser.add_argument("--turns", type=int, default=1, help="how often all cases are measured")
    parser.add_argument("--tokens-hz", type=float, default=50.0, help="tokens per second of the language model")
    parser.add_argument(
        "--compare",
        nargs="*",
        type=lambda name: Path(name).resolve(),
        default=[],
        help="further checkouts whose servers are measured, too",
    )
    parser.add_argument("--seed", type=int, default=1)
    result = asyncio.run(run(parser.parse_args()))
    print(table(result["rows"]), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
