"""Seconds per frame of Dia with random weights, ours and transformers': see bench/step.py.

Ours is the Runner's own `step` and `sound`, so guidance, the draw and the delay pattern are in it. A frame is 11.6 ms
of sound.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from pathlib import Path
from typing import Any

import torch

from app.engines.dia import CHUNK_FRAMES, FIRST_FRAMES, DiaRunner
from app.engines.dia_load import adapt
from app.models.dac.config import parse_dac_config
from app.models.dac.model import DacDecoder, DacEncoder
from app.models.dia.config import parse_config
from app.models.dia.model import DiaModel
from app.types import Sampling, SpokenLine, Utterance, Voice
from bench.random_dia import SHAPES, dac_config, dia_config
from bench.step import clock, fill, spread

WARM_UP_STEPS = 4
SOUND_FRAMES = FIRST_FRAMES + 4 * CHUNK_FRAMES
_SAID = "The weather was fine, so they walked along the river and talked about what they would do in the spring. "


def text_of(size: int) -> str:
    """A script of so many bytes."""
    return ("[S1] " + _SAID * (size // len(_SAID) + 1))[: size + 3]


def resident_bytes() -> int:
    """What the process holds now; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) << 10


@torch.inference_mode()
def ours(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    config = parse_config(dia_config(SHAPES[args.size]))
    codec = parse_dac_config(dac_config(args.size))
    model = DiaModel(config, device=device, dtype=dtype)
    fill(model)
    model.get_parameter("head.weight")[config.eos] = 0  # never the best of channel 0: nobody ends while it is measured
    model.settle()
    adapt(model, args.quantize)
    decoder = DacDecoder(codec, rows=args.rows, codebooks=config.channels, device=device)
    fill(decoder)
    with device:
        encoder = DacEncoder(codec)
    fill(encoder)
    runner = DiaRunner(model, encoder, decoder, max_rows=args.rows, exact=True, quantized=args.quantize != "none")
    now = clock(device)
    rows = list(range(args.rows))
    line = SpokenLine(text_of(args.prompt), 0, Voice("none", "none", "none"))
    began = now()
    for row in rows:
        runner.admit(row, Utterance((line,), Sampling(), row, 60.0))
        while not runner.prefill(row):
            pass
    prefill_s = (now() - began) / args.rows
    steps: list[float] = []
    lone: list[float] = []  # of one row, in between, so that both see the same machine
    for index in range(args.frames + WARM_UP_STEPS):
        start = now()
        runner.step(rows)
        done = now()
        if args.rows > 1:
            runner.step([index % args.rows])
        if index >= WARM_UP_STEPS:
            steps.append(done - start)
            lone.append(now() - done)
    codes = torch.randint(0, config.codebook_size, (SOUND_FRAMES, args.rows, config.channels)).short().numpy()
    sounds: list[float] = []
    for frame in codes:
        start = now()
        runner.sound(rows, frame)
        sounds.append(now() - start)
    codec_s = sum(sounds[FIRST_FRAMES:]) / (SOUND_FRAMES - FIRST_FRAMES)
    gc.collect()
    frame_s = statistics.median(steps) + codec_s
    return {
        "language_model_s": spread(steps),
        "codec_s": round(codec_s, 4),
        "frame_s": {"median": round(frame_s, 4), "min": round(min(steps) + codec_s, 4)},
        **({"one_row_s": spread(lone), "over_one_row": _ratio(steps, lone)} if args.rows > 1 else {}),
        "prefill_s": round(prefill_s, 4),
        "rtf": round(frame_s * codec.frame_hz, 3),
        "resident_bytes": resident_bytes(),
    }


def _ratio(steps: list[float], lone: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(steps) / statistics.median(lone), 3),
        "min": round(min(steps) / min(lone), 3),
    }


def theirs(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    from transformers import DacConfig, DacModel, DiaConfig, DiaForConditionalGeneration
    from transformers.generation.streamers import BaseStreamer

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

    class Watch(BaseStreamer):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.times.append(now())

        def end(self) -> None:
            pass

    watch = Watch()
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
            streamer=watch,
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
    # The first put is the prompt, the second the first step.
    steps = [after - before for before, after in zip(watch.times[1:], watch.times[2:], strict=False)][WARM_UP_STEPS:]
    frame_s = statistics.median(steps) + codec_s
    return {
        "language_model_s": spread(steps),
        "codec_s": round(codec_s, 4),
        "frame_s": {"median": round(frame_s, 4), "min": round(min(steps) + codec_s, 4)},
        "rtf": round(frame_s * 44_100 / 512, 3),
    }
