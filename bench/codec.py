"""Measures the CPU seconds per second of audio of DAC's streaming decoder, for several numbers of rows and frames.

    python -m bench.codec [--dtype float32|bfloat16] [--threads 1]

The decoder has random weights. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch

from app.nn.dac.config import DacConfig
from app.nn.dac.model import DacDecoder

_LOADS = ((1, 1), (1, 4), (1, 8), (1, 22), (4, 1), (4, 4), (4, 8), (4, 22))  # (number of rows, frames in a chunk)


def _least(run: Callable[[], object], times: int = 5, least_s: float = 0.25) -> float:
    """Return the CPU seconds of one call of `run`: the smallest of several rounds, because the machine may be busy."""
    best = float("inf")
    for _ in range(times):
        begun, runs = time.process_time(), 0
        while time.process_time() - begun < least_s:
            run()
            runs += 1
        best = min(best, (time.process_time() - begun) / runs)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = DacConfig()
    decoder = DacDecoder(config, rows=4, device=torch.device("cpu"), dtype=getattr(torch, args.dtype))
    for name, parameter in decoder.named_parameters():
        if name.endswith("scale"):
            parameter.fill_(1)
        else:
            parameter.normal_(0, 0.02)
    costs: dict[str, float] = {}
    for count, frames in _LOADS:
        rows = list(range(count))
        for row in rows:
            decoder.reset(row)
        decoder.decode(rows, torch.zeros(count, config.codebooks, decoder.lookahead_frames, dtype=torch.int64))
        codes = torch.randint(config.codebook_size, (count, config.codebooks, frames))
        spent_s = _least(partial(decoder.decode, rows, codes))
        costs[f"{count}x{frames}"] = round(spent_s / (count * frames / config.frame_hz), 3)
        print(f"{count} rows, {frames} frames: {costs[f'{count}x{frames}']} CPU s per s of sound", flush=True)
    print(json.dumps({"dtype": args.dtype, "threads": args.threads, "cpu_s_per_s": costs}))


if __name__ == "__main__":
    main()
