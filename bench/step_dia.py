"""Measures the seconds per frame of Dia in this server and in transformers: see bench/step.py.

For this server, the time includes `step` and `decode` of the Runner, with guidance, sampling and the delay pattern. A
frame is 11.6 ms of audio.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any

import torch

from app.engines.dia.decoding import CHUNK_FRAMES, FIRST_FRAMES
from app.engines.dia.runner import DiaRunner
from app.nn.kernels.choice import candidates
from app.nn.kernels.sets import TORCH
from app.nn.transformer import Block
from app.types import Sampling, SpokenLine, Utterance, Voice
from bench.runners import add_random_adapters, dia_runner, fill, resident_bytes
from bench.step import TURN_FRAMES, clock, limit, spread, watch, weight_bytes
from tests.support.random_dia import SHAPES, dac_config, dia_config

WARM_UP_STEPS = 4
SOUND_FRAMES = FIRST_FRAMES + 4 * CHUNK_FRAMES
_SAID = "The weather was fine, so they walked along the river and talked about what they would do in the spring. "


def text_of(size: int) -> str:
    """Return a text that is `size` bytes long for Dia. Dia reads the speaker tag as one byte."""
    return ("[S1] " + _SAID * (size // len(_SAID) + 1))[: size + 3]


@torch.inference_mode()
def ours(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Generator[None, None, dict[str, Any]]:
    record = device.type == "cuda" and not args.plain
    sets = candidates(args.kernels, device, dtype, compiled=args.compile).kernels if record else (TORCH,)
    runner, capture = dia_runner(
        args.size,
        device,
        dtype,
        rows=args.rows,
        quantize=args.quantize,
        record=record,
        kernels=sets,
        burst=args.burst,
    )
    config, codec = runner.config, runner.codec
    now = clock(device)
    rows = list(range(args.rows))
    line = SpokenLine(text_of(args.prompt), 0, Voice("none", "none", "none"))
    began = now()
    for row in rows:
        runner.admit(row, Utterance((line,), Sampling(), row, 60.0))
        while not runner.prefill(row):
            pass
    prefill_s = (now() - began) / args.rows
    slots = add_random_adapters(runner, args.registered)[: args.adapters] if args.adapters else []
    adapted = (yield from _adapted(runner, args, slots, now)) if slots else {}
    steps, lone = _captured(runner, args) if record else (yield from _plain(runner, args, now))
    codes = torch.randint(0, config.codebook_size, (SOUND_FRAMES, args.rows, config.channels)).short().numpy()
    sounds: list[float] = []
    for frame in codes:
        start = now()
        runner.decode(rows, frame)
        sounds.append(now() - start)
    codec_s = sum(sounds[FIRST_FRAMES:]) / (SOUND_FRAMES - FIRST_FRAMES)
    gc.collect()
    frame_s = statistics.median(steps) + codec_s
    return {
        "language_model_s": spread(steps),
        "codec_s": round(codec_s, 4),
        "frame_s": {"median": round(frame_s, 4), "min": round(min(steps) + codec_s, 4)},
        **({"one_row_s": spread(lone), "over_one_row": _ratio(steps, lone)} if args.rows > 1 else {}),
        **adapted,
        "prefill_s": round(prefill_s, 4),
        "rtf": round(frame_s * codec.frame_hz, 3),
        "times_real_time": round(args.rows / (frame_s * codec.frame_hz), 2),
        "resident_bytes": resident_bytes(),
        "limit": _limit(runner, device),
        **({} if capture is None else {"setup": dict(runner.setup), "recording": asdict(capture.cost)}),
    }


def _plain(
    runner: DiaRunner, args: argparse.Namespace, now: Callable[[], float]
) -> Generator[None, None, tuple[list[float], list[float]]]:
    """Return the seconds of each step with all rows, and of each step with one row. The two kinds alternate."""
    steps: list[float] = []
    lone: list[float] = []
    rows = list(range(args.rows))
    for index in range(args.frames + WARM_UP_STEPS):
        if index >= WARM_UP_STEPS and (index - WARM_UP_STEPS) % TURN_FRAMES == 0:
            yield
        start = now()
        runner.step(rows)
        done = now()
        if args.rows > 1:
            runner.step([index % args.rows])
        if index >= WARM_UP_STEPS:
            steps.append(done - start)
            lone.append(now() - done)
    return steps, lone


def _adapted(
    runner: DiaRunner, args: argparse.Namespace, slots: list[int], now: Callable[[], float]
) -> Generator[None, None, dict[str, Any]]:
    """Alternate between steps with LoRA adapters and steps without, and compare their times."""
    rows = list(range(args.rows))
    times: tuple[list[float], list[float]] = ([], [])
    for slot in slots:
        runner.model.prepare_adapter(slot)
    for index in range(2 * (args.frames + WARM_UP_STEPS)):
        with_adapters = index % 2
        for row, slot in enumerate(slots):
            runner._rows[row].adapter = slot if with_adapters else 0
        start = now()
        runner.step(rows)
        if index >= 2 * WARM_UP_STEPS:
            times[with_adapters].append(now() - start)
            if index % TURN_FRAMES == 0:
                yield
    for row in rows:
        runner._rows[row].adapter = 0
    plain, adapted = map(spread, times)
    return {
        "adapted_step_s": adapted,
        "step_s": plain,
        "adapter_ratio": {name: round(adapted[name] / plain[name], 3) for name in adapted},
    }


def _captured(runner: DiaRunner, args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return the mean seconds of a step in each burst of steps, first with all rows and then with one row."""
    found = []
    for rows in (list(range(args.rows)), [0]):
        for _ in range(2 * args.burst):
            runner.step(rows)
        bursts = []
        for _ in range(max(2, args.frames // args.burst)):
            start = time.perf_counter()
            for _ in range(args.burst):
                runner.step(rows)
            bursts.append((time.perf_counter() - start) / args.burst)
        found.append(bursts)
    return found[0], found[1]


def _limit(runner: DiaRunner, device: torch.device) -> dict[str, float]:
    """Return the time to read the weights of a step: the decoder without `cross_kv`, and the head.

    A step of a few rows takes at least this time.
    """
    model = runner.model
    bytes_read = weight_bytes(model.decoder) + weight_bytes(model.head)
    bytes_read -= sum(weight_bytes(block.cross_kv) for block in model.decoder.blocks if isinstance(block, Block))
    return limit(bytes_read, device)


def _ratio(steps: list[float], lone: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(steps) / statistics.median(lone), 3),
        "min": round(min(steps) / min(lone), 3),
    }


def theirs(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype, between: Callable[[], None]
) -> dict[str, Any]:
    from transformers import DacConfig, DacModel, DiaConfig, DiaForConditionalGeneration

    raw = dia_config(SHAPES[args.size], "new")
    del raw["torch_dtype"]
    parts: list[Any] = [torch.nn.Linear, torch.nn.Embedding]
    kept = [part.reset_parameters for part in parts]
    reference: Any = DiaForConditionalGeneration
    reference._init_weights = lambda self, module: None
    torch.set_default_dtype(dtype)
    try:
        for part in parts:
            part.reset_parameters = lambda self: None
        model = reference(DiaConfig(**raw)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
        for part, reset in zip(parts, kept, strict=True):
            part.reset_parameters = reset
    offsets = torch.arange(9) * model.config.decoder_config.vocab_size
    model.model.decoder.embeddings.offsets.copy_(offsets)
    fill(model)
    with torch.no_grad():
        model.logits_dense.weight[model.config.decoder_config.eos_token_id] = 0
    model.to(device)
    codec: Any = DacModel(DacConfig(**dac_config(args.size)))
    codec.eval().to(device)
    now = clock(device)

    watched = watch(now, between)
    text = text_of(args.prompt).encode().replace(b"[S1]", b"\x01")
    ids = torch.tensor([list(text)] * args.rows, device=device)
    delays = raw["delay_pattern"]
    pattern = torch.full((args.rows, 1 + max(delays), len(delays)), 1025, device=device)
    for channel, delay in enumerate(delays):
        pattern[:, : delay + 1, channel] = 1026
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            decoder_input_ids=pattern,
            decoder_attention_mask=torch.ones(args.rows, 1 + max(delays), dtype=torch.long, device=device),
            max_new_tokens=args.frames + WARM_UP_STEPS + 2,
            streamer=watched,
            do_sample=True,
            guidance_scale=3.0,
            temperature=1.8,
            top_p=0.9,
            top_k=45,
        )
        codes = torch.randint(0, 1024, (args.rows, len(delays), SOUND_FRAMES), device=device)
        start = now()
        codec.decode(audio_codes=codes)
        codec_s = (now() - start) / SOUND_FRAMES
    steps = watched.times[2 + WARM_UP_STEPS :]
    frame_s = statistics.median(steps) + codec_s
    return {
        "language_model_s": spread(steps),
        "codec_s": round(codec_s, 4),
        "frame_s": {"median": round(frame_s, 4), "min": round(min(steps) + codec_s, 4)},
        "rtf": round(frame_s * 44_100 / 512, 3),
    }
