"""Decoding of Dia's frames in chunks.

The codec looks ten frames ahead. A row's frames are collected: the first chunk has FIRST_FRAMES, all others have
CHUNK_FRAMES. Chunks depend only on the row's own frames, so its samples depend neither on how fast the client reads nor
on the other rows in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from app.engines.dia.rows import DiaRow
    from app.nn.dac.model import DacDecoder
    from app.types import Codes, Samples

FIRST_FRAMES, CHUNK_FRAMES = 16, 8  # the first chunk gives 70 ms of audio; smaller chunks cost up to twice the time


class ChunkedDecoding:
    """Collects the rows' frames and decodes them in chunks."""

    def __init__(self, decoder: DacDecoder, device: torch.device) -> None:
        self._decoder = decoder
        self._device = device

    def decode(self, states: Mapping[int, DiaRow], rows: Sequence[int], codes: Codes) -> list[Samples]:
        """Add one frame (n, C) to these rows. Returns samples (N,) per row, empty while its chunk is not full."""
        due: dict[int, list[int]] = {}  # indices into `rows`, by number of frames to decode
        for i, (row, frame) in enumerate(zip(rows, codes, strict=True)):
            state = states[row]
            state.undecoded.append(torch.from_numpy(frame.astype(np.int64)))
            if state.over or len(state.undecoded) == (CHUNK_FRAMES if state.decoded else FIRST_FRAMES):
                due.setdefault(len(state.undecoded), []).append(i)
        found: list[Samples] = [np.zeros(0, np.float32)] * len(rows)
        for indices in due.values():
            group = [states[rows[i]] for i in indices]
            frames = torch.stack([torch.stack(state.undecoded, dim=1) for state in group])  # (n, C, T)
            decoded = self._decoder.decode([rows[i] for i in indices], frames.to(self._device))
            for i, state, samples in zip(indices, group, decoded, strict=True):
                state.decoded += len(state.undecoded)
                state.undecoded.clear()
                if state.over:
                    samples = torch.cat((samples, self._decoder.flush(rows[i])))  # noqa: PLW2901
                found[i] = samples.float().cpu().numpy()
                if state.guard is not None:
                    state.guard.add_samples(found[i])
        return found
