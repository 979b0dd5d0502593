"""Draws codes from Dia's logits, with classifier-free guidance and the EOS rules. This module does not use weights.

guided = c + s (c - u), with the conditional logits c, the unconditional logits u and the scale s. Nari's code and
transformers use the same scale s. Many other implementations compute u + s' (c - u), where s' = s + 1.

- 0626: the candidates are the codes with the k largest guided logits. A candidate is drawn with its conditional logit.
  If EOS is the best candidate of channel 0, it is the only candidate; otherwise EOS is not a candidate (transformers:
  DiaClassifierFreeGuidanceLogitsProcessor, DiaEOSChannelFilterLogitsProcessor).
- v0.1: codes are drawn from the guided logits, where the logit of EOS is multiplied by 0.8. If EOS is not the best code
  of channel 0, it is not a candidate. The draw applies top-k (nari-labs/dia at 2811af1, the last commit before 0626).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.engines.dia.config import DiaConfig
from app.nn.kernels.torch_kernels import guided_scores
from app.runtime.sampling import Sampler, SamplingParams

_V01_EOS_FACTOR = 0.8


def candidates(
    config: DiaConfig,
    conditional: Tensor,
    unconditional: Tensor,
    *,
    scales: Tensor,
    top_k: Tensor,
    most: int | None,
    suppressed: Tensor | None = None,
) -> Tensor:
    """Return the scores (n, C, V) from which codes are drawn. The score of a code that can't be drawn is -inf.

    conditional, unconditional: logits (n, C, V) float32. scales (n,) float32: 0 = no guidance. top_k (n,) int64: 0 = no
    limit. most: a number that is not below the top_k of any row; None = no such number is known. suppressed (n,) bool:
    rows in which EOS is suppressed. This function does not wait for the device.
    """
    return guided_scores(conditional, unconditional, scales, top_k, most, suppressed, config.eos, end_factor(config))


def end_factor(config: DiaConfig) -> float | None:
    """Return the parameter `end_factor` of `guided_scores` for a release of the model."""
    return None if config.release == "0626" else _V01_EOS_FACTOR


@dataclass(frozen=True, slots=True)
class Guided:
    """The sampling parameters and the guidance scale of one row."""

    params: SamplingParams
    cfg_scale: float  # 0 = no guidance


# Sources in nari-labs/dia: README and hf.py for 0626, generate() for v0.1.
DEFAULTS = {
    "0626": Guided(SamplingParams(temperature=1.8, top_k=45, top_p=0.90), 3.0),
    "v0.1": Guided(SamplingParams(temperature=1.3, top_k=35, top_p=0.95), 3.0),
}


def pick(
    config: DiaConfig,
    logits: tuple[Tensor, Tensor],
    rows: Sequence[Guided],
    noise: Tensor | None,
    suppressed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw codes (n, C) int64. Also returns (n,) bool: whether EOS is the best candidate of channel 0.

    logits: conditional and unconditional, each (n, C, V). noise: (n * C, V), or None if all rows are greedy. suppressed
    (n,) bool: rows in which EOS can't be drawn.
    """
    c, count, device = config, len(rows), logits[0].device
    scales = torch.tensor([row.cfg_scale for row in rows], device=device, dtype=torch.float32)
    top_k = torch.tensor([row.params.top_k for row in rows], device=device)
    most = max(row.params.top_k for row in rows)
    scores = candidates(c, *logits, scales=scales, top_k=top_k, most=most)
    ending = scores[:, 0, c.eos].isfinite()
    if suppressed is not None and bool((ending & suppressed).any()):
        scores = candidates(c, *logits, scales=scales, top_k=top_k, most=most, suppressed=suppressed)
    # For 0626, `candidates` has already applied top_k.
    params = [replace(row.params, top_k=0) if c.release == "0626" else row.params for row in rows]
    sampler = Sampler([each for each in params for _ in range(c.channels)], scores.device)
    return sampler.pick(scores.view(count * c.channels, c.audio_vocab), noise).view(count, c.channels), ending
