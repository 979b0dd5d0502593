"""All that is claimed of a GPU, checked and measured by one command in less than ten minutes: `python -m bench.gpu`.

Full-size models with random weights; needs torch, transformers, numpy, safetensors and tokenizers, and for the tests
pytest. Each part is a process of its own with a time of its own, so one that fails leaves the others standing. Prints a
table for docs/benchmarks.md; the last line is one JSON with all that the parts said.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from bench.runners import device_name


@dataclass(frozen=True)
class Part:
    name: str
    arguments: tuple[str, ...]  # of python -m
    limit_s: float


def parts(device: str, size: str) -> list[Part]:
    where = ("--device", device, "--size", size)
    csm, dia = (("bench.step", "--model", model, *where) for model in ("csm", "dia"))
    fast_path, many = ("--frames", "48"), ("--frames", "96")
    return [
        Part("tests", ("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"), 150),
        Part("kernels", ("bench.kernels",), 80),
        Part("csm 1", (*csm, *fast_path, "--against", "transformers"), 120),
        Part("csm 64", (*csm, *fast_path, "--rows", "64"), 80),
        Part("dia 1", (*dia, *many, "--against", "transformers"), 120),
        Part("dia 64", (*dia, *many, "--rows", "64"), 80),
        Part("csm first", ("bench.first", "--model", "csm", *where), 60),
        Part("dia first", ("bench.first", "--model", "dia", *where), 60),
        Part("csm 8", (*csm, *fast_path, "--rows", "8"), 60),
        Part("csm 16", (*csm, *fast_path, "--rows", "16"), 60),
        Part("dia 8", (*dia, *many, "--rows", "8"), 60),
        Part("csm torch", (*csm, *fast_path, "--kernels", "torch"), 60),
        Part("csm not recorded", (*csm, "--frames", "16", "--plain"), 60),
        Part("csm float16", (*csm, *fast_path, "--dtype", "float16"), 60),
        Part("csm float32", (*csm, *fast_path, "--dtype", "float32"), 60),
        Part("csm float32 tf32", (*csm, *fast_path, "--dtype", "float32", "--tf32"), 60),
        Part("dia burst 1", (*dia, *many, "--burst", "1"), 60),
        Part("memory", ("bench.memory", *where), 60),
        Part("csm compiled", (*csm, *fast_path, "--compile"), 120),
    ]


def run(part: Part, left_s: float) -> dict[str, Any]:
    """What the part said on its last line, and how it went."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", *part.arguments],
            capture_output=True,
            text=True,
            timeout=min(part.limit_s, left_s),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": "took too long", "took_s": round(time.monotonic() - began, 1)}
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    found: dict[str, Any] = {}
    if done.returncode not in (0, 5):
        found["failed"] = (done.stderr.strip().splitlines() or lines or ["nothing was said"])[-1][-500:]
    try:
        found["said"] = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        found["said"] = lines[-1]
    return found | {"took_s": round(time.monotonic() - began, 1)}


def told(name: str, found: dict[str, Any]) -> str:
    """One row of the table."""
    said = found.get("said")
    if "failed" in found:
        return f"| {name} | failed: {found['failed']} |"
    if not isinstance(said, dict) or "ours" not in said:
        return f"| {name} | {json.dumps(said) if isinstance(said, dict) else said} |"
    ours = said["ours"]
    words = f"{1e3 * ours['frame_s']['median']:.2f} ms, {ours['times_real_time']:.1f} times real time in all"
    words += f"; the weights alone {1e3 * ours['limit']['s']:.2f} ms"
    if "speedup" in said:
        words += f"; {said['speedup']} times transformers' generate"
    if "setup" in ours:
        words += f"; kernels {ours['setup']['kernels']}"
    return f"| {name} | {words} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--minutes", type=float, default=9.5, help="what does not fit in is left out, and said so")
    parser.add_argument("--only", help="comma-separated parts")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    chosen = parts(args.device, args.size)
    if args.only:
        chosen = [part for part in chosen if part.name in args.only.split(",")]
    result: dict[str, Any] = {
        "bench": "gpu",
        "device": device_name(torch.device(args.device)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "parts": {},
    }
    print(f"{result['device']}, torch {result['torch']}, {result['date']}\n\n| part | figures |\n|---|---|", flush=True)
    for part in chosen:
        left = until - time.monotonic()
        found = {"failed": "left out: no time"} if left < 5 else run(part, left)
        result["parts"][part.name] = found
        print(told(part.name, found), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
