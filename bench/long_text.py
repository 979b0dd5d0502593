"""Measures time to first audio and peak memory for texts of 1,000 to 1,000,000 characters, with the offline voice.

    python -m bench.long_text [--characters 1000 10000 100000 1000000] [--seconds 20]

Each length is measured on a new server, so that the memory peaks are separate. The client reads the audio for --seconds
and then disconnects. The memory is measured before the request, at its peak, and after the client has left.
`sentence_ms` is the time to first audio of the first sentence alone. The last line of standard output is one JSON
object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Any

import httpx

from bench.server import Server, own_server

SENTENCE = "The ferry crosses the bay at {n} in the morning, and the boats (all 12 of them) wait for it. "
PARAGRAPH_SENTENCES = 6
ROUNDS = 5  # number of requests; their median is the time to first audio


def text_of(characters: int) -> str:
    """Return a text of `characters` characters: paragraphs of different sentences. The last sentence may be cut off."""
    parts: list[str] = []
    size = n = 0
    while size < characters:
        part = SENTENCE.format(n=n) + ("\n\n" if n % PARAGRAPH_SENTENCES == PARAGRAPH_SENTENCES - 1 else "")
        parts.append(part)
        size += len(part)
        n += 1
    return "".join(parts)[:characters]


async def first_ms(http: httpx.AsyncClient, text: str) -> float:
    """Return the milliseconds until the first bytes of the audio, and disconnect."""
    begun_s = time.perf_counter()
    async with http.stream("POST", "/audio/speech", json=body(text)) as answer:
        answer.raise_for_status()
        parts = answer.aiter_raw()
        await anext(parts)
        return 1000 * (time.perf_counter() - begun_s)


def body(text: str) -> dict[str, Any]:
    return {"input": text, "response_format": "pcm", "cache": False}


async def listen(http: httpx.AsyncClient, server: Server, text: str, seconds: float) -> tuple[int, float]:
    """Read the audio for `seconds`. Returns the peak of the server's memory in bytes and the seconds of audio."""
    peak = size = 0
    begun_s = seen_s = time.monotonic()
    async with http.stream("POST", "/audio/speech", json=body(text)) as answer:
        answer.raise_for_status()
        parts = answer.aiter_raw()
        async for part in parts:
            size += len(part)
            now_s = time.monotonic()
            if now_s - seen_s > 0.1:
                seen_s = now_s
                peak = max(peak, server.rss_bytes)
            if now_s - begun_s > seconds:
                break
    return max(peak, server.rss_bytes), size / 48_000


async def measure(characters: int, seconds: float) -> dict[str, Any]:
    text = text_of(characters)
    async with own_server() as server, httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        first_sentence = text.partition(". ")[0] + "."
        for _ in range(3):  # the first requests load tables and codecs
            await first_ms(http, first_sentence)
        sentence = [await first_ms(http, first_sentence) for _ in range(ROUNDS)]
        before = server.rss_bytes
        first = [await first_ms(http, text) for _ in range(ROUNDS)]
        peak, audio_s = await listen(http, server, text, seconds)
        await asyncio.sleep(2)
        return {
            "characters": characters,
            "sentence_ms": round(statistics.median(sentence), 1),
            "first_audio_ms": round(statistics.median(first), 1),
            "before_mb": round(before / 1e6, 1),
            "peak_mb": round(peak / 1e6, 1),
            "after_mb": round(server.rss_bytes / 1e6, 1),
            "audio_s": round(audio_s, 1),
        }


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = [await measure(characters, arguments.seconds) for characters in arguments.characters]
    for row in rows:
        print(row)
    return {"bench": "long_text", "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the client reads")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
