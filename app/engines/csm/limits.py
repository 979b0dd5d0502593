"""Frame limits of CSM's lines, and the check that a line fits into the context. This module does not use weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.errors import BadReference, TextTooLong

if TYPE_CHECKING:
    from app.engines.csm.rows import CsmRow


@dataclass(frozen=True, slots=True)
class Guards:
    """Limits for the length of a line's speech, because the model sometimes stops too early or does not stop.

    See also audio/guard.py.
    """

    min_frames: int = 4  # in this number of frames at the start of a line, the first code can't be EOS
    frames_per_token: int = 8  # a line may have this many frames for each token of its text; normal speech has 2 to 5
    slack_frames: int = 40  # frames that a line may have in addition to those for its tokens

    def limit(self, tokens: int) -> int:
        """Return the largest number of frames for a line whose text has `tokens` tokens."""
        return self.slack_frames + self.frames_per_token * tokens


@dataclass(frozen=True, slots=True)
class Limits:
    """The frame limits of lines. guards: None = only the limit in the request (`CsmRow.max_frames`) applies."""

    guards: Guards | None
    max_positions: int

    def line_limit(self, state: CsmRow, line: int) -> int:
        """Return the largest number of frames of the line with index `line`."""
        if self.guards is None:
            return state.max_frames
        return min(state.max_frames, self.guards.limit(len(state.lines[line])))

    def frames_left(self, state: CsmRow) -> int:
        """Return the largest number of frames that the current line may still get."""
        line = self.line_limit(state, state.line) - len(state.line_frames)
        return max(0, min(line, state.max_frames - state.frames, self.max_positions - state.position))

    def is_early(self, state: CsmRow) -> bool:
        """Whether EOS is suppressed in the next frame, because the line has fewer than `min_frames` frames."""
        return self.guards is not None and len(state.line_frames) < self.guards.min_frames

    def is_capped(self, state: CsmRow) -> bool:
        """Whether the current line has reached the guard's limit."""
        return self.guards is not None and len(state.line_frames) >= self.guards.limit(len(state.lines[state.line]))

    def fits(self, state: CsmRow) -> bool:
        """Whether each line, together with its speech, fits into the context after the prompt."""
        return state.base + max(self._lengths(state)) <= self.max_positions

    def _lengths(self, state: CsmRow) -> list[int]:
        """Return the largest number of positions that each line can take together with its speech."""
        return [len(ids) + self.line_limit(state, line) for line, ids in enumerate(state.lines)]

    def fit_context(self, state: CsmRow, remembered: int) -> None:
        """Remove the oldest conversation turns from the prompt until every line and its speech fit into the context.

        remembered: how many turns may be removed. If a line still does not fit, raises BadReference if the voice prompt
        is too long, or TextTooLong if the text or the conversation is too long.
        """
        lengths = self._lengths(state)
        while remembered and state.base + max(lengths) > self.max_positions:
            del state.segments[state.voices]
            remembered -= 1
        most = self.max_positions
        line = lengths.index(max(lengths))
        text, frames = len(state.lines[line]), self.line_limit(state, line)
        if state.base + text + frames <= most:
            return
        needed = f"the text takes {text} and the speech may take {frames}"
        if state.voice_positions + text + frames > most >= text + frames:
            raise BadReference(
                f"The voice prompt is too long: it takes {state.voice_positions} of the model's {most} positions, "
                f"{needed}. Use a shorter reference recording."
            )
        if text + frames > most:
            raise TextTooLong(
                f"The text is too long for one utterance: of the model's {most} positions, {needed}. "
                "Use a shorter text.",
                param="input",
            )
        raise TextTooLong(
            f"The conversation is too long: the voice prompt and the turns take {state.base} of the model's {most} "
            f"positions, {needed}. Send fewer or shorter turns."
        )
