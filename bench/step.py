"""Seconds per frame of CSM or Dia with random weights, ours and transformers', in one run on one thread.

    python -m bench.step --model csm --size full --device cpu [--against transformers] [--dtype float32] [--rows 4]
    python -m bench.step --model dia --size full --device cpu --against transformers [--quantize int8]

On a CPU the time is that of the thread, so that a busy machine does not count; the first frames are warm-up. The last
line of stdout is one JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin slow each other down on few cores

import torch

from app.engines.csm_load import adapt
from app.models.csm.config import parse_config
from app.models.csm.model import CsmModel
from app.models.mimi.config import read_mimi_config
from app.models.mimi.model import MimiDecoder
from app.runtime.sampling import Knobs, Sampler, exponential_noise
from bench.fabricate import csm_config

WARM_UP_FRAMES = 2


def fill(module: torch.nn.Module) -> None:
    """Random numbers scaled by fan-in, from one block: what they are does not matter, that they are ordinary does."""
    block = torch.empty(1 << 22).normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in module.parameters():
            flat = tensor.data.view(-1)
            scale = 1 / math.sqrt(max(1, tensor[0].numel())) if tensor.ndim > 1 else 1.0
            scaled = (block * scale).to(tensor.dtype)
            for start in range(0, len(flat), len(scaled)):
                part = flat[start : start + len(scaled)]
                part.copy_(scaled[: len(part)])


def clock(device: torch.device) -> Callable[[], float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return time.perf_counter()
        return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()

    return now


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4)}


@torch.inference_mode()
def ours(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    raw = csm_config(args.size)
    config = parse_config(raw)
    model = CsmModel(config, device=device, dtype=dtype)
    fill(model)
    decoder = MimiDecoder(read_mimi_config(raw["codec_config"]), rows=args.rows, device=device)
    fill(decoder)
    adapt(model, args.quantize)
    cache, depth = model.row_cache(args.rows), model.frame_cache(args.rows)
    sampler = Sampler([Knobs()] * args.rows, device)
    rows = list(range(args.rows))
    seeds = torch.arange(args.rows, device=device)
    now = clock(device)

    ids = torch.randint(0, config.text_vocab, (args.prompt,), device=device)
    began = now()
    for row in rows:
        model.read(model.embed_text(ids), cache, row, 0)
    prefill_s = (now() - began) / args.rows
    x = model.embed_text(ids[:1]).repeat(args.rows, 1)
    parts: dict[str, list[float]] = {"backbone": [], "depth": [], "codec": [], "frame": []}
    for index in range(args.frames + WARM_UP_FRAMES):
        start = now()
        h = model.advance(x, cache, rows, [args.prompt + index] * args.rows)
        read = now()
        noise = exponential_noise(seeds, torch.full_like(seeds, index), config.codebooks, config.codebook_size)
        codes = model.frame(h, depth, lambda codebook, logits, noise=noise: sampler.pick(logits, noise[:, codebook]))
        x = model.embed_frames(codes)
        drawn = now()
        decoder.decode(rows, codes[:, :, None])
        end = now()
        if index >= WARM_UP_FRAMES:
            for name, value in zip(parts, (read - start, drawn - read, end - drawn, end - start), strict=True):
                parts[name].append(value)
    return {
        **{f"{name}_s": spread(values) for name, values in parts.items()},
        "prefill_s": round(prefill_s, 4),
        "rtf": round(statistics.median(parts["frame"]) * config_frame_hz(raw), 3),
    }


def config_frame_hz(raw: dict[str, Any]) -> float:
    return read_mimi_config(raw["codec_config"]).frame_hz


def theirs(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    from transformers import CsmConfig, CsmForConditionalGeneration
    from transformers.generation.streamers import BaseStreamer

    raw = csm_config(args.size)
    del raw["torch_dtype"]  # or its parts would be made in that one
    # Their numbers are filled in below: a minute of initialising them would be wasted.
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

    class Watch(BaseStreamer):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.times.append(now())

        def end(self) -> None:
            pass

    watch = Watch()
    ids = torch.randint(0, raw["text_vocab_size"], (args.rows, args.prompt), device=device)
    size = read_mimi_config(raw["codec_config"]).codebook_size
    masked = list(range(size, raw["vocab_size"]))
    sampling = {"do_sample": True, "temperature": 0.9, "top_k": 50, "suppress_tokens": masked}
    with torch.inference_mode():
        codes = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=args.frames + WARM_UP_FRAMES + 1,
            streamer=watch,
            **sampling,
            **{f"depth_decoder_{name}": value for name, value in sampling.items()},
        )
        start = now()
        model.codec_model.decode(codes.transpose(1, 2))
        codec_s = (now() - start) / codes.shape[1]
    # The first put is the prompt, the second the first frame.
    frames = [after - before for before, after in zip(watch.times[1:], watch.times[2:], strict=False)][WARM_UP_FRAMES:]
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
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--quantize", choices=["none", "int8"], default="none", help="ours only")
    parser.add_argument("--against", choices=["transformers"])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--prompt", type=int, help="tokens read before the first frame: 30 of CSM, 60 bytes of Dia")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.prompt = args.prompt or {"csm": 30, "dia": 60}[args.model]
    measure_ours, measure_theirs = ours, theirs
    if args.model == "dia":
        from bench import step_dia

        measure_ours, measure_theirs = step_dia.ours, step_dia.theirs
    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    result: dict[str, Any] = {
        **{name: getattr(args, name) for name in ("model", "size", "device", "dtype", "quantize", "rows", "threads")},
        "torch": torch.__version__,
        "ours": measure_ours(args, device, dtype),
    }
    result["ours"]["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("ours        ", result["ours"])
    if args.against:
        result[args.against] = measure_theirs(args, device, dtype)
        print(f"{args.against:12}", result[args.against])
        for name, part in {"speedup": "frame_s", "speedup_language_model": "language_model_s"}.items():
            if part in result["ours"]:
                result[name] = round(result[args.against][part]["median"] / result["ours"][part]["median"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
