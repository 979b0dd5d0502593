"""The delay pattern: the code of a frame in channel c is delays[c] positions after its code in channel 0.

Position 0 is BOS in all channels. After a prompt of P frames, the code of frame t in channel c is at position 1 + P + t
+ delays[c]. The positions before a channel's first frame are BOS. So frame t is complete at position 1 + P + t +
max(delays). If channel 0 draws EOS at position e, channel c gets EOS at e + delays[c] and PAD after it, and the speech
has e - 1 - P frames.

DiaProcessor and DiaEOSDelayPatternLogitsProcessor in transformers have the same rules. The code of nari differs: it
draws a new code for the last channel of the prompt's last frame. This module keeps the code of the prompt. This module
does not use weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.engines.dia.config import DiaConfig
from app.nn.kernels.torch_state import DelayedRows, put_delayed


class DelayPattern:
    """The codes of all rows at all positions. The codes are on the device, so a step does not wait for the host."""

    def __init__(self, config: DiaConfig, rows: int, device: torch.device) -> None:
        self._config = config
        self._delay = max(config.delays)
        self._delays = torch.tensor(config.delays, device=device)
        self._ids = torch.zeros(rows, config.max_positions + 1, config.channels, dtype=torch.int64, device=device)
        self._prompts = torch.zeros(rows, dtype=torch.int64, device=device)  # number of frames in each row's prompt
        # For each row, the position of EOS in channel 0. Before EOS is drawn, this is the last position at which EOS is
        # possible.
        self._ends = torch.zeros(rows, dtype=torch.int64, device=device)

    def begin(self, row: int, prompt: Tensor, frames: int) -> None:
        """Start a row with a prompt of codes (P, C). frames: the largest number of frames of speech.

        Raises ValueError if prompt and speech do not fit into the positions.
        """
        c, length = self._config, len(prompt)
        if length + frames > c.max_frames:
            raise ValueError(f"{length} + {frames} frames do not fit into {c.max_positions} positions")
        ids = self._ids[row]
        for channel, delay in enumerate(c.delays):
            ids[: delay + 1, channel] = c.bos
            ids[delay + 1 : delay + 1 + length, channel] = prompt[:, channel]
        self._prompts[row] = length
        self._ends[row] = 1 + length + frames

    def move_row(self, source: int, target: int) -> None:
        """Move the codes of row `source` to row `target`."""
        for values in (self._ids, self._prompts, self._ends):
            values[target] = values[source]

    def prompt_codes(self, row: int, start: int, stop: int) -> Tensor:
        """Return the codes of a row at positions start..stop-1: (stop - start, C)."""
        return self._ids[row, start:stop]

    def at(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the codes (n, C) of these rows at these positions. rows, positions: (n,)."""
        return self._ids[rows, positions]

    def put(
        self, rows: Tensor, positions: Tensor, drawn: Tensor, active: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Store the drawn codes (n, C) of these rows at these positions.

        If the pattern requires BOS, EOS, PAD or a code of the prompt at a place, stores the required code there. active
        (n,) bool: inactive rows do not change; None = all rows are active. Returns for each row the frame (n, C) whose
        last code is at the given position, and the number of frames (n,) of the row's whole speech. Before EOS is
        drawn, this number is the largest allowed number. Before the first frame of a row is complete, the returned
        frame is undefined.
        """
        return put_delayed(
            self._ids,
            self._prompts,
            self._ends,
            self._delays,
            rows,
            positions,
            drawn,
            active,
            longest_delay=self._delay,
            end=self._config.eos,
            pad=self._config.pad,
        )

    def static_rows(
        self,
        count: int,
        *,
        selected: Tensor,
        speaking: Tensor,
        positions: Tensor,
        draws: Tensor,
        held: Tensor,
        first_frames: Tensor,
    ) -> DelayedRows:
        """Return the state of the first `count` rows. DelayedRows describes the arguments, each (count,)."""
        return DelayedRows(
            self._ids[:count],
            self._prompts[:count],
            self._ends[:count],
            selected,
            speaking,
            positions,
            draws,
            held,
            first_frames,
            self._delays,
            self._delay,
            self._config.eos,
            self._config.pad,
        )

    def first_frame(self, prompt_frames: int) -> int:
        """Return the position at which the first frame after the prompt is complete."""
        return 1 + prompt_frames + self._delay
