"""Frame limits of CSM's lines, and the check that they fit into the context. Does not depend on weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.errors import BadReference, TextTooLong

if TYPE_CHECKING:
    from app.engines.csm.rows import CsmRow


@dataclass(frozen=True, slots=True)
class Guards:
    """Limits for a model that sometimes does not stop, or stops too early (see `audio/guard.py`)."""

    min_frames: int = 4  # number of frames at the start of a line in which the first code can't be EOS
    frames_per_token: int = 8  # speech takes 2 to 5 frames a token
    slack_frames: int = 40

    def limit(self, tokens: int) -> int:
        """The largest number of frames for a line of `tokens` tokens."""
        return self.slack_frames + self.frames_per_token * tokens


@dataclass(frozen=True, slots=True)
class Limits:
    """The frame limits of lines. guards: None = only the utterance's own limit applies."""

    guards: Guards | None
    max_positions: int

    def line_limit(self, state: CsmRow, line: int) -> int:
        """The largest number of frames of a line."""
        if self.guards is None:
            return state.max_frames
        return min(state.max_frames, self.guards.limit(len(state.lines[line])))

    def frames_left(self, state: CsmRow) -> int:
        """Return how many more frames the current line may have."""
        line = self.line_limit(state, state.line) - len(state.line_frames)
        return max(0, min(line, state.max_frames - state.frames, self.max_positions - state.position))

    def is_early(self, state: CsmRow) -> bool:
        """Whether the guard suppresses EOS in the next frame."""
        return self.guards is not None and len(state.line_frames) < self.guards.min_frames

    def is_capped(self, state: CsmRow) -> bool:
        """Whether the current line has reached the guard's limit."""
        return self.guards is not None and len(state.line_frames) >= self.guards.limit(len(state.lines[state.line]))

    def fit_context(self, state: CsmRow, remembered: int) -> None:
        """Drop the oldest of the `remembered` turns until every line and its frames fit after the prompt.

        Nothing else of the prompt is dropped. Raises BadReference, TextTooLong.
        """
        lengths = [len(ids) + self.line_limit(state, line) for line, ids in enumerate(state.lines)]
        while remembered and state.base + max(lengths) > self.max_positions:
            del state.segments[state.voices]
            remembered -= 1
        most = self.max_positions
        line = lengths.index(max(lengths))
        text, frames = len(state.lines[line]), self.line_limit(state, line)
        if state.base + text + frames <= most:
            return
        needed = f"the text ({text}) and up to {frames} frames of speech"
        if state.voice_positions + text + frames > most >= text + frames:
            raise BadReference(
                f"The voice prompt is too long: it takes {state.voice_positions} of {most} positions, and {needed} do "
                "not fit after it. Use a shorter reference recording."
            )
        if text + frames > most:
            raise TextTooLong(
                f"The text is too long for one utterance: {needed} exceed {most} positions. Use a shorter text.",
                param="input",
            )
        raise TextTooLong(
            f"The conversation is too long: the voice prompt and the turns take {state.base} of {most} positions, and "
            f"{needed} do not fit after them. Send fewer or shorter turns."
        )
