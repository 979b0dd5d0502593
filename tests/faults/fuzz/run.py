"""`python -m tests.faults.fuzz.run [TARGET ...]` runs fuzz targets under atheris for a limited time, one on each core.
It fails if a target fails. Default: all targets.

It starts from the corpus beside this file and stores new inputs in `.fuzz/work`. The next run continues from there.
Only the Python that runs it needs atheris (`make fuzz` creates such an environment). The last line of its output is one
JSON object with the executions, CPU seconds and new corpus entries of each target. All runs are counted in
`.fuzz/work/runs.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.fuzz.targets import TARGETS

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
WORK = ROOT / ".fuzz" / "work"
CORPUS = HERE / "corpus"
MAX_INPUT_BYTES = {"upload": 16_384, "schemas": 2048}
RSS_MB = 2048
_EXECUTED = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")


def arguments(target: str, seed: int = 0) -> list[str]:
    words = CORPUS / f"{target}.dict"
    return [
        f"-seed={seed}",
        "-detect_leaks=0",  # libFuzzer would repeat inputs at random, because Python keeps memory
        f"-max_len={MAX_INPUT_BYTES.get(target, 600)}",
        f"-rss_limit_mb={RSS_MB}",
        "-print_final_stats=1",
        f"-artifact_prefix={WORK}/{target}-",
        *([f"-dict={words}"] if words.exists() else []),
    ]


def run(target: str, seconds: float, seed: int) -> dict[str, float | int]:
    """Run one target. With the same seed and an empty work folder, it tries the same inputs in the same order.

    Raises SystemExit with the output of the target if it finds an error.
    """
    found, seeds = WORK / target, CORPUS / target
    found.mkdir(parents=True, exist_ok=True)
    before = len(list(found.iterdir()))
    command = [
        sys.executable,
        "-m",
        "tests.faults.fuzz.one",
        target,
        *arguments(target, seed),
        f"-max_total_time={round(seconds)}",
    ]
    log = WORK / f"{target}.log"
    began_s = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen([*command, found, seeds], stdout=file, stderr=file, cwd=ROOT, env=_environment())
        _, wait_status, used = os.wait4(process.pid, 0)
    status = process.returncode = os.waitstatus_to_exitcode(wait_status)
    output = log.read_bytes()
    executed = _EXECUTED.search(output)
    if status != 0 or executed is None:
        print(output[-6_000:].decode("utf-8", "replace"), file=sys.stderr)
        raise SystemExit(f"{target} failed with status {status}; the input that does it is in {WORK}")
    done: dict[str, float | int] = {
        "executions": int(executed[1]),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "wall_s": round(time.monotonic() - began_s, 1),
        "new": len(list(found.iterdir())) - before,
    }
    with (WORK / "runs.jsonl").open("a") as runs:
        runs.write(json.dumps({"target": target, **done}) + "\n")
    return done


def keep(target: str, most_bytes: int) -> None:
    """Reduce the corpus to the fewest and smallest inputs that reach the same code."""
    merged, seeds = WORK / f"{target}.merged", CORPUS / target
    merged.mkdir(parents=True, exist_ok=True)
    for old in merged.iterdir():
        old.unlink()
    itself = WORK / f"{target}.sh"
    itself.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.faults.fuzz.one {target} "$@"\n')
    itself.chmod(0o755)
    command = [itself, *arguments(target), "-merge=1", merged, seeds, WORK / target]
    environment = {**_environment(), "FUZZ_ITSELF": str(itself)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    # libFuzzer's names have 40 hexadecimal digits; files with other names were added by hand and stay
    for old in seeds.glob("[0-9a-f]" * 40):
        old.unlink()
    size = 0
    by_hand = {path.read_bytes() for path in seeds.iterdir()}
    for new in sorted(merged.iterdir(), key=lambda path: path.stat().st_size):
        if new.read_bytes() in by_hand:
            continue
        size += new.stat().st_size
        if size > most_bytes:
            break
        (seeds / new.name).write_bytes(new.read_bytes())


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TTS_", "HF_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}; all without")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each target, by the clock")
    parser.add_argument("--seed", type=int, default=0, help="of the order of inputs; 0 draws one")
    parser.add_argument("--cpu-minutes", type=float, default=0.0, help="go on until each target has had so much")
    parser.add_argument(
        "--keep-bytes", type=int, default=0, help="write the corpus anew, of at most so many bytes each"
    )
    options = parser.parse_args()
    if unknown := {*options.targets} - {*TARGETS}:
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    targets = options.targets or [*TARGETS]
    if options.keep_bytes:
        for target in targets:
            keep(target, options.keep_bytes)

    def fuzz(target: str) -> dict[str, float | int]:
        total = run(target, options.seconds, options.seed)
        while total["cpu_s"] < options.cpu_minutes * 60:
            for name, value in run(target, options.seconds, options.seed).items():
                total[name] = round(total[name] + value, 1)
        print(target, total, file=sys.stderr)
        return total

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        totals = {} if options.keep_bytes else dict(zip(targets, pool.map(fuzz, targets), strict=True))
    print(json.dumps(totals))


if __name__ == "__main__":
    main()
