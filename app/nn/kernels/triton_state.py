"""Launches the Triton kernels for the state of the rows. torch_state.py describes each function.

The import of this module imports Triton.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from app.nn.kernels import triton_state_kernels
from app.nn.kernels.torch_state import DelayedResults, DelayedRows, FrameRows

_EMBEDDED = 1024  # the largest number of values of an embedding that one program computes


def _whole(*tensors: Tensor) -> None:
    """Raise ValueError if a tensor that a kernel reads without strides is not contiguous."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(f"no Triton kernel for the strides {tensor.stride()} of a tensor {tuple(tensor.shape)}")


def delayed_inputs(
    rows: DelayedRows, table: Tensor, lengths: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `torch_state.delayed_inputs` with a Triton kernel."""
    _whole(rows.selected, rows.speaking, rows.positions, lengths, table, rows.codes[0, 0])
    count, (sizes, width) = len(rows.positions), table.shape
    channels = rows.codes.shape[2]
    x = torch.empty(2 * count, width, device=table.device, dtype=dtype)
    written, turned = torch.empty(2, 2 * count, device=table.device, dtype=torch.int64)
    ends = torch.empty(count, device=table.device, dtype=torch.int64)
    block = min(_EMBEDDED, triton.next_power_of_2(width))
    triton_state_kernels.delayed_input[-(-width // block), count](
        rows.codes,
        rows.selected.view(torch.uint8),
        rows.speaking.view(torch.uint8),
        rows.positions,
        lengths,
        table,
        x,
        written,
        turned,
        ends,
        rows.codes.stride(0),
        rows.codes.stride(1),
        rows.codes.shape[1] - 2,
        CHANNELS=channels,
        VOCAB=sizes // channels,
        WIDTH=width,
        BLOCK=block,
        num_warps=4,
    )
    return x, written, turned, ends


def delayed_outputs(rows: DelayedRows, drawn: Tensor, ending: Tensor, finite: Tensor, results: DelayedResults) -> None:
    """Compute `torch_state.delayed_outputs` with a Triton kernel."""
    state = rows.prompts, rows.ends, rows.delays, rows.selected, rows.speaking
    counters = rows.positions, rows.draws, rows.held, rows.first_frames, results.steps
    _whole(drawn, ending, finite, *state, *counters, rows.codes[0, 0], results.frames[0], results.flags[0])
    count, channels = drawn.shape
    triton_state_kernels.delayed_output[(count,)](
        drawn,
        ending.view(torch.uint8),
        finite.view(torch.uint8),
        rows.codes,
        rows.prompts,
        rows.ends,
        rows.delays,
        rows.selected.view(torch.uint8),
        rows.speaking.view(torch.uint8),
        *counters,
        results.frames,
        results.flags.view(torch.uint8),
        rows.codes.stride(0),
        rows.codes.stride(1),
        results.frames.stride(0),
        results.flags.stride(0),
        rows.codes.shape[1] - 2,
        len(results.frames),
        DELAY=rows.longest_delay,
        END=rows.end,
        PAD=rows.pad,
        CHANNELS=channels,
        PADDED=triton.next_power_of_2(channels),
        num_warps=1,  # see triton_state_kernels.py
    )


def frame_inputs(rows: FrameRows, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `torch_state.frame_inputs` with a Triton kernel."""
    _whole(rows.selected, rows.left, rows.positions, rows.held)
    count = len(rows.left)
    written, turned, banned = torch.empty(3, count, device=rows.left.device, dtype=torch.int64)
    block = 64
    triton_state_kernels.frame_input[(-(-count // block),)](
        rows.selected.view(torch.uint8),
        rows.left,
        rows.positions,
        rows.held,
        written,
        turned,
        banned,
        count,
        positions,
        END=rows.end,
        BLOCK=block,
        num_warps=1,
    )
    return written, turned, banned


def frame_outputs(rows: FrameRows, codes: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Compute `torch_state.frame_outputs` with a Triton kernel."""
    counters = rows.positions, rows.draws, rows.left, rows.held
    _whole(rows.selected, *counters, rows.codes[0], rows.flags, codes[0], first[0], last[0])
    count, codebooks = codes.shape
    audible = torch.empty(count, device=codes.device, dtype=torch.uint8)
    triton_state_kernels.frame_output[(count,)](
        codes,
        first,
        last,
        rows.selected.view(torch.uint8),
        *counters,
        rows.codes,
        rows.flags.view(torch.uint8),
        audible,
        codes.stride(0),
        first.stride(0),
        last.stride(0),
        rows.codes.stride(0),
        END=rows.end,
        CODEBOOKS=codebooks,
        PADDED=triton.next_power_of_2(codebooks),
        CODES=first.shape[1],
        BLOCK=triton.next_power_of_2(first.shape[1]),
        num_warps=1,  # see triton_state_kernels.py
    )
    return audible.view(torch.bool)


def frame_embeddings(rows: FrameRows, codes: Tensor, table: Tensor) -> None:
    """Compute `torch_state.frame_embeddings` with a Triton kernel."""
    _whole(rows.flags, rows.inputs, table, codes[0])
    (count, codebooks), (sizes, width) = codes.shape, table.shape
    block = min(_EMBEDDED, triton.next_power_of_2(width))
    triton_state_kernels.frame_embedding[-(-width // block), count](
        codes,
        rows.flags.view(torch.uint8),
        table,
        rows.inputs,
        codes.stride(0),
        CODEBOOKS=codebooks,
        VOCAB=sizes // codebooks,
        WIDTH=width,
        BLOCK=block,
        num_warps=4,
    )
