"""The delay pattern: channel c of frame t stands delays[c] positions after channel 0's. Knows no weights.

Position 0 is BOS in all channels. Behind a prompt of P frames, frame t of channel c is at 1 + P + t + delays[c]; what
comes before a channel's first frame is BOS. So frame t is whole once position 1 + P + t + max(delays) is there. When
channel 0 draws EOS, at position e, channel c gets EOS at e + delays[c] and PAD behind it: there are e - 1 - P frames.

The rules are those of transformers' DiaProcessor and DiaEOSDelayPatternLogitsProcessor. nari's own code plans one
position less for a prompt, and so draws the last channel of the prompt's last frame (or of its BOS) instead of keeping
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.engines.dia.config import DiaConfig


class DelayPattern:
    """What stands at each position of R rows, on the device, so that a step need not wait for the host."""

    def __init__(self, config: DiaConfig, rows: int, device: torch.device) -> None:
        self._config = config
        self._delay = max(config.delays)
        self._delays = torch.tensor(config.delays, device=device)
        self._channels = torch.arange(config.channels, device=device)
        self._ids = torch.zeros(rows, config.max_positions + 1, config.channels, dtype=torch.int64, device=device)
        self._prompts = torch.zeros(rows, dtype=torch.int64, device=device)  # frames
        self._ends = torch.zeros(rows, dtype=torch.int64, device=device)  # where channel 0 has EOS, or will have

    def begin(self, row: int, prompt: Tensor, frames: int) -> None:
        """A row with a prompt (P, C) that is to say at most so many frames behind it, P + frames <= max_frames."""
        c, length = self._config, len(prompt)
        if length + frames > c.max_frames:
            raise ValueError(f"{length} + {frames} frames do not fit into {c.max_positions} positions")
        ids = self._ids[row]
        for channel, delay in enumerate(c.delays):
            ids[: delay + 1, channel] = c.bos
            ids[delay + 1 : delay + 1 + length, channel] = prompt[:, channel]
        self._prompts[row] = length
        self._ends[row] = 1 + length + frames

    def heard(self, row: int, start: int, stop: int) -> Tensor:
        """What stands at positions start..stop-1: (stop - start, C)."""
        return self._ids[row, start:stop]

    def at(self, rows: Tensor, positions: Tensor) -> Tensor:
        """What stands at each row's position: (n, C)."""
        return self._ids[rows, positions]

    def put(self, rows: Tensor, positions: Tensor, drawn: Tensor, going: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Put what was drawn (n, C) at these positions, where the pattern leaves it to be drawn; of rows that are
        `going` (n,) bool, None = of all.

        -> the frames (n, C) that are whole now, of any number where there is none yet, and how many frames each row
        will have said (n,).
        """
        c, at = self._config, positions[:, None]
        drawn_end = drawn[:, 0] == c.eos
        if going is not None:
            drawn_end &= going
        ends = torch.where(drawn_end, torch.minimum(self._ends[rows], positions), self._ends[rows])
        self._ends[rows] = ends
        behind = at - ends[:, None]
        ids = drawn.masked_fill(behind == self._delays, c.eos).masked_fill(behind > self._delays, c.pad)
        prompts = self._prompts[rows]
        kept = at <= prompts[:, None] + self._delays
        if going is not None:
            kept |= ~going[:, None]
        ids = torch.where(kept, self._ids[rows, positions], ids)
        self._ids[rows, positions] = ids
        whole = (at - self._delay + self._delays).clamp_min(0)  # (n, C)
        return self._ids[rows[:, None], whole, self._channels], ends - 1 - prompts

    def first_frame(self, prompt_frames: int) -> int:
        """The position with which the first frame behind the prompt is whole."""
        return 1 + prompt_frames + self._delay
