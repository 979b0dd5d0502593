"""The playback clock estimates how much received audio a listener can still play. The scheduler uses this estimate."""

from __future__ import annotations

from dataclasses import dataclass

# Gaps are ignored up to this total time in seconds, because the network or the event loop can cause them.
MAX_UNDERRUN_S = 0.25


@dataclass(eq=False, slots=True)
class Playback:
    """Estimates the audio buffer of a listener who starts to play at the first audio and plays at normal speed.

    The event loop writes the fields, and the engine's thread reads the fields without a lock. So the engine's thread
    may not see the newest chunk yet. Times are from time.monotonic().
    """

    tempo: float = 1.0  # seconds of the engine's audio that the listener plays in one second
    current_index: int = 0  # index of the utterance whose audio the server sends at the moment
    underrun_s: float = 0.0  # total time that the listener has waited for audio after the start of playback
    _sent_s: float = 0.0
    _started_s: float | None = None

    def add(self, seconds: float, now_s: float) -> None:
        """Record that the server has sent `seconds` of the engine's audio to the listener at the time `now_s`."""
        if seconds <= 0:
            return
        if self._started_s is None:
            self._started_s = now_s
        elif (buffered_s := self.buffered_s(now_s)) < 0:
            self.underrun_s -= buffered_s / self.tempo
            # Move the start of playback, so that the listener continues to play at `now_s`.
            self._started_s = now_s - self._sent_s / self.tempo
        self._sent_s += seconds

    @property
    def underrun(self) -> bool:
        """Whether the listener has waited for audio for more than MAX_UNDERRUN_S in total."""
        return self.underrun_s > MAX_UNDERRUN_S

    def buffered_s(self, now_s: float) -> float:
        """Return the seconds of the engine's audio that the server has sent and the listener has not played yet.

        A negative value means that the listener has waited this long for audio.
        """
        return 0.0 if self._started_s is None else self._sent_s - self.tempo * (now_s - self._started_s)

    def time_left_s(self, now_s: float) -> float:
        """Return the seconds until the listener has played all audio that the server has sent."""
        return self.buffered_s(now_s) / self.tempo
