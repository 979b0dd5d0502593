"""Writes CSM checkpoints with random weights, in the layouts of the published ones, for tests and measurements.

A tensor depends on its name and the seed only, so all layouts of one size hold the same model. Values are scaled by
fan-in, so that logits have peaks and audio stays in range at any width. The `original` layout puts its codec into
OUT/mimi. random_dia.py does the same for Dia.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from app.engines.csm import checkpoint
from app.engines.csm.config import CsmConfig, parse_config
from app.nn.mimi import checkpoint as mimi_layout
from app.nn.mimi.config import read_mimi_config
from app.weights.tensors import Shape
from tests.support.checkpoint_files import Draw, halves, shards, write_file, write_json, write_shards

_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>")
_LLAMA3_SPLIT = "|".join(
    (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_CORPUS = (
    "[0]The quick brown fox jumps over the lazy dog. [1]She sells sea shells by the sea shore, and the shells she "
    "sells are surely sea shells. [0]How are you today? I am well, thank you; it is a fine morning for a walk."
)
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|begin_of_text|>[' + message['role'] + ']' + message['content'][0]['text'] + '<|end_of_text|>' }}"
    "{%- if message['content'] | length > 1 -%}{{ '<|AUDIO|><|audio_eos|>' }}{%- endif -%}"
    "{%- endfor -%}"
)


def csm_config(size: str) -> dict[str, Any]:
    """Return the config.json of a CSM model, with the keys of the published one. Raises KeyError for an unknown size.

    A tiny model has 8 codebooks: a step runs the depth decoder once for each codebook, so 32 cost four times as much.
    """
    codebooks, text, hidden, depth, codec = {
        "full": (
            32,
            {"text_vocab_size": 128_256, "first_special": 128_000, "vocab_size": 2051},
            (16, 2048, 32, 8, 8192),
            (4, 1024, 8, 2, 8192),
            {},
        ),
        "tiny": (
            8,
            {"text_vocab_size": 320, "first_special": 300, "vocab_size": 67},
            (2, 64, 4, 2, 128),
            (2, 32, 2, 1, 64),
            {
                "hidden_size": 32, "num_filters": 4, "codebook_size": 64, "codebook_dim": 16, "upsample_groups": 32,
                "vector_quantization_hidden_dimension": 16, "num_hidden_layers": 2, "intermediate_size": 64,
                "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
            },
        ),
    }[size]  # fmt: skip

    def stack(layers: int, width: int, heads: int, kv_heads: int, ffn: int) -> dict[str, Any]:
        return {
            "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": ffn, "head_dim": width // heads,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False,
            "rope_theta": 500_000,
        }  # fmt: skip

    def scaling(original: int, low: float, high: float) -> dict[str, Any]:
        return {
            "rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": original,
            "low_freq_factor": low, "high_freq_factor": high,
        }  # fmt: skip

    begin = text["first_special"]
    return {
        "architectures": ["CsmForConditionalGeneration"],
        "model_type": "csm",
        "num_codebooks": codebooks,
        "vocab_size": text["vocab_size"],
        "text_vocab_size": text["text_vocab_size"],
        "max_position_embeddings": 2048,
        "bos_token_id": begin,
        "eos_token_id": None,
        "pad_token_id": begin + 2,
        "audio_token_id": begin + 2,
        "audio_eos_token_id": begin + 3,
        "codebook_eos_token_id": 0,
        "codebook_pad_token_id": text["vocab_size"] - 1,
        "tie_codebooks_embeddings": True,
        **stack(*hidden),
        "rope_scaling": scaling(1024, 0.125, 0.5),
        "depth_decoder_config": {
            "model_type": "csm_depth_decoder_model",
            "backbone_hidden_size": hidden[1],
            "num_codebooks": codebooks,
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": codebooks + 1,
            **stack(*depth),
            "rope_scaling": scaling(16, 0.001953125, 0.0078125),
        },
        "codec_config": {
            "model_type": "mimi", "sampling_rate": 24_000, "frame_rate": 12.5, "num_quantizers": codebooks,
            "codebook_size": 2048, "upsampling_ratios": [8, 6, 5, 4], "rope_theta": 10_000.0, **codec,
        },
        "torch_dtype": "float32",
    }  # fmt: skip


class _Numbers(Draw):
    """Random numbers for CSM's tensors by name."""

    def make(self, name: str, shape: Shape) -> torch.Tensor:
        """Return one tensor in float32, scaled for its part in the model."""
        numbers = self.normal(name, shape)
        last = name.rsplit(".", 1)[-1]
        if name.endswith("initialized"):
            return torch.ones(shape)
        if name.endswith("cluster_usage"):
            return numbers.abs_().clamp_(0.2, 3)
        if name.endswith("embed_sum") or name in (checkpoint.TEXT_TABLE, checkpoint.AUDIO_TABLE):
            return numbers
        if name.endswith("_layer_scale.scale"):
            return numbers.mul_(0.03).add_(0.3)
        if "norm" in name:
            return numbers.mul_(0.1) if last == "bias" else numbers.mul_(0.1).add_(1)
        if last == "bias":
            return numbers.mul_(0.02)
        if name in (checkpoint.HEAD, checkpoint.HEADS):
            fan_in = shape[1]
            return numbers.mul_(3 / math.sqrt(fan_in))  # this scale gives logits with peaks
        return numbers.mul_(1 / math.sqrt(math.prod(shape[1:])))


def _original_names(config: CsmConfig) -> dict[str, str]:
    """Return name of a tensor in the original layout -> our name."""
    names = {
        "text_embeddings.weight": checkpoint.TEXT_TABLE,
        "audio_embeddings.weight": checkpoint.AUDIO_TABLE,
        "projection.weight": checkpoint.PROJECTION,
        "codebook0_head.weight": checkpoint.HEAD,
        "audio_head": checkpoint.HEADS,
    }
    inner = {
        "attn.q_proj.weight": "self_attn.q_proj.weight",
        "attn.k_proj.weight": "self_attn.k_proj.weight",
        "attn.v_proj.weight": "self_attn.v_proj.weight",
        "attn.output_proj.weight": "self_attn.o_proj.weight",
        "mlp.w1.weight": "mlp.gate_proj.weight",
        "mlp.w2.weight": "mlp.down_proj.weight",
        "mlp.w3.weight": "mlp.up_proj.weight",
        "sa_norm.scale": "input_layernorm.weight",
        "mlp_norm.scale": "post_attention_layernorm.weight",
    }
    for theirs, ours, stack in (
        ("backbone", checkpoint.BACKBONE, config.backbone),
        ("decoder", checkpoint.DEPTH, config.depth),
    ):
        names[f"{theirs}.norm.scale"] = f"{ours}norm.weight"
        for layer in range(stack.layers):
            names |= {f"{theirs}.layers.{layer}.{a}": f"{ours}layers.{layer}.{b}" for a, b in inner.items()}
    return names


def fabricate_csm(
    out: Path,
    *,
    size: str = "tiny",
    layout_name: str = "transformers",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    sharded: bool | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a CSM checkpoint, tokenizer and codec into `out`. sharded None = as the published one of that size."""
    out.mkdir(parents=True, exist_ok=True)
    raw = csm_config(size) | (changes or {})
    config = parse_config(raw)
    codec = read_mimi_config(raw["codec_config"])
    numbers = _Numbers(seed)
    shapes = checkpoint.expected_shapes(config)
    codec_shapes = dict(mimi_layout.expected_shapes(codec))
    codec_shapes |= {
        name.replace("cluster_usage", "initialized"): (1,) for name in codec_shapes if name.endswith("cluster_usage")
    }
    last_conv = max(
        (name for name in codec_shapes if name.startswith("decoder.layers.") and name.endswith(".conv.weight")),
        key=lambda name: int(name.split(".")[2]),
    )

    def make_codec(name: str, shape: Shape) -> torch.Tensor:
        tensor = numbers.make(checkpoint.CODEC + name, shape)
        # the audio of speech has an amplitude of some tenths of full scale
        return tensor.mul_(0.1) if name == last_conv else tensor

    def make(name: str, shape: Shape) -> torch.Tensor:
        if name.startswith(checkpoint.CODEC):
            return make_codec(name.removeprefix(checkpoint.CODEC), shape)
        return numbers.make(checkpoint.AUDIO_TABLE if name == checkpoint.DEPTH_TABLE and config.tied else name, shape)

    if layout_name == "transformers":
        every = shapes | {checkpoint.CODEC + name: shape for name, shape in codec_shapes.items()}
        if sharded if sharded is not None else size == "full":
            parts = halves(every) if size == "tiny" else list(shards(every, dtype.itemsize))
            raw["transformers_weights"] = write_shards(out, "transformers", parts, make, dtype)
        else:
            write_file(out / "model.safetensors", every, make, dtype)
    else:
        names = _original_names(config)

        def make_original(name: str, shape: Shape) -> torch.Tensor:
            tensor = make(names[name], shape)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                stack = config.backbone if name.startswith("backbone") else config.depth
                halves = tensor.view(-1, 2, stack.head_dim // 2, shape[1])
                tensor = halves.transpose(1, 2).reshape(shape)  # converts RoPE's half-split layout to interleaved pairs
            return tensor

        write_file(
            out / "model.safetensors", {theirs: shapes[ours] for theirs, ours in names.items()}, make_original, dtype
        )
        mimi = out / "mimi"
        mimi.mkdir(exist_ok=True)
        write_file(mimi / "model.safetensors", codec_shapes, make_codec, torch.float32)
        write_json(mimi / "config.json", raw["codec_config"])
    write_json(out / "config.json", raw)
    write_tokenizer(out, raw)
    sampling = {"do_sample": True, "temperature": 0.9, "top_k": 50}
    depth_frames = config.codebooks - 1
    write_json(
        out / "generation_config.json",
        {
            **sampling,
            **{f"depth_decoder_{key}": value for key, value in sampling.items()},
            "depth_decoder_max_new_tokens": depth_frames,
            "depth_decoder_min_new_tokens": depth_frames,
            "max_new_tokens": 125,
        },
    )
    return out


def write_tokenizer(out: Path, raw: dict[str, Any]) -> None:
    """Write a byte-level BPE tokenizer with a few merges, which splits texts like Llama 3's tokenizer.

    Special tokens have the ids of the config.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(pattern=Regex(_LLAMA3_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    first = raw["bos_token_id"]
    trainer = trainers.BpeTrainer(
        vocab_size=min(first, 290), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    described = json.loads(tokenizer.to_str())
    ids = {name: first + i for i, name in enumerate(_SPECIALS)}
    described["model"]["vocab"] |= ids
    described["added_tokens"] = [
        {
            "id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True,
        }
        for name, number in ids.items()
    ]  # fmt: skip
    described["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    begin, end = _SPECIALS[:2]
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": begin, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": end, "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (begin, end)},
    }
    write_json(out / "tokenizer.json", described)
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": begin,
            "eos_token": end,
            "pad_token": end,
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(out / "special_tokens_map.json", {"bos_token": begin, "eos_token": end, "pad_token": end})
    write_json(
        out / "preprocessor_config.json",
        {
            "feature_extractor_type": "EncodecFeatureExtractor",
            "feature_size": 1,
            "sampling_rate": raw["codec_config"]["sampling_rate"],
            "padding_value": 0.0,
            "padding_side": "right",
            "return_attention_mask": True,
            "processor_class": "CsmProcessor",
        },
    )
    (out / "chat_template.jinja").write_text(_CHAT_TEMPLATE, "utf-8")
