"""The output guard: ends a line of speech in which the model fails.

Rules (each is counted in `tts_guard_total` under its name):

- `frame_cap`: ends a line that takes far more frames than its text needs.
- `early_end`: forbids the end of speech in a line's first frames, where models sometimes draw it by mistake.
- `repeat`: ends a line after REPEATED_S of identical frames, because the model is stuck.
- `silence`: ends a line after LATE_SILENCE_S of silence when its text must be over, and after LONG_SILENCE_S anywhere.
- `retry`: generates a silent utterance once more with another seed; nothing of it was sent yet.

The first two need the model's logits and are in its runner. The last is in the generator. Does not depend on models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from app.audio import pcm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.types import Samples

Rule = Literal["frame_cap", "early_end", "repeat", "silence", "retry"]

REPEATED_S = 1.0
LATE_SILENCE_S = 1.0
LONG_SILENCE_S = 4.0  # longer than any pause that speakers make
SILENCE_DBFS = -50.0
SLOW_CHARS_PER_S = 11.0  # slow English has 14 to 15, so after this time the text must be over


class LineGuard:
    """Checks the frames of one line, whose text has `characters` letters; frame_s: length of a frame in seconds."""

    def __init__(self, characters: int, frame_s: float) -> None:
        self._text_end_s = characters / SLOW_CHARS_PER_S
        self._frame_s = frame_s
        self._seconds = 0.0
        self._silence_s = 0.0
        self._repeated_s = 0.0
        self._last: NDArray[np.integer] | None = None

    def check_frame(self, frame: NDArray[np.integer]) -> Rule | None:
        """Check the next frame's codes (K,) -> the rule that ends the line, or None."""
        self._seconds += self._frame_s
        same = self._last is not None and np.array_equal(frame, self._last)
        self._repeated_s = self._repeated_s + self._frame_s if same else 0.0
        self._last = frame
        if self._repeated_s >= REPEATED_S:
            return "repeat"
        limit_s = LATE_SILENCE_S if self._seconds > self._text_end_s else LONG_SILENCE_S
        return "silence" if self._silence_s >= limit_s else None

    def add_samples(self, samples: Samples) -> None:
        """Add the audio (N,) of one frame. It may come a step later than its codes."""
        quiet = pcm.rms_dbfs(samples) < SILENCE_DBFS
        self._silence_s = self._silence_s + self._frame_s if quiet else 0.0
