"""Runs all benchmarks and tests of a GPU in less than ten minutes: `python3 -m bench.gpu | tee gpu.txt`.

Runs on a bare machine: it needs only torch (2.11 or newer), transformers, numpy, safetensors, tokenizers and pytest.
The models have their full size and random weights. Each part runs in a separate process, so a part that fails or takes
too long does not stop the other parts. Prints a table for docs/benchmarks.md. The last line is one JSON object, which
is also written to the file of --json.

    python3 -m bench.gpu --only tests,"csm 1"    # only some parts
    python3 -m bench.gpu --rehearse              # tiny models on the CPU, to test this command without a GPU
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.runners import device_name

TABLE_CHARS = 10_000  # the largest number of characters of the table and the JSON together
_CELL_CHARS = 260  # the largest number of characters of a cell, except in rows about steps
_INPUTS = frozenset(("bench", "model", "size", "device", "dtype", "rows", "others", "requests"))


@dataclass(frozen=True)
class Part:
    name: str
    arguments: tuple[str, ...]  # arguments of `python -m`
    limit_s: float


def parts(device: str, *, rehearse: bool) -> list[Part]:
    """Return all parts, the most important first. rehearse: True = use tiny models and few frames."""
    where = ("--device", device, "--size", "tiny" if rehearse else "full")
    csm, dia = (("bench.step", "--model", model, *where) for model in ("csm", "dia"))
    short, many = (("--frames", "8"), ("--frames", "16")) if rehearse else (("--frames", "48"), ("--frames", "96"))
    requests = ("--requests", "3", "--others", "1", "--rows", "2") if rehearse else ()
    against = ("--against", "transformers")
    tests = ("pytest", "-q", "-c", "tests/gpu/pytest.ini", "--confcutdir", "tests/gpu", "tests/gpu")
    everything = [
        Part("tests", tests, 180),
        Part("kernels", ("bench.kernels",), 80),
        Part("csm 1", (*csm, *short, *against), 120),
        Part("csm 64", (*csm, *short, "--rows", "64"), 80),
        Part("dia 1", (*dia, *many, *against), 120),
        Part("dia 64", (*dia, *many, "--rows", "64"), 80),
        Part("csm first", ("bench.first", "--model", "csm", *where, *requests), 60),
        Part("dia first", ("bench.first", "--model", "dia", *where, *requests), 60),
        Part("csm 8", (*csm, *short, "--rows", "8"), 60),
        Part("csm 16", (*csm, *short, "--rows", "16"), 60),
        Part("dia 8", (*dia, *many, "--rows", "8"), 60),
        Part("csm fp8", (*csm, *short, "--quantize", "fp8"), 60),
        Part("csm torch", (*csm, *short, "--kernels", "torch"), 60),
        Part("csm not recorded", (*csm, "--frames", "16", "--plain"), 60),
        Part("csm float16", (*csm, *short, "--dtype", "float16"), 60),
        Part("csm float32", (*csm, *short, "--dtype", "float32"), 60),
        Part("csm float32 tf32", (*csm, *short, "--dtype", "float32", "--tf32"), 60),
        Part("dia burst 1", (*dia, *many, "--burst", "1"), 60),
        Part("memory", ("bench.memory", *where), 60),
        Part("csm compiled", (*csm, *short, "--compile"), 120),
    ]
    if rehearse:  # each part may take twice its limit, because the CPU may be busy with other work
        everything = [replace(part, limit_s=2 * part.limit_s) for part in everything]
    only_cuda = {"kernels", "csm float16", "csm fp8", "csm compiled", "dia burst 1"}
    return [part for part in everything if device != "cpu" or part.name not in only_cuda]


def run(part: Part, left_s: float, device: str) -> dict[str, Any]:
    """Run one part. Return its last output line, and how long the part took.

    If the part fails, return the reason and the end of its output instead of the last line.
    """
    began = time.monotonic()
    limit_s = min(part.limit_s, left_s)
    found: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *part.arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TTS_GPU_TESTS_ON": device, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            status = -1
            found["failed"] = f"took longer than {limit_s:.0f} s"
        output.seek(0)
        lines = [line.rstrip() for line in output if line.strip()]
    if status != 0:
        found.setdefault("failed", f"status {status}")
        found["output"] = lines[-12:]
    elif lines:
        try:
            found["said"] = json.loads(lines[-1])
        except json.JSONDecodeError:
            found["said"] = lines[-1]
    return found | {"took_s": round(time.monotonic() - began, 1)}


def told(name: str, found: dict[str, Any]) -> str:
    """Return the row of the table that shows the result of one part."""
    said = found.get("said")
    if "failed" in found:
        last = (found.get("output") or [""])[-1]
        return f"| {name} | failed: {found['failed']}; {last[:_CELL_CHARS]} |"
    if not isinstance(said, dict) or "ours" not in said:
        text = json.dumps({k: v for k, v in said.items() if k not in _INPUTS}) if isinstance(said, dict) else str(said)
        return f"| {name} | {text[:_CELL_CHARS]} |"
    ours = said["ours"]
    words = f"{1e3 * ours['frame_s']['median']:.2f} ms, {ours['times_real_time']:.1f} times real time in all"
    words += f"; the weights alone {1e3 * ours['limit']['s']:.2f} ms"
    if "speedup" in said:
        words += f"; {said['speedup']} times transformers' generate"
    if "setup" in ours:
        words += f"; kernels {ours['setup']['kernels']}"
    return f"| {name} | {words} |"


def shortened(result: dict[str, Any], room: int) -> str:
    """Return the result as JSON with at most `room` characters. Removes details of the largest parts if necessary."""
    result = json.loads(json.dumps(result))
    while len(text := json.dumps(result, separators=(",", ":"))) > room:
        name, part = max(result["parts"].items(), key=lambda item: len(json.dumps(item[1])))
        if "cut" in part:
            break
        result["parts"][name] = {key: part[key] for key in ("failed", "took_s") if key in part} | {"cut": True}
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit; parts without enough time are skipped")
    parser.add_argument("--only", help="comma-separated parts")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    args = parser.parse_args()
    device = "cpu" if args.rehearse else args.device
    until = time.monotonic() + 60 * args.minutes
    chosen = parts(device, rehearse=args.rehearse)
    if args.only:
        names = args.only.split(",")
        if unknown := set(names) - {part.name for part in chosen}:
            parser.error(f"no such part: {', '.join(sorted(unknown))}. Parts: {', '.join(p.name for p in chosen)}")
        chosen = [part for part in chosen if part.name in names]
    if device != "cpu" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device. --rehearse tests this command without one.")
    result: dict[str, Any] = {
        "bench": "gpu",
        "device": device_name(torch.device(device)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "parts": {},
    }
    table = [f"{result['device']}, torch {result['torch']}, {result['date']}", "", "| part | figures |", "|---|---|"]
    print("\n".join(table), flush=True)
    for part in chosen:
        left_s = until - time.monotonic()
        found = {"failed": "skipped: no time left"} if left_s < 5 else run(part, left_s, device)
        result["parts"][part.name] = found
        table.append(told(part.name, found))
        print(table[-1], flush=True)
        for line in found.get("output", [])[-3:]:
            print(f"  {line[:200]}", file=sys.stderr)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1))
    print(shortened(result, TABLE_CHARS - sum(len(line) + 1 for line in table)))


if __name__ == "__main__":
    main()
