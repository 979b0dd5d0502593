"""From the two sets of logits to the ones that are drawn from: guidance and the rules of EOS. Knows no weights.

guided = c + s (c - u), with c the logits that saw the text and u those that did not. What many write as a scale of 4 is
s = 3 here, as in nari's code and in transformers.

- 0626: the top k of the guided logits are the candidates, their weights are those of c. EOS only if it is the best
  candidate of channel 0, and then it alone (transformers: DiaClassifierFreeGuidanceLogitsProcessor,
  DiaEOSChannelFilterLogitsProcessor).
- v0.1: the guided logits themselves, EOS times 0.8, and only if it is the best; top k comes with the draw (nari-labs/
  dia at 2811af1, the last commit before 0626).
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.engines.dia.config import DiaConfig

_FIRST_EOS_SHARE = 0.8


def candidates(
    config: DiaConfig,
    conditional: Tensor,
    unconditional: Tensor,
    *,
    scales: Tensor,
    top_k: Tensor,
    most: int | None,
    min_frames_left: Tensor | None = None,
) -> Tensor:
    """Logits with and without the text, (n, C, V) float32 each -> what is drawn from, (n, C, V), -inf for the rest.

    scales (n,) float32, top_k (n,) int64: of each row; 0 = no guidance, all codes. most: no top_k but "all" is larger;
    None = it may be anything. young (n,) bool: rows that may not end yet. Nothing is asked of the host.
    """
    c = config
    guided = conditional + scales[:, None, None] * (conditional - unconditional)
    if min_frames_left is not None:
        guided[:, 0, c.eos].masked_fill_(min_frames_left, -torch.inf)
    if c.release == "0626":
        kept = _top(guided, top_k, most)
        logits = conditional.masked_fill(~kept, -torch.inf)
        if min_frames_left is not None:
            logits[:, 0, c.eos].masked_fill_(min_frames_left, -torch.inf)
    else:
        logits = guided
        logits[:, 0, c.eos] *= _FIRST_EOS_SHARE
    logits[:, 1:, c.eos :] = -torch.inf
    logits[:, 0, c.eos + 1 :] = -torch.inf
    ending = logits[:, 0].argmax(dim=-1) == c.eos
    logits[:, 0, c.eos].masked_fill_(~ending, -torch.inf)
    if c.release == "0626":
        logits[:, 0, : c.eos].masked_fill_(ending[:, None], -torch.inf)
    return logits


def _top(scores: Tensor, top_k: Tensor, most: int | None) -> Tensor:
    """True for the k largest of (n, C, V), k of each row; 0 = all. Ties with the k-th stay, so that in bfloat16, where
    there are some, it does not matter what others' k is."""
    size = scores.shape[-1]
    most = size if most is None else max(1, min(most, size))
    limited = ((top_k > 0) & (top_k < size))[:, None, None]
    best = scores.topk(most, dim=-1).values
    # A row that is computed along and does not go on may want any number.
    at = torch.where(limited, top_k[:, None, None].clamp(max=most), most) - 1  # (n, 1, 1)
    floor = best.gather(-1, at.expand(-1, scores.shape[1], -1)).masked_fill(~limited, -torch.inf)
    return scores >= floor
