"""Compares the time to first audio through HTTP with that of the engine alone, and measures many simultaneous streams.

    python -m bench.latency                      # starts a server with the offline voice and measures this server
    python -m bench.latency --url http://gpu:8000/v1 --voice alloy

This process also runs the engine itself. Measurements of the engine and of HTTP requests alternate and use the same
texts, so that both are measured under the same load of the machine. Answers are not cached.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

from app.engines.pool import build
from app.engines.protocol import Engine
from app.engines.registry import BuildContext, specs
from app.settings import Settings
from app.types import Sampling, SpokenLine, Utterance
from app.voices.presets import preset
from bench.server import own_server

TEXT = "The quick brown fox jumps over the lazy dog, and number {n} follows it home."


async def engine_first_s(engine: Engine, text: str, voice: str) -> float:
    """Return the seconds until the first chunk of the engine, without HTTP."""
    line = SpokenLine(text, 0, preset(voice))
    utterance = Utterance((line,), Sampling(), seed=1, max_seconds=60.0)
    begun_s = time.perf_counter()
    async with contextlib.aclosing(engine.speak(utterance)) as stream:
        await anext(stream)
        return time.perf_counter() - begun_s


async def http_first_s(http: httpx.AsyncClient, text: str, voice: str, audio_format: str) -> tuple[float, float]:
    """Return the seconds until the first bytes of the response body, and until its end."""
    body = {"model": "tts-1", "voice": voice, "input": text, "response_format": audio_format, "cache": False}
    begun_s = time.perf_counter()
    async with http.stream("POST", "/audio/speech", json=body) as answer:
        answer.raise_for_status()
        pieces = answer.aiter_raw()
        await anext(pieces)
        first_s = time.perf_counter() - begun_s
        async for _ in pieces:
            pass
    return first_s, time.perf_counter() - begun_s


def build_engine(variables: Mapping[str, str]) -> Engine:
    """Return the engine of a server with these environment variables. The caller must start it.

    The default is the offline voice.
    """
    chosen: dict[str, Any] = {"TTS_ENGINE": "espeak", **variables}
    settings = Settings(_env_file=None, **chosen)
    context = BuildContext(on_progress=lambda _: None, cancelled=lambda: False)
    return build(specs()[settings.engine], settings, context)


async def measure(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    direct: list[float] = []
    through: list[float] = []
    async with (
        build_engine({}) as engine,
        httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as http,
    ):
        for number in range(arguments.rounds + 5):
            text = TEXT.format(n=number)
            own_s = await engine_first_s(engine, text, arguments.voice)
            first_s, _ = await http_first_s(http, text, arguments.voice, arguments.format)
            if number >= 5:  # the first 5 rounds open connections and fill caches
                direct.append(own_s)
                through.append(first_s)
        together: list[float] = []
        for burst in range(arguments.bursts):
            texts = [TEXT.format(n=1000 + burst * arguments.streams + index) for index in range(arguments.streams)]
            answers = await asyncio.gather(
                *(http_first_s(http, text, arguments.voice, arguments.format) for text in texts)
            )
            together += [first_s for first_s, _ in answers]
    return {
        "bench": "latency",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "format": arguments.format,
        "rounds": arguments.rounds,
        "engine_first_chunk_ms": spread(direct),
        "http_first_bytes_ms": spread(through),
        "overhead_ms_median": round(1000 * (statistics.median(through) - statistics.median(direct)), 2),
        "streams_at_once": arguments.streams,
        "streams_first_bytes_ms": spread(together),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"min": at(0), "p50": at(0.5), "p95": at(0.95), "max": at(1)}


@contextlib.asynccontextmanager
async def given(url: str | None) -> AsyncGenerator[str]:
    """Yield `url`; if it is None, start a server and yield its URL."""
    if url:
        yield url
    else:
        async with own_server() as server:
            yield server.url


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    async with given(arguments.url) as url:
        return await measure(url, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="base URL of a running server, with /v1; default: start one with espeak")
    parser.add_argument("--voice", default="alloy")
    parser.add_argument("--format", default="mp3")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--bursts", type=int, default=10)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
