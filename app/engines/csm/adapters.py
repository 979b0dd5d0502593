"""The linear layers of CSM that LoRA adapters of single rows can change, and the names of their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from app.engines.csm import checkpoint
from app.engines.csm.checkpoint import CODEC, checkpoint_name, expected_shapes
from app.engines.shared.adapters import AdapterTarget, one_matrix, places_of_stack, weights_of_stack
from app.nn.low_rank import Place

if TYPE_CHECKING:
    from app.engines.csm.model import CsmModel
    from app.weights.tensors import Shape

_IN_LAYER = {
    "self_attn.q_proj": ("qkv", 0),
    "self_attn.k_proj": ("qkv", 1),
    "self_attn.v_proj": ("qkv", 2),
    "self_attn.o_proj": ("out", 0),
    "mlp.gate_proj": ("gate_up", 0),
    "mlp.up_proj": ("gate_up", 1),
    "mlp.down_proj": ("down", 0),
}


def target_of(model: CsmModel) -> AdapterTarget:
    """Return the AdapterTarget of a CSM model: which tensors adapters can change, and to which layers they belong."""
    c = model.config
    heads = [(f"heads.{i}", 0) for i in range(c.codebooks - 1)]
    untied = {checkpoint.PROJECTION: "the projection, and this model has two different audio tables"}
    return AdapterTarget(
        "CSM",
        "CSM_MODEL",
        model,
        places_of(model),
        {
            checkpoint.PROJECTION: [("projection", 0)],
            checkpoint.HEAD: [("head", 0)],
            checkpoint.HEADS: heads,
            **weights_of_stack("backbone", checkpoint.BACKBONE, c.backbone.layers, _IN_LAYER),
            **weights_of_stack("depth", checkpoint.DEPTH, c.depth.layers, _IN_LAYER),
        },
        expected_shapes(c),
        frozen=(CODEC,),
        outputs={checkpoint.HEAD: c.codebook_size, checkpoint.HEADS: c.codebook_size},
        unusable={} if model.tied else untied,
        rename=checkpoint_name,
        matrices=_matrices,
    )


def places_of(model: CsmModel) -> dict[str, Place]:
    """Return all linear layers of the model that an adapter can change. The keys are the names of the layers."""
    c = model.config
    places = {
        "projection": Place(model, "projection", (c.depth.width,), model.device),
        "head": Place(model, "head", (c.codebook_size,), model.device),
    }
    places |= {
        f"heads.{i}": Place(model.heads, str(i), (c.codebook_size,), model.device) for i in range(c.codebooks - 1)
    }
    for name, stack in (("backbone", model.backbone), ("depth", model.depth)):
        places |= places_of_stack(name, stack, split_gate=True)
    return places


def _matrices(name: str, a: Tensor, b: Tensor, shape: Shape) -> list[tuple[Tensor, Tensor]] | None:
    """Return a pair for each matrix of a tensor: A (r, inputs) and B transposed (r, outputs).

    Returns None if A and B do not fit the tensor. shape: the shape of the tensor in the model. One tensor contains the
    weights of all heads; its shape is (heads, inputs, outputs). PEFT's option `target_parameters` adapts this tensor
    with A (heads * r, outputs) and B (inputs, r * heads), or with A (heads * r, inputs) and B (outputs, r * heads).
    """
    if name != checkpoint.HEADS:
        return one_matrix(name, a, b, shape)
    heads, inputs, outputs = shape
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] % heads:
        return None
    a, b = a.view(heads, -1, a.shape[1]), b.view(b.shape[0], -1, heads)
    if (b.shape[0], a.shape[2]) == (inputs, outputs):
        return [(b[:, :, i].t(), a[i]) for i in range(heads)]
    if (a.shape[2], b.shape[0]) == (inputs, outputs):
        return [(a[i], b[:, :, i].t()) for i in range(heads)]
    return None
