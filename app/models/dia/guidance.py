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

from collections.abc import Sequence

import torch
from torch import Tensor

from app.models.dia.config import DiaConfig

_FIRST_EOS_SHARE = 0.8


def candidates(
    config: DiaConfig,
    seeing: Tensor,
    blind: Tensor,
    *,
    scales: Sequence[float],
    top_k: Sequence[int],
    young: Tensor | None = None,
) -> Tensor:
    """Logits with and without the text, (n, C, V) float32 each -> what is drawn from, (n, C, V), -inf for the rest.

    scales, top_k: of each row; 0 = no guidance, all codes. young (n,) bool: rows that may not end yet.
    """
    c = config
    by_row = torch.tensor(scales, device=seeing.device, dtype=torch.float32)[:, None, None]
    guided = seeing + by_row * (seeing - blind)
    if young is not None:
        guided[:, 0, c.eos].masked_fill_(young, -torch.inf)
    if c.release == "0626":
        kept = _top(guided, top_k)
        logits = seeing.masked_fill(~kept, -torch.inf)
        if young is not None:
            logits[:, 0, c.eos].masked_fill_(young, -torch.inf)
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


def _top(scores: Tensor, limits: Sequence[int]) -> Tensor:
    """True for the k largest of (n, C, V), k of each row; 0 = all. Ties with the k-th stay, so that in bfloat16, where
    there are some, it does not matter what others' k is."""
    size = scores.shape[-1]
    wanted = [k if 0 < k < size else size for k in limits]
    best = scores.topk(max(wanted), dim=-1).values
    at = torch.tensor(wanted, device=scores.device)[:, None, None] - 1  # (n, 1, 1)
    return scores >= best.gather(-1, at.expand(-1, scores.shape[1], -1))
