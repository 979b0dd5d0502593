"""CSM's frame as one fixed piece of work for the first n rows, so that it can be recorded and replayed.

One call is: the rows' next inputs, backbone, first code, depth decoder, EOS rules, what is read next, a frame of sound.
All that it needs to know lies on the device (`CsmFrames`), so nobody waits: the host reads what a call gave while the
next one runs. A row that does not go on is computed with the others and changes nothing.

Calls are recorded by how many rows they cover and how far back they look; a batch takes the smallest that holds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.models.kernels.choice import TORCH, Kernels
from app.runtime.graphs import Mirror, Recorder, at_least, doublings, upload
from app.runtime.sampling import draw, exponential_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.models.csm.model import CsmModel
    from app.models.layers import FrameCache, RowCache
    from app.models.mimi.model import MimiDecoder
    from app.runtime.sampling import Knobs
    from app.types import Codes

log = logging.getLogger(__name__)

FIRST_LENGTH = 256  # positions that the shortest recorded call looks back over

_POSITION, _DRAWS, _SEED, _LEFT, _YOUNG, _TOP_K = range(6)
_WENT, _SOUNDED, _EARLY, _WRONG = range(4)


@dataclass(frozen=True, slots=True)
class Frames:
    """What one call gave, for the rows it covered, each (n, ...) on the host.

    went: the row was one of those that went on; sounded: it made sound (codes and samples hold it); early: its line
    would have ended before it had begun; wrong: its numbers are not finite any more.
    """

    codes: Codes
    samples: NDArray[np.float32]
    went: NDArray[np.bool_]
    sounded: NDArray[np.bool_]
    early: NDArray[np.bool_]
    wrong: NDArray[np.bool_]


@dataclass(slots=True)
class _Calls:
    """Recorded calls: few[n, length] for common knobs, any[n] for all others at the full length."""

    few: dict[tuple[int, int], Callable[[], None]] = field(default_factory=dict)
    any: dict[int, Callable[[], None]] = field(default_factory=dict)


class CsmFrames:
    """What stands for each row on the device, and the calls that advance it. One thread."""

    def __init__(
        self,
        model: CsmModel,
        decoder: MimiDecoder,
        cache: RowCache,
        depth_cache: FrameCache,
        *,
        rows: int,
        kernels: Sequence[Kernels] = (TORCH,),
        sizes: Sequence[int] | None = None,
    ) -> None:
        """kernels: the sets that may be taken; `record` takes the fastest. sizes: how many rows a call may cover,
        ascending; None = doublings up to `rows`."""
        c, device = model.config, model.device
        self.rows = rows
        self._kernels, self._sets = kernels[0], tuple(kernels)
        self.timed: dict[str, float] = {}  # seconds of one row's frame, by the name of the set
        self._model, self._decoder, self._cache, self._depth_cache = model, decoder, cache, depth_cache
        self._sizes = tuple(sizes or doublings(1, rows))
        self._lengths = doublings(min(FIRST_LENGTH, c.max_positions), c.max_positions)
        self._next = torch.zeros(rows, c.backbone.width, device=device, dtype=model.dtype)
        self._numbers = torch.zeros(rows, 6, dtype=torch.int64, device=device)
        self._knobs = torch.ones(rows, 2, device=device)  # temperature, top_p
        self._asked = torch.zeros(rows, dtype=torch.bool, device=device)  # rows that the present call is to advance
        self._codes = torch.zeros(rows, c.codebooks, dtype=torch.int16, device=device)
        self._samples = torch.zeros(rows, decoder.config.frame_samples, device=device)
        self._flags = torch.zeros(rows, 4, dtype=torch.bool, device=device)
        self._mirror = Mirror(self._codes, self._samples, self._flags)
        self._calls = _Calls()

    @property
    def state_bytes(self) -> int:
        return sum(t.nbytes for t in (self._next, self._numbers, self._knobs, self._codes, self._samples))

    # ---- recording

    def record(self, recorder: Recorder) -> None:
        """Record all calls, largest first: what they compute with is then laid out for the largest once.

        Where memory does not suffice for a size, `rows` becomes the next smaller one. Raises torch.OutOfMemoryError
        where it does not suffice for one row.
        """
        self._choose()
        for size in sorted(self._sizes, reverse=True):
            try:
                for length in reversed(self._lengths):
                    self._calls.few[size, length] = recorder.record(self._body(size, length, few=True))
                self._calls.any[size] = recorder.record(self._body(size, self._lengths[-1], few=False))
            except torch.OutOfMemoryError:
                self._forget(size)
                if size == self._sizes[0]:
                    raise
                log.warning("no memory for %d rows in one graph: %d rows at most", size, self._smaller(size))
        self.rows = min(self.rows, self._sizes[-1])
        for row in range(self.rows):  # recording has run on zeros
            self._decoder.reset(row)

    def _choose(self) -> None:
        """Take the set of kernels with which a frame of one row is made fastest."""
        if len(self._sets) == 1:
            return
        trial = Recorder(self._model.device)
        for kernels in self._sets:
            self._kernels = kernels
            self.timed[kernels.name] = trial.seconds(trial.record(self._body(1, self._lengths[0], few=True)))
        self._kernels = min(self._sets, key=lambda kernels: self.timed[kernels.name])
        told = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in self.timed.items())
        log.info("kernels: %s (%s a frame)", self._kernels.name, told)

    @property
    def kernels(self) -> str:
        """The name of the set that was taken."""
        return self._kernels.name

    def _forget(self, size: int) -> None:
        for length in self._lengths:
            self._calls.few.pop((size, length), None)
        self._calls.any.pop(size, None)
        self._sizes = tuple(other for other in self._sizes if other < size) or self._sizes

    def _smaller(self, size: int) -> int:
        return max(other for other in self._sizes if other < size)

    def _body(self, count: int, length: int, *, few: bool) -> Callable[[], None]:
        @torch.inference_mode()
        def body() -> None:
            self._frame(count, length, few=few)

        return body

    # ---- the rows

    def place(
        self, row: int, x: Tensor, knobs: Knobs, *, position: int, draws: int, seed: int, left: int, young: int
    ) -> None:
        """What the row does next: read x (D,) at `position`, say up to `left` frames, not end in the first `young`.

        draws: its noise counter; seed: an int64.
        """
        numbers = torch.tensor([position, draws, seed, left, young, max(0, knobs.top_k)], dtype=torch.int64)
        wanted = torch.tensor([max(0.0, knobs.temperature), knobs.top_p], dtype=torch.float32)
        self._next[row] = x
        self._numbers[row] = upload(numbers, self._numbers.device)
        self._knobs[row] = upload(wanted, self._knobs.device)

    def halt(self, row: int) -> None:
        """The row goes on no more, from the next call."""
        self._numbers[row, _LEFT] = 0

    def wipe(self, row: int) -> None:
        """Leave nothing of numbers that went wrong."""
        self._next[row] = 0
        self._cache.wipe(row)
        self._decoder.wipe(row)

    def launch(self, rows: Sequence[int], longest: int, *, few: bool) -> Callable[[], Frames]:
        """Advance these rows by a frame, none of which stands at `longest` or beyond; what comes of it, once it is
        there, good until the next but one launch."""
        asked = torch.zeros(self.rows, dtype=torch.bool)
        asked[list(rows)] = True
        self._asked[: self.rows] = upload(asked, self._asked.device)
        size = at_least(max(rows) + 1, self._sizes)
        call = self._calls.few[size, at_least(longest, self._lengths)] if few else self._calls.any[size]
        call()
        wait = self._mirror.copy()

        def frames() -> Frames:
            codes, samples, flags = (tensor.numpy() for tensor in wait())
            went, sounded, early, wrong = flags.T
            return Frames(codes, samples, went, sounded, early, wrong)

        return frames

    def _frame(self, count: int, length: int, *, few: bool) -> None:
        c, model, kernels = self._model.config, self._model, self._kernels
        numbers, knobs = self._numbers[:count], self._knobs[:count]
        position, left, young = numbers[:, _POSITION], numbers[:, _LEFT], numbers[:, _YOUNG]
        x = self._next[:count]
        going = self._asked[:count] & (left > 0)
        # Who does not go on may be reading: its keys are written to the place behind the last.
        at = torch.where(going, position, c.max_positions)
        see = self._cache.standing(at, length, kernels)
        h = model.backbone.step(x, at.clamp(max=c.max_positions - 1), see, kernels)
        temperature, top_p, top_k = knobs[:, 0], knobs[:, 1], numbers[:, _TOP_K]
        seeds, draws = numbers[:, _SEED], numbers[:, _DRAWS]
        temperature, top_p, top_k, seeds, draws = (t.contiguous() for t in (temperature, top_p, top_k, seeds, draws))
        free = torch.full_like(seeds, -1)
        noise = exponential_noise(seeds, draws, c.codebooks, c.codebook_size) if kernels.name == "torch" else None
        early, finite = torch.zeros_like(going), going

        def pick(codebook: int, logits: Tensor) -> Tensor:
            nonlocal early, finite
            if codebook + 1 == c.codebooks:  # what went wrong before is in the depth decoder's keys, and so in these
                finite = logits.isfinite().all(dim=1)
            banned = free
            if codebook == 0 and c.eos_code < c.codebook_size:
                early = (young > 0) & (logits.argmax(dim=-1) == c.eos_code)
                banned = torch.where(young > 0, c.eos_code, free)
            if noise is None:
                return kernels.sample(
                    logits, temperature, top_k, top_p, seeds, draws, codebook, c.codebooks, banned, few=few
                )
            if banned is not free:
                logits[:, c.eos_code].masked_fill_(young > 0, -torch.inf)
            return draw(logits[:, None], temperature, top_k, top_p, noise[:, codebook, None], few=few)[:, 0]

        codes = model.spell(h, self._depth_cache, pick, kernels)
        last = (codes[:, :-1] == c.eos_code).all(dim=1)
        empty = last & (codes[:, -1] == c.eos_code)
        wrong = going & ~finite
        sounded = going & ~empty & ~wrong
        self._samples[:count] = self._decoder.frame(codes, sounded)
        self._codes[:count] = codes
        for flag, values in ((_WENT, going), (_SOUNDED, sounded), (_EARLY, early & going), (_WRONG, wrong)):
            self._flags[:count, flag] = values
        self._next[:count] = torch.where(going[:, None], model.embed_frames(codes), x)
        step = going.long()
        numbers[:, _POSITION] += step
        numbers[:, _DRAWS] += step
        numbers[:, _YOUNG] -= step
        left.copy_(torch.where(going & (last | wrong), 0, left - step))
