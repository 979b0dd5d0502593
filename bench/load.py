"""Load test with requests that arrive at random times. Measures what each listener would hear.

    python -m bench.load                                  # the offline voice, at shares of its capacity
    python -m bench.load --engine csm                     # a tiny CSM with random weights
    python -m bench.load --engine csm --streams 32        # 32 long answers together: is each in real time?
    python -m bench.load --url http://gpu:8000/v1 --rates 2,4,8

Arrivals are an open-loop Poisson process: a client does not wait for an answer before the next request. Times are
measured from the planned time of a request. Before the test, clients that wait for each answer measure the capacity of
the server. All texts differ, and answers are not cached.

audible_ms: time until the client has received the first sample above -50 dBFS. An underrun is a gap of more than 20 ms
for a listener who starts to play at the first bytes; the buffer of a player bridges shorter gaps. at_real_time: the
share of answers that are complete and have no underrun. The client runs on the same machine, so the CPU time of the
client is reported too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.server import Server, own_server, tiny_csm
from bench.wire import Client, Heard, gaps

RATE_HZ = 24_000
BYTES_PER_S = 2 * RATE_HZ
AUDIBLE = 10 ** (-50 / 20)
WORDS = """
amber anchor autumn basket beacon bottle bridge candle canyon castle cedar circle cotton desert dragon eagle
ember falcon feather forest garden golden harbor hollow island ivory jacket jungle kettle lantern lemon marble
meadow mirror monkey mountain needle ocean orange paper pencil pepper pillow planet pocket rabbit ribbon river
rocket saddle sailor shadow silver spider summer sunset table temple thunder ticket timber tunnel velvet village
violet walnut weather window winter wonder yellow
""".split()


@dataclass(frozen=True, slots=True)
class Listened:
    """What one listener received of an answer. first_s, audible_s: seconds from the planned time; inf = no audio."""

    status: int
    whole: bool
    first_s: float
    audible_s: float
    audio_s: float
    underruns: int
    gap_s: float

    @property
    def at_real_time(self) -> bool:
        return self.status == 200 and self.whole and not self.underruns


def listen(heard: Heard, due_s: float) -> Listened:
    """Return what a listener hears of an answer. heard: an answer in pcm at RATE_HZ."""
    if heard.status != 200 or not heard.pieces:
        return Listened(heard.status, heard.whole, np.inf, np.inf, 0.0, 0, 0.0)
    samples = np.frombuffer(bytes(heard.body[: len(heard.body) // 2 * 2]), "<i2")
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > AUDIBLE * 32768)
    audible_s = np.inf
    if len(loud):
        byte = 2 * (int(loud[0]) + 1)
        audible_s = next(when_s for when_s, received in heard.pieces if received >= byte) - due_s
    first_s = heard.pieces[0][0]
    found = gaps((when_s, received / BYTES_PER_S) for when_s, received in heard.pieces)
    gap_s, audio_s = sum(dry_s for _, dry_s in found), heard.pieces[-1][1] / BYTES_PER_S
    return Listened(heard.status, heard.whole, first_s - due_s, audible_s, audio_s, len(found), gap_s)


class Asker:
    """Sends requests for random short texts."""

    def __init__(self, client: Client, dice: random.Random, *, voice: str, words: int, fields: dict[str, Any]) -> None:
        self._client = client
        self._dice = dice
        self._words = words
        self._fields = {"voice": voice, "response_format": "pcm", "cache": False, **fields}

    def text(self) -> str:
        return " ".join(self._dice.choices(WORDS, k=self._words)).capitalize() + "."

    async def ask(self, due_s: float, text: str = "") -> Listened:
        body = json.dumps({"input": text or self.text(), **self._fields}).encode()
        return listen(await self._client.ask("/audio/speech", body), due_s)


async def closed_loop(asker: Asker, clients: int, seconds: float) -> tuple[float, list[Listened]]:
    """Run clients that each wait for an answer before the next request.

    Return the number of answers per second, and the answers.
    """
    began_s = time.perf_counter()
    answers: list[Listened] = []

    async def one() -> None:
        while (now_s := time.perf_counter()) < began_s + seconds:
            answers.append(await asker.ask(now_s))

    await asyncio.gather(*(one() for _ in range(clients)))
    return len(answers) / (time.perf_counter() - began_s), answers


async def open_loop(asker: Asker, rate_hz: float, seconds: float, dice: random.Random) -> list[Listened]:
    """Send requests as a Poisson process for `seconds`, and wait until all answers have ended."""
    began_s = due_s = time.perf_counter()
    going: list[asyncio.Task[Listened]] = []
    while (due_s := due_s + dice.expovariate(rate_hz)) < began_s + seconds:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        going.append(asyncio.create_task(asker.ask(due_s)))
    return list(await asyncio.gather(*going))


async def at_once(asker: Asker, streams: int, text: str) -> list[Listened]:
    """Start `streams` requests evenly within one second, and return the answers."""

    async def one(index: int) -> Listened:
        await asyncio.sleep(index / streams)
        return await asker.ask(time.perf_counter(), f"{asker.text()} {text}")

    return list(await asyncio.gather(*(one(index) for index in range(streams))))


def spread_ms(seconds: Iterable[float]) -> dict[str, float | None]:
    ordered = sorted(seconds)

    def at(share: float) -> float | None:
        if not ordered:
            return None
        found = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        return round(1000 * found, 1) if np.isfinite(found) else None

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1)}


def summary(answers: Sequence[Listened]) -> dict[str, Any]:
    spoken = [each for each in answers if each.status == 200]
    return {
        "requests": len(answers),
        "answered": len(spoken),
        "refused_429": sum(each.status == 429 for each in answers),
        "failed": sum(each.status not in (200, 429) or not each.whole for each in answers),
        "audible_ms": spread_ms(each.audible_s for each in spoken),
        "first_bytes_ms": spread_ms(each.first_s for each in spoken),
        "audio_s": round(sum(each.audio_s for each in spoken), 1),
        "underruns": sum(each.underruns for each in spoken),
        "gaps_s": round(sum(each.gap_s for each in spoken), 3),
        "at_real_time": round(sum(each.at_real_time for each in answers) / max(1, len(answers)), 4),
    }


class Meter:
    """Measures the CPU time of the server and of this process inside `with`."""

    def __init__(self, server: Server | None) -> None:
        self._server = server

    def __enter__(self) -> Meter:
        self._wall_s = time.perf_counter()
        self._own_s = time.process_time()
        self._server_s = self._server.cpu_s if self._server else 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._wall_s
        self.own_s = time.process_time() - self._own_s
        self.server_s = self._server.cpu_s - self._server_s if self._server else 0.0

    def told(self, requests: int) -> dict[str, Any]:
        told = {"client_cpu_ms_per_request": round(1000 * self.own_s / max(1, requests), 2)}
        if self._server is not None:
            told["server_cpu_ms_per_request"] = round(1000 * self.server_s / max(1, requests), 2)
            told["server_cores"] = round(self.server_s / self.wall_s, 2)
        return told


async def measure(url: str, server: Server | None, options: argparse.Namespace) -> dict[str, Any]:
    dice = random.Random(options.seed)
    client = Client(url)
    fields: dict[str, Any] = {"max_audio_length_ms": int(1000 * options.audio_s)} if options.audio_s else {}
    asker = Asker(client, dice, voice=options.voice, words=options.words, fields=fields)
    result: dict[str, Any] = {"bench": "load", "engine": options.engine if server else options.url}
    result |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "load_average": os.getloadavg()[0]}
    await closed_loop(asker, 4, options.warm_s)
    if options.streams:
        text = "".join(f"{asker.text()} " for _ in range(options.sentences))
        with Meter(server) as meter:
            answers = await at_once(asker, options.streams, text)
        heard_s = sum(each.audio_s for each in answers)
        result["streams"] = options.streams
        result["run"] = {**summary(answers), **meter.told(len(answers)), "times_real_time": heard_s / meter.wall_s}
        result["run"]["times_real_time"] = round(result["run"]["times_real_time"], 1)
        return result
    rates = [float(rate) for rate in options.rates.split(",") if rate]
    if not rates:
        with Meter(server) as meter:
            capacity, answers = await closed_loop(asker, options.clients, options.seconds / 2)
        result["capacity_per_s"] = round(capacity, 1)
        result["capacity"] = {"clients": options.clients, **summary(answers), **meter.told(len(answers))}
        rates = [float(share) * capacity for share in options.shares.split(",")]
    result["rates"] = []
    for rate in rates:
        with Meter(server) as meter:
            answers = await open_loop(asker, rate, options.seconds, dice)
        told = {"rate_per_s": round(rate, 1), **summary(answers), **meter.told(len(answers))}
        if "capacity_per_s" in result:
            told["share_of_capacity"] = round(rate / result["capacity_per_s"], 2)
        result["rates"].append(told)
        print(json.dumps(told), file=sys.stderr)
    client.close()
    return result


@contextlib.asynccontextmanager
async def serving(options: argparse.Namespace) -> AsyncIterator[tuple[str, Server | None]]:
    if options.url:
        yield options.url, None
        return
    variables = {"TTS_MAX_ROWS": str(options.rows)} if options.rows else {}
    with contextlib.ExitStack() as model:
        if options.engine == "csm":
            variables |= model.enter_context(tiny_csm())
        async with own_server(**variables) as server:
            yield server.url, server


async def run(options: argparse.Namespace) -> dict[str, Any]:
    async with serving(options) as (url, server):
        return await measure(url, server, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="URL of a running server, with /v1; default: start a server")
    parser.add_argument("--engine", choices=["espeak", "csm"], default="espeak", help="engine of the started server")
    parser.add_argument("--rows", type=int, default=0, help="TTS_MAX_ROWS of this server; 0 = the default")
    parser.add_argument("--rates", default="", help="requests a second, separated by commas; default: --shares")
    parser.add_argument("--shares", default="0.5,0.7,0.8,0.9", help="shares of the capacity, separated by commas")
    parser.add_argument("--clients", type=int, default=16, help="number of clients that measure the capacity")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each rate")
    parser.add_argument("--warm-s", type=float, default=2.0)
    parser.add_argument("--words", type=int, default=2, help="words in a text; two words are about 1 s of speech")
    parser.add_argument("--audio-s", type=float, default=0.0, help="longest answer in seconds; 0 = no limit")
    parser.add_argument("--streams", type=int, default=0, help="measure this number of long answers together")
    parser.add_argument("--sentences", type=int, default=8, help="sentences in each long answer")
    parser.add_argument("--voice", default="alloy")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.engine == "csm" and not options.url:
        options.rows = options.rows or options.streams or 8
        options.audio_s = options.audio_s or (20.0 if options.streams else 2.0)
    print(json.dumps(asyncio.run(run(options))))


if __name__ == "__main__":
    main()
