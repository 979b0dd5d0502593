"""Measures the time to first audio of an engine without HTTP: CSM or Dia with random weights and a voice prompt.

    python -m bench.first --model csm --size full --device cuda [--others 8]

The time from the call of `speak` to the first samples is measured with a voice whose prompt is in the prefix cache, and
with new voices. The texts and the recordings of the voices have random lengths. --others: number of other rows that
speak at the same time. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from app.engines.batched import BatchedEngine
from app.nn.kernels.choice import candidates
from app.nn.kernels.sets import TORCH
from app.types import EngineInfo, Sampling, SpokenLine, Utterance, Voice, VoicePrompt
from bench.runners import csm_runner, dia_runner

WORDS = (
    "The weather was fine so they walked along the river and talked about the summer until the lamps were lit".split()
)
TEXT_WORDS = (3, 40)  # smallest and largest number of words of a text
PROMPT_S = (3.0, 15.0)  # length of the shortest and of the longest recording of a voice
SPOKEN_S = 1.0
# Model -> frames per second, number of codebooks, codec.
RATES = {"csm": (12.5, 32, "mimi"), "dia": (86.1328125, 9, "dac")}


def voice(model: str, number: int) -> VoicePrompt:
    frame_hz, codebooks, codec = RATES[model]
    draw = np.random.default_rng(number)
    codes = draw.integers(1, 60, (codebooks, round(draw.uniform(*PROMPT_S) * frame_hz))).astype(np.int16)
    return VoicePrompt(f"voice {number}", codec, codes, "What this voice once said.")


def utterance(prompt: VoicePrompt, seed: int, seconds: float) -> Utterance:
    count = int(np.random.default_rng(seed).integers(*TEXT_WORDS))
    text = " ".join(WORDS[i % len(WORDS)] for i in range(count)) + "."
    return Utterance((SpokenLine(text, 0, Voice("bench", "bench", "cloned"), prompt),), Sampling(), seed, seconds)


async def first_s(engine: BatchedEngine, said: Utterance) -> float:
    began = time.perf_counter()
    found = 0.0
    async with contextlib.aclosing(engine.speak(said)) as chunks:
        async for chunk in chunks:
            if not found and len(chunk.samples):
                found = time.perf_counter() - began
    return found


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50_ms": round(1e3 * statistics.median(ordered), 2),
        "p95_ms": round(1e3 * ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))], 2),
    }


async def measure(args: argparse.Namespace, engine: BatchedEngine) -> dict[str, Any]:
    async with engine:
        known = voice(args.model, 0)
        await first_s(engine, utterance(known, 0, SPOKEN_S))
        found: dict[str, Any] = {}
        for others in sorted({0, args.others}):
            company = [asyncio.create_task(first_s(engine, utterance(known, 100 + i, 3600.0))) for i in range(others)]
            await asyncio.sleep(1.0 if others else 0.0)
            met = [await first_s(engine, utterance(known, i, SPOKEN_S)) for i in range(args.requests)]
            strangers = [voice(args.model, 1 + i + 1000 * others) for i in range(args.requests)]
            new = [await first_s(engine, utterance(prompt, i, SPOKEN_S)) for i, prompt in enumerate(strangers)]
            for task in company:
                task.cancel()
            await asyncio.gather(*company, return_exceptions=True)
            found[f"beside_{others}"] = {"known_voice": spread(met), "new_voice": spread(new)}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["csm", "dia"], default="csm")
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--others", type=int, default=8)
    parser.add_argument("--requests", type=int, default=50)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    record = device.type == "cuda"
    sets = candidates("auto", device, dtype, depth=args.model == "csm").kernels if record else (TORCH,)
    make: Any = csm_runner if args.model == "csm" else dia_runner
    runner, _ = make(args.size, device, dtype, rows=args.rows, record=record, kernels=sets)
    frame_hz = RATES[args.model][0]
    info = EngineInfo(
        id=args.model,
        name=args.model,
        fingerprint="bench",
        rate_hz=runner.rate_hz,
        frame_s=1 / frame_hz,
        device=args.device,
    )
    engine = BatchedEngine(info, runner, max_queue=64, audio_queue_s=3600.0)
    print(json.dumps({"bench": "first", **vars(args), **asyncio.run(measure(args, engine))}))


if __name__ == "__main__":
    main()
