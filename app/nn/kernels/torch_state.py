"""The torch kernels for the state of the rows: the inputs of a step, and the rules after the draw.

The state of a row is what a step changes beside the KV caches: positions, counters, flags and codes. All tensors are on
the device, and a CUDA graph can capture these kernels. Letters in shapes: n rows, C channels, S positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class DelayedRows:
    """The state of n rows whose codes follow a delay pattern; see engines/dia/delay.py. A step changes it in place.

    A step advances a row if the row is selected and speaking. Other rows are inactive and do not change. All tensors
    without a dtype are int64.
    """

    codes: Tensor  # (n, S, C): the codes at all positions
    prompts: Tensor  # (n,): number of frames in the prompt
    # (n,): the position of the end in channel 0. Before the end is drawn, the last position at which it is possible.
    ends: Tensor
    selected: Tensor  # (n,) bool
    speaking: Tensor  # (n,) bool
    positions: Tensor  # (n,): the position of the next input, which is at most S - 2
    draws: Tensor  # (n,): number of steps until now
    held: Tensor  # (n,): number of further steps in which the end can't be drawn
    first_frames: Tensor  # (n,): the position at which the first frame is complete
    delays: Tensor  # (C,)
    longest_delay: int
    end: int  # the code that ends the speech
    pad: int  # the code after the end


@dataclass(frozen=True, slots=True)
class DelayedResults:
    """The results of the last steps of at least n rows."""

    steps: Tensor  # (n,) int64: the index of the row's next result; after the last result the index is 0 again
    frames: Tensor  # (results, rows, C + 1) int16: the frame that the step completes, and the number of frames
    # (results, rows, 3) bool: whether the step advanced the row, whether the end was the best code but could not be
    # drawn, and whether the logits contain NaN or infinite values
    flags: Tensor


def put_delayed(
    codes: Tensor,
    prompts: Tensor,
    ends: Tensor,
    delays: Tensor,
    rows: Tensor,
    positions: Tensor,
    drawn: Tensor,
    active: Tensor | None,
    *,
    longest_delay: int,
    end: int,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """Compute `DelayPattern.put` of engines/dia/delay.py. The first four tensors are those of DelayedRows.

    rows (n,) int64: the rows of these tensors to which the other arguments belong.
    """
    at = positions[:, None]
    drawn_end = drawn[:, 0] == end
    if active is not None:
        drawn_end &= active
    last = torch.where(drawn_end, torch.minimum(ends[rows], positions), ends[rows])
    ends[rows] = last
    after_end = at - last[:, None]
    ids = drawn.masked_fill(after_end == delays, end).masked_fill(after_end > delays, pad)
    before = prompts[rows]
    kept = at <= before[:, None] + delays
    if active is not None:
        kept |= ~active[:, None]
    codes[rows, positions] = torch.where(kept, codes[rows, positions], ids)
    complete = (at - longest_delay + delays).clamp_min(0)  # (n, C)
    channels = torch.arange(len(delays), device=codes.device)
    return codes[rows[:, None], complete, channels], last - 1 - before


def delayed_inputs(
    rows: DelayedRows, table: Tensor, lengths: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the inputs of a step in which each row has two equal tokens, for example for classifier-free guidance.

    table (C * V, D): the embeddings of the codes of each channel. lengths (n,) int64: at least 1. Returns
    - (2 n, D) in `dtype`: for each token, the sum of the embeddings of the codes at the row's position
    - (2 n,) int64: the position at which the keys of each token are written, S - 1 for inactive rows
    - (2 n,) int64: the position of each token for RoPE, at most S - 2
    - (n,) int64: lengths - 1.
    """
    count, last = len(rows.positions), rows.codes.shape[1] - 2
    channels, sizes = rows.codes.shape[2], len(table)
    at = rows.positions.clamp(max=last)
    codes = rows.codes[torch.arange(count, device=at.device), at]
    offsets = torch.arange(0, sizes, sizes // channels, device=at.device)
    x = functional.embedding(codes + offsets, table).to(dtype).sum(dim=1)
    written = torch.where(rows.selected & rows.speaking, at, last + 1).repeat_interleave(2)
    return x.repeat_interleave(2, dim=0), written, written.clamp(max=last), lengths - 1


def delayed_outputs(rows: DelayedRows, drawn: Tensor, ending: Tensor, finite: Tensor, results: DelayedResults) -> None:
    """Apply the delay pattern to the drawn codes, advance the active rows, and store the results of the step.

    drawn (n, C) int64, ending (n,) bool and finite (n, C) bool: the results of `guided_sample`. A row stops speaking
    after its last frame, or if its logits are not finite.
    """
    index = torch.arange(len(drawn), device=drawn.device)
    active = rows.selected & rows.speaking
    at = rows.positions.clamp(max=rows.codes.shape[1] - 2) + 1
    non_finite = active & ~finite.all(dim=1)
    early = active & ending & (rows.held > 0) & ~non_finite
    frames, counts = put_delayed(
        rows.codes,
        rows.prompts,
        rows.ends,
        rows.delays,
        index,
        at,
        drawn,
        active,
        longest_delay=rows.longest_delay,
        end=rows.end,
        pad=rows.pad,
    )
    results.frames[results.steps, index] = torch.cat((frames, counts[:, None]), dim=1).to(torch.int16)
    results.flags[results.steps, index] = torch.stack((active, early, non_finite), dim=1)
    results.steps.add_(1).remainder_(len(results.frames))
    ended = (counts <= 0) | (at + 1 - rows.first_frames >= counts) | non_finite
    rows.speaking.logical_and_(~(active & ended))
    rows.positions.add_(active)
    rows.draws.add_(active)
    rows.held.sub_(active.long())


@dataclass(frozen=True, slots=True)
class FrameRows:
    """The state of n rows that draw all K codes of a frame in each step. A step changes it in place.

    A step advances a row if the row is selected and has frames left. Other rows are inactive and do not change. All
    tensors without a dtype are int64.
    """

    selected: Tensor  # (n,) bool
    positions: Tensor  # (n,): the position of the next input
    draws: Tensor  # (n,): number of frames until now
    left: Tensor  # (n,): the largest number of further frames
    held: Tensor  # (n,): number of further frames in which the end can't be drawn
    inputs: Tensor  # (n, D): the next input
    codes: Tensor  # (n, K) int16: the result of the last step
    # (n, 4) bool, results of the last step: whether it advanced the row, whether the frame is speech, whether the end
    # was the best code but could not be drawn, and whether the logits contain NaN or infinite values
    flags: Tensor
    end: int  # the code of a frame that ends the line; all codes except the last have this value


def frame_inputs(rows: FrameRows, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions of the inputs of a step, and the codes that can't be drawn in codebook 0.

    positions: the number of positions of a row. Returns
    - (n,) int64: the position at which the keys of each row are written, `positions` for inactive rows
    - (n,) int64: the position of each row for RoPE, below `positions`
    - (n,) int64: `rows.end` or -1.
    """
    active = rows.selected & (rows.left > 0)
    at = torch.where(active, rows.positions, positions)
    return at, at.clamp(max=positions - 1), torch.where(rows.held > 0, rows.end, -1)


def frame_outputs(rows: FrameRows, codes: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Advance the active rows, and store the results of a step. Returns (n,) bool: whether the frame is speech.

    codes (n, K) int64. first, last (n, V) float32: the logits of the first and the last codebook. A NaN or an infinite
    value in any logits makes the last logits NaN or infinite.
    """
    active = rows.selected & (rows.left > 0)
    non_finite = active & ~last.isfinite().all(dim=1)
    early = active & (rows.held > 0) & (first.argmax(dim=-1) == rows.end) & ~non_finite
    is_last = (codes[:, :-1] == rows.end).all(dim=1)
    silent = is_last & (codes[:, -1] == rows.end)
    audible = active & ~silent & ~non_finite
    rows.codes.copy_(codes)
    rows.flags.copy_(torch.stack((active, audible, early, non_finite), dim=1))
    advanced = active.long()
    rows.positions.add_(advanced)
    rows.draws.add_(advanced)
    rows.held.sub_(advanced)
    rows.left.copy_(torch.where(active & (is_last | non_finite), 0, rows.left - advanced))
    return audible


def frame_embeddings(rows: FrameRows, codes: Tensor, table: Tensor) -> None:
    """Write the next inputs of the active rows: for each row, the sum of the embeddings of its codes (n, K) int64.

    table (K * V, D): the embeddings of the codes of each codebook. Call this after `frame_outputs`, whose flags say
    which rows are active.
    """
    sizes = len(table)
    offsets = torch.arange(0, sizes, sizes // codes.shape[1], device=codes.device)
    x = functional.embedding(codes + offsets, table).to(rows.inputs.dtype).sum(dim=1)
    rows.inputs.copy_(torch.where(rows.flags[:, :1], x, rows.inputs))
