"""Measures the seconds per frame of CSM or Dia with random weights, in this server and in transformers, on one thread.

    python -m bench.step --model csm --size full --device cpu [--against transformers] [--dtype float32] [--rows 4]
    python -m bench.step --model csm --size full --device cpu --rows 8 --adapters 8 [--registered 32] [--quantize int8]
    python -m bench.step --model dia --size full --device cpu --against transformers [--quantize int8]

On a CPU, the time is the CPU time of the thread, so that other work on the machine does not count. The two
implementations take turns of a few frames, so that both run under the same conditions. The first frames are a warm-up.
On a CPU, the warm-up ends when the codec decodes the largest groups of frames. The time of the codec is divided evenly
among the frames. With --adapters N, the first N rows use LoRA adapters in every second step. `adapter_ratio` is the
time of a step with adapters, divided by the time of a step without adapters. The last line of standard output is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any

# OMP_WAIT_POLICY must be set before the import of torch. Otherwise waiting threads keep cores busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from app.engines.csm.decoding import FRAMES_AHEAD, MAX_GROUP
from app.engines.csm.runner import CsmRunner
from app.nn.kernels.choice import candidates
from app.nn.kernels.sets import TORCH
from app.nn.linear import PackedLinear, QuantizedLinear
from app.nn.mimi.config import read_mimi_config
from app.runtime.device import set_math_backends
from app.runtime.sampling import Sampler, SamplingParams, exponential_noise
from app.types import Sampling, SpokenLine, Utterance, Voice
from bench.runners import add_random_adapters, csm_runner, fill
from tests.support.random_csm import csm_config

WARM_UP_FRAMES = 2
TURN_FRAMES = 4
START = 30  # position of the first frame that `_Parts` measures


def clock(device: torch.device) -> Callable[[], float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return time.perf_counter()
        return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()

    return now


class Turns:
    """Runs a generator: each call runs it to the next `yield`, and `finish` returns its result."""

    def __init__(self, work: Generator[None, None, dict[str, Any]]) -> None:
        self._work = work
        self._result: dict[str, Any] | None = None

    def __call__(self) -> None:
        if self._result is None:
            try:
                next(self._work)
            except StopIteration as over:
                self._result = over.value

    def finish(self) -> dict[str, Any]:
        while self._result is None:
            self()
        return self._result


def watch(now: Callable[[], float], between: Callable[[], None]) -> Any:
    """Return a streamer for transformers' `generate`. It measures each step, and calls `between` every few steps."""
    from transformers.generation.streamers import BaseStreamer

    class Watch(BaseStreamer):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.times: list[float] = []
            self._start = now()

        def put(self, value: torch.Tensor) -> None:
            self.times.append(now() - self._start)
            if len(self.times) % TURN_FRAMES == 0:
                between()
            self._start = now()

        def end(self) -> None:
            pass

    return Watch()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4)}


@torch.inference_mode()
def ours(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype, *, native: bool = True
) -> Generator[None, None, dict[str, Any]]:
    """Measure frames of the runner, as the engine's loop generates them.

    Without CUDA graphs, also measures the backbone and the depth decoder alone, to calculate the runner's overhead.
    """
    record = device.type == "cuda" and not (args.plain or args.adapters)
    options: dict[str, Any] = {"compiled": args.compile, "fp8": args.quantize == "fp8", "depth": True}
    sets = candidates(args.kernels, device, dtype, **options).kernels if record else (TORCH,)
    runner, capture = csm_runner(
        args.size,
        device,
        dtype,
        rows=args.rows,
        quantize=args.quantize if native else "int8",
        native=native,
        record=record,
        kernels=sets,
    )
    now, rows = clock(device), list(range(args.rows))
    line = SpokenLine(said(args.prompt), 0, Voice("none", "none", "none"))
    began = now()
    for row in rows:
        runner.admit(row, Utterance((line,), Sampling(), row, (args.frames + 64) / runner.codec.frame_hz))
        while not runner.prefill(row):
            pass
    prefill_s = (now() - began) / args.rows
    parts = None if record or args.adapters else _Parts(runner, args.rows)
    slots = add_random_adapters(runner, args.registered)[: args.adapters] if args.adapters else []
    steps: list[float] = []
    adapted: list[float] = []  # seconds of the steps with adapters
    sounds: list[float] = []
    # With CUDA graphs, the clock must not synchronize the device, because a step does not wait for its own frame.
    wall = time.perf_counter if record else now
    warm_up = WARM_UP_FRAMES if record else FRAMES_AHEAD * MAX_GROUP
    for index in range(warm_up + -(-args.frames // MAX_GROUP) * MAX_GROUP):
        if index >= warm_up and (index - warm_up) % TURN_FRAMES == 0:
            yield
        with_adapters = bool(slots) and index % 2 == 0
        for row, slot in enumerate(slots):
            runner._rows[row].adapter = slot if with_adapters else 0
        start = wall()
        result = runner.step(rows)
        drawn = wall()
        sounding = list(rows if result.rows is None else result.rows)
        if sounding:
            runner.decode(sounding, result.codes)
        if index >= warm_up:
            (adapted if with_adapters else steps).append(drawn - start)
            sounds.append(wall() - drawn)
        if parts is not None and index >= warm_up - WARM_UP_FRAMES:
            parts.measure(now)
    codec_s = statistics.mean(sounds)
    found: dict[str, Any] = {
        "frame_s": spread([step_s + codec_s for step_s in steps]),
        "prefill_s": round(prefill_s, 4),
    }
    if adapted:
        found["adapted_step_s"], found["step_s"] = spread(adapted), spread(steps)
        found["adapter_ratio"] = {
            name: round(found["adapted_step_s"][name] / found["step_s"][name], 3) for name in ("median", "min")
        }
    if parts is not None:
        found |= {f"{name}_s": spread(times[WARM_UP_FRAMES:]) for name, times in parts.times.items()}
        found["codec_s"] = round(codec_s, 4)
        alone = sum(statistics.median(times[WARM_UP_FRAMES:]) for times in parts.times.values())
        found["runner_overhead"] = round((statistics.median(steps) + codec_s) / (alone + codec_s) - 1, 4)
    if capture is not None:
        found["setup"] = dict(runner.setup) | {"recording": asdict(capture.cost)}
        assert runner._graph is not None
        found["kernels_s"] = runner._graph.steps.kernel_seconds
    per_s = bandwidth(device)
    found["limit"] = {
        "bytes": frame_bytes(runner),
        "bytes_per_s": round(per_s),
        "s": round(frame_bytes(runner) / per_s, 5),
    }
    found["rtf"] = round(found["frame_s"]["median"] * runner.codec.frame_hz, 4)
    found["times_real_time"] = round(args.rows / found["rtf"], 2)
    return found


class _Parts:
    """Measures the backbone and the depth decoder alone, with separate caches."""

    def __init__(self, runner: CsmRunner, rows: int) -> None:
        self.times: dict[str, list[float]] = {"backbone": [], "depth": []}
        self._model = runner.model
        device = self._model.device
        self._rows = list(range(rows))
        self._cache, self._depth = self._model.kv_cache(rows), self._model.depth_kv_cache(rows)
        self._sampler = Sampler([SamplingParams()] * rows, device)
        self._seeds = torch.arange(rows, device=device)
        self._x = self._model.embed_text(torch.zeros(rows, dtype=torch.int64, device=device))
        self._model.read(self._x[:1].repeat(START, 1), self._cache, 0, 0)

    def measure(self, now: Callable[[], float]) -> None:
        c, rows, index = self._model.config, self._rows, len(self.times["depth"])
        start = now()
        h = self._model.advance(self._x, self._cache, rows, [START + index] * len(rows))
        read = now()
        noise = exponential_noise(self._seeds, torch.full_like(self._seeds, index), c.codebooks, c.codebook_size)
        codes = self._model.frame(
            h, self._depth, lambda codebook, logits: self._sampler.pick(logits, noise[:, codebook])
        )
        self._x = self._model.embed_frames(codes)
        for name, value in zip(self.times, (read - start, now() - read), strict=True):
            self.times[name].append(value)


def said(tokens: int) -> str:
    """Return a text of about `tokens` tokens."""
    return ("The weather was fine, so they walked along the river. " * tokens)[: 2 * tokens]


def weight_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's matrices in the form in which a step reads them."""
    total = 0
    for part in module.modules():
        if isinstance(part, QuantizedLinear | PackedLinear):
            total += part.weight_bytes
        else:
            total += sum(tensor.nbytes for tensor in part.parameters(recurse=False) if tensor.ndim > 1)
    return total


def frame_bytes(runner: CsmRunner) -> int:
    """Return the bytes of weights that a frame reads. The depth decoder is read for each codebook except the first."""
    model, c = runner.model, runner.config
    once = sum(weight_bytes(part) for part in (model.backbone, model.head, model.heads, model.projection))
    codec = weight_bytes(runner._decoder) - runner._decoder.table.nbytes
    return once + (c.codebooks - 1) * weight_bytes(model.depth) + codec


def limit(bytes_read: int, device: torch.device) -> dict[str, float]:
    """Return the time in which the device reads `bytes_read` bytes.

    A step of a few rows takes at least this time.
    """
    per_s = bandwidth(device)
    return {"bytes": bytes_read, "bytes_per_s": round(per_s), "s": round(bytes_read / per_s, 5)}


def bandwidth(device: torch.device) -> float:
    """Return the memory bandwidth in bytes per second, measured by a sum on one CPU thread, or by a copy on a GPU."""
    if device.type == "cuda":
        source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        now = clock(device)
        times = []
        for _ in range(10):
            start = now()
            target.copy_(source)
            times.append(now() - start)
        return 2 * source.nbytes / min(times)
    numbers = torch.zeros(1 << 26)  # 256 MB, larger than any cache
    times = []
    for _ in range(5):
        start = time.thread_time()
        numbers.sum()
        times.append(time.thread_time() - start)
    return numbers.nbytes / min(times)


def config_frame_hz(raw: dict[str, Any]) -> float:
    return read_mimi_config(raw["codec_config"]).frame_hz


def theirs(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype, between: Callable[[], None]
) -> dict[str, Any]:
    from transformers import CsmConfig, CsmForConditionalGeneration

    raw = csm_config(args.size)
    del raw["torch_dtype"]  # otherwise transformers would create the modules in this dtype
    # Skip the initialisation of weights, which takes a minute, because `fill` replaces the weights.
    parts: list[Any] = [torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.ConvTranspose1d]
    kept = [part.reset_parameters for part in parts]
    reference: Any = CsmForConditionalGeneration
    reference._init_weights = lambda self, module: None
    torch.set_default_dtype(dtype)
    try:
        for part in parts:
            part.reset_parameters = lambda self: None
        model = reference(CsmConfig(**raw)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
        for part, reset in zip(parts, kept, strict=True):
            part.reset_parameters = reset
    fill(model)
    model.to(device)
    now = clock(device)

    watched = watch(now, between)
    ids = torch.randint(0, raw["text_vocab_size"], (args.rows, args.prompt), device=device)
    size = read_mimi_config(raw["codec_config"]).codebook_size
    masked = list(range(size, raw["vocab_size"]))
    sampling = {"do_sample": True, "temperature": 0.9, "top_k": 50, "suppress_tokens": masked}
    with torch.inference_mode():
        codes = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=args.frames + WARM_UP_FRAMES + 1,
            streamer=watched,
            **sampling,
            **{f"depth_decoder_{name}": value for name, value in sampling.items()},
        )
        start = now()
        model.codec_model.decode(codes.transpose(1, 2))
        codec_s = (now() - start) / codes.shape[1]
    frames = watched.times[2 + WARM_UP_FRAMES :]
    frame_s = statistics.median(frames) + codec_s
    return {
        "language_model_s": spread(frames),
        "codec_s": round(codec_s, 4),
        "frame_s": {"median": round(frame_s, 4), "min": round(min(frames) + codec_s, 4)},
        "rtf": round(frame_s * config_frame_hz(raw), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["csm", "dia"], default="csm")
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument(
        "--quantize", choices=["none", "int8", "int4", "fp8"], default="none", help="only for this server's model"
    )
    parser.add_argument(
        "--against", choices=["transformers", "torch-int8"], help="torch-int8: CSM with PyTorch's int8 kernel"
    )
    parser.add_argument("--plain", action="store_true", help="on a GPU: without CUDA graphs")
    sets = ["auto", "torch", "triton", "persistent"]
    parser.add_argument("--kernels", choices=sets, default="auto", help="kernels of CUDA graphs")
    parser.add_argument("--compile", action="store_true", help="generate the kernels with torch.compile")
    parser.add_argument("--tf32", action="store_true", help="use TensorFloat-32 for float32 products on a GPU")
    parser.add_argument("--burst", type=int, default=8, help="number of Dia steps that are launched together")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--adapters", type=int, default=0, help="the number of rows with a LoRA adapter each")
    parser.add_argument("--registered", type=int, default=32, help="the number of LoRA adapters in memory")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--prompt", type=int, help="tokens before the first frame; default: 30 (Dia: 60 bytes)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.prompt = args.prompt or {"csm": 30, "dia": 60}[args.model]
    measure_ours: Callable[..., Generator[None, None, dict[str, Any]]] = ours
    measure_theirs = theirs
    if args.model == "dia":
        from bench import step_dia

        measure_ours, measure_theirs = step_dia.ours, step_dia.theirs
    torch.set_num_threads(args.threads)
    set_math_backends(tf32=args.tf32)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    result: dict[str, Any] = {
        **{name: getattr(args, name) for name in ("model", "size", "device", "dtype", "quantize", "rows", "threads")},
        "torch": torch.__version__,
    }
    turns = Turns(measure_ours(args, device, dtype))
    turns()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type != "cpu":
        turns.finish()
    if args.against:
        if args.against == "torch-int8":
            other = Turns(ours(args, device, dtype, native=False))
            for _ in range(1 + -(-args.frames // TURN_FRAMES)):
                other()
                turns()
            result[args.against] = other.finish()
        else:
            result[args.against] = measure_theirs(args, device, dtype, turns)
        print(f"{args.against:12}", result[args.against])
    result["ours"] = turns.finish() | {"peak_bytes": peak_bytes}
    print("ours        ", result["ours"])
    if args.against:
        for name, part in {"speedup": "frame_s", "speedup_language_model": "language_model_s"}.items():
            if part in result["ours"]:
                result[name] = round(result[args.against][part]["median"] / result["ours"][part]["median"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
