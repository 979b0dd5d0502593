"""Random LoRA adapters of reference models, saved by PEFT, and the models into which PEFT has merged them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from app.engines.dia.checkpoint import expected_shapes
from app.engines.dia.config import parse_config
from tests.support.random_dia import SHAPES, dia_config


@torch.no_grad()
def save_and_merge(model: torch.nn.Module, folder: Path, *, seed: int = 0, scale: float = 0.15, **config: Any) -> Any:
    """Add a random adapter to `model`, save the adapter in `folder`, and return the merged model."""
    import peft  # takes seconds, and most users of this file only write adapters

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


def adapter_files(seed: int, *, rank: int = 4, scale: float = 0.3, **config: Any) -> dict[str, bytes]:
    """Return the two files of an adapter for the tiny CSM model of random_csm.py: attention and MLP of the first
    layers."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for stack, width, ffn in (("backbone_model", 64, 128), ("depth_decoder.model", 32, 64)):
        for name, inputs, outputs in (
            ("self_attn.q_proj", width, width),
            ("self_attn.v_proj", width, width // 2),
            ("mlp.up_proj", width, ffn),
            ("mlp.down_proj", ffn, width),
        ):
            at = f"base_model.model.{stack}.layers.0.{name}"
            tensors[f"{at}.lora_A.weight"] = scale * torch.randn(rank, inputs, generator=random)
            tensors[f"{at}.lora_B.weight"] = scale * torch.randn(outputs, rank, generator=random)
            if config.get("use_dora"):
                tensors[f"{at}.lora_magnitude_vector"] = torch.ones(outputs)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": "sesame/csm-1b", **config}
    return {"adapter_config.json": json.dumps(values).encode(), "adapter_model.safetensors": save(tensors)}


def dia_adapter_files(seed: int, rank: int = 3, scale: float = 0.1) -> dict[str, bytes]:
    """Return the two files of an adapter for the tiny Dia model of random_dia.py: all queries and MLP outputs."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(parse_config(dia_config(SHAPES["tiny"]))).items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            at = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{at}.lora_A.weight"] = scale * torch.randn(rank, shape[1], generator=random)
            tensors[f"{at}.lora_B.weight"] = scale * torch.randn(shape[0], rank, generator=random)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": "nari-labs/Dia-1.6B-0626"}
    return {"adapter_config.json": json.dumps(values).encode(), "adapter_model.safetensors": save(tensors)}


def write_adapter(folder: Path, seed: int, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in adapter_files(seed, **options).items():
        (folder / name).write_bytes(content)
    return folder
