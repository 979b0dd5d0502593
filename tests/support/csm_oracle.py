"""Reference models of CSM, Mimi, Dia and DAC from transformers, small and with random weights (see `randomize`)."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import (
        CsmConfig,
        CsmForConditionalGeneration,
        DacModel,
        DiaForConditionalGeneration,
        DiaProcessor,
        MimiConfig,
        MimiModel,
    )


@cache
def transformers() -> Any:
    """Import transformers and its models, for processes that run such tests. It takes 3 s of CPU time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers as package

        for name in (
            "CsmForConditionalGeneration",
            "DacModel",
            "DiaForConditionalGeneration",
            "DiaProcessor",
            "MimiModel",
        ):
            getattr(package, name)
        from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return package


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # small, so that all three branches of the scaling are used
}


def mimi_config(**changes: Any) -> MimiConfig:
    values: dict[str, Any] = {
        "hidden_size": 32,
        "num_filters": 4,
        "upsampling_ratios": [4, 3],
        "codebook_size": 64,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "num_quantizers": 8,
        "upsample_groups": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "sampling_rate": 24_000,
    }
    return transformers().MimiConfig(**(values | changes))


def csm_config(codec: dict[str, Any] | None = None, depth: dict[str, Any] | None = None, **changes: Any) -> CsmConfig:
    depth_values: dict[str, Any] = {
        "num_codebooks": 8,
        "backbone_hidden_size": 64,
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": dict(LLAMA3),
    }
    values: dict[str, Any] = {
        "num_codebooks": 8,
        "vocab_size": 67,
        "text_vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": dict(LLAMA3),
        "codebook_pad_token_id": 66,
        "audio_token_id": 2,
        "audio_eos_token_id": 3,
        "bos_token_id": 0,
        "pad_token_id": 2,
    }
    return transformers().CsmConfig(
        **(values | changes),
        depth_decoder_config=depth_values | (depth or {}),
        codec_config=mimi_config(**(codec or {})).to_dict(),
    )


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Fill the weights so that mistakes change the output.

    Logits have peaks, codebooks differ, and layer scales are large enough that attention matters.
    """
    random = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("embed_sum"):
            tensor.normal_(0, 1, generator=random)
        elif name.endswith("cluster_usage"):
            tensor.uniform_(0.5, 2, generator=random)
        elif name.endswith("_scale.scale"):
            tensor.fill_(0.3)
        elif "norm" in name and name.endswith("weight"):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif "codec_model" in name or isinstance(model, transformers().MimiModel):
            continue
        elif tensor.is_floating_point() and tensor.ndim >= 1 and "inv_freq" not in name:
            tensor.normal_(0, 0.25, generator=random)


def csm(config: CsmConfig, seed: int = 0) -> CsmForConditionalGeneration:
    torch.manual_seed(seed)
    model = transformers().CsmForConditionalGeneration(config).eval()
    randomize(model, seed)
    return model


def mimi(config: MimiConfig, seed: int = 0) -> MimiModel:
    torch.manual_seed(seed)
    model = transformers().MimiModel(config).eval()
    randomize(model, seed)
    return model


def dia(folder: Path, dtype: torch.dtype = torch.float32) -> DiaForConditionalGeneration:
    """Load Dia from a folder. Fails if a tensor is missing or unexpected."""
    model, found = transformers().DiaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not any(found.values()), found
    return model.eval()


def dia_processor(folder: Path) -> DiaProcessor:
    return transformers().DiaProcessor.from_pretrained(folder)


def dac(folder: Path) -> DacModel:
    return transformers().DacModel.from_pretrained(folder).eval()


def save(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def generate(
    model: CsmForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    frames: int,
    *,
    seed: int | None = None,
    **params: Any,
) -> torch.Tensor:
    """Return the codes (T, K) of transformers' generate at batch size 1. seed: None = greedy."""
    masked = list(range(model.config.codec_config.codebook_size, model.config.vocab_size))
    sampling: dict[str, Any] = {"do_sample": False, "depth_decoder_do_sample": False}
    if seed is not None:
        # Set all values: the depth decoder keeps the values of earlier calls.
        params = {"temperature": 0.9, "top_k": 50, "top_p": 1.0} | params
        sampling = {"do_sample": True, "depth_decoder_do_sample": True}
        sampling |= params | {f"depth_decoder_{name}": value for name, value in params.items()}
        torch.manual_seed(seed)
    return model.generate(
        **inputs,
        max_new_tokens=frames,
        suppress_tokens=masked or None,
        depth_decoder_suppress_tokens=masked or None,
        **sampling,
    )[0]
