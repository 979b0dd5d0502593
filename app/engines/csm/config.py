"""Reads the config.json of a CSM checkpoint, in every published form. This module does not use tensors.

Older files contain `rope_theta` and `rope_scaling`; newer files contain `rope_parameters`. The file of
the first release contains only two size names ("llama-1B", "llama-100M"), the vocabulary sizes and the number of
codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.engines.shared.config_file import read_config_file
from app.errors import WeightsUnavailable
from app.nn.mimi.config import MimiConfig, read_mimi_config
from app.nn.rope import Rope, read_rope
from app.nn.transformer import StackConfig

_DEFAULT_THETA = 500_000.0

# The size names of the first release (SesameAILabs/csm, models.py) -> layers, width, heads, kv heads, ffn.
_FLAVOURS = {"llama-1B": (16, 2048, 32, 8, 8192), "llama-100M": (4, 1024, 8, 2, 8192)}
_FLAVOUR_ROPE = Rope(_DEFAULT_THETA, "llama3", 32.0, 1.0, 4.0, 8192)
_FLAVOUR_POSITIONS = 2048


@dataclass(frozen=True, slots=True)
class CsmConfig:
    """The shape of a CSM model."""

    backbone: StackConfig
    depth: StackConfig
    codebooks: int
    audio_vocab: int  # number of rows for one codebook in the backbone's audio table
    depth_vocab: int  # number of rows for one codebook in the depth decoder's audio table
    text_vocab: int
    codebook_size: int  # number of codes in one codebook of the codec
    max_positions: int
    eos_code: int  # the code that marks the end of speech
    bos_id: int | None  # id of the token at the start of a text; None = the tokenizer names this token
    eos_id: int | None  # id of the token at the end of a text; None = the tokenizer names this token
    tied: bool  # whether backbone and depth decoder share one audio table
    codec: MimiConfig | None  # config of the codec in the checkpoint; None = config.json describes no codec
    weights_index: str | None  # name of the file that lists the weight files; None = config.json names none


def read_config(folder: Path) -> CsmConfig:
    """Read `folder`/config.json. Raises WeightsUnavailable, which names the missing key or the unknown value."""
    return read_config_file(folder, "CSM", parse_config)


def parse_config(raw: Mapping[str, Any]) -> CsmConfig:
    """Convert the content of a config.json.

    Raises WeightsUnavailable if it does not describe a CSM model, and KeyError, TypeError or ValueError if a key is
    missing or a value is invalid.
    """
    if "hidden_size" not in raw:
        if "backbone_flavor" in raw:
            return _parse_flavours(raw)
        raise WeightsUnavailable(
            f"This config.json does not describe a CSM model: its model_type is {raw.get('model_type')!r}, and it "
            "contains neither hidden_size nor backbone_flavor."
        )
    depth = raw["depth_decoder_config"]
    codec = read_mimi_config(raw["codec_config"]) if raw.get("codec_config") else None
    audio_vocab = int(raw.get("vocab_size") or raw.get("codebook_size") or 2051)
    codebooks = int(raw.get("num_codebooks") or 32)
    if int(depth.get("num_codebooks") or codebooks) != codebooks:
        raise ValueError(f"the depth decoder has {depth['num_codebooks']} codebooks, but the backbone has {codebooks}")
    depth_vocab = int(depth.get("vocab_size") or depth.get("codebook_size") or audio_vocab)
    eos_code = raw.get("codebook_eos_token_id", 0)
    return CsmConfig(
        backbone=_stack(raw),
        depth=_stack(depth),
        codebooks=codebooks,
        audio_vocab=audio_vocab,
        depth_vocab=depth_vocab,
        text_vocab=int(raw.get("text_vocab_size") or 128_256),
        codebook_size=min(audio_vocab, depth_vocab, codec.codebook_size if codec else 2048),
        max_positions=int(raw.get("max_position_embeddings") or 2048),
        eos_code=int(_first(eos_code)) if eos_code is not None else 0,
        bos_id=_first(raw.get("bos_token_id")),
        eos_id=_first(raw.get("eos_token_id")),
        tied=bool(raw.get("tie_codebooks_embeddings", True)),
        codec=codec,
        weights_index=raw.get("transformers_weights"),
    )


def _first(value: Any) -> Any:
    """Return the first element of `value` if it is a list; otherwise return `value` unchanged."""
    return value[0] if isinstance(value, list) else value


def _parse_flavours(raw: Mapping[str, Any]) -> CsmConfig:
    """Convert the config.json of the first release, which contains names of sizes, for example "llama-1B"."""
    stacks = []
    for name in (raw["backbone_flavor"], raw["decoder_flavor"]):
        if name not in _FLAVOURS:
            raise ValueError(f"unknown size {name!r}; the known sizes are {', '.join(_FLAVOURS)}")
        layers, width, heads, kv_heads, ffn = _FLAVOURS[name]
        stacks.append(StackConfig(layers, width, heads, kv_heads, width // heads, ffn, 1e-5, _FLAVOUR_ROPE))
    audio_vocab = int(raw["audio_vocab_size"])
    return CsmConfig(
        backbone=stacks[0],
        depth=stacks[1],
        codebooks=int(raw["audio_num_codebooks"]),
        audio_vocab=audio_vocab,
        depth_vocab=audio_vocab,
        text_vocab=int(raw["text_vocab_size"]),
        codebook_size=min(audio_vocab, 2048),
        max_positions=_FLAVOUR_POSITIONS,
        eos_code=0,
        bos_id=None,
        eos_id=None,
        tied=True,
        codec=None,
        weights_index=raw.get("transformers_weights"),
    )


def _stack(raw: Mapping[str, Any]) -> StackConfig:
    """Convert the part of a config.json that describes one transformer."""
    heads = int(raw["num_attention_heads"])
    width = int(raw["hidden_size"])
    kv_heads = int(raw.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise ValueError(f"{heads} attention heads are not divisible by {kv_heads} key heads")
    head_dim = int(raw.get("head_dim") or width // heads)
    return StackConfig(
        layers=int(raw["num_hidden_layers"]),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=int(raw["intermediate_size"]),
        eps=float(raw.get("rms_norm_eps", 1e-5)),
        rope=read_rope(raw, _DEFAULT_THETA),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        activation=_activation(raw.get("hidden_act", "silu")),
    )


def _activation(name: str) -> Literal["silu", "gelu"]:
    match name:
        case "silu" | "swish":
            return "silu"
        case "gelu":
            return "gelu"
    raise ValueError(f"unknown hidden_act {name!r}")


# The config of the published model (sesame/csm-1b). With it, the server plans the model's memory before it has the
# model's files.
PUBLISHED = _parse_flavours(
    {
        "backbone_flavor": "llama-1B",
        "decoder_flavor": "llama-100M",
        "text_vocab_size": 128_256,
        "audio_vocab_size": 2051,
        "audio_num_codebooks": 32,
    }
)
