"""Measures the memory that a server keeps after it has unloaded its models, and the time to the next answer.

    python -m bench.unload [--models csm,dia] [--rounds 10] [--size full] [--quantize int8] [--clients 2]

In each round, the server loads each model, answers a short request with it, and unloads it. `after_bytes` has the
resident memory after each unload; `growth` is the largest of these values, divided by the first one, minus 1. The
first round is not counted, because it imports PyTorch. `waited_s` is the time to the first byte of an answer that
waits for the load of its model, `load_s` the time of a load alone, and `first_s` the time to the first byte with a
loaded model. With --clients N, N clients speak all the time, with one model after another, while the models are loaded
and unloaded. `answers` counts their answers, and `lost` has the errors. The last line of standard output is one JSON
object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from bench.server import ROOT, Server, own_server

IDS = {"csm": "csm-1b", "dia": "dia-1.6b"}


async def first_byte_s(http: httpx.AsyncClient, url: str, model: str, seconds: float) -> float:
    """Return the time to the first byte of an answer. Reads the whole answer."""
    body = {"model": model, "input": "The weather was fine.", "response_format": "pcm", "cache": False}
    began_s, first_s = time.perf_counter(), 0.0
    body |= {"max_audio_length_ms": round(1000 * seconds)}
    async with http.stream("POST", f"{url}/audio/speech", json=body) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_raw():
            first_s = first_s or time.perf_counter() - began_s
    return first_s


async def client(url: str, models: list[str], seconds: float, answers: Counter[str], lost: list[str]) -> None:
    """Request answers from one model after another until this task is cancelled."""
    async with httpx.AsyncClient(timeout=600) as http:
        for model in itertools.cycle(models):
            try:
                if await first_byte_s(http, url, IDS[model], seconds):
                    answers[IDS[model]] += 1
                else:
                    lost.append(f"{model}: an answer without audio")
            except httpx.HTTPError as error:
                lost.append(f"{model}: {error!r}")


async def rounds(server: Server, args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    async with httpx.AsyncClient(timeout=600) as http:
        for number in range(args.rounds + 1):
            for model in args.models:
                url, name = server.url, IDS[model]
                row: dict[str, Any] = {"round": number, "model": name}
                # Odd rounds load the model and then ask it. Even rounds send a request that waits for the load.
                if number % 2:
                    began_s = time.perf_counter()
                    (await http.post(f"{url}/models/{name}/load")).raise_for_status()
                    row["load_s"] = round(time.perf_counter() - began_s, 3)
                    row["first_s"] = round(await first_byte_s(http, url, name, args.seconds), 3)
                else:
                    row["waited_s"] = round(await first_byte_s(http, url, name, args.seconds), 3)
                row["loaded_bytes"] = server.rss_bytes
                (await http.post(f"{url}/models/{name}/unload")).raise_for_status()
                row["after_bytes"] = server.rss_bytes
                print(json.dumps(row), flush=True)
                found.append(row)
    return found


def fabricate(folder: Path, model: str, size: str) -> Path:
    """Write a model with random bfloat16 weights below `folder` if it is missing. Returns the folder of the model."""
    target = folder / model
    if not (target / "config.json").is_file():
        command = [sys.executable, "-m", "bench.fabricate", model, "--size", size, "--dtype", "bfloat16", str(target)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return target


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    after = [row["after_bytes"] for row in found if row["round"]]
    times = {
        name: {
            model: round(statistics.median(values), 3)
            for model in dict.fromkeys(row["model"] for row in found)
            if (values := [row[name] for row in found if row["model"] == model and row["round"] and name in row])
        }
        for name in ("load_s", "first_s", "waited_s")
    }
    return {"after_bytes": after, "growth": round(max(after) / after[0] - 1, 4), **times}


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    variables = {
        f"{model.upper()}_MODEL": str(await asyncio.to_thread(fabricate, folder, model, args.size))
        for model in args.models
    }
    variables |= {"TTS_MODELS": ",".join(("espeak", *(IDS[model] for model in args.models)))}
    variables |= {"TTS_CASTING": "off", "TTS_LOAD_WAIT_S": "600", "TTS_QUANTIZE": args.quantize}
    answers: Counter[str] = Counter()
    lost: list[str] = []
    async with own_server(**variables) as server:
        orders = itertools.cycle([args.models, args.models[::-1]])
        tasks = [
            asyncio.create_task(client(server.url, next(orders), args.seconds, answers, lost))
            for _ in range(args.clients)
        ]
        try:
            found = summary(await rounds(server, args))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return found | ({"answers": answers, "lost": lost} if args.clients else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["csm"], help="csm, dia or csm,dia")
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--quantize", choices=["none", "int8", "int4"], default="none")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.4, help="seconds of audio of each answer")
    parser.add_argument("--clients", type=int, default=0, help="clients that speak during all rounds")
    parser.add_argument("--folder", type=Path, help="the folder of the models; models that it lacks are written there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(args, args.folder or Path(folder)))
    names = ("models", "size", "quantize", "rounds", "clients")
    print(
        json.dumps(
            {"bench": "unload", "load_average": os.getloadavg()[0], **{n: getattr(args, n) for n in names}, **result}
        )
    )


if __name__ == "__main__":
    main()
