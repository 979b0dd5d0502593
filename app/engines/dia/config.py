"""Reads the config.json of a Dia checkpoint, in every published form. This module does not use tensors.

Two models are named Dia-1.6B: "v0.1" of April 2025 and "0626" of June 2025. v0.1 applies RoPE in cross-attention and
draws codes from the guided logits; 0626 does neither of these. The tensors of both models have the same names and
shapes. So only config.json distinguishes the models: v0.1 has the keys `model` and `data`, and 0626 has the keys
`encoder_config` and `decoder_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.engines.shared.config_file import read_config_file
from app.errors import WeightsUnavailable
from app.nn.rope import Rope, read_rope
from app.nn.transformer import CrossConfig, StackConfig

Release = Literal["v0.1", "0626"]

_THETA = 10_000.0
_DELAYS = (0, 8, 9, 10, 11, 12, 13, 14, 15)


@dataclass(frozen=True, slots=True)
class DiaConfig:
    """The shape of a Dia model."""

    release: Release
    encoder: StackConfig
    decoder: StackConfig
    text_vocab: int
    audio_vocab: int  # number of ids of one channel: the codes, EOS, PAD and BOS
    delays: tuple[int, ...]  # the code of a frame in channel c is delays[c] positions after its code in channel 0
    eos: int
    pad: int
    bos: int
    max_text: int  # the largest number of bytes of a text
    max_positions: int  # the largest number of positions in the decoder
    origins: tuple[str, ...] = ()  # entries of config.json that name the origin of the weights, each as "key value"

    @property
    def channels(self) -> int:
        """The number of channels; each channel has the codes of one codebook."""
        return len(self.delays)

    @property
    def codebook_size(self) -> int:
        """The number of codes in one channel, without EOS, PAD and BOS."""
        return min(self.eos, self.pad, self.bos)

    @property
    def max_frames(self) -> int:
        """The largest number of frames of a prompt and the speech after it, together.

        BOS and the delay pattern take the remaining positions.
        """
        return self.max_positions - 1 - max(self.delays)


def read_config(folder: Path) -> DiaConfig:
    """Read `folder`/config.json. Raises WeightsUnavailable, which names the missing key or the unknown value."""
    return read_config_file(folder, "Dia", parse_config)


def parse_config(raw: Mapping[str, Any]) -> DiaConfig:
    """Convert the content of a config.json.

    Raises WeightsUnavailable if it does not describe exactly one of the Dia models, and KeyError, TypeError or
    ValueError if a key is missing or a value is invalid.
    """
    v01, v0626 = "model" in raw and "data" in raw, "encoder_config" in raw and "decoder_config" in raw
    if v01 and v0626:
        raise WeightsUnavailable(
            "This config.json has the keys of both Dia-1.6B models: `model` and `data` belong to v0.1, "
            "`encoder_config` and `decoder_config` belong to 0626. The server can't find out which model it is.",
            remedy="Download the model again.",
        )
    if not (v01 or v0626):
        raise WeightsUnavailable(
            f"This config.json does not describe a Dia model: its model_type is {raw.get('model_type')!r}, and it "
            "contains neither encoder_config and decoder_config nor model and data."
        )
    config = _parse_v01(raw) if v01 else _parse_0626(raw)
    c = config
    if c.delays[0] != 0 or min(c.delays) < 0 or max(c.delays) >= c.max_positions:
        raise ValueError(f"the delays {list(c.delays)} must begin with 0 and be from 0 to {c.max_positions - 1}")
    if sorted({c.eos, c.pad, c.bos}) != sorted((c.eos, c.pad, c.bos)) or max(c.eos, c.pad, c.bos) >= c.audio_vocab:
        raise ValueError(f"EOS {c.eos}, PAD {c.pad} and BOS {c.bos} are not three different ids below {c.audio_vocab}")
    if c.eos != c.codebook_size:
        raise ValueError(f"EOS ({c.eos}) is not the first id after the codes")
    for stack in (c.encoder, c.decoder):
        if stack.heads % stack.kv_heads or stack.head_dim % 2:
            raise ValueError(f"{stack.heads} heads of size {stack.head_dim} do not match {stack.kv_heads} key heads")
    return config


def _parse_0626(raw: Mapping[str, Any]) -> DiaConfig:
    encoder, decoder = raw["encoder_config"], raw["decoder_config"]
    eps = float(raw.get("norm_eps") or 1e-5)
    width = int(encoder.get("hidden_size", 1024))
    cross_heads = int(decoder.get("cross_num_attention_heads", 16))
    cross = CrossConfig(
        width=int(decoder.get("cross_hidden_size", 1024)),
        heads=cross_heads,
        kv_heads=int(decoder.get("cross_num_key_value_heads") or cross_heads),
        head_dim=int(decoder.get("cross_head_dim", 128)),
    )
    if cross.width != width:
        raise ValueError(f"the decoder needs an encoder of width {cross.width}, but the encoder has width {width}")
    if cross.heads % cross.kv_heads:
        raise ValueError(f"{cross.heads} attention heads are not divisible by {cross.kv_heads} key heads")
    delays = tuple(int(delay) for delay in raw.get("delay_pattern") or _DELAYS)
    if int(decoder.get("num_channels", len(delays))) != len(delays):
        raise ValueError(f"num_channels is {decoder['num_channels']}, but the delay pattern has {len(delays)} delays")

    def special(name: str, default: int) -> int:
        found = decoder.get(name) if decoder.get(name) is not None else raw.get(name)
        if isinstance(found, list):
            found = found[0]
        return default if found is None else int(found)

    origins = tuple(f"{key} {raw[key]}" for key in ("version", "_name_or_path", "name_or_path") if raw.get(key))
    return DiaConfig(
        release="0626",
        encoder=_stack(encoder, (1024, 4096, 12, 16, 16), eps),
        decoder=_stack(decoder, (2048, 8192, 18, 16, 4), eps, cross),
        text_vocab=int(encoder.get("vocab_size", 256)),
        audio_vocab=int(decoder.get("vocab_size", 1028)),
        delays=delays,
        eos=special("eos_token_id", 1024),
        pad=special("pad_token_id", 1025),
        bos=special("bos_token_id", 1026),
        max_text=int(encoder.get("max_position_embeddings", 1024)),
        max_positions=int(decoder.get("max_position_embeddings", 3072)),
        origins=origins,
    )


def _stack(
    raw: Mapping[str, Any], sizes: tuple[int, int, int, int, int], eps: float, cross: CrossConfig | None = None
) -> StackConfig:
    """Convert the part of a config.json that describes the encoder or the decoder.

    sizes: width, ffn, layers, heads and kv_heads of the published model, used for keys that the file omits.
    """
    width, ffn, layers, heads, kv_heads = sizes
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"unknown hidden_act {activation!r}")
    heads = int(raw.get("num_attention_heads", heads))
    return StackConfig(
        layers=int(raw.get("num_hidden_layers", layers)),
        width=int(raw.get("hidden_size", width)),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or min(kv_heads, heads)),
        head_dim=int(raw.get("head_dim", 128)),
        ffn=int(raw.get("intermediate_size", ffn)),
        eps=float(raw.get("norm_eps") or eps),
        rope=_rope(raw),
        scale=1.0,
        cross=cross,
    )


def _rope(raw: Mapping[str, Any]) -> Rope:
    """Read the parameters of RoPE. Like the code of nari, ignore a `rope_scaling` that is a plain number."""
    values = {key: value for key, value in raw.items() if key != "rope_scaling" or isinstance(value, Mapping)}
    return read_rope(values, _THETA)


def _parse_v01(raw: Mapping[str, Any]) -> DiaConfig:
    model, data = raw["model"], raw["data"]
    encoder, decoder = model["encoder"], model["decoder"]
    eps = float(model.get("normalization_layer_epsilon", 1e-5))
    shortest = model.get("rope_min_timescale", 1)
    if shortest != 1:
        raise ValueError(f"rope_min_timescale {shortest} is not supported, only 1")
    rope = Rope(float(model.get("rope_max_timescale", _THETA)))
    heads, head_dim = int(decoder["cross_query_heads"]), int(decoder["cross_head_dim"])
    if head_dim != int(decoder["gqa_head_dim"]):
        raise ValueError("cross-attention with RoPE must have the same head size as self-attention")
    cross = CrossConfig(int(encoder["n_embd"]), heads, heads, head_dim, rotated=True)
    delays = tuple(int(delay) for delay in data.get("delay_pattern") or _DELAYS)
    if int(data.get("channels", len(delays))) != len(delays):
        raise ValueError(f"channels is {data['channels']}, but the delay pattern has {len(delays)} delays")
    return DiaConfig(
        release="v0.1",
        encoder=StackConfig(
            layers=int(encoder["n_layer"]),
            width=int(encoder["n_embd"]),
            heads=int(encoder["n_head"]),
            kv_heads=int(encoder["n_head"]),
            head_dim=int(encoder["head_dim"]),
            ffn=int(encoder["n_hidden"]),
            eps=eps,
            rope=rope,
            scale=1.0,
        ),
        decoder=StackConfig(
            layers=int(decoder["n_layer"]),
            width=int(decoder["n_embd"]),
            heads=int(decoder["gqa_query_heads"]),
            kv_heads=int(decoder["kv_heads"]),
            head_dim=int(decoder["gqa_head_dim"]),
            ffn=int(decoder["n_hidden"]),
            eps=eps,
            rope=rope,
            scale=1.0,
            cross=cross,
        ),
        text_vocab=int(model.get("src_vocab_size", 256)),
        audio_vocab=int(model.get("tgt_vocab_size", 1028)),
        delays=delays,
        eos=int(data.get("audio_eos_value", 1024)),
        pad=int(data.get("audio_pad_value", 1025)),
        bos=int(data.get("audio_bos_value", 1026)),
        max_text=int(data["text_length"]),
        max_positions=int(data["audio_length"]),
    )


# The config of the published model (nari-labs/Dia-1.6B-0626); all values are defaults. With it, the server plans the
# model's memory before it has the model's files.
PUBLISHED = parse_config({"encoder_config": {}, "decoder_config": {}})
