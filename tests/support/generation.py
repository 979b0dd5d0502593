"""Runs CSM's model in a plain loop for one utterance, without rows and scheduling, for comparisons with other code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from app.engines.csm.model import CsmModel, is_last
from app.nn.kv_cache import DepthKVCache, KVCache
from app.runtime.sampling import ReferenceNoise, Sampler, SamplingParams, exponential_noise


@torch.inference_mode()
def generate(
    model: CsmModel,
    prompt: Tensor,
    *,
    max_frames: int,
    params: SamplingParams,
    seed: int = 0,
    reference_noise: bool = False,
    chunk: int | None = None,
) -> Iterator[Tensor]:
    """Yield up to max_frames frames (K,) int64 for an embedded prompt (S, D), the last frame of a line included.

    reference_noise: draw as multinomial does after `torch.manual_seed(seed)`. chunk: tokens of the prompt that are read
    at a time; None = all.
    """
    c = model.config
    cache: KVCache = model.kv_cache(1)
    depth: DepthKVCache = model.depth_kv_cache(1)
    sampler = Sampler([params], model.device)
    reference = ReferenceNoise(seed) if reference_noise else None
    seeds = torch.tensor([seed], device=model.device)

    position, last = 0, prompt.shape[0] - 1
    while position < last:
        stop = min(last, position + (chunk or last))
        model.read(prompt[position:stop], cache, 0, position)
        position = stop
    x = prompt[last:]
    for index in range(max_frames):
        noise = None
        if reference is None and params.temperature > 0:
            noise = exponential_noise(seeds, torch.tensor([index], device=model.device), c.codebooks, c.codebook_size)

        def pick(codebook: int, logits: Tensor, noise: Tensor | None = noise) -> Tensor:
            if reference is not None:
                vocabulary = c.depth_vocab if codebook else c.audio_vocab
                return sampler.pick(logits, reference.draw(vocabulary)[:, : c.codebook_size].to(logits.device))
            return sampler.pick(logits, None if noise is None else noise[:, codebook])

        h = model.advance(x, cache, [0], [position])
        codes = model.frame(h, depth, pick)
        position += 1
        yield codes[0]
        if is_last(codes[0], c.eos_code) or position >= c.max_positions:
            return
        x = model.embed_frames(codes)
