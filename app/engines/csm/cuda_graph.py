"""CSM's frame as one fixed piece of work for the first n rows, so that it can be recorded and replayed.

One call is: the rows' next inputs, backbone, first code, depth decoder, EOS rules, what is read next, a frame of sound.
All inputs lie on the device (`CsmCudaGraph`), so neither side waits: the host reads the results of one call while the
next one runs. A row that is not active is computed with the others, and its state does not change.

Calls are recorded by how many rows they cover and how far back they look; a batch takes the smallest that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.nn.kernels.choice import TORCH, Kernels
from app.runtime.cuda_graphs import GraphBuckets, PinnedDoubleBuffer, at_least, doublings, fastest, upload
from app.runtime.sampling import draw, exponential_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.engines.csm.model import CsmModel
    from app.nn.kv_cache import DepthKVCache, KVCache
    from app.nn.mimi.model import MimiDecoder
    from app.runtime.cuda_graphs import Body, GraphCapture
    from app.runtime.sampling import SamplingParams
    from app.types import Codes

FIRST_LENGTH = 256  # positions that the shortest recorded call looks back over

_POSITION, _DRAWS, _SEED, _LEFT, _MIN_FRAMES_LEFT, _TOP_K = range(6)
_ACTIVE, _SOUNDED, _EARLY_EOS, _NON_FINITE = range(4)


@dataclass(frozen=True, slots=True)
class Frames:
    """What one call gave, for the rows it covered, each (n, ...) on the host.

    went: the row was one of those that went on; sounded: it made sound (codes and samples hold it); early: its line
    would have ended before it had begun; wrong: its numbers are not finite any more.
    """

    codes: Codes
    samples: NDArray[np.float32]
    active: NDArray[np.bool_]
    sounded: NDArray[np.bool_]
    early_eos: NDArray[np.bool_]
    non_finite: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _BucketKey:
    """How far back a call looks, and whether it is for common knobs only; that for all looks all the way."""

    length: int
    fast_path: bool


class CsmCudaGraph:
    """What stands for each row on the device, and the calls that advance it. One thread."""

    def __init__(
        self,
        model: CsmModel,
        decoder: MimiDecoder,
        cache: KVCache,
        depth_cache: DepthKVCache,
        inputs: Tensor,
        *,
        kernels: Sequence[Kernels] = (TORCH,),
    ) -> None:
        """inputs (rows, D): what each row reads next. kernels: the sets that may be taken; `record` takes the
        fastest."""
        c, device, rows = model.config, model.device, len(inputs)
        self._next = inputs
        self._kernels = kernels[0]
        self._sets: dict[str, Kernels] = {some.name: some for some in kernels}
        self.timed: dict[str, float] = {}  # seconds of one row's frame, by the name of the set
        self._model, self._decoder, self._cache, self._depth_cache = model, decoder, cache, depth_cache
        self._lengths = doublings(min(FIRST_LENGTH, c.max_positions), c.max_positions)
        self._anyhow = _BucketKey(self._lengths[-1], fast_path=False)
        keys = (self._anyhow, *(_BucketKey(length, fast_path=True) for length in reversed(self._lengths)))
        self._calls = GraphBuckets(rows, keys)
        self._numbers = torch.zeros(rows, 6, dtype=torch.int64, device=device)
        self._params = torch.ones(rows, 2, device=device)  # temperature, top_p
        self._asked = torch.zeros(rows, dtype=torch.bool, device=device)  # rows that the present call is to advance
        self._codes = torch.zeros(rows, c.codebooks, dtype=torch.int16, device=device)
        self._samples = torch.zeros(rows, decoder.config.frame_samples, device=device)
        self._flags = torch.zeros(rows, 4, dtype=torch.bool, device=device)
        self._mirror = PinnedDoubleBuffer(self._codes, self._samples, self._flags)

    @property
    def rows(self) -> int:
        """As many as are advanced together at most."""
        return self._calls.rows

    @property
    def kernels(self) -> str:
        """The name of the set that was taken."""
        return self._kernels.name

    # ---- recording

    def record(self, recorder: GraphCapture) -> None:
        """Take the set of kernels that makes one row's frame fastest, and record all calls; `rows` is what memory
        suffices for. Raises torch.OutOfMemoryError where that is not one."""
        shortest = _BucketKey(self._lengths[0], fast_path=True)
        self._kernels, self.timed = fastest(self._sets, partial(self._body, 1, shortest), self._model.device)
        self._calls.record(recorder, partial(self._body, kernels=self._kernels))
        for row in range(self.rows):  # recording has run on zeros
            self._decoder.reset(row)

    def _body(self, count: int, key: _BucketKey, kernels: Kernels) -> Body:
        @torch.inference_mode()
        def body() -> None:
            self._frame(count, key, kernels)

        return body

    # ---- the rows

    def place(
        self, row: int, params: SamplingParams, *, position: int, draws: int, seed: int, left: int, min_frames_left: int
    ) -> None:
        """What the row does next: read its input at `position`, say up to `left` frames, not end in the first `young`.

        draws: its noise counter; seed: an int64.
        """
        numbers = torch.tensor([position, draws, seed, left, min_frames_left, max(0, params.top_k)], dtype=torch.int64)
        wanted = torch.tensor([max(0.0, params.temperature), params.top_p], dtype=torch.float32)
        self._numbers[row] = upload(numbers, self._numbers.device)
        self._params[row] = upload(wanted, self._params.device)

    def halt(self, row: int) -> None:
        """The row goes on no more, from the next call."""
        self._numbers[row, _LEFT] = 0

    def launch(self, rows: Sequence[int], longest: int, *, fast_path: bool) -> Callable[[], Frames]:
        """Advance these rows by a frame, none of which stands at `longest` or beyond; what comes of it, once it is
        there, good until the next but one launch."""
        asked = torch.zeros(self.rows, dtype=torch.bool)
        asked[list(rows)] = True
        self._asked[: self.rows] = upload(asked, self._asked.device)
        key = _BucketKey(at_least(longest, self._lengths), fast_path=True) if fast_path else self._anyhow
        self._calls.of(max(rows) + 1, key)()
        wait = self._mirror.copy()

        def frames() -> Frames:
            codes, samples, flags = (tensor.numpy() for tensor in wait())
            active, sounded, early_eos, non_finite = flags.T
            return Frames(codes, samples, active, sounded, early_eos, non_finite)

        return frames

    def _frame(self, count: int, key: _BucketKey, kernels: Kernels) -> None:
        c, model = self._model.config, self._model
        numbers, params = self._numbers[:count], self._params[:count]
        position, left, min_frames_left = numbers[:, _POSITION], numbers[:, _LEFT], numbers[:, _MIN_FRAMES_LEFT]
        x = self._next[:count]
        going = self._asked[:count] & (left > 0)
        # Who does not go on may be reading: its keys are written to the place behind the last.
        at = torch.where(going, position, c.max_positions)
        see = self._cache.static_decode_attention(at, key.length, kernels)
        h = model.backbone.decode_static(x, at.clamp(max=c.max_positions - 1), see, kernels)
        temperature, top_p, top_k = params[:, 0], params[:, 1], numbers[:, _TOP_K]
        seeds, draws = numbers[:, _SEED], numbers[:, _DRAWS]
        temperature, top_p, top_k, seeds, draws = (t.contiguous() for t in (temperature, top_p, top_k, seeds, draws))
        free = torch.full_like(seeds, -1)
        noise = exponential_noise(seeds, draws, c.codebooks, c.codebook_size) if kernels.name == "torch" else None
        early_eos, finite = torch.zeros_like(going), going

        def pick(codebook: int, logits: Tensor) -> Tensor:
            nonlocal early_eos, finite
            if codebook + 1 == c.codebooks:  # what went wrong before is in the depth decoder's keys, and so in these
                finite = logits.isfinite().all(dim=1)
            banned = free
            if codebook == 0 and c.eos_code < c.codebook_size:
                early_eos = (min_frames_left > 0) & (logits.argmax(dim=-1) == c.eos_code)
                banned = torch.where(min_frames_left > 0, c.eos_code, free)
            if noise is None:
                return kernels.sample(
                    logits,
                    temperature,
                    top_k,
                    top_p,
                    seeds,
                    draws,
                    codebook,
                    c.codebooks,
                    banned,
                    fast_path=key.fast_path,
                )
            if banned is not free:
                logits[:, c.eos_code].masked_fill_(min_frames_left > 0, -torch.inf)
            return draw(logits[:, None], temperature, top_k, top_p, noise[:, codebook, None], fast_path=key.fast_path)[
                :, 0
            ]

        codes = model.depth_decode(h, self._depth_cache, pick, kernels)
        last = (codes[:, :-1] == c.eos_code).all(dim=1)
        empty = last & (codes[:, -1] == c.eos_code)
        non_finite = going & ~finite
        sounded = going & ~empty & ~non_finite
        self._samples[:count] = self._decoder.frame(codes, sounded)
        self._codes[:count] = codes
        for flag, values in (
            (_ACTIVE, going),
            (_SOUNDED, sounded),
            (_EARLY_EOS, early_eos & going),
            (_NON_FINITE, non_finite),
        ):
            self._flags[:count, flag] = values
        self._next[:count] = torch.where(going[:, None], model.embed_frames(codes), x)
        step = going.long()
        numbers[:, _POSITION] += step
        numbers[:, _DRAWS] += step
        numbers[:, _MIN_FRAMES_LEFT] -= step
        left.copy_(torch.where(going & (last | non_finite), 0, left - step))
