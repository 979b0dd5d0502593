"""Random LoRA adapters of reference models, saved by PEFT, and the models into which PEFT has merged them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch


@torch.no_grad()
def save_and_merge(model: torch.nn.Module, folder: Path, *, seed: int = 0, scale: float = 0.15, **config: Any) -> Any:
    """Add a random adapter to `model`, save the adapter in `folder`, and return the merged model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(**config))  # type: ignore[arg-type]
        random = torch.Generator().manual_seed(seed)
        for name, tensor in adapted.named_parameters():
            if tensor.requires_grad and "magnitude" in name:
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=random))
            elif tensor.requires_grad:
                tensor.add_(scale * torch.randn(tensor.shape, generator=random))
        adapted.save_pretrained(str(folder))
        return adapted.merge_and_unload()  # type: ignore[operator]
