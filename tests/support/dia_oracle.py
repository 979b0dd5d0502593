"""Reference model of Dia from transformers, small and with random weights, and its weights in nari's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.engines.dia import checkpoint
from app.engines.dia import config as ours
from app.weights.tensors import open_checkpoints
from tests.support.csm_oracle import transformers

if TYPE_CHECKING:
    from transformers import DiaConfig, DiaForConditionalGeneration

DELAYS = [0, 8, 9, 10, 11, 12, 13, 14, 15]
BOS, EOS, PAD = 1026, 1024, 1025


def config(**changes: Any) -> DiaConfig:
    encoder = {
        "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
        "intermediate_size": 128,
    }  # fmt: skip
    decoder = {
        "num_hidden_layers": 3, "hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "intermediate_size": 192, "cross_num_attention_heads": 4, "cross_num_key_value_heads": 4,
        "cross_head_dim": 32, "cross_hidden_size": 64,
    }  # fmt: skip
    return transformers().DiaConfig(encoder_config=encoder, decoder_config=decoder | changes)


@torch.no_grad()
def model(seed: int = 0, *, ending: int | None = None, **changes: Any) -> DiaForConditionalGeneration:
    """Return a model whose logits have peaks and whose attention is not saturated at a scale of 1.

    ending: a code of channel 0. Its logit is slightly below that of EOS, so a model that often draws it ends by itself.
    """
    torch.manual_seed(seed)
    reference = transformers().DiaForConditionalGeneration(config(**changes)).eval()
    random = torch.Generator().manual_seed(seed)
    for name, tensor in reference.named_parameters():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=random)
        elif "embed" in name:
            tensor.normal_(0, 0.4, generator=random)
        else:
            tensor.normal_(0, 0.08, generator=random)
    if ending is not None:
        reference.logits_dense.weight[EOS] = reference.logits_dense.weight[ending] * 1.001
    return reference


def save(reference: torch.nn.Module, folder: Path, **options: Any) -> Path:
    reference.save_pretrained(folder, **options)
    return folder


def as_nari(folder: Path, out: Path, *, file: str = "dia-v1.pth") -> Path:
    """Convert the checkpoint in `folder` (transformers layout) to nari's layout, with the same config.json."""
    out.mkdir(parents=True, exist_ok=True)
    read = ours.read_config(folder)
    [stored] = open_checkpoints(folder)
    shapes = checkpoint.nari_shapes(read)
    state: dict[str, torch.Tensor] = {}
    for name in checkpoint.expected_shapes(read):
        tensor = stored.read(name)
        if name == checkpoint.AUDIO_TABLE:
            for channel, part in enumerate(tensor.split(read.audio_vocab)):
                state[f"decoder.embeddings.{channel}.weight"] = part.clone()
        else:
            target = checkpoint.nari_name(name)
            transposed = tensor if tensor.ndim == 1 or name == checkpoint.TEXT_TABLE else tensor.T
            state[target] = transposed.reshape(shapes[target]).contiguous()
    if file.endswith(".pth"):
        torch.save(state, out / file)
    else:
        from safetensors.torch import save_file

        save_file(state, out / file)
    (out / "config.json").write_text((folder / "config.json").read_text())
    return out


def v01_config(config_0626: DiaConfig) -> dict[str, Any]:
    """Return config.json of v0.1 with the same sizes."""
    e, d = config_0626.encoder_config, config_0626.decoder_config
    return {
        "version": "0.1",
        "model": {
            "encoder": {
                "n_layer": e.num_hidden_layers, "n_embd": e.hidden_size, "n_hidden": e.intermediate_size,
                "n_head": e.num_attention_heads, "head_dim": e.head_dim,
            },
            "decoder": {
                "n_layer": d.num_hidden_layers, "n_embd": d.hidden_size, "n_hidden": d.intermediate_size,
                "gqa_query_heads": d.num_attention_heads, "kv_heads": d.num_key_value_heads,
                "gqa_head_dim": d.head_dim, "cross_query_heads": d.cross_num_attention_heads,
                "cross_head_dim": d.cross_head_dim,
            },
            "src_vocab_size": 256, "tgt_vocab_size": 1028, "normalization_layer_epsilon": 1e-5,
            "rope_min_timescale": 1, "rope_max_timescale": 10_000,
        },
        "training": {"dtype": "bfloat16"},
        "data": {
            "text_length": 1024, "audio_length": 3072, "channels": 9, "text_pad_value": 0,
            "audio_eos_value": EOS, "audio_pad_value": PAD, "audio_bos_value": BOS, "delay_pattern": DELAYS,
        },
    }  # fmt: skip


def as_v01(folder: Path, out: Path, *, file: str = "dia-v0_1.pth") -> Path:
    """Write the same tensors as v0.1 publishes them: nari's layout and the config.json of v0.1."""
    as_nari(folder, out, file=file)
    (out / "config.json").write_text(json.dumps(v01_config(transformers().DiaConfig.from_pretrained(folder))))
    return out


def inputs(texts: list[bytes], prompts: list[torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the model inputs of DiaProcessor for texts and audio prompts (P, C), with padding and delay pattern."""
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(list(text))
        mask[row, : len(text)] = 1
    prompts = prompts or [torch.zeros(0, len(DELAYS), dtype=torch.long)] * len(texts)
    most = max(map(len, prompts))
    length = 1 + most + max(DELAYS)
    decoder_ids = torch.full((len(texts), length, len(DELAYS)), PAD)
    decoder_mask = torch.zeros(len(texts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        left = most - len(prompt)
        decoder_mask[row, left:] = 1
        for channel, delay in enumerate(DELAYS):
            decoder_ids[row, : left + delay + 1, channel] = BOS
            decoder_ids[row, left + delay + 1 : left + delay + 1 + len(prompt), channel] = prompt[:, channel]
    return {
        "input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids,
        "decoder_attention_mask": decoder_mask,
    }  # fmt: skip


@torch.no_grad()
def generate(
    reference: DiaForConditionalGeneration,
    texts: list[bytes],
    frames: int,
    *,
    prompts: list[torch.Tensor] | None = None,
    seed: int | None = None,
    **params: Any,
) -> list[torch.Tensor]:
    """Return the frames (T, C) of each text from transformers' generate, up to `frames` each. seed: None = greedy."""
    options: dict[str, Any] = {"guidance_scale": 3.0, "top_k": 45, "do_sample": seed is not None}
    if seed is not None:
        options |= {"temperature": 1.8, "top_p": 0.9}
        torch.manual_seed(seed)
    generated = reference.generate(
        **inputs(texts, prompts), max_new_tokens=frames + 16, **(options | params)
    )  # (B, S, C)
    lead = 1 + max((len(prompt) for prompt in prompts or []), default=0)
    found = []
    for row in generated:
        ends = (row[:, 0] == EOS).nonzero()
        stop = int(ends[0]) if len(ends) else len(row)
        columns = [row[lead + delay : stop + delay, channel] for channel, delay in enumerate(DELAYS)]
        found.append(torch.stack(columns, dim=1))
    return found
