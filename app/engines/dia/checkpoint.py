"""The two published layouts of a Dia checkpoint, brought to one set of names. Knows names and shapes, no arithmetic.

The names used inside are those of the transformers layout. nari's has the axes of JAX's DenseGeneral: a linear of
several heads is (in, heads, size) or (heads, size, out), gate and up are (in, 2, ffn), the head is (in, channels, ids),
and each channel has an embedding of its own.

What is refused here: weights of v0.1 that were brought into the transformers layout. transformers has no RoPE in
cross-attention, so there is no such model that is right; its converter makes one all the same, from v0.1 by default.
Recognised by config.json (keys of v0.1, or a `version` or `_name_or_path` that names it) and by the name of the file or
repository. A conversion without any such trace cannot be distinguished from 0626: names, shapes and sizes are the same.
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
_FIRST_FILE = re.compile(r"v0[_.]1(?!\d)")  # dia-v0_1.pth, dia-v0_1_bf16.safetensors
_SECOND_FILE = re.compile(r"dia-v1\b|0626")
_FIRST_REPO = re.compile(r"nari-labs(/|--)Dia-1\.6B(?![-\w])")  # 0626's name goes on


def stack_shapes(config: StackConfig, prefix: str) -> dict[str, Shape]:
    """The tensors of encoder or decoder (which has cross-attention), less the tables."""
    c = config
    query, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    after = "post_sa_norm" if c.cross is None else "pre_mlp_norm"
    shapes: dict[str, Shape] = {f"{prefix}norm.weight": (c.width,)}
    for layer in range(c.layers):
        at = f"{prefix}layers.{layer}."
        shapes |= {
            f"{at}pre_sa_norm.weight": (c.width,),
            f"{at}self_attention.q_proj.weight": (query, c.width),
            f"{at}self_attention.k_proj.weight": (shared, c.width),
            f"{at}self_attention.v_proj.weight": (shared, c.width),
            f"{at}self_attention.o_proj.weight": (c.width, query),
            f"{at}{after}.weight": (c.width,),
            f"{at}mlp.gate_up_proj.weight": (2 * c.ffn, c.width),
            f"{at}mlp.down_proj.weight": (c.width, c.ffn),
        }
        if (other := c.cross) is not None:
            query_across, shared_across = other.heads * other.head_dim, other.kv_heads * other.head_dim
            shapes |= {
                f"{at}pre_ca_norm.weight": (c.width,),
                f"{at}cross_attention.q_proj.weight": (query_across, c.width),
                f"{at}cross_attention.k_proj.weight": (shared_across, other.width),
                f"{at}cross_attention.v_proj.weight": (shared_across, other.width),
                f"{at}cross_attention.o_proj.weight": (c.width, query_across),
            }
    return shapes


def expected_shapes(config: DiaConfig) -> dict[str, Shape]:
    """Every tensor in the transformers layout."""
    c = config
    return {
        TEXT_TABLE: (c.text_vocab, c.encoder.width),
        AUDIO_TABLE: (c.channels * c.audio_vocab, c.decoder.width),
        HEAD: (c.channels * c.audio_vocab, c.decoder.width),
        **stack_shapes(c.encoder, ENCODER),
        **stack_shapes(c.decoder, DECODER),
    }


def nari_name(name: str) -> str:
    """nari's name of a tensor in the transformers layout. The audio table is one tensor per channel there."""
    if name == HEAD:
        return _NARI_HEAD
    name = name.removeprefix("model.")
    return name.replace("mlp.gate_up_proj.", "mlp.wi_fused.").replace("mlp.down_proj.", "mlp.wo.")


def nari_shapes(config: DiaConfig) -> dict[str, Shape]:
    """Every tensor in nari's layout."""
    c = config
    shapes: dict[str, Shape] = {}
    for name, shape in expected_shapes(config).items():
        if name == AUDIO_TABLE:
            shapes |= {_NARI_AUDIO_TABLE.format(i): (c.audio_vocab, shape[1]) for i in range(c.channels)}
        else:
            shapes[nari_name(name)] = _nari_shape(name, shape, config)
    return shapes


def _nari_shape(name: str, shape: Shape, config: DiaConfig) -> Shape:
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
    """The model under its one set of names, checked. source: where the checkpoint is from, a hub id or a folder.

    Raises WeightsUnavailable.
    """
    for checkpoint in candidates:
        if TEXT_TABLE in checkpoint:
            _refuse_conversions(checkpoint, config, source)
            checkpoint.check(expected_shapes(config), ignore=_derivable)
            return checkpoint
        if _NARI_TEXT_TABLE in checkpoint:
            _refuse_another_release(checkpoint, config, source)
            checkpoint.check(nari_shapes(config), ignore=_derivable)
            return _from_nari(checkpoint, config)
    raise WeightsUnavailable(
        f"{candidates[0].origin} holds no Dia weights: neither {TEXT_TABLE} (transformers layout) nor "
        f"{_NARI_TEXT_TABLE} (nari's layout) is in it."
    )


def _derivable(name: str) -> bool:
    return name.endswith(("rotary_emb.inv_freq", "embeddings.offsets", "timescale"))


def _refuse_conversions(checkpoint: Checkpoint, config: DiaConfig, source: str) -> None:
    """Weights in the transformers layout must be of 0626."""
    file = PurePath(checkpoint.origin).name
    traces = [f"config.json says {trace!r}" for trace in config.traces if _is_first(trace)]
    if config.release == "v0.1":
        traces.append("config.json is that of v0.1")
    if _FIRST_FILE.search(file):
        traces.append(f"the file is named {file}")
    if _FIRST_REPO.search(source) or _FIRST_REPO.search(checkpoint.origin):
        traces.append("they come from the repository of v0.1")
    if traces:
        raise WeightsUnavailable(
            f"{checkpoint.origin} holds weights of Dia-1.6B v0.1 in the transformers layout ({'; '.join(traces)}). "
            "transformers lacks that model's RoPE in cross-attention: such a conversion loads and speaks wrongly.",
            remedy="Use the original files of v0.1 (nari-labs/Dia-1.6B) or the later nari-labs/Dia-1.6B-0626.",
        )


def _refuse_another_release(checkpoint: Checkpoint, config: DiaConfig, source: str) -> None:
    """Weights in nari's layout are of either model: the name of file or repository must not say the other one."""
    file = PurePath(checkpoint.origin).name
    first = _FIRST_FILE.search(file) or any(map(_is_first, config.traces)) or _FIRST_REPO.search(source)
    second = _SECOND_FILE.search(file)
    if (config.release == "0626" and first) or (config.release == "v0.1" and second):
        other = "v0.1" if config.release == "0626" else "0626"
        raise WeightsUnavailable(
            f"{checkpoint.origin} holds weights of Dia-1.6B {other}, but its config.json is that of {config.release}: "
            "they would load and speak wrongly.",
            remedy="Use the config.json that was published with these weights.",
        )


def _is_first(trace: str) -> bool:
    key, _, value = trace.partition(" ")
    if key == "version":
        return value.startswith("0.")
    return bool(_FIRST_REPO.search(value) or _FIRST_FILE.search(value))


def _from_nari(checkpoint: Checkpoint, config: DiaConfig) -> Checkpoint:
    named: dict[str, Stored] = {}
    for name, shape in expected_shapes(config).items():
        if name == AUDIO_TABLE:
            tables = [_NARI_AUDIO_TABLE.format(i) for i in range(config.channels)]
            named[name] = Derived(shape, _joined(checkpoint, tables))
        elif len(shape) == 1 or name == TEXT_TABLE:
            named[name] = checkpoint.tensors[nari_name(name)]
        else:
            inputs = 2 if name.endswith("o_proj.weight") else 1
            named[name] = Derived(shape, _turned(checkpoint, nari_name(name), inputs))
    return Checkpoint(named, checkpoint.origin)


def _joined(checkpoint: Checkpoint, names: list[str]) -> Callable[[], Tensor]:
    def make() -> Tensor:
        return torch.cat([checkpoint.read(name) for name in names])

    return make


def _turned(checkpoint: Checkpoint, name: str, inputs: int) -> Callable[[], Tensor]:
    """A DenseGeneral's weight, of which the first `inputs` axes are read, as (out, in)."""

    def make() -> Tensor:
        whole = checkpoint.read(name)
        return whole.reshape(math.prod(whole.shape[:inputs]), -1).T

    return make
