"""Writes Dia checkpoints with random weights, and their DAC codec.

transformers names every matrix as a linear layer, (outputs, inputs). nari's own files keep a matrix in the shape of
the JAX layer that it was trained in, (inputs..., outputs...), and split what transformers joins. There are two models
of one shape: `0626` of June 2025 in both layouts, and `v0.1` of April only in nari's. The class of transformers has no
RoPE in cross-attention, so it would compute v0.1 wrongly.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from app.nn.dac import checkpoint as dac_layout
from app.nn.dac.config import DacConfig, parse_dac_config
from app.weights.tensors import Shape
from tests.support.checkpoint_files import Draw, halves, shards, write_file, write_json, write_shards

EMBED = "model.decoder.embeddings.embed.weight"
HEAD = "logits_dense.weight"
DAC_RELEASE = "weights_44khz_8kbps_0.0.1.pth"

# Attention is not scaled by 1 / sqrt(d) in Dia: queries and keys are kept small instead, so that scores spread by 2.
_SCORE_SPREAD = 2.0
_LOGIT_SPREAD = 3.0
_EOS_MARGIN = 1.001
_V01_EOS_FACTOR = 0.8  # v0.1 multiplies the logit of EOS by this


@dataclass(frozen=True, slots=True)
class DiaShape:
    """The widths and depths of a Dia model. The defaults describe a tiny model."""

    encoder_layers: int = 3
    encoder_width: int = 64
    encoder_heads: int = 4
    encoder_head_dim: int = 32
    encoder_ffn: int = 128
    decoder_layers: int = 3
    decoder_width: int = 96
    decoder_heads: int = 4
    decoder_kv_heads: int = 2
    decoder_head_dim: int = 32
    decoder_ffn: int = 192
    cross_heads: int = 4
    cross_head_dim: int = 32
    text_vocab: int = 256
    codes_vocab: int = 1028
    delays: tuple[int, ...] = (0, 8, 9, 10, 11, 12, 13, 14, 15)
    max_text: int = 1024
    max_positions: int = 3072
    eos: int = 1024
    pad: int = 1025
    bos: int = 1026

    @property
    def channels(self) -> int:
        return len(self.delays)


SHAPES = {
    "tiny": DiaShape(),
    "full": DiaShape(12, 1024, 16, 128, 4096, 18, 2048, 16, 4, 128, 8192, 16, 128),
}
CODECS: dict[str, dict[str, Any]] = {"tiny": {"encoder_hidden_size": 8, "decoder_hidden_size": 64}, "full": {}}


def dac_config(size: str = "full", **changes: Any) -> dict[str, Any]:
    """Return the config.json of the published DAC codec for 44.1 kHz, narrow for "tiny". changes: keys to replace."""
    raw: dict[str, Any] = {
        "architectures": ["DacModel"], "model_type": "dac", "encoder_hidden_size": 64, "decoder_hidden_size": 1536,
        "downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9, "codebook_size": 1024, "codebook_dim": 8,
        "quantizer_dropout": 0.0, "commitment_loss_weight": 0.25, "codebook_loss_weight": 1.0, "sampling_rate": 44_100,
        "torch_dtype": "float32", **CODECS[size], **changes,
    }  # fmt: skip
    down = raw["downsampling_ratios"]
    raw["upsampling_ratios"] = down[::-1]
    raw["hidden_size"] = raw["encoder_hidden_size"] * 2 ** len(down)
    raw["hop_length"] = math.prod(down)
    return raw


def dia_config(shape: DiaShape, spelling: Literal["published", "new"] = "published") -> dict[str, Any]:
    """Return the config.json of the 0626 release. "published": rope_theta and ids at the top, as in June 2025; "new":
    as transformers 5 writes it."""
    s = shape
    ids = {"bos_token_id": s.bos, "eos_token_id": s.eos, "pad_token_id": s.pad}
    rope: dict[str, Any] = {"rope_theta": 10_000.0, "rope_scaling": None}
    if spelling == "new":
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    common = {"hidden_act": "silu", "norm_eps": 1e-5, "initializer_range": 0.02, **rope}
    return {
        "architectures": ["DiaForConditionalGeneration"],
        "model_type": "dia",
        "delay_pattern": list(s.delays),
        "norm_eps": 1e-5,
        "initializer_range": 0.02,
        "is_encoder_decoder": True,
        "torch_dtype": "float32",
        **(ids if spelling == "published" else {}),
        "encoder_config": {
            "model_type": "dia_encoder", "max_position_embeddings": s.max_text, "num_hidden_layers": s.encoder_layers,
            "hidden_size": s.encoder_width, "num_attention_heads": s.encoder_heads,
            "num_key_value_heads": s.encoder_heads, "head_dim": s.encoder_head_dim, "intermediate_size": s.encoder_ffn,
            "vocab_size": s.text_vocab, **common,
        },
        "decoder_config": {
            "model_type": "dia_decoder", "max_position_embeddings": s.max_positions,
            "num_hidden_layers": s.decoder_layers, "hidden_size": s.decoder_width, "intermediate_size": s.decoder_ffn,
            "num_attention_heads": s.decoder_heads, "num_key_value_heads": s.decoder_kv_heads,
            "head_dim": s.decoder_head_dim, "cross_num_attention_heads": s.cross_heads,
            "cross_head_dim": s.cross_head_dim, "cross_num_key_value_heads": s.cross_heads,
            "cross_hidden_size": s.encoder_width, "vocab_size": s.codes_vocab, "num_channels": s.channels, **common,
            **(ids if spelling == "new" else {}),
        },
    }  # fmt: skip


def dia_config_v01(shape: DiaShape) -> dict[str, Any]:
    """Return the config.json of release v0.1."""
    s = shape
    mlp = {"mlp_activations": ["silu", "linear"], "use_pre_norm": False}
    return {
        "version": "0.1",
        "model": {
            "encoder": {
                "n_layer": s.encoder_layers, "n_embd": s.encoder_width, "n_hidden": s.encoder_ffn,
                "n_head": s.encoder_heads, "head_dim": s.encoder_head_dim, **mlp,
            },
            "decoder": {
                "n_layer": s.decoder_layers, "n_embd": s.decoder_width, "n_hidden": s.decoder_ffn,
                "gqa_query_heads": s.decoder_heads, "kv_heads": s.decoder_kv_heads, "gqa_head_dim": s.decoder_head_dim,
                "cross_query_heads": s.cross_heads, "cross_head_dim": s.cross_head_dim, **mlp,
            },
            "src_vocab_size": s.text_vocab, "tgt_vocab_size": s.codes_vocab, "dropout": 0.0,
            "normalization_layer_epsilon": 1e-5, "weight_dtype": "float32", "rope_min_timescale": 1,
            "rope_max_timescale": 10_000,
        },
        "training": {"dtype": "bfloat16", "logits_dot_in_fp32": False},
        "data": {
            "text_length": s.max_text, "audio_length": s.max_positions, "channels": s.channels, "text_pad_value": 0,
            "audio_eos_value": s.eos, "audio_pad_value": s.pad, "audio_bos_value": s.bos,
            "delay_pattern": list(s.delays),
        },
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One tensor, by name and shape in either layout.

    `shape` is for the layout of transformers, which has one embedding table for all channels. `their_shape` is for
    nari's layout, which has one table for each channel.
    """

    name: str
    shape: Shape
    theirs: str
    their_shape: Shape


def _matrices(s: DiaShape) -> list[_Matrix]:
    """Return every tensor of the model.

    If the two shapes of a matrix differ, it is transposed in nari's layout. Norms and embeddings are not transposed.
    """
    every: list[_Matrix] = []

    def same(name: str, *shape: int) -> None:
        every.append(_Matrix(f"model.{name}", shape, name, shape))

    def turned(name: str, theirs: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        every.append(_Matrix(name, (math.prod(outputs), math.prod(inputs)), theirs, (*inputs, *outputs)))

    def attention(at: str, widths: tuple[int, int], heads: int, kv_heads: int, size: int) -> None:
        width, kv_width = widths  # widths of queries, and of keys and values
        for part, inputs, count in (("q", width, heads), ("k", kv_width, kv_heads), ("v", kv_width, kv_heads)):
            turned(f"model.{at}.{part}_proj.weight", f"{at}.{part}_proj.weight", (inputs,), (count, size))
        turned(f"model.{at}.o_proj.weight", f"{at}.o_proj.weight", (heads, size), (width,))

    def mlp(at: str, width: int, ffn: int) -> None:
        turned(f"model.{at}.gate_up_proj.weight", f"{at}.wi_fused.weight", (width,), (2, ffn))
        turned(f"model.{at}.down_proj.weight", f"{at}.wo.weight", (ffn,), (width,))

    e, d = s.encoder_width, s.decoder_width
    same("encoder.embedding.weight", s.text_vocab, e)
    for i in range(s.encoder_layers):
        at = f"encoder.layers.{i}"
        same(f"{at}.pre_sa_norm.weight", e)
        attention(f"{at}.self_attention", (e, e), s.encoder_heads, s.encoder_heads, s.encoder_head_dim)
        same(f"{at}.post_sa_norm.weight", e)
        mlp(f"{at}.mlp", e, s.encoder_ffn)
    same("encoder.norm.weight", e)
    every.append(_Matrix(EMBED, (s.channels * s.codes_vocab, d), "decoder.embeddings", (s.codes_vocab, d)))
    for i in range(s.decoder_layers):
        at = f"decoder.layers.{i}"
        same(f"{at}.pre_sa_norm.weight", d)
        attention(f"{at}.self_attention", (d, d), s.decoder_heads, s.decoder_kv_heads, s.decoder_head_dim)
        same(f"{at}.pre_ca_norm.weight", d)
        attention(f"{at}.cross_attention", (d, e), s.cross_heads, s.cross_heads, s.cross_head_dim)
        same(f"{at}.pre_mlp_norm.weight", d)
        mlp(f"{at}.mlp", d, s.decoder_ffn)
    same("decoder.norm.weight", d)
    turned(HEAD, "decoder.logits_dense.weight", (d,), (s.channels, s.codes_vocab))
    return every


def dia_shapes(shape: DiaShape) -> dict[str, Shape]:
    """Return the shape of every tensor, by the names of transformers."""
    return {matrix.name: matrix.shape for matrix in _matrices(shape)}


def nari_state(shape: DiaShape, read: Any) -> dict[str, torch.Tensor]:
    """Return the tensors with nari's names and shapes. read(name) returns a tensor by its name in transformers."""
    state: dict[str, torch.Tensor] = {}
    for matrix in _matrices(shape):
        tensor = read(matrix.name)
        if matrix.name == EMBED:
            for channel, table in enumerate(tensor.split(shape.codes_vocab)):
                state[f"{matrix.theirs}.{channel}.weight"] = table.clone()
        elif matrix.shape == matrix.their_shape and matrix.name == f"model.{matrix.theirs}":
            state[matrix.theirs] = tensor
        else:
            state[matrix.theirs] = tensor.t().reshape(matrix.their_shape).contiguous()
    return state


class _Numbers(Draw):
    def __init__(self, seed: int, shape: DiaShape) -> None:
        super().__init__(seed)
        self._dia = shape
        self.eos_like: tuple[int, float] | None = (
            None  # (token, factor): the row of EOS is the row of this token times the factor
        )

    def dia(self, name: str, shape: Shape) -> torch.Tensor:
        """Return a tensor of the model in transformers' layout, float32."""
        s, numbers = self._dia, self.normal(name, shape)
        if "norm" in name:
            return numbers.mul_(0.1).add_(1)
        if "embed" in name:
            return numbers.mul_(1 / math.sqrt(s.channels) if name == EMBED else 1)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            size = s.encoder_head_dim if ".encoder." in name else s.decoder_head_dim
            size = s.cross_head_dim if ".cross_attention." in name else size
            return numbers.mul_(math.sqrt(_SCORE_SPREAD / math.sqrt(size)) / math.sqrt(shape[1]))
        numbers.mul_((_LOGIT_SPREAD if name == HEAD else 1) / math.sqrt(shape[1]))
        if name == HEAD and self.eos_like is not None:  # the first rows of the head are the tokens of channel 0
            token, gain = self.eos_like
            numbers[s.eos] = numbers[token] * gain
        return numbers

    def dac(self, name: str, shape: Shape) -> torch.Tensor:
        """Return a tensor of the codec in transformers' layout, float32.

        Residual units add little, so that rounding errors do not grow. The last convolution gives amplitudes of some
        tenths of full scale.
        """
        numbers = self.normal(f"dac.{name}", shape)
        if name.endswith("alpha"):
            return numbers.mul_(0.25).exp_()
        if name.endswith("bias"):
            return numbers.mul_(0.02)
        if name.endswith("codebook.weight"):
            return numbers
        fan_in = 2 * shape[0] if name.endswith("conv_t1.weight") else math.prod(shape[1:])
        numbers.mul_(1 / math.sqrt(fan_in))
        if name.endswith("out_proj.weight"):
            numbers.mul_(1 / 3)  # nine codebooks add up to latents of length 1 per channel
        if "res_unit" in name and name.endswith("conv2.weight"):
            numbers.mul_(0.2)
        if name == "decoder.conv2.weight":
            numbers.mul_(0.05)
        return numbers


def fabricate_dac(
    out: Path, *, size: str = "tiny", release: bool = False, seed: int = 0, changes: Mapping[str, Any] | None = None
) -> Path:
    """Write a DAC codec into `out`, float32: transformers' layout, or descript's release (one .pth, weight norm)."""
    out.mkdir(parents=True, exist_ok=True)
    raw = dac_config(size, **(changes or {}))
    config = parse_dac_config(raw)
    numbers = _Numbers(seed, DiaShape())
    shapes = dac_layout.expected_shapes(config)
    if release:
        torch.save(
            _released(config, {name: numbers.dac(name, shape) for name, shape in shapes.items()}), out / DAC_RELEASE
        )
        return out
    write_file(out / "model.safetensors", shapes, numbers.dac, torch.float32)
    write_json(out / "config.json", raw)
    write_json(out / "preprocessor_config.json", _extractor(config))
    return out


def _extractor(config: DacConfig) -> dict[str, Any]:
    return {
        "feature_extractor_type": "DacFeatureExtractor", "feature_size": 1, "hop_length": config.frame_samples,
        "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": config.rate_hz,
    }  # fmt: skip


def _released(config: DacConfig, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the tensors of descript's file, with its names.

    Each convolution is stored as a length g and a direction v of any length.
    """
    theirs = {ours: name for name, ours in dac_layout.release_modules(config).items()}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last == "weight" and not module.endswith("codebook"):
            length = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
            state[f"{theirs[module]}.weight_g"] = length
            state[f"{theirs[module]}.weight_v"] = tensor * (0.5 / length)
        else:
            state[f"{theirs[module]}.{last}"] = tensor
    c = config
    kwargs = {
        "encoder_dim": c.encoder_width, "encoder_rates": list(c.down_ratios), "latent_dim": c.latent_width,
        "decoder_dim": c.decoder_width, "decoder_rates": list(c.up_ratios), "n_codebooks": c.codebooks,
        "codebook_size": c.codebook_size, "codebook_dim": c.codebook_dim, "quantizer_dropout": 0.5,
        "sample_rate": c.rate_hz,
    }  # fmt: skip
    return {"state_dict": state, "metadata": {"kwargs": kwargs}}


def fabricate_dia(
    out: Path,
    *,
    size: str = "tiny",
    shape: Mapping[str, Any] | None = None,
    codec: Mapping[str, Any] | None = None,
    layout_name: str = "transformers",
    release: str = "0626",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    eos: bool = False,
    sharded: bool | None = None,
    safetensors: bool = False,
    spelling: Literal["published", "new"] = "published",
) -> Path:
    """Write a Dia checkpoint into `out` and its codec into `out`/dac.

    shape: changes to the DiaShape of `size`; codec: changes to the codec's config.json. sharded None = as the published
    one of that size. safetensors: nari's names in a .safetensors, as conversions of the first release are. eos: row EOS
    of channel 0 is that of a frequent token, a little longer, so that generations end by themselves, most within some
    hundred frames; needs transformers, and a minute more for the full size. Raises ValueError if no such release
    exists.
    """
    if release not in ("0626", "v0.1") or layout_name not in ("transformers", "nari"):
        raise ValueError(f"there is no release {release!r} in layout {layout_name!r}")
    if release == "v0.1" and layout_name == "transformers":
        raise ValueError(
            "Dia v0.1 does not exist in transformers' layout: that class has no RoPE in cross-attention, so it is "
            "another model. Choose --layout nari, or --release 0626."
        )
    sizes = replace(SHAPES[size], **(shape or {}))
    out.mkdir(parents=True, exist_ok=True)
    numbers = _Numbers(seed, sizes)
    if eos:
        gain = _EOS_MARGIN if release == "0626" else _EOS_MARGIN / _V01_EOS_FACTOR
        numbers.eos_like = _frequent_token(sizes, numbers, 160 if size == "tiny" else 48), gain
    changes = {"n_codebooks": sizes.channels, **(codec or {})}
    fabricate_dac(out / "dac", size=size, release=layout_name == "nari", seed=seed, changes=changes)
    write_json(out / "config.json", dia_config(sizes, spelling) if release == "0626" else dia_config_v01(sizes))
    shapes = dia_shapes(sizes)
    if layout_name == "nari":
        stem = "dia-v1" if release == "0626" else "dia-v0_1"
        state = nari_state(sizes, lambda name: numbers.dia(name, shapes[name]).to(dtype))
        if safetensors:
            suffix = "_bf16" if dtype == torch.bfloat16 else ""
            kept = {name: tuple(tensor.shape) for name, tensor in state.items()}
            write_file(out / f"{stem}{suffix}.safetensors", kept, lambda name, _: state[name], dtype)
        else:
            torch.save(state, out / f"{stem}.pth")
        return out
    if sharded if sharded is not None else size == "full":
        parts = halves(shapes) if size == "tiny" else list(shards(shapes, dtype.itemsize))
        write_shards(out, "model", parts, numbers.dia, dtype)
    else:
        write_file(out / "model.safetensors", shapes, numbers.dia, dtype)
    _write_processor(out, sizes, parse_dac_config(dac_config(size, **changes)))
    return out


def _frequent_token(s: DiaShape, numbers: _Numbers, steps: int) -> int:
    """Return the token that channel 0 chooses most often in a greedy generation, without the tokens at its beginning.

    The model of transformers is used also for v0.1, since the most frequent token is about the same in both models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import DiaConfig, DiaForConditionalGeneration

    model = DiaForConditionalGeneration(DiaConfig(**dia_config(s, "new")))
    model.train(mode=False)
    model.load_state_dict({name: numbers.dia(name, shape) for name, shape in dia_shapes(s).items()})
    text = torch.tensor([[1, *b" One voice, a few words, and a sentence of common length."]])
    beginning = torch.full((1, 1, s.channels), s.bos)
    generated = model.generate(
        input_ids=text,
        attention_mask=torch.ones_like(text),
        decoder_input_ids=beginning,
        decoder_attention_mask=torch.ones(1, 1 + max(s.delays), dtype=torch.long),
        max_new_tokens=steps + max(s.delays),
        guidance_scale=3.0,
        top_k=45,
        do_sample=False,
    )
    tokens: list[int] = generated[0, 1 : 1 + steps, 0].tolist()
    early = set(tokens[: steps // 4])
    counts = Counter(token for token in tokens if token < s.eos)
    return max(counts, key=lambda token: (token not in early, counts[token]))


def _write_processor(out: Path, s: DiaShape, codec: DacConfig) -> None:
    """Write the files that transformers' DiaProcessor and generate need.

    The processor's config contains the absolute path of its codec.
    """
    ids = {"bos_token_id": s.bos, "eos_token_id": s.eos, "pad_token_id": s.pad}
    write_json(
        out / "generation_config.json",
        {
            "do_sample": True, "guidance_scale": 3.0, "temperature": 1.2, "top_p": 0.95, "top_k": 45,
            "max_length": s.max_positions, **ids,
        },
    )  # fmt: skip
    write_json(out / "preprocessor_config.json", {**_extractor(codec), "processor_class": "DiaProcessor"})
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "DiaTokenizer", "processor_class": "DiaProcessor", "pad_token": "<pad>",
            "unk_token": "<pad>", "max_length": s.max_text, "model_max_length": s.max_text, "offset": 0,
        },
    )  # fmt: skip
    tokenizer = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": str((out / "dac").resolve())}
    write_json(out / "processor_config.json", {"processor_class": "DiaProcessor", "audio_tokenizer": tokenizer})
