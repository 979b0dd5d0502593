"""Converts both published layouts of a Mimi checkpoint to the same tensor names, and checks names and shapes.

The model uses the names of kyutai/mimi (transformers layout). The layout of moshi joins the weights of queries, keys
and values in one tensor, where the rows of queries and keys are in the order of interleaved RoPE pairs. All other
tensors are the same in both layouts, but their names differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from app.errors import WeightsUnavailable
from app.nn.mimi.config import MimiConfig
from app.weights.tensors import Checkpoint, Derived, Shape, Stored

SEMANTIC = "quantizer.semantic_residual_vector_quantizer."
ACOUSTIC = "quantizer.acoustic_residual_vector_quantizer."


def expected_shapes(config: MimiConfig) -> dict[str, Shape]:
    """Return a mapping: name of each tensor of the codec in kyutai/mimi -> shape of the tensor."""
    c = config
    shapes: dict[str, Shape] = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.conv.weight"] = (outputs, inputs, kernel)
        shapes[f"{name}.conv.bias"] = (outputs,)

    def residual(name: str, width: int) -> None:
        conv(f"{name}.block.1", width, width // c.compress, c.residual_kernel)
        conv(f"{name}.block.3", width // c.compress, width, 1)
        if c.conv_shortcut:
            conv(f"{name}.shortcut", width, width, 1)

    width, index = c.filters, 1
    conv("encoder.layers.0", 1, width, c.kernel)
    for ratio in reversed(c.ratios):
        for _ in range(c.residual_layers):
            residual(f"encoder.layers.{index}", width)
            index += 1
        conv(f"encoder.layers.{index + 1}", width, 2 * width, 2 * ratio)
        width, index = 2 * width, index + 2
    conv(f"encoder.layers.{index + 1}", width, c.width, c.last_kernel)

    conv("decoder.layers.0", c.width, width, c.kernel)
    index = 1
    for ratio in c.ratios:
        name = f"decoder.layers.{index + 1}.conv"
        shapes[f"{name}.weight"] = (width, width // 2, 2 * ratio)
        shapes[f"{name}.bias"] = (width // 2,)
        width, index = width // 2, index + 2
        for _ in range(c.residual_layers):
            residual(f"decoder.layers.{index}", width)
            index += 1
    conv(f"decoder.layers.{index + 1}", c.filters, 1, c.last_kernel)

    shapes["downsample.conv.weight"] = (c.width, c.width, 2 * c.latent_stride)
    shapes["upsample.conv.weight"] = (c.width, c.width // c.upsample_groups, 2 * c.latent_stride)
    for side in ("encoder_transformer", "decoder_transformer"):
        for layer in range(c.layers):
            shapes |= {f"{side}.layers.{layer}.{name}": shape for name, shape in _layer_shapes(c).items()}
    for prefix, count in ((SEMANTIC, c.semantic_codebooks), (ACOUSTIC, c.codebooks - c.semantic_codebooks)):
        if c.quantizer_dim != c.width:
            shapes[f"{prefix}input_proj.weight"] = (c.quantizer_dim, c.width, 1)
            shapes[f"{prefix}output_proj.weight"] = (c.width, c.quantizer_dim, 1)
        for layer in range(count):
            shapes[f"{prefix}layers.{layer}.codebook.embed_sum"] = (c.codebook_size, c.codebook_dim)
            shapes[f"{prefix}layers.{layer}.codebook.cluster_usage"] = (c.codebook_size,)
    return shapes


def _layer_shapes(c: MimiConfig) -> dict[str, Shape]:
    query, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes: dict[str, Shape] = {
        "mlp.fc1.weight": (c.ffn, c.width),
        "mlp.fc2.weight": (c.width, c.ffn),
        "self_attn_layer_scale.scale": (c.width,),
        "mlp_layer_scale.scale": (c.width,),
    }
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes |= {f"{norm}.weight": (c.width,), f"{norm}.bias": (c.width,)}
    for name, outputs, inputs in (
        ("q_proj", query, c.width),
        ("k_proj", shared, c.width),
        ("v_proj", shared, c.width),
        ("o_proj", c.width, query),
    ):
        shapes[f"self_attn.{name}.weight"] = (outputs, inputs)
        if c.attention_bias:
            shapes[f"self_attn.{name}.bias"] = (outputs,)
    return shapes


# Name of a module in transformers 5 -> name of the same module in a checkpoint.
_MODULES = re.compile(
    r"^(encoder\.encoder_seanet|encoder\.encoder_transformer|encoder\.downsample|decoder\.decoder_seanet|"
    r"decoder\.decoder_transformer|decoder\.upsample)\."
)
_FIRST = {"transformers": "decoder.layers.0.conv.weight", "moshi": "decoder.model.0.conv.conv.weight"}


def checkpoint_name(name: str) -> str:
    """Convert the name of a tensor in a model of transformers 5 to the name of this tensor in a checkpoint."""
    if (match := _MODULES.match(name)) is None:
        return name
    side, inner = match[1].split(".")
    return (side if inner.endswith("_seanet") else inner) + name[match.end() - 1 :]


def codec(candidates: list[Checkpoint], config: MimiConfig) -> Checkpoint:
    """Check the tensors of a codec, and return them with the names of kyutai/mimi.

    candidates: checkpoints; the first checkpoint with a Mimi codec is used. Raises WeightsUnavailable if there is none,
    or if its tensors do not fit `config`.
    """
    for candidate in candidates:
        tensors = {checkpoint_name(name): stored for name, stored in candidate.unwrapped().tensors.items()}
        checkpoint = Checkpoint(tensors, candidate.origin)
        if _FIRST["transformers"] in checkpoint:
            found = checkpoint
        elif _FIRST["moshi"] in checkpoint:
            found = _from_moshi(checkpoint, config)
        else:
            continue
        found.check(expected_shapes(config), ignore=lambda name: name.endswith(("initialized", "inited", "inv_freq")))
        return found
    raise WeightsUnavailable(
        f"{candidates[0].origin} contains no Mimi codec: it has neither {_FIRST['transformers']} (transformers) nor "
        f"{_FIRST['moshi']} (moshi)."
    )


_MOSHI_NAMES = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"^(encoder|decoder)_transformer\.transformer\.", r"\1_transformer."),
    (r"\.convtr\.convtr\.convtr\.", ".conv."),
    (r"\.conv\.conv\.conv\.", ".conv."),
    (r"\.convtr\.convtr\.", ".conv."),
    (r"\.conv\.conv\.", ".conv."),
    (r"^quantizer\.rvq_first\.", SEMANTIC),
    (r"^quantizer\.rvq_rest\.", ACOUSTIC),
    (r"\.vq\.layers\.(\d+)\._codebook\._?", r".layers.\1.codebook."),
    (r"\.codebook\.(embedding_sum|embed_avg)$", ".codebook.embed_sum"),
    (r"\.codebook\.cluster_size$", ".codebook.cluster_usage"),
    (r"\.self_attn\.out_projs?(\.0)?\.weight$", ".self_attn.o_proj.weight"),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear1\.", ".mlp.fc1."),
    (r"\.linear2\.", ".mlp.fc2."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
)
_JOINED = re.compile(r"\.self_attn\.in_proj(s\.0\.weight|_weight|\.weight)$")


def _from_moshi(checkpoint: Checkpoint, config: MimiConfig) -> Checkpoint:
    renamed: dict[str, Stored] = {}
    for name, stored in checkpoint.tensors.items():
        for pattern, replacement in _MOSHI_NAMES:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901 - each pattern rewrites the name
        if match := _JOINED.search(name):
            start = 0
            for part, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
                rows = heads * config.head_dim
                rope_dim = None if part == "v" else config.head_dim
                renamed[f"{name[: match.start()]}.self_attn.{part}_proj.weight"] = Derived(
                    (rows, config.width), _cut(stored, start, start + rows, rope_dim)
                )
                start += rows
        else:
            renamed[name] = stored
    return Checkpoint(renamed, checkpoint.origin)


def _cut(stored: Stored, start: int, stop: int, head_dim: int | None) -> Callable[[], Tensor]:
    """Return a function that reads rows start..stop-1 of a tensor.

    head_dim: the number of rows of one head. If `head_dim` is given, the function reorders the rows of each head from
    interleaved to half-split RoPE pairs. If it is None, the order of the rows does not change.
    """

    def make() -> Tensor:
        rows = stored.rows(start, stop)
        if head_dim is None:
            return rows
        split = rows.view(-1, head_dim // 2, 2, rows.shape[1])
        return split.transpose(1, 2).reshape(rows.shape)

    return make
