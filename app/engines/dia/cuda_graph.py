"""Dia's step as one fixed piece of work for the first n rows, so that it can be recorded and replayed.

One call is: what stands at each row's position, the pair of tokens through the decoder, guidance, the draw, the delay
pattern. A step is a seventh of CSM's in work and in sound, so several are sent off at a time (a burst) and the host
looks at them together, while the next burst runs. The codec is not in it: it works on frames the host has seen.

As of CSM (csm_frames.py), all that a call needs to know lies on the device, rows that do not go on are computed and
change nothing, and calls are recorded by how many rows they cover and how far back they look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from app.engines.dia.guidance import candidates
from app.nn.kernels.choice import TORCH, Kernels
from app.runtime.cuda_graphs import GraphBuckets, PinnedDoubleBuffer, at_least, doublings, fastest, upload
from app.runtime.sampling import TOP_K_FAST, draw, exponential_noise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from app.engines.dia.delay import DelayPattern
    from app.engines.dia.model import DiaCache, DiaModel
    from app.runtime.cuda_graphs import Body, GraphCapture
    from app.runtime.sampling import SamplingParams
    from app.types import Codes

FIRST_SEEN, FIRST_HEARD = 512, 256  # positions said, and bytes of text, that the shortest recorded call looks at

_POSITION, _DRAWS, _SEED, _MIN_FRAMES_LEFT, _TOP_K, _LENGTH, _WHOLE = range(7)
_ACTIVE, _EARLY_EOS, _NON_FINITE = range(3)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a burst made of each row, on the host: frames (R, C) that are whole now, how many frames each
    will have said (R,), whether it went on, would have ended at once, has numbers that are not finite (R,)."""

    frames: Codes
    counts: NDArray[np.int64]
    active: NDArray[np.bool_]
    early_eos: NDArray[np.bool_]
    non_finite: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _BucketKey:
    """How far back a call looks, into what was said and into the text, and whether it is for common knobs only; that
    for all looks all the way."""

    seen: int
    heard: int
    fast_path: bool


class DiaCudaGraph:
    """What stands for each row on the device, and the calls that advance it. One thread."""

    def __init__(
        self,
        model: DiaModel,
        cache: DiaCache,
        tracks: DelayPattern,
        *,
        rows: int,
        burst: int,
        kernels: Sequence[Kernels] = (TORCH,),
    ) -> None:
        """burst: steps that are sent off at a time. kernels: the sets that may be taken; `record` takes the fastest."""
        c, device = model.config, model.device
        self.burst = burst
        self._model, self._cache, self._tracks = model, cache, tracks
        self._kernels = kernels[0]
        self._sets: dict[str, Kernels] = {some.name: some for some in kernels}
        self.timed: dict[str, float] = {}  # seconds of one row's step, by the name of the set
        self._seen = doublings(min(FIRST_SEEN, c.max_positions), c.max_positions)
        self._heard = tuple(sorted({min(FIRST_HEARD, c.max_text), c.max_text}))
        self._anyhow = _BucketKey(self._seen[-1], self._heard[-1], fast_path=False)
        keys = [
            _BucketKey(seen, heard, fast_path=True) for seen in reversed(self._seen) for heard in reversed(self._heard)
        ]
        self._calls = GraphBuckets(rows, (self._anyhow, *keys))
        self._numbers = torch.zeros(rows, 7, dtype=torch.int64, device=device)
        self._numbers[:, _LENGTH] = 1
        self._params = torch.ones(rows, 3, device=device)  # temperature, top_p, scale of guidance
        self._live = torch.zeros(rows, dtype=torch.bool, device=device)
        self._asked = torch.zeros(rows, dtype=torch.bool, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)  # of the burst
        self._told = torch.zeros(burst, rows, c.channels + 1, dtype=torch.int16, device=device)
        self._flags = torch.zeros(burst, rows, 3, dtype=torch.bool, device=device)
        self._mirror = PinnedDoubleBuffer(self._told, self._flags)

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
        """As CsmCudaGraph.record. Raises torch.OutOfMemoryError."""
        shortest = _BucketKey(self._seen[0], self._heard[0], fast_path=True)
        self._kernels, self.timed = fastest(self._sets, partial(self._body, 1, shortest), self._model.device)
        self._calls.record(recorder, partial(self._body, kernels=self._kernels))

    def _body(self, count: int, key: _BucketKey, kernels: Kernels) -> Body:
        @torch.inference_mode()
        def body() -> None:
            self._advance(count, key, kernels)

        return body

    # ---- the rows

    def place(
        self,
        row: int,
        params: SamplingParams,
        scale: float,
        *,
        position: int,
        seed: int,
        min_frames_left: int,
        length: int,
        whole: int,
    ) -> None:
        """The row begins at `position`, with a text of `length` bytes; may not end in its first `young` steps; its
        first frame is whole with position `whole`."""
        numbers = torch.tensor(
            [position, 0, seed, min_frames_left, max(0, params.top_k), length, whole], dtype=torch.int64
        )
        wanted = torch.tensor([max(0.0, params.temperature), params.top_p, scale], dtype=torch.float32)
        self._numbers[row] = upload(numbers, self._numbers.device)
        self._params[row] = upload(wanted, self._params.device)
        self._live[row] = True

    def halt(self, row: int) -> None:
        """The row goes on no more, from the next step that is sent off."""
        self._live[row] = False

    def launch(self, rows: Sequence[int], *, longest: int, text: int, fast_path: bool) -> Callable[[], list[Step]]:
        """Send off a burst for these rows, none of which will stand beyond `longest` in it, with texts of `text` bytes
        at most; what comes of it, good until the next but one launch."""
        asked = torch.zeros(self.rows, dtype=torch.bool)
        asked[list(rows)] = True
        self._asked[: self.rows] = upload(asked, self._asked.device)
        self._step.zero_()
        key = (
            _BucketKey(at_least(longest, self._seen), at_least(text, self._heard), fast_path=True)
            if fast_path
            else self._anyhow
        )
        call = self._calls.of(max(rows) + 1, key)
        for _ in range(self.burst):
            call()
        wait = self._mirror.copy()

        def steps() -> list[Step]:
            told, flags = (tensor.numpy() for tensor in wait())
            return [
                Step(
                    frame[:, :-1],
                    frame[:, -1].astype("int64"),
                    flag[:, _ACTIVE],
                    flag[:, _EARLY_EOS],
                    flag[:, _NON_FINITE],
                )
                for frame, flag in zip(told, flags, strict=True)
            ]

        return steps

    def _advance(self, count: int, key: _BucketKey, kernels: Kernels) -> None:
        c, model = self._model.config, self._model
        numbers = self._numbers[:count]
        position, draws, seeds, min_frames_left, top_k, lengths, whole = (
            part.contiguous() for part in numbers.unbind(1)
        )
        temperature, top_p, scales = (part.contiguous() for part in self._params[:count].unbind(1))
        going = self._asked[:count] & self._live[:count]
        rows = torch.arange(count, device=model.device)
        at = position.clamp(max=c.max_positions - 1)
        conditional, unconditional = model.decode_static(
            self._tracks.at(rows, at),
            self._cache,
            at,
            going,
            lengths,
            seen=key.seen,
            heard=key.heard,
            kernels=kernels,
        )
        non_finite = going & ~(
            conditional.isfinite().all(dim=2).all(dim=1) & unconditional.isfinite().all(dim=2).all(dim=1)
        )
        most = TOP_K_FAST if key.fast_path else None
        is_young = min_frames_left > 0
        # What would be drawn from if it might end: of channel 0, where the end is decided.
        free = candidates(c, conditional[:, :1], unconditional[:, :1], scales=scales, top_k=top_k, most=most)
        early_eos = going & is_young & free[:, 0, c.eos].isfinite()
        left = candidates(
            c, conditional, unconditional, scales=scales, top_k=top_k, most=most, min_frames_left=is_young
        )
        limits = torch.zeros_like(top_k) if c.release == "0626" else top_k  # 0626's have been taken by then
        if kernels.name == "torch":
            noise = exponential_noise(seeds, draws, c.channels, c.audio_vocab)
            drawn = draw(left, temperature, limits, top_p, noise)
        else:
            nothing = torch.full((count, c.channels), -1, dtype=torch.int64, device=model.device)
            drawn = kernels.sample(left, temperature, limits, top_p, seeds, draws, 0, c.channels, nothing)
        frames, counts = self._tracks.put(rows, at + 1, drawn, going)
        told = torch.cat((frames, counts[:, None]), dim=1).to(torch.int16)
        self._told[:, :count].index_copy_(0, self._step, told[None])
        self._flags[:, :count].index_copy_(0, self._step, torch.stack((going, early_eos, non_finite), dim=1)[None])
        self._step.add_(1).remainder_(self.burst)
        numbers[:, _POSITION] += going
        numbers[:, _DRAWS] += going
        numbers[:, _MIN_FRAMES_LEFT] -= going.long()
        over = (counts <= 0) | (at + 2 - whole >= counts) | non_finite
        self._live[:count] &= ~(going & over)


def common(params: Sequence[SamplingParams]) -> bool:
    """Whether `few` calls suffice for rows with these knobs."""
    return all(k.top_k <= TOP_K_FAST for k in params)
