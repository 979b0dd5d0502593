"""Decodes Dia's frames to samples in chunks.

To decode a frame, the codec needs the ten frames after this frame. The first chunk of a row has FIRST_FRAMES frames,
and each later chunk has CHUNK_FRAMES frames. So the samples of a row do not depend on the client's reading speed or on
other rows in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from app.runtime.cuda_graphs import upload

if TYPE_CHECKING:
    from app.engines.dia.rows import DiaRow
    from app.nn.dac.model import DacDecoder
    from app.types import Codes, Samples

# the first chunk gives only 70 ms of audio, because its last ten frames can't be decoded yet
FIRST_FRAMES, CHUNK_FRAMES = 16, 8


class ChunkedDecoding:
    """Collects the frames of each row until a chunk is full, and then decodes the chunk."""

    def __init__(self, decoder: DacDecoder, device: torch.device) -> None:
        self._decoder = decoder
        self._device = device

    def decode(self, states: Mapping[int, DiaRow], rows: Sequence[int], codes: Codes) -> list[Samples]:
        """Add one frame of codes (n, C) to the chunks of these rows, and return the samples (N,) of each row.

        The samples of a row are empty if the row's chunk is not full yet.
        """
        # number of frames in a chunk that must be decoded now -> the indices (in `rows`) of the rows with such a chunk
        due: dict[int, list[int]] = {}
        for i, (row, frame) in enumerate(zip(rows, codes, strict=True)):
            state = states[row]
            state.undecoded.append(torch.from_numpy(frame.astype(np.int64)))
            if state.over or len(state.undecoded) == (CHUNK_FRAMES if state.decoded else FIRST_FRAMES):
                due.setdefault(len(state.undecoded), []).append(i)
        found: list[Samples] = [np.zeros(0, np.float32)] * len(rows)
        for indices in due.values():
            group = [states[rows[i]] for i in indices]
            frames = torch.stack([torch.stack(state.undecoded, dim=1) for state in group])  # (n, C, T)
            decoded = self._decoder.decode([rows[i] for i in indices], upload(frames, self._device))
            for i, state, samples in zip(indices, group, decoded, strict=True):
                state.decoded += len(state.undecoded)
                state.undecoded.clear()
                if state.over:
                    samples = torch.cat((samples, self._decoder.flush(rows[i])))  # noqa: PLW2901
                found[i] = samples.float().cpu().numpy()
                if state.guard is not None:
                    state.guard.add_samples(found[i])
        return found
