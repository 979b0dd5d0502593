"""Converts both published layouts of a Dia checkpoint to the same tensor names, and checks names and shapes.

The model uses the names of the transformers layout. In the layout of nari, weights have the axes of JAX's DenseGeneral:
an attention weight is (in, heads, size) or (heads, size, out), the gate and up weights are one tensor (in, 2, ffn), the
output head is (in, channels, ids), and each channel has a separate embedding table.

The server refuses weights of v0.1 in the transformers layout. The converter of transformers accepts v0.1, but
transformers has no RoPE in cross-attention, so the converted model speaks wrongly. This module recognises such weights
by config.json (keys of v0.1, or a `version` or `_name_or_path` that names v0.1) and by the name of the file or
repository. The tensors do not show the release, because the tensors of v0.1 and 0626 have the same names and shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import PurePath

import torch
from torch import Tensor

from app.engines.dia.config import DiaConfig
from app.errors import WeightsUnavailable
from app.nn.transformer import StackConfig
from app.weights.tensors import Checkpoint, Derived, Shape, Stored

TEXT_TABLE = "model.encoder.embedding.weight"
AUDIO_TABLE = "model.decoder.embeddings.embed.weight"
HEAD = "logits_dense.weight"
ENCODER = "model.encoder."
DECODER = "model.decoder."

_NARI_TEXT_TABLE = "encoder.embedding.weight"
_NARI_AUDIO_TABLE = "decoder.embeddings.{}.weight"
_NARI_HEAD = "decoder.logits_dense.weight"
_V01_FILE = re.compile(r"v0[_.]1(?!\d)")  # matches a part of dia-v0_1.pth and of dia-v0_1_bf16.safetensors
_0626_FILE = re.compile(r"dia-v1\b|0626")
_V01_REPO = re.compile(r"nari-labs(/|--)Dia-1\.6B(?![-\w])")  # does not match any part of nari-labs/Dia-1.6B-0626


def stack_shapes(config: StackConfig, prefix: str) -> dict[str, Shape]:
    """Return the name and the shape of every tensor of the encoder or the decoder, without the embedding tables."""
    c = config
    query, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    mlp_norm = "post_sa_norm" if c.cross is None else "pre_mlp_norm"
    shapes: dict[str, Shape] = {f"{prefix}norm.weight": (c.width,)}
    for layer in range(c.layers):
        at = f"{prefix}layers.{layer}."
        shapes |= {
            f"{at}pre_sa_norm.weight": (c.width,),
            f"{at}self_attention.q_proj.weight": (query, c.width),
            f"{at}self_attention.k_proj.weight": (shared, c.width),
            f"{at}self_attention.v_proj.weight": (shared, c.width),
            f"{at}self_attention.o_proj.weight": (c.width, query),
            f"{at}{mlp_norm}.weight": (c.width,),
            f"{at}mlp.gate_up_proj.weight": (2 * c.ffn, c.width),
            f"{at}mlp.down_proj.weight": (c.width, c.ffn),
        }
        if (cross := c.cross) is not None:
            cross_query, cross_shared = cross.heads * cross.head_dim, cross.kv_heads * cross.head_dim
            shapes |= {
                f"{at}pre_ca_norm.weight": (c.width,),
                f"{at}cross_attention.q_proj.weight": (cross_query, c.width),
                f"{at}cross_attention.k_proj.weight": (cross_shared, cross.width),
                f"{at}cross_attention.v_proj.weight": (cross_shared, cross.width),
                f"{at}cross_attention.o_proj.weight": (c.width, cross_query),
            }
    return shapes


def expected_shapes(config: DiaConfig) -> dict[str, Shape]:
    """Return the name and the shape of every tensor, in the transformers layout."""
    c = config
    return {
        TEXT_TABLE: (c.text_vocab, c.encoder.width),
        AUDIO_TABLE: (c.channels * c.audio_vocab, c.decoder.width),
        HEAD: (c.channels * c.audio_vocab, c.decoder.width),
        **stack_shapes(c.encoder, ENCODER),
        **stack_shapes(c.decoder, DECODER),
    }


def nari_name(name: str) -> str:
    """Convert a tensor's name from the transformers layout to the layout of nari.

    Do not call this for the audio table, because the layout of nari has one table for each channel.
    """
    if name == HEAD:
        return _NARI_HEAD
    name = name.removeprefix("model.")
    return name.replace("mlp.gate_up_proj.", "mlp.wi_fused.").replace("mlp.down_proj.", "mlp.wo.")


def nari_shapes(config: DiaConfig) -> dict[str, Shape]:
    """Return the name and the shape of every tensor, in the layout of nari."""
    c = config
    shapes: dict[str, Shape] = {}
    for name, shape in expected_shapes(config).items():
        if name == AUDIO_TABLE:
            shapes |= {_NARI_AUDIO_TABLE.format(i): (c.audio_vocab, shape[1]) for i in range(c.channels)}
        else:
            shapes[nari_name(name)] = _nari_shape(name, shape, config)
    return shapes


def _nari_shape(name: str, shape: Shape, config: DiaConfig) -> Shape:
    """Convert a tensor's shape from the transformers layout to the layout of nari."""
    if name == HEAD:
        return (shape[1], config.channels, config.audio_vocab)
    stack = config.encoder if name.startswith(ENCODER) else config.decoder
    size = stack.head_dim if "self_attention" in name or stack.cross is None else stack.cross.head_dim
    if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
        return (shape[1], shape[0] // size, size)
    if name.endswith("o_proj.weight"):
        return (shape[1] // size, size, shape[0])
    if name.endswith("gate_up_proj.weight"):
        return (shape[1], 2, shape[0] // 2)
    if name.endswith("down_proj.weight"):
        return (shape[1], shape[0])
    return shape


def weights_of(candidates: list[Checkpoint], config: DiaConfig, source: str = "") -> Checkpoint:
    """Check the tensors of a checkpoint, and return them, named as in the model.

    candidates: the checkpoints in the model's folder; the first checkpoint with Dia weights is used. source: the hub id
    or folder of the weights. Raises WeightsUnavailable if no candidate has Dia weights, if tensors are missing,
    unexpected or of the wrong shape, or if the weights belong to another release than config.json.
    """
    for candidate in candidates:
        checkpoint = candidate.unwrapped()
        if TEXT_TABLE in checkpoint:
            _refuse_converted_v01(checkpoint, config, source)
            checkpoint.check(expected_shapes(config), ignore=_derivable)
            return checkpoint
        if _NARI_TEXT_TABLE in checkpoint:
            _refuse_wrong_config(checkpoint, config, source)
            checkpoint.check(nari_shapes(config), ignore=_derivable)
            return _from_nari(checkpoint, config)
    raise WeightsUnavailable(
        f"{candidates[0].origin} contains no Dia weights: neither {TEXT_TABLE} (transformers layout) nor "
        f"{_NARI_TEXT_TABLE} (nari's layout)."
    )


def _derivable(name: str) -> bool:
    """Return whether the model computes this tensor itself. `check` ignores such tensors in a checkpoint."""
    return name.endswith(("rotary_emb.inv_freq", "embeddings.offsets", "timescale"))


def _refuse_converted_v01(checkpoint: Checkpoint, config: DiaConfig, source: str) -> None:
    """Raise WeightsUnavailable if weights in the transformers layout are converted from v0.1."""
    file = PurePath(checkpoint.origin).name
    signs = [f"config.json contains {origin!r}" for origin in config.origins if _names_v01(origin)]
    if config.release == "v0.1":
        signs.append("config.json has the keys of v0.1")
    if _V01_FILE.search(file):
        signs.append(f"the file is named {file}")
    if _V01_REPO.search(source) or _V01_REPO.search(checkpoint.origin):
        signs.append("the weights come from the repository of v0.1")
    if signs:
        raise WeightsUnavailable(
            f"{checkpoint.origin} has weights of Dia-1.6B v0.1 in the transformers layout ({'; '.join(signs)}). "
            "transformers lacks the RoPE in cross-attention of v0.1, so these weights would load, but speak wrongly.",
            remedy="Use the original files of v0.1 (nari-labs/Dia-1.6B) or the later nari-labs/Dia-1.6B-0626.",
        )


def _refuse_wrong_config(checkpoint: Checkpoint, config: DiaConfig, source: str) -> None:
    """Raise WeightsUnavailable if config.json and the name of the file or repository belong to different releases."""
    file = PurePath(checkpoint.origin).name
    named_v01 = _V01_FILE.search(file) or any(map(_names_v01, config.origins)) or _V01_REPO.search(source)
    named_0626 = _0626_FILE.search(file)
    if (config.release == "0626" and named_v01) or (config.release == "v0.1" and named_0626):
        other = "v0.1" if config.release == "0626" else "0626"
        raise WeightsUnavailable(
            f"{checkpoint.origin} has weights of Dia-1.6B {other}, but its config.json belongs to {config.release}. "
            "The model would load, but speak wrongly.",
            remedy="Use the config.json that was published with these weights.",
        )


def _names_v01(origin: str) -> bool:
    """Return whether an entry of config.json ("key value") names v0.1."""
    key, _, value = origin.partition(" ")
    if key == "version":
        return value.startswith("0.")
    return bool(_V01_REPO.search(value) or _V01_FILE.search(value))


def _from_nari(checkpoint: Checkpoint, config: DiaConfig) -> Checkpoint:
    """Return the tensors of a checkpoint in the layout of nari, with the names and shapes of transformers."""
    renamed: dict[str, Stored] = {}
    for name, shape in expected_shapes(config).items():
        if name == AUDIO_TABLE:
            tables = [_NARI_AUDIO_TABLE.format(i) for i in range(config.channels)]
            renamed[name] = Derived(shape, _concatenated(checkpoint, tables))
        elif len(shape) == 1 or name == TEXT_TABLE:
            renamed[name] = checkpoint.tensors[nari_name(name)]
        else:
            inputs = 2 if name.endswith("o_proj.weight") else 1
            renamed[name] = Derived(shape, _as_linear(checkpoint, nari_name(name), inputs))
    return Checkpoint(renamed, checkpoint.origin)


def _concatenated(checkpoint: Checkpoint, names: list[str]) -> Callable[[], Tensor]:
    """Return a function that reads these tensors and joins them along the first axis."""

    def make() -> Tensor:
        return torch.cat([checkpoint.read(name) for name in names])

    return make


def _as_linear(checkpoint: Checkpoint, name: str, inputs: int) -> Callable[[], Tensor]:
    """Return a function that reads a weight in the layout of nari and converts it to (out, in).

    inputs: the number of leading axes that are inputs; all later axes are outputs.
    """

    def make() -> Tensor:
        whole = checkpoint.read(name)
        return whole.reshape(math.prod(whole.shape[:inputs]), -1).T

    return make
