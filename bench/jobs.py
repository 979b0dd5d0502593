"""Measures durable jobs: live requests beside a running job, the memory over a long job, and kills at random moments.

    python -m bench.jobs                        # the offline voice: first audio with and without a job, in alternation
    python -m bench.jobs --engine csm           # a tiny CSM with random weights
    python -m bench.jobs --characters 1000000   # speak a job of this length to its end, and report the memory
    python -m bench.jobs --kills 50             # 50 times, kill the process that speaks a job of 300 sentences

A live request is a sentence over HTTP. Its client reads the whole answer, waits up to 0.4 s, and sends another one.
The time to the first byte of audio is measured. During the first block of requests the job is paused, during the second
block it runs, and so on. For `p95_ratio`, the 95th percentile of each block with a running job is divided by the 95th
percentile of the previous block. The result is the median of these ratios. Each ratio compares two neighbouring blocks,
because the load by other programs changes little between them.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from bench.server import Server, own_server, tiny_csm

SENTENCE = "The ferry number {n} crosses the bay at noon, and it takes about an hour to get to the island."
BOOK = "It was late in the year when the old boat number {n} came home over the cold and dark sea. "
MIB = 1 << 20


async def first_s(http: httpx.AsyncClient, number: int) -> float:
    """Return the seconds to the first byte of an answer. Reads the whole answer."""
    body = {"input": SENTENCE.format(n=number), "response_format": "pcm", "cache": False}
    began_s = time.perf_counter()
    async with http.stream("POST", "audio/speech", json=body) as answer:
        answer.raise_for_status()
        found = 0.0
        async for _ in answer.aiter_raw():
            found = found or time.perf_counter() - began_s
    return found


async def create(http: httpx.AsyncClient, characters: int, *, paused: bool) -> str:
    chapters: list[str] = []
    number = 0
    while sum(len(chapter) for chapter in chapters) < characters:
        text = ""
        while len(text) < min(40_000, characters):
            text += BOOK.format(n=number)
            number += 1
        chapters.append(text)
    body = {"chapters": [{"input": text} for text in chapters], "response_format": "m4b", "paused": paused}
    job = (await http.post("audio/jobs", json=body)).raise_for_status().json()
    return str(job["id"])


async def beside(server: Server, http: httpx.AsyncClient, rounds: int, requests: int) -> dict[str, object]:
    """Measure live requests without and with a running job, in alternation."""
    job = await create(http, 300_000, paused=True)
    dice = random.Random(1)
    times: dict[str, list[float]] = {"alone": [], "beside": []}
    for number in range(3 * 2):  # warm up
        await first_s(http, number)
    sentences = 0
    for index in range(2 * rounds):
        kind = "beside" if index % 2 else "alone"
        await http.post(f"audio/jobs/{job}/{'resume' if kind == 'beside' else 'pause'}")
        before = (await http.get(f"audio/jobs/{job}")).json()["progress"]["sentences_done"]
        await asyncio.sleep(1.0)
        for number in range(requests):
            times[kind].append(await first_s(http, 1_000 * index + number))
            await asyncio.sleep(0.4 * dice.random())
        after = (await http.get(f"audio/jobs/{job}")).json()["progress"]["sentences_done"]
        sentences += after - before if kind == "beside" else 0
    await http.delete(f"audio/jobs/{job}")
    result: dict[str, object] = {"requests": rounds * requests, "sentences_of_the_job": sentences}
    for kind, found in times.items():
        cuts = statistics.quantiles(found, n=20)
        result[kind] = {"p50_ms": round(1e3 * cuts[9], 1), "p95_ms": round(1e3 * cuts[18], 1)}
    blocks = [
        [times[kind][start : start + requests] for start in range(0, rounds * requests, requests)]
        for kind in ("alone", "beside")
    ]
    for name, cut in (("p50", 9), ("p95", 18)):
        ratios = [
            statistics.quantiles(with_job, n=20)[cut] / statistics.quantiles(alone, n=20)[cut]
            for alone, with_job in zip(*blocks, strict=True)
        ]
        result[f"{name}_ratio"] = round(statistics.median(ratios), 2)
        result[f"{name}_ratios"] = [round(ratio, 2) for ratio in sorted(ratios)]
    return result


async def memory(server: Server, http: httpx.AsyncClient, characters: int) -> dict[str, object]:
    """Speak a long job to its end, and report the server's resident memory during the job."""
    await first_s(http, 0)
    start = server.rss_bytes
    began_s = time.monotonic()
    job = await create(http, characters, paused=False)
    samples: list[tuple[float, float]] = []
    while True:
        state = (await http.get(f"audio/jobs/{job}")).json()
        progress = state["progress"]
        share = progress["sentences_done"] / progress["sentences_total"] if progress["planned"] else 0.0
        samples.append((round(share, 3), round(server.rss_bytes / MIB, 1)))
        print(state["status"], *samples[-1], progress["sentences_done"], progress["eta_s"], file=sys.stderr)
        if state["status"] not in ("queued", "running"):
            break
        await asyncio.sleep(5)
    seconds = time.monotonic() - began_s
    half = [rss for share, rss in samples if share >= 0.5]
    quarter = [rss for share, rss in samples if 0.1 <= share <= 0.5]
    return {
        "status": state["status"], "error": state["error"], "sentences": progress["sentences_done"],
        "wall_s": round(seconds),
        "audio_s": round(progress["seconds_done"]), "rss_start_mib": round(start / MIB, 1),
        "rss_max_first_half_mib": max(quarter, default=0.0), "rss_max_second_half_mib": max(half, default=0.0),
    }  # fmt: skip


async def measure(options: argparse.Namespace, variables: dict[str, str]) -> dict[str, object]:
    async with (
        own_server(**variables) as server,
        httpx.AsyncClient(base_url=server.url, timeout=120) as http,
    ):
        if options.characters:
            return await memory(server, http, options.characters)
        return await beside(server, http, options.rounds, options.requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("espeak", "csm"), default="espeak")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=16, help="live requests in each block")
    parser.add_argument("--characters", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    if options.kills:
        support = importlib.import_module("tests.support.jobs")
        with tempfile.TemporaryDirectory() as folder:
            support.killed_at_random(Path(folder), count=6 * options.kills, kills=options.kills)
        print(json.dumps({"kills": options.kills, "sentences": 6 * options.kills, "equal": True}))
        return
    with contextlib.ExitStack() as stack:
        variables = stack.enter_context(tiny_csm()) if options.engine == "csm" else {}
        result = asyncio.run(measure(options, variables))
    print(json.dumps({"engine": options.engine, **result}))


if __name__ == "__main__":
    main()
