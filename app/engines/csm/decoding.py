"""Decodes CSM's frames to samples in groups. Used if CSM runs without CUDA graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from app.engines.csm.rows import CsmRow
    from app.nn.mimi.model import MimiDecoder
    from app.types import Codes, Samples

# The largest group of frames. One CPU core decodes 1 frame in 26 ms, 2 frames in 32 ms, and 4 frames in 44 ms.
MAX_GROUP = 4
# After each FRAMES_AHEAD frames, the groups become one frame larger. If the model generates frames at least 10 % faster
# than real time, the waits for larger groups cause no gaps in the audio.
FRAMES_AHEAD = 9
NO_SAMPLES: Samples = np.zeros(0, np.float32)


class ChunkedDecoding:
    """Decodes the first frame immediately, then larger and larger groups of frames.

    Group sizes depend only on the row's own frames, so a row's samples do not depend on the other rows in the batch.
    """

    def __init__(self, decoder: MimiDecoder, device: torch.device) -> None:
        self._decoder = decoder
        self._device = device

    def decode(self, states: Mapping[int, CsmRow], rows: Sequence[int], codes: Codes) -> list[Samples]:
        """Add one frame of codes (n, K) to the groups of these rows, and return the samples (N,) of each row.

        The samples of a row are empty if the row's group is not full yet.
        """
        # number of frames in a group that must be decoded now -> the rows with such a group
        due: dict[int, list[int]] = {}
        for row, frame in zip(rows, codes, strict=True):
            state = states[row]
            state.undecoded.append((torch.from_numpy(frame.astype(np.int64)), state.guard))
            line_ended = state.over or state.unread is not None
            if line_ended or len(state.undecoded) >= min(MAX_GROUP, 1 + state.decoded // FRAMES_AHEAD):
                due.setdefault(len(state.undecoded), []).append(row)
        samples: dict[int, Samples] = {}
        for group in due.values():
            samples |= zip(group, self._decode(states, group), strict=True)
        return [samples.get(row, NO_SAMPLES) for row in rows]

    def drain(self, states: Mapping[int, CsmRow], row: int) -> Samples:
        """Decode the frames that wait in the row's group, and return their samples (N,)."""
        return self._decode(states, [row])[0] if states[row].undecoded else NO_SAMPLES

    def _decode(self, states: Mapping[int, CsmRow], rows: list[int]) -> list[Samples]:
        """Decode the groups of these rows, and return the samples of each row. All groups must have the same size."""
        group = [states[row] for row in rows]
        # (n, K, T)
        frames = torch.stack([torch.stack([frame for frame, _ in state.undecoded], dim=1) for state in group])
        decoded = list(self._decoder.decode(rows, frames.to(self._device)).cpu().numpy())
        for state, samples in zip(group, decoded, strict=True):
            for (_, guard), part in zip(state.undecoded, np.split(samples, len(state.undecoded)), strict=True):
                if guard is not None:
                    guard.add_samples(part)
            state.decoded += len(state.undecoded)
            state.undecoded.clear()
        return decoded
