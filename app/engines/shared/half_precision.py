"""Checks whether activations of a model overflow in float16. If activations overflow, loads the model in float32.

GPUs before compute capability 8.0 have no bfloat16, so the server uses float16 there. The largest value of float16 is
65504.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from app.nn.linear import Linear
from app.nn.transformer import Block

if TYPE_CHECKING:
    from app.runtime.cuda_graphs import Setup
    from app.settings import Settings

log = logging.getLogger(__name__)

# The largest accepted activation. This limit is far below the largest float16, because the check reads only a short
# sample, and other texts and voices may have larger activations.
LIMIT = torch.finfo(torch.float16).max / 4

Runner = TypeVar("Runner")


class HalfPrecisionOverflow(Exception):
    """The activations of the model are too large for float16."""


@torch.inference_mode()
def largest_activation(model: nn.Module, run: Callable[[], Tensor]) -> float:
    """Call `run`, and return the largest magnitude of all inputs and outputs of linear layers and transformer layers.

    run: computes a sample with the model, and returns the logits. Returns inf if any value is NaN or infinite.
    """
    largest: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        largest.extend(values.abs().amax().float() for values in (inputs[0], output) if isinstance(values, Tensor))

    hooks = [each.register_forward_hook(note) for each in model.modules() if isinstance(each, Linear | Block)]
    try:
        largest.append(run().abs().amax().float())
    finally:
        for hook in hooks:
            hook.remove()
    found = float(torch.stack([value.to(largest[0].device) for value in largest]).amax())
    return found if found == found else float("inf")  # noqa: PLR0124 - NaN is not equal to itself


def check_range(model: nn.Module, dtype: torch.dtype, run: Callable[[], Tensor], *, required: bool) -> None:
    """Raise HalfPrecisionOverflow if the dtype is float16 and an activation of the sample is above LIMIT.

    required: False = log a warning and raise no error. run: see largest_activation.
    """
    if dtype != torch.float16:
        return
    largest = largest_activation(model, run)
    if largest <= LIMIT:
        return
    reason = f"An activation of the model reaches {largest:.0f}, but float16 has values up to 65504."
    if required:
        raise HalfPrecisionOverflow(reason)
    log.warning("%s The server uses float16 because TTS_DTYPE=float16 is set: requests may fail with NaN.", reason)


def load_in_range(load: Callable[[Settings, Setup], Runner], settings: Settings) -> Runner:
    """Call `load(settings, notes)`. If the call raises HalfPrecisionOverflow, call `load` again with float32.

    notes: additional values for /health.
    """
    try:
        return load(settings, ())
    except HalfPrecisionOverflow as overflow:
        reason = f"{overflow} The model runs in float32, which takes twice the memory."
        log.warning("%s", reason)
    return load(settings.model_copy(update={"dtype": "float32"}), (("dtype_reason", reason),))
