"""CUDA graphs that compute one step of Dia for the first n rows.

One launch runs the decoder on the conditional and the unconditional token of each row, applies guidance, draws codes
and applies the delay pattern. All inputs are on the device. A step of Dia takes a seventh of the time of a CSM step and
gives a seventh of the audio of a CSM step. Therefore the host launches several steps together (a burst), and reads the
results of one burst while the next burst runs. The graph does not contain the codec: the host passes complete frames to
the codec.

A launch computes all of the first n rows, but changes only the state of active rows. A row is active if the host has
selected the row for this launch and the row's speech has not ended. There is one graph for each combination of the
number of rows (1, 2, 4 ...), the number of positions and the number of text bytes that attention reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from app.engines.dia.guidance import end_factor
from app.engines.shared.step_graph import StepGraph
from app.nn.kernels.sets import TORCH, Kernels
from app.nn.kernels.torch_state import DelayedResults
from app.runtime.cuda_graphs import PinnedDoubleBuffer, at_least, doublings
from app.runtime.sampling import TOP_K_FAST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from app.engines.dia.delay import DelayPattern
    from app.engines.dia.model import DiaCache, DiaModel
    from app.runtime.cuda_graphs import GraphCapture
    from app.runtime.sampling import SamplingParams
    from app.types import Codes

FIRST_AUDIO_LENGTH, FIRST_TEXT_LENGTH = 512, 256  # positions and text bytes that attention reads in the smallest graph

# First line: the index of each integer of a row (`StepGraph.integers`). _FIRST_FRAME: the position at which the row's
# first frame is complete. Second line: the index of each flag of a row.
_POSITION, _DRAWS, _SEED, _MIN_FRAMES_LEFT, _TOP_K, _TEXT_LENGTH, _FIRST_FRAME, _ADAPTER = range(8)
_ACTIVE, _EARLY_EOS, _NON_FINITE = range(3)


@dataclass(frozen=True, slots=True)
class Step:
    """The results of one step of a burst for R rows, copied to the host."""

    frames: Codes  # (R, C) for each row, the frame that this step completes
    # (R,) the number of frames of the row's whole speech; before EOS is drawn, the largest allowed number
    counts: NDArray[np.int64]
    active: NDArray[np.bool_]  # (R,) whether the step advanced the row
    # (R,) whether EOS was the best code, but was suppressed because the speech is too short
    early_eos: NDArray[np.bool_]
    non_finite: NDArray[np.bool_]  # (R,) whether the row's logits contain NaN or infinite values


@dataclass(frozen=True, slots=True)
class BucketKey:
    """Selects one of the graphs that are captured for the same number of rows."""

    audio_length: int  # number of positions that self-attention reads
    text_length: int  # number of text bytes that cross-attention reads
    fast_path: bool  # whether all rows draw their codes on the fast path of runtime/sampling.py
    adapted: bool = False  # whether the step computes the products of LoRA adapters


class DiaCudaGraph:
    """The state of all rows on the device, and the captured steps that advance the rows. Not thread-safe."""

    def __init__(
        self,
        model: DiaModel,
        cache: DiaCache,
        delay_pattern: DelayPattern,
        *,
        rows: int,
        burst: int,
        kernels: Sequence[Kernels] = (TORCH,),
        adapters: bool = False,
    ) -> None:
        """Create the state of the rows. burst: number of steps that are launched together.

        kernels: the candidate kernels; `capture` selects the fastest of them. adapters: whether to capture steps for
        rows with LoRA adapters, too.
        """
        c, device = model.config, model.device
        self.burst = burst
        self._model, self._cache, self._delay_pattern = model, cache, delay_pattern
        self._audio_lengths = doublings(min(FIRST_AUDIO_LENGTH, c.max_positions), c.max_positions)
        self._text_lengths = tuple(sorted({min(FIRST_TEXT_LENGTH, c.max_text), c.max_text}))
        keys = []
        for audio in reversed(self._audio_lengths):
            # The graphs without the fast path read all positions of the text in cross-attention, so that fewer graphs
            # are needed.
            keys.append(BucketKey(audio, self._text_lengths[-1], fast_path=False))
            keys += [BucketKey(audio, text, fast_path=True) for text in reversed(self._text_lengths)]
        if adapters:
            keys = [replace(key, adapted=adapted) for key in keys for adapted in (True, False)]
        # The three floats of a row are its temperature, its top_p and its guidance scale.
        self.steps = StepGraph[BucketKey](rows, keys, integers=8, floats=3, kernels=kernels, device=device, tokens=2)
        self.steps.integers[:, _TEXT_LENGTH] = 1
        self._speaking = torch.zeros(rows, dtype=torch.bool, device=device)
        # for each row, the index of the current step in the burst
        self._burst_steps = torch.zeros(rows, dtype=torch.int64, device=device)
        # For each step of the burst and each row: the codes of `Step.frames`, and then the number of `Step.counts`.
        self._frames = torch.zeros(burst, rows, c.channels + 1, dtype=torch.int16, device=device)
        self._flags = torch.zeros(burst, rows, 3, dtype=torch.bool, device=device)
        self._on_host = PinnedDoubleBuffer(self._frames, self._flags)

    def capture(self, capture: GraphCapture) -> None:
        """Select the fastest kernels and capture all steps. If memory is short, `steps.rows` becomes smaller.

        Raises torch.OutOfMemoryError if the graphs for one row do not fit into memory.
        """
        shortest = BucketKey(self._audio_lengths[0], self._text_lengths[0], fast_path=True)
        self.steps.capture(capture, self.advance, shortest)

    def start(
        self,
        row: int,
        params: SamplingParams,
        scale: float,
        *,
        position: int,
        seed: int,
        min_frames_left: int,
        text_length: int,
        first_frame: int,
        adapter: int = 0,
    ) -> None:
        """Start the row's speech at `position`. scale: the guidance scale. text_length: number of bytes of the script.

        min_frames_left: the number of steps in which EOS is suppressed. first_frame: the position at which the first
        frame of the row is complete. adapter: the slot of the row's adapter.
        """
        integers = (position, 0, seed, min_frames_left, max(0, params.top_k), text_length, first_frame, adapter)
        self.steps.set_row(row, integers, (max(0.0, params.temperature), params.top_p, scale))
        self._speaking[row] = True

    def move_row(self, source: int, target: int) -> None:
        """Move the speech of row `source` to row `target`."""
        self.steps.move_row(source, target)
        self._speaking[target] = self._speaking[source]
        self.stop(source)

    def stop(self, row: int) -> None:
        """Stop the row: later launches do not advance it."""
        self._speaking[row] = False

    def launch(
        self, rows: Sequence[int], *, longest: int, text_length: int, fast_path: bool, adapted: bool = False
    ) -> Callable[[], list[Step]]:
        """Start a burst of steps of these rows on the GPU. Returns a function that waits for and returns the results.

        longest: a number that is larger than each position of these rows in this burst. text_length: the number of
        bytes of the longest text. adapted: whether any row uses a LoRA adapter. Read the results before the second
        launch after this one, because that launch overwrites them.
        """
        self.steps.select(rows)
        self._burst_steps.zero_()
        text = at_least(text_length, self._text_lengths) if fast_path else self._text_lengths[-1]
        key = BucketKey(at_least(longest, self._audio_lengths), text, fast_path, adapted)
        for _ in range(self.burst):
            self.steps.launch(rows, key)
        wait = self._on_host.copy()

        def steps() -> list[Step]:
            frames, flags = (tensor.numpy() for tensor in wait())
            return [
                Step(
                    frame[:, :-1],
                    frame[:, -1].astype("int64"),
                    flag[:, _ACTIVE],
                    flag[:, _EARLY_EOS],
                    flag[:, _NON_FINITE],
                )
                for frame, flag in zip(frames, flags, strict=True)
            ]

        return steps

    def advance(self, count: int, key: BucketKey, kernels: Kernels) -> None:
        """Compute one step of the first `count` rows. `capture` captures this method."""
        c, model = self._model.config, self._model
        position, draws, seeds, min_frames_left, top_k, text_lengths, first_frame, adapters = self.steps.integers[
            :count
        ].unbind(1)
        temperature, top_p, scales = self.steps.floats[:count].unbind(1)
        rows = self._delay_pattern.static_rows(
            count,
            selected=self.steps.selected[:count],
            speaking=self._speaking[:count],
            positions=position,
            draws=draws,
            held=min_frames_left,
            first_frames=first_frame,
        )
        # The keys of inactive rows go to the scratch position after the last position.
        x, written, turned, text_ends = kernels.delayed_inputs(rows, model.audio_table, text_lengths, model.dtype)
        logits = model.decode_static(
            x,
            self._cache,
            written=written,
            turned=turned,
            text_ends=text_ends,
            audio_length=key.audio_length,
            text_length=key.text_length,
            kernels=kernels,
            adapters=adapters if key.adapted else None,
        )
        drawn, ending, finite = kernels.guided_sample(
            logits,
            scales,
            temperature,
            top_k,
            top_p,
            seeds,
            draws,
            min_frames_left,
            c.eos,
            end_factor(c),
            fast_path=key.fast_path,
        )
        results = DelayedResults(self._burst_steps[:count], self._frames, self._flags)
        kernels.delayed_outputs(rows, drawn, ending, finite, results)


def uses_fast_path(params: Sequence[SamplingParams]) -> bool:
    """Return whether rows with these sampling parameters can use the graphs for the fast path."""
    return all(k.top_k <= TOP_K_FAST for k in params)
