"""How many frames a script of Dia may take, and whether it fits. Does not depend on weights."""

from __future__ import annotations

from dataclasses import dataclass

from app.engines.dia.script import BYTES_PER_S, spoken_bytes
from app.errors import BadReference, TextTooLong


@dataclass(frozen=True, slots=True)
class Guards:
    """Limits for a model that does not stop, or that stops at once (see `audio/guard.py`)."""

    min_s: float = 0.3  # in this first part of a script, channel 0 can't be EOS
    pace: float = 2.0  # a script may take this many times its expected duration,
    slack_s: float = 4.0  # and this much more

    def limit_s(self, expected_s: float) -> float:
        """The largest duration of a script with this expected duration."""
        return self.slack_s + self.pace * expected_s


@dataclass(frozen=True, slots=True)
class Limits:
    """The frame limits of scripts. guards: None = only the utterance's own limit and the context count."""

    guards: Guards | None
    max_frames: int  # of a prompt and the speech after it
    frame_hz: float

    @property
    def min_frames(self) -> int:
        """EOS is suppressed in this many steps."""
        return 0 if self.guards is None else round(self.guards.min_s * self.frame_hz)

    def frames(self, requested: int, prompt: int, spoken: str) -> int:
        """How many frames the text `spoken` may have after a prompt of `prompt` frames.

        Raises BadReference, TextTooLong.
        """
        hz, most = self.frame_hz, self.max_frames
        left = most - prompt
        expected_s = spoken_bytes(spoken) / BYTES_PER_S
        needed = 1 if self.guards is None else min(requested, round(expected_s * hz))
        if needed > most:
            raise TextTooLong(
                f"The text is too long to be spoken in one piece: about {expected_s:.0f} s, and Dia speaks "
                f"{most / hz:.0f} s at most. Use shorter pieces.",
                param="input",
            )
        if needed > left:
            raise BadReference(
                f"The voices' recordings take {prompt / hz:.0f} of {most / hz:.0f} s, and the text, about "
                f"{expected_s:.0f} s, does not fit behind them. Use shorter recordings or a shorter text."
            )
        if self.guards is None:
            return min(requested, left)
        return min(requested, left, max(1, round(self.guards.limit_s(expected_s) * hz)))
