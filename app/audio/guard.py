"""The output guard: signs that a speech model has lost its way in a line, and when to end the line for it.

Rules (each counted in `tts_guard_total` by its name):

- `frame_cap`: a line may take so many frames for its tokens, far above speech; then it is ended.
- `early_end`: no end of speech in a line's first frames; models draw it there now and then, and say nothing.
- `repeat`: the same frame over and over is a stuck model; after REPEATED_S of it the line is ended.
- `silence`: LATE_SILENCE_S of silence after the text should have been said ends the line; anywhere, LONG_SILENCE_S.
- `retry`: an utterance that came out silent, so that nothing of it was sent, is tried once more with another seed.

The first two need the model's logits and live in its Runner, the last in the studio. Knows samples and codes, no model.
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
LONG_SILENCE_S = 4.0  # longer than a dramatic pause, shorter than a listener's patience
SILENCE_DBFS = -50.0
SLOW_CHARS_PER_S = 11.0  # unhurried English is 14 to 15: by then a text has been said


class LineGuard:
    """Watches one line of `characters` while it is spoken in frames of frame_s. One line, one thread."""

    def __init__(self, characters: int, frame_s: float) -> None:
        self._said_by_s = characters / SLOW_CHARS_PER_S
        self._frame_s = frame_s
        self._seconds = 0.0
        self._silence_s = 0.0
        self._repeated_s = 0.0
        self._last: NDArray[np.integer] | None = None

    def see(self, frame: NDArray[np.integer]) -> Rule | None:
        """The next frame's codes (K,); says which rule ends the line, if one does."""
        self._seconds += self._frame_s
        same = self._last is not None and np.array_equal(frame, self._last)
        self._repeated_s = self._repeated_s + self._frame_s if same else 0.0
        self._last = frame
        if self._repeated_s >= REPEATED_S:
            return "repeat"
        patience_s = LATE_SILENCE_S if self._seconds > self._said_by_s else LONG_SILENCE_S
        return "silence" if self._silence_s >= patience_s else None

    def hear(self, samples: Samples) -> None:
        """The same frame's sound (N,), which may come a step later."""
        quiet = pcm.rms_dbfs(samples) < SILENCE_DBFS
        self._silence_s = self._silence_s + self._frame_s if quiet else 0.0
