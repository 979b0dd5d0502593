"""Converts the two published layouts of a CSM checkpoint to one set of names, and checks names and shapes.

The model uses the names of the transformers layout. The original layout (SesameAILabs) names the tensors differently,
and contains no codec and only one audio table. In the original layout, the rows of the query and key weights are in the
order of interleaved RoPE pairs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from app.engines.csm.config import CsmConfig
from app.errors import WeightsUnavailable
from app.nn.mimi import checkpoint as mimi_layout
from app.nn.mimi.config import KNOWN_NAMES
from app.nn.transformer import StackConfig
from app.weights.tensors import Checkpoint, Derived, Shape, Stored

log = logging.getLogger(__name__)

TEXT_TABLE = "embed_text_tokens.weight"
AUDIO_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
DEPTH_TABLE = "depth_decoder.model.embed_tokens.weight"
HEAD = "lm_head.weight"
PROJECTION = "depth_decoder.model.inputs_embeds_projector.weight"
HEADS = "depth_decoder.codebooks_head.weight"
BACKBONE = "backbone_model."
DEPTH = "depth_decoder.model."
CODEC = "codec_model."
TIED = ((AUDIO_TABLE, DEPTH_TABLE),)
_COMPARED_ROWS = 64
# if the mean cosine of the two audio tables is below this number, one table is random; 1 = the tables are equal
_RANDOM = 0.5

_ORIGINAL_NAMES = {
    "text_embeddings.weight": TEXT_TABLE,
    "audio_embeddings.weight": AUDIO_TABLE,
    "projection.weight": PROJECTION,
    "codebook0_head.weight": HEAD,
    "audio_head": HEADS,
    "backbone.norm.scale": BACKBONE + "norm.weight",
    "decoder.norm.scale": DEPTH + "norm.weight",
}
_ORIGINAL_LAYER = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
    "sa_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_LAYER = re.compile(r"^(backbone|decoder)\.layers\.(\d+)\.(.+)\.(weight|scale)$")


def stack_shapes(config: StackConfig, prefix: str) -> dict[str, Shape]:
    """Return the name and the shape of every tensor of one transformer. prefix: the text at the start of each name."""
    c = config
    query, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes: dict[str, Shape] = {f"{prefix}norm.weight": (c.width,)}
    for layer in range(c.layers):
        at = f"{prefix}layers.{layer}."
        linears = {
            "self_attn.q_proj": (query, c.width, c.attention_bias),
            "self_attn.k_proj": (shared, c.width, c.attention_bias),
            "self_attn.v_proj": (shared, c.width, c.attention_bias),
            "self_attn.o_proj": (c.width, query, c.attention_bias),
            "mlp.gate_proj": (c.ffn, c.width, c.mlp_bias),
            "mlp.up_proj": (c.ffn, c.width, c.mlp_bias),
            "mlp.down_proj": (c.width, c.ffn, c.mlp_bias),
        }
        for name, (outputs, inputs, bias) in linears.items():
            shapes[f"{at}{name}.weight"] = (outputs, inputs)
            if bias:
                shapes[f"{at}{name}.bias"] = (outputs,)
        shapes[f"{at}input_layernorm.weight"] = (c.width,)
        shapes[f"{at}post_attention_layernorm.weight"] = (c.width,)
    return shapes


def expected_shapes(config: CsmConfig) -> dict[str, Shape]:
    """Return the name and the shape of every tensor of the language model, in the transformers layout."""
    c = config
    return {
        TEXT_TABLE: (c.text_vocab, c.backbone.width),
        AUDIO_TABLE: (c.codebooks * c.audio_vocab, c.backbone.width),
        DEPTH_TABLE: (c.codebooks * c.depth_vocab, c.backbone.width),
        HEAD: (c.audio_vocab, c.backbone.width),
        PROJECTION: (c.depth.width, c.backbone.width),
        HEADS: (c.codebooks - 1, c.depth.width, c.depth_vocab),
        **stack_shapes(c.backbone, BACKBONE),
        **stack_shapes(c.depth, DEPTH),
    }


def language_model(candidates: list[Checkpoint], config: CsmConfig) -> tuple[Checkpoint, Checkpoint | None]:
    """Return the tensors of the language model, named as in the model, and the tensors of the codec.

    candidates: the checkpoints in the model's folder; the first checkpoint with CSM weights is used. The second result
    is None if this checkpoint contains no codec, or a codec with unknown names. Raises WeightsUnavailable if no
    checkpoint has CSM weights, or if tensors are missing, unexpected or of the wrong shape.
    """
    for candidate in candidates:
        checkpoint = candidate.unwrapped()
        codec = checkpoint.part(CODEC)
        if TEXT_TABLE in checkpoint:
            model = checkpoint.without(CODEC)
        elif "text_embeddings.weight" in checkpoint:
            model = _from_original(checkpoint.without(CODEC), config)
        else:
            continue
        # The backbone and the depth decoder may share one audio table. Then a checkpoint may contain this table under
        # only one of its two names.
        if config.tied and config.audio_vocab == config.depth_vocab:
            for one, other in ((AUDIO_TABLE, DEPTH_TABLE), (DEPTH_TABLE, AUDIO_TABLE)):
                if one not in model and other in model:
                    model.tensors[one] = model.tensors[other]
        model.check(expected_shapes(config), ignore=_derivable)
        _repair_table(model, config)
        if codec.tensors and not any(name.startswith(KNOWN_NAMES) for name in codec):
            log.warning(
                "%s contains a codec whose tensors have unknown names, such as %s. The server uses CSM_CODEC instead.",
                model.origin,
                CODEC + next(iter(codec)),
            )
            return model, None
        return model, codec if codec.tensors else None
    raise WeightsUnavailable(
        f"{candidates[0].origin} contains no CSM weights: neither {TEXT_TABLE} (transformers layout) nor "
        "text_embeddings.weight (original layout)."
    )


def _repair_table(model: Checkpoint, config: CsmConfig) -> None:
    """If the audio tables must be equal but the backbone's table is random, use the depth decoder's table for both.

    Some releases of transformers 5 saved such checkpoints, because they loaded the base model without tying its tables.
    """
    if not config.tied or config.audio_vocab != config.depth_vocab:
        return
    backbone, depth = model.tensors[AUDIO_TABLE], model.tensors[DEPTH_TABLE]
    if backbone is depth:
        return
    step = max(1, depth.shape[0] // _COMPARED_ROWS)
    pairs = [(backbone.rows(i, i + 1).float(), depth.rows(i, i + 1).float()) for i in range(0, depth.shape[0], step)]
    one, other = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    if torch.equal(one, other):
        model.tensors[AUDIO_TABLE] = depth
        return
    cosine = float(functional.cosine_similarity(one, other).mean())
    if cosine < _RANDOM:
        log.warning(
            "%s has two audio tables that must be equal, but they differ (cosine %.2f). The backbone's table is "
            "random, so the server uses the depth decoder's table for both.",
            model.origin,
            cosine,
        )
        model.tensors[AUDIO_TABLE] = depth


def tied_tables(model: Checkpoint) -> tuple[tuple[str, str], ...]:
    """Return the names of the two audio tables if both names refer to one tensor; otherwise return ()."""
    return TIED if model.tensors[AUDIO_TABLE] is model.tensors[DEPTH_TABLE] else ()


def checkpoint_name(name: str) -> str:
    """Convert the name of a tensor in a model of transformers to the name of this tensor in a checkpoint.

    The names of the codec's tensors in a model depend on the version of transformers. The names in a checkpoint do not.
    """
    if not name.startswith(CODEC):
        return name
    return CODEC + mimi_layout.checkpoint_name(name.removeprefix(CODEC))


def _derivable(name: str) -> bool:
    """Whether the model computes this tensor itself. `check` ignores such tensors in a checkpoint."""
    return name.endswith(("rotary_emb.inv_freq", "audio_tokens_offsets", "_causal_mask", "rope.theta", "rope.cache"))


def _from_original(checkpoint: Checkpoint, config: CsmConfig) -> Checkpoint:
    """Rename and reorder the tensors of the original layout."""
    renamed: dict[str, Stored] = {}
    for name, stored in checkpoint.tensors.items():
        if name in _ORIGINAL_NAMES:
            renamed[_ORIGINAL_NAMES[name]] = stored
            continue
        match = _LAYER.match(name)
        if match is None or match[3] not in _ORIGINAL_LAYER:
            renamed[name] = stored  # the name is unknown, so `check` reports this tensor as unexpected
            continue
        prefix, stack = (BACKBONE, config.backbone) if match[1] == "backbone" else (DEPTH, config.depth)
        if match[3] in ("attn.q_proj", "attn.k_proj"):
            converted: Stored = Derived(stored.shape, _half_split(stored, stack.head_dim))
        else:
            converted = stored
        renamed[f"{prefix}layers.{match[2]}.{_ORIGINAL_LAYER[match[3]]}.weight"] = converted
    return Checkpoint(renamed, checkpoint.origin)


def _half_split(stored: Stored, head_dim: int) -> Callable[[], Tensor]:
    """Return a function that reads a tensor and reorders the rows of each head.

    The order changes from interleaved RoPE pairs (x0, y0, x1, y1, ...) to half-split (x0, x1, ..., y0, y1, ...).
    """

    def make() -> Tensor:
        outputs, inputs = stored.shape
        whole = stored.rows(0, outputs)
        return whole.view(outputs // head_dim, head_dim // 2, 2, inputs).transpose(1, 2).reshape(outputs, inputs)

    return make
