"""The linear layers of Dia that LoRA adapters of single rows can change, and the names of their tensors.

For guidance, a row has two tokens in each step: a conditional token and an unconditional token. Therefore the layers
are in three groups: layers that read both tokens of each row (""), layers that read only conditional tokens
(CONDITIONAL), and layers that read the text (TEXT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.engines.dia.checkpoint import DECODER, ENCODER, HEAD, expected_shapes
from app.engines.shared.adapters import AdapterTarget, places_of_stack, weights_of_stack
from app.nn.low_rank import Place

if TYPE_CHECKING:
    from app.engines.dia.model import DiaModel

CONDITIONAL, TEXT = "conditional", "text"

_IN_LAYER = {
    "self_attention.q_proj": ("qkv", 0),
    "self_attention.k_proj": ("qkv", 1),
    "self_attention.v_proj": ("qkv", 2),
    "self_attention.o_proj": ("out", 0),
    "mlp.gate_up_proj": ("gate_up", 0),
    "mlp.down_proj": ("down", 0),
}
_CROSS = {
    "cross_attention.q_proj": ("cross_q", 0),
    "cross_attention.k_proj": ("cross_kv", 0),
    "cross_attention.v_proj": ("cross_kv", 1),
    "cross_attention.o_proj": ("cross_out", 0),
}


def target_of(model: DiaModel) -> AdapterTarget:
    """Return the AdapterTarget of a Dia model: which tensors adapters can change, and to which layers they belong."""
    c = model.config
    return AdapterTarget(
        "Dia",
        "DIA_MODEL",
        model,
        places_of(model),
        {
            HEAD: [("head", 0)],
            **weights_of_stack("encoder", ENCODER, c.encoder.layers, _IN_LAYER),
            **weights_of_stack("decoder", DECODER, c.decoder.layers, _IN_LAYER | _CROSS),
        },
        expected_shapes(c),
    )


def places_of(model: DiaModel) -> dict[str, Place]:
    """Return all linear layers of the model that an adapter can change. The keys are the names of the layers."""
    c = model.config
    return {
        "head": Place(model, "head", (c.channels * c.audio_vocab,), model.device),
        **places_of_stack("encoder", model.encoder, group=TEXT, split_gate=False),
        **places_of_stack("decoder", model.decoder, split_gate=False, cross=(CONDITIONAL, TEXT)),
    }


def changes_text(places: set[str]) -> bool:
    """Return whether an adapter for the layers `places` also changes the cross-attention of unconditional tokens."""
    return any(name.startswith("encoder.") or name.endswith(("cross_kv", "cross_out")) for name in places)
