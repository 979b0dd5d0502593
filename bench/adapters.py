"""Measures whether answers pause while LoRA adapters are loaded.

    python -m bench.adapters [--size tiny] [--streams 4] [--uploads 8] [--rank 16] [--rounds 5]

Every second stream speaks with its own adapter, and the other streams speak with the base model. Each round has a part
in which adapters are uploaded and removed, and a quiet part of the same length. `loading_ms` and `quiet_ms` list, for
each round, the largest time between two chunks of one answer in these two parts. `upload_s` is the median time of an
upload. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save

from app.engines.csm.checkpoint import expected_shapes
from app.engines.csm.config import read_config
from bench.server import own_server
from bench.unload import fabricate

TEXT = "The ferry crosses the bay at noon, and it takes about an hour to get to the island. " * 4


class Gaps:
    """The largest time between two chunks of one answer since the last call of `take_s`."""

    def __init__(self) -> None:
        self._largest_s = 0.0

    def add(self, seconds: float) -> None:
        self._largest_s = max(self._largest_s, seconds)

    def take_s(self) -> float:
        largest_s, self._largest_s = self._largest_s, 0.0
        return largest_s


def random_adapter(model: Path, rank: int, seed: int) -> dict[str, bytes]:
    """Return the files of an adapter with random float32 weights for all linear layers of both transformers of CSM."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(read_config(model)).items():
        if name.endswith("_proj.weight") and not name.startswith("codec_model"):
            at = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{at}.lora_A.weight"] = 0.02 * torch.randn(rank, shape[1], generator=random)
            tensors[f"{at}.lora_B.weight"] = 0.02 * torch.randn(shape[0], rank, generator=random)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    return {"adapter": save(tensors), "config": json.dumps(config).encode()}


async def upload(http: httpx.AsyncClient, name: str, files: dict[str, bytes]) -> None:
    (await http.post("/audio/adapters", data={"name": name}, files=files)).raise_for_status()


async def stream(http: httpx.AsyncClient, model: str, seconds: float, gaps: Gaps) -> None:
    """Request answers until this task is cancelled, and add the times between their chunks to `gaps`."""
    body = {"model": model, "input": TEXT, "response_format": "pcm", "cache": False}
    body |= {"max_audio_length_ms": round(1000 * seconds)}
    while True:
        async with http.stream("POST", "/audio/speech", json=body) as answer:
            answer.raise_for_status()
            before_s = 0.0
            async for _ in answer.aiter_raw():
                now_s = time.perf_counter()
                if before_s:
                    gaps.add(now_s - before_s)
                before_s = now_s


async def measure(url: str, args: argparse.Namespace, model: Path) -> dict[str, Any]:
    gaps = Gaps()
    quiet_ms, loading_ms, upload_s = [], [], []
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=600))
        files = [random_adapter(model, args.rank, seed) for seed in range(max(args.uploads, args.streams))]
        for number in range(0, args.streams, 2):
            await upload(http, f"own{number}", random_adapter(model, args.rank, 1000 + number))
        tasks = [
            asyncio.create_task(stream(http, "csm-1b" if n % 2 else f"csm-1b:own{n}", args.seconds, gaps))
            for n in range(args.streams)
        ]
        await asyncio.sleep(args.warm_s)
        for _ in range(args.rounds):
            gaps.take_s()
            began_s = time.perf_counter()
            for number in range(args.uploads):
                upload_began_s = time.perf_counter()
                await upload(http, f"new{number}", files[number])
                upload_s.append(time.perf_counter() - upload_began_s)
            for number in range(args.uploads):
                (await http.delete(f"/audio/adapters/new{number}")).raise_for_status()
            lasted_s = time.perf_counter() - began_s
            loading_ms.append(round(1000 * gaps.take_s()))
            await asyncio.sleep(lasted_s)
            quiet_ms.append(round(1000 * gaps.take_s()))
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [repr(each) for each in ended if not isinstance(each, asyncio.CancelledError)]
    return {
        "quiet_ms": quiet_ms, "loading_ms": loading_ms, "upload_s": round(statistics.median(upload_s), 3),
        "adapter_bytes": len(files[0]["adapter"]), "failed": failed,
    }  # fmt: skip


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = await asyncio.to_thread(fabricate, folder, "csm", args.size)
    variables = {"TTS_ENGINE": "csm", "CSM_MODEL": str(model), "TTS_FALLBACK_ENGINE": "", "TTS_CASTING": "off"}
    async with own_server(**variables, TTS_QUANTIZE=args.quantize) as server:
        return await measure(server.url, args, model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "full"], default="tiny")
    parser.add_argument("--quantize", choices=["none", "int8", "int4"], default="none")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--uploads", type=int, default=8, help="adapters that each round uploads")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of audio of each answer")
    parser.add_argument("--warm-s", type=float, default=5.0, help="seconds of speech before the first round")
    parser.add_argument("--folder", type=Path, help="the folder of the model; it is written there if it is missing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(args, args.folder or Path(folder)))
    names = ("size", "quantize", "streams", "uploads", "rank")
    about = {name: getattr(args, name) for name in names}
    print(json.dumps({"bench": "adapters", "load_average": os.getloadavg()[0], **about, **result}))


if __name__ == "__main__":
    main()
