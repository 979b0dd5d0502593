"""CUDA graphs that compute one frame of CSM for the first n rows.

One launch runs the backbone and the depth decoder, applies the EOS rules, decodes the frame to samples with Mimi, and
computes the input of the next frame. All inputs are on the device, so the host can read the results of one launch while
the device runs the next launch. A launch computes all of the first n rows, but changes only the state of active rows. A
row is active if the host has selected the row for this launch and the row's current line has not ended.

There is one graph for each pair of a number of rows (1, 2, 4 ...) and a number of positions that attention reads. A
launch uses the smallest graph that is large enough. If the backbone's layers are on several devices, a step has one
graph for each device, and a launch copies the outputs of one device to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.engines.shared.step_graph import StepBody, StepGraph, StepSections
from app.nn.kernels.depth import DrawParameters
from app.nn.kernels.sets import TORCH, Kernels
from app.nn.kernels.torch_state import FrameRows
from app.nn.kv_cache import KVCache, SplitKVCache
from app.runtime.cuda_graphs import PinnedDoubleBuffer, at_least, doublings
from app.runtime.sampling import DrawLimits, draw_within, exponential_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.engines.csm.model import CsmModel
    from app.nn.kv_cache import DepthKVCache
    from app.nn.mimi.model import MimiDecoder
    from app.runtime.cuda_graphs import GraphCapture
    from app.runtime.sampling import SamplingParams
    from app.types import Codes

FIRST_LENGTH = 256  # number of positions that attention reads in the smallest graph

# the index of each integer of a row (`StepGraph.integers`)
_POSITION, _DRAWS, _SEED, _FRAMES_LEFT, _MIN_FRAMES_LEFT, _TOP_K, _ADAPTER = range(7)


@dataclass(frozen=True, slots=True)
class Frames:
    """The results of one launch, copied to the host. The first dimension of each array is the row."""

    codes: Codes
    samples: NDArray[np.float32]
    active: NDArray[np.bool_]  # whether the launch advanced the row
    audible: NDArray[np.bool_]  # whether the frame is speech; if not, its codes and samples are invalid
    # whether EOS was the best code, but was suppressed because the line has too few frames
    early_eos: NDArray[np.bool_]
    non_finite: NDArray[np.bool_]  # whether the row's logits contain NaN or infinite values


@dataclass(frozen=True, slots=True)
class BucketKey:
    """Selects one of the graphs that are captured for the same number of rows."""

    length: int  # number of positions that attention reads
    # whether all rows draw their codes on the fast path of runtime/sampling.py; always True with Triton's kernels
    fast_path: bool
    adapted: bool = False  # whether the step computes the products of LoRA adapters


class CsmCudaGraph:
    """The state of all rows on the device, and the captured steps that advance the rows. Not thread-safe."""

    def __init__(
        self,
        model: CsmModel,
        decoder: MimiDecoder,
        cache: KVCache | SplitKVCache,
        depth_cache: DepthKVCache,
        inputs: Tensor,
        *,
        kernels: Sequence[Kernels] = (TORCH,),
        adapters: bool = False,
    ) -> None:
        """Create the state of the rows. inputs (rows, D): each row's next input, which a launch overwrites.

        kernels: the candidate kernels; `capture` selects the fastest of them. adapters: whether to capture steps for
        rows with LoRA adapters, too.
        """
        c, device, rows = model.config, model.device, len(inputs)
        self._next = inputs
        self._model, self._decoder, self._cache, self._depth_cache = model, decoder, cache, depth_cache
        self._lengths = doublings(min(FIRST_LENGTH, c.max_positions), c.max_positions)
        keys = [
            BucketKey(length, fast, adapted)
            for length in reversed(self._lengths)
            for fast in (False, True)
            for adapted in ((True, False) if adapters else (False,))
        ]
        # The two floats of a row are its temperature and its top_p.
        self.steps = StepGraph[BucketKey](rows, keys, integers=7, floats=2, kernels=kernels, device=device)
        # Static tensors for a model on several devices. Each stage has a tensor of the positions at which it writes
        # keys, an input and an output. The last tensor in `_inputs` is the input of the final norm.
        stages = model.backbone.stages
        homes = [*(stage.device for stage in stages), device] if len(stages) > 1 else []
        self._at = [torch.zeros(rows, dtype=torch.int64, device=home) for home in homes[:-1]]
        self._inputs = [torch.zeros(rows, c.backbone.width, dtype=model.dtype, device=home) for home in homes]
        self._outputs = [torch.zeros_like(each) for each in self._inputs[:-1]]
        self._codes = torch.zeros(rows, c.codebooks, dtype=torch.int16, device=device)
        self._samples = torch.zeros(rows, decoder.config.frame_samples, device=device)
        self._flags = torch.zeros(rows, 4, dtype=torch.bool, device=device)
        self._unbanned = torch.full((rows,), -1, dtype=torch.int64, device=device)
        self._on_host = PinnedDoubleBuffer(self._codes, self._samples, self._flags)

    def capture(self, capture: GraphCapture) -> None:
        """Select the fastest kernels and capture all steps. If memory is short, `steps.rows` becomes smaller.

        Raises torch.OutOfMemoryError if the graphs for one row do not fit into memory.
        """

        def key_for(kernels: Kernels, key: BucketKey) -> BucketKey:
            return BucketKey(key.length, key.fast_path or not kernels.sorts, key.adapted)

        body = self.sections() if self._inputs else self.advance
        self.steps.capture(capture, body, BucketKey(self._lengths[0], fast_path=True), key_for)
        for row in range(self.steps.rows):  # the capture has changed the decoder's state of this row
            self._decoder.reset(row)

    def start(
        self,
        row: int,
        params: SamplingParams,
        *,
        position: int,
        draws: int,
        seed: int,
        frames_left: int,
        min_frames_left: int,
        adapter: int = 0,
    ) -> None:
        """Start a line in the row.

        position: the position of the row's next input. draws: see CsmRow. frames_left: the largest number of frames of
        the line. min_frames_left: the number of frames in which EOS is suppressed. adapter: the slot of the row's LoRA
        adapter; 0 = none.
        """
        integers = (position, draws, seed, frames_left, min_frames_left, max(0, params.top_k), adapter)
        self.steps.set_row(row, integers, (max(0.0, params.temperature), params.top_p))

    def move_row(self, source: int, target: int) -> None:
        """Move the line of row `source` to row `target`."""
        self.steps.move_row(source, target)
        self._next[target] = self._next[source]
        self.stop(source)

    def stop(self, row: int) -> None:
        """Stop the row: later launches do not advance it."""
        self.steps.integers[row, _FRAMES_LEFT] = 0

    def launch(
        self, rows: Sequence[int], longest: int, *, fast_path: bool, adapted: bool = False
    ) -> Callable[[], Frames]:
        """Launch the step that computes one frame of these rows. Returns a function that waits for the results.

        The function returns the results as Frames. The second launch after this launch overwrites the Frames. longest:
        a number that is larger than the position of each of these rows. adapted: whether any of these rows has a LoRA
        adapter.
        """
        self.steps.select(rows)
        self.steps.launch(rows, BucketKey(at_least(longest, self._lengths), fast_path, adapted))
        wait = self._on_host.copy()

        def frames() -> Frames:
            codes, samples, flags = (tensor.numpy() for tensor in wait())
            active, audible, early_eos, non_finite = flags.T
            return Frames(codes, samples, active, audible, early_eos, non_finite)

        return frames

    def advance(self, count: int, key: BucketKey, kernels: Kernels) -> None:
        """Compute one frame of the first `count` rows. `capture` captures this method."""
        assert isinstance(self._cache, KVCache)  # noqa: S101 - all layers are on one device
        if self._model.adapters is not None:
            slots = self.steps.integers[:count, _ADAPTER].contiguous()
            self._model.adapters.selection.select_index(slots if key.adapted else None)
        rows = self._rows(count)
        written, turned, banned = kernels.frame_inputs(rows, self._model.config.max_positions)
        attend = self._cache.static_decode_attention(written, key.length, kernels)
        h = self._model.backbone.decode_static(rows.inputs, turned, attend, kernels)
        self._finish(h, rows, banned, key, kernels)

    def sections(self) -> StepSections[BucketKey]:
        """Return the parts of `advance` for a model on several devices: stages, copies between them, and `_tail`."""
        stages = self._model.backbone.stages
        found: list[tuple[StepBody[BucketKey], torch.device | None]] = []
        for index, stage in enumerate(stages):
            found += [(partial(self._stage, index), stage.device), (partial(self._hand_over, index), None)]
        return [*found, (self._tail, self._model.device)]

    def _stage(self, index: int, count: int, key: BucketKey, kernels: Kernels) -> None:
        """Compute the backbone's layers of one stage for the first `count` rows, on the stage's device."""
        assert isinstance(self._cache, SplitKVCache)  # noqa: S101 - the layers are on several devices
        x = self._inputs[index][:count]
        if index == 0:
            x = self._next[:count]
            self._at[0][:count] = kernels.frame_inputs(self._rows(count), self._model.config.max_positions)[0]
        at = self._at[index][:count]
        attend = self._cache.parts[index].static_decode_attention(at, key.length, kernels)
        attended = at.clamp(max=self._model.config.max_positions - 1)
        self._outputs[index][:count] = self._model.backbone.decode_stage(index, x, attended, attend, kernels)

    def _hand_over(self, index: int, count: int, key: BucketKey, kernels: Kernels) -> None:
        """Copy the output and the positions of a stage to the device of the next stage. Does not wait for a device."""
        del key, kernels
        self._inputs[index + 1][:count].copy_(self._outputs[index][:count], non_blocking=True)
        if index + 1 < len(self._at):
            self._at[index + 1][:count].copy_(self._at[index][:count], non_blocking=True)

    def _tail(self, count: int, key: BucketKey, kernels: Kernels) -> None:
        """Apply the final norm to the output of the last backbone stage, and compute a frame from the result."""
        rows = self._rows(count)
        banned = kernels.frame_inputs(rows, self._model.config.max_positions)[2]
        self._finish(self._model.backbone.final_norm(self._inputs[-1][:count]), rows, banned, key, kernels)

    def _rows(self, count: int) -> FrameRows:
        """Return the state of the first `count` rows.

        An inactive row may be in its prefill, so a launch must not change the row's KV cache. The keys of an inactive
        row go to the scratch position, which is after the last position.
        """
        indices = _POSITION, _DRAWS, _FRAMES_LEFT, _MIN_FRAMES_LEFT
        position, draws, left, held = (self.steps.integers[:count, index] for index in indices)
        selected, inputs = self.steps.selected[:count], self._next[:count]
        codes, flags, end = self._codes[:count], self._flags[:count], self._model.config.eos_code
        return FrameRows(selected, position, draws, left, held, inputs, codes, flags, end)

    def _finish(self, h: Tensor, rows: FrameRows, banned: Tensor, key: BucketKey, kernels: Kernels) -> None:
        """Compute a frame from the backbone's outputs h (n, D): codes, samples, next inputs and counters.

        banned (n,) int64: the code that can't be drawn in codebook 0; -1 = none.
        """
        c, model, count = self._model.config, self._model, len(h)
        integers, floats = self.steps.integers[:count], self.steps.floats[:count]
        temperature, top_p = floats.unbind(1)
        seeds, top_k = integers[:, _SEED], integers[:, _TOP_K]
        noise = limits = None
        if kernels.name == "torch":
            noise = exponential_noise(seeds, rows.draws, c.codebooks, c.codebook_size)
            limits = DrawLimits.of(temperature, top_k, top_p, c.codebook_size)
        first = last = h  # replaced by the logits of the first and the last codebook

        def pick(codebook: int, logits: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor | None]:
            nonlocal first, last
            first, last = (first if codebook else logits), logits
            if noise is None or limits is None:
                embedded = None
                if table is not None and not kernels.sorts:  # Triton's kernel also looks up the embeddings
                    embedded = torch.empty(count, table.shape[1], device=table.device, dtype=table.dtype)
                code = kernels.sample(
                    logits,
                    temperature,
                    top_k,
                    top_p,
                    seeds,
                    rows.draws,
                    codebook,
                    c.codebooks,
                    self._unbanned[:count] if codebook else banned,
                    fast_path=key.fast_path,
                    table=None if embedded is None else table,
                    embedded=embedded,
                )
                return code, embedded
            if codebook == 0 and c.eos_code < c.codebook_size:
                logits = logits.clone()
                logits[:, c.eos_code].masked_fill_(rows.held > 0, -torch.inf)
            drawn = draw_within(limits, logits[:, None], noise[:, codebook, None], fast_path=key.fast_path)
            return drawn[:, 0], None

        weights = model.depth_weights() if kernels.computes_depth(count) else None
        if weights is None:
            codes = model.depth_decode(h, self._depth_cache, pick, kernels)
        else:
            draws = DrawParameters(temperature, top_k, top_p, seeds, rows.draws)
            codes, last = model.depth_frame(h, self._depth_cache, pick, weights, draws, kernels)
        audible = kernels.frame_outputs(rows, codes, first, last)
        self._samples[:count] = self._decoder.frame(codes, audible, kernels)
        kernels.frame_embeddings(rows, codes, model.audio_table)
