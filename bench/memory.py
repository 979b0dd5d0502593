"""Measures the memory of a model for several numbers of rows: after loading, while it speaks, and for CUDA graphs.

    python -m bench.memory --device cuda [--size full] [--model csm]

The last line of standard output is one JSON object with sizes in bytes. `foreseen` is the estimate before loading, from
which the server computes the number of rows if TTS_MAX_ROWS is `auto`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from app.engines.csm import loading as csm_loading
from app.engines.csm.config import parse_config as parse_csm_config
from app.engines.dia import loading as dia_loading
from app.engines.dia.config import parse_config as parse_dia_config
from app.nn.dac.config import parse_dac_config
from app.nn.kernels.choice import candidates
from app.nn.kernels.sets import TORCH
from app.nn.mimi.config import read_mimi_config
from app.types import Sampling, SpokenLine, Utterance, Voice
from bench.runners import csm_runner, dia_runner, resident_bytes
from tests.support.random_csm import csm_config
from tests.support.random_dia import SHAPES, dac_config, dia_config

TEXT = "The weather was fine, so they walked along the river."


def used(device: torch.device) -> int:
    """Return the used memory of a GPU, or the resident memory of this process on a CPU."""
    gc.collect()
    if device.type != "cuda":
        return resident_bytes()
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def foreseen(model: str, size: str, dtype: torch.dtype, rows: int) -> int:
    if model == "csm":
        raw = csm_config(size)
        codec = read_mimi_config(raw["codec_config"])
        return csm_loading.measure(parse_csm_config(raw), codec, dtype=dtype, max_rows=rows).total_bytes
    config, shape = parse_dia_config(dia_config(SHAPES[size])), parse_dac_config(dac_config(size))
    return dia_loading.measure(config, shape, dtype=dtype, max_rows=rows)


def measure(args: argparse.Namespace, model: str, rows: int) -> dict[str, Any]:
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    record = device.type == "cuda"
    torch.set_num_threads(1)
    before = used(device)
    make: Any = csm_runner if model == "csm" else dia_runner
    sets = candidates("auto", device, dtype, depth=model == "csm").kernels if record else (TORCH,)
    runner, capture = make(args.size, device, dtype, rows=rows, record=record, kernels=sets)
    loaded = used(device) - before
    line = SpokenLine(TEXT, 0, Voice("none", "none", "none"))
    for row in range(rows):
        runner.admit(row, Utterance((line,), Sampling(), row, 20.0))
        while not runner.prefill(row):
            pass
    for _ in range(args.frames):
        result = runner.step(list(range(rows)))
        told = list(range(rows) if result.rows is None else result.rows)
        heard = [i for i in range(len(told)) if not (result.ended[i] or result.silent[i])]
        if heard:
            runner.decode([told[i] for i in heard], result.codes[heard])
    speaking = used(device) - before
    found = {"foreseen": foreseen(model, args.size, dtype, rows), "loaded": loaded, "speaking": speaking}
    if capture is not None:
        found["recording"] = capture.cost.bytes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["csm", "dia", "both"], default="both")
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--rows", default="1,8", help="comma-separated")
    parser.add_argument("--frames", type=int, default=8)
    args = parser.parse_args()
    models = ["csm", "dia"] if args.model == "both" else [args.model]
    found: dict[str, dict[str, Any]] = {model: {} for model in models}
    for model in models:
        for rows in args.rows.split(","):
            # Each measurement runs in a new process. Otherwise memory that the previous measurement kept would count.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                found[model][rows] = alone.submit(measure, args, model, int(rows)).result()
    print(json.dumps({"bench": "memory", "device": args.device, "size": args.size, "dtype": args.dtype, **found}))


if __name__ == "__main__":
    main()
