"""Frame limits of Dia's scripts, and the check that a script fits the context. This module does not use weights."""

from __future__ import annotations

from dataclasses import dataclass

from app.engines.dia.script import BYTES_PER_S, spoken_bytes
from app.errors import BadReference, TextTooLong


@dataclass(frozen=True, slots=True)
class Guards:
    """Limits for the duration of a script's speech, because the model sometimes stops too early or does not stop.

    See also audio/guard.py.
    """

    min_s: float = 0.3  # EOS is suppressed in the first min_s seconds, so speech is at least this long
    pace: float = 2.0  # a script may take pace * expected duration + slack_s seconds
    slack_s: float = 4.0

    def limit_s(self, expected_s: float) -> float:
        """Return how many seconds a script may take. expected_s: its expected duration in seconds."""
        return self.slack_s + self.pace * expected_s


@dataclass(frozen=True, slots=True)
class Limits:
    """The frame limits of scripts. guards: None = only the limit of the request and the context length apply."""

    guards: Guards | None
    max_frames: int  # the largest number of frames of a prompt and the speech after it, together
    frame_hz: float

    @property
    def min_frames(self) -> int:
        """The number of steps at the start of the speech in which EOS is suppressed."""
        return 0 if self.guards is None else round(self.guards.min_s * self.frame_hz)

    def frames(self, requested: int, prompt: int, spoken: str) -> int:
        """Return the largest number of frames for the text `spoken` after a prompt of `prompt` frames.

        requested: the limit in the request, in frames. Raises TextTooLong if the text does not fit into the context
        even without a prompt, and BadReference if the text does not fit after this prompt.
        """
        hz, most = self.frame_hz, self.max_frames
        left = most - prompt
        expected_s = spoken_bytes(spoken) / BYTES_PER_S
        needed = 1 if self.guards is None else min(requested, round(expected_s * hz))
        if needed > most:
            raise TextTooLong(
                f"The text is too long for one utterance: it takes about {expected_s:.0f} s, and Dia speaks "
                f"{most / hz:.0f} s at most. Use a shorter text.",
                param="input",
            )
        if needed > left:
            raise BadReference(
                f"The recordings of the voices take {prompt / hz:.0f} s and the text takes about {expected_s:.0f} s; "
                f"together they may take {most / hz:.0f} s. Use shorter recordings or a shorter text."
            )
        if self.guards is None:
            return min(requested, left)
        return min(requested, left, max(1, round(self.guards.limit_s(expected_s) * hz)))
