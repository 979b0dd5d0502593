"""Calls of the kernels for the state of the rows, with inputs that contain all states of a row.

`wrong_operations` of checks.py compares the results of these calls with those of the torch kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.nn.kernels.torch_state import DelayedResults, DelayedRows, FrameRows

if TYPE_CHECKING:
    from app.nn.kernels.sets import Kernels

_END, _PAD = 1024, 1025
_DELAYS = 0, 8, 9, 3, 9


def state_trials(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[Kernels], Sequence[Tensor]]]:
    """Return a mapping: name of an operation -> a function that calls it and returns its results and the new state."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, kind)

    def codes(*shape: int) -> Tensor:
        return torch.randint(1024, shape, generator=generator).to(device)

    def flags(*values: int) -> Tensor:
        return torch.tensor(values, device=device) > 0

    rows, channels, positions = 8, len(_DELAYS), 40
    stored, drawn = codes(rows, positions, channels), codes(rows, channels)
    drawn[[1, 3, 6], 0] = _END
    finite = torch.ones(rows, channels, dtype=torch.bool, device=device)
    finite[5, 2] = False
    table = random(channels * 1028, 200)

    def delayed() -> DelayedRows:
        """Rows: in the prompt, draws the end, after the end, not selected, the end is held, NaN, last step, stopped."""
        return DelayedRows(
            stored.clone(),
            torch.tensor([20, 0, 3, 0, 1, 0, 0, 2], device=device),
            torch.tensor([30, 30, 12, 30, 30, 30, 39, 9], device=device),
            flags(1, 1, 1, 0, 1, 1, 1, 1),
            flags(1, 1, 1, 1, 1, 1, 1, 0),
            torch.tensor([9, 14, 17, 11, 6, 20, 38, 50], device=device),
            torch.arange(rows, device=device) - 2,
            torch.tensor([0, -1, 1, 2, 3, 1, 0, 0], device=device),
            torch.tensor([30, 10, 13, 10, 11, 10, 10, 12], device=device),
            torch.tensor(_DELAYS, device=device),
            max(_DELAYS),
            _END,
            _PAD,
        )

    def delayed_inputs(kernels: Kernels) -> Sequence[Tensor]:
        return kernels.delayed_inputs(delayed(), table, torch.arange(1, rows + 1, device=device), dtype)

    def delayed_outputs(kernels: Kernels) -> Sequence[Tensor]:
        state = delayed()
        results = DelayedResults(
            torch.tensor([0, 1, 2, 2, 1, 0, 1, 2], device=device),
            torch.zeros(3, rows, channels + 1, dtype=torch.int16, device=device),
            torch.zeros(3, rows, 3, dtype=torch.bool, device=device),
        )
        kernels.delayed_outputs(state, drawn, flags(0, 1, 0, 1, 1, 0, 1, 1), finite, results)
        return (*_tensors(state), *_tensors(results))

    frames, size = codes(rows, 5), 200
    frames[1] = frames[2, :4] = frames[6] = 0  # these frames end the line
    first, last = random(rows, 1028, kind=torch.float32), random(rows, 1028, kind=torch.float32)
    first[::2, 0] += 20  # the end is the best code
    last[5, 7] = torch.nan

    def framed() -> FrameRows:
        return FrameRows(
            flags(1, 1, 1, 1, 1, 1, 0, 0),
            torch.tensor([3, 14, 17, 11, 6, 20, 38, 0], device=device),
            torch.arange(rows, device=device),
            torch.tensor([9, 9, 9, 0, 1, 9, 9, 0], device=device),
            torch.tensor([2, 0, 1, 5, 1, 1, 3, -4], device=device),
            torch.zeros(rows, size, dtype=dtype, device=device),
            torch.zeros(rows, 5, dtype=torch.int16, device=device),
            flags(*([1, 0, 0, 0] * 4 + [0, 1, 1, 1] * 4)).view(rows, 4),
            0,
        )

    def frame_outputs(kernels: Kernels) -> Sequence[Tensor]:
        state = framed()
        return (kernels.frame_outputs(state, frames, first, last), *_tensors(state))

    def frame_embeddings(kernels: Kernels) -> Sequence[Tensor]:
        state = framed()
        kernels.frame_embeddings(state, frames, table)
        return _tensors(state)

    return {
        "delayed_inputs": delayed_inputs,
        "delayed_outputs": delayed_outputs,
        "frame_inputs": lambda kernels: kernels.frame_inputs(framed(), 40),
        "frame_outputs": frame_outputs,
        "frame_embeddings": frame_embeddings,
    }


def _tensors(state: DelayedRows | DelayedResults | FrameRows) -> list[Tensor]:
    values = [getattr(state, field.name) for field in fields(state)]
    return [value for value in values if isinstance(value, Tensor)]
